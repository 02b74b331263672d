//! Resampling along z with AVX2: eight voxels a step, pixels by register permutes, or gathered where voxels are
//! coarser than two of them.

#![allow(unsafe_code)] // SIMD.

use std::arch::x86_64::*;

use super::transpose::MARGIN;
use super::view::{Rays, View};
use super::{LINE, plain};

/// Voxels of a step.
const LANES: usize = 8;

/// Adds one view to a line of columns; see `super::add_to_line`.
///
/// # Safety
/// AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_to_line(
    view: &View<'_>,
    ix: usize,
    iy: usize,
    height: usize,
    line: &mut [f32],
    blend: &mut [f32],
) {
    let padded = height.next_multiple_of(LINE);
    let rays = view.rays(ix, iy, line.len() / padded, height);
    for (i, column) in line.chunks_exact_mut(padded).enumerate() {
        if rays.first[i] >= rays.end[i] {
            continue;
        }
        // SAFETY: the features are this function's own.
        let done = unsafe { add_to_column(view, &rays, i, column, &mut blend[..view.layout.stride]) };
        if !done {
            plain::add_to_column(view, &rays, i, column);
        }
    }
}

/// Adds one ray's blended pixels; false, and nothing done, where rows lie outside the margins.
///
/// # Safety
/// AVX2 and FMA; `column` is padded to whole steps.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_to_column(view: &View<'_>, rays: &Rays, i: usize, column: &mut [f32], blend: &mut [f32]) -> bool {
    let (first, end) = (rays.first[i] / LANES, rays.end[i].div_ceil(LANES));
    let position = |step: usize| rays.row[i] + (step * LANES) as f64 * rays.step[i] + MARGIN as f64;
    // Rows grow with z, so the first and the last step settle that all reads stay in the column and its margins.
    let (low, high) = (position(first), position(end - 1) + 17.0_f64.max(8.0 * rays.step[i] + 2.0));
    if low < 0.0 || high > blend.len() as f64 {
        return false;
    }
    // 7 steps and one pixel of interpolation must stay within the pixels in two registers; else pixels are gathered.
    let coarse = rays.step[i] >= 1.999;
    let pair = rays.pair(i, view);
    let (low, high) = (low as usize / LINE * LINE, (high as usize).next_multiple_of(LINE).min(blend.len()));
    debug_assert!(pair.len() == 2 * blend.len() && blend.len().is_multiple_of(LINE));
    // SAFETY: `low` and `high` are multiples of 16 within both columns and `blend`, which are of the same length; the rows of all
    // steps lie between them, as checked; `column` is padded.
    unsafe {
        let (a, b) = (_mm256_set1_ps(rays.weights[0][i]), _mm256_set1_ps(rays.weights[1][i]));
        let (left, right) = (pair.as_ptr(), pair.as_ptr().add(blend.len()));
        for row in (low..high).step_by(LANES) {
            let right = _mm256_mul_ps(b, _mm256_loadu_ps(right.add(row)));
            _mm256_storeu_ps(blend.as_mut_ptr().add(row), _mm256_fmadd_ps(a, _mm256_loadu_ps(left.add(row)), right));
        }
        let lane = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        let rows_of_lane = _mm256_mul_ps(lane, _mm256_set1_ps(rays.step[i] as f32));
        let (one, seven) = (_mm256_set1_epi32(1), _mm256_set1_epi32(7));
        for step in first..end {
            let start = position(step);
            let row = start as i32;
            let offset = _mm256_add_ps(rows_of_lane, _mm256_set1_ps((start - f64::from(row)) as f32));
            let index = _mm256_cvttps_epi32(offset);
            let from = blend.as_ptr().add(row as usize);
            let next = _mm256_add_epi32(index, one);
            let (low, high) = if coarse {
                (_mm256_i32gather_ps::<4>(from, index), _mm256_i32gather_ps::<4>(from, next))
            } else {
                let (p, q) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
                let pick = |index| {
                    let beyond = _mm256_castsi256_ps(_mm256_cmpgt_epi32(index, seven));
                    _mm256_blendv_ps(_mm256_permutevar8x32_ps(p, index), _mm256_permutevar8x32_ps(q, index), beyond)
                };
                (pick(index), pick(next))
            };
            let part = _mm256_sub_ps(offset, _mm256_cvtepi32_ps(index));
            let voxel = column.as_mut_ptr().add(step * LANES);
            let sum = _mm256_add_ps(_mm256_loadu_ps(voxel), low);
            _mm256_storeu_ps(voxel, _mm256_fmadd_ps(part, _mm256_sub_ps(high, low), sum));
        }
    }
    true
}
