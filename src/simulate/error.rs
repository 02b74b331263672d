//! Why a scan could not be simulated.

use crate::compute::ComputeError;
use crate::error::{Classed, ErrorClass};
use crate::formats::FormatError;
use crate::geometry::GeometryError;

/// A failure of the simulator.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A setting cannot be used.
    #[error("{field} = {value}: {requirement}")]
    Setting {
        /// The option as the user writes it, e.g. `--photons`.
        field: &'static str,
        /// The value given.
        value: String,
        /// What it must satisfy, or what to change.
        requirement: String,
    },
    /// The CT volume is readable but cannot be what it should be.
    #[error("{object}: {problem}; {advice}")]
    Object {
        /// The volume's file, or the phantom's name.
        object: String,
        /// What was found.
        problem: String,
        /// What to change.
        advice: String,
    },
    /// The scan would need more memory than there is.
    #[error(
        "this scan needs about {needed_mib} MiB, {available_mib} MiB are free: take fewer views (--views), a smaller \
         detector (--detector), fewer voxels (--voxels) or a smaller --oversample"
    )]
    Memory {
        /// MiB needed at the peak.
        needed_mib: usize,
        /// MiB there.
        available_mib: usize,
    },
    /// The geometry cannot work.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The projector failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl Classed for SimulateError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl SimulateError {
    pub(crate) fn setting(field: &'static str, value: impl ToString, requirement: impl Into<String>) -> Self {
        Self::Setting { field, value: value.to_string(), requirement: requirement.into() }
    }
}
