//! Launches the kernels of `kernels/views.cu`: all arrays `[view][row v][column u]`. Sums stay on the device, in a [`DeviceSum`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::sart::{blocks, shape};
use super::{Arguments, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len, count};
use crate::geometry::Detector;

/// `views::Aperture` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Aperture {
    columns: i32,
    rows: i32,
    share_u: f32,
    share_v: f32,
}

/// `out = views - share_v * (differences to the rows beside) - share_u * (to the columns beside)`, `shares` as `[u, v]`: takes out what a pixel's
/// width and the projector's blur bring in. Symmetric: a gradient goes back through it the same way. Pixels at the border have
/// fewer neighbours.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ or are not whole views, [`ComputeError::Setting`] where there are more than 65535 views,
/// [`ComputeError::Device`] where the device refuses.
pub fn take_aperture(
    launcher: &dyn Launcher,
    detector: Detector,
    shares: [f32; 2],
    views: DeviceSlice<f32>,
    out: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "take_aperture";
    let n = views.len();
    let images = n.checked_div(detector.pixels()).unwrap_or(0);
    check_len(OPERATION, "views", n, images * detector.pixels())?;
    check_len(OPERATION, "out", out.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let [share_u, share_v] = shares;
    let aperture = Aperture {
        columns: count(OPERATION, "columns", detector.columns)?,
        rows: count(OPERATION, "rows", detector.rows)?,
        share_u,
        share_v,
    };
    let shape = LaunchShape::covering(OPERATION, [detector.columns, detector.rows, images], [128, 8, 1], [32, 8, 1])?;
    let arguments = Arguments::new().value(aperture).read(views).write(out);
    // SAFETY: the arguments of the kernel; it stays within the detector of each view, and both hold a detector a view.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}

/// `out = gradient / sqrt(weights)`, 0 where a weight is 0.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
pub fn whiten(
    launcher: &dyn Launcher,
    weights: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
    out: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "whiten";
    let n = out.len();
    check_len(OPERATION, "weights", weights.len(), n)?;
    check_len(OPERATION, "gradient", gradient.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().read(weights).read(gradient).write(out).value(n as i64);
    // SAFETY: the arguments of the kernel; it stays within `n` values of each.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// `gradient = (1 - share) * gradient + share * gain * sqrt(weights) * filtered`.
///
/// # Errors
/// As [`whiten`].
pub fn mix_sharpened(
    launcher: &dyn Launcher,
    share: f32,
    gain: f32,
    weights: DeviceSlice<f32>,
    filtered: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "mix_sharpened";
    let n = gradient.len();
    check_len(OPERATION, "weights", weights.len(), n)?;
    check_len(OPERATION, "filtered", filtered.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments =
        Arguments::new().value(share).value(gain).read(weights).read(filtered).write(gradient).value(n as i64);
    // SAFETY: as in `whiten`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// `out = sqrt(weights) * values`.
///
/// # Errors
/// As [`whiten`].
pub fn times_root(
    launcher: &dyn Launcher,
    weights: DeviceSlice<f32>,
    values: DeviceSlice<f32>,
    out: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "times_root";
    let n = out.len();
    check_len(OPERATION, "weights", weights.len(), n)?;
    check_len(OPERATION, "values", values.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().read(weights).read(values).write(out).value(n as i64);
    // SAFETY: as in `whiten`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// The sum of `(projections - measured)^2` over the rays held back, those of weight 0; squares and sum in float64.
///
/// # Errors
/// [`ComputeError::Shape`] where the lengths differ or `sum` has no room, [`ComputeError::Device`] where the device refuses.
pub fn held_back_squares(
    launcher: &dyn Launcher,
    projections: DeviceSlice<f32>,
    measured: DeviceSlice<f32>,
    weights: DeviceSlice<f32>,
    sum: &DeviceSum,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "held_back_squares";
    let n = projections.len();
    check_len(OPERATION, "measured", measured.len(), n)?;
    check_len(OPERATION, "weights", weights.len(), n)?;
    let partials = sum.partials(OPERATION, blocks(n))?;
    if n > 0 {
        let arguments = Arguments::new().read(projections).read(measured).read(weights).value(n as i64).write(partials);
        // SAFETY: the arguments of the kernel; it stays within `n` values of each, and a partial sum a block.
        unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }?;
    }
    sum.add_up(launcher, blocks(n))
}
