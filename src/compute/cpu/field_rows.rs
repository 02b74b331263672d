//! How rows of voxels lie in a field: which points of a row lie in the box, and where in each level's lines ([`super::field_lines`]).

// Generic SIMD over buffers whose bounds the plan settles.
#![allow(unsafe_code)]

use glam::DVec3;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::field::{FieldJitter, FieldLevel, FieldParameters, FieldShape};
use super::field_lanes::FieldLanes;
use super::field_network::POINTS;
use crate::geometry::VolumeGrid;

/// Floats that may be read behind a line.
const BEHIND: usize = 32;

/// Largest number of levels.
pub(super) const LEVELS: usize = 32;

/// One level as the rows of a grid see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowLevel {
    pub(super) level: FieldLevel,
    /// The level's own weight; 0: left out.
    pub(super) weight: f32,
    /// Nodes a mm.
    pub(super) per_mm: f32,
    /// Position along z, in cells: `z * z_step + z_start` for z in voxels from the grid's lower face.
    z_step: f32,
    z_start: f32,
    /// Node of a line's first entry.
    pub(super) first_node: u32,
    /// Entries of a line.
    pub(super) count: usize,
    /// Whether lines hold two nodes a point instead of all between the first and the last.
    pub(super) sparse: bool,
    /// Where the level's lines start in a row's, and the floats from one feature's to the next.
    pub(super) line: usize,
    pub(super) stride: usize,
}

/// How the rows of a grid lie in a field.
#[derive(Debug, Clone)]
pub(super) struct RowPlan {
    pub(super) levels: [Option<RowLevel>; LEVELS],
    count: usize,
    pub(super) features: usize,
    grid: VolumeGrid,
    /// Of the box, from the grid's lower corner.
    low_mm: DVec3,
    size_mm: DVec3,
    /// Voxels along z that may have a point in the box.
    along: [usize; 2],
    jitter: Option<FieldJitter>,
    /// Floats of one row's lines.
    pub(super) lines: usize,
}

/// One row: where it lies, and its points within the box.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// From the box's lower corner; x is negative where the row has no point in the box.
    pub(super) x_mm: f32,
    pub(super) y_mm: f32,
    /// First voxel along z with a point in the box, and the number of them.
    pub(super) first: usize,
    pub(super) points: usize,
}

/// Buffers of a thread for one row.
#[derive(Debug)]
pub(super) struct RowBuffers<'a> {
    /// Positions along z in voxels from the grid's lower face, `[point]`.
    z: &'a mut [f32],
    /// `[level][point]`: entry in the line, and share of the entry behind it.
    pub(super) cells: &'a mut [i32],
    pub(super) shares: &'a mut [f32],
    /// `[level][feature][entry]`.
    pub(super) lines: &'a mut [f32],
    /// `[level][feature pair][entry]` of four sums: gradients of both features, and these times the share.
    pub(super) sums: &'a mut [f32],
}

impl RowBuffers<'_> {
    /// Floats for rows of `voxels` voxels, of any field of this shape.
    pub(super) fn floats(shape: &FieldShape, voxels: usize) -> usize {
        let points = voxels.next_multiple_of(POINTS);
        points * (1 + 2 * shape.levels) + 3 * most_lines(shape, voxels)
    }
}

/// Most entries of a line.
fn most_entries(voxels: usize) -> usize {
    2 * voxels + 64
}

/// Most floats of a row's lines.
pub(super) fn most_lines(shape: &FieldShape, voxels: usize) -> usize {
    shape.levels * (shape.features + 1) * (most_entries(voxels) + BEHIND).next_multiple_of(16)
}

impl<'a> RowBuffers<'a> {
    pub(super) fn cut(plan: &RowPlan, floats: &'a mut [f32]) -> Self {
        let points = plan.grid.voxels[2].next_multiple_of(POINTS);
        let (z, rest) = floats.split_at_mut(points);
        let (cells, rest) = rest.split_at_mut(points * plan.count);
        let (shares, rest) = rest.split_at_mut(points * plan.count);
        let (lines, rest) = rest.split_at_mut(plan.lines);
        let sums = &mut rest[..2 * plan.lines];
        lines.fill(0.0);
        Self { z, cells: bytemuck::cast_slice_mut(cells), shares, lines, sums }
    }
}

impl RowPlan {
    pub(super) fn new(grid: &VolumeGrid, field: &FieldParameters<'_>, jitter: Option<FieldJitter>) -> Self {
        let layout = field.layout;
        let shape = layout.shape();
        let voxels = grid.voxels[2];
        let corner = grid.centre_mm - 0.5 * grid.size_mm();
        let low_mm = layout.low_mm() - corner;
        let size_mm = layout.size_mm();
        let voxel = grid.voxel_mm.z;
        // Voxels that touch the box, with one more where rounding might hide it: `row` looks at each point that may lie outside.
        let along = [
            ((low_mm.z / voxel).floor() - 1.0).clamp(0.0, voxels as f64) as usize,
            (((low_mm.z + size_mm.z) / voxel).ceil() + 1.0).clamp(0.0, voxels as f64) as usize,
        ];
        let mut plan = Self {
            levels: [None; LEVELS],
            count: shape.levels,
            features: shape.features,
            grid: *grid,
            low_mm,
            size_mm,
            along,
            jitter,
            lines: 0,
        };
        for (index, (level, &weight)) in layout.levels().iter().zip(field.level_weights).enumerate() {
            if weight == 0.0 {
                continue;
            }
            let cells = (level.nodes[2] - 1) as f64;
            let at = |k: usize| ((k as f64 * voxel - low_mm.z) / level.cell_mm).clamp(0.0, cells);
            // A hair more than rounding can take.
            let mut first_node = (at(along[0]) - 0.01).max(0.0).floor() as usize;
            let last_node = ((at(along[1]) + 0.01).floor() as usize + 1).min(level.nodes[2] - 1).max(1);
            first_node = first_node.min(last_node - 1);
            if level.hashed {
                // Blocks of lanes stay blocks after the exclusive or.
                first_node -= first_node % 16;
            }
            let (count, sparse) = match last_node + 1 - first_node {
                count if count <= most_entries(voxels) => (count, false),
                _ => (2 * voxels, true),
            };
            let stride = (count + BEHIND).next_multiple_of(16);
            plan.levels[index] = Some(RowLevel {
                level: *level,
                weight,
                per_mm: (1.0 / level.cell_mm) as f32,
                z_step: (voxel / level.cell_mm) as f32,
                z_start: (-low_mm.z / level.cell_mm) as f32,
                first_node: first_node as u32,
                count,
                sparse,
                line: plan.lines,
                stride,
            });
            // A sparse level's nodes stand behind its features.
            plan.lines += stride * (shape.features + usize::from(sparse));
        }
        plan
    }

    /// Voxels of a row.
    pub(super) fn row_voxels(&self) -> usize {
        self.grid.voxels[2]
    }

    /// Points that the buffers hold a level.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.grid.voxels[2].next_multiple_of(POINTS)
    }

    /// Levels that take part.
    pub(super) fn active(&self) -> impl Iterator<Item = (usize, &RowLevel)> {
        let used = self.levels[..self.count].iter().enumerate();
        used.filter_map(|(index, level)| level.as_ref().map(|level| (index, level)))
    }

    /// The row number `row` of the grid (`ix * ny + iy`): its points along z are left in `buffers`.
    pub(super) fn row(&self, row: usize, buffers: &mut RowBuffers<'_>) -> Row {
        let outside = Row { x_mm: -1.0, y_mm: 0.0, first: 0, points: 0 };
        let [_, rows, voxels] = self.grid.voxels;
        let mut random = self.jitter.map(|jitter| stream(jitter, row as u64));
        let mut offset = || random.as_mut().map_or(0.5, |random| random.random::<f32>());
        let (x, y) = ((row / rows) as f64 + f64::from(offset()), (row % rows) as f64 + f64::from(offset()));
        let mut within = [0.0; 2];
        for axis in 0..2 {
            let at = [x, y][axis] * self.grid.voxel_mm[axis] - self.low_mm[axis];
            if !self.holds(axis, at) {
                return outside;
            }
            within[axis] = at.clamp(0.0, self.size_mm[axis]) as f32;
        }
        for (k, z) in buffers.z[..voxels].iter_mut().enumerate() {
            *z = k as f32 + offset();
        }
        let inside = |z: f32| self.holds(2, f64::from(z) * self.grid.voxel_mm.z - self.low_mm.z);
        let [mut first, mut end] = self.along;
        while first < end && !inside(buffers.z[first]) {
            first += 1;
        }
        while first < end && !inside(buffers.z[end - 1]) {
            end -= 1;
        }
        let points = end - first;
        if points == 0 {
            return outside;
        }
        buffers.z.copy_within(first..end, 0);
        let last = buffers.z[points - 1];
        buffers.z[points..points.next_multiple_of(POINTS)].fill(last);
        Row { x_mm: within[0], y_mm: within[1], first, points }
    }

    /// Whether a coordinate from the box's lower face lies in the box. The faces belong to it, rounding included.
    fn holds(&self, axis: usize, at_mm: f64) -> bool {
        let hair = 1e-9 * (self.size_mm[axis] + self.low_mm[axis].abs());
        (-hair..=self.size_mm[axis] + hair).contains(&at_mm)
    }

    /// Works out where the row's points lie in each level.
    ///
    /// # Safety
    /// As [`super::gaussian_lanes::Wide`].
    #[inline(always)]
    pub(super) unsafe fn place<W: FieldLanes>(&self, row: &Row, buffers: &mut RowBuffers<'_>) {
        let points = row.points.next_multiple_of(POINTS);
        let stride = self.stride();
        for (index, level) in self.active() {
            let cells = (level.level.nodes[2] - 1) as f32;
            // SAFETY: the caller's; `points` is a multiple of N within the buffers.
            unsafe {
                let zero = W::splat(0.0);
                let (step, start) = (W::splat(level.z_step), W::splat(level.z_start));
                let (most, most_cell) = (W::splat(cells), W::splat(cells - 1.0));
                let (first, last) = (W::splat(level.first_node as f32), W::splat((level.count - 2) as f32));
                for p in (0..points).step_by(W::N) {
                    let z = W::load(buffers.z.as_ptr().add(p));
                    let at = W::max(zero, W::min(W::fma(z, step, start), most));
                    let cell = W::min(W::floor(at), most_cell);
                    W::store(buffers.shares.as_mut_ptr().add(index * stride + p), W::sub(at, cell));
                    // Held to the line whatever the rounding.
                    let entry = W::max(zero, W::min(W::sub(cell, first), last));
                    let to = buffers.cells.as_mut_ptr().add(index * stride + p);
                    if level.sparse {
                        let nodes = buffers.lines[level.line + self.features * level.stride..].as_mut_ptr();
                        for q in 0..W::N {
                            // Padding points share the last point's entries.
                            let point = (p + q).min(row.points - 1);
                            *to.add(q) = 2 * point as i32;
                        }
                        let mut these = [0.0f32; 16];
                        W::store(these.as_mut_ptr(), cell);
                        for (q, &node) in these[..W::N].iter().enumerate().filter(|(q, _)| p + q < row.points) {
                            *nodes.add(2 * (p + q)) = node;
                            *nodes.add(2 * (p + q) + 1) = node + 1.0;
                        }
                    } else {
                        W::store_whole(to, entry);
                    }
                }
            }
        }
    }
}

/// Cell of a position in cells, and the share of the node behind it.
#[inline(always)]
pub(super) fn cell(at: f32, nodes: usize) -> (u32, f32) {
    let at = at.clamp(0.0, (nodes - 1) as f32);
    let cell = (at as u32).min(nodes as u32 - 2);
    (cell, at - cell as f32)
}

/// Random numbers of one row or ray.
pub(super) fn stream(jitter: FieldJitter, stream: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&jitter.seed.to_le_bytes());
    key[8..16].copy_from_slice(&jitter.iteration.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    random.set_stream(stream);
    random
}
