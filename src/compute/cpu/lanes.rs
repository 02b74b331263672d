//! The registers that the projectors' inner loops are written in: one trait, 8 lanes by AVX2 and 16 by AVX-512.
//!
//! Every function is to be inlined into a function that enables the features of the level; calling one on a processor without
//! them is undefined behaviour, hence `unsafe`.

// SIMD intrinsics and raw loads at positions that the callers have clipped.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// A register of `N` floats and one of `N` integers.
///
/// # Safety
/// All functions: the processor must have the level's features. Loads and stores: the pointers must be valid for the floats named.
pub(super) trait Lanes {
    /// Lanes.
    const N: usize;
    type Floats: Copy;
    type Index: Copy;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn splat_index(value: i32) -> Self::Index;
    unsafe fn load(from: *const f32) -> Self::Floats;
    /// The first `count < N` floats, then zeros; reads no further.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::Floats;
    unsafe fn store(to: *mut f32, value: Self::Floats);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn abs(a: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn floor(a: Self::Floats) -> Self::Floats;
    /// To integers; `a` must hold whole numbers.
    unsafe fn index(a: Self::Floats) -> Self::Index;
    unsafe fn add_index(a: Self::Index, b: Self::Index) -> Self::Index;
    unsafe fn sub_index(a: Self::Index, b: Self::Index) -> Self::Index;
    /// Entry `index mod 2N` of the table of `2N` floats `low`, `high`.
    unsafe fn lookup(index: Self::Index, low: Self::Floats, high: Self::Floats) -> Self::Floats;
    /// Lanes below `FROM` of `a`, the others of `b`; `FROM` is a multiple of `N / 4`.
    unsafe fn join<const QUARTERS: usize>(a: Self::Floats, b: Self::Floats) -> Self::Floats;
}

/// AVX-512 F, BW, DQ and VL.
pub(super) enum Avx512 {}

// SAFETY of all blocks: the callers' contract (see the trait).
impl Lanes for Avx512 {
    const N: usize = 16;
    type Floats = __m512;
    type Index = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn splat_index(value: i32) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the trait's contract; masked-off lanes are not read.
        unsafe { _mm512_maskz_loadu_ps((1u16 << count) - 1, from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn floor(a: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn index(a: __m512) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn add_index(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_index(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lookup(index: __m512i, low: __m512, high: __m512) -> __m512 {
        // SAFETY: the trait's contract; the instruction takes the index mod 32.
        unsafe { _mm512_permutex2var_ps(low, index, high) }
    }
    #[inline(always)]
    unsafe fn join<const QUARTERS: usize>(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mask_blend_ps(u16::MAX << (4 * QUARTERS), a, b) }
    }
}

/// AVX2 and FMA.
pub(super) enum Avx2 {}

// SAFETY of all blocks: the callers' contract (see the trait).
impl Lanes for Avx2 {
    const N: usize = 8;
    type Floats = __m256;
    type Index = __m256i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn splat_index(value: i32) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
        // SAFETY: the trait's contract; masked-off lanes are not read.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lane))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn floor(a: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_floor_ps(a) }
    }
    #[inline(always)]
    unsafe fn index(a: __m256) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn add_index(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_index(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lookup(index: __m256i, low: __m256, high: __m256) -> __m256 {
        // SAFETY: the trait's contract; the permutes take the index mod 8, and bit 3 (moved to the sign) picks the half.
        unsafe {
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper)
        }
    }
    #[inline(always)]
    unsafe fn join<const QUARTERS: usize>(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            match QUARTERS {
                1 => _mm256_blend_ps::<0b1111_1100>(a, b),
                2 => _mm256_blend_ps::<0b1111_0000>(a, b),
                3 => _mm256_blend_ps::<0b1100_0000>(a, b),
                _ => a,
            }
        }
    }
}
