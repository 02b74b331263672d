//! Pixel-wise weights of the projections.
//!
//! Floor: bytes. Each pixel is read and written once (8 bytes), the weights are read from the cache where all views share them.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::check_len;

/// Pixels of one task: 64 KiB, so that a task's data stay in the second-level cache.
const PART: usize = 16 * 1024;

/// See [`crate::compute::Compute::weight_projections`].
pub(super) fn weight_projections(pixels: usize, weights: &[f32], projections: &mut [f32]) -> Result<(), ComputeError> {
    const OPERATION: &str = "weight_projections";
    let views = projections.len() / pixels.max(1);
    check_len(OPERATION, "projections", projections.len(), views * pixels)?;
    if weights.len() != pixels {
        check_len(OPERATION, "weights", weights.len(), views * pixels)?;
    }
    if projections.is_empty() {
        return Ok(());
    }
    projections.par_chunks_mut(pixels).enumerate().for_each(|(view, image)| {
        let weights = if weights.len() == pixels { weights } else { &weights[view * pixels..][..pixels] };
        image.par_chunks_mut(PART).zip(weights.par_chunks(PART)).for_each(|(image, weights)| {
            for (value, weight) in image.iter_mut().zip(weights) {
                *value *= *weight;
            }
        });
    });
    Ok(())
}
