//! The measured views of a scan, and the gradient of their loss by a volume.

use std::sync::Arc;

use super::aperture::Aperture;
use super::prior::{shipped, views_mm2};
use super::weights::{is_held_back, weight};
use super::{OptimiseError, OptimisePlan, ScanViews};
use crate::compute::Operations;
use crate::compute::cpu::ramp_filter::{RampFilter, Window};
use crate::compute::losses::ImageLoss;
use crate::compute::total_variation::TotalVariation;
use crate::geometry::ScanGeometry;
use crate::reconstruct::{Observer, ReconstructError};

use super::run::floats;

/// A residual above this many times that of an empty volume is no progress any more. The first steps of Adam, all of full length, may
/// overshoot several times.
const DIVERGED: f64 = 100.0;

/// What a volume's loss came to.
pub(super) enum Judged {
    /// The root of its weighted mean square.
    Residual(f64),
    /// The observer wants an end: there is no gradient.
    Interrupted,
    /// The residual is no number, or far above that of an empty volume: there is no gradient.
    Diverged(f64),
}

/// Line integrals with their weights, sorted by subset, and the memory to compare with them.
pub(super) struct MeasuredViews {
    plan: Arc<OptimisePlan>,
    /// Poses of each subset's views that are there, as they really were.
    subsets: Vec<ScanGeometry>,
    /// Views that are there.
    views: usize,
    /// In the plan's order, as `weights`; the views of a subset that are there come first in its part.
    measured: Vec<f32>,
    weights: Vec<f32>,
    projections: Vec<f32>,
    by_projections: Vec<f32>,
    ramp: RampFilter,
    aperture: Option<Aperture>,
    largest_measured: f32,
    /// What the views that are there weigh in a voxel, mm^2.
    pub(super) weight_mm2: f32,
    /// Factor of the learned prior's gradient.
    prior_mm: f32,
    /// Root of the weighted mean square of the line integrals: the residual of an empty volume.
    residual_of_nothing: f64,
    /// Sum of squares and number of the rays held back, since it was last taken.
    pub(super) held_back: (f64, usize),
}

impl MeasuredViews {
    pub(super) fn new(plan: Arc<OptimisePlan>) -> Result<Self, ReconstructError> {
        let scan = plan.views() * plan.pixels();
        let subset = plan.views_per_call() * plan.pixels();
        Ok(Self {
            subsets: plan.subsets.clone(),
            views: plan.views(),
            measured: floats("optimise line integrals", scan)?,
            weights: floats("optimise pixel weights", scan)?,
            projections: floats("optimise projections of a subset", subset)?,
            by_projections: floats("optimise gradient by the projections", subset)?,
            ramp: RampFilter::new(plan.subsets[0].detector.columns, Window::RamLak, 1.0),
            aperture: (plan.settings.aperture > 0.0)
                .then(|| Aperture::of(&plan.subsets[0], &plan.grid).times(plan.settings.aperture)),
            largest_measured: 0.0,
            weight_mm2: 0.0,
            prior_mm: 0.0,
            residual_of_nothing: 0.0,
            held_back: (0.0, 0),
            plan,
        })
    }

    /// As [`Optimiser::load`], of the views that there are, at the poses that they had.
    ///
    /// # Errors
    /// As [`Optimiser::load`], and [`ReconstructError::Geometry`] for a broken pose.
    pub(super) fn load(&mut self, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
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
        let (mut squares, mut before, mut weight_mm2) = (0.0, 0, 0.0);
        for (planned, subset) in self.plan.subsets.iter().zip(&mut self.subsets) {
            subset.views.clear();
            for (&pose, &view) in planned.views.iter().zip(&self.plan.order[before..]) {
                if !scan.has(view) {
                    continue;
                }
                let place = before + subset.views.len();
                let pose = scan.pose(view).unwrap_or(pose);
                pose.check(view)?;
                weight_mm2 += views_mm2(&pose, &self.plan.grid);
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
                    self.largest_measured = self.largest_measured.max(value);
                    let ray = (view * pixels + pixel) as u64;
                    *w = if is_held_back(settings.seed, ray, settings.hold_back_one_in) {
                        0.0
                    } else {
                        weight(value, settings.data.photons, settings.data.model_error)
                    };
                    squares += f64::from(*w) * f64::from(value) * f64::from(value);
                }
            }
            before += planned.views.len();
            self.views += subset.views.len();
        }
        self.weight_mm2 = weight_mm2 as f32;
        self.prior_mm = settings.prior * (weight_mm2 * f64::from(shipped().unit_per_mm())) as f32;
        self.residual_of_nothing = (squares / (self.views * pixels).max(1) as f64).sqrt();
        Ok(())
    }

    /// Root of the weighted mean square of the line integrals.
    pub(super) fn residual_of_nothing(&self) -> f64 {
        self.residual_of_nothing
    }

    /// The subset of this turn, or the next that has views.
    fn subset(&self, turn: usize) -> Option<usize> {
        (0..self.subsets.len())
            .map(|further| (turn + further) % self.subsets.len())
            .find(|&subset| !self.subsets[subset].views.is_empty())
    }

    /// Judges `volume` by the views of this turn and writes the gradient of the whole loss, priors included, to `by_volume`.
    pub(super) fn gradient(
        &mut self,
        compute: &dyn Operations,
        turn: usize,
        volume: &[f32],
        by_volume: &mut [f32],
        observer: &dyn Observer,
    ) -> Result<Judged, OptimiseError> {
        let Some(subset) = self.subset(turn) else {
            by_volume.fill(0.0);
            return Ok(Judged::Residual(0.0));
        };
        let (plan, geometry) = (&self.plan, &self.subsets[subset]);
        let (settings, grid) = (&plan.settings, &plan.grid);
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let (measured, weights) = (&self.measured[from..][..count], &self.weights[from..][..count]);
        let (projections, by_projections) = (&mut self.projections[..count], &mut self.by_projections[..count]);
        if observer.interrupts() {
            return Ok(Judged::Interrupted);
        }
        compute.forward_project(geometry, grid, volume, projections)?;
        let aperture = &self.aperture;
        if let Some(aperture) = aperture {
            aperture.apply(geometry.detector, projections, by_projections);
        }
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
        if !(residual.is_finite() && residual <= DIVERGED * self.residual_of_nothing.max(1e-3)) {
            return Ok(Judged::Diverged(residual));
        }
        if settings.hold_back_one_in > 0 {
            for ((p, m), w) in projections.iter().zip(measured).zip(weights) {
                if *w == 0.0 {
                    self.held_back.0 += f64::from(p - m).powi(2);
                    self.held_back.1 += 1;
                }
            }
        }
        sharpen(compute, &self.ramp, settings.sharpness, weights, by_projections, projections)?;
        if observer.interrupts() {
            return Ok(Judged::Interrupted);
        }
        if let Some(aperture) = aperture {
            aperture.apply(geometry.detector, by_projections, projections);
        }
        compute.back_project_matched(geometry, grid, by_projections, by_volume)?;
        if settings.tv_mm > 0.0 {
            let variation = TotalVariation::on(grid, settings.tv_epsilon_per_mm);
            compute.add_total_variation_gradient(&variation, settings.tv_mm, volume, by_volume)?;
        }
        if self.prior_mm > 0.0 {
            compute.add_experts_gradient(shipped(), grid.voxels, self.prior_mm, volume, by_volume)?;
        }
        Ok(if observer.interrupts() { Judged::Interrupted } else { Judged::Residual(residual) })
    }

    /// What the views find in the scan and not in `volume`, as attenuation in 1/mm: their residuals, weighed and ramp-filtered, brought back and taken by
    /// what the views weigh; of the order of an FDK volume of the residuals. `work` is a volume, of use only where there are several subsets.
    pub(super) fn unexplained(
        &mut self,
        compute: &dyn Operations,
        volume: &[f32],
        unexplained: &mut [f32],
        work: &mut [f32],
    ) -> Result<(), OptimiseError> {
        let (plan, mut before, mut begun) = (&self.plan, 0, false);
        for (planned, geometry) in plan.subsets.iter().zip(&self.subsets) {
            let (from, count) = (before * plan.pixels(), geometry.projection_len());
            before += planned.views.len();
            if geometry.views.is_empty() {
                continue;
            }
            let (measured, weights) = (&self.measured[from..][..count], &self.weights[from..][..count]);
            let (projections, residuals) = (&mut self.projections[..count], &mut self.by_projections[..count]);
            compute.forward_project(geometry, &plan.grid, volume, projections)?;
            if let Some(aperture) = &self.aperture {
                aperture.apply(geometry.detector, projections, residuals);
            }
            for (((residual, m), p), w) in residuals.iter_mut().zip(measured).zip(&*projections).zip(weights) {
                *residual = w * (m - p);
            }
            sharpen(compute, &self.ramp, 1.0, weights, residuals, projections)?;
            let part = if begun { &mut *work } else { &mut *unexplained };
            compute.back_project_matched(geometry, &plan.grid, residuals, part)?;
            if begun {
                unexplained.iter_mut().zip(&*work).for_each(|(sum, part)| *sum += part);
            }
            begun = true;
        }
        if begun {
            let share = 1.0 / self.weight_mm2.max(f32::MIN_POSITIVE);
            unexplained.iter_mut().for_each(|value| *value *= share);
        } else {
            unexplained.fill(0.0);
        }
        Ok(())
    }

    /// Second derivative of the data's loss along `direction`, by the views of this turn: `d' A' F A d`.
    pub(super) fn curvature(
        &mut self,
        compute: &dyn Operations,
        turn: usize,
        direction: &[f32],
    ) -> Result<f64, OptimiseError> {
        let Some(subset) = self.subset(turn) else { return Ok(0.0) };
        let (plan, geometry) = (&self.plan, &self.subsets[subset]);
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let weights = &self.weights[from..][..count];
        let (projections, work) = (&mut self.projections[..count], &mut self.by_projections[..count]);
        compute.forward_project(geometry, &plan.grid, direction, projections)?;
        if let Some(aperture) = &self.aperture {
            aperture.apply(geometry.detector, projections, work);
        }
        // Once weighed and filtered, once as it is: their product is the quadratic form.
        for ((weighed, p), w) in work.iter_mut().zip(&*projections).zip(weights) {
            *weighed = w * p;
        }
        // The filter's work space is the projections', so the form is taken with the square root of what was filtered.
        let unfiltered: f64 = work.iter().zip(&*projections).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let share = f64::from(plan.settings.sharpness);
        let filtered = if share > 0.0 {
            for ((p, weighed), w) in projections.iter_mut().zip(&mut *work).zip(weights) {
                let root = w.sqrt();
                *weighed = root * *p;
                *p = *weighed;
            }
            compute.filter_rows(&self.ramp, projections)?;
            work.iter().zip(&*projections).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        } else {
            0.0
        };
        let scale = self.views as f64 / geometry.views.len() as f64;
        Ok(scale * ((1.0 - share) * unfiltered + share * f64::from(RAMP_GAIN) * filtered))
    }
}

/// Brings the ramp's largest response, a half, to 2: with that, what views see of a point sums up to about what it is.
const RAMP_GAIN: f32 = 4.0;

/// `g = (1 - share) g + share * gain * sqrt(w) F(g / sqrt(w))`: the gradient of a loss that counts a residual by its frequency along the rows.
/// Back-projection alone brings low frequencies back many times as strong as high ones, which is why plain descent takes hundreds of
/// iterations; the ramp evens this out (it is what makes FDK's one step a good one). Symmetric, so there is such a loss.
fn sharpen(
    compute: &dyn Operations,
    ramp: &RampFilter,
    share: f32,
    weights: &[f32],
    gradient: &mut [f32],
    work: &mut [f32],
) -> Result<(), OptimiseError> {
    if share == 0.0 {
        return Ok(());
    }
    for ((work, g), w) in work.iter_mut().zip(&*gradient).zip(weights) {
        // Rays held back have no gradient.
        *work = if *w > 0.0 { g / w.sqrt() } else { 0.0 };
    }
    compute.filter_rows(ramp, work)?;
    for ((g, f), w) in gradient.iter_mut().zip(&*work).zip(weights) {
        *g = (1.0 - share) * *g + share * RAMP_GAIN * w.sqrt() * f;
    }
    Ok(())
}
