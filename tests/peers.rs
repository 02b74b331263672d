//! Our files and figures against those of nibabel, safetensors, scikit-image, SciPy and RTK.
//!
//! Needs a Python with these packages (`pip install nibabel safetensors scikit-image scipy itk-rtk`), named by `DIFFNR_PYTHON` or found as `python3`;
//! what is missing is skipped with a visible line.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use diffnr::curate::{self, Options, Request};
use diffnr::formats::nifti::{Storage, read_ct, write};
use diffnr::formats::{Scan, SceneScale, metaimage, npy, rtk, scene};
use diffnr::geometry::{CircularOrbit, Detector, ViewPose};
use diffnr::measure;
use glam::{DAffine3, DMat3, DVec3};
use ndarray::{Array, Array3};
use serde_json::Value;

/// Runs tests/python/peers.py; `None` (and a visible line) where Python or a package is missing.
fn peer(test: &str, arguments: &[&str]) -> Option<Value> {
    let python = std::env::var("DIFFNR_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/peers.py");
    let Ok(output) = Command::new(&python).arg(script).args(arguments).output() else {
        eprintln!("SKIPPED: {test}: {python} cannot be run");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) {
        eprintln!("SKIPPED: {test}: {python} has no {}", text.trim());
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Packages may print warnings before the answer.
    Some(serde_json::from_str(text.trim().lines().last().unwrap()).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Compares what we read from a file with what nibabel says of it.
fn agrees_with_nibabel(path: &Path, said: &Value) {
    let read = read_ct(path).unwrap();
    let name = path.display();
    assert_eq!(said["shape"], serde_json::json!(read.hu.shape()), "{name}");
    for (row, numbers) in said["affine"].as_array().unwrap().iter().take(3).enumerate() {
        let m = read.voxel_to_world_mm;
        let ours = [m.matrix3.x_axis[row], m.matrix3.y_axis[row], m.matrix3.z_axis[row], m.translation[row]];
        for (column, value) in ours.into_iter().enumerate() {
            // Header fields are float32; a quaternion's fourth component costs a digit more.
            assert!(
                (value - number(&numbers[column])).abs() < 1e-5 * (1.0 + value.abs()),
                "{name}: affine [{row}][{column}]"
            );
        }
    }
    for pick in said["picks"].as_array().unwrap() {
        let at = [0, 1, 2].map(|axis| pick[axis].as_u64().unwrap() as usize);
        let value = f64::from(read.hu[at]);
        // We keep float32.
        assert!((value - number(&pick[3])).abs() <= 1e-6 * (1.0 + value.abs()), "{name}: voxel {at:?}: {value}");
    }
    let sum: f64 = read.hu.iter().map(|value| f64::from(*value)).sum();
    assert!((sum - number(&said["sum"])).abs() < 1e-5 * (1.0 + sum.abs()), "{name}");
}

#[test]
fn nibabel_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let values = Array::from_shape_fn((4, 5, 37), |(i, j, k)| (1000 * i + 100 * j + k) as f32 - 1024.0);
    let oblique = DAffine3 {
        matrix3: DMat3::from_rotation_y(0.7)
            * DMat3::from_rotation_x(-0.2)
            * DMat3::from_diagonal(DVec3::new(-0.5, 0.75, 2.0)),
        translation: DVec3::new(-120.0, 33.0, 7.5),
    };
    let plain =
        DAffine3 { matrix3: DMat3::from_diagonal(DVec3::new(1.4, 1.4, 2.5)), translation: DVec3::new(-5.0, 6.0, 7.0) };
    for (name, affine, storage) in [
        ("oblique.nii.gz", oblique, Storage::Float32),
        ("plain.nii", plain, Storage::Int16),
        ("mask.nii.gz", plain, Storage::Uint8),
    ] {
        let path = folder.path().join(name);
        write(&path, values.view(), &affine, storage).unwrap();
        let Some(said) = peer("nibabel reads", &["nibabel-read", text(&path)]) else { return };
        agrees_with_nibabel(&path, &said);
        if storage == Storage::Int16 {
            assert_eq!(number(&said["picks"][1][3]), -24.0, "voxel [1, 0, 0] is its own");
        }
    }
}

#[test]
fn we_read_what_nibabel_writes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(files) = peer("nibabel writes", &["nibabel-write", text(folder.path())]) else { return };
    let files = files.as_object().unwrap();
    assert_eq!(files.len(), 5);
    for (name, said) in files {
        agrees_with_nibabel(&folder.path().join(name), said);
    }
}

#[test]
fn safetensors_and_numpy_read_our_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        scans: 4,
        size: 16,
        detector: [16, 20],
        views_dense: 60,
        views: [6, 12],
        stopped_at: [0.02, 0.05],
        ..Options::default()
    };
    let gathered = curate::gather(&Request { phantoms: 2, ..Request::default() }).unwrap();
    curate::curate(&options, &gathered.subjects, folder.path(), 0, &mut |_| ()).unwrap();
    let Some(said) = peer("pairs", &["curation", text(folder.path())]) else { return };
    let shards = said.as_array().unwrap();
    assert_eq!(shards.len(), 8);
    for shard in shards {
        let arrays = &shard["arrays"];
        assert_eq!(arrays["degraded_hu"], serde_json::json!(["int16", [16, 16, 16]]));
        assert_eq!(arrays["projections"], serde_json::json!(["float32", [2, 16, 20]]));
        assert_eq!(arrays["inside"], serde_json::json!(["uint8", [16, 16]]));
        assert_eq!(arrays["inside_z"], serde_json::json!(["int16", [2, 16, 16]]));
        assert_eq!(arrays["views_rad"][0], "float32");
        assert_eq!((&shard["same_inside"], &shard["views"]), (&Value::Bool(true), &Value::Bool(true)));
        assert!(number(&shard["geometry"]) > 500.0);
        let (theirs, ours) = (number(&shard["psnr_db"]), number(&shard["claimed_psnr_db"]));
        // Ours is written with three decimals.
        assert!((theirs - ours).abs() < 1e-3, "{theirs} {ours}");
    }
}

#[test]
fn we_read_a_scene_that_numpy_and_json_wrote() {
    let folder = tempfile::tempdir().unwrap();
    if peer("a scene by NumPy", &["numpy-scene", text(folder.path())]).is_none() {
        return;
    }
    let read = scene::read(folder.path()).unwrap();
    assert!(!read.scan.scale.is_absolute);
    assert_eq!(read.scan.projections.dim(), (3, 7, 8));
    assert_eq!(read.scan.projections[[2, 6, 5]], 265.0);
    assert_eq!(read.ground_truth_per_mm.unwrap()[[3, 2, 1]], 0.321);
    assert_eq!(read.scan.grid.voxel_mm, DVec3::new(0.5, 0.4, 2.0 / 6.0));
    let test = read.test.unwrap();
    assert_eq!(test.projections.dim(), (2, 7, 8));
    // Half a turn on: the source has gone to -x, and the pitch is 4 / 8 and 3.5 / 7.
    let pose = read.scan.geometry.views[1];
    assert!((pose.source_mm - DVec3::new(-5.0, 0.0, 0.0)).length() < 1e-12);
    assert!((pose.column_step_mm - DVec3::new(0.0, -0.5, 0.0)).length() < 1e-12);
    assert!((pose.row_step_mm - DVec3::new(0.0, 0.0, -0.5)).length() < 1e-12);
}

/// Two volumes in [0, 1] with structure at several scales, an empty slice, and noise.
fn pair(shape: (usize, usize, usize)) -> (Array3<f32>, Array3<f32>) {
    let wave = |x: usize, y: usize, z: usize, f: f32| {
        ((x as f32 * f).sin() * (y as f32 * 0.7 * f).cos() + (z as f32 * 1.3 * f).sin()) / 4.0 + 0.5
    };
    let hash = |x: usize, y: usize, z: usize| ((x * 7919 + y * 104_729 + z * 1_299_709) % 1009) as f32 / 1009.0 - 0.5;
    let reference = Array::from_shape_fn(shape, |(x, y, z)| {
        if z < 2 || x == shape.0 - 1 {
            0.0
        } else {
            (0.7 * wave(x, y, z, 0.15) + 0.3 * wave(z, x, y, 0.9)).clamp(0.0, 1.0)
        }
    });
    let volume =
        Array::from_shape_fn(shape, |(x, y, z)| (reference[[x, y, z]] * 0.95 + 0.1 * hash(x, y, z)).clamp(0.0, 1.0));
    (volume, reference)
}

#[test]
fn scikit_image_gives_the_same_psnr_and_ssim() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.npy"), folder.path().join("b.npy"));
    for shape in [(24, 31, 40), (11, 12, 50)] {
        let (volume, reference) = pair(shape);
        npy::write_volume(&a, volume.view()).unwrap();
        npy::write_volume(&b, reference.view()).unwrap();
        let Some(said) = peer("scikit-image", &["scikit-image", text(&a), text(&b)]) else { return };
        let psnr = measure::psnr_db(volume.view(), reference.view(), 1.0, None).unwrap();
        let ssim = measure::ssim(volume.view(), reference.view(), 1.0, 0.0, None).unwrap();
        println!("PSNR ours {psnr:.9} theirs {}; SSIM ours {ssim:.9} theirs {}", said["psnr_db"], said["ssim"]);
        // Both work in double precision; scikit-image truncates its window's sums in another order only.
        assert!((psnr - number(&said["psnr_db"])).abs() < 1e-6, "{psnr} {said}");
        assert!((ssim - number(&said["ssim"])).abs() < 1e-6, "{ssim} {said}");
    }
}

#[test]
fn scipy_gives_the_same_dice_and_surface_distance() {
    let folder = tempfile::tempdir().unwrap();
    let ball = |centre: DVec3, radius: f64| {
        Array3::from_shape_fn((30, 28, 20), |(x, y, z)| {
            let at = DVec3::new(x as f64, y as f64, z as f64 * 2.0);
            (at - centre).length() < radius || (x < 6 && y < 5 && z < 3)
        })
    };
    let (a, b) = (ball(DVec3::new(15.0, 14.0, 20.0), 9.0), ball(DVec3::new(17.0, 13.0, 22.0), 8.0));
    let paths = (folder.path().join("a.npy"), folder.path().join("b.npy"));
    npy::write_volume(&paths.0, a.mapv(f32::from).view()).unwrap();
    npy::write_volume(&paths.1, b.mapv(f32::from).view()).unwrap();
    let arguments = ["surface", text(&paths.0), text(&paths.1), "0.8", "1.1", "2.5"];
    let Some(said) = peer("SciPy", &arguments) else { return };
    let dice = measure::dice(a.view(), b.view()).unwrap();
    let distance = measure::surface_distance_mm(a.view(), b.view(), [0.8, 1.1, 2.5]).unwrap();
    println!("Dice ours {dice:.9} theirs {}; ASD ours {distance:.9} theirs {}", said["dice"], said["asd_mm"]);
    assert!((dice - number(&said["dice"])).abs() < 1e-12, "{dice} {said}");
    // Squared distances are kept as float32 between the axes.
    assert!((distance - number(&said["asd_mm"])).abs() < 1e-6, "{distance} {said}");
}

/// Holds a pose against RTK's matrix (RTK point to stack coordinates) and source position.
fn agrees_with_rtk(pose: &ViewPose, rows: usize, offset: DVec3, spacing: DVec3, said: &Value) {
    let ours = |rtk: DVec3| DVec3::new(rtk.z, rtk.x, rtk.y);
    let matrix: Vec<f64> = said["matrix"].as_array().unwrap().iter().map(number).collect();
    let source = said["source"].as_array().unwrap();
    let source = ours(DVec3::new(number(&source[0]), number(&source[1]), number(&source[2])));
    // Double precision on lengths of 1e3 mm.
    assert!((pose.source_mm - source).length() < 1e-8, "{} {source}", pose.source_mm);
    for point in [DVec3::ZERO, DVec3::new(80.0, -20.0, 30.0), DVec3::new(-10.0, 60.0, -90.0)] {
        let row =
            |r: usize| DVec3::new(matrix[4 * r], matrix[4 * r + 1], matrix[4 * r + 2]).dot(point) + matrix[4 * r + 3];
        let (px, py) = (row(0) / row(2), row(1) / row(2));
        let (i, j) = ((px - offset.x) / spacing.x, (py - offset.y) / spacing.y);
        let (u, v, _) = pose.project(ours(point)).unwrap();
        assert!((u - i).abs() < 1e-8 && (v - (rows as f64 - 1.0 - j)).abs() < 1e-8, "({u}, {v}) ({i}, {j})");
    }
}

#[test]
fn rtks_own_geometry_gives_our_poses() {
    let folder = tempfile::tempdir().unwrap();
    let (geometry, stack) = (folder.path().join("geometry.xml"), folder.path().join("stack.mha"));
    let Some(said) = peer("RTK writes", &["rtk-write", text(&geometry)]) else { return };
    let (offset, spacing) = (DVec3::new(-33.0, -21.0, 0.0), DVec3::new(0.8, 1.7, 1.0));
    metaimage::write(&stack, Array3::zeros((5, 6, 7)).view(), offset, spacing).unwrap();
    let scan = rtk::read(&geometry, &stack, None).unwrap();
    for (pose, said) in scan.geometry.views.iter().zip(said.as_array().unwrap()) {
        agrees_with_rtk(pose, 6, offset, spacing, said);
    }
}

#[test]
fn rtk_reads_the_geometry_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let (geometry, stack) = (folder.path().join("geometry.xml"), folder.path().join("stack.mha"));
    let orbit = CircularOrbit {
        detector: Detector { columns: 7, rows: 6 },
        offset_u_mm: 30.0,
        offset_v_mm: -4.0,
        pitch_rad: 0.05,
        yaw_rad: -0.1,
        roll_rad: 0.2,
        ..CircularOrbit::default()
    };
    let scan_geometry = orbit.over_arc(4, 0.3, -5.0);
    let scan = Scan {
        grid: rtk::default_grid(&scan_geometry),
        geometry: scan_geometry,
        projections: Array3::zeros((4, 6, 7)),
        scale: SceneScale::unstated(),
        patient_offset_mm: DVec3::ZERO,
    };
    rtk::write(&geometry, &stack, &scan).unwrap();
    let Some(said) = peer("RTK reads", &["rtk-read", text(&geometry)]) else { return };
    let image = metaimage::read(&stack).unwrap();
    for (pose, said) in scan.geometry.views.iter().zip(said.as_array().unwrap()) {
        agrees_with_rtk(pose, 6, image.offset_mm, image.spacing_mm, said);
    }
}
