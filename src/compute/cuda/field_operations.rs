//! [`FieldCompute`] on a device.

#![forbid(unsafe_code)]

use glam::DVec3;

use super::super::field::{
    FieldCompute, FieldGradients, FieldJitter, FieldLayout, FieldParameters, FieldRays, FieldWorkload,
};
use super::super::{ComputeError, Values, ValuesMut};
use super::recorder::Recorder;
use super::{
    CudaCompute, DeviceField, DeviceFieldGradients, DeviceRays, DeviceSlice, FieldGradientRoom, FieldTable,
    PixelRecord, RayTable,
};
use crate::geometry::{ScanGeometry, VolumeGrid};

/// What a field's operations need beside its parameters.
pub(super) struct FieldRoom {
    workload: FieldWorkload,
    gradients: FieldGradientRoom,
    /// Of the field that was used last.
    table: Option<FieldTable>,
    /// Of the scan that rays were last sent through, for that field.
    rays: Option<(ScanGeometry, RayTable)>,
    pixels: DeviceSlice<PixelRecord>,
    /// Pixels on their way to the device.
    fresh: Vec<PixelRecord>,
}

fn layout(workload: &FieldWorkload) -> Result<FieldLayout, ComputeError> {
    // The box alone counts; where it stands is the field's own matter.
    FieldLayout::new(&workload.shape, &VolumeGrid::over_box([1; 3], DVec3::from_array(workload.box_mm), DVec3::ZERO))
}

impl FieldRoom {
    fn allocate(compute: &CudaCompute, workload: &FieldWorkload) -> Result<Self, ComputeError> {
        let (launcher, layout) = (compute.launcher(), layout(workload)?);
        Ok(Self {
            workload: *workload,
            gradients: FieldGradientRoom::allocate(launcher, &layout, workload.voxels, workload.rays)?,
            table: None,
            rays: None,
            pixels: DeviceSlice::allocate(launcher, workload.rays)?,
            fresh: Vec::with_capacity(workload.rays),
        })
    }

    /// The levels of this field on the device.
    fn table(&mut self, compute: &CudaCompute, layout: &FieldLayout) -> Result<&FieldTable, ComputeError> {
        if self.table.as_ref().is_none_or(|table| table.layout() != layout) {
            (self.table, self.rays) = (Some(FieldTable::upload(compute.launcher(), layout)?), None);
        }
        // Just uploaded, if it was not there.
        self.table.as_ref().ok_or(ComputeError::Scratch { operation: "field", needed: 1, prepared: 0 })
    }

    /// The rays on the device. Their scan is uploaded where it is another than the last one's, which takes memory anew.
    fn rays(
        &mut self,
        compute: &CudaCompute,
        operation: &'static str,
        rays: &FieldRays<'_>,
        layout: &FieldLayout,
    ) -> Result<(RayTable, DeviceSlice<PixelRecord>), ComputeError> {
        let (needed, prepared) = (rays.pixels.len(), self.pixels.len());
        let bytes = |rays: usize| rays * size_of::<PixelRecord>();
        let lacks = ComputeError::Scratch { operation, needed: bytes(needed), prepared: bytes(prepared) };
        let pixels = self.pixels.part(0..needed).ok_or(lacks)?;
        self.fresh.clear();
        self.fresh.extend(rays.pixels.iter().map(|&pixel| PixelRecord::from(pixel)));
        pixels.copy_from(compute.launcher(), &self.fresh)?;
        let table = match self.rays.as_ref().filter(|(known, _)| known == rays.geometry) {
            Some((_, table)) => *table,
            None => {
                let table = RayTable::upload(compute.launcher(), rays.geometry, layout)?;
                self.rays = Some((rays.geometry.clone(), table));
                table
            }
        };
        Ok((table, pixels))
    }
}

fn on_device(
    operation: &'static str,
    gradients: FieldGradients<ValuesMut<'_>>,
) -> Result<DeviceFieldGradients, ComputeError> {
    Ok(DeviceFieldGradients {
        tables: gradients.tables.device(operation)?,
        network: gradients.network.device(operation)?,
    })
}

impl CudaCompute {
    /// The draw where kernels read it.
    fn jitter_key(
        &self,
        operation: &'static str,
        jitter: Option<FieldJitter>,
    ) -> Result<Option<DeviceSlice<u32>>, ComputeError> {
        jitter.map(|jitter| self.recorder.parameters(operation, &super::jitter_key(Some(jitter)))).transpose()
    }

    /// Has `work` work with the room that was prepared.
    fn with_field<R>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut FieldRoom) -> Result<R, ComputeError>,
    ) -> Result<R, ComputeError> {
        let mut state = self.state();
        let lacks = ComputeError::Scratch { operation, needed: size_of::<f32>(), prepared: 0 };
        work(state.field.as_mut().ok_or(lacks)?)
    }
}

impl FieldCompute for CudaCompute {
    fn field_scratch_bytes(&self, workload: &FieldWorkload) -> usize {
        let room =
            layout(workload).and_then(|layout| FieldGradientRoom::bytes(&layout, workload.voxels, workload.rays));
        // A shape that cannot work is refused when it is prepared.
        room.unwrap_or(0) + workload.rays * size_of::<PixelRecord>() + Recorder::bytes()
    }

    fn prepare_field(&mut self, workload: &FieldWorkload) -> Result<(), ComputeError> {
        self.recorder.prepare()?;
        if self.state().field.as_ref().is_none_or(|room| room.workload != *workload) {
            let room = FieldRoom::allocate(self, workload)?;
            self.state().field = Some(room);
        }
        Ok(())
    }

    fn field_voxelise(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_, Values<'_>>,
        jitter: Option<FieldJitter>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_voxelise";
        let FieldParameters { layout, tables, network, level_weights } = *field;
        let (tables, network) = (tables.device(OPERATION)?, network.device(OPERATION)?);
        let volume = volume.device(OPERATION)?;
        let jitter = self.jitter_key(OPERATION, jitter)?;
        self.with_field(OPERATION, |room| {
            let field = DeviceField { table: room.table(self, layout)?, tables, network, level_weights };
            super::field_voxelise(self.launcher(), grid, &field, jitter, volume)
        })
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
        let FieldParameters { layout, tables, network, level_weights } = *field;
        let (tables, network) = (tables.device(OPERATION)?, network.device(OPERATION)?);
        let (by_volume, by) = (by_volume.device(OPERATION)?, on_device(OPERATION, gradients)?);
        let jitter = self.jitter_key(OPERATION, jitter)?;
        self.with_field(OPERATION, |room| {
            let gradients = room.gradients;
            let field = DeviceField { table: room.table(self, layout)?, tables, network, level_weights };
            super::field_voxelise_backward(self.launcher(), grid, &field, jitter, by_volume, &by, &gradients)
        })
    }

    fn field_project(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        integrals: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_project";
        let FieldParameters { layout, tables, network, level_weights } = *field;
        let (tables, network) = (tables.device(OPERATION)?, network.device(OPERATION)?);
        let integrals = integrals.device(OPERATION)?;
        self.with_field(OPERATION, |room| {
            room.table(self, layout)?;
            let (table, pixels) = room.rays(self, OPERATION, rays, layout)?;
            let of = DeviceRays { table: &table, pixels, samples: rays.samples, jitter: rays.jitter };
            let field = DeviceField { table: room.table(self, layout)?, tables, network, level_weights };
            super::field_project(self.launcher(), &of, &field, integrals)
        })
    }

    fn field_project_backward(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        by_integrals: Values<'_>,
        gradients: FieldGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "field_project_backward";
        let FieldParameters { layout, tables, network, level_weights } = *field;
        let (tables, network) = (tables.device(OPERATION)?, network.device(OPERATION)?);
        let (by_integrals, by) = (by_integrals.device(OPERATION)?, on_device(OPERATION, gradients)?);
        self.with_field(OPERATION, |room| {
            room.table(self, layout)?;
            let (table, pixels) = room.rays(self, OPERATION, rays, layout)?;
            let of = DeviceRays { table: &table, pixels, samples: rays.samples, jitter: rays.jitter };
            let gradients = room.gradients;
            let field = DeviceField { table: room.table(self, layout)?, tables, network, level_weights };
            super::field_project_backward(self.launcher(), &of, &field, by_integrals, &by, &gradients)
        })
    }
}
