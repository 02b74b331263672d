//! Launches the kernels of `kernels/gaussian_step.cu`.

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::{Arguments, DeviceGaussians, DeviceSlice, LaunchShape, Launcher, count};

/// Gaussians of a block: four a thread.
const OF_BLOCK: usize = 1024;

/// `gaussian_step::Step` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Step {
    count: i32,
    capacity: i32,
    unit: f32,
    low: f32,
    high: f32,
}

impl Step {
    fn new(operation: &'static str, gaussians: &DeviceGaussians) -> Result<(Self, LaunchShape), ComputeError> {
        gaussians.check(operation)?;
        let step = Self {
            count: count(operation, "Gaussians", gaussians.len)?,
            capacity: count(operation, "Gaussians", gaussians.capacity())?,
            unit: 0.0,
            low: 0.0,
            high: 0.0,
        };
        Ok((step, LaunchShape::covering(operation, [gaussians.len, 1, 1], [OF_BLOCK, 1, 1], [256, 1, 1])?))
    }
}

/// Turns the gradient by density (the first channel of `gradients`, `[12][capacity]`) into that by its raw value, of which the density is
/// `density_unit_per_mm` times the softplus.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn weigh_density_gradient(
    launcher: &dyn Launcher,
    gaussians: &DeviceGaussians,
    density_unit_per_mm: f32,
    gradients: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "weigh_density_gradient";
    let (step, shape) = Step::new(OPERATION, gaussians)?;
    gaussians.check_gradients(OPERATION, gradients)?;
    if gaussians.len == 0 {
        return Ok(());
    }
    let step = Step { unit: density_unit_per_mm, ..step };
    let arguments = Arguments::new().value(step).read(gaussians.parameters).write(gradients);
    // SAFETY: the arguments of the kernel; it stays within the first `len` of the first channels.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}

/// Adds the norm of the gradient by position (channels 1 to 3 of `gradients`, `[12][capacity]`) to the last channel: see
/// [`crate::represent::gaussians::Gaussians::add_position_norms`].
///
/// # Errors
/// As [`weigh_density_gradient`].
pub fn add_position_norms(
    launcher: &dyn Launcher,
    gaussians: &DeviceGaussians,
    gradients: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "add_position_norms";
    let (step, shape) = Step::new(OPERATION, gaussians)?;
    gaussians.check_gradients(OPERATION, gradients)?;
    if gaussians.len == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(step).write(gradients);
    // SAFETY: the arguments of the kernel; it stays within the first `len` of each channel.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}

/// After a step: brings scales within `scales_mm` (smallest, largest) and quaternions to unit length, and works out the densities.
///
/// # Errors
/// As [`weigh_density_gradient`].
pub fn settle_gaussians(
    launcher: &dyn Launcher,
    gaussians: &DeviceGaussians,
    density_unit_per_mm: f32,
    scales_mm: [f32; 2],
) -> Result<(), ComputeError> {
    const OPERATION: &str = "settle_gaussians";
    let (step, shape) = Step::new(OPERATION, gaussians)?;
    if gaussians.len == 0 {
        return Ok(());
    }
    let [low, high] = scales_mm.map(f32::ln);
    let step = Step { unit: density_unit_per_mm, low, high, ..step };
    let arguments = Arguments::new().value(step).write(gaussians.parameters).write(gaussians.density_per_mm);
    // SAFETY: the arguments of the kernel; it stays within the first `len` of each channel.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
