//! Placeholder while the operation is being built.

use super::super::{ComputeError, Workload};
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Scratch of this operation.
pub(super) fn need(_workload: &Workload) -> Need {
    Need::default()
}

/// See [`crate::compute::Compute::back_project_matched`].
pub(super) fn back_project_matched(
    _simd: SimdLevel,
    scratch: &Scratch,
    _geometry: &ScanGeometry,
    _grid: &VolumeGrid,
    _from: &[f32],
    _to: &mut [f32],
) -> Result<(), ComputeError> {
    drop((scratch.take("back_project_matched", Need::default())?.floats(), scratch.of_this_thread()));
    Err(ComputeError::Device { device: "cpu".into(), reason: "back_project_matched is not carried out yet".into() })
}
