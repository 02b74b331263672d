//! The run itself.

use std::sync::Arc;
use std::time::Instant;

use super::weights::{is_held_back, weight};
use super::{Budget, OptimiseError, OptimisePlan, Pace};
use crate::compute::Operations;
use crate::compute::losses::ImageLoss;
use crate::compute::total_variation::TotalVariation;
use crate::reconstruct::{Observer, Progress, ReconstructError, StopReason};
use crate::represent::{Representation, Stage};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Iterations done.
    pub iterations: usize,
    /// Iterations that the budget came to: what `--iterations` must say to get the same bits.
    pub planned: usize,
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
    volume: Vec<f32>,
    by_volume: Vec<f32>,
    /// In the plan's order, as `weights`.
    measured: Vec<f32>,
    weights: Vec<f32>,
    projections: Vec<f32>,
    by_projections: Vec<f32>,
    best: Vec<f32>,
    largest_measured: f32,
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
            volume: floats("optimise volume", voxels)?,
            by_volume: floats("optimise gradient by the volume", voxels)?,
            measured: floats("optimise line integrals", scan)?,
            weights: floats("optimise pixel weights", scan)?,
            projections: floats("optimise projections of a subset", subset)?,
            by_projections: floats("optimise gradient by the projections", subset)?,
            best: floats("optimise best volume so far", best)?,
            largest_measured: 0.0,
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
        let (pixels, settings) = (self.plan.pixels(), &self.plan.settings);
        let detector = self.plan.subsets[0].detector;
        if line_integrals.len() != self.measured.len() {
            return Err(ReconstructError::Length {
                given: line_integrals.len(),
                needed: self.measured.len(),
                views: self.plan.views(),
                rows: detector.rows,
                columns: detector.columns,
            });
        }
        self.largest_measured = 0.0;
        for (place, &view) in self.plan.order.iter().enumerate() {
            let from = &line_integrals[view * pixels..][..pixels];
            let (to, weights) =
                (&mut self.measured[place * pixels..][..pixels], &mut self.weights[place * pixels..][..pixels]);
            for (pixel, ((&value, to), w)) in from.iter().zip(to).zip(weights).enumerate() {
                if !value.is_finite() {
                    let (row, column) = (pixel / detector.columns, pixel % detector.columns);
                    return Err(ReconstructError::NotFinite { view, row, column, value });
                }
                *to = value;
                self.largest_measured = self.largest_measured.max(value);
                let ray = (view * pixels + pixel) as u64;
                *w = if is_held_back(settings.seed, ray, settings.hold_back_one_in) {
                    0.0
                } else {
                    weight(value, settings.data.photons, settings.data.model_error)
                };
            }
        }
        Ok(())
    }

    /// Begins near `start` (1/mm, `[x][y][z]`) and brings the representation to it.
    ///
    /// # Errors
    /// [`OptimiseError`] where the representation refuses that volume or an operation fails.
    pub fn begin(&mut self, compute: &dyn Operations, start: &[f32]) -> Result<(), OptimiseError> {
        let grid = &self.plan.grid;
        self.representation.begin(compute, grid, start)?;
        for step in 0..self.plan.settings.fit_iterations {
            let draw = Some(step as u64);
            self.representation.voxelise(compute, grid, draw, &mut self.volume)?;
            for ((gradient, volume), start) in self.by_volume.iter_mut().zip(&self.volume).zip(start) {
                *gradient = volume - start;
            }
            self.representation.voxelise_backward(compute, grid, draw, &self.by_volume)?;
            self.representation.step(compute, grid, Stage { share: 0.0, fitting: true })?;
        }
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
            residual = self.iterate(compute, done, pace.share(done))?;
            done += 1;
            pace.took(began.elapsed(), Instant::now());
            if !residual.is_finite() {
                stopped = StopReason::Diverged;
                break;
            }
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
                self.representation.voxelise(compute, &self.plan.grid, None, &mut self.volume)?;
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
        if stopped == StopReason::HeldBack {
            self.volume.copy_from_slice(&self.best);
        } else {
            self.representation.voxelise(compute, &self.plan.grid, None, &mut self.volume)?;
        }
        Ok(Outcome {
            iterations: done,
            planned: pace.iterations().unwrap_or(done),
            stopped,
            residual,
            held_back_residual: best.map(|(least, _)| least),
        })
    }

    /// One iteration; returns the residual of its views.
    fn iterate(&mut self, compute: &dyn Operations, iteration: usize, share: f32) -> Result<f64, OptimiseError> {
        let plan = &self.plan;
        let (settings, grid) = (&plan.settings, &plan.grid);
        let draw = Some((settings.fit_iterations + iteration) as u64);
        self.representation.voxelise(compute, grid, draw, &mut self.volume)?;

        let subset = iteration % plan.subsets.len();
        let geometry = &plan.subsets[subset];
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let (measured, weights) = (&self.measured[from..][..count], &self.weights[from..][..count]);
        let (projections, by_projections) = (&mut self.projections[..count], &mut self.by_projections[..count]);
        compute.forward_project(geometry, grid, &self.volume, projections)?;
        // The operation means over pixels; here the sum over all views counts, of which this subset is a part.
        let pixels = count as f32 * (plan.views() as f32 / geometry.views.len() as f32);
        let loss = ImageLoss {
            squares: 0.5 * settings.data.squares * pixels,
            l1: settings.data.modulus * pixels,
            huber: 0.0,
            dissimilarity: settings.data.dissimilarity * pixels,
            data_range: self.largest_measured.max(1e-3),
        };
        let value =
            compute.image_loss(geometry.detector, &loss, projections, measured, Some(weights), by_projections)?;
        if settings.hold_back_one_in > 0 {
            for ((p, m), w) in projections.iter().zip(measured).zip(weights) {
                if *w == 0.0 {
                    self.held_back.0 += f64::from(p - m).powi(2);
                    self.held_back.1 += 1;
                }
            }
        }
        compute.back_project_matched(geometry, grid, by_projections, &mut self.by_volume)?;
        if settings.tv_mm > 0.0 {
            let variation = TotalVariation::on(grid, settings.tv_epsilon_per_mm);
            compute.add_total_variation_gradient(&variation, settings.tv_mm, &self.volume, &mut self.by_volume)?;
        }
        self.representation.voxelise_backward(compute, grid, draw, &self.by_volume)?;
        self.representation.step(compute, grid, Stage { share, fitting: false })?;
        Ok(value.squares.sqrt())
    }
}
