//! Resampling along z with AVX2: eight voxels a step, pixels by register permutes.

#![allow(unsafe_code)] // SIMD.

use std::arch::x86_64::*;

use super::Ray;
use super::transpose::MARGIN;

/// Voxels of a step.
const LANES: usize = 8;

/// Fractional bits of a fixed-point row.
const FRACTION: u32 = 32;

/// Adds `blend(v(z))` to each voxel of the column.
///
/// # Safety
/// AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_to_column(ray: &Ray<'_>, voxels: &mut [f32]) {
    // 7 steps and one pixel of interpolation must stay within the pixels in two registers.
    if ray.step > 2.0 {
        return super::plain::add_to_column(ray, voxels);
    }
    let (first, end) = ray.z_range(voxels.len());
    if first >= end {
        return;
    }
    let stride = ray.layout.stride;
    let (first_block, end_block) = (first / LANES, end.div_ceil(LANES));
    let scale = (1_u64 << FRACTION) as f64;
    let step = (ray.step * (LANES as f64) * scale) as i64;
    let start = ((ray.row + MARGIN as f64) * scale) as i64;
    let at = |block: usize| start.wrapping_add(step.wrapping_mul(block as i64));
    // Positions grow with the block, so the first and the last settle that all reads stay in the column and its margins.
    if at(first_block) < 0 || (at(end_block - 1) >> FRACTION) + 16 > stride as i64 {
        return super::plain::add_to_column(ray, voxels);
    }
    debug_assert_eq!(ray.pair.len(), 2 * stride);
    // SAFETY: pixels: the check above. Voxels: whole steps end at `voxels.len()` or go through a buffer.
    unsafe {
        let left = ray.pair.as_ptr();
        let right = left.add(stride);
        let (a, b) = (_mm256_set1_ps(ray.weights[0]), _mm256_set1_ps(ray.weights[1]));
        let lane = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        let rows_of_lane = _mm256_mul_ps(lane, _mm256_set1_ps(ray.step as f32));
        let (one, seven) = (_mm256_set1_epi32(1), _mm256_set1_epi32(7));
        let blend = |row: i64| {
            let (l, r) = (_mm256_loadu_ps(left.offset(row as isize)), _mm256_loadu_ps(right.offset(row as isize)));
            _mm256_fmadd_ps(a, l, _mm256_mul_ps(b, r))
        };
        let mut position = at(first_block);
        for block in first_block..end_block {
            let row = position >> FRACTION;
            // The 24 upper bits of the fraction are what a float holds.
            let fraction = ((position as u32 >> 8) as i32 as f32) * (1.0 / 16_777_216.0);
            let offset = _mm256_add_ps(rows_of_lane, _mm256_set1_ps(fraction));
            let index = _mm256_cvttps_epi32(offset);
            let (p, q) = (blend(row), blend(row + 8));
            let pick = |index| {
                let beyond = _mm256_castsi256_ps(_mm256_cmpgt_epi32(index, seven));
                _mm256_blendv_ps(_mm256_permutevar8x32_ps(p, index), _mm256_permutevar8x32_ps(q, index), beyond)
            };
            let (low, high) = (pick(index), pick(_mm256_add_epi32(index, one)));
            let part = _mm256_sub_ps(offset, _mm256_cvtepi32_ps(index));
            let value = |sum| _mm256_fmadd_ps(part, _mm256_sub_ps(high, low), _mm256_add_ps(sum, low));
            let rest = &mut voxels[block * LANES..];
            if rest.len() >= LANES {
                _mm256_storeu_ps(rest.as_mut_ptr(), value(_mm256_loadu_ps(rest.as_ptr())));
            } else {
                let mut buffer = [0.0_f32; LANES];
                buffer[..rest.len()].copy_from_slice(rest);
                _mm256_storeu_ps(buffer.as_mut_ptr(), value(_mm256_loadu_ps(buffer.as_ptr())));
                rest.copy_from_slice(&buffer[..rest.len()]);
            }
            position += step;
        }
    }
}
