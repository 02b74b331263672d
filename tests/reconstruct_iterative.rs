//! `diffnr reconstruct` with the classical iterative methods, as a user runs it.
#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::{Compute, Workload};
use diffnr::formats::scene::{self, Scene};
use diffnr::formats::{Scan, SceneScale, npy};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use glam::DVec3;
use ndarray::Array3;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tempfile::TempDir;

const METHODS: [&str; 2] = ["os-sart", "asd-pocs"];

fn orbit() -> CircularOrbit {
    CircularOrbit {
        detector: Detector { columns: 36, rows: 32 },
        pitch_u_mm: 9.0,
        pitch_v_mm: 9.0,
        ..CircularOrbit::default()
    }
}

fn grid() -> VolumeGrid {
    VolumeGrid::over_box([24, 22, 20], DVec3::new(192.0, 176.0, 160.0), DVec3::ZERO)
}

struct Case {
    folder: TempDir,
}

impl Case {
    /// A scene of a ball of water in this geometry, with its ground truth.
    fn of(geometry: ScanGeometry) -> Self {
        let grid = grid();
        let [nx, ny, nz] = grid.voxels;
        let truth = Array3::from_shape_fn((nx, ny, nz), |(x, y, z)| {
            if grid.voxel_centre_mm(x, y, z).length() < 60.0 { 0.0193_f32 } else { 0.0 }
        });
        let mut compute = CpuCompute::new(1).unwrap();
        let Detector { columns, rows } = geometry.detector;
        let views = geometry.views.len();
        compute.prepare(&Workload { columns, rows, views_per_call: views, voxels: grid.voxels }).unwrap();
        let mut projections = Array3::zeros((views, rows, columns));
        let values = projections.as_slice_mut().unwrap();
        compute.forward_project(&geometry, &grid, truth.as_slice().unwrap(), values).unwrap();
        let scan =
            Scan { geometry, grid, projections, scale: SceneScale::hu_window(0.0193), patient_offset_mm: DVec3::ZERO };
        let case = Self { folder: tempfile::tempdir().unwrap() };
        let scene = Scene { ground_truth_per_mm: Some(truth), ..Scene::new(scan) };
        scene::write(&case.path("scan"), &scene).unwrap();
        case
    }

    /// Adds noise that is even in [-1.73, 1.73] `sigma` to the views of the scan.
    fn disturb(&self, sigma: f32) {
        let scene = scene::read(&self.path("scan")).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let projections = scene.scan.projections.mapv(|p| p + sigma * 3.0_f32.sqrt() * rng.random_range(-1.0..1.0));
        let scan = Scan { projections, ..scene.scan.clone() };
        std::fs::remove_dir_all(self.path("scan")).unwrap();
        scene::write(&self.path("scan"), &Scene { scan, ..scene }).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, method: &str, output: &str, more: &[&str]) -> Output {
        let arguments = ["--method", method, "--device", "cpu", "--json", "-o"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffnr"));
        command.arg("reconstruct").arg(self.path("scan")).args(arguments).arg(self.path(output)).args(more);
        command.output().unwrap()
    }

    fn result(&self, method: &str, output: &str, more: &[&str]) -> Value {
        let done = self.run(method, output, more);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn refused(&self, method: &str, more: &[&str], code: i32, words: &str) {
        let done = self.run(method, "refused.npy", more);
        let text = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn each_method_reports_what_it_did_and_traces_its_quality() {
    let case = Case::of(orbit().over_arc(20, 0.0, TAU));
    for method in METHODS {
        let trace = case.path("trace.json");
        let more = ["--iterations", "12", "--threads", "2", "--trace", trace.to_str().unwrap(), "--trace-every", "5"];
        let result = case.result(method, "volume.npy", &more);
        assert_eq!(
            (&result["method"], &result["iterations"], &result["stopped"]),
            (&method.into(), &12.into(), &"iterations".into())
        );
        assert!(
            result["residual"].as_f64().unwrap() < 0.1 * result["residual_of_nothing"].as_f64().unwrap(),
            "{result}"
        );
        assert!(result["seconds"]["reconstruct"].as_f64().unwrap() > 0.0);
        // The plan lists the volume and more.
        let planned: u64 =
            result["planned_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert!(planned > 2 * 4 * grid().len() as u64 && result["peak_memory_bytes"].as_u64().unwrap() > planned);

        let trace = json(&trace);
        let points = trace["points"].as_array().unwrap();
        let iterations: Vec<u64> = points.iter().map(|point| point["iteration"].as_u64().unwrap()).collect();
        assert_eq!(iterations, [1, 5, 10, 12], "{method}");
        let column = |key: &str| points.iter().map(|point| point[key].as_f64().unwrap()).collect::<Vec<_>>();
        assert!(column("seconds").windows(2).all(|pair| pair[0] < pair[1]));
        let (psnr, residual) = (column("psnr_db"), column("residual"));
        assert!(psnr[3] > psnr[0] + 3.0 && residual[3] < residual[0], "{method}: {trace}");
        // The last point is the volume that was written, as `diffnr evaluate` sees it.
        let evaluated = Command::new(env!("CARGO_BIN_EXE_diffnr"))
            .args(["evaluate", "--json", "--reference"])
            .args([case.path("scan"), case.path("volume.npy")])
            .arg("--fov")
            .arg(case.path("scan"))
            .output()
            .unwrap();
        let figures: Value = serde_json::from_slice(&evaluated.stdout).unwrap();
        // The trace sees the volume before it is scaled to the scene's values in float32.
        assert!((figures["psnr_db"].as_f64().unwrap() - psnr[3]).abs() < 1e-3, "{method}: {figures} {psnr:?}");
    }
}

#[test]
fn each_rule_stops_each_method_and_says_so() {
    let case = Case::of(orbit().over_arc(16, 0.0, TAU));
    for method in METHODS {
        for (option, value, reason) in [("--stop-residual", "0.05", "discrepancy"), ("--stop-change", "0.05", "change")]
        {
            let result = case.result(method, "volume.npy", &["--iterations", "150", option, value]);
            assert_eq!(result["stopped"], reason, "{method}: {result}");
            assert!(result["iterations"].as_u64().unwrap() < 150, "{method} {option}");
            assert!(result["held_back_residual"].is_null());
            if reason == "discrepancy" {
                assert!(result["residual"].as_f64().unwrap() <= 0.05, "{method}: {result}");
            }
        }
    }
}

#[test]
fn views_held_back_end_the_fitting_of_noise() {
    let case = Case::of(orbit().over_arc(16, 0.0, TAU));
    // Noise of 0.1 where the ball's line integrals are up to 2.3: without regularisation the sweeps soon fit it.
    case.disturb(0.1);
    let result = case.result("os-sart", "volume.npy", &["--iterations", "150", "--hold-back", "4"]);
    assert_eq!(result["stopped"], "held_back", "{result}");
    assert_eq!(result["held_back_views"].as_array().unwrap().len(), 4);
    assert!(result["iterations"].as_u64().unwrap() < 150);
    // They cannot be explained better than their noise, but for a share of it that chance leaves.
    assert!(result["held_back_residual"].as_f64().unwrap() > 0.08, "{result}");
}

#[test]
fn any_number_of_threads_writes_the_same_file() {
    let case = Case::of(orbit().over_arc(9, 0.0, TAU));
    for method in METHODS {
        let volumes = ["1", "2", "3"].map(|threads| {
            case.result(method, "volume.npy", &["--iterations", "3", "--threads", threads]);
            std::fs::read(case.path("volume.npy")).unwrap()
        });
        assert!(volumes[0] == volumes[1] && volumes[1] == volumes[2], "{method}");
    }
}

#[test]
fn a_short_arc_that_fdk_refuses_is_reconstructed_with_a_warning() {
    let case = Case::of(orbit().over_arc(14, 0.3, 1.9));
    case.refused("fdk", &[], 5, "short scan needs 180 deg");
    for method in METHODS {
        let result = case.result(method, "volume.npy", &["--iterations", "8"]);
        assert!(result["coverage"].is_null());
        assert!(result["warnings"][0].as_str().unwrap().contains("incomplete data"), "{result}");
        assert!(npy::read_volume(&case.path("volume.npy")).unwrap().iter().all(|v| v.is_finite()));
    }
}

#[test]
fn wrong_options_are_refused_before_the_work() {
    let case = Case::of(orbit().over_arc(8, 0.0, TAU));
    case.refused("fdk", &["--iterations", "3"], 2, "--iterations is no option of --method fdk");
    case.refused("fdk", &["--relaxation", "0.5"], 2, "--relaxation is no option");
    case.refused("os-sart", &["--window", "hann"], 2, "--window is no option of --method os-sart");
    case.refused("os-sart", &["--alpha", "0.1"], 2, "--alpha is no option");
    case.refused("asd-pocs", &["--prior", "1"], 2, "--prior is no option of --method asd-pocs");
    case.refused("os-sart", &["--deadline", "1"], 2, "--deadline is no option of --method os-sart");
    case.refused("field", &["--hold-back", "2"], 2, "--hold-back is no option of --method field");
    case.refused("gaussians", &["--tv-steps", "2"], 2, "--tv-steps is no option of --method gaussians");
    case.refused("os-sart", &["--relaxation", "2.5"], 2, "relaxation = 2.5");
    case.refused("os-sart", &["--iterations", "0"], 2, "--iterations");
    case.refused("asd-pocs", &["--alpha=-1"], 2, "alpha = -1");
    case.refused("os-sart", &["--hold-back", "5"], 2, "held_back_views = 5");
    case.refused("os-sart", &["--stop-change=-0.1"], 2, "stop.change = -0.1");
    case.refused("os-sart", &["--stop-residual", "nan"], 2, "stop.residual = NaN");
    case.refused("os-sart", &["--trace-every", "3"], 2, "--trace");
    case.refused("os-sart", &["--trace", "/nowhere/trace.json"], 9, "/nowhere");
}

#[test]
fn priors_of_the_optimised_methods_count_and_are_refused_by_name() {
    let case = Case::of(orbit().over_arc(8, 0.0, TAU));
    for method in ["gaussians", "field"] {
        let volume = |more: &[&str]| {
            let facts = case.result(method, "volume.npy", &[&["--iterations", "8"], more].concat());
            let volume = npy::read_volume(&case.path("volume.npy")).unwrap();
            assert!(volume.iter().all(|value| value.is_finite()));
            (volume, facts)
        };
        let (usual, facts) = volume(&[]);
        assert_eq!((&facts["prior"], &facts["tv_mm"]), (&1.0.into(), &0.0.into()), "{method}");
        let (variation, facts) = volume(&["--prior", "0", "--tv", "0.03"]);
        assert!(facts["prior"] == 0.0 && (facts["tv_mm"].as_f64().unwrap() - 0.03).abs() < 1e-6, "{method}: {facts}");
        let (neither, _) = volume(&["--prior", "0"]);
        // A thousandth of water's value of 0.5: far above roundings, and the same run twice gives the same bits.
        let apart = |a: &Array3<f32>, b: &Array3<f32>| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 5e-4);
        assert!(apart(&usual, &variation) && apart(&usual, &neither) && apart(&variation, &neither), "{method}");
        assert!(!apart(&usual, &volume(&["--prior", "1"]).0), "{method}: the default is 1");
        for (option, words) in [
            ("--prior=-1", "prior = -1"),
            ("--prior=nan", "prior = NaN"),
            ("--prior=inf", "prior = inf"),
            ("--prior=1e39", "prior = inf"),
            ("--tv=-0.5", "tv_mm = -0.5"),
            ("--tv=nan", "tv_mm = NaN"),
        ] {
            case.refused(method, &[option], 2, words);
        }
    }
}
