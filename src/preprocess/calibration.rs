//! Dark and flat: averaged from calibration frames on the ring, or read from files.
//!
//! The first calibration frame of a kind after a projection starts a new average of that kind, which takes effect with the next
//! projection; the other kind stays as it is. A calibration holds until it is replaced, also over scans and epochs.

use super::bad_pixels::Thresholds;
use super::{PreprocessError, Preprocessor};
use crate::config::Calibration;

/// Most frames averaged: more cannot overflow the integer sums of 16-bit counts.
const MOST_FRAMES: u32 = 65_536;

/// Where a calibration image in use came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationSource {
    /// There is none: dark 0, flat i0.
    None,
    /// Frames on the ring.
    Ring,
    /// A file.
    File,
}

/// What a calibration amounts to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationReport {
    /// Where the dark image comes from.
    pub dark: CalibrationSource,
    /// Where the flat image comes from.
    pub flat: CalibrationSource,
    /// Dark frames averaged.
    pub dark_frames: u32,
    /// Flat frames averaged.
    pub flat_frames: u32,
    /// Median of the dark image, counts.
    pub median_dark: f32,
    /// Median of flat - dark, counts; 0 without flat.
    pub median_signal: f32,
    /// Dead and hot pixels.
    pub bad_pixels: usize,
}

/// Sum of calibration frames of one kind.
#[derive(Debug)]
struct Sum {
    counts: Vec<u32>,
    frames: u32,
    exposure: f64,
    /// The next frame starts anew.
    closed: bool,
}

impl Sum {
    fn new(pixels: usize) -> Self {
        Self { counts: vec![0; pixels], frames: 0, exposure: 0.0, closed: false }
    }

    /// Adds a frame; `false` where the sum is full.
    fn add(&mut self, counts: &[u16], exposure: f32) -> bool {
        if self.closed {
            self.counts.fill(0);
            (self.frames, self.exposure, self.closed) = (0, 0.0, false);
        }
        if self.frames == MOST_FRAMES {
            return false;
        }
        for (sum, &count) in self.counts.iter_mut().zip(counts) {
            *sum += u32::from(count);
        }
        self.frames += 1;
        self.exposure += f64::from(exposure);
        true
    }

    fn mean(&self, index: usize) -> f32 {
        (f64::from(self.counts[index]) / f64::from(self.frames)) as f32
    }
}

/// Sums of dark and flat frames, and scratch for medians.
#[derive(Debug)]
pub(super) struct Sums {
    dark: Sum,
    flat: Sum,
    scratch: Vec<f32>,
    pending: bool,
}

impl Sums {
    pub(super) fn new(pixels: usize) -> Self {
        Self { dark: Sum::new(pixels), flat: Sum::new(pixels), scratch: vec![0.0; pixels], pending: false }
    }
}

/// The lower median; in place, so that nothing is allocated.
fn median(scratch: &mut [f32], values: impl Iterator<Item = f32>) -> f32 {
    for (slot, value) in scratch.iter_mut().zip(values) {
        *slot = value;
    }
    let middle = scratch.len() / 2;
    *scratch.select_nth_unstable_by(middle, f32::total_cmp).1
}

impl Preprocessor {
    /// Adds a dark frame to the average. Ignored where the settings take dark from elsewhere.
    pub fn add_dark(&mut self, counts: &[u16]) {
        if self.settings.dark == Calibration::Ring && self.sums.dark.add(counts, 1.0) {
            self.sums.pending = true;
            self.counters.dark_frames += 1;
        }
    }

    /// Adds a flat frame to the average. Ignored where the settings take flat from elsewhere.
    ///
    /// # Errors
    /// [`PreprocessError::Exposure`].
    pub fn add_flat(&mut self, counts: &[u16], relative_exposure: f32) -> Result<(), PreprocessError> {
        if !(relative_exposure.is_finite() && relative_exposure > 0.0) {
            return Err(PreprocessError::Exposure { value: relative_exposure });
        }
        if self.settings.flat == Calibration::Ring && self.sums.flat.add(counts, relative_exposure) {
            self.sums.pending = true;
            self.counters.flat_frames += 1;
        }
        Ok(())
    }

    /// Where the images in use come from.
    #[must_use]
    pub fn sources(&self) -> [CalibrationSource; 2] {
        [self.dark_source, self.flat_source]
    }

    /// Puts newly averaged calibration frames to use, if there are any; call before the first projection after them.
    ///
    /// # Errors
    /// [`PreprocessError::TooManyBadPixels`]; then there is no calibration at all until a good one comes.
    pub fn finish_calibration(&mut self) -> Result<Option<CalibrationReport>, PreprocessError> {
        if !std::mem::take(&mut self.sums.pending) {
            return Ok(None);
        }
        if self.sums.dark.frames > 0 {
            let flat_is_fixed = self.flat_source == CalibrationSource::File;
            for (index, (dark, gain)) in self.dark.iter_mut().zip(&mut self.gain).enumerate() {
                let mean = self.sums.dark.mean(index);
                if flat_is_fixed {
                    // For now the signal itself; `settle` inverts it.
                    *gain = if *gain > 0.0 { gain.recip() + *dark - mean } else { 0.0 };
                }
                *dark = mean;
            }
            self.dark_source = CalibrationSource::Ring;
        }
        if self.sums.flat.frames > 0 {
            let exposure = (self.sums.flat.exposure / f64::from(self.sums.flat.frames)) as f32;
            for (index, gain) in self.gain.iter_mut().enumerate() {
                *gain = (self.sums.flat.mean(index) - self.dark[index]) / exposure;
            }
            self.flat_source = CalibrationSource::Ring;
        }
        (self.sums.dark.closed, self.sums.flat.closed) = (true, true);
        self.settle().map(Some)
    }

    /// Calibration images from files.
    pub(super) fn take_files(&mut self, [dark, flat]: [Option<Vec<f32>>; 2]) -> Result<(), PreprocessError> {
        let needed = self.detector.pixels();
        let check = |image: &'static str, values: &Option<Vec<f32>>| match values {
            Some(v) if v.len() != needed => Err(PreprocessError::FileShape { image, given: v.len(), needed }),
            _ => Ok(()),
        };
        check("dark", &dark)?;
        check("flat", &flat)?;
        let any = dark.is_some() || flat.is_some();
        if let Some(values) = dark {
            self.dark.copy_from_slice(&values);
            self.dark_source = CalibrationSource::File;
        }
        if let Some(values) = flat {
            for ((gain, flat), dark) in self.gain.iter_mut().zip(values).zip(&self.dark) {
                *gain = flat - dark;
            }
            self.flat_source = CalibrationSource::File;
        }
        if any { self.settle().map(|_| ()) } else { Ok(()) }
    }

    /// Finds the bad pixels and turns the signal that stands in `gain` into the gain.
    fn settle(&mut self) -> Result<CalibrationReport, PreprocessError> {
        self.on_carrier.forget();
        let has_flat = self.flat_source != CalibrationSource::None;
        let scratch = &mut self.sums.scratch;
        let median_dark = median(scratch, self.dark.iter().copied());
        let median_signal = if has_flat { median(scratch, self.gain.iter().copied()) } else { 0.0 };
        let (dead, hot) = (self.settings.dead_below as f32, self.settings.hot_above as f32);
        // Without flats the scale of the signal is i0 where it is known; else hot pixels cannot be told.
        let scale = if has_flat { median_signal } else { self.settings.i0_counts.map_or(f32::INFINITY, |i| i as f32) };
        let thresholds = Thresholds {
            dead_below: dead * median_signal,
            signal_above: median_signal / hot,
            dark_above: median_dark + hot * scale,
        };
        let found = self.bad.find(&self.dark, has_flat.then_some(&self.gain), thresholds);
        if let Err(bad) = found {
            self.counters.refused_calibrations += 1;
            self.dark.fill(0.0);
            self.gain.fill(1.0);
            (self.dark_source, self.flat_source) = (CalibrationSource::None, CalibrationSource::None);
            let (pixels, limit) = (self.detector.pixels(), self.bad.most());
            return Err(PreprocessError::TooManyBadPixels {
                bad,
                pixels,
                limit,
                image: if has_flat { "flat and dark" } else { "dark" },
            });
        }
        if has_flat {
            for gain in &mut self.gain {
                *gain = if gain.is_finite() && *gain > 0.0 { gain.recip() } else { 0.0 };
            }
        }
        Ok(CalibrationReport {
            dark: self.dark_source,
            flat: self.flat_source,
            dark_frames: self.sums.dark.frames,
            flat_frames: self.sums.flat.frames,
            median_dark,
            median_signal,
            bad_pixels: self.bad.len(),
        })
    }
}
