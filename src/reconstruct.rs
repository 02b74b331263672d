//! Reconstruction methods, driven over a scan or frame by frame.

#![forbid(unsafe_code)]

pub mod asd_pocs;
pub mod fdk;
pub mod optimise;
mod memory;
pub mod noise;
pub mod os_sart;
pub mod progress;
pub mod stopping;
pub mod subsets;
#[cfg(test)]
mod test_scan;

pub use asd_pocs::{AsdPocs, AsdPocsPlan, AsdPocsSettings, Epsilon};
pub use fdk::{FdkAccumulator, FdkPlan, FdkSettings};
pub use os_sart::{OsSart, OsSartPlan, OsSartSettings, PixelWeights};
pub use progress::{Observer, Progress, StopReason, Unobserved};
pub use stopping::{Outcome, StopRules};

use crate::compute::ComputeError;
use crate::error::{Classed, ErrorClass};
use crate::geometry::GeometryError;

/// Why a reconstruction was not begun or a view not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// The scan cannot be reconstructed by this method.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// An operation failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A setting is out of its range.
    #[error("setting {field} = {value}: {requirement}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// The value given.
        value: String,
        /// What it must satisfy.
        requirement: &'static str,
    },
    /// A buffer that the machine does not have the memory for.
    #[error("{bytes} bytes for `{buffer}` are not to be had; use a smaller --size or fewer views per call")]
    Memory {
        /// Its name in [`FdkPlan::buffers`].
        buffer: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A view that the plan does not know, or that was added before.
    #[error("view {view}: {reason} (the plan has {views} views)")]
    View {
        /// Index given.
        view: usize,
        /// Views of the plan.
        views: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Projections of another size than the detector.
    #[error("line integrals of {given} values, but {views} views of {rows} x {columns} pixels need {needed}")]
    Length {
        /// Values given.
        given: usize,
        /// Values needed.
        needed: usize,
        /// Views in the call.
        views: usize,
        /// Detector rows.
        rows: usize,
        /// Detector columns.
        columns: usize,
    },
    /// A line integral that is no number, or absurdly large, would spread over the whole volume.
    #[error(
        "view {view}: the line integral of row {row}, column {column} is {value}; line integrals are dimensionless numbers near 0 to 10: correct or interpolate dead pixels first"
    )]
    NotFinite {
        /// View index.
        view: usize,
        /// Detector row.
        row: usize,
        /// Detector column.
        column: usize,
        /// The value.
        value: f32,
    },
}

impl Classed for ReconstructError {
    fn class(&self) -> ErrorClass {
        match self {
            // One frame lost; the others still make a volume.
            Self::View { .. } | Self::Length { .. } | Self::NotFinite { .. } => ErrorClass::Degrade,
            Self::Geometry(_) | Self::Compute(_) | Self::Setting { .. } | Self::Memory { .. } => ErrorClass::Stop,
        }
    }
}
