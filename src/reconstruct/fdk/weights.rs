//! The weights of FDK: cosine, redundancy, angular step and absolute scale, folded into one factor a pixel.
//!
//! For a flat detector in any orientation about the row's direction, the fan-beam formula reads (Kak and Slaney, section 3.4.2,
//! with the detector's own coordinate `u` in mm instead of that of a virtual detector on the axis)
//!
//! ```text
//! f(x) = sum_views db * 1/w^2 * (DSO / D) * integral du' m(b, g') cos(t') p(b, u') h(u(x) - u')
//! ```
//!
//! `w` the depth of the voxel over that of the detector, `D` the distance from source to detector row, `t` the angle between
//! ray and central ray, `h` the ramp in mm (that in pixels over the pitch), `m` the redundancy weight, whose sum over the two
//! measurements of a line is 1, and `db` the share of the turn. Feldkamp, Davis and Kress (1984) carry it over to the rows off
//! the mid-plane by taking `t` in space and `D` for the row.

use std::f64::consts::{PI, TAU};

use crate::geometry::{Coverage, Detector, FanFrame, ScanClass, ViewPose};

/// Redundancy weights of a scan: how much each measurement of a line counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Redundancy {
    class: ScanClass,
    arc_start_rad: f64,
    arc_rad: f64,
    /// Half-fan: fan angle up to which both sides see a line.
    near_rad: f64,
    /// Half-fan: width of the transition next to it.
    transition_rad: f64,
    /// Half-fan: +1 where the detector reaches farther on the positive side.
    side: f64,
}

impl Redundancy {
    /// The weights that a scan of this coverage needs.
    #[must_use]
    pub fn of(coverage: &Coverage) -> Self {
        let (left, right) = (-coverage.fan_min_rad, coverage.fan_max_rad);
        let near_rad = left.min(right);
        Self {
            class: coverage.class,
            arc_start_rad: coverage.arc_start_rad,
            arc_rad: coverage.arc_rad,
            near_rad,
            // A wide overlap need not be one long transition: equal weights in its middle carry less noise.
            transition_rad: near_rad.min(0.3 * left.max(right)),
            side: if right >= left { 1.0 } else { -1.0 },
        }
    }

    /// Weight of the ray with the given gantry angle and fan angle, in [0, 1].
    #[must_use]
    pub fn weight(&self, angle_rad: f64, fan_rad: f64) -> f64 {
        match self.class {
            ScanClass::FullTurn => 0.5,
            ScanClass::DisplacedDetector => {
                let from_axis = self.side * fan_rad;
                let part = (from_axis.abs() - (self.near_rad - self.transition_rad)) / self.transition_rad;
                0.5 + 0.5 * from_axis.signum() * smooth_step(part)
            }
            ScanClass::ShortScan => {
                let own = self.taper(angle_rad);
                let other = self.taper(angle_rad + PI - 2.0 * fan_rad);
                if own + other > 0.0 { own / (own + other) } else { 0.0 }
            }
        }
    }

    /// Confidence in a view of a short scan: rises as sin^2 over what the arc has beyond 180 degrees, falls likewise at its end.
    /// On the central ray the two add up to 1 as Parker's weights do (Parker 1982); dividing by their sum extends that to every
    /// fan angle and to any arc (Noo, Defrise, Clackdoyle and Kudo 2002).
    fn taper(&self, angle_rad: f64) -> f64 {
        let along = (angle_rad - self.arc_start_rad).rem_euclid(TAU);
        let width = self.arc_rad - PI;
        let from_end = along.min(self.arc_rad - along);
        if from_end <= 0.0 || width <= 0.0 {
            return 0.0;
        }
        (0.5 * PI * (from_end / width).min(1.0)).sin().powi(2)
    }
}

/// 0 below 0, 1 above 1, `3 x^2 - 2 x^3` between.
fn smooth_step(x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// Redundancy times angular step for the columns of one view.
///
/// Fan angles are taken on the middle row; tilts within FDK's limits move them by less than the transitions' width.
pub(super) fn fill_columns(
    coverage: &Coverage,
    redundancy: &Redundancy,
    detector: Detector,
    view: usize,
    pose: &ViewPose,
    out: &mut [f32],
) {
    let frame = FanFrame::of(pose);
    let middle = 0.5 * (detector.rows as f64 - 1.0);
    for (u, weight) in out.iter_mut().enumerate() {
        let fan = frame.fan_angle_rad(pose, middle, u as f64);
        *weight = (coverage.angular_weights_rad[view] * redundancy.weight(frame.angle_rad, fan)) as f32;
    }
}

/// `cos(t) * DSO / (D * pitch)` for every pixel (1/mm), `[row v][column u]`.
pub(super) fn fill_image(detector: Detector, pose: &ViewPose, out: &mut [f32]) {
    let frame = FanFrame::of(pose);
    let column = pose.column_step_mm;
    let pitch = column.truncate().length();
    for (v, row) in out.chunks_exact_mut(detector.columns).enumerate() {
        let v = v as f64;
        let scale = frame.source_to_axis_mm / (frame.source_to_row_mm(pose, v) * pitch);
        let first = pose.pixel_mm(v, 0.0) - pose.source_mm;
        let (along_first, along_step) = (first.dot(frame.central) * scale, column.dot(frame.central) * scale);
        // |first + u column|^2 as a polynomial in u, in double precision: no cancellation that float32 would see.
        let (a, b, c) = (first.length_squared(), 2.0 * first.dot(column), column.length_squared());
        for (u, weight) in row.iter_mut().enumerate() {
            let u = u as f64;
            *weight = ((along_first + u * along_step) / (a + u * (b + u * c)).sqrt()) as f32;
        }
    }
}

/// Whether two views see their detector in the same way from their own source, so that they share one image.
pub(super) fn same_image(a: &ViewPose, b: &ViewPose) -> bool {
    let own = |pose: &ViewPose| {
        let frame = FanFrame::of(pose);
        let parts = |v: glam::DVec3| [v.dot(frame.central), v.dot(frame.tangent), v.z];
        let origin = parts(pose.detector_origin_mm - pose.source_mm);
        (frame.source_to_axis_mm, origin, parts(pose.column_step_mm), parts(pose.row_step_mm))
    };
    let (a, b) = (own(a), own(b));
    let scale = a.1.iter().fold(a.0, |m, x| m.max(x.abs()));
    let near = |a: &[f64], b: &[f64], scale: f64| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-7 * scale);
    let pitch = a.2.iter().chain(&a.3).fold(0.0_f64, |m, x| m.max(x.abs()));
    near(&[a.0], &[b.0], scale) && near(&a.1, &b.1, scale) && near(&a.2, &b.2, pitch) && near(&a.3, &b.3, pitch)
}

#[cfg(test)]
mod tests;
