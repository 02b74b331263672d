//! The volume while views are added to it.

use std::sync::Arc;

use super::{FdkPlan, weights, widen};
use crate::compute::{Buffer, Compute, ProjectionWeights, Values};
use crate::geometry::{ScanGeometry, ViewPose};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::memory::{buffer, zeros};

/// Adds views to a volume as they come. All memory is allocated by [`FdkAccumulator::new`], nothing afterwards.
#[derive(Debug)]
pub struct FdkAccumulator {
    plan: Arc<FdkPlan>,
    volume: Buffer,
    /// `[views_per_call][row v][column u]`, where the carrier's memory is not the host's.
    arrived: Buffer,
    /// `[views_per_call][row v][wide column u]`.
    filtered: Buffer,
    /// The plan's image, or those of a call's views, where the carrier's memory is not the host's.
    images: Buffer,
    /// Poses of the call.
    call: ScanGeometry,
    /// `[views_per_call][column u]`.
    call_columns: Vec<f32>,
    /// `[views_per_call][row v][column u]` where views differ, else empty.
    call_images: Vec<f32>,
    added: Vec<bool>,
    views_added: usize,
    angle_added_rad: f64,
}

impl FdkAccumulator {
    /// An empty volume for the plan.
    ///
    /// # Errors
    /// [`ReconstructError::Memory`] naming the buffer that does not fit.
    pub fn new(compute: &dyn Compute, plan: Arc<FdkPlan>) -> Result<Self, ReconstructError> {
        let (calls, wide) = (plan.views_per_call, plan.geometry.detector);
        let of_call = calls * plan.detector.pixels();
        let (image, of_calls) = plan.image.as_deref().map_or((&[][..], of_call), |image| (image, 0));
        let mut images = buffer(compute, "fdk pixel weights", compute.copy_len(image.len().max(of_calls)))?;
        if plan.image.is_some() {
            compute.on_carrier(image, &mut images)?;
        }
        Ok(Self {
            volume: buffer(compute, "fdk volume", plan.grid.len())?,
            arrived: buffer(compute, "fdk views as they came", compute.copy_len(of_call))?,
            filtered: buffer(compute, "fdk filtered views", calls * wide.pixels())?,
            images,
            call: ScanGeometry { detector: wide, views: Vec::with_capacity(calls) },
            call_columns: zeros("fdk column weights", calls * plan.detector.columns)?,
            call_images: zeros("fdk pixel weights", of_calls)?,
            added: vec![false; plan.geometry.views.len()],
            views_added: 0,
            angle_added_rad: 0.0,
            plan,
        })
    }

    /// Weights, filters and back-projects one view.
    ///
    /// `line_integrals` is `[row v][column u]`, dimensionless, on the host or where the carrier works; on a device it is not looked at whether they are
    /// finite, as [`crate::compute::counts::CountsCompute::line_integrals`] leaves them. `pose` replaces the planned pose in the back-projection, where the
    /// gantry reports what it really was; weights stay those of the plan, so it must be near the planned one.
    ///
    /// # Errors
    /// [`ReconstructError::View`] for an index unknown or added before, [`ReconstructError::Length`],
    /// [`ReconstructError::NotFinite`], [`ReconstructError::Geometry`] for a broken pose. The volume is unchanged then.
    pub fn add_view<'v>(
        &mut self,
        compute: &dyn Compute,
        view: usize,
        pose: Option<&ViewPose>,
        line_integrals: impl Into<Values<'v>>,
    ) -> Result<(), ReconstructError> {
        let line_integrals = line_integrals.into();
        if let Some(pose) = pose {
            pose.check(view)?;
        }
        self.begin_call(std::iter::once(view), line_integrals)?;
        if let Some(pose) = pose {
            self.call.views[0] = widen(pose, self.plan.pad);
        }
        self.finish_call(compute, std::iter::once(view), line_integrals)
    }

    /// Adds the views `first..first + n`, `n` from the length of `line_integrals` (`[view][row v][column u]`); any number, worked
    /// off [`FdkPlan::views_per_call`] at a time. Same bits as one by one.
    ///
    /// # Errors
    /// As [`FdkAccumulator::add_view`]; groups before the one that failed stay added.
    pub fn add_views(
        &mut self,
        compute: &dyn Compute,
        first: usize,
        line_integrals: &[f32],
    ) -> Result<(), ReconstructError> {
        self.add_views_at(compute, first, None, line_integrals)
    }

    /// As [`FdkAccumulator::add_views`], with the poses that the gantry reported for these views in place of the planned ones.
    ///
    /// # Errors
    /// As [`FdkAccumulator::add_views`].
    pub fn add_views_at(
        &mut self,
        compute: &dyn Compute,
        first: usize,
        poses: Option<&[ViewPose]>,
        line_integrals: &[f32],
    ) -> Result<(), ReconstructError> {
        let pixels = self.plan.detector.pixels();
        for (group, part) in line_integrals.chunks(self.plan.views_per_call * pixels).enumerate() {
            let before = group * self.plan.views_per_call;
            let views = first + before..first + before + part.len().div_ceil(pixels);
            self.begin_call(views.clone(), part.into())?;
            let reported = poses.and_then(|poses| poses.get(before..before + views.len()));
            for (index, (planned, pose)) in self.call.views.iter_mut().zip(reported.unwrap_or(&[])).enumerate() {
                pose.check(views.start + index)?;
                *planned = widen(pose, self.plan.pad);
            }
            self.finish_call(compute, views, part.into())?;
        }
        Ok(())
    }

    /// Checks a call's views and sets up their poses.
    fn begin_call(
        &mut self,
        views: impl ExactSizeIterator<Item = usize>,
        line_integrals: Values<'_>,
    ) -> Result<(), ReconstructError> {
        let (detector, all) = (self.plan.detector, self.plan.geometry.views.len());
        let needed = views.len() * detector.pixels();
        if line_integrals.len() != needed {
            return Err(ReconstructError::Length {
                given: line_integrals.len(),
                needed,
                views: views.len(),
                rows: detector.rows,
                columns: detector.columns,
            });
        }
        self.call.views.clear();
        for (index, view) in views.enumerate() {
            let refuse = |reason| Err(ReconstructError::View { view, views: all, reason });
            if view >= all {
                return refuse("is not in the plan");
            }
            if self.added[view] {
                return refuse("was added before");
            }
            let of_view = index * detector.pixels()..(index + 1) * detector.pixels();
            if let Values::Host(image) = line_integrals.part(of_view)
                && !all_finite(image)
            {
                let at = image.iter().position(|x| !x.is_finite()).unwrap_or(0);
                let (row, column) = (at / detector.columns, at % detector.columns);
                return Err(ReconstructError::NotFinite { view, row, column, value: image[at] });
            }
            self.call.views.push(self.plan.geometry.views[view]);
            let columns = detector.columns;
            self.call_columns[index * columns..][..columns]
                .copy_from_slice(&self.plan.column_weights[view * columns..][..columns]);
            if self.plan.image.is_none() {
                let narrow = widen_back(&self.plan.geometry.views[view], self.plan.pad);
                weights::fill_image(
                    detector,
                    &narrow,
                    &mut self.call_images[index * detector.pixels()..][..detector.pixels()],
                );
            }
        }
        Ok(())
    }

    /// Carries the call out.
    fn finish_call(
        &mut self,
        compute: &dyn Compute,
        views: impl ExactSizeIterator<Item = usize>,
        line_integrals: Values<'_>,
    ) -> Result<(), ReconstructError> {
        let plan = &self.plan;
        let (detector, count) = (plan.detector, self.call.views.len());
        let image = match &plan.image {
            Some(image) if self.images.is_empty() => image.into(),
            Some(_) => self.images.values(),
            None => compute.on_carrier(&self.call_images[..count * detector.pixels()], &mut self.images)?,
        };
        let weights = ProjectionWeights {
            detector,
            pad: plan.pad,
            image,
            columns: &self.call_columns[..count * detector.columns],
        };
        let mut filtered = self.filtered.values_mut().part(0..count * plan.geometry.detector.pixels());
        let arrived = match line_integrals {
            Values::Host(values) => compute.on_carrier(values, &mut self.arrived)?,
            Values::Device(..) => line_integrals,
        };
        compute.weight_projections(&weights, arrived, filtered.reborrow())?;
        compute.filter_rows(&plan.filter, filtered.reborrow())?;
        compute.back_project_fdk(&self.call, &plan.grid, filtered.as_values(), self.volume.values_mut())?;
        for view in views {
            self.added[view] = true;
            self.views_added += 1;
            self.angle_added_rad += plan.coverage.angular_weights_rad[view];
        }
        Ok(())
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Arc<FdkPlan> {
        &self.plan
    }

    /// The volume so far, `[x][y][z]`, 1/mm, where the carrier works on it: the final one once all views are added.
    #[must_use]
    pub fn volume(&self) -> Values<'_> {
        self.volume.values()
    }

    /// Gives up the accumulator for its volume.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the device does not give it back.
    pub fn into_volume(self, compute: &dyn Compute) -> Result<Vec<f32>, ReconstructError> {
        Ok(compute.take(self.volume)?)
    }

    /// Views added since the last [`FdkAccumulator::reset`].
    #[must_use]
    pub fn views_added(&self) -> usize {
        self.views_added
    }

    /// Whether the view was added.
    #[must_use]
    pub fn has_view(&self, view: usize) -> bool {
        self.added.get(view).copied().unwrap_or(false)
    }

    /// Share of the arc in the volume, 0 to 1. A preview divided by it has about the right scale before all views are in; only
    /// the direction-dependent part of the missing views is then missing.
    #[must_use]
    pub fn angular_fraction(&self) -> f64 {
        let whole: f64 = self.plan.coverage.angular_weights_rad.iter().sum();
        if whole > 0.0 { (self.angle_added_rad / whole).min(1.0) } else { 0.0 }
    }

    /// Empties the volume for the next scan of the same plan.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the device refuses.
    pub fn reset(&mut self, compute: &dyn Compute) -> Result<(), ReconstructError> {
        compute.fill(0.0, self.volume.values_mut())?;
        self.added.fill(false);
        self.views_added = 0;
        self.angle_added_rad = 0.0;
        Ok(())
    }
}

/// Whether no value is infinite or NaN: then, and only then, all of them times zero add up to zero.
fn all_finite(values: &[f32]) -> bool {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let mut groups = values.chunks_exact(LANES);
    for group in &mut groups {
        for (sum, value) in sums.iter_mut().zip(group) {
            *sum += value * 0.0;
        }
    }
    sums.iter().all(|&sum| sum == 0.0) && groups.remainder().iter().all(|x| x.is_finite())
}

/// The pose before [`widen`].
fn widen_back(pose: &ViewPose, pad: [usize; 2]) -> ViewPose {
    ViewPose { detector_origin_mm: pose.detector_origin_mm + pad[0] as f64 * pose.column_step_mm, ..*pose }
}

/// Reconstructs a whole scan held in memory; `projections` is `[view][row v][column u]`. Returns the volume, `[x][y][z]`, 1/mm.
///
/// # Errors
/// See [`FdkAccumulator::add_view`] and [`FdkAccumulator::new`].
pub fn reconstruct(
    compute: &dyn Compute,
    plan: Arc<FdkPlan>,
    projections: &[f32],
) -> Result<Vec<f32>, ReconstructError> {
    let mut accumulator = FdkAccumulator::new(compute, plan)?;
    accumulator.add_views(compute, 0, projections)?;
    accumulator.into_volume(compute)
}
