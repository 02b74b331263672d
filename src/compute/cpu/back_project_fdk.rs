//! Voxel-driven back-projection for FDK (first, plain version).

#![forbid(unsafe_code)]

use super::super::{ComputeError, Workload};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Scratch of this operation.
pub(super) fn need(_workload: &Workload) -> Need {
    Need::default()
}

/// See [`crate::compute::Compute::back_project_fdk`].
pub(super) fn back_project_fdk(
    _simd: SimdLevel,
    _scratch: &Scratch,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    filtered: &[f32],
    volume: &mut [f32],
) -> Result<(), ComputeError> {
    let (columns, rows) = (geometry.detector.columns as isize, geometry.detector.rows as isize);
    let views = filtered.chunks_exact(geometry.detector.pixels().max(1));
    for (pose, view) in geometry.views.iter().zip(views) {
        let pixel = |v: isize, u: isize| {
            if (0..rows).contains(&v) && (0..columns).contains(&u) {
                f64::from(view[(v * columns + u) as usize])
            } else {
                0.0
            }
        };
        for ix in 0..grid.voxels[0] {
            for iy in 0..grid.voxels[1] {
                for iz in 0..grid.voxels[2] {
                    let Some((u, v, w)) = pose.project(grid.voxel_centre_mm(ix, iy, iz)) else { continue };
                    let (u0, v0) = (u.floor() as isize, v.floor() as isize);
                    let (fu, fv) = (u - u.floor(), v - v.floor());
                    let row = |v: isize| (1.0 - fu) * pixel(v, u0) + fu * pixel(v, u0 + 1);
                    let value = (1.0 - fv) * row(v0) + fv * row(v0 + 1);
                    volume[grid.index(ix, iy, iz)] += (value / (w * w)) as f32;
                }
            }
        }
    }
    Ok(())
}
