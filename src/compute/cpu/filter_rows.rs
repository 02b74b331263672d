//! Ramp-filtering of the rows (first version: refuses; the filter's response is not there yet).

#![forbid(unsafe_code)]

use super::super::{ComputeError, Workload};
use super::ramp_filter::RampFilter;
use super::scratch::{Need, Scratch};

/// Scratch of this operation.
pub(super) fn need(_workload: &Workload) -> Need {
    Need::default()
}

/// See [`crate::compute::Compute::filter_rows`].
pub(super) fn filter_rows(
    _scratch: &Scratch,
    _filter: &RampFilter,
    _projections: &mut [f32],
) -> Result<(), ComputeError> {
    Err(ComputeError::Device { device: "cpu".into(), reason: "filter_rows is not carried out yet".into() })
}
