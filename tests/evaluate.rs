//! `diffnr evaluate` as a user runs it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use diffnr::formats::nifti::{Storage, grid_to_world_mm, write_mu, write_volume};
use diffnr::formats::scene::{self, Scene};
use diffnr::formats::{Scan, SceneScale, npy};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use glam::DVec3;
use ndarray::{Array, Array3, Zip};
use serde_json::Value;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_diffnr")).arg("evaluate").args(arguments).output().unwrap()
}

fn figures(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn grid() -> VolumeGrid {
    VolumeGrid::over_box([16, 18, 20], DVec3::new(64.0, 72.0, 80.0), DVec3::new(3.0, -2.0, 1.0))
}

/// Soft tissue with a gradient, on a grid.
fn tissue(grid: &VolumeGrid) -> Array3<f32> {
    let [nx, ny, nz] = grid.voxels;
    Array::from_shape_fn((nx, ny, nz), |(x, y, z)| {
        let at = grid.voxel_centre_mm(x, y, z);
        (3.0 * at.x - 2.0 * at.y + 5.0 * at.z) as f32
    })
}

struct Case {
    folder: TempDir,
}

impl Case {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn volume(&self, name: &str, values: &Array3<f32>, grid: &VolumeGrid) -> PathBuf {
        let path = self.path(name);
        write_volume(&path, values.view(), grid, DVec3::ZERO, Storage::Float32).unwrap();
        path
    }
}

#[test]
fn figures_are_those_of_the_definition_on_the_window() {
    let case = Case::new();
    let reference = tissue(&grid());
    let mut out = reference.mapv(|value| value + 20.0);
    // Beyond the window in both: the clipped volumes agree there, the HU do not.
    let mut extreme = reference.clone();
    out[[0, 0, 0]] = 3000.0;
    extreme[[0, 0, 0]] = 2000.0;
    let (out, reference) = (case.volume("out.nii.gz", &out, &grid()), case.volume("reference.nii", &extreme, &grid()));
    let arguments = [text(&out), "--reference", text(&reference), "--clip"];
    let json = figures(&arguments);
    let n = f64::from(16 * 18 * 20);
    let mse = (n - 1.0) / n * 400.0;
    let rmse = ((mse * n + 1e6) / n).sqrt();
    // Voxels are float32 of size 1e2 to 1e3.
    assert!((json["psnr_db"].as_f64().unwrap() - 10.0 * (4e6_f64 / mse).log10()).abs() < 1e-3, "{json}");
    assert!((json["rmse"].as_f64().unwrap() - rmse).abs() < 1e-3, "{json}");
    let unclipped = figures(&arguments[..3]);
    assert!((unclipped["psnr_db"].as_f64().unwrap() - 20.0 * (2000.0_f64 / rmse).log10()).abs() < 1e-3, "{unclipped}");
    assert_eq!(json["unit"], "HU");
    assert!(json["ssim"].as_f64().unwrap() > 0.9);
    let narrow = figures(&[&arguments[..], &["--window-hu", "-100:100"]].concat());
    assert!(narrow["psnr_db"].as_f64().unwrap() < json["psnr_db"].as_f64().unwrap() - 10.0);
    let printed = run(&arguments);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("window -1000:1000 HU"));
}

#[test]
fn nothing_is_resampled_in_silence() {
    let case = Case::new();
    let fine = VolumeGrid { voxels: [32, 36, 40], voxel_mm: DVec3::splat(2.0), ..grid() };
    let out = case.volume("out.nii", &tissue(&grid()), &grid());
    let reference = case.volume("fine.nii", &tissue(&fine), &fine);
    let arguments = [text(&out), "--reference", text(&reference)];
    refused(&arguments, 4, &["out.nii", "fine.nii", "[16, 18, 20]", "[32, 36, 40]", "--resample"]);
    let json = figures(&[&arguments[..], &["--resample"]].concat());
    assert_eq!(json["resampled"], true);
    assert_eq!(json["voxels"], 16 * 18 * 20);
    // A linear function is its own average, but for the cells at the edge, where the trilinear samples flatten.
    assert!(json["rmse"].as_f64().unwrap() < 1.0, "{json}");

    let shifted = VolumeGrid { centre_mm: grid().centre_mm + DVec3::new(0.0, 4.0, 0.0), ..grid() };
    let reference = case.volume("shifted.nii", &tissue(&shifted), &shifted);
    let arguments = [text(&out), "--reference", text(&reference)];
    refused(&arguments, 4, &["shifted.nii", "lies at", "--resample"]);
    let json = figures(&[&arguments[..], &["--resample"]].concat());
    assert_eq!(json["voxels"], 16 * 17 * 20, "a layer lies beyond the reference: {json}");
}

#[test]
fn masks_and_the_field_of_view_choose_the_voxels() {
    let case = Case::new();
    let reference = tissue(&grid());
    let half = Array::from_shape_fn((16, 18, 20), |(x, _, _)| f32::from(u8::from(x < 8)));
    let out = &reference + &(1.0 - &half) * 500.0;
    let mask = case.volume("mask.nii", &half, &grid());
    let (out, reference) = (case.volume("out.nii", &out, &grid()), case.volume("reference.nii", &reference, &grid()));
    let arguments = [text(&out), "--reference", text(&reference)];
    let json = figures(&[&arguments[..], &["--mask", text(&mask)]].concat());
    assert_eq!((json["voxels"].as_u64(), json["rmse"].as_f64()), (Some(8 * 18 * 20), Some(0.0)));
    assert_eq!((&json["psnr_db"], &json["identical"]), (&Value::Null, &Value::Bool(true)));

    // A detector that sees a disc of radius about 20 mm.
    let orbit = CircularOrbit {
        detector: Detector { columns: 30, rows: 40 },
        pitch_u_mm: 2.0,
        pitch_v_mm: 4.0,
        ..CircularOrbit::default()
    };
    let scan = Scan {
        geometry: orbit.over_arc(24, 0.0, std::f64::consts::TAU),
        grid: grid(),
        projections: Array3::zeros((24, 40, 30)),
        scale: SceneScale::hu_window(0.0193),
        patient_offset_mm: DVec3::ZERO,
    };
    let scan_folder = case.path("scan");
    scene::write(&scan_folder, &Scene::new(scan)).unwrap();
    let json = figures(&[&arguments[..], &["--fov", text(&scan_folder)]].concat());
    let place = grid_to_world_mm(&grid(), DVec3::ZERO);
    let inside = (0..16 * 18 * 20).filter(|n| {
        let at = place.transform_point3(DVec3::new((n / 360) as f64, (n / 20 % 18) as f64, (n % 20) as f64));
        at.truncate().length() <= 1000.0 * (30.0_f64 / 1500.0).atan().sin()
    });
    assert_eq!(json["voxels"].as_u64().unwrap() as usize, inside.count(), "{json}");
    assert!(json["field_of_view"].as_str().unwrap().contains("20.0 mm"), "{json}");
}

#[test]
fn scene_values_are_compared_with_scene_values() {
    let case = Case::new();
    let values = tissue(&grid()).mapv(|hu| (hu + 1000.0) / 2000.0);
    let (out, reference) = (case.path("out.npy"), case.path("vol_gt.npy"));
    npy::write_volume(&out, values.mapv(|value| value + 0.01).view()).unwrap();
    npy::write_volume(&reference, values.view()).unwrap();
    let json = figures(&[text(&out), "--reference", text(&reference)]);
    // 0.01 of a range of 1.
    assert!((json["psnr_db"].as_f64().unwrap() - 40.0).abs() < 1e-3, "{json}");
    let hu = case.volume("hu.nii", &tissue(&grid()), &grid());
    refused(&[text(&out), "--reference", text(&hu)], 4, &["out.npy", "hu.nii", "HU"]);
    refused(&[text(&out), "--reference", text(&reference), "--window-hu", "-5:5"], 2, &["not in HU"]);
    // A NIfTI of a scan without an absolute scale says so.
    let relative = case.path("relative.nii");
    write_mu(&relative, values.view(), &grid(), &SceneScale::unstated(), DVec3::ZERO, Storage::Float32).unwrap();
    assert!(figures(&[text(&relative), "--reference", text(&reference)])["psnr_db"].is_null());
}

#[test]
fn masks_are_compared_by_dice_and_surface_distance() {
    let case = Case::new();
    let plate =
        |at: usize| Array::from_shape_fn((16, 18, 20), move |(_, _, z)| f32::from(u8::from(z == at || z == 15)));
    let (a, b) = (case.volume("a.nii", &plate(4), &grid()), case.volume("b.nii", &plate(6), &grid()));
    let json = figures(&[text(&a), "--reference", text(&b), "--dice"]);
    assert!((json["dice"].as_f64().unwrap() - 0.5).abs() < 1e-12);
    // Half of the surface lies two voxels of 4 mm away, half coincides.
    assert!((json["asd_mm"].as_f64().unwrap() - 4.0).abs() < 1e-5, "{json}");
    let empty = case.volume("empty.nii", &Array3::zeros((16, 18, 20)), &grid());
    refused(&[text(&empty), "--reference", text(&empty), "--dice"], 4, &["empty"]);
}

#[test]
fn pictures_are_written_and_mistakes_are_explained() {
    let case = Case::new();
    let out = case.volume("out.nii", &tissue(&grid()), &grid());
    let png = case.path("picture.png");
    figures(&[text(&out), "--reference", text(&out), "--png", text(&png)]);
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    let nowhere = case.path("missing/picture.png");
    refused(&[text(&out), "--reference", text(&out), "--png", text(&nowhere)], 9, &["picture.png", "cannot write"]);
    refused(&[text(&out), "--reference", text(&out), "--window-hu", "5"], 2, &["LO:HI"]);
    refused(&[text(&out), "--reference", text(&out), "--window-hu", "5:-5"], 2, &["LO < HI"]);
    refused(&[text(&out), "--reference", "gone.nii"], 4, &["gone.nii", "cannot read"]);
    refused(&[text(&out), "--reference", "volume.dcm"], 4, &["volume.dcm", ".nii.gz"]);
}

#[test]
fn lungs_are_found_in_both_and_compared() {
    let case = Case::new();
    // A body with two lungs, ellipsoids.
    let grid = VolumeGrid::over_box([76, 56, 60], DVec3::new(304.0, 224.0, 240.0), DVec3::ZERO);
    let hu = Array::from_shape_fn((76, 56, 60), |(x, y, z)| {
        let at = grid.voxel_centre_mm(x, y, z);
        let lung = |side: f64| ((at - DVec3::new(side, 0.0, 0.0)) / DVec3::new(45.0, 65.0, 95.0)).length() < 1.0;
        match (lung(-60.0) || lung(60.0), (at.x / 140.0).hypot(at.y / 95.0) < 1.0) {
            (true, _) => -850.0,
            (false, true) => 30.0,
            (false, false) => -1000.0,
        }
    });
    let reference = case.volume("reference.nii.gz", &hu, &grid);
    let picture = case.path("lungs.png");
    let arguments = [text(&reference), "--reference", text(&reference), "--lungs"];
    let same = figures(&[&arguments[..], &["--lungs-picture", text(&picture)]].concat());
    assert_eq!((&same["lungs"]["dice"], &same["lungs"]["asd_mm"]), (&Value::from(1.0), &Value::from(0.0)), "{same}");
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    assert!(String::from_utf8_lossy(&run(&arguments).stdout).contains("lungs: Dice 1.0000"));

    // The lungs' lowest part filled with fluid: what is left is part of the reference's, so that the volumes alone tell the Dice.
    let mut filled = hu.clone();
    Zip::indexed(&mut filled).for_each(|(_, _, z), value| {
        if z < 24 && *value == -850.0 {
            *value = 20.0;
        }
    });
    let out = case.volume("filled.nii.gz", &filled, &grid);
    let arguments = [text(&out), "--reference", text(&reference), "--lungs"];
    let lungs = &figures(&arguments)["lungs"];
    let [dice, asd_mm, own, whole] =
        ["dice", "asd_mm", "volume_ml", "reference_volume_ml"].map(|key| lungs[key].as_f64().unwrap());
    // A few voxels at the fluid's edge are closed differently.
    assert!((dice - 2.0 * own / (own + whole)).abs() < 0.005 && own < 0.9 * whole && asd_mm > 1.0, "{lungs}");
    // Above the fluid the two agree.
    let above = Array::from_shape_fn((76, 56, 60), |(_, _, z)| f32::from(u8::from(z > 28)));
    let mask = case.volume("above.nii", &above, &grid);
    let lungs = &figures(&[&arguments[..], &["--mask", text(&mask)]].concat())["lungs"];
    assert!(lungs["dice"].as_f64().unwrap() > 0.999, "{lungs}");

    // No lungs: no figure, a reason, and the other figures all the same.
    let none = case.volume("water.nii", &hu.mapv(|value| value.max(0.0)), &grid);
    let json = figures(&[text(&none), "--reference", text(&reference), "--lungs"]);
    assert!(json["psnr_db"].is_number() && json["lungs"]["dice"].is_null() && json["lungs"]["asd_mm"].is_null());
    let reason = json["lungs"]["reason"].as_str().unwrap();
    assert!(reason.contains("water.nii") && reason.contains("no lungs in view"), "{reason}");
    let asked = [text(&none), "--reference", text(&reference), "--lungs", "--lungs-picture", text(&picture)];
    refused(&asked, 4, &["no picture written", "no lungs in view"]);
    let values = case.path("values.npy");
    npy::write_volume(&values, hu.mapv(|hu| (hu + 1000.0) / 2000.0).view()).unwrap();
    refused(&[text(&values), "--reference", text(&values), "--lungs"], 4, &["not in HU", "NIfTI"]);
    refused(&[text(&none), "--reference", text(&none), "--lungs", "--dice"], 2, &["--dice"]);
}

/// Grey values `[row][column]` of a picture.
fn pixels(png: &Path) -> ndarray::Array2<u8> {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(png).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    ndarray::Array2::from_shape_vec((info.height as usize, info.width as usize), bytes).unwrap()
}

/// Rows and columns between which two pictures of one size differ.
fn differ(a: &ndarray::Array2<u8>, b: &ndarray::Array2<u8>) -> [std::ops::Range<usize>; 2] {
    let at: Vec<(usize, usize)> = a.indexed_iter().filter(|(at, grey)| b[*at] != **grey).map(|(at, _)| at).collect();
    let span = |of: fn(&(usize, usize)) -> usize| {
        at.iter().map(of).min().unwrap_or(0)..at.iter().map(of).max().map_or(0, |last| last + 1)
    };
    [span(|at| at.0), span(|at| at.1)]
}

#[test]
fn several_volumes_have_each_the_figures_it_has_alone() {
    let case = Case::new();
    let truth = tissue(&grid());
    let reference = case.volume("truth.nii", &truth, &grid());
    let near = case.volume("near.nii.gz", &truth.mapv(|hu| hu + 10.0), &grid());
    let far = case.volume("far.nii", &truth.mapv(|hu| 0.5 * hu), &grid());
    let all = [text(&near), text(&far), text(&reference), "--reference", text(&reference)];
    let json = figures(&[&all[..], &["--names", "10 HU off, half ,same"]].concat());
    assert_eq!(json["reference"], text(&reference));
    let volumes = json["volumes"].as_array().unwrap();
    assert_eq!(
        volumes.iter().map(|one| one["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["10 HU off", "half", "same"]
    );
    for (one, path) in volumes.iter().zip([&near, &far, &reference]) {
        let alone = figures(&[text(path), "--reference", text(&reference)]);
        assert!(alone.get("volumes").is_none() && alone.get("name").is_none(), "as ever: {alone}");
        let mut expected = alone;
        (expected["name"], expected["volume"]) = (one["name"].clone(), text(path).into());
        assert_eq!(one, &expected);
    }
    let printed = String::from_utf8(run(&all).stdout).unwrap();
    // Named by their files; 10 HU of 2000 are 46.02 dB.
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][0], &rows[1][..2], rows[2][0]), ("volume", &["near", "46.02"][..], "far"), "{printed}");
    assert_eq!((&rows[3][..2], rows.len()), (&["truth", "inf"][..], 5), "{printed}");
    assert!(rows[4].contains(&"-1000:1000"), "{printed}");
    // Of one name: told apart by their paths.
    std::fs::create_dir(case.path("other")).unwrap();
    let namesake = case.volume("other/near.nii", &truth, &grid());
    let json = figures(&[text(&near), text(&namesake), "--reference", text(&reference)]);
    assert_eq!(
        (&json["volumes"][0]["name"], &json["volumes"][1]["name"]),
        (&text(&near).into(), &text(&namesake).into())
    );
}

#[test]
fn a_picture_shows_reference_and_volumes_side_by_side() {
    let case = Case::new();
    let truth = tissue(&grid());
    let reference = case.volume("truth.nii", &truth, &grid());
    let [a, b, c] =
        [100.0, -200.0, 400.0].map(|off| case.volume(&format!("off{off}.nii"), &truth.mapv(|hu| hu + off), &grid()));
    let draw = |volumes: &[&Path], names: &str| {
        let png = case.path("picture.png");
        let mut arguments: Vec<&str> = volumes.iter().map(|path| text(path)).collect();
        arguments.extend(["--reference", text(&reference), "--names", names, "--picture", text(&png)]);
        figures(&arguments);
        pixels(&png)
    };
    let ab = draw(&[&a, &b], "one,two");
    let (height, width) = ab.dim();
    // 64 x 72 x 80 mm, the longest edge on 256 pixels: slices of 205 x 230 above 205 x 256.
    let (wide, high) = (205, 230 + 256);
    assert!((3 * wide..3 * wide + 300).contains(&width) && (high..high + 250).contains(&height), "{width} x {height}");

    // Another last volume: its column alone is another, slices and caption.
    let [rows, columns] = differ(&ab, &draw(&[&a, &c], "one,two"));
    assert!(columns.start > 2 * wide && columns.end < 3 * wide + 100, "{columns:?}");
    assert!(rows.start < 20 && rows.end > high, "{rows:?}");
    let [_, columns] = differ(&ab, &draw(&[&c, &b], "one,two"));
    assert!(columns.start > wide && columns.end < 2 * wide + 100, "{columns:?}");
    // Another name: a caption alone.
    let [rows, columns] = differ(&ab, &draw(&[&a, &b], "one,too"));
    assert!(rows.start > high && !rows.is_empty() && columns.start > 2 * wide, "{rows:?} {columns:?}");
    // PSNR and SSIM stand below every volume, in lines of 24 pixels: more of them than below the reference.
    let lit = |from: usize, to: usize| {
        ab.slice(ndarray::s![rows.start + 24..height - 24, from..to]).iter().filter(|&&grey| grey == 255).count()
    };
    // What differs is the second letter, some 22 pixels into the third column.
    let pitch = (columns.start - 30) / 2;
    assert!(lit(pitch, 2 * pitch) > 300 && lit(2 * pitch, 3 * pitch) > 300 && lit(0, pitch) == 0);

    assert!(draw(&[&a], "alone").dim().1 < width - wide, "one volume has a picture too");
}

#[test]
fn what_cannot_stand_side_by_side_is_refused_by_name() {
    let case = Case::new();
    let out = case.volume("out.nii", &tissue(&grid()), &grid());
    let coarse = VolumeGrid { voxels: [8, 9, 10], voxel_mm: DVec3::splat(8.0), ..grid() };
    let other = case.volume("coarse.nii", &tissue(&coarse), &coarse);
    let two = [text(&out), text(&other), "--reference", text(&out)];
    refused(&two, 4, &["coarse.nii and", "out.nii", "[8, 9, 10]", "[16, 18, 20]"]);
    // Each could be compared with the reference, but not the two with each other.
    refused(&[&two[..], &["--resample"]].concat(), 4, &["coarse.nii and", "side by side on one grid", "[8, 9, 10]"]);
    let twice = [text(&out), text(&out), "--reference", text(&out)];
    let with = |options: &[&'static str]| [&twice[..], options].concat();
    refused(&with(&["--names", "a,b,c"]), 2, &["--names a,b,c", "3 names for 2 volumes"]);
    refused(&[text(&out), "--reference", text(&out), "--names", "a,b"], 2, &["2 names for 1 volume"]);
    refused(&with(&["--names", "a, "]), 2, &["name of", "out.nii is empty"]);
    refused(&with(&["--png", "x.png"]), 2, &["--png takes one volume", "2 are given", "--picture"]);
    refused(&with(&["--lungs", "--lungs-picture", "x.png"]), 2, &["--lungs-picture takes one volume"]);
    refused(&with(&["--dice"]), 2, &["--dice takes one volume"]);
    refused(&with(&["--dice", "--picture", "x.png"]), 2, &["--dice", "--picture"]);
    refused(&["--reference", text(&out)], 2, &["<OUT>"]);
    let nowhere = case.path("missing/picture.png");
    refused(&[&twice[..], &["--picture", text(&nowhere)]].concat(), 9, &["picture.png", "cannot write"]);

    // HU beside a scene's own values: both have the scene's truth, not one unit.
    let scan =
        Scan {
            geometry: CircularOrbit { detector: Detector { columns: 12, rows: 12 }, ..CircularOrbit::default() }
                .over_arc(4, 0.0, std::f64::consts::TAU),
            grid: grid(),
            projections: Array3::zeros((4, 12, 12)),
            scale: SceneScale::hu_window(0.0193),
            patient_offset_mm: DVec3::ZERO,
        };
    let truth = tissue(&grid()).mapv(|hu| scan.scale.mu_per_mm(hu));
    let folder = case.path("scan");
    scene::write(&folder, &Scene { ground_truth_per_mm: Some(truth), ..Scene::new(scan) }).unwrap();
    let values = case.path("values.npy");
    npy::write_volume(&values, tissue(&grid()).mapv(|hu| (hu + 1000.0) / 2000.0).view()).unwrap();
    let mixed = [text(&out), text(&values), "--reference", text(&folder)];
    refused(&mixed, 4, &["values.npy and", "out.nii", "like with like"]);
}
