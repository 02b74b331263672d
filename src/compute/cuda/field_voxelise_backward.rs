//! Launches `kernels/field_voxelise_backward.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::field_gradients::Adjoint;
use super::field_voxelise::GridArgument;
use super::{Arguments, DeviceField, DeviceFieldGradients, DeviceSlice, FieldGradientRoom, Launcher, check_len};
use crate::geometry::VolumeGrid;

const OPERATION: &str = "field_voxelise_backward";

/// See [`crate::compute::field::FieldCompute::field_voxelise_backward`]. A gradient that is not finite makes those by the parameters so.
///
/// # Errors
/// As [`super::field_voxelise()`]; [`ComputeError::Shape`] also where `room` is another field's or for fewer voxels.
pub fn field_voxelise_backward(
    launcher: &dyn Launcher,
    grid: &VolumeGrid,
    field: &DeviceField<'_>,
    jitter: Option<DeviceSlice<u32>>,
    by_volume: DeviceSlice<f32>,
    gradients: &DeviceFieldGradients,
    room: &FieldGradientRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "by_volume", by_volume.len(), grid.len())?;
    let mut adjoint = Adjoint::new(OPERATION, launcher, field, gradients, room)?;
    if by_volume.is_empty() {
        return Ok(());
    }
    let of_grid = GridArgument::new(OPERATION, grid, field.table.layout(), jitter)?;
    let shape = adjoint.begin(by_volume, 1.0, adjoint.batch.of_voxels(grid.voxels))?;
    let arguments = Arguments::new()
        .value(field.argument(&adjoint.batch))
        .value(of_grid)
        .read(field.table.levels())
        .read(jitter.unwrap_or(DeviceSlice::empty()))
        .read(field.tables)
        .read(field.network)
        .read(by_volume);
    let arguments = adjoint.room_arguments(arguments)?;
    // SAFETY: the arguments of the kernel; it reads a key where there is one, holds entries to the levels' tables, reads the volume's voxels and writes a network's partial sums a
    // block, all of which lengths were checked.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    adjoint.finish()
}
