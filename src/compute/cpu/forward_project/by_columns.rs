//! Forward projection by detector columns: the inner loop.
//!
//! In each plane the two z-columns of the volume beside the path are blended into one, which is then resampled along the rows:
//! risen row `r` reads height `z + slope * r`. 16 (or 8) rows read at most two aligned blocks of 16 (8) heights while the slope is at most 1,
//! and finding an entry among two registers is one instruction; steeper slopes split the rows into two or four groups with two
//! blocks each. No gathers, no bounds checks: zeros stand before and behind the blended column.

// SIMD and raw pointers: positions are clipped to the grid before the loops.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::joseph::{Column, whole};
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
    rows.next_multiple_of(ROW_BLOCK) + 2 * blended_floats(nz)
}

fn blended_floats(nz: usize) -> usize {
    nz.next_multiple_of(ROW_BLOCK) + 2 * MARGIN
}

/// A thread's working memory.
pub(super) struct Workspace<'a> {
    /// 0, 1, 2, ...: the rows' numbers.
    numbers: &'a mut [f32],
    /// Twice: [`MARGIN`] zeros, a blended column, zeros. One is filled while the other is read.
    blended: [&'a mut [f32]; 2],
}

impl<'a> Workspace<'a> {
    pub(super) fn new(floats: &'a mut [f32], rows: usize, nz: usize) -> Self {
        let (numbers, rest) = floats.split_at_mut(rows.next_multiple_of(ROW_BLOCK));
        let (first, rest) = rest.split_at_mut(blended_floats(nz));
        let second = &mut rest[..blended_floats(nz)];
        for (row, number) in numbers.iter_mut().enumerate() {
            *number = row as f32;
        }
        first.fill(0.0);
        second.fill(0.0);
        Self { numbers, blended: [first, second] }
    }
}

/// One plane that a column crosses. All is laid out for several planes before the loops over rows start, whose ends the processor
/// mispredicts: what follows a loop must not wait for long chains of arithmetic.
#[derive(Clone, Copy)]
struct Step {
    /// Height of risen row 0 and the rise per row.
    z: f64,
    slope: f64,
    /// Offsets in the volume of the z-columns below and above the path, and their weights.
    lower: usize,
    upper: usize,
    weight_lower: f32,
    weight_upper: f32,
    /// Rows that meet the grid.
    begin: i32,
    end: i32,
    /// Heights that these rows touch.
    lowest: i32,
    highest: i32,
}

impl Step {
    const NONE: Self = Self {
        z: 0.0,
        slope: 0.0,
        lower: 0,
        upper: 0,
        weight_lower: 0.0,
        weight_upper: 0.0,
        begin: 0,
        end: 0,
        lowest: 0,
        highest: 0,
    };
}

/// Steps laid out at a time.
const STEPS: usize = 16;

/// Accuracy in voxels of the heights in single precision, with a wide margin: block choice is done that much lower.
const SLACK: f64 = 1.0 / 1024.0;

/// Asks for the part of the volume that `column` will need in the given planes, so that it is in the second-level cache by then.
pub(super) fn prefetch(shared: &Shared<'_>, column: &Column, planes: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        const LINE: usize = 16;
        let [nx, ny, nz] = shared.voxels;
        let (others, plane_stride, other_stride) = if column.axis == 0 { (ny, ny * nz, nz) } else { (nx, nz, ny * nz) };
        for k in planes.start.max(column.first as usize)..planes.end.min(column.last as usize) {
            // The neighbouring columns of the detector ask for the z-column above the path.
            let below = whole(column.other + k as f64 * column.other_step, 0.0, others as f64 - 1.0) as usize;
            let start = k * plane_stride + below * other_stride;
            for offset in (0..nz).step_by(LINE) {
                // SAFETY: a prefetch reads nothing; the address lies within the volume.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(shared.volume.as_ptr().add(start + offset).cast()) };
            }
        }
    }
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
    assert!(work.blended.iter().all(|b| b.len() >= blended_floats(shared.voxels[2])));
    assert!(shared.volume.len() >= shared.voxels.iter().product());
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the carrier refuses levels that the processor lacks; buffers are checked above.
        SimdLevel::Avx512 => unsafe { add_planes_avx512(shared, work, column, planes, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { add_planes_avx2(shared, work, column, planes, sums) },
        _ => {
            let mut steps = [Step::NONE; STEPS];
            for start in planes.clone().step_by(STEPS) {
                for step in lay_out(shared, column, start..planes.end.min(start + STEPS), &mut steps) {
                    add_plain(shared, work.blended[0], step, sums);
                }
            }
        }
    }
}

/// How `column` crosses each of up to [`STEPS`] planes; planes in which no row meets the grid are left out.
#[inline(always)]
fn lay_out<'s>(shared: &Shared<'_>, column: &Column, planes: Range<usize>, steps: &'s mut [Step; STEPS]) -> &'s [Step] {
    let [nx, ny, nz] = shared.voxels;
    let (others, plane_stride, other_stride) = if column.axis == 0 { (ny, ny * nz, nz) } else { (nx, nz, ny * nz) };
    let (rows, top, last_other) = (shared.rows as f64, nz as f64, others as i32 - 1);
    let mut count = 0;
    for k in planes {
        let kf = k as f64;
        let other = column.other + kf * column.other_step;
        let (z, slope) = (column.z + kf * column.z_step, column.slope + kf * column.slope_step);
        let rows_per_voxel = 1.0 / slope;
        let begin = whole((-1.0 - z) * rows_per_voxel, 0.0, rows);
        let end = whole((top - z) * rows_per_voxel, -1.0, rows - 1.0) + 1;
        let below = whole(other, -1.0, others as f64);
        let fraction = (other - f64::from(below)) as f32;
        // At a face the missing neighbour is zero: any column with weight 0 stands in for it.
        let lower = below.clamp(0, last_other);
        let upper = (below + 1).clamp(0, last_other);
        steps[count] = Step {
            z,
            slope,
            lower: k * plane_stride + lower as usize * other_stride,
            upper: k * plane_stride + upper as usize * other_stride,
            weight_lower: if below < 0 { 0.0 } else { 1.0 - fraction },
            weight_upper: if below < last_other { fraction } else { 0.0 },
            begin,
            end,
            lowest: whole(z - SLACK, 0.0, top),
            highest: whole(z + (rows - 1.0) * slope + SLACK, -2.0, top - 2.0) + 2,
        };
        count += usize::from(other > -1.0 && other < others as f64 && begin < end);
    }
    &steps[..count]
}

/// Plain, and for slopes that the registers' way does not cover.
#[inline(always)]
fn add_plain(shared: &Shared<'_>, blended: &mut [f32], step: &Step, sums: &mut [f32]) {
    let nz = shared.voxels[2];
    let lower = &shared.volume[step.lower..][..nz];
    let upper = &shared.volume[step.upper..][..nz];
    for iz in step.lowest as usize..step.highest.max(0) as usize {
        blended[MARGIN + iz] = step.weight_lower * lower[iz] + step.weight_upper * upper[iz];
    }
    // Heights over the grid's middle, where single precision is finest.
    let centre = (nz / 2) as f64;
    let (z, slope) = ((step.z - centre) as f32, step.slope as f32);
    let shift = centre as f32 + MARGIN as f32;
    let last = blended.len() as i32 - 2;
    for row in step.begin..step.end {
        let height = z + slope * row as f32;
        // Truncation is floor for the heights within reach; rows that stick out further end among the zeros on either side.
        let whole = ((height + shift) as i32).clamp(0, last);
        let fraction = height - (whole as f32 - shift);
        let (a, b) = (blended[whole as usize], blended[whole as usize + 1]);
        sums[row as usize] += a + fraction * (b - a);
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
    // A group of g rows spans (g - 1) * slope voxels, which must fit into one block and the first entry of the next.
    let steepest = |group: usize| (L::N as f64 - 1.0 - 2.0 * SLACK) / (group - 1) as f64;
    let (one, two, four) = (steepest(L::N), steepest(L::N / 2), steepest(L::N / 4).min(5.0));
    let Workspace { numbers, blended: [current, next] } = work;
    let mut laid_out = [Step::NONE; STEPS];
    for start in planes.clone().step_by(STEPS) {
        let steps = lay_out(shared, column, start..planes.end.min(start + STEPS), &mut laid_out);
        let Some(first) = steps.first() else { continue };
        // SAFETY: the caller's.
        unsafe {
            blend::<L>(shared, current, first);
            for (index, step) in steps.iter().enumerate() {
                // The next column is blended before this one's rows are looked up, so that its loads have time to arrive.
                if let Some(following) = steps.get(index + 1) {
                    blend::<L>(shared, next, following);
                }
                if step.slope <= one {
                    resample::<L, 1>(shared, numbers, current, step, sums);
                } else if step.slope <= two {
                    resample::<L, 2>(shared, numbers, current, step, sums);
                } else if step.slope <= four {
                    resample::<L, 4>(shared, numbers, current, step, sums);
                } else {
                    add_plain(shared, current, step, sums);
                }
                std::mem::swap(current, next);
            }
        }
    }
}

/// Blends the blocks of the two z-columns that the rows of `step` touch.
///
/// # Safety
/// As [`add_planes_wide`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn blend<L: Lanes>(shared: &Shared<'_>, blended: &mut [f32], step: &Step) {
    let nz = shared.voxels[2];
    let highest = step.highest.max(0) as usize;
    let mut iz = step.lowest as usize / L::N * L::N;
    // SAFETY: z-columns lie within the volume (`lay_out` made their offsets); blocks start below nz, the last is loaded in part;
    // `blended` holds whole blocks for nz.
    unsafe {
        let lower = shared.volume.as_ptr().add(step.lower);
        let upper = shared.volume.as_ptr().add(step.upper);
        let to = blended.as_mut_ptr().add(MARGIN);
        let (wl, wu) = (L::splat(step.weight_lower), L::splat(step.weight_upper));
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
///
/// # Safety
/// As [`add_planes_wide`]; the slope is within what `GROUPS` groups can span, and at most 5.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn resample<L: Lanes, const GROUPS: usize>(
    shared: &Shared<'_>,
    numbers: &[f32],
    blended: &[f32],
    step: &Step,
    sums: &mut [f32],
) {
    const ONE: f64 = (1u64 << 32) as f64;
    let block_shift = 32 + L::N.trailing_zeros();
    // Heights over a multiple of two blocks near the middle: the same entry mod 2N, and the finest single precision.
    let centre = (shared.voxels[2] / 2 / 32 * 32) as f64;
    let first_row = step.begin as usize / L::N * L::N;
    // Fixed point (32.32) position of a group's first row in `blended`, a little low: integer work leaves the vector units alone.
    // SAFETY: slopes are in (0, 5], and the first row is in reach of the grid: both products are far within 63 bits.
    let (mut position, group_rise) = unsafe {
        let start = step.z + first_row as f64 * step.slope + MARGIN as f64 - SLACK;
        let rise = step.slope * (L::N / GROUPS) as f64;
        ((start * ONE).to_int_unchecked::<i64>(), (rise * ONE).to_int_unchecked::<i64>())
    };
    // SAFETY: rows up to the next multiple of N lie within `numbers` and `sums`. Rows that meet the grid are in [-1, nz]; those that
    // share their register stick out by less than N * slope <= 16 * 5 < MARGIN, so that all blocks lie within `blended`.
    unsafe {
        let blended = blended.as_ptr();
        let (z, slope) = (L::splat((step.z - centre) as f32), L::splat(step.slope as f32));
        let one = L::splat_index(1);
        let mut row = first_row;
        while row < step.end as usize {
            let height = L::fma(slope, L::load(numbers.as_ptr().add(row)), z);
            let whole = L::floor(height);
            let fraction = L::sub(height, whole);
            let index = L::index(whole);
            let above = L::add_index(index, one);
            let pair = |position: i64| {
                let block = (position >> block_shift) as usize;
                let even = L::load(blended.add(((block + 1) & !1) * L::N));
                let odd = L::load(blended.add((block | 1) * L::N));
                (L::lookup(index, even, odd), L::lookup(above, even, odd))
            };
            let (mut a, mut b) = pair(position);
            if GROUPS == 2 {
                let (c, d) = pair(position + group_rise);
                (a, b) = (L::join::<2>(a, c), L::join::<2>(b, d));
            }
            if GROUPS == 4 {
                let (c, d) = pair(position + group_rise);
                (a, b) = (L::join::<1>(a, c), L::join::<1>(b, d));
                let (c, d) = pair(position + 2 * group_rise);
                (a, b) = (L::join::<2>(a, c), L::join::<2>(b, d));
                let (c, d) = pair(position + 3 * group_rise);
                (a, b) = (L::join::<3>(a, c), L::join::<3>(b, d));
            }
            let sum = sums.as_mut_ptr().add(row);
            L::store(sum, L::fma(fraction, L::sub(b, a), L::add(L::load(sum), a)));
            position += GROUPS as i64 * group_rise;
            row += L::N;
        }
    }
}
