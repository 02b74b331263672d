//! After "ready" the frame path allocates nothing, and what was allocated before is what the plan says.
//!
//! A counting allocator watches the threads that are marked as the frame path (ingest, reconstruct, the carrier's pool) over two whole
//! scans with calibration, faults, previews and publication, without and with an optimisation after each scan (whose threads are marked
//! too). Run with `--release`: the proof belongs to the optimised build.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use diffnr::config::{EarlyIterations, Settings};
use diffnr::daemon::{Daemon, device};
use diffnr::plan::{Place, Plan};
use diffnr::repair::library;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{FRAME_FIRST, FRAME_LAST, FRAME_PAYLOAD_CRC, FrameHeader, FrameKind};
use firmware_bridge::mapping;
use firmware_bridge::ring::Sent;

static READY: AtomicBool = AtomicBool::new(false);
static ON_FRAME_PATH: AtomicU64 = AtomicU64::new(0);
static FIRST_SIZE: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

struct Counting;

impl Counting {
    fn note(size: usize) {
        LIVE_BYTES.fetch_add(size as i64, Ordering::Relaxed);
        if READY.load(Ordering::Relaxed) && diffnr::supervise::is_on_frame_path() {
            let _first = FIRST_SIZE.compare_exchange(0, size as u64, Ordering::Relaxed, Ordering::Relaxed);
            ON_FRAME_PATH.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged; the counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        Self::note(size);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const VIEWS: u32 = 48;

fn settings(name: &str, reconstruct: &str, voxels: [usize; 3]) -> Settings {
    // An early start is waited for between two frames.
    let frame_timeout_ms = if reconstruct.contains("early") { 10_000 } else { 300 };
    let text = format!(
        "[shared_memory]
         name = \"{name}\"
         ring_slots = 8
         [geometry]
         source_to_isocenter_mm = 500
         source_to_detector_mm = 750
         columns = 160
         rows = 120
         pitch_u_mm = 2.5
         pitch_v_mm = 2.5
         views = {VIEWS}
         [volume]
         voxels = {voxels:?}
         size_mm = [180, 180, 150]
         [publish]
         preview_every_views = 5
         [supervise]
         frame_timeout_ms = {frame_timeout_ms}
         log_level = \"error\"
         [compute]
         device = \"cpu\"
         threads = 3
         [reconstruct]
         {reconstruct}"
    );
    Settings::from_toml(&text, std::path::Path::new(".")).unwrap()
}

struct Segments<'a>(&'a str);
impl Drop for Segments<'_> {
    fn drop(&mut self) {
        let _gone = mapping::unlink(self.0);
    }
}

fn wait(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(30), "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Plays dark, flat and a scan of raw counts; `spoil` says what to do to each view's header.
fn play(settings: &Settings, kind: FrameKind, spoil: impl Fn(u32, &mut FrameHeader) -> bool) {
    let mut producer = mapping::attach_producer(&settings.shared_memory.name).unwrap();
    let pixels = settings.geometry.detector.pixels();
    let line_integrals = vec![0.5f32; pixels];
    let mut sequence = 0;
    let mut send = |mut header: FrameHeader, payload: &[u8]| {
        header.sequence = sequence;
        sequence += 1;
        loop {
            header.timestamp_ns = monotonic_ns();
            match producer.send(&header, payload, header.timestamp_ns) {
                Sent::Dropped => std::thread::sleep(Duration::from_micros(100)),
                Sent::Written { .. } => break,
                other => panic!("{other:?}"),
            }
        }
    };
    let detector = settings.geometry.detector;
    let plain = FrameHeader {
        flags: FRAME_PAYLOAD_CRC,
        total_views: VIEWS,
        columns: detector.columns as u32,
        rows: detector.rows as u32,
        relative_exposure: 1.0,
        ..FrameHeader::zeroed()
    };
    for (kind, level) in [(FrameKind::DarkU16, 100u16), (FrameKind::DarkU16, 104), (FrameKind::FlatU16, 40_000)] {
        let mut counts = vec![level; pixels];
        counts[777] = if kind == FrameKind::FlatU16 { 120 } else { level };
        let header = FrameHeader { kind: kind as u32, ..plain };
        send(header, bytemuck::cast_slice(&counts));
    }
    let counts = vec![20_000u16; pixels];
    for view in 0..VIEWS {
        let pose = settings.geometry.views[view as usize];
        let mut header = FrameHeader {
            kind: kind as u32,
            view_index: view,
            source_mm: pose.source_mm.to_array(),
            detector_origin_mm: pose.detector_origin_mm.to_array(),
            column_step_mm: pose.column_step_mm.to_array(),
            row_step_mm: pose.row_step_mm.to_array(),
            ..plain
        };
        header.flags |= if view == 0 { FRAME_FIRST } else { 0 } | if view + 1 == VIEWS { FRAME_LAST } else { 0 };
        if spoil(view, &mut header) {
            let payload: &[u8] = if kind == FrameKind::CountsU16 {
                bytemuck::cast_slice(&counts)
            } else {
                bytemuck::cast_slice(&line_integrals)
            };
            send(header, payload);
        }
    }
    drop(producer.detach());
}

#[test]
fn nothing_is_allocated_on_the_frame_path_and_the_plan_lists_what_was_allocated_before() {
    check_the_counter();
    two_scans("method = \"fdk\"", [96, 96, 80]);
    // Smaller, as each scan's run goes over the volume some hundred times.
    two_scans("method = \"gaussians\"\niterations = 5\nearly_iterations = 2\npublish_every = 2", [48, 44, 40]);
    two_scans("method = \"field\"\niterations = 2\npublish_every = 1", [48, 44, 40]);
    let Some(onnxruntime) = onnx_runtime() else { return };
    // ONNX Runtime's own memory is not counted: it does not come from this program's allocator.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/repair");
    let slice_fixer =
        format!("[slice_fixer]\nmodel = {model:?}\nonnxruntime = {onnxruntime:?}\nrepairs = 2\nrepair_from = 0.5");
    let reconstruct = "method = \"gaussians\"\niterations = 6\nearly_iterations = 2\npublish_every = 2";
    two_scans(&format!("{reconstruct}\n{slice_fixer}"), [48, 44, 40]);
}

/// ONNX Runtime's folder; says so where there is none.
fn onnx_runtime() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(library::FOLDER);
    let found = std::env::var_os(library::VARIABLE).map(PathBuf::from).or_else(|| fetched.is_dir().then_some(fetched));
    if found.is_none() {
        eprintln!("SKIPPED: no ONNX Runtime (make onnxruntime, or DIFFNR_ONNXRUNTIME)");
    }
    found
}

fn two_scans(reconstruct: &str, voxels: [usize; 3]) {
    let name = format!("dnr-alloc-{}", std::process::id());
    let _segments = Segments(&name);
    let settings = settings(&name, reconstruct, voxels);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let (device, _) = device(&settings).unwrap();
    let plan = Plan::of(&settings, &device).unwrap();
    let planned: u64 = plan.buffers.iter().filter(|b| b.place == Place::Host).map(|b| b.bytes).sum();
    let daemon = Daemon::start(&settings, &device, plan).unwrap();
    let allocated = LIVE_BYTES.load(Ordering::Relaxed) - before;
    // Beside the buffers: poses in settings and plan, FFT tables, thread handles, queues of the pools, strings.
    let slack = 192 * 1024;
    let planned = planned as i64;
    assert!(planned > 3_000_000, "{planned}");
    assert!((allocated - planned).abs() < slack, "the plan lists {planned} bytes, but {allocated} were allocated");

    READY.store(true, Ordering::SeqCst);
    let ended = || daemon.supervision().scans_ended.load(Ordering::Acquire);
    let optimised = || daemon.supervision().optimise().map_or(0, |optimise| optimise.counters.done);
    let has_early_start =
        settings.optimised.as_ref().is_some_and(|optimised| matches!(optimised.early, EarlyIterations::Count(1..)));
    play(&settings, FrameKind::CountsU16, |_, _| true);
    wait("the first scan's end", || ended() == 1);
    wait("what follows it", || daemon.has_ended_a_scan());
    // A scan with everything that can go wrong with a frame: lost, of another place, of no planned view.
    play(&settings, FrameKind::LineIntegralsF32, |view, header| {
        match view {
            7 => header.source_mm[0] += 400.0,
            8 => header.row_step_mm = header.column_step_mm,
            9 => (header.view_index, header.total_views) = (VIEWS + 5, 0),
            _ => {}
        }
        // At a pace that leaves time for previews; the first scan came as fast as the ring took it.
        std::thread::sleep(Duration::from_millis(4));
        // Five of the views do not come: 36 of 48 are there, from which an early start is made.
        if view == 41 && has_early_start {
            wait("the early start", || {
                let progress = daemon.supervision().optimise().unwrap().progress;
                !progress.running && progress.iteration == progress.early_iterations
            });
        }
        view != 20 && view != 21
    });
    wait("the second scan's end", || ended() == 2);
    wait("what follows it", || daemon.has_ended_a_scan());
    READY.store(false, Ordering::SeqCst);

    assert_eq!(optimised(), if settings.optimised.is_some() { 2 } else { 0 });
    let repairs = daemon.supervision().slice_fixer().as_ref().map(|telemetry| telemetry.counters.done);
    assert_eq!(repairs, reconstruct.contains("slice_fixer").then_some(4), "two a scan");
    let early_starts = daemon.supervision().optimise().map_or(0, |optimise| optimise.counters.early_starts);
    assert!(!has_early_start || early_starts >= 1);
    let counters = daemon.supervision().reconstruct().counters;
    assert_eq!((counters.scans_full, counters.scans_partial, counters.refused), (1, 1, 3), "{counters:?}");
    assert!(counters.previews > 0 && counters.full == 1 && counters.partial == 1, "{counters:?}");
    let count = ON_FRAME_PATH.load(Ordering::SeqCst);
    assert_eq!(
        count,
        0,
        "{count} allocations on the frame path, the first of {} bytes ({reconstruct})",
        FIRST_SIZE.load(Ordering::SeqCst)
    );
    daemon.finish().unwrap();
}

/// The counter itself counts: else the test below could not fail.
fn check_the_counter() {
    // On a thread of its own: the mark stays with the thread.
    std::thread::spawn(|| {
        diffnr::supervise::mark_frame_path();
        READY.store(true, Ordering::SeqCst);
        drop(std::hint::black_box(vec![1u8; 4321]));
        READY.store(false, Ordering::SeqCst);
        assert_eq!(ON_FRAME_PATH.swap(0, Ordering::SeqCst), 1);
        assert_eq!(FIRST_SIZE.swap(0, Ordering::SeqCst), 4321);
    })
    .join()
    .unwrap();
}
