//! The volume while sweeps pass over it.

use std::ops::Range;
use std::sync::Arc;

use super::{LARGEST_LINE_INTEGRAL, OsSartPlan};
use crate::compute::sart::{AlgebraicCompute, CorrectionStep};
use crate::compute::{Buffer, Values, ValuesMut};
use crate::geometry::ScanGeometry;
use crate::reconstruct::memory::{buffer, zeros};
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
    volume: Buffer,
    correction: Buffer,
    /// Of each subset, or of the present one.
    column_sums: Buffer,
    /// In the order of work, those held back last.
    measured: Buffer,
    weights: Buffer,
    residual: Buffer,
    best: Buffer,
    /// Where the carrier's memory is not the host's: the volume there, and three times the pixels of a call.
    volume_copy: Vec<f32>,
    pixel_copies: [Vec<f32>; 3],
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
        let mut measured = buffer(compute, "sart line integrals by subset", line_integrals.len())?;
        let mut start = 0;
        let mut gather = |views: &[usize]| {
            let first = start;
            for &view in views {
                let to = measured.values_mut().part(start..start + pixels);
                compute.write(&line_integrals[view * pixels..][..pixels], to)?;
                start += pixels;
            }
            let poses = views.iter().map(|&view| plan.geometry.views[view]).collect();
            let geometry = ScanGeometry { detector: plan.geometry.detector, views: poses };
            Ok::<_, ReconstructError>(Views { geometry, pixels: first..start, met: 0 })
        };
        let subsets = plan.subsets.iter().map(|views| gather(views)).collect::<Result<_, _>>()?;
        let held_back = gather(&plan.held_back)?;
        let call = plan.views_per_call() * pixels;
        let copy = || zeros("sart pixels on the host", compute.copy_len(call));
        let mut sart = Self {
            volume: buffer(compute, "sart volume", voxels)?,
            correction: buffer(compute, "sart correction", voxels)?,
            column_sums: buffer(compute, "sart column sums", plan.column_sum_volumes().saturating_mul(voxels))?,
            weights: buffer(compute, "sart pixel weights", measured.len())?,
            residual: buffer(compute, "sart residual", call)?,
            best: buffer(compute, "sart best volume", if plan.held_back.is_empty() { 0 } else { voxels })?,
            volume_copy: zeros("sart volume on the host", compute.copy_len(voxels))?,
            pixel_copies: [copy()?, copy()?, copy()?],
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
        let Self { plan, correction, residual, weights, measured, pixel_copies: [copy, other, third], .. } = self;
        compute.fill(1.0, correction.values_mut())?;
        let shortest = (SHORTEST_RAY_VOXELS * plan.grid.voxel_mm.min_element()) as f32;
        let (mut squares, mut met) = (0.0, 0);
        let (mut attenuation, mut length_mm) = (0.0, 0.0);
        for views in self.subsets.iter_mut().chain([&mut self.held_back]) {
            let mut lengths = residual.values_mut().part(0..views.pixels.len());
            compute.forward_project(&views.geometry, &plan.grid, correction.values(), lengths.reborrow())?;
            let lengths = compute.on_host(lengths.as_values(), copy)?;
            let measured = compute.on_host(measured.values().part(views.pixels.clone()), other)?;
            weights.values_mut().part(views.pixels.clone()).make(compute, third, |weights| {
                for ((weight, &length), &value) in weights.iter_mut().zip(lengths).zip(measured) {
                    attenuation += f64::from(value.max(0.0)) * f64::from(length.min(1.0));
                    length_mm += f64::from(length);
                    *weight = if length > 0.0 { plan.settings.weights.of(value) / length.max(shortest) } else { 0.0 };
                }
                views.met = weights.iter().filter(|&&weight| weight > 0.0).count();
                let seen = measured.iter().zip(&*weights).filter(|(_, weight)| **weight > 0.0);
                squares += seen.map(|(value, _)| f64::from(*value).powi(2)).sum::<f64>();
            })?;
            met += views.met;
        }
        self.residual_of_nothing = root_mean(squares, met);
        self.mean_attenuation_per_mm = attenuation / f64::max(length_mm, f64::MIN_POSITIVE);
        if self.plan.keeps_column_sums {
            for subset in 0..self.subsets.len() {
                self.work_out_column_sums(compute, subset)?;
            }
        }
        Ok(compute.fill(0.0, self.correction.values_mut())?)
    }

    /// Where a subset's column sums stand.
    fn column_sum_range(&self, subset: usize) -> Range<usize> {
        let start = if self.plan.keeps_column_sums { subset * self.volume.len() } else { 0 };
        start..start + self.volume.len()
    }

    /// `A_s' q` of one subset: `A_s' W_s A_s 1` but for rays at the volume's edges, whose length counts as longer in `W`.
    fn work_out_column_sums(&mut self, compute: &dyn AlgebraicCompute, subset: usize) -> Result<(), ReconstructError> {
        let range = self.column_sum_range(subset);
        let Self { plan, residual, measured, weights, column_sums, subsets, pixel_copies, .. } = self;
        let [copy, other, third] = pixel_copies;
        let views = &subsets[subset];
        let measured = compute.on_host(measured.values().part(views.pixels.clone()), copy)?;
        let weights = compute.on_host(weights.values().part(views.pixels.clone()), other)?;
        let mut weighted = residual.values_mut().part(0..views.pixels.len());
        weighted.reborrow().make(compute, third, |weighted| {
            for (weighted, (&value, &weight)) in weighted.iter_mut().zip(measured.iter().zip(weights)) {
                *weighted = if weight > 0.0 { plan.settings.weights.of(value) } else { 0.0 };
            }
        })?;
        let sums = column_sums.values_mut().part(range);
        compute.back_project_matched(&views.geometry, &plan.grid, weighted.as_values(), sums)?;
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
            let (geometry, pixels) = (&views.geometry, views.pixels.clone());
            let mut residual = residual.values_mut().part(0..pixels.len());
            compute.forward_project(geometry, &plan.grid, volume.values(), residual.reborrow())?;
            let (measured, weights) = (measured.values().part(pixels.clone()), weights.values().part(pixels));
            squares += compute.weigh_residual(measured, weights, residual.reborrow())?;
            met += views.met;
            compute.back_project_matched(geometry, &plan.grid, residual.as_values(), correction.values_mut())?;
            let sums = column_sums.values().part(sums);
            changes += compute.apply_correction(&step, correction.values(), sums, volume.values_mut())?;
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
            let change = sweep.path / compute.squared_norm(self.volume.values())?.sqrt().max(f64::MIN_POSITIVE);
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
        let wanted = observer.wants_volume(iteration);
        let volume = wanted.then(|| compute.on_host(self.volume.values(), &mut self.volume_copy)).transpose()?;
        let volume = volume.map(Values::Host);
        observer.observe(&Progress { iteration, iterations: rules.iterations, residual, volume });
        let mut stopped = rules.reached(iteration, residual, change);
        let holds_back = rules.held_back_views > 0;
        if holds_back {
            let residual = self.held_back_residual(compute)?;
            if residual < self.best_held_back.0 {
                self.best_held_back = (residual, iteration);
                compute.copy(self.volume.values(), self.best.values_mut())?;
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

    /// Attenuation in 1/mm, `[x][y][z]`, on the host.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the device does not give it back.
    pub fn volume(&mut self, compute: &dyn AlgebraicCompute) -> Result<&[f32], ReconstructError> {
        Ok(compute.on_host(self.volume.values(), &mut self.volume_copy)?)
    }

    /// The same where it lies.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        self.volume.values()
    }

    /// To start from something else than zero or to regularise between sweeps.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        self.volume.values_mut()
    }

    /// Floats of each buffer, under its name in the plan.
    #[cfg(test)]
    pub(in crate::reconstruct) fn allocated(&self) -> [(&'static str, usize); 7] {
        [
            ("sart volume", self.volume.len()),
            ("sart correction", self.correction.len()),
            ("sart column sums", self.column_sums.len()),
            ("sart line integrals by subset", self.measured.len()),
            ("sart pixel weights", self.weights.len()),
            ("sart residual", self.residual.len()),
            ("sart best volume", self.best.len()),
        ]
    }

    /// The volume, when all is done.
    ///
    /// # Errors
    /// As [`OsSart::volume`].
    pub fn into_volume(self, compute: &dyn AlgebraicCompute) -> Result<Vec<f32>, ReconstructError> {
        Ok(compute.take(self.volume)?)
    }
}

/// Residual of some views at a volume; `residual` is overwritten.
fn residual_of(
    compute: &dyn AlgebraicCompute,
    plan: &OsSartPlan,
    views: &Views,
    volume: &Buffer,
    measured: &Buffer,
    weights: &Buffer,
    residual: &mut Buffer,
) -> Result<f64, ReconstructError> {
    let pixels = views.pixels.clone();
    let mut residual = residual.values_mut().part(0..pixels.len());
    compute.forward_project(&views.geometry, &plan.grid, volume.values(), residual.reborrow())?;
    let (measured, weights) = (measured.values().part(pixels.clone()), weights.values().part(pixels));
    let squares = compute.weigh_residual(measured, weights, residual)?;
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
