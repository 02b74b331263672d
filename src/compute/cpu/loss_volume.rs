//! Structural similarity of two volumes, slice by slice across the three axes, with its gradient.
//!
//! **Work.** Three times [`super::loss_window`]'s 196 lane operations a voxel, and 12 shuffles for the two axes whose slices have to be turned to lie
//! side by side in lanes: on two vector units of 16 lanes 18 clock periods a voxel. **Bytes.** Both volumes are read and the gradient is read and
//! written once an axis: 48 bytes a voxel; and both are read once more, to be checked and to find empty slices. An axis of weight 0 saves its third.
//! `benches/losses.rs` holds the time against that floor: 1.9 of it at 128^3 (25 ms on one thread with AVX-512, 35 ms with AVX2), 3.0 at 256^3, where
//! the slices across y and z leave the last-level cache.
//!
//! **Scratch.** 101 rows of 16 slices a thread, and a few floats a row of slices for all: at 128^3 0.85 MiB a thread and 0.13 MiB; never a volume.
//!
//! **Order.** Axis after axis adds to the gradient; a slice's sum is taken row by row, slices in their order.
//!
//! Keeping the reference's own maps (mean and mean square, of three axes) from call to call would save 22 of the 196 operations and read 24 bytes a
//! voxel more: no gain is to be had from that on a processor where the bytes cost as much as the operations.

// Generic SIMD on slices whose strides are checked; tasks write disjoint slices.
#![allow(unsafe_code)]
// Indices name lanes and rows of registers, in several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::losses::{LossWorkload, VolumeSsimLoss, VolumeSsimValue};
use super::gaussian_lanes::{Wide, at_each_level};
use super::loss_window::{LANES, LaneWeights, Plane, buffer_floats, similarity};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use super::{check_len, check_values};

const OPERATION: &str = "volume_ssim_loss";

/// Rows of the thinnest band that a slice is cut into; a band sees 10 rows beside its own.
const BAND: usize = 32;

/// An axis as the sweep sees it: strides in floats of slices (side by side in lanes), rows and columns, and their numbers.
#[derive(Debug, Clone, Copy)]
struct Orientation {
    slices: [usize; 2],
    rows: [usize; 2],
    columns: [usize; 2],
}

impl Orientation {
    /// Slices across axis `axis` of `[x][y][z]`. Of the two other axes, the faster one runs along rows.
    fn across(axis: usize, [x, y, z]: [usize; 3]) -> Self {
        let all = [[x, y * z], [y, z], [z, 1]];
        let [rows, columns] = [[1, 2], [0, 2], [0, 1]][axis].map(|other: usize| all[other]);
        Self { slices: all[axis], rows, columns }
    }

    fn blocks(&self) -> usize {
        self.slices[0].div_ceil(LANES)
    }
}

/// Sizes in floats of the shared scratch's parts: maxima of rows and columns of each plane across x, sums of rows.
fn parts(voxels: [usize; 3]) -> [usize; 2] {
    let [x, y, z] = voxels;
    let sums = (0..3).map(|axis| {
        let orientation = Orientation::across(axis, voxels);
        2 * orientation.blocks() * orientation.rows[0]
    });
    [(x * (y + z)).next_multiple_of(LANES), sums.max().unwrap_or(0)]
}

/// Scratch of this operation.
pub(super) fn need(workload: &LossWorkload) -> Need {
    if workload.voxels.contains(&0) {
        return Need::default();
    }
    let columns = workload.voxels[2].max(workload.voxels[1]);
    Need { shared: parts(workload.voxels).iter().sum(), per_thread: buffer_floats(columns, LANES) }
}

/// See [`super::super::losses::LossCompute::volume_ssim_loss`].
pub(super) fn volume_ssim_loss(
    simd: SimdLevel,
    scratch: &Scratch,
    voxels: [usize; 3],
    settings: &VolumeSsimLoss,
    volume: &[f32],
    reference: &[f32],
    by_volume: &mut [f32],
) -> Result<VolumeSsimValue, ComputeError> {
    let [x, y, z] = voxels;
    let n = x.saturating_mul(y).saturating_mul(z);
    check_len(OPERATION, "volume", volume.len(), n)?;
    check_len(OPERATION, "reference", reference.len(), n)?;
    check_len(OPERATION, "by_volume", by_volume.len(), n)?;
    let limit = settings.check(OPERATION)?;
    check_values(OPERATION, "volume", volume, -limit..=limit)?;
    check_values(OPERATION, "reference", reference, -limit..=limit)?;
    if n == 0 {
        return Ok(VolumeSsimValue::default());
    }
    let workload = LossWorkload { voxels, ..LossWorkload::default() };
    let mut whole = scratch.take(OPERATION, need(&workload))?;
    let (maxima, sums) = whole.floats().split_at_mut(parts(voxels)[0]);
    let maxima = &mut maxima[..x * (y + z)];
    maxima.par_chunks_exact_mut(y + z).zip(reference.par_chunks_exact(y * z)).for_each(|(maxima, plane)| {
        let (of_rows, of_columns) = maxima.split_at_mut(y);
        plane_maxima(simd, plane, of_rows, of_columns);
    });
    let maxima = &*maxima;
    let used = |axis: usize, slice: usize| {
        let above = |&value: &f32| value > settings.empty_at;
        match axis {
            0 => maxima[slice * (y + z)..][..y].iter().any(above),
            1 => maxima[slice..].iter().step_by(y + z).any(above),
            _ => maxima[y + slice..].iter().step_by(y + z).any(above),
        }
    };
    let slices = [0, 1, 2].map(|axis| {
        let taken = if settings.axes[axis] > 0.0 { voxels[axis] } else { 0 };
        (0..taken).filter(|&slice| used(axis, slice)).count()
    });
    let parts = settings.parts(slices);
    let (mut dissimilarity, mut by_axis) = (0.0, [0.0; 3]);
    for axis in 0..3 {
        if slices[axis] == 0 {
            continue;
        }
        let orientation = Orientation::across(axis, voxels);
        let pixels = orientation.rows[0] * orientation.columns[0];
        let (part, mean) = (parts[axis], 1.0 / (slices[axis] * pixels) as f64);
        let share = part * mean;
        let (blocks, rows) = (orientation.blocks(), orientation.rows[0]);
        let sums: &mut [f64] = bytemuck::cast_slice_mut(&mut sums[..2 * blocks * rows]);
        let slices = Slices {
            orientation,
            volume,
            reference,
            target: by_volume.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
            scale: 1.0 / settings.data_range,
        };
        // Enough bands for all threads; never changes a result.
        let bands = (4 * rayon::current_num_threads()).div_ceil(blocks).min(rows.div_ceil(BAND));
        let height = rows.div_ceil(bands);
        (0..blocks * bands).into_par_iter().with_max_len(1).for_each(|task| {
            let (block, band) = (task / bands, task % bands);
            let out = (band * height).min(rows)..((band + 1) * height).min(rows);
            let mut weights = LaneWeights { value: [0.0; LANES], gradient: [0.0; LANES] };
            for lane in 0..LANES.min(orientation.slices[0] - block * LANES) {
                if used(axis, block * LANES + lane) {
                    weights.value[lane] = 1.0;
                    weights.gradient[lane] =
                        (share * f64::from(settings.weight) / f64::from(settings.data_range)) as f32;
                }
            }
            block_band(simd, &slices, block, &weights, out, scratch.of_this_thread().floats());
        });
        by_axis[axis] = mean * sums.iter().sum::<f64>();
        dissimilarity += part * by_axis[axis];
    }
    Ok(VolumeSsimValue { dissimilarity, by_axis, slices })
}

/// Largest values along z and along y of a plane across x.
#[inline(always)]
unsafe fn plane_maxima_body<W: Wide>(plane: &[f32], of_rows: &mut [f32], of_columns: &mut [f32]) {
    of_columns.fill(f32::NEG_INFINITY);
    let columns = of_columns.len();
    for (row, of_row) in plane.chunks_exact(columns).zip(of_rows) {
        *of_row = f32::NEG_INFINITY;
        let mut at = 0;
        // SAFETY: the caller's; whole registers within the row.
        unsafe {
            let mut largest = W::splat(f32::NEG_INFINITY);
            while at + W::N <= columns {
                let values = W::load(row.as_ptr().add(at));
                largest = W::max(largest, values);
                let to = of_columns.as_mut_ptr().add(at);
                W::store(to, W::max(W::load(to), values));
                at += W::N;
            }
            let mut lanes = [f32::NEG_INFINITY; LANES];
            W::store(lanes.as_mut_ptr(), largest);
            *of_row = lanes.into_iter().fold(*of_row, f32::max);
        }
        for (value, of_column) in row.iter().zip(of_columns.iter_mut()).skip(at) {
            *of_row = of_row.max(*value);
            *of_column = of_column.max(*value);
        }
    }
}
at_each_level!(
    /// See [`plane_maxima_body`].
    plane_maxima => plane_maxima_body(plane: &[f32], of_rows: &mut [f32], of_columns: &mut [f32])
);

/// All slices across one axis.
struct Slices<'a> {
    orientation: Orientation,
    volume: &'a [f32],
    reference: &'a [f32],
    target: *mut f32,
    /// `[block][row]`.
    sums: *mut f64,
    scale: f32,
}

// SAFETY: tasks write disjoint slices and rows.
unsafe impl Sync for Slices<'_> {}

/// [`LANES`] slices (the last block may have fewer) side by side.
struct Block<'a> {
    all: &'a Slices<'a>,
    /// Of the first slice.
    first: usize,
    lanes: usize,
}

impl Block<'_> {
    /// Where row `row` of the first slice starts, all of whose lanes and columns lie within the volume.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        let Orientation { slices, rows, columns } = self.all.orientation;
        let start = self.first + row * rows[1];
        let last = start + (self.lanes - 1) * slices[1] + (columns[0] - 1) * columns[1];
        assert!(last < self.all.volume.len() && last < self.all.reference.len());
        start
    }
}

/// Sum and difference of the first `count` lanes.
#[inline(always)]
unsafe fn pair<W: Wide>(a: *const f32, b: *const f32, count: usize, scale: W::V) -> [W::V; 2] {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (W::mul(W::load_first(a, count), scale), W::mul(W::load_first(b, count), scale));
        [W::add(a, b), W::sub(a, b)]
    }
}

/// Adds the first `count` lanes.
#[inline(always)]
unsafe fn add<W: Wide>(to: *mut f32, count: usize, value: W::V) {
    // SAFETY: the caller's.
    unsafe { W::store_first(to, count, W::add(W::load_first(to, count), value)) }
}

impl Plane for Block<'_> {
    const STEP: usize = LANES;

    fn size(&self) -> [usize; 2] {
        [self.all.orientation.rows[0], self.all.orientation.columns[0]]
    }

    #[inline(always)]
    unsafe fn load<W: Wide>(&self, row: usize, sum: *mut f32, difference: *mut f32) {
        let Orientation { slices: [_, slice], columns: [columns, column], .. } = self.all.orientation;
        let start = self.start(row);
        let (a, b) = (self.all.volume[start..].as_ptr(), self.all.reference[start..].as_ptr());
        // SAFETY: the caller's; lanes and columns that there are, see `start`.
        unsafe {
            let scale = W::splat(self.all.scale);
            for lane in (0..LANES).step_by(W::N) {
                let left = self.lanes.saturating_sub(lane);
                if slice == 1 {
                    for c in 0..columns {
                        let at = c * column + lane.min(self.lanes);
                        let [s, d] = pair::<W>(a.add(at), b.add(at), left, scale);
                        W::store(sum.add(c * LANES + lane), s);
                        W::store(difference.add(c * LANES + lane), d);
                    }
                    continue;
                }
                for c in (0..columns).step_by(W::N) {
                    let count = (columns - c).min(W::N);
                    let (mut s, mut d) = ([W::splat(0.0); LANES], [W::splat(0.0); LANES]);
                    // Always `N` rounds, so that all stays in registers; nothing is read of lanes that there are not.
                    for k in 0..W::N {
                        let (at, count) = ((lane + k) * slice + c, if k < left { count } else { 0 });
                        [s[k], d[k]] = pair::<W>(a.wrapping_add(at), b.wrapping_add(at), count, scale);
                    }
                    W::transpose(&mut s);
                    W::transpose(&mut d);
                    for k in 0..W::N {
                        if k < count {
                            W::store(sum.add((c + k) * LANES + lane), s[k]);
                            W::store(difference.add((c + k) * LANES + lane), d[k]);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<W: Wide>(&self, load: usize, add: usize, column: usize) {
        let Orientation { slices: [_, slice], rows: [_, row], columns: [_, along] } = self.all.orientation;
        // A cache line for each column: the column's lanes, or 16 columns of one lane.
        let line = if slice == 1 { column * along } else { column % LANES * slice + column / LANES * LANES };
        let (load, add) = (self.first + load * row + line, self.first + add * row + line);
        // SAFETY: hints only.
        unsafe {
            W::prefetch(self.all.volume.as_ptr().wrapping_add(load));
            W::prefetch(self.all.reference.as_ptr().wrapping_add(load));
            W::prefetch(self.all.target.wrapping_add(add));
        }
    }

    #[inline(always)]
    unsafe fn add<W: Wide>(&self, row: usize, gradient: *const f32) {
        let Orientation { slices: [_, slice], columns: [columns, column], .. } = self.all.orientation;
        // SAFETY: the caller's; lanes and columns that there are, see `start`; the target is as long as the volume.
        unsafe {
            let target = self.all.target.add(self.start(row));
            for lane in (0..LANES).step_by(W::N) {
                let left = self.lanes.saturating_sub(lane);
                if slice == 1 {
                    for c in 0..columns {
                        let value = W::load(gradient.add(c * LANES + lane));
                        add::<W>(target.add(c * column + lane.min(self.lanes)), left, value);
                    }
                    continue;
                }
                for c in (0..columns).step_by(W::N) {
                    let count = (columns - c).min(W::N);
                    let mut g = [W::splat(0.0); LANES];
                    for k in 0..W::N {
                        // Behind the last column, that one again.
                        g[k] = W::load(gradient.add((c + k.min(count - 1)) * LANES + lane));
                    }
                    W::transpose(&mut g);
                    for k in 0..W::N {
                        let count = if k < left { count } else { 0 };
                        add::<W>(target.wrapping_add((lane + k) * slice + c), count, g[k]);
                    }
                }
            }
        }
    }
}

/// A band of a block's similarity.
#[inline(always)]
unsafe fn block_band_body<W: Wide>(
    slices: &Slices<'_>,
    block: usize,
    weights: &LaneWeights,
    out: Range<usize>,
    buffer: &mut [f32],
) {
    let Orientation { slices: [count, stride], rows: [rows, _], .. } = slices.orientation;
    // SAFETY: bands and blocks are disjoint; the caller's for the rest.
    unsafe {
        let sums = std::slice::from_raw_parts_mut(slices.sums.add(block * rows + out.start), out.len());
        if weights.value == [0.0; LANES] {
            sums.fill(0.0);
            return;
        }
        let first = block * LANES;
        let plane = Block { all: slices, first: first * stride, lanes: LANES.min(count - first) };
        similarity::<W, _>(&plane, weights, out, buffer, sums);
    }
}
at_each_level!(
    /// See [`block_band_body`].
    block_band => block_band_body(
        slices: &Slices<'_>,
        block: usize,
        weights: &LaneWeights,
        out: Range<usize>,
        buffer: &mut [f32],
    )
);
