//! Launches the kernels of `kernels/gaussian_project.cu`.

#![allow(unsafe_code)] // Launches kernels.

use super::super::ComputeError;
use super::gaussian_room::ListKernels;
use super::gaussian_set::SetArgument;
use super::gaussian_views::GaussianView;
use super::{Arguments, DeviceGaussians, DeviceSlice, GaussianRoom, GaussianViews, LaunchShape, Launcher};
use super::{check_len, count};

const OPERATION: &str = "gaussian_project";

/// Columns and rows of a tile (`gaussians::TILE` of the kernels).
const TILE: usize = 16;

/// Floats of a record.
pub(super) const RECORD: usize = 20;

const KERNELS: ListKernels =
    ListKernels { entries: "count_pixel_entries", tiles: "count_pixel_tiles", fill: "fill_pixel_tiles" };

/// Tiles of a detector.
pub(super) fn pixel_tiles(columns: usize, rows: usize) -> usize {
    columns.div_ceil(TILE).saturating_mul(rows.div_ceil(TILE))
}

/// Looks at the Gaussians in one view, a record each.
pub(super) fn see_gaussians(
    launcher: &dyn Launcher,
    operation: &'static str,
    (views, view): (&GaussianViews, DeviceSlice<GaussianView>),
    (set, gaussians): (SetArgument, &DeviceGaussians),
    room: &GaussianRoom,
) -> Result<DeviceSlice<f32>, ComputeError> {
    let (records, unsound) = room.records(operation, gaussians.len, RECORD)?;
    let shape = LaunchShape::covering(operation, [gaussians.len, 1, 1], [128, 1, 1], [128, 1, 1])?;
    let arguments = Arguments::new()
        .value(set)
        .value(views.argument())
        .read(view)
        .read(gaussians.parameters)
        .read(gaussians.density_per_mm)
        .write(records)
        .write(unsound);
    // SAFETY: the arguments of the kernel; it reads the first `len` of each channel and writes a record each, and one word.
    unsafe { launcher.launch("see_gaussians", shape, &arguments) }?;
    Ok(records)
}

/// See [`crate::compute::gaussians::GaussianCompute::gaussian_project`]. A Gaussian with parameters that no result can come from is left out;
/// [`GaussianRoom::unsound`] names the first. Some twenty launches a view.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer or `room` does not fit, [`ComputeError::Value`] for a low pass that is refused,
/// [`ComputeError::Device`] where the device refuses.
pub fn gaussian_project(
    launcher: &dyn Launcher,
    views: &GaussianViews,
    gaussians: &DeviceGaussians,
    projections: DeviceSlice<f32>,
    room: &GaussianRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "projections", projections.len(), views.projection_len())?;
    let set = gaussians.check(OPERATION)?;
    room.records(OPERATION, gaussians.len, RECORD)?;
    room.clear(launcher)?;
    if projections.is_empty() || gaussians.len == 0 {
        return projections.fill(launcher, 0.0);
    }
    let detector = views.detector();
    let tiles = pixel_tiles(detector.columns, detector.rows);
    let shape = LaunchShape::covering(OPERATION, [tiles, 1, 1], [1; 3], [128, 1, 1])?;
    let number = count(OPERATION, "Gaussians", gaussians.len)?;
    for (view, image) in views.with_images(projections) {
        let records = see_gaussians(launcher, OPERATION, (views, view), (set, gaussians), room)?;
        let frame = (views.argument(), tiles);
        room.passes(launcher, OPERATION, frame, (gaussians.len, records), KERNELS, |pass| {
            let arguments = Arguments::new()
                .value(views.argument())
                .value(number)
                .value(pass.index)
                .read(view)
                .read(records)
                .read(pass.bounds)
                .read(pass.ends)
                .read(pass.list)
                .write(image);
            // SAFETY: the arguments of the kernel; it reads records and entries of Gaussians there are, and stays within the image.
            unsafe { launcher.launch(OPERATION, shape, &arguments) }
        })?;
    }
    Ok(())
}
