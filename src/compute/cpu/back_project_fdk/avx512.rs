//! Resampling along z with AVX-512: sixteen voxels a step, pixels by register permutes.

#![allow(unsafe_code)] // SIMD.

use std::arch::x86_64::*;

use super::transpose::MARGIN;
use super::view::{RAYS, View};
use super::{LINE, plain};

/// Voxels of a step.
const LANES: usize = 16;

/// Steps whose first rows are worked out together.
const STEPS: usize = 16;

/// Where a view sees [`RAYS`] columns of voxels, ready for the loops. See [`super::view::Rays`], which says the same plainly.
#[repr(C, align(64))]
struct Setup {
    /// Row of the first voxel of the first step, counted with the margin.
    start: [f64; RAYS],
    /// Rows from one voxel to the next.
    step: [f64; RAYS],
    weights: [[f32; RAYS]; 2],
    /// First float of the left detector column in the copy.
    pair: [i32; RAYS],
    first_step: [i32; RAYS],
    end_step: [i32; RAYS],
    /// Columns that the detector sees.
    seen: u8,
    /// Those of them whose rows lie too far apart, or too far out, for the kernel.
    odd: u8,
}

/// Works out [`Setup`].
///
/// # Safety
/// AVX-512 F, DQ and VL.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
unsafe fn set_up(view: &View<'_>, ix: usize, iy: usize, count: usize, height: usize) -> Setup {
    let [u, v, w] = &view.matrix;
    let all = |x: f64| _mm512_set1_pd(x);
    let x = ix as f64;
    let y = _mm512_add_pd(all(iy as f64), _mm512_setr_pd(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0));
    let along = |r: &[f64; 4]| _mm512_fmadd_pd(all(r[1]), y, all(r[0] * x + r[3]));
    let layout = view.layout;
    let (columns, rows, height) = (all(layout.columns as f64 + 1.0), layout.rows as f64, all(height as f64));
    let one = all(1.0);
    let depth = along(w);
    let near = _mm512_div_pd(one, depth);
    let column = _mm512_fmadd_pd(along(u), near, one);
    let row = _mm512_mul_pd(along(v), near);
    let step = _mm512_mul_pd(all(v[2]), near);
    // Rows between -1 and `rows` touch the detector. One voxel too many does no harm: it reads margin.
    let per_row = _mm512_mul_pd(depth, all(1.0 / v[2]));
    let clamp = |z| _mm512_max_pd(_mm512_min_pd(z, height), _mm512_setzero_pd());
    let first = clamp(_mm512_mul_pd(_mm512_sub_pd(all(-1.0), row), per_row));
    let end = clamp(_mm512_fmadd_pd(_mm512_sub_pd(all(rows), row), per_row, one));
    let (first, end) = (_mm512_cvttpd_epi32(first), _mm512_cvttpd_epi32(end));
    let first_step = _mm256_srli_epi32::<4>(first);
    let end_step = _mm256_srli_epi32::<4>(_mm256_add_epi32(end, _mm256_set1_epi32(15)));
    // Steps of 4 rows read 32 pixels from the step's middle on, others 32 from its beginning.
    let sixteen = _mm512_mul_pd(step, all(LANES as f64));
    let base = _mm512_add_pd(row, all(MARGIN as f64));
    let start = _mm512_fmadd_pd(_mm512_cvtepi32_pd(first_step), sixteen, base);
    let last = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm256_sub_epi32(end_step, _mm256_set1_epi32(1))), sixteen, base);
    let furthest = _mm512_add_pd(_mm512_fmadd_pd(step, all(8.0), last), all(33.0));
    // The depth's limit keeps 1/w^2 finite in float32.
    let seen = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(depth, all(1e-6))
        & _mm512_cmp_pd_mask::<_CMP_GT_OQ>(column, _mm512_setzero_pd())
        & _mm512_cmp_pd_mask::<_CMP_LT_OQ>(column, columns)
        & _mm256_cmplt_epi32_mask(first, end)
        & ((1_u32 << count) - 1) as u8;
    let sound = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(start, _mm512_setzero_pd())
        & _mm512_cmp_pd_mask::<_CMP_LE_OQ>(furthest, all(layout.stride as f64))
        & _mm512_cmp_pd_mask::<_CMP_LT_OQ>(step, all(3.999));
    let left = _mm512_cvttpd_epi32(column);
    let part = _mm512_sub_pd(column, _mm512_cvtepi32_pd(left));
    let gain = _mm512_mul_pd(near, near);
    let right_weight = _mm512_mul_pd(part, gain);
    let pair = _mm256_mullo_epi32(left, _mm256_set1_epi32(layout.stride as i32));
    // SAFETY: vectors and arrays of these types have the same size and no invalid values.
    unsafe {
        let doubles = |x: __m512d| std::mem::transmute::<__m512d, [f64; RAYS]>(x);
        let floats = |x: __m512d| std::mem::transmute::<__m256, [f32; RAYS]>(_mm512_cvtpd_ps(x));
        let integers = |x: __m256i| std::mem::transmute::<__m256i, [i32; RAYS]>(x);
        Setup {
            start: doubles(start),
            step: doubles(step),
            weights: [floats(_mm512_sub_pd(gain, right_weight)), floats(right_weight)],
            pair: integers(pair),
            first_step: integers(first_step),
            end_step: integers(end_step),
            seen,
            odd: seen & !sound,
        }
    }
}

/// Adds one view to a line of columns; see `super::add_to_line`.
///
/// # Safety
/// AVX-512 F, DQ, BW and VL, AVX2, FMA.
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
pub(super) unsafe fn add_to_line(view: &View<'_>, ix: usize, iy: usize, height: usize, line: &mut [f32]) {
    let padded = height.next_multiple_of(LINE);
    let (count, stride) = (line.len() / padded, view.layout.stride);
    debug_assert!(count <= RAYS && view.pixels.len() <= i32::MAX as usize);
    // SAFETY: the features are this function's own. `set_up` marks as seen and not odd only columns all of whose rows lie in
    // the detector columns and their margins, and whose steps lie in `line`.
    unsafe {
        let setup = set_up(view, ix, iy, count, height);
        if setup.odd != 0 {
            let rays = view.rays(ix, iy, count, height);
            for i in (0..count).filter(|i| setup.odd >> i & 1 == 1) {
                plain::add_to_column(view, &rays, i, &mut line[i * padded..][..padded]);
            }
        }
        let kernel = setup.seen & !setup.odd;
        for i in (0..count).filter(|i| kernel >> i & 1 == 1) {
            let pair = view.pixels.as_ptr().add(setup.pair[i] as usize);
            let column = line.as_mut_ptr().add(i * padded);
            // 15 steps and one pixel of interpolation must stay within the pixels in the registers: 16, 32, or 32 for each
            // half of the lanes.
            if setup.step[i] < 0.93 {
                resample::<1>(&setup, i, pair, stride, column);
            } else if setup.step[i] < 1.999 {
                resample::<2>(&setup, i, pair, stride, column);
            } else {
                resample::<4>(&setup, i, pair, stride, column);
            }
        }
    }
}

/// Adds ray `i`'s two detector columns (`pair`, `stride` floats each), blended and resampled at each voxel's row, to its voxels.
///
/// `REACH`: registers of pixels that a step may touch: 1 (rows less than 0.93 apart), 2 (less than 1.999) or 4 (less than 3.999; two
/// for each half of the lanes).
///
/// # Safety
/// AVX-512 F, DQ and VL; `set_up` has found ray `i` seen and not odd; its rows lie no further apart than `REACH` allows; `column` is
/// padded to whole steps.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
unsafe fn resample<const REACH: usize>(setup: &Setup, i: usize, pair: *const f32, stride: usize, column: *mut f32) {
    let (mut first, end) = (setup.first_step[i] as usize, setup.end_step[i] as usize);
    let (mut start, step) = (setup.start[i], setup.step[i]);
    // SAFETY: the contract: `set_up` has checked the rows of the first and of the last step, and rows grow between.
    unsafe {
        let eight = _mm512_setr_pd(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        let step_rows = _mm512_set1_pd(step * LANES as f64);
        let lane = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
        let lane = if REACH == 4 { _mm512_mask_sub_ps(lane, 0xff00, lane, _mm512_set1_ps(8.0)) } else { lane };
        let rows_of_lane = _mm512_mul_ps(lane, _mm512_set1_ps(step as f32));
        let one = _mm512_set1_epi32(1);
        let (a, b) = (_mm512_set1_ps(setup.weights[0][i]), _mm512_set1_ps(setup.weights[1][i]));
        // Whole and fractional part of the first rows of 16 steps.
        let split = |start: f64| {
            let low = _mm512_fmadd_pd(eight, step_rows, _mm512_set1_pd(start));
            let high = _mm512_fmadd_pd(_mm512_set1_pd(8.0), step_rows, low);
            let (whole_low, whole_high) = (_mm512_cvttpd_epi32(low), _mm512_cvttpd_epi32(high));
            let rest = |x, whole| _mm512_cvtpd_ps(_mm512_sub_pd(x, _mm512_cvtepi32_pd(whole)));
            let mut rows = [0_i32; STEPS];
            let mut parts = [0.0_f32; STEPS];
            _mm256_storeu_si256(rows.as_mut_ptr().cast(), whole_low);
            _mm256_storeu_si256(rows.as_mut_ptr().add(8).cast(), whole_high);
            _mm256_storeu_ps(parts.as_mut_ptr(), rest(low, whole_low));
            _mm256_storeu_ps(parts.as_mut_ptr().add(8), rest(high, whole_high));
            (rows, parts)
        };
        while first < end {
            let (rows, parts) = split(start);
            let (middle_rows, middle_parts) = if REACH == 4 { split(start + 8.0 * step) } else { (rows, parts) };
            let voxels = column.add(first * LANES);
            for k in 0..STEPS.min(end - first) {
                let from = |row: i32| {
                    let left = pair.add(row as usize);
                    _mm512_fmadd_ps(a, _mm512_loadu_ps(left), _mm512_mul_ps(b, _mm512_loadu_ps(left.add(stride))))
                };
                let mut begin = _mm512_set1_ps(parts[k]);
                if REACH == 4 {
                    begin = _mm512_mask_mov_ps(begin, 0xff00, _mm512_set1_ps(middle_parts[k]));
                }
                let offset = _mm512_add_ps(rows_of_lane, begin);
                let index = _mm512_cvttps_epi32(offset);
                let next = _mm512_add_epi32(index, one);
                let p = from(rows[k]);
                let (mut low, mut high);
                if REACH == 1 {
                    low = _mm512_permutexvar_ps(index, p);
                    high = _mm512_permutexvar_ps(next, p);
                } else {
                    let q = from(rows[k] + 16);
                    low = _mm512_permutex2var_ps(p, index, q);
                    high = _mm512_permutex2var_ps(p, next, q);
                }
                if REACH == 4 {
                    let (p, q) = (from(middle_rows[k]), from(middle_rows[k] + 16));
                    low = _mm512_mask_mov_ps(low, 0xff00, _mm512_permutex2var_ps(p, index, q));
                    high = _mm512_mask_mov_ps(high, 0xff00, _mm512_permutex2var_ps(p, next, q));
                }
                // Offset less its whole part.
                let part = _mm512_reduce_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(offset);
                let voxel = voxels.add(k * LANES);
                let sum = _mm512_add_ps(_mm512_loadu_ps(voxel), low);
                _mm512_storeu_ps(voxel, _mm512_fmadd_ps(part, _mm512_sub_ps(high, low), sum));
            }
            start += step * (LANES * STEPS) as f64;
            first += STEPS;
        }
    }
}
