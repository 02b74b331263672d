//! [`LossCompute`] on the CPU: hands each loss to its file, within the carrier's pool.

#![forbid(unsafe_code)]

use super::super::losses::{ImageLoss, ImageLossValue, LossCompute, LossWorkload, VolumeSsimLoss, VolumeSsimValue};
use super::super::{ComputeError, Left, Values, ValuesMut};
use super::scratch::Need;
use super::{CpuCompute, loss_image, loss_volume};
use crate::geometry::Detector;

fn need(workload: &LossWorkload) -> Need {
    loss_image::need(workload).either(loss_volume::need(workload))
}

impl LossCompute for CpuCompute {
    fn loss_scratch_bytes(&self, workload: &LossWorkload) -> usize {
        need(workload).bytes(self.threads())
    }

    fn prepare_losses(&mut self, workload: &LossWorkload) -> Result<(), ComputeError> {
        self.loss_scratch.prepare(need(workload))
    }

    fn image_loss(
        &self,
        detector: Detector,
        settings: &ImageLoss,
        projections: Values<'_>,
        measured: Values<'_>,
        weights: Option<Values<'_>>,
        by_projections: ValuesMut<'_>,
    ) -> Result<Left<ImageLossValue>, ComputeError> {
        const OPERATION: &str = "image_loss";
        let value = self.image_loss(
            detector,
            settings,
            projections.host(OPERATION)?,
            measured.host(OPERATION)?,
            weights.map(|weights| weights.host(OPERATION)).transpose()?,
            by_projections.host(OPERATION)?,
        )?;
        Ok(Left::AtHand(value))
    }

    fn volume_ssim_loss(
        &self,
        voxels: [usize; 3],
        settings: &VolumeSsimLoss,
        volume: Values<'_>,
        reference: Values<'_>,
        by_volume: ValuesMut<'_>,
    ) -> Result<Left<VolumeSsimValue>, ComputeError> {
        const OPERATION: &str = "volume_ssim_loss";
        let (volume, reference) = (volume.host(OPERATION)?, reference.host(OPERATION)?);
        self.volume_ssim_loss(voxels, settings, volume, reference, by_volume.host(OPERATION)?).map(Left::AtHand)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`LossCompute::image_loss`].
    ///
    /// # Errors
    /// As there.
    pub fn image_loss(
        &self,
        detector: Detector,
        settings: &ImageLoss,
        projections: &[f32],
        measured: &[f32],
        weights: Option<&[f32]>,
        by_projections: &mut [f32],
    ) -> Result<ImageLossValue, ComputeError> {
        self.pool.install(|| {
            loss_image::image_loss(
                self.simd,
                &self.loss_scratch,
                detector,
                settings,
                projections,
                measured,
                weights,
                by_projections,
            )
        })
    }

    /// See [`LossCompute::volume_ssim_loss`].
    ///
    /// # Errors
    /// As there.
    pub fn volume_ssim_loss(
        &self,
        voxels: [usize; 3],
        settings: &VolumeSsimLoss,
        volume: &[f32],
        reference: &[f32],
        by_volume: &mut [f32],
    ) -> Result<VolumeSsimValue, ComputeError> {
        self.pool.install(|| {
            loss_volume::volume_ssim_loss(self.simd, &self.loss_scratch, voxels, settings, volume, reference, by_volume)
        })
    }
}
