//! Forward projection by Joseph's method (see [`super::joseph`]).
//!
//! **Work.** A call of `views` views on an `n^3` grid and an `m x m` detector takes `views * m * n` planes of columns. For each the fast
//! path blends `n` heights (2 operations each) and resamples `m` rows (9 operations each: height, floor, fraction, index, its
//! successor, two look-ups, difference, two accumulating), that is `views m n (2 n s + 9 m)` lane operations (`s`: share of heights in
//! the fan, about 1) on two vector units. **Bytes.** The projections once and the volume once for each group of views and columns:
//! at least `4 n^3 views / group + 4 views m^2`; with groups of 5 views, 128^3, 256^2 and 50 views: 0.26e9 operations of 16 lanes
//! (0.035 s on one core of 3.75 GHz) against 0.1 GB. Measured is about 2.5 to 3 times the operations' time at 128^3, where waiting for
//! the blended column is the larger part of the rest, and 5 times at 256^3, where it is the volume's way out of the third-level cache.
//! `benches/projector.rs` measures both.
//!
//! **Order.** A task owns a block of columns of a few views, so that each result is summed by one thread in the order of planes. It goes
//! through the volume in blocks of planes that stay in the second-level cache while all its views pass over them.

// Tasks write disjoint columns of the same rows, which slices cannot express.
#![allow(unsafe_code)]

mod by_columns;

use rayon::prelude::*;

use super::super::{ComputeError, Workload};
use super::joseph::{Column, IndexView};
use super::rays;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{ScanGeometry, VolumeGrid};
use by_columns::{ROW_BLOCK, Shared, Workspace, add_planes, prefetch};

/// Views and columns of the largest task; sums of such a task fill half a second-level cache of 1 to 2 MiB.
const TASK_VIEWS: usize = 8;
const TASK_COLUMNS: usize = 128;
const TASK_FLOATS: usize = 192 * 1024;
/// Floats of the volume in a block of planes.
const BLOCK_FLOATS: usize = 64 * 1024;

/// Floats a [`Column`] takes in the scratch.
const COLUMN_FLOATS: usize = size_of::<Column>() / size_of::<f32>();

/// Views and columns of a task.
#[derive(Debug, Clone, Copy)]
struct TaskShape {
    views: usize,
    columns: usize,
}

impl TaskShape {
    /// The largest that the scratch is made for.
    fn largest(columns: usize, rows: usize) -> Self {
        let column_floats = rows.next_multiple_of(ROW_BLOCK) + COLUMN_FLOATS;
        let columns = columns.min(TASK_COLUMNS).min((TASK_FLOATS / column_floats).max(16)).max(1);
        Self { views: (TASK_FLOATS / (columns * column_floats)).clamp(1, TASK_VIEWS), columns }
    }

    /// Small enough that all threads find work; never changes a result.
    fn for_call(columns: usize, rows: usize, views: usize, threads: usize) -> Self {
        let mut shape = Self::largest(columns, rows);
        let tasks = |shape: Self| views.div_ceil(shape.views) * columns.div_ceil(shape.columns);
        while tasks(shape) < 6 * threads && (shape.views > 1 || shape.columns > 16) {
            if shape.views > 2 || shape.columns <= 16 {
                shape.views = shape.views.div_ceil(2);
            } else {
                shape.columns = shape.columns.div_ceil(2).next_multiple_of(8);
            }
        }
        shape
    }

    fn floats(self, rows: usize) -> usize {
        self.views * self.columns * (rows.next_multiple_of(ROW_BLOCK) + COLUMN_FLOATS)
    }
}

/// Scratch of this operation.
pub(super) fn need(workload: &Workload) -> Need {
    let shape = TaskShape::largest(workload.columns, workload.rows);
    Need {
        shared: 0,
        per_thread: shape.floats(workload.rows) + by_columns::workspace_floats(workload.rows, workload.voxels[2]),
    }
}

/// The projections, written by several tasks at disjoint places.
#[derive(Clone, Copy)]
struct Projections {
    start: *mut f32,
    columns: usize,
    rows: usize,
}

// SAFETY: tasks write only the (view, column) pairs they own, and nobody reads before all have ended.
unsafe impl Send for Projections {}
// SAFETY: as above.
unsafe impl Sync for Projections {}

impl Projections {
    /// Part of a row that one task owns.
    ///
    /// # Safety
    /// The columns lie within the detector and view and row within the buffer; no other task holds any of these pixels.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, view: usize, row: usize, first_column: usize, columns: usize) -> &mut [f32] {
        // SAFETY: the caller's.
        unsafe {
            let start = self.start.add((view * self.rows + row) * self.columns + first_column);
            std::slice::from_raw_parts_mut(start, columns)
        }
    }
}

/// See [`crate::compute::Compute::forward_project`].
pub(super) fn forward_project(
    simd: SimdLevel,
    scratch: &Scratch,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    volume: &[f32],
    projections: &mut [f32],
) -> Result<(), ComputeError> {
    let (columns, rows) = (geometry.detector.columns, geometry.detector.rows);
    let views = geometry.views.len();
    if projections.is_empty() {
        return Ok(());
    }
    if volume.is_empty() {
        projections.fill(0.0);
        return Ok(());
    }
    let need = need(&Workload { columns, rows, views_per_call: views, voxels: grid.voxels });
    let _whole = scratch.take("forward_project", need)?;
    let shape = TaskShape::for_call(columns, rows, views, rayon::current_num_threads());
    let column_tasks = columns.div_ceil(shape.columns);
    let shared = Shared { volume, voxels: grid.voxels, rows };
    let target = Projections { start: projections.as_mut_ptr(), columns, rows };
    (0..views.div_ceil(shape.views) * column_tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let first_view = task / column_tasks * shape.views;
        let first_column = task % column_tasks * shape.columns;
        let task = Task {
            views: first_view..views.min(first_view + shape.views),
            columns: first_column..columns.min(first_column + shape.columns),
        };
        let mut buffer = scratch.of_this_thread();
        task.carry_out(simd, &shared, geometry, grid, buffer.floats(), target);
    });
    Ok(())
}

/// What one thread does at a stretch.
struct Task {
    views: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

impl Task {
    fn carry_out(
        &self,
        simd: SimdLevel,
        shared: &Shared<'_>,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        floats: &mut [f32],
        target: Projections,
    ) {
        let (rows, width) = (shared.rows, self.columns.len());
        let padded = rows.next_multiple_of(ROW_BLOCK);
        let pairs = self.views.len() * width;
        let (paths, rest) = floats.split_at_mut(pairs * COLUMN_FLOATS);
        let (sums, rest) = rest.split_at_mut(pairs * padded);
        let paths: &mut [Column] = bytemuck::cast_slice_mut(paths);
        let mut work = Workspace::new(rest, rows, shared.voxels[2]);
        sums.fill(0.0);
        for (paths, view) in paths.chunks_exact_mut(width).zip(self.views.clone()) {
            let index_view = IndexView::new(&geometry.views[view], geometry.detector, grid);
            if index_view.goes_by_columns() {
                paths.iter_mut().zip(self.columns.clone()).for_each(|(path, u)| *path = index_view.column(u));
            } else {
                paths.fill(bytemuck::Zeroable::zeroed());
            }
        }
        let [nx, ny, nz] = shared.voxels;
        for (axis, planes, others) in [(0, nx, ny), (1, ny, nx)] {
            let block = (BLOCK_FLOATS / (others * nz)).max(1);
            for start in (0..planes).step_by(block) {
                for (path, sums) in paths.iter().zip(sums.chunks_exact_mut(padded)) {
                    if path.axis == axis {
                        prefetch(shared, path, start + block..start + 2 * block);
                        add_planes(simd, shared, &mut work, path, start..start + block, sums);
                    }
                }
            }
        }
        let of_view = paths.chunks_exact(width).zip(sums.chunks_exact_mut(width * padded));
        for (view, (paths, sums)) in self.views.clone().zip(of_view) {
            let index_view = IndexView::new(&geometry.views[view], geometry.detector, grid);
            // SAFETY: the pixels of this task's view and columns are nobody else's.
            let row = |v: usize| unsafe { target.row(view, v, self.columns.start, width) };
            if index_view.goes_by_columns() {
                for (path, sums) in paths.iter().zip(sums.chunks_exact_mut(padded)) {
                    sums.iter_mut().enumerate().for_each(|(r, sum)| *sum *= path.length_mm(r));
                }
                for r in 0..rows {
                    let v = if index_view.rows_descend() { rows - 1 - r } else { r };
                    for (pixel, sums) in row(v).iter_mut().zip(sums[r..].iter().step_by(padded)) {
                        *pixel = *sums;
                    }
                }
            } else {
                for v in 0..rows {
                    for (pixel, u) in row(v).iter_mut().zip(self.columns.clone()) {
                        *pixel = rays::integrate(&index_view, shared.volume, v, u);
                    }
                }
            }
        }
    }
}
