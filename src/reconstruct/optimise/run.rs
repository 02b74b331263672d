//! The run itself.

use std::sync::Arc;
use std::time::Instant;

use super::augment::Augmentation;
use super::views::{Judged, MeasuredViews};
use super::{Budget, OptimiseError, OptimisePlan, Pace, Repairer, Repairs, ScanViews};
use crate::compute::{Buffer, ComputeError, Operations, Values, together};
use crate::reconstruct::memory::{buffer, zeros};
use crate::reconstruct::{Observer, Outcome as IterativeOutcome, Progress, ReconstructError, StopReason};
use crate::represent::{Representation, Stage};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Iterations done, early ones included.
    pub iterations: usize,
    /// Iterations that the budget came to, early ones included: what `--iterations` must say to get the same bits.
    pub planned: usize,
    /// Iterations that the resulting volume has behind it: fewer than done where the last good or the best one stands; 0 for the start.
    pub of_iteration: usize,
    /// Why it ended.
    pub stopped: StopReason,
    /// Root of the weighted mean square of the line integrals' differences at the last iteration.
    pub residual: f64,
    /// That of an empty volume.
    pub residual_of_nothing: f64,
    /// The residual of the rays held back, not weighted, at its best.
    pub held_back_residual: Option<f64>,
}

impl Outcome {
    /// As other iterative methods report it.
    #[must_use]
    pub fn iterative(&self) -> IterativeOutcome {
        let Self { iterations, stopped, residual, residual_of_nothing, held_back_residual, .. } = *self;
        IterativeOutcome { iterations, stopped, residual, residual_of_nothing, held_back_residual }
    }
}

/// All memory of a run.
pub struct Optimiser {
    plan: Arc<OptimisePlan>,
    representation: Box<dyn Representation>,
    views: MeasuredViews,
    volume: Buffer,
    /// The volume on the host, where the carrier's memory lies elsewhere.
    volume_copy: Vec<f32>,
    /// The last volume whose residual was found in order.
    good: Buffer,
    /// Whether that holds of `volume`.
    is_good: bool,
    /// Iterations behind `volume` and `good`.
    behind: [usize; 2],
    by_volume: Buffer,
    best: Buffer,
    /// Room for the pseudo-reference, until there is something that repairs.
    reference: Buffer,
    augmentation: Option<Augmentation>,
}

impl std::fmt::Debug for Optimiser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimiser").field("plan", &self.plan).field("name", &self.representation.name()).finish()
    }
}

impl Optimiser {
    /// Takes all memory. The carrier must have been prepared for the plan's workloads and the representation's.
    ///
    /// # Errors
    /// [`ReconstructError::Memory`].
    pub fn new(
        compute: &dyn Operations,
        plan: Arc<OptimisePlan>,
        representation: Box<dyn Representation>,
    ) -> Result<Self, ReconstructError> {
        let voxels = plan.grid.len();
        let best = if plan.settings.hold_back_one_in > 0 { voxels } else { 0 };
        Ok(Self {
            views: MeasuredViews::new(compute, Arc::clone(&plan))?,
            volume: buffer(compute, "optimise volume", voxels)?,
            volume_copy: zeros("optimise volume on the host", compute.copy_len(voxels))?,
            good: buffer(compute, "optimise last good volume", voxels)?,
            is_good: false,
            behind: [0; 2],
            by_volume: buffer(compute, "optimise gradient by the volume", voxels)?,
            best: buffer(compute, "optimise best volume so far", best)?,
            representation,
            reference: buffer(compute, "optimise pseudo-reference", plan.settings.augment.map_or(0, |_| voxels))?,
            augmentation: None,
            plan,
        })
    }

    /// Gives the run what repairs its volumes; without, [`super::OptimiseSettings::augment`] has no effect.
    pub fn repair_with(&mut self, repairer: Box<dyn Repairer>) {
        if let Some(settings) = self.plan.settings.augment {
            if let Some(augmentation) = self.augmentation.take() {
                self.reference = augmentation.into_reference();
            }
            self.augmentation = Some(Augmentation::new(settings, repairer, std::mem::take(&mut self.reference)));
        }
    }

    /// What the repairs of the last run came to; `None`: there were none to be made.
    #[must_use]
    pub fn repairs(&self) -> Option<&Repairs> {
        self.augmentation.as_ref().map(|augmentation| &augmentation.repairs)
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<OptimisePlan> {
        &self.plan
    }

    /// The representation.
    #[must_use]
    pub fn representation(&self) -> &dyn Representation {
        &*self.representation
    }

    /// The volume last made, 1/mm, `[x][y][z]`, on the host.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the device does not give it back.
    pub fn volume(&mut self, compute: &dyn Operations) -> Result<&[f32], ReconstructError> {
        Ok(compute.on_host(self.volume.values(), &mut self.volume_copy)?)
    }

    /// The same where the carrier works on it.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        self.volume.values()
    }

    /// The volume, without the rest.
    ///
    /// # Errors
    /// As [`Optimiser::volume`].
    pub fn into_volume(self, compute: &dyn Operations) -> Result<Vec<f32>, ReconstructError> {
        Ok(compute.take(self.volume)?)
    }

    /// Takes the scan's line integrals (`[view][row v][column u]`, dimensionless) and works out their weights.
    ///
    /// # Errors
    /// [`ReconstructError::Length`] and [`ReconstructError::NotFinite`].
    pub fn load(&mut self, compute: &dyn Operations, line_integrals: &[f32]) -> Result<(), ReconstructError> {
        self.load_views(compute, &ScanViews::whole(line_integrals))
    }

    /// As [`Optimiser::load`], of the views that there are, at the poses that they had. The representation stays as it is: after more views
    /// of the same scan, [`Optimiser::go_on`] goes on from there.
    ///
    /// # Errors
    /// As [`Optimiser::load`], and [`ReconstructError::Geometry`] for a broken pose.
    pub fn load_views(&mut self, compute: &dyn Operations, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
        // No volume has been judged by these views yet.
        self.behind = [0; 2];
        self.views.load(compute, scan)
    }

    /// Brings a volume near what the views say, by [`super::OptimiseSettings::approach_iterations`] steps from `start` (1/mm, `[x][y][z]`; `None`: from nothing), and
    /// the representation to that volume; or as far as `observer` lets it.
    ///
    /// # Errors
    /// [`OptimiseError`] where the representation refuses that volume or an operation fails.
    pub fn begin(
        &mut self,
        compute: &dyn Operations,
        start: Option<&[f32]>,
        observer: &dyn Observer,
    ) -> Result<(), OptimiseError> {
        self.clear(compute)?;
        if let Some(start) = start {
            compute.write(start, self.good.values_mut())?;
        }
        for step in 0..self.plan.settings.approach_iterations {
            if !self.approach(compute, step, observer)? {
                break;
            }
        }
        self.begin_representation(compute)?;
        for step in 0..self.plan.settings.fit_iterations {
            if observer.interrupts() {
                break;
            }
            self.fit(compute, step)?;
        }
        Ok(())
    }

    /// An empty volume to approach from.
    pub(super) fn clear(&mut self, compute: &dyn Operations) -> Result<(), OptimiseError> {
        (self.is_good, self.behind) = (false, [0; 2]);
        Ok(compute.fill(0.0, self.good.values_mut())?)
    }

    /// The representation begins with the volume approached.
    pub(super) fn begin_representation(&mut self, compute: &dyn Operations) -> Result<(), OptimiseError> {
        let start = compute.on_host(self.good.values(), &mut self.volume_copy)?;
        Ok(self.representation.begin(compute, &self.plan.grid, start)?)
    }

    /// One step of the volume itself, down the gradient that the representation will be given, as far as the data's curvature along it
    /// says, and no value below zero. Returns whether to go on.
    pub(super) fn approach(
        &mut self,
        compute: &dyn Operations,
        step: usize,
        observer: &dyn Observer,
    ) -> Result<bool, OptimiseError> {
        let (good, mut gradient) = (self.good.values(), self.by_volume.values_mut());
        // By itself: its length hangs on what it finds.
        let Judged::Residual(_) = self.views.gradient(compute, step, good, gradient.reborrow(), observer)? else {
            return Ok(false);
        };
        // What cannot fall below zero is no way to go.
        compute.hold_at_zero(good, gradient.reborrow())?;
        let square = compute.squared_norm(gradient.as_values())?;
        let curvature = self.views.curvature(compute, step, gradient.as_values())?;
        if !(square > 0.0 && curvature > 0.0) {
            return Ok(false);
        }
        compute.descend((square / curvature) as f32, gradient.as_values(), 0.0, self.good.values_mut())?;
        Ok(true)
    }

    /// One step of the representation towards the volume that it begins with.
    pub(super) fn fit(&mut self, compute: &dyn Operations, step: usize) -> Result<(), OptimiseError> {
        let (grid, draw) = (&self.plan.grid, Some(step as u64));
        together(compute, || {
            self.representation.voxelise(compute, grid, draw, self.volume.values_mut())?;
            compute.subtract(self.volume.values(), self.good.values(), self.by_volume.values_mut())?;
            self.representation.voxelise_backward(compute, grid, draw, self.by_volume.values())?;
            Ok(self.representation.step(compute, grid, Stage { share: 0.0, fitting: true })?)
        })
    }

    /// Optimises until the budget is spent or a rule ends it; [`Optimiser::volume`] then holds the result.
    ///
    /// # Errors
    /// [`OptimiseError`] where an operation fails.
    pub fn run(
        &mut self,
        compute: &dyn Operations,
        budget: Budget,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, OptimiseError> {
        self.go_on(compute, 0, budget, observer)
    }

    /// The iterations of an [`super::EarlyStart`], from its views: as [`Optimiser::run`], but nothing is repaired. What half of the views show is too far from
    /// what the run will come to.
    ///
    /// # Errors
    /// As [`Optimiser::run`].
    pub fn start_early(
        &mut self,
        compute: &dyn Operations,
        iterations: usize,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, OptimiseError> {
        let augmentation = self.augmentation.take();
        let outcome = self.run(compute, Budget::Iterations(iterations), observer);
        self.augmentation = augmentation;
        outcome
    }

    /// As [`Optimiser::run`], after `before` iterations of an [`super::EarlyStart`], which `observer` and outcome count as well: the budget is of those
    /// that follow. Learning rates begin again, for there is something new to learn.
    ///
    /// # Errors
    /// As [`Optimiser::run`].
    pub fn go_on(
        &mut self,
        compute: &dyn Operations,
        before: usize,
        budget: Budget,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, OptimiseError> {
        let mut pace = Pace::new(budget);
        let round = self.plan.round();
        let (mut residual, mut done) = (f64::NAN, 0);
        let mut stopped = StopReason::Iterations;
        // Best residual of the rays held back, and when it was.
        let mut best: Option<(f64, usize)> = None;
        self.views.held_back = (0.0, 0);
        if let Some(augmentation) = &mut self.augmentation {
            augmentation.begin();
        }
        while pace.iterations().is_none_or(|count| done < count) {
            self.repair_if_due(compute, before + done, pace.iterations().map(|count| before + count), observer)?;
            let began = Instant::now();
            let judged = match self.iterate(compute, done, pace.share(done), observer) {
                // An operation refuses parameters or projections that are no numbers.
                Err(error) if is_of_a_value(&error) => Judged::Diverged(f64::NAN),
                judged => judged?,
            };
            match judged {
                Judged::Residual(of_its_volume) => residual = of_its_volume,
                // An iteration says in the end; `Later` is its own matter.
                Judged::Interrupted | Judged::Later => {
                    stopped = StopReason::Interrupted;
                    break;
                }
                Judged::Diverged(of_its_volume) => {
                    residual = of_its_volume;
                    stopped = StopReason::Diverged;
                    break;
                }
            }
            done += 1;
            pace.took(began.elapsed(), Instant::now());
            if done.is_multiple_of(round) && self.views.held_back.1 > 0 {
                let (sum, rays) = std::mem::take(&mut self.views.held_back);
                let now = (sum / rays as f64).sqrt();
                match best {
                    Some((least, at)) if now >= least => {
                        let patience = pace.iterations().map(|count| self.plan.settings.patience * count as f64);
                        if patience.is_some_and(|patience| patience > 0.0 && (done - at) as f64 > patience) {
                            stopped = StopReason::HeldBack;
                        }
                    }
                    _ => {
                        best = Some((now, done));
                        // The volume of this iteration's beginning: what was judged.
                        compute.copy(self.volume.values(), self.best.values_mut())?;
                    }
                }
            }
            let volume = if observer.wants_volume(before + done) {
                if !self.voxelise(compute)? {
                    stopped = StopReason::Diverged;
                    break;
                }
                let volume = self.volume.values();
                Some(match observer.wants_on_host() {
                    true => Values::Host(compute.on_host(volume, &mut self.volume_copy)?),
                    false => volume,
                })
            } else {
                None
            };
            let iterations = pace.iterations().unwrap_or(done);
            observer.observe(&Progress { iteration: before + done, iterations: before + iterations, residual, volume });
            if stopped != StopReason::Iterations {
                break;
            }
        }
        if let Some(augmentation) = &mut self.augmentation {
            augmentation.end(compute)?;
        }
        let mut of_iteration = done;
        match stopped {
            StopReason::HeldBack => {
                compute.copy(self.best.values(), self.volume.values_mut())?;
                // What was judged is the volume of the iteration's beginning.
                of_iteration = best.map_or(done, |(_, at)| at - 1);
            }
            StopReason::Diverged | StopReason::Interrupted => of_iteration = self.take_good(),
            _ => {
                if !self.voxelise(compute)? {
                    stopped = StopReason::Diverged;
                    of_iteration = self.take_good();
                }
            }
        }
        Ok(Outcome {
            iterations: before + done,
            planned: before + pace.iterations().unwrap_or(done),
            // None of these views' iterations: not a volume of theirs.
            of_iteration: if of_iteration > 0 { before + of_iteration } else { 0 },
            stopped,
            residual,
            residual_of_nothing: self.views.residual_of_nothing(),
            held_back_residual: best.map(|(least, _)| least),
        })
    }

    /// Repairs the volume as it is before iteration `done` of `iterations`, early ones included, if that is planned.
    fn repair_if_due(
        &mut self,
        compute: &dyn Operations,
        done: usize,
        iterations: Option<usize>,
        observer: &dyn Observer,
    ) -> Result<(), OptimiseError> {
        let Some(mut augmentation) = self.augmentation.take_if(|a| a.is_due(done, iterations)) else { return Ok(()) };
        // A volume that is none cannot be repaired; the iteration that follows finds out.
        let outcome = match self.voxelise(compute) {
            Ok(true) => {
                let volumes = (&self.volume, &mut self.by_volume);
                augmentation.repair(compute, &mut self.views, volumes, &|| observer.interrupts())
            }
            other => other.map(|_| ()),
        };
        // Whatever became of it: the next scan has repairs of its own.
        self.augmentation = Some(augmentation);
        outcome
    }

    /// Repairs the volume as it is, whatever is planned, and keeps the reference; whether that came to something. `None`: there is nothing that
    /// repairs.
    pub(super) fn repair(&mut self, compute: &dyn Operations) -> Result<Option<bool>, OptimiseError> {
        let Some(mut augmentation) = self.augmentation.take() else { return Ok(None) };
        let outcome = match self.voxelise(compute) {
            Ok(true) => {
                augmentation.begin();
                let volumes = (&self.volume, &mut self.by_volume);
                augmentation.repair(compute, &mut self.views, volumes, &|| false)
            }
            other => other.map(|_| ()),
        };
        let is_done = augmentation.repairs.done > 0;
        self.augmentation = Some(augmentation);
        outcome.map(|()| Some(is_done))
    }

    /// The representation as it is now; whether it is a volume at all. It may still be no good: only its residual tells.
    pub(super) fn voxelise(&mut self, compute: &dyn Operations) -> Result<bool, OptimiseError> {
        self.keep_good();
        match self.representation.voxelise(compute, &self.plan.grid, None, self.volume.values_mut()) {
            Err(ComputeError::Value { .. }) => return Ok(false),
            voxelised => voxelised?,
        }
        Ok(compute.are_finite(self.volume.values())?)
    }

    /// `volume` is about to be overwritten: if it is good, it is kept.
    fn keep_good(&mut self) {
        if std::mem::take(&mut self.is_good) {
            std::mem::swap(&mut self.volume, &mut self.good);
            self.behind.swap(0, 1);
        }
    }

    /// Makes the last good volume the result; returns the iterations behind it.
    fn take_good(&mut self) -> usize {
        if !self.is_good {
            std::mem::swap(&mut self.volume, &mut self.good);
            self.behind.swap(0, 1);
        }
        self.is_good = true;
        self.behind[0]
    }

    /// One iteration; the residual is that of the volume before its step.
    pub(super) fn iterate(
        &mut self,
        compute: &dyn Operations,
        iteration: usize,
        share: f32,
        observer: &dyn Observer,
    ) -> Result<Judged, OptimiseError> {
        if observer.interrupts() {
            return Ok(Judged::Interrupted);
        }
        self.keep_good();
        let mut judged = together(compute, || self.ask_for_iteration(compute, iteration, share, observer))?;
        if let Judged::Later = judged {
            judged = self.views.judge_left(compute)?;
            self.hear(&judged, iteration);
        }
        Ok(judged)
    }

    /// The operations of an iteration, as one group.
    fn ask_for_iteration(
        &mut self,
        compute: &dyn Operations,
        iteration: usize,
        share: f32,
        observer: &dyn Observer,
    ) -> Result<Judged, OptimiseError> {
        let grid = self.plan.grid;
        let draw = Some((self.plan.settings.fit_iterations + iteration) as u64);
        self.representation.voxelise(compute, &grid, draw, self.volume.values_mut())?;
        let (volume, mut by_volume) = (self.volume.values(), self.by_volume.values_mut());
        let judged = self.views.gradient(compute, iteration, volume, by_volume.reborrow(), observer)?;
        let (Judged::Residual(_) | Judged::Later) = judged else { return Ok(judged) };
        if let Some(augmentation) = &mut self.augmentation {
            augmentation.add_gradient(compute, &grid, iteration, self.views.weight_mm2, volume, by_volume)?;
        }
        self.hear(&judged, iteration);
        self.representation.voxelise_backward(compute, &grid, draw, self.by_volume.values())?;
        self.representation.step(compute, &grid, Stage { share, fitting: false })?;
        Ok(judged)
    }

    /// Notes that the volume is good, if it is.
    fn hear(&mut self, judged: &Judged, iteration: usize) {
        if let Judged::Residual(_) = judged {
            (self.is_good, self.behind[0]) = (true, iteration);
        }
    }
}

fn is_of_a_value(error: &OptimiseError) -> bool {
    matches!(error, OptimiseError::Reconstruct(ReconstructError::Compute(ComputeError::Value { .. })))
}

#[cfg(test)]
mod tests;
