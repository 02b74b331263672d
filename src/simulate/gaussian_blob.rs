//! A smooth object with an exact line integral: for tests of convergence, where an ellipsoid's edge would rule the error.

use glam::{DMat3, DQuat, DVec3};
use ndarray::Array3;
use rayon::prelude::*;

use crate::geometry::{ScanGeometry, VolumeGrid};

/// `mu exp(-|M (x - centre)|^2 / 2)` with `M = diag(1/sigma) R'`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianBlob {
    /// Centre, in the world frame.
    pub centre_mm: DVec3,
    /// Standard deviations along the blob's own axes; each > 0.
    pub sigma_mm: DVec3,
    /// Turns the blob's own axes into the world's.
    pub rotation: DQuat,
    /// Attenuation at the centre.
    pub mu_per_mm: f64,
}

impl GaussianBlob {
    fn to_unit(self) -> DMat3 {
        DMat3::from_diagonal(self.sigma_mm.recip()) * DMat3::from_quat(self.rotation.conjugate())
    }

    /// Attenuation (1/mm) at a point.
    #[must_use]
    pub fn value_at(&self, point_mm: DVec3) -> f64 {
        self.mu_per_mm * (-0.5 * (self.to_unit() * (point_mm - self.centre_mm)).length_squared()).exp()
    }

    /// Exact integral (dimensionless) over the whole line through source and pixel: `mu sqrt(2 pi / a) exp(-w.w / 2)`,
    /// with `a` the squared length of the mapped unit direction and `w` the mapped offset of the centre across the ray.
    #[must_use]
    pub fn line_integral(&self, source_mm: DVec3, pixel_mm: DVec3) -> f64 {
        let m = self.to_unit();
        let d = m * (pixel_mm - source_mm).normalize();
        let across = (m * (self.centre_mm - source_mm)).cross(d).length_squared() / d.length_squared();
        self.mu_per_mm * (std::f64::consts::TAU / d.length_squared()).sqrt() * (-0.5 * across).exp()
    }

    /// Exact line integrals to all pixels' centres, `[view][row v][column u]`.
    #[must_use]
    pub fn line_integrals(&self, geometry: &ScanGeometry) -> Array3<f32> {
        let mut out = Array3::zeros((geometry.views.len(), geometry.detector.rows, geometry.detector.columns));
        out.outer_iter_mut().into_par_iter().zip(&geometry.views).for_each(|(mut view, pose)| {
            for ((v, u), value) in view.indexed_iter_mut() {
                *value = self.line_integral(pose.source_mm, pose.pixel_mm(v as f64, u as f64)) as f32;
            }
        });
        out
    }

    /// Means over `subsamples`^3 points of each voxel, `[x][y][z]` (1/mm).
    #[must_use]
    pub fn voxelise(&self, grid: &VolumeGrid, subsamples: usize) -> Array3<f32> {
        let n = subsamples.max(1);
        let at = |i: usize| (i as f64 + 0.5) / n as f64 - 0.5;
        let mut out = Array3::zeros(grid.voxels);
        out.outer_iter_mut().into_par_iter().enumerate().for_each(|(ix, mut slab)| {
            for ((iy, iz), value) in slab.indexed_iter_mut() {
                let centre = grid.voxel_centre_mm(ix, iy, iz);
                let mut sum = 0.0;
                for k in 0..n * n * n {
                    sum +=
                        self.value_at(centre + grid.voxel_mm * DVec3::new(at(k / (n * n)), at(k / n % n), at(k % n)));
                }
                *value = (sum / (n * n * n) as f64) as f32;
            }
        });
        out
    }
}
