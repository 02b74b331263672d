//! Operations on each value by itself, on sums over values, and on the pixels of views: what loops ask for between the large operations, so
//! that nothing need leave the carrier's memory.

use super::{ComputeError, Values, ValuesMut};
use crate::geometry::Detector;

/// The element-wise operations of the optimisation. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// Values that go together have the same length, else [`ComputeError::Shape`]. Nothing is allocated, and every result is bit-identical for any number of
/// threads.
pub trait ElementCompute: Send + Sync {
    /// `out = first - second`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ.
    fn subtract(&self, first: Values<'_>, second: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `to += factor * from`.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn add_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `values *= factor`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses.
    fn scale(&self, factor: f32, values: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `to = factor * from`.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn copy_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// CRC32C of the values' bytes, little-endian, as volumes in shared memory carry it.
    ///
    /// # Errors
    /// As [`ElementCompute::scale`].
    fn crc32c(&self, values: Values<'_>) -> Result<u32, ComputeError>;

    /// `sum first * second`.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn dot(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError>;

    /// Whether no value is infinite or not a number.
    ///
    /// # Errors
    /// As [`ElementCompute::scale`].
    fn are_finite(&self, values: Values<'_>) -> Result<bool, ComputeError>;

    /// `gradient = 0` where it would take a value of `volume` that is not above 0 further down.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn hold_at_zero(&self, volume: Values<'_>, gradient: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `gradient += weight * sign(volume - reference)`, the sign of 0 being 0: the gradient of the modulus of the difference.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn add_modulus_gradient(
        &self,
        weight: f32,
        volume: Values<'_>,
        reference: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// `out = views - sum shares (neighbour - views)` over the neighbours along columns (`shares[0]`) and rows (`shares[1]`) of each pixel of
    /// `[view][row v][column u]`; pixels at the border have fewer. Symmetric: its own adjoint.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ or are not whole views.
    fn take_aperture(
        &self,
        detector: Detector,
        shares: [f32; 2],
        views: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// `out = gradient / sqrt(weight)`, 0 where the weight is 0 (rays held back).
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn whiten(&self, weights: Values<'_>, gradient: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `gradient = (1 - share) gradient + share * gain * sqrt(weight) * filtered`.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn mix_sharpened(
        &self,
        share: f32,
        gain: f32,
        weights: Values<'_>,
        filtered: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// `out = sqrt(weight) * value`.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn times_root(&self, weights: Values<'_>, values: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// `sum (projections - measured)^2` over the pixels of weight 0, those held back.
    ///
    /// # Errors
    /// As [`ElementCompute::subtract`].
    fn held_back_squares(
        &self,
        projections: Values<'_>,
        measured: Values<'_>,
        weights: Values<'_>,
    ) -> Result<f64, ComputeError>;
}
