//! What separates a pixel's reading from a line integral: the pixel's width, and the projector's own blur.
//!
//! Along a ray Joseph's projector interpolates linearly between voxels `h` apart, which adds `h^2 / 12` times the second derivative across the ray (the
//! mean of `t (1 - t) / 2` over all places `t` between two voxels); a pixel that is `p` wide at the object averages over its width, which adds `p^2 / 24` times it.
//! A projection that is to be compared with a reading is therefore taken less the difference, by second differences along rows and columns.
//! Without it the projections are too smooth by `p^2 / 24` where voxels and pixels are as wide as each other, and the volume makes up for it
//! by being too sharp, down to the noise.

#![forbid(unsafe_code)]

use crate::compute::{ComputeError, Operations, Values, ValuesMut};
use crate::geometry::{Detector, ScanGeometry, VolumeGrid};

/// Largest share of a pixel's neighbour that is taken away. Three places cannot undo the blur of voxels that are much wider than pixels.
const LARGEST: f64 = 1.0 / 12.0;

/// Shares of the neighbours along columns (`u`) and rows (`v`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Aperture {
    u: f32,
    v: f32,
}

impl Aperture {
    /// What lacks between the projector on `grid` and the pixels of a scan, its first view standing for all.
    pub(super) fn of(geometry: &ScanGeometry, grid: &VolumeGrid) -> Self {
        let Some(pose) = geometry.views.first() else { return Self { u: 0.0, v: 0.0 } };
        let Some((_, _, shrunk)) = pose.project(grid.centre_mm) else { return Self { u: 0.0, v: 0.0 } };
        let share = |voxel_mm: f64, pitch_mm: f64| {
            let voxels_a_pixel = voxel_mm / (pitch_mm * shrunk);
            (voxels_a_pixel * voxels_a_pixel / 12.0 - 1.0 / 24.0).min(LARGEST) as f32
        };
        // Within a slice rays cross the axis of interpolation at up to 45 degrees, which would take a fifth off `u`: 0.1 dB worse on chest_lidc0001 from 36
        // views, as is twice as much of both; so it is left out.
        let across_mm = (grid.voxel_mm.x * grid.voxel_mm.y).sqrt();
        Self { u: share(across_mm, pose.column_step_mm.length()), v: share(grid.voxel_mm.z, pose.row_step_mm.length()) }
    }

    /// So many times as much.
    pub(super) fn times(self, factor: f32) -> Self {
        Self { u: factor * self.u, v: factor * self.v }
    }

    /// `views` (`[view][row v][column u]`) without it, into `out`. Symmetric: a gradient goes back through it the same way.
    ///
    /// # Errors
    /// As [`crate::compute::elements::ElementCompute::take_aperture`].
    pub(super) fn take(
        &self,
        compute: &dyn Operations,
        detector: Detector,
        views: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        compute.take_aperture(detector, [self.u, self.v], views, out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::reconstruct::test_scan::{carrier, grid, orbit};

    fn geometry(views: usize) -> ScanGeometry {
        orbit().over_arc(views, 0.1, std::f64::consts::TAU)
    }

    /// Wide enough across every ray of the fan that nothing is lost at its border.
    fn blob(sigma_mm: f64, grid: &VolumeGrid) -> (Vec<f32>, impl Fn(&crate::geometry::ViewPose, f64, f64) -> f64) {
        let [nx, ny, nz] = grid.voxels;
        let centre_mm = grid.centre_mm;
        let mut volume = vec![0.0; grid.len()];
        for x in 0..nx {
            for y in 0..ny {
                for z in 0..nz {
                    let squared = (grid.voxel_centre_mm(x, y, z) - centre_mm).length_squared();
                    volume[(x * ny + y) * nz + z] = (-0.5 * squared / (sigma_mm * sigma_mm)).exp() as f32;
                }
            }
        }
        // The integral of a Gaussian blob along a line that passes it at a distance is that of a blob, times its profile there.
        let along = move |pose: &crate::geometry::ViewPose, v: f64, u: f64| {
            let ray = (pose.pixel_mm(v, u) - pose.source_mm).normalize();
            let from = centre_mm - pose.source_mm;
            let passed = (from - ray * from.dot(ray)).length_squared();
            sigma_mm * std::f64::consts::TAU.sqrt() * (-0.5 * passed / (sigma_mm * sigma_mm)).exp()
        };
        (volume, along)
    }

    #[test]
    fn a_blob_reads_as_its_exact_integrals_over_the_pixels() {
        let (grid, geometry) = (grid(), geometry(7));
        let sigma_mm = 3.0 * grid.voxel_mm.max_element();
        let (volume, along) = blob(sigma_mm, &grid);
        let compute = carrier(1, geometry.views.len());
        let mut views = vec![0.0; geometry.projection_len()];
        compute.forward_project(&geometry, &grid, &volume, &mut views).unwrap();
        let (rows, columns) = (geometry.detector.rows, geometry.detector.columns);
        // 8 x 8 rays a pixel: the mean over its area.
        let middle = |step: usize| (step as f64 + 0.5) / 8.0 - 0.5;
        let mut readings = Vec::new();
        for pose in &geometry.views {
            for pixel in 0..rows * columns {
                let (v, u) = ((pixel / columns) as f64, (pixel % columns) as f64);
                let rays = (0..64).map(|ray| along(pose, v + middle(ray / 8), u + middle(ray % 8)));
                readings.push(rays.sum::<f64>() / 64.0);
            }
        }
        let error = |views: &[f32]| -> f64 {
            let squares = views.iter().zip(&readings).map(|(a, b)| (f64::from(*a) - b).powi(2));
            (squares.sum::<f64>() / readings.iter().map(|b| b * b).sum::<f64>()).sqrt()
        };
        let before = error(&views);
        let mut taken = vec![0.0; views.len()];
        let aperture = Aperture::of(&geometry, &grid);
        aperture.take(&compute, geometry.detector, (&views).into(), (&mut taken).into()).unwrap();
        let after = error(&taken);
        // What is left: the squared cosines, the places of the rays between voxels, depths other than the centre's.
        assert!(after < 0.5 * before, "{before} before, {after} after");
    }

    #[test]
    fn narrow_pixels_and_wide_ones() {
        let (grid, mut geometry) = (grid(), geometry(3));
        for pose in &mut geometry.views {
            pose.column_step_mm *= 1e-3;
            pose.row_step_mm *= 1e3;
        }
        let aperture = Aperture::of(&geometry, &grid);
        assert_eq!(aperture.u, LARGEST as f32);
        // Wide pixels average over many voxels: all of their width has to come in, and no more.
        assert!((aperture.v + 1.0 / 24.0).abs() < 1e-6, "{aperture:?}");
        // What all pixels see alike stays as it is.
        let views = vec![2.5; geometry.projection_len()];
        let mut taken = vec![0.0; views.len()];
        let compute = carrier(1, geometry.views.len());
        aperture.take(&compute, geometry.detector, (&views).into(), (&mut taken).into()).unwrap();
        assert_eq!(views, taken);
    }
}
