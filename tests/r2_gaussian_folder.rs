//! A data folder as R2-Gaussian's synthetic cases come, without a word of ours, through `diffnr reconstruct` unchanged.
//!
//! The folder is made here from the format's description alone (volume 2 units wide, values 0 to 1, source at 5, detector at 7 units,
//! `[v][u]` views whose row 0 is at +z), and the views are exact chords through ellipsoids: nothing of the reader or the projector is
//! used to make them.
#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::Command;

use diffnr::formats::npy;
use glam::DVec3;
use ndarray::{Array2, Array3};
use serde_json::{Value, json};
use tempfile::TempDir;

const VOXELS: usize = 24;
const VIEWS: usize = 12;
const PIXELS: usize = 32;
const SOURCE: f64 = 5.0;
const SOURCE_TO_DETECTOR: f64 = 7.0;
const DETECTOR: f64 = 4.0;

/// Centre, semi-axes, value added; the sum lies in [0, 0.9]. No symmetry: a swapped or mirrored axis must show.
const ELLIPSOIDS: [(DVec3, DVec3, f64); 4] = [
    (DVec3::ZERO, DVec3::new(0.75, 0.6, 0.7), 0.3),
    (DVec3::new(0.25, -0.1, 0.1), DVec3::new(0.3, 0.22, 0.35), 0.3),
    (DVec3::new(-0.3, 0.15, -0.15), DVec3::new(0.2, 0.25, 0.3), -0.2),
    (DVec3::new(0.05, 0.32, 0.2), DVec3::new(0.12, 0.1, 0.15), 0.6),
];

/// Line integral from `source` to `pixel`, in value times unit.
fn line_integral(source: DVec3, pixel: DVec3) -> f64 {
    let way = pixel - source;
    let chord = |(centre, axes, value): &(DVec3, DVec3, f64)| {
        let (from, along) = ((source - centre) / axes, way / axes);
        let (a, b, c) = (along.length_squared(), from.dot(along), from.length_squared() - 1.0);
        value * way.length() * 2.0 * (b * b - a * c).max(0.0).sqrt() / a
    };
    ELLIPSOIDS.iter().map(chord).sum()
}

/// A view `[v][u]`: means over 3 x 3 points of each pixel.
fn view(angle: f64) -> Array2<f32> {
    let outward = DVec3::new(angle.cos(), angle.sin(), 0.0);
    let (columns, rows) = (DVec3::new(-angle.sin(), angle.cos(), 0.0), DVec3::NEG_Z);
    let (source, middle) = (SOURCE * outward, (SOURCE - SOURCE_TO_DETECTOR) * outward);
    let at = |pixel: usize, third: usize| {
        (pixel as f64 + (third as f64 + 0.5) / 3.0 - PIXELS as f64 / 2.0) * DETECTOR / PIXELS as f64
    };
    Array2::from_shape_fn((PIXELS, PIXELS), |(v, u)| {
        let points = (0..9).map(|k| line_integral(source, middle + at(u, k % 3) * columns + at(v, k / 3) * rows));
        (points.sum::<f64>() / 9.0) as f32
    })
}

/// The volume `[x][y][z]`: means over 4^3 points of each voxel.
fn volume() -> Array3<f32> {
    let at = |n: usize| (n as f64 + 0.5) * 2.0 / (4 * VOXELS) as f64 - 1.0;
    Array3::from_shape_fn((VOXELS, VOXELS, VOXELS), |(x, y, z)| {
        let points = (0..64).map(|k| DVec3::new(at(4 * x + k / 16), at(4 * y + k / 4 % 4), at(4 * z + k % 4)));
        let value = |point: DVec3| -> f64 {
            let inside = |&&(centre, axes, _): &&(DVec3, DVec3, f64)| ((point - centre) / axes).length() < 1.0;
            ELLIPSOIDS.iter().filter(inside).map(|(_, _, value)| value).sum()
        };
        (points.map(value).sum::<f64>() / 64.0) as f32
    })
}

struct Case {
    folder: TempDir,
    truth: Array3<f32>,
}

impl Case {
    /// As R2-Gaussian's cases are: the volume 2 units wide, values from 0 to 1.
    fn new() -> Self {
        Self::at(1.0, 1.0, None)
    }

    /// The same with all lengths times `unit` and all values times `value`, and perhaps with a scale of ours stated.
    fn at(unit: f64, value: f64, stated: Option<Value>) -> Self {
        let case =
            Self { folder: tempfile::tempdir().unwrap(), truth: volume().mapv(|v| (f64::from(v) * value) as f32) };
        let folder = case.path("case");
        std::fs::create_dir(&folder).unwrap();
        let list = |name: &str, angles: &[f64]| -> Vec<Value> {
            std::fs::create_dir(folder.join(name)).unwrap();
            let write = |(index, &angle): (usize, &f64)| {
                let file_path = format!("{name}/{name}_{index:04}.npy");
                let image = view(angle).mapv(|p| (f64::from(p) * unit * value) as f32);
                npy::write_image(&folder.join(&file_path), image.view()).unwrap();
                json!({"file_path": file_path, "angle": angle})
            };
            angles.iter().enumerate().map(write).collect()
        };
        let train: Vec<f64> = (0..VIEWS).map(|view| TAU * view as f64 / VIEWS as f64).collect();
        npy::write_volume(&folder.join("vol_gt.npy"), case.truth.view()).unwrap();
        let lengths = |lengths: [f64; 3]| json!(lengths.map(|length| length * unit));
        let detector = json!([DETECTOR * unit, DETECTOR * unit]);
        let mut description = json!({
            "scanner": {
                "mode": "cone", "DSD": SOURCE_TO_DETECTOR * unit, "DSO": SOURCE * unit,
                "nDetector": [PIXELS, PIXELS], "sDetector": detector,
                "nVoxel": [VOXELS, VOXELS, VOXELS], "sVoxel": lengths([2.0; 3]),
                "offOrigin": [0, 0, 0], "offDetector": [0, 0], "accuracy": 0.5,
                "totalAngle": 360.0, "startAngle": 0.0, "noise": false, "filter": null,
            },
            "vol": "vol_gt.npy", "bbox": [lengths([-1.0; 3]), lengths([1.0; 3])], "radius": unit,
            "proj_train": list("proj_train", &train),
            "proj_test": list("proj_test", &[0.1, 1.3]),
        });
        if let Some(stated) = stated {
            description["diffnr"] = stated;
        }
        std::fs::write(folder.join("meta_data.json"), description.to_string()).unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The volume that a method makes of the folder, and the facts that it prints.
    fn reconstruct(&self, method: &str, more: &[&str]) -> (Array3<f32>, Value) {
        let output = self.path("out.npy");
        let done = Command::new(env!("CARGO_BIN_EXE_diffnr"))
            .arg("reconstruct")
            .arg(self.path("case"))
            .args(["--method", method, "--device", "cpu", "--json", "-o"])
            .arg(&output)
            .args(more)
            .output()
            .unwrap();
        assert!(done.status.success(), "{method}: {}", String::from_utf8_lossy(&done.stderr));
        (npy::read_volume(&output).unwrap(), serde_json::from_slice(&done.stdout).unwrap())
    }

    /// PSNR over the whole volume with peak 1, as R2-Gaussian gives it.
    fn psnr_db(&self, volume: &Array3<f32>) -> f64 {
        let squares: f64 = volume.iter().zip(&self.truth).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        -10.0 * (squares / self.truth.len() as f64).log10()
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_method_reads_the_folder_and_comes_close_to_its_volume() {
    let case = Case::new();
    let before = std::fs::read(case.path("case/meta_data.json")).unwrap();
    let empty_db = case.psnr_db(&Array3::zeros(case.truth.dim()));
    let (fdk, _) = case.reconstruct("fdk", &[]);
    let fdk_db = case.psnr_db(&fdk);
    // An empty volume has 17.7 dB; FDK's streaks at 12 views leave it half way.
    assert!(fdk_db > empty_db + 8.0, "fdk {fdk_db} empty {empty_db}");
    for method in ["os-sart", "asd-pocs", "gaussians", "field"] {
        let trace = case.path("trace.json");
        let (volume, facts) = case.reconstruct(method, &["--trace", trace.to_str().unwrap()]);
        let psnr_db = case.psnr_db(&volume);
        // FDK's error at so few views is streaks, and undershoots below zero; none of these methods has either. What separates the
        // worst of them (gaussians) from it is more than 1 dB when all is well; a swapped axis or another scale of values costs 10.
        assert!(psnr_db > fdk_db + 0.5, "{method}: {psnr_db:.2} dB, FDK {fdk_db:.2} dB, empty {empty_db:.2} dB");
        // The largest value shows at once whether values are on the folder's own scale: 0.9 but for overshoot.
        let largest = volume.iter().fold(0.0_f32, |most, &value| most.max(value));
        assert!((0.7..1.3).contains(&largest), "{method}: {largest}");
        // The folder says nothing of millimetres or HU, and nobody makes them up.
        assert_eq!((&facts["unit"], &facts["views"]), (&json!("scene value"), &json!(VIEWS)), "{method}");
        assert_eq!(facts["voxel_mm"], json!([2.0 / VOXELS as f64, 2.0 / VOXELS as f64, 2.0 / VOXELS as f64]));
        // The trace's PSNR is on the same scale: within the field of view, which leaves out some corners of air.
        let points = read(&trace)["points"].as_array().unwrap().clone();
        let traced_db = points.last().unwrap()["psnr_db"].as_f64().unwrap();
        assert!((traced_db - psnr_db).abs() < 3.0, "{method}: trace {traced_db:.2} dB, file {psnr_db:.2} dB");
    }
    assert_eq!(std::fs::read(case.path("case/meta_data.json")).unwrap(), before, "the folder is as it was");
}

#[test]
fn only_values_that_no_body_has_are_optimised_at_another_scale() {
    // Bone, twice water's 0.0193/mm, counts as value 1 where nothing else is said.
    let bone_per_mm = 0.0386;
    let stated = json!({"unit_mm": 1.0 / bone_per_mm, "mu_per_value_per_mm": bone_per_mm});
    let volumes = [
        (Case::new(), 1.0 / bone_per_mm),
        // The same scan, in words instead of by guess.
        (Case::at(1.0, 1.0, Some(stated)), 1.0),
        // Lengths in mm and values in 1/mm, though nobody says so.
        (Case::at(1.0 / bone_per_mm, bone_per_mm, None), 1.0),
    ]
    .map(|(case, scale)| {
        let (volume, facts) = case.reconstruct("field", &["--iterations", "30"]);
        // Factors of float64.
        assert!((facts["working_scale"].as_f64().unwrap() / scale - 1.0).abs() < 1e-12, "{facts}");
        let value_per_mm = if case.truth.iter().any(|&value| value > 0.5) { 1.0 } else { bone_per_mm };
        volume.mapv(|value| f64::from(value) / value_per_mm)
    });
    // They are one problem, so only roundings of float32 differ (each folder stores views in its own unit); 30 steps of Adam, which divide
    // by the gradient's size, pass them on enlarged. Optimised as if 1 were 1/mm, the field's largest value was 0.26 instead of 0.9.
    for other in &volumes[1..] {
        let worst = volumes[0].iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 0.02, "{worst}");
    }
}
