//! Launches the kernels of `kernels/values.cu`. Sums stay on the device, in a [`DeviceSum`].

#![allow(unsafe_code)] // Launches kernels.

use super::super::ComputeError;
use super::sart::{blocks, shape};
use super::{Arguments, DeviceSlice, DeviceSum, Launcher, check_len};

/// `out = first - second`.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
pub fn subtract(
    launcher: &dyn Launcher,
    first: DeviceSlice<f32>,
    second: DeviceSlice<f32>,
    out: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "subtract";
    let n = out.len();
    check_len(OPERATION, "first", first.len(), n)?;
    check_len(OPERATION, "second", second.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().read(first).read(second).write(out).value(n as i64);
    // SAFETY: the arguments of the kernel; it stays within `n` values of each.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// `to += factor * from`.
///
/// # Errors
/// As [`subtract`].
pub fn add_scaled(
    launcher: &dyn Launcher,
    factor: f32,
    from: DeviceSlice<f32>,
    to: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "add_scaled";
    let n = to.len();
    check_len(OPERATION, "from", from.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(factor).read(from).write(to).value(n as i64);
    // SAFETY: as in `subtract`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// `values *= factor`.
///
/// # Errors
/// [`ComputeError::Device`] where the device refuses.
pub fn scale(launcher: &dyn Launcher, factor: f32, values: DeviceSlice<f32>) -> Result<(), ComputeError> {
    const OPERATION: &str = "scale";
    let n = values.len();
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(factor).write(values).value(n as i64);
    // SAFETY: as in `subtract`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// `to = factor * from`.
///
/// # Errors
/// As [`subtract`].
pub fn copy_scaled(
    launcher: &dyn Launcher,
    factor: f32,
    from: DeviceSlice<f32>,
    to: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "copy_scaled";
    let n = to.len();
    check_len(OPERATION, "from", from.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(factor).read(from).write(to).value(n as i64);
    // SAFETY: as in `subtract`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// The sum of `first * second`, products and sum in float64.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ or `sum` has no room, [`ComputeError::Device`] where the device refuses.
pub fn dot(
    launcher: &dyn Launcher,
    first: DeviceSlice<f32>,
    second: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "dot";
    let n = first.len();
    check_len(OPERATION, "second", second.len(), n)?;
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments = Arguments::new().read(first).read(second).value(n as i64).write(partials);
        // SAFETY: the arguments of the kernel; it stays within `n` values of each, and a partial sum a block.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}

/// Sets the gradient to 0 where `volume` is 0 or less and would fall further.
///
/// # Errors
/// As [`subtract`].
pub fn hold_at_zero(
    launcher: &dyn Launcher,
    volume: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "hold_at_zero";
    let n = gradient.len();
    check_len(OPERATION, "volume", volume.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().read(volume).write(gradient).value(n as i64);
    // SAFETY: as in `subtract`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// How many values are infinite or no number; `sum` reads as a whole number.
///
/// # Errors
/// As [`dot`].
pub fn count_not_finite(
    launcher: &dyn Launcher,
    values: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "count_not_finite";
    let n = values.len();
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments = Arguments::new().read(values).value(n as i64).write(partials);
        // SAFETY: as in `dot`.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}

/// `gradient += weight * sign(volume - reference)`, the sign of 0 being 0.
///
/// # Errors
/// As [`subtract`].
pub fn add_modulus_gradient(
    launcher: &dyn Launcher,
    weight: f32,
    volume: DeviceSlice<f32>,
    reference: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "add_modulus_gradient";
    let n = gradient.len();
    check_len(OPERATION, "volume", volume.len(), n)?;
    check_len(OPERATION, "reference", reference.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(weight).read(volume).read(reference).write(gradient).value(n as i64);
    // SAFETY: as in `subtract`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}
