//! A volume on another grid.

use glam::{DAffine3, DVec3};
use ndarray::{Array3, Axis};
use rayon::prelude::*;

use super::CtVolume;

/// Most samples along an edge of a cell.
const MOST_SAMPLES: usize = 8;

impl CtVolume {
    /// The volume on a grid of `shape` voxels placed by `voxel_to_world_mm`: each voxel is the mean over its cell (evenly spaced trilinear
    /// samples, at least two a voxel of this volume along each axis), which is what a coarser detector of the same values would show.
    ///
    /// Also tells which voxels' whole cells lie inside this volume; outside it, its edge voxels continue.
    #[must_use]
    pub fn averaged_onto(&self, voxel_to_world_mm: &DAffine3, shape: [usize; 3]) -> (Array3<f32>, Array3<bool>) {
        let to_own = self.voxel_to_world_mm.inverse() * *voxel_to_world_mm;
        let m = to_own.matrix3;
        let samples = [m.x_axis, m.y_axis, m.z_axis]
            .map(|edge| ((2.0 * edge.abs().max_element()).ceil() as usize).clamp(1, MOST_SAMPLES));
        let places = |count: usize| -> Vec<f64> { (0..count).map(|n| (n as f64 + 0.5) / count as f64 - 0.5).collect() };
        let [sx, sy, sz] = samples.map(places);
        let offsets: Vec<DVec3> = sx
            .iter()
            .flat_map(|&x| sy.iter().flat_map(move |&y| [(x, y)]))
            .flat_map(|(x, y)| sz.iter().map(move |&z| m * DVec3::new(x, y, z)))
            .collect();
        // Half the cell's extent along this volume's axes: how far its corners lie from its centre.
        let corner = 0.5 * (m.x_axis.abs() + m.y_axis.abs() + m.z_axis.abs());
        let (ni, nj, nk) = self.hu.dim();
        let last = DVec3::new(ni as f64, nj as f64, nk as f64) - 0.5;

        let mut values = Array3::<f32>::zeros(shape);
        let mut inside = Array3::from_elem(shape, false);
        values.axis_iter_mut(Axis(0)).into_par_iter().zip(inside.axis_iter_mut(Axis(0))).enumerate().for_each(
            |(x, (mut plane, mut plane_inside))| {
                for ((y, z), value) in plane.indexed_iter_mut() {
                    let centre = to_own.transform_point3(DVec3::new(x as f64, y as f64, z as f64));
                    let sum: f64 = offsets.iter().map(|offset| self.at(centre + *offset)).sum();
                    *value = (sum / offsets.len() as f64) as f32;
                    // A thousandth of a voxel is rounding of the headers' float32 affines.
                    let (low, high) = (centre - corner + 1e-3, centre + corner - 1e-3);
                    plane_inside[[y, z]] = low.cmpge(DVec3::splat(-0.5)).all() && high.cmple(last).all();
                }
            },
        );
        (values, inside)
    }

    /// Trilinear value at a position in voxels, the edge continued outwards.
    fn at(&self, position: DVec3) -> f64 {
        let (ni, nj, nk) = self.hu.dim();
        let split = |position: f64, count: usize| {
            let inside = position.clamp(0.0, count as f64 - 1.0);
            let low = inside as usize;
            (low, (low + 1).min(count - 1), inside - low as f64)
        };
        let (i0, i1, fi) = split(position.x, ni);
        let (j0, j1, fj) = split(position.y, nj);
        let (k0, k1, fk) = split(position.z, nk);
        let value = |i: usize, j: usize, k: usize| f64::from(self.hu[[i, j, k]]);
        let line = |i, j| value(i, j, k0) * (1.0 - fk) + value(i, j, k1) * fk;
        let plane = |i| line(i, j0) * (1.0 - fj) + line(i, j1) * fj;
        plane(i0) * (1.0 - fi) + plane(i1) * fi
    }
}
