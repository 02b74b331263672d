//! Real CT volumes, read and held against what their README says of them.
//!
//! They are looked for in `DIFFNR_SHARED` or `../shared`, under `data/ct`; where they are missing the tests say so and pass.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use diffnr::formats::nifti::{CtVolume, read_ct};
use diffnr::measure;
use ndarray::{Array3, Axis};

fn data(test: &str) -> Option<PathBuf> {
    let shared =
        std::env::var("DIFFNR_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into());
    let folder = Path::new(&shared).join("data/ct");
    if folder.join("README.md").is_file() {
        return Some(folder);
    }
    eprintln!("SKIPPED: {test}: no CT volumes in {}", folder.display());
    None
}

/// Numbers of "256x256x236" or "0.97656x0.97656x3.27 (native)" or "1.0 iso (as published)".
fn triple(cell: &str) -> [f64; 3] {
    let first = cell.split_whitespace().next().unwrap();
    let numbers: Vec<f64> = first.split('x').map(|number| number.parse().unwrap()).collect();
    if numbers.len() == 1 { [numbers[0]; 3] } else { numbers.try_into().unwrap() }
}

#[test]
fn shapes_spacings_and_hu_ranges_are_those_of_the_readme() {
    let Some(folder) = data("shapes, spacings and HU ranges") else { return };
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut seen = 0;
    for line in readme.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // | file | anatomy | shape | spacing | HU range | ...: the table of volumes has a range.
        if cells.len() < 7 || !cells[1].ends_with(".nii.gz") || !cells[5].contains("..") {
            continue;
        }
        let (shape, spacing) = (triple(cells[3]), triple(cells[4]));
        let range: Vec<f32> =
            cells[5].split_whitespace().next().unwrap().split("..").map(|number| number.parse().unwrap()).collect();
        let volume = read_ct(&folder.join(cells[1])).unwrap();
        let found = volume.hu.shape().iter().map(|&n| n as f64);
        assert!(found.eq(shape), "{}: {:?}", cells[1], volume.hu.shape());
        let near = volume.spacing_mm().to_array().into_iter().zip(spacing).all(|(a, b)| (a - b).abs() < 5e-3);
        assert!(near, "{}: {}", cells[1], volume.spacing_mm());
        let low = volume.hu.iter().copied().fold(f32::INFINITY, f32::min);
        let high = volume.hu.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(vec![low, high], range, "{}", cells[1]);
        // Axes as stored: to the patient's left, to the back, to the head.
        let m = volume.voxel_to_world_mm.matrix3;
        assert!(m.x_axis.x < 0.0 && m.y_axis.y < 0.0 && m.z_axis.z > 0.0, "{}: {m:?}", cells[1]);
        seen += 1;
    }
    assert_eq!(seen, 7, "volumes of the README's table");
}

#[test]
fn organs_lie_where_they_belong_along_the_worlds_axes() {
    let Some(folder) = data("organs along the world's axes") else { return };
    let labels = read_ct(&folder.join("chest_lidc0001_labels.nii.gz")).unwrap();
    let (seen, spacing) = labels.canonical();
    let centroid = |label: f32| -> [f64; 3] {
        let mut sum = [0.0; 3];
        let mut count = 0.0;
        for ((x, y, z), _) in seen.indexed_iter().filter(|(_, value)| **value == label) {
            count += 1.0;
            [x, y, z].iter().zip(&mut sum).for_each(|(at, sum)| *sum += *at as f64);
        }
        assert!(count > 100.0, "label {label} is there");
        [0, 1, 2].map(|axis| sum[axis] / count * spacing[axis])
    };
    let (liver, heart, spleen) = (centroid(5.0), centroid(51.0), centroid(1.0));
    let (sternum, cord) = (centroid(116.0), centroid(79.0));
    // x grows to the patient's right, y to the front, z to the head.
    assert!(liver[0] > heart[0] && heart[0] > spleen[0], "right to left: liver, heart, spleen");
    assert!(sternum[1] > heart[1] && heart[1] > cord[1], "front to back: sternum, heart, spinal cord");
    assert!(heart[2] > liver[2], "the heart lies above the liver");
    assert_eq!(seen.len_of(Axis(0)), 256);
}

/// Means of 2 x 2 x 2 voxels along the world's axes.
fn halved(volume: &CtVolume) -> (Array3<f32>, [f64; 3]) {
    let (values, spacing_mm) = volume.canonical();
    let (nx, ny, nz) = values.dim();
    let mean = |(x, y, z)| {
        let corner = |n: usize| values[[2 * x + (n >> 2), 2 * y + (n >> 1 & 1), 2 * z + (n & 1)]];
        (0..8).map(corner).sum::<f32>() / 8.0
    };
    (Array3::from_shape_fn((nx / 2, ny / 2, nz / 2), mean), spacing_mm.map(|edge| 2.0 * edge))
}

#[test]
fn lungs_are_those_of_the_masks() {
    let Some(folder) = data("lungs against masks") else { return };
    // The first mask is a network's, with neither airways nor vessels of the hilum; the second a threshold's at -400 HU, with the airways.
    // Vessels at the hilum, airways and half a voxel of wall are what recipes differ by: 2 to 3 % of the lungs.
    for (name, least) in [("chest_lidc0001", 0.965), ("chest_lidc0002", 0.98)] {
        let [ct, mask] = ["", "_lungs"].map(|of| read_ct(&folder.join(format!("{name}{of}.nii.gz"))).unwrap());
        // Voxels of twice the edge: the size that reconstructions of 128^3 have.
        let (hu, spacing_mm) = halved(&ct);
        let mask = halved(&mask).0.mapv(|share| share >= 0.5);
        let found = measure::lungs::lungs(hu.view(), spacing_mm, None).unwrap();
        let dice = measure::dice(found.mask.view(), mask.view()).unwrap();
        let asd_mm = measure::surface_distance_mm(found.mask.view(), mask.view(), spacing_mm).unwrap();
        println!("{name}: Dice {dice:.4}, ASD {asd_mm:.2} mm, {:.0} ml", found.volume_ml);
        assert!(dice > least && asd_mm < 3.0, "{name}: Dice {dice}, ASD {asd_mm} mm");
    }
    // A head has air, but no lungs.
    let head = read_ct(&folder.join("headneck_vhf.nii.gz")).unwrap();
    let (hu, spacing_mm) = halved(&head);
    let error = measure::lungs::lungs(hu.view(), spacing_mm, None).unwrap_err();
    assert!(matches!(error, measure::MeasureError::NoLungs { .. }), "{error}");
}
