#![allow(clippy::unwrap_used)]

use glam::DVec3;
use proptest::prelude::*;

use super::*;
use crate::geometry::{CircularOrbit, VolumeGrid};

fn coverage(orbit: &CircularOrbit, views: usize, start: f64, arc: f64) -> Coverage {
    let grid = VolumeGrid::over_box([16; 3], DVec3::splat(100.0), DVec3::ZERO);
    Coverage::analyse(&orbit.over_arc(views, start, arc), &grid).unwrap()
}

/// Columns of a detector 256 mm wide at 1500 mm: fan of +-4.88 degrees.
fn orbit(offset_u_mm: f64) -> CircularOrbit {
    CircularOrbit {
        detector: Detector { columns: 128, rows: 64 },
        pitch_u_mm: 2.0,
        pitch_v_mm: 2.0,
        offset_u_mm,
        ..CircularOrbit::default()
    }
}

proptest! {
    /// Both measurements of a line add up to 1 in a short scan, for any arc, start, direction and ray of the object.
    #[test]
    fn short_scan_weights_of_a_line_add_up_to_one(
        start in -7.0..7.0_f64, degrees in 191.0..330.0_f64, turn in prop::bool::ANY, along in 0.0..1.0_f64, fan in -0.99..0.99_f64,
    ) {
        let arc = degrees.to_radians() * if turn { 1.0 } else { -1.0 };
        let coverage = coverage(&orbit(0.0), 150, start, arc);
        prop_assert_eq!(coverage.class, ScanClass::ShortScan);
        let redundancy = Redundancy::of(&coverage);
        let fan = fan * coverage.fan_needed_rad.min(coverage.fan_max_rad);
        let angle = coverage.arc_start_rad + along * coverage.arc_rad;
        let other = angle + PI - 2.0 * fan;
        let sum = redundancy.weight(angle, fan) + redundancy.weight(other, -fan);
        prop_assert!((sum - 1.0).abs() < 1e-9, "{} + {}", redundancy.weight(angle, fan), redundancy.weight(other, -fan));
        // Beyond the arc nothing was measured.
        let beyond = coverage.arc_start_rad + coverage.arc_rad + 0.5 * (TAU - coverage.arc_rad);
        prop_assert_eq!(redundancy.weight(beyond, fan), 0.0);
    }

    /// The same for a half-fan: a line is measured at fan angles g and -g.
    #[test]
    fn half_fan_weights_of_a_line_add_up_to_one(offset in 45.0..125.0_f64, left in prop::bool::ANY, fan in 0.0..1.0_f64) {
        let coverage = coverage(&orbit(if left { -offset } else { offset }), 180, 0.0, TAU);
        prop_assert_eq!(coverage.class, ScanClass::DisplacedDetector);
        let redundancy = Redundancy::of(&coverage);
        let far = coverage.fan_max_rad.max(-coverage.fan_min_rad);
        let near = coverage.fan_max_rad.min(-coverage.fan_min_rad);
        let fan = fan * far;
        let (a, b) = (redundancy.weight(1.0, fan), redundancy.weight(1.0, -fan));
        prop_assert!((a + b - 1.0).abs() < 1e-12);
        if fan > near {
            // Only the far side measures it.
            prop_assert_eq!(a.max(b), 1.0);
            prop_assert_eq!(a > b, !left);
        }
    }
}

#[test]
fn short_scan_weights_are_smooth() {
    // A jump between neighbouring rays would streak. Largest slope: sin^2 over the overlap of 12 degrees rises by 1 within
    // 12 degrees on the central ray, faster where a ray's own overlap is shorter.
    let coverage = coverage(&orbit(0.0), 400, 0.3, 192.0_f64.to_radians());
    let redundancy = Redundancy::of(&coverage);
    let step = coverage.arc_rad / 2000.0;
    for k in -8..=8 {
        let fan = f64::from(k) / 8.0 * 0.9 * coverage.fan_needed_rad;
        let weights: Vec<f64> =
            (0..2000).map(|i| redundancy.weight(coverage.arc_start_rad + (f64::from(i) + 0.5) * step, fan)).collect();
        let steepest = weights.windows(2).map(|w| (w[1] - w[0]).abs()).fold(0.0, f64::max);
        assert!(steepest < 0.04, "fan {fan}: {steepest}");
        assert!(weights[0] < 0.01 && weights[1999] < 0.01);
    }
}

#[test]
fn on_the_central_ray_the_weights_are_parkers() {
    let coverage = coverage(&orbit(0.0), 400, 0.0, 200.0_f64.to_radians());
    let redundancy = Redundancy::of(&coverage);
    let overlap = 20.0_f64.to_radians();
    for part in [0.1, 0.3, 0.5, 0.9] {
        // Parker 1982 with fan angle 0: sin^2(pi/4 * b / (overlap / 2)).
        let parker = (0.5 * PI * part).sin().powi(2);
        let weight = redundancy.weight(coverage.arc_start_rad + part * overlap, 0.0);
        assert!((weight - parker).abs() < 1e-9, "{part}: {weight} {parker}");
    }
    assert!((redundancy.weight(coverage.arc_start_rad + 1.5, 0.0) - 1.0).abs() < 1e-12);
}

#[test]
fn the_image_is_the_cosine_over_the_pitch_at_the_axis() {
    let orbit = orbit(0.0);
    let detector = orbit.detector;
    let mut image = vec![0.0; detector.pixels()];
    fill_image(detector, &orbit.pose(0.7), &mut image);
    for (v, u) in [(0, 0), (31, 64), (63, 127), (5, 100)] {
        let (x, y) = (2.0 * (u as f64 - 63.5), 2.0 * (v as f64 - 31.5));
        // cos / (pitch * DSD / DSO), Kak and Slaney's D / sqrt(D^2 + x^2 + y^2) on a detector at the axis.
        let expected = 1500.0 / (1500.0_f64.powi(2) + x * x + y * y).sqrt() / (2.0 * 1500.0 / 1000.0);
        assert!((f64::from(image[v * 128 + u]) - expected).abs() < 1e-7);
    }
    assert!(same_image(&orbit.pose(0.7), &orbit.pose(-2.9)));
    let mut other = orbit.pose(1.0);
    other.detector_origin_mm.z += 0.01;
    assert!(!same_image(&orbit.pose(0.7), &other));
}
