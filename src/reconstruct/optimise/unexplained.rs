//! What a scan says that a volume does not: for whoever repairs volumes without optimising them.

use std::sync::Arc;

use super::run::floats;
use super::views::MeasuredViews;
use super::{OptimiseError, OptimisePlan, OptimiseSettings, ScanViews};
use crate::compute::Operations;
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::ReconstructError;

/// A scan, and the volume that it does not find explained.
pub struct Unexplained {
    plan: Arc<OptimisePlan>,
    views: MeasuredViews,
    volume: Vec<f32>,
    work: Vec<f32>,
}

impl Unexplained {
    /// Takes all memory.
    ///
    /// # Errors
    /// [`ReconstructError::Setting`], [`ReconstructError::Geometry`], [`ReconstructError::Memory`].
    pub fn new(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: &OptimiseSettings,
    ) -> Result<Self, ReconstructError> {
        let plan = Arc::new(OptimisePlan::new(geometry, grid, settings)?);
        let work = if plan.subsets.len() > 1 { grid.len() } else { 0 };
        Ok(Self {
            views: MeasuredViews::new(Arc::clone(&plan))?,
            volume: floats("unexplained volume", grid.len())?,
            work: floats("unexplained volume of some views", work)?,
            plan,
        })
    }

    /// The plan; a carrier is prepared for its workload.
    #[must_use]
    pub fn plan(&self) -> &OptimisePlan {
        &self.plan
    }

    /// Takes a scan's views.
    ///
    /// # Errors
    /// As [`super::Optimiser::load_views`].
    pub fn load(&mut self, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
        self.views.load(scan)
    }

    /// What the views find in the scan and not in `volume` (1/mm, `[x][y][z]`), in 1/mm: their residuals, ramp-filtered and brought back, of the order of
    /// an FDK volume of the residuals. An optimisation that has come to its end leaves noise and streaks here, and what its prior did not believe.
    ///
    /// # Errors
    /// [`OptimiseError`] of the projectors.
    pub fn of(&mut self, compute: &dyn Operations, volume: &[f32]) -> Result<&[f32], OptimiseError> {
        self.views.unexplained(compute, volume, &mut self.volume, &mut self.work)?;
        Ok(&self.volume)
    }
}
