//! Circular orbits: a way of making per-view poses.

use glam::{DMat3, DVec3};

use super::{Detector, ScanGeometry, ViewPose};

/// A circular orbit about z with a flat detector; see the drawing in [`crate::geometry`].
///
/// Offsets move the detector within its plane, along its column axis (`offset_u_mm`; half-fan scans use it) and its row axis
/// (`offset_v_mm`); tilts then turn it about its own centre.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircularOrbit {
    /// Source-to-isocenter distance (DSO, SID).
    pub source_to_isocenter_mm: f64,
    /// Source-to-detector distance (DSD, SDD).
    pub source_to_detector_mm: f64,
    /// Pixel counts.
    pub detector: Detector,
    /// Distance between columns.
    pub pitch_u_mm: f64,
    /// Distance between rows.
    pub pitch_v_mm: f64,
    /// Shift of the detector along its columns' axis.
    pub offset_u_mm: f64,
    /// Shift of the detector along its rows' axis (positive: towards -z).
    pub offset_v_mm: f64,
    /// Rotation about the detector's normal (roll; positive turns the column axis towards the row axis).
    pub roll_rad: f64,
    /// Rotation about the column axis (pitch; the upper edge towards the source or away).
    pub pitch_rad: f64,
    /// Rotation about the row axis (yaw).
    pub yaw_rad: f64,
}

impl Default for CircularOrbit {
    /// A common C-arm: DSO 1000 mm, DSD 1500 mm, 256 x 256 pixels of 1.6 mm, no offset, no tilt.
    fn default() -> Self {
        Self {
            source_to_isocenter_mm: 1000.0,
            source_to_detector_mm: 1500.0,
            detector: Detector { columns: 256, rows: 256 },
            pitch_u_mm: 1.6,
            pitch_v_mm: 1.6,
            offset_u_mm: 0.0,
            offset_v_mm: 0.0,
            roll_rad: 0.0,
            pitch_rad: 0.0,
            yaw_rad: 0.0,
        }
    }
}

impl CircularOrbit {
    /// The pose at one gantry angle.
    #[must_use]
    pub fn pose(&self, angle_rad: f64) -> ViewPose {
        let (sin, cos) = angle_rad.sin_cos();
        let radial = DVec3::new(cos, sin, 0.0);
        let u = DVec3::new(-sin, cos, 0.0);
        let v = DVec3::new(0.0, 0.0, -1.0);
        let tilt = DMat3::from_axis_angle(u, self.pitch_rad)
            * DMat3::from_axis_angle(v, self.yaw_rad)
            * DMat3::from_axis_angle(u.cross(v), self.roll_rad);
        let column_step_mm = tilt * u * self.pitch_u_mm;
        let row_step_mm = tilt * v * self.pitch_v_mm;
        let centre = -(self.source_to_detector_mm - self.source_to_isocenter_mm) * radial
            + self.offset_u_mm * u
            + self.offset_v_mm * v;
        let half = |count: usize| 0.5 * (count as f64 - 1.0);
        ViewPose {
            source_mm: self.source_to_isocenter_mm * radial,
            detector_origin_mm: centre
                - half(self.detector.columns) * column_step_mm
                - half(self.detector.rows) * row_step_mm,
            column_step_mm,
            row_step_mm,
        }
    }

    /// Poses at the given gantry angles, in that order (non-uniform angles, any direction).
    #[must_use]
    pub fn at_angles(&self, angles_rad: &[f64]) -> ScanGeometry {
        ScanGeometry { detector: self.detector, views: angles_rad.iter().map(|&a| self.pose(a)).collect() }
    }

    /// `views` equally spaced poses from `start_rad` over `arc_rad` (negative: the other direction). The end of the arc is not
    /// itself a view, so that a full turn does not see its first view twice.
    #[must_use]
    pub fn over_arc(&self, views: usize, start_rad: f64, arc_rad: f64) -> ScanGeometry {
        let angles: Vec<f64> = (0..views).map(|i| start_rad + arc_rad * i as f64 / views as f64).collect();
        self.at_angles(&angles)
    }
}
