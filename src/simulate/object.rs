//! What stands in the beam: an analytic phantom or a sampled volume, behind one face.

use glam::DVec3;
use ndarray::{Array3, ArrayViewMut3};

use super::ct_object::CtObject;
use super::ellipsoids::{Ellipsoid, EllipsoidPhantom};
use super::error::SimulateError;
use super::layered::LayeredPhantom;
use crate::compute::cpu::CpuCompute;
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};

/// The space that an object takes up about the rotation axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Largest distance from the axis.
    pub radius_mm: f64,
    /// Lowest corner of the box about it.
    pub low_mm: DVec3,
    /// Highest corner of the box about it.
    pub high_mm: DVec3,
}

impl Extent {
    /// Nothing.
    pub const EMPTY: Self = Self { radius_mm: 0.0, low_mm: DVec3::INFINITY, high_mm: DVec3::NEG_INFINITY };

    /// Grows to hold a point with `margin_mm` about it.
    pub fn include(&mut self, point_mm: DVec3, margin_mm: f64) {
        self.radius_mm = self.radius_mm.max(point_mm.truncate().length() + margin_mm);
        self.low_mm = self.low_mm.min(point_mm - margin_mm);
        self.high_mm = self.high_mm.max(point_mm + margin_mm);
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            radius_mm: self.radius_mm.max(other.radius_mm),
            low_mm: self.low_mm.min(other.low_mm),
            high_mm: self.high_mm.max(other.high_mm),
        }
    }

    /// Larger on all sides.
    #[must_use]
    pub fn grown(self, margin_mm: f64) -> Self {
        Self {
            radius_mm: self.radius_mm + margin_mm,
            low_mm: self.low_mm - margin_mm,
            high_mm: self.high_mm + margin_mm,
        }
    }

    /// The space that ellipsoids take up.
    #[must_use]
    pub fn of(ellipsoids: &[Ellipsoid]) -> Self {
        let mut extent = Self::EMPTY;
        for e in ellipsoids {
            let half = e.half_box_mm();
            extent.low_mm = extent.low_mm.min(e.centre_mm - half);
            extent.high_mm = extent.high_mm.max(e.centre_mm + half);
            // Half width in the horizontal direction of the centre bounds what the box does; the longest horizontal half width
            // is the square root of the larger eigenvalue of the shadow's 2 x 2 matrix.
            let axes = glam::DMat3::from_quat(e.rotation) * glam::DMat3::from_diagonal(e.semi_axes_mm);
            let (x, y) = (axes.row(0), axes.row(1));
            let (xx, yy, xy) = (x.length_squared(), y.length_squared(), x.dot(y));
            let longest = (0.5 * (xx + yy) + (0.25 * (xx - yy).powi(2) + xy * xy).sqrt()).sqrt();
            let reach = (e.centre_mm.truncate().length() + longest)
                .min((e.centre_mm.truncate().abs() + half.truncate()).length());
            extent.radius_mm = extent.radius_mm.max(reach);
        }
        extent
    }

    /// Largest distance of the box from the isocenter along any axis.
    #[must_use]
    pub fn half_cube_mm(&self) -> f64 {
        self.low_mm.abs().max(self.high_mm.abs()).max_element()
    }

    /// Largest height above or below the isocenter.
    #[must_use]
    pub fn half_height_mm(&self) -> f64 {
        self.low_mm.z.abs().max(self.high_mm.z.abs())
    }
}

/// An object that can be projected.
pub enum Object {
    /// Ellipsoids that add up; exact.
    Additive(EllipsoidPhantom),
    /// Ellipsoids painted over each other; exact.
    Layered(LayeredPhantom),
    /// A CT volume, projected from a fine grid (see [`CtObject::fine_grid`]).
    Sampled {
        /// The volume itself.
        ct: Box<CtObject>,
        /// The fine grid.
        grid: VolumeGrid,
        /// Values on it, `[x][y][z]`, 1/mm.
        fine: Vec<f32>,
        /// Carries out the projection.
        compute: Box<CpuCompute>,
    },
}

impl Object {
    /// Line integrals of `poses` into `out` (`[view][row v][column u]`, standard layout).
    ///
    /// # Errors
    /// What the projector says ([`SimulateError::Compute`]).
    pub fn project(&self, detector: Detector, poses: &[ViewPose], out: &mut [f32]) -> Result<(), SimulateError> {
        let view_of = |out| ArrayViewMut3::from_shape((poses.len(), detector.rows, detector.columns), out);
        match self {
            Self::Additive(phantom) => {
                phantom.project_into(poses, view_of(out).map_err(|_| shape_error(detector, poses))?);
            }
            Self::Layered(phantom) => {
                phantom.project_into(poses, view_of(out).map_err(|_| shape_error(detector, poses))?);
            }
            Self::Sampled { grid, fine, compute, .. } => {
                let geometry = ScanGeometry { detector, views: poses.to_vec() };
                compute.forward_project(&geometry, grid, fine, out)?;
            }
        }
        Ok(())
    }

    /// Cell averages on a grid, `[x][y][z]`, 1/mm: the ground truth of a scan.
    #[must_use]
    pub fn voxelise(&self, grid: &VolumeGrid) -> Array3<f32> {
        match self {
            // 5^3 points in cut voxels: a surface's share is then right to about 2 % of the step across it.
            Self::Additive(phantom) => phantom.voxelise(grid, 5),
            Self::Layered(phantom) => phantom.voxelise(grid, 5),
            Self::Sampled { ct, .. } => ct.voxelise(grid),
        }
    }
}

fn shape_error(detector: Detector, poses: &[ViewPose]) -> SimulateError {
    SimulateError::setting(
        "projection buffer",
        format!("{} views of {} x {}", poses.len(), detector.rows, detector.columns),
        "does not have this length",
    )
}
