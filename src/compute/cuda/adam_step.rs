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
    rate: f32,
    root: f32,
    share1: f32,
    share2: f32,
    epsilon: f32,
}

/// See [`crate::compute::gaussians::GaussianCompute::adam_step`].
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
pub fn adam_step(
    launcher: &dyn Launcher,
    settings: &AdamStep,
    parameters: DeviceSlice<f32>,
    gradients: DeviceSlice<f32>,
    first: DeviceSlice<f32>,
    second: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    let n = parameters.len();
    check_len(OPERATION, "gradients", gradients.len(), n)?;
    check_len(OPERATION, "first", first.len(), n)?;
    check_len(OPERATION, "second", second.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let (rate, root) = settings.corrected();
    let argument =
        Settings { rate, root, share1: 1.0 - settings.beta1, share2: 1.0 - settings.beta2, epsilon: settings.epsilon };
    let shape = LaunchShape::covering(OPERATION, [n, 1, 1], [4096, 1, 1], [256, 1, 1])?;
    let arguments =
        Arguments::new().value(argument).write(parameters).read(gradients).write(first).write(second).value(n as i64);
    // SAFETY: the arguments of the kernel; it stays within `n` values of each.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
