//! Launches the kernels of `kernels/sart.cu`. Sums stay on the device, in a [`DeviceSum`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::sart::CorrectionStep;
use super::{Arguments, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len};

/// Values of a block (`tile::TILE` of the kernels).
const TILE: usize = 4096;

/// `sart::Step` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Step {
    relaxation: f32,
    least_sum: f32,
    least: f32,
}

/// Blocks of a launch over so many values.
pub(super) fn blocks(values: usize) -> usize {
    values.div_ceil(TILE)
}

/// The launch over so many values.
pub(super) fn shape(operation: &'static str, values: usize) -> Result<LaunchShape, ComputeError> {
    LaunchShape::covering(operation, [values, 1, 1], [TILE, 1, 1], [256, 1, 1])
}

/// See [`crate::compute::sart::SartCompute::weigh_residual`].
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ or `sum` has no room, [`ComputeError::Device`] where the device refuses.
pub fn weigh_residual(
    launcher: &dyn Launcher,
    measured: DeviceSlice<f32>,
    weights: DeviceSlice<f32>,
    projections: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "weigh_residual";
    let n = projections.len();
    check_len(OPERATION, "measured", measured.len(), n)?;
    check_len(OPERATION, "weights", weights.len(), n)?;
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments =
            Arguments::new().read(measured).read(weights).write(projections).value(n as i64).write(partials);
        // SAFETY: the arguments of the kernel; it stays within `n` values of each, and a partial sum a block.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}

/// See [`crate::compute::sart::SartCompute::apply_correction`].
///
/// # Errors
/// As [`weigh_residual`].
pub fn apply_correction(
    launcher: &dyn Launcher,
    step: &CorrectionStep,
    correction: DeviceSlice<f32>,
    column_sums: DeviceSlice<f32>,
    volume: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "apply_correction";
    let n = volume.len();
    check_len(OPERATION, "correction", correction.len(), n)?;
    check_len(OPERATION, "column_sums", column_sums.len(), n)?;
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let CorrectionStep { relaxation, least_sum, least } = *step;
        let arguments = Arguments::new()
            .value(Step { relaxation, least_sum, least })
            .read(correction)
            .read(column_sums)
            .write(volume)
            .value(n as i64)
            .write(partials);
        // SAFETY: as in `weigh_residual`.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}

/// See [`crate::compute::sart::SartCompute::descend`].
///
/// # Errors
/// As [`weigh_residual`].
pub fn descend(
    launcher: &dyn Launcher,
    step: f32,
    gradient: DeviceSlice<f32>,
    least: f32,
    volume: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "descend";
    let n = volume.len();
    check_len(OPERATION, "gradient", gradient.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(step).read(gradient).value(least).write(volume).value(n as i64);
    // SAFETY: the arguments of the kernel; it stays within `n` values of both.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// See [`crate::compute::sart::SartCompute::squared_norm`].
///
/// # Errors
/// As [`weigh_residual`].
pub fn squared_norm(launcher: &dyn Launcher, values: DeviceSlice<f32>, sum: &DeviceSum) -> Result<(), ComputeError> {
    const OPERATION: &str = "squared_norm";
    let n = values.len();
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments = Arguments::new().read(values).value(n as i64).write(partials);
        // SAFETY: as in `weigh_residual`.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}

/// See [`crate::compute::sart::SartCompute::squared_distance`].
///
/// # Errors
/// As [`weigh_residual`].
pub fn squared_distance(
    launcher: &dyn Launcher,
    first: DeviceSlice<f32>,
    second: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "squared_distance";
    let n = first.len();
    check_len(OPERATION, "second", second.len(), n)?;
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments = Arguments::new().read(first).read(second).value(n as i64).write(partials);
        // SAFETY: as in `weigh_residual`.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}
