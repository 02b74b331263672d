//! Launches the kernels of `kernels/gaussian_project_backward.cu`.

#![allow(unsafe_code)] // Launches kernels.

use super::super::ComputeError;
use super::gaussian_project::{RECORD, see_gaussians};
use super::{Arguments, DeviceGaussians, DeviceSlice, GaussianRoom, GaussianViews, LaunchShape, Launcher};
use super::{check_len, count};

const OPERATION: &str = "gaussian_project_backward";

/// See [`crate::compute::gaussians::GaussianCompute::gaussian_project_backward`]. `gradients` is `[12][capacity]`: density, position, log
/// scales, quaternion, and the sum of the views' norms.
///
/// # Errors
/// As [`super::gaussian_project()`].
pub fn gaussian_project_backward(
    launcher: &dyn Launcher,
    views: &GaussianViews,
    gaussians: &DeviceGaussians,
    by_projections: DeviceSlice<f32>,
    gradients: DeviceSlice<f32>,
    room: &GaussianRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "by_projections", by_projections.len(), views.projection_len())?;
    let set = gaussians.check(OPERATION)?;
    gaussians.check_gradients(OPERATION, gradients)?;
    room.records(OPERATION, gaussians.len, RECORD)?;
    let detector = views.detector();
    let weighted = room.pixels(OPERATION, detector.pixels())?;
    room.clear(launcher)?;
    if by_projections.is_empty() || gaussians.len == 0 {
        return Ok(());
    }
    let number = count(OPERATION, "Gaussians", gaussians.len)?;
    let of_pixels = LaunchShape::covering(OPERATION, [detector.columns, detector.rows, 1], [256, 1, 1], [256, 1, 1])?;
    let of_warps = LaunchShape::covering(OPERATION, [gaussians.len, 1, 1], [8, 1, 1], [256, 1, 1])?;
    let of_threads = LaunchShape::covering(OPERATION, [gaussians.len, 1, 1], [64, 1, 1], [64, 1, 1])?;
    for (view, by_image) in views.with_images(by_projections) {
        let records = see_gaussians(launcher, OPERATION, (views, view), (set, gaussians), room)?;
        let arguments = Arguments::new().value(views.argument()).read(view).read(by_image).write(weighted);
        // SAFETY: the arguments of the kernel; it stays within a view's pixels.
        unsafe { launcher.launch("weigh_pixels", of_pixels, &arguments) }?;
        let arguments = Arguments::new().value(views.argument()).value(number).write(records).read(weighted);
        // SAFETY: the arguments of the kernel; it stays within a record a Gaussian and the view's pixels.
        unsafe { launcher.launch(OPERATION, of_warps, &arguments) }?;
        let arguments = Arguments::new()
            .value(set)
            .read(view)
            .read(gaussians.parameters)
            .read(gaussians.density_per_mm)
            .read(records)
            .write(gradients);
        // SAFETY: the arguments of the kernel; it stays within a record and the first `len` of each channel.
        unsafe { launcher.launch("add_pixel_gradients", of_threads, &arguments) }?;
    }
    Ok(())
}
