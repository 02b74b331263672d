//! Matched back-projection by detector columns: the inner loop.
//!
//! In each plane a column of the projections is brought to the heights of the voxels (the resampling of the forward projector
//! transposed) and added to the two z-columns beside the path with their weights. The transposed resampling gathers: height `z` takes the few
//! rows `r` with `|z(r) - z| < 1`, weighted `1 - |z(r) - z|`, the forward projector's own weights, from two registers of rows per tap;
//! where 16 (8) heights span more rows than fit, they are split into two or four groups. Nothing is scattered, nothing is atomic.

// SIMD and raw pointers: positions are clipped to the tile before the loops.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::joseph::{Column, whole};
#[cfg(target_arch = "x86_64")]
use super::super::lanes::{Avx2, Avx512, Lanes};
use super::super::simd::SimdLevel;

/// Zeros between two columns of rows: the most rows (taps) that one height takes in the registers' way.
pub(super) const GAP: usize = 16;

/// Floats before the first and after the last column that registers may read.
pub(super) const GUARD: usize = 64;

/// Heights in a register of any level.
pub(super) const HEIGHT_BLOCK: usize = 16;

/// Part of a plane block that one thread gathers: `planes` of `others + 2` z-columns (one beyond each face, never looked at) of `stride`
/// floats, for the heights `heights`.
pub(in super::super) struct Tile<'a> {
    pub(in super::super) sums: &'a mut [f32],
    pub(in super::super) planes: Range<usize>,
    pub(in super::super) others: usize,
    pub(in super::super) heights: Range<usize>,
    pub(in super::super) stride: usize,
}

/// A thread's working memory beside the tile.
pub(super) struct Workspace<'a> {
    /// Heights of the tile over `centre`.
    numbers: &'a mut [f32],
    /// One column of heights with two more on each side.
    heights: &'a mut [f32],
    centre: f64,
}

/// Floats of scratch that [`Workspace::new`] takes.
pub(super) fn workspace_floats(stride: usize) -> usize {
    2 * stride + 4
}

impl<'a> Workspace<'a> {
    pub(super) fn new(floats: &'a mut [f32], tile: &Tile<'_>) -> Self {
        let (numbers, rest) = floats.split_at_mut(tile.stride);
        // Heights over the tile's middle, where single precision is finest.
        let centre = ((tile.heights.start + tile.heights.end) / 2) as f64;
        for (index, number) in numbers.iter_mut().enumerate() {
            *number = ((tile.heights.start + index) as f64 - centre) as f32;
        }
        Self { numbers, heights: &mut rest[..tile.stride + 4], centre }
    }
}

/// One plane that a column crosses. All is laid out for several planes before the loops over heights start, whose ends the processor
/// mispredicts: what follows a loop must not wait for long chains of arithmetic.
#[derive(Clone, Copy)]
struct Step {
    /// Offset in the tile of the z-column below the path; the one above follows.
    lower: usize,
    weight_lower: f32,
    weight_upper: f32,
    /// Height of risen row 0 and the rise per row.
    z: f64,
    slope: f64,
    /// Rows from one height to the next.
    per_height: f64,
    /// Heights of the tile within reach of the rows, counted from the tile's first.
    begin: usize,
    end: usize,
}

impl Step {
    const NONE: Self =
        Self { lower: 0, weight_lower: 0.0, weight_upper: 0.0, z: 0.0, slope: 0.0, per_height: 0.0, begin: 0, end: 0 };
}

/// Steps laid out at a time.
const STEPS: usize = 16;

/// Adds a column of rows (`GUARD` readable floats around it, at least `GAP` zeros on each side) to the planes of the tile.
///
/// `all` holds all columns, `start` is where this one's risen row 0 stands.
pub(super) fn add_column(
    simd: SimdLevel,
    tile: &mut Tile<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    all: &[f32],
    start: usize,
    rows: usize,
) {
    assert!(start >= GUARD && start + rows + GUARD <= all.len());
    assert!(
        tile.sums.len() >= tile.planes.len() * (tile.others + 2) * tile.stride && work.numbers.len() >= tile.stride
    );
    assert!(tile.stride.is_multiple_of(HEIGHT_BLOCK) && tile.stride >= tile.heights.len());
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the carrier refuses levels that the processor lacks; buffers are checked above.
        SimdLevel::Avx512 => unsafe { add_column_avx512(tile, work, column, all, start, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { add_column_avx2(tile, work, column, all, start, rows) },
        _ => {
            let (planes, mut laid_out) = (crossed(tile, column), [Step::NONE; STEPS]);
            for first in planes.clone().step_by(STEPS) {
                for step in lay_out(tile, column, rows, first..planes.end.min(first + STEPS), &mut laid_out) {
                    add_plain(tile, work, step, &all[start..start + rows]);
                }
            }
        }
    }
}

/// Planes of the tile that the column crosses.
fn crossed(tile: &Tile<'_>, column: &Column) -> Range<usize> {
    tile.planes.start.max(column.first as usize)..tile.planes.end.min(column.last as usize)
}

/// How `column` crosses each of up to [`STEPS`] planes; planes in which it does not reach the tile are left out.
#[inline(always)]
fn lay_out<'s>(
    tile: &Tile<'_>,
    column: &Column,
    rows: usize,
    planes: Range<usize>,
    steps: &'s mut [Step; STEPS],
) -> &'s [Step] {
    let (low, heights, others) = (tile.heights.start as f64, tile.heights.len() as f64, tile.others as f64);
    let last_row = (rows - 1) as f64;
    let mut count = 0;
    for k in planes {
        let kf = k as f64;
        let other = column.other + kf * column.other_step;
        let (z, slope) = (column.z + kf * column.z_step, column.slope + kf * column.slope_step);
        let below = whole(other, -1.0, others - 1.0);
        let fraction = (other - f64::from(below)) as f32;
        // The tile's columns start one beyond the face.
        let lower = (k - tile.planes.start) * (tile.others + 2) + (below + 1) as usize;
        let begin = whole(z - 1.0 - low, 0.0, heights) as usize;
        let end = whole(z + last_row * slope + 2.0 - low, 0.0, heights) as usize;
        steps[count] = Step {
            lower: lower * tile.stride,
            weight_lower: 1.0 - fraction,
            weight_upper: fraction,
            z,
            slope,
            per_height: 1.0 / slope,
            begin,
            end,
        };
        count += usize::from(other > -1.0 && other < others && begin < end);
    }
    &steps[..count]
}

/// Plain, and for slopes that the registers' way does not cover: the forward projector's loop, reading and writing exchanged.
#[inline(always)]
fn add_plain(tile: &mut Tile<'_>, work: &mut Workspace<'_>, step: &Step, rows: &[f32]) {
    let low = tile.heights.start as f64;
    let count = tile.heights.len();
    // heights[i] stands for the tile's height i - 2; what falls beside the tile is never read.
    let heights = &mut work.heights[..count + 4];
    heights[step.begin..step.end + 4].fill(0.0);
    let first = (((low - 1.0 - step.z) / step.slope).max(0.0)) as usize;
    let last = rows.len().min((((low + count as f64 - step.z) / step.slope).max(0.0) as usize).saturating_add(1));
    let (z, slope) = ((step.z - work.centre) as f32, step.slope as f32);
    let shift = (work.centre - low) as f32 + 2.0;
    for (row, value) in rows.iter().enumerate().take(last).skip(first) {
        let height = z + slope * row as f32;
        // Truncation is floor but for rows that end below heights[0], which may go to it: it stands beside the tile.
        let whole = (height + shift) as i32;
        let fraction = height - (whole as f32 - shift);
        let whole = whole as usize;
        if whole >= step.begin && whole < step.end + 2 {
            heights[whole] += (1.0 - fraction) * value;
            heights[whole + 1] += fraction * value;
        }
    }
    let (lower, upper) = tile.sums[step.lower..].split_at_mut(tile.stride);
    for i in step.begin..step.end {
        lower[i] += step.weight_lower * heights[i + 2];
        upper[i] += step.weight_upper * heights[i + 2];
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn add_column_avx512(
    tile: &mut Tile<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    all: &[f32],
    start: usize,
    rows: usize,
) {
    // SAFETY: the caller checked processor and buffers.
    unsafe { add_column_wide::<Avx512>(tile, work, column, all, start, rows) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_column_avx2(
    tile: &mut Tile<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    all: &[f32],
    start: usize,
    rows: usize,
) {
    // SAFETY: the caller checked processor and buffers.
    unsafe { add_column_wide::<Avx2>(tile, work, column, all, start, rows) }
}

/// Accuracy in rows of the positions in single precision, with a wide margin: the choice of registers is done that much lower.
const SLACK: f64 = 1.0 / 1024.0;

/// # Safety
/// Processor has the level; buffers as [`add_column`] checks them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add_column_wide<L: Lanes>(
    tile: &mut Tile<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    all: &[f32],
    start: usize,
    rows: usize,
) {
    // The first rows of a group of g heights must lie within two registers.
    let most = |group: usize| ((2 * L::N - 1) as f64 - 2.0 * SLACK) / (group - 1) as f64;
    let (one, two, four) = (most(L::N), most(L::N / 2), most(L::N / 4));
    let rows_at = all[start..].as_ptr();
    let (planes, mut laid_out) = (crossed(tile, column), [Step::NONE; STEPS]);
    for first in planes.clone().step_by(STEPS) {
        for step in lay_out(tile, column, rows, first..planes.end.min(first + STEPS), &mut laid_out) {
            let per_height = step.per_height;
            // SAFETY: the caller's; `per_height` is bounded before `taps` is used.
            unsafe {
                if per_height > four || per_height > 0.5 * (GAP - 1) as f64 {
                    add_plain(tile, work, step, &all[start..start + rows]);
                    continue;
                }
                let taps = whole(-2.0 * per_height, -(GAP as f64), -1.0).unsigned_abs() as usize;
                if per_height <= one {
                    match taps {
                        2 => gather::<L, 1, 2>(tile, work, step, rows_at, rows, 2),
                        3 => gather::<L, 1, 3>(tile, work, step, rows_at, rows, 3),
                        4 => gather::<L, 1, 4>(tile, work, step, rows_at, rows, 4),
                        5 => gather::<L, 1, 5>(tile, work, step, rows_at, rows, 5),
                        taps => gather::<L, 1, 0>(tile, work, step, rows_at, rows, taps),
                    }
                } else if per_height <= two {
                    match taps {
                        4 => gather::<L, 2, 4>(tile, work, step, rows_at, rows, 4),
                        5 => gather::<L, 2, 5>(tile, work, step, rows_at, rows, 5),
                        taps => gather::<L, 2, 0>(tile, work, step, rows_at, rows, taps),
                    }
                } else {
                    gather::<L, 4, 0>(tile, work, step, rows_at, rows, taps);
                }
            }
        }
    }
}

/// Gathers `TAPS` (0: `taps`) rows for each height of the step; heights go in `GROUPS` groups a register, each with its own two
/// registers of rows.
///
/// # Safety
/// As [`add_column_wide`]; `taps <= GAP - 1`; `rows_at` has `GAP` zeros on each side and `GUARD` readable floats.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn gather<L: Lanes, const GROUPS: usize, const TAPS: usize>(
    tile: &mut Tile<'_>,
    work: &Workspace<'_>,
    step: &Step,
    rows_at: *const f32,
    rows: usize,
    taps: usize,
) {
    const ONE: f64 = (1u64 << 32) as f64;
    let taps = if TAPS == 0 { taps } else { TAPS };
    let per_height = step.per_height;
    // Heights beyond the rows' reach look among the zeros around the column.
    let (lowest, highest) = (-(taps as i64 + 1), rows as i64 - 1);
    let first = step.begin / L::N * L::N;
    // Row position (real) at which the reach of a height begins: (z - 1 - z_0) / slope.
    let position_of = |height: f64| (height - 1.0 - step.z) * per_height;
    let start = position_of((tile.heights.start + first) as f64);
    // Fixed point 32.32, a little low: integer work leaves the vector units alone. Far beyond the ends it is cut off.
    // SAFETY: the position is cut to 20 bits and `per_height` is below `GAP`: both products are within 63 bits.
    let (mut position, group_rise) = unsafe {
        // Not `clamp`, which lets NaN through.
        #[allow(clippy::manual_clamp)]
        let kept = (start - SLACK).max(-1e6).min(1e6);
        let rise = per_height * (L::N / GROUPS) as f64;
        ((kept * ONE).to_int_unchecked::<i64>(), (rise * ONE).to_int_unchecked::<i64>())
    };
    // SAFETY: heights up to the next multiple of N lie within the tile's stride; positions are cut to [lowest, highest], from where
    // 2 N + taps floats are readable.
    unsafe {
        let (per, offset) = (L::splat(per_height as f32), L::splat(position_of(work.centre) as f32));
        let (z, slope) = (L::splat((step.z - work.centre) as f32), L::splat(step.slope as f32));
        let (min, max) = (L::splat(lowest as f32), L::splat(highest as f32));
        let (one, zero) = (L::splat(1.0), L::splat(0.0));
        let (lower, upper) = (L::splat(step.weight_lower), L::splat(step.weight_upper));
        let mut height = first;
        while height < step.end {
            let number = L::load(work.numbers.as_ptr().add(height));
            let row = L::floor(L::min(L::max(L::fma(per, number, offset), min), max));
            let index = L::index(row);
            let group = |g: i64| {
                let base = ((position + g * group_rise) >> 32).clamp(lowest, highest);
                (rows_at.offset(base as isize + 1), L::sub_index(index, L::splat_index(base as i32)))
            };
            let groups = [group(0), group(1 % GROUPS as i64), group(2 % GROUPS as i64), group(3 % GROUPS as i64)];
            let tap = |j: usize| {
                let pick = |g: usize| {
                    let (from, index) = groups[g];
                    L::lookup(index, L::load(from.add(j)), L::load(from.add(j + L::N)))
                };
                match GROUPS {
                    1 => pick(0),
                    2 => L::join::<2>(pick(0), pick(1)),
                    _ => L::join::<2>(L::join::<1>(pick(0), pick(1)), L::join::<3>(pick(2), pick(3))),
                }
            };
            // The forward projector's own height of the first row, less this height: in (-1, slope - 1].
            let mut distance = L::sub(L::fma(slope, L::add(row, one), z), number);
            let mut sum = zero;
            for j in 0..taps - 1 {
                sum = L::fma(L::sub(one, L::abs(distance)), tap(j), sum);
                distance = L::add(distance, slope);
            }
            // Only the last row can be out of reach.
            let weight = L::max(L::sub(one, L::abs(distance)), zero);
            sum = L::fma(weight, tap(taps - 1), sum);
            let below = tile.sums.as_mut_ptr().add(step.lower + height);
            let above = below.add(tile.stride);
            L::store(below, L::fma(lower, sum, L::load(below)));
            L::store(above, L::fma(upper, sum, L::load(above)));
            position += GROUPS as i64 * group_rise;
            height += L::N;
        }
    }
}
