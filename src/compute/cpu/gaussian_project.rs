//! Forward projection of Gaussians: exact line integrals (see [`super::gaussian_view`]), summed by strips of rows.
//!
//! **Work.** A view of `n` Gaussians with `e` pixels each within the cut-off (`e` is about `44 sigma_u sigma_v` in pixels) takes 31 lane
//! operations for 16 (8) pixels of a row on two vector units, that is `15 n e / 16` clock periods a core if all lanes were in use: the floor. A row of a
//! footprint fills its last register in part, which at 8 to 12 pixels a row costs about a third to a half of it. Besides: about 150 float64
//! operations a Gaussian and view. **Bytes.** A view reads 136 and writes and reads 80 bytes a Gaussian, and 4 a pixel: at 50,000 Gaussians 15 MB,
//! against 5e6 evaluations; the operations are the floor. `benches/gaussians.rs` measures it.
//!
//! **Order.** A strip's task adds its Gaussians in ascending order; a pixel's sum depends neither on the strips' height nor on the threads.

// Generic SIMD on buffers whose sizes are checked before.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::super::ComputeError;
use super::super::gaussians::{GaussianSet, GaussianWorkload};
use super::gaussian_bins::{self, Bins, CHUNK};
use super::gaussian_kernel::{Y_CUTOFF, projected};
use super::gaussian_lanes::{Plain, Wide, at_each_level};
use super::gaussian_shape::{SHAPE_FLOATS, Shape, check_set, is_sound, refusal};
use super::gaussian_view::{BLOCK, FOOTPRINT_FLOATS, Footprint, Spans, View};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::ScanGeometry;

const OPERATION: &str = "gaussian_project";

/// Rows of the highest and of the lowest strip.
const HIGH: usize = BLOCK;
const LOW: usize = 4;
/// Floats behind a strip's row that the last register may touch.
pub(super) const PAD: usize = 16;

/// Rounds to whole cache lines, so that every part of the scratch starts on one.
pub(super) fn lines(floats: usize) -> usize {
    floats.next_multiple_of(16)
}

/// Sizes of the parts of the shared scratch: shapes, footprints, table, list.
fn parts(gaussians: usize, rows: usize) -> [usize; 4] {
    let [table, list] = gaussian_bins::words(gaussians, rows.div_ceil(LOW));
    [SHAPE_FLOATS * gaussians, FOOTPRINT_FLOATS * gaussians, table, list].map(lines)
}

/// Scratch of this operation.
pub(super) fn need(workload: &GaussianWorkload) -> Need {
    Need {
        shared: parts(workload.gaussians, workload.rows).iter().sum(),
        per_thread: lines(HIGH * (workload.columns + PAD)),
    }
}

/// Fills in all shapes; the first Gaussian that is not sound is named.
pub(super) fn shapes(operation: &'static str, set: &GaussianSet<'_>, shapes: &mut [Shape]) -> Result<(), ComputeError> {
    let unsound = AtomicUsize::new(usize::MAX);
    shapes.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, shapes)| {
        for (i, shape) in (chunk * CHUNK..).zip(shapes) {
            if is_sound(set, i) {
                *shape = Shape::of(set, i);
            } else {
                unsound.fetch_min(i, Ordering::Relaxed);
            }
        }
    });
    match unsound.into_inner() {
        usize::MAX => Ok(()),
        i => Err(refusal(operation, set, i)),
    }
}

/// See [`super::super::gaussians::GaussianCompute::gaussian_project`].
pub(super) fn gaussian_project(
    simd: SimdLevel,
    scratch: &Scratch,
    geometry: &ScanGeometry,
    set: &GaussianSet<'_>,
    projections: &mut [f32],
) -> Result<(), ComputeError> {
    check_set(OPERATION, set)?;
    projections.fill(0.0);
    let (n, detector) = (set.len(), geometry.detector);
    if projections.is_empty() || n == 0 {
        return Ok(());
    }
    let workload = GaussianWorkload {
        gaussians: n,
        columns: detector.columns,
        rows: detector.rows,
        views_per_call: 1,
        voxels: [1; 3],
    };
    let mut whole = scratch.take(OPERATION, need(&workload))?;
    let [shape_floats, footprint_floats, table, _] = parts(n, detector.rows);
    let (shape_floats, rest) = whole.floats().split_at_mut(shape_floats);
    let (footprint_floats, rest) = rest.split_at_mut(footprint_floats);
    let (table, list) = rest.split_at_mut(table);
    let all: &mut [Shape] = bytemuck::cast_slice_mut(&mut shape_floats[..n * SHAPE_FLOATS]);
    let footprints: &mut [Footprint] = bytemuck::cast_slice_mut(&mut footprint_floats[..n * FOOTPRINT_FLOATS]);
    shapes(OPERATION, set, all)?;

    // Low enough that all threads find work; never changes a result.
    let height = (detector.rows / (4 * rayon::current_num_threads())).clamp(LOW, HIGH);
    let strips = detector.rows.div_ceil(height);
    let mut bins = Bins::new(strips, n, bytemuck::cast_slice_mut(table), bytemuck::cast_slice_mut(list));
    for (pose, image) in geometry.views.iter().zip(projections.chunks_exact_mut(detector.pixels())) {
        let view = View::new(pose, detector);
        footprints.par_chunks_mut(CHUNK).zip(all.par_chunks(CHUNK)).zip(bins.par_counts()).for_each(
            |((footprints, shapes), row)| {
                see_all(simd, &view, shapes, footprints);
                gaussian_bins::count(row, footprints.iter().map(|footprint| strips_of(footprint, height)));
            },
        );
        let footprints = &*footprints;
        bins.passes(
            n,
            |i| strips_of(&footprints[i], height),
            |pass| {
                image.par_chunks_mut(height * detector.columns).enumerate().with_max_len(1).for_each(
                    |(strip, pixels)| {
                        let mut buffer = scratch.of_this_thread();
                        add_strip(
                            simd,
                            footprints,
                            pass.of(strip),
                            strip * height,
                            detector.columns,
                            buffer.floats(),
                            pixels,
                        );
                    },
                );
            },
        );
        image.par_chunks_mut(detector.columns).enumerate().for_each(|(row, pixels)| {
            let [a, b, c] = view.length_square(row);
            for (j, pixel) in pixels.iter_mut().enumerate() {
                *pixel *= (a + (b + c * j as f32) * j as f32).sqrt();
            }
        });
    }
    Ok(())
}

/// Strips that a footprint touches.
#[inline(always)]
fn strips_of(footprint: &Footprint, height: usize) -> std::ops::Range<usize> {
    let (first, end) = (footprint.first_row as usize, footprint.end_row as usize);
    if first < end { first / height..(end - 1) / height + 1 } else { 0..0 }
}

/// How the view sees each Gaussian (no lanes; compiled for the level for its scalar instructions).
#[inline(always)]
unsafe fn see_all_body<W: Wide>(view: &View, shapes: &[Shape], footprints: &mut [Footprint]) {
    for (footprint, shape) in footprints.iter_mut().zip(shapes) {
        let seen = if shape.amplitude == 0.0 { None } else { view.see(shape) };
        *footprint = seen.map_or_else(Footprint::zeroed, |(_, footprint)| footprint);
    }
}
at_each_level!(
    /// See [`see_all_body`].
    see_all => see_all_body(view: &View, shapes: &[Shape], footprints: &mut [Footprint])
);

/// Adds Gaussians to the rows of one strip (all but the pixels' lengths).
#[inline(always)]
unsafe fn add_strip_body<W: Wide>(
    footprints: &[Footprint],
    gaussians: &[u32],
    first_row: usize,
    columns: usize,
    buffer: &mut [f32],
    pixels: &mut [f32],
) {
    let stride = columns + PAD;
    let rows = pixels.len() / columns;
    let buffer = &mut buffer[..rows * stride];
    for (padded, row) in buffer.chunks_exact_mut(stride).zip(pixels.chunks_exact(columns)) {
        padded[..columns].copy_from_slice(row);
    }
    let mut spans = Spans::EMPTY;
    for (k, &i) in gaussians.iter().enumerate() {
        let footprint = &footprints[i as usize];
        let first = (footprint.first_row as usize).max(first_row);
        let end = (footprint.end_row as usize).min(first_row + rows);
        // SAFETY: the caller's. Columns `first..=last` lie within the row, and registers end within its padding.
        unsafe {
            if let Some(&ahead) = gaussians.get(k + 4) {
                W::prefetch(&raw const footprints[ahead as usize]);
            }
            let (kd, den2, ramp) = (W::splat(footprint.kd), W::splat(footprint.a2), W::ramp());
            let (amplitude, cutoff) = (W::splat(footprint.amplitude), W::splat(Y_CUTOFF as f32));
            // A strip is no higher than a block.
            footprint.spans::<W>(first as i32, end - first, columns, &mut spans);
            for (k, padded) in
                buffer[(first - first_row) * stride..].chunks_exact_mut(stride).take(end - first).enumerate()
            {
                let (start, last) = (spans.first[k], spans.last[k]);
                let (den0, den1, y0) = (W::splat(spans.den0[k]), W::splat(spans.den1[k]), W::splat(spans.y0[k]));
                let mut d = W::add(W::splat(spans.d[k]), ramp);
                let mut at = start;
                while at <= last {
                    let den = W::fma(W::fma(den2, d, den1), d, den0);
                    let r = W::reciprocal_root(den);
                    let y = W::mul(W::fma(W::mul(kd, d), d, y0), W::mul(r, r));
                    // Held to the cut-off: far lanes would underflow, and denormal numbers take a hundred periods each.
                    let value = W::below(y, cutoff, W::mul(projected::<W>(W::min(y, cutoff)), r));
                    let to = padded.as_mut_ptr().add(at as usize);
                    W::store(to, W::fma(value, amplitude, W::load(to)));
                    at += W::N as i32;
                    d = W::add(W::splat(spans.d[k] + (at - start) as f32), ramp);
                }
            }
        }
    }
    for (padded, row) in buffer.chunks_exact(stride).zip(pixels.chunks_exact_mut(columns)) {
        row.copy_from_slice(&padded[..columns]);
    }
}
at_each_level!(
    /// See [`add_strip_body`].
    add_strip => add_strip_body(
        footprints: &[Footprint],
        gaussians: &[u32],
        first_row: usize,
        columns: usize,
        buffer: &mut [f32],
        pixels: &mut [f32],
    )
);

/// Pixels within the cut-off, summed over Gaussians and views: what [`gaussian_project`] evaluates.
pub(super) fn evaluations(geometry: &ScanGeometry, set: &GaussianSet<'_>) -> u64 {
    let columns = geometry.detector.columns;
    let views = geometry.views.iter().map(|pose| View::new(pose, geometry.detector));
    views
        .map(|view| {
            let footprints = (0..set.len()).filter(|&i| is_sound(set, i)).filter_map(|i| view.see(&Shape::of(set, i)));
            let of_one = |f: Footprint| {
                let mut spans = Spans::EMPTY;
                let mut of_row = |row| {
                    // SAFETY: plain floats.
                    unsafe { f.spans::<Plain>(row, 1, columns, &mut spans) };
                    (spans.last[0] + 1 - spans.first[0]).max(0) as u64
                };
                (f.first_row..f.end_row).map(&mut of_row).sum::<u64>()
            };
            footprints.map(|(_, footprint)| of_one(footprint)).sum::<u64>()
        })
        .sum()
}
