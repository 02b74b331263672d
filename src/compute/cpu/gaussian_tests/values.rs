//! Values of projector and voxeliser.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::compute::cpu::gaussian_kernel::MASS;
use crate::compute::{Compute, Workload};

/// Largest error over all pixels of all views, in shares of the Gaussian's largest projection, of each Gaussian alone.
fn worst_against_quadrature(geometry: &ScanGeometry, gaussians: &[One], low_pass: f32) -> f64 {
    let columns = geometry.detector.columns;
    let mut worst = 0.0f64;
    for one in gaussians {
        let owned = Owned::new(&[*one], low_pass);
        let exact = owned.one(0);
        let projections = project(geometry, &owned);
        for (pose, image) in geometry.views.iter().zip(projections.chunks(geometry.detector.pixels())) {
            // The peak is reached where the centre projects, seldom on a pixel.
            let peak = exact.quadrature(pose, exact.position, f64::from(low_pass));
            for (k, &value) in image.iter().enumerate() {
                let pixel = pose.pixel_mm((k / columns) as f64, (k % columns) as f64);
                let within =
                    exact.line_integral(pose, pixel, f64::from(low_pass), |q| if q < CUTOFF { 1.0 } else { 0.0 });
                if within == 0.0 {
                    // Rounding may decide otherwise at the very edge, where the kernel is next to nothing.
                    worst = worst.max(f64::from(value).abs() / peak);
                } else {
                    worst =
                        worst.max((f64::from(value) - exact.quadrature(pose, pixel, f64::from(low_pass))).abs() / peak);
                }
            }
        }
    }
    worst
}

#[test]
fn projection_is_the_line_integral() {
    let geometry = awkward(2);
    let error = worst_against_quadrature(&geometry, &scene(6, 40.0, 2.0, 8.0, &mut random(1)), 0.0);
    println!("round to oblong Gaussians: {error:.2e} of the peak");
    // 4.1e-5: the polynomial in the kernel; the rest float32.
    assert!(error < 4.5e-5, "{error}");
}

#[test]
fn projection_of_needles_and_of_gaussians_at_the_edge_is_the_line_integral() {
    let geometry = awkward(2);
    let mut needles = scene(4, 30.0, 3.0, 3.0, &mut random(2));
    for (one, long) in needles.iter_mut().zip([10.0, 20.0, 40.0, 25.0]) {
        one.scale = DVec3::new(0.6, long, 0.9);
    }
    // One that points along the view's central ray, and one at the detector's corner.
    let pose = &geometry.views[0];
    let axis = (pose.pixel_mm(22.0, 30.0) - pose.source_mm).normalize();
    let turn = DQuat::from_rotation_arc(DVec3::X, axis);
    needles.push(One {
        density: 0.02,
        position: pose.source_mm + 400.0 * axis,
        scale: DVec3::new(30.0, 1.5, 1.2),
        rotation: [turn.w, turn.x, turn.y, turn.z],
    });
    needles.push(One { position: pose.source_mm.lerp(pose.pixel_mm(0.0, 0.0), 0.7), ..needles[0] });
    let error = worst_against_quadrature(&geometry, &needles, 0.0);
    println!("needles: {error:.2e} of the peak");
    // The kernel's polynomial, and float32 positions at slopes of 1/0.6 mm.
    assert!(error < 5e-5, "{error}");
}

#[test]
fn projection_differs_from_endless_gaussians_by_less_than_the_cut_off() {
    let geometry = awkward(1);
    let owned = Owned::new(&scene(1, 20.0, 4.0, 9.0, &mut random(3)), 0.5);
    let (one, pose) = (owned.one(0), &geometry.views[0]);
    let peak = one.line_integral(pose, one.position, 0.5, |q| (-0.5 * q).exp());
    let worst = project(&geometry, &owned).iter().enumerate().fold(0.0f64, |worst, (k, &value)| {
        let pixel = pose.pixel_mm((k / 61) as f64, (k % 61) as f64);
        worst.max((f64::from(value) - one.line_integral(pose, pixel, 0.5, |q| (-0.5 * q).exp())).abs() / peak)
    });
    println!("against endless Gaussians: {worst:.2e} of the peak");
    assert!(worst < 1.1e-3, "{worst}");
}

#[test]
fn voxels_hold_the_density_at_their_centres() {
    let grid =
        VolumeGrid { voxels: [23, 19, 37], voxel_mm: DVec3::new(1.0, 1.3, 0.8), centre_mm: DVec3::new(3.0, -2.0, 1.0) };
    let mut gaussians = scene(20, 12.0, 0.8, 6.0, &mut random(4));
    gaussians[0].scale = DVec3::new(0.5, 25.0, 0.7);
    let owned = Owned::new(&gaussians, 0.3);
    let volume = voxelise(&grid, &owned);
    let mut worst = 0.0f64;
    for (ix, iy, iz) in (0..23).flat_map(|x| (0..19).flat_map(move |y| (0..37).map(move |z| (x, y, z)))) {
        let exact: f64 =
            (0..20).map(|i| owned.one(i).value_at(grid.voxel_centre_mm(ix, iy, iz), f64::from(0.3f32))).sum();
        worst = worst.max((exact - f64::from(volume[grid.index(ix, iy, iz)])).abs());
    }
    // Densities of up to 0.03, some overlapping; the needle's steep sides cost a few float32 digits.
    assert!(worst < 3e-7, "{worst}");
}

#[test]
fn part_of_a_grid_holds_the_same_voxels() {
    let grid = VolumeGrid::over_box([20, 24, 28], DVec3::new(20.0, 24.0, 28.0), DVec3::new(1.0, 2.0, 3.0));
    let owned = Owned::new(&scene(30, 10.0, 0.8, 3.0, &mut random(5)), 0.3);
    let whole = voxelise(&grid, &owned);
    let part = grid.part([3, 5, 7], [8, 9, 10]);
    let of_part = voxelise(&part, &owned);
    for (ix, iy, iz) in (0..8).flat_map(|x| (0..9).flat_map(move |y| (0..10).map(move |z| (x, y, z)))) {
        let (a, b) = (whole[grid.index(ix + 3, iy + 5, iz + 7)], of_part[part.index(ix, iy, iz)]);
        // Offsets are rounded from other anchors.
        assert!((a - b).abs() < 1e-7, "{a} {b}");
    }
}

#[test]
fn projecting_the_voxels_agrees_with_projecting_the_gaussians() {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns: 64, rows: 64 },
        pitch_u_mm: 1.5,
        pitch_v_mm: 1.5,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(3, 0.3, 6.0);
    let owned = Owned::new(&scene(40, 12.0, 2.0, 4.0, &mut random(6)), 0.0);
    let exact = project(&geometry, &owned);
    let error = |n: usize| {
        let grid = VolumeGrid::over_box([n; 3], DVec3::splat(54.0), DVec3::ZERO);
        let volume = voxelise(&grid, &owned);
        let mut cpu = CpuCompute::new(2).unwrap();
        cpu.prepare(&Workload { columns: 64, rows: 64, views_per_call: 3, voxels: [n; 3] }).unwrap();
        let mut by_joseph = vec![0.0f32; geometry.projection_len()];
        cpu.forward_project(&geometry, &grid, &volume, &mut by_joseph).unwrap();
        let difference: f64 = exact.iter().zip(&by_joseph).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let sums =
            (exact.iter().map(|&x| f64::from(x)).sum::<f64>(), by_joseph.iter().map(|&x| f64::from(x)).sum::<f64>());
        ((difference / exact.iter().map(|x| f64::from(x * x)).sum::<f64>()).sqrt(), sums.1 / sums.0 - 1.0)
    };
    let (coarse, fine) = (error(64), error(128));
    println!(
        "projected voxels against Gaussians: RMS {:.2e} (64^3), {:.2e} (128^3); mass {:.1e}, {:.1e}",
        coarse.0, fine.0, coarse.1, fine.1
    );
    // What is left is Joseph's interpolation, which smooths by (voxel / sigma)^2 / 12: it falls four-fold with half the voxel.
    assert!(fine.0 < 0.3 * coarse.0 && fine.0 < 3e-3, "{coarse:?} {fine:?}");
    assert!(fine.1.abs() < 1e-4, "{fine:?}");
}

/// `sum I dOmega r^2` over a view: the mass seen along the cone.
fn seen_mass(geometry: &ScanGeometry, owned: &Owned) -> f64 {
    let (pose, columns) = (&geometry.views[0], geometry.detector.columns);
    let area = pose.column_step_mm.cross(pose.row_step_mm).length();
    let sum: f64 = project(geometry, owned)
        .iter()
        .enumerate()
        .map(|(k, &value)| {
            let ray = pose.pixel_mm((k / columns) as f64, (k % columns) as f64) - pose.source_mm;
            f64::from(value) * area * pose.source_to_plane_mm() / ray.length().powi(3)
        })
        .sum();
    sum * (owned.one(0).position - pose.source_mm).length_squared()
}

#[test]
fn projection_holds_the_mass_along_the_cone() {
    let geometry = awkward(1);
    for one in scene(5, 15.0, 2.0, 4.0, &mut random(7)) {
        let owned = Owned::new(&[one], 0.0);
        let mass = MASS * one.density * std::f64::consts::TAU.powf(1.5) * one.scale.element_product();
        let ratio = seen_mass(&geometry, &owned) / mass;
        // Mass before and behind the centre weighs by 1/r^2: up to 3 (4 mm / 390 mm)^2 = 3e-4 for needles along the ray.
        assert!((ratio - 1.0).abs() < 4e-4, "{ratio}");
    }
}

#[test]
fn gaussians_smaller_than_a_pixel_do_not_vanish_between_pixels() {
    let geometry = awkward(1);
    let pose = &geometry.views[0];
    // Half of the larger pitch, as seen at the isocenter.
    let low_pass = 0.5 * 2.7 * 400.0 / 600.0;
    let mut rng = random(8);
    for scale in [1e-3, 0.1, 0.4] {
        for _ in 0..10 {
            let (v, u) = (rng.random_range(15.0..30.0), rng.random_range(20.0..40.0));
            let position = pose.source_mm.lerp(pose.pixel_mm(v, u), 0.66);
            let one = One {
                density: 0.02 / (scale * scale),
                position,
                scale: DVec3::splat(scale),
                rotation: [1.0, 0.0, 0.0, 0.0],
            };
            let mass = MASS * one.density * (std::f64::consts::TAU.sqrt() * scale).powi(3);
            let ratio = seen_mass(&geometry, &Owned::new(&[one], low_pass as f32)) / mass;
            // 2 exp(-2 pi^2 / 4) = 1.4 % along v and less along u, where the pitch is finer.
            assert!((ratio - 1.0).abs() < 0.02, "scale {scale} at ({v}, {u}): {ratio}");
        }
    }
}
