//! The gradient of [`super::gaussian_voxelise`]: each Gaussian gathers from the voxels under it.
//!
//! **Work.** 33 lane operations for 16 (8) voxels of a row along z on two vector units, and about 300 float64 operations a Gaussian.
//! **Bytes.** The gradient volume (a Gaussian's part of it lies in the caches only as far as its neighbours have been there), parameters and gradients once.
//!
//! **Order.** A Gaussian belongs to one task, which takes planes, rows and voxels in their order.

// Generic SIMD on rows whose ends are checked before.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::gaussians::{GaussianGradients, GaussianSet};
use super::gaussian_kernel::{Y_CUTOFF, voxel_with_slope};
use super::gaussian_lanes::{Wide, at_each_level};
use super::gaussian_project_backward::{TASK, Targets};
use super::gaussian_shape::{Shape, ShapeGradient, check_gradients, check_set, is_sound, refusal};
use super::gaussian_voxel::{BLOCK, VoxelFootprint, VoxelMoments, VoxelRows, place};
use super::simd::SimdLevel;
use crate::geometry::VolumeGrid;

const OPERATION: &str = "gaussian_voxelise_backward";

/// See [`super::super::gaussians::GaussianCompute::gaussian_voxelise_backward`].
pub(super) fn gaussian_voxelise_backward(
    simd: SimdLevel,
    grid: &VolumeGrid,
    set: &GaussianSet<'_>,
    by_volume: &[f32],
    gradients: &mut GaussianGradients<'_>,
) -> Result<(), ComputeError> {
    check_set(OPERATION, set)?;
    check_gradients(OPERATION, set, gradients)?;
    let n = set.len();
    if by_volume.is_empty() {
        return Ok(());
    }
    let targets = Targets::new(gradients, n);
    if let Some(i) = (0..n).into_par_iter().with_min_len(4096).filter(|&i| !is_sound(set, i)).min() {
        return Err(refusal(OPERATION, set, i));
    }
    (0..n.div_ceil(TASK)).into_par_iter().with_max_len(1).for_each(|task| {
        gather(simd, grid, set, by_volume, task * TASK..n.min((task + 1) * TASK), &targets);
    });
    Ok(())
}

/// The gradients of the Gaussians of one task, of which no other task has any.
#[inline(always)]
unsafe fn gather_body<W: Wide>(
    grid: &VolumeGrid,
    set: &GaussianSet<'_>,
    by_volume: &[f32],
    gaussians: Range<usize>,
    targets: &Targets,
) {
    for i in gaussians {
        let shape = Shape::of(set, i);
        if let Some((placed, footprint)) = place(grid, &shape) {
            let mut gradient = ShapeGradient::default();
            // SAFETY: the caller's.
            let sums = unsafe { moments::<W>(&footprint, grid.voxels, by_volume) };
            placed.add_gradient(grid, &shape, &sums, &mut gradient);
            // SAFETY: this task's Gaussians are nobody else's.
            unsafe { targets.add(i, &gradient.by_parameters(set, i)) };
        }
    }
}
at_each_level!(
    /// See [`gather_body`].
    gather => gather_body(
        grid: &VolumeGrid,
        set: &GaussianSet<'_>,
        by_volume: &[f32],
        gaussians: Range<usize>,
        targets: &Targets,
    )
);

/// Sums over one footprint.
#[inline(always)]
unsafe fn moments<W: Wide>(footprint: &VoxelFootprint, [_, rows, row]: [usize; 3], by_volume: &[f32]) -> VoxelMoments {
    // SAFETY: the caller's; nothing is read behind a row.
    unsafe {
        let zero = W::splat(0.0);
        let (kz, ramp, cutoff) = (W::splat(footprint.kz), W::ramp(), W::splat(Y_CUTOFF as f32));
        let mut value = zero;
        let mut first = [zero; 3];
        let mut second = [zero; 6];
        let mut spans = VoxelRows::EMPTY;
        for ix in footprint.first_plane as usize..footprint.end_plane as usize {
            let Some(plane) = footprint.plane(ix, rows) else { continue };
            let x = W::splat(plane.x);
            for iy in plane.first..plane.end {
                let k = (iy - plane.first) % BLOCK;
                if k == 0 {
                    footprint.rows::<W>(&plane, iy, (plane.end - iy).min(BLOCK), row, &mut spans);
                }
                let line = &by_volume[(ix * rows + iy) * row..][..row];
                let (start, last) = (spans.first[k], spans.last[k]);
                let (e, y0) = (W::splat(spans.e[k]), W::splat(spans.y0[k]));
                let mut at = start;
                while at <= last {
                    let f = W::add(W::splat(spans.f[k] + (at - start) as f32), ramp);
                    let y = W::min(W::fma(W::mul(kz, f), f, y0), cutoff);
                    let (from, left) = (line.as_ptr().add(at as usize), row - at as usize);
                    let given = if left >= W::N { W::load(from) } else { W::load_first(from, left) };
                    let weight = W::below(y, cutoff, given);
                    let (kernel, slope) = voxel_with_slope::<W>(y);
                    value = W::fma(weight, kernel, value);
                    let w = W::mul(weight, slope);
                    let (wx, we, wf) = (W::mul(w, x), W::mul(w, e), W::mul(w, f));
                    first = [W::add(first[0], wx), W::add(first[1], we), W::add(first[2], wf)];
                    second[0] = W::fma(wx, x, second[0]);
                    second[1] = W::fma(wx, e, second[1]);
                    second[2] = W::fma(wx, f, second[2]);
                    second[3] = W::fma(we, e, second[3]);
                    second[4] = W::fma(we, f, second[4]);
                    second[5] = W::fma(wf, f, second[5]);
                    at += W::N as i32;
                }
            }
        }
        let mut sums = VoxelMoments { value: f64::from(W::sum(value)), ..VoxelMoments::default() };
        for (to, lanes) in sums.first.iter_mut().zip(first) {
            *to = f64::from(W::sum(lanes));
        }
        for (to, lanes) in sums.second.iter_mut().zip(second) {
            *to = f64::from(W::sum(lanes));
        }
        sums
    }
}
