//! A launcher without a device: it counts what is allocated, so that an arena can be sized before it is made.

#![allow(unsafe_code)] // Implements the launch, which does nothing.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::super::ComputeError;
use super::{Arena, Arguments, LaunchShape, Launcher};

/// Hands out offsets as a device would; copies, fills and launches do nothing, and what is read is zeros. Clones count together.
#[derive(Debug, Clone)]
pub struct Tally {
    description: String,
    arena: Arc<Arena>,
}

impl Tally {
    /// A tally for a device that is described so.
    #[must_use]
    pub fn new(description: String) -> Self {
        Self { description, arena: Arc::new(Arena::new(usize::MAX)) }
    }

    /// Bytes that an arena needs for what was allocated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.used()
    }
}

impl Launcher for Tally {
    fn description(&self) -> String {
        self.description.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
        self.arena.take("cuda", bytes)
    }

    fn copy_in(&self, _offset: usize, _from: &[u8]) -> Result<(), ComputeError> {
        Ok(())
    }

    fn copy_out(&self, _offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        to.fill(0);
        Ok(())
    }

    unsafe fn begin_copy_out(&self, _offset: usize, _to: NonNull<u8>, _bytes: usize) -> Result<(), ComputeError> {
        Ok(())
    }

    fn end_copy_out(&self) -> Result<(), ComputeError> {
        Ok(())
    }

    fn copy(&self, _from: usize, _to: usize, _bytes: usize) -> Result<(), ComputeError> {
        Ok(())
    }

    fn fill(&self, _bytes: Range<usize>, _pattern: u32) -> Result<(), ComputeError> {
        Ok(())
    }

    unsafe fn launch(
        &self,
        _kernel: &'static str,
        _shape: LaunchShape,
        _arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), ComputeError> {
        Ok(())
    }
}
