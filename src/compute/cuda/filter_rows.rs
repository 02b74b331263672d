//! Launches `kernels/filter_rows.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::super::cpu::ramp_filter::RampFilter;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len, count};

const OPERATION: &str = "filter_rows";

/// Points that a thread of the kernel holds, and most threads of a block.
const POINTS: usize = 16;
const MOST_THREADS: usize = 512;

/// A ramp filter on the device.
#[derive(Debug, Clone, Copy)]
pub struct FilterTable {
    response: DeviceSlice<f32>,
    columns: usize,
    length: usize,
}

impl FilterTable {
    /// Uploads the filter's response.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] for rows longer than 4096 pixels, whose transform one block does not hold; [`ComputeError::Device`]
    /// where the memory is not to be had.
    pub fn upload(launcher: &dyn Launcher, filter: &RampFilter) -> Result<Self, ComputeError> {
        let length = filter.transform_len();
        if length > POINTS * MOST_THREADS {
            return Err(ComputeError::Setting {
                of: OPERATION,
                setting: "columns",
                value: filter.columns() as f64,
                requirement: "at most 4096: the kernel transforms a row within one block",
            });
        }
        let response = DeviceSlice::upload(launcher, filter.response())?;
        Ok(Self { response, columns: filter.columns(), length })
    }
}

/// See [`crate::compute::Compute::filter_rows`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn filter_rows(
    launcher: &dyn Launcher,
    filter: &FilterTable,
    projections: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    let FilterTable { response, columns, length } = *filter;
    if columns == 0 || projections.is_empty() {
        return Ok(());
    }
    let rows = projections.len() / columns;
    check_len(OPERATION, "projections", projections.len(), rows * columns)?;
    let threads = length.div_ceil(POINTS).next_multiple_of(32) as u32;
    let shape = LaunchShape {
        shared_bytes: (length * 2 * size_of::<f32>()) as u32,
        ..LaunchShape::covering(OPERATION, [rows, 1, 1], [2, 1, 1], [threads, 1, 1])?
    };
    let arguments = Arguments::new()
        .read(response)
        .value(count(OPERATION, "columns", columns)?)
        .value(count(OPERATION, "length", length)?)
        .value(rows as i64)
        .write(projections);
    // SAFETY: the arguments of the kernel; the response has `length / 2 + 1` values, the projections `rows` rows, and a block has room for
    // `length` points in shared memory and in its threads.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
