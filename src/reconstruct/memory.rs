//! Memory of the methods.

use super::ReconstructError;

/// Zeros, each page written once, or the error that names the buffer.
pub(super) fn zeros(buffer: &'static str, floats: usize) -> Result<Vec<f32>, ReconstructError> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(floats)
        .map_err(|_| ReconstructError::Memory { buffer, bytes: floats.saturating_mul(size_of::<f32>()) })?;
    memory.resize(floats, 0.0);
    Ok(memory)
}
