//! Resampling along z without SIMD, and the reference of the SIMD kernels.

#![forbid(unsafe_code)]

use super::Ray;
use super::transpose::MARGIN;

/// Adds `blend(v(z))` to each voxel of the column.
pub(super) fn add_to_column(ray: &Ray<'_>, voxels: &mut [f32]) {
    let (first, end) = ray.z_range(voxels.len());
    let stride = ray.layout.stride;
    let (left, right) = ray.pair.split_at(stride);
    let [a, b] = ray.weights;
    for (z, voxel) in voxels.iter_mut().enumerate().take(end).skip(first) {
        // Rows below zero lie in the margin.
        let position = ray.row + z as f64 * ray.step + MARGIN as f64;
        let index = (position as usize).min(stride - 2);
        let part = (position - index as f64) as f32;
        let (low, high) = (a * left[index] + b * right[index], a * left[index + 1] + b * right[index + 1]);
        *voxel += low + part * (high - low);
    }
}
