//! The detector's own picture of the photons: uint16 counts with a dark level, pixel-to-pixel gain and dead pixels, and the dark
//! and flat images that correct for them.

use ndarray::Array2;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

use super::photon_noise::{PhotonNoise, Stream, seek, stream};
use crate::geometry::Detector;

/// Counts without beam.
pub const DARK_COUNTS: f64 = 200.0;
/// Standard deviation of the dark level from pixel to pixel, in counts.
const DARK_SPREAD: f64 = 6.0;
/// Counts above the dark level without object, before the pixels' own gain.
const OPEN_COUNTS: f64 = 50_000.0;
/// Standard deviation of the pixels' gain.
const GAIN_SPREAD: f64 = 0.03;
/// One pixel in so many is dead, and at least [`LEAST_DEAD`].
const PIXELS_PER_DEAD: usize = 20_000;
const LEAST_DEAD: usize = 4;
/// Readings that the dark and flat images average.
pub const CALIBRATION_FRAMES: usize = 64;

/// A detector's fixed pattern.
#[derive(Debug, Clone)]
pub struct RawDetector {
    noise: PhotonNoise,
    /// Counts per photon.
    pub gain: f64,
    /// Relative gain `[row v][column u]`.
    response: Array2<f32>,
    /// Dark level `[row v][column u]`, counts.
    level: Array2<f32>,
    /// Pixels that always read the same: (row, column, reading). Half of them read nothing, half are saturated.
    pub dead: Vec<(usize, usize, u16)>,
}

impl RawDetector {
    /// The pattern of a seed.
    #[must_use]
    pub fn new(detector: Detector, noise: PhotonNoise) -> Self {
        let normal = |name: Stream, mean: f64, sigma: f64| {
            let mut rng = stream(noise.seed, name);
            Array2::from_shape_fn((detector.rows, detector.columns), |(v, u)| {
                seek(&mut rng, v * detector.columns + u);
                let z: f64 = StandardNormal.sample(&mut rng);
                // 4 sigma: no pixel without response and none that saturates in the open beam.
                (mean + sigma * z.clamp(-4.0, 4.0)) as f32
            })
        };
        let mut rng = stream(noise.seed, Stream::DeadPixels);
        let count = (detector.pixels() / PIXELS_PER_DEAD).max(LEAST_DEAD).min(detector.pixels());
        let dead = (0..count)
            .map(|i| {
                let (v, u) = (rng.random_range(0..detector.rows), rng.random_range(0..detector.columns));
                (v, u, if i % 2 == 0 { 0 } else { u16::MAX })
            })
            .collect();
        Self {
            noise,
            gain: OPEN_COUNTS / noise.photons,
            response: normal(Stream::PixelGain, 1.0, GAIN_SPREAD),
            level: normal(Stream::PixelDark, DARK_COUNTS, DARK_SPREAD),
            dead,
        }
    }

    /// Counts of a pixel that read `photons`: rounded, and clipped to uint16.
    #[must_use]
    pub fn digitise(&self, v: usize, u: usize, photons: f64) -> u16 {
        let counts = f64::from(self.level[[v, u]]) + self.gain * f64::from(self.response[[v, u]]) * photons;
        counts.round().clamp(0.0, f64::from(u16::MAX)) as u16
    }

    /// Mean dark and flat images `[row v][column u]` in counts, as [`CALIBRATION_FRAMES`] noisy readings give them; `noise_free`
    /// leaves the noise out. The flat image includes the dark level.
    #[must_use]
    pub fn calibration(&self, noise_free: bool) -> (Array2<f32>, Array2<f32>) {
        let image = |name: Stream, photons: f64| {
            let mut rng = stream(self.noise.seed, name);
            let columns = self.level.ncols();
            let spread = ((photons + self.noise.electronic_sigma.powi(2)) / CALIBRATION_FRAMES as f64).sqrt();
            let mut out = Array2::from_shape_fn(self.level.dim(), |(v, u)| {
                seek(&mut rng, v * columns + u);
                // The mean of 64 readings is normal enough, also of few photons.
                let z: f64 = StandardNormal.sample(&mut rng);
                let read = if noise_free { photons } else { photons + spread * z };
                (f64::from(self.level[[v, u]]) + self.gain * f64::from(self.response[[v, u]]) * read) as f32
            });
            for &(v, u, reading) in &self.dead {
                out[[v, u]] = f32::from(reading);
            }
            out
        };
        (image(Stream::DarkImage, 0.0), image(Stream::FlatImage, self.noise.photons))
    }
}
