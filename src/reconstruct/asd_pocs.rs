//! ASD-POCS: adaptive steepest descent and projection onto convex sets (Sidky and Pan, *Image reconstruction in circular cone-beam computed
//! tomography by constrained, total-variation minimization*, Phys. Med. Biol. 53, 2008).
//!
//! Looks for the volume of least total variation among those that are not negative and whose projections differ from the measured ones
//! by at most `epsilon`. Each iteration takes a data step (one sweep of [`super::os_sart`], non-negative) and then `tv_steps` steps of steepest
//! descent of the total variation, each of length `d`:
//!
//! ```text
//! f <- sweep(f)            dp = |change of the sweep|,  r = its residual
//! f <- f - d g / |g|       tv_steps times, g = grad TV(f);  dg = |change of the descent|
//! d  = alpha dp            at the first iteration
//! d <- alpha_factor d      where dg > r_max dp and r > epsilon: the descent must not undo the data step before the data are met
//! ```
//!
//! Two departures: `r` is the residual that the sweep meets on its way (each subset's before its own step) instead of that of another
//! projection of all views, a bit larger for it; and the result is the volume after the descent, not before it.

mod solver;

pub use solver::AsdPocs;

use super::ReconstructError;
use super::os_sart::{OsSartPlan, OsSartSettings};
use crate::compute::{Compute, Workload};
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Down to which residual the data have to be met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epsilon {
    /// Root of the mean squared difference of line integrals, dimensionless.
    Rms(f64),
    /// So many times the noise that [`super::noise::estimate`] finds in the line integrals.
    NoiseTimes(f64),
}

/// What can be chosen. The defaults are those of the table in `docs/methods.md`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AsdPocsSettings {
    /// The data step; its [`super::StopRules`] are those of the whole.
    pub sart: OsSartSettings,
    /// Steps of the descent in each iteration (Sidky and Pan's `ng`).
    pub tv_steps: usize,
    /// Length of a descent step over that of the first sweep.
    pub alpha: f64,
    /// Factor of the step's length where the descent goes too far, in (0, 1].
    pub alpha_factor: f64,
    /// Largest share of the data step that the descent may undo, in (0, 1].
    pub r_max: f64,
    /// Where the data count as met.
    pub epsilon: Epsilon,
    /// Rounding of the total variation's corner ([`crate::compute::total_variation::TotalVariation::epsilon`]) as a share of the
    /// attenuation of the scanned object, `p / length` of an average ray.
    pub tv_epsilon: f64,
}

impl Default for AsdPocsSettings {
    fn default() -> Self {
        Self {
            sart: OsSartSettings {
                relaxation_factor: 0.99,
                stop: super::StopRules::iterations(120),
                ..OsSartSettings::default()
            },
            tv_steps: 20,
            alpha: 0.002,
            alpha_factor: 0.95,
            r_max: 0.95,
            epsilon: Epsilon::NoiseTimes(0.8),
            tv_epsilon: 0.01,
        }
    }
}

impl AsdPocsSettings {
    fn check(&self) -> Result<(), ReconstructError> {
        let refuse = |field, value: f64, requirement| {
            Err(ReconstructError::Setting { field, value: value.to_string(), requirement })
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if self.tv_steps == 0 {
            return refuse("tv_steps", 0.0, "must be at least 1; without a descent the method is OS-SART");
        }
        if !positive(self.alpha) {
            return refuse("alpha", self.alpha, "must be finite and above 0");
        }
        for (field, value) in [("alpha_factor", self.alpha_factor), ("r_max", self.r_max)] {
            if !(positive(value) && value <= 1.0) {
                return refuse(field, value, "must lie in (0, 1]");
            }
        }
        let (Epsilon::Rms(value) | Epsilon::NoiseTimes(value)) = self.epsilon;
        if !(value.is_finite() && value >= 0.0) {
            return refuse("epsilon", value, "must be finite and not negative");
        }
        if !(1e-6..=1.0).contains(&self.tv_epsilon) {
            return refuse("tv_epsilon", self.tv_epsilon, "must lie in [1e-6, 1]: a share of the object's attenuation");
        }
        Ok(())
    }
}

/// Everything about a reconstruction that is known before its projections.
#[derive(Debug, Clone)]
pub struct AsdPocsPlan {
    settings: AsdPocsSettings,
    sart: std::sync::Arc<OsSartPlan>,
}

impl AsdPocsPlan {
    /// Works out the subsets and prepares `compute` for the workload.
    ///
    /// # Errors
    /// As [`OsSartPlan::new`].
    pub fn new(
        compute: &mut dyn Compute,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: AsdPocsSettings,
    ) -> Result<Self, ReconstructError> {
        let plan = Self::without_scratch(geometry, grid, settings)?;
        compute.prepare(&plan.workload())?;
        Ok(plan)
    }

    /// The plan alone: what it would need, without a carrier.
    ///
    /// # Errors
    /// As [`OsSartPlan::new`].
    pub fn without_scratch(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: AsdPocsSettings,
    ) -> Result<Self, ReconstructError> {
        settings.check()?;
        let sart = OsSartPlan::without_scratch(geometry, grid, settings.sart)?;
        Ok(Self { settings, sart: std::sync::Arc::new(sart) })
    }

    /// As chosen.
    #[must_use]
    pub fn settings(&self) -> &AsdPocsSettings {
        &self.settings
    }

    /// The plan of the data step.
    #[must_use]
    pub fn sart(&self) -> &OsSartPlan {
        &self.sart
    }

    /// What a carrier must be prepared for.
    #[must_use]
    pub fn workload(&self) -> Workload {
        self.sart.workload()
    }

    /// Every buffer in bytes; the carrier's scratch ([`Compute::scratch_bytes`]) comes on top.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        let volume = self.sart.grid().len().saturating_mul(size_of::<f32>());
        let mut buffers = self.sart.buffers();
        buffers.extend([
            ("asd-pocs volume before the iteration", volume),
            ("asd-pocs volume after the data step", volume),
            ("asd-pocs gradient", volume),
        ]);
        buffers
    }
}

#[cfg(test)]
mod tests;
