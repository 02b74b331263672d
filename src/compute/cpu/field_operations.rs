//! [`FieldCompute`] on the CPU: hands each operation to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::field::{
    FieldCompute, FieldGradients, FieldJitter, FieldParameters, FieldRays, FieldWorkload, HostFieldGradients,
};
use super::super::{ComputeError, Values, ValuesMut};
use super::scratch::Need;
use super::{CpuCompute, check_len, field_project, field_project_backward, field_voxelise, field_voxelise_backward};
use crate::geometry::VolumeGrid;

fn host<'a>(
    operation: &'static str,
    field: &FieldParameters<'a, Values<'a>>,
) -> Result<FieldParameters<'a>, ComputeError> {
    let FieldParameters { layout, tables, network, level_weights } = *field;
    Ok(FieldParameters { layout, tables: tables.host(operation)?, network: network.host(operation)?, level_weights })
}

fn host_gradients<'a>(
    operation: &'static str,
    gradients: FieldGradients<ValuesMut<'a>>,
) -> Result<HostFieldGradients<'a>, ComputeError> {
    Ok(FieldGradients { tables: gradients.tables.host(operation)?, network: gradients.network.host(operation)? })
}

fn need(workload: &FieldWorkload) -> Need {
    field_voxelise::need(workload)
        .either(field_voxelise_backward::need(workload))
        .either(field_project::need(&workload.shape))
        .either(field_project_backward::need(&workload.shape))
}

impl FieldCompute for CpuCompute {
    fn field_scratch_bytes(&self, workload: &FieldWorkload) -> usize {
        need(workload).bytes(self.threads())
    }

    fn prepare_field(&mut self, workload: &FieldWorkload) -> Result<(), ComputeError> {
        workload.shape.check()?;
        self.field_scratch.prepare(need(workload))
    }

    fn field_voxelise(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_, Values<'_>>,
        jitter: Option<FieldJitter>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_voxelise";
        self.field_voxelise(grid, &host(OPERATION, field)?, jitter, volume.host(OPERATION)?)
    }

    fn field_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_, Values<'_>>,
        jitter: Option<FieldJitter>,
        by_volume: Values<'_>,
        gradients: FieldGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_voxelise_backward";
        let mut gradients = host_gradients(OPERATION, gradients)?;
        self.field_voxelise_backward(grid, &host(OPERATION, field)?, jitter, by_volume.host(OPERATION)?, &mut gradients)
    }

    fn field_project(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        integrals: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_project";
        self.field_project(rays, &host(OPERATION, field)?, integrals.host(OPERATION)?)
    }

    fn field_project_backward(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        by_integrals: Values<'_>,
        gradients: FieldGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_project_backward";
        let mut gradients = host_gradients(OPERATION, gradients)?;
        self.field_project_backward(rays, &host(OPERATION, field)?, by_integrals.host(OPERATION)?, &mut gradients)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`FieldCompute::field_voxelise`].
    ///
    /// # Errors
    /// As there.
    pub fn field_voxelise(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_>,
        jitter: Option<FieldJitter>,
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("field_voxelise", "volume", volume.len(), grid.len())?;
        self.pool
            .install(|| field_voxelise::field_voxelise(self.simd, &self.field_scratch, grid, field, jitter, volume))
    }

    /// See [`FieldCompute::field_voxelise_backward`].
    ///
    /// # Errors
    /// As there.
    pub fn field_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_>,
        jitter: Option<FieldJitter>,
        by_volume: &[f32],
        gradients: &mut HostFieldGradients<'_>,
    ) -> Result<(), ComputeError> {
        check_len("field_voxelise_backward", "by_volume", by_volume.len(), grid.len())?;
        self.pool.install(|| {
            field_voxelise_backward::field_voxelise_backward(
                self.simd,
                &self.field_scratch,
                grid,
                field,
                jitter,
                by_volume,
                gradients,
            )
        })
    }

    /// See [`FieldCompute::field_project`].
    ///
    /// # Errors
    /// As there.
    pub fn field_project(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        integrals: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("field_project", "integrals", integrals.len(), rays.pixels.len())?;
        self.pool.install(|| field_project::field_project(self.simd, &self.field_scratch, rays, field, integrals))
    }

    /// See [`FieldCompute::field_project_backward`].
    ///
    /// # Errors
    /// As there.
    pub fn field_project_backward(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        by_integrals: &[f32],
        gradients: &mut HostFieldGradients<'_>,
    ) -> Result<(), ComputeError> {
        check_len("field_project_backward", "by_integrals", by_integrals.len(), rays.pixels.len())?;
        self.pool.install(|| {
            field_project_backward::field_project_backward(
                self.simd,
                &self.field_scratch,
                rays,
                field,
                by_integrals,
                gradients,
            )
        })
    }
}
