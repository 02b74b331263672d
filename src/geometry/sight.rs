//! What a scan must satisfy whatever the method: each view looks at the volume.
//!
//! Iterative methods bear short arcs, truncated views, tilted detectors and any orbit, so this is all that is asked of them;
//! [`super::Coverage::analyse`] asks for more on behalf of FDK.

use glam::DVec3;

use super::{GeometryError, ScanGeometry, ViewPose, VolumeGrid};

/// A detector narrower than this share of the volume's shadow, or a shadow narrower than this share of the detector, was given in
/// other units.
const SMALLEST_SHARE: f64 = 0.05;

/// Where the volume's eight corners are seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shadow {
    /// Lowest column and row, in pixels.
    pub(super) low: [f64; 2],
    /// Highest column and row.
    pub(super) high: [f64; 2],
}

impl Shadow {
    /// `None` where a corner lies at or behind the source's depth: the shadow is endless.
    pub(super) fn of(pose: &ViewPose, grid: &VolumeGrid) -> Option<Self> {
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for corner in 0..8 {
            let side = |bit: usize| if corner >> bit & 1 == 1 { 0.5 } else { -0.5 };
            let point = grid.centre_mm + grid.size_mm() * DVec3::new(side(0), side(1), side(2));
            let (u, v, _) = pose.project(point)?;
            for (slot, value) in [u, v].into_iter().enumerate() {
                low[slot] = low[slot].min(value);
                high[slot] = high[slot].max(value);
            }
        }
        Some(Self { low, high })
    }

    /// Refuses a shadow beside the detector.
    pub(super) fn check(&self, view: usize, geometry: &ScanGeometry) -> Result<(), GeometryError> {
        let detector = geometry.detector;
        for (axis, (name, count)) in [("columns", detector.columns), ("rows", detector.rows)].into_iter().enumerate() {
            if self.high[axis] < -0.5 || self.low[axis] > count as f64 - 0.5 {
                return Err(GeometryError::Impossible {
                    reason: format!(
                        "the detector misses the volume: in view {view} its shadow spans {name} {:.1} to {:.1}, the detector has \
                         {name} 0 to {}",
                        self.low[axis],
                        self.high[axis],
                        count - 1
                    ),
                    advice: "check sign and unit (mm) of the detector's offset (offDetector) and of the volume's (offOrigin)".into(),
                });
            }
        }
        Ok(())
    }
}

/// Refuses scans from which no method could reconstruct: a source within the volume, a detector before or beside it, sizes that can
/// only come from mixed units.
///
/// # Errors
/// [`GeometryError`] with the numbers that say why.
pub fn check_sight(geometry: &ScanGeometry, grid: &VolumeGrid) -> Result<(), GeometryError> {
    geometry.check()?;
    grid.check()?;
    let impossible = |reason: String, advice: &str| Err(GeometryError::Impossible { reason, advice: advice.into() });
    let half = 0.5 * grid.size_mm();
    for (view, pose) in geometry.views.iter().enumerate() {
        if (pose.source_mm - grid.centre_mm).abs().cmplt(half).all() {
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
                "check that DSO and the volume's size (sVoxel) are both whole lengths in mm, and not voxel counts",
            );
        }
        match pose.project(grid.centre_mm) {
            Some((_, _, depth)) if depth <= 1.0 => {}
            Some((_, _, depth)) => {
                return impossible(
                    format!(
                        "magnification {:.4} < 1 in view {view}: the detector stands before the volume's centre",
                        1.0 / depth
                    ),
                    "check whether DSO and DSD are exchanged, or whether DSD was given from the isocenter instead of the source",
                );
            }
            None => {
                return impossible(
                    format!("in view {view} the volume's centre lies behind the source"),
                    "check the sign of the detector's position and its axes: it must stand beyond the isocenter",
                );
            }
        }
        let Some(shadow) = Shadow::of(pose, grid) else { continue };
        shadow.check(view, geometry)?;
        let detector = [geometry.detector.columns as f64, geometry.detector.rows as f64];
        let width = [0, 1].map(|axis| shadow.high[axis] - shadow.low[axis]);
        if (0..2).any(|axis| detector[axis] < SMALLEST_SHARE * width[axis]) {
            return impossible(
                format!(
                    "in view {view} the volume's shadow is {:.0} columns x {:.0} rows large, the detector {} x {}",
                    width[0], width[1], geometry.detector.columns, geometry.detector.rows
                ),
                "are pixel pitch and voxel size in mm? The detector would see less than a twentieth of the volume; if that is meant, \
                 reconstruct a smaller region",
            );
        }
        if (0..2).all(|axis| width[axis] < SMALLEST_SHARE * detector[axis]) {
            return impossible(
                format!(
                    "in view {view} the volume's shadow is {:.1} columns x {:.1} rows small, the detector has {} x {}",
                    width[0], width[1], geometry.detector.columns, geometry.detector.rows
                ),
                "are voxel size and pixel pitch in mm? The volume would fill less than a twentieth of the detector",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::geometry::{CircularOrbit, Detector};

    fn orbit() -> CircularOrbit {
        CircularOrbit {
            detector: Detector { columns: 64, rows: 48 },
            pitch_u_mm: 4.0,
            pitch_v_mm: 4.0,
            ..CircularOrbit::default()
        }
    }

    fn grid(size_mm: f64) -> VolumeGrid {
        VolumeGrid::over_box([32; 3], DVec3::splat(size_mm), DVec3::ZERO)
    }

    #[test]
    fn what_fdk_refuses_for_its_own_sake_is_accepted() {
        // Three views, a short arc, a rolled detector, a truncated volume, a lone view.
        for (orbit, views, arc, size_mm) in [
            (orbit(), 3, 1.0, 120.0),
            (CircularOrbit { roll_rad: 0.3, ..orbit() }, 20, 6.0, 120.0),
            (orbit(), 20, 6.0, 600.0),
            (CircularOrbit { offset_u_mm: 120.0, ..orbit() }, 20, 2.0, 200.0),
            (orbit(), 1, 1.0, 120.0),
        ] {
            check_sight(&orbit.over_arc(views, 0.3, arc), &grid(size_mm)).unwrap();
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_numbers() {
        let refusal = |orbit: CircularOrbit, size_mm: f64| {
            check_sight(&orbit.over_arc(5, 0.3, 6.0), &grid(size_mm)).unwrap_err().to_string()
        };
        for (message, part) in [
            (
                refusal(CircularOrbit { offset_u_mm: 500.0, ..orbit() }, 100.0),
                "the detector misses the volume: in view 0",
            ),
            (
                refusal(CircularOrbit { source_to_detector_mm: 900.0, ..orbit() }, 100.0),
                "magnification 0.9000 < 1 in view 0",
            ),
            (refusal(orbit(), 2100.0), "lies inside the volume"),
            (refusal(orbit(), 5.0), "fill less than a twentieth"),
            (refusal(CircularOrbit { pitch_u_mm: 0.04, ..orbit() }, 120.0), "are pixel pitch and voxel size in mm"),
            (refusal(CircularOrbit { pitch_u_mm: f64::NAN, ..orbit() }, 120.0), "must be finite"),
        ] {
            assert!(message.contains(part), "\"{part}\" is missing in: {message}");
        }
        let mut turned = orbit().over_arc(5, 0.3, 6.0);
        let pose = &mut turned.views[3];
        pose.detector_origin_mm += 3.0 * pose.source_mm;
        let message = check_sight(&turned, &grid(100.0)).unwrap_err().to_string();
        assert!(message.contains("in view 3 the volume's centre lies behind the source"), "{message}");
    }
}
