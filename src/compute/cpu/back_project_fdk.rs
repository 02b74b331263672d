//! Voxel-driven back-projection for FDK.
//!
//! Where the detector's rows run along z (every untilted orbit), a column of voxels (x, y) is seen at one detector column
//! `u`, at one depth `w`, and at rows `v` that are linear in z. So the two detector columns around `u` are blended and the
//! blend is resampled along z: with AVX-512 sixteen voxels read at most 32 neighbouring pixels, which sit in two registers, and
//! two register permutes replace 64 gathered loads. For that the views are first copied to `[u][v]` order, between margins of
//! zeros, so that the inner loop tests no bounds: what lies outside the detector reads zero. Tilted poses take the general
//! way (`tilted.rs`): one perspective division and four gathered pixels a voxel.
//!
//! Order of work: the volume is cut into tiles of voxel columns, each owned by one task; within a tile, cells of columns small
//! enough that the detector columns they see stay in the first-level cache while all views pass over them. Every voxel adds
//! its views one after the other in their order, so the result depends neither on threads nor on how views are grouped in calls.
//!
//! The machine's floor. Operations: 16 voxels of one view take 4 loads, 13 arithmetic instructions on two 512-bit ports and
//! one load and store of the volume: 6.5 cycles, i.e. 2.5 voxels a cycle and core (10 instructions where voxels are no coarser
//! than pixels). Bytes: views read and written once by the copy (8 bytes a pixel), volume read and written once a call
//! (8 bytes a voxel), each tile reads its share of the copied views. `benches/fdk.rs` measures the ratio to both.

#![allow(unsafe_code)] // Tiles of one volume are written by several tasks; the SIMD kernels behind need unsafe themselves.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;
mod tilted;
mod transpose;

use rayon::prelude::*;

use super::super::{ComputeError, Workload};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};
use transpose::Layout;

/// Voxel columns of a cell along x and y: what one view's pass works on before the next view's.
const CELL: [usize; 2] = [4, 8];

/// Largest number of voxel columns of a tile along x and along y.
const TILE: usize = 32;

/// Scratch: the views of one call in `[u][v]` order.
pub(super) fn need(workload: &Workload) -> Need {
    let layout = Layout::of(Detector { columns: workload.columns, rows: workload.rows });
    Need { shared: layout.view_floats().saturating_mul(workload.views_per_call), per_thread: 0 }
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
    let one_view = Need { shared: layout.view_floats(), per_thread: 0 };
    let mut guard = scratch.take("back_project_fdk", one_view)?;
    let copies = guard.floats();
    let pass = (copies.len() / layout.view_floats()).min(views);
    for (poses, filtered) in geometry.views.chunks(pass).zip(filtered.chunks(pass * detector.pixels())) {
        let copies = &mut copies[..poses.len() * layout.view_floats()];
        transpose::transpose(simd, layout, poses, filtered, copies);
        back_project_pass(simd, layout, poses, grid, copies, volume);
    }
    Ok(())
}

/// The volume's columns, written by many tasks.
#[derive(Clone, Copy)]
struct Columns {
    first: *mut f32,
    count_y: usize,
    count_z: usize,
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
        unsafe { std::slice::from_raw_parts_mut(self.first.add((ix * self.count_y + iy) * self.count_z), self.count_z) }
    }
}

/// Views that a tile works off before it goes back to its first cell; their set-up stands on the stack.
const GROUP: usize = 32;

/// One pass of all `poses` over the volume.
fn back_project_pass(
    simd: SimdLevel,
    layout: Layout,
    poses: &[ViewPose],
    grid: &VolumeGrid,
    copies: &[f32],
    volume: &mut [f32],
) {
    let [nx, ny, nz] = grid.voxels;
    let columns = Columns { first: volume.as_mut_ptr(), count_y: ny, count_z: nz };
    // Large tiles share more of the views' reads; small ones leave every thread several.
    let threads = rayon::current_num_threads();
    let mut tile = TILE;
    while tile > 8 && nx.div_ceil(tile) * ny.div_ceil(tile) < 6 * threads {
        tile /= 2;
    }
    let tiles_y = ny.div_ceil(tile);
    (0..nx.div_ceil(tile) * tiles_y).into_par_iter().with_max_len(1).for_each(|index| {
        let (x0, y0) = (index / tiles_y * tile, index % tiles_y * tile);
        let (x1, y1) = ((x0 + tile).min(nx), (y0 + tile).min(ny));
        let group_floats = GROUP * layout.view_floats();
        for (poses, copies) in poses.chunks(GROUP).zip(copies.chunks(group_floats)) {
            let mut views = [View::EMPTY; GROUP];
            for ((view, pose), pixels) in views.iter_mut().zip(poses).zip(copies.chunks(layout.view_floats())) {
                *view = View::new(layout, pose, grid, pixels);
            }
            for cx in (x0..x1).step_by(CELL[0]) {
                for cy in (y0..y1).step_by(CELL[1]) {
                    for view in &views[..poses.len()] {
                        for ix in cx..(cx + CELL[0]).min(x1) {
                            for iy in cy..(cy + CELL[1]).min(y1) {
                                // SAFETY: tiles are disjoint and clipped to the volume; each is one task's.
                                let voxels = unsafe { columns.column(ix, iy) };
                                view.add_to_column(simd, ix, iy, voxels);
                            }
                        }
                    }
                }
            }
        }
    });
}

/// One view as the kernels see it: its copy in `[u][v]` order and its matrix in voxel indices.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    pixels: &'a [f32],
    layout: Layout,
    /// Takes `(ix, iy, iz, 1)` to `w (u, v, 1)`; `v` counts in the order of the copy, upwards in z.
    matrix: [[f64; 4]; 3],
    /// Whether `u` and `w` do not depend on z.
    upright: bool,
}

/// What a column of voxels needs of an upright view.
#[derive(Debug, Clone, Copy)]
struct Ray<'a> {
    /// The detector column left of the voxel column, with its margins; the next one follows.
    pair: &'a [f32],
    layout: Layout,
    /// Weights of the left and the right detector column, `1/w^2` included.
    weights: [f32; 2],
    /// Detector row of voxel z = 0.
    row: f64,
    /// Detector rows from one voxel to the next, >= 0.
    step: f64,
}

impl<'a> View<'a> {
    const EMPTY: View<'static> =
        View { pixels: &[], layout: Layout { columns: 0, rows: 0, stride: 0 }, matrix: [[0.0; 4]; 3], upright: false };

    fn new(layout: Layout, pose: &ViewPose, grid: &VolumeGrid, pixels: &'a [f32]) -> Self {
        let world = pose.projection_matrix();
        let (origin, voxel) = (grid.origin_mm(), grid.voxel_mm);
        let mut matrix = world.map(|r| {
            [r[0] * voxel.x, r[1] * voxel.y, r[2] * voxel.z, r[0] * origin.x + r[1] * origin.y + r[2] * origin.z + r[3]]
        });
        if layout.flip(pose) {
            let last = layout.rows as f64 - 1.0;
            matrix[1] = std::array::from_fn(|i| last * matrix[2][i] - matrix[1][i]);
        }
        // Over the whole column, u moves by less than 1e-4 pixel and w by less than 1e-7 of the distance to the detector.
        let height = grid.voxels[2] as f64;
        let upright = (matrix[0][2] * height).abs() < 1e-4 && (matrix[2][2] * height).abs() < 1e-7;
        Self { pixels, layout, matrix, upright }
    }

    /// Adds this view to one column of voxels.
    #[inline]
    fn add_to_column(&self, simd: SimdLevel, ix: usize, iy: usize, voxels: &mut [f32]) {
        if !self.upright {
            return tilted::add_to_column(self, simd, ix, iy, voxels);
        }
        let Some(ray) = self.ray(ix as f64, iy as f64) else { return };
        match simd {
            // SAFETY: a carrier's level never exceeds what the processor was found to offer (`CpuCompute::with_simd`).
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => unsafe { avx512::add_to_column(&ray, voxels) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => unsafe { avx2::add_to_column(&ray, voxels) },
            _ => plain::add_to_column(&ray, voxels),
        }
    }

    /// Where the upright view sees a column; `None` beside the detector or behind the source.
    #[inline]
    fn ray(&self, x: f64, y: f64) -> Option<Ray<'a>> {
        let at = |r: &[f64; 4]| r[0] * x + r[1] * y + r[3];
        let [u, v, w] = &self.matrix;
        let depth = at(w);
        // Also keeps 1/w^2 finite in float32.
        if depth.is_nan() || depth < 1e-6 {
            return None;
        }
        let near = 1.0 / depth;
        let column = at(u) * near;
        if !(column > -1.0 && column < self.layout.columns as f64) {
            return None;
        }
        // Column -1 is the left margin.
        let left = (column + 1.0) as usize;
        let part = column + 1.0 - left as f64;
        let gain = near * near;
        let start = left * self.layout.stride;
        Some(Ray {
            pair: &self.pixels[start..start + 2 * self.layout.stride],
            layout: self.layout,
            weights: [((1.0 - part) * gain) as f32, (part * gain) as f32],
            row: at(v) * near,
            step: v[2] * near,
        })
    }
}

impl Ray<'_> {
    /// First and last (exclusive) voxel of the column whose row lies in (-1, rows), i.e. touches the detector.
    #[inline]
    fn z_range(&self, voxels: usize) -> (usize, usize) {
        let rows = self.layout.rows as f64;
        if self.step < 1e-12 {
            return if self.row > -1.0 && self.row < rows { (0, voxels) } else { (0, 0) };
        }
        let z = |row: f64| (row - self.row) / self.step;
        // Saturating casts: negative is 0. One voxel more at the end does no harm, it reads margin.
        let first = (z(-1.0).floor() + 1.0) as usize;
        let end = (z(rows).ceil()) as usize;
        (first.min(voxels), end.min(voxels))
    }
}

#[cfg(test)]
mod tests;
