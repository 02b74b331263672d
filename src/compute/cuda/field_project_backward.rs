//! Launches `kernels/field_project_backward.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::field_gradients::Adjoint;
use super::{
    Arguments, DeviceField, DeviceFieldGradients, DeviceRays, DeviceSlice, FieldGradientRoom, Launcher, check_len,
};

const OPERATION: &str = "field_project_backward";

/// See [`crate::compute::field::FieldCompute::field_project_backward`]. A gradient that is not finite makes those by the parameters so.
///
/// # Errors
/// As [`super::field_project()`]; [`ComputeError::Shape`] also where `room` is another field's or for fewer rays.
pub fn field_project_backward(
    launcher: &dyn Launcher,
    rays: &DeviceRays<'_>,
    field: &DeviceField<'_>,
    by_integrals: DeviceSlice<f32>,
    gradients: &DeviceFieldGradients,
    room: &FieldGradientRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "by_integrals", by_integrals.len(), rays.pixels.len())?;
    let mut adjoint = Adjoint::new(OPERATION, launcher, field, gradients, room)?;
    let layout = field.table.layout();
    let of_rays = rays.argument(OPERATION, layout)?;
    if by_integrals.is_empty() {
        return Ok(());
    }
    // No way through the box is longer than its diagonal.
    let shape = adjoint.begin(by_integrals, layout.size_mm().length(), adjoint.batch.of_rays(rays.pixels.len()))?;
    let arguments = Arguments::new()
        .value(field.argument(&adjoint.batch))
        .value(of_rays)
        .read(field.table.levels())
        .read(field.tables)
        .read(field.network)
        .read(rays.views())
        .read(rays.pixels)
        .read(by_integrals);
    let arguments = adjoint.room_arguments(arguments)?;
    // SAFETY: the arguments of the kernel; it holds entries to the levels' tables, looks at views that there are only, reads a gradient a ray
    // and writes a network's partial sums a block, all of which lengths were checked.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    adjoint.finish()
}
