//! What a scan covers: the orbit behind its per-view poses, the kind of redundancy in it, and the region it really measures.
//!
//! [`Coverage::analyse`] is the gate in front of every analytic reconstruction: it either says how the scan can be
//! reconstructed or refuses with the numbers that say why (the refusals stand in `refusals.rs`).
//!
//! Seen from +z, a ray is given by the gantry angle `b` of its source and by its fan angle `g`, positive towards the
//! tangent `(-sin b, cos b, 0)` (the columns' axis of an untilted detector). The same line is measured from the other side by
//! the source at `b + pi - 2 g` with fan angle `-g`; all redundancy weights follow from this one identity.

mod refusals;

use std::f64::consts::{PI, TAU};

use glam::DVec3;
use serde::Serialize;

use super::{GeometryError, ScanGeometry, ViewPose, VolumeGrid};

/// Largest relative deviation of a source's distance from the axis, and of its height over that distance, that still counts
/// as a circular orbit. FDK's error at this limit is measured in `reconstruct::fdk`'s tests.
pub const MAX_ORBIT_DEVIATION: f64 = 0.02;

/// Largest roll of the detector (its rows out of the rotation plane) that FDK is asked to bear: filtering runs along the
/// rows, so roll is an error of the method. 3 degrees; the error at this limit is measured in `reconstruct::fdk`'s tests.
pub const MAX_ROLL_RAD: f64 = 3.0 * PI / 180.0;

/// Largest pitch or yaw of the detector. Both are accounted for in the weights, so the limit (30 degrees) only says that
/// the detector no longer faces the source in any sense.
pub const MAX_PITCH_YAW_RAD: f64 = 30.0 * PI / 180.0;

/// How the scan measures each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanClass {
    /// A full turn: every line twice.
    FullTurn,
    /// Less than a turn, at least 180 degrees plus the fan: lines once or twice (Parker's case).
    ShortScan,
    /// A full turn with the detector shifted sideways (half-fan): lines near the axis twice, the others once.
    DisplacedDetector,
}

/// Where one view's source stands, seen from above.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FanFrame {
    /// Azimuth of the source about z, in (-pi, pi].
    pub angle_rad: f64,
    /// Distance of the source from the rotation axis.
    pub source_to_axis_mm: f64,
    /// Unit vector from the source to the rotation axis, horizontal: the central ray.
    pub central: DVec3,
    /// Unit tangent `(-sin b, cos b, 0)`; fan angles are positive towards it.
    pub tangent: DVec3,
}

impl FanFrame {
    /// The frame of one pose.
    #[must_use]
    pub fn of(pose: &ViewPose) -> Self {
        let angle_rad = pose.source_angle_rad();
        let (sin, cos) = angle_rad.sin_cos();
        Self {
            angle_rad,
            source_to_axis_mm: pose.source_mm.truncate().length(),
            central: DVec3::new(-cos, -sin, 0.0),
            tangent: DVec3::new(-sin, cos, 0.0),
        }
    }

    /// Fan angle of pixel (row `v`, column `u`), in (-pi, pi].
    #[must_use]
    pub fn fan_angle_rad(&self, pose: &ViewPose, v: f64, u: f64) -> f64 {
        let ray = pose.pixel_mm(v, u) - pose.source_mm;
        ray.dot(self.tangent).atan2(ray.dot(self.central))
    }

    /// Distance, seen from above, from the source to the straight line of detector row `v`.
    #[must_use]
    pub fn source_to_row_mm(&self, pose: &ViewPose, v: f64) -> f64 {
        let along = pose.column_step_mm.truncate();
        let to_row = (pose.pixel_mm(v, 0.0) - pose.source_mm).truncate();
        (to_row.perp_dot(along) / along.length()).abs()
    }
}

/// The region in which every line through a point is measured at least once: a cylinder about z whose top and bottom are
/// cones, because the beam is lower on the source's side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FieldOfView {
    /// Radius about the rotation axis.
    pub radius_mm: f64,
    /// Lowest covered height on the axis.
    pub z_min_mm: f64,
    /// Highest covered height on the axis.
    pub z_max_mm: f64,
    /// Height of the source's circle.
    pub source_z_mm: f64,
    /// Radius of the source's circle; at distance `r` from the axis the heights shrink by `1 - r / this` about `source_z_mm`.
    pub source_radius_mm: f64,
}

impl FieldOfView {
    /// Whether every view sees the point (for a half-fan: one of each opposite pair).
    #[must_use]
    pub fn contains(&self, point_mm: DVec3) -> bool {
        let r = point_mm.truncate().length();
        if r > self.radius_mm {
            return false;
        }
        let shrink = 1.0 - r / self.source_radius_mm;
        let z = point_mm.z - self.source_z_mm;
        z >= (self.z_min_mm - self.source_z_mm) * shrink && z <= (self.z_max_mm - self.source_z_mm) * shrink
    }
}

/// What was computed from a scan's poses and a volume grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// Kind of redundancy, which settles the weights.
    pub class: ScanClass,
    /// Mean distance of the source from the rotation axis (DSO).
    pub source_to_isocenter_mm: f64,
    /// Mean distance from the source to the detector along the central ray (DSD).
    pub source_to_detector_mm: f64,
    /// DSD / DSO.
    pub magnification: f64,
    /// Gantry angle of each view, in [0, 2 pi), in the order of acquisition.
    pub angles_rad: Vec<f64>,
    /// View indices by ascending angle, beginning after the largest gap.
    pub order: Vec<usize>,
    /// Whether the gantry turns counter-clockwise seen from +z.
    pub counter_clockwise: bool,
    /// Arc that the views stand for: from half a step before the first to half a step after the last; 2 pi for a full turn.
    pub arc_rad: f64,
    /// Where that arc begins.
    pub arc_start_rad: f64,
    /// Largest step between neighbouring angles around the circle.
    pub largest_gap_rad: f64,
    /// Share of the turn that each view stands for, in the order of acquisition; they add up to `arc_rad`.
    pub angular_weights_rad: Vec<f64>,
    /// Fan angle of the detector's edge on the negative side (negative unless the detector does not reach the axis).
    pub fan_min_rad: f64,
    /// Fan angle of the detector's edge on the positive side.
    pub fan_max_rad: f64,
    /// Half the fan that the grid's circumscribed cylinder needs.
    pub fan_needed_rad: f64,
    /// Largest roll, pitch and yaw of the detector over all views.
    pub tilt_rad: [f64; 3],
    /// The region that the scan really measures.
    pub field_of_view: FieldOfView,
    /// What is not wrong but limits the result (truncation, gaps, suspicious units).
    pub warnings: Vec<String>,
}

impl Coverage {
    /// Works out orbit, redundancy class and field of view.
    ///
    /// # Errors
    /// [`GeometryError::Value`] for broken fields, [`GeometryError::Impossible`] where FDK cannot reconstruct the scan.
    pub fn analyse(geometry: &ScanGeometry, grid: &VolumeGrid) -> Result<Self, GeometryError> {
        geometry.check()?;
        grid.check()?;
        let frames: Vec<FanFrame> = geometry.views.iter().map(FanFrame::of).collect();
        let orbit = refusals::check_orbit(geometry, &frames)?;
        let tilt_rad = refusals::check_tilt(geometry, &frames)?;
        refusals::check_source_outside(geometry, grid, &orbit)?;
        let fan = Fan::of(geometry, &frames, grid, orbit.source_to_isocenter_mm);
        let mut warnings = Vec::new();
        refusals::check_shadow(geometry, grid, &orbit, &fan, &mut warnings)?;
        let turn = Turn::of(&frames);
        let class = refusals::classify(&turn, &fan, &mut warnings)?;
        let full = class != ScanClass::ShortScan;
        let field_of_view = field_of_view(geometry, &frames, &orbit, &fan, class);
        refusals::warn_truncation(grid, &field_of_view, &mut warnings);
        let arc_rad = if full { TAU } else { turn.arc_rad };
        Ok(Self {
            class,
            source_to_isocenter_mm: orbit.source_to_isocenter_mm,
            source_to_detector_mm: orbit.source_to_detector_mm,
            magnification: orbit.source_to_detector_mm / orbit.source_to_isocenter_mm,
            angular_weights_rad: turn.weights(full),
            angles_rad: turn.angles,
            order: turn.order,
            counter_clockwise: turn.counter_clockwise,
            arc_rad,
            arc_start_rad: turn.arc_start_rad,
            largest_gap_rad: turn.largest_gap_rad,
            fan_min_rad: fan.min_rad,
            fan_max_rad: fan.max_rad,
            fan_needed_rad: fan.needed_rad,
            tilt_rad,
            field_of_view,
            warnings,
        })
    }

    /// One line for logs: class, arc, distances, field of view.
    #[must_use]
    pub fn summary(&self) -> String {
        let class = match self.class {
            ScanClass::FullTurn => "full turn",
            ScanClass::ShortScan => "short scan",
            ScanClass::DisplacedDetector => "half-fan (displaced detector), full turn",
        };
        format!(
            "{class}, {} views over {:.1} deg (largest step {:.2} deg), DSO {:.1} mm, DSD {:.1} mm, fan {:.2}..{:.2} deg, \
             field of view radius {:.1} mm, z {:.1}..{:.1} mm",
            self.angles_rad.len(),
            self.arc_rad.to_degrees(),
            self.largest_gap_rad.to_degrees(),
            self.source_to_isocenter_mm,
            self.source_to_detector_mm,
            self.fan_min_rad.to_degrees(),
            self.fan_max_rad.to_degrees(),
            self.field_of_view.radius_mm,
            self.field_of_view.z_min_mm,
            self.field_of_view.z_max_mm,
        )
    }
}

/// Means over the views.
#[derive(Debug, Clone, Copy)]
struct Orbit {
    source_to_isocenter_mm: f64,
    source_to_detector_mm: f64,
    source_z_mm: f64,
}

/// Fan angles of the detector's edges (the narrowest over all views) and of the grid.
#[derive(Debug, Clone, Copy)]
struct Fan {
    min_rad: f64,
    max_rad: f64,
    /// Fan angle of one column near the axis.
    column_rad: f64,
    /// For the cylinder around the grid.
    needed_rad: f64,
    /// For the cylinder inside the grid.
    inscribed_rad: f64,
}

impl Fan {
    fn of(geometry: &ScanGeometry, frames: &[FanFrame], grid: &VolumeGrid, source_to_isocenter_mm: f64) -> Self {
        let (columns, rows) = (geometry.detector.columns as f64, geometry.detector.rows as f64);
        let middle = 0.5 * (rows - 1.0);
        let (mut min_rad, mut max_rad) = (f64::NEG_INFINITY, f64::INFINITY);
        for (pose, frame) in geometry.views.iter().zip(frames) {
            let (a, b) = (frame.fan_angle_rad(pose, middle, -0.5), frame.fan_angle_rad(pose, middle, columns - 0.5));
            min_rad = min_rad.max(a.min(b));
            max_rad = max_rad.min(a.max(b));
        }
        let half = 0.5 * grid.size_mm();
        let centre = grid.centre_mm;
        let around = (half.x + centre.x.abs()).hypot(half.y + centre.y.abs());
        let inside = (half.x - centre.x.abs()).min(half.y - centre.y.abs()).max(0.0);
        let angle = |radius: f64| (radius / source_to_isocenter_mm).clamp(0.0, 1.0).asin();
        Self {
            min_rad,
            max_rad,
            column_rad: (max_rad - min_rad) / columns,
            needed_rad: angle(around),
            inscribed_rad: angle(inside),
        }
    }

    /// Fan on the side where the detector reaches less far.
    fn near_rad(&self) -> f64 {
        self.max_rad.min(-self.min_rad)
    }

    /// Fan on the side where the detector reaches farther.
    fn far_rad(&self) -> f64 {
        self.max_rad.max(-self.min_rad)
    }
}

/// The angles around the circle.
#[derive(Debug, Clone)]
struct Turn {
    angles: Vec<f64>,
    order: Vec<usize>,
    /// Step from `order[k]` to its successor around the circle; the last is the largest gap.
    gaps: Vec<f64>,
    counter_clockwise: bool,
    arc_rad: f64,
    arc_start_rad: f64,
    largest_gap_rad: f64,
    /// The next largest step.
    second_gap_rad: f64,
    /// Median of the steps but the largest.
    typical_gap_rad: f64,
}

impl Turn {
    fn of(frames: &[FanFrame]) -> Self {
        let n = frames.len();
        // rem_euclid may round up to 2 pi itself.
        let angles: Vec<f64> =
            frames.iter().map(|f| f.angle_rad.rem_euclid(TAU)).map(|a| if a < TAU { a } else { 0.0 }).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| angles[a].total_cmp(&angles[b]).then(a.cmp(&b)));
        let step = |order: &[usize], k: usize| {
            let (from, to) = (angles[order[k]], angles[order[(k + 1) % n]]);
            if k + 1 == n { to + TAU - from } else { to - from }
        };
        let mut gaps: Vec<f64> = (0..n).map(|k| step(&order, k)).collect();
        // Of equal gaps (a uniform full turn, up to rounding) the last, so that the order begins where the angles do.
        let widest = gaps.iter().copied().fold(0.0, f64::max);
        let last = gaps.iter().rposition(|&g| g >= widest * (1.0 - 1e-9)).unwrap_or(0);
        order.rotate_left((last + 1) % n);
        gaps.rotate_left((last + 1) % n);
        let largest = gaps[n - 1];
        // Repeated angles (several turns) are no steps.
        let least = 0.05 * (TAU - largest) / n as f64;
        let mut others: Vec<f64> = gaps[..n - 1].iter().copied().filter(|&g| g > least).collect();
        others.sort_by(f64::total_cmp);
        let second = others.last().copied().unwrap_or(largest);
        let typical = others.get(others.len() / 2).copied().unwrap_or(largest);
        let (before, after) = if n > 1 { (gaps[0], gaps[n - 2]) } else { (0.0, 0.0) };
        let arc_rad = (TAU - largest + 0.5 * (before + after)).min(TAU);
        let turning: f64 = frames.windows(2).map(|w| wrap(w[1].angle_rad - w[0].angle_rad)).sum();
        Self {
            arc_start_rad: angles[order[0]] - 0.5 * before,
            angles,
            order,
            gaps,
            counter_clockwise: turning >= 0.0,
            arc_rad,
            largest_gap_rad: largest,
            second_gap_rad: second,
            typical_gap_rad: typical,
        }
    }

    /// Half the steps to both neighbours; at the ends of an open arc the one neighbour counts twice.
    fn weights(&self, closed: bool) -> Vec<f64> {
        let n = self.order.len();
        let mut weights = vec![0.0; n];
        for (k, &view) in self.order.iter().enumerate() {
            let after = self.gaps[k];
            let before = self.gaps[(k + n - 1) % n];
            weights[view] = match (closed || n == 1, k) {
                (true, _) => 0.5 * (before + after),
                (false, 0) => after,
                (false, k) if k + 1 == n => before,
                (false, _) => 0.5 * (before + after),
            };
        }
        weights
    }
}

/// An angle in (-pi, pi].
fn wrap(angle: f64) -> f64 {
    let a = angle.rem_euclid(TAU);
    if a > PI { a - TAU } else { a }
}

/// The covered region from the detector's edges, the tightest over all views.
fn field_of_view(
    geometry: &ScanGeometry,
    frames: &[FanFrame],
    orbit: &Orbit,
    fan: &Fan,
    class: ScanClass,
) -> FieldOfView {
    let reach = if class == ScanClass::DisplacedDetector { fan.far_rad() } else { fan.near_rad() };
    let (columns, rows) = (geometry.detector.columns as f64, geometry.detector.rows as f64);
    let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
    for (pose, frame) in geometry.views.iter().zip(frames) {
        // Heights on the axis of the rays through the detector's upper and lower edges (both ends, for rolled detectors).
        let height = |v: f64, u: f64| {
            let ray = pose.pixel_mm(v, u) - pose.source_mm;
            pose.source_mm.z + ray.z * frame.source_to_axis_mm / ray.dot(frame.central)
        };
        let edge = |v: f64| [height(v, -0.5), height(v, columns - 0.5)];
        let (first, last) = (edge(-0.5), edge(rows - 0.5));
        let (top, bottom) = if first[0] > last[0] { (first, last) } else { (last, first) };
        high = high.min(top[0].min(top[1]));
        low = low.max(bottom[0].max(bottom[1]));
    }
    FieldOfView {
        radius_mm: orbit.source_to_isocenter_mm * reach.clamp(0.0, 0.5 * PI).sin(),
        z_min_mm: low,
        z_max_mm: high,
        source_z_mm: orbit.source_z_mm,
        source_radius_mm: orbit.source_to_isocenter_mm,
    }
}

#[cfg(test)]
mod tests;
