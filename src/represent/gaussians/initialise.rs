//! The first Gaussians: drawn from the voxels of a volume that is already there (FDK, or a few classical iterations).

#![forbid(unsafe_code)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{CHANNELS, GaussianError, Gaussians, Table, raw_of};
use crate::compute::Operations;
use crate::geometry::VolumeGrid;

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Initialisation {
    /// Gaussians to draw (fewer where fewer voxels are above the threshold, never more than the capacity).
    pub gaussians: usize,
    /// Voxels above this are drawn from, all with the same chance.
    pub threshold_per_mm: f32,
    /// A Gaussian's density over its voxel's value (R2-Gaussian: 0.15; Gaussians overlap).
    pub density_factor: f32,
    /// A Gaussian's scale over the root of the mean square distance to its three nearest neighbours.
    pub scale_factor: f32,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for Initialisation {
    fn default() -> Self {
        Self { gaussians: 50_000, threshold_per_mm: 1e-3, density_factor: 0.15, scale_factor: 1.0, seed: 0 }
    }
}

impl Gaussians {
    /// Replaces all Gaussians by round ones at the centres of voxels drawn from `volume` (1/mm, `[x][y][z]`), in the order of the voxels. Returns
    /// how many there are now.
    ///
    /// # Errors
    /// [`GaussianError::Volume`], [`GaussianError::Empty`], [`GaussianError::Setting`] for a factor that is not finite and positive, or
    /// [`GaussianError::Compute`] as the operations.
    pub fn initialise_from_volume(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        volume: &[f32],
        settings: &Initialisation,
    ) -> Result<usize, GaussianError> {
        self.edit(compute, |table| table.initialise_from_volume(grid, volume, settings))??;
        self.settle(compute)?;
        Ok(self.len)
    }
}

impl Table {
    fn initialise_from_volume(
        &mut self,
        grid: &VolumeGrid,
        volume: &[f32],
        settings: &Initialisation,
    ) -> Result<(), GaussianError> {
        if volume.len() != grid.len() {
            return Err(GaussianError::Volume { given: volume.len(), needed: grid.len() });
        }
        for (field, value) in [("density_factor", settings.density_factor), ("scale_factor", settings.scale_factor)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(GaussianError::Setting {
                    field,
                    value: f64::from(value),
                    requirement: "must be finite and > 0",
                });
            }
        }
        // NaN and infinity are no density.
        let counts = |value: f32| value.is_finite() && value > settings.threshold_per_mm;
        let candidates = volume.iter().filter(|&&value| counts(value)).count();
        if candidates == 0 {
            let finite = volume.iter().copied().filter(|value| value.is_finite());
            let largest_per_mm = finite.fold(f32::NEG_INFINITY, f32::max);
            return Err(GaussianError::Empty { threshold_per_mm: settings.threshold_per_mm, largest_per_mm });
        }
        let wanted = settings.gaussians.min(self.limits.capacity).min(candidates);
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        self.len = 0;
        let [_, ny, nz] = grid.voxels;
        let mut left = candidates;
        for (index, &value) in volume.iter().enumerate() {
            if self.len == wanted {
                break;
            }
            if !counts(value) {
                continue;
            }
            // Drawing without repetition in one pass: each candidate is taken with (still wanted) / (still to come).
            if random.random_range(0..left) < wanted - self.len {
                let centre = grid.voxel_centre_mm(index / (ny * nz), index / nz % ny, index % nz);
                let mut values = [0.0; CHANNELS];
                values[0] = raw_of(settings.density_factor * value / self.limits.density_unit_per_mm);
                values[1..4].copy_from_slice(&centre.to_array().map(|c| c as f32));
                values[7] = 1.0;
                self.put(self.len, &values);
                self.len += 1;
            }
            left -= 1;
        }
        self.scales_from_neighbours(grid, settings.scale_factor);
        self.clear_norms();
        Ok(())
    }

    /// Round scales: `factor` times the root of the mean square distance to the three nearest neighbours.
    fn scales_from_neighbours(&mut self, grid: &VolumeGrid, factor: f32) {
        let (capacity, len) = (self.limits.capacity, self.len);
        let cells = Cells::over(grid, len);
        let position = |parameters: &[f32], i: usize| -> [f32; 3] {
            std::array::from_fn(|axis| parameters[(1 + axis) * capacity + i])
        };
        // Counted, summed up and filled in, in order.
        let starts = &mut self.cells[..=cells.len()];
        starts.fill(0);
        for i in 0..len {
            starts[cells.of(position(&self.parameters, i)) + 1] += 1;
        }
        for cell in 0..cells.len() {
            starts[cell + 1] += starts[cell];
        }
        // Filled from behind, so that the starts end up as starts and the order within a cell is that of the Gaussians.
        for i in (0..len).rev() {
            let end = &mut starts[cells.of(position(&self.parameters, i)) + 1];
            *end -= 1;
            self.indices[*end as usize] = i as u32;
        }
        // Now starts[cell + 1] is where cell begins.
        let starts = &self.cells[1..=cells.len()];
        let of_cell = |cell: usize| {
            let end = starts.get(cell + 1).map_or(len, |&end| end as usize);
            &self.indices[starts[cell] as usize..end]
        };
        for i in 0..len {
            let here = position(&self.parameters, i);
            let mut nearest = [f32::MAX; 3];
            for ring in 0..cells.rings() {
                // What lies in ring r is at least r - 1 cells away.
                let safe = (ring as f32 - 1.0).max(0.0) * cells.smallest_edge();
                if nearest[2] < safe * safe {
                    break;
                }
                cells.ring(here, ring, |cell| {
                    for &other in of_cell(cell) {
                        if other as usize != i {
                            let there = position(&self.parameters, other as usize);
                            let square = (0..3).map(|axis| (here[axis] - there[axis]).powi(2)).sum();
                            insert(&mut nearest, square);
                        }
                    }
                });
            }
            let found = nearest.iter().filter(|&&square| square < f32::MAX);
            let (count, sum) = found.fold((0, 0.0), |(count, sum), square| (count + 1, sum + square));
            // One Gaussian alone is as large as the limits let it be.
            let scale = if count == 0 { f32::MAX } else { factor * (sum / count as f32).sqrt() };
            let scale = scale.clamp(self.limits.smallest_scale_mm, self.limits.largest_scale_mm);
            for axis in 0..3 {
                self.parameters[(4 + axis) * capacity + i] = scale.ln();
            }
        }
    }

    /// Begins new sums for adaptive control.
    pub(super) fn clear_norms(&mut self) {
        self.gradients[CHANNELS * self.limits.capacity..].fill(0.0);
        self.views = 0;
    }
}

/// Keeps the three smallest, in order.
fn insert(nearest: &mut [f32; 3], square: f32) {
    if square < nearest[2] {
        nearest[2] = square;
        nearest.sort_unstable_by(f32::total_cmp);
    }
}

/// A coarse grid of cells over a volume, at most as many as there are Gaussians.
struct Cells {
    counts: [usize; 3],
    edge: [f32; 3],
    origin: [f32; 3],
}

impl Cells {
    fn over(grid: &VolumeGrid, gaussians: usize) -> Self {
        let size = grid.size_mm();
        // Cubes of about two Gaussians, were the box full of them.
        let edge = (2.0 * size.element_product() / gaussians.max(1) as f64).cbrt();
        let counts = (size / edge).floor().max(glam::DVec3::ONE).to_array().map(|count| count as usize);
        let mut cells =
            Self { counts, edge: [0.0; 3], origin: (grid.centre_mm - 0.5 * size).to_array().map(|c| c as f32) };
        // Flat boxes can round up to more cells than Gaussians.
        while cells.len() > gaussians.max(1) {
            if let Some(count) = cells.counts.iter_mut().max() {
                *count = count.div_ceil(2);
            }
        }
        for axis in 0..3 {
            cells.edge[axis] = (size[axis] / cells.counts[axis] as f64) as f32;
        }
        cells
    }

    fn len(&self) -> usize {
        self.counts.iter().product()
    }

    fn smallest_edge(&self) -> f32 {
        self.edge.iter().copied().fold(f32::MAX, f32::min)
    }

    fn place(&self, position: [f32; 3]) -> [usize; 3] {
        // Conversions saturate: below the box is cell 0.
        std::array::from_fn(|axis| {
            (((position[axis] - self.origin[axis]) / self.edge[axis]) as usize).min(self.counts[axis] - 1)
        })
    }

    fn of(&self, position: [f32; 3]) -> usize {
        let [x, y, z] = self.place(position);
        (x * self.counts[1] + y) * self.counts[2] + z
    }

    /// Rings that reach every cell from every cell.
    fn rings(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(1)
    }

    /// Calls `visit` with the cells whose largest offset from that of `position` is `ring`, in order.
    fn ring(&self, position: [f32; 3], ring: usize, mut visit: impl FnMut(usize)) {
        let centre = self.place(position);
        let range = |axis: usize| centre[axis].saturating_sub(ring)..=(centre[axis] + ring).min(self.counts[axis] - 1);
        for x in range(0) {
            for y in range(1) {
                let on_face = x.abs_diff(centre[0]) == ring || y.abs_diff(centre[1]) == ring;
                let mut at = |z: usize| visit((x * self.counts[1] + y) * self.counts[2] + z);
                if on_face {
                    range(2).for_each(&mut at);
                } else {
                    if centre[2] >= ring {
                        at(centre[2] - ring);
                    }
                    if ring > 0 && centre[2] + ring < self.counts[2] {
                        at(centre[2] + ring);
                    }
                }
            }
        }
    }
}
