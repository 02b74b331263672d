//! Smoothed isotropic total variation and its gradient.
//!
//! **Operations.** With `m` the root at a voxel, the gradient there is `-(d_x s_x + d_y s_y + d_z s_z) / m` plus `d_k s_k / m` of the
//! neighbour before it along each axis. A task goes through a plane of one x row by row; the roots of the row before it along y are
//! still there, those of the plane before it along x are worked out again: 2 roots and 2 divisions a voxel and some 45 other
//! operations. **Bytes.** The volume is read from memory once (its neighbours from the cache) and the gradient read and written: 12 bytes a voxel, 25 MB
//! at 128^3. The ratios to both floors stand in `benches/iterative.rs`.
//!
//! **Order.** A row's roots are summed in 16 lanes, rows and planes in a fixed tree.

// One loop compiled for several levels.
#![allow(unsafe_code)]

use super::super::total_variation::{TotalVariation, VariationCompute};
use super::super::{ComputeError, Left, Values, ValuesMut};
use super::simd::SimdLevel;
use super::{CpuCompute, check_len};

/// Voxels of a row that are worked on at a stretch: their roots, of three rows, stay in the first-level cache.
const STRETCH: usize = 512;
/// Lanes that a row's roots are summed in, at every SIMD level.
const LANES: usize = 16;

impl VariationCompute for CpuCompute {
    fn total_variation(&self, variation: &TotalVariation, volume: Values<'_>) -> Result<f64, ComputeError> {
        self.total_variation(variation, volume.host("total_variation")?)
    }

    fn add_total_variation_gradient(
        &self,
        variation: &TotalVariation,
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<Left<f64>, ComputeError> {
        const OPERATION: &str = "add_total_variation_gradient";
        let (volume, gradient) = (volume.host(OPERATION)?, gradient.host(OPERATION)?);
        self.add_total_variation_gradient(variation, weight, volume, gradient).map(Left::AtHand)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`VariationCompute::total_variation`].
    ///
    /// # Errors
    /// As there.
    pub fn total_variation(&self, variation: &TotalVariation, volume: &[f32]) -> Result<f64, ComputeError> {
        check("total_variation", variation, volume)?;
        if volume.is_empty() {
            return Ok(0.0);
        }
        let work = Work { variation, weight: 0.0, volume };
        Ok(self.pool.install(|| work.value(self.simd, 0, variation.voxels[0])))
    }

    /// See [`VariationCompute::add_total_variation_gradient`]; returns `TV(volume)`, without the weight.
    ///
    /// # Errors
    /// As there.
    pub fn add_total_variation_gradient(
        &self,
        variation: &TotalVariation,
        weight: f32,
        volume: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "add_total_variation_gradient";
        check(OPERATION, variation, volume)?;
        check_len(OPERATION, "gradient", gradient.len(), variation.len())?;
        if volume.is_empty() {
            return Ok(0.0);
        }
        let work = Work { variation, weight, volume };
        Ok(self.pool.install(|| work.gradient(self.simd, 0, gradient)))
    }
}

fn check(operation: &'static str, variation: &TotalVariation, volume: &[f32]) -> Result<(), ComputeError> {
    check_len(operation, "volume", volume.len(), variation.len())?;
    variation.check(operation)
}

/// One call.
#[derive(Clone, Copy)]
struct Work<'a> {
    variation: &'a TotalVariation,
    weight: f32,
    volume: &'a [f32],
}

impl Work<'_> {
    /// Sum over planes `first..end`: halves of halves, so that the tree depends on the planes alone.
    fn value(&self, simd: SimdLevel, first: usize, end: usize) -> f64 {
        if end - first > 1 {
            let middle = first.midpoint(end);
            let (a, b) = rayon::join(|| self.value(simd, first, middle), || self.value(simd, middle, end));
            return a + b;
        }
        self.plane(simd, first, &mut [])
    }

    /// The same with the planes of the gradient from `first` on.
    fn gradient(&self, simd: SimdLevel, first: usize, gradient: &mut [f32]) -> f64 {
        let plane = self.variation.voxels[1] * self.variation.voxels[2];
        let end = first + gradient.len() / plane;
        if end - first > 1 {
            let middle = first.midpoint(end);
            let (low, high) = gradient.split_at_mut((middle - first) * plane);
            let (a, b) = rayon::join(|| self.gradient(simd, first, low), || self.gradient(simd, middle, high));
            return a + b;
        }
        self.plane(simd, first, gradient)
    }

    fn plane(&self, simd: SimdLevel, x: usize, gradient: &mut [f32]) -> f64 {
        match simd {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the carrier refuses levels that the processor lacks.
            SimdLevel::Avx512 => unsafe { plane_avx512(self, x, gradient) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            SimdLevel::Avx2 => unsafe { plane_avx2(self, x, gradient) },
            _ => plane(self, x, gradient),
        }
    }

    /// The row (x, y) and its successors along x and y; beyond the grid the row itself, whose difference is zero.
    #[inline(always)]
    fn rows(&self, x: usize, y: usize) -> [&[f32]; 3] {
        let [nx, ny, nz] = self.variation.voxels;
        let row = |x: usize, y: usize| &self.volume[(x * ny + y) * nz..][..nz];
        [row(x, y), row((x + 1).min(nx - 1), y), row(x, (y + 1).min(ny - 1))]
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn plane_avx512(work: &Work<'_>, x: usize, gradient: &mut [f32]) -> f64 {
    plane(work, x, gradient)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn plane_avx2(work: &Work<'_>, x: usize, gradient: &mut [f32]) -> f64 {
    plane(work, x, gradient)
}

/// One x: returns its share of the value and adds its share of the gradient, unless `gradient` is empty.
#[inline(always)]
fn plane(work: &Work<'_>, x: usize, gradient: &mut [f32]) -> f64 {
    let [_, ny, nz] = work.variation.voxels;
    let mut value = 0.0;
    // Inverse roots of this row, of the one before it along y and of the one before it along x, from one voxel before the stretch on.
    let (mut here, mut before_y, mut before_x) = ([0.0; STRETCH + 1], [0.0; STRETCH + 1], [0.0; STRETCH + 1]);
    for start in (0..nz).step_by(STRETCH) {
        let end = nz.min(start + STRETCH);
        // The voxel before the stretch, where there is one.
        let low = start.saturating_sub(1);
        let n = end - low;
        for y in 0..ny {
            let rows = work.rows(x, y);
            inverse_roots(work.variation, rows, low, &mut here[..n]);
            value += sum_of_inverses(&here[start - low..n]);
            if gradient.is_empty() {
                continue;
            }
            if x > 0 {
                inverse_roots(work.variation, work.rows(x - 1, y), low, &mut before_x[..n]);
            }
            let [row, next_x, next_y] = rows;
            // Where there is none before, the row itself: its difference is zero.
            let previous_x = work.rows(x.saturating_sub(1), y)[0];
            let previous_y = work.rows(x, y.saturating_sub(1))[0];
            let add = AddRow {
                work,
                row,
                next: [next_x, next_y],
                previous: [previous_x, previous_y],
                low,
                inverse: [&here[..n], &before_x[..n], &before_y[..n]],
            };
            add.add(start, &mut gradient[y * nz..][start..end]);
            std::mem::swap(&mut here, &mut before_y);
        }
    }
    value
}

/// `1 / sqrt(...)` of the voxels `low..low + inverse.len()` of a row.
#[inline(always)]
fn inverse_roots(variation: &TotalVariation, [row, next_x, next_y]: [&[f32]; 3], low: usize, inverse: &mut [f32]) {
    let [sx, sy, sz] = variation.scale;
    let epsilon2 = variation.epsilon * variation.epsilon;
    // All but the row's last voxel have a successor.
    let n = inverse.len().min(row.len() - 1 - low);
    let (f, fx, fy, fz) = (&row[low..][..n], &next_x[low..][..n], &next_y[low..][..n], &row[low + 1..][..n]);
    for z in 0..n {
        let (dx, dy, dz) = (sx * (fx[z] - f[z]), sy * (fy[z] - f[z]), sz * (fz[z] - f[z]));
        inverse[z] = 1.0 / (dx * dx + dy * dy + dz * dz + epsilon2).sqrt();
    }
    for (z, inverse) in inverse.iter_mut().enumerate().skip(n) {
        let at = low + z;
        let (dx, dy) = (sx * (next_x[at] - row[at]), sy * (next_y[at] - row[at]));
        *inverse = 1.0 / (dx * dx + dy * dy + epsilon2).sqrt();
    }
}

/// Sum of the roots, from their inverses.
#[inline(always)]
fn sum_of_inverses(inverse: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = inverse.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, inverse) in lanes.iter_mut().zip(chunk) {
            *lane += 1.0 / inverse;
        }
    }
    for (lane, inverse) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += 1.0 / inverse;
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// What the gradient of a row is worked out from.
struct AddRow<'a> {
    work: &'a Work<'a>,
    row: &'a [f32],
    /// Rows after it along x, y.
    next: [&'a [f32]; 2],
    /// Rows before it along x, y.
    previous: [&'a [f32]; 2],
    /// Voxel that the inverse roots begin with.
    low: usize,
    /// Of this row, of that before it along x, along y.
    inverse: [&'a [f32]; 3],
}

impl AddRow<'_> {
    /// Adds the gradient of the voxels from `start` on.
    #[inline(always)]
    fn add(&self, start: usize, gradient: &mut [f32]) {
        let n = gradient.len();
        // The row's first voxel has none before it, its last none after it; all others go through one loop.
        let first = usize::from(start == 0);
        let inner = (start + n).min(self.row.len() - 1).saturating_sub(start).max(first) - first;
        if start == 0 {
            self.add_one(0, &mut gradient[0]);
        }
        let weight = self.work.weight;
        let [sx, sy, sz] = self.work.variation.scale;
        let at = start + first;
        let f = &self.row[at..][..inner];
        if inner > 0 {
            let (after_z, before_z) = (&self.row[at + 1..][..inner], &self.row[at - 1..][..inner]);
            let (after_x, after_y) = (&self.next[0][at..][..inner], &self.next[1][at..][..inner]);
            let (before_x, before_y) = (&self.previous[0][at..][..inner], &self.previous[1][at..][..inner]);
            let here = &self.inverse[0][at - self.low..][..inner];
            let here_before = &self.inverse[0][at - 1 - self.low..][..inner];
            let inverse_x = &self.inverse[1][at - self.low..][..inner];
            let inverse_y = &self.inverse[2][at - self.low..][..inner];
            let (xx, yy, zz) = (sx * sx, sy * sy, sz * sz);
            for (z, gradient) in gradient[first..][..inner].iter_mut().enumerate() {
                let value = f[z];
                let ahead = xx * (after_x[z] - value) + yy * (after_y[z] - value) + zz * (after_z[z] - value);
                let behind = xx * (value - before_x[z]) * inverse_x[z]
                    + yy * (value - before_y[z]) * inverse_y[z]
                    + zz * (value - before_z[z]) * here_before[z];
                *gradient += weight * (behind - ahead * here[z]);
            }
        }
        for (z, gradient) in gradient.iter_mut().enumerate().skip(first + inner) {
            self.add_one(start + z, gradient);
        }
    }

    /// A voxel at a row's end.
    fn add_one(&self, at: usize, gradient: &mut f32) {
        let [sx, sy, sz] = self.work.variation.scale;
        let value = self.row[at];
        let after_z = self.row.get(at + 1).copied().unwrap_or(value);
        let ahead =
            sx * sx * (self.next[0][at] - value) + sy * sy * (self.next[1][at] - value) + sz * sz * (after_z - value);
        let mut behind = sx * sx * (value - self.previous[0][at]) * self.inverse[1][at - self.low]
            + sy * sy * (value - self.previous[1][at]) * self.inverse[2][at - self.low];
        if at > 0 {
            behind += sz * sz * (value - self.row[at - 1]) * self.inverse[0][at - 1 - self.low];
        }
        *gradient += self.work.weight * (behind - ahead * self.inverse[0][at - self.low]);
    }
}

#[cfg(test)]
mod tests;
