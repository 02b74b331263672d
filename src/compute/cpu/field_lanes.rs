//! What the field's inner loops need of registers beside [`super::gaussian_lanes`]: division, transposition, flipped lanes and
//! interpolation between neighbours in a line.

// SIMD intrinsics; every function is inlined into one that enables the level's features.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::gaussian_lanes::{Plain, Wide};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};

/// Registers for fields.
///
/// # Safety
/// As [`Wide`].
pub(super) trait FieldLanes: Wide {
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// Lane `i` of the result is lane `i ^ by` of `a`; `by < N`.
    unsafe fn flip(a: Self::V, by: u32) -> Self::V;
    /// The other of the two diagonals: `to[i * to_stride + j] = from[j * from_stride + i]` for `i, j < N`.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// For `N` points: `to[f * to_stride + p]` becomes the interpolation at `share[p]` between entries `cells[p]` and `cells[p] + 1` of
    /// line `f`, which starts at `lines + f * stride`. Cells must ascend; `2 N` floats behind a line's last entry must be readable.
    unsafe fn interpolate(
        lines: *const f32,
        stride: usize,
        features: usize,
        cells: *const i32,
        share: *const f32,
        to: *mut f32,
        to_stride: usize,
    );
}

/// [`FieldLanes::interpolate`] point by point: where the points lie too far apart for a register's table.
#[inline(always)]
unsafe fn interpolate_each<W: Wide>(
    lines: *const f32,
    stride: usize,
    features: usize,
    cells: *const i32,
    share: *const f32,
    to: *mut f32,
    to_stride: usize,
) {
    for f in 0..features {
        for p in 0..W::N {
            // SAFETY: the caller's.
            unsafe {
                let at = lines.add(f * stride + *cells.add(p) as usize);
                let (low, high) = (*at, *at.add(1));
                *to.add(f * to_stride + p) = (high - low) * *share.add(p) + low;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl FieldLanes for Avx512 {
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract, as in all functions here.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn flip(a: __m512, by: u32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(by as i32)), a)
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * from_stride));
            }
            // Within each quarter first: 4 x 4 blocks of the four rows of a group.
            let mut quarters = [_mm512_setzero_ps(); 16];
            for group in 0..4 {
                let [a, b, c, d] = [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
                let pd = |x: __m512| _mm512_castps_pd(x);
                let (ab_low, ab_high) = (pd(_mm512_unpacklo_ps(a, b)), pd(_mm512_unpackhi_ps(a, b)));
                let (cd_low, cd_high) = (pd(_mm512_unpacklo_ps(c, d)), pd(_mm512_unpackhi_ps(c, d)));
                quarters[4 * group] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                quarters[4 * group + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                quarters[4 * group + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                quarters[4 * group + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            }
            // Then the quarters: result row 4 q + k is quarter q of the four groups' k-th.
            for k in 0..4 {
                let [a, b, c, d] = [quarters[k], quarters[4 + k], quarters[8 + k], quarters[12 + k]];
                let (ab_low, ab_high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
                let (cd_low, cd_high) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
                _mm512_storeu_ps(to.add(k * to_stride), _mm512_shuffle_f32x4::<0x88>(ab_low, cd_low));
                _mm512_storeu_ps(to.add((4 + k) * to_stride), _mm512_shuffle_f32x4::<0xDD>(ab_low, cd_low));
                _mm512_storeu_ps(to.add((8 + k) * to_stride), _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high));
                _mm512_storeu_ps(to.add((12 + k) * to_stride), _mm512_shuffle_f32x4::<0xDD>(ab_high, cd_high));
            }
        }
    }
    #[inline(always)]
    unsafe fn interpolate(
        lines: *const f32,
        stride: usize,
        features: usize,
        cells: *const i32,
        share: *const f32,
        to: *mut f32,
        to_stride: usize,
    ) {
        // SAFETY: the trait's contract.
        unsafe {
            let start = *cells;
            if *cells.add(15) - start > 30 {
                interpolate_each::<Self>(lines, stride, features, cells, share, to, to_stride);
                return;
            }
            let low = _mm512_sub_epi32(_mm512_loadu_epi32(cells), _mm512_set1_epi32(start));
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(1));
            let share = _mm512_loadu_ps(share);
            for f in 0..features {
                let at = lines.add(f * stride + start as usize);
                let (a, b) = (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)));
                let low = _mm512_permutex2var_ps(a, low, b);
                let high = _mm512_permutex2var_ps(a, high, b);
                _mm512_storeu_ps(to.add(f * to_stride), _mm512_fmadd_ps(_mm512_sub_ps(high, low), share, low));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl FieldLanes for Avx2 {
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract, as in all functions here.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn flip(a: __m256, by: u32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_permutevar8x32_ps(a, _mm256_xor_si256(lane, _mm256_set1_epi32(by as i32)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * from_stride));
            }
            // 4 x 4 blocks within each half, then the halves.
            let mut halves = [_mm256_setzero_ps(); 8];
            for group in 0..2 {
                let [a, b, c, d] = [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
                let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                halves[4 * group] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
                halves[4 * group + 1] = _mm256_shuffle_ps::<0xEE>(ab_low, cd_low);
                halves[4 * group + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
                halves[4 * group + 3] = _mm256_shuffle_ps::<0xEE>(ab_high, cd_high);
            }
            for k in 0..4 {
                let (a, b) = (halves[k], halves[4 + k]);
                _mm256_storeu_ps(to.add(k * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((4 + k) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
    #[inline(always)]
    unsafe fn interpolate(
        lines: *const f32,
        stride: usize,
        features: usize,
        cells: *const i32,
        share: *const f32,
        to: *mut f32,
        to_stride: usize,
    ) {
        // SAFETY: the trait's contract. The permutes take the index mod 8, bit 3 (moved to the sign) picks the half.
        unsafe {
            let start = *cells;
            if *cells.add(7) - start > 14 {
                interpolate_each::<Self>(lines, stride, features, cells, share, to, to_stride);
                return;
            }
            let low = _mm256_sub_epi32(_mm256_loadu_si256(cells.cast()), _mm256_set1_epi32(start));
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(1));
            let upper_low = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(low));
            let upper_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(high));
            let share = _mm256_loadu_ps(share);
            for f in 0..features {
                let at = lines.add(f * stride + start as usize);
                let (a, b) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
                let (al, bl) = (_mm256_permutevar8x32_ps(a, low), _mm256_permutevar8x32_ps(b, low));
                let (ah, bh) = (_mm256_permutevar8x32_ps(a, high), _mm256_permutevar8x32_ps(b, high));
                let (low, high) = (_mm256_blendv_ps(al, bl, upper_low), _mm256_blendv_ps(ah, bh, upper_high));
                _mm256_storeu_ps(to.add(f * to_stride), _mm256_fmadd_ps(_mm256_sub_ps(high, low), share, low));
            }
        }
    }
}

impl FieldLanes for Plain {
    #[inline(always)]
    unsafe fn div(a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    unsafe fn flip(a: f32, _by: u32) -> f32 {
        a
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, _from_stride: usize, to: *mut f32, _to_stride: usize) {
        // SAFETY: the trait's contract.
        unsafe { *to = *from }
    }
    #[inline(always)]
    unsafe fn interpolate(
        lines: *const f32,
        stride: usize,
        features: usize,
        cells: *const i32,
        share: *const f32,
        to: *mut f32,
        to_stride: usize,
    ) {
        // SAFETY: the trait's contract.
        unsafe { interpolate_each::<Self>(lines, stride, features, cells, share, to, to_stride) }
    }
}

/// `softplus(x) = ln(1 + e^x)` and its slope, the logistic function.
///
/// With `e = e^-|x|`, `ln(1 + e) = 2 artanh(e / (2 + e))` by its series, whose argument is at most 1/3: to 2e-7 (relative), down to 1e-35.
///
/// # Safety
/// As [`Wide`].
#[inline(always)]
pub(super) unsafe fn softplus_with_slope<W: FieldLanes>(x: W::V) -> (W::V, W::V) {
    // SAFETY: the caller's.
    unsafe {
        let (zero, one) = (W::splat(0.0), W::splat(1.0));
        let minus = W::min(x, W::sub(zero, x));
        let e = W::power(W::max(W::mul(minus, W::splat(std::f32::consts::LOG2_E)), W::splat(-118.0)));
        let s = W::div(e, W::add(e, W::splat(2.0)));
        let q = W::mul(s, s);
        let series = super::gaussian_lanes::polynomial::<W, 7>(
            q,
            &[2.0, 2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0, 2.0 / 11.0, 2.0 / 13.0],
        );
        let value = W::fma(series, s, W::max(x, zero));
        // Below zero e / (1 + e), else 1 - e / (1 + e).
        let low = W::div(e, W::add(one, e));
        let high = W::sub(one, low);
        let slope = W::add(W::below(x, zero, low), W::sub(high, W::below(x, zero, high)));
        (value, slope)
    }
}
