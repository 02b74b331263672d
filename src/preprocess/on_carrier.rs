//! The calibration where the carrier works on it.

use super::bad_pixels::BadPixels;
use crate::compute::counts::BadPixel;
use crate::compute::{Buffer, ComputeError, Memory, Operations, Values};
use crate::config::PreprocessSettings;
use crate::geometry::Detector;

/// Dark image, gain and bad pixels in the carrier's memory; empty where that is the host's, where they are read as they are.
#[derive(Debug)]
pub struct CalibrationOnCarrier {
    /// In the order of [`CalibrationOnCarrier::bring`].
    buffers: [Buffer; 3],
    is_current: bool,
}

impl CalibrationOnCarrier {
    /// Takes the buffers, and prepares the carrier for counts.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] and [`ComputeError::Device`] where there is no memory for them.
    pub fn take(
        compute: &mut dyn Operations,
        settings: &PreprocessSettings,
        detector: Detector,
    ) -> Result<Self, ComputeError> {
        compute.prepare_counts(detector.pixels())?;
        let buffer = |name, len| compute.buffer(name, compute.copy_len(len));
        let buffers = [
            buffer("dark image", detector.pixels())?,
            buffer("gain", detector.pixels())?,
            buffer("bad pixels", BadPixels::limit(settings, detector) * BadPixel::FLOATS)?,
        ];
        Ok(Self { buffers, is_current: false })
    }

    /// The calibration has changed.
    pub(super) fn forget(&mut self) {
        self.is_current = false;
    }

    /// Dark image, gain and bad pixels where operations read them; brought there where they have changed.
    pub(super) fn bring<'a>(
        &'a mut self,
        memory: &dyn Memory,
        calibration: [&'a [f32]; 3],
    ) -> Result<[Values<'a>; 3], ComputeError> {
        let is_current = self.is_current;
        let [dark, gain, bad_pixels] = &mut self.buffers;
        let bring = |values: &'a [f32], buffer: &'a mut Buffer| {
            if is_current && values.len() <= buffer.len() {
                return Ok(buffer.values().part(0..values.len()));
            }
            memory.on_carrier(values, buffer)
        };
        let [of_dark, of_gain, of_bad_pixels] = calibration;
        let brought = [bring(of_dark, dark)?, bring(of_gain, gain)?, bring(of_bad_pixels, bad_pixels)?];
        self.is_current = true;
        Ok(brought)
    }
}
