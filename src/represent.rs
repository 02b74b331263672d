//! Representations that are optimised against projections: parameters, initialisation, adaptive control.
//!
//! The operations they stand on are in [`crate::compute`]; the loop that drives them through [`Representation`] is in
//! [`crate::reconstruct`].

#![forbid(unsafe_code)]

pub mod field;
pub mod gaussians;

use crate::compute::{ComputeError, Operations, Values, ValuesMut};
use crate::error::{Classed, ErrorClass};
use crate::geometry::VolumeGrid;

/// Why a representation cannot be made or begun.
#[derive(Debug, thiserror::Error)]
pub enum RepresentError {
    /// The Gaussians refuse.
    #[error(transparent)]
    Gaussians(#[from] gaussians::GaussianError),
    /// The field refuses.
    #[error(transparent)]
    Field(#[from] field::FieldError),
    /// An operation failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl Classed for RepresentError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// A place in the run, for learning rates and adaptive control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stage {
    /// Share of the run that is done, 0 to 1.
    pub share: f32,
    /// Whether the representation still learns its starting volume; adaptive control waits for the projections.
    pub fitting: bool,
}

/// What the loop asks of a representation: to be a volume, to take the gradient of a loss by that volume, and to step.
///
/// All memory is taken when a representation is made; it lies with the carrier, none of these methods allocates, and each gives the same bits for any
/// number of threads.
pub trait Representation: Send {
    /// `gaussians` or `field`, as the command line, status and headers have it.
    fn name(&self) -> &'static str;

    /// What it is made of: Gaussians, or entries of the tables.
    fn elements(&self) -> usize;

    /// What these are called.
    fn unit(&self) -> &'static str;

    /// Starts anew, near the attenuation `start` (1/mm, `[x][y][z]` on `grid`), which lies on the host.
    ///
    /// # Errors
    /// [`RepresentError`] where nothing can be begun with that volume.
    fn begin(&mut self, compute: &dyn Operations, grid: &VolumeGrid, start: &[f32]) -> Result<(), RepresentError>;

    /// The volume in 1/mm on `grid`, `[x][y][z]`. Overwrites `volume`. With a `draw` a representation may stand for each voxel by a
    /// random point in it, another for each draw; without, the same call gives the same values.
    ///
    /// # Errors
    /// As the operation.
    fn voxelise(
        &self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Takes the gradient of a loss by the volume that [`Representation::voxelise`] gave for the same draw; several calls add up
    /// until the next step.
    ///
    /// # Errors
    /// As the operation.
    fn voxelise_backward(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        by_volume: Values<'_>,
    ) -> Result<(), ComputeError>;

    /// Steps along the gradients taken since the last step, and forgets them.
    ///
    /// # Errors
    /// As the operation.
    fn step(&mut self, compute: &dyn Operations, grid: &VolumeGrid, stage: Stage) -> Result<(), ComputeError>;
}
