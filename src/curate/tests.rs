#![allow(clippy::unwrap_used)]
//! Small pairs: 16^3 voxels, a few iterations.

mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use glam::{DAffine3, DMat3, DVec3};
use ndarray::Array3;
use safetensors::SafeTensors;
use serde_json::Value;

use super::body::Body;
use super::*;
use crate::formats::nifti::{self, Storage};
use crate::geometry::{CircularOrbit, Detector};

/// Small and quick.
fn options() -> Options {
    Options {
        seed: 7,
        scans: 4,
        size: 16,
        detector: [16, 20],
        views_dense: 60,
        views: [6, 12],
        stopped_at: [0.02, 0.05],
        subpixels: 1,
        ..Options::default()
    }
}

/// A box of water, 120 x 100 x 140 mm, in air, with one of 500 HU in its corner of high x and z. Axes as scanners write them (LPS).
fn write_ct(path: &Path) {
    let hu = Array3::from_shape_fn((20, 20, 20), |(i, j, k)| {
        let water = (4..16).contains(&i) && (5..15).contains(&j) && (3..17).contains(&k);
        // i and j run against x and y.
        let dense = (4..8).contains(&i) && (6..14).contains(&j) && (13..17).contains(&k);
        if dense {
            500.0
        } else if water {
            0.0
        } else {
            -1000.0_f32
        }
    });
    let affine = DAffine3 {
        matrix3: DMat3::from_diagonal(DVec3::new(-10.0, -10.0, 10.0)),
        translation: DVec3::new(95.0, 95.0, -95.0),
    };
    nifti::write(path, hu.view(), &affine, Storage::Float32).unwrap();
}

fn request(volumes: &[PathBuf], phantoms: usize) -> Request {
    Request { volumes: volumes.iter().map(|p| p.display().to_string()).collect(), phantoms, ..Request::default() }
}

fn run(options: &Options, request: &Request, folder: &Path, threads: usize) -> Result<Summary, CurateError> {
    curate(options, &gather(request)?.subjects, folder, threads, &mut |_| ())
}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

#[test]
fn the_same_bytes_for_any_threads_and_however_often_interrupted() {
    let work = tempfile::tempdir().unwrap();
    let ct = work.path().join("chest_box.nii.gz");
    write_ct(&ct);
    let request = request(&[ct], 1);
    let (one, other) = (work.path().join("one"), work.path().join("other"));
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let summary = pool(1).install(|| run(&options(), &request, &one, 1)).unwrap();
    assert_eq!((summary.subjects, summary.made, summary.kept), (2, 8, 0));
    let whole = files(&one);
    assert_eq!(whole.len(), 8 + 2 + 2);

    // Killed as the third shard is done, and while a fourth was being written.
    let subjects = gather(&request).unwrap().subjects;
    let mut made = 0;
    let killed = catch_unwind(AssertUnwindSafe(|| {
        curate(&options(), &subjects, &other, 2, &mut |progress| {
            made += usize::from(matches!(progress, Progress::Made { .. }));
            assert!(made < 3, "killed");
        })
    }));
    assert!(killed.is_err());
    let left = files(&other);
    let shards: Vec<&String> = left.keys().filter(|name| name.ends_with("safetensors")).collect();
    assert_eq!(shards.len(), 3 + 1, "{shards:?}");
    fs::write(other.join("train/chest_box/003.safetensors.1.partial"), b"half").unwrap();
    // A disk that lost the end of a shard.
    let damaged = shards.iter().find(|name| !name.contains("reference")).unwrap();
    fs::write(other.join(damaged), &left[*damaged][..1000]).unwrap();

    let summary = pool(3).install(|| run(&options(), &request, &other, 3)).unwrap();
    assert_eq!((summary.made, summary.kept), (6, 2));
    same(&whole, &files(&other));
    // Nothing is left to do.
    let before = fs::metadata(other.join(damaged)).unwrap().modified().unwrap();
    assert_eq!(run(&options(), &request, &other, 1).unwrap().made, 0);
    assert_eq!(fs::metadata(other.join(damaged)).unwrap().modified().unwrap(), before);
    same(&whole, &files(&other));
}

#[test]
fn a_subject_stands_on_one_side_of_the_split() {
    let work = tempfile::tempdir().unwrap();
    let volumes = ["headneck_p1.nii", "abdomen_p1.nii", "chest_p2.nii"].map(|name| work.path().join(name));
    for (number, path) in volumes.iter().enumerate() {
        write_ct(path);
        // Three different files.
        let mut bytes = fs::read(path).unwrap();
        bytes[150] = b'a' + number as u8;
        fs::write(path, bytes).unwrap();
    }
    let both = Request { validation: vec!["headneck_p1".into()], ..request(&volumes, 1) };
    let subjects = gather(&both).unwrap().subjects;
    let sides: Vec<(&str, &str)> = subjects.iter().map(|s| (s.name.as_str(), s.split.name())).collect();
    assert_eq!(
        sides,
        [
            ("abdomen_p1", "validation"),
            ("chest_p2", "train"),
            ("headneck_p1", "validation"),
            ("phantom_thorax0000", "train")
        ]
    );
    // By the key that both share, too.
    let by_key = Request { validation: vec!["p1".into()], ..request(&volumes, 1) };
    assert_eq!(gather(&by_key).unwrap().subjects, subjects);

    let small = Options { scans: 1, ..options() };
    let out = work.path().join("out");
    run(&small, &both, &out, 1).unwrap();
    let all = files(&out);
    for name in ["validation/abdomen_p1/000", "validation/headneck_p1/000", "train/chest_p2/000"] {
        assert!(all.contains_key(&format!("{name}.safetensors")), "{name}");
    }
    assert!(!all.keys().any(|name| name.starts_with("train") && name.contains("p1")));
    let catalogue: Value = serde_json::from_slice(&all[CATALOGUE_FILE]).unwrap();
    assert_eq!(catalogue["complete"], true);
    for shard in catalogue["shards"].as_array().unwrap() {
        assert!(shard["path"].as_str().unwrap().starts_with(shard["split"].as_str().unwrap()));
    }
    // A later run may add to the folder, but not the other half of a subject on the other side.
    let first = Request { validation: vec!["headneck_p1".into()], ..request(&volumes[..1], 0) };
    let apart = work.path().join("apart");
    run(&small, &first, &apart, 1).unwrap();
    run(&small, &request(&volumes[2..], 0), &apart, 1).unwrap();
    let refused = run(&small, &request(&volumes[1..2], 0), &apart, 1).unwrap_err().to_string();
    assert!(refused.contains("headneck_p1") && refused.contains("other side"), "{refused}");
}

#[test]
fn deformed_bodies_stand_beside_what_is_learnt_from_and_are_other_bodies() {
    let work = tempfile::tempdir().unwrap();
    let volumes = ["box_p1.nii", "chest_p2.nii"].map(|name| work.path().join(name));
    for (number, path) in volumes.iter().enumerate() {
        write_ct(path);
        let mut bytes = fs::read(path).unwrap();
        bytes[150] = b'a' + number as u8;
        fs::write(path, bytes).unwrap();
    }
    let licences = vec!["box_p1=other".into(), "CC BY 3.0".into()];
    let wanted = Request { deformed: 2, validation: vec!["p2".into()], licences, ..request(&volumes, 1) };
    let subjects = gather(&wanted).unwrap().subjects;
    let names: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["box_p1", "box_p1_deformed1", "box_p1_deformed2", "chest_p2", "phantom_thorax0000"]);
    for copy in &subjects[1..3] {
        assert_eq!((copy.key.as_str(), copy.anatomy.as_str(), copy.split), ("p1", "box", Split::Train));
        assert_eq!(copy.licence.as_deref(), Some("other"));
    }
    let out = work.path().join("out");
    run(&Options { scans: 1, ..options() }, &wanted, &out, 1).unwrap();
    let reference = |name: &str| {
        let path = out.join(format!("train/{name}/reference.safetensors"));
        let contents = crate::formats::safetensors::read(&path).unwrap();
        (contents.metadata["source"].clone(), contents.i16(&path, "reference_hu").unwrap().1)
    };
    let [(_, whole), (one_from, one), (_, two)] =
        names[..3].try_into().map(|names: [&str; 3]| names.map(reference)).unwrap();
    assert_eq!(one_from, "box_p1.nii, deformed 1");
    assert!(whole != one && one != two && whole != two);
    // Still the same stuff: as much of it, to the stretch along three axes.
    let soft = |hu: &[i16]| hu.iter().filter(|hu| **hu > -500).count() as f64;
    for deformed in [&one, &two] {
        assert!((0.4..2.5).contains(&(soft(deformed) / soft(&whole))));
    }
    // Another volume of a copy's name would be written into its folder.
    let clash = work.path().join("box_p1_deformed2.nii");
    write_ct(&clash);
    let refused = gather(&Request { deformed: 2, ..request(&[volumes[0].clone(), clash], 0) }).unwrap_err().to_string();
    assert!(refused.contains("box_p1_deformed2") && refused.contains("two volumes have this name"), "{refused}");
}

#[test]
fn the_reference_is_in_hu_and_lies_as_documented() {
    let work = tempfile::tempdir().unwrap();
    let ct = work.path().join("box_one.nii");
    write_ct(&ct);
    let out = work.path().join("out");
    let licensed = Request { licences: vec!["CC BY 3.0".into()], ..request(&[ct], 0) };
    run(&Options { scans: 1, ..options() }, &licensed, &out, 1).unwrap();
    let path = out.join("train/box_one/reference.safetensors");
    let contents = crate::formats::safetensors::read(&path).unwrap();
    assert_eq!(contents.metadata["anatomy"], "box");
    assert_eq!(contents.metadata["licence"], "CC BY 3.0");
    assert_eq!(contents.metadata["source"], "box_one.nii");
    let (shape, hu) = contents.i16(&path, "reference_hu").unwrap();
    assert_eq!(shape, [16, 16, 16]);
    let hu = Array3::from_shape_vec((16, 16, 16), hu).unwrap();
    // 140 mm and the object's margin over 16 voxels: about 9.4 mm each. [z][y][x] of a place in mm:
    let voxel_mm: f64 = contents.metadata["voxel_mm"].parse().unwrap();
    let at = |x: f64, y: f64, z: f64| {
        let index = |mm: f64| (mm / voxel_mm + 7.5).round() as usize;
        hu[[index(z), index(y), index(x)]]
    };
    assert_eq!(at(0.0, 0.0, 0.0), 0);
    assert_eq!(at(40.0, 0.0, 50.0), 500);
    assert_eq!(at(-40.0, 0.0, 50.0), 0);
    assert_eq!(at(40.0, 0.0, -50.0), 0);
    assert_eq!(at(0.0, 65.0, 0.0), -1000);
}

#[test]
fn the_two_projections_are_line_integrals_at_right_angles() {
    // A noise-free scan in a geometry that is not the usual one.
    let base = Options { scans: 1, ..options() };
    let name = "phantom_thorax0000";
    let wanted = |seed: &u64| {
        let draw = scan(&Options { seed: *seed, ..base.clone() }, name, 0);
        draw.photons.is_none() && draw.geometry == 1 && draw.law == AngleLaw::Uniform
    };
    let seed = (0..1000).find(wanted).unwrap();
    let request = Request { phantoms: 1, seed, ..Request::default() };
    let work = tempfile::tempdir().unwrap();
    run(&Options { seed, ..base }, &request, work.path(), 1).unwrap();
    let bytes = fs::read(work.path().join("train/phantom_thorax0000/000.safetensors")).unwrap();
    let shard = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let strings = header.metadata().as_ref().unwrap();
    let json = |key: &str| serde_json::from_str::<Value>(&strings[key]).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();

    let pair = json("biplanar_rad");
    let (first, second) = (number(&pair[0]), number(&pair[1]));
    let views = shard.tensor("views_rad").unwrap();
    let step = std::f64::consts::TAU / views.shape()[0] as f64;
    let apart = (second - first).rem_euclid(std::f64::consts::TAU);
    // No further off than half a step of the scan and one of the dense views.
    assert!((apart - 0.5 * std::f64::consts::PI).abs() <= 0.5 * step + 0.11, "{first} {second}");

    // The same rays through the phantom's own ellipsoids, one by one.
    let geometry = json("geometry");
    let two = |key: &str| [number(&geometry[key][0]), number(&geometry[key][1])];
    let [pitch_u_mm, pitch_v_mm] = two("pitch_u_v_mm");
    let [offset_u_mm, offset_v_mm] = two("offset_u_v_mm");
    let orbit = CircularOrbit {
        source_to_isocenter_mm: number(&geometry["source_to_isocenter_mm"]),
        source_to_detector_mm: number(&geometry["source_to_detector_mm"]),
        detector: Detector { rows: 16, columns: 20 },
        pitch_u_mm,
        pitch_v_mm,
        offset_u_mm,
        offset_v_mm,
        ..CircularOrbit::default()
    };
    let Source::Thorax(seed) = gather(&request).unwrap().subjects[0].source else { panic!() };
    let mut phantom = crate::simulate::thorax::thorax(seed, 0.0193).phantom;
    let centre = &geometry["grid_centre_mm"];
    let centre_mm = DVec3::new(number(&centre[0]), number(&centre[1]), number(&centre[2]));
    assert!(centre_mm.length() > 1.0);
    phantom.layers.iter_mut().for_each(|layer| layer.centre_mm += centre_mm);
    let projections = shard.tensor("projections").unwrap();
    assert_eq!(projections.shape(), [2, 16, 20]);
    let values: Vec<f32> = projections.data().as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
    let mut largest = 0.0_f64;
    for (view, angle) in [first, second].into_iter().enumerate() {
        let pose = orbit.pose(angle);
        for (v, u) in [(8, 10), (3, 5), (12, 14), (9, 2)] {
            let exact = phantom.line_integral(pose.source_mm, pose.pixel_mm(v as f64, u as f64));
            largest = largest.max(exact);
            let ours = f64::from(values[(view * 16 + v) * 20 + u]);
            // float32 of a sum in float64.
            assert!((ours - exact).abs() < 1e-5 * (1.0 + exact), "{view} {v} {u}: {ours} {exact}");
        }
    }
    assert!(largest > 1.0, "some ray must meet the body");
}

#[test]
fn every_geometry_that_can_be_drawn_is_accepted() {
    let options = Options { geometries: 64, ..options() };
    let subjects = gather(&Request { phantoms: 4, ..Request::default() }).unwrap().subjects;
    let mut places = [0; 3];
    for subject in &subjects {
        let body = Body::new(&options, subject, 1).unwrap();
        for number in 0..options.geometries {
            let draw = draw::geometry(&options, &subject.name, number);
            let geometry = body.geometry(&options, &subject.name, &draw).unwrap();
            places[draw.place as usize] += 1;
            // The object is measured whole across, the cube's far corners need not be.
            assert!(geometry.field_of_view.contains(geometry.grid.centre_mm));
            assert!(geometry.field_of_view.radius_mm >= body.extent.radius_mm);
        }
    }
    assert!(places.iter().all(|&count| count > 20), "{places:?}");
}
