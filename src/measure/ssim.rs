//! Structural similarity (Wang et al. 2004) as the field takes it for volumes.
//!
//! For each of the three axes, each slice across it gets the two-dimensional SSIM with an 11 x 11 Gaussian window of sigma 1.5
//! (normalised to sum 1), population variances, C1 = (0.01 L)^2 and C2 = (0.03 L)^2, L the data range. A slice's value is the
//! mean over the positions where the window lies wholly inside the slice (scikit-image's
//! `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` crops the same border). Slices whose
//! reference is empty (nothing above `empty_at`) are left out. An axis' value is the mean over its slices, the volume's the mean
//! over the axes.
//!
//! With a mask, a slice's mean is taken over the window centres inside the mask, and slices with none, or whose reference is
//! empty inside the mask, are left out; the windows still see the voxels around.

use ndarray::{ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;

use super::{MeasureError, same_shape};

/// Edge of the window.
const WINDOW: usize = 11;

/// Reach of the window on either side.
const REACH: usize = WINDOW / 2;

/// SSIM of a volume against a reference; see the [module's text](self) for the exact definition.
///
/// `empty_at` is the value of "nothing there" (0 for normalised volumes, -1000 for HU).
///
/// # Errors
/// [`MeasureError`] where shapes differ, an axis has fewer than 11 voxels, or every slice is empty.
pub fn ssim(
    volume: ArrayView3<'_, f32>,
    reference: ArrayView3<'_, f32>,
    data_range: f64,
    empty_at: f32,
    mask: Option<ArrayView3<'_, bool>>,
) -> Result<f64, MeasureError> {
    same_shape(volume.shape(), reference.shape())?;
    if let Some(mask) = &mask {
        same_shape(volume.shape(), mask.shape())?;
    }
    if volume.shape().iter().any(|&length| length < WINDOW) {
        return Err(MeasureError::TooSmall(volume.shape().to_vec()));
    }
    let kernel = kernel();
    let mut axes = Vec::new();
    for axis in [Axis(0), Axis(1), Axis(2)] {
        let slices: Vec<Option<f64>> = (0..volume.len_of(axis))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, index| {
                let mask = mask.as_ref().map(|mask| mask.index_axis(axis, index));
                let (a, b) = (volume.index_axis(axis, index), reference.index_axis(axis, index));
                slice_ssim(a, b, mask, data_range, empty_at, &kernel, scratch)
            })
            .collect();
        let used: Vec<f64> = slices.into_iter().flatten().collect();
        if !used.is_empty() {
            axes.push(used.iter().sum::<f64>() / used.len() as f64);
        }
    }
    if axes.is_empty() {
        return Err(MeasureError::Empty("every slice of the reference is empty"));
    }
    Ok(axes.iter().sum::<f64>() / axes.len() as f64)
}

/// Weights of the window along one axis (it is separable), summing to 1.
fn kernel() -> [f64; WINDOW] {
    let mut weights = std::array::from_fn(|tap| (-0.5 * ((tap as f64 - REACH as f64) / 1.5).powi(2)).exp());
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

/// Buffers of one thread, reused from slice to slice.
#[derive(Default)]
struct Scratch {
    row: [Vec<f64>; 4],
    filtered: [Vec<f64>; 4],
    line: [Vec<f64>; 4],
}

fn slice_ssim(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    mask: Option<ArrayView2<'_, bool>>,
    data_range: f64,
    empty_at: f32,
    kernel: &[f64; WINDOW],
    scratch: &mut Scratch,
) -> Option<f64> {
    let occupied = match &mask {
        None => b.iter().any(|&value| value > empty_at),
        Some(mask) => b.iter().zip(mask).any(|(&value, &inside)| inside && value > empty_at),
    };
    if !occupied {
        return None;
    }
    let (height, width) = a.dim();
    let inner = width + 1 - WINDOW;
    let Scratch { row, filtered, line } = scratch;
    row.iter_mut().for_each(|buffer| buffer.resize(width, 0.0));
    filtered.iter_mut().for_each(|buffer| buffer.resize(height * inner, 0.0));
    line.iter_mut().for_each(|buffer| buffer.resize(inner, 0.0));

    // Along rows: means of a, b, aa + bb (only the variances' sum is needed) and ab.
    for y in 0..height {
        for (x, (a, b)) in a.row(y).iter().zip(b.row(y)).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            (row[0][x], row[1][x], row[2][x], row[3][x]) = (a, b, a * a + b * b, a * b);
        }
        for (source, target) in row.iter().zip(filtered.iter_mut()) {
            let target = &mut target[y * inner..(y + 1) * inner];
            target.fill(0.0);
            for (tap, weight) in kernel.iter().enumerate() {
                target.iter_mut().zip(&source[tap..]).for_each(|(t, s)| *t += weight * s);
            }
        }
    }
    // Across rows, then the formula.
    let (c1, c2) = ((0.01 * data_range).powi(2), (0.03 * data_range).powi(2));
    let (mut sum, mut count) = (0.0, 0_usize);
    for y in 0..=height - WINDOW {
        for (source, target) in filtered.iter().zip(line.iter_mut()) {
            target.fill(0.0);
            for (tap, weight) in kernel.iter().enumerate() {
                let source = &source[(y + tap) * inner..(y + tap + 1) * inner];
                target.iter_mut().zip(source).for_each(|(t, s)| *t += weight * s);
            }
        }
        for x in 0..inner {
            if mask.as_ref().is_some_and(|mask| !mask[[y + REACH, x + REACH]]) {
                continue;
            }
            let (ma, mb) = (line[0][x], line[1][x]);
            let squares = ma * ma + mb * mb;
            let (variances, covariance) = (line[2][x] - squares, line[3][x] - ma * mb);
            sum += (2.0 * ma * mb + c1) * (2.0 * covariance + c2) / ((squares + c1) * (variances + c2));
            count += 1;
        }
    }
    (count > 0).then(|| sum / count as f64)
}
