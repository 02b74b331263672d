//! Launches `kernels/back_project_matched.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, ScanTable};

const OPERATION: &str = "back_project_matched";

/// See [`crate::compute::Compute::back_project_matched`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn back_project_matched(
    launcher: &dyn Launcher,
    scan: &ScanTable,
    projections: DeviceSlice<f32>,
    volume: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    scan.check(OPERATION, ("projections", projections), volume)?;
    if volume.is_empty() {
        return Ok(());
    }
    if projections.is_empty() {
        return volume.fill(launcher, 0.0);
    }
    let [x, y, z] = scan.voxels();
    let (kernel, tile, threads) = if scan.is_level() {
        ("back_project_level", [8, 8, 64], [32, 8, 1])
    } else {
        (OPERATION, [8, 4, 4 * 4], [8, 4, 4])
    };
    let shape = LaunchShape::covering(kernel, [y, x, z], tile, threads)?;
    let arguments = Arguments::new().value(scan.argument()).read(scan.records()).read(projections).write(volume);
    // SAFETY: the arguments of the kernel; it stays within the scan's views, projections and volume, whose lengths were checked.
    unsafe { launcher.launch(kernel, shape, &arguments) }
}
