//! What Gaussians a volume is given, and by which schedule: one place for the command line, the daemon and the benches.

#![forbid(unsafe_code)]

use super::initialise::Initialisation;
use super::{GaussianError, GaussianLimits, GaussianRates, GaussianRepresentation, GaussianSchedule, Gaussians};
use crate::compute::Memory;
use crate::compute::gaussians::GaussianWorkload;
use crate::geometry::VolumeGrid;

/// Gaussians for a voxel of the grid, where no number is given.
const PER_VOXEL: f64 = 0.14;

/// Limits and schedule of the Gaussians of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianPlan {
    /// Capacity, unit, sizes.
    pub limits: GaussianLimits,
    /// First Gaussians, rates, adaptive control.
    pub schedule: GaussianSchedule,
}

impl GaussianPlan {
    /// The number of Gaussians for `grid` where none is given: a share of its voxels, so that a Gaussian is some two voxels
    /// wide whatever the grid.
    #[must_use]
    pub fn usual_number(grid: &VolumeGrid) -> usize {
        ((PER_VOXEL * grid.len() as f64) as usize).max(1)
    }

    /// The plan for `gaussians` Gaussians (`None`: [`GaussianPlan::usual_number`]) on `grid`; its lengths follow the voxels.
    #[must_use]
    pub fn for_grid(grid: &VolumeGrid, gaussians: Option<usize>, seed: u64) -> Self {
        let gaussians = gaussians.unwrap_or_else(|| Self::usual_number(grid));
        let voxel_mm = grid.voxel_mm.min_element() as f32;
        Self {
            limits: GaussianLimits {
                capacity: gaussians,
                density_unit_per_mm: 0.004,
                smallest_scale_mm: 0.3 * voxel_mm,
                largest_scale_mm: 20.0 * voxel_mm,
                low_pass_mm: 0.3 * voxel_mm,
            },
            schedule: GaussianSchedule {
                initialisation: Initialisation {
                    gaussians,
                    threshold_per_mm: 0.0,
                    density_factor: 0.3,
                    scale_factor: 0.6,
                    seed,
                },
                start_threshold: 0.2,
                // Moments that forget soon, and small rates: with Adam's usual 0.9 and 0.999 the first steps overshoot, and what they break takes
                // thirty iterations to mend (docs/methods.md).
                rates: GaussianRates {
                    density: 0.04,
                    position_mm: 0.12,
                    log_scale: 0.025,
                    rotation: 0.012,
                    beta1: 0.75,
                    beta2: 0.9,
                },
                decay: 0.4,
                adapt_every: 0,
                adapt_until: 0.6,
                adapt_share: 0.05,
                prune_below: 1e-3,
            },
        }
    }

    /// What the carrier must be ready for.
    #[must_use]
    pub fn workload(&self, grid: &VolumeGrid) -> GaussianWorkload {
        GaussianWorkload {
            gaussians: self.limits.capacity,
            columns: 1,
            rows: 1,
            views_per_call: 1,
            voxels: grid.voxels,
        }
    }

    /// Every buffer of the representation and its bytes.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        vec![("gaussians", Gaussians::bytes(self.limits.capacity))]
    }

    /// The representation itself.
    ///
    /// # Errors
    /// As [`Gaussians::new`].
    pub fn build(&self, compute: &dyn Memory, grid: &VolumeGrid) -> Result<GaussianRepresentation, GaussianError> {
        GaussianRepresentation::new(compute, &self.limits, &self.schedule, grid)
    }
}
