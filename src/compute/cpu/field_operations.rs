//! [`FieldCompute`] on the CPU: hands each operation to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::ComputeError;
use super::super::field::{FieldCompute, FieldGradients, FieldJitter, FieldParameters, FieldRays, FieldWorkload};
use super::scratch::Need;
use super::{CpuCompute, check_len, field_project, field_project_backward, field_voxelise, field_voxelise_backward};
use crate::geometry::VolumeGrid;

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
        field: &FieldParameters<'_>,
        jitter: Option<FieldJitter>,
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("field_voxelise", "volume", volume.len(), grid.len())?;
        self.pool
            .install(|| field_voxelise::field_voxelise(self.simd, &self.field_scratch, grid, field, jitter, volume))
    }

    fn field_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_>,
        jitter: Option<FieldJitter>,
        by_volume: &[f32],
        gradients: &mut FieldGradients<'_>,
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

    fn field_project(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        integrals: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("field_project", "integrals", integrals.len(), rays.pixels.len())?;
        self.pool.install(|| field_project::field_project(self.simd, &self.field_scratch, rays, field, integrals))
    }

    fn field_project_backward(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        by_integrals: &[f32],
        gradients: &mut FieldGradients<'_>,
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
