//! Fitting a field to a volume that is already there: a warm start from FDK or a few classical iterations.

#![forbid(unsafe_code)]

use super::{Field, FieldError, FieldRates};
use crate::compute::field::{FieldCompute, FieldJitter};
use crate::compute::gaussians::GaussianCompute;
use crate::geometry::VolumeGrid;

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VolumeFit {
    /// Steps of Adam.
    pub steps: u32,
    /// Rates of the first step; they fall, log-linear, to a third at the last.
    pub rates: FieldRates,
    /// Seed of the samples: one random point in each voxel a step; `None` for the voxels' centres.
    pub seed: Option<u64>,
}

impl Default for VolumeFit {
    fn default() -> Self {
        Self { steps: 30, rates: FieldRates::default(), seed: None }
    }
}

impl Field {
    /// Steps toward the least mean square difference from `volume` (1/mm, `[x][y][z]`, negative values count as 0). `work` holds as many floats as the volume.
    /// Returns the root of the mean square difference before the last step, in 1/mm. Adam's moments stay: the steps that follow count on from
    /// [`VolumeFit::steps`].
    ///
    /// # Errors
    /// [`FieldError::Length`] where a buffer does not fit the grid, [`FieldError::Setting`] for a voxel that is not finite,
    /// [`FieldError::Compute`] as the operations.
    pub fn fit_volume<C: FieldCompute + GaussianCompute>(
        &mut self,
        compute: &C,
        grid: &VolumeGrid,
        volume: &[f32],
        work: &mut [f32],
        fit: &VolumeFit,
    ) -> Result<f64, FieldError> {
        for (buffer, given) in [("volume", volume.len()), ("work", work.len())] {
            if given != grid.len() {
                return Err(FieldError::Length { buffer, given, needed: grid.len() });
            }
        }
        if let Some(&value) = volume.iter().find(|value| !value.is_finite()) {
            return Err(FieldError::Setting {
                field: "initial volume's voxel",
                value: f64::from(value),
                requirement: "must be finite",
            });
        }
        let mut mean_square = 0.0;
        let scale = 2.0 / grid.len().max(1) as f32;
        for step in 0..fit.steps {
            let jitter = fit.seed.map(|seed| FieldJitter { seed, iteration: u64::from(step) });
            self.begin_step();
            compute.field_voxelise(grid, &self.parameters(), jitter, work)?;
            let mut sum = 0.0f64;
            for (value, target) in work.chunks_mut(4096).zip(volume.chunks(4096)) {
                let mut part = 0.0f32;
                for (value, &target) in value.iter_mut().zip(target) {
                    let difference = *value - target.max(0.0);
                    part += difference * difference;
                    *value = scale * difference;
                }
                sum += f64::from(part);
            }
            mean_square = sum / grid.len().max(1) as f64;
            let (field, mut gradients) = self.parameters_and_gradients();
            compute.field_voxelise_backward(grid, &field, jitter, work, &mut gradients)?;
            let decay = 0.3f32.powf(step as f32 / fit.steps.saturating_sub(1).max(1) as f32);
            let FieldRates { tables, network, .. } = fit.rates;
            let rates = FieldRates { tables: tables * decay, network: network * decay, ..fit.rates };
            self.step(compute, &rates, step + 1)?;
        }
        Ok(mean_square.sqrt())
    }
}
