//! The matched adjoint of the forward projector (see [`super::joseph`] and [`super::forward_project`]).
//!
//! **Work.** A call takes `views * m * n` planes of columns (`m` columns, `n` planes). For each the fast path gathers `n` heights from
//! `taps = ceil(2 / slope)` rows each (`slope`: voxels per row; 4 where two rows see one voxel): 8 operations to find the rows,
//! 5 a tap and 2 to add: `views m n^2 (10 + 5 taps)` lane operations on two vector units. **Bytes.** Each block of planes reads all
//! projections once, the volume is written once and read and written once more: `12 n^3 + 4 views m^2 (n / block + 2)`; at 128^3,
//! 256^2 and 50 views with blocks of 11 planes: 0.4e9 operations of 16 lanes (0.05 s on one core of 3.75 GHz) against 0.2 GB, most
//! of it from the third-level cache. Measured is 2.5 to 3 times the operations' time: two registers of rows a tap, most of them across
//! cache lines, keep the load units as busy as the vector units. `benches/projector.rs` measures both.
//!
//! **Order.** Planes across x first, then planes across y (then z, for steep rays), each shared out among the threads: a voxel
//! belongs to one task and takes its views and columns in their order. No atomics; bit-identical for any number of threads.

// Tasks write disjoint planes of the volume, which slices cannot express for planes across y.
#![allow(unsafe_code)]

mod by_columns;

use std::ops::Range;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::super::{ComputeError, Workload};
use super::joseph::{Column, IndexView};
use super::rays::{Planes, scatter};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};
pub(super) use by_columns::Tile;
use by_columns::{GAP, GUARD, HEIGHT_BLOCK, Workspace, add_column, workspace_floats};

/// Floats of the largest tile: half a second-level cache of 2 MiB.
const TILE_FLOATS: usize = 256 * 1024;
/// Heights of a tile, where it does not have to be lower.
const TILE_HEIGHTS: usize = 128;

/// Floats of projections that are brought into order at a time; the views of a longer call go in several passes over the volume, so
/// that scratch does not grow with the scan.
const PASS_FLOATS: usize = 16 << 20;

/// Views of one pass: from the detector alone, so that the order of sums depends on nothing else.
fn pass_views(columns: usize, rows: usize) -> usize {
    (PASS_FLOATS / (columns * (rows + GAP)).max(1)).max(1)
}

/// Floats a [`Column`] takes in the scratch.
const COLUMN_FLOATS: usize = size_of::<Column>() / size_of::<f32>();

/// Heights of the tiles in planes with `others` columns of `heights`, a multiple of [`HEIGHT_BLOCK`].
fn tile_stride(others: usize, heights: usize) -> usize {
    let most = (TILE_FLOATS / (others + 2)).clamp(HEIGHT_BLOCK, TILE_HEIGHTS) / HEIGHT_BLOCK * HEIGHT_BLOCK;
    heights.div_ceil(heights.div_ceil(most).max(1)).next_multiple_of(HEIGHT_BLOCK)
}

/// Floats of a tile with as many planes as fit.
fn tile_floats(others: usize, heights: usize) -> usize {
    TILE_FLOATS.max((others + 2) * tile_stride(others, heights))
}

/// Scratch of this operation.
pub(super) fn need(workload: &Workload) -> Need {
    let views = workload.views_per_call.min(pass_views(workload.columns, workload.rows));
    let pairs = views.saturating_mul(workload.columns);
    let rows = pairs.saturating_mul(workload.rows + GAP).saturating_add(2 * GUARD);
    let [nx, ny, nz] = workload.voxels;
    let tile = |others, heights| tile_floats(others, heights) + workspace_floats(tile_stride(others, heights));
    Need {
        shared: rows.next_multiple_of(HEIGHT_BLOCK).saturating_add(pairs.saturating_mul(COLUMN_FLOATS)),
        per_thread: tile(ny, nz).max(tile(nx, nz)).max(tile(nx, ny)),
    }
}

/// The volume, written by several tasks at disjoint planes.
#[derive(Clone, Copy)]
struct Volume {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks touch only the planes and heights they own, and nobody else looks before all have ended.
unsafe impl Send for Volume {}
// SAFETY: as above.
unsafe impl Sync for Volume {}

impl Volume {
    /// Writes (`first`) or adds a value.
    ///
    /// # Safety
    /// No other task touches the voxel.
    #[inline(always)]
    unsafe fn put(self, index: usize, value: f32, first: bool) {
        assert!(index < self.len);
        // SAFETY: within the buffer; the caller's promise.
        unsafe {
            let voxel = self.start.add(index);
            *voxel = if first { value } else { *voxel + value };
        }
    }

    /// Writes (`first`) or adds values to voxels that follow each other in memory.
    ///
    /// # Safety
    /// No other task touches these voxels.
    unsafe fn put_run(self, index: usize, values: &[f32], first: bool) {
        assert!(index + values.len() <= self.len);
        // SAFETY: within the buffer; the caller's promise.
        let run = unsafe { std::slice::from_raw_parts_mut(self.start.add(index), values.len()) };
        if first {
            run.copy_from_slice(values);
        } else {
            run.iter_mut().zip(values).for_each(|(voxel, value)| *voxel += value);
        }
    }
}

/// What all tasks read.
struct Call<'a> {
    simd: SimdLevel,
    detector: Detector,
    views: &'a [ViewPose],
    grid: &'a VolumeGrid,
    /// As given: `[view][row][column]`.
    projections: &'a [f32],
    /// `[view][column][risen row]`, times the rays' length between planes, with gaps of zeros (views that go by columns).
    turned: &'a [f32],
    /// `[view][column]`; no planes for views that go ray by ray.
    paths: &'a [Column],
}

/// See [`crate::compute::Compute::back_project_matched`].
pub(super) fn back_project_matched(
    simd: SimdLevel,
    scratch: &Scratch,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    projections: &[f32],
    volume: &mut [f32],
) -> Result<(), ComputeError> {
    let (columns, rows) = (geometry.detector.columns, geometry.detector.rows);
    let views = geometry.views.len();
    if volume.is_empty() {
        return Ok(());
    }
    if projections.is_empty() {
        volume.fill(0.0);
        return Ok(());
    }
    let need = need(&Workload { columns, rows, views_per_call: views, voxels: grid.voxels });
    let mut whole = scratch.take("back_project_matched", need)?;
    let target = Volume { start: volume.as_mut_ptr(), len: volume.len() };
    let pass = pass_views(columns, rows);
    let passes = geometry.views.chunks(pass).zip(projections.chunks(pass * columns * rows));
    for (index, (views, projections)) in passes.enumerate() {
        let (paths, turned) = whole.floats().split_at_mut(views.len() * columns * COLUMN_FLOATS);
        let paths: &mut [Column] = bytemuck::cast_slice_mut(paths);
        let turned = &mut turned[..views.len() * columns * (rows + GAP) + 2 * GUARD];
        turned[..GUARD].fill(0.0);
        turned[GUARD..]
            .par_chunks_mut(columns * (rows + GAP))
            .zip(paths.par_chunks_mut(columns))
            .zip(projections.par_chunks(columns * rows))
            .zip(views.par_iter())
            .with_max_len(1)
            .for_each(|(((turned, paths), pixels), pose)| {
                turn(&IndexView::new(pose, geometry.detector, grid), pixels, turned, paths);
            });
        let end = turned.len() - GUARD;
        turned[end..].fill(0.0);
        let call = Call { simd, detector: geometry.detector, views, grid, projections, turned, paths };
        call.add_to(scratch, target, index == 0);
    }
    Ok(())
}

/// Brings one view into the order and scale that the tiles read, and lays its columns' paths.
fn turn(view: &IndexView, rows_of_view: &[f32], turned: &mut [f32], paths: &mut [Column]) {
    let (columns, rows) = (view.detector.columns, view.detector.rows);
    if !view.goes_by_columns() {
        paths.fill(Column::zeroed());
        return;
    }
    let stride = rows + GAP;
    for (block, (turned, paths)) in turned.chunks_mut(16 * stride).zip(paths.chunks_mut(16)).enumerate() {
        for r in 0..rows {
            let v = if view.rows_descend() { rows - 1 - r } else { r };
            let row = &rows_of_view[v * columns + block * 16..][..paths.len()];
            for (pixel, to) in row.iter().zip(turned[r..].iter_mut().step_by(stride)) {
                *to = *pixel;
            }
        }
        for (u, (turned, path)) in turned.chunks_exact_mut(stride).zip(paths).enumerate() {
            *path = view.column(block * 16 + u);
            let (pixels, gap) = turned.split_at_mut(rows);
            pixels.iter_mut().enumerate().for_each(|(r, pixel)| *pixel *= path.length_mm(r));
            gap.fill(0.0);
        }
    }
}

impl Call<'_> {
    /// Sums the views of this pass into the volume; the `first` pass writes, the others add.
    fn add_to(&self, scratch: &Scratch, target: Volume, first: bool) {
        let by_rays = |pose| !IndexView::new(pose, self.detector, self.grid).goes_by_columns();
        for axis in 0..if self.views.iter().any(by_rays) { 3 } else { 2 } {
            let planes = Planes::across(axis, self.grid.voxels);
            let stride = tile_stride(planes.p_count, planes.q_count);
            let slabs = planes.q_count.div_ceil(stride);
            let most = (TILE_FLOATS / ((planes.p_count + 2) * stride)).max(1);
            // Small enough that all threads find work; never changes a result.
            let block = most.min(planes.count.div_ceil((6 * rayon::current_num_threads()).div_ceil(slabs)));
            let blocks = planes.count.div_ceil(block);
            (0..blocks * slabs).into_par_iter().with_max_len(1).for_each(|task| {
                let (plane, height) = (task / slabs * block, task % slabs * stride);
                let mut buffer = scratch.of_this_thread();
                let (sums, rest) = buffer.floats().split_at_mut(block * (planes.p_count + 2) * stride);
                let mut tile = Tile {
                    sums,
                    planes: plane..planes.count.min(plane + block),
                    others: planes.p_count,
                    heights: height..planes.q_count.min(height + stride),
                    stride,
                };
                self.gather(axis, &mut tile, rest);
                put(&tile, &planes, target, first && axis == 0);
            });
        }
    }

    /// Sums all views over one tile of planes across `axis`.
    fn gather(&self, axis: usize, tile: &mut Tile<'_>, rest: &mut [f32]) {
        let Detector { columns, rows } = self.detector;
        tile.sums.fill(0.0);
        let mut work = Workspace::new(rest, tile);
        for (view, pose) in self.views.iter().enumerate() {
            let index_view = IndexView::new(pose, self.detector, self.grid);
            if !index_view.goes_by_columns() {
                let pixels = &self.projections[view * columns * rows..][..columns * rows];
                scatter(&index_view, axis, pixels, tile);
                continue;
            }
            for (u, path) in self.paths[view * columns..][..columns].iter().enumerate() {
                if path.axis as usize == axis {
                    let start = GUARD + (view * columns + u) * (rows + GAP);
                    add_column(self.simd, tile, &mut work, path, self.turned, start, rows);
                }
            }
        }
    }
}

/// Moves a tile's sums to the volume: the first axis writes, the others add.
fn put(tile: &Tile<'_>, planes: &Planes, target: Volume, first: bool) {
    let Range { start: low, end: high } = tile.heights.clone();
    for (plane, sums) in tile.planes.clone().zip(tile.sums.chunks_exact((tile.others + 2) * tile.stride)) {
        for (p, sums) in sums.chunks_exact(tile.stride).skip(1).take(tile.others).enumerate() {
            let start = plane * planes.stride + p * planes.p_stride + low * planes.q_stride;
            let sums = &sums[..high - low];
            // SAFETY: the planes and heights of this tile are nobody else's.
            unsafe {
                if planes.q_stride == 1 {
                    target.put_run(start, sums, first);
                } else {
                    for (q, &sum) in sums.iter().enumerate() {
                        target.put(start + q * planes.q_stride, sum, first);
                    }
                }
            }
        }
    }
}
