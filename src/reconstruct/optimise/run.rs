//! The run itself.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::weights::{is_held_back, weight};
use super::{Budget, OptimiseError, OptimisePlan, Pace, ScanViews};
use crate::compute::{ComputeError, Operations};
use crate::compute::losses::ImageLoss;
use crate::compute::total_variation::TotalVariation;
use crate::geometry::ScanGeometry;
use crate::reconstruct::{Observer, Progress, ReconstructError, StopReason};
use crate::represent::{Representation, Stage};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Iterations done.
    pub iterations: usize,
    /// Iterations that the budget came to: what `--iterations` must say to get the same bits.
    pub planned: usize,
    /// Iterations that the resulting volume has behind it: fewer than done where the last good or the best one stands; 0 for the start.
    pub of_iteration: usize,
    /// Why it ended.
    pub stopped: StopReason,
    /// Root of the mean squared difference of the line integrals at the last iteration.
    pub residual: f64,
    /// The same for the rays held back, at its best.
    pub held_back_residual: Option<f64>,
}

/// All memory of a run.
pub struct Optimiser {
    plan: Arc<OptimisePlan>,
    representation: Box<dyn Representation>,
    /// Poses of each subset's views that are there, as they really were.
    subsets: Vec<ScanGeometry>,
    /// Views that are there.
    views: usize,
    volume: Vec<f32>,
    /// The last volume whose residual was found in order.
    good: Vec<f32>,
    /// Whether that holds of `volume`.
    is_good: bool,
    /// Iterations behind `volume` and `good`.
    behind: [usize; 2],
    by_volume: Vec<f32>,
    /// In the plan's order, as `weights`; the views of a subset that are there come first in its part.
    measured: Vec<f32>,
    weights: Vec<f32>,
    projections: Vec<f32>,
    by_projections: Vec<f32>,
    best: Vec<f32>,
    largest_measured: f32,
    /// Root of the mean square of the line integrals: the residual of an empty volume.
    rms_measured: f64,
    /// Sum of squares and number of the rays held back, over a round.
    held_back: (f64, usize),
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
    pub fn new(plan: Arc<OptimisePlan>, representation: Box<dyn Representation>) -> Result<Self, ReconstructError> {
        let floats = |buffer: &'static str, count: usize| {
            let mut vec = Vec::new();
            vec.try_reserve_exact(count)
                .map_err(|_| ReconstructError::Memory { buffer, bytes: count * size_of::<f32>() })?;
            vec.resize(count, 0.0f32);
            Ok::<_, ReconstructError>(vec)
        };
        let (voxels, scan) = (plan.grid.len(), plan.views() * plan.pixels());
        let subset = plan.views_per_call() * plan.pixels();
        let best = if plan.settings.hold_back_one_in > 0 { voxels } else { 0 };
        Ok(Self {
            subsets: plan.subsets.clone(),
            views: plan.views(),
            volume: floats("optimise volume", voxels)?,
            good: floats("optimise last good volume", voxels)?,
            is_good: false,
            behind: [0; 2],
            by_volume: floats("optimise gradient by the volume", voxels)?,
            measured: floats("optimise line integrals", scan)?,
            weights: floats("optimise pixel weights", scan)?,
            projections: floats("optimise projections of a subset", subset)?,
            by_projections: floats("optimise gradient by the projections", subset)?,
            best: floats("optimise best volume so far", best)?,
            largest_measured: 0.0,
            rms_measured: 0.0,
            held_back: (0.0, 0),
            plan,
            representation,
        })
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

    /// The volume last made, 1/mm, `[x][y][z]`.
    #[must_use]
    pub fn volume(&self) -> &[f32] {
        &self.volume
    }

    /// The volume, without the rest.
    #[must_use]
    pub fn into_volume(self) -> Vec<f32> {
        self.volume
    }

    /// Takes the scan's line integrals (`[view][row v][column u]`, dimensionless) and works out their weights.
    ///
    /// # Errors
    /// [`ReconstructError::Length`] and [`ReconstructError::NotFinite`].
    pub fn load(&mut self, line_integrals: &[f32]) -> Result<(), ReconstructError> {
        self.load_views(&ScanViews::whole(line_integrals))
    }

    /// As [`Optimiser::load`], of the views that there are, at the poses that they had.
    ///
    /// # Errors
    /// As [`Optimiser::load`], and [`ReconstructError::Geometry`] for a broken pose.
    pub fn load_views(&mut self, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
        let (pixels, settings) = (self.plan.pixels(), &self.plan.settings);
        let detector = self.plan.subsets[0].detector;
        if scan.line_integrals.len() != self.measured.len() {
            return Err(ReconstructError::Length {
                given: scan.line_integrals.len(),
                needed: self.measured.len(),
                views: self.plan.views(),
                rows: detector.rows,
                columns: detector.columns,
            });
        }
        (self.largest_measured, self.views) = (0.0, 0);
        let (mut squares, mut before) = (0.0, 0);
        for (planned, subset) in self.plan.subsets.iter().zip(&mut self.subsets) {
            subset.views.clear();
            for (&pose, &view) in planned.views.iter().zip(&self.plan.order[before..]) {
                if !scan.has(view) {
                    continue;
                }
                let place = before + subset.views.len();
                let pose = scan.pose(view).unwrap_or(pose);
                pose.check(view)?;
                subset.views.push(pose);
                let from = &scan.line_integrals[view * pixels..][..pixels];
                let (to, weights) =
                    (&mut self.measured[place * pixels..][..pixels], &mut self.weights[place * pixels..][..pixels]);
                for (pixel, ((&value, to), w)) in from.iter().zip(to).zip(weights).enumerate() {
                    if !value.is_finite() {
                        let (row, column) = (pixel / detector.columns, pixel % detector.columns);
                        return Err(ReconstructError::NotFinite { view, row, column, value });
                    }
                    *to = value;
                    squares += f64::from(value) * f64::from(value);
                    self.largest_measured = self.largest_measured.max(value);
                    let ray = (view * pixels + pixel) as u64;
                    *w = if is_held_back(settings.seed, ray, settings.hold_back_one_in) {
                        0.0
                    } else {
                        weight(value, settings.data.photons, settings.data.model_error)
                    };
                }
            }
            before += planned.views.len();
            self.views += subset.views.len();
        }
        self.rms_measured = (squares / (self.views * pixels).max(1) as f64).sqrt();
        Ok(())
    }

    /// Begins near `start` (1/mm, `[x][y][z]`) and brings the representation to it, or as far as `observer` lets it.
    ///
    /// # Errors
    /// [`OptimiseError`] where the representation refuses that volume or an operation fails.
    pub fn begin(
        &mut self,
        compute: &dyn Operations,
        start: &[f32],
        observer: &dyn Observer,
    ) -> Result<(), OptimiseError> {
        self.representation.begin(compute, &self.plan.grid, start)?;
        self.good.copy_from_slice(start);
        (self.is_good, self.behind) = (false, [0; 2]);
        for step in 0..self.plan.settings.fit_iterations {
            if observer.interrupts() {
                break;
            }
            self.fit(compute, start, step)?;
        }
        Ok(())
    }

    /// One step towards `start`.
    fn fit(&mut self, compute: &dyn Operations, start: &[f32], step: usize) -> Result<(), OptimiseError> {
        let (grid, draw) = (&self.plan.grid, Some(step as u64));
        self.representation.voxelise(compute, grid, draw, &mut self.volume)?;
        for ((gradient, volume), start) in self.by_volume.iter_mut().zip(&self.volume).zip(start) {
            *gradient = volume - start;
        }
        self.representation.voxelise_backward(compute, grid, draw, &self.by_volume)?;
        self.representation.step(compute, grid, Stage { share: 0.0, fitting: true })?;
        Ok(())
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
        let mut pace = Pace::new(budget);
        let round = self.plan.round();
        let (mut residual, mut done) = (f64::NAN, 0);
        let mut stopped = StopReason::Iterations;
        // Best residual of the rays held back, and when it was.
        let mut best: Option<(f64, usize)> = None;
        self.held_back = (0.0, 0);
        while pace.iterations().is_none_or(|count| done < count) {
            let began = Instant::now();
            let iterated = match self.iterate(compute, done, pace.share(done), observer) {
                // An operation refuses parameters or projections that are no numbers.
                Err(error) if is_of_a_value(&error) => Iterated::Diverged(f64::NAN),
                iterated => iterated?,
            };
            match iterated {
                Iterated::Done(of_its_volume) => residual = of_its_volume,
                Iterated::Interrupted => {
                    stopped = StopReason::Interrupted;
                    break;
                }
                Iterated::Diverged(of_its_volume) => {
                    residual = of_its_volume;
                    stopped = StopReason::Diverged;
                    break;
                }
            }
            done += 1;
            pace.took(began.elapsed(), Instant::now());
            if done.is_multiple_of(round) && self.held_back.1 > 0 {
                let (sum, rays) = std::mem::take(&mut self.held_back);
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
                        self.best.copy_from_slice(&self.volume);
                    }
                }
            }
            let volume = if observer.wants_volume(done) {
                if !self.voxelise(compute)? {
                    stopped = StopReason::Diverged;
                    break;
                }
                Some(&*self.volume)
            } else {
                None
            };
            let iterations = pace.iterations().unwrap_or(done);
            observer.observe(&Progress { iteration: done, iterations, residual, volume });
            if stopped != StopReason::Iterations {
                break;
            }
        }
        let mut of_iteration = done;
        match stopped {
            StopReason::HeldBack => {
                self.volume.copy_from_slice(&self.best);
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
            iterations: done,
            planned: pace.iterations().unwrap_or(done),
            of_iteration,
            stopped,
            residual,
            held_back_residual: best.map(|(least, _)| least),
        })
    }

    /// The representation as it is now; whether it is a volume at all. It may still be no good: only its residual tells.
    fn voxelise(&mut self, compute: &dyn Operations) -> Result<bool, OptimiseError> {
        self.keep_good();
        match self.representation.voxelise(compute, &self.plan.grid, None, &mut self.volume) {
            Err(ComputeError::Value { .. }) => return Ok(false),
            voxelised => voxelised?,
        }
        // Not one NaN or infinity: only then all values times 0 add up to 0.
        Ok(self.volume.par_chunks(1 << 16).all(|part| part.iter().map(|value| value * 0.0).sum::<f32>() == 0.0))
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

    /// One iteration.
    fn iterate(
        &mut self,
        compute: &dyn Operations,
        iteration: usize,
        share: f32,
        observer: &dyn Observer,
    ) -> Result<Iterated, OptimiseError> {
        self.keep_good();
        let plan = &self.plan;
        let (settings, grid) = (&plan.settings, &plan.grid);
        let draw = Some((settings.fit_iterations + iteration) as u64);
        // The next subset that has views.
        let Some(subset) = (0..self.subsets.len())
            .map(|further| (iteration + further) % self.subsets.len())
            .find(|&subset| !self.subsets[subset].views.is_empty())
        else {
            return Ok(Iterated::Done(0.0));
        };
        if observer.interrupts() {
            return Ok(Iterated::Interrupted);
        }
        self.representation.voxelise(compute, grid, draw, &mut self.volume)?;

        let geometry = &self.subsets[subset];
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let (measured, weights) = (&self.measured[from..][..count], &self.weights[from..][..count]);
        let (projections, by_projections) = (&mut self.projections[..count], &mut self.by_projections[..count]);
        if observer.interrupts() {
            return Ok(Iterated::Interrupted);
        }
        compute.forward_project(geometry, grid, &self.volume, projections)?;
        // The operation means over pixels; here the sum over all views counts, of which this subset is a part.
        let pixels = count as f32 * (self.views as f32 / geometry.views.len() as f32);
        let loss = ImageLoss {
            squares: 0.5 * settings.data.squares * pixels,
            l1: settings.data.modulus * pixels,
            huber: 0.0,
            dissimilarity: settings.data.dissimilarity * pixels,
            data_range: self.largest_measured.max(1e-3),
        };
        let value =
            compute.image_loss(geometry.detector, &loss, projections, measured, Some(weights), by_projections)?;
        let residual = value.squares.sqrt();
        if !(residual.is_finite() && residual <= DIVERGED * self.rms_measured.max(1e-3)) {
            return Ok(Iterated::Diverged(residual));
        }
        (self.is_good, self.behind[0]) = (true, iteration);
        if settings.hold_back_one_in > 0 {
            for ((p, m), w) in projections.iter().zip(measured).zip(weights) {
                if *w == 0.0 {
                    self.held_back.0 += f64::from(p - m).powi(2);
                    self.held_back.1 += 1;
                }
            }
        }
        if observer.interrupts() {
            return Ok(Iterated::Interrupted);
        }
        compute.back_project_matched(geometry, grid, by_projections, &mut self.by_volume)?;
        if settings.tv_mm > 0.0 {
            let variation = TotalVariation::on(grid, settings.tv_epsilon_per_mm);
            compute.add_total_variation_gradient(&variation, settings.tv_mm, &self.volume, &mut self.by_volume)?;
        }
        if observer.interrupts() {
            return Ok(Iterated::Interrupted);
        }
        self.representation.voxelise_backward(compute, grid, draw, &self.by_volume)?;
        self.representation.step(compute, grid, Stage { share, fitting: false })?;
        Ok(Iterated::Done(residual))
    }
}

/// A residual above this many times that of an empty volume is no progress any more.
const DIVERGED: f64 = 4.0;

fn is_of_a_value(error: &OptimiseError) -> bool {
    matches!(error, OptimiseError::Reconstruct(ReconstructError::Compute(ComputeError::Value { .. })))
}

/// What an iteration came to.
enum Iterated {
    /// Done; the residual of its volume, before the step.
    Done(f64),
    /// Left in the middle.
    Interrupted,
    /// The residual of its volume is no number, or far above that of an empty one.
    Diverged(f64),
}

#[cfg(test)]
mod tests;
