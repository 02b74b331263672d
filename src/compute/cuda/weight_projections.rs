//! Launches `kernels/weight_projections.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len, count};
use crate::geometry::Detector;

const OPERATION: &str = "weight_projections";

/// As [`crate::compute::ProjectionWeights`], on the device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceWeights {
    /// Size of the views.
    pub detector: Detector,
    /// Columns of zeros to put before the first and after the last column (half-fan).
    pub pad: [usize; 2],
    /// `[row v][column u]`: one image for all views, or one a view.
    pub image: DeviceSlice<f32>,
    /// `[view][column u]`.
    pub columns: DeviceSlice<f32>,
}

/// `weigh::Shape` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    columns: i32,
    rows: i32,
    pad_left: i32,
    wide: i32,
    image_per_view: i32,
}

/// See [`crate::compute::Compute::weight_projections`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn weight_projections(
    launcher: &dyn Launcher,
    weights: &DeviceWeights,
    projections: DeviceSlice<f32>,
    weighted: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    let DeviceWeights { detector, pad, image, columns } = *weights;
    let pixels = detector.pixels();
    if pixels == 0 {
        return check_len(OPERATION, "projections", projections.len(), 0);
    }
    let wide = detector.columns + pad[0] + pad[1];
    let views = projections.len() / pixels;
    check_len(OPERATION, "projections", projections.len(), views * pixels)?;
    check_len(OPERATION, "weighted", weighted.len(), views * detector.rows * wide)?;
    check_len(OPERATION, "columns", columns.len(), views * detector.columns)?;
    if image.len() != pixels {
        check_len(OPERATION, "image", image.len(), views * pixels)?;
    }
    if views == 0 {
        return Ok(());
    }
    let shape = LaunchShape::covering(OPERATION, [wide, detector.rows, views], [128, 2 * 4, 1], [128, 2, 1])?;
    let argument = Shape {
        columns: count(OPERATION, "columns", detector.columns)?,
        rows: count(OPERATION, "rows", detector.rows)?,
        pad_left: count(OPERATION, "pad", pad[0])?,
        wide: count(OPERATION, "columns with pads", wide)?,
        image_per_view: i32::from(image.len() != pixels),
    };
    let arguments = Arguments::new().value(argument).read(projections).read(image).read(columns).write(weighted);
    // SAFETY: the arguments of the kernel; it stays within the lengths checked above.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
