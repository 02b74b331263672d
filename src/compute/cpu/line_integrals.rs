//! Line integrals of counts.
//!
//! **Bytes**: a pixel's counts, dark value, gain and line integral once each.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::super::counts::{BadPixel, Correction, CountsCompute, check};
use super::super::losses::none_left;
use super::super::{ComputeError, Left, ValuesMut};
use super::CpuCompute;
use super::minus_ln::minus_ln;

const OPERATION: &str = "line_integrals";

/// Pixels that one task works on: enough to outweigh the hand-over, few enough to share a 256^2 frame out.
const CHUNK: usize = 16_384;

impl CountsCompute for CpuCompute {
    fn counts_scratch_bytes(&self, _pixels: usize) -> usize {
        0
    }

    fn prepare_counts(&mut self, _pixels: usize) -> Result<(), ComputeError> {
        Ok(())
    }

    fn line_integrals(
        &self,
        correction: &Correction<'_>,
        counts: &[u16],
        out: ValuesMut<'_>,
    ) -> Result<Left<u64>, ComputeError> {
        let &Correction { dark, gain, scale, min_transmission, bad_pixels } = correction;
        check(OPERATION, [counts.len(), dark.len(), gain.len(), bad_pixels.len()], out.len())?;
        let (dark, gain, out) = (dark.host(OPERATION)?, gain.host(OPERATION)?, out.host(OPERATION)?);
        let bad_pixels: &[BadPixel] = bytemuck::cast_slice(bad_pixels.host(OPERATION)?);
        let chunks = |out: &mut [f32]| -> u64 {
            out.par_chunks_mut(CHUNK)
                .zip(counts.par_chunks(CHUNK))
                .zip(dark.par_chunks(CHUNK).zip(gain.par_chunks(CHUNK)))
                .map(|((out, counts), (dark, gain))| correct_chunk(counts, dark, gain, scale, min_transmission, out))
                .sum()
        };
        let clamped = self.pool.install(|| chunks(out));
        replace(bad_pixels, out);
        Ok(Left::AtHand(clamped))
    }

    fn clamped_left(&self) -> Result<u64, ComputeError> {
        Err(none_left(OPERATION))
    }
}

/// One chunk; returns how many pixels met the clamp.
fn correct_chunk(counts: &[u16], dark: &[f32], gain: &[f32], scale: f32, floor: f32, out: &mut [f32]) -> u64 {
    let mut clamped = 0u32;
    for (((out, &raw), &dark), &gain) in out.iter_mut().zip(counts).zip(dark).zip(gain) {
        let transmission = (f32::from(raw) - dark) * gain * scale;
        clamped += u32::from(transmission < floor);
        *out = minus_ln(transmission.max(floor));
    }
    u64::from(clamped)
}

/// Replaces the bad pixels by the means of their neighbours.
fn replace(bad_pixels: &[BadPixel], frame: &mut [f32]) {
    for pixel in bad_pixels {
        let neighbours = &pixel.neighbours[..pixel.count as usize];
        let sum: f32 = neighbours.iter().map(|&n| frame[n as usize]).sum();
        frame[pixel.index as usize] = sum / pixel.count as f32;
    }
}
