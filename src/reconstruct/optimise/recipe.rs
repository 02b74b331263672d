//! All of a method that optimises a representation: what is optimised, by which plan, from which start. The command line and the
//! daemon make it by the same constructor, so that the same settings give the same bits.

use std::sync::Arc;

use super::{OptimiseError, OptimisePlan, OptimiseSettings, Optimiser, Start, start};
use crate::compute::{Operations, Workload};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::{FdkPlan, ReconstructError};
use crate::represent::gaussians::GaussianPlan;
use crate::represent::{RepresentError, Representation};

/// What is optimised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// 3D Gaussians.
    Gaussians(GaussianPlan),
}

impl Method {
    /// `gaussians` or `field`, as the command line, settings, status and headers have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gaussians(_) => "gaussians",
        }
    }

    /// Elements at most.
    #[must_use]
    pub fn elements(&self) -> usize {
        match self {
            Self::Gaussians(plan) => plan.limits.capacity,
        }
    }

    fn buffers(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::Gaussians(plan) => plan.buffers(),
        }
    }

    fn scratch_bytes(&self, compute: &dyn Operations, grid: &VolumeGrid) -> usize {
        match self {
            Self::Gaussians(plan) => compute.gaussian_scratch_bytes(&plan.workload(grid)),
        }
    }

    fn build(&self, grid: &VolumeGrid) -> Result<Box<dyn Representation>, RepresentError> {
        match self {
            Self::Gaussians(plan) => Ok(Box::new(plan.build(grid)?)),
        }
    }
}

/// Plan, representation and start.
#[derive(Debug, Clone)]
pub struct Recipe {
    optimise: Arc<OptimisePlan>,
    method: Method,
    start: Arc<FdkPlan>,
}

impl Recipe {
    /// Iterations where neither their number nor a deadline is given.
    pub const USUAL_ITERATIONS: usize = 150;

    /// Plans `method` for a scan.
    ///
    /// # Errors
    /// As [`OptimisePlan::new`], and where the scan has no FDK volume to begin with.
    pub fn new(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: &OptimiseSettings,
        method: Method,
    ) -> Result<Self, ReconstructError> {
        Ok(Self {
            optimise: Arc::new(OptimisePlan::new(geometry, grid, settings)?),
            method,
            start: Arc::new(start::plan(geometry, grid)?),
        })
    }

    /// The plan of the run.
    #[must_use]
    pub fn plan(&self) -> &Arc<OptimisePlan> {
        &self.optimise
    }

    /// What is optimised.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Every buffer and its bytes; the carrier's scratch comes on top.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        let start = self.start.buffers().into_iter().map(|(name, bytes)| (start_name(name), bytes));
        self.optimise.buffers().into_iter().chain(self.method.buffers()).chain(start).collect()
    }

    /// The run's and the start's.
    fn workload(&self) -> Workload {
        let (run, start) = (self.optimise.workload(), self.start.workload());
        Workload {
            columns: run.columns.max(start.columns),
            rows: run.rows.max(start.rows),
            views_per_call: run.views_per_call.max(start.views_per_call),
            voxels: run.voxels,
        }
    }

    /// Bytes of the carrier's scratch.
    #[must_use]
    pub fn scratch_bytes(&self, compute: &dyn Operations) -> usize {
        compute.scratch_bytes(&self.workload())
            + compute.loss_scratch_bytes(&self.optimise.loss_workload())
            + self.method.scratch_bytes(compute, self.optimise.grid())
    }

    /// Makes the carrier ready.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the memory is not to be had.
    pub fn prepare(&self, compute: &mut dyn Operations) -> Result<(), ReconstructError> {
        compute.prepare(&self.workload())?;
        compute.prepare_losses(&self.optimise.loss_workload())?;
        match &self.method {
            Method::Gaussians(plan) => compute.prepare_gaussians(&plan.workload(self.optimise.grid()))?,
        }
        Ok(())
    }

    /// Takes all memory of a run.
    ///
    /// # Errors
    /// [`OptimiseError`] where the memory is not to be had or the representation refuses its plan.
    pub fn optimiser(&self) -> Result<Optimiser, OptimiseError> {
        Ok(Optimiser::new(Arc::clone(&self.optimise), self.method.build(self.optimise.grid())?)?)
    }

    /// Takes all memory of the starting volume.
    ///
    /// # Errors
    /// [`ReconstructError::Memory`].
    pub fn start(&self) -> Result<Start, ReconstructError> {
        Start::new(Arc::clone(&self.start))
    }
}

/// The start's buffers stand in the list beside those of a daemon's own FDK.
fn start_name(name: &'static str) -> &'static str {
    match name {
        "fdk volume" => "start volume",
        "fdk filtered views" => "start filtered views",
        "fdk pixel weights" => "start pixel weights",
        "fdk column weights" => "start column weights",
        "fdk ramp filter" => "start ramp filter",
        "fdk poses" => "start poses",
        other => other,
    }
}
