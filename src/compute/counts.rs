//! Raw counts of a detector become line integrals: dark image, gain, exposure, clamp, logarithm, bad pixels.

use bytemuck::{Pod, Zeroable};

use super::cpu::check_len;
use super::{ComputeError, Left, Values, ValuesMut};

/// Most neighbours of a bad pixel.
pub const MOST_NEIGHBOURS: usize = 8;

/// A bad pixel, and the good ones whose mean replaces it. `BadPixel` of `kernels/line_integrals.cu` is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BadPixel {
    /// Which, counted `[row v][column u]`.
    pub index: u32,
    /// How many of the neighbours there are, 1 at least.
    pub count: u32,
    /// None of them is bad.
    pub neighbours: [u32; MOST_NEIGHBOURS],
}

impl BadPixel {
    /// Floats that a bad pixel takes in a buffer.
    pub const FLOATS: usize = size_of::<Self>() / size_of::<f32>();

    /// A list as a buffer holds it: the same bits, read as floats.
    #[must_use]
    pub fn floats(list: &[Self]) -> &[f32] {
        bytemuck::cast_slice(list)
    }
}

/// How counts of a frame become line integrals.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// Counts without radiation, `[row v][column u]`.
    pub dark: Values<'a>,
    /// What the difference to that is multiplied by, of the same shape: 1 / (flat - dark), 0 where the pixel is dead; 1 without flat images.
    pub gain: Values<'a>,
    /// Of the whole frame: 1 / relative exposure; without flat images 1 / (i0 * relative exposure).
    pub scale: f32,
    /// What stands below it is raised to it; above 0.
    pub min_transmission: f32,
    /// As [`BadPixel::floats`] gives them. All lie in the frame, else the CPU panics; a device leaves such a pixel as it is.
    pub bad_pixels: Values<'a>,
}

/// The operation that makes line integrals of counts. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// It allocates nothing after [`CountsCompute::prepare_counts`], and every result is bit-identical for any number of threads and on every carrier.
pub trait CountsCompute: Send + Sync {
    /// Bytes of scratch for frames of so many pixels; `plan` lists them.
    fn counts_scratch_bytes(&self, pixels: usize) -> usize;

    /// Allocates that scratch.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare_counts(&mut self, pixels: usize) -> Result<(), ComputeError>;

    /// `out = -ln(max((counts - dark) * gain * scale, min_transmission))`, dimensionless, then each bad pixel the mean of its neighbours; `[row v][column u]` all.
    /// Returns how many pixels, bad ones included, were below `min_transmission`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a length differs, [`ComputeError::Scratch`] for more pixels than were prepared, [`ComputeError::Device`] where the device refuses.
    fn line_integrals(
        &self,
        correction: &Correction<'_>,
        counts: &[u16],
        out: ValuesMut<'_>,
    ) -> Result<Left<u64>, ComputeError>;

    /// The number that [`CountsCompute::line_integrals`] left with the carrier; waits for what was asked for before.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before, or none is left.
    fn clamped_left(&self) -> Result<u64, ComputeError>;
}

/// Refuses lengths that do not go together; how many bad pixels there are.
pub(super) fn check(
    operation: &'static str,
    [counts, dark, gain, bad_pixels]: [usize; 4],
    out: usize,
) -> Result<usize, ComputeError> {
    check_len(operation, "counts", counts, out)?;
    check_len(operation, "dark", dark, out)?;
    check_len(operation, "gain", gain, out)?;
    let bad = bad_pixels / BadPixel::FLOATS;
    check_len(operation, "bad_pixels", bad_pixels, bad * BadPixel::FLOATS)?;
    Ok(bad)
}
