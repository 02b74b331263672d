#![allow(clippy::unwrap_used)]
use std::fs;

use glam::DVec3;
use ndarray::Array;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::SceneScale;
use super::*;
use crate::geometry::{CircularOrbit, VolumeGrid};

/// A scene as R2-Gaussian's documented format has it: volume 2.0 wide, DSO 5, DSD 7, detector 4.0, none of our keys. Detector of
/// 3 rows and 5 columns, volume of 2 x 3 x 4.
fn foreign(folder: &Path) -> Value {
    for list in ["proj_train", "proj_test"] {
        fs::create_dir_all(folder.join(list)).unwrap();
        for view in 0..2 {
            let image = Array::from_shape_fn((3, 5), |(v, u)| (100 * view + 10 * v + u) as f32);
            npy::write_image(&folder.join(format!("{list}/{view}.npy")), image.view()).unwrap();
        }
    }
    let volume = Array::from_shape_fn((2, 3, 4), |(x, y, z)| (100 * x + 10 * y + z) as f32);
    npy::write_volume(&folder.join("vol_gt.npy"), volume.view()).unwrap();
    json!({
        "scanner": {
            "mode": "cone", "DSD": 7.0, "DSO": 5.0,
            "nDetector": [3, 5], "sDetector": [2.4, 4.0], "nVoxel": [2, 3, 4], "sVoxel": [2.0, 2.0, 2.0],
            "offOrigin": [0.1, 0.2, 0.3], "offDetector": [0.5, -0.25], "totalAngle": 360.0, "startAngle": 0.0,
            "accuracy": 0.5, "noise": true, "filter": null,
        },
        "vol": "vol_gt.npy", "bbox": [[-1, -1, -1], [1, 1, 1]], "radius": 1.0,
        "proj_train": [{"file_path": "proj_train/0.npy", "angle": 0.0}, {"file_path": "proj_train/1.npy", "angle": 1.0}],
        "proj_test": [{"file_path": "proj_test/0.npy", "angle": 2.0}, {"file_path": "proj_test/1.npy", "angle": 3.0}],
    })
}

fn save(folder: &Path, meta: &Value) {
    fs::write(folder.join(META_FILE), serde_json::to_vec(meta).unwrap()).unwrap();
}

#[test]
fn a_foreign_scene_is_read_with_the_fields_axes_and_no_absolute_scale() {
    let folder = tempfile::tempdir().unwrap();
    let meta = foreign(folder.path());
    save(folder.path(), &meta);
    let scene = read(folder.path()).unwrap();
    let scan = &scene.scan;
    assert_eq!(scan.scale, SceneScale::unstated());
    assert_eq!(scan.geometry.detector, Detector { columns: 5, rows: 3 });
    assert_eq!(scan.grid.voxels, [2, 3, 4]);
    assert_eq!(scan.grid.voxel_mm, DVec3::new(1.0, 2.0 / 3.0, 0.5));
    assert_eq!(scan.grid.centre_mm, DVec3::new(0.1, 0.2, 0.3));
    assert_eq!(scan.projections[[1, 2, 4]], 124.0);
    assert_eq!(scene.ground_truth_per_mm.unwrap()[[1, 2, 3]], 123.0);
    let near = |a: DVec3, x: f64, y: f64, z: f64| assert!((a - DVec3::new(x, y, z)).length() < 1e-12, "{a}");
    let pose = &scan.geometry.views[0];
    near(pose.source_mm, 5.0, 0.0, 0.0);
    // Angle 0: detector centre at x = -2; column axis +y with offset 0.5; row axis -z with offset -0.25, pitch 0.8 each.
    near(pose.pixel_mm(1.0, 2.0), -2.0, 0.5, 0.25);
    near(pose.pixel_mm(0.0, 2.0), -2.0, 0.5, 0.25 + 0.8);
    near(pose.pixel_mm(1.0, 3.0), -2.0, 0.5 + 0.8, 0.25);
    near(scan.geometry.views[1].source_mm, 5.0 * 1.0_f64.cos(), 5.0 * 1.0_f64.sin(), 0.0);
    let test = scene.test.unwrap();
    near(test.geometry.views[1].source_mm, 5.0 * 3.0_f64.cos(), 5.0 * 3.0_f64.sin(), 0.0);
    assert!(scene.raw.is_none());
    assert_eq!(read_scan(folder.path()).unwrap().projections, scan.projections);
    assert_eq!(read_ground_truth_per_mm(folder.path()).unwrap().unwrap()[[0, 1, 2]], 12.0);
}

#[test]
fn stated_scales_turn_units_and_values_into_mm_and_attenuation() {
    let folder = tempfile::tempdir().unwrap();
    let mut meta = foreign(folder.path());
    meta["diffnr"] = json!({"unit_mm": 100.0, "mu_per_value_per_mm": 0.04, "mu_water_per_mm": 0.02});
    save(folder.path(), &meta);
    let scene = read(folder.path()).unwrap();
    let scan = &scene.scan;
    assert!(scan.scale.is_absolute);
    assert!((scan.geometry.views[0].source_mm.x - 500.0).abs() < 1e-9);
    assert!((scan.grid.size_mm().x - 200.0).abs() < 1e-9);
    assert!((scan.grid.centre_mm.z - 30.0).abs() < 1e-9);
    // One float32 rounding each.
    assert!((scan.projections[[0, 1, 1]] / (11.0 * 100.0 * 0.04) - 1.0).abs() < 1e-6);
    let truth = scene.ground_truth_per_mm.unwrap()[[0, 0, 1]];
    assert!((truth - 0.04).abs() < 1e-8);
    assert!((scan.scale.hu(truth) - 1000.0).abs() < 1e-3);
    assert!((scan.scale.mu_per_mm(1000.0) - truth).abs() < 1e-8);
    assert!((scan.scale.value(truth) - 1.0).abs() < 1e-6);
}

#[test]
fn a_scale_stated_by_half_stays_so_when_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut meta = foreign(folder.path());
    meta["diffnr"] = json!({"unit_mm": 10.0});
    save(folder.path(), &meta);
    let first = read(folder.path()).unwrap();
    assert!(!first.scan.scale.is_absolute);
    let again = tempfile::tempdir().unwrap();
    write(again.path(), &first).unwrap();
    let second = read(again.path()).unwrap();
    assert_eq!(second.scan.scale, first.scan.scale);
    assert!(same_poses(&second.scan.geometry, &first.scan.geometry, 1e-11));
    assert_eq!(second.ground_truth_per_mm, first.ground_truth_per_mm);
    // The lengths in the file are the scene's own again.
    let text = fs::read_to_string(again.path().join(META_FILE)).unwrap();
    let meta: Value = serde_json::from_str(&text).unwrap();
    assert!((meta["scanner"]["DSO"].as_f64().unwrap() - 5.0).abs() < 1e-12, "{meta}");
    assert_eq!(meta["scanner"]["nDetector"], json!([3, 5]));
    assert!((meta["scanner"]["offDetector"][0].as_f64().unwrap() - 0.5).abs() < 1e-12);
    assert!((meta["scanner"]["sDetector"][0].as_f64().unwrap() - 2.4).abs() < 1e-12);
}

/// Changes one thing in a good description and expects an error that holds all the words.
fn refuses(change: impl FnOnce(&mut Value), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut meta = foreign(folder.path());
    change(&mut meta);
    save(folder.path(), &meta);
    let error = read(folder.path()).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn malformed_descriptions_are_refused_by_key_and_value() {
    refuses(|m| drop(m.as_object_mut().unwrap().remove("scanner")), &["meta_data.json", "scanner", "missing"]);
    refuses(|m| drop(m["scanner"].as_object_mut().unwrap().remove("DSO")), &["scanner.DSO", "missing"]);
    refuses(|m| m["scanner"]["mode"] = json!("parallel"), &["parallel", "source position"]);
    refuses(|m| m["scanner"]["mode"] = json!(3), &["scanner.mode", "3", "cone"]);
    refuses(|m| m["scanner"]["DSO"] = json!("5"), &["scanner.DSO", "\"5\"", "finite number"]);
    refuses(|m| m["scanner"]["DSO"] = json!(-5), &["scanner.DSO", "-5", "> 0"]);
    refuses(|m| m["scanner"]["DSD"] = json!(4.0), &["scanner.DSD", "magnification", "0.800"]);
    refuses(|m| m["scanner"]["nDetector"] = json!([3]), &["scanner.nDetector", "2 numbers"]);
    refuses(|m| m["scanner"]["nDetector"] = json!([3.5, 5]), &["scanner.nDetector[0]", "3.5", "whole"]);
    refuses(|m| m["scanner"]["nDetector"] = json!([5, 3]), &["proj_train/0.npy", "[3, 5]", "[5, 3]", "nDetector"]);
    refuses(|m| m["scanner"]["nVoxel"] = json!([1e9, 3, 4]), &["scanner.nVoxel[0]", "8192"]);
    refuses(|m| m["scanner"]["nVoxel"] = json!([8192, 8192, 8192]), &["scanner.nVoxel", "voxels in all"]);
    refuses(|m| m["scanner"]["nVoxel"] = json!([2, 3, 5]), &["vol_gt.npy", "[2, 3, 4]", "[2, 3, 5]"]);
    refuses(|m| m["scanner"]["sVoxel"] = json!([2.0, 0.0, 2.0]), &["scanner.sVoxel[1]", "> 0"]);
    refuses(|m| m["scanner"]["offDetector"] = json!([0.0, null]), &["scanner.offDetector[1]", "null"]);
    refuses(|m| m["proj_train"][1]["angle"] = json!(180.0), &["proj_train[1].angle", "180", "radians"]);
    refuses(|m| m["proj_train"][0]["file_path"] = json!("../x.npy"), &["proj_train[0].file_path", ".."]);
    refuses(|m| m["proj_train"][0]["file_path"] = json!("/etc/passwd"), &["relative"]);
    refuses(|m| m["proj_train"][0]["file_path"] = json!("a/../../x.npy"), &["relative"]);
    refuses(|m| m["proj_train"][0]["file_path"] = json!("gone.npy"), &["gone.npy", "cannot read"]);
    refuses(|m| m["proj_train"] = json!([]), &["views", "at least one"]);
    refuses(|m| m["proj_train"] = json!({}), &["proj_train", "list"]);
    refuses(|m| m["vol"] = json!("../vol_gt.npy"), &["vol", ".."]);
    refuses(|m| m["diffnr"] = json!({"unitmm": 1.0}), &["diffnr.unitmm", "unit_mm"]);
    refuses(|m| m["diffnr"] = json!({"unit_mm": 0}), &["diffnr.unit_mm", "> 0"]);
    refuses(|m| m["diffnr"] = json!({"version": 2}), &["diffnr.version", "newer"]);
    refuses(|m| m["diffnr"] = json!({"seed": -1}), &["diffnr.seed", "-1"]);
    refuses(|m| m["diffnr"] = json!({"poses_train": []}), &["poses_train", "0 poses", "2 views"]);
    refuses(
        |m| m["diffnr"] = json!({"raw": {"proj_train": ["a.npy"]}}),
        &["diffnr.raw.proj_train", "2 training views"],
    );
    refuses(|m| m["diffnr"] = json!([1]), &["diffnr", "object"]);
    refuses(|m| *m = json!(7), &["not a JSON object"]);
}

#[test]
fn text_that_is_no_json_and_absurd_nesting_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["", "{", "{\"scanner\": NaN}", &"[".repeat(100_000), "{\"scanner\": 1e999}"] {
        fs::write(folder.path().join(META_FILE), text).unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not valid JSON"), "{error}");
    }
    fs::remove_file(folder.path().join(META_FILE)).unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn line_integrals_that_are_not_finite_are_refused_by_view_and_pixel() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &foreign(folder.path()));
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut image = Array2::zeros((3, 5));
        image[[2, 3]] = bad;
        npy::write_image(&folder.path().join("proj_train/1.npy"), image.view()).unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("view 1, pixel (row 2, column 3)") && error.contains(shown), "{error}");
    }
}

fn tilted(views: usize) -> ScanGeometry {
    let orbit = CircularOrbit {
        detector: Detector { columns: 4, rows: 3 },
        offset_u_mm: 12.0,
        pitch_rad: 0.02,
        roll_rad: -0.01,
        ..CircularOrbit::default()
    };
    orbit.over_arc(views, 0.3, -4.0)
}

fn same_poses(a: &ScanGeometry, b: &ScanGeometry, tolerance_mm: f64) -> bool {
    let near = |x: DVec3, y: DVec3| (x - y).length() <= tolerance_mm;
    a.views.len() == b.views.len()
        && a.views.iter().zip(&b.views).all(|(a, b)| {
            near(a.source_mm, b.source_mm)
                && near(a.detector_origin_mm, b.detector_origin_mm)
                && near(a.column_step_mm, b.column_step_mm)
                && near(a.row_step_mm, b.row_step_mm)
        })
}

#[test]
fn poses_that_no_angle_can_say_and_raw_counts_survive() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = tilted(3);
    let test = TestViews { geometry: tilted(2), projections: Array3::ones((2, 3, 4)) };
    let scan = Scan {
        geometry: geometry.clone(),
        grid: VolumeGrid::over_box([2, 3, 4], DVec3::new(20.0, 30.0, 40.0), DVec3::new(1.0, -2.0, 3.0)),
        projections: Array::from_shape_fn((3, 3, 4), |(n, v, u)| (100 * n + 10 * v + u) as f32 / 64.0),
        scale: SceneScale::hu_window(0.0193),
        patient_offset_mm: DVec3::new(-10.0, 20.0, 300.0),
    };
    let raw = RawCounts {
        counts: Array::from_shape_fn((3, 3, 4), |(n, v, u)| (1000 * n + 10 * v + u) as u16),
        dark: Array2::from_elem((3, 4), 100.5),
        flat: Array::from_shape_fn((3, 4), |(v, u)| (60_000 + 10 * v + u) as f32),
        gain: 0.75,
    };
    let acquisition = Acquisition { photons: Some(1e5), electronic_noise_sigma: Some(10.0), seed: Some(u64::MAX) };
    let truth = Array3::from_elem((2, 3, 4), 0.0193);
    let scene = Scene { scan, test: Some(test), ground_truth_per_mm: Some(truth), acquisition, raw: Some(raw.clone()) };
    write(folder.path(), &scene).unwrap();

    let back = read(folder.path()).unwrap();
    // The decimal text of a pose is exact but for the last bit.
    assert!(same_poses(&back.scan.geometry, &geometry, 1e-11));
    assert!(same_poses(&back.test.unwrap().geometry, &tilted(2), 1e-11));
    assert_eq!(back.acquisition, acquisition);
    assert_eq!(back.scan.scale, scene.scan.scale);
    assert_eq!(back.scan.patient_offset_mm, scene.scan.patient_offset_mm);
    let back_raw = back.raw.unwrap();
    assert_eq!((back_raw.counts, back_raw.dark, back_raw.flat), (raw.counts, raw.dark, raw.flat));
    assert!((back_raw.gain - 0.75).abs() < 1e-15);
    // What we store for water is 1/2: (0 HU + 1000) / 2000.
    let stored = npy::read_volume(&folder.path().join("vol_gt.npy")).unwrap();
    assert!(stored.iter().all(|value| (value - 0.5).abs() < 1e-6));
}

#[test]
fn scenes_whose_parts_do_not_fit_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let scan = Scan {
        geometry: tilted(3),
        grid: VolumeGrid::over_box([2, 3, 4], DVec3::ONE, DVec3::ZERO),
        projections: Array3::zeros((2, 3, 4)),
        scale: SceneScale::unstated(),
        patient_offset_mm: DVec3::ZERO,
    };
    let error = write(folder.path(), &Scene::new(scan)).unwrap_err().to_string();
    assert!(error.contains("[2, 3, 4]") && error.contains("[3, 3, 4]"), "{error}");
    assert!(!folder.path().join(META_FILE).exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn circular_scenes_come_back(
        counts in (1_usize..5, 1_usize..4, 1_usize..4),
        distances in (100.0_f64..2000.0, 1.01_f64..3.0),
        offsets in (-50.0_f64..50.0, -50.0_f64..50.0),
        pitches in (0.1_f64..3.0, 0.1_f64..3.0),
        angles in (-7.0_f64..7.0, -6.3_f64..6.3),
        unit_mm in prop_oneof![Just(1.0), 0.01_f64..500.0],
    ) {
        let (views, rows, columns) = counts;
        let orbit = CircularOrbit {
            source_to_isocenter_mm: distances.0,
            source_to_detector_mm: distances.0 * distances.1,
            detector: Detector { columns, rows },
            pitch_u_mm: pitches.0,
            pitch_v_mm: pitches.1,
            offset_u_mm: offsets.0,
            offset_v_mm: offsets.1,
            ..CircularOrbit::default()
        };
        let geometry = orbit.over_arc(views, angles.0, angles.1);
        let scale = SceneScale { unit_mm, ..SceneScale::hu_window(0.0193) };
        let scan = Scan {
            geometry: geometry.clone(),
            grid: VolumeGrid::over_box([3, 2, 4], DVec3::new(300.0, 200.0, 100.0), DVec3::new(3.0, 4.0, 5.0)),
            projections: Array::from_shape_fn((views, rows, columns), |(n, v, u)| 1.0 + (n + 2 * v + 3 * u) as f32 / 7.0),
            scale,
            patient_offset_mm: DVec3::ZERO,
        };
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Scene::new(scan.clone())).unwrap();
        let text = fs::read_to_string(folder.path().join(META_FILE)).unwrap();
        prop_assert!(!text.contains("poses_train"), "an angle says it all");
        let back = read(folder.path()).unwrap();
        // Lengths up to 6e3 mm, a dozen operations in double precision.
        prop_assert!(same_poses(&back.scan.geometry, &geometry, 1e-8));
        prop_assert!((back.scan.grid.voxel_mm - scan.grid.voxel_mm).length() < 1e-9);
        prop_assert!((back.scan.grid.centre_mm - scan.grid.centre_mm).length() < 1e-9);
        // Two float32 roundings.
        prop_assert!(back.scan.projections.iter().zip(&scan.projections).all(|(a, b)| (a - b).abs() <= 2e-7 * b.abs()));
    }
}
