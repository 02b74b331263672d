//! Placeholder while the operation is being built.

use super::super::{ComputeError, Workload};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Scratch of this operation.
pub(super) fn need(_workload: &Workload) -> Need {
    Need::default()
}

/// See [`crate::compute::Compute::forward_project`].
pub(super) fn forward_project(
    _simd: SimdLevel,
    scratch: &Scratch,
    _geometry: &ScanGeometry,
    _grid: &VolumeGrid,
    _from: &[f32],
    _to: &mut [f32],
) -> Result<(), ComputeError> {
    drop((scratch.take("forward_project", Need::default())?.floats(), scratch.of_this_thread()));
    Err(ComputeError::Device { device: "cpu".into(), reason: "forward_project is not carried out yet".into() })
}
