//! The ramp filter and its windows.
//!
//! The band-limited ramp is sampled in space and then transformed (Kak and Slaney, *Principles of Computerized Tomographic
//! Imaging*, 1988, equation 3.61): sampling |f| itself would wrap the kernel's tails around and depress the mean.

#![forbid(unsafe_code)]

use std::f64::consts::PI;
use std::sync::Arc;

use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::FftPlanner;
use rustfft::num_complex::Complex;
use serde::{Deserialize, Serialize};

/// What the ramp is multiplied by towards high frequencies, `x` being the frequency over the cut-off. All are 1 at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// 1: the sharpest, and the noisiest.
    #[default]
    RamLak,
    /// `sin(pi x / 2) / (pi x / 2)`.
    SheppLogan,
    /// `cos(pi x / 2)`.
    Cosine,
    /// `0.54 + 0.46 cos(pi x)`.
    Hamming,
    /// `(1 + cos(pi x)) / 2`: the smoothest.
    Hann,
}

impl Window {
    /// All windows by their names in settings and on the command line.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("ram-lak", Self::RamLak),
        ("shepp-logan", Self::SheppLogan),
        ("cosine", Self::Cosine),
        ("hamming", Self::Hamming),
        ("hann", Self::Hann),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, window)| *window == self).map_or("", |(name, _)| name)
    }

    /// Factor at frequency `x`, in units of the cut-off; 0 beyond it.
    #[must_use]
    pub fn at(self, x: f64) -> f64 {
        // One part in 1e9 over the cut-off is rounding.
        if x > 1.0 + 1e-9 {
            return 0.0;
        }
        match self {
            Self::RamLak => 1.0,
            Self::SheppLogan if x == 0.0 => 1.0,
            Self::SheppLogan => (0.5 * PI * x).sin() / (0.5 * PI * x),
            Self::Cosine => (0.5 * PI * x).cos().max(0.0),
            Self::Hamming => 0.54 + 0.46 * (PI * x).cos(),
            Self::Hann => 0.5 + 0.5 * (PI * x).cos(),
        }
    }
}

/// Frequency response of the ramp filter for rows of one length, and the transforms that apply it.
///
/// In pixels: a row with pixel pitch `t` mm is filtered rightly by this filter and a factor `1/t` in its weights.
#[derive(Clone)]
pub struct RampFilter {
    columns: usize,
    window: Window,
    cutoff: f64,
    response: Vec<f32>,
    pub(super) forward: Arc<dyn RealToComplex<f32>>,
    pub(super) inverse: Arc<dyn ComplexToReal<f32>>,
}

impl std::fmt::Debug for RampFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RampFilter")
            .field("columns", &self.columns)
            .field("window", &self.window)
            .field("cutoff", &self.cutoff)
            .field("transform_len", &self.transform_len())
            .finish_non_exhaustive()
    }
}

impl RampFilter {
    /// The filter for rows of `columns` pixels; `cutoff` in (0, 1] is the window's end as a share of the highest frequency that
    /// the pixels carry. Values outside are clamped; settings refuse them before.
    #[must_use]
    pub fn new(columns: usize, window: Window, cutoff: f64) -> Self {
        let cutoff = if cutoff.is_nan() { 1.0 } else { cutoff.clamp(1e-3, 1.0) };
        let n = transform_len(columns);
        let mut planner = RealFftPlanner::<f32>::new();
        let spectrum = ramp_spectrum(n);
        // The transforms back and forth multiply by n.
        let response = (0..=n / 2)
            .map(|k| (spectrum[k] * window.at(2.0 * k as f64 / n as f64 / cutoff) / n as f64) as f32)
            .collect();
        Self {
            columns,
            window,
            cutoff,
            response,
            forward: planner.plan_fft_forward(n),
            inverse: planner.plan_fft_inverse(n),
        }
    }

    /// Pixels of a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Length of the transforms: at least twice the row, so that nothing wraps around.
    #[must_use]
    pub fn transform_len(&self) -> usize {
        transform_len(self.columns)
    }

    /// Factors for frequencies `k / transform_len` cycles a pixel, k = 0 ..= transform_len / 2, times `1 / transform_len`.
    #[must_use]
    pub fn response(&self) -> &[f32] {
        &self.response
    }

    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // Response, and the transforms' twiddles (about one complex number a point and direction).
        size_of_val(self.response.as_slice()) + 4 * size_of::<f32>() * self.transform_len()
    }
}

/// Shortest transform of the form 2^a or 3 * 2^a for linear convolution of a row with itself-long kernel.
pub(super) fn transform_len(columns: usize) -> usize {
    let least = (2 * columns).max(16);
    let power = least.next_power_of_two();
    if power / 4 * 3 >= least { power / 4 * 3 } else { power }
}

/// Spectrum of the spatial kernel 1/4, 0, -1/(pi k)^2 for odd k, over `n` points around; real and even, about |k| / n.
fn ramp_spectrum(n: usize) -> Vec<f64> {
    let mut kernel: Vec<Complex<f64>> = (0..n)
        .map(|i| {
            let lag = i.min(n - i);
            let value = match lag {
                0 => 0.25,
                lag if lag % 2 == 1 => -1.0 / (PI * lag as f64).powi(2),
                _ => 0.0,
            };
            Complex::new(value, 0.0)
        })
        .collect();
    FftPlanner::new().plan_fft_forward(n).process(&mut kernel);
    kernel.into_iter().map(|c| c.re).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Direct convolution in double precision.
    fn reference(row: &[f32]) -> Vec<f64> {
        let kernel = |lag: usize| match lag {
            0 => 0.25,
            lag if lag % 2 == 1 => -1.0 / (PI * lag as f64).powi(2),
            _ => 0.0,
        };
        (0..row.len())
            .map(|i| row.iter().enumerate().map(|(j, &p)| f64::from(p) * kernel(i.abs_diff(j))).sum())
            .collect()
    }

    fn apply(filter: &RampFilter, row: &[f32]) -> Vec<f32> {
        let mut padded = vec![0.0; filter.transform_len()];
        padded[..row.len()].copy_from_slice(row);
        let mut spectrum = filter.forward.make_output_vec();
        filter.forward.process(&mut padded, &mut spectrum).expect("lengths fit");
        for (s, r) in spectrum.iter_mut().zip(filter.response()) {
            *s *= *r;
        }
        filter.inverse.process(&mut spectrum, &mut padded).expect("lengths fit");
        padded.truncate(row.len());
        padded
    }

    #[test]
    fn equals_direct_convolution_for_odd_and_even_lengths() {
        for columns in [1, 2, 7, 64, 97, 256] {
            let row: Vec<f32> = (0..columns).map(|i| ((i * 37 % 11) as f32 - 3.0) * 0.3).collect();
            let filter = RampFilter::new(columns, Window::RamLak, 1.0);
            assert!(filter.transform_len() >= 2 * columns);
            for (a, b) in apply(&filter, &row).iter().zip(reference(&row)) {
                // float32 transforms of values around 1: a few 1e-7.
                assert!((f64::from(*a) - b).abs() < 2e-6, "{columns}: {a} {b}");
            }
        }
    }

    #[test]
    fn the_mean_is_not_depressed_as_sampling_the_ramp_would() {
        // The infinite kernel's sum is 0; cut to n points around it is about 1 / (pi^2 n / 2), and never 0 exactly.
        let n = 512.0;
        let filter = RampFilter::new(256, Window::RamLak, 1.0);
        let dc = f64::from(filter.response()[0]) * n;
        assert!((dc * PI * PI * n / 2.0 - 1.0).abs() < 0.01, "{dc}");
        // Elsewhere the response is the ramp |k| / n.
        for k in [8, 64, 128, 255] {
            let value = f64::from(filter.response()[k]) * n;
            assert!((value - k as f64 / n).abs() < 1e-4, "{k}: {value}");
        }
    }

    #[test]
    fn windows_cut_where_they_say() {
        for (name, window) in Window::NAMES {
            assert!((window.at(0.0) - 1.0).abs() < 1e-12);
            assert_eq!(window.name(), name);
            let filter = RampFilter::new(128, window, 0.5);
            let (k_cut, last) = (64, filter.response().len() - 1);
            assert_eq!((filter.transform_len(), last), (256, 128));
            assert!(filter.response()[k_cut + 1..].iter().all(|&r| r == 0.0), "{name}");
            // Below the cut-off: the ramp times the window.
            let ratio =
                f64::from(filter.response()[32]) / f64::from(RampFilter::new(128, Window::RamLak, 1.0).response()[32]);
            assert!((ratio - window.at(0.5)).abs() < 1e-6, "{name} {ratio}");
        }
        assert!((Window::Hann.at(0.5) - 0.5).abs() < 1e-12 && (Window::Cosine.at(1.0)).abs() < 1e-12);
        assert!(
            (Window::SheppLogan.at(1.0) - 2.0 / PI).abs() < 1e-12 && (Window::Hamming.at(1.0) - 0.08).abs() < 1e-12
        );
    }
}
