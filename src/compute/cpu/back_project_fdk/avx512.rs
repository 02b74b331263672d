//! Resampling along z with AVX-512: sixteen voxels a step, pixels by register permutes.

#![allow(unsafe_code)] // SIMD.

use std::arch::x86_64::*;

use super::Ray;
use super::transpose::MARGIN;

/// Voxels of a step.
const LANES: usize = 16;

/// Fractional bits of a fixed-point row.
const FRACTION: u32 = 32;

/// Adds `blend(v(z))` to each voxel of the column.
///
/// # Safety
/// AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
pub(super) unsafe fn add_to_column(ray: &Ray<'_>, voxels: &mut [f32]) {
    // 15 steps and one pixel of interpolation must stay within the pixels in the registers: 16, 32, or 32 for each half.
    // SAFETY: the features are this function's own; `resample` checks the rows it reads.
    unsafe {
        if ray.step <= 14.0 / 15.0 {
            resample::<1>(ray, voxels);
        } else if ray.step <= 2.0 {
            resample::<2>(ray, voxels);
        } else if ray.step <= 4.0 {
            resample::<4>(ray, voxels);
        } else {
            super::plain::add_to_column(ray, voxels);
        }
    }
}

/// `REACH`: registers of pixels that a step may touch: 1 (steps up to 14/15 row), 2 (up to 2 rows) or 4 (up to 4 rows, two for
/// each half of the lanes).
///
/// # Safety
/// AVX-512 F and DQ; `ray.step` within the limit of `REACH`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
unsafe fn resample<const REACH: usize>(ray: &Ray<'_>, voxels: &mut [f32]) {
    let (first, end) = ray.z_range(voxels.len());
    if first >= end {
        return;
    }
    let stride = ray.layout.stride;
    let (first_block, end_block) = (first / LANES, end.div_ceil(LANES));
    let scale = (1_u64 << FRACTION) as f64;
    let step = (ray.step * (LANES as f64) * scale) as i64;
    let half_step = step / 2;
    let start = ((ray.row + MARGIN as f64) * scale) as i64;
    let at = |block: usize| start.wrapping_add(step.wrapping_mul(block as i64));
    // Positions grow with the block, so the first and the last settle that all reads stay in the column and its margins.
    let furthest = |block: usize| {
        let base = at(block).wrapping_add(if REACH == 4 { half_step } else { 0 });
        (base >> FRACTION) + if REACH == 1 { 16 } else { 32 }
    };
    if at(first_block) < 0 || furthest(end_block - 1) > stride as i64 {
        return super::plain::add_to_column(ray, voxels);
    }
    debug_assert_eq!(ray.pair.len(), 2 * stride);
    // SAFETY: pixels: the check above. Voxels: whole steps end at `voxels.len()` or are masked.
    unsafe {
        let left = ray.pair.as_ptr();
        let right = left.add(stride);
        let (a, b) = (_mm512_set1_ps(ray.weights[0]), _mm512_set1_ps(ray.weights[1]));
        let lane = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
        let lane = if REACH == 4 { _mm512_mask_sub_ps(lane, 0xff00, lane, _mm512_set1_ps(8.0)) } else { lane };
        let rows_of_lane = _mm512_mul_ps(lane, _mm512_set1_ps(ray.step as f32));
        let one = _mm512_set1_epi32(1);
        let blend = |row: i64| {
            let (l, r) = (_mm512_loadu_ps(left.offset(row as isize)), _mm512_loadu_ps(right.offset(row as isize)));
            _mm512_fmadd_ps(a, l, _mm512_mul_ps(b, r))
        };
        // The 24 upper bits of the fraction are what a float holds.
        let fraction = |position: i64| ((position as u32 >> 8) as i32 as f32) * (1.0 / 16_777_216.0);
        let mut position = at(first_block);
        for block in first_block..end_block {
            let row = position >> FRACTION;
            let (offset, low, high);
            match REACH {
                1 => {
                    offset = _mm512_add_ps(rows_of_lane, _mm512_set1_ps(fraction(position)));
                    let index = _mm512_cvttps_epi32(offset);
                    let pixels = blend(row);
                    low = _mm512_permutexvar_ps(index, pixels);
                    high = _mm512_permutexvar_ps(_mm512_add_epi32(index, one), pixels);
                }
                2 => {
                    offset = _mm512_add_ps(rows_of_lane, _mm512_set1_ps(fraction(position)));
                    let index = _mm512_cvttps_epi32(offset);
                    let (p, q) = (blend(row), blend(row + 16));
                    low = _mm512_permutex2var_ps(p, index, q);
                    high = _mm512_permutex2var_ps(p, _mm512_add_epi32(index, one), q);
                }
                _ => {
                    let middle = position + half_step;
                    let row_middle = middle >> FRACTION;
                    let begin = _mm512_mask_mov_ps(
                        _mm512_set1_ps(fraction(position)),
                        0xff00,
                        _mm512_set1_ps(fraction(middle)),
                    );
                    offset = _mm512_add_ps(rows_of_lane, begin);
                    let index = _mm512_cvttps_epi32(offset);
                    let next = _mm512_add_epi32(index, one);
                    let (p, q) = (blend(row), blend(row + 16));
                    let (r, s) = (blend(row_middle), blend(row_middle + 16));
                    let pick = |index| {
                        _mm512_mask_mov_ps(
                            _mm512_permutex2var_ps(p, index, q),
                            0xff00,
                            _mm512_permutex2var_ps(r, index, s),
                        )
                    };
                    low = pick(index);
                    high = pick(next);
                }
            }
            // Offset less its whole part.
            let part = _mm512_reduce_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(offset);
            let value = |sum| _mm512_fmadd_ps(part, _mm512_sub_ps(high, low), _mm512_add_ps(sum, low));
            let left_over = voxels.len() - block * LANES;
            let voxel = voxels.as_mut_ptr().add(block * LANES);
            if left_over >= LANES {
                _mm512_storeu_ps(voxel, value(_mm512_loadu_ps(voxel)));
            } else {
                let mask = (1_u16 << left_over) - 1;
                _mm512_mask_storeu_ps(voxel, mask, value(_mm512_maskz_loadu_ps(mask, voxel)));
            }
            position += step;
        }
    }
}
