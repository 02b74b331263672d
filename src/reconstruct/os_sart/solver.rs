//! The volume while sweeps pass over it.

use std::ops::Range;
use std::sync::Arc;

use super::{LARGEST_LINE_INTEGRAL, OsSartPlan};
use crate::compute::sart::{AlgebraicCompute, CorrectionStep};
use crate::geometry::ScanGeometry;
use crate::reconstruct::memory::zeros;
use crate::reconstruct::stopping::{HELD_BACK_PATIENCE, Outcome};
use crate::reconstruct::{Observer, Progress, ReconstructError, StopReason};

/// A ray shorter than this many voxel edges within the volume counts as that long: its residual is mostly noise, and would be spread
/// over next to nothing.
const SHORTEST_RAY_VOXELS: f64 = 1.0;
/// A column sum below this share of that of a voxel seen by one view leaves the voxel alone.
const LEAST_COLUMN_SUM: f64 = 1e-6;

/// Some views, and where their pixels stand in the buffers.
#[derive(Debug, Clone)]
struct Views {
    geometry: ScanGeometry,
    pixels: Range<usize>,
    /// Pixels whose rays meet the volume.
    met: usize,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sweep {
    /// Root of the mean squared residual, each subset's before its own step.
    pub residual: f64,
    /// Norm of the changes of all subsets (their squares summed).
    pub path: f64,
}

/// Sweeps over a volume. All memory is allocated by [`OsSart::new`], nothing afterwards.
#[derive(Debug)]
pub struct OsSart {
    plan: Arc<OsSartPlan>,
    volume: Vec<f32>,
    correction: Vec<f32>,
    /// Of each subset, or of the present one.
    column_sums: Vec<f32>,
    /// In the order of work, those held back last.
    measured: Vec<f32>,
    weights: Vec<f32>,
    residual: Vec<f32>,
    best: Vec<f32>,
    subsets: Vec<Views>,
    held_back: Views,
    relaxation: f64,
    least_sum: f32,
    residual_of_nothing: f64,
    mean_attenuation_per_mm: f64,
    /// Least residual of the held-back views, and after which iteration.
    best_held_back: (f64, usize),
}

impl OsSart {
    /// Sorts the line integrals (`[view][row v][column u]`, dimensionless) by subset and works out weights and column sums; the volume
    /// is zero.
    ///
    /// # Errors
    /// [`ReconstructError::Length`], [`ReconstructError::NotFinite`] also for values beyond [`LARGEST_LINE_INTEGRAL`],
    /// [`ReconstructError::Memory`] naming the buffer, [`ReconstructError::Compute`] where `compute` was not prepared.
    pub fn new(
        plan: Arc<OsSartPlan>,
        compute: &dyn AlgebraicCompute,
        line_integrals: &[f32],
    ) -> Result<Self, ReconstructError> {
        check_line_integrals(&plan.geometry, line_integrals)?;
        let (pixels, voxels) = (plan.geometry.detector.pixels(), plan.grid.len());
        let mut measured = zeros("sart line integrals by subset", line_integrals.len())?;
        let mut start = 0;
        let mut gather = |views: &[usize]| {
            let range = start..start + views.len() * pixels;
            start = range.end;
            for (to, &view) in measured[range.clone()].chunks_exact_mut(pixels).zip(views) {
                to.copy_from_slice(&line_integrals[view * pixels..][..pixels]);
            }
            let poses = views.iter().map(|&view| plan.geometry.views[view]).collect();
            Views { geometry: ScanGeometry { detector: plan.geometry.detector, views: poses }, pixels: range, met: 0 }
        };
        let subsets = plan.subsets.iter().map(|views| gather(views)).collect();
        let held_back = gather(&plan.held_back);
        let mut sart = Self {
            volume: zeros("sart volume", voxels)?,
            correction: zeros("sart correction", voxels)?,
            column_sums: zeros("sart column sums", plan.column_sum_volumes().saturating_mul(voxels))?,
            weights: zeros("sart pixel weights", measured.len())?,
            residual: zeros("sart residual", plan.views_per_call() * pixels)?,
            best: zeros("sart best volume", if plan.held_back.is_empty() { 0 } else { voxels })?,
            measured,
            subsets,
            held_back,
            relaxation: plan.settings.relaxation,
            least_sum: least_column_sum(&plan),
            residual_of_nothing: 0.0,
            mean_attenuation_per_mm: 0.0,
            best_held_back: (f64::INFINITY, 0),
            plan,
        };
        sart.prepare(compute)?;
        Ok(sart)
    }

    /// Weights, counts of pixels, column sums.
    fn prepare(&mut self, compute: &dyn AlgebraicCompute) -> Result<(), ReconstructError> {
        let Self { plan, correction, residual, weights, measured, .. } = self;
        correction.fill(1.0);
        let shortest = (SHORTEST_RAY_VOXELS * plan.grid.voxel_mm.min_element()) as f32;
        let (mut squares, mut met) = (0.0, 0);
        let (mut attenuation, mut length_mm) = (0.0, 0.0);
        for views in self.subsets.iter_mut().chain([&mut self.held_back]) {
            let lengths = &mut residual[..views.pixels.len()];
            compute.forward_project(&views.geometry, &plan.grid, correction, lengths)?;
            let (weights, measured) = (&mut weights[views.pixels.clone()], &measured[views.pixels.clone()]);
            for ((weight, &length), &value) in weights.iter_mut().zip(&*lengths).zip(measured) {
                attenuation += f64::from(value.max(0.0)) * f64::from(length.min(1.0));
                length_mm += f64::from(length);
                *weight = if length > 0.0 { plan.settings.weights.of(value) / length.max(shortest) } else { 0.0 };
            }
            views.met = weights.iter().filter(|&&weight| weight > 0.0).count();
            let seen = measured.iter().zip(&*weights).filter(|(_, weight)| **weight > 0.0);
            squares += seen.map(|(value, _)| f64::from(*value).powi(2)).sum::<f64>();
            met += views.met;
        }
        self.residual_of_nothing = root_mean(squares, met);
        self.mean_attenuation_per_mm = attenuation / f64::max(length_mm, f64::MIN_POSITIVE);
        if self.plan.keeps_column_sums {
            for subset in 0..self.subsets.len() {
                self.work_out_column_sums(compute, subset)?;
            }
        }
        self.correction.fill(0.0);
        Ok(())
    }

    /// Where a subset's column sums stand.
    fn column_sum_range(&self, subset: usize) -> Range<usize> {
        let start = if self.plan.keeps_column_sums { subset * self.volume.len() } else { 0 };
        start..start + self.volume.len()
    }

    /// `A_s' q` of one subset: `A_s' W_s A_s 1` but for rays at the volume's edges, whose length counts as longer in `W`.
    fn work_out_column_sums(&mut self, compute: &dyn AlgebraicCompute, subset: usize) -> Result<(), ReconstructError> {
        let range = self.column_sum_range(subset);
        let Self { plan, residual, measured, weights, column_sums, subsets, .. } = self;
        let views = &subsets[subset];
        let weighted = &mut residual[..views.pixels.len()];
        let pixels = measured[views.pixels.clone()].iter().zip(&weights[views.pixels.clone()]);
        for (weighted, (&value, &weight)) in weighted.iter_mut().zip(pixels) {
            *weighted = if weight > 0.0 { plan.settings.weights.of(value) } else { 0.0 };
        }
        compute.back_project_matched(&views.geometry, &plan.grid, weighted, &mut column_sums[range])?;
        Ok(())
    }

    /// One sweep: a step of every subset, in order.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`].
    pub fn sweep(&mut self, compute: &dyn AlgebraicCompute) -> Result<Sweep, ReconstructError> {
        let (mut squares, mut changes, mut met) = (0.0, 0.0, 0);
        let step = CorrectionStep {
            relaxation: self.relaxation as f32,
            least_sum: self.least_sum,
            least: if self.plan.settings.non_negative { 0.0 } else { f32::NEG_INFINITY },
        };
        for subset in 0..self.subsets.len() {
            if !self.plan.keeps_column_sums {
                self.work_out_column_sums(compute, subset)?;
            }
            let sums = self.column_sum_range(subset);
            let Self { plan, volume, correction, column_sums, measured, weights, residual, subsets, .. } = self;
            let views = &subsets[subset];
            let residual = &mut residual[..views.pixels.len()];
            compute.forward_project(&views.geometry, &plan.grid, volume, residual)?;
            let (measured, weights) = (&measured[views.pixels.clone()], &weights[views.pixels.clone()]);
            squares += compute.weigh_residual(measured, weights, residual)?;
            met += views.met;
            compute.back_project_matched(&views.geometry, &plan.grid, residual, correction)?;
            changes += compute.apply_correction(&step, correction, &column_sums[sums], volume)?;
        }
        self.relaxation *= self.plan.settings.relaxation_factor;
        Ok(Sweep { residual: root_mean(squares, met), path: changes.sqrt() })
    }

    /// Sweeps until a rule of [`super::StopRules`] says enough. `observer` sees the volume after each sweep; the residual that it is shown is
    /// [`Sweep::residual`].
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
            iteration += 1;
            let sweep = self.sweep(compute)?;
            // A sum of steps is at least as long as the way made: never stops too early.
            let change = sweep.path / compute.squared_norm(&self.volume).sqrt().max(f64::MIN_POSITIVE);
            if let Some(outcome) = self.end_iteration(compute, observer, iteration, sweep.residual, change)? {
                return Ok(outcome);
            }
        }
    }

    /// What follows an iteration of any method that works on this volume: the observer, the held-back views, the rules. The outcome, once
    /// one of them says enough; with held-back views the best volume then stands.
    pub(in crate::reconstruct) fn end_iteration(
        &mut self,
        compute: &dyn AlgebraicCompute,
        observer: &mut dyn Observer,
        iteration: usize,
        residual: f64,
        change: f64,
    ) -> Result<Option<Outcome>, ReconstructError> {
        let rules = self.plan.settings.stop;
        let volume = observer.wants_volume(iteration).then_some(&self.volume[..]);
        observer.observe(&Progress { iteration, iterations: rules.iterations, residual, volume });
        let mut stopped = rules.reached(iteration, residual, change);
        let holds_back = rules.held_back_views > 0;
        if holds_back {
            let residual = self.held_back_residual(compute)?;
            if residual < self.best_held_back.0 {
                self.best_held_back = (residual, iteration);
                self.best.copy_from_slice(&self.volume);
            } else if iteration - self.best_held_back.1 >= HELD_BACK_PATIENCE {
                stopped = Some(StopReason::HeldBack);
            }
        }
        let Some(stopped) = stopped else { return Ok(None) };
        if holds_back {
            std::mem::swap(&mut self.volume, &mut self.best);
        }
        Ok(Some(Outcome {
            iterations: iteration,
            stopped,
            residual,
            residual_of_nothing: self.residual_of_nothing,
            held_back_residual: holds_back.then_some(self.best_held_back.0),
        }))
    }

    /// Residual of the views held back at the present volume.
    fn held_back_residual(&mut self, compute: &dyn AlgebraicCompute) -> Result<f64, ReconstructError> {
        let Self { plan, volume, measured, weights, residual, held_back: views, .. } = self;
        residual_of(compute, plan, views, volume, measured, weights, residual)
    }

    /// Residual of all views reconstructed from, at the present volume (a [`Sweep`]'s is that of the volumes before each step).
    ///
    /// # Errors
    /// [`ReconstructError::Compute`].
    pub fn residual(&mut self, compute: &dyn AlgebraicCompute) -> Result<f64, ReconstructError> {
        let Self { plan, volume, measured, weights, residual, subsets, .. } = self;
        let (mut squares, mut met) = (0.0, 0);
        for views in subsets {
            let residual = residual_of(compute, plan, views, volume, measured, weights, residual)?;
            squares += residual * residual * views.met as f64;
            met += views.met;
        }
        Ok(root_mean(squares, met))
    }

    /// Residual of an empty volume: root of the line integrals' mean square.
    #[must_use]
    pub fn residual_of_nothing(&self) -> f64 {
        self.residual_of_nothing
    }

    /// Line integrals over lengths within the volume, of all rays together.
    #[must_use]
    pub fn mean_attenuation_per_mm(&self) -> f64 {
        self.mean_attenuation_per_mm
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<OsSartPlan> {
        &self.plan
    }

    /// Attenuation in 1/mm, `[x][y][z]`.
    #[must_use]
    pub fn volume(&self) -> &[f32] {
        &self.volume
    }

    /// The same, to start from something else than zero or to regularise between sweeps.
    pub fn volume_mut(&mut self) -> &mut [f32] {
        &mut self.volume
    }

    /// Floats of each buffer, under its name in the plan.
    #[cfg(test)]
    pub(in crate::reconstruct) fn allocated(&self) -> [(&'static str, usize); 7] {
        [
            ("sart volume", self.volume.capacity()),
            ("sart correction", self.correction.capacity()),
            ("sart column sums", self.column_sums.capacity()),
            ("sart line integrals by subset", self.measured.capacity()),
            ("sart pixel weights", self.weights.capacity()),
            ("sart residual", self.residual.capacity()),
            ("sart best volume", self.best.capacity()),
        ]
    }

    /// The volume, when all is done.
    #[must_use]
    pub fn into_volume(self) -> Vec<f32> {
        self.volume
    }
}

/// Residual of some views at a volume; `residual` is overwritten.
fn residual_of(
    compute: &dyn AlgebraicCompute,
    plan: &OsSartPlan,
    views: &Views,
    volume: &[f32],
    measured: &[f32],
    weights: &[f32],
    residual: &mut [f32],
) -> Result<f64, ReconstructError> {
    let residual = &mut residual[..views.pixels.len()];
    compute.forward_project(&views.geometry, &plan.grid, volume, residual)?;
    let squares = compute.weigh_residual(&measured[views.pixels.clone()], &weights[views.pixels.clone()], residual)?;
    Ok(root_mean(squares, views.met))
}

fn root_mean(squares: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { (squares / count as f64).sqrt() }
}

/// A share of what one view gives to a voxel that it sees whole: the voxel's volume over the area of a pixel at the voxel.
fn least_column_sum(plan: &OsSartPlan) -> f32 {
    let pose = &plan.geometry.views[0];
    let depth = pose.project(plan.grid.centre_mm).map_or(1.0, |(_, _, depth)| depth);
    let pixel_mm2 = pose.column_step_mm.cross(pose.row_step_mm).length() * depth * depth;
    (LEAST_COLUMN_SUM * plan.grid.voxel_mm.element_product() / pixel_mm2) as f32
}

/// Refuses the wrong number of values, and values that would spoil the volume.
fn check_line_integrals(geometry: &ScanGeometry, line_integrals: &[f32]) -> Result<(), ReconstructError> {
    let detector = geometry.detector;
    if line_integrals.len() != geometry.projection_len() {
        return Err(ReconstructError::Length {
            given: line_integrals.len(),
            needed: geometry.projection_len(),
            views: geometry.views.len(),
            rows: detector.rows,
            columns: detector.columns,
        });
    }
    let bad = |value: &f32| !value.is_finite() || value.abs() > LARGEST_LINE_INTEGRAL;
    match line_integrals.iter().position(bad) {
        None => Ok(()),
        Some(index) => {
            let pixel = index % detector.pixels();
            Err(ReconstructError::NotFinite {
                view: index / detector.pixels(),
                row: pixel / detector.columns,
                column: pixel % detector.columns,
                value: line_integrals[index],
            })
        }
    }
}
