use std::f64::consts::{PI, TAU};

use glam::DVec3;

use crate::geometry::{CircularOrbit, Detector};
use crate::simulate::acquire::{project, subdivided};
use crate::simulate::ellipsoids::EllipsoidPhantom;
use crate::simulate::object::{Extent, Object};
use crate::simulate::orbit_design::{AngleLaw, OrbitDesign, OrbitRequest, angles, volume_grid};

fn request() -> OrbitRequest {
    OrbitRequest {
        views: 12,
        start_rad: 0.3,
        arc_rad: None,
        clockwise: false,
        angles: AngleLaw::Uniform,
        source_to_isocenter_mm: 1000.0,
        source_to_detector_mm: 1500.0,
        detector: Detector { columns: 40, rows: 30 },
        pitch_mm: None,
        offset_u_mm: None,
        offset_v_mm: 0.0,
        tilt_rad: [0.0; 3],
        half_fan: false,
        short_scan: false,
    }
}

fn extent() -> Extent {
    Extent::of(&EllipsoidPhantom::asymmetric(120.0, 0.02).ellipsoids)
}

#[test]
fn sub_pixels_tile_the_pixel() {
    let pose = CircularOrbit { roll_rad: 0.1, yaw_rad: 0.2, ..CircularOrbit::default() }.pose(0.7);
    for n in [1, 2, 3] {
        let fine = subdivided(&pose, n);
        let mut mean = DVec3::ZERO;
        for v in 0..n {
            for u in 0..n {
                mean += fine.pixel_mm((5 * n + v) as f64, (9 * n + u) as f64) / (n * n) as f64;
            }
        }
        assert!((mean - pose.pixel_mm(5.0, 9.0)).length() < 1e-9);
        // Outer edges coincide.
        let edge = n as f64 - 0.5;
        assert!((fine.pixel_mm(edge, edge) - pose.pixel_mm(0.5, 0.5)).length() < 1e-9);
    }
}

#[test]
fn pixels_average_intensities_and_not_line_integrals() {
    // Coarse pixels across the edge of a dense sphere, where the two averages differ.
    let phantom = EllipsoidPhantom::sphere(DVec3::new(3.0, -5.0, 2.0), 50.0, 0.2);
    let orbit = CircularOrbit {
        detector: Detector { columns: 12, rows: 10 },
        pitch_u_mm: 14.0,
        pitch_v_mm: 15.0,
        ..CircularOrbit::default()
    };
    let scan = orbit.over_arc(70, 0.0, TAU);
    let mut views = 0;
    let images = project(&Object::Additive(phantom.clone()), &scan, 2, |n| views += n).unwrap();
    assert_eq!(views, 70, "every view is reported once");
    let mut differs = 0.0_f64;
    for (view, v, u) in [(0, 4, 2), (0, 5, 5), (3, 2, 5), (69, 7, 6), (66, 5, 9)] {
        let pose = &scan.views[view];
        let rays = [-0.25, 0.25].map(|dv| {
            [-0.25, 0.25].map(|du| phantom.line_integral(pose.source_mm, pose.pixel_mm(v as f64 + dv, u as f64 + du)))
        });
        let rays = rays.as_flattened();
        let intensity = rays.iter().map(|p| (-p).exp()).sum::<f64>() / 4.0;
        let got = f64::from(images[[view, v, u]]);
        // float32 rounding of line integrals up to 20.
        assert!((got + intensity.ln()).abs() < 5e-6, "{got}");
        differs = differs.max((got - rays.iter().sum::<f64>() / 4.0).abs());
    }
    assert!(differs > 0.05, "the test must see the difference: {differs}");
}

#[test]
fn projections_conserve_the_mass_as_the_source_sees_it() {
    // Integral of p over solid angle = integral of mu / r^2 over space, in closed form for a ball at distance d.
    let (radius, mu) = (60.0, 0.02);
    let centre = DVec3::new(30.0, -20.0, 25.0);
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns: 150, rows: 140 },
        pitch_u_mm: 2.5,
        pitch_v_mm: 3.0,
        offset_u_mm: 8.0,
        pitch_rad: 0.15,
        yaw_rad: -0.1,
        roll_rad: 0.3,
        ..CircularOrbit::default()
    };
    let scan = orbit.over_arc(3, 0.5, TAU);
    let images = EllipsoidPhantom::sphere(centre, radius, mu).line_integrals(&scan);
    for (pose, image) in scan.views.iter().zip(images.outer_iter()) {
        let d = (pose.source_mm - centre).length();
        let log = ((d + radius) / (d - radius)).ln();
        let expected = mu * TAU / d * (d * radius - 0.5 * (d * d - radius * radius) * log);
        let area = pose.column_step_mm.cross(pose.row_step_mm).length();
        let mut sum = 0.0;
        for ((v, u), &p) in image.indexed_iter() {
            let ray = pose.pixel_mm(v as f64, u as f64) - pose.source_mm;
            sum += f64::from(p) * area * pose.normal().dot(ray) / ray.length().powi(3);
        }
        // Midpoint rule over some 60 pixels across a shadow with square-root edges.
        assert!((sum / expected - 1.0).abs() < 2e-4, "{sum} {expected}");
    }
}

#[test]
fn the_chosen_detector_sees_the_whole_object() {
    for half_fan in [false, true] {
        let design = OrbitDesign::new(&OrbitRequest { half_fan, views: 24, ..request() }, &extent()).unwrap();
        let phantom = EllipsoidPhantom::asymmetric(120.0, 0.02);
        let images = phantom.line_integrals(&design.geometry());
        let (views, rows, columns) = images.dim();
        let mut right = 0.0_f32;
        for view in 0..views {
            let edge = |v: usize, u: usize| images[[view, v, u]];
            assert!((0..columns).all(|u| edge(0, u) == 0.0 && edge(rows - 1, u) == 0.0));
            assert!((0..rows).all(|v| edge(v, columns - 1) == 0.0));
            right = (0..rows).map(|v| edge(v, 0)).fold(right, f32::max);
        }
        assert_eq!(right > 0.0, half_fan, "only a half-fan cuts the object, and on one side");
        assert_eq!(design.orbit.offset_u_mm > 0.0, half_fan);
    }
}

#[test]
fn angle_laws_are_seeded_and_stay_on_the_arc() {
    let (start, arc) = (0.4, -3.5);
    let uniform = angles(AngleLaw::Uniform, 30, start, arc);
    assert!(uniform.windows(2).all(|w| (w[1] - w[0] - arc / 30.0).abs() < 1e-12) && uniform[0] == start);
    for law in [AngleLaw::Random, AngleLaw::Jittered] {
        let a = angles(law(5), 30, start, arc);
        assert_eq!(a, angles(law(5), 30, start, arc));
        assert_ne!(a, angles(law(6), 30, start, arc));
        assert!(a.iter().all(|&x| x <= start && x > start + arc), "{a:?}");
        assert!(a.windows(2).all(|w| w[1] < w[0]), "in the order of rotation");
    }
    let jittered = angles(AngleLaw::Jittered(5), 30, start, arc);
    assert!(jittered.iter().zip(&uniform).all(|(j, u)| (0.0..=1.0).contains(&((j - u) / (arc / 30.0)))));
}

#[test]
fn a_short_scan_turns_half_a_turn_and_the_fan() {
    let design = OrbitDesign::new(&OrbitRequest { short_scan: true, clockwise: true, ..request() }, &extent()).unwrap();
    let fan = 2.0 * (0.5 * 40.0 * design.orbit.pitch_u_mm / 1500.0).atan();
    assert!(design.arc_rad < -(PI + fan) && design.arc_rad > -(PI + fan) * 1.01);
}

#[test]
fn impossible_requests_name_the_option() {
    let fails = |request: OrbitRequest, words: &str| {
        let message = OrbitDesign::new(&request, &extent()).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    fails(OrbitRequest { views: 0, ..request() }, "--views = 0");
    fails(OrbitRequest { source_to_detector_mm: 900.0, ..request() }, "magnification 0.900 < 1");
    fails(OrbitRequest { source_to_isocenter_mm: 80.0, ..request() }, "turn within the object");
    fails(OrbitRequest { source_to_isocenter_mm: f64::NAN, ..request() }, "--dso");
    fails(OrbitRequest { pitch_mm: Some([0.0, 1.0]), ..request() }, "--pitch");
    fails(OrbitRequest { arc_rad: Some(7.0), ..request() }, "--arc");
    fails(OrbitRequest { arc_rad: Some(-1.0), ..request() }, "--direction");
    fails(OrbitRequest { half_fan: true, short_scan: true, ..request() }, "whole turn");
    fails(OrbitRequest { tilt_rad: [0.0, f64::INFINITY, 0.0], ..request() }, "--pitch-tilt");
    fails(OrbitRequest { offset_v_mm: f64::NAN, ..request() }, "--offset-v");
    fails(OrbitRequest { detector: Detector { columns: 40, rows: 1 }, ..request() }, "rows");
    let grid = |voxels, size| volume_grid(voxels, size, &extent()).unwrap_err().to_string();
    assert!(grid([0, 4, 4], None).contains("--voxels = 0"));
    assert!(grid([4, 4, 4], Some([0.5; 3])).contains("whole size"));
}

#[test]
fn the_chosen_volume_holds_the_object_with_cubic_voxels() {
    let (grid, notes) = volume_grid([50, 64, 40], None, &extent()).unwrap();
    let size = 0.5 * grid.size_mm();
    assert!((size - extent().low_mm.abs().max(extent().high_mm.abs())).min_element() > 0.0);
    assert!(grid.voxel_mm.x == grid.voxel_mm.y && grid.voxel_mm.y == grid.voxel_mm.z);
    assert_eq!(notes.len(), 1);
}
