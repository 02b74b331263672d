//! [`GaussianCompute`] on the CPU: hands each operation to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::gaussians::{
    AdamStep, GaussianBounds, GaussianCompute, GaussianGradients, GaussianSet, GaussianWorkload, HostGaussianGradients,
    HostGaussians,
};
use super::super::{ComputeError, Values, ValuesMut};
use super::scratch::Need;
use super::{
    CpuCompute, adam_step, check_len, gaussian_project, gaussian_project_backward, gaussian_step, gaussian_voxelise,
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
        gaussians: &GaussianSet<Values<'_>>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project";
        let gaussians = gaussians.each(|values| values.host(OPERATION))?;
        self.gaussian_project(geometry, &gaussians, projections.host(OPERATION)?)
    }

    fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianSet<Values<'_>>,
        by_projections: Values<'_>,
        gradients: GaussianGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project_backward";
        let gaussians = gaussians.each(|values| values.host(OPERATION))?;
        let mut gradients = gradients.each(|values| values.host(OPERATION))?;
        self.gaussian_project_backward(geometry, &gaussians, by_projections.host(OPERATION)?, &mut gradients)
    }

    fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianSet<Values<'_>>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise";
        let gaussians = gaussians.each(|values| values.host(OPERATION))?;
        self.gaussian_voxelise(grid, &gaussians, volume.host(OPERATION)?)
    }

    fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianSet<Values<'_>>,
        by_volume: Values<'_>,
        gradients: GaussianGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise_backward";
        let gaussians = gaussians.each(|values| values.host(OPERATION))?;
        let mut gradients = gradients.each(|values| values.host(OPERATION))?;
        self.gaussian_voxelise_backward(grid, &gaussians, by_volume.host(OPERATION)?, &mut gradients)
    }

    fn adam_step(
        &self,
        settings: &AdamStep,
        parameters: ValuesMut<'_>,
        gradients: Values<'_>,
        first: ValuesMut<'_>,
        second: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "adam_step";
        let (parameters, gradients) = (parameters.host(OPERATION)?, gradients.host(OPERATION)?);
        self.adam_step(settings, parameters, gradients, first.host(OPERATION)?, second.host(OPERATION)?)
    }

    fn gaussian_raw_gradient(
        &self,
        unit_per_mm: f32,
        raw: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_raw_gradient";
        let (raw, gradient) = (raw.host(OPERATION)?, gradient.host(OPERATION)?);
        check_len(OPERATION, "raw", raw.len(), gradient.len())?;
        self.pool.install(|| gaussian_step::raw_gradient(unit_per_mm, raw, gradient));
        Ok(())
    }

    fn gaussian_add_norms(&self, gradient: [Values<'_>; 3], norms: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_add_norms";
        let ([x, y, z], norms) = (gradient, norms.host(OPERATION)?);
        let gradient = [x.host(OPERATION)?, y.host(OPERATION)?, z.host(OPERATION)?];
        gradient.iter().try_for_each(|axis| check_len(OPERATION, "gradient", axis.len(), norms.len()))?;
        self.pool.install(|| gaussian_step::add_norms(gradient, norms));
        Ok(())
    }

    fn gaussian_settle(
        &self,
        bounds: &GaussianBounds,
        raw: Values<'_>,
        log_scale: [ValuesMut<'_>; 3],
        rotation: [ValuesMut<'_>; 4],
        density_per_mm: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_settle";
        let ([a, b, c], [w, x, y, z]) = (log_scale, rotation);
        let log_scale = [a.host(OPERATION)?, b.host(OPERATION)?, c.host(OPERATION)?];
        let rotation = [w.host(OPERATION)?, x.host(OPERATION)?, y.host(OPERATION)?, z.host(OPERATION)?];
        let (raw, density_per_mm) = (raw.host(OPERATION)?, density_per_mm.host(OPERATION)?);
        let others = log_scale.iter().chain(&rotation).map(|values| values.len()).chain([density_per_mm.len()]);
        for given in others {
            check_len(OPERATION, "parameters", given, raw.len())?;
        }
        self.pool.install(|| gaussian_step::settle(bounds, raw, log_scale, rotation, density_per_mm));
        Ok(())
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`GaussianCompute::gaussian_project`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_project(
        &self,
        geometry: &ScanGeometry,
        gaussians: &HostGaussians<'_>,
        projections: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("gaussian_project", "projections", projections.len(), geometry.projection_len())?;
        self.pool.install(|| {
            gaussian_project::gaussian_project(self.simd, &self.gaussian_scratch, geometry, gaussians, projections)
        })
    }

    /// See [`GaussianCompute::gaussian_project_backward`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &HostGaussians<'_>,
        by_projections: &[f32],
        gradients: &mut HostGaussianGradients<'_>,
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

    /// See [`GaussianCompute::gaussian_voxelise`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &HostGaussians<'_>,
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("gaussian_voxelise", "volume", volume.len(), grid.len())?;
        self.pool.install(|| {
            gaussian_voxelise::gaussian_voxelise(self.simd, &self.gaussian_scratch, grid, gaussians, volume)
        })
    }

    /// See [`GaussianCompute::gaussian_voxelise_backward`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &HostGaussians<'_>,
        by_volume: &[f32],
        gradients: &mut HostGaussianGradients<'_>,
    ) -> Result<(), ComputeError> {
        check_len("gaussian_voxelise_backward", "by_volume", by_volume.len(), grid.len())?;
        self.pool.install(|| {
            gaussian_voxelise_backward::gaussian_voxelise_backward(self.simd, grid, gaussians, by_volume, gradients)
        })
    }

    /// See [`GaussianCompute::adam_step`].
    ///
    /// # Errors
    /// As there.
    pub fn adam_step(
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
    pub fn gaussian_pixel_evaluations(geometry: &ScanGeometry, gaussians: &HostGaussians<'_>) -> u64 {
        gaussian_project::evaluations(geometry, gaussians)
    }

    /// Pairs of Gaussian and voxel within the cut-off that voxelising evaluates.
    #[must_use]
    pub fn gaussian_voxel_evaluations(grid: &VolumeGrid, gaussians: &HostGaussians<'_>) -> u64 {
        gaussian_voxelise::evaluations(grid, gaussians)
    }
}
