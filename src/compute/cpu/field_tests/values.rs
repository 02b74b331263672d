//! Values against the float64 reference.

#![allow(clippy::unwrap_used)]

use super::*;

/// Largest difference in shares of the largest value.
fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let difference = found.iter().zip(expected).fold(0.0f64, |m, (&x, y)| m.max((f64::from(x) - y).abs()));
    assert!(found.iter().all(|x| x.is_finite()) && largest > 0.0);
    difference / largest
}

/// Shapes that take every branch: features, units and layers of all sizes, dense and hashed, nodes far closer than voxels.
fn shapes() -> Vec<FieldShape> {
    vec![
        small(),
        FieldShape { levels: 1, hidden_layers: 1, width: 48, ..small() },
        FieldShape { levels: 4, features: 4, width: 32, hidden_layers: 3, leak: 0.0, ..small() },
        FieldShape { levels: 9, features: 8, width: 64, log2_table: 4, ..small() },
        // 8 to 4000 cells: the last levels hold two nodes a point.
        FieldShape { levels: 6, coarsest_cells: 8, growth: 3.47, log2_table: 12, ..small() },
    ]
}

#[test]
fn voxels_hold_the_fields_values() {
    let grid = odd();
    for (seed, shape) in shapes().into_iter().enumerate() {
        let owned = Owned::new(&shape, &grid, seed as u64);
        let reference = owned.reference();
        for simd in SimdLevel::available() {
            let cpu = carrier(2, simd, &shape, grid.voxels);
            for jitter in [None, JITTER] {
                let mut volume = vec![f32::NAN; grid.len()];
                cpu.field_voxelise(&grid, &owned.parameters(), jitter, &mut volume).unwrap();
                let points = voxel_points(&grid, jitter);
                let expected: Vec<f64> = points.iter().map(|&point| reference.value_at(point)).collect();
                let worst = worst(&volume, &expected);
                println!("{shape:?} {simd}: {worst:.1e}");
                // float32 positions: 4000 cells leave 2.4e-4 of a cell, 16 cells 1e-6.
                assert!(
                    worst < if shape.cells(shape.levels - 1) > 1000 { 1e-3 } else { 5e-6 },
                    "{shape:?} {worst:.2e}"
                );
            }
        }
    }
}

#[test]
fn grids_of_other_places_and_sizes_are_sampled_too() {
    // A part, a coarser grid, one that sticks out on all sides, one far away.
    let grid = odd();
    let owned = Owned::new(&small(), &grid, 5);
    let reference = owned.reference();
    let wider = VolumeGrid { voxel_mm: DVec3::new(4.1, 4.3, 2.9), centre_mm: DVec3::new(1.0, -4.0, 7.0), ..grid };
    let away = VolumeGrid { centre_mm: DVec3::new(300.0, 0.0, 0.0), ..grid };
    let above = VolumeGrid { centre_mm: DVec3::new(3.0, -2.0, 80.0), ..grid };
    let flat = VolumeGrid { voxels: [3, 4, 1], ..grid };
    for (name, other) in [
        ("part", grid.part([3, 2, 5], [4, 5, 19])),
        ("coarser", grid.resampled(5)),
        ("wider", wider),
        ("away", away),
        ("above", above),
        ("one voxel along z", flat),
        ("one voxel", VolumeGrid { voxels: [1; 3], ..grid }),
    ] {
        for simd in SimdLevel::available() {
            let cpu = carrier(2, simd, &small(), other.voxels);
            for jitter in [None, JITTER] {
                let mut volume = vec![f32::NAN; other.len()];
                cpu.field_voxelise(&other, &owned.parameters(), jitter, &mut volume).unwrap();
                let points = voxel_points(&other, jitter);
                let expected: Vec<f64> = points.iter().map(|&point| reference.value_at(point)).collect();
                if name == "away" || name == "above" {
                    assert!(volume.iter().chain(&[0.0]).all(|&x| x == 0.0), "{name}");
                } else {
                    let worst = worst(&volume, &expected);
                    assert!(worst < 5e-6, "{name} {simd} {worst:.2e}");
                }
            }
        }
    }
}

#[test]
fn the_boxs_faces_belong_to_it_and_nothing_beyond_does() {
    // A box of 8 mm; voxels whose centres lie on the faces, and a hair beyond.
    let grid = VolumeGrid::over_box([4; 3], DVec3::splat(8.0), DVec3::new(0.3, 0.1, -0.7));
    let owned = Owned::new(&small(), &grid, 6);
    let cpu = carrier(1, SimdLevel::detect(), &small(), [2; 3]);
    for axis in 0..3 {
        for (beyond, inside) in [(0.0, true), (1e-5, false), (-1e-5, true)] {
            let mut size = DVec3::splat(1.0);
            size[axis] = 16.0 + 4.0 * beyond;
            // Two voxels of 8 mm about the box: centres at its faces.
            let mut voxels = [1; 3];
            voxels[axis] = 2;
            let across = VolumeGrid::over_box(voxels, size, grid.centre_mm);
            let mut two = [f32::NAN; 2];
            cpu.field_voxelise(&across, &owned.parameters(), None, &mut two).unwrap();
            assert!(two.iter().all(|&x| (x > 0.0) == inside), "axis {axis}, {beyond} beyond: {two:?}");
        }
    }
}

#[test]
fn line_integrals_are_sums_of_samples() {
    let grid = odd();
    let geometry = awkward(3);
    let pixels = pixels(&geometry, 3);
    for (seed, shape) in shapes().into_iter().enumerate() {
        let owned = Owned::new(&shape, &grid, 10 + seed as u64);
        let reference = owned.reference();
        for simd in SimdLevel::available() {
            let cpu = carrier(2, simd, &shape, [1; 3]);
            for (samples, jitter) in [(1, None), (32, JITTER), (45, JITTER)] {
                let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples, jitter };
                let mut integrals = vec![f32::NAN; pixels.len()];
                cpu.field_project(&rays, &owned.parameters(), &mut integrals).unwrap();
                let mut missed = 0;
                let expected: Vec<f64> = (0..pixels.len())
                    .map(|ray| {
                        let (points, step) = ray_points(&owned.layout, &rays, ray);
                        missed += usize::from(points.is_empty());
                        step * points.iter().map(|&point| reference.value_at(point)).sum::<f64>()
                    })
                    .collect();
                let worst = worst(&integrals, &expected);
                assert!(
                    worst < if shape.cells(shape.levels - 1) > 1000 { 1e-3 } else { 5e-6 },
                    "{shape:?} {worst:.2e}"
                );
                assert!(missed > 20 && missed < pixels.len() / 2, "{missed} of {} rays miss", pixels.len());
                assert!(integrals.iter().zip(&expected).all(|(&x, &y)| (x == 0.0) == (y == 0.0)));
            }
        }
    }
}

#[test]
fn jittered_samples_average_to_the_integral_over_cells_and_rays() {
    // Mean over draws against a fine sampling of the same cells: within five standard errors.
    let grid = VolumeGrid { voxels: [3, 2, 4], ..odd() };
    let owned = Owned::new(&small(), &grid, 7);
    let cpu = carrier(2, SimdLevel::detect(), &small(), [48, 32, 64]);
    let mut fine = vec![0.0; 16 * 16 * 16 * grid.len()];
    let over = VolumeGrid { voxels: [48, 32, 64], voxel_mm: grid.voxel_mm / 16.0, ..grid };
    cpu.field_voxelise(&over, &owned.parameters(), None, &mut fine).unwrap();
    let draws = 400;
    let (mut sum, mut square) = (vec![0.0f64; grid.len()], vec![0.0f64; grid.len()]);
    let mut volume = vec![0.0; grid.len()];
    for iteration in 0..draws {
        let jitter = Some(FieldJitter { seed: 1, iteration });
        cpu.field_voxelise(&grid, &owned.parameters(), jitter, &mut volume).unwrap();
        for (k, &value) in volume.iter().enumerate() {
            sum[k] += f64::from(value);
            square[k] += f64::from(value).powi(2);
        }
    }
    let n = draws as f64;
    for (x, y, z) in (0..3).flat_map(|x| (0..2).flat_map(move |y| (0..4).map(move |z| (x, y, z)))) {
        let k = grid.index(x, y, z);
        let mut mean = 0.0;
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            let start = over.index(16 * x + i, 16 * y + j, 16 * z);
            mean += fine[start..start + 16].iter().map(|&v| f64::from(v)).sum::<f64>() / 4096.0;
        }
        let error = ((square[k] / n - (sum[k] / n).powi(2)) / n).sqrt();
        assert!((sum[k] / n - mean).abs() < 5.0 * error && error > 0.0, "{} {mean} {error}", sum[k] / n);
    }
}
