//! From an object and a geometry to what the detector measures: rays through sub-pixels, intensities averaged over each pixel,
//! photons counted.

use ndarray::{Array3, Axis};
use rayon::prelude::*;

use super::error::SimulateError;
use super::object::Object;
use super::photon_noise::{LEAST_PHOTONS, PhotonNoise, Stream, stream};
use super::raw_detector::RawDetector;
use crate::formats::scene::RawCounts;
use crate::geometry::{Detector, ScanGeometry, ViewPose};

/// Bytes of sub-pixel projections held at a time.
const CHUNK_BYTES: usize = 64 << 20;

/// A detector with `subpixels` x `subpixels` rays a pixel, as a finer detector on the same area.
#[must_use]
pub fn subdivided(pose: &ViewPose, subpixels: usize) -> ViewPose {
    let n = subpixels as f64;
    let first = 0.5 / n - 0.5;
    ViewPose {
        source_mm: pose.source_mm,
        detector_origin_mm: pose.pixel_mm(first, first),
        column_step_mm: pose.column_step_mm / n,
        row_step_mm: pose.row_step_mm / n,
    }
}

/// Views that one pass over the object computes.
#[must_use]
pub fn views_per_chunk(detector: Detector, subpixels: usize) -> usize {
    (CHUNK_BYTES / (4 * detector.pixels() * subpixels * subpixels)).clamp(1, 64)
}

/// Noise-free line integrals `[view][row v][column u]`: minus the logarithm of the mean of exp(-p) over `subpixels`^2 rays in
/// each pixel, which is what an energy-free integrating detector measures. `done` is told the views finished so far.
///
/// # Errors
/// What the projector says.
pub fn project(
    object: &Object,
    geometry: &ScanGeometry,
    subpixels: usize,
    mut done: impl FnMut(usize),
) -> Result<Array3<f32>, SimulateError> {
    let n = subpixels.max(1);
    let Detector { columns, rows } = geometry.detector;
    let fine_detector = Detector { columns: columns * n, rows: rows * n };
    let chunk = views_per_chunk(geometry.detector, n).min(geometry.views.len());
    let mut fine = vec![0.0_f32; chunk * fine_detector.pixels()];
    let mut projections = Array3::zeros((geometry.views.len(), rows, columns));
    let share = 1.0 / (n * n) as f64;
    for (poses, mut out) in geometry.views.chunks(chunk).zip(projections.axis_chunks_iter_mut(Axis(0), chunk)) {
        let poses: Vec<ViewPose> = poses.iter().map(|pose| subdivided(pose, n)).collect();
        let fine = &mut fine[..poses.len() * fine_detector.pixels()];
        object.project(fine_detector, &poses, fine)?;
        let fine = &*fine;
        out.axis_iter_mut(Axis(0)).into_par_iter().zip(fine.par_chunks(fine_detector.pixels())).for_each(
            |(mut image, fine)| {
                for ((v, u), value) in image.indexed_iter_mut() {
                    let rows = || fine.chunks(fine_detector.columns).skip(v * n).take(n);
                    let rays = || rows().flat_map(|row| &row[u * n..(u + 1) * n]).copied();
                    // Relative to the ray that loses least: no underflow, and a single ray stays what it is.
                    let least = rays().fold(f32::INFINITY, f32::min);
                    let sum: f64 = rays().map(|p| f64::from(least - p).exp()).sum();
                    *value = (f64::from(least) - (share * sum).ln()) as f32;
                }
            },
        );
        done(poses.len());
    }
    Ok(projections)
}

/// Replaces noise-free line integrals by measured ones; returns how many readings were raised to [`LEAST_PHOTONS`] (see [`super::photon_noise`]).
pub fn add_noise(projections: &mut Array3<f32>, noise: &PhotonNoise) -> usize {
    let noisy_view = |(view, mut image): (usize, ndarray::ArrayViewMut2<'_, f32>)| {
        let mut rng = stream(noise.seed, Stream::View(view));
        let mut clamped = 0;
        for (pixel, value) in image.iter_mut().enumerate() {
            let counts = noise.counts(*value, pixel, &mut rng);
            clamped += usize::from(counts < LEAST_PHOTONS);
            *value = noise.line_integral(counts);
        }
        clamped
    };
    projections.axis_iter_mut(Axis(0)).into_par_iter().enumerate().map(noisy_view).sum()
}

/// Raw counts of noise-free line integrals, drawn from the same photons as [`add_noise`] (exactly the expected ones with
/// `noise_free`), with their dark and flat images.
#[must_use]
pub fn raw_counts(projections: &Array3<f32>, noise: &PhotonNoise, noise_free: bool) -> RawCounts {
    let (views, rows, columns) = projections.dim();
    let detector = RawDetector::new(Detector { columns, rows }, *noise);
    let mut counts = Array3::zeros((views, rows, columns));
    counts.axis_iter_mut(Axis(0)).into_par_iter().zip(projections.axis_iter(Axis(0))).enumerate().for_each(
        |(view, (mut out, image))| {
            let mut rng = stream(noise.seed, Stream::View(view));
            for ((v, u), &p) in image.indexed_iter() {
                let photons = if noise_free {
                    noise.photons * (-f64::from(p)).exp()
                } else {
                    noise.counts(p, v * columns + u, &mut rng)
                };
                out[[v, u]] = detector.digitise(v, u, photons);
            }
            for &(v, u, reading) in &detector.dead {
                out[[v, u]] = reading;
            }
        },
    );
    let (dark, flat) = detector.calibration(noise_free);
    RawCounts { counts, dark, flat, gain: detector.gain }
}
