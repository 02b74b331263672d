//! Launches `kernels/adam_step.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::gaussians::AdamStep;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len};

const OPERATION: &str = "adam_step";

/// `adam::Settings` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Settings {
    share1: f32,
    share2: f32,
    epsilon: f32,
}

/// What changes from step to step, as the kernel reads it from the device (see [`adam_step`]).
#[must_use]
pub fn changing(settings: &AdamStep) -> [f32; 2] {
    let (rate, root) = settings.corrected();
    [rate, root]
}

/// See [`crate::compute::gaussians::GaussianCompute::adam_step`]; the learning rate and the corrections of the start are those of `changing`, which holds what
/// [`changing`] gives, so that steps are launched alike.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
#[allow(clippy::too_many_arguments)]
pub fn adam_step(
    launcher: &dyn Launcher,
    settings: &AdamStep,
    changing: DeviceSlice<f32>,
    parameters: DeviceSlice<f32>,
    gradients: DeviceSlice<f32>,
    first: DeviceSlice<f32>,
    second: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    let n = parameters.len();
    check_len(OPERATION, "changing", changing.len(), 2)?;
    check_len(OPERATION, "gradients", gradients.len(), n)?;
    check_len(OPERATION, "first", first.len(), n)?;
    check_len(OPERATION, "second", second.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let argument = Settings { share1: 1.0 - settings.beta1, share2: 1.0 - settings.beta2, epsilon: settings.epsilon };
    let shape = LaunchShape::covering(OPERATION, [n, 1, 1], [4096, 1, 1], [256, 1, 1])?;
    let arguments = Arguments::new()
        .value(argument)
        .read(changing)
        .write(parameters)
        .read(gradients)
        .write(first)
        .write(second)
        .value(n as i64);
    // SAFETY: the arguments of the kernel; it reads two values of `changing` and stays within `n` values of each.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
