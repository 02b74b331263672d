//! A field onto the voxel grid, row by row along z.
//!
//! **Work a voxel.** The network's `m` multiply-adds (2112 for 32 inputs, 2 x 32) in lanes of points or units: `m / 16` register operations, 66 periods
//! on two vector units. The encoding ([`super::field_rows`]): `8 nodes / row` loads and as many multiply-adds for the lines (1.5 a register of
//! points where the finest level has as many nodes as there are voxels), and for each level about 12 operations for 16 points; a transposition, 8.
//! **Bytes.** The volume is written once; the tables are read by columns of nodes, each about four times a cell's width in voxels.

// Generic SIMD.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::field::{FieldJitter, FieldParameters, FieldWorkload};
use super::check_len;
use super::field_lanes::FieldLanes;
use super::field_network::{Block, POINTS, Sizes};
use super::field_rows::{RowBuffers, RowPlan};
use super::gaussian_lanes::at_each_level;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::VolumeGrid;

const OPERATION: &str = "field_voxelise";

/// Rows of a task.
pub(super) const GROUP: usize = 16;

/// Scratch of this operation.
pub(super) fn need(workload: &FieldWorkload) -> Need {
    let sizes = Sizes::of(&workload.shape);
    Need { shared: 0, per_thread: sizes.block_floats() + RowBuffers::floats(&workload.shape, workload.voxels[2]) }
}

/// Refuses a field whose arrays do not fit its layout or hold what no result can come from.
pub(super) fn check_field(operation: &'static str, field: &FieldParameters<'_>) -> Result<(), ComputeError> {
    let layout = field.layout;
    check_len(operation, "tables", field.tables.len(), layout.tables_len())?;
    check_len(operation, "network", field.network.len(), layout.network_len())?;
    check_len(operation, "level_weights", field.level_weights.len(), layout.levels().len())?;
    check_finite(operation, "tables", field.tables)?;
    check_finite(operation, "network", field.network)?;
    check_finite(operation, "level_weights", field.level_weights)
}

/// Refuses NaN and infinity, naming the first.
pub(super) fn check_finite(
    operation: &'static str,
    parameter: &'static str,
    values: &[f32],
) -> Result<(), ComputeError> {
    const TASK: usize = 1 << 15;
    // Without a branch in the loop, so that it runs in lanes.
    let bad = |part: &[f32]| part.iter().fold(false, |bad, value| bad | !value.is_finite());
    let Some(task) = values.par_chunks(TASK).position_first(bad) else { return Ok(()) };
    let part = &values[task * TASK..];
    let Some((index, &value)) = part.iter().enumerate().find(|(_, value)| !value.is_finite()) else { return Ok(()) };
    Err(ComputeError::Value { operation, parameter, index: task * TASK + index, value, requirement: "must be finite" })
}

/// See [`super::super::field::FieldCompute::field_voxelise`].
pub(super) fn field_voxelise(
    simd: SimdLevel,
    scratch: &Scratch,
    grid: &VolumeGrid,
    field: &FieldParameters<'_>,
    jitter: Option<FieldJitter>,
    volume: &mut [f32],
) -> Result<(), ComputeError> {
    check_field(OPERATION, field)?;
    if volume.is_empty() {
        return Ok(());
    }
    let workload = FieldWorkload {
        shape: *field.layout.shape(),
        voxels: grid.voxels,
        box_mm: field.layout.size_mm().to_array(),
        rays: 0,
    };
    let _taken = scratch.take(OPERATION, need(&workload))?;
    let plan = RowPlan::new(grid, field, jitter);
    let sizes = Sizes::of(field.layout.shape());
    volume.par_chunks_mut(GROUP * grid.voxels[2]).enumerate().with_max_len(1).for_each(|(group, voxels)| {
        let mut buffer = scratch.of_this_thread();
        voxelise_group(simd, &plan, &sizes, field, group * GROUP, buffer.floats(), voxels);
    });
    Ok(())
}

/// Some rows from row `first` on.
#[inline(always)]
unsafe fn voxelise_group_body<W: FieldLanes>(
    plan: &RowPlan,
    sizes: &Sizes,
    field: &FieldParameters<'_>,
    first: usize,
    floats: &mut [f32],
    voxels: &mut [f32],
) {
    let (mut block, rest) = Block::cut(sizes, floats);
    let mut buffers = RowBuffers::cut(plan, rest);
    for (index, voxels) in voxels.chunks_exact_mut(plan.row_voxels()).enumerate() {
        let row = plan.row(first + index, &mut buffers);
        voxels.fill(0.0);
        if row.points == 0 {
            continue;
        }
        let voxels = &mut voxels[row.first..row.first + row.points];
        // SAFETY: the caller's; the field's lengths have been checked.
        unsafe {
            plan.place::<W>(&row, &mut buffers);
            plan.build_lines::<W>(&row, field.tables, &mut buffers);
            for p in (0..row.points).step_by(POINTS) {
                plan.interpolate::<W>(p, &buffers, block.features);
                block.gather_inputs::<W>(sizes);
                block.forward::<W>(sizes, field.network);
                let count = POINTS.min(row.points - p);
                voxels[p..p + count].copy_from_slice(&block.values[..count]);
            }
        }
    }
}
at_each_level!(
    /// See [`voxelise_group_body`].
    voxelise_group => voxelise_group_body(
        plan: &RowPlan,
        sizes: &Sizes,
        field: &FieldParameters<'_>,
        first: usize,
        floats: &mut [f32],
        voxels: &mut [f32],
    )
);
