//! The element-wise operations of algebraic reconstruction (SART and its kin), beside the projectors of [`super::Compute`].

use super::total_variation::VariationCompute;
use super::{Compute, ComputeError, Values, ValuesMut};

/// The operations of algebraic reconstruction. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// Nothing is allocated (nor any scratch needed), and every result is bit-identical for any number of threads.
pub trait SartCompute: Send + Sync {
    /// `projections = weights * (measured - projections)`: from the projections of a volume to the weighted residual that is projected
    /// back. Returns `sum (measured - projections)^2` over the pixels whose weight is not zero.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn weigh_residual(
        &self,
        measured: Values<'_>,
        weights: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<f64, ComputeError>;

    /// `volume += relaxation * correction / column_sums` where a column sum is above `least_sum` (elsewhere no ray of the subset says
    /// anything), no value below `least` (`f32::NEG_INFINITY` for no bound). Returns the sum of the squared changes.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn apply_correction(
        &self,
        step: &CorrectionStep,
        correction: Values<'_>,
        column_sums: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<f64, ComputeError>;

    /// `volume -= step * gradient`, no value below `least`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn descend(&self, step: f32, gradient: Values<'_>, least: f32, volume: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `sum values^2`.
    ///
    /// # Errors
    /// As the other operations where the values lie elsewhere.
    fn squared_norm(&self, values: Values<'_>) -> Result<f64, ComputeError>;

    /// `sum (first - second)^2`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn squared_distance(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError>;
}

/// How [`SartCompute::apply_correction`] steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorrectionStep {
    /// Factor of the correction.
    pub relaxation: f32,
    /// Column sums up to this leave their voxel alone.
    pub least_sum: f32,
    /// Lower bound of the volume's values.
    pub least: f32,
}

/// Everything that the classical iterative methods ask for; whoever has the parts has it.
pub trait AlgebraicCompute: Compute + SartCompute + VariationCompute {}

impl<C: Compute + SartCompute + VariationCompute> AlgebraicCompute for C {}
