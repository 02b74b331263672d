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
//! The carrier works it out ([`crate::compute::counts`]): on a GPU the counts go up as they came, and the line integrals stay there. The
//! calibration is made on the host, and brought to the carrier when it has changed.
//!
//! A [`Preprocessor`] allocates in [`Preprocessor::new`] and never after.

#![forbid(unsafe_code)]

pub mod bad_pixels;
mod calibration;
mod on_carrier;

pub use calibration::{CalibrationReport, CalibrationSource};
pub use on_carrier::CalibrationOnCarrier;

use rayon::prelude::*;

use crate::compute::counts::{BadPixel, Correction};
use crate::compute::{ComputeError, Left, Operations, ValuesMut};
use crate::config::PreprocessSettings;
use crate::error::{Classed, ErrorClass};
use crate::geometry::Detector;
use crate::plan::{Buffer, Place};
use bad_pixels::BadPixels;

/// Pixels that one task looks at: enough to outweigh the hand-over, few enough to share a 256^2 frame out.
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

/// Why counts gave no line integrals.
#[derive(Debug, thiserror::Error)]
pub enum CountsError {
    /// The frame is refused; nothing was asked of the carrier.
    #[error(transparent)]
    Refused(#[from] PreprocessError),
    /// The carrier cannot work.
    #[error(transparent)]
    Compute(#[from] ComputeError),
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
    on_carrier: CalibrationOnCarrier,
    sums: calibration::Sums,
    flat_source: CalibrationSource,
    dark_source: CalibrationSource,
    counters: PreprocessCounters,
    /// The carrier has still to tell how many pixels of the last frame met the clamp.
    clamped_is_due: bool,
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

    /// Allocates everything on the host, and takes the calibration images that `files` gives (`[dark, flat]`); `on_carrier` is of the carrier that
    /// frames are worked on by.
    ///
    /// # Errors
    /// [`PreprocessError::FileShape`], [`PreprocessError::TooManyBadPixels`].
    pub fn new(
        settings: &PreprocessSettings,
        detector: Detector,
        files: [Option<Vec<f32>>; 2],
        on_carrier: CalibrationOnCarrier,
    ) -> Result<Self, PreprocessError> {
        let pixels = detector.pixels();
        let mut this = Self {
            settings: settings.clone(),
            detector,
            dark: vec![0.0; pixels],
            gain: vec![1.0; pixels],
            bad: BadPixels::new(settings, detector),
            on_carrier,
            sums: calibration::Sums::new(pixels),
            flat_source: CalibrationSource::None,
            dark_source: CalibrationSource::None,
            counters: PreprocessCounters::default(),
            clamped_is_due: false,
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

    /// Raw counts `[row v][column u]` to line integrals in `out`. `i0_header` is the frame's own i0 (0: not known). [`Preprocessor::finish_frame`] ends it.
    ///
    /// # Errors
    /// [`CountsError`]; `out` then holds nothing of use.
    pub fn counts(
        &mut self,
        compute: &dyn Operations,
        counts: &[u16],
        relative_exposure: f32,
        i0_header: f32,
        out: ValuesMut<'_>,
    ) -> Result<(), CountsError> {
        let scale = self.scale(relative_exposure, i0_header).inspect_err(|_| self.counters.refused += 1)?;
        let [dark, gain, bad_pixels] =
            self.on_carrier.bring(compute, [&self.dark, &self.gain, BadPixel::floats(self.bad.list())])?;
        let min_transmission = self.settings.min_transmission as f32;
        let correction = Correction { dark, gain, scale, min_transmission, bad_pixels };
        match compute.line_integrals(&correction, counts, out)? {
            Left::AtHand(clamped) => self.counters.clamped_pixels += clamped,
            Left::WithCarrier => self.clamped_is_due = true,
        }
        self.counters.frames += 1;
        self.counters.replaced_pixels += self.bad.len() as u64;
        Ok(())
    }

    /// Counts what the carrier had still to tell of the last frame of counts, for which it is waited.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed since the last wait.
    pub fn finish_frame(&mut self, compute: &dyn Operations) -> Result<(), ComputeError> {
        if std::mem::take(&mut self.clamped_is_due) {
            self.counters.clamped_pixels += compute.clamped_left()?;
        }
        Ok(())
    }

    /// What all of a frame's corrected counts are multiplied by.
    fn scale(&self, relative_exposure: f32, i0_header: f32) -> Result<f32, PreprocessError> {
        if !(relative_exposure.is_finite() && relative_exposure > 0.0) {
            return Err(PreprocessError::Exposure { value: relative_exposure });
        }
        let unattenuated = if self.flat_source == CalibrationSource::None {
            let header = (i0_header.is_finite() && i0_header > 0.0).then_some(i0_header);
            self.settings.i0_counts.map(|i0| i0 as f32).or(header).ok_or(PreprocessError::NoFlat)?
        } else {
            1.0
        };
        Ok(1.0 / (unattenuated * relative_exposure))
    }

    /// Checks that line integrals, which are taken as they came, are finite.
    ///
    /// # Errors
    /// [`PreprocessError::NotFinite`].
    pub fn line_integrals(&mut self, values: &[f32]) -> Result<(), PreprocessError> {
        // All exponent bits set: infinite or not a number.
        let not_finite =
            |values: &[f32]| values.iter().map(|v| u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000)).sum::<u32>();
        let count: u32 = values.par_chunks(CHUNK).map(not_finite).sum();
        if count == 0 {
            self.counters.frames += 1;
            return Ok(());
        }
        self.counters.refused += 1;
        let first = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        Err(PreprocessError::NotFinite { count: count as usize, first })
    }
}

#[cfg(test)]
mod tests;
