//! `diffnr repair` as a user runs it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use diffnr::formats::scene::{self, Scene};
use diffnr::formats::{Scan, SceneScale, nifti, npy};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::repair::library;
use glam::DVec3;
use ndarray::Array3;
use serde_json::Value;
use tempfile::TempDir;

/// A scan of 8 views and a volume of it, in a folder.
struct Case {
    folder: TempDir,
    volume: Array3<f32>,
    scan: Scan,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let orbit = CircularOrbit {
            detector: Detector { columns: 9, rows: 8 },
            pitch_u_mm: 8.0,
            pitch_v_mm: 8.0,
            ..CircularOrbit::default()
        };
        let scan = Scan {
            geometry: orbit.over_arc(8, 0.0, std::f64::consts::TAU),
            grid: VolumeGrid::over_box([6, 7, 9], DVec3::new(12.0, 14.0, 18.0), DVec3::new(1.0, 0.0, -2.0)),
            projections: Array3::from_shape_fn((8, 8, 9), |(n, v, u)| 0.1 * (n + v + u) as f32),
            scale: SceneScale::hu_window(0.02),
            patient_offset_mm: DVec3::new(5.0, 6.0, 7.0),
        };
        scene::write(&folder.path().join("scan"), &Scene::new(scan.clone())).unwrap();
        let volume = Array3::from_shape_fn((6, 7, 9), |(x, y, z)| {
            0.02 + 0.004 * ((x as f32).sin() + (0.7 * y as f32).cos() + (0.5 * z as f32).sin())
        });
        let case = Self { folder, volume, scan };
        let path = case.path("volume.nii.gz");
        let offset_mm = case.scan.patient_offset_mm;
        let storage = nifti::Storage::Float32;
        nifti::write_mu(&path, case.volume.view(), &case.scan.grid, &case.scan.scale, offset_mm, storage).unwrap();
        npy::write_volume(&case.path("volume.npy"), case.scan.scale.volume_values(case.volume.view()).view()).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `diffnr repair` in the case's folder.
    fn run(&self, arguments: &[&str]) -> Output {
        self.command("repair", arguments)
    }

    /// Runs a subcommand in the case's folder; ONNX Runtime is the one that was fetched, unless the caller names one.
    fn command(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffnr"));
        command.arg(name).args(arguments).current_dir(self.folder.path());
        if std::env::var_os(library::VARIABLE).is_none() {
            command.env(library::VARIABLE, Path::new(env!("CARGO_MANIFEST_DIR")).join(library::FOLDER));
        }
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str], code: i32, parts: &[&str]) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
    }
}

fn models() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/repair").to_str().unwrap().into()
}

/// Says so where ONNX Runtime is not there.
fn skipped() -> bool {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(library::FOLDER);
    let missing = std::env::var_os(library::VARIABLE).is_none() && !folder.is_dir();
    if missing {
        eprintln!("SKIPPED: no ONNX Runtime (make onnxruntime, or DIFFNR_ONNXRUNTIME)");
    }
    missing
}

#[test]
fn a_volume_is_repaired_and_what_ran_is_told() {
    if skipped() {
        return;
    }
    let (case, models) = (Case::new(), models());
    let common = ["--scan", "scan", "--model", &models, "--anatomy", "thorax", "--threads", "1"];
    let with = |more: &[&'static str]| -> Vec<&str> { more.iter().copied().chain(common).collect() };
    let json = case.json(&with(&[
        "volume.nii.gz",
        "-o",
        "out.nii.gz",
        "--disagreement",
        "planes.nii.gz",
        "--provider",
        "CPU",
    ]));
    assert_eq!(json["providers"]["ran"], "CPU");
    assert_eq!(json["model"]["anatomy"], "chest");
    assert_eq!((&json["slices"], &json["planes"][2]), (&Value::from(22), &Value::from("sagittal")));
    let (given, out) =
        (nifti::read_ct(&case.path("volume.nii.gz")).unwrap(), nifti::read_ct(&case.path("out.nii.gz")).unwrap());
    assert_eq!(out.voxel_to_world_mm, given.voxel_to_world_mm);
    let spread = nifti::read_ct(&case.path("planes.nii.gz")).unwrap().hu;
    assert!(spread.iter().all(|hu| *hu >= 0.0) && spread.iter().any(|hu| *hu > 1.0));
    // The scene's own values of the same volume give the same.
    case.json(&with(&["volume.npy", "-o", "out.npy"]));
    let values = npy::read_volume(&case.path("out.npy")).unwrap();
    for (value, hu) in values.iter().zip(&out.hu) {
        // float32 of HU of size 1e3, through two scales.
        assert!((2000.0 * value - 1000.0 - hu).abs() < 2e-3, "{value} {hu}");
    }
    // In words.
    let output = case.run(&with(&["volume.nii.gz", "-o", "axial.nii", "--planes", "axial", "--provider", "cpu"]));
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["test repaired 9 slices", " on CPU;", "ONNX Runtime 1.", ": CPU ", " nodes", "wrote axial.nii"] {
        assert!(text.contains(part), "\"{part}\" is missing in: {text}");
    }
    assert!(output.status.success());
}

#[test]
fn what_cannot_be_is_refused_with_its_exit_code() {
    if skipped() {
        return;
    }
    let (case, models) = (Case::new(), models());
    let usual = ["--scan", "scan", "--model", &models];
    let with = |more: &[&'static str]| -> Vec<&str> { more.iter().copied().chain(usual).collect() };
    case.refused(&with(&["volume.nii.gz", "-o", "out.txt"]), 2, &["out.txt", ".nii.gz"]);
    case.refused(&with(&["volume.nii.gz", "-o", "gone/out.nii"]), 9, &["gone does not exist"]);
    case.refused(&with(&["volume.nii.gz", "-o", "out.nii", "--planes", "oblique"]), 2, &["axial, coronal, sagittal"]);
    case.refused(&with(&["volume.nii.gz", "-o", "out.nii", "--planes", "axial,axial"]), 2, &["at most once"]);
    case.refused(&with(&["volume.nii.gz", "-o", "out.nii", "--provider", "rocm"]), 2, &["tensorrt-rtx"]);
    case.refused(
        &with(&["volume.nii.gz", "-o", "out.nii", "--planes", "axial", "--disagreement", "d.nii"]),
        2,
        &["more than one"],
    );
    case.refused(&with(&["gone.nii.gz", "-o", "out.nii"]), 4, &["gone.nii.gz"]);
    case.refused(
        &with(&["volume.nii.gz", "-o", "out.nii", "--onnxruntime", "nowhere"]),
        8,
        &["nowhere", "make onnxruntime"],
    );
    std::fs::write(case.path("libonnxruntime.so"), b"not a library").unwrap();
    case.refused(
        &with(&["volume.nii.gz", "-o", "out.nii", "--onnxruntime", "libonnxruntime.so"]),
        8,
        &["no usable ONNX Runtime"],
    );
    case.refused(
        &["volume.nii.gz", "--scan", "scan", "--model", "gone", "-o", "out.nii"],
        4,
        &["gone", "cannot be read"],
    );
    case.refused(&["volume.nii.gz", "--scan", "scan", "-o", "out.nii"], 4, &["no SliceFixer model", "DIFFNR_MODELS"]);
    // A scan without a scale has no HU.
    let relative = Scan { scale: SceneScale::unstated(), ..case.scan.clone() };
    scene::write(&case.path("relative"), &Scene::new(relative)).unwrap();
    case.refused(&["volume.npy", "--scan", "relative", "--model", &models, "-o", "out.nii"], 4, &["absolute scale"]);
    // Axes that are not the gantry's.
    let mut turned = nifti::grid_to_world_mm(&case.scan.grid, DVec3::ZERO);
    turned.matrix3.x_axis = -turned.matrix3.x_axis;
    nifti::write(&case.path("turned.nii"), case.volume.view(), &turned, nifti::Storage::Float32).unwrap();
    case.refused(&with(&["turned.nii", "-o", "out.nii"]), 4, &["turned.nii", "axes"]);
    // On a machine without TensorRT a demand for it is refused with ONNX Runtime's reason; with it, it runs.
    let demanded = case.run(&with(&["volume.nii.gz", "-o", "out.nii", "--provider", "tensorrt"]));
    let text = String::from_utf8_lossy(&demanded.stderr);
    assert!(
        demanded.status.success() || demanded.status.code() == Some(8) && text.contains("TensorRT was demanded"),
        "{text}"
    );
}

/// `diffnr reconstruct --method field` of the case's scan, with what SliceFixer is told; volume, and the result as JSON.
fn reconstructed(case: &Case, more: &[&str]) -> (Array3<f32>, Value, String) {
    let common = ["scan", "--method", "field", "--iterations", "6", "--device", "cpu", "--json", "-o", "out.npy"];
    let output = case.command("reconstruct", &[&common, more].concat());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    (npy::read_volume(&case.path("out.npy")).unwrap(), serde_json::from_slice(&output.stdout).unwrap(), words)
}

#[test]
fn a_reconstruction_is_held_to_the_slices_repaired_on_its_way() {
    if skipped() {
        return;
    }
    let (case, models) = (Case::new(), models());
    let (without, told, _) = reconstructed(&case, &[]);
    assert!(told["slice_fixer"].is_null());
    assert_eq!(without, reconstructed(&case, &["--slice-fixer", "none"]).0);
    let with = [
        "--slice-fixer",
        &models,
        "--anatomy",
        "thorax",
        "--repairs",
        "2",
        "--repair-from",
        "0.5",
        "--repair-weight",
        "2",
    ];
    let (volume, told, words) = reconstructed(&case, &with);
    let fixed = &told["slice_fixer"];
    let numbers = ["repairs", "repairs_failed", "slices"].map(|name| fixed[name].as_u64());
    assert_eq!(numbers, [Some(2), Some(0), Some(22)], "{told}");
    assert_eq!((fixed["anatomy"].as_str(), fixed["provider"].as_str()), (Some("chest"), Some("CPU")));
    assert!(fixed["dissimilarity"].as_f64() > Some(0.0) && !words.contains("warning: SliceFixer"), "{told} {words}");
    assert_ne!(volume, without);
    // The same bits again; other ones along one plane, or by the modulus.
    assert_eq!(volume, reconstructed(&case, &with).0);
    assert_ne!(volume, reconstructed(&case, &[&with[..], &["--repair-planes", "axial"]].concat()).0);
    assert_ne!(volume, reconstructed(&case, &[&with[..], &["--repair-modulus"]].concat()).0);
}

#[test]
fn a_model_whose_output_is_no_number_leaves_the_reconstruction_as_it_is_without() {
    if skipped() {
        return;
    }
    let case = Case::new();
    let broken = case.path("broken");
    std::fs::create_dir(&broken).unwrap();
    let from = PathBuf::from(models());
    std::fs::copy(from.join("condition.onnx"), broken.join("condition.onnx")).unwrap();
    std::fs::copy(from.join("broken/nan.onnx"), broken.join("repair.onnx")).unwrap();
    // The right hash of the wrong graph.
    let hash = |path: &Path| {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(std::fs::read(path).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let manifest = std::fs::read_to_string(from.join("manifest.toml")).unwrap();
    let manifest = manifest.replace(&hash(&from.join("repair.onnx")), &hash(&broken.join("repair.onnx")));
    std::fs::write(broken.join("manifest.toml"), manifest).unwrap();
    let (volume, told, words) =
        reconstructed(&case, &["--slice-fixer", "broken", "--repairs", "3", "--repair-from", "0.5"]);
    let numbers = ["repairs", "repairs_failed"].map(|name| told["slice_fixer"][name].as_u64());
    assert_eq!(numbers, [Some(0), Some(3)], "{told}");
    assert!(words.contains("3 of 3 repairs failed") && words.contains("not finite"), "{words}");
    assert_eq!(volume, reconstructed(&case, &[]).0);
}

#[test]
fn options_of_the_repairs_are_refused_where_they_mean_nothing() {
    let case = Case::new();
    let refused = |more: &[&str], code: i32, part: &str| {
        let output = case.command("reconstruct", &[&["scan", "--device", "cpu", "-o", "out.npy"], more].concat());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && words.contains(part), "{part}: {words}");
    };
    refused(&["--method", "fdk", "--slice-fixer", "none"], 2, "--slice-fixer is no option of --method fdk");
    refused(&["--method", "field", "--anatomy", "chest"], 2, "--anatomy needs --slice-fixer");
    refused(&["--method", "field", "--slice-fixer", "nowhere"], 4, "nowhere");
    refused(&["--method", "field", "--early", "8:3"], 2, "--early 8 views: must be below the scan's 8");
    refused(&["--method", "field", "--early", "3:100"], 2, "--early 100 iterations: must be below");
    refused(&["--method", "field", "--early", "three"], 2, "VIEWS:ITERATIONS");
}
