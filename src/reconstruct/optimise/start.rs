//! Where a run begins: a smooth FDK volume of the views that there are, without what is below air.

use std::sync::Arc;

use super::{OptimiseError, ScanViews};
use crate::compute::Compute;
use crate::compute::cpu::ramp_filter::Window;
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings, Observer, ReconstructError};

/// Smoother than a volume to look at: what the optimisation begins from should not hold the streaks of few views.
const SETTINGS: FdkSettings = FdkSettings { window: Window::Hann, cutoff: 0.7, views_per_call: None };

/// The plan of the starting volume.
///
/// # Errors
/// As [`FdkPlan::without_scratch`].
pub(super) fn plan(geometry: &ScanGeometry, grid: &VolumeGrid) -> Result<FdkPlan, ReconstructError> {
    FdkPlan::without_scratch(geometry, grid, SETTINGS)
}

/// Memory of the starting volume.
#[derive(Debug)]
pub struct Start {
    accumulator: FdkAccumulator,
}

impl Start {
    /// Takes all memory.
    ///
    /// # Errors
    /// [`ReconstructError::Memory`].
    pub(super) fn new(plan: Arc<FdkPlan>) -> Result<Self, ReconstructError> {
        Ok(Self { accumulator: FdkAccumulator::new(plan)? })
    }

    /// The starting volume of `scan`, 1/mm, `[x][y][z]`; not finished where `observer` interrupts. Where views are missing it is
    /// normalised by the share of the arc that is there.
    ///
    /// # Errors
    /// As [`FdkAccumulator::add_view`].
    pub fn make(
        &mut self,
        compute: &dyn Compute,
        scan: &ScanViews<'_>,
        observer: &dyn Observer,
    ) -> Result<&[f32], OptimiseError> {
        let plan = Arc::clone(self.accumulator.plan());
        let (pixels, most) = (plan.detector().pixels(), plan.views_per_call());
        let views = scan.line_integrals.len() / pixels.max(1);
        self.accumulator.reset();
        let mut first = 0;
        while first < views && !observer.interrupts() {
            // As many as go into one call, and are there.
            let run = (first..views.min(first + most)).take_while(|&view| scan.has(view)).count();
            if run > 0 {
                let poses = scan.poses.map(|poses| &poses[first..first + run]);
                let line_integrals = &scan.line_integrals[first * pixels..][..run * pixels];
                self.accumulator.add_views_at(compute, first, poses, line_integrals)?;
            }
            first += run.max(1);
        }
        let fraction = self.accumulator.angular_fraction();
        let complete = self.accumulator.views_added() == views;
        let scale = if complete || fraction <= 0.0 { 1.0 } else { (1.0 / fraction) as f32 };
        for value in self.accumulator.volume_mut() {
            *value = (*value * scale).max(0.0);
        }
        Ok(self.accumulator.volume())
    }

    /// The volume made last.
    #[must_use]
    pub fn volume(&self) -> &[f32] {
        self.accumulator.volume()
    }
}
