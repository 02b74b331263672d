//! Loss of views against measured ones, with its gradient.
//!
//! **Work.** Pointwise parts: 10 lane operations a pixel; similarity: see [`super::loss_window`]. **Bytes.** Reads 2 (3 with weights) and writes 1 float
//! a pixel, and once more for the similarity; a batch of views stays in the caches.
//!
//! **Order.** Sums are taken row by row in lanes, rows are added in their order.

// Generic SIMD on rows whose ends are checked; tasks write disjoint rows.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::losses::{ImageLoss, ImageLossValue, LossWorkload, PointSlopes};
use super::gaussian_lanes::{Wide, at_each_level};
use super::loss_window::{LANES, LaneWeights, Plane, buffer_floats, similarity};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use super::{check_len, check_values};
use crate::geometry::Detector;

const OPERATION: &str = "image_loss";

/// Rows of the thinnest band that a view is cut into; a band sees 10 rows beside its own.
const BAND: usize = 32;

/// Scratch of this operation: sums of each row.
pub(super) fn need(workload: &LossWorkload) -> Need {
    let rows = workload.rows.saturating_mul(workload.views_per_call);
    let window = if rows == 0 { 0 } else { buffer_floats(workload.columns, 1) };
    Need { shared: rows.saturating_mul(SUMS * 2), per_thread: window }
}

/// Sums a row has: modulus, squares, dissimilarity; in float64.
const SUMS: usize = 3;

/// See [`super::super::losses::LossCompute::image_loss`].
#[allow(clippy::too_many_arguments)]
pub(super) fn image_loss(
    simd: SimdLevel,
    scratch: &Scratch,
    detector: Detector,
    settings: &ImageLoss,
    projections: &[f32],
    measured: &[f32],
    weights: Option<&[f32]>,
    by_projections: &mut [f32],
) -> Result<ImageLossValue, ComputeError> {
    let (pixels, n) = (detector.pixels(), projections.len());
    let views = n.checked_div(pixels).unwrap_or(0);
    check_len(OPERATION, "projections", n, views * pixels)?;
    check_len(OPERATION, "measured", measured.len(), n)?;
    check_len(OPERATION, "weights", weights.map_or(n, <[f32]>::len), n)?;
    check_len(OPERATION, "by_projections", by_projections.len(), n)?;
    let limit = settings.check(OPERATION)?;
    let similar = settings.dissimilarity > 0.0;
    check_values(OPERATION, "projections", projections, -limit..=limit)?;
    check_values(OPERATION, "measured", measured, -limit..=limit)?;
    check_values(OPERATION, "weights", weights.unwrap_or(&[]), 0.0..=1e15)?;
    if n == 0 {
        return Ok(ImageLossValue::default());
    }
    let workload =
        LossWorkload { columns: detector.columns, rows: detector.rows, views_per_call: views, voxels: [0; 3] };
    let mut whole = scratch.take(OPERATION, need(&workload))?;
    let rows = views * detector.rows;
    let sums: &mut [f64] = bytemuck::cast_slice_mut(&mut whole.floats()[..2 * SUMS * rows]);
    let (points, similarities) = sums.split_at_mut(2 * rows);

    let columns = detector.columns;
    let slopes = settings.slopes(n);
    by_projections
        .par_chunks_exact_mut(columns)
        .zip(points.par_chunks_exact_mut(2))
        .enumerate()
        .with_min_len(16)
        .for_each(|(row, (by, sums))| {
            let here = row * columns..(row + 1) * columns;
            let weights = weights.map(|weights| &weights[here.clone()]);
            sums.copy_from_slice(&point_row(
                simd,
                settings.huber,
                &slopes,
                &projections[here.clone()],
                &measured[here],
                weights,
                by,
            ));
        });
    if similar {
        let planes = Views {
            detector,
            projections,
            measured,
            target: by_projections.as_mut_ptr(),
            sums: similarities.as_mut_ptr(),
            scale: 1.0 / settings.data_range,
            weight: settings.similarity_slope(n),
        };
        // Enough bands for all threads; never changes a result.
        let bands = (2 * rayon::current_num_threads()).div_ceil(views).min(detector.rows.div_ceil(BAND));
        let height = detector.rows.div_ceil(bands);
        (0..views * bands).into_par_iter().with_max_len(1).for_each(|task| {
            let (view, band) = (task / bands, task % bands);
            let out = (band * height).min(detector.rows)..((band + 1) * height).min(detector.rows);
            view_band(simd, &planes, view, out, scratch.of_this_thread().floats());
        });
    }
    let moduli = points.iter().step_by(2).sum();
    let squares = points.iter().skip(1).step_by(2).sum();
    let dissimilarity = if similar { similarities.iter().sum() } else { 0.0 };
    Ok(settings.value(n, [moduli, squares, dissimilarity]))
}

/// Writes a row of the pointwise parts' gradient; gives the sums of moduli and squares.
#[inline(always)]
unsafe fn point_row_body<W: Wide>(
    huber: f32,
    slopes: &PointSlopes,
    projections: &[f32],
    measured: &[f32],
    weights: Option<&[f32]>,
    by: &mut [f32],
) -> [f64; 2] {
    // SAFETY: the caller's; all rows have one length, and nothing is touched behind it.
    unsafe {
        let one = W::splat(1.0);
        let (low, half_huber) = (W::splat(-1.0), W::splat(0.5 * huber));
        let mut sums = [W::splat(0.0); 2];
        for at in (0..by.len()).step_by(W::N) {
            let left = by.len() - at;
            let p = W::load_first(projections.as_ptr().add(at), left);
            let r = W::sub(p, W::load_first(measured.as_ptr().add(at), left));
            let weight = match weights {
                Some(weights) => W::load_first(weights.as_ptr().add(at), left),
                None => one,
            };
            // The slope of Huber's function: the sign, but for the middle.
            let slope = W::max(W::min(W::mul(r, W::splat(slopes.sharpness)), one), low);
            let modulus = W::mul(slope, W::sub(r, W::mul(slope, half_huber)));
            sums[0] = W::fma(weight, modulus, sums[0]);
            sums[1] = W::fma(weight, W::mul(r, r), sums[1]);
            let gradient = W::fma(r, W::splat(slopes.squares), W::mul(slope, W::splat(slopes.l1)));
            W::store_first(by.as_mut_ptr().add(at), left, W::mul(weight, gradient));
        }
        [f64::from(W::sum(sums[0])), f64::from(W::sum(sums[1]))]
    }
}
at_each_level!(
    /// See [`point_row_body`].
    point_row => point_row_body(
        huber: f32,
    slopes: &PointSlopes,
        projections: &[f32],
        measured: &[f32],
        weights: Option<&[f32]>,
        by: &mut [f32],
    ) -> [f64; 2]
);

/// The views of a call.
struct Views<'a> {
    detector: Detector,
    projections: &'a [f32],
    measured: &'a [f32],
    target: *mut f32,
    /// `[view][row]`.
    sums: *mut f64,
    scale: f32,
    /// Of the gradient, `1 / L` in it.
    weight: f32,
}

// SAFETY: tasks write disjoint rows.
unsafe impl Sync for Views<'_> {}

struct OneView<'a> {
    views: &'a Views<'a>,
    /// Of the view's first pixel.
    first: usize,
}

impl Plane for OneView<'_> {
    const STEP: usize = 1;

    fn size(&self) -> [usize; 2] {
        [self.views.detector.rows, self.views.detector.columns]
    }

    #[inline(always)]
    unsafe fn load<W: Wide>(&self, row: usize, sum: *mut f32, difference: *mut f32) {
        let columns = self.views.detector.columns;
        let here = self.first + row * columns;
        let (a, b) = (&self.views.projections[here..][..columns], &self.views.measured[here..][..columns]);
        // SAFETY: the caller's; nothing is read behind the row.
        unsafe {
            let scale = W::splat(self.views.scale);
            for at in (0..columns).step_by(W::N) {
                let a = W::mul(W::load_first(a.as_ptr().add(at), columns - at), scale);
                let b = W::mul(W::load_first(b.as_ptr().add(at), columns - at), scale);
                W::store(sum.add(at), W::add(a, b));
                W::store(difference.add(at), W::sub(a, b));
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<W: Wide>(&self, _load: usize, _add: usize, _column: usize) {
        // Rows follow each other in memory: the processor sees to it.
    }

    #[inline(always)]
    unsafe fn add<W: Wide>(&self, row: usize, gradient: *const f32) {
        let columns = self.views.detector.columns;
        // SAFETY: the caller's; within the target, which is as long as the projections.
        unsafe {
            let target = self.views.target.add(self.first + row * columns);
            for at in (0..columns).step_by(W::N) {
                let old = W::load_first(target.add(at), columns - at);
                W::store_first(target.add(at), columns - at, W::add(old, W::load(gradient.add(at))));
            }
        }
    }
}

/// A band of one view's similarity.
#[inline(always)]
unsafe fn view_band_body<W: Wide>(views: &Views<'_>, view: usize, out: Range<usize>, buffer: &mut [f32]) {
    let rows = views.detector.rows;
    // SAFETY: bands are disjoint; the caller's for the rest.
    unsafe {
        let sums = std::slice::from_raw_parts_mut(views.sums.add(view * rows + out.start), out.len());
        let plane = OneView { views, first: view * views.detector.pixels() };
        let weights = LaneWeights { value: [1.0; LANES], gradient: [views.weight; LANES] };
        similarity::<W, _>(&plane, &weights, out, buffer, sums);
    }
}
at_each_level!(
    /// See [`view_band_body`].
    view_band => view_band_body(views: &Views<'_>, view: usize, out: Range<usize>, buffer: &mut [f32])
);
