//! [`GaussianCompute`] on the CPU: hands each operation to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::ComputeError;
use super::super::gaussians::{AdamStep, GaussianCompute, GaussianGradients, GaussianSet, GaussianWorkload};
use super::scratch::Need;
use super::{
    CpuCompute, adam_step, check_len, gaussian_project, gaussian_project_backward, gaussian_voxelise,
    gaussian_voxelise_backward,
};
use crate::geometry::{ScanGeometry, VolumeGrid};

fn need(workload: &GaussianWorkload) -> Need {
    gaussian_project::need(workload)
        .either(gaussian_project_backward::need(workload))
        .either(gaussian_voxelise::need(workload))
}

impl GaussianCompute for CpuCompute {
    fn gaussian_scratch_bytes(&self, workload: &GaussianWorkload) -> usize {
        need(workload).bytes(self.threads())
    }

    fn prepare_gaussians(&mut self, workload: &GaussianWorkload) -> Result<(), ComputeError> {
        self.gaussian_scratch.prepare(need(workload))
    }

    fn gaussian_project(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianSet<'_>,
        projections: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("gaussian_project", "projections", projections.len(), geometry.projection_len())?;
        self.pool.install(|| {
            gaussian_project::gaussian_project(self.simd, &self.gaussian_scratch, geometry, gaussians, projections)
        })
    }

    fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianSet<'_>,
        by_projections: &[f32],
        gradients: &mut GaussianGradients<'_>,
    ) -> Result<(), ComputeError> {
        check_len("gaussian_project_backward", "by_projections", by_projections.len(), geometry.projection_len())?;
        self.pool.install(|| {
            gaussian_project_backward::gaussian_project_backward(
                self.simd,
                &self.gaussian_scratch,
                geometry,
                gaussians,
                by_projections,
                gradients,
            )
        })
    }

    fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianSet<'_>,
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("gaussian_voxelise", "volume", volume.len(), grid.len())?;
        self.pool.install(|| {
            gaussian_voxelise::gaussian_voxelise(self.simd, &self.gaussian_scratch, grid, gaussians, volume)
        })
    }

    fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianSet<'_>,
        by_volume: &[f32],
        gradients: &mut GaussianGradients<'_>,
    ) -> Result<(), ComputeError> {
        check_len("gaussian_voxelise_backward", "by_volume", by_volume.len(), grid.len())?;
        self.pool.install(|| {
            gaussian_voxelise_backward::gaussian_voxelise_backward(self.simd, grid, gaussians, by_volume, gradients)
        })
    }

    fn adam_step(
        &self,
        settings: &AdamStep,
        parameters: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) -> Result<(), ComputeError> {
        self.pool.install(|| adam_step::adam_step(self.simd, settings, parameters, gradients, first, second))
    }
}

impl CpuCompute {
    /// Pairs of Gaussian and pixel within the cut-off that a projection evaluates: its cost, for benches and plans.
    #[must_use]
    pub fn gaussian_pixel_evaluations(geometry: &ScanGeometry, gaussians: &GaussianSet<'_>) -> u64 {
        gaussian_project::evaluations(geometry, gaussians)
    }

    /// Pairs of Gaussian and voxel within the cut-off that voxelising evaluates.
    #[must_use]
    pub fn gaussian_voxel_evaluations(grid: &VolumeGrid, gaussians: &GaussianSet<'_>) -> u64 {
        gaussian_voxelise::evaluations(grid, gaussians)
    }
}
