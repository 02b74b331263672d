//! The element-wise operations of algebraic reconstruction.
//!
//! **Bytes** are the floor of all of them: 12 a pixel in and 4 out for the residual, 12 in and 4 out a voxel for the correction, 8 and 4 for
//! a descent, 4 or 8 in for the norms; the few operations of each hide behind them at any SIMD level.
//!
//! **Order.** Sums run over tasks of [`TASK`] values in [`LANES`] float lanes, and over tasks in a fixed tree of doubles.

#![forbid(unsafe_code)]

use super::super::sart::{CorrectionStep, SartCompute};
use super::super::{ComputeError, Values, ValuesMut};
use super::{CpuCompute, check_len};

/// Values of a task: a lane sums 256 of them.
const TASK: usize = 4096;
const LANES: usize = 16;

impl SartCompute for CpuCompute {
    fn weigh_residual(
        &self,
        measured: Values<'_>,
        weights: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "weigh_residual";
        self.weigh_residual(measured.host(OPERATION)?, weights.host(OPERATION)?, projections.host(OPERATION)?)
    }

    fn apply_correction(
        &self,
        step: &CorrectionStep,
        correction: Values<'_>,
        column_sums: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "apply_correction";
        self.apply_correction(step, correction.host(OPERATION)?, column_sums.host(OPERATION)?, volume.host(OPERATION)?)
    }

    fn descend(&self, step: f32, gradient: Values<'_>, least: f32, volume: ValuesMut<'_>) -> Result<(), ComputeError> {
        const OPERATION: &str = "descend";
        self.descend(step, gradient.host(OPERATION)?, least, volume.host(OPERATION)?)
    }

    fn squared_norm(&self, values: Values<'_>) -> Result<f64, ComputeError> {
        Ok(self.squared_norm(values.host("squared_norm")?))
    }

    fn squared_distance(&self, first: Values<'_>, second: Values<'_>) -> Result<f64, ComputeError> {
        const OPERATION: &str = "squared_distance";
        self.squared_distance(first.host(OPERATION)?, second.host(OPERATION)?)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`SartCompute::weigh_residual`].
    ///
    /// # Errors
    /// As there.
    pub fn weigh_residual(
        &self,
        measured: &[f32],
        weights: &[f32],
        projections: &mut [f32],
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "weigh_residual";
        check_len(OPERATION, "measured", measured.len(), projections.len())?;
        check_len(OPERATION, "weights", weights.len(), projections.len())?;
        let work = |[measured, weights]: [&[f32]; 2], projections: &mut [f32]| {
            let mut lanes = [0.0_f32; LANES];
            for ((values, measured), weights) in
                projections.chunks_mut(LANES).zip(measured.chunks(LANES)).zip(weights.chunks(LANES))
            {
                for (((value, measured), weight), lane) in values.iter_mut().zip(measured).zip(weights).zip(&mut lanes)
                {
                    let residual = if *weight == 0.0 { 0.0 } else { measured - *value };
                    *lane += residual * residual;
                    *value = weight * residual;
                }
            }
            sum(lanes)
        };
        Ok(self.pool.install(|| over(&work, [measured, weights], projections)))
    }

    /// See [`SartCompute::apply_correction`].
    ///
    /// # Errors
    /// As there.
    pub fn apply_correction(
        &self,
        step: &CorrectionStep,
        correction: &[f32],
        column_sums: &[f32],
        volume: &mut [f32],
    ) -> Result<f64, ComputeError> {
        const OPERATION: &str = "apply_correction";
        check_len(OPERATION, "correction", correction.len(), volume.len())?;
        check_len(OPERATION, "column_sums", column_sums.len(), volume.len())?;
        let CorrectionStep { relaxation, least_sum, least } = *step;
        let work = |[correction, sums]: [&[f32]; 2], volume: &mut [f32]| {
            let mut lanes = [0.0_f32; LANES];
            for ((values, correction), sums) in
                volume.chunks_mut(LANES).zip(correction.chunks(LANES)).zip(sums.chunks(LANES))
            {
                for (((value, correction), total), lane) in values.iter_mut().zip(correction).zip(sums).zip(&mut lanes)
                {
                    let change = if *total > least_sum { relaxation * correction / total } else { 0.0 };
                    let new = at_least(*value + change, least);
                    *lane += (new - *value) * (new - *value);
                    *value = new;
                }
            }
            sum(lanes)
        };
        Ok(self.pool.install(|| over(&work, [correction, column_sums], volume)))
    }

    /// See [`SartCompute::descend`].
    ///
    /// # Errors
    /// As there.
    pub fn descend(&self, step: f32, gradient: &[f32], least: f32, volume: &mut [f32]) -> Result<(), ComputeError> {
        check_len("descend", "gradient", gradient.len(), volume.len())?;
        let work = |[gradient]: [&[f32]; 1], volume: &mut [f32]| {
            for (value, gradient) in volume.iter_mut().zip(gradient) {
                *value = at_least(*value - step * gradient, least);
            }
            0.0
        };
        self.pool.install(|| over(&work, [gradient], volume));
        Ok(())
    }

    /// See [`SartCompute::squared_norm`].
    ///
    /// # Errors
    /// As there.
    pub fn squared_norm(&self, values: &[f32]) -> f64 {
        let work = |[values]: [&[f32]; 1], _: &mut [f32]| squares(values.iter().copied());
        self.pool.install(|| reduce(&work, [values]))
    }

    /// See [`SartCompute::squared_distance`].
    ///
    /// # Errors
    /// As there.
    pub fn squared_distance(&self, first: &[f32], second: &[f32]) -> Result<f64, ComputeError> {
        check_len("squared_distance", "second", second.len(), first.len())?;
        let work = |[first, second]: [&[f32]; 2], _: &mut [f32]| {
            squares(first.iter().zip(second).map(|(first, second)| first - second))
        };
        Ok(self.pool.install(|| reduce(&work, [first, second])))
    }
}

/// `max` that keeps NaN, so that a volume spoilt by its data shows it.
#[inline(always)]
fn at_least(value: f32, least: f32) -> f32 {
    if value < least { least } else { value }
}

fn sum(lanes: [f32; LANES]) -> f64 {
    lanes.into_iter().map(f64::from).sum()
}

#[inline(always)]
fn squares(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    for (index, value) in values.enumerate() {
        lanes[index % LANES] += value * value;
    }
    sum(lanes)
}

/// Where to split so that tasks begin at multiples of [`TASK`]; `None` for a single task.
fn middle(values: usize) -> Option<usize> {
    (values > TASK).then(|| values.div_ceil(TASK).div_ceil(2) * TASK)
}

/// Works on all tasks of `target` beside those of `inputs`; the sum of what they return, in a tree that the length alone settles.
pub(super) fn over<const N: usize>(
    work: &(impl Fn([&[f32]; N], &mut [f32]) -> f64 + Sync),
    inputs: [&[f32]; N],
    target: &mut [f32],
) -> f64 {
    let Some(at) = middle(target.len()) else { return work(inputs, target) };
    let (low, high) = target.split_at_mut(at);
    let (low_inputs, high_inputs) = (inputs.map(|input| &input[..at]), inputs.map(|input| &input[at..]));
    let (a, b) = rayon::join(|| over(work, low_inputs, low), || over(work, high_inputs, high));
    a + b
}

/// The same without a target.
pub(super) fn reduce<const N: usize>(
    work: &(impl Fn([&[f32]; N], &mut [f32]) -> f64 + Sync),
    inputs: [&[f32]; N],
) -> f64 {
    let Some(at) = middle(inputs[0].len()) else { return work(inputs, &mut []) };
    let (low, high) = (inputs.map(|input| &input[..at]), inputs.map(|input| &input[at..]));
    let (a, b) = rayon::join(|| reduce(work, low), || reduce(work, high));
    a + b
}

#[cfg(test)]
mod tests;
