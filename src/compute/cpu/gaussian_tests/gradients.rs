//! Gradients against finite differences of a float64 reference, for every parameter.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::compute::cpu::gaussian_kernel::{Y_CUTOFF, Y_OF_Q};

/// `g2` in float64, by the polynomial that the float32 kernel uses.
fn kernel(q: f64) -> f64 {
    if q >= CUTOFF {
        return 0.0;
    }
    let inside = Y_CUTOFF - q * Y_OF_Q;
    let tail = [9.118_82e-4, 1.628_898_5e-4, -1.107_767_2e-4, 1.662_919_8e-5, -7.721_298e-7];
    (-0.5 * q).exp() - tail.iter().rev().fold(0.0, |sum, c| sum * inside + c)
}

/// Analytic gradients against central differences of `loss(i, values of Gaussian i)`: the largest error, in shares of the largest gradient of
/// the same parameter.
fn compare(owned: &Owned, analytic: &OwnedGradients, tolerance: f64, loss: impl Fn(&One) -> f64) {
    for (p, name) in NAMES.iter().enumerate() {
        let mut pairs = Vec::new();
        for i in 0..owned.len() {
            let values = owned.one(i).values();
            // Relative to what the parameter means: shares of a scale, of the density, of the quaternion.
            let unit = match p {
                0 => values[0].abs(),
                1..=3 => values[4..7].iter().fold(f64::MAX, |a, s| a.min(s.exp())),
                _ => 1.0,
            };
            // Small against the distances between kinks (where a voxel leaves the cut-off); float64 has digits to spare.
            let h = 1e-6 * unit;
            let at = |sign: f64| {
                let mut moved = values;
                moved[p] += sign * h;
                loss(&One::of(&moved))
            };
            pairs.push((f64::from(analytic.0[p][i]), (at(1.0) - at(-1.0)) / (2.0 * h)));
        }
        let scale = pairs.iter().fold(0.0f64, |a, b| a.max(b.1.abs()));
        let worst = pairs.iter().fold(0.0f64, |a, (x, y)| a.max((x - y).abs())) / scale;
        println!("{name:12} largest {scale:.3e} worst error {worst:.1e}");
        assert!(worst < tolerance, "{name}: {worst:.2e} of {scale:.3e}");
    }
}

/// Smooth weights of pixels or voxels: a loss that every parameter moves.
fn weight(k: usize, width: usize) -> f64 {
    let (i, j) = ((k / width) as f64, (k % width) as f64);
    (0.13 * i + 0.3).sin() + (0.19 * j - 0.11 * i).cos() + 0.4
}

fn check_projector(geometry: &ScanGeometry, owned: &Owned, tolerance: f64) {
    let columns = geometry.detector.columns;
    let weights: Vec<f32> = (0..geometry.projection_len()).map(|k| weight(k, columns) as f32).collect();
    let cpu = carrier(2, SimdLevel::detect(), owned.len(), geometry, [1; 3]);
    let mut gradients = OwnedGradients::zeros(owned.len());
    cpu.gaussian_project_backward(geometry, &owned.set(), &weights, &mut gradients.lend()).unwrap();
    let pixels = geometry.detector.pixels();
    compare(owned, &gradients, tolerance, |one| {
        weights
            .iter()
            .enumerate()
            .map(|(k, &w)| {
                let (pose, pixel) = (&geometry.views[k / pixels], k % pixels);
                let at = pose.pixel_mm((pixel / columns) as f64, (pixel % columns) as f64);
                f64::from(w) * one.line_integral(pose, at, f64::from(owned.low_pass_mm), kernel)
            })
            .sum()
    });
    assert!(gradients.0[11].iter().all(|&norm| norm > 0.0));
}

#[test]
fn projector_gradients_are_those_of_the_line_integral() {
    let owned = Owned::new(&scene(8, 25.0, 3.0, 9.0, &mut random(11)), 0.7);
    // float32 sums of some thousand pixels; found: 1e-7.
    check_projector(&awkward(3), &owned, 2e-6);
}

#[test]
fn projector_gradients_of_needles_and_cut_footprints() {
    let mut gaussians = scene(6, 25.0, 3.0, 9.0, &mut random(12));
    for one in &mut gaussians[..3] {
        one.scale = DVec3::new(1.2, 20.0, 1.5);
    }
    // Partly off the detector.
    gaussians[4].position = DVec3::new(0.0, 30.0, 35.0);
    gaussians[5].position = DVec3::new(-20.0, -35.0, -20.0);
    // The same: the sheared coordinates keep needles as exact as the others.
    check_projector(&awkward(3), &Owned::new(&gaussians, 0.0), 2e-6);
}

#[test]
fn voxeliser_gradients_are_those_of_the_density() {
    let grid =
        VolumeGrid { voxels: [21, 18, 35], voxel_mm: DVec3::new(1.0, 1.3, 0.8), centre_mm: DVec3::new(3.0, -2.0, 1.0) };
    let mut gaussians = scene(8, 9.0, 1.5, 4.0, &mut random(13));
    gaussians[0].scale = DVec3::new(0.9, 12.0, 1.1);
    let owned = Owned::new(&gaussians, 0.4);
    let weights: Vec<f32> = (0..grid.len()).map(|k| weight(k, 35) as f32).collect();
    let cpu = carrier(2, SimdLevel::detect(), owned.len(), &awkward(1), grid.voxels);
    let mut gradients = OwnedGradients::zeros(owned.len());
    cpu.gaussian_voxelise_backward(&grid, &owned.set(), &weights, &mut gradients.lend()).unwrap();
    // As for the projector; the largest gradients by position are themselves differences of much larger terms here.
    compare(&owned, &gradients, 1e-5, |one| {
        let mut loss = 0.0;
        for (ix, iy, iz) in (0..21).flat_map(|x| (0..18).flat_map(move |y| (0..35).map(move |z| (x, y, z)))) {
            let value = one.value_at(grid.voxel_centre_mm(ix, iy, iz), f64::from(owned.low_pass_mm));
            loss += value * f64::from(weights[grid.index(ix, iy, iz)]);
        }
        loss
    });
    assert!(gradients.0[11].iter().all(|&norm| norm == 0.0));
}

#[test]
fn gradients_are_added_and_views_add_up() {
    let geometry = awkward(4);
    let owned = Owned::new(&scene(100, 25.0, 1.0, 4.0, &mut random(14)), 0.7);
    let weights: Vec<f32> = (0..geometry.projection_len()).map(|k| weight(k, 61) as f32).collect();
    let cpu = carrier(2, SimdLevel::detect(), owned.len(), &geometry, [1; 3]);
    let (mut whole, mut by_view) = (OwnedGradients::zeros(100), OwnedGradients::zeros(100));
    cpu.gaussian_project_backward(&geometry, &owned.set(), &weights, &mut whole.lend()).unwrap();
    for (pose, weights) in geometry.views.iter().zip(weights.chunks(geometry.detector.pixels())) {
        let one = ScanGeometry { detector: geometry.detector, views: vec![*pose] };
        cpu.gaussian_project_backward(&one, &owned.set(), weights, &mut by_view.lend()).unwrap();
    }
    for (a, b) in whole.0.iter().zip(&by_view.0) {
        let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // Sums of four float32 instead of float64.
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6 * largest.max(1e-9)));
    }
}
