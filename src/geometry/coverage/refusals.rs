//! The refusals: every geometry that FDK would reconstruct wrongly, with what was computed from the numbers given and what
//! to check. Each is tested by its message.

use std::f64::consts::{PI, TAU};

use super::{Fan, FanFrame, FieldOfView, MAX_ORBIT_DEVIATION, MAX_PITCH_YAW_RAD, MAX_ROLL_RAD, Orbit, ScanClass, Turn};
use crate::geometry::sight::Shadow;
use crate::geometry::{GeometryError, ScanGeometry, VolumeGrid};

/// The turn counts as closed while the largest step stays within this many typical steps: two neighbouring views may miss ...
const CLOSED_TURN_STEPS: f64 = 3.2;
/// ... or within this many times the next largest, as irregular angles (drawn at random, say) have several large steps: each
/// view then stands for half the steps around it, which reconstructs such scans better by 0.5 to 2.7 dB than taking the largest step
/// for the open end of a short scan (50 and 100 views of a chest).
const CLOSED_TURN_NEXT: f64 = 2.5;
/// A half-fan scan has no second measurement to fall back on, but bears irregular angles up to this many typical steps ...
const HALF_FAN_STEPS: f64 = 6.0;
/// ... and this wide.
const HALF_FAN_GAP_RAD: f64 = 45.0 * PI / 180.0;
/// A detector narrower than this share of the volume's shadow sees too little for any method here: the units are wrong.
const SMALLEST_SHADOW_SHARE: f64 = 0.25;
/// A volume whose shadow is less than this share of the detector was given in other units.
const SMALLEST_VOLUME_SHARE: f64 = 0.05;

fn impossible<T>(reason: String, advice: impl Into<String>) -> Result<T, GeometryError> {
    Err(GeometryError::Impossible { reason, advice: advice.into() })
}

/// The sources must lie on one circle about z and the detector beyond the axis.
pub(super) fn check_orbit(geometry: &ScanGeometry, frames: &[FanFrame]) -> Result<Orbit, GeometryError> {
    let n = frames.len() as f64;
    let dso = frames.iter().map(|f| f.source_to_axis_mm).sum::<f64>() / n;
    let source_z = geometry.views.iter().map(|p| p.source_mm.z).sum::<f64>() / n;
    if dso < 1e-6 {
        return impossible(
            format!("the source stands on the rotation axis (source-to-isocenter distance {dso} mm)"),
            "check DSO (source-to-isocenter distance, in mm)",
        );
    }
    for (view, (frame, pose)) in frames.iter().zip(&geometry.views).enumerate() {
        let radial = (frame.source_to_axis_mm - dso).abs();
        let axial = (pose.source_mm.z - source_z).abs();
        if radial.max(axial) > MAX_ORBIT_DEVIATION * dso {
            return impossible(
                format!(
                    "view {view} has its source {:.2} mm from the rotation axis at z = {:.2} mm, the scan's mean is \
                     {dso:.2} mm at z = {source_z:.2} mm: not a circular orbit (limit {:.0} % of the distance)",
                    frame.source_to_axis_mm,
                    pose.source_mm.z,
                    100.0 * MAX_ORBIT_DEVIATION
                ),
                "FDK needs a circle about z; use an iterative method, or check the unit of the source positions",
            );
        }
    }
    let mut dsd_sum = 0.0;
    for (view, (frame, pose)) in frames.iter().zip(&geometry.views).enumerate() {
        // Where the central ray meets the detector's plane.
        let normal = pose.normal();
        let dsd = pose.source_to_plane_mm() / normal.dot(frame.central);
        if dsd.is_nan() || dsd <= 0.0 {
            return impossible(
                format!("in view {view} the ray from the source to the axis never meets the detector's plane"),
                "check the sign of the detector's position and its axes: it must stand beyond the isocenter",
            );
        }
        let magnification = dsd / frame.source_to_axis_mm;
        if magnification < 1.0 {
            return impossible(
                format!(
                    "magnification {magnification:.4} < 1 in view {view}: the source-to-detector distance (DSD) is {dsd:.2} mm, \
                     shorter than the source-to-isocenter distance (DSO) of {:.2} mm",
                    frame.source_to_axis_mm
                ),
                "check whether DSO and DSD are exchanged, or whether DSD was given from the isocenter instead of the source",
            );
        }
        dsd_sum += dsd;
    }
    Ok(Orbit { source_to_isocenter_mm: dso, source_to_detector_mm: dsd_sum / n, source_z_mm: source_z })
}

/// Roll, pitch, yaw: the largest over all views, within FDK's limits.
pub(super) fn check_tilt(geometry: &ScanGeometry, frames: &[FanFrame]) -> Result<[f64; 3], GeometryError> {
    let mut largest = [0.0_f64; 3];
    for (view, (pose, frame)) in geometry.views.iter().zip(frames).enumerate() {
        let column = pose.column_step_mm.normalize();
        let normal = pose.normal();
        let roll = column.z.clamp(-1.0, 1.0).asin().abs();
        let pitch = normal.z.clamp(-1.0, 1.0).asin().abs();
        let yaw = normal.dot(frame.tangent).atan2(normal.dot(frame.central)).abs();
        for (name, angle, limit) in
            [("roll", roll, MAX_ROLL_RAD), ("pitch", pitch, MAX_PITCH_YAW_RAD), ("yaw", yaw, MAX_PITCH_YAW_RAD)]
        {
            if angle > limit {
                return impossible(
                    format!(
                        "in view {view} the detector's {name} is {:.2} deg, beyond FDK's limit of {:.0} deg",
                        angle.to_degrees(),
                        limit.to_degrees()
                    ),
                    "check the detector's axes (columns run around the axis, rows along it), rebin the projections, or use \
                     an iterative method",
                );
            }
        }
        let lean = column.dot(pose.row_step_mm.normalize()).abs();
        if lean > MAX_ROLL_RAD.sin() {
            return impossible(
                format!("in view {view} columns and rows of the detector are not orthogonal (cosine {lean:.3})"),
                "check column_step and row_step",
            );
        }
        for (slot, angle) in largest.iter_mut().zip([roll, pitch, yaw]) {
            *slot = slot.max(angle);
        }
    }
    Ok(largest)
}

/// Neither a source nor its circle may touch the volume.
pub(super) fn check_source_outside(
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    orbit: &Orbit,
) -> Result<(), GeometryError> {
    let half = 0.5 * grid.size_mm();
    let corner = (half.x + grid.centre_mm.x.abs()).hypot(half.y + grid.centre_mm.y.abs());
    let advice = "check that DSO and the volume's size (sVoxel) are both whole lengths in mm, and not voxel counts";
    for (view, pose) in geometry.views.iter().enumerate() {
        let p = (pose.source_mm - grid.centre_mm).abs();
        if p.cmplt(half).all() {
            return impossible(
                format!(
                    "the source of view {view} at ({:.1}, {:.1}, {:.1}) mm lies inside the volume of {:.1} x {:.1} x {:.1} mm",
                    pose.source_mm.x,
                    pose.source_mm.y,
                    pose.source_mm.z,
                    2.0 * half.x,
                    2.0 * half.y,
                    2.0 * half.z
                ),
                advice,
            );
        }
    }
    if corner >= orbit.source_to_isocenter_mm && (orbit.source_z_mm - grid.centre_mm.z).abs() < half.z {
        return impossible(
            format!(
                "the volume's corners reach {corner:.1} mm from the rotation axis, the source turns at {:.1} mm: it would pass \
                 through the volume",
                orbit.source_to_isocenter_mm
            ),
            advice,
        );
    }
    Ok(())
}

/// The volume's shadow must fall on the detector and have a plausible size.
pub(super) fn check_shadow(
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    orbit: &Orbit,
    fan: &Fan,
    warnings: &mut Vec<String>,
) -> Result<(), GeometryError> {
    let detector = geometry.detector;
    let columns = detector.columns as f64;
    let magnification = orbit.source_to_detector_mm / orbit.source_to_isocenter_mm;
    let size = grid.size_mm();
    for (view, pose) in geometry.views.iter().enumerate() {
        // A corner at the source's depth throws its shadow to infinity: no statement about this view.
        let Some(shadow) = Shadow::of(pose, grid) else { return Ok(()) };
        shadow.check(view, geometry)?;
    }
    let pose = &geometry.views[0];
    let pitch = [pose.column_step_mm.length(), pose.row_step_mm.length()];
    let width = pitch[0] * columns;
    let shadow = size.x.min(size.y) * magnification;
    let numbers = format!(
        "the volume's shadow is {shadow:.1} mm wide ({:.1} mm at magnification {magnification:.3}) but the detector {width:.1} mm \
         ({} columns of {:.4} mm)",
        size.x.min(size.y),
        detector.columns,
        pitch[0]
    );
    if width < SMALLEST_SHADOW_SHARE * shadow {
        return impossible(
            numbers,
            "are pixel pitch and voxel size in mm? The detector would see less than a quarter of the volume; if that is meant, \
             reconstruct a smaller region",
        );
    }
    if shadow < SMALLEST_VOLUME_SHARE * width {
        return impossible(
            numbers,
            "are voxel size and pixel pitch in mm? The volume would fill less than a twentieth of the detector",
        );
    }
    if pitch == [1.0, 1.0] && fan.far_rad() < fan.inscribed_rad {
        warnings.push(format!(
            "{numbers}, and both pitches are exactly 1: are they in mm, or were pixels counted? (sDetector is the whole size)"
        ));
    }
    Ok(())
}

/// Full turn, short scan or half-fan; refuses arcs that measure some lines not at all.
pub(super) fn classify(turn: &Turn, fan: &Fan, warnings: &mut Vec<String>) -> Result<ScanClass, GeometryError> {
    if fan.near_rad() <= 0.0 {
        return impossible(
            format!(
                "the detector covers fan angles {:.2} to {:.2} deg and so never sees the rotation axis",
                fan.min_rad.to_degrees(),
                fan.max_rad.to_degrees()
            ),
            "reduce the detector's offset along its columns (a half-fan needs a strip beyond the axis), and check its unit (mm)",
        );
    }
    let reach = (CLOSED_TURN_STEPS * turn.typical_gap_rad).max(CLOSED_TURN_NEXT * turn.second_gap_rad);
    let closed = turn.angles.len() > 1 && turn.largest_gap_rad <= reach;
    let asymmetric = fan.far_rad() - fan.near_rad() > fan.column_rad;
    let displaced = asymmetric && fan.near_rad() < fan.needed_rad;
    if displaced && closed {
        return Ok(ScanClass::DisplacedDetector);
    }
    if closed {
        return Ok(ScanClass::FullTurn);
    }
    let half_fan = displaced && fan.near_rad() < 0.75 * fan.far_rad() && fan.near_rad() < fan.inscribed_rad;
    if half_fan {
        let limit = HALF_FAN_GAP_RAD.min(HALF_FAN_STEPS * turn.typical_gap_rad);
        if turn.largest_gap_rad <= limit {
            warnings.push(format!(
                "half-fan scan with a gap of {:.1} deg in its turn: lines there are measured by no view",
                turn.largest_gap_rad.to_degrees()
            ));
            return Ok(ScanClass::DisplacedDetector);
        }
        return impossible(
            format!(
                "half-fan on less than 360 degrees: the detector reaches {:.2} deg on one side of the axis and {:.2} deg on the \
                 other, so each line off the axis is measured once a turn, but the views cover {:.1} deg (gap of {:.1} deg)",
                fan.near_rad().to_degrees(),
                fan.far_rad().to_degrees(),
                turn.arc_rad.to_degrees(),
                turn.largest_gap_rad.to_degrees()
            ),
            "scan a full turn, centre the detector, or reconstruct a region within the smaller fan; check the angles' unit (rad)",
        );
    }
    let half_fan_rad = fan.near_rad().min(fan.needed_rad);
    let needed = PI + 2.0 * half_fan_rad;
    if turn.arc_rad < needed - 1e-9 {
        let unit = if turn.arc_rad < TAU / 50.0 { " Were angles in degrees read as rad, or the reverse?" } else { "" };
        return impossible(
            format!(
                "the views cover an arc of {:.2} deg, but a short scan needs 180 deg + fan = 180 + 2 x {:.2} = {:.2} deg",
                turn.arc_rad.to_degrees(),
                half_fan_rad.to_degrees(),
                needed.to_degrees()
            ),
            format!("scan a longer arc, or use an iterative method, which bears missing views.{unit}"),
        );
    }
    Ok(ScanClass::ShortScan)
}

/// Parts of the grid outside the field of view are reconstructed from incomplete data.
pub(super) fn warn_truncation(grid: &VolumeGrid, view: &FieldOfView, warnings: &mut Vec<String>) {
    let half = 0.5 * grid.size_mm();
    let centre = grid.centre_mm;
    let inside = (half.x - centre.x.abs()).min(half.y - centre.y.abs());
    if view.radius_mm < inside {
        warnings.push(format!(
            "truncation: the detector covers a radius of {:.1} mm about the axis, the volume's half-width is {inside:.1} mm; values \
             outside are not reconstructed, and an object reaching there brightens the rim",
            view.radius_mm
        ));
    }
    let (low, high) = (centre.z - half.z, centre.z + half.z);
    let slack = 1e-6 * half.z;
    if view.z_min_mm > low + slack || view.z_max_mm < high - slack {
        warnings.push(format!(
            "truncation: on the axis the cone covers z from {:.1} to {:.1} mm, the volume reaches from {low:.1} to {high:.1} mm",
            view.z_min_mm, view.z_max_mm
        ));
    }
}
