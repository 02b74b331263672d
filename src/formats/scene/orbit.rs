//! The circular orbit behind a list of poses, which the scene folder's `scanner` and `angle` can express.

use std::f64::consts::TAU;

use glam::DVec3;

use crate::geometry::{CircularOrbit, ScanGeometry};

/// The orbit of the first view's numbers, the angle of every view (rad, in [0, 2 pi)), and whether the orbit reproduces every
/// pose within a nanometre's order (1e-6 mm, far below what moves a ray noticeably).
pub(super) fn fit(geometry: &ScanGeometry) -> (CircularOrbit, Vec<f64>, bool) {
    let angles: Vec<f64> = geometry
        .views
        .iter()
        .map(|view| {
            let angle = view.source_angle_rad().rem_euclid(TAU);
            // rem_euclid of a tiny negative angle rounds up to the full turn.
            if angle >= TAU { 0.0 } else { angle }
        })
        .collect();
    let mut orbit = CircularOrbit { detector: geometry.detector, ..CircularOrbit::default() };
    let (Some(first), Some(&angle)) = (geometry.views.first(), angles.first()) else {
        return (orbit, angles, true);
    };
    let (sin, cos) = angle.sin_cos();
    let (radial, u, v) = (DVec3::new(cos, sin, 0.0), DVec3::new(-sin, cos, 0.0), DVec3::new(0.0, 0.0, -1.0));
    let half = |count: usize| 0.5 * (count as f64 - 1.0);
    let centre = first.pixel_mm(half(geometry.detector.rows), half(geometry.detector.columns));
    orbit.source_to_isocenter_mm = first.source_mm.dot(radial);
    orbit.source_to_detector_mm = orbit.source_to_isocenter_mm - centre.dot(radial);
    orbit.pitch_u_mm = first.column_step_mm.length();
    orbit.pitch_v_mm = first.row_step_mm.length();
    orbit.offset_u_mm = centre.dot(u);
    orbit.offset_v_mm = centre.dot(v);
    let near = |a: DVec3, b: DVec3, tolerance_mm: f64| (a - b).abs().max_element() <= tolerance_mm;
    let last = geometry.detector.columns.max(geometry.detector.rows) as f64;
    let exact = geometry.views.iter().zip(&angles).all(|(view, &angle)| {
        let pose = orbit.pose(angle);
        near(view.source_mm, pose.source_mm, 1e-6)
            && near(view.detector_origin_mm, pose.detector_origin_mm, 1e-6)
            && near(view.column_step_mm, pose.column_step_mm, 1e-6 / last)
            && near(view.row_step_mm, pose.row_step_mm, 1e-6 / last)
    });
    (orbit, angles, exact)
}
