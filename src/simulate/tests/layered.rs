use glam::{DQuat, DVec3};

use crate::geometry::{CircularOrbit, Detector, VolumeGrid};
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};
use crate::simulate::layered::LayeredPhantom;

/// Overlaps of every kind: nested, crossing, apart, hidden below.
fn heap() -> LayeredPhantom {
    let e = |centre: [f64; 3], semi: [f64; 3], turn: f64, mu: f64| Ellipsoid {
        centre_mm: DVec3::from_array(centre),
        semi_axes_mm: DVec3::from_array(semi),
        rotation: DQuat::from_euler(glam::EulerRot::XYZ, turn, -0.5 * turn, 2.0 * turn),
        mu_per_mm: mu,
    };
    LayeredPhantom {
        layers: vec![
            e([0.0, 0.0, 0.0], [50.0, 40.0, 45.0], 0.0, 0.02),
            e([10.0, 0.0, 5.0], [30.0, 12.0, 20.0], 0.7, 0.003),
            e([-5.0, 8.0, 0.0], [25.0, 25.0, 9.0], -0.4, 0.04),
            e([12.0, 2.0, 4.0], [5.0, 6.0, 7.0], 0.0, 0.0),
            e([44.0, 0.0, 0.0], [12.0, 12.0, 12.0], 0.0, 0.05),
            e([-5.0, 8.0, 0.0], [40.0, 3.0, 3.0], 1.1, 0.01),
        ],
    }
}

fn orbit() -> CircularOrbit {
    CircularOrbit {
        source_to_isocenter_mm: 300.0,
        source_to_detector_mm: 500.0,
        detector: Detector { columns: 45, rows: 31 },
        pitch_u_mm: 4.0,
        pitch_v_mm: 5.0,
        offset_u_mm: 7.0,
        yaw_rad: 0.1,
        ..CircularOrbit::default()
    }
}

#[test]
fn line_integrals_agree_with_quadrature() {
    let phantom = heap();
    let pose = orbit().pose(0.4);
    for (v, u) in [(15.0, 22.0), (15.2, 10.0), (12.0, 30.5), (18.0, 25.0), (16.0, 6.0), (0.0, 0.0)] {
        let (source, pixel) = (pose.source_mm, pose.pixel_mm(v, u));
        let steps = 200_000;
        let step = (pixel - source) / f64::from(steps);
        let sum: f64 = (0..steps).map(|i| phantom.value_at(source + (f64::from(i) + 0.5) * step)).sum();
        let exact = phantom.line_integral(source, pixel);
        // Each of at most 12 jumps (up to 0.05 /mm) is misplaced by at most half a step of 2.5e-3 mm.
        assert!((sum * step.length() - exact).abs() < 12.0 * 0.05 * 1.3e-3, "{v} {u}: {exact}");
    }
}

#[test]
fn images_agree_with_single_rays() {
    let phantom = heap();
    let scan = orbit().over_arc(5, 0.3, 6.0);
    let images = phantom.line_integrals(&scan);
    for ((view, v, u), &value) in images.indexed_iter() {
        let pose = &scan.views[view];
        let exact = phantom.line_integral(pose.source_mm, pose.pixel_mm(v as f64, u as f64));
        // float32 rounding of values up to 3.
        assert!((f64::from(value) - exact).abs() < 1e-6, "{view} {v} {u}: {value} {exact}");
    }
    assert!(images.iter().any(|&p| p > 2.0));
}

#[test]
fn a_nested_layer_is_the_same_as_an_added_difference() {
    let outer = Ellipsoid::aligned(DVec3::ZERO, DVec3::new(50.0, 40.0, 45.0), 0.02);
    let inner =
        Ellipsoid { mu_per_mm: 0.005, ..Ellipsoid::aligned(DVec3::new(8.0, 3.0, -4.0), DVec3::splat(12.0), 0.0) };
    let layered = LayeredPhantom { layers: vec![outer, inner] };
    let added = EllipsoidPhantom { ellipsoids: vec![outer, Ellipsoid { mu_per_mm: 0.005 - 0.02, ..inner }] };
    let scan = orbit().over_arc(3, 0.0, 6.0);
    let (a, b) = (layered.line_integrals(&scan), added.line_integrals(&scan));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6));
    let grid = VolumeGrid::over_box([23, 20, 19], DVec3::splat(110.0), DVec3::ZERO);
    let (a, b) = (layered.voxelise(&grid, 3), added.voxelise(&grid, 3));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-7));
}

#[test]
fn voxels_are_means_of_what_is_on_top() {
    let phantom = heap();
    let grid = VolumeGrid::over_box([25, 23, 21], DVec3::new(120.0, 92.0, 100.0), DVec3::new(2.0, 1.0, -1.0));
    let n = 3;
    let volume = phantom.voxelise(&grid, n);
    let at = |i: usize| (i as f64 + 0.5) / n as f64 - 0.5;
    for ((ix, iy, iz), &value) in volume.indexed_iter() {
        let centre = grid.voxel_centre_mm(ix, iy, iz);
        let mut sum = 0.0;
        for k in 0..n * n * n {
            sum += phantom.value_at(centre + grid.voxel_mm * DVec3::new(at(k / (n * n)), at(k / n % n), at(k % n)));
        }
        assert!((f64::from(value) - sum / 27.0).abs() < 1e-8, "{ix} {iy} {iz}");
    }
}
