#![allow(clippy::unwrap_used)]

use super::*;
use crate::geometry::{CircularOrbit, Detector};
use crate::simulate::classic_phantoms::SheppLoganContrast;
use crate::simulate::gaussian_blob::GaussianBlob;

fn tilted() -> Ellipsoid {
    Ellipsoid {
        centre_mm: DVec3::new(12.0, -7.0, 5.0),
        semi_axes_mm: DVec3::new(40.0, 9.0, 21.0),
        rotation: DQuat::from_euler(glam::EulerRot::XYZ, 0.4, -0.8, 1.9),
        mu_per_mm: 0.02,
    }
}

/// Length inside by midpoint counting with bisection of each crossing: knows nothing of the chord formula.
fn chord_by_search(e: &Ellipsoid, from: DVec3, to: DVec3) -> f64 {
    let inside = |t: f64| e.contains(from + t * (to - from));
    let steps = 20_000;
    let mut crossings = vec![];
    for i in 0..steps {
        let (mut low, mut high) = (f64::from(i) / f64::from(steps), f64::from(i + 1) / f64::from(steps));
        if inside(low) != inside(high) {
            let entering = inside(high);
            for _ in 0..60 {
                let middle = 0.5 * (low + high);
                if inside(middle) == entering { high = middle } else { low = middle }
            }
            crossings.push(low);
        }
    }
    let begin = if inside(0.0) { 0.0 } else { crossings.first().copied().unwrap_or(0.0) };
    let end = if inside(1.0) { 1.0 } else { crossings.last().copied().unwrap_or(0.0) };
    (end - begin) * (to - from).length()
}

#[test]
fn chords_agree_with_a_search_for_the_crossings() {
    let e = tilted();
    let source = DVec3::new(700.0, 300.0, -50.0);
    let mut hits = 0;
    for i in 0..12 {
        for j in 0..12 {
            let to = DVec3::new(-400.0, -200.0 + 9.0 * f64::from(i), -40.0 + 11.0 * f64::from(j));
            let (exact, searched) = (e.chord_mm(source, to), chord_by_search(&e, source, to));
            // The search sees no chord shorter than its step of 0.06 mm; its ends are bisected to rounding.
            assert!((exact - searched).abs() < if searched == 0.0 { 0.07 } else { 1e-9 }, "{exact} {searched}");
            hits += usize::from(exact > 1.0);
        }
    }
    assert!(hits > 20, "the fan must cross the ellipsoid: {hits}");
}

#[test]
fn segments_that_start_end_miss_or_touch() {
    let ball = Ellipsoid::aligned(DVec3::new(1.0, 2.0, 3.0), DVec3::splat(10.0), 1.0);
    let at = |x: f64, y: f64| DVec3::new(x, y, 3.0);
    let chord = |a, b| ball.chord_mm(a, b);
    assert!((chord(at(-50.0, 2.0), at(50.0, 2.0)) - 20.0).abs() < 1e-12);
    assert!((chord(at(1.0, 2.0), at(50.0, 2.0)) - 10.0).abs() < 1e-12, "starts at the centre");
    assert!((chord(at(0.0, 2.0), at(3.5, 2.0)) - 3.5).abs() < 1e-12, "lies wholly inside");
    assert_eq!(chord(at(20.0, 2.0), at(50.0, 2.0)), 0.0, "begins behind the ball");
    assert_eq!(chord(at(-50.0, 2.0), at(-20.0, 2.0)), 0.0, "ends before the ball");
    assert_eq!(chord(at(-50.0, 12.0), at(50.0, 12.0)), 0.0, "touches");
    // One part in 1e9 within the surface: the chord is 2 r sqrt(2e-9).
    let grazing = chord(at(-50.0, 12.0 - 1e-8), at(50.0, 12.0 - 1e-8));
    assert!((grazing - 20.0 * (2e-9_f64).sqrt()).abs() < 1e-9, "{grazing}");
    assert_eq!(chord(at(1.0, 2.0), at(1.0, 2.0)), 0.0, "a segment of no length");
}

#[test]
fn images_agree_with_single_rays_also_with_tilts_and_shadows_that_leave_the_detector() {
    let phantom = EllipsoidPhantom::shepp_logan(90.0);
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 650.0,
        detector: Detector { columns: 37, rows: 29 },
        pitch_u_mm: 7.0,
        pitch_v_mm: 8.0,
        offset_u_mm: 60.0,
        offset_v_mm: -25.0,
        roll_rad: 0.2,
        pitch_rad: -0.15,
        yaw_rad: 0.1,
    };
    let scan = orbit.over_arc(7, 0.3, -6.0);
    let images = phantom.line_integrals(&scan);
    let mut largest = 0.0_f64;
    for ((view, v, u), &value) in images.indexed_iter() {
        let pose = &scan.views[view];
        let exact = phantom.line_integral(pose.source_mm, pose.pixel_mm(v as f64, u as f64));
        // float32 rounding of values up to about 60.
        assert!((f64::from(value) - exact).abs() < 1e-5, "{view} {v} {u}: {value} {exact}");
        largest = largest.max(exact);
    }
    assert!(largest > 50.0);
}

#[test]
fn a_source_amid_the_object_sees_all_of_its_front() {
    let phantom = EllipsoidPhantom::sphere(DVec3::ZERO, 100.0, 1.0);
    let orbit =
        CircularOrbit { source_to_isocenter_mm: 50.0, source_to_detector_mm: 300.0, ..CircularOrbit::default() };
    let image = phantom.line_integrals(&orbit.at_angles(&[0.5]));
    let pose = orbit.pose(0.5);
    for ((_, v, u), &value) in image.indexed_iter() {
        let exact = phantom.line_integral(pose.source_mm, pose.pixel_mm(v as f64, u as f64));
        assert!(value > 40.0 && (f64::from(value) - exact).abs() < 1e-4);
    }
}

#[test]
fn voxels_hold_the_analytic_mass_and_the_values() {
    let phantom = EllipsoidPhantom {
        ellipsoids: vec![tilted(), Ellipsoid::aligned(DVec3::splat(4.0), DVec3::splat(11.0), -0.01)],
    };
    let grid = VolumeGrid::over_box([47, 50, 41], DVec3::new(101.0, 99.0, 90.0), DVec3::new(6.0, -3.0, 2.0));
    let volume = phantom.voxelise(&grid, 4);
    let cell = grid.voxel_mm.element_product();
    let mass: f64 = volume.iter().map(|&v| f64::from(v) * cell).sum();
    // Surface voxels are counted at 64 points each; their errors (some 0.02 of a voxel, of random sign, over 1e4 voxels) leave 1e-4.
    assert!((mass / phantom.mass_mm2() - 1.0).abs() < 5e-4, "{mass} {}", phantom.mass_mm2());
    // Brute force without the shortcuts for whole voxels.
    let n = 4;
    let at = |i: usize| (i as f64 + 0.5) / n as f64 - 0.5;
    for (ix, iy, iz) in (0..grid.len()).step_by(97).map(|i| (i / (50 * 41), i / 41 % 50, i % 41)) {
        let mut sum = 0.0;
        for k in 0..n * n * n {
            let shift = DVec3::new(at(k / (n * n)), at(k / n % n), at(k % n));
            sum += phantom.value_at(grid.voxel_centre_mm(ix, iy, iz) + grid.voxel_mm * shift);
        }
        let expected = sum / (n * n * n) as f64;
        assert!((f64::from(volume[[ix, iy, iz]]) - expected).abs() < 1e-8, "{ix} {iy} {iz}");
    }
}

#[test]
fn the_box_about_a_turned_ellipsoid_touches_it() {
    let e = tilted();
    let half = e.half_box_mm();
    // Points of the surface, dense enough to come within 1e-3 of each extreme.
    let mut seen = DVec3::ZERO;
    for i in 0..600 {
        for j in 0..600 {
            let (sp, cp) = (std::f64::consts::PI * f64::from(i) / 600.0).sin_cos();
            let (st, ct) = (std::f64::consts::TAU * f64::from(j) / 600.0).sin_cos();
            seen = seen.max((e.rotation * (e.semi_axes_mm * DVec3::new(sp * ct, sp * st, cp))).abs());
        }
    }
    assert!((half - seen).min_element() > -1e-12 && (half - seen).max_element() < 1e-2, "{half} {seen}");
}

#[test]
fn shepp_logan_has_the_tabulated_values() {
    let head = EllipsoidPhantom::shepp_logan(100.0);
    let at = |x: f64, y: f64, z: f64| head.value_at(DVec3::new(x, y, z));
    // Sums of the table's densities at hand-picked points: skull, brain, the two ventricles, the upper tumour, air.
    for (point, expected) in [
        ([0.0, 90.0, 0.0], 2.0),
        ([0.0, -50.0, 0.0], 1.02),
        ([-22.0, 0.0, -25.0], 1.0),
        ([22.0, 0.0, -25.0], 1.0),
        ([0.0, 45.0, -25.0], 1.04),
        ([0.0, 95.0, 0.0], 0.0),
        ([80.0, 0.0, 0.0], 0.0),
    ] {
        assert!((at(point[0], point[1], point[2]) - expected).abs() < 1e-12, "{point:?}");
    }
    let modified = EllipsoidPhantom::shepp_logan_with(100.0, SheppLoganContrast::Modified);
    assert!((modified.value_at(DVec3::new(0.0, -50.0, 0.0)) - 0.2).abs() < 1e-12);
}

#[test]
fn blob_integrals_agree_with_quadrature() {
    let blob = GaussianBlob {
        centre_mm: DVec3::new(3.0, -8.0, 5.0),
        sigma_mm: DVec3::new(9.0, 14.0, 6.0),
        rotation: DQuat::from_euler(glam::EulerRot::XYZ, 0.4, -0.8, 1.9),
        mu_per_mm: 0.03,
    };
    let (source, pixel) = (DVec3::new(300.0, 120.0, -20.0), DVec3::new(-280.0, -150.0, 30.0));
    let steps = 4000;
    let step = (pixel - source) / f64::from(steps);
    let sum: f64 = (0..steps).map(|i| blob.value_at(source + (f64::from(i) + 0.5) * step)).sum();
    // The trapezoid rule on a Gaussian converges faster than any power: rounding remains.
    let exact = blob.line_integral(source, pixel);
    assert!((sum * step.length() / exact - 1.0).abs() < 1e-10, "{exact}");
}
