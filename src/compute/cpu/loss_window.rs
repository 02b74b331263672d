//! Structural similarity of two planes and its gradient, fused: one sweep over the rows, in which maps live only as long as the window needs them.
//!
//! **Without cancellation.** With `s = a + b`, `d = a - b`, the similarity's two factors are `1 - p`, `1 - q`,
//!
//! `p = ms.. md^2 / A`, `A = (ms^2 + md^2)/2 + C1`, `q = vd / B`, `B = (vs + vd)/2 + C2`,
//!
//! `m`, `v` the window's means and variances of `s` and `d`. So `1 - SSIM = p + q - pq` has its digits where the two planes agree, and is 0 with a
//! gradient of exactly 0 where they are equal. Four maps are filtered (`s, d, s^2, d^2`), not five.
//!
//! **Gradient.** By `a`, both `ds` and `dd` are 1. With `F` the window's filter (its own adjoint but for the border's scale), it is
//! `F(g) + d F(gd) + s F(gs)`, where `gs = -q (1-p)/B`, `gd = 2 (1-p)/B + gs`, `g = (1-q)((2-p) md - p ms)/A - md gd - ms gs`.
//!
//! **Work.** 14 separable passes of 11 taps (4 maps there, 3 back), 2 products, 40 operations of the formula: 196 lane operations a pixel. **Bytes.** 12
//! floats a pixel: both planes and the gradient (read and written). Rings of 16 rows of 5 maps stay in the second-level cache.
//!
//! **Lanes.** A plane's element is [`Plane::STEP`] floats: 1 for an image, whose columns then lie in lanes, or 16 slices of a volume side by
//! side, so that both of the window's directions are whole registers apart.

// Generic SIMD on rows of a buffer whose size is checked at the start.
// No closure may hold a lane operation: it would be compiled without the level's features.
#![allow(unsafe_code)]
// Indices name lanes and rows of registers, in several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::gaussian_lanes::Wide;

/// Edge of the window and its reach on either side.
pub(super) const TAPS: usize = 11;
pub(super) const REACH: usize = TAPS / 2;
/// Floats of the widest register.
pub(super) const LANES: usize = 16;

const C1: f32 = 1e-4;
const C2: f32 = 9e-4;

/// Rows of a ring: those that [`BLOCK_ROWS`] rows of a vertical pass see, up to a power of two.
const RING: usize = 16;
/// Most rows that a vertical pass works out at once.
const BLOCK_ROWS: usize = 4;
const _: () = assert!(RING.is_power_of_two() && RING >= BLOCK_ROWS + TAPS - 1);

/// Two planes to be compared, and where the gradient goes.
pub(super) trait Plane: Sync {
    /// Floats of an element.
    const STEP: usize;

    /// Rows and columns.
    fn size(&self) -> [usize; 2];

    /// Writes `a + b` and `a - b` of a row, in data ranges, and nothing but zeros behind them.
    ///
    /// # Safety
    /// As [`Wide`]; there is room for `columns * STEP` floats rounded up to [`LANES`].
    unsafe fn load<W: Wide>(&self, row: usize, sum: *mut f32, difference: *mut f32);

    /// Adds a row of the gradient to the target.
    ///
    /// # Safety
    /// As [`Wide`]; no other task touches the plane's row.
    unsafe fn add<W: Wide>(&self, row: usize, gradient: *const f32);

    /// Asks for a share of what [`Plane::load`] and [`Plane::add`] will want of two rows: all of it after a call for each column.
    ///
    /// # Safety
    /// As [`Wide`].
    unsafe fn prefetch<W: Wide>(&self, load: usize, add: usize, column: usize);
}

/// What lanes weigh.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneWeights {
    /// In the value: 1 or 0 (a slice that is left out, a lane behind the last slice).
    pub(super) value: [f32; LANES],
    /// In the gradient; contains `1 / L`.
    pub(super) gradient: [f32; LANES],
}

/// The window's weights from the middle outwards; those of both sides sum to 1.
fn window() -> [f64; REACH + 1] {
    let weight = |k: usize| (-0.5 * (k as f64 / 1.5).powi(2)).exp();
    let sum = 1.0 + 2.0 * (1..=REACH).map(weight).sum::<f64>();
    std::array::from_fn(|k| weight(k) / sum)
}

/// What a window around `at` is to be multiplied by for the weights within `0..length` to sum to 1.
fn to_unit(window: &[f64; REACH + 1], at: usize, length: usize) -> f32 {
    let inside = at.saturating_sub(REACH)..length.min(at + REACH + 1);
    (1.0 / inside.map(|k| window[k.abs_diff(at)]).sum::<f64>()) as f32
}

/// Zeros at either end of a row that the horizontal passes see.
const fn pad(step: usize) -> usize {
    (REACH * step).next_multiple_of(LANES)
}

/// Floats from row to row.
const fn stride(columns: usize, step: usize) -> usize {
    (columns * step).next_multiple_of(LANES) + 2 * pad(step)
}

/// Rows of the buffer: two rings, a block's four maps, three maps of the formula, zeros, the columns' scale.
const BUFFER_ROWS: usize = (2 + 3) * RING + 4 * BLOCK_ROWS + 3 + 2;

/// Floats of the buffer that [`similarity`] needs.
pub(super) const fn buffer_floats(columns: usize, step: usize) -> usize {
    BUFFER_ROWS * stride(columns, step)
}

/// A thread's rows of maps.
struct Rows {
    base: *mut f32,
    stride: usize,
}

impl Rows {
    unsafe fn at(&self, row: usize) -> *mut f32 {
        debug_assert!(row < BUFFER_ROWS);
        // SAFETY: the buffer holds `BUFFER_ROWS` rows.
        unsafe { self.base.add(row * self.stride) }
    }
    /// Ring of sums (0) and differences (1).
    unsafe fn given(&self, map: usize, row: isize) -> *mut f32 {
        // SAFETY: within the buffer, as all below.
        unsafe { self.at(map * RING + (row & (RING as isize - 1)) as usize) }
    }
    /// Ring of the formula's maps, filtered along the row.
    unsafe fn back(&self, map: usize, row: isize) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.at((2 + map) * RING + (row & (RING as isize - 1)) as usize) }
    }
    /// Maps of a block, filtered across rows.
    unsafe fn block(&self, map: usize, row: usize) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.at(5 * RING + map * BLOCK_ROWS + row) }
    }
    unsafe fn formula(&self, map: usize) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.at(5 * RING + 4 * BLOCK_ROWS + map) }
    }
    unsafe fn zeros(&self) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.at(BUFFER_ROWS - 2) }
    }
    unsafe fn scale(&self) -> *mut f32 {
        // SAFETY: as above.
        unsafe { self.at(BUFFER_ROWS - 1) }
    }
}

/// Adds the gradient of rows `out` of the plane and writes for each of them the sum of `1 - SSIM` over its pixels to `sums`.
/// What a row gets does not depend on `out`.
///
/// # Safety
/// As [`Wide`]; no other task touches these rows of the target.
#[inline(always)]
pub(super) unsafe fn similarity<W: Wide, P: Plane>(
    plane: &P,
    weights: &LaneWeights,
    out: Range<usize>,
    buffer: &mut [f32],
    sums: &mut [f64],
) {
    // SAFETY: the caller's.
    unsafe {
        // As many sums as fit the registers.
        if W::N == LANES {
            sweep::<W, P, BLOCK_ROWS>(plane, weights, out, buffer, sums);
        } else {
            sweep::<W, P, 2>(plane, weights, out, buffer, sums);
        }
    }
}

#[inline(always)]
unsafe fn sweep<W: Wide, P: Plane, const R: usize>(
    plane: &P,
    weights: &LaneWeights,
    out: Range<usize>,
    buffer: &mut [f32],
    sums: &mut [f64],
) {
    let [rows, columns] = plane.size();
    let (pad, stride, floats) = (pad(P::STEP), stride(columns, P::STEP), columns * P::STEP);
    let buffer = &mut buffer[..BUFFER_ROWS * stride];
    for row in buffer.chunks_exact_mut(stride) {
        row[..pad].fill(0.0);
        row[pad + floats..].fill(0.0);
    }
    buffer[(BUFFER_ROWS - 2) * stride..].fill(0.0);
    let exact = window();
    for column in 0..columns {
        let scale = to_unit(&exact, column, columns);
        buffer[(BUFFER_ROWS - 1) * stride + pad + column * P::STEP..][..P::STEP].fill(scale);
    }
    let window = exact.map(|weight| weight as f32);
    let buffer = Rows { base: buffer[pad..].as_mut_ptr(), stride };

    let reach = REACH as isize;
    let (out, all) = (out.start as isize..out.end as isize, rows as isize);
    // Windows are needed around these rows; blocks begin so that each ends where a block of results can be given out.
    let centres = (out.start - reach).max(0)..(out.end + reach).min(all);
    let lead = (out.start + reach - centres.start + R as isize - 1) / R as isize;
    let mut block = out.start + reach - lead * R as isize;
    let mut loaded = (centres.start - reach).max(0);
    // SAFETY: the caller's; rows lie within the buffer, with a pad on either side.
    unsafe {
        while block - reach < out.end {
            while loaded < (block + R as isize + reach).min(all) {
                plane.load::<W>(loaded as usize, buffer.given(0, loaded), buffer.given(1, loaded));
                loaded += 1;
            }
            if block < centres.end {
                down::<W, R>(&buffer, &window, block, 0..all, floats);
                for r in 0..R {
                    let row = block + r as isize;
                    if !centres.contains(&row) {
                        continue;
                    }
                    let scale = to_unit(&exact, row as usize, rows);
                    // What the next block loads and what this one adds to, asked for while there is much else to do.
                    let ahead = [row + R as isize + reach, row - reach].map(|row| row.clamp(0, all - 1) as usize);
                    let sum = along::<W, P>(plane, &buffer, &window, r, scale, weights, floats, ahead);
                    if out.contains(&row) {
                        sums[(row - out.start) as usize] = sum;
                    }
                    along_back::<W>(&buffer, &window, row, floats, P::STEP);
                }
            }
            let first = block - reach;
            if first >= out.start {
                down_back::<W, R>(&buffer, &window, first, centres.clone(), floats);
                for row in first..(first + R as isize).min(out.end) {
                    plane.add::<W>(row as usize, buffer.block(0, (row - first) as usize));
                }
            }
            block += R as isize;
        }
    }
}

/// Calls `$tap::<.., T>` for each row that a block of vertical sums sees: written out, so that all sums stay in registers.
macro_rules! each_tap {
    ($tap:ident::<$w:ident, $r:ident>($($arg:expr),*)) => {
        $tap::<$w, $r, 0>($($arg),*); $tap::<$w, $r, 1>($($arg),*); $tap::<$w, $r, 2>($($arg),*);
        $tap::<$w, $r, 3>($($arg),*); $tap::<$w, $r, 4>($($arg),*); $tap::<$w, $r, 5>($($arg),*);
        $tap::<$w, $r, 6>($($arg),*); $tap::<$w, $r, 7>($($arg),*); $tap::<$w, $r, 8>($($arg),*);
        $tap::<$w, $r, 9>($($arg),*); $tap::<$w, $r, 10>($($arg),*); $tap::<$w, $r, 11>($($arg),*);
        $tap::<$w, $r, 12>($($arg),*); $tap::<$w, $r, 13>($($arg),*);
    };
}

/// Rows that a block of vertical sums sees.
const SEEN: usize = BLOCK_ROWS + TAPS - 1;

/// Filters `s, d, s^2, d^2` across rows, for the block's `R` rows.
#[inline(always)]
unsafe fn down<W: Wide, const R: usize>(
    buffer: &Rows,
    window: &[f32; REACH + 1],
    block: isize,
    there: Range<isize>,
    floats: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut from = [[buffer.zeros().cast_const(); 2]; SEEN];
        for (tap, row) in (block - REACH as isize..).take(R + TAPS - 1).enumerate() {
            if there.contains(&row) {
                from[tap] = [buffer.given(0, row).cast_const(), buffer.given(1, row).cast_const()];
            }
        }
        for at in (0..floats).step_by(W::N) {
            let mut sums = [[W::splat(0.0); R]; 4];
            each_tap!(down_tap::<W, R>(&from, window, at, &mut sums));
            for (map, sums) in sums.iter().enumerate() {
                for (r, sum) in sums.iter().enumerate() {
                    W::store(buffer.block(map, r).add(at), *sum);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn down_tap<W: Wide, const R: usize, const T: usize>(
    from: &[[*const f32; 2]; SEEN],
    window: &[f32; REACH + 1],
    at: usize,
    sums: &mut [[W::V; R]; 4],
) {
    if T < R + TAPS - 1 {
        // SAFETY: the caller's.
        unsafe {
            let (s, d) = (W::load(from[T][0].add(at)), W::load(from[T][1].add(at)));
            let maps = [s, d, W::mul(s, s), W::mul(d, d)];
            for r in 0..R {
                if T >= r && T - r < TAPS {
                    let weight = W::splat(window[(T - r).abs_diff(REACH)]);
                    for (sum, map) in sums.iter_mut().zip(maps) {
                        sum[r] = W::fma(map, weight, sum[r]);
                    }
                }
            }
        }
    }
}

/// Filters a row along itself.
#[inline(always)]
unsafe fn row_tap<W: Wide>(from: *const f32, window: &[f32; REACH + 1], step: usize) -> W::V {
    // SAFETY: the caller's; the row has a pad on either side.
    unsafe {
        let mut sum = W::mul(W::load(from.sub(REACH * step)), W::splat(window[REACH]));
        for tap in 1..TAPS {
            let value = W::load(from.offset((tap as isize - REACH as isize) * step as isize));
            sum = W::fma(value, W::splat(window[tap.abs_diff(REACH)]), sum);
        }
        sum
    }
}

/// Filters the block's row `r` along itself and works out the formula; gives the sum of `1 - SSIM`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn along<W: Wide, P: Plane>(
    plane: &P,
    buffer: &Rows,
    window: &[f32; REACH + 1],
    r: usize,
    scale: f32,
    weights: &LaneWeights,
    floats: usize,
    ahead: [usize; 2],
) -> f64 {
    // SAFETY: the caller's.
    unsafe {
        let step = P::STEP;
        let from: [*const f32; 4] = std::array::from_fn(|map| buffer.block(map, r).cast_const());
        let to: [*mut f32; 3] = std::array::from_fn(|map| buffer.formula(map));
        let (scale, scales) = (W::splat(scale), buffer.scale());
        let (zero, half, one, two) = (W::splat(0.0), W::splat(0.5), W::splat(1.0), W::splat(2.0));
        let mut total = zero;
        for at in (0..floats).step_by(W::N) {
            plane.prefetch::<W>(ahead[0], ahead[1], at / step);
            let scale = W::mul(scale, W::load(scales.add(at)));
            let ms = W::mul(row_tap::<W>(from[0].add(at), window, step), scale);
            let md = W::mul(row_tap::<W>(from[1].add(at), window, step), scale);
            let ss = W::mul(row_tap::<W>(from[2].add(at), window, step), scale);
            let dd = W::mul(row_tap::<W>(from[3].add(at), window, step), scale);
            let (ms2, md2) = (W::mul(ms, ms), W::mul(md, md));
            // Rounding may leave less than 0.
            let (vs, vd) = (W::max(W::sub(ss, ms2), zero), W::max(W::sub(dd, md2), zero));
            let a = W::fma(W::add(ms2, md2), half, W::splat(C1));
            let b = W::fma(W::add(vs, vd), half, W::splat(C2));
            let inverse = reciprocal::<W>(W::mul(a, b));
            let (by_a, by_b) = (W::mul(inverse, b), W::mul(inverse, a));
            let (p, q) = (W::mul(md2, by_a), W::mul(vd, by_b));
            let (l, c) = (W::sub(one, p), W::sub(one, q));
            let lane = at % LANES;
            total = W::fma(W::fma(q, l, p), W::load(weights.value[lane..].as_ptr()), total);
            let weight = W::mul(scale, W::load(weights.gradient[lane..].as_ptr()));
            let slope = W::mul(W::mul(l, by_b), weight);
            let gs = W::sub(zero, W::mul(q, slope));
            let gd = W::fma(two, slope, gs);
            let means = W::sub(W::mul(W::sub(two, p), md), W::mul(p, ms));
            let g = W::mul(W::mul(W::mul(c, by_a), weight), means);
            let g = W::sub(g, W::fma(md, gd, W::mul(ms, gs)));
            W::store(to[0].add(at), g);
            W::store(to[1].add(at), gd);
            W::store(to[2].add(at), gs);
        }
        f64::from(W::sum(total))
    }
}

/// `1 / x` to about 1e-7.
#[inline(always)]
unsafe fn reciprocal<W: Wide>(x: W::V) -> W::V {
    // SAFETY: the caller's. One step of Newton squares the error.
    unsafe {
        let rough = W::rough_reciprocal(x);
        W::mul(rough, W::sub(W::splat(2.0), W::mul(x, rough)))
    }
}

/// Filters the formula's maps along the row, into the ring.
#[inline(always)]
unsafe fn along_back<W: Wide>(buffer: &Rows, window: &[f32; REACH + 1], row: isize, floats: usize, step: usize) {
    // SAFETY: the caller's.
    unsafe {
        let from: [*const f32; 3] = std::array::from_fn(|map| buffer.formula(map).cast_const());
        let to: [*mut f32; 3] = std::array::from_fn(|map| buffer.back(map, row));
        for at in (0..floats).step_by(W::N) {
            for (from, to) in from.iter().zip(to) {
                W::store(to.add(at), row_tap::<W>(from.add(at), window, step));
            }
        }
    }
}

/// Filters the formula's maps across rows and puts the gradient of `R` rows together, into the block's first map.
#[inline(always)]
unsafe fn down_back<W: Wide, const R: usize>(
    buffer: &Rows,
    window: &[f32; REACH + 1],
    first: isize,
    there: Range<isize>,
    floats: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut from = [[buffer.zeros().cast_const(); 3]; SEEN];
        for (tap, row) in (first - REACH as isize..).take(R + TAPS - 1).enumerate() {
            if there.contains(&row) {
                from[tap] = std::array::from_fn(|map| buffer.back(map, row).cast_const());
            }
        }
        for at in (0..floats).step_by(W::N) {
            let mut sums = [[W::splat(0.0); R]; 3];
            each_tap!(down_back_tap::<W, R>(&from, window, at, &mut sums));
            for r in 0..R {
                let row = first + r as isize;
                let (s, d) = (W::load(buffer.given(0, row).add(at)), W::load(buffer.given(1, row).add(at)));
                let gradient = W::fma(s, sums[2][r], W::fma(d, sums[1][r], sums[0][r]));
                W::store(buffer.block(0, r).add(at), gradient);
            }
        }
    }
}

#[inline(always)]
unsafe fn down_back_tap<W: Wide, const R: usize, const T: usize>(
    from: &[[*const f32; 3]; SEEN],
    window: &[f32; REACH + 1],
    at: usize,
    sums: &mut [[W::V; R]; 3],
) {
    if T < R + TAPS - 1 {
        // SAFETY: the caller's.
        unsafe {
            let [g, gd, gs] = from[T];
            let maps = [W::load(g.add(at)), W::load(gd.add(at)), W::load(gs.add(at))];
            for r in 0..R {
                if T >= r && T - r < TAPS {
                    let weight = W::splat(window[(T - r).abs_diff(REACH)]);
                    for (sum, map) in sums.iter_mut().zip(maps) {
                        sum[r] = W::fma(map, weight, sum[r]);
                    }
                }
            }
        }
    }
}
