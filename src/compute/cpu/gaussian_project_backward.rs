//! The gradient of [`super::gaussian_project`]: each Gaussian gathers from the pixels under its own footprint.
//!
//! **Work.** 47 lane operations for 16 (8) pixels of a row on two vector units: `24 n e / 16` clock periods a core and view is the floor (see
//! [`super::gaussian_project`] for `n`, `e` and the share of idle lanes), and about 500 float64 operations a Gaussian and view. **Bytes.** The
//! gradient images, which stay in the second-level cache; each Gaussian's parameters and gradients once.
//!
//! **Order.** A Gaussian belongs to one task, which takes views, rows and columns in their order: no tiles, no partial sums to be reduced, no atomics.

// Generic SIMD on buffers whose sizes are checked before; tasks write disjoint Gaussians of several arrays.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::gaussians::{GaussianGradients, GaussianSet, GaussianWorkload};
use super::gaussian_kernel::{Y_CUTOFF, projected_with_slope};
use super::gaussian_lanes::{Wide, at_each_level};
use super::gaussian_project::{PAD, lines};
use super::gaussian_shape::{ParameterGradient, Shape, ShapeGradient, check_gradients, check_set, is_sound, refusal};
use super::gaussian_view::{BLOCK, Footprint, Moments, Spans, View};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::ScanGeometry;

const OPERATION: &str = "gaussian_project_backward";

/// Gaussians of a task.
pub(super) const TASK: usize = 64;

/// Scratch of this operation: the gradient images times the pixels' lengths, rows padded.
pub(super) fn need(workload: &GaussianWorkload) -> Need {
    let image = workload.rows.saturating_mul(workload.columns + PAD);
    Need { shared: lines(image.saturating_mul(workload.views_per_call)), per_thread: 0 }
}

/// The gradients' arrays, written by several tasks at disjoint Gaussians.
pub(super) struct Targets {
    arrays: [*mut f32; 12],
    len: usize,
}

// SAFETY: each Gaussian is touched by one task only.
unsafe impl Send for Targets {}
// SAFETY: as above.
unsafe impl Sync for Targets {}

impl Targets {
    /// Of arrays that [`check_gradients`] has found to hold `len` values.
    pub(super) fn new(gradients: &mut GaussianGradients<'_>, len: usize) -> Self {
        let [px, py, pz] = gradients.position_mm.each_mut().map(|array| array.as_mut_ptr());
        let [s0, s1, s2] = gradients.log_scale.each_mut().map(|array| array.as_mut_ptr());
        let [rw, rx, ry, rz] = gradients.rotation.each_mut().map(|array| array.as_mut_ptr());
        let arrays = [
            gradients.density_per_mm.as_mut_ptr(),
            px,
            py,
            pz,
            s0,
            s1,
            s2,
            rw,
            rx,
            ry,
            rz,
            gradients.view_norm.as_mut_ptr(),
        ];
        Self { arrays, len }
    }

    /// Adds the gradient of Gaussian `i`.
    ///
    /// # Safety
    /// No other task touches Gaussian `i`.
    pub(super) unsafe fn add(&self, i: usize, g: &ParameterGradient) {
        assert!(i < self.len);
        let [px, py, pz] = g.position;
        let [s0, s1, s2] = g.log_scale;
        let [rw, rx, ry, rz] = g.rotation;
        let values = [g.density, px, py, pz, s0, s1, s2, rw, rx, ry, rz, g.view_norm];
        for (array, value) in self.arrays.iter().zip(values) {
            // SAFETY: within the array; the caller's promise.
            unsafe { *array.add(i) += value as f32 };
        }
    }
}

/// See [`super::super::gaussians::GaussianCompute::gaussian_project_backward`].
pub(super) fn gaussian_project_backward(
    simd: SimdLevel,
    scratch: &Scratch,
    geometry: &ScanGeometry,
    set: &GaussianSet<'_>,
    by_projections: &[f32],
    gradients: &mut GaussianGradients<'_>,
) -> Result<(), ComputeError> {
    check_set(OPERATION, set)?;
    check_gradients(OPERATION, set, gradients)?;
    let (n, detector) = (set.len(), geometry.detector);
    if by_projections.is_empty() || n == 0 {
        return Ok(());
    }
    let workload = GaussianWorkload {
        gaussians: n,
        columns: detector.columns,
        rows: detector.rows,
        views_per_call: geometry.views.len(),
        voxels: [1; 3],
    };
    let mut whole = scratch.take(OPERATION, need(&workload))?;
    let stride = detector.columns + PAD;
    let weighted = &mut whole.floats()[..geometry.views.len() * detector.rows * stride];
    weighted.par_chunks_exact_mut(stride).zip(by_projections.par_chunks_exact(detector.columns)).enumerate().for_each(
        |(row, (padded, pixels))| {
            let pose = &geometry.views[row / detector.rows];
            let [a, b, c] = View::new(pose, detector).length_square(row % detector.rows);
            let (inside, behind) = padded.split_at_mut(detector.columns);
            for (j, (to, pixel)) in inside.iter_mut().zip(pixels).enumerate() {
                *to = pixel * (a + (b + c * j as f32) * j as f32).sqrt();
            }
            behind.fill(0.0);
        },
    );
    let weighted = &*weighted;
    let targets = Targets::new(gradients, n);
    let unsound = (0..n).into_par_iter().with_min_len(4096).filter(|&i| !is_sound(set, i)).min();
    if let Some(i) = unsound {
        return Err(refusal(OPERATION, set, i));
    }
    (0..n.div_ceil(TASK)).into_par_iter().with_max_len(1).for_each(|task| {
        gather(simd, geometry, set, weighted, task * TASK..n.min((task + 1) * TASK), &targets);
    });
    Ok(())
}

/// The gradients of the Gaussians of one task, of which no other task has any.
#[inline(always)]
unsafe fn gather_body<W: Wide>(
    geometry: &ScanGeometry,
    set: &GaussianSet<'_>,
    weighted: &[f32],
    gaussians: Range<usize>,
    targets: &Targets,
) {
    let (rows, columns) = (geometry.detector.rows, geometry.detector.columns);
    let mut shapes = [None; TASK];
    for (i, shape) in gaussians.clone().zip(&mut shapes) {
        *shape = Some((Shape::of(set, i), ShapeGradient::default()));
    }
    for (pose, image) in geometry.views.iter().zip(weighted.chunks_exact(rows * (columns + PAD))) {
        let view = View::new(pose, geometry.detector);
        for (shape, gradient) in shapes.iter_mut().flatten() {
            if let Some((seen, footprint)) = view.see(shape) {
                // SAFETY: the caller's.
                let sums = unsafe { moments::<W>(&footprint, image, columns) };
                view.add_gradient(shape, &seen, &sums, gradient);
            }
        }
    }
    for (i, (_, gradient)) in gaussians.zip(shapes.iter().flatten()) {
        // SAFETY: this task's Gaussians are nobody else's.
        unsafe { targets.add(i, &gradient.by_parameters(set, i)) };
    }
}
at_each_level!(
    /// See [`gather_body`].
    gather => gather_body(
        geometry: &ScanGeometry,
        set: &GaussianSet<'_>,
        weighted: &[f32],
        gaussians: Range<usize>,
        targets: &Targets,
    )
);

/// Sums over one footprint.
#[inline(always)]
unsafe fn moments<W: Wide>(footprint: &Footprint, image: &[f32], columns: usize) -> Moments {
    let stride = columns + PAD;
    // SAFETY: the caller's; loads end within the row's padding.
    unsafe {
        let zero = W::splat(0.0);
        let (ramp, half) = (W::ramp(), W::splat(0.5));
        let (kd, den2) = (W::splat(footprint.kd), W::splat(footprint.a2));
        let (cutoff, tiny) = (W::splat(Y_CUTOFF as f32), W::splat(1e-12));
        let mut value = zero;
        let mut alpha = [zero; 5];
        let mut beta = [zero; 6];
        let mut spans = Spans::EMPTY;
        for row in footprint.first_row..footprint.end_row {
            let k = (row - footprint.first_row) as usize % BLOCK;
            if k == 0 {
                let rows = ((footprint.end_row - row) as usize).min(BLOCK);
                footprint.spans::<W>(row, rows, columns, &mut spans);
            }
            let padded = &image[row as usize * stride..][..stride];
            let (start, last) = (spans.first[k], spans.last[k]);
            let (y0, di) = (W::splat(spans.y0[k]), W::splat(spans.di[k]));
            let (den0, den1) = (W::splat(spans.den0[k]), W::splat(spans.den1[k]));
            let mut at = start;
            while at <= last {
                let d = W::add(W::splat(spans.d[k] + (at - start) as f32), ramp);
                // Lanes beyond the cut-off may hold anything; they are kept finite and weigh nothing.
                let r = W::reciprocal_root(W::max(W::fma(W::fma(den2, d, den1), d, den0), tiny));
                let r2 = W::mul(r, r);
                let y = W::min(W::mul(W::fma(W::mul(kd, d), d, y0), r2), cutoff);
                let weight = W::below(y, cutoff, W::mul(W::load(padded.as_ptr().add(at as usize)), r));
                let (kernel, slope) = projected_with_slope::<W>(y);
                value = W::fma(weight, kernel, value);
                let weight = W::mul(weight, r2);
                let a = W::mul(weight, slope);
                let b = W::fma(a, y, W::mul(weight, W::mul(kernel, half)));
                let (ad, ai, bd, bi) = (W::mul(a, d), W::mul(a, di), W::mul(b, d), W::mul(b, di));
                alpha[0] = W::add(alpha[0], ad);
                alpha[1] = W::add(alpha[1], ai);
                alpha[2] = W::fma(ad, d, alpha[2]);
                alpha[3] = W::fma(ad, di, alpha[3]);
                alpha[4] = W::fma(ai, di, alpha[4]);
                beta[0] = W::add(beta[0], b);
                beta[1] = W::add(beta[1], bd);
                beta[2] = W::add(beta[2], bi);
                beta[3] = W::fma(bd, d, beta[3]);
                beta[4] = W::fma(bd, di, beta[4]);
                beta[5] = W::fma(bi, di, beta[5]);
                at += W::N as i32;
            }
        }
        let mut sums = Moments { value: f64::from(W::sum(value)), ..Moments::default() };
        for (to, lanes) in sums.alpha.iter_mut().zip(alpha) {
            *to = f64::from(W::sum(lanes));
        }
        for (to, lanes) in sums.beta.iter_mut().zip(beta) {
            *to = f64::from(W::sum(lanes));
        }
        sums
    }
}
