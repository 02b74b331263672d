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
use super::gaussian_voxel::{Placed, Stretches, VoxelFootprint, VoxelMoments, Walk, place};
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
    let mut ready = [Ready::EMPTY, Ready::EMPTY];
    let mut left = gaussians;
    // SAFETY: the caller's. This task's Gaussians are nobody else's.
    unsafe {
        let mut more = ready[0].next::<W>(grid, set, &mut left);
        let mut turn = false;
        while more {
            let [first, second] = &mut ready;
            let (current, next) = if turn { (second, first) } else { (first, second) };
            turn = !turn;
            // What the next Gaussian reads is asked for while this one is worked on.
            more = next.next::<W>(grid, set, &mut left);
            let Some((shape, placed, footprint)) = &current.gaussian else { break };
            let mut gradient = ShapeGradient::default();
            let sums =
                moments::<W>(footprint, grid.voxels, by_volume, &mut current.walk, &mut current.list, &next.list);
            placed.add_gradient(grid, shape, &sums, &mut gradient);
            targets.add(current.index, &gradient.by_parameters(set, current.index));
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

/// A Gaussian with (the first of) its stretches.
struct Ready {
    index: usize,
    gaussian: Option<(Shape, Placed, VoxelFootprint)>,
    walk: Walk,
    list: Stretches,
}

impl Ready {
    const EMPTY: Self = Self { index: 0, gaussian: None, walk: Walk::over(0..0), list: Stretches::EMPTY };

    /// Goes on to the next Gaussian that the grid holds; `false` where there is none.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    unsafe fn next<W: Wide>(&mut self, grid: &VolumeGrid, set: &GaussianSet<'_>, left: &mut Range<usize>) -> bool {
        self.list.count = 0;
        for i in left.by_ref() {
            let shape = Shape::of(set, i);
            if let Some((placed, footprint)) = place(grid, &shape) {
                self.index = i;
                self.walk = Walk::over(footprint.first_plane as usize..footprint.end_plane as usize);
                // SAFETY: the caller's.
                unsafe { footprint.list::<W>(&mut self.walk, [grid.voxels[1], grid.voxels[2]], &mut self.list) };
                self.gaussian = Some((shape, placed, footprint));
                return true;
            }
        }
        false
    }
}

/// Sums over one footprint, whose first stretches are listed.
#[inline(always)]
unsafe fn moments<W: Wide>(
    footprint: &VoxelFootprint,
    [_, rows, row]: [usize; 3],
    by_volume: &[f32],
    walk: &mut Walk,
    list: &mut Stretches,
    next: &Stretches,
) -> VoxelMoments {
    // SAFETY: the caller's; nothing is read behind a row.
    unsafe {
        let zero = W::splat(0.0);
        let (minus_kz, ramp, cutoff) = (W::splat(-footprint.kz), W::ramp(), W::splat(-Y_CUTOFF as f32));
        let mut value = zero;
        let mut first = [zero; 3];
        let mut second = [zero; 6];
        let ahead = by_volume.as_ptr().wrapping_add(next.plane * rows * row);
        loop {
            let base = by_volume[list.plane * rows * row..].as_ptr();
            for k in 0..list.count {
                // A stretch may lie in two cache lines. (What stands behind the list's end does no harm.)
                W::prefetch(ahead.wrapping_add(next.at[k] as usize));
                W::prefetch(ahead.wrapping_add(next.at[k] as usize + 15));
                let (x, e) = (W::splat(list.x[k]), W::splat(list.e[k]));
                let f = W::add(W::splat(list.f[k]), ramp);
                let minus_y = W::max(W::fma(W::mul(minus_kz, f), f, W::splat(list.minus_y0[k])), cutoff);
                let (from, left) = (base.add(list.at[k] as usize), list.left(k, row));
                let given = if left >= W::N { W::load(from) } else { W::load_first(from, left) };
                let weight = W::below(cutoff, minus_y, given);
                let (kernel, slope) = voxel_with_slope::<W>(minus_y);
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
            }
            if !footprint.list::<W>(walk, [rows, row], list) {
                break;
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
