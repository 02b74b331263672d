//! [`GaussianCompute`] on the CPU: hands each operation to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::gaussians::{
    AdamStep, CHANNELS, GaussianArrays, GaussianCompute, GaussianGradients, GaussianSet, GaussianWorkload,
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
        gaussians: &GaussianArrays<Values<'_>>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project";
        self.gaussian_project(geometry, &set(OPERATION, gaussians)?, projections.host(OPERATION)?)
    }

    fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianArrays<Values<'_>>,
        by_projections: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project_backward";
        let set = set(OPERATION, gaussians)?;
        let mut gradients = lent(OPERATION, gaussians, gradients)?;
        self.gaussian_project_backward(geometry, &set, by_projections.host(OPERATION)?, &mut gradients)
    }

    fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise";
        self.gaussian_voxelise(grid, &set(OPERATION, gaussians)?, volume.host(OPERATION)?)
    }

    fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        by_volume: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise_backward";
        let set = set(OPERATION, gaussians)?;
        let mut gradients = lent(OPERATION, gaussians, gradients)?;
        self.gaussian_voxelise_backward(grid, &set, by_volume.host(OPERATION)?, &mut gradients)
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

    fn weigh_density_gradient(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        density_unit_per_mm: f32,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "weigh_density_gradient";
        let gradients = lent(OPERATION, gaussians, gradients)?;
        let raw = &gaussians.parameters.host(OPERATION)?[..gaussians.len];
        self.pool.install(|| gaussian_step::weigh_density_gradient(density_unit_per_mm, raw, gradients.density_per_mm));
        Ok(())
    }

    fn add_position_norms(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        let GaussianGradients { position_mm, view_norm, .. } = lent("add_position_norms", gaussians, gradients)?;
        self.pool.install(|| gaussian_step::add_norms(position_mm.each_ref().map(|axis| &**axis), view_norm));
        Ok(())
    }

    fn settle_gaussians(
        &self,
        gaussians: GaussianArrays<ValuesMut<'_>>,
        density_unit_per_mm: f32,
        scales_mm: [f32; 2],
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "settle_gaussians";
        let GaussianArrays { parameters, density_per_mm, len, .. } = gaussians;
        let (parameters, density_per_mm) = (parameters.host(OPERATION)?, density_per_mm.host(OPERATION)?);
        let [raw, _, _, _, a, b, c, w, x, y, z] = channels(OPERATION, parameters, density_per_mm.len(), len)?;
        let density_per_mm = &mut density_per_mm[..len];
        self.pool.install(|| {
            gaussian_step::settle(scales_mm, [a, b, c], [w, x, y, z]);
            gaussian_step::densities(density_unit_per_mm, raw, density_per_mm);
        });
        Ok(())
    }
}

/// The used part of each of `N` channels.
fn channels<'a, const N: usize>(
    operation: &'static str,
    values: &'a mut [f32],
    capacity: usize,
    len: usize,
) -> Result<[&'a mut [f32]; N], ComputeError> {
    check_len(operation, "channels", values.len(), N * capacity)?;
    check_count(operation, capacity, len)?;
    let mut channels = values.chunks_exact_mut(capacity.max(1)).map(|channel| &mut channel[..len]);
    // As many as were checked, or none of a capacity of none.
    Ok(std::array::from_fn(|_| channels.next().unwrap_or_default()))
}

fn check_count(operation: &'static str, capacity: usize, len: usize) -> Result<(), ComputeError> {
    if len <= capacity {
        return Ok(());
    }
    Err(ComputeError::Shape { operation, buffer: "gaussians", given: capacity, needed: len })
}

/// The arrays of Gaussians as slices.
fn set<'a>(operation: &'static str, gaussians: &GaussianArrays<Values<'a>>) -> Result<GaussianSet<'a>, ComputeError> {
    let GaussianArrays { parameters, density_per_mm, len, low_pass_mm } = *gaussians;
    let (parameters, density_per_mm) = (parameters.host(operation)?, density_per_mm.host(operation)?);
    let capacity = density_per_mm.len();
    check_len(operation, "parameters", parameters.len(), CHANNELS * capacity)?;
    check_count(operation, capacity, len)?;
    let channel = |k: usize| &parameters[k * capacity..][..len];
    Ok(GaussianSet {
        density_per_mm: &density_per_mm[..len],
        position_mm: [channel(1), channel(2), channel(3)],
        log_scale: [channel(4), channel(5), channel(6)],
        rotation: [channel(7), channel(8), channel(9), channel(10)],
        low_pass_mm,
    })
}

/// Their gradients as slices.
fn lent<'a>(
    operation: &'static str,
    gaussians: &GaussianArrays<Values<'_>>,
    gradients: ValuesMut<'a>,
) -> Result<GaussianGradients<'a>, ComputeError> {
    let (capacity, gradients) = (gaussians.density_per_mm.len(), gradients.host(operation)?);
    let [density_per_mm, px, py, pz, a, b, c, w, x, y, z, view_norm] =
        channels(operation, gradients, capacity, gaussians.len)?;
    Ok(GaussianGradients {
        density_per_mm,
        position_mm: [px, py, pz],
        log_scale: [a, b, c],
        rotation: [w, x, y, z],
        view_norm,
    })
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
        gaussians: &GaussianSet<'_>,
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

    /// See [`GaussianCompute::gaussian_voxelise`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_voxelise(
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

    /// See [`GaussianCompute::gaussian_voxelise_backward`].
    ///
    /// # Errors
    /// As there.
    pub fn gaussian_voxelise_backward(
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
    pub fn gaussian_pixel_evaluations(geometry: &ScanGeometry, gaussians: &GaussianSet<'_>) -> u64 {
        gaussian_project::evaluations(geometry, gaussians)
    }

    /// Pairs of Gaussian and voxel within the cut-off that voxelising evaluates.
    #[must_use]
    pub fn gaussian_voxel_evaluations(grid: &VolumeGrid, gaussians: &GaussianSet<'_>) -> u64 {
        gaussian_voxelise::evaluations(grid, gaussians)
    }
}
