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
use super::gaussian_steps::{Columns, Steps};
use super::gaussian_stretches::{Stretches, Walk};
use super::gaussian_voxel::{Placed, VoxelFootprint, VoxelMoments, check_grid, place};
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
    check_grid(OPERATION, grid)?;
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
            more = next.next::<W>(grid, set, &mut left);
            let Some((shape, placed, footprint)) = &current.gaussian else { break };
            // What the next Gaussian reads is asked for while this one is worked on.
            let mut ahead = Ahead { ready: next, volume: by_volume.as_ptr(), voxels: grid.voxels, share: 0 };
            let sums = if footprint.steps() {
                by_steps::<W>(footprint, grid.voxels, by_volume, &mut current.columns, &mut ahead)
            } else {
                by_stretches::<W>(footprint, grid.voxels, by_volume, &mut current.walk, &mut current.list, &mut ahead)
            };
            while ahead.ask::<W>() {}
            let mut gradient = ShapeGradient::default();
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

/// A Gaussian, with the first of its columns or stretches.
struct Ready {
    index: usize,
    gaussian: Option<(Shape, Placed, VoxelFootprint)>,
    columns: Columns,
    walk: Walk,
    list: Stretches,
}

impl Ready {
    const EMPTY: Self =
        Self { index: 0, gaussian: None, columns: Columns::EMPTY, walk: Walk::over(0..0), list: Stretches::EMPTY };

    /// Goes on to the next Gaussian that the grid holds; `false` where there is none.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    unsafe fn next<W: Wide>(&mut self, grid: &VolumeGrid, set: &GaussianSet<'_>, left: &mut Range<usize>) -> bool {
        self.gaussian = None;
        for i in left.by_ref() {
            let shape = Shape::of(set, i);
            if let Some((placed, footprint)) = place(grid, &shape, W::N) {
                self.index = i;
                let dimensions = [grid.voxels[1], grid.voxels[2]];
                // SAFETY: the caller's.
                unsafe {
                    if footprint.steps() {
                        self.columns.begin::<W>(&footprint, footprint.planes());
                        self.columns.fill::<W>(&footprint, dimensions);
                    } else {
                        self.walk = Walk::over(footprint.planes());
                        footprint.list::<W>(&mut self.walk, dimensions, &mut self.list);
                    }
                }
                self.gaussian = Some((shape, placed, footprint));
                return true;
            }
        }
        false
    }
}

/// What is asked of the caches for a Gaussian to come, share by share.
struct Ahead<'a> {
    ready: &'a Ready,
    volume: *const f32,
    voxels: [usize; 3],
    share: usize,
}

impl Ahead<'_> {
    /// Stretches of a share (otherwise a plane is one).
    const STRETCHES: usize = 16;

    /// Asks for the next share; `false` where there is none left.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    unsafe fn ask<W: Wide>(&mut self) -> bool {
        let Some((_, _, footprint)) = &self.ready.gaussian else { return false };
        let [_, rows, row] = self.voxels;
        let share = self.share;
        self.share += 1;
        // SAFETY: hints only. A register may lie in two cache lines.
        unsafe {
            if footprint.steps() {
                let columns = &self.ready.columns;
                let Some(column) = columns.listed().get(share) else { return false };
                let mut at = self.volume.wrapping_add(columns.plane * rows * row + column.at as usize);
                for _ in 0..column.rows {
                    W::prefetch(at);
                    W::prefetch(at.wrapping_add(W::N - 1));
                    at = at.wrapping_add(row);
                }
                return true;
            }
            let list = &self.ready.list;
            let base = self.volume.wrapping_add(list.plane * rows * row);
            for &at in list.at[..list.count].iter().skip(share * Self::STRETCHES).take(Self::STRETCHES) {
                W::prefetch(base.wrapping_add(at as usize));
                W::prefetch(base.wrapping_add(at as usize + W::N - 1));
            }
            share * Self::STRETCHES < list.count
        }
    }
}

/// Sums over one footprint, from row to row.
#[inline(always)]
unsafe fn by_steps<W: Wide>(
    footprint: &VoxelFootprint,
    [_, rows, row]: [usize; 3],
    by_volume: &[f32],
    columns: &mut Columns,
    ahead: &mut Ahead<'_>,
) -> VoxelMoments {
    // SAFETY: the caller's; columns lie within their planes.
    unsafe {
        let zero = W::splat(0.0);
        let (bend, bend_rest) = (W::splat(footprint.bend), W::splat(footprint.bend_rest));
        let (one, minus_zy) = (W::splat(1.0), W::splat(-footprint.zy));
        let mut value = zero;
        let mut first = [zero; 3];
        let mut second = [zero; 6];
        loop {
            let base = by_volume[columns.plane * rows * row..].as_ptr();
            for column in columns.listed() {
                ahead.ask::<W>();
                let mut steps = Steps::<W>::of(columns, column);
                let (mut e, mut f) = (W::splat(column.e), steps.f);
                let mut from = base.add(column.at as usize);
                // Of the weights, and of these times `e` and `f`; `x` is the column's.
                let mut sums = [zero; 3];
                for _ in 0..column.rows {
                    let weight = steps.within(W::load(from));
                    let (kernel, slope) = steps.value_and_slope();
                    value = W::fma(weight, kernel, value);
                    let w = W::mul(weight, slope);
                    let (we, wf) = (W::mul(w, e), W::mul(w, f));
                    sums = [W::add(sums[0], w), W::add(sums[1], we), W::add(sums[2], wf)];
                    second[3] = W::fma(we, e, second[3]);
                    second[4] = W::fma(we, f, second[4]);
                    second[5] = W::fma(wf, f, second[5]);
                    from = from.wrapping_add(row);
                    e = W::add(e, one);
                    f = W::add(f, minus_zy);
                    steps.step(bend, bend_rest);
                }
                let x = W::splat(column.x);
                let wx = W::mul(sums[0], x);
                first = [W::add(first[0], wx), W::add(first[1], sums[1]), W::add(first[2], sums[2])];
                second[0] = W::fma(wx, x, second[0]);
                second[1] = W::fma(sums[1], x, second[1]);
                second[2] = W::fma(sums[2], x, second[2]);
            }
            if !columns.fill::<W>(footprint, [rows, row]) {
                return totals::<W>(value, first, second);
            }
        }
    }
}

/// Sums over one footprint, whose first stretches are listed.
#[inline(always)]
unsafe fn by_stretches<W: Wide>(
    footprint: &VoxelFootprint,
    [_, rows, row]: [usize; 3],
    by_volume: &[f32],
    walk: &mut Walk,
    list: &mut Stretches,
    ahead: &mut Ahead<'_>,
) -> VoxelMoments {
    // SAFETY: the caller's; nothing is read behind a row.
    unsafe {
        let zero = W::splat(0.0);
        let (minus_kz, ramp, cutoff) = (W::splat(-footprint.kz), W::ramp(), W::splat(-Y_CUTOFF as f32));
        let mut value = zero;
        let mut first = [zero; 3];
        let mut second = [zero; 6];
        loop {
            let base = by_volume[list.plane * rows * row..].as_ptr();
            for k in 0..list.count {
                if k % Ahead::STRETCHES == 0 {
                    ahead.ask::<W>();
                }
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
                return totals::<W>(value, first, second);
            }
        }
    }
}

/// Sums over the lanes.
#[inline(always)]
unsafe fn totals<W: Wide>(value: W::V, first: [W::V; 3], second: [W::V; 6]) -> VoxelMoments {
    // SAFETY: the caller's.
    unsafe {
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
