//! Copies views to `[u][v]` order between margins of zeros.

#![allow(unsafe_code)] // Register transposes.

use rayon::prelude::*;

use super::SimdLevel;
use crate::geometry::{Detector, ViewPose};

/// Zeros before the first and after the last row. A SIMD step that touches the detector at all begins no more than 61 rows
/// before it and reads at most 63 rows from there (16 voxels of up to 4 rows each).
pub(super) const MARGIN: usize = 64;

/// Floats of a cache line.
const LINE: usize = 16;

/// Order of memory of the copies: `columns + 2` columns (a zero column on both sides) of `stride` floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) stride: usize,
}

impl Layout {
    pub(super) const EMPTY: Self = Self { columns: 0, rows: 0, stride: 0 };

    pub(super) fn of(detector: Detector) -> Self {
        let mut stride = (detector.rows + 2 * MARGIN).next_multiple_of(LINE);
        // Strides of whole kilobytes would put all columns into the same few sets of the cache.
        if stride.is_multiple_of(256) {
            stride += LINE;
        }
        Self { columns: detector.columns, rows: detector.rows, stride }
    }

    /// Floats of one view's copy.
    pub(super) fn view_floats(&self) -> usize {
        (self.columns + 2) * self.stride
    }

    /// Whether rows run towards -z, so that the copy turns them round: its rows run upwards, as voxels do.
    pub(super) fn flip(&self, pose: &ViewPose) -> bool {
        pose.row_step_mm.z < 0.0
    }
}

/// Columns of one task.
const BAND: usize = 32;

/// Copies all views; `filtered` is `[view][row v][column u]`.
pub(super) fn transpose(simd: SimdLevel, layout: Layout, poses: &[ViewPose], filtered: &[f32], copies: &mut [f32]) {
    let pixels = layout.columns * layout.rows;
    copies.par_chunks_mut(layout.view_floats()).zip(filtered.par_chunks(pixels)).zip(poses).for_each(
        |((copy, view), pose)| {
            let flip = layout.flip(pose);
            copy[..layout.stride].fill(0.0);
            copy[layout.stride * (layout.columns + 1)..].fill(0.0);
            let inner = &mut copy[layout.stride..layout.stride * (layout.columns + 1)];
            inner.par_chunks_mut(BAND * layout.stride).enumerate().for_each(|(band, out)| {
                transpose_band(simd, layout, flip, view, band * BAND, out);
            });
        },
    );
}

/// Copies the columns from `first` on that `out` has room for.
fn transpose_band(simd: SimdLevel, layout: Layout, flip: bool, view: &[f32], first: usize, out: &mut [f32]) {
    let Layout { columns, rows, stride } = layout;
    let count = out.len() / stride;
    for column in out.chunks_exact_mut(stride) {
        column[..MARGIN].fill(0.0);
        column[MARGIN + rows..].fill(0.0);
    }
    let mut done_rows = 0;
    #[cfg(target_arch = "x86_64")]
    if simd >= SimdLevel::Avx2 {
        done_rows = rows / 8 * 8;
        for v in (0..done_rows).step_by(8) {
            let to = MARGIN + if flip { rows - 8 - v } else { v };
            let mut u = 0;
            while u + 8 <= count {
                // SAFETY: rows v..v+8 and columns first+u..+8 lie in the view, rows to..to+8 of columns u..u+8 in `out`; AVX2
                // is there, as the level says.
                unsafe {
                    transpose_8x8(
                        view.as_ptr().add(v * columns + first + u),
                        columns,
                        out.as_mut_ptr().add(u * stride + to),
                        stride,
                        flip,
                    );
                }
                u += 8;
            }
            for u in u..count {
                for i in 0..8 {
                    let row = if flip { rows - 1 - (v + i) } else { v + i };
                    out[u * stride + MARGIN + row] = view[(v + i) * columns + first + u];
                }
            }
        }
    }
    for v in done_rows..rows {
        let row = if flip { rows - 1 - v } else { v };
        let line = &view[v * columns + first..][..count];
        for (u, &value) in line.iter().enumerate() {
            out[u * stride + MARGIN + row] = value;
        }
    }
}

/// Eight rows of eight pixels become eight columns of eight; with `flip` the rows are taken last first.
///
/// # Safety
/// AVX2; eight floats readable at `from + i * from_step` and writable at `to + i * to_step` for i in 0..8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8x8(from: *const f32, from_step: usize, to: *mut f32, to_step: usize, flip: bool) {
    use std::arch::x86_64::*;
    // SAFETY: the contract above.
    unsafe {
        let row = |i: usize| {
            let i = if flip { 7 - i } else { i };
            _mm256_loadu_ps(from.add(i * from_step))
        };
        let r: [__m256; 8] = std::array::from_fn(row);
        let lo = |a, b| _mm256_unpacklo_ps(a, b);
        let hi = |a, b| _mm256_unpackhi_ps(a, b);
        let (t0, t1, t2, t3) = (lo(r[0], r[1]), hi(r[0], r[1]), lo(r[2], r[3]), hi(r[2], r[3]));
        let (t4, t5, t6, t7) = (lo(r[4], r[5]), hi(r[4], r[5]), lo(r[6], r[7]), hi(r[6], r[7]));
        let even = |a, b| _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
        let odd = |a, b| _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
        let (s0, s1, s2, s3) = (even(t0, t2), odd(t0, t2), even(t1, t3), odd(t1, t3));
        let (s4, s5, s6, s7) = (even(t4, t6), odd(t4, t6), even(t5, t7), odd(t5, t7));
        let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
        let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
        let columns = [
            low(s0, s4),
            low(s1, s5),
            low(s2, s6),
            low(s3, s7),
            high(s0, s4),
            high(s1, s5),
            high(s2, s6),
            high(s3, s7),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            _mm256_storeu_ps(to.add(i * to_step), column);
        }
    }
}
