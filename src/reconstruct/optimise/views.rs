//! The measured views of a scan, and the gradient of their loss by a volume.

use std::sync::Arc;

use super::aperture::Aperture;
use super::prior::{shipped, views_mm2};
use super::weights::{is_held_back, weight};
use super::{OptimiseError, OptimisePlan, ScanViews};
use crate::compute::cpu::ramp_filter::{RampFilter, Window};
use crate::compute::losses::{ImageLoss, ImageLossValue};
use crate::compute::total_variation::TotalVariation;
use crate::compute::{Buffer, Left, Operations, Values, ValuesMut};
use crate::geometry::ScanGeometry;
use crate::reconstruct::{Observer, ReconstructError};

use crate::reconstruct::memory::{buffer, zeros};

/// A residual above this many times that of an empty volume is no progress any more. The first steps of Adam, all of full length, may
/// overshoot several times.
const DIVERGED: f64 = 100.0;

/// What a volume's loss came to.
pub(super) enum Judged {
    /// The root of its weighted mean square.
    Residual(f64),
    /// The observer wants an end: there is no gradient.
    Interrupted,
    /// The carrier knows once the group has ended: [`MeasuredViews::judge_left`]. There is a gradient, of whatever worth.
    Later,
    /// The residual is no number, or far above that of an empty volume: there is no gradient.
    Diverged(f64),
}

fn judge(value: &ImageLossValue, residual_of_nothing: f64) -> Judged {
    let residual = value.squares.sqrt();
    if residual.is_finite() && residual <= DIVERGED * residual_of_nothing.max(1e-3) {
        Judged::Residual(residual)
    } else {
        Judged::Diverged(residual)
    }
}

/// Line integrals with their weights, sorted by subset, and the memory to compare with them.
pub(super) struct MeasuredViews {
    plan: Arc<OptimisePlan>,
    /// Poses of each subset's views that are there, as they really were.
    subsets: Vec<ScanGeometry>,
    /// Views that are there.
    views: usize,
    /// In the plan's order, as `weights`; the views of a subset that are there come first in its part.
    measured: Buffer,
    weights: Buffer,
    projections: Buffer,
    by_projections: Buffer,
    /// A view on the host, where the carrier's memory lies elsewhere.
    view_copy: Vec<f32>,
    /// Rays of each subset that are held back.
    rays_held_back: Vec<usize>,
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
    pub(super) fn new(compute: &dyn Operations, plan: Arc<OptimisePlan>) -> Result<Self, ReconstructError> {
        let scan = plan.views() * plan.pixels();
        let subset = plan.views_per_call() * plan.pixels();
        Ok(Self {
            subsets: plan.subsets.clone(),
            views: plan.views(),
            measured: buffer(compute, "optimise line integrals", scan)?,
            weights: buffer(compute, "optimise pixel weights", scan)?,
            projections: buffer(compute, "optimise projections of a subset", subset)?,
            by_projections: buffer(compute, "optimise gradient by the projections", subset)?,
            view_copy: zeros("optimise view on the host", compute.copy_len(plan.pixels()))?,
            rays_held_back: vec![0; plan.subsets.len()],
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
    pub(super) fn load(&mut self, compute: &dyn Operations, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
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
        let subsets = self.plan.subsets.iter().zip(&mut self.subsets).zip(&mut self.rays_held_back);
        for ((planned, subset), rays_held_back) in subsets {
            subset.views.clear();
            *rays_held_back = 0;
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
                if let Some(pixel) = from.iter().position(|value| !value.is_finite()) {
                    let (row, column, value) = (pixel / detector.columns, pixel % detector.columns, from[pixel]);
                    return Err(ReconstructError::NotFinite { view, row, column, value });
                }
                let range = place * pixels..(place + 1) * pixels;
                compute.write(from, self.measured.values_mut().part(range.clone()))?;
                self.weights.values_mut().part(range).make(compute, &mut self.view_copy, |weights| {
                    for (pixel, (&value, w)) in from.iter().zip(weights).enumerate() {
                        self.largest_measured = self.largest_measured.max(value);
                        let ray = (view * pixels + pixel) as u64;
                        *w = if is_held_back(settings.seed, ray, settings.hold_back_one_in) {
                            0.0
                        } else {
                            weight(value, settings.data.photons, settings.data.model_error)
                        };
                        *rays_held_back += usize::from(*w == 0.0);
                        squares += f64::from(*w) * f64::from(value) * f64::from(value);
                    }
                })?;
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
        volume: Values<'_>,
        mut by_volume: ValuesMut<'_>,
        observer: &dyn Observer,
    ) -> Result<Judged, OptimiseError> {
        let Some(subset) = self.subset(turn) else {
            compute.fill(0.0, by_volume)?;
            return Ok(Judged::Residual(0.0));
        };
        let (plan, geometry) = (&self.plan, &self.subsets[subset]);
        let (settings, grid) = (&plan.settings, &plan.grid);
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let part = from..from + count;
        let (measured, weights) = (self.measured.values().part(part.clone()), self.weights.values().part(part));
        let (mut projections, mut by_projections) =
            (self.projections.values_mut().part(0..count), self.by_projections.values_mut().part(0..count));
        if observer.interrupts() {
            return Ok(Judged::Interrupted);
        }
        compute.forward_project(geometry, grid, volume, projections.reborrow())?;
        if let Some(aperture) = &self.aperture {
            aperture.take(compute, geometry.detector, projections.as_values(), by_projections.reborrow())?;
            std::mem::swap(&mut projections, &mut by_projections);
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
        let value = compute.image_loss(
            geometry.detector,
            &loss,
            projections.as_values(),
            measured,
            Some(weights),
            by_projections.reborrow(),
        )?;
        let judged = match value {
            Left::AtHand(value) => judge(&value, self.residual_of_nothing),
            Left::WithCarrier => Judged::Later,
        };
        if let Judged::Diverged(_) = judged {
            return Ok(judged);
        }
        if settings.hold_back_one_in > 0 {
            self.held_back.0 += compute.held_back_squares(projections.as_values(), measured, weights)?;
            self.held_back.1 += self.rays_held_back[subset];
        }
        let (ramp, share) = (&self.ramp, settings.sharpness);
        sharpen(compute, ramp, share, weights, by_projections.reborrow(), projections.reborrow())?;
        if observer.interrupts() {
            return Ok(Judged::Interrupted);
        }
        if let Some(aperture) = &self.aperture {
            aperture.take(compute, geometry.detector, by_projections.as_values(), projections.reborrow())?;
            std::mem::swap(&mut projections, &mut by_projections);
        }
        compute.back_project_matched(geometry, grid, by_projections.as_values(), by_volume.reborrow())?;
        if settings.tv_mm > 0.0 {
            let variation = TotalVariation::on(grid, settings.tv_epsilon_per_mm);
            compute.add_total_variation_gradient(&variation, settings.tv_mm, volume, by_volume.reborrow())?;
        }
        if self.prior_mm > 0.0 {
            compute.add_experts_gradient(shipped(), grid.voxels, self.prior_mm, volume, by_volume)?;
        }
        Ok(if observer.interrupts() { Judged::Interrupted } else { judged })
    }

    /// What became of a [`Judged::Later`].
    pub(super) fn judge_left(&self, compute: &dyn Operations) -> Result<Judged, OptimiseError> {
        Ok(judge(&compute.image_loss_left()?, self.residual_of_nothing))
    }

    /// What the views find in the scan and not in `volume`, as attenuation in 1/mm: their residuals, weighed and ramp-filtered, brought back and taken by
    /// what the views weigh; of the order of an FDK volume of the residuals. `work` is a volume, of use only where there are several subsets.
    pub(super) fn unexplained(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        mut unexplained: ValuesMut<'_>,
        mut work: ValuesMut<'_>,
    ) -> Result<(), OptimiseError> {
        let (plan, mut before, mut begun) = (&self.plan, 0, false);
        for (planned, geometry) in plan.subsets.iter().zip(&self.subsets) {
            let (from, count) = (before * plan.pixels(), geometry.projection_len());
            before += planned.views.len();
            if geometry.views.is_empty() {
                continue;
            }
            let part = from..from + count;
            let (measured, weights) = (self.measured.values().part(part.clone()), self.weights.values().part(part));
            let (mut residuals, mut other) =
                (self.projections.values_mut().part(0..count), self.by_projections.values_mut().part(0..count));
            compute.forward_project(geometry, &plan.grid, volume, residuals.reborrow())?;
            if let Some(aperture) = &self.aperture {
                aperture.take(compute, geometry.detector, residuals.as_values(), other.reborrow())?;
                std::mem::swap(&mut residuals, &mut other);
            }
            compute.weigh_residual(measured, weights, residuals.reborrow())?;
            sharpen(compute, &self.ramp, 1.0, weights, residuals.reborrow(), other)?;
            let part = if begun { work.reborrow() } else { unexplained.reborrow() };
            compute.back_project_matched(geometry, &plan.grid, residuals.as_values(), part)?;
            if begun {
                compute.add_scaled(1.0, work.as_values(), unexplained.reborrow())?;
            }
            begun = true;
        }
        if begun {
            compute.scale(1.0 / self.weight_mm2.max(f32::MIN_POSITIVE), unexplained)?;
        } else {
            compute.fill(0.0, unexplained)?;
        }
        Ok(())
    }

    /// Second derivative of the data's loss along `direction`, by the views of this turn: `d' A' F A d`.
    pub(super) fn curvature(
        &mut self,
        compute: &dyn Operations,
        turn: usize,
        direction: Values<'_>,
    ) -> Result<f64, OptimiseError> {
        let Some(subset) = self.subset(turn) else { return Ok(0.0) };
        let (plan, geometry) = (&self.plan, &self.subsets[subset]);
        let before: usize = plan.subsets[..subset].iter().map(|earlier| earlier.views.len()).sum();
        let (from, count) = (before * plan.pixels(), geometry.projection_len());
        let weights = self.weights.values().part(from..from + count);
        let (mut projections, mut other) =
            (self.projections.values_mut().part(0..count), self.by_projections.values_mut().part(0..count));
        compute.forward_project(geometry, &plan.grid, direction, projections.reborrow())?;
        if let Some(aperture) = &self.aperture {
            aperture.take(compute, geometry.detector, projections.as_values(), other.reborrow())?;
            std::mem::swap(&mut projections, &mut other);
        }
        // The quadratic form is the product of what is weighed by a root each, once filtered and once as it is.
        let mut weighed = other;
        compute.times_root(weights, projections.as_values(), weighed.reborrow())?;
        let unfiltered = compute.dot(weighed.as_values(), weighed.as_values())?;
        let share = f64::from(plan.settings.sharpness);
        let filtered = if share > 0.0 {
            compute.copy(weighed.as_values(), projections.reborrow())?;
            compute.filter_rows(&self.ramp, projections.reborrow())?;
            compute.dot(weighed.as_values(), projections.as_values())?
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
    weights: Values<'_>,
    gradient: ValuesMut<'_>,
    mut work: ValuesMut<'_>,
) -> Result<(), OptimiseError> {
    if share == 0.0 {
        return Ok(());
    }
    compute.whiten(weights, gradient.as_values(), work.reborrow())?;
    compute.filter_rows(ramp, work.reborrow())?;
    Ok(compute.mix_sharpened(share, RAMP_GAIN, weights, work.as_values(), gradient)?)
}
