//! Photon and electronic noise: `N = Poisson(I0 exp(-p)) + Normal(0, sigma_e)` (METHOD: acquisition simulation), true attenuation.
//!
//! Random numbers are counter-based: ChaCha8 with the seed as key, the view as stream and the pixel as position, so that a pixel's
//! noise depends on nothing but (seed, view, pixel) and its own expectation, whatever the number of threads.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Poisson};

/// Counts below this are raised to it before the logarithm: one photon. The largest line integral that can be measured is
/// therefore `ln(I0)`.
pub const LEAST_PHOTONS: f64 = 1.0;

/// Words of the generator's output set aside for a pixel: far more than Poisson and normal draws take (below 12 expected photons
/// about 26 words at most in practice, above it 6 a trial).
const WORDS_PER_PIXEL: u128 = 1024;

/// Statistics of a detector's readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PhotonNoise {
    /// Photons per pixel without an object (I0).
    pub photons: f64,
    /// Standard deviation of the electronic noise, in photons.
    pub electronic_sigma: f64,
    /// Key of the generator.
    pub seed: u64,
}

/// Streams of the generator other than a view's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Photons of a view.
    View(usize),
    /// Pixel-to-pixel variation of the gain.
    PixelGain,
    /// Pixel-to-pixel variation of the dark level.
    PixelDark,
    /// Which pixels are dead.
    DeadPixels,
    /// Non-uniform gantry angles.
    Angles,
    /// Averaged dark image.
    DarkImage,
    /// Averaged flat image.
    FlatImage,
}

impl Stream {
    fn number(self) -> u64 {
        match self {
            Self::View(view) => view as u64,
            // Views count from 0; the others stand at the far end.
            Self::PixelGain => u64::MAX,
            Self::PixelDark => u64::MAX - 1,
            Self::DeadPixels => u64::MAX - 2,
            Self::DarkImage => u64::MAX - 3,
            Self::FlatImage => u64::MAX - 4,
            Self::Angles => u64::MAX - 5,
        }
    }
}

/// The generator of one stream.
#[must_use]
pub fn stream(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream.number());
    rng
}

/// Moves a stream's generator to the numbers of one pixel.
pub fn seek(rng: &mut ChaCha8Rng, pixel: usize) {
    rng.set_word_pos(pixel as u128 * WORDS_PER_PIXEL);
}

impl PhotonNoise {
    /// Photons read out (electronic noise makes them fractional, and negative where few arrive) where `expected` would arrive.
    pub fn draw(&self, expected: f64, rng: &mut ChaCha8Rng) -> f64 {
        // An expectation that underflows to 0 is no Poisson parameter: no photon arrives.
        let arrived = Poisson::new(expected).map_or(0.0, |poisson| poisson.sample(rng));
        let read = Normal::new(0.0, self.electronic_sigma).map_or(0.0, |normal| normal.sample(rng));
        arrived + read
    }

    /// Photons read out in one pixel of one view behind a line integral `p`.
    pub fn counts(&self, p: f32, pixel: usize, rng: &mut ChaCha8Rng) -> f64 {
        seek(rng, pixel);
        self.draw(self.photons * (-f64::from(p)).exp(), rng)
    }

    /// Line integral of a reading: `ln(I0 / max(N, 1))`.
    #[must_use]
    pub fn line_integral(&self, counts: f64) -> f32 {
        (self.photons / counts.max(LEAST_PHOTONS)).ln() as f32
    }
}
