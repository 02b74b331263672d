//! Pixel-wise weights of the projections.

#![forbid(unsafe_code)]

use super::super::ComputeError;
use super::check_len;

/// See [`crate::compute::Compute::weight_projections`].
pub(super) fn weight_projections(pixels: usize, weights: &[f32], projections: &mut [f32]) -> Result<(), ComputeError> {
    const OPERATION: &str = "weight_projections";
    let views = projections.len() / pixels.max(1);
    check_len(OPERATION, "projections", projections.len(), views * pixels)?;
    if weights.len() != pixels {
        check_len(OPERATION, "weights", weights.len(), views * pixels)?;
    }
    for (index, value) in projections.iter_mut().enumerate() {
        *value *= weights[index % weights.len()];
    }
    Ok(())
}
