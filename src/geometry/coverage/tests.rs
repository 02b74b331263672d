#![allow(clippy::unwrap_used)]

use super::*;
use crate::geometry::{CircularOrbit, Detector};

fn orbit() -> CircularOrbit {
    CircularOrbit {
        detector: Detector { columns: 128, rows: 96 },
        pitch_u_mm: 2.0,
        pitch_v_mm: 2.0,
        ..CircularOrbit::default()
    }
}

fn grid(size_mm: f64) -> VolumeGrid {
    VolumeGrid::over_box([32; 3], DVec3::splat(size_mm), DVec3::ZERO)
}

fn analyse(orbit: &CircularOrbit, views: usize, arc: f64, size_mm: f64) -> Result<Coverage, GeometryError> {
    Coverage::analyse(&orbit.over_arc(views, 0.4, arc), &grid(size_mm))
}

/// The refusal's words.
fn refusal(orbit: &CircularOrbit, views: usize, arc: f64, size_mm: f64) -> String {
    match analyse(orbit, views, arc, size_mm) {
        Err(error @ GeometryError::Impossible { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "\"{part}\" is missing in: {message}");
    }
}

#[test]
fn a_full_turn_is_told_with_its_numbers() {
    for arc in [TAU, -TAU] {
        let coverage = analyse(&orbit(), 90, arc, 110.0).unwrap();
        assert_eq!(coverage.class, ScanClass::FullTurn);
        assert_eq!(coverage.counter_clockwise, arc > 0.0);
        assert!((coverage.source_to_isocenter_mm - 1000.0).abs() < 1e-9);
        assert!((coverage.source_to_detector_mm - 1500.0).abs() < 1e-9);
        assert!((coverage.magnification - 1.5).abs() < 1e-12);
        assert!((coverage.arc_rad - TAU).abs() < 1e-12);
        // 128 columns of 2 mm: the edges lie 128 mm off the centre.
        assert!((coverage.fan_max_rad - (128.0_f64 / 1500.0).atan()).abs() < 1e-12);
        assert!((coverage.fan_min_rad + coverage.fan_max_rad).abs() < 1e-12);
        let radius = 1000.0 * (128.0_f64 / 1500.0).atan().sin();
        assert!((coverage.field_of_view.radius_mm - radius).abs() < 1e-9);
        assert!((coverage.field_of_view.z_max_mm - 64.0).abs() < 1e-9);
        let sum: f64 = coverage.angular_weights_rad.iter().sum();
        assert!((sum - TAU).abs() < 1e-9 && coverage.warnings.is_empty(), "{:?}", coverage.warnings);
    }
}

#[test]
fn angular_weights_are_half_the_steps_to_both_neighbours_in_any_order() {
    // Steps 1.5, 0.5, 0.7, 1.3, 2.283: closed, as the largest is less than 2.5 typical ones.
    let angles = [2.0, 0.0, 1.5, 4.0, 2.7];
    let coverage = Coverage::analyse(&orbit().at_angles(&angles), &grid(100.0)).unwrap();
    assert_eq!(coverage.class, ScanClass::FullTurn);
    assert_eq!(coverage.order, [1, 2, 0, 4, 3]);
    let last = TAU - 4.0;
    let expected = [0.5 * (0.5 + 0.7), 0.5 * (1.5 + last), 0.5 * (1.5 + 0.5), 0.5 * (1.3 + last), 0.5 * (0.7 + 1.3)];
    for (weight, expected) in coverage.angular_weights_rad.iter().zip(expected) {
        assert!((weight - expected).abs() < 1e-12, "{:?}", coverage.angular_weights_rad);
    }
}

#[test]
fn two_turns_weigh_half_each() {
    let angles: Vec<f64> = (0..80).map(|i| TAU * i as f64 / 40.0).collect();
    let coverage = Coverage::analyse(&orbit().at_angles(&angles), &grid(100.0)).unwrap();
    assert_eq!(coverage.class, ScanClass::FullTurn);
    let sum: f64 = coverage.angular_weights_rad.iter().sum();
    assert!((sum - TAU).abs() < 1e-9);
    assert!((coverage.angular_weights_rad[3] + coverage.angular_weights_rad[43] - TAU / 40.0).abs() < 1e-9);
}

#[test]
fn a_short_scan_is_told_and_its_arc_counts_half_a_step_at_both_ends() {
    let coverage = analyse(&orbit(), 100, 200.0 * PI / 180.0, 110.0).unwrap();
    assert_eq!(coverage.class, ScanClass::ShortScan);
    assert!((coverage.arc_rad - 200.0 * PI / 180.0).abs() < 1e-9);
    let sum: f64 = coverage.angular_weights_rad.iter().sum();
    assert!((sum - coverage.arc_rad).abs() < 1e-9);
}

#[test]
fn irregular_angles_make_a_full_turn_and_open_arcs_a_short_scan() {
    // Golden-ratio angles thinned by squaring: gaps from 0.5 to 30 degrees.
    let irregular: Vec<f64> = (0..40).map(|i| TAU * (f64::from(i) * 0.618_034).fract().powf(1.3)).collect();
    let coverage = Coverage::analyse(&orbit().at_angles(&irregular), &grid(100.0)).unwrap();
    assert_eq!(coverage.class, ScanClass::FullTurn, "{}", coverage.summary());
    // The same within 250 degrees.
    let open: Vec<f64> = irregular.iter().map(|a| a * 250.0 / 360.0).collect();
    assert_eq!(Coverage::analyse(&orbit().at_angles(&open), &grid(100.0)).unwrap().class, ScanClass::ShortScan);
    // Two neighbouring views lost of 60.
    let mut geometry = orbit().over_arc(60, 0.0, TAU);
    geometry.views.drain(20..22);
    assert_eq!(Coverage::analyse(&geometry, &grid(100.0)).unwrap().class, ScanClass::FullTurn);
    // 350 degrees in steps of one.
    assert_eq!(analyse(&orbit(), 350, 350.0 * PI / 180.0, 100.0).unwrap().class, ScanClass::ShortScan);
}

#[test]
fn too_short_an_arc_is_refused() {
    // Fan needed: the cylinder around the volume, radius 77.8 mm, is 4.46 deg.
    let message = refusal(&orbit(), 100, PI, 110.0);
    says(&message, &["arc of 180.00 deg", "180 + 2 x 4.46 = 188.92 deg", "longer arc"]);
    // Angles in degrees / 57.3 once too often.
    says(&refusal(&orbit(), 100, TAU / 57.3, 110.0), &["arc of 6.28 deg", "degrees read as rad"]);
    says(&refusal(&orbit(), 1, TAU, 110.0), &["arc of 0.00 deg"]);
}

#[test]
fn half_fans_are_told_and_need_a_full_turn() {
    let half = CircularOrbit { offset_u_mm: 60.0, detector: Detector { columns: 80, rows: 96 }, ..orbit() };
    for sign in [1.0, -1.0] {
        let half = CircularOrbit { offset_u_mm: sign * 60.0, ..half };
        let coverage = analyse(&half, 90, TAU, 110.0).unwrap();
        assert_eq!(coverage.class, ScanClass::DisplacedDetector);
        // The far edge: 60 + 80 mm.
        let radius = 1000.0 * (140.0_f64 / 1500.0).atan().sin();
        assert!((coverage.field_of_view.radius_mm - radius).abs() < 1e-9, "{}", coverage.summary());
    }
    let message = refusal(&half, 90, 300.0 * PI / 180.0, 110.0);
    says(&message, &["half-fan on less than 360 degrees", "0.76 deg", "5.33 deg", "300.0 deg", "full turn"]);
    let beyond = CircularOrbit { offset_u_mm: 85.0, ..half };
    says(&refusal(&beyond, 90, TAU, 110.0), &["never sees the rotation axis", "0.19 to 6.28 deg", "offset"]);
    // A quarter of a pixel is no half-fan.
    let quarter = CircularOrbit { offset_u_mm: 0.5, ..orbit() };
    assert_eq!(analyse(&quarter, 90, TAU, 150.0).unwrap().class, ScanClass::FullTurn);
}

#[test]
fn a_detector_beside_the_volume_is_refused() {
    let up = CircularOrbit { offset_v_mm: 400.0, ..orbit() };
    says(&refusal(&up, 90, TAU, 110.0), &["misses the volume", "view 0", "rows -", "rows 0 to 95", "offDetector"]);
    let aside = CircularOrbit { offset_u_mm: -900.0, ..orbit() };
    says(&refusal(&aside, 90, TAU, 110.0), &["misses the volume", "columns"]);
}

#[test]
fn magnification_below_one_and_a_detector_before_the_axis_are_refused() {
    let exchanged = CircularOrbit { source_to_isocenter_mm: 1500.0, source_to_detector_mm: 1000.0, ..orbit() };
    says(
        &refusal(&exchanged, 90, TAU, 110.0),
        &["magnification 0.6667 < 1", "DSD", "1000.00 mm", "1500.00 mm", "exchanged"],
    );
    let behind = CircularOrbit { source_to_detector_mm: -500.0, ..orbit() };
    says(&refusal(&behind, 90, TAU, 110.0), &["never meets the detector", "sign"]);
    let on_axis = CircularOrbit { source_to_isocenter_mm: 0.0, ..orbit() };
    says(&refusal(&on_axis, 90, TAU, 110.0), &["on the rotation axis", "DSO"]);
}

#[test]
fn a_source_within_the_volume_is_refused() {
    let near = CircularOrbit { source_to_isocenter_mm: 100.0, ..orbit() };
    says(
        &refusal(&near, 90, TAU, 256.0),
        &["source of view 0", "inside the volume of 256.0 x 256.0 x 256.0 mm", "voxel counts"],
    );
    // Four views that all stand beside the box.
    says(&refusal(&near, 4, TAU, 180.0), &["corners reach 127.3 mm", "turns at 100.0 mm"]);
}

#[test]
fn pixels_mistaken_for_mm_are_refused_with_the_sizes_computed() {
    // Pitches of 2 mm given as 0.002 (m), and a volume given in m.
    let metres = CircularOrbit { pitch_u_mm: 0.002, pitch_v_mm: 0.002, ..orbit() };
    says(&refusal(&metres, 90, TAU, 110.0), &["shadow is 165.0 mm wide", "detector 0.3 mm", "in mm?"]);
    says(&refusal(&orbit(), 90, TAU, 0.110), &["shadow is 0.2 mm wide", "detector 256.0 mm", "in mm?"]);
    // A pitch of exactly one that truncates the volume is only suspicious.
    let ones = CircularOrbit { pitch_u_mm: 1.0, pitch_v_mm: 1.0, ..orbit() };
    let coverage = analyse(&ones, 90, TAU, 110.0).unwrap();
    says(&coverage.warnings.join("\n"), &["165.0 mm wide", "128.0 mm", "exactly 1", "pixels counted", "truncation"]);
}

#[test]
fn truncation_is_a_warning() {
    let coverage = analyse(&orbit(), 90, TAU, 200.0).unwrap();
    let warnings = coverage.warnings.join("\n");
    says(&warnings, &["radius of 85.0 mm", "half-width is 100.0 mm", "z from -64.0 to 64.0 mm", "-100.0 to 100.0 mm"]);
}

#[test]
fn orbits_that_are_no_circle_are_refused() {
    let mut geometry = orbit().over_arc(90, 0.0, TAU);
    geometry.views[7].source_mm *= 1.05;
    let message = Coverage::analyse(&geometry, &grid(110.0)).unwrap_err().to_string();
    says(&message, &["view 7", "1050.00 mm", "not a circular orbit", "iterative"]);
    let mut helix = orbit().over_arc(90, 0.0, TAU);
    for (i, view) in helix.views.iter_mut().enumerate() {
        let lift = DVec3::new(0.0, 0.0, i as f64 - 45.0);
        view.source_mm += lift;
        view.detector_origin_mm += lift;
    }
    says(&Coverage::analyse(&helix, &grid(110.0)).unwrap_err().to_string(), &["not a circular orbit", "view 0"]);
}

#[test]
fn tilts_beyond_the_limits_are_refused() {
    let deg = PI / 180.0;
    let rolled = CircularOrbit { roll_rad: 3.5 * deg, ..orbit() };
    says(&refusal(&rolled, 90, TAU, 110.0), &["view 0", "roll is 3.50 deg", "limit of 3 deg"]);
    let pitched = CircularOrbit { pitch_rad: 31.0 * deg, ..orbit() };
    says(&refusal(&pitched, 90, TAU, 110.0), &["pitch is 31.00 deg"]);
    let turned = CircularOrbit { yaw_rad: -40.0 * deg, ..orbit() };
    says(&refusal(&turned, 90, TAU, 110.0), &["yaw is 40.00 deg"]);
    let slight = CircularOrbit { roll_rad: 2.0 * deg, yaw_rad: 10.0 * deg, ..orbit() };
    let tilt = analyse(&slight, 90, TAU, 110.0).unwrap().tilt_rad;
    assert!((tilt[0] - 2.0 * deg).abs() < 2e-3 && (tilt[2] - 10.0 * deg).abs() < 1e-6, "{tilt:?}");
}

#[test]
fn broken_numbers_are_refused_by_field() {
    let mut geometry = orbit().over_arc(9, 0.0, TAU);
    geometry.views[2].source_mm.x = f64::NAN;
    let error = Coverage::analyse(&geometry, &grid(110.0)).unwrap_err();
    assert!(error.to_string().contains("views[2].source_mm"), "{error}");
    let empty = ScanGeometry { detector: orbit().detector, views: Vec::new() };
    assert!(Coverage::analyse(&empty, &grid(110.0)).is_err());
    assert!(Coverage::analyse(&orbit().over_arc(9, 0.0, TAU), &grid(f64::INFINITY)).is_err());
}

/// The field of view against its definition: a point is covered if every view's detector sees it (half-fan: it or, seen from
/// the other side, its mirror image).
#[test]
fn the_field_of_view_holds_what_every_view_sees() {
    let tall = CircularOrbit { offset_v_mm: 9.0, ..orbit() };
    let geometry = tall.over_arc(60, 0.0, TAU);
    let view = Coverage::analyse(&geometry, &grid(110.0)).unwrap().field_of_view;
    let (columns, rows) = (128.0, 96.0);
    let (mut inside, mut agree, mut all) = (0, 0, 0);
    for i in 0..4000 {
        // Low-discrepancy points in a box around the field of view.
        let at = |k: f64| ((i as f64 * k).fract() - 0.5) * 260.0;
        let point = DVec3::new(at(0.754_877_666), at(0.569_840_296), at(0.430_159_709));
        let seen = geometry.views.iter().all(|pose| {
            let (u, v, _) = pose.project(point).unwrap();
            u > -0.5 && u < columns - 0.5 && v > -0.5 && v < rows - 0.5
        });
        all += 1;
        inside += usize::from(seen);
        agree += usize::from(seen == view.contains(point));
    }
    // 60 views leave a polygon around the circle, 0.14 % wider: few points lie between.
    assert!(inside > 400 && all - agree <= 12, "{inside} inside, {} of {all} differ", all - agree);
}
