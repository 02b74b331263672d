//! A CT volume as the object of a simulated scan.
//!
//! The gantry frame's axes are NIfTI's world (RAS+) axes; the middle of the volume is put at the isocenter, and where it stood is
//! kept as `patient_offset_mm`. Attenuation is `mu_water (1 + HU/1000)`, never below 0. Between voxel centres the object is
//! trilinear; it ends at its outermost voxels' faces.

use glam::{DAffine3, DVec3};
use ndarray::{Array3, Axis};
use rayon::prelude::*;

use super::error::SimulateError;
use super::object::Extent;
use super::separable::{self, Cells};
use crate::formats::nifti::CtVolume;
use crate::geometry::VolumeGrid;

/// Attenuation that counts as the object (rather than air and its noise) when a field of view is chosen: -900 HU.
const OBJECT_OVER_WATER: f64 = 0.1;

/// A CT volume in the gantry frame.
#[derive(Debug, Clone)]
pub struct CtObject {
    /// Attenuation (1/mm) `[i][j][k]`, the file's own axes.
    mu_per_mm: Array3<f32>,
    gantry_to_index: DAffine3,
    index_to_gantry: DAffine3,
    spacing_mm: DVec3,
    /// Added to a gantry position to give the world position in the file.
    pub patient_offset_mm: DVec3,
    mu_water_per_mm: f64,
}

impl CtObject {
    /// Takes over a volume in HU. `name` is quoted in errors.
    ///
    /// # Errors
    /// [`SimulateError::Object`] where the values cannot be HU or nothing but air is in the volume.
    pub fn new(name: &str, ct: CtVolume, mu_water_per_mm: f64) -> Result<Self, SimulateError> {
        let object = |problem: String, advice: &str| {
            Err(SimulateError::Object { object: name.into(), problem, advice: advice.into() })
        };
        let (low, high) = ct.hu.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        if !low.is_finite() || !high.is_finite() {
            return object(format!("values from {low} to {high}"), "a voxel is not finite: mend the volume");
        }
        if low < -5000.0 || high > 50_000.0 {
            return object(
                format!(
                    "values from {low} to {high} are not Hounsfield units (air -1000, water 0, bone up to about 3000)"
                ),
                "check scl_slope and scl_inter, or the export",
            );
        }
        if f64::from(high) <= 1000.0 * (OBJECT_OVER_WATER - 1.0) {
            return object(
                format!("values from {low} to {high} HU are all air"),
                "check that the volume is a CT in HU and not a mask or an image scaled to [0, 1] minus 1000",
            );
        }
        if low >= 0.0 && high <= 255.0 {
            return object(
                format!(
                    "values from {low} to {high} look like a mask or an 8-bit picture: as HU all of it would be water"
                ),
                "give the CT in Hounsfield units",
            );
        }
        let centre = ct.centre_mm();
        let index_to_gantry = DAffine3::from_translation(-centre) * ct.voxel_to_world_mm;
        let spacing_mm = ct.spacing_mm();
        let mut mu_per_mm = ct.hu;
        mu_per_mm.par_mapv_inplace(|hu| (mu_water_per_mm * (1.0 + f64::from(hu) / 1000.0)).max(0.0) as f32);
        // The sampler walks this memory with k fastest.
        let mu_per_mm =
            if mu_per_mm.is_standard_layout() { mu_per_mm } else { mu_per_mm.as_standard_layout().to_owned() };
        Ok(Self {
            mu_per_mm,
            gantry_to_index: index_to_gantry.inverse(),
            index_to_gantry,
            spacing_mm,
            patient_offset_mm: centre,
            mu_water_per_mm,
        })
    }

    /// Number of the volume's own voxels.
    #[must_use]
    pub fn voxels(&self) -> usize {
        self.mu_per_mm.len()
    }

    /// Where the volume holds more than air.
    #[must_use]
    pub fn extent(&self) -> Extent {
        let limit = (OBJECT_OVER_WATER * self.mu_water_per_mm) as f32;
        let (ni, _, nk) = self.mu_per_mm.dim();
        let per_slab = |i: usize| {
            let mut extent = Extent::EMPTY;
            let slab = self.mu_per_mm.index_axis(Axis(0), i);
            for (j, line) in slab.outer_iter().enumerate() {
                let inside = |k: &usize| line[*k] > limit;
                // The ends of a line bound everything between them.
                let ends = [(0..nk).find(inside), (0..nk).rev().find(inside)];
                for k in ends.into_iter().flatten() {
                    let point = self.index_to_gantry.transform_point3(DVec3::new(i as f64, j as f64, k as f64));
                    extent.include(point, 0.0);
                }
            }
            extent
        };
        let whole = (0..ni).into_par_iter().map(per_slab).reduce(|| Extent::EMPTY, Extent::union);
        whole.grown(0.5 * self.spacing_mm.max_element())
    }

    /// Spacing of the volume along the world axis that each of its own axes is nearest to.
    fn spacing_along_world_mm(&self) -> DVec3 {
        // Distance over which one index changes by one when walking along a world axis.
        let inverse = self.gantry_to_index.matrix3;
        let along = |axis: DVec3| (inverse * axis).abs().max_element().recip();
        DVec3::new(along(DVec3::X), along(DVec3::Y), along(DVec3::Z))
    }

    /// The grid on which the simulator samples the object before projecting it: its voxels are the smaller of the volume's own and
    /// of the reconstruction's over `oversample`, and it is shifted off both grids by a fraction of a voxel.
    #[must_use]
    pub fn fine_grid(&self, reconstruction: &VolumeGrid, oversample: f64) -> VolumeGrid {
        let (ni, nj, nk) = self.mu_per_mm.dim();
        let (mut low, mut high) = (DVec3::INFINITY, DVec3::NEG_INFINITY);
        for corner in 0..8_usize {
            let at = |bit: usize, count: usize| if corner >> bit & 1 == 1 { count as f64 - 0.5 } else { -0.5 };
            let point = self.index_to_gantry.transform_point3(DVec3::new(at(0, ni), at(1, nj), at(2, nk)));
            (low, high) = (low.min(point), high.max(point));
        }
        let voxel_mm = self.spacing_along_world_mm().min(reconstruction.voxel_mm / oversample);
        let voxels = ((high - low) / voxel_mm).to_array().map(|n| (n - 1e-6).ceil().max(1.0) as usize + 1);
        let counts = DVec3::new(voxels[0] as f64, voxels[1] as f64, voxels[2] as f64);
        // The spare voxel leaves room for the shift: an irrational share, so that no two centres coincide in rows.
        let shift = (counts * voxel_mm - (high - low)) * (0.618_034 - 0.5);
        VolumeGrid { voxels, voxel_mm, centre_mm: 0.5 * (low + high) + shift }
    }

    /// Attenuation (1/mm) at a point given in voxel indices.
    fn at_index(&self, index: DVec3) -> f64 {
        let (ni, nj, nk) = self.mu_per_mm.dim();
        let last = DVec3::new(ni as f64, nj as f64, nk as f64) - 1.0;
        if (index - last).max_element() > 0.5 || index.min_element() < -0.5 {
            return 0.0;
        }
        let p = index.clamp(DVec3::ZERO, last);
        let base = p.floor();
        let f = p - base;
        let (i, j, k) = (base.x as usize, base.y as usize, base.z as usize);
        let (i1, j1, k1) = ((i + 1).min(ni - 1), (j + 1).min(nj - 1), (k + 1).min(nk - 1));
        let at = |i: usize, j: usize, k: usize| f64::from(self.mu_per_mm[[i, j, k]]);
        let along_k = |i: usize, j: usize| at(i, j, k) + f.z * (at(i, j, k1) - at(i, j, k));
        let along_j = |i: usize| along_k(i, j) + f.y * (along_k(i, j1) - along_k(i, j));
        along_j(i) + f.x * (along_j(i1) - along_j(i))
    }

    /// Attenuation (1/mm) at a point of the gantry frame.
    #[must_use]
    pub fn value_at(&self, point_mm: DVec3) -> f64 {
        self.at_index(self.gantry_to_index.transform_point3(point_mm))
    }

    /// Cell averages `[x][y][z]` (1/mm) of the trilinear object: exact where the volume's axes run along the world's, else means over
    /// at least 2^3 points a cell, no further apart than three quarters of the volume's own spacing.
    #[must_use]
    pub fn voxelise(&self, grid: &VolumeGrid) -> Array3<f32> {
        if let Some(cells) = self.cells(grid) {
            return self.resample_along(&cells, [true; 3]);
        }
        let own = self.spacing_along_world_mm();
        let counts = (grid.voxel_mm / (0.75 * own)).to_array().map(|n| (n - 1e-6).ceil().clamp(2.0, 16.0) as usize);
        self.sample(grid, counts)
    }

    /// Values at the centres of a grid's cells; averages along axes on which cells are larger than the volume's own voxels.
    #[must_use]
    pub fn resample(&self, grid: &VolumeGrid) -> Array3<f32> {
        let own = self.spacing_along_world_mm();
        let counts = (grid.voxel_mm / own).to_array().map(|n| (n - 1e-6).ceil().clamp(1.0, 16.0) as usize);
        match self.cells(grid) {
            Some(cells) => self.resample_along(&cells, counts.map(|n| n > 1)),
            None => self.sample(grid, counts),
        }
    }

    /// Which axis of the volume runs along each axis of the world and where the grid's cells lie on it; `None` for oblique volumes.
    fn cells(&self, grid: &VolumeGrid) -> Option<[(usize, Cells); 3]> {
        let m = self.gantry_to_index.matrix3;
        let origin = self.gantry_to_index.transform_point3(grid.origin_mm());
        let along = |world: usize| {
            let column = m.col(world);
            let own = (0..3).max_by(|&a, &b| column[a].abs().total_cmp(&column[b].abs()))?;
            let stray = (0..3).filter(|&axis| axis != own).map(|axis| column[axis].abs()).fold(0.0, f64::max);
            // Less than a thousandth of a voxel of stray over the whole grid.
            let straight = stray * grid.size_mm()[world] < 1e-3;
            let cells =
                Cells { first: origin[own], step: column[own] * grid.voxel_mm[world], count: grid.voxels[world] };
            straight.then_some((own, cells))
        };
        Some([along(0)?, along(1)?, along(2)?])
    }

    fn resample_along(&self, cells: &[(usize, Cells); 3], mean: [bool; 3]) -> Array3<f32> {
        let own = cells.map(|(axis, _)| axis);
        let volume = self.mu_per_mm.view().permuted_axes(own);
        let taps = [0, 1, 2].map(|world| {
            let (n, cells) = (volume.len_of(Axis(world)), &cells[world].1);
            if mean[world] { cells.means(n) } else { cells.points(n) }
        });
        separable::resample(volume, [&taps[0], &taps[1], &taps[2]])
    }

    /// Means over `counts` points along each axis of every cell.
    fn sample(&self, grid: &VolumeGrid, counts: [usize; 3]) -> Array3<f32> {
        let m = self.gantry_to_index.matrix3;
        let share = |axis: usize, i: usize| ((i as f64 + 0.5) / counts[axis] as f64 - 0.5) * grid.voxel_mm[axis];
        let mut offsets = Vec::new();
        for x in 0..counts[0] {
            for y in 0..counts[1] {
                for z in 0..counts[2] {
                    offsets.push(m * DVec3::new(share(0, x), share(1, y), share(2, z)));
                }
            }
        }
        let mut volume = Array3::zeros(grid.voxels);
        volume.outer_iter_mut().into_par_iter().enumerate().for_each(|(ix, mut slab)| {
            for ((iy, iz), out) in slab.indexed_iter_mut() {
                let centre = self.gantry_to_index.transform_point3(grid.voxel_centre_mm(ix, iy, iz));
                let sum: f64 = offsets.iter().map(|&offset| self.at_index(centre + offset)).sum();
                *out = (sum / offsets.len() as f64) as f32;
            }
        });
        volume
    }
}
