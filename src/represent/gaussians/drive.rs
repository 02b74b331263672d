//! Gaussians as the loop drives them: rates over a run, rounds of adaptive control.

#![forbid(unsafe_code)]

use super::adapt::AdaptiveControl;
use super::initialise::Initialisation;
use super::{GaussianError, GaussianLimits, GaussianRates, Gaussians};
use crate::compute::{ComputeError, Memory, Operations, Values, ValuesMut};
use crate::geometry::VolumeGrid;
use crate::represent::{RepresentError, Representation, Stage};

/// What happens to the Gaussians over a run. Lengths count in voxels of the grid, so that one schedule suits all sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianSchedule {
    /// Draw of the first Gaussians; its threshold is replaced by `start_threshold`.
    pub initialisation: Initialisation,
    /// Voxels are drawn from where the starting volume is above this share of [`GaussianLimits::density_unit_per_mm`].
    pub start_threshold: f32,
    /// Learning rates at the start; positions in voxels.
    pub rates: GaussianRates,
    /// Rates at the end over those at the start; log-linear between.
    pub decay: f32,
    /// Steps between rounds of adaptive control; 0 for none.
    pub adapt_every: u32,
    /// Share of the run after which the number of Gaussians stays.
    pub adapt_until: f32,
    /// Share of the Gaussians, those pulled at hardest, that a round may clone or split.
    pub adapt_share: f32,
    /// Gaussians below this share of the density unit are pruned.
    pub prune_below: f32,
}

/// Gaussians with their schedule.
#[derive(Debug)]
pub struct GaussianRepresentation {
    gaussians: Gaussians,
    schedule: GaussianSchedule,
    voxel_mm: f32,
    steps: u32,
    rounds: u64,
}

impl GaussianRepresentation {
    /// Room for the limits' capacity of Gaussians.
    ///
    /// # Errors
    /// As [`Gaussians::new`].
    pub fn new(
        compute: &dyn Memory,
        limits: &GaussianLimits,
        schedule: &GaussianSchedule,
        grid: &VolumeGrid,
    ) -> Result<Self, GaussianError> {
        Ok(Self {
            gaussians: Gaussians::new(compute, limits)?,
            schedule: *schedule,
            voxel_mm: grid.voxel_mm.min_element() as f32,
            steps: 0,
            rounds: 0,
        })
    }

    /// The Gaussians.
    #[must_use]
    pub fn gaussians(&self) -> &Gaussians {
        &self.gaussians
    }
}

impl Representation for GaussianRepresentation {
    fn name(&self) -> &'static str {
        "gaussians"
    }

    fn elements(&self) -> usize {
        self.gaussians.len()
    }

    fn unit(&self) -> &'static str {
        "Gaussians"
    }

    fn begin(&mut self, compute: &dyn Operations, grid: &VolumeGrid, start: &[f32]) -> Result<(), RepresentError> {
        let threshold_per_mm = self.schedule.start_threshold * self.gaussians.limits().density_unit_per_mm;
        let settings = Initialisation { threshold_per_mm, ..self.schedule.initialisation };
        self.gaussians.initialise_from_volume(compute, grid, start, &settings)?;
        self.gaussians.begin_step(compute, 1)?;
        (self.steps, self.rounds) = (0, 0);
        Ok(())
    }

    fn voxelise(
        &self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        _draw: Option<u64>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        compute.gaussian_voxelise(grid, &self.gaussians.arrays(), volume)
    }

    fn voxelise_backward(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        _draw: Option<u64>,
        by_volume: Values<'_>,
    ) -> Result<(), ComputeError> {
        let (gaussians, gradients) = self.gaussians.arrays_and_gradients();
        compute.gaussian_voxelise_backward(grid, &gaussians, by_volume, gradients)
    }

    fn step(&mut self, compute: &dyn Operations, grid: &VolumeGrid, stage: Stage) -> Result<(), ComputeError> {
        let schedule = &self.schedule;
        let decay = schedule.decay.powf(stage.share);
        let rates = GaussianRates {
            density: schedule.rates.density * decay,
            position_mm: schedule.rates.position_mm * self.voxel_mm * decay,
            log_scale: schedule.rates.log_scale * decay,
            rotation: schedule.rates.rotation * decay,
            ..schedule.rates
        };
        self.steps += 1;
        self.gaussians.add_position_norms(compute)?;
        self.gaussians.step(compute, &rates, self.steps)?;
        let due = schedule.adapt_every > 0 && self.steps.is_multiple_of(schedule.adapt_every);
        if due && !stage.fitting && stage.share < schedule.adapt_until {
            let share = schedule.adapt_share;
            let rules = AdaptiveControl {
                gradient_threshold: self.gaussians.norm_exceeded_by(compute, share)?,
                clone_up_to_mm: 0.75 * self.voxel_mm,
                prune_below_per_mm: schedule.prune_below * self.gaussians.limits().density_unit_per_mm,
                seed: schedule.initialisation.seed,
                round: self.rounds,
            };
            self.gaussians.adapt(compute, grid, &rules)?;
            self.rounds += 1;
        }
        self.gaussians.begin_step(compute, 1)
    }
}
