//! Counts to line integrals: dark, flat, exposure, bad pixels, log.
//!
//! ```text
//! transmission = (raw - dark) / ((flat - dark) * relative exposure)       flat from calibration frames or a file, or
//!              = (raw - dark) / (i0 * relative exposure)                  without flat images
//! p            = -ln(max(transmission, min_transmission))                  the clamp; clamped pixels are counted
//! p[bad pixel] = mean of the line integrals of its nearest good neighbours (see [`bad_pixels`])
//! ```
//!
//! There is no clamp above: air that reads a little more than the flat gives a small negative line integral, as it must for
//! the mean to be right. The dark image is taken as independent of the exposure. Frames of float32 line integrals pass through
//! unchanged; a frame with one value that is not finite is refused whole (the ramp filter would spread it over its row),
//! and so counts as missing: nothing is interpolated in silence.
//!
//! A [`Preprocessor`] allocates in [`Preprocessor::new`] and never after.

#![forbid(unsafe_code)]

pub mod bad_pixels;
mod calibration;
mod logarithm;

pub use calibration::{CalibrationReport, CalibrationSource};
pub use logarithm::minus_ln;

use rayon::prelude::*;

use crate::config::PreprocessSettings;
use crate::error::{Classed, ErrorClass};
use crate::geometry::Detector;
use crate::plan::{Buffer, Place};
use bad_pixels::BadPixels;

/// Pixels that one task works on: enough to outweigh the hand-over, few enough to share a 256^2 frame out.
const CHUNK: usize = 16_384;

/// Why a frame could not be made into line integrals. All are frames that count as missing, not failures of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum PreprocessError {
    /// Raw counts, but nothing says what an unattenuated pixel counts.
    #[error(
        "raw counts arrived, but there are no flat frames and no i0: send FLAT frames first, or set preprocess.flat to a file, or preprocess.i0"
    )]
    NoFlat,
    /// The frame's relative exposure cannot be divided by.
    #[error("relative_exposure = {value}: must be finite and > 0")]
    Exposure {
        /// As in the frame's header.
        value: f32,
    },
    /// Line integrals that are not finite.
    #[error("{count} line integrals are not finite, the first at pixel {first}: the frame is refused whole")]
    NotFinite {
        /// How many.
        count: usize,
        /// Index of the first, `[row][column]`.
        first: usize,
    },
    /// A calibration image is of no use.
    #[error("calibration refused: {bad} of {pixels} pixels are dead or hot (limit {limit}): check the {image} frames")]
    TooManyBadPixels {
        /// Bad pixels.
        bad: usize,
        /// Pixels in all.
        pixels: usize,
        /// Most that `preprocess.max_bad_fraction` allows.
        limit: usize,
        /// Which image shows it.
        image: &'static str,
    },
    /// A calibration image from a file is not of the detector's shape, or not readable.
    #[error("calibration file for {image}: holds {given} values, the detector has {needed}")]
    FileShape {
        /// `dark` or `flat`.
        image: &'static str,
        /// Values in the file.
        given: usize,
        /// Pixels of the detector.
        needed: usize,
    },
}

impl Classed for PreprocessError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::FileShape { .. } => ErrorClass::Stop,
            _ => ErrorClass::Degrade,
        }
    }
}

/// What was done to one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameCorrections {
    /// Pixels below the clamp.
    pub clamped: u64,
    /// Bad pixels replaced by their neighbours.
    pub replaced: u64,
}

/// Counters over the daemon's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PreprocessCounters {
    /// Frames made into line integrals.
    pub frames: u64,
    /// Frames refused.
    pub refused: u64,
    /// Dark frames averaged.
    pub dark_frames: u64,
    /// Flat frames averaged.
    pub flat_frames: u64,
    /// Pixels below the clamp.
    pub clamped_pixels: u64,
    /// Bad pixels replaced.
    pub replaced_pixels: u64,
    /// Calibrations refused.
    pub refused_calibrations: u64,
}

/// Makes frames into line integrals; holds the calibration.
#[derive(Debug)]
pub struct Preprocessor {
    settings: PreprocessSettings,
    detector: Detector,
    /// Mean dark image.
    dark: Vec<f32>,
    /// 1 / (flat - dark); 1 without flat images, 0 where dead.
    gain: Vec<f32>,
    bad: BadPixels,
    sums: calibration::Sums,
    flat_source: CalibrationSource,
    dark_source: CalibrationSource,
    counters: PreprocessCounters,
}

impl Preprocessor {
    /// Buffers that [`Preprocessor::new`] allocates.
    #[must_use]
    pub fn buffers(settings: &PreprocessSettings, detector: Detector) -> Vec<Buffer> {
        let pixels = detector.pixels() as u64;
        vec![
            Buffer::new("preprocess: dark image, gain", 2 * 4 * pixels, Place::Host),
            Buffer::new("preprocess: calibration sums (dark, flat), selection scratch", 3 * 4 * pixels, Place::Host),
            Buffer::new("preprocess: bad pixels", BadPixels::bytes(settings, detector), Place::Host),
        ]
    }

    /// Allocates everything, and takes the calibration images that `files` gives (`[dark, flat]`).
    ///
    /// # Errors
    /// [`PreprocessError::FileShape`], [`PreprocessError::TooManyBadPixels`].
    pub fn new(
        settings: &PreprocessSettings,
        detector: Detector,
        files: [Option<Vec<f32>>; 2],
    ) -> Result<Self, PreprocessError> {
        let pixels = detector.pixels();
        let mut this = Self {
            settings: settings.clone(),
            detector,
            dark: vec![0.0; pixels],
            gain: vec![1.0; pixels],
            bad: BadPixels::new(settings, detector),
            sums: calibration::Sums::new(pixels),
            flat_source: CalibrationSource::None,
            dark_source: CalibrationSource::None,
            counters: PreprocessCounters::default(),
        };
        this.take_files(files)?;
        Ok(this)
    }

    /// Counters so far.
    #[must_use]
    pub fn counters(&self) -> PreprocessCounters {
        self.counters
    }

    /// Back to zero: what a warm-up counted.
    pub fn forget_counters(&mut self) {
        self.counters = PreprocessCounters::default();
    }

    /// Raw counts `[row v][column u]` to line integrals in `out`. `i0_header` is the frame's own i0 (0: not known).
    ///
    /// # Errors
    /// [`PreprocessError`]; `out` then holds nothing of use.
    pub fn counts(
        &mut self,
        counts: &[u16],
        relative_exposure: f32,
        i0_header: f32,
        out: &mut [f32],
    ) -> Result<FrameCorrections, PreprocessError> {
        let outcome = self.correct(counts, relative_exposure, i0_header, out);
        match &outcome {
            Ok(done) => {
                self.counters.frames += 1;
                self.counters.clamped_pixels += done.clamped;
                self.counters.replaced_pixels += done.replaced;
            }
            Err(_) => self.counters.refused += 1,
        }
        outcome
    }

    fn correct(
        &mut self,
        counts: &[u16],
        relative_exposure: f32,
        i0_header: f32,
        out: &mut [f32],
    ) -> Result<FrameCorrections, PreprocessError> {
        if !(relative_exposure.is_finite() && relative_exposure > 0.0) {
            return Err(PreprocessError::Exposure { value: relative_exposure });
        }
        let unattenuated = if self.flat_source == CalibrationSource::None {
            let header = (i0_header.is_finite() && i0_header > 0.0).then_some(i0_header);
            self.settings.i0_counts.map(|i0| i0 as f32).or(header).ok_or(PreprocessError::NoFlat)?
        } else {
            1.0
        };
        let scale = 1.0 / (unattenuated * relative_exposure);
        let floor = self.settings.min_transmission as f32;
        let clamped = out
            .par_chunks_mut(CHUNK)
            .zip(counts.par_chunks(CHUNK))
            .zip(self.dark.par_chunks(CHUNK).zip(self.gain.par_chunks(CHUNK)))
            .map(|((out, counts), (dark, gain))| correct_chunk(counts, dark, gain, scale, floor, out))
            .sum();
        let replaced = self.bad.replace(out);
        Ok(FrameCorrections { clamped, replaced })
    }

    /// Line integrals as they came, checked to be finite.
    ///
    /// # Errors
    /// [`PreprocessError::NotFinite`].
    pub fn line_integrals(&mut self, values: &[f32], out: &mut [f32]) -> Result<FrameCorrections, PreprocessError> {
        let count: u32 = out
            .par_chunks_mut(CHUNK)
            .zip(values.par_chunks(CHUNK))
            .map(|(out, values)| {
                out.copy_from_slice(values);
                // All exponent bits set: infinite or not a number.
                values.iter().map(|v| u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000)).sum::<u32>()
            })
            .sum();
        if count == 0 {
            self.counters.frames += 1;
            return Ok(FrameCorrections::default());
        }
        self.counters.refused += 1;
        let first = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        Err(PreprocessError::NotFinite { count: count as usize, first })
    }
}

/// One chunk of [`Preprocessor::counts`]; returns how many pixels met the clamp.
fn correct_chunk(counts: &[u16], dark: &[f32], gain: &[f32], scale: f32, floor: f32, out: &mut [f32]) -> u64 {
    let mut clamped = 0u32;
    for (((out, &raw), &dark), &gain) in out.iter_mut().zip(counts).zip(dark).zip(gain) {
        let transmission = (f32::from(raw) - dark) * gain * scale;
        clamped += u32::from(transmission < floor);
        *out = minus_ln(transmission.max(floor));
    }
    u64::from(clamped)
}

#[cfg(test)]
mod tests;
