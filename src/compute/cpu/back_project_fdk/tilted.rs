//! The general way: any pose, one perspective division and four pixels a voxel.

#![allow(unsafe_code)] // SIMD.

use super::SimdLevel;
use super::transpose::MARGIN;
use super::view::View;

/// Adds one view to a column of voxels.
pub(super) fn add_to_column(view: &View<'_>, simd: SimdLevel, ix: usize, iy: usize, voxels: &mut [f32]) {
    match simd {
        // SAFETY: a carrier's level never exceeds what the processor was found to offer (`CpuCompute::with_simd`).
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => unsafe { with_avx512(view, ix, iy, voxels) },
        _ => plain(view, ix, iy, 0, voxels),
    }
}

/// `u`, `v`, `w` of voxel z = 0, each times `w`, and what they grow by from voxel to voxel.
fn line(view: &View<'_>, ix: usize, iy: usize) -> ([f64; 3], [f64; 3]) {
    let (x, y) = (ix as f64, iy as f64);
    (view.matrix.map(|r| r[0] * x + r[1] * y + r[3]), view.matrix.map(|r| r[2]))
}

/// Voxels from `first` on.
fn plain(view: &View<'_>, ix: usize, iy: usize, first: usize, voxels: &mut [f32]) {
    let (start, grow) = line(view, ix, iy);
    let (columns, rows, stride) = (view.layout.columns as f64, view.layout.rows as f64, view.layout.stride);
    for (z, voxel) in voxels.iter_mut().enumerate().skip(first) {
        let [u, v, w]: [f64; 3] = std::array::from_fn(|i| start[i] + z as f64 * grow[i]);
        if w.is_nan() || w < 1e-6 {
            continue;
        }
        let near = 1.0 / w;
        let (u, v) = (u * near + 1.0, v * near + 1.0);
        if !(u > 0.0 && u < columns + 1.0 && v > 0.0 && v < rows + 1.0) {
            continue;
        }
        let (iu, iv) = (u as usize, v as usize);
        let (fu, fv) = ((u - iu as f64) as f32, (v - iv as f64) as f32);
        let at = iu * stride + MARGIN - 1 + iv;
        let p = &view.pixels;
        let low = (1.0 - fu) * p[at] + fu * p[at + stride];
        let high = (1.0 - fu) * p[at + 1] + fu * p[at + 1 + stride];
        let gain = (near * near) as f32;
        *voxel += gain * (low + fv * (high - low));
    }
}

/// Sixteen voxels a step; pixels by gathered loads.
///
/// # Safety
/// AVX-512 F and DQ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,fma")]
unsafe fn with_avx512(view: &View<'_>, ix: usize, iy: usize, voxels: &mut [f32]) {
    use std::arch::x86_64::*;
    const LANES: usize = 16;
    let (start, grow) = line(view, ix, iy);
    let (columns, rows, stride) = (view.layout.columns, view.layout.rows, view.layout.stride);
    // Gathers index by i32.
    if view.pixels.len() > i32::MAX as usize || columns + 2 > 1 << 20 || rows + 2 > 1 << 20 {
        return plain(view, ix, iy, 0, voxels);
    }
    // SAFETY: lanes whose `u`, `v` lie outside the margins are masked; the others index `view.pixels` within its columns and
    // rows as in `plain`. Voxels: whole steps end at `voxels.len()` or are masked.
    unsafe {
        let lane = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
        let slope = grow.map(|g| _mm512_mul_ps(lane, _mm512_set1_ps(g as f32)));
        let one = _mm512_set1_ps(1.0);
        let (zero, end_u, end_v) =
            (_mm512_setzero_ps(), _mm512_set1_ps(columns as f32 + 1.0), _mm512_set1_ps(rows as f32 + 1.0));
        let pixels = view.pixels.as_ptr();
        let (stride_i, down) = (_mm512_set1_epi32(stride as i32), _mm512_set1_epi32(MARGIN as i32 - 1));
        for z in (0..voxels.len()).step_by(LANES) {
            // The step's first voxel in double precision relative to the detector's first pixel, its slope in single.
            let at = |i: usize| _mm512_add_ps(_mm512_set1_ps((start[i] + z as f64 * grow[i]) as f32), slope[i]);
            let (u, v, w) = (at(0), at(1), at(2));
            let near = _mm512_div_ps(one, w);
            let (u, v) = (_mm512_fmadd_ps(u, near, one), _mm512_fmadd_ps(v, near, one));
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(w, _mm512_set1_ps(1e-6))
                & _mm512_cmp_ps_mask::<_CMP_GT_OQ>(u, zero)
                & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(u, end_u)
                & _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, zero)
                & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(v, end_v);
            if inside == 0 {
                continue;
            }
            let (iu, iv) = (_mm512_cvttps_epi32(u), _mm512_cvttps_epi32(v));
            let (fu, fv) = (_mm512_sub_ps(u, _mm512_cvtepi32_ps(iu)), _mm512_sub_ps(v, _mm512_cvtepi32_ps(iv)));
            let index = _mm512_add_epi32(_mm512_mullo_epi32(iu, stride_i), _mm512_add_epi32(iv, down));
            let gather = |offset: usize| _mm512_mask_i32gather_ps::<4>(zero, inside, index, pixels.add(offset));
            let mix = |a, b, f| _mm512_fmadd_ps(f, _mm512_sub_ps(b, a), a);
            let low = mix(gather(0), gather(stride), fu);
            let high = mix(gather(1), gather(stride + 1), fu);
            let value = _mm512_mul_ps(_mm512_mul_ps(near, near), mix(low, high, fv));
            let mask = if voxels.len() - z >= LANES { u16::MAX } else { (1_u16 << (voxels.len() - z)) - 1 };
            let voxel = voxels.as_mut_ptr().add(z);
            let sum = _mm512_maskz_loadu_ps(mask, voxel);
            _mm512_mask_storeu_ps(voxel, mask & inside, _mm512_add_ps(sum, value));
        }
    }
}
