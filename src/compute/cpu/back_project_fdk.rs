//! Voxel-driven back-projection for FDK.
//!
//! Where the detector's rows run along z (every untilted orbit), a column of voxels (x, y) is seen at one detector column
//! `u`, at one depth `w`, and at rows `v` that are linear in z. So the two detector columns around `u` are blended and the
//! blend is resampled along z: with AVX-512 sixteen voxels read at most 32 neighbouring pixels, which sit in two registers, and
//! two register permutes replace 64 gathered loads. For that the views are first copied to `[u][v]` order, between margins of
//! zeros, so that the inner loop tests no bounds: what lies outside the detector reads zero. Tilted poses take the general
//! way (`tilted.rs`): one perspective division and four gathered pixels a voxel.
//!
//! Order of work: the volume is cut into tiles of voxel columns, each owned by one task; within a tile, cells of a few columns
//! are copied to aligned scratch, all views pass over them, and they are copied back. Every voxel adds its views one after the
//! other in their order, so the result depends neither on threads nor on how views are grouped in calls.
//!
//! The machine's floor. Operations: 16 voxels of one view take 9 vector instructions for the resampling and 2 for each 16
//! pixels that they span (blend), on two ports: 5.5 cycles where voxels are as large as pixels. Bytes: views read and written
//! once by the copy and read once (16 bytes a pixel), volume read and written once a call (8 bytes a voxel). `benches/fdk.rs`
//! measures the ratio. What is known of the rest: pixels are loaded at odd addresses, two cache lines each, and blended again
//! where neighbouring steps overlap (keeping blends in scratch costs more: its stores delay the loads behind them); setting up
//! a column takes about 15 cycles.

#![allow(unsafe_code)] // Tiles of one volume are written by several tasks; the SIMD kernels behind need unsafe themselves.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;
mod tilted;
mod transpose;
mod view;

use rayon::prelude::*;

use super::super::{ComputeError, Workload};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};
use transpose::Layout;
use view::{RAYS, View};

/// Voxel columns of a cell along x and y.
const CELL: [usize; 2] = [4, RAYS];

/// Largest number of voxel columns of a tile along x and along y.
const TILE: usize = 32;

/// Views that a tile works off before it goes back to its first cell; their set-up stands on the stack.
const GROUP: usize = 32;

/// Floats of a cache line; columns of a cell are padded to it.
const LINE: usize = 16;

fn need_for(layout: Layout, views: usize, height: usize) -> Need {
    let cell = CELL[0] * CELL[1] * height.next_multiple_of(LINE);
    Need { shared: layout.view_floats().saturating_mul(views), per_thread: cell.saturating_add(layout.stride) }
}

/// Scratch: the views of one call in `[u][v]` order; a cell of voxels and (for AVX2) a blended detector column a
/// thread.
pub(super) fn need(workload: &Workload) -> Need {
    let layout = Layout::of(Detector { columns: workload.columns, rows: workload.rows });
    need_for(layout, workload.views_per_call, workload.voxels[2])
}

/// See [`crate::compute::Compute::back_project_fdk`].
///
/// Views beyond the prepared `views_per_call` are worked off in several passes.
pub(super) fn back_project_fdk(
    simd: SimdLevel,
    scratch: &Scratch,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    filtered: &[f32],
    volume: &mut [f32],
) -> Result<(), ComputeError> {
    let (detector, views) = (geometry.detector, geometry.views.len());
    if views == 0 || grid.is_empty() || detector.pixels() == 0 {
        return Ok(());
    }
    let layout = Layout::of(detector);
    let mut guard = scratch.take("back_project_fdk", need_for(layout, 1, grid.voxels[2]))?;
    let copies = guard.floats();
    let pass = (copies.len() / layout.view_floats()).min(views);
    for (poses, filtered) in geometry.views.chunks(pass).zip(filtered.chunks(pass * detector.pixels())) {
        let copies = &mut copies[..poses.len() * layout.view_floats()];
        transpose::transpose(simd, layout, poses, filtered, copies);
        back_project_pass(simd, scratch, layout, poses, grid, copies, volume);
    }
    Ok(())
}

/// The volume's columns, written by many tasks.
#[derive(Clone, Copy)]
struct Columns {
    first: *mut f32,
    count_y: usize,
    height: usize,
}

// SAFETY: the pointer is only dereferenced by `Columns::column`, whose callers own disjoint sets of columns.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// The voxels (`ix`, `iy`, all z).
    ///
    /// # Safety
    /// `ix` and `iy` lie in the volume, and nobody else uses this column meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn column(&self, ix: usize, iy: usize) -> &mut [f32] {
        // SAFETY: the column lies within the volume and is the caller's alone, as the contract says.
        unsafe { std::slice::from_raw_parts_mut(self.first.add((ix * self.count_y + iy) * self.height), self.height) }
    }
}

/// One pass of all `poses` over the volume.
fn back_project_pass(
    simd: SimdLevel,
    scratch: &Scratch,
    layout: Layout,
    poses: &[ViewPose],
    grid: &VolumeGrid,
    copies: &[f32],
    volume: &mut [f32],
) {
    let [nx, ny, height] = grid.voxels;
    let columns = Columns { first: volume.as_mut_ptr(), count_y: ny, height };
    // Large tiles share more of the views' reads; small ones leave every thread several.
    let threads = rayon::current_num_threads();
    let mut tile = TILE;
    while tile > 8 && nx.div_ceil(tile) * ny.div_ceil(tile) < 6 * threads {
        tile /= 2;
    }
    let tiles_y = ny.div_ceil(tile);
    let padded = height.next_multiple_of(LINE);
    (0..nx.div_ceil(tile) * tiles_y).into_par_iter().with_max_len(1).for_each(|index| {
        let (x0, y0) = (index / tiles_y * tile, index % tiles_y * tile);
        let (x1, y1) = ((x0 + tile).min(nx), (y0 + tile).min(ny));
        let mut guard = scratch.of_this_thread();
        let (cell, blend) = guard.floats().split_at_mut(CELL[0] * CELL[1] * padded);
        let group_floats = GROUP * layout.view_floats();
        for (poses, copies) in poses.chunks(GROUP).zip(copies.chunks(group_floats)) {
            let mut views = [View::EMPTY; GROUP];
            for ((view, pose), pixels) in views.iter_mut().zip(poses).zip(copies.chunks(layout.view_floats())) {
                *view = View::new(layout, pose, grid, pixels);
            }
            let views = &views[..poses.len()];
            for cx in (x0..x1).step_by(CELL[0]) {
                for cy in (y0..y1).step_by(CELL[1]) {
                    let (lines, count) = (cx..(cx + CELL[0]).min(x1), (cy + CELL[1]).min(y1) - cy);
                    let place = |ix: usize, i: usize| ((ix - cx) * CELL[1] + i) * padded;
                    for ix in lines.clone() {
                        for i in 0..count {
                            // SAFETY: tiles are disjoint and clipped to the volume; each is one task's.
                            let column = unsafe { columns.column(ix, cy + i) };
                            cell[place(ix, i)..][..height].copy_from_slice(column);
                        }
                    }
                    for view in views {
                        for ix in lines.clone() {
                            let line = &mut cell[place(ix, 0)..][..count * padded];
                            add_to_line(simd, view, ix, cy, height, line, blend);
                        }
                    }
                    for ix in lines {
                        for i in 0..count {
                            // SAFETY: as above.
                            let column = unsafe { columns.column(ix, cy + i) };
                            column.copy_from_slice(&cell[place(ix, i)..][..height]);
                        }
                    }
                }
            }
        }
    });
}

/// Adds one view to the voxel columns `(ix, iy..)`; `line` holds them one after the other, each padded to cache lines and at
/// most [`RAYS`] of them.
#[inline]
fn add_to_line(
    simd: SimdLevel,
    view: &View<'_>,
    ix: usize,
    iy: usize,
    height: usize,
    line: &mut [f32],
    blend: &mut [f32],
) {
    if !view.upright {
        for (i, column) in line.chunks_exact_mut(height.next_multiple_of(LINE)).enumerate() {
            tilted::add_to_column(view, simd, ix, iy + i, &mut column[..height]);
        }
        return;
    }
    match simd {
        // SAFETY: a carrier's level never exceeds what the processor was found to offer (`CpuCompute::with_simd`).
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => unsafe { avx512::add_to_line(view, ix, iy, height, line) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => unsafe { avx2::add_to_line(view, ix, iy, height, line, blend) },
        _ => plain::add_to_line(view, ix, iy, height, line),
    }
}

#[cfg(test)]
mod tests;
