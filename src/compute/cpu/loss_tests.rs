//! Tests of the losses against float64 references written from the definition: one window at a time, both of its directions at once.

#![allow(clippy::unwrap_used)]

mod images;
mod volumes;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Smooth values about `level`, with some noise.
pub(super) fn values(n: usize, level: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|k| level * (1.0 + 0.5 * (k as f32 * 0.37).sin() + rng.random_range(-0.3..0.3))).collect()
}

/// Sum of `1 - SSIM` over all pixels of two planes, `[row][column]`, in float64 from the definition.
pub(super) fn dissimilarity(a: &[f64], b: &[f64], [rows, columns]: [usize; 2], data_range: f64) -> f64 {
    let (c1, c2) = ((0.01 * data_range).powi(2), (0.03 * data_range).powi(2));
    let mut sum = 0.0;
    for row in 0..rows as isize {
        for column in 0..columns as isize {
            let (mut total, mut moments) = (0.0, [0.0; 5]);
            for i in (row - 5).max(0)..(row + 6).min(rows as isize) {
                for j in (column - 5).max(0)..(column + 6).min(columns as isize) {
                    let square = ((i - row).pow(2) + (j - column).pow(2)) as f64;
                    let weight = (-square / (2.0 * 1.5 * 1.5)).exp();
                    let at = i as usize * columns + j as usize;
                    total += weight;
                    for (to, value) in
                        moments.iter_mut().zip([a[at], b[at], a[at] * a[at], b[at] * b[at], a[at] * b[at]])
                    {
                        *to += weight * value;
                    }
                }
            }
            let [ma, mb, aa, bb, ab] = moments.map(|moment| moment / total);
            let (va, vb, cov) = (aa - ma * ma, bb - mb * mb, ab - ma * mb);
            sum += 1.0 - (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
        }
    }
    sum
}

pub(super) fn double(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Central differences of `loss`.
pub(super) fn differences(at: &[f32], step: f64, loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut point = double(at);
    let mut slope = |k: usize| {
        let middle = point[k];
        let [above, below] = [step, -step].map(|step| {
            point[k] = middle + step;
            loss(&point)
        });
        point[k] = middle;
        (above - below) / (2.0 * step)
    };
    (0..at.len()).map(&mut slope).collect()
}

/// Largest difference of `gradient` from the expected one, over the largest size of that.
pub(super) fn worst(gradient: &[f32], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0f64, |largest, slope| largest.max(slope.abs()));
    let difference = |(given, expected): (&f32, &f64)| (f64::from(*given) - expected).abs();
    gradient.iter().zip(expected).map(difference).fold(0.0, f64::max) / largest
}
