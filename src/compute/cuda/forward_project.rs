//! Launches `kernels/forward_project.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, ScanTable};

const OPERATION: &str = "forward_project";

/// See [`crate::compute::Compute::forward_project`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn forward_project(
    launcher: &dyn Launcher,
    scan: &ScanTable,
    volume: DeviceSlice<f32>,
    projections: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    scan.check(OPERATION, ("projections", projections), volume)?;
    if projections.is_empty() {
        return Ok(());
    }
    if volume.is_empty() {
        return projections.fill(launcher, 0.0);
    }
    let detector = scan.detector();
    let shape =
        LaunchShape::covering(OPERATION, [detector.rows, detector.columns, scan.views()], [32, 8, 1], [32, 8, 1])?;
    let arguments = Arguments::new().value(scan.argument()).read(scan.records()).read(volume).write(projections);
    // SAFETY: the arguments of the kernel; it stays within the scan's views, volume and projections, whose lengths were checked.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
