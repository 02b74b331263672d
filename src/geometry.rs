//! Source, detector, per-view poses and the volume grid. Lengths in mm, angles in rad.
//!
//! World frame: right-handed, the isocenter is the origin, **z is the rotation axis**. A view at gantry angle `a` on the ideal
//! circular orbit looks like this from +z:
//!
//! ```text
//!              y ^        column_step = pitch_u * (-sin a, cos a, 0)
//!                |        row_step    = pitch_v * (0, 0, -1)      (row 0 is the highest row, at +z)
//!        detector|
//!          \     |
//!           \    |          S  source = DSO * (cos a, sin a, 0)
//!            \   |        /
//!      centre *  |     /
//!              \ |  / ) a
//!   ------------\+--------------> x
//!                O isocenter
//!      detector centre = -(DSD - DSO) * (cos a, sin a, 0)
//! ```
//!
//! **The half-pixel is settled here and nowhere else.** Indices address centres: pixel (row `i`, column `j`) is centred at
//! `detector_origin + j * column_step + i * row_step`, so `detector_origin` is the *centre of pixel (0, 0)*; a detector of `n`
//! columns without offset spans `(j + 1/2 - n/2) * pitch`. Voxel (`ix`, `iy`, `iz`) is centred at
//! `centre + (index + 1/2 - n/2) * voxel` on each axis.
//!
//! **Memory order.** Volumes are `[x][y][z]`, z fastest (the order of the field's `vol_gt.npy`); projections are
//! `[view][row v][column u]`, u fastest.

#![forbid(unsafe_code)]

mod biplanar;
pub mod coverage;
mod orbit;
mod sight;

pub use biplanar::biplanar_pair;
pub use coverage::{Coverage, FanFrame, FieldOfView, ScanClass};
pub use orbit::CircularOrbit;
pub use sight::check_sight;

use glam::DVec3;
use serde::{Deserialize, Serialize};

use crate::error::{Classed, ErrorClass};

/// A geometry that cannot be reconstructed, with the numbers that say why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GeometryError {
    /// A value is not finite, zero or of the wrong sign.
    #[error("geometry: {field} = {value}: {requirement}")]
    Value {
        /// Name of the field as the user wrote it.
        field: String,
        /// The value given.
        value: f64,
        /// What the field must satisfy.
        requirement: String,
    },
    /// Each number is valid alone, but together they cannot work.
    #[error("geometry cannot be reconstructed: {reason}; {advice}")]
    Impossible {
        /// What was computed from the numbers given.
        reason: String,
        /// What the user should check or change.
        advice: String,
    },
}

impl Classed for GeometryError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// Pixel counts of the flat detector, the same for all views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detector {
    /// Number of columns (u, fastest in memory).
    pub columns: usize,
    /// Number of rows (v).
    pub rows: usize,
}

impl Detector {
    /// Pixels in one view.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.columns * self.rows
    }
}

/// Where source and detector stand for one view (ASTRA's `cone_vec`, with the detector's corner pixel instead of its centre).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ViewPose {
    /// Focal spot.
    pub source_mm: DVec3,
    /// Centre of pixel (row 0, column 0).
    pub detector_origin_mm: DVec3,
    /// From a pixel's centre to that of the next column.
    pub column_step_mm: DVec3,
    /// From a pixel's centre to that of the next row.
    pub row_step_mm: DVec3,
}

impl ViewPose {
    /// Centre of pixel (row `v`, column `u`); fractions of a pixel are allowed.
    #[must_use]
    pub fn pixel_mm(&self, v: f64, u: f64) -> DVec3 {
        self.detector_origin_mm + u * self.column_step_mm + v * self.row_step_mm
    }

    /// Unit normal of the detector, pointing from the source's side through the detector.
    #[must_use]
    pub fn normal(&self) -> DVec3 {
        let n = self.column_step_mm.cross(self.row_step_mm).normalize();
        if n.dot(self.detector_origin_mm - self.source_mm) < 0.0 { -n } else { n }
    }

    /// Distance from the source to the detector's plane, in mm.
    #[must_use]
    pub fn source_to_plane_mm(&self) -> f64 {
        self.normal().dot(self.detector_origin_mm - self.source_mm)
    }

    /// Rows of the matrix `P` with `P (x, y, z, 1) = w (u, v, 1)` in pixels; `w` is the point's depth from the source along
    /// the detector's normal over the source-to-plane distance: 0 at the source, 1 on the detector.
    #[must_use]
    pub fn projection_matrix(&self) -> [[f64; 4]; 3] {
        let n = self.normal() / self.source_to_plane_mm();
        // Duals of the column and row steps within the detector's plane, also right for steps that are not orthogonal.
        let (c, r) = (self.column_step_mm, self.row_step_mm);
        let det = c.length_squared() * r.length_squared() - c.dot(r) * c.dot(r);
        let dual_c = (c * r.length_squared() - r * c.dot(r)) / det;
        let dual_r = (r * c.length_squared() - c * c.dot(r)) / det;
        let origin = self.detector_origin_mm - self.source_mm;
        // (x - s) / w - origin lies in the plane; u = dual_c . that.
        let row = |dual: DVec3| {
            let g = dual - n * dual.dot(origin);
            [g.x, g.y, g.z, -g.dot(self.source_mm)]
        };
        [row(dual_c), row(dual_r), [n.x, n.y, n.z, -n.dot(self.source_mm)]]
    }

    /// Column `u`, row `v` (pixels) and relative depth `w` at which a point is seen; `None` at or behind the source.
    #[must_use]
    pub fn project(&self, point_mm: DVec3) -> Option<(f64, f64, f64)> {
        let p = self.projection_matrix();
        let dot = |r: [f64; 4]| r[0] * point_mm.x + r[1] * point_mm.y + r[2] * point_mm.z + r[3];
        let w = dot(p[2]);
        (w > 0.0).then(|| (dot(p[0]) / w, dot(p[1]) / w, w))
    }

    /// Azimuth of the source about the rotation axis, in (-pi, pi].
    #[must_use]
    pub fn source_angle_rad(&self) -> f64 {
        self.source_mm.y.atan2(self.source_mm.x)
    }

    /// Refuses poses with non-finite numbers, degenerate detector axes or a source in the detector's plane.
    ///
    /// # Errors
    /// [`GeometryError::Value`] names the field, with `view` as the index in the scan.
    pub fn check(&self, view: usize) -> Result<(), GeometryError> {
        for (name, vector) in [
            ("source_mm", self.source_mm),
            ("detector_origin_mm", self.detector_origin_mm),
            ("column_step_mm", self.column_step_mm),
            ("row_step_mm", self.row_step_mm),
        ] {
            if !vector.is_finite() {
                let value = vector.to_array().into_iter().find(|c| !c.is_finite()).unwrap_or(f64::NAN);
                return Err(GeometryError::Value {
                    field: format!("views[{view}].{name}"),
                    value,
                    requirement: "must be finite".into(),
                });
            }
        }
        let area = self.column_step_mm.cross(self.row_step_mm).length();
        if area < 1e-9 * self.column_step_mm.length().max(self.row_step_mm.length()).max(1e-9) {
            return Err(GeometryError::Value {
                field: format!("views[{view}].column_step_mm x row_step_mm"),
                value: area,
                requirement: "the detector's axes must span a plane (pixel pitch > 0, axes not parallel)".into(),
            });
        }
        let distance = self.source_to_plane_mm();
        if distance.is_nan() || distance < 1e-6 {
            return Err(GeometryError::Value {
                field: format!("views[{view}].source-to-detector-plane distance (mm)"),
                value: distance,
                requirement: "the source must not lie in the detector's plane".into(),
            });
        }
        Ok(())
    }
}

/// The voxel grid: counts, spacing and where its centre stands. Axes are the world's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VolumeGrid {
    /// Voxels along x, y, z.
    pub voxels: [usize; 3],
    /// Voxel edge along x, y, z.
    pub voxel_mm: DVec3,
    /// Centre of the grid (the scene folder's `offOrigin`).
    pub centre_mm: DVec3,
}

impl VolumeGrid {
    /// A grid of `voxels` over a box of `size_mm` about `centre_mm`.
    #[must_use]
    pub fn over_box(voxels: [usize; 3], size_mm: DVec3, centre_mm: DVec3) -> Self {
        let counts = DVec3::new(voxels[0] as f64, voxels[1] as f64, voxels[2] as f64);
        Self { voxels, voxel_mm: size_mm / counts, centre_mm }
    }

    /// Whole number of voxels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.voxels.iter().product()
    }

    /// Whether the grid has no voxel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whole size of the box along x, y, z.
    #[must_use]
    pub fn size_mm(&self) -> DVec3 {
        let [nx, ny, nz] = self.voxels;
        self.voxel_mm * DVec3::new(nx as f64, ny as f64, nz as f64)
    }

    /// Centre of voxel (0, 0, 0).
    #[must_use]
    pub fn origin_mm(&self) -> DVec3 {
        self.centre_mm - 0.5 * (self.size_mm() - self.voxel_mm)
    }

    /// Centre of voxel (`ix`, `iy`, `iz`).
    #[must_use]
    pub fn voxel_centre_mm(&self, ix: usize, iy: usize, iz: usize) -> DVec3 {
        self.origin_mm() + self.voxel_mm * DVec3::new(ix as f64, iy as f64, iz as f64)
    }

    /// Offset of voxel (`ix`, `iy`, `iz`) in a volume's memory (`[x][y][z]`, z fastest).
    #[must_use]
    pub fn index(&self, ix: usize, iy: usize, iz: usize) -> usize {
        (ix * self.voxels[1] + iy) * self.voxels[2] + iz
    }

    /// The same box sampled with `n` voxels along each axis' share: the largest count becomes `n`, the others keep their ratio.
    #[must_use]
    pub fn resampled(&self, n: usize) -> Self {
        let largest = self.voxels.iter().copied().max().unwrap_or(1).max(1);
        let voxels = self.voxels.map(|c| ((c * n) as f64 / largest as f64).round().max(1.0) as usize);
        Self::over_box(voxels, self.size_mm(), self.centre_mm)
    }

    /// The part of `voxels` voxels that starts at voxel `first`, as a grid of its own (the same centres; its own order of memory).
    /// The part may stick out of the grid.
    #[must_use]
    pub fn part(&self, first: [usize; 3], voxels: [usize; 3]) -> Self {
        let half = |k: usize| first[k] as f64 + 0.5 * (voxels[k] as f64 - 1.0);
        let centre_mm = self.origin_mm() + self.voxel_mm * DVec3::new(half(0), half(1), half(2));
        Self { voxels, voxel_mm: self.voxel_mm, centre_mm }
    }

    /// Refuses empty grids, absurd counts and spacings that are not positive and finite.
    ///
    /// # Errors
    /// [`GeometryError::Value`] naming the field.
    pub fn check(&self) -> Result<(), GeometryError> {
        for (axis, name) in ["x", "y", "z"].into_iter().enumerate() {
            let (count, voxel, centre) = (self.voxels[axis], self.voxel_mm[axis], self.centre_mm[axis]);
            if count == 0 || count > 8192 {
                return Err(GeometryError::Value {
                    field: format!("nVoxel.{name}"),
                    value: count as f64,
                    requirement: "must be between 1 and 8192".into(),
                });
            }
            if !voxel.is_finite() || voxel <= 0.0 {
                return Err(GeometryError::Value {
                    field: format!("voxel_mm.{name}"),
                    value: voxel,
                    requirement: "must be finite and > 0".into(),
                });
            }
            if !centre.is_finite() {
                return Err(GeometryError::Value {
                    field: format!("centre_mm.{name} (offOrigin)"),
                    value: centre,
                    requirement: "must be finite".into(),
                });
            }
        }
        Ok(())
    }
}

/// A detector and the poses it took: all that the projectors need to know of an acquisition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanGeometry {
    /// Pixel counts.
    pub detector: Detector,
    /// One pose a view, in the order of acquisition.
    pub views: Vec<ViewPose>,
}

impl ScanGeometry {
    /// Floats in the projections of all views.
    #[must_use]
    pub fn projection_len(&self) -> usize {
        self.views.len() * self.detector.pixels()
    }

    /// Checks every pose (see [`ViewPose::check`]) and the detector's counts.
    ///
    /// # Errors
    /// [`GeometryError::Value`] naming the first field that fails.
    pub fn check(&self) -> Result<(), GeometryError> {
        for (name, count) in [("columns", self.detector.columns), ("rows", self.detector.rows)] {
            if count == 0 || count > 65_535 {
                return Err(GeometryError::Value {
                    field: format!("detector.{name}"),
                    value: count as f64,
                    requirement: "must be between 1 and 65535".into(),
                });
            }
        }
        if self.views.is_empty() {
            return Err(GeometryError::Value {
                field: "views".into(),
                value: 0.0,
                requirement: "a scan needs at least one view".into(),
            });
        }
        self.views.iter().enumerate().try_for_each(|(index, view)| view.check(index))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn orbit() -> CircularOrbit {
        CircularOrbit {
            source_to_isocenter_mm: 1000.0,
            source_to_detector_mm: 1500.0,
            detector: Detector { columns: 7, rows: 5 },
            pitch_u_mm: 2.0,
            pitch_v_mm: 3.0,
            offset_u_mm: 11.0,
            offset_v_mm: -4.0,
            ..CircularOrbit::default()
        }
    }

    #[test]
    fn pixel_centres_follow_the_drawing() {
        let pose = orbit().pose(0.0);
        // At angle 0: source on +x, columns run along +y, rows run along -z.
        assert!((pose.source_mm - DVec3::new(1000.0, 0.0, 0.0)).length() < 1e-9);
        let p = pose.pixel_mm(0.0, 0.0);
        let expected = DVec3::new(-500.0, (0.5 - 3.5) * 2.0 + 11.0, -((0.5 - 2.5) * 3.0 - 4.0));
        assert!((p - expected).length() < 1e-9, "{p} {expected}");
    }

    #[test]
    fn projection_inverts_the_ray_also_with_tilted_and_skewed_detectors() {
        let mut pose = orbit().pose(0.7);
        pose.row_step_mm += DVec3::new(0.3, -0.2, 0.1);
        pose.column_step_mm += DVec3::new(0.1, 0.0, 0.4);
        for (v, u, t) in [(0.0, 0.0, 0.4), (4.0, 6.0, 0.7), (1.3, 2.9, 1.2)] {
            let point = pose.source_mm + t * (pose.pixel_mm(v, u) - pose.source_mm);
            let (pu, pv, w) = pose.project(point).unwrap();
            // Double precision over ~1e3 mm leaves about 1e-10 pixel.
            assert!((pu - u).abs() < 1e-9 && (pv - v).abs() < 1e-9 && (w - t).abs() < 1e-12, "{pu} {pv} {w}");
        }
        assert!(pose.project(pose.source_mm * 1.1).is_none());
    }

    #[test]
    fn voxel_centres_are_symmetric_about_the_grid_centre() {
        let grid = VolumeGrid::over_box([4, 5, 6], DVec3::new(8.0, 5.0, 3.0), DVec3::new(1.0, 2.0, 3.0));
        let middle = 0.5 * (grid.voxel_centre_mm(0, 0, 0) + grid.voxel_centre_mm(3, 4, 5));
        assert!((middle - grid.centre_mm).length() < 1e-12);
        assert_eq!(grid.index(3, 4, 5), grid.len() - 1);
    }

    #[test]
    fn broken_poses_and_grids_are_refused_by_field() {
        let mut pose = orbit().pose(0.0);
        pose.source_mm.y = f64::NAN;
        assert!(pose.check(3).unwrap_err().to_string().contains("views[3].source_mm"));
        let mut flat = orbit().pose(0.0);
        flat.row_step_mm = flat.column_step_mm;
        assert!(flat.check(0).unwrap_err().to_string().contains("span a plane"));
        let grid = VolumeGrid::over_box([4, 0, 4], DVec3::ONE, DVec3::ZERO);
        assert!(grid.check().unwrap_err().to_string().contains("nVoxel.y"));
    }
}
