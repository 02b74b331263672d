//! What a scan says that a volume does not: for whoever repairs volumes without optimising them.

use std::sync::Arc;

use super::views::MeasuredViews;
use super::{OptimiseError, OptimisePlan, OptimiseSettings, ScanViews};
use crate::compute::{Buffer, Operations};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::memory::{buffer, zeros};

/// A scan, and the volume that it does not find explained.
pub struct Unexplained {
    views: MeasuredViews,
    volume: Buffer,
    work: Buffer,
    /// The volume looked at, where the carrier's memory is not the host's, and what is found on the host.
    looked_at: Buffer,
    copy: Vec<f32>,
}

impl Unexplained {
    /// Takes all memory, and makes `compute` ready.
    ///
    /// # Errors
    /// [`ReconstructError::Setting`], [`ReconstructError::Geometry`], [`ReconstructError::Memory`], [`ReconstructError::Compute`].
    pub fn new(
        compute: &mut dyn Operations,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: &OptimiseSettings,
    ) -> Result<Self, ReconstructError> {
        let plan = Arc::new(OptimisePlan::new(geometry, grid, settings)?);
        compute.prepare(&plan.workload())?;
        let work = if plan.subsets.len() > 1 { grid.len() } else { 0 };
        Ok(Self {
            volume: buffer(compute, "unexplained volume", grid.len())?,
            work: buffer(compute, "unexplained volume of some views", work)?,
            looked_at: buffer(compute, "volume looked at", compute.copy_len(grid.len()))?,
            copy: zeros("unexplained volume on the host", compute.copy_len(grid.len()))?,
            views: MeasuredViews::new(compute, plan)?,
        })
    }

    /// Takes a scan's views.
    ///
    /// # Errors
    /// As [`super::Optimiser::load_views`].
    pub fn load(&mut self, compute: &dyn Operations, scan: &ScanViews<'_>) -> Result<(), ReconstructError> {
        self.views.load(compute, scan)
    }

    /// What the views find in the scan and not in `volume` (1/mm, `[x][y][z]`), in 1/mm: their residuals, ramp-filtered and brought back, of the order of
    /// an FDK volume of the residuals. An optimisation that has come to its end leaves noise and streaks here, and what its prior did not believe.
    ///
    /// # Errors
    /// [`OptimiseError`] of the projectors.
    pub fn of(&mut self, compute: &dyn Operations, volume: &[f32]) -> Result<&[f32], OptimiseError> {
        let volume = compute.on_carrier(volume, &mut self.looked_at)?;
        self.views.unexplained(compute, volume, self.volume.values_mut(), self.work.values_mut())?;
        Ok(compute.on_host(self.volume.values(), &mut self.copy)?)
    }
}
