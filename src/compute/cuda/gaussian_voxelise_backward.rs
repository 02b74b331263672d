//! Launches the kernels of `kernels/gaussian_voxelise_backward.cu`.

#![allow(unsafe_code)] // Launches kernels.

use super::super::ComputeError;
use super::gaussian_voxelise::{GridArgument, place_gaussians};
use super::{Arguments, DeviceGaussians, DeviceSlice, GaussianRoom, LaunchShape, Launcher, check_len, count};
use crate::geometry::VolumeGrid;

const OPERATION: &str = "gaussian_voxelise_backward";

/// See [`crate::compute::gaussians::GaussianCompute::gaussian_voxelise_backward`]. `gradients` is `[12][capacity]`: density, position, log
/// scales, quaternion, and the views' norms, which are left alone. What is added to a Gaussian that is left out (see
/// [`GaussianRoom::unsound`]) is nothing.
///
/// # Errors
/// As [`super::gaussian_voxelise()`].
pub fn gaussian_voxelise_backward(
    launcher: &dyn Launcher,
    grid: &VolumeGrid,
    gaussians: &DeviceGaussians,
    by_volume: DeviceSlice<f32>,
    gradients: DeviceSlice<f32>,
    room: &GaussianRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "by_volume", by_volume.len(), grid.len())?;
    let set = gaussians.check(OPERATION)?;
    gaussians.check_gradients(OPERATION, gradients)?;
    room.records(OPERATION, gaussians.len, 0)?;
    if by_volume.is_empty() || gaussians.len == 0 {
        return room.clear(launcher);
    }
    let frame = GridArgument::new(OPERATION, grid)?;
    let records = place_gaussians(launcher, OPERATION, (set, frame), gaussians, room)?;
    let shape = LaunchShape::covering(OPERATION, [gaussians.len, 1, 1], [8, 1, 1], [256, 1, 1])?;
    let arguments = Arguments::new()
        .value(frame)
        .value(count(OPERATION, "Gaussians", gaussians.len)?)
        .write(records)
        .read(by_volume);
    // SAFETY: the arguments of the kernel; it stays within a record a Gaussian and the grid.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    let shape = LaunchShape::covering(OPERATION, [gaussians.len, 1, 1], [128, 1, 1], [128, 1, 1])?;
    let arguments = Arguments::new()
        .value(set)
        .value(frame)
        .read(gaussians.parameters)
        .read(gaussians.density_per_mm)
        .read(records)
        .write(gradients);
    // SAFETY: the arguments of the kernel; it stays within a record and the first `len` of each channel.
    unsafe { launcher.launch("add_voxel_gradients", shape, &arguments) }
}
