//! The adjoint of [`super::field_voxelise`]: from a gradient by voxels to one by tables and network.
//!
//! **In chunks of rows, two passes each.** First the rows, in groups: the forward pass anew, back through the network, and each row's gradient
//! by its *lines* (see [`super::field_rows`]); each group sums its own gradient by the network. Then the tables: one task for each feature of
//! each level adds all lines of the chunk, in the rows' order. The groups' network gradients are added in their order. No atomics; who does what does not change
//! a bit.
//!
//! **Work a voxel.** `4 m / 16` register operations for the network of `m` weights (264 for 32 inputs, 2 x 32: 132 periods on two vector
//! units), besides the encoding about 8 instructions a level and pair of features for the sums, and for the tables `8 nodes / row` loads,
//! multiply-adds and stores. **Bytes.** A row's lines (about `2 nodes` floats summed over levels) are written and read once, in a chunk of 4 MB; the tables' gradients
//! are read and written once a column about a row.

// Generic SIMD.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::field::{FieldJitter, FieldParameters, FieldWorkload, HostFieldGradients};
use super::check_len;
use super::field_lanes::FieldLanes;
use super::field_network::{Block, POINTS, Sizes, transposed};
use super::field_rows::{Row, RowBuffers, RowPlan, most_lines};
use super::field_tables::each_feature;
use super::field_voxelise::{GROUP, check_field, check_finite};
use super::gaussian_lanes::at_each_level;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::VolumeGrid;

const OPERATION: &str = "field_voxelise_backward";

/// Most groups of a chunk, and floats that its lines may take (if one group's do not need more).
const GROUPS: usize = 64;
const LINES: usize = 1 << 20;

/// Floats that a row's place takes: x, y, number of points, and one to spare.
const PLACE: usize = 4;

/// Sizes of the parts of the shared scratch: turned weights, groups' network gradients, places, lines.
fn parts(workload: &FieldWorkload) -> [usize; 4] {
    let sizes = Sizes::of(&workload.shape);
    let lines = LINES.max(GROUP * most_lines(&workload.shape, workload.voxels[2]));
    [sizes.transposed_floats(), GROUPS * workload.shape.network_len(), GROUPS * GROUP * PLACE, lines]
        .map(|floats| floats.next_multiple_of(16))
}

/// Scratch of this operation.
pub(super) fn need(workload: &FieldWorkload) -> Need {
    Need { shared: parts(workload).iter().sum(), per_thread: super::field_voxelise::need(workload).per_thread }
}

/// See [`super::super::field::FieldCompute::field_voxelise_backward`].
pub(super) fn field_voxelise_backward(
    simd: SimdLevel,
    scratch: &Scratch,
    grid: &VolumeGrid,
    field: &FieldParameters<'_>,
    jitter: Option<FieldJitter>,
    by_volume: &[f32],
    gradients: &mut HostFieldGradients<'_>,
) -> Result<(), ComputeError> {
    check_field(OPERATION, field)?;
    check_len(OPERATION, "gradients.tables", gradients.tables.len(), field.tables.len())?;
    check_len(OPERATION, "gradients.network", gradients.network.len(), field.network.len())?;
    check_finite(OPERATION, "by_volume", by_volume)?;
    if by_volume.is_empty() {
        return Ok(());
    }
    let shape = *field.layout.shape();
    let workload = FieldWorkload { shape, voxels: grid.voxels, box_mm: field.layout.size_mm().to_array(), rays: 0 };
    let mut whole = scratch.take(OPERATION, need(&workload))?;
    let plan = RowPlan::new(grid, field, jitter);
    let sizes = Sizes::of(&shape);
    let [turned, by_network, places, lines] = parts(&workload);
    let (turned, rest) = whole.floats().split_at_mut(turned);
    let (by_network, rest) = rest.split_at_mut(by_network);
    let (places, rest) = rest.split_at_mut(places);
    let lines = &mut rest[..lines];
    transposed(&sizes, field.network, turned);
    let turned = &*turned;

    let row_lines = plan.lines.max(1);
    let groups = (lines.len() / (GROUP * row_lines)).clamp(1, GROUPS);
    let (row, network) = (grid.voxels[2], shape.network_len());
    for (chunk, by_volume) in by_volume.chunks(groups * GROUP * row).enumerate() {
        let first = chunk * groups * GROUP;
        let rows = by_volume.len() / row;
        let tasks = by_volume
            .par_chunks(GROUP * row)
            .zip(by_network.par_chunks_mut(network))
            .zip(places.par_chunks_mut(GROUP * PLACE).zip(lines.par_chunks_mut(GROUP * row_lines)));
        tasks.enumerate().with_max_len(1).for_each(|(group, ((by, by_network), (places, lines)))| {
            let mut buffer = scratch.of_this_thread();
            let out = GroupOut { by_network, places, lines };
            backward_group(simd, &plan, &sizes, field, turned, first + group * GROUP, buffer.floats(), by, out);
        });
        for of_group in by_network.chunks_exact(network).take(rows.div_ceil(GROUP)) {
            gradients.network.iter_mut().zip(of_group).for_each(|(sum, by)| *sum += by);
        }
        let (places, lines) = (&*places, &*lines);
        each_feature(field.layout, gradients.tables, &|level, feature, table| {
            add_feature(simd, &plan, [level, feature], [rows, row_lines], places, lines, table);
        });
    }
    Ok(())
}

/// What a group of rows leaves.
struct GroupOut<'a> {
    by_network: &'a mut [f32],
    places: &'a mut [f32],
    lines: &'a mut [f32],
}

/// One feature of one level: its lines, in the order of the rows.
#[inline(always)]
unsafe fn add_feature_body<W: FieldLanes>(
    plan: &RowPlan,
    which: [usize; 2],
    [rows, row_lines]: [usize; 2],
    places: &[f32],
    lines: &[f32],
    table: &mut [f32],
) {
    for (place, lines) in places.chunks_exact(PLACE).zip(lines.chunks_exact(row_lines)).take(rows) {
        let row = Row { x_mm: place[0], y_mm: place[1], first: 0, points: place[2] as usize };
        if row.points > 0 {
            // SAFETY: the caller's.
            unsafe { plan.add_line::<W>(which, &row, lines, table) };
        }
    }
}
at_each_level!(
    /// See [`add_feature_body`].
    add_feature => add_feature_body(
        plan: &RowPlan,
        which: [usize; 2],
        rows: [usize; 2],
        places: &[f32],
        lines: &[f32],
        table: &mut [f32],
    )
);

/// The first pass for some rows from row `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn backward_group_body<W: FieldLanes>(
    plan: &RowPlan,
    sizes: &Sizes,
    field: &FieldParameters<'_>,
    turned: &[f32],
    first: usize,
    floats: &mut [f32],
    by_voxels: &[f32],
    out: GroupOut<'_>,
) {
    let (mut block, rest) = Block::cut(sizes, floats);
    let mut buffers = RowBuffers::cut(plan, rest);
    out.by_network.fill(0.0);
    let rows = by_voxels.chunks_exact(plan.row_voxels());
    let places = out.places.chunks_exact_mut(PLACE).zip(out.lines.chunks_exact_mut(plan.lines.max(1)));
    for (index, (by_voxels, (place, lines))) in rows.zip(places).enumerate() {
        place.fill(0.0);
        // Nothing comes of no gradient.
        if by_voxels.iter().all(|&by| by == 0.0) {
            continue;
        }
        let row = plan.row(first + index, &mut buffers);
        if row.points == 0 {
            continue;
        }
        place[..3].copy_from_slice(&[row.x_mm, row.y_mm, row.points as f32]);
        let by_voxels = &by_voxels[row.first..row.first + row.points];
        plan.clear_sums(&mut buffers);
        // SAFETY: the caller's; the field's lengths have been checked.
        unsafe {
            plan.place::<W>(&row, &mut buffers);
            plan.build_lines::<W>(&row, field.tables, &mut buffers);
            for p in (0..row.points).step_by(POINTS) {
                plan.interpolate::<W>(p, &buffers, block.features);
                block.gather_inputs::<W>(sizes);
                block.forward::<W>(sizes, field.network);
                let count = POINTS.min(row.points - p);
                block.by_values[..count].copy_from_slice(&by_voxels[p..p + count]);
                block.by_values[count..].fill(0.0);
                block.backward::<W>(sizes, field.network, turned, out.by_network);
                plan.add_points(p, &mut buffers, block.gradient, sizes.wide);
            }
        }
        plan.finish_lines(&buffers, lines);
    }
}
at_each_level!(
    /// See [`backward_group_body`].
    backward_group => backward_group_body(
        plan: &RowPlan,
        sizes: &Sizes,
        field: &FieldParameters<'_>,
        turned: &[f32],
        first: usize,
        floats: &mut [f32],
        by_voxels: &[f32],
        out: GroupOut<'_>,
    )
);
