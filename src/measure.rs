//! PSNR, SSIM, RMSE, Dice, ASD, lungs, nodules, jitter, latency histograms. A leaf: knows arrays and nothing else.
//!
//! Volumes are `[x][y][z]`; a mask restricts a measure to the voxels where it is true (the field of view a scan really covers). All
//! sums have a fixed order, so that figures do not depend on the number of threads.

#![forbid(unsafe_code)]

pub mod jitter;
pub mod latency;
pub mod lungs;
mod morphology;
pub mod nodules;
pub mod overlap;
mod smooth;
pub mod ssim;

use ndarray::{ArrayView3, Axis};
use rayon::prelude::*;

pub use overlap::{dice, surface_distance_mm};
pub use ssim::ssim;

/// Why a figure cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Volumes of different shapes.
    #[error("the volumes differ in shape: {first:?} and {second:?}; resample one onto the other's grid")]
    Shapes {
        /// Shape of the first.
        first: Vec<usize>,
        /// Shape of the second.
        second: Vec<usize>,
    },
    /// No voxel takes part.
    #[error("no voxel takes part: {0}")]
    Empty(&'static str),
    /// Slices smaller than SSIM's window.
    #[error("SSIM needs at least 11 voxels along each axis, the volume has {0:?}")]
    TooSmall(Vec<usize>),
    /// No lungs in view, or not enough of them.
    #[error("no lungs in view: {found_ml} ml of air inside a body that could be lung, {least_ml} ml are needed")]
    NoLungs {
        /// What was found.
        found_ml: u64,
        /// What is needed to call it lungs.
        least_ml: u64,
    },
    /// Something in the input that no figure can come from.
    #[error("{0}")]
    Input(String),
}

/// Refuses arrays of different shapes.
pub(crate) fn same_shape(first: &[usize], second: &[usize]) -> Result<(), MeasureError> {
    if first == second {
        return Ok(());
    }
    Err(MeasureError::Shapes { first: first.to_vec(), second: second.to_vec() })
}

/// Mean squared difference over the voxels of the mask (all where there is none).
///
/// # Errors
/// [`MeasureError::Shapes`]; [`MeasureError::Empty`] where the mask has no voxel.
pub fn mean_squared_error(
    volume: ArrayView3<'_, f32>,
    reference: ArrayView3<'_, f32>,
    mask: Option<ArrayView3<'_, bool>>,
) -> Result<f64, MeasureError> {
    same_shape(volume.shape(), reference.shape())?;
    if let Some(mask) = &mask {
        same_shape(volume.shape(), mask.shape())?;
    }
    let planes: Vec<(f64, usize)> = (0..volume.len_of(Axis(0)))
        .into_par_iter()
        .map(|x| {
            let (a, b) = (volume.index_axis(Axis(0), x), reference.index_axis(Axis(0), x));
            let squares = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            match &mask {
                None => (squares.sum(), a.len()),
                Some(mask) => squares
                    .zip(&mask.index_axis(Axis(0), x))
                    .filter(|(_, inside)| **inside)
                    .fold((0.0, 0), |(sum, count), (square, _)| (sum + square, count + 1)),
            }
        })
        .collect();
    let (sum, count) = planes.iter().fold((0.0, 0), |(sum, count), plane| (sum + plane.0, count + plane.1));
    if count == 0 {
        return Err(MeasureError::Empty("the mask and the volume have no voxel in common"));
    }
    Ok(sum / count as f64)
}

/// Root of the mean squared difference, in the volumes' unit.
///
/// # Errors
/// See [`mean_squared_error`].
pub fn rmse(
    volume: ArrayView3<'_, f32>,
    reference: ArrayView3<'_, f32>,
    mask: Option<ArrayView3<'_, bool>>,
) -> Result<f64, MeasureError> {
    mean_squared_error(volume, reference, mask).map(f64::sqrt)
}

/// Peak signal-to-noise ratio over the whole volume (not slice by slice), `10 log10(data_range^2 / MSE)` in dB; infinite where the
/// volumes are equal.
///
/// # Errors
/// See [`mean_squared_error`].
pub fn psnr_db(
    volume: ArrayView3<'_, f32>,
    reference: ArrayView3<'_, f32>,
    data_range: f64,
    mask: Option<ArrayView3<'_, bool>>,
) -> Result<f64, MeasureError> {
    mean_squared_error(volume, reference, mask).map(|error| 10.0 * (data_range * data_range / error).log10())
}

#[cfg(test)]
mod tests;
