//! Forward projection by detector columns: the inner loop.
//!
//! In each plane the two z-columns of the volume beside the path are blended into one, which is then resampled along the rows:
//! risen row `r` reads height `z + slope * r`. 16 (or 8) rows read at most two aligned blocks of 16 (8) heights while the slope is at most 1,
//! and finding an entry among two registers is one instruction; steeper slopes split the rows into two or four groups with two
//! blocks each. No gathers, no bounds checks: zeros stand before and behind the blended column.

// SIMD and raw pointers: positions are clipped to the grid before the loops.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::joseph::Column;
#[cfg(target_arch = "x86_64")]
use super::super::lanes::{Avx2, Avx512, Lanes};
use super::super::simd::SimdLevel;

/// Zeros before and behind the blended column; a multiple of two blocks of any level, and more than the rows of one register can
/// stick out (16 rows of slope 5).
const MARGIN: usize = 96;

/// Rows of scratch beyond the detector's that one register may write.
pub(super) const ROW_BLOCK: usize = 16;

/// What all columns of a call share.
pub(super) struct Shared<'a> {
    pub(super) volume: &'a [f32],
    pub(super) voxels: [usize; 3],
    pub(super) rows: usize,
}

/// Floats of scratch that [`Workspace::new`] takes.
pub(super) fn workspace_floats(rows: usize, nz: usize) -> usize {
    rows.next_multiple_of(ROW_BLOCK) + nz.next_multiple_of(ROW_BLOCK) + 2 * MARGIN
}

/// A thread's working memory.
pub(super) struct Workspace<'a> {
    /// 0, 1, 2, ...: the rows' numbers.
    numbers: &'a mut [f32],
    /// [`MARGIN`] zeros, the blended column, zeros.
    blended: &'a mut [f32],
}

impl<'a> Workspace<'a> {
    pub(super) fn new(floats: &'a mut [f32], rows: usize, nz: usize) -> Self {
        let (numbers, rest) = floats.split_at_mut(rows.next_multiple_of(ROW_BLOCK));
        let blended = &mut rest[..nz.next_multiple_of(ROW_BLOCK) + 2 * MARGIN];
        for (row, number) in numbers.iter_mut().enumerate() {
            *number = row as f32;
        }
        blended.fill(0.0);
        Self { numbers, blended }
    }
}

/// One plane that a column crosses.
struct Step {
    /// Offsets in the volume of the z-columns below and above the path, and their weights.
    lower: usize,
    upper: usize,
    weight_lower: f32,
    weight_upper: f32,
    /// Height of risen row 0 and the rise per row.
    z: f64,
    slope: f64,
    /// Rows that meet the grid.
    begin: usize,
    end: usize,
}

/// Adds the samples of `column` in the given planes to `sums` (one a risen row, whole row blocks).
pub(super) fn add_planes(
    simd: SimdLevel,
    shared: &Shared<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    planes: Range<usize>,
    sums: &mut [f32],
) {
    let planes = planes.start.max(column.first as usize)..planes.end.min(column.last as usize);
    assert!(sums.len() >= shared.rows.next_multiple_of(ROW_BLOCK) && work.numbers.len() >= shared.rows);
    assert!(work.blended.len() >= shared.voxels[2].next_multiple_of(ROW_BLOCK) + 2 * MARGIN);
    assert!(shared.volume.len() >= shared.voxels.iter().product());
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the carrier refuses levels that the processor lacks; buffers are checked above.
        SimdLevel::Avx512 => unsafe { add_planes_avx512(shared, work, column, planes, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { add_planes_avx2(shared, work, column, planes, sums) },
        _ => {
            for k in planes {
                if let Some(step) = step(shared, column, k) {
                    add_plain(shared, work, &step, sums);
                }
            }
        }
    }
}

/// How `column` crosses plane `k`; `None` where no row meets the grid there.
#[inline(always)]
fn step(shared: &Shared<'_>, column: &Column, k: usize) -> Option<Step> {
    let [nx, ny, nz] = shared.voxels;
    let (others, plane_stride, other_stride) = if column.axis == 0 { (ny, ny * nz, nz) } else { (nx, nz, ny * nz) };
    let kf = k as f64;
    let other = column.other + kf * column.other_step;
    let (z, slope) = (column.z + kf * column.z_step, column.slope + kf * column.slope_step);
    // Conversions saturate, NaN becomes 0: no position can leave the ranges tested here.
    let begin = ((-1.0 - z) / slope).max(0.0) as usize;
    let end = shared.rows.min((((nz as f64 - z) / slope).max(0.0) as usize).saturating_add(1));
    if !(other > -1.0 && other < others as f64) || begin >= end {
        return None;
    }
    let floor = other.floor();
    let below = floor as isize;
    let fraction = (other - floor) as f32;
    // At a face the missing neighbour is zero: any column with weight 0 stands in for it.
    let has_lower = below >= 0;
    let has_upper = below + 1 < others as isize;
    let lower = if has_lower { below as usize } else { 0 };
    let upper = if has_upper { (below + 1) as usize } else { lower };
    Some(Step {
        lower: k * plane_stride + lower * other_stride,
        upper: k * plane_stride + upper * other_stride,
        weight_lower: if has_lower { 1.0 - fraction } else { 0.0 },
        weight_upper: if has_upper { fraction } else { 0.0 },
        z,
        slope,
        begin,
        end,
    })
}

/// Plain, and for slopes that the registers' way does not cover.
#[inline(always)]
fn add_plain(shared: &Shared<'_>, work: &mut Workspace<'_>, step: &Step, sums: &mut [f32]) {
    let nz = shared.voxels[2];
    let lowest = (step.z + step.begin as f64 * step.slope).max(0.0) as usize;
    let highest = nz.min((step.z + (step.end - 1) as f64 * step.slope).max(0.0) as usize + 2);
    let lower = &shared.volume[step.lower..][..nz];
    let upper = &shared.volume[step.upper..][..nz];
    for iz in lowest..highest {
        work.blended[MARGIN + iz] = step.weight_lower * lower[iz] + step.weight_upper * upper[iz];
    }
    // Heights over the grid's middle, where single precision is finest.
    let centre = (nz / 2) as f64;
    let (z, slope) = ((step.z - centre) as f32, step.slope as f32);
    let shift = centre as f32 + MARGIN as f32;
    for row in step.begin..step.end {
        let height = z + slope * row as f32;
        // Truncation is floor for the heights within reach; those further below land among the zeros, those above are skipped.
        let whole = (height + shift) as usize;
        let fraction = height - (whole as f32 - shift);
        if whole + 1 < work.blended.len() {
            let (a, b) = (work.blended[whole], work.blended[whole + 1]);
            sums[row] += a + fraction * (b - a);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn add_planes_avx512(
    shared: &Shared<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    planes: Range<usize>,
    sums: &mut [f32],
) {
    // SAFETY: the caller checked processor and buffers.
    unsafe { add_planes_wide::<Avx512>(shared, work, column, planes, sums) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_planes_avx2(
    shared: &Shared<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    planes: Range<usize>,
    sums: &mut [f32],
) {
    // SAFETY: the caller checked processor and buffers.
    unsafe { add_planes_wide::<Avx2>(shared, work, column, planes, sums) }
}

/// Accuracy in voxels of the heights in single precision, with a wide margin: block choice is done that much lower.
const SLACK: f64 = 1.0 / 1024.0;

/// # Safety
/// Processor has the level; buffers as [`add_planes`] checks them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add_planes_wide<L: Lanes>(
    shared: &Shared<'_>,
    work: &mut Workspace<'_>,
    column: &Column,
    planes: Range<usize>,
    sums: &mut [f32],
) {
    let reach = L::N as f64 - 1.0 - 2.0 * SLACK;
    for k in planes {
        let Some(step) = step(shared, column, k) else { continue };
        // A group of g rows spans (g - 1) * slope voxels, which must fit into one block and the first entry of the next.
        let spans = |group: usize| (group - 1) as f64 * step.slope <= reach;
        // SAFETY: the caller's.
        unsafe {
            if spans(L::N) {
                blend::<L>(shared, work, &step);
                resample::<L, 1>(shared, work, &step, sums);
            } else if spans(L::N / 2) {
                blend::<L>(shared, work, &step);
                resample::<L, 2>(shared, work, &step, sums);
            } else if spans(L::N / 4) && step.slope <= 5.0 {
                blend::<L>(shared, work, &step);
                resample::<L, 4>(shared, work, &step, sums);
            } else {
                add_plain(shared, work, &step, sums);
            }
        }
    }
}

/// Blends the blocks of the two z-columns that the rows of `step` can touch, also those that share a register with them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn blend<L: Lanes>(shared: &Shared<'_>, work: &mut Workspace<'_>, step: &Step) {
    let nz = shared.voxels[2];
    let first_row = step.begin / L::N * L::N;
    let last_row = step.end.next_multiple_of(L::N) - 1;
    let lowest = (step.z + first_row as f64 * step.slope - SLACK).max(0.0) as usize / L::N * L::N;
    let highest = nz.min((step.z + last_row as f64 * step.slope + SLACK).max(0.0) as usize + 2);
    // SAFETY: z-columns lie within the volume (`step` made their offsets); blocks start below nz, the last is loaded in part;
    // `blended` holds whole blocks for nz.
    unsafe {
        let lower = shared.volume.as_ptr().add(step.lower);
        let upper = shared.volume.as_ptr().add(step.upper);
        let to = work.blended.as_mut_ptr().add(MARGIN);
        let (wl, wu) = (L::splat(step.weight_lower), L::splat(step.weight_upper));
        let mut iz = lowest;
        while iz + L::N <= nz && iz < highest {
            let value = L::fma(wu, L::load(upper.add(iz)), L::mul(wl, L::load(lower.add(iz))));
            L::store(to.add(iz), value);
            iz += L::N;
        }
        if iz < highest {
            let (a, b) = (L::load_first(lower.add(iz), nz - iz), L::load_first(upper.add(iz), nz - iz));
            L::store(to.add(iz), L::fma(wu, b, L::mul(wl, a)));
        }
    }
}

/// Adds the blended column, resampled, to the rows; rows go in `GROUPS` groups a register, each with its own two blocks.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn resample<L: Lanes, const GROUPS: usize>(
    shared: &Shared<'_>,
    work: &mut Workspace<'_>,
    step: &Step,
    sums: &mut [f32],
) {
    const ONE: f64 = (1u64 << 32) as f64;
    let block_shift = 32 + L::N.trailing_zeros();
    // Heights over a multiple of two blocks near the middle: the same entry mod 2N, and the finest single precision.
    let centre = (shared.voxels[2] / 2 / 32 * 32) as f64;
    let group = L::N / GROUPS;
    let first_row = step.begin / L::N * L::N;
    // Fixed point (32.32) position of a group's first row in `blended`, a little low: integer work leaves the vector units alone.
    let mut position = ((step.z + first_row as f64 * step.slope + MARGIN as f64 - SLACK) * ONE) as i64;
    let group_rise = (step.slope * group as f64 * ONE) as i64;
    // SAFETY: rows up to the next multiple of N lie within `numbers` and `sums`. Rows that meet the grid are in [-1, nz]; those that
    // share their register stick out by less than N * slope <= 16 * 5 < MARGIN, so that all blocks lie within `blended`.
    unsafe {
        let blended = work.blended.as_ptr();
        let (z, slope) = (L::splat((step.z - centre) as f32), L::splat(step.slope as f32));
        let one = L::splat_index(1);
        let mut row = first_row;
        while row < step.end {
            let height = L::fma(slope, L::load(work.numbers.as_ptr().add(row)), z);
            let whole = L::floor(height);
            let fraction = L::sub(height, whole);
            let index = L::index(whole);
            let above = L::add_index(index, one);
            let mut pair = |position: i64| {
                let block = (position >> block_shift) as usize;
                let even = L::load(blended.add((block + 1 & !1) * L::N));
                let odd = L::load(blended.add((block | 1) * L::N));
                (L::lookup(index, even, odd), L::lookup(above, even, odd))
            };
            let (mut a, mut b) = pair(position);
            position += group_rise;
            if GROUPS == 2 {
                let (c, d) = pair(position);
                (a, b) = (L::join::<2>(a, c), L::join::<2>(b, d));
                position += group_rise;
            }
            if GROUPS == 4 {
                let (c, d) = pair(position);
                (a, b) = (L::join::<1>(a, c), L::join::<1>(b, d));
                let (c, d) = pair(position + group_rise);
                (a, b) = (L::join::<2>(a, c), L::join::<2>(b, d));
                let (c, d) = pair(position + 2 * group_rise);
                (a, b) = (L::join::<3>(a, c), L::join::<3>(b, d));
                position += 3 * group_rise;
            }
            let sum = sums.as_mut_ptr().add(row);
            L::store(sum, L::fma(fraction, L::sub(b, a), L::add(L::load(sum), a)));
            row += L::N;
        }
    }
}
