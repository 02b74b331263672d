//! Resampling along z without SIMD, and the reference of the SIMD kernels.

#![forbid(unsafe_code)]

use super::LINE;
use super::transpose::MARGIN;
use super::view::{Rays, View};

/// Adds one view to a line of columns; see `super::add_to_line`.
pub(super) fn add_to_line(view: &View<'_>, ix: usize, iy: usize, height: usize, line: &mut [f32]) {
    let padded = height.next_multiple_of(LINE);
    let rays = view.rays(ix, iy, line.len() / padded, height);
    for (i, column) in line.chunks_exact_mut(padded).enumerate() {
        add_to_column(view, &rays, i, column);
    }
}

/// Adds `blend(v(z))` to the voxels of ray `i`.
pub(super) fn add_to_column(view: &View<'_>, rays: &Rays, i: usize, column: &mut [f32]) {
    let stride = view.layout.stride;
    let (left, right) = rays.pair(i, view).split_at(stride);
    let [a, b] = [rays.weights[0][i], rays.weights[1][i]];
    for (z, voxel) in column.iter_mut().enumerate().take(rays.end[i]).skip(rays.first[i]) {
        let position = rays.row[i] + z as f64 * rays.step[i] + MARGIN as f64;
        // Rows of -1 and below lie in the margin; the clamps hold what rounding could push further.
        let index = (position as usize).min(stride - 2);
        let part = (position - index as f64) as f32;
        let (low, high) = (a * left[index] + b * right[index], a * left[index + 1] + b * right[index + 1]);
        *voxel += low + part * (high - low);
    }
}
