//! A small scan that the tests of iterative methods share: two smooth blobs, 24 x 24 x 20 voxels, 40 x 36 pixels.
#![allow(clippy::unwrap_used)]

use glam::DVec3;

use crate::compute::cpu::CpuCompute;
use crate::compute::{Compute, Workload};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};

pub(super) fn orbit() -> CircularOrbit {
    CircularOrbit {
        detector: Detector { columns: 40, rows: 36 },
        pitch_u_mm: 9.0,
        pitch_v_mm: 9.0,
        ..CircularOrbit::default()
    }
}

pub(super) fn grid() -> VolumeGrid {
    VolumeGrid::over_box([24, 24, 20], DVec3::new(192.0, 192.0, 160.0), DVec3::ZERO)
}

/// Two smooth blobs.
pub(super) fn object(grid: &VolumeGrid) -> Vec<f32> {
    let [nx, ny, nz] = grid.voxels;
    let mut volume = Vec::new();
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let at = grid.voxel_centre_mm(x, y, z);
                let blob = |centre: DVec3, width_mm: f64| (-0.5 * ((at - centre) / width_mm).length_squared()).exp();
                let mu = 0.02 * blob(DVec3::new(15.0, -20.0, 5.0), 28.0)
                    + 0.015 * blob(DVec3::new(-35.0, 25.0, -20.0), 18.0);
                volume.push(mu as f32);
            }
        }
    }
    volume
}

pub(super) fn carrier(threads: usize, views: usize) -> CpuCompute {
    let mut compute = CpuCompute::new(threads).unwrap();
    let detector = orbit().detector;
    let workload =
        Workload { columns: detector.columns, rows: detector.rows, views_per_call: views, voxels: grid().voxels };
    compute.prepare(&workload).unwrap();
    compute
}

pub(super) fn project(geometry: &ScanGeometry, volume: &[f32]) -> Vec<f32> {
    let mut projections = vec![0.0; geometry.projection_len()];
    carrier(2, geometry.views.len()).forward_project(geometry, &grid(), volume, &mut projections).unwrap();
    projections
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Relative error of the volume.
pub(super) fn error(volume: &[f32], truth: &[f32]) -> f64 {
    norm(volume.iter().zip(truth).map(|(a, b)| a - b)) / norm(truth.iter().copied())
}

/// Deterministic noise of zero mean.
pub(super) fn noise(values: usize, sigma: f32) -> Vec<f32> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    // A sum of 12 uniform numbers has variance 1.
    (0..values).map(|_| sigma * (0..12).map(|_| next()).sum::<f32>()).collect()
}
