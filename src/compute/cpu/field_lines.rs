//! A field's features along a row of voxels, and their adjoint.
//!
//! All points of a row share x and y. In each level they lie between the same four columns of nodes, whose sum, weighted by the distances
//! in x and y, is one *line* of nodes along z for each feature; the row's points interpolate in that line. The four columns are read as whole
//! registers (nodes along z are neighbours, hashed or not), the line stays in the first-level cache: some 1.5 register operations a
//! point and level instead of 8 gathers. Where nodes lie far closer than voxels the line holds only the two nodes about each point.
//!
//! **The adjoint** adds each point's gradient to its two nodes of a line, and each line to its four columns; the latter for all rows of a chunk
//! in their order, each feature of each level by one task ([`super::field_voxelise_backward`]): no two tasks write to the same place.

// Generic SIMD over lines whose bounds the plan settles.
#![allow(unsafe_code)]

use super::field_lanes::FieldLanes;
use super::field_network::POINTS;
use super::field_rows::{LEVELS, Row, RowBuffers, RowLevel, RowPlan, cell};

impl RowPlan {
    /// Builds the row's lines.
    ///
    /// # Safety
    /// As [`super::gaussian_lanes::Wide`]; `tables` must have the layout's length.
    #[inline(always)]
    pub(super) unsafe fn build_lines<W: FieldLanes>(&self, row: &Row, tables: &[f32], buffers: &mut RowBuffers<'_>) {
        for (_, level) in self.active() {
            let (columns, weights) = level.columns(row.x_mm, row.y_mm);
            for f in 0..self.features {
                // SAFETY: the caller's; the plan keeps nodes within the level's.
                unsafe {
                    let plane = tables.as_ptr().add(level.level.first + f * level.level.entries);
                    let line = buffers.lines.as_mut_ptr().add(level.line + f * level.stride);
                    if level.sparse {
                        let nodes = buffers.lines.as_ptr().add(level.line + self.features * level.stride);
                        for k in 0..2 * row.points {
                            let node = *nodes.add(k) as u32;
                            let mut sum = 0.0;
                            for (&column, &weight) in columns.iter().zip(&weights) {
                                sum += *plane.add(level.entry(column, node)) * weight;
                            }
                            *line.add(k) = sum;
                        }
                        continue;
                    }
                    let weights =
                        [W::splat(weights[0]), W::splat(weights[1]), W::splat(weights[2]), W::splat(weights[3])];
                    for k in (0..level.count).step_by(W::N) {
                        let mut sum = W::splat(0.0);
                        for (&column, &weight) in columns.iter().zip(&weights) {
                            let node = level.first_node + k as u32;
                            let values = if level.level.hashed {
                                let (block, flip) = level.block::<W>(column, node);
                                W::flip(W::load(plane.add(block)), flip)
                            } else {
                                W::load_first(plane.add((column + node) as usize), level.count - k)
                            };
                            sum = W::fma(values, weight, sum);
                        }
                        W::store(line.add(k), sum);
                    }
                }
            }
        }
    }

    /// Features of the `POINTS` points from `p` on, `[input][POINTS]`.
    ///
    /// # Safety
    /// As [`super::gaussian_lanes::Wide`]; [`Self::place`] and [`Self::build_lines`] must have been run for the row.
    #[inline(always)]
    pub(super) unsafe fn interpolate<W: FieldLanes>(&self, p: usize, buffers: &RowBuffers<'_>, features: &mut [f32]) {
        let stride = self.stride();
        for (index, level) in self.active() {
            for q in (0..POINTS).step_by(W::N) {
                let at = index * stride + p + q;
                // SAFETY: the caller's; entries are held to their lines, behind which BEHIND floats may be read.
                unsafe {
                    W::interpolate(
                        buffers.lines.as_ptr().add(level.line),
                        level.stride,
                        self.features,
                        buffers.cells.as_ptr().add(at),
                        buffers.shares.as_ptr().add(at),
                        features.as_mut_ptr().add(index * self.features * POINTS + q),
                        POINTS,
                    );
                }
            }
        }
    }

    /// Clears the sums of a row.
    pub(super) fn clear_sums(&self, buffers: &mut RowBuffers<'_>) {
        buffers.sums.fill(0.0);
    }

    /// Adds the gradients by the inputs (`[POINTS][wide]`) of the points from `p` on to the sums.
    ///
    /// # Safety
    /// [`Self::place`] must have been run for the row, and `gradient` hold `POINTS * wide` floats, `wide` no less than the inputs.
    #[inline(always)]
    pub(super) unsafe fn add_points(&self, p: usize, buffers: &mut RowBuffers<'_>, gradient: &[f32], wide: usize) {
        let stride = self.stride();
        // Of each level: its first sum, the sums from one pair of features to the next, its first point, its first input.
        let mut levels = [[0; 4]; LEVELS];
        let mut used = 0;
        for (index, level) in self.active() {
            levels[used] = [2 * level.line, 4 * level.stride, index * stride + p, index * self.features];
            used += 1;
        }
        let sums = buffers.sums.as_mut_ptr();
        // Points outside, levels inside: one entry's sum then is not waited for by the next point's.
        for q in 0..POINTS {
            for &[first, step, at, input] in &levels[..used] {
                // SAFETY: the caller's; entries are held to their lines.
                unsafe {
                    let (cell, share) = (buffers.cells.get_unchecked(at + q), *buffers.shares.get_unchecked(at + q));
                    let by = gradient.as_ptr().add(q * wide + input);
                    let to = sums.add(first + 4 * *cell as usize);
                    for pair in 0..self.features / 2 {
                        let (a, b) = (*by.add(2 * pair), *by.add(2 * pair + 1));
                        let these = [a, b, a * share, b * share];
                        let to = &mut *to.add(pair * step).cast::<[f32; 4]>();
                        for (sum, by) in to.iter_mut().zip(these) {
                            *sum += by;
                        }
                    }
                }
            }
        }
    }

    /// The sums as gradients by the row's lines; nodes of sparse levels go along.
    #[inline(always)]
    pub(super) fn finish_lines(&self, buffers: &RowBuffers<'_>, lines: &mut [f32]) {
        for (_, level) in self.active() {
            for pair in 0..self.features / 2 {
                let at = level.line + 2 * pair * level.stride;
                let (first, second) = lines[at..][..2 * level.stride].split_at_mut(level.stride);
                let sums = buffers.sums[2 * at..].chunks_exact(4);
                let (mut a, mut b) = (0.0, 0.0);
                for ((sums, first), second) in sums.zip(&mut first[..level.count]).zip(&mut second[..level.count]) {
                    // A node takes what its own cell leaves and what the cell before hands on.
                    *first = sums[0] - sums[2] + a;
                    *second = sums[1] - sums[3] + b;
                    (a, b) = (sums[2], sums[3]);
                }
                first[level.count..].fill(0.0);
                second[level.count..].fill(0.0);
            }
            if level.sparse {
                let nodes = level.line + self.features * level.stride..level.line + (self.features + 1) * level.stride;
                lines[nodes.clone()].copy_from_slice(&buffers.lines[nodes]);
            }
        }
    }

    /// Adds one row's line of one feature to the four columns it came from. `table` holds that feature of that level.
    ///
    /// # Safety
    /// As [`super::gaussian_lanes::Wide`].
    #[inline(always)]
    pub(super) unsafe fn add_line<W: FieldLanes>(
        &self,
        [index, f]: [usize; 2],
        row: &Row,
        lines: &[f32],
        table: &mut [f32],
    ) {
        let Some(level) = &self.levels[index] else { return };
        let (columns, weights) = level.columns(row.x_mm, row.y_mm);
        let line = &lines[level.line + f * level.stride..][..level.stride];
        if level.sparse {
            let nodes = &lines[level.line + self.features * level.stride..];
            for (&column, &weight) in columns.iter().zip(&weights) {
                for (&by, &node) in line[..2 * row.points].iter().zip(nodes) {
                    table[level.entry(column, node as u32)] += weight * by;
                }
            }
            return;
        }
        for (&column, &weight) in columns.iter().zip(&weights) {
            // SAFETY: the caller's; the plan keeps nodes within the level's.
            unsafe {
                let weight = W::splat(weight);
                for k in (0..level.count).step_by(W::N) {
                    let by = W::load(line.as_ptr().add(k));
                    let node = level.first_node + k as u32;
                    if level.level.hashed {
                        let (block, flip) = level.block::<W>(column, node);
                        let to = table.as_mut_ptr().add(block);
                        W::store(to, W::fma(W::flip(by, flip), weight, W::load(to)));
                    } else {
                        let (to, left) = (table.as_mut_ptr().add((column + node) as usize), level.count - k);
                        W::store_first(to, left, W::fma(by, weight, W::load_first(to, left)));
                    }
                }
            }
        }
    }
}

impl RowLevel {
    /// The four columns of nodes about a point, and their weights.
    #[inline(always)]
    fn columns(&self, x_mm: f32, y_mm: f32) -> ([u32; 4], [f32; 4]) {
        let (x, tx) = cell(x_mm * self.per_mm, self.level.nodes[0]);
        let (y, ty) = cell(y_mm * self.per_mm, self.level.nodes[1]);
        let column = |i, j| self.level.column(x + i, y + j);
        let (low, high) = (self.weight * (1.0 - tx), self.weight * tx);
        (
            [column(0, 0), column(0, 1), column(1, 0), column(1, 1)],
            [low * (1.0 - ty), low * ty, high * (1.0 - ty), high * ty],
        )
    }

    /// Entry of a node in a column.
    #[inline(always)]
    fn entry(&self, column: u32, node: u32) -> usize {
        let entry = if self.level.hashed { (column ^ node) & (self.level.entries as u32 - 1) } else { column + node };
        entry as usize
    }

    /// Where the block of N nodes from `node` on (a multiple of N) lies, and how its lanes are flipped.
    #[inline(always)]
    fn block<W: FieldLanes>(&self, column: u32, node: u32) -> (usize, u32) {
        let lanes = W::N as u32 - 1;
        (((column ^ node) & (self.level.entries as u32 - 1) & !lanes) as usize, column & lanes)
    }
}
