//! Gaussians onto the voxel grid: values at the voxels' centres, summed by slabs of planes across x.
//!
//! **Work.** `n` Gaussians with `e` voxels each within the cut-off (about `219 sx sy sz` in voxels) take 19 lane operations for 16 (8) voxels of
//! a row along z on two vector units: `10 n e / 16` clock periods a core if all lanes were in use. **Bytes.** The volume is written once,
//! a slab of it stays in the second-level cache; 136 + 2 x 64 bytes a Gaussian.
//!
//! **Order.** As in [`super::gaussian_project`]: each slab's task adds its Gaussians in ascending order.

// Generic SIMD on rows whose ends are checked before.
#![allow(unsafe_code)]

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::super::ComputeError;
use super::super::gaussians::{GaussianSet, GaussianWorkload};
use super::gaussian_bins::{self, Bins, CHUNK};
use super::gaussian_kernel::{Y_CUTOFF, voxel_with_slope};
use super::gaussian_lanes::{Plain, Wide, at_each_level};
use super::gaussian_project::{lines, shapes};
use super::gaussian_shape::{SHAPE_FLOATS, Shape, check_set};
use super::gaussian_voxel::{Stretches, VOXEL_FOOTPRINT_FLOATS, VoxelFootprint, Walk, place};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::VolumeGrid;

const OPERATION: &str = "gaussian_voxelise";

/// Planes of the thickest and of the thinnest slab.
const THICK: usize = 8;
const THIN: usize = 2;

/// Sizes of the parts of the shared scratch: shapes, footprints, table, list.
fn parts(gaussians: usize, planes: usize) -> [usize; 4] {
    let [table, list] = gaussian_bins::words(gaussians, planes.div_ceil(THIN));
    [SHAPE_FLOATS * gaussians, VOXEL_FOOTPRINT_FLOATS * gaussians, table, list].map(lines)
}

/// Scratch of this operation.
pub(super) fn need(workload: &GaussianWorkload) -> Need {
    Need { shared: parts(workload.gaussians, workload.voxels[0]).iter().sum(), per_thread: 0 }
}

/// See [`super::super::gaussians::GaussianCompute::gaussian_voxelise`].
pub(super) fn gaussian_voxelise(
    simd: SimdLevel,
    scratch: &Scratch,
    grid: &VolumeGrid,
    set: &GaussianSet<'_>,
    volume: &mut [f32],
) -> Result<(), ComputeError> {
    check_set(OPERATION, set)?;
    volume.fill(0.0);
    let n = set.len();
    if volume.is_empty() || n == 0 {
        return Ok(());
    }
    let [planes, rows, row] = grid.voxels;
    let [shape_floats, footprint_floats, table, list] = parts(n, planes);
    let need = Need { shared: shape_floats + footprint_floats + table + list, per_thread: 0 };
    let mut whole = scratch.take(OPERATION, need)?;
    let (shape_floats, rest) = whole.floats().split_at_mut(shape_floats);
    let (footprint_floats, rest) = rest.split_at_mut(footprint_floats);
    let (table, list) = rest.split_at_mut(table);
    let all: &mut [Shape] = bytemuck::cast_slice_mut(&mut shape_floats[..n * SHAPE_FLOATS]);
    let footprints: &mut [VoxelFootprint] =
        bytemuck::cast_slice_mut(&mut footprint_floats[..n * VOXEL_FOOTPRINT_FLOATS]);
    shapes(OPERATION, set, all)?;

    // Thin enough that all threads find work; never changes a result.
    let thickness = (planes / (8 * rayon::current_num_threads())).clamp(THIN, THICK);
    let slabs = planes.div_ceil(thickness);
    let mut bins = Bins::new(slabs, n, bytemuck::cast_slice_mut(table), bytemuck::cast_slice_mut(list));
    footprints.par_chunks_mut(CHUNK).zip(all.par_chunks(CHUNK)).zip(bins.par_counts()).for_each(
        |((footprints, shapes), row)| {
            place_all(simd, grid, shapes, footprints);
            gaussian_bins::count(row, footprints.iter().map(|footprint| slabs_of(footprint, thickness)));
        },
    );
    let footprints = &*footprints;
    bins.passes(
        n,
        |i| slabs_of(&footprints[i], thickness),
        |pass| {
            volume.par_chunks_mut(thickness * rows * row).enumerate().with_max_len(1).for_each(|(slab, voxels)| {
                add_slab(simd, footprints, pass.of(slab), slab * thickness, [rows, row], voxels);
            });
        },
    );
    Ok(())
}

/// Slabs that a footprint touches.
#[inline(always)]
fn slabs_of(footprint: &VoxelFootprint, thickness: usize) -> std::ops::Range<usize> {
    let (first, end) = (footprint.first_plane as usize, footprint.end_plane as usize);
    if first < end { first / thickness..(end - 1) / thickness + 1 } else { 0..0 }
}

/// How the grid holds each Gaussian (no lanes; compiled for the level for its scalar instructions).
#[inline(always)]
unsafe fn place_all_body<W: Wide>(grid: &VolumeGrid, shapes: &[Shape], footprints: &mut [VoxelFootprint]) {
    for (footprint, shape) in footprints.iter_mut().zip(shapes) {
        let placed = if shape.amplitude == 0.0 { None } else { place(grid, shape) };
        *footprint = placed.map_or_else(VoxelFootprint::zeroed, |(_, footprint)| footprint);
    }
}
at_each_level!(
    /// See [`place_all_body`].
    place_all => place_all_body(grid: &VolumeGrid, shapes: &[Shape], footprints: &mut [VoxelFootprint])
);

/// Adds Gaussians to the planes of one slab.
#[inline(always)]
unsafe fn add_slab_body<W: Wide>(
    footprints: &[VoxelFootprint],
    gaussians: &[u32],
    first_plane: usize,
    [rows, row]: [usize; 2],
    voxels: &mut [f32],
) {
    let planes = voxels.len() / (rows * row);
    let mut list = Stretches::EMPTY;
    for (k, &i) in gaussians.iter().enumerate() {
        let footprint = &footprints[i as usize];
        let first = (footprint.first_plane as usize).max(first_plane);
        let end = (footprint.end_plane as usize).min(first_plane + planes);
        let mut walk = Walk::over(first..end);
        // SAFETY: the caller's; stretches lie within the planes given, and nothing is read or written behind a row.
        unsafe {
            if let Some(&ahead) = gaussians.get(k + 4) {
                W::prefetch(&raw const footprints[ahead as usize]);
            }
            let (minus_kz, ramp) = (W::splat(-footprint.kz), W::ramp());
            let (amplitude, cutoff) = (W::splat(footprint.amplitude), W::splat(-Y_CUTOFF as f32));
            while footprint.list::<W>(&mut walk, [rows, row], &mut list) {
                let base = voxels[(list.plane - first_plane) * rows * row..].as_mut_ptr();
                for k in 0..list.count {
                    let f = W::add(W::splat(list.f[k]), ramp);
                    // Held to the cut-off, so that far lanes do not underflow to (slow) denormal numbers.
                    let minus_y = W::max(W::fma(W::mul(minus_kz, f), f, W::splat(list.minus_y0[k])), cutoff);
                    let value = W::below(cutoff, minus_y, voxel_with_slope::<W>(minus_y).0);
                    let (to, left) = (base.add(list.at[k] as usize), list.left(k, row));
                    if left >= W::N {
                        W::store(to, W::fma(value, amplitude, W::load(to)));
                    } else {
                        W::store_first(to, left, W::fma(value, amplitude, W::load_first(to, left)));
                    }
                }
            }
        }
    }
}
at_each_level!(
    /// See [`add_slab_body`].
    add_slab => add_slab_body(
        footprints: &[VoxelFootprint],
        gaussians: &[u32],
        first_plane: usize,
        lines: [usize; 2],
        voxels: &mut [f32],
    )
);

/// Voxels within the cut-off, summed over Gaussians: what [`gaussian_voxelise`] evaluates.
pub(super) fn evaluations(grid: &VolumeGrid, set: &GaussianSet<'_>) -> u64 {
    let [_, rows, row] = grid.voxels;
    let mut list = Stretches::EMPTY;
    let mut of_one = |f: VoxelFootprint| -> u64 {
        let mut walk = Walk::over(f.first_plane as usize..f.end_plane as usize);
        let mut voxels = 0;
        // SAFETY: plain floats, of which each is a stretch.
        while unsafe { f.list::<Plain>(&mut walk, [rows, row], &mut list) } {
            voxels += list.count as u64;
        }
        voxels
    };
    (0..set.len()).filter_map(|i| place(grid, &Shape::of(set, i))).map(|(_, footprint)| of_one(footprint)).sum()
}
