//! Dead and hot pixels: found in the calibration images, replaced by their neighbours.
//!
//! With `signal = flat - dark` and medians over the detector, a pixel is
//! * **dead** where `signal < dead_below * median(signal)` or is not finite,
//! * **hot** where `dark > median(dark) + hot_above * median(signal)` or `signal > median(signal) / hot_above`.
//!
//! A bad pixel becomes the mean of the good pixels of the smallest square ring about it that has any (radius 1 to 8; of a
//! larger ring at most the first eight, in row order). So single pixels, rows and columns are bridged from both sides; a hole
//! wider than the ring is refused with the calibration.

use crate::compute::counts::{BadPixel, MOST_NEIGHBOURS};
use crate::config::PreprocessSettings;
use crate::geometry::Detector;

/// Largest ring searched for good neighbours.
const MAX_RADIUS: usize = 8;
/// The list of bad pixels, of fixed capacity.
#[derive(Debug)]
pub struct BadPixels {
    list: Vec<BadPixel>,
    /// One byte a pixel: 1 where bad.
    mask: Vec<u8>,
    limit: usize,
    columns: usize,
}

/// Thresholds in counts, from the medians.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    pub(super) dead_below: f32,
    pub(super) signal_above: f32,
    pub(super) dark_above: f32,
}

impl BadPixels {
    /// Most bad pixels that the settings allow.
    pub(super) fn limit(settings: &PreprocessSettings, detector: Detector) -> usize {
        (detector.pixels() as f64 * settings.max_bad_fraction).floor() as usize
    }

    /// Bytes that [`BadPixels::new`] allocates.
    pub(super) fn bytes(settings: &PreprocessSettings, detector: Detector) -> u64 {
        (Self::limit(settings, detector) * size_of::<BadPixel>() + detector.pixels()) as u64
    }

    pub(super) fn new(settings: &PreprocessSettings, detector: Detector) -> Self {
        let limit = Self::limit(settings, detector);
        Self { list: Vec::with_capacity(limit), mask: vec![0; detector.pixels()], limit, columns: detector.columns }
    }

    /// All of them.
    pub(super) fn list(&self) -> &[BadPixel] {
        &self.list
    }

    /// How many pixels are bad.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether no pixel is bad.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Most pixels that may be bad.
    pub(super) fn most(&self) -> usize {
        self.limit
    }

    /// Forgets all bad pixels.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.mask.fill(0);
    }

    /// Finds the bad pixels; `signal` is `None` without flat images. Returns their number; where that is above the limit or
    /// one has no good neighbour, the list is left empty and the number comes as an error.
    pub(super) fn find(&mut self, dark: &[f32], signal: Option<&[f32]>, at: Thresholds) -> Result<usize, usize> {
        self.clear();
        for (index, (&dark, mask)) in dark.iter().zip(&mut self.mask).enumerate() {
            let signal_is_good =
                signal.is_none_or(|s| (at.dead_below..=at.signal_above).contains(&s[index]) && s[index] > 0.0);
            *mask = u8::from(!(signal_is_good && dark <= at.dark_above));
        }
        let bad = self.mask.iter().filter(|m| **m != 0).count();
        let refused = bad > self.limit || {
            let mut index = 0;
            let mut lonely = false;
            while let Some(step) = self.mask[index..].iter().position(|m| *m != 0) {
                index += step;
                let pixel = self.neighbours_of(index);
                lonely |= pixel.count == 0;
                self.list.push(pixel);
                index += 1;
            }
            lonely
        };
        if refused {
            self.clear();
            return Err(bad);
        }
        Ok(bad)
    }

    fn neighbours_of(&self, index: usize) -> BadPixel {
        let rows = self.mask.len() / self.columns;
        let (row, column) = ((index / self.columns) as isize, (index % self.columns) as isize);
        let mut pixel = BadPixel { index: index as u32, ..BadPixel::default() };
        for radius in 1..=MAX_RADIUS as isize {
            for dr in -radius..=radius {
                for dc in -radius..=radius {
                    let (r, c) = (row + dr, column + dc);
                    let inside = (0..rows as isize).contains(&r) && (0..self.columns as isize).contains(&c);
                    if dr.abs().max(dc.abs()) != radius || !inside || pixel.count as usize == MOST_NEIGHBOURS {
                        continue;
                    }
                    let neighbour = r as usize * self.columns + c as usize;
                    if self.mask[neighbour] == 0 {
                        pixel.neighbours[pixel.count as usize] = neighbour as u32;
                        pixel.count += 1;
                    }
                }
            }
            if pixel.count > 0 {
                break;
            }
        }
        pixel
    }
}
