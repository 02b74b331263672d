//! Products of the network's small matrices, tile by tile: what its layers, forward and backward, are made of.

// Generic SIMD; sizes are the callers'.
#![allow(unsafe_code)]
// Indices name rows and registers of a tile, in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::gaussian_lanes::Wide;

/// The left factor of a product: number (m, k) at `m * row + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) at: *const f32,
    pub(super) row: usize,
    pub(super) step: usize,
}

/// How a product's tile begins and where it goes; (m, n) are rows and columns.
pub(super) trait Tile<W: Wide> {
    unsafe fn start(&self, m: usize, n: usize) -> W::V;
    unsafe fn finish(&self, m: usize, n: usize, sum: W::V);
}

/// Begins with the biases, ends in the activation.
pub(super) struct Activate<W: Wide> {
    pub(super) biases: *const f32,
    pub(super) leak: W::V,
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl<W: Wide> Tile<W> for Activate<W> {
    #[inline(always)]
    unsafe fn start(&self, _m: usize, n: usize) -> W::V {
        // SAFETY: the caller's.
        unsafe { W::load(self.biases.add(n)) }
    }
    #[inline(always)]
    unsafe fn finish(&self, m: usize, n: usize, sum: W::V) {
        // SAFETY: the caller's.
        unsafe { W::store(self.to.add(m * self.stride + n), W::max(sum, W::mul(sum, self.leak))) }
    }
}

/// Adds to what is there.
pub(super) struct Accumulate {
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl<W: Wide> Tile<W> for Accumulate {
    #[inline(always)]
    unsafe fn start(&self, m: usize, n: usize) -> W::V {
        // SAFETY: the caller's.
        unsafe { W::load(self.to.add(m * self.stride + n)) }
    }
    #[inline(always)]
    unsafe fn finish(&self, m: usize, n: usize, sum: W::V) {
        // SAFETY: the caller's.
        unsafe { W::store(self.to.add(m * self.stride + n), sum) }
    }
}

/// Overwrites.
pub(super) struct Store {
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl<W: Wide> Tile<W> for Store {
    #[inline(always)]
    unsafe fn start(&self, _m: usize, _n: usize) -> W::V {
        // SAFETY: the caller's.
        unsafe { W::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn finish(&self, m: usize, n: usize, sum: W::V) {
        // SAFETY: the caller's.
        unsafe { W::store(self.to.add(m * self.stride + n), sum) }
    }
}

/// Back through an activation: times 1 where the unit is above zero, else times the leak.
pub(super) struct Through<W: Wide> {
    pub(super) units: *const f32,
    pub(super) leak: W::V,
    pub(super) positive: W::V,
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl<W: Wide> Tile<W> for Through<W> {
    #[inline(always)]
    unsafe fn start(&self, _m: usize, _n: usize) -> W::V {
        // SAFETY: the caller's.
        unsafe { W::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn finish(&self, m: usize, n: usize, sum: W::V) {
        // SAFETY: the caller's.
        unsafe {
            let unit = W::load(self.units.add(m * self.stride + n));
            let above = W::below(W::splat(0.0), unit, W::mul(sum, self.positive));
            W::store(self.to.add(m * self.stride + n), W::fma(sum, self.leak, above));
        }
    }
}

/// `result[m][n] = start + sum_k a[m][k] b[k][n]` for `m < rows` (even), `n < columns` (a multiple of 16), `k < depth`.
#[inline(always)]
pub(super) unsafe fn product<W: Wide, T: Tile<W>>(
    a: Factor,
    b: *const f32,
    b_stride: usize,
    [rows, columns, depth]: [usize; 3],
    tile: &T,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut m = 0;
        // Sums of a tile: 16 of 32 registers on AVX-512, 8 of 16 on AVX2.
        if W::N == 16 {
            while m + 8 <= rows {
                columns_of::<W, T, 8>(a, m, b, b_stride, [columns, depth], tile);
                m += 8;
            }
        }
        while m + 4 <= rows {
            columns_of::<W, T, 4>(a, m, b, b_stride, [columns, depth], tile);
            m += 4;
        }
        while m < rows {
            columns_of::<W, T, 2>(a, m, b, b_stride, [columns, depth], tile);
            m += 2;
        }
    }
}

/// `M` rows of a product.
#[inline(always)]
unsafe fn columns_of<W: Wide, T: Tile<W>, const M: usize>(
    a: Factor,
    m: usize,
    b: *const f32,
    b_stride: usize,
    [columns, depth]: [usize; 2],
    tile: &T,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut n = 0;
        while n + 2 * W::N <= columns {
            one_tile::<W, T, M, 2>(a, [m, n], b, b_stride, depth, tile);
            n += 2 * W::N;
        }
        if n < columns {
            one_tile::<W, T, M, 1>(a, [m, n], b, b_stride, depth, tile);
        }
    }
}

/// `M` rows and `R` registers of columns.
#[inline(always)]
unsafe fn one_tile<W: Wide, T: Tile<W>, const M: usize, const R: usize>(
    a: Factor,
    [m, n]: [usize; 2],
    b: *const f32,
    b_stride: usize,
    depth: usize,
    tile: &T,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[W::splat(0.0); R]; M];
        for i in 0..M {
            for r in 0..R {
                sums[i][r] = tile.start(m + i, n + r * W::N);
            }
        }
        let (mut a_at, mut b_at) = (a.at.add(m * a.row), b.add(n));
        for _ in 0..depth {
            let mut columns = [W::splat(0.0); R];
            for (r, column) in columns.iter_mut().enumerate() {
                *column = W::load(b_at.add(r * W::N));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let number = W::splat(*a_at.add(i * a.row));
                for r in 0..R {
                    sums[r] = W::fma(number, columns[r], sums[r]);
                }
            }
            a_at = a_at.wrapping_add(a.step);
            b_at = b_at.wrapping_add(b_stride);
        }
        for i in 0..M {
            for r in 0..R {
                tile.finish(m + i, n + r * W::N, sums[i][r]);
            }
        }
    }
}
