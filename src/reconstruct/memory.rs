//! Memory of the methods.

use super::ReconstructError;
use crate::compute::{Buffer, ComputeError, Memory};

/// Zeros, each page written once, or the error that names the buffer.
pub(super) fn zeros(buffer: &'static str, floats: usize) -> Result<Vec<f32>, ReconstructError> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(floats)
        .map_err(|_| ReconstructError::Memory { buffer, bytes: floats.saturating_mul(size_of::<f32>()) })?;
    memory.resize(floats, 0.0);
    Ok(memory)
}

/// A carrier's buffer of zeros, or the error that names it.
pub(super) fn buffer(compute: &dyn Memory, buffer: &'static str, floats: usize) -> Result<Buffer, ReconstructError> {
    compute.buffer(buffer, floats).map_err(|error| match error {
        ComputeError::Memory { buffer, bytes } => ReconstructError::Memory { buffer, bytes },
        other => other.into(),
    })
}
