//! The learned prior's gradient: responses of all experts, their influence, and the way back, fused row by row.
//!
//! **Operations.** A voxel and an expert cost 27 multiply-adds for the response, 27 for the way back, and a root and a division for the
//! influence. With 24 experts at 128^3 that is 2.7 G multiply-adds. **Bytes.** The volume is read and the gradient read and written once, 12 bytes a
//! voxel: arithmetic decides. **Layout.** A row's nine neighbour rows are copied into the cache; 27 rows of what goes back (one for each offset)
//! stay there until the row is done and are then added, shifted, to a ring of three planes. A finished plane goes to the gradient.
//! A task takes [`CHUNK`] planes and works out the planes before and after them as well (a quarter more): no two tasks write to the same
//! plane, and each plane is summed in the same order whatever the threads.

// SIMD registers (see gaussian_lanes).
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::experts::{Experts, ExpertsCompute, GROUP, MOST_EXPERTS, TAPS};
use super::super::{ComputeError, Values, ValuesMut};
use super::field_lanes::FieldLanes;
use super::gaussian_lanes::at_each_level;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use super::{CpuCompute, check_len};

const OPERATION: &str = "add_experts_gradient";
/// Planes of the gradient that a task writes.
const CHUNK: usize = 8;
/// Rows are worked on this many voxels at a time, at every SIMD level.
const LANES: usize = 16;

fn need([x, y, z]: [usize; 3]) -> Need {
    if x < 3 || y < 3 || z < 3 {
        return Need::default();
    }
    Need { shared: 0, per_thread: (9 + TAPS) * row_floats(z) + 3 * y * z }
}

/// A row of the cache: whole registers may be read at each of three offsets.
fn row_floats(z: usize) -> usize {
    (z + 2).next_multiple_of(LANES) + LANES
}

impl ExpertsCompute for CpuCompute {
    fn experts_scratch_bytes(&self, voxels: [usize; 3]) -> usize {
        need(voxels).bytes(self.threads())
    }

    fn prepare_experts(&mut self, voxels: [usize; 3]) -> Result<(), ComputeError> {
        self.experts_scratch.prepare(need(voxels))
    }

    fn add_experts_gradient(
        &self,
        experts: &Experts,
        voxels: [usize; 3],
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        self.add_experts_gradient(experts, voxels, weight, volume.host(OPERATION)?, gradient.host(OPERATION)?)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`ExpertsCompute::add_experts_gradient`].
    ///
    /// # Errors
    /// As there.
    pub fn add_experts_gradient(
        &self,
        experts: &Experts,
        voxels: [usize; 3],
        weight: f32,
        volume: &[f32],
        gradient: &mut [f32],
    ) -> Result<(), ComputeError> {
        let [x, y, z] = voxels;
        let count = x.saturating_mul(y).saturating_mul(z);
        check_len(OPERATION, "volume", volume.len(), count)?;
        check_len(OPERATION, "gradient", gradient.len(), count)?;
        if x < 3 || y < 3 || z < 3 {
            return Ok(());
        }
        let _whole = self.experts_scratch.take(OPERATION, need(voxels))?;
        let work = Work { experts, voxels, weight, volume };
        self.pool.install(|| {
            gradient.par_chunks_mut(CHUNK * y * z).enumerate().with_max_len(1).for_each(|(chunk, gradient)| {
                work.planes(self.simd, &self.experts_scratch, chunk * CHUNK, gradient);
            });
        });
        Ok(())
    }
}

/// One call.
#[derive(Clone, Copy)]
struct Work<'a> {
    experts: &'a Experts,
    voxels: [usize; 3],
    weight: f32,
    volume: &'a [f32],
}

impl Work<'_> {
    /// Adds to the planes of the gradient from `first` on.
    fn planes(&self, simd: SimdLevel, scratch: &Scratch, first: usize, gradient: &mut [f32]) {
        let [nx, ny, nz] = self.voxels;
        let (row, plane) = (row_floats(nz), ny * nz);
        let mut buffer = scratch.of_this_thread();
        let (rows, rest) = buffer.floats().split_at_mut(9 * row);
        let (back, rest) = rest.split_at_mut(TAPS * row);
        let ring = &mut rest[..3 * plane];
        ring.fill(0.0);
        rows.fill(0.0);
        // Neighbourhoods are centred on planes 1 to nx - 2; the next that has not been seen.
        let mut centre = first.saturating_sub(1).max(1);
        for (x, gradient) in (first..).zip(gradient.chunks_exact_mut(plane)) {
            while centre <= (x + 1).min(nx - 2) {
                for y in 1..ny - 1 {
                    self.gather(centre, y, row, rows);
                    neighbourhoods(simd, self.experts, nz - 2, row, rows, back);
                    self.scatter(centre, y, row, back, ring);
                }
                // The plane before it is complete; one that another task writes makes room.
                if centre <= first {
                    ring[(centre - 1) % 3 * plane..][..plane].fill(0.0);
                }
                centre += 1;
            }
            let done = &mut ring[x % 3 * plane..][..plane];
            for (gradient, done) in gradient.iter_mut().zip(done) {
                *gradient += self.weight * *done;
                *done = 0.0;
            }
        }
    }

    /// Copies the nine rows around (x, y), in units.
    fn gather(&self, x: usize, y: usize, row: usize, rows: &mut [f32]) {
        let [_, ny, nz] = self.voxels;
        let inverse = 1.0 / self.experts.unit_per_mm();
        for (offset, to) in rows.chunks_exact_mut(row).enumerate() {
            let (x, y) = (x + offset / 3 - 1, y + offset % 3 - 1);
            let from = &self.volume[(x * ny + y) * nz..][..nz];
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * inverse;
            }
        }
    }

    /// Adds what goes back from the row (x, y) to the planes around x; their places in the ring must be free or theirs.
    fn scatter(&self, x: usize, y: usize, row: usize, back: &[f32], ring: &mut [f32]) {
        let [_, ny, nz] = self.voxels;
        for (offset, back) in back.chunks_exact(row).enumerate() {
            let (x, y, dz) = (x + offset / 9 - 1, y + offset / 3 % 3 - 1, offset % 3);
            let to = &mut ring[(x % 3 * ny + y) * nz + dz..][..nz - 2];
            for (to, back) in to.iter_mut().zip(back) {
                *to += back;
            }
        }
    }
}

at_each_level!(
    /// See [`neighbourhoods_body`].
    neighbourhoods => neighbourhoods_body(experts: &Experts, count: usize, row: usize, rows: &[f32], back: &mut [f32])
);

/// `count` neighbourhoods in a row: `rows` holds the nine rows around their centres, `[dx][dy][row]`, `back` becomes what goes back to each of the 27
/// offsets, `[dx][dy][dz][row]`. Beyond `count` there is rubbish.
#[inline(always)]
unsafe fn neighbourhoods_body<W: FieldLanes>(
    experts: &Experts,
    count: usize,
    row: usize,
    rows: &[f32],
    back: &mut [f32],
) {
    assert!(rows.len() >= 9 * row && back.len() >= TAPS * row && row >= count.next_multiple_of(LANES) + 2);
    let groups = experts.potentials.len() / GROUP;
    let knot = 1.0 / experts.slopes.len() as f32;
    let (rows, back) = (rows.as_ptr(), back.as_mut_ptr());
    for at in (0..count).step_by(W::N) {
        // SAFETY: the caller's for the registers; reads and writes lie within `row` (asserted: whole registers and two offsets more).
        unsafe {
            let mut influence = [W::splat(0.0); MOST_EXPERTS];
            let mut sum = W::splat(0.0);
            for offset in 0..TAPS {
                sum = W::add(sum, W::load(rows.add(offset / 3 * row + offset % 3 + at)));
            }
            let mean = W::max(W::mul(sum, W::splat(1.0 / TAPS as f32)), W::splat(0.0));
            let mut tissue = W::splat(experts.tissues()[0]);
            for (index, &slope) in experts.slopes.iter().enumerate() {
                let above = W::sub(mean, W::splat(index as f32 * knot));
                let within = W::min(W::max(above, W::splat(0.0)), W::splat(knot));
                tissue = W::fma(within, W::splat(slope), tissue);
            }
            for group in 0..groups {
                let taps = experts.taps.as_ptr().add(group * TAPS * GROUP);
                let mut response = [W::splat(0.0); GROUP];
                for offset in 0..TAPS {
                    let value = W::load(rows.add(offset / 3 * row + offset % 3 + at));
                    for (expert, response) in response.iter_mut().enumerate() {
                        *response = W::fma(W::splat(*taps.add(offset * GROUP + expert)), value, *response);
                    }
                }
                for (expert, &t) in response.iter().enumerate() {
                    let [s2, a, c2, bc] = experts.potentials[group * GROUP + expert];
                    let square = W::mul(t, t);
                    let root = W::root(W::add(square, W::splat(s2)));
                    let wide = W::add(square, W::splat(c2));
                    // a / root + b c / wide, over one denominator.
                    let above = W::fma(W::splat(a), wide, W::mul(W::splat(bc), root));
                    let factor = W::div(above, W::mul(root, wide));
                    influence[group * GROUP + expert] = W::mul(W::mul(t, tissue), factor);
                }
            }
            for dx in 0..3 {
                let taps = experts.taps_back.as_ptr().add(dx * groups * GROUP * 9);
                let mut sums = [W::splat(0.0); 9];
                for (expert, &influence) in influence.iter().enumerate().take(groups * GROUP) {
                    for (offset, sum) in sums.iter_mut().enumerate() {
                        *sum = W::fma(W::splat(*taps.add(expert * 9 + offset)), influence, *sum);
                    }
                }
                for (offset, &sum) in sums.iter().enumerate() {
                    W::store(back.add((dx * 9 + offset) * row + at), sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
