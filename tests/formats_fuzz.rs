//! Mutational fuzzing of the readers of scans and volumes: whatever the bytes, no panic and no allocation beyond what the file holds.
//!
//! Runs two seconds, or `DIFFNR_FUZZ_SECONDS`, shared by all readers. Seeded: the same cases in the same order. A failing input is kept under the target's
//! temporary folder.
#![allow(clippy::unwrap_used)]
// A counting allocator is the only way to see how much a reader asks for.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diffnr::formats::nifti::{Storage, read_ct, write};
use diffnr::formats::scene::{self, Acquisition, RawCounts, Scene, TestViews};
use diffnr::formats::{Scan, SceneScale, npy, rtk};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use glam::{DAffine3, DVec3};
use ndarray::{Array2, Array3};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Notes the largest single request.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Files of a few kB must not make a reader ask for more at once: buffers of 256 kB, and for compressed ones deflate's largest ratio (1032)
/// times the file, as float32.
const MOST_BYTES: usize = 64 << 20;

/// How many readers share the time.
const READERS: f64 = 8.0;

/// Pieces that parsers stumble over.
const TOKENS: [&str; 24] = [
    "-1",
    "0",
    "1e999",
    "NaN",
    "nan",
    "inf",
    "-0.0",
    "1e308",
    "4294967296",
    "18446744073709551615",
    "null",
    "{}",
    "[]",
    "\"\"",
    "..",
    "/",
    "\\",
    "(",
    ")",
    "True",
    "<",
    "&",
    "\u{0}",
    "99999999999999999999",
];

fn mutate(random: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..6) {
        let length = bytes.len();
        let at = random.random_range(0..=length);
        match random.random_range(0..8) {
            0 if at < length => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < length => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            2 => bytes.truncate(at),
            3 => {
                let token = TOKENS[random.random_range(0..TOKENS.len())];
                bytes.splice(at..at, token.bytes());
            }
            // A token in place of a number or word.
            4 => {
                let word = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+".contains(byte);
                let end = at + bytes[at..].iter().take_while(|byte| word(byte)).count();
                let token = TOKENS[random.random_range(0..TOKENS.len())];
                bytes.splice(at..end, token.bytes());
            }
            // A piece copied elsewhere.
            5 if length > 8 => {
                let from = random.random_range(0..length - 4);
                let piece = bytes[from..(from + random.random_range(1..64)).min(length)].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => drop(bytes.drain(at..(at + random.random_range(1..32)).min(length))),
            7 if at + 4 <= length => {
                let number = random.next_u32().to_le_bytes();
                bytes[at..at + 4].copy_from_slice(&number);
            }
            _ => {}
        }
    }
}

/// Mutates one of `seeds` again and again, writes it to `target`, and lets `read` read.
fn fuzz(name: &str, seeds: &[Vec<u8>], target: &Path, read: impl Fn()) {
    let seconds = std::env::var("DIFFNR_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let end = Instant::now() + Duration::from_secs_f64(seconds / READERS);
    let mut random = ChaCha8Rng::seed_from_u64(20_261_122);
    let mut cases = 0_u64;
    LARGEST.store(0, Ordering::Relaxed);
    while Instant::now() < end {
        let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
        if cases >= seeds.len() as u64 {
            mutate(&mut random, &mut bytes);
        }
        fs::write(target, &bytes).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(&read));
        let largest = LARGEST.load(Ordering::Relaxed);
        if outcome.is_err() || largest > MOST_BYTES {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{cases}.bin"));
            fs::write(&kept, &bytes).unwrap();
            panic!("{name}: case {cases} panics or asks for {largest} bytes at once; input kept in {}", kept.display());
        }
        cases += 1;
    }
    println!("{name}: {cases} cases, largest request {} bytes", LARGEST.load(Ordering::Relaxed));
    assert!(cases > 10, "{name}: too few cases to mean anything");
}

fn scan() -> Scan {
    let orbit =
        CircularOrbit { detector: Detector { columns: 5, rows: 4 }, pitch_rad: 0.01, ..CircularOrbit::default() };
    Scan {
        geometry: orbit.over_arc(3, 0.0, 6.0),
        grid: VolumeGrid::over_box([3, 4, 5], DVec3::splat(100.0), DVec3::ZERO),
        projections: Array3::ones((3, 4, 5)),
        scale: SceneScale::hu_window(0.0193),
        patient_offset_mm: DVec3::ONE,
    }
}

/// One test for all, one after the other: the allocator's note is shared.
#[test]
fn fuzz_readers_of_scans_and_volumes() {
    // In memory where that can be had: a disk spends most of the time on writing the cases.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let folder = folder.path();

    let scene_folder = folder.join("scene");
    let whole = Scene {
        test: Some(TestViews { geometry: scan().geometry, projections: Array3::ones((3, 4, 5)) }),
        ground_truth_per_mm: Some(Array3::ones((3, 4, 5))),
        acquisition: Acquisition { photons: Some(1e5), electronic_noise_sigma: Some(10.0), seed: Some(1) },
        raw: Some(RawCounts {
            counts: Array3::ones((3, 4, 5)),
            dark: Array2::ones((4, 5)),
            flat: Array2::ones((4, 5)),
            gain: 1.0,
        }),
        scan: scan(),
    };
    scene::write(&scene_folder, &whole).unwrap();
    let meta = scene_folder.join(scene::META_FILE);
    let good = fs::read(&meta).unwrap();
    fuzz("meta_data.json", std::slice::from_ref(&good), &meta, || drop(scene::read(&scene_folder)));
    fs::write(&meta, good).unwrap();
    for name in ["proj_train/proj_train_0001.npy", "vol_gt.npy", "proj_raw/proj_train_0002.npy"] {
        let path = scene_folder.join(name);
        let good = fs::read(&path).unwrap();
        fuzz(name.rsplit('/').next().unwrap(), std::slice::from_ref(&good), &path, || drop(scene::read(&scene_folder)));
        fs::write(&path, good).unwrap();
    }

    let npy_path = folder.join("any.npy");
    npy::write_volume(&npy_path, Array3::ones((3, 4, 5)).view()).unwrap();
    let good = fs::read(&npy_path).unwrap();
    fuzz("npy", &[good], &npy_path, || drop(npy::read_volume(&npy_path)));

    let affine = DAffine3::from_scale(DVec3::new(1.0, 2.0, 3.0));
    let seeds: Vec<Vec<u8>> = [("a.nii", Storage::Float32), ("b.nii", Storage::Int16), ("c.nii.gz", Storage::Float32)]
        .into_iter()
        .map(|(name, storage)| {
            let path = folder.join(name);
            write(&path, Array3::ones((3, 4, 5)).view(), &affine, storage).unwrap();
            fs::read(path).unwrap()
        })
        .collect();
    let nifti_path = folder.join("any.nii");
    fuzz("nifti", &seeds, &nifti_path, || drop(read_ct(&nifti_path)));

    let (geometry, stack) = (folder.join("geometry.xml"), folder.join("stack.mha"));
    rtk::write(&geometry, &stack, &scan()).unwrap();
    let good = fs::read(&geometry).unwrap();
    fuzz("rtk-xml", std::slice::from_ref(&good), &geometry, || drop(rtk::read(&geometry, &stack, None)));
    fs::write(&geometry, good).unwrap();
    let plain = fs::read(&stack).unwrap();
    let compressed = [
        &b"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nDimSize = 5 4 3\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"[..],
        &deflate(&[0; 240]),
    ]
    .concat();
    fuzz("metaimage", &[plain, compressed], &stack, || drop(rtk::read(&geometry, &stack, None)));
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}
