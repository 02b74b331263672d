//! The registers that the Gaussians' inner loops are written in: [`super::lanes`] for AVX-512 and AVX2 with what Gaussians need
//! besides (reciprocal root, power of two, masks, sums), and single floats for the plain path.

// SIMD intrinsics; every function is inlined into one that enables the level's features.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512, Lanes};

/// Coefficients of `2^f` on [-1/2, 1/2], lowest first: relative error 7.5e-8, in float32 2.3e-7.
const POWER: [f32; 6] = [1.000_000_1, 0.693_146_97, 0.240_221_2, 0.055_507_133, 0.009_675_541, 0.001_327_647_1];

/// A register of `N` floats.
///
/// # Safety
/// All functions: the processor must have the level's features. Loads and stores: the pointers must be valid for the floats named.
pub(super) trait Wide {
    /// Lanes.
    const N: usize;
    type V: Copy;
    /// One bit a lane.
    type Mask: Copy;

    unsafe fn splat(value: f32) -> Self::V;
    /// 0, 1, 2, ...
    unsafe fn ramp() -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// The first `count` lanes (all where `count >= N`), zeros behind; reads no further.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    /// Writes the first `count` lanes (all where `count >= N`) and no further.
    unsafe fn store_first(to: *mut f32, count: usize, value: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once (twice on the plain path).
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` where `a` is not a number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where `a` is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `value` in lanes where `a < limit`, 0 in the others (also where `a` is not a number).
    unsafe fn below(a: Self::V, limit: Self::V, value: Self::V) -> Self::V;
    unsafe fn floor(a: Self::V) -> Self::V;
    unsafe fn ceil(a: Self::V) -> Self::V;
    unsafe fn root(a: Self::V) -> Self::V;
    /// Writes `N` whole numbers as integers.
    unsafe fn store_whole(to: *mut i32, a: Self::V);
    /// Asks for the cache line at `at`, wherever that is.
    unsafe fn prefetch<T>(at: *const T);
    /// `1 / sqrt(a)` to about 2e-7.
    unsafe fn reciprocal_root(a: Self::V) -> Self::V;
    /// `1 / a` to 4e-4 only.
    unsafe fn rough_reciprocal(a: Self::V) -> Self::V;
    /// `2^x` for `-120 < x <= 0` to 3e-7 (relative); any number elsewhere.
    unsafe fn power(x: Self::V) -> Self::V;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;
    /// Lanes in which `a <= b`, of the first `count`.
    unsafe fn ordered(a: Self::V, b: Self::V, count: usize) -> Self::Mask;
    /// Lanes in the mask.
    unsafe fn count(mask: Self::Mask) -> usize;
    /// Writes the lanes in the mask one behind the other; may write any `N` floats.
    unsafe fn store_kept(to: *mut f32, mask: Self::Mask, a: Self::V);
    /// As [`Wide::store_kept`], of whole numbers plus `first` plus `step` a lane, as integers.
    unsafe fn store_kept_whole(to: *mut i32, mask: Self::Mask, a: Self::V, first: i32, step: i32);
    /// Turns the first `N` registers: lane `k` of register `j` to lane `j` of register `k`.
    unsafe fn transpose(block: &mut [Self::V; 16]);
}

#[cfg(target_arch = "x86_64")]
macro_rules! shared_with_lanes {
    ($level:ty) => {
        const N: usize = <$level as Lanes>::N;
        type V = <$level as Lanes>::Floats;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: the trait's contract, as in all functions here.
            unsafe { <$level as Lanes>::splat(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::load(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: Self::V) {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::store(to, value) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::add(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::sub(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::mul(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::fma(a, b, c) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract; the instruction gives its second operand where one is not a number.
            unsafe { <$level as Lanes>::min(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { <$level as Lanes>::max(a, b) }
        }
        #[inline(always)]
        unsafe fn floor(a: Self::V) -> Self::V {
            // SAFETY: the trait's contract.
            unsafe { <$level as Lanes>::floor(a) }
        }
        #[inline(always)]
        unsafe fn prefetch<T>(at: *const T) {
            // SAFETY: a hint; never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Wide for Avx512 {
    shared_with_lanes!(Avx512);
    type Mask = u16;

    #[inline(always)]
    unsafe fn ordered(a: __m512, b: __m512, count: usize) -> u16 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(first_lanes(count), a, b) }
    }
    #[inline(always)]
    unsafe fn count(mask: u16) -> usize {
        mask.count_ones() as usize
    }
    #[inline(always)]
    unsafe fn store_kept(to: *mut f32, mask: u16, a: __m512) {
        // SAFETY: the trait's contract. (Compressing straight to memory is slow on some processors.)
        unsafe { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, a)) }
    }
    #[inline(always)]
    unsafe fn store_kept_whole(to: *mut i32, mask: u16, a: __m512, first: i32, step: i32) {
        // SAFETY: the trait's contract.
        unsafe {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let from = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_mullo_epi32(lane, _mm512_set1_epi32(step)));
            let whole = _mm512_add_epi32(_mm512_cvtps_epi32(a), from);
            _mm512_storeu_epi32(to, _mm512_maskz_compress_epi32(mask, whole));
        }
    }

    #[inline(always)]
    unsafe fn ramp() -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the trait's contract; masked-off lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(count), from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, value: __m512) {
        // SAFETY: the trait's contract; masked-off lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), value) }
    }
    #[inline(always)]
    unsafe fn below(a: __m512, limit: __m512, value: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, limit), value) }
    }
    #[inline(always)]
    unsafe fn ceil(a: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn root(a: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn store_whole(to: *mut i32, a: __m512) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_epi32(to, _mm512_cvtps_epi32(a)) }
    }
    #[inline(always)]
    unsafe fn reciprocal_root(a: __m512) -> __m512 {
        // SAFETY: the trait's contract. One step of Newton squares the error of 2^-14.
        unsafe {
            let r = _mm512_rsqrt14_ps(a);
            let error = _mm512_fnmadd_ps(_mm512_mul_ps(a, r), r, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(_mm512_mul_ps(r, _mm512_set1_ps(0.5)), error, r)
        }
    }
    #[inline(always)]
    unsafe fn rough_reciprocal(a: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_rcp14_ps(a) }
    }
    #[inline(always)]
    unsafe fn power(x: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm512_scalef_ps(polynomial::<Self, 6>(_mm512_sub_ps(x, whole), &POWER), whole)
        }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [__m512; 16]) {
        // SAFETY: the trait's contract. Pairs of floats, of pairs, then of quarters, twice.
        unsafe {
            for quad in block.chunks_exact_mut(4) {
                let low = [_mm512_unpacklo_ps(quad[0], quad[1]), _mm512_unpacklo_ps(quad[2], quad[3])];
                let high = [_mm512_unpackhi_ps(quad[0], quad[1]), _mm512_unpackhi_ps(quad[2], quad[3])];
                for (k, [a, b]) in [low, high].into_iter().enumerate() {
                    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                    quad[2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    quad[2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // Register 4 j + k now holds, in quarter q, columns 4 q + k of rows 4 j to 4 j + 3.
            for k in 0..4 {
                let [a, b, c, d] = [block[k], block[4 + k], block[8 + k], block[12 + k]];
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                block[k] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
                block[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
                block[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
                block[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
            }
        }
    }
}

/// Mask of the first `count` of 16 lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first_lanes(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// For each mask of eight lanes the numbers of the lanes in it, four bits each, lowest first.
#[cfg(target_arch = "x86_64")]
static KEPT: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut kept) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask] |= lane << (4 * kept);
                kept += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// The permutation that moves the lanes in `mask` to the front.
///
/// # Safety
/// AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn kept_lanes(mask: u8) -> __m256i {
    // SAFETY: the caller's. The permutation takes lane numbers mod 8.
    unsafe {
        let all = _mm256_set1_epi32(KEPT[usize::from(mask)] as i32);
        _mm256_srlv_epi32(all, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28))
    }
}

#[cfg(target_arch = "x86_64")]
impl Wide for Avx2 {
    shared_with_lanes!(Avx2);
    type Mask = u8;

    #[inline(always)]
    unsafe fn ordered(a: __m256, b: __m256, count: usize) -> u8 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) as u8 & first_lanes(count) as u8 }
    }
    #[inline(always)]
    unsafe fn count(mask: u8) -> usize {
        mask.count_ones() as usize
    }
    #[inline(always)]
    unsafe fn store_kept(to: *mut f32, mask: u8, a: __m256) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(a, kept_lanes(mask))) }
    }
    #[inline(always)]
    unsafe fn store_kept_whole(to: *mut i32, mask: u8, a: __m256, first: i32, step: i32) {
        // SAFETY: the trait's contract.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let from = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_mullo_epi32(lane, _mm256_set1_epi32(step)));
            let whole = _mm256_add_epi32(_mm256_cvtps_epi32(a), from);
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(whole, kept_lanes(mask)));
        }
    }

    #[inline(always)]
    unsafe fn ramp() -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_setr_ps(0., 1., 2., 3., 4., 5., 6., 7.) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
        // SAFETY: the trait's contract; masked-off lanes are not read.
        unsafe { <Avx2 as Lanes>::load_first(from, count.min(8)) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, value: __m256) {
        // SAFETY: the trait's contract; masked-off lanes are not written.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lane), value);
        }
    }
    #[inline(always)]
    unsafe fn below(a: __m256, limit: __m256, value: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, limit), value) }
    }
    #[inline(always)]
    unsafe fn ceil(a: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_ceil_ps(a) }
    }
    #[inline(always)]
    unsafe fn root(a: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn store_whole(to: *mut i32, a: __m256) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_si256(to.cast(), _mm256_cvtps_epi32(a)) }
    }
    #[inline(always)]
    unsafe fn reciprocal_root(a: __m256) -> __m256 {
        // SAFETY: the trait's contract. One step of Newton squares the error of 1.5 2^-12.
        unsafe {
            let r = _mm256_rsqrt_ps(a);
            let error = _mm256_fnmadd_ps(_mm256_mul_ps(a, r), r, _mm256_set1_ps(1.0));
            _mm256_fmadd_ps(_mm256_mul_ps(r, _mm256_set1_ps(0.5)), error, r)
        }
    }
    #[inline(always)]
    unsafe fn rough_reciprocal(a: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_rcp_ps(a) }
    }
    #[inline(always)]
    unsafe fn power(x: __m256) -> __m256 {
        // SAFETY: the trait's contract. The whole part is added to the exponent's bits.
        unsafe {
            let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let fraction = polynomial::<Self, 6>(_mm256_sub_ps(x, whole), &POWER);
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(whole));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(fraction), exponent))
        }
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [__m256; 16]) {
        // SAFETY: the trait's contract. As for AVX-512, with halves in place of quarters.
        unsafe {
            for quad in block[..8].chunks_exact_mut(4) {
                let low = [_mm256_unpacklo_ps(quad[0], quad[1]), _mm256_unpacklo_ps(quad[2], quad[3])];
                let high = [_mm256_unpackhi_ps(quad[0], quad[1]), _mm256_unpackhi_ps(quad[2], quad[3])];
                for (k, [a, b]) in [low, high].into_iter().enumerate() {
                    let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                    quad[2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    quad[2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            for k in 0..4 {
                let [a, b] = [block[k], block[4 + k]];
                block[k] = _mm256_permute2f128_ps::<0x20>(a, b);
                block[4 + k] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
        }
    }
}

/// One float at a time: what runs where there is neither AVX2 nor AVX-512.
pub(super) enum Plain {}

impl Wide for Plain {
    const N: usize = 1;
    type V = f32;
    type Mask = bool;

    #[inline(always)]
    unsafe fn ordered(a: f32, b: f32, count: usize) -> bool {
        a <= b && count > 0
    }
    #[inline(always)]
    unsafe fn count(mask: bool) -> usize {
        usize::from(mask)
    }
    #[inline(always)]
    unsafe fn store_kept(to: *mut f32, _mask: bool, a: f32) {
        // SAFETY: the trait's contract.
        unsafe { *to = a }
    }
    #[inline(always)]
    unsafe fn store_kept_whole(to: *mut i32, _mask: bool, a: f32, first: i32, _step: i32) {
        // SAFETY: the trait's contract.
        unsafe { *to = a as i32 + first }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    unsafe fn ramp() -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: f32) {
        // SAFETY: the trait's contract.
        unsafe { *to = value }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> f32 {
        // SAFETY: the trait's contract.
        if count > 0 { unsafe { *from } } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, value: f32) {
        if count > 0 {
            // SAFETY: the trait's contract.
            unsafe { *to = value }
        }
    }
    #[inline(always)]
    unsafe fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    unsafe fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    unsafe fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    unsafe fn min(a: f32, b: f32) -> f32 {
        a.min(b)
    }
    #[inline(always)]
    unsafe fn max(a: f32, b: f32) -> f32 {
        a.max(b)
    }
    #[inline(always)]
    unsafe fn below(a: f32, limit: f32, value: f32) -> f32 {
        if a < limit { value } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn floor(a: f32) -> f32 {
        a.floor()
    }
    #[inline(always)]
    unsafe fn ceil(a: f32) -> f32 {
        a.ceil()
    }
    #[inline(always)]
    unsafe fn root(a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    unsafe fn store_whole(to: *mut i32, a: f32) {
        // SAFETY: the trait's contract.
        unsafe { *to = a as i32 }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_at: *const T) {}
    #[inline(always)]
    unsafe fn reciprocal_root(a: f32) -> f32 {
        1.0 / a.sqrt()
    }
    #[inline(always)]
    unsafe fn rough_reciprocal(a: f32) -> f32 {
        1.0 / a
    }
    #[inline(always)]
    unsafe fn power(x: f32) -> f32 {
        // Rounded by the trick of adding and taking away 1.5 * 2^23: no call, no branch.
        const ROUND: f32 = 12_582_912.0;
        let whole = (x + ROUND) - ROUND;
        // SAFETY: plain arithmetic.
        let fraction = unsafe { polynomial::<Self, 6>(x - whole, &POWER) };
        f32::from_bits(fraction.to_bits().wrapping_add((whole as i32 as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: f32) -> f32 {
        a
    }
    #[inline(always)]
    unsafe fn transpose(_block: &mut [f32; 16]) {}
}

/// `sum c_k x^k` by Horner's scheme.
///
/// # Safety
/// As [`Wide`].
#[inline(always)]
pub(super) unsafe fn polynomial<W: Wide, const TERMS: usize>(x: W::V, coefficients: &[f32; TERMS]) -> W::V {
    // SAFETY: the caller's.
    unsafe {
        let mut value = W::splat(coefficients[TERMS - 1]);
        for &c in coefficients[..TERMS - 1].iter().rev() {
            value = W::fma(value, x, W::splat(c));
        }
        value
    }
}

/// Defines `$name`, which runs the generic `$body::<W>` at the level given, compiled for that level's features.
///
/// `$body` must be `unsafe` for no other reason than [`Wide`]'s contract and be `#[inline(always)]`.
macro_rules! at_each_level {
    ($(#[$doc:meta])* $name:ident => $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        fn $name(simd: SimdLevel, $($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn with_avx512($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the features are enabled here.
                unsafe { $body::<$crate::compute::cpu::lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn with_avx2($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the features are enabled here.
                unsafe { $body::<$crate::compute::cpu::lanes::Avx2>($($arg),*) }
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the carrier refuses levels that the processor lacks.
                SimdLevel::Avx512 => unsafe { with_avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                SimdLevel::Avx2 => unsafe { with_avx2($($arg),*) },
                // SAFETY: single floats need no features.
                _ => unsafe { $body::<$crate::compute::cpu::gaussian_lanes::Plain>($($arg),*) },
            }
        }
    };
}
pub(super) use at_each_level;
