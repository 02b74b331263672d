//! What was asked of a launcher, written down, to be asked later: launches, copies and fills on the device.

#![allow(unsafe_code)] // Hands on launches.

use std::ops::Range;

use super::super::ComputeError;
use super::{Arguments, LaunchShape, Launcher};

/// Launches, copies and fills in the order in which they were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tape {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant)] // Most are launches, and what an operation asks for allocates nothing.
pub(super) enum Step {
    Launch { kernel: &'static str, shape: LaunchShape, arguments: Arguments },
    Copy { from: usize, to: usize, bytes: usize },
    Fill { bytes: Range<usize>, pattern: u32 },
}

impl Tape {
    /// Writes down a launch.
    ///
    /// # Safety
    /// As [`Launcher::launch`], for whenever the tape is played.
    pub unsafe fn launch(&mut self, kernel: &'static str, shape: LaunchShape, arguments: &Arguments) {
        self.steps.push(Step::Launch { kernel, shape, arguments: arguments.clone() });
    }

    /// Writes down a [`Launcher::copy`].
    pub fn copy(&mut self, from: usize, to: usize, bytes: usize) {
        self.steps.push(Step::Copy { from, to, bytes });
    }

    /// Writes down a [`Launcher::fill`].
    pub fn fill(&mut self, bytes: Range<usize>, pattern: u32) {
        self.steps.push(Step::Fill { bytes, pattern });
    }

    /// Asks for all of it, in its order.
    ///
    /// # Errors
    /// That of the first which fails; those after it are not asked for.
    pub fn play(&self, launcher: &dyn Launcher) -> Result<(), ComputeError> {
        for step in &self.steps {
            match step {
                // SAFETY: promised when it was written down.
                Step::Launch { kernel, shape, arguments } => unsafe { launcher.launch(kernel, *shape, arguments) }?,
                Step::Copy { from, to, bytes } => launcher.copy(*from, *to, *bytes)?,
                Step::Fill { bytes, pattern } => launcher.fill(bytes.clone(), *pattern)?,
            }
        }
        Ok(())
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many launches, copies and fills.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing is on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Wipes it; its memory stays.
    pub fn clear(&mut self) {
        self.steps.clear();
    }
}
