//! Why SliceFixer cannot be had, or why its work is not taken.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::{Plane, Provider};
use crate::compute::ComputeError;
use crate::error::{Classed, ErrorClass};

/// What went wrong, and what to change.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// ONNX Runtime is nowhere.
    #[error(
        "no ONNX Runtime: looked {searched}; run `make onnxruntime`, or `pip install onnxruntime` and name its folder onnxruntime/capi \
         in DIFFNR_ONNXRUNTIME"
    )]
    LibraryMissing {
        /// Where it was looked for.
        searched: String,
    },
    /// ONNX Runtime cannot be loaded.
    #[error("{}: no usable ONNX Runtime: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        reason: String,
    },
    /// A process holds one ONNX Runtime.
    #[error("ONNX Runtime is loaded from {}; {} cannot be taken as well: start anew", loaded.display(), asked.display())]
    LibraryTaken {
        /// The one in use.
        loaded: PathBuf,
        /// The one asked for.
        asked: PathBuf,
    },
    /// No model is where one was looked for.
    #[error("no SliceFixer model: {searched}; name the folder that holds its manifest.toml, or set DIFFNR_MODELS")]
    ModelMissing {
        /// Where it was looked for.
        searched: String,
    },
    /// A file of the model cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The manifest itself makes no sense.
    #[error("{}: {field} = {value}: {requirement}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it holds.
        value: String,
        /// What it must hold.
        requirement: String,
    },
    /// A graph is not what the manifest says.
    #[error("{}: {what} is {found}, the manifest says {manifest}; export model and manifest together", path.display())]
    Contract {
        /// The graph's file.
        path: PathBuf,
        /// What differs.
        what: String,
        /// The manifest's value.
        manifest: String,
        /// The file's.
        found: String,
    },
    /// ONNX Runtime refuses the graph.
    #[error("{}: ONNX Runtime cannot load it: {reason}", path.display())]
    Graph {
        /// The graph's file.
        path: PathBuf,
        /// ONNX Runtime's reason.
        reason: String,
    },
    /// The execution provider that was demanded does not run the model.
    #[error("execution provider {provider} was demanded: {reason}; install what is missing, or allow any provider")]
    Demanded {
        /// The provider.
        provider: Provider,
        /// Why it does not run.
        reason: String,
    },
    /// A run failed.
    #[error("SliceFixer failed while running: {reason}")]
    Run {
        /// ONNX Runtime's reason.
        reason: String,
    },
    /// What the caller gave cannot be taken.
    #[error("SliceFixer: {field} = {value}: {requirement}")]
    Input {
        /// Which of the arguments.
        field: String,
        /// Its value.
        value: String,
        /// What it must be.
        requirement: String,
    },
    /// The model gave what no slice can be.
    #[error(
        "SliceFixer gave {value} in {plane} slice {slice} (window units; at most {limit} is taken): the repair is not taken"
    )]
    Output {
        /// The plane.
        plane: Plane,
        /// The slice.
        slice: usize,
        /// The value.
        value: f32,
        /// Largest magnitude that is taken.
        limit: f32,
    },
    /// The deadline passed.
    #[error("SliceFixer is late: {done} of {slices} slices were done when the time was up; the repair is not taken")]
    Late {
        /// Slices done.
        done: usize,
        /// Slices of all planes.
        slices: usize,
    },
    /// Whoever watches asked for the end.
    #[error("SliceFixer was interrupted")]
    Interrupted,
    /// An operation of the carrier.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl Classed for RepairError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Run { .. } | Self::Output { .. } | Self::Late { .. } | Self::Interrupted => ErrorClass::Degrade,
            _ => ErrorClass::Stop,
        }
    }
}

impl RepairError {
    pub(super) fn input(field: impl Into<String>, value: impl ToString, requirement: impl Into<String>) -> Self {
        Self::Input { field: field.into(), value: value.to_string(), requirement: requirement.into() }
    }

    pub(super) fn run(error: &ort::Error) -> Self {
        Self::Run { reason: error.message().to_string() }
    }
}
