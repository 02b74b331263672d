//! Repair and augment (DiffNR, arXiv 2604.21518): at planned iterations the volume is repaired into a pseudo-reference, whose similarity
//! to the volume is a further loss from then on. The repaired volume itself is never the result.
//!
//! **Weight.** The loss is `weight * voxels * H * (0.03 L)^2 * (1 - SSIM3D)`, `H` what the views weigh in a voxel ([`super::prior::views_mm2`]): where the
//! reference has no structure, `1 - SSIM` of a deviation `d` is about `d^2 / (0.03 L)^2`, so that at weight 1 such a place is held to the reference about
//! as firmly as to the views.

use std::time::Instant;

use super::OptimiseError;
use super::views::MeasuredViews;
use crate::compute::losses::VolumeSsimLoss;
use crate::compute::{Buffer, Left, Operations, Values, ValuesMut};
use crate::geometry::VolumeGrid;
use crate::reconstruct::ReconstructError;

/// When a pseudo-reference is made, and how firmly the volume is held to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AugmentSettings {
    /// Share of the iterations that are done before the first repair, 0 to 1.
    pub first: f64,
    /// How many repairs there are, evenly over what is left.
    pub repairs: usize,
    /// Weight of the loss; 1: see the module's documentation.
    pub weight: f32,
    /// The loss is applied every so many iterations, so many times as strong.
    pub every: usize,
    /// What slices across x, y, z count in the similarity.
    pub axes: [f32; 3],
    /// `L` of the similarity: from air to dense bone, 1/mm.
    pub data_range_per_mm: f32,
    /// The modulus of the difference in place of the similarity, for comparison: `weight * H * 0.03 L * |volume - reference|`.
    pub modulus: bool,
}

impl Default for AugmentSettings {
    fn default() -> Self {
        // Late and firmly: what is held to its repair gains little of itself any more, so that a repair has to be better than what the run would come to
        // (docs/methods.md; the paper repairs from the middle on).
        Self { first: 0.9, repairs: 1, weight: 4.0, every: 1, axes: [1.0; 3], data_range_per_mm: 0.06, modulus: false }
    }
}

impl AugmentSettings {
    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`ReconstructError::Setting`] naming the field.
    pub fn check(&self) -> Result<(), ReconstructError> {
        let refuse = |field, value: f64, requirement| {
            Err(ReconstructError::Setting { field, value: value.to_string(), requirement })
        };
        if !(0.0..=1.0).contains(&self.first) {
            return refuse("first", self.first, "must lie in [0, 1]: a share of the iterations");
        }
        if self.repairs == 0 {
            return refuse("repairs", 0.0, "must be at least 1");
        }
        if self.every == 0 {
            return refuse("every", 0.0, "must be at least 1");
        }
        for (field, value) in [("weight", self.weight), ("data_range_per_mm", self.data_range_per_mm)] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(field, f64::from(value), "must be finite and above 0");
            }
        }
        if self.axes.iter().any(|axis| !(*axis >= 0.0 && axis.is_finite())) || self.axes.iter().sum::<f32>() <= 0.0 {
            return refuse("axes", f64::from(self.axes[0]), "must be finite, not negative, and not all 0");
        }
        Ok(())
    }

    /// Share of a run's iterations that the similarity is applied in.
    #[must_use]
    pub fn share_held(&self) -> f64 {
        (1.0 - self.first) / self.every as f64
    }

    /// How many repairs are made in a run of `iterations`, the first `before` of which come early, without repairs.
    #[must_use]
    pub fn planned(&self, before: usize, iterations: usize) -> usize {
        // One at most before each iteration: a run of few has no room for many.
        self.repairs.min(iterations.saturating_sub(before.max(self.iteration_of(0, iterations))))
    }

    /// The iteration before which repair `number` (from 0) is made, in a run of `iterations`, early ones included.
    #[must_use]
    pub fn iteration_of(&self, number: usize, iterations: usize) -> usize {
        let first = (self.first * iterations as f64).round() as usize;
        first + number * (iterations - first) / self.repairs
    }
}

/// Why a volume was not repaired; the run goes on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRepaired {
    /// The model's output is no volume: not finite, or far outside its window.
    #[error("the model's output is not finite, or far outside its window")]
    Output,
    /// It took longer than there was time for.
    #[error("the repair was late")]
    Late,
    /// Whoever watches asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// The session failed.
    #[error("the session failed")]
    Session,
}

/// Makes a pseudo-reference of a volume.
pub trait Repairer: Send {
    /// Whether it looks at what is unexplained.
    fn sees_unexplained(&self) -> bool {
        false
    }

    /// Repairs `volume` (1/mm, `[x][y][z]`) into `reference`, which is overwritten; `unexplained` is what the scan says and the volume does not
    /// (empty where it is not looked at). All lie with `compute`. `interrupts` is asked now and then whether to give up.
    ///
    /// # Errors
    /// [`NotRepaired`]; `reference` is then unspecified.
    fn repair(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        reference: ValuesMut<'_>,
        interrupts: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired>;
}

/// What the repairs of a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Repairs {
    /// Volumes repaired.
    pub done: usize,
    /// Volumes that could not be.
    pub failed: usize,
    /// Why the last of these could not.
    pub why: Option<NotRepaired>,
    /// Time in repairs, s.
    pub seconds: f64,
    /// `1 - SSIM3D` of volume and reference when the loss was last applied.
    pub dissimilarity: Option<f64>,
}

/// The pseudo-reference of a run, and what makes it.
pub(super) struct Augmentation {
    settings: AugmentSettings,
    repairer: Box<dyn Repairer>,
    reference: Buffer,
    /// Whether `reference` holds one.
    holds: bool,
    /// Whether the carrier knows the last value of the loss.
    left: bool,
    /// Number of the next repair.
    next: usize,
    pub(super) repairs: Repairs,
}

impl Augmentation {
    pub(super) fn new(settings: AugmentSettings, repairer: Box<dyn Repairer>, reference: Buffer) -> Self {
        Self { settings, repairer, reference, holds: false, left: false, next: 0, repairs: Repairs::default() }
    }

    /// Room for another reference.
    pub(super) fn into_reference(self) -> Buffer {
        self.reference
    }

    /// A run begins.
    pub(super) fn begin(&mut self) {
        (self.holds, self.left, self.next, self.repairs) = (false, false, 0, Repairs::default());
    }

    /// Whether the volume is to be repaired before iteration `done` of `iterations`.
    pub(super) fn is_due(&self, done: usize, iterations: Option<usize>) -> bool {
        let settings = &self.settings;
        self.next < settings.repairs
            && iterations.is_some_and(|iterations| done >= settings.iteration_of(self.next, iterations))
    }

    /// Repairs `volume`, by what `views` find unexplained in it where the repairer looks at that (`work` then is a volume to put it). Where the repair
    /// fails, the run goes on without a reference: an old one would hold it back where it was.
    ///
    /// # Errors
    /// [`OptimiseError`] of the projectors; a repair that fails is none.
    pub(super) fn repair(
        &mut self,
        compute: &dyn Operations,
        views: &mut MeasuredViews,
        (volume, work): (&Buffer, &mut Buffer),
        interrupts: &dyn Fn() -> bool,
    ) -> Result<(), OptimiseError> {
        self.next += 1;
        let began = Instant::now();
        let volume = volume.values();
        let unexplained = if self.repairer.sees_unexplained() {
            views.unexplained(compute, volume, work.values_mut(), self.reference.values_mut())?;
            work.values()
        } else {
            Values::Host(&[])
        };
        let repaired = self.repairer.repair(compute, volume, unexplained, self.reference.values_mut(), interrupts);
        self.repairs.seconds += began.elapsed().as_secs_f64();
        self.holds = repaired.is_ok();
        match repaired {
            Ok(()) => self.repairs.done += 1,
            Err(why) => (self.repairs.failed, self.repairs.why) = (self.repairs.failed + 1, Some(why)),
        }
        Ok(())
    }

    /// Adds the loss's gradient by `volume`, where it is due; `views_mm2`: what the views weigh in a voxel.
    pub(super) fn add_gradient(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        iteration: usize,
        views_mm2: f32,
        volume: Values<'_>,
        by_volume: ValuesMut<'_>,
    ) -> Result<(), OptimiseError> {
        let settings = &self.settings;
        if !self.holds || !iteration.is_multiple_of(settings.every) {
            return Ok(());
        }
        let scale_per_mm = 0.03 * settings.data_range_per_mm;
        let weight = settings.weight * settings.every as f32 * views_mm2;
        if settings.modulus {
            let reference = self.reference.values();
            return Ok(compute.add_modulus_gradient(weight * scale_per_mm, volume, reference, by_volume)?);
        }
        let loss = VolumeSsimLoss {
            weight: weight * grid.len() as f32 * scale_per_mm * scale_per_mm,
            data_range: settings.data_range_per_mm,
            empty_at: 0.05 * settings.data_range_per_mm,
            axes: settings.axes,
        };
        match compute.volume_ssim_loss(grid.voxels, &loss, volume, self.reference.values(), by_volume)? {
            Left::AtHand(value) => self.repairs.dissimilarity = Some(value.dissimilarity),
            Left::WithCarrier => self.left = true,
        }
        Ok(())
    }

    /// The run is over: what the carrier still knows of it is asked for.
    pub(super) fn end(&mut self, compute: &dyn Operations) -> Result<(), OptimiseError> {
        if std::mem::take(&mut self.left) {
            self.repairs.dissimilarity = Some(compute.volume_ssim_loss_left()?.dissimilarity);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
