//! The carrier's smaller operations: elements, algebraic reconstruction, total variation, losses, the learned prior, slices.

#![forbid(unsafe_code)]

use super::super::elements::ElementCompute;
use super::super::experts::{Experts, ExpertsCompute};
use super::super::losses::{
    ImageLoss, ImageLossValue, LossCompute, LossWorkload, VolumeSsimLoss, VolumeSsimValue, none_left,
};
use super::super::sart::{CorrectionStep, SartCompute};
use super::super::slices::{SliceBatch, SliceCompute, SliceLayout, WindowUnits};
use super::super::total_variation::{TotalVariation, VariationCompute};
use super::super::{ComputeError, Left, Values, ValuesMut};
use super::carrier::{CRC_BYTES, State};
use super::{CudaCompute, ExpertsTable, ImageLossSums, SliceRoom, VolumeSsimRoom};
use crate::compute::experts::MOST_EXPERTS;
use crate::geometry::Detector;

impl ElementCompute for CudaCompute {
    fn subtract(&self, first: Values<'_>, second: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "subtract";
        let (first, second) = (first.device(OPERATION)?, second.device(OPERATION)?);
        super::subtract(self.launcher(), first, second, out.device(OPERATION)?)
    }

    fn add_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_scaled";
        super::add_scaled(self.launcher(), factor, from.device(OPERATION)?, to.device(OPERATION)?)
    }

    fn scale(&self, factor: f32, values: ValuesMut<'_>) -> Result<(), ComputeError> {
        super::scale(self.launcher(), factor, values.device("scale")?)
    }

    fn copy_scaled(&self, factor: f32, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "copy_scaled";
        super::copy_scaled(self.launcher(), factor, from.device(OPERATION)?, to.device(OPERATION)?)
    }

    fn crc32c(&self, values: Values<'_>) -> Result<u32, ComputeError> {
        const OPERATION: &str = "crc32c";
        let room = self.state().crc;
        let room = room.ok_or(ComputeError::Scratch { operation: OPERATION, needed: CRC_BYTES, prepared: 0 })?;
        super::crc32c(self.launcher(), values.device(OPERATION)?, room)?;
        let mut crc = [0];
        room.copy_to(self.launcher(), &mut crc)?;
        Ok(crc[0])
    }

    fn dot(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError> {
        const OPERATION: &str = "dot";
        let sum = self.state().sum(OPERATION)?;
        super::dot(self.launcher(), first.device(OPERATION)?, second.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }

    fn are_finite(&self, values: Values<'_>) -> Result<bool, ComputeError> {
        const OPERATION: &str = "are_finite";
        let sum = self.state().sum(OPERATION)?;
        super::count_not_finite(self.launcher(), values.device(OPERATION)?, &sum)?;
        Ok(sum.read(self.launcher())? == 0.0)
    }

    fn hold_at_zero(&self, volume: Values<'_>, gradient: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "hold_at_zero";
        super::hold_at_zero(self.launcher(), volume.device(OPERATION)?, gradient.device(OPERATION)?)
    }

    fn add_modulus_gradient(
        &self,
        weight: f32,
        volume: Values<'_>,
        reference: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_modulus_gradient";
        let (volume, reference) = (volume.device(OPERATION)?, reference.device(OPERATION)?);
        super::add_modulus_gradient(self.launcher(), weight, volume, reference, gradient.device(OPERATION)?)
    }

    fn take_aperture(
        &self,
        detector: Detector,
        shares: [f32; 2],
        views: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "take_aperture";
        super::take_aperture(self.launcher(), detector, shares, views.device(OPERATION)?, out.device(OPERATION)?)
    }

    fn whiten(&self, weights: Values<'_>, gradient: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "whiten";
        let (weights, gradient) = (weights.device(OPERATION)?, gradient.device(OPERATION)?);
        super::whiten(self.launcher(), weights, gradient, out.device(OPERATION)?)
    }

    fn mix_sharpened(
        &self,
        share: f32,
        gain: f32,
        weights: Values<'_>,
        filtered: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "mix_sharpened";
        let (weights, filtered) = (weights.device(OPERATION)?, filtered.device(OPERATION)?);
        super::mix_sharpened(self.launcher(), share, gain, weights, filtered, gradient.device(OPERATION)?)
    }

    fn times_root(&self, weights: Values<'_>, values: Values<'_>, out: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "times_root";
        let (weights, values) = (weights.device(OPERATION)?, values.device(OPERATION)?);
        super::times_root(self.launcher(), weights, values, out.device(OPERATION)?)
    }

    fn held_back_squares(
        &self,
        projections: Values<'_>,
        measured: Values<'_>,
        weights: Values<'_>,
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "held_back_squares";
        let sum = self.state().sum(OPERATION)?;
        let (projections, measured) = (projections.device(OPERATION)?, measured.device(OPERATION)?);
        super::held_back_squares(self.launcher(), projections, measured, weights.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }
}

impl SartCompute for CudaCompute {
    fn weigh_residual(
        &self,
        measured: Values<'_>,
        weights: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "weigh_residual";
        let sum = self.state().sum(OPERATION)?;
        let (measured, weights) = (measured.device(OPERATION)?, weights.device(OPERATION)?);
        super::weigh_residual(self.launcher(), measured, weights, projections.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }

    fn apply_correction(
        &self,
        step: &CorrectionStep,
        correction: Values<'_>,
        column_sums: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "apply_correction";
        let sum = self.state().sum(OPERATION)?;
        let (correction, column_sums) = (correction.device(OPERATION)?, column_sums.device(OPERATION)?);
        super::apply_correction(self.launcher(), step, correction, column_sums, volume.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }

    fn descend(&self, step: f32, gradient: Values<'_>, least: f32, volume: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "descend";
        super::descend(self.launcher(), step, gradient.device(OPERATION)?, least, volume.device(OPERATION)?)
    }

    fn squared_norm(&self, values: Values<'_>) -> Result<f64, ComputeError> {
        const OPERATION: &str = "squared_norm";
        let sum = self.state().sum(OPERATION)?;
        super::squared_norm(self.launcher(), values.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }

    fn squared_distance(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError> {
        const OPERATION: &str = "squared_distance";
        let sum = self.state().sum(OPERATION)?;
        super::squared_distance(self.launcher(), first.device(OPERATION)?, second.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }
}

impl VariationCompute for CudaCompute {
    fn total_variation(&self, variation: &TotalVariation, volume: Values<'_>) -> Result<f64, ComputeError> {
        const OPERATION: &str = "total_variation";
        let sum = self.state().sum(OPERATION)?;
        super::total_variation(self.launcher(), variation, volume.device(OPERATION)?, &sum)?;
        sum.read(self.launcher())
    }

    fn add_total_variation_gradient(
        &self,
        variation: &TotalVariation,
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<Left<f64>, ComputeError> {
        const OPERATION: &str = "add_total_variation_gradient";
        let sum = self.state().sum(OPERATION)?;
        let (volume, gradient) = (volume.device(OPERATION)?, gradient.device(OPERATION)?);
        super::add_total_variation_gradient(self.launcher(), variation, weight, volume, gradient, &sum)?;
        if self.recorder.is_gathering() {
            return Ok(Left::WithCarrier);
        }
        sum.read(self.launcher()).map(Left::AtHand)
    }
}

impl LossCompute for CudaCompute {
    fn loss_scratch_bytes(&self, workload: &LossWorkload) -> usize {
        let detector = Detector { columns: workload.columns, rows: workload.rows };
        ImageLossSums::bytes(detector, workload.views_per_call) + VolumeSsimRoom::bytes(workload.voxels)
    }

    fn prepare_losses(&mut self, workload: &LossWorkload) -> Result<(), ComputeError> {
        let detector = Detector { columns: workload.columns, rows: workload.rows };
        let (launcher, mut state) = (self.launcher(), self.state());
        let bytes = ImageLossSums::bytes(detector, workload.views_per_call);
        if state.image_loss_bytes < bytes {
            state.image_loss = Some(ImageLossSums::allocate(launcher, detector, workload.views_per_call)?);
            state.image_loss_bytes = bytes;
        }
        if state.volume_loss.as_ref().is_none_or(|(voxels, _)| *voxels != workload.voxels) {
            state.volume_loss = Some((workload.voxels, VolumeSsimRoom::allocate(launcher, workload.voxels)?));
        }
        Ok(())
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
        let mut state = self.state();
        let prepared = state.image_loss_bytes;
        let views = projections.len() / detector.pixels().max(1);
        let needed = ImageLossSums::bytes(detector, views);
        let sums = state.image_loss.as_ref().filter(|_| needed <= prepared);
        let sums = sums.ok_or(ComputeError::Scratch { operation: OPERATION, needed, prepared })?;
        let pixels = projections.len();
        super::image_loss(
            self.launcher(),
            detector,
            settings,
            projections.device(OPERATION)?,
            measured.device(OPERATION)?,
            weights.map(|weights| weights.device(OPERATION)).transpose()?,
            by_projections.device(OPERATION)?,
            sums,
        )?;
        state.image_loss_left = Some((*settings, pixels));
        drop(state);
        if self.recorder.is_gathering() { Ok(Left::WithCarrier) } else { self.image_loss_left().map(Left::AtHand) }
    }

    fn image_loss_left(&self) -> Result<ImageLossValue, ComputeError> {
        let state = self.state();
        match (&state.image_loss, &state.image_loss_left) {
            (Some(sums), Some((settings, pixels))) => sums.read(self.launcher(), settings, *pixels),
            _ => Err(none_left("image_loss")),
        }
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
        let mut state = self.state();
        let room = state.volume_loss.as_ref().filter(|(prepared, _)| *prepared == voxels);
        let (_, room) = room.ok_or_else(|| ComputeError::Scratch {
            operation: OPERATION,
            needed: VolumeSsimRoom::bytes(voxels),
            prepared: state.volume_loss.as_ref().map_or(0, |(prepared, _)| VolumeSsimRoom::bytes(*prepared)),
        })?;
        let (volume, reference) = (volume.device(OPERATION)?, reference.device(OPERATION)?);
        let by_volume = by_volume.device(OPERATION)?;
        super::volume_ssim_loss(self.launcher(), voxels, settings, volume, reference, by_volume, room)?;
        state.volume_loss_left = Some(*settings);
        drop(state);
        if self.recorder.is_gathering() {
            Ok(Left::WithCarrier)
        } else {
            self.volume_ssim_loss_left().map(Left::AtHand)
        }
    }

    fn volume_ssim_loss_left(&self) -> Result<VolumeSsimValue, ComputeError> {
        let state = self.state();
        match (&state.volume_loss, &state.volume_loss_left) {
            (Some((_, room)), Some(settings)) => room.read(self.launcher(), settings),
            _ => Err(none_left("volume_ssim_loss")),
        }
    }
}

impl ExpertsCompute for CudaCompute {
    fn experts_scratch_bytes(&self, _voxels: [usize; 3]) -> usize {
        ExpertsTable::bytes(MOST_EXPERTS)
    }

    fn prepare_experts(&mut self, _voxels: [usize; 3]) -> Result<(), ComputeError> {
        Ok(())
    }

    fn add_experts_gradient(
        &self,
        experts: &Experts,
        voxels: [usize; 3],
        weight: f32,
        volume: Values<'_>,
        gradient: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_experts_gradient";
        let table = self.state().experts(self.launcher(), experts)?;
        let (volume, gradient) = (volume.device(OPERATION)?, gradient.device(OPERATION)?);
        super::add_experts_gradient(self.launcher(), &table, voxels, weight, volume, gradient)
    }
}

impl State {
    fn slices(&self, operation: &'static str) -> Result<SliceRoom, ComputeError> {
        self.slices.ok_or(ComputeError::Scratch { operation, needed: SliceRoom::bytes(), prepared: 0 })
    }
}

impl SliceCompute for CudaCompute {
    fn slice_scratch_bytes(&self) -> usize {
        SliceRoom::bytes()
    }

    fn prepare_slices(&mut self) -> Result<(), ComputeError> {
        let mut state = self.state();
        if state.slices.is_none() {
            state.slices = Some(SliceRoom::allocate(self.launcher())?);
        }
        Ok(())
    }

    fn farthest(&self, units: WindowUnits, values: Values<'_>) -> Result<f32, ComputeError> {
        const OPERATION: &str = "farthest";
        let room = self.state().slices(OPERATION)?;
        super::farthest(self.launcher(), units, values.device(OPERATION)?, &room)
    }

    fn first_beyond(&self, limit: f32, values: Values<'_>) -> Result<Option<usize>, ComputeError> {
        const OPERATION: &str = "first_beyond";
        let room = self.state().slices(OPERATION)?;
        super::first_beyond(self.launcher(), limit, values.device(OPERATION)?, &room)
    }

    fn gather_slices(
        &self,
        layout: &SliceLayout,
        batch: &SliceBatch,
        units: WindowUnits,
        volume: Values<'_>,
        out: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gather_slices";
        let (volume, out) = (volume.device(OPERATION)?, out.device(OPERATION)?);
        super::gather_slices(self.launcher(), layout, batch, units, volume, out)
    }

    fn add_slices(
        &self,
        layout: &SliceLayout,
        first: usize,
        planes: usize,
        slices: Values<'_>,
        mean: ValuesMut<'_>,
        squares: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_slices";
        let (slices, mean, squares) = (slices.device(OPERATION)?, mean.device(OPERATION)?, squares.device(OPERATION)?);
        super::add_slices(self.launcher(), layout, first, planes, slices, mean, squares)
    }

    fn leave_window(&self, units: WindowUnits, values: ValuesMut<'_>) -> Result<(), ComputeError> {
        super::leave_window(self.launcher(), units, values.device("leave_window")?)
    }

    fn deviations(&self, factor: f64, planes: usize, squares: ValuesMut<'_>) -> Result<(), ComputeError> {
        super::deviations(self.launcher(), factor, planes, squares.device("deviations")?)
    }
}
