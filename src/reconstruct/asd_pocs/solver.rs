//! The volume between data and total variation.

use std::sync::Arc;

use super::{AsdPocsPlan, Epsilon};
use crate::compute::sart::AlgebraicCompute;
use crate::compute::total_variation::TotalVariation;
use crate::compute::{Buffer, Left};
use crate::reconstruct::memory::buffer;
use crate::reconstruct::noise::{self, NoiseEstimate};
use crate::reconstruct::{Observer, OsSart, Outcome, ReconstructError};

/// Iterates on a volume. All memory is allocated by [`AsdPocs::new`], nothing afterwards.
#[derive(Debug)]
pub struct AsdPocs {
    plan: Arc<AsdPocsPlan>,
    sart: OsSart,
    before: Buffer,
    after_data: Buffer,
    gradient: Buffer,
    variation: TotalVariation,
    noise: Option<NoiseEstimate>,
    epsilon: f64,
    /// `d`, once the first sweep has told its size.
    step: Option<f64>,
}

/// What an iteration did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iteration {
    /// The sweep's residual (root of mean square).
    pub residual: f64,
    /// `dp`: norm of the data step.
    pub data_step: f64,
    /// `dg`: norm of the descent's whole change.
    pub descent: f64,
    /// Total variation before the last step of descent.
    pub total_variation: f64,
    /// Change of the whole iteration over the volume's norm.
    pub change: f64,
}

impl AsdPocs {
    /// Takes the line integrals (`[view][row v][column u]`, dimensionless), estimates their noise where epsilon asks for it; the volume is
    /// zero.
    ///
    /// # Errors
    /// As [`OsSart::new`].
    pub fn new(
        plan: Arc<AsdPocsPlan>,
        compute: &dyn AlgebraicCompute,
        line_integrals: &[f32],
    ) -> Result<Self, ReconstructError> {
        let sart = OsSart::new(Arc::clone(&plan.sart), compute, line_integrals)?;
        let voxels = plan.sart.grid().len();
        let noise = noise::estimate(plan.sart.geometry().detector, line_integrals, None);
        let epsilon = match plan.settings.epsilon {
            Epsilon::Rms(rms) => rms,
            Epsilon::NoiseTimes(factor) => factor * noise.map_or(0.0, |noise| noise.rms),
        };
        // An empty scan has no scale; any corner will do.
        let scale = sart.mean_attenuation_per_mm().max(1e-9);
        Ok(Self {
            before: buffer(compute, "asd-pocs volume before the iteration", voxels)?,
            after_data: buffer(compute, "asd-pocs volume after the data step", voxels)?,
            gradient: buffer(compute, "asd-pocs gradient", voxels)?,
            variation: TotalVariation::on(plan.sart.grid(), (plan.settings.tv_epsilon * scale) as f32),
            noise,
            epsilon,
            step: None,
            sart,
            plan,
        })
    }

    /// One iteration: data step and descent.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`].
    pub fn iterate(&mut self, compute: &dyn AlgebraicCompute) -> Result<Iteration, ReconstructError> {
        let settings = &self.plan.settings;
        compute.copy(self.sart.values(), self.before.values_mut())?;
        let sweep = self.sart.sweep(compute)?;
        let (before, mut volume) = (self.before.values(), self.sart.values_mut());
        let data_step = compute.squared_distance(volume.as_values(), before)?.sqrt();
        compute.copy(volume.as_values(), self.after_data.values_mut())?;
        let step = *self.step.get_or_insert(settings.alpha * data_step);
        let least = if settings.sart.non_negative { 0.0 } else { f32::NEG_INFINITY };
        let mut total_variation = 0.0;
        for _ in 0..settings.tv_steps {
            let mut gradient = self.gradient.values_mut();
            compute.fill(0.0, gradient.reborrow())?;
            let (volume_now, by_volume) = (volume.as_values(), gradient.reborrow());
            let found = compute.add_total_variation_gradient(&self.variation, 1.0, volume_now, by_volume)?;
            if let Left::AtHand(value) = found {
                total_variation = value;
            }
            let norm = compute.squared_norm(gradient.as_values())?.sqrt();
            // A flat volume has nothing to descend.
            if norm > 0.0 {
                compute.descend((step / norm) as f32, gradient.as_values(), least, volume.reborrow())?;
            }
        }
        let descent = compute.squared_distance(volume.as_values(), self.after_data.values())?.sqrt();
        if descent > settings.r_max * data_step && sweep.residual > self.epsilon {
            self.step = Some(settings.alpha_factor * step);
        }
        let norm = compute.squared_norm(volume.as_values())?.sqrt().max(f64::MIN_POSITIVE);
        let change = compute.squared_distance(volume.as_values(), before)?.sqrt() / norm;
        Ok(Iteration { residual: sweep.residual, data_step, descent, total_variation, change })
    }

    /// Iterates until a rule of [`crate::reconstruct::StopRules`] says enough. `observer` sees the volume after each iteration's descent; the
    /// residual that it is shown is the sweep's.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`].
    pub fn run(
        &mut self,
        compute: &dyn AlgebraicCompute,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, ReconstructError> {
        let mut iteration = 0;
        loop {
            let done = self.iterate(compute)?;
            iteration += 1;
            let ended = self.sart.end_iteration(compute, observer, iteration, done.residual, done.change)?;
            if let Some(outcome) = ended {
                return Ok(outcome);
            }
        }
    }

    /// Noise of the line integrals, as far as it could be estimated.
    #[must_use]
    pub fn noise(&self) -> Option<NoiseEstimate> {
        self.noise
    }

    /// The residual at which the data count as met.
    #[must_use]
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Attenuation in 1/mm, `[x][y][z]`, on the host.
    ///
    /// # Errors
    /// As [`OsSart::volume`].
    pub fn volume(&mut self, compute: &dyn AlgebraicCompute) -> Result<&[f32], ReconstructError> {
        self.sart.volume(compute)
    }

    /// The volume, when all is done.
    ///
    /// # Errors
    /// As [`OsSart::volume`].
    pub fn into_volume(self, compute: &dyn AlgebraicCompute) -> Result<Vec<f32>, ReconstructError> {
        self.sart.into_volume(compute)
    }
}
