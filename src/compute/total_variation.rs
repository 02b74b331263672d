//! Total variation of a volume, beside [`super::Compute`]: what compressed sensing asks for, and a regulariser for anything that
//! is a volume at some point.
//!
//! **Definition.** Isotropic and smoothed, by forward differences:
//! `TV(f) = sum_i sqrt(sum_k (s_k (f[i + e_k] - f[i]))^2 + epsilon^2)` over all voxels `i` and axes `k`; differences across the
//! grid's far faces are zero. Differences count **per voxel index times `s_k = h / voxel_mm[k]`**, `h` the smallest voxel edge: on
//! cubic voxels plain differences of neighbours, on others in the ratio of the true gradient. The unit is that of the volume (1/mm), as is
//! epsilon's; the sum runs over voxels, not over mm^3.

use super::{ComputeError, Left, Values, ValuesMut};
use crate::geometry::VolumeGrid;

/// What defines the total variation of a volume.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TotalVariation {
    /// Voxels along x, y, z.
    pub voxels: [usize; 3],
    /// `s_k`: factor of the differences along x, y, z.
    pub scale: [f32; 3],
    /// Rounds the corner at zero, in the volume's unit (1/mm); above zero. A difference much smaller than this is smoothed as by a
    /// quadratic penalty, a larger one as by its absolute value.
    pub epsilon: f32,
}

impl TotalVariation {
    /// On this grid, with the scales that its voxels ask for.
    #[must_use]
    pub fn on(grid: &VolumeGrid, epsilon: f32) -> Self {
        let smallest = grid.voxel_mm.min_element();
        Self { voxels: grid.voxels, scale: (smallest / grid.voxel_mm).to_array().map(|s| s as f32), epsilon }
    }

    /// Voxels of the volume.
    #[must_use]
    pub fn len(&self) -> usize {
        self.voxels.iter().product()
    }

    /// Whether there is no voxel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses an epsilon or a scale that is not positive, in the name of `operation`.
    pub(super) fn check(&self, operation: &'static str) -> Result<(), ComputeError> {
        let positive = |parameter, index, value: f32, requirement| {
            if (value * value).is_normal() && value > 0.0 {
                Ok(())
            } else {
                Err(ComputeError::Value { operation, parameter, index, value, requirement })
            }
        };
        positive(
            "epsilon",
            0,
            self.epsilon,
            "must be finite and above 1e-18: the gradient divides by it where the volume is flat",
        )?;
        for (axis, &scale) in self.scale.iter().enumerate() {
            positive(
                "scale",
                axis,
                scale,
                "must be finite and above 1e-18: smallest voxel edge over this axis' voxel edge",
            )?;
        }
        Ok(())
    }
}

/// The operations of total variation. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// Nothing is allocated (nor any scratch needed), and every result is bit-identical for any number of threads and any SIMD level.
pub trait VariationCompute: Send + Sync {
    /// `TV(volume)`; NaN where a voxel is.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the volume does not fit, [`ComputeError::Value`] for an epsilon or a scale that is not positive.
    fn total_variation(&self, variation: &TotalVariation, volume: Values<'_>) -> Result<f64, ComputeError>;

    /// **Adds** `weight * dTV/dvolume` to `gradient` (`[x][y][z]`) and finds `TV(volume)` (without the weight).
    ///
    /// # Errors
    /// As [`VariationCompute::total_variation`].
    fn add_total_variation_gradient(
        &self,
        variation: &TotalVariation,
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<Left<f64>, ComputeError>;
}
