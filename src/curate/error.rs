//! Why pairs could not be made.

use crate::compute::ComputeError;
use crate::error::{Classed, ErrorClass};
use crate::formats::FormatError;
use crate::geometry::GeometryError;
use crate::measure::MeasureError;
use crate::reconstruct::ReconstructError;
use crate::reconstruct::optimise::OptimiseError;
use crate::simulate::error::SimulateError;

/// A failure of the curation.
#[derive(Debug, thiserror::Error)]
pub enum CurateError {
    /// An option cannot be used.
    #[error("{field} = {value}: {requirement}")]
    Setting {
        /// The option as the user writes it, e.g. `--scans`.
        field: &'static str,
        /// The value given.
        value: String,
        /// What it must satisfy, or what to change.
        requirement: String,
    },
    /// A subject cannot be used.
    #[error("{subject}: {problem}; {advice}")]
    Subject {
        /// Its file or name.
        subject: String,
        /// What was found.
        problem: String,
        /// What to change.
        advice: String,
    },
    /// The folder holds something else.
    #[error("{folder}: {problem}; {advice}")]
    Folder {
        /// The folder given with `-o`.
        folder: String,
        /// What was found, naming what differs.
        problem: String,
        /// What to change.
        advice: &'static str,
    },
    /// The machine has not the memory.
    #[error(
        "{subject} needs about {needed_mib} MiB, {available_mib} MiB are free: take a smaller --size or --detector"
    )]
    Memory {
        /// The subject.
        subject: String,
        /// MiB needed at the peak.
        needed_mib: usize,
        /// MiB there.
        available_mib: usize,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A scan could not be simulated.
    #[error("{subject}: {reason}")]
    Simulate {
        /// The subject.
        subject: String,
        /// The reason.
        reason: SimulateError,
    },
    /// A scan could not be reconstructed.
    #[error("{scan}: {reason}")]
    Reconstruct {
        /// Subject and number of the scan.
        scan: String,
        /// The reason.
        reason: OptimiseError,
    },
    /// A pair could not be judged.
    #[error("{scan}: {reason}")]
    Measure {
        /// Subject and number of the scan.
        scan: String,
        /// The reason.
        reason: MeasureError,
    },
    /// The processor's threads could not be had.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl Classed for CurateError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl CurateError {
    pub(super) fn setting(field: &'static str, value: impl ToString, requirement: impl Into<String>) -> Self {
        Self::Setting { field, value: value.to_string(), requirement: requirement.into() }
    }

    pub(super) fn subject(subject: impl Into<String>, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Subject { subject: subject.into(), problem: problem.into(), advice: advice.into() }
    }

    pub(super) fn of_scan(scan: &str, reason: impl Into<OptimiseError>) -> Self {
        Self::Reconstruct { scan: scan.into(), reason: reason.into() }
    }

    pub(super) fn of_subject(subject: &str, reason: impl Into<SimulateError>) -> Self {
        match reason.into() {
            SimulateError::Format(error) => Self::Format(error),
            reason => Self::Simulate { subject: subject.into(), reason },
        }
    }

    pub(super) fn of_geometry(subject: &str, reason: GeometryError) -> Self {
        Self::of_scan(subject, ReconstructError::Geometry(reason))
    }
}
