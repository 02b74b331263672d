//! Launches the kernels of `kernels/total_variation.cu`. Sums stay on the device, in a [`DeviceSum`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::total_variation::TotalVariation;
use super::{Arguments, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len, count};

/// Voxels of a block along z, y, x (`HEIGHTS`, `ROWS` and `DEPTH` of the kernels).
const OF_BLOCK: [usize; 3] = [32, 8, 8];

/// `variation::Definition` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Definition {
    voxels: [i32; 3],
    scale: [f32; 3],
    epsilon: f32,
}

/// Blocks of a launch over so many voxels along x, y, z.
pub(super) fn blocks([x, y, z]: [usize; 3]) -> usize {
    z.div_ceil(OF_BLOCK[0]) * y.div_ceil(OF_BLOCK[1]) * x.div_ceil(OF_BLOCK[2])
}

fn prepare(
    operation: &'static str,
    variation: &TotalVariation,
    volume: DeviceSlice<f32>,
) -> Result<(LaunchShape, Definition), ComputeError> {
    check_len(operation, "volume", volume.len(), variation.len())?;
    variation.check(operation)?;
    let [x, y, z] = variation.voxels;
    let shape = LaunchShape::covering(operation, [z, y, x], OF_BLOCK, [32, 8, 1])?;
    let definition = Definition {
        voxels: [count(operation, "voxels", x)?, count(operation, "voxels", y)?, count(operation, "voxels", z)?],
        scale: variation.scale,
        epsilon: variation.epsilon,
    };
    Ok((shape, definition))
}

/// See [`crate::compute::total_variation::VariationCompute::total_variation`].
///
/// # Errors
/// [`ComputeError::Shape`] where the volume does not fit or `sum` has no room, [`ComputeError::Value`] for an epsilon or a scale that is not
/// positive, [`ComputeError::Device`] where the device refuses.
pub fn total_variation(
    launcher: &dyn Launcher,
    variation: &TotalVariation,
    volume: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "total_variation";
    let (shape, definition) = prepare(OPERATION, variation, volume)?;
    let partials = sum.partials(OPERATION, shape.blocks())?;
    if !volume.is_empty() {
        let arguments = Arguments::new().value(definition).read(volume).write(partials);
        // SAFETY: the arguments of the kernel; it stays within the volume, whose length was checked, and a partial sum a block.
        unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    }
    sum.add_up(launcher, shape.blocks())
}

/// See [`crate::compute::total_variation::VariationCompute::add_total_variation_gradient`].
///
/// # Errors
/// As [`total_variation`].
pub fn add_total_variation_gradient(
    launcher: &dyn Launcher,
    variation: &TotalVariation,
    weight: f32,
    volume: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "add_total_variation_gradient";
    let (shape, definition) = prepare(OPERATION, variation, volume)?;
    check_len(OPERATION, "gradient", gradient.len(), variation.len())?;
    let partials = sum.partials(OPERATION, shape.blocks())?;
    if !volume.is_empty() {
        let arguments = Arguments::new().value(definition).value(weight).read(volume).write(gradient).write(partials);
        // SAFETY: as in `total_variation`.
        unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    }
    sum.add_up(launcher, shape.blocks())
}
