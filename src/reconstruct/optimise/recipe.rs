//! All of a method that optimises a representation: what is optimised, and by which plan. The command line and the
//! daemon make it by the same constructor, so that the same settings give the same bits.

use std::sync::Arc;

use super::{OptimiseError, OptimisePlan, OptimiseSettings, Optimiser};
use crate::compute::Operations;
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::ReconstructError;
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;
use crate::represent::{RepresentError, Representation};

/// What is optimised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// 3D Gaussians.
    Gaussians(GaussianPlan),
    /// A neural field.
    Field(FieldPlan),
}

impl Method {
    /// `gaussians` or `field`, as the command line, settings, status and headers have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gaussians(_) => "gaussians",
            Self::Field(_) => "field",
        }
    }

    /// Elements at most.
    #[must_use]
    pub fn elements(&self, grid: &VolumeGrid) -> usize {
        match self {
            Self::Gaussians(plan) => plan.limits.capacity,
            Self::Field(plan) => plan.elements(grid),
        }
    }

    fn buffers(&self, grid: &VolumeGrid) -> Vec<(&'static str, usize)> {
        match self {
            Self::Gaussians(plan) => plan.buffers(),
            Self::Field(plan) => plan.buffers(grid),
        }
    }

    fn scratch_bytes(&self, compute: &dyn Operations, grid: &VolumeGrid) -> usize {
        match self {
            Self::Gaussians(plan) => compute.gaussian_scratch_bytes(&plan.workload(grid)),
            Self::Field(plan) => compute.field_scratch_bytes(&plan.workload(grid)),
        }
    }

    fn build(&self, compute: &dyn Operations, grid: &VolumeGrid) -> Result<Box<dyn Representation>, RepresentError> {
        match self {
            Self::Gaussians(plan) => Ok(Box::new(plan.build(compute, grid)?)),
            Self::Field(plan) => Ok(Box::new(plan.build(compute, grid)?)),
        }
    }
}

/// Iterations of a run where none are given: where the volume hardly changes any more (docs/methods.md).
pub const USUAL_ITERATIONS: usize = 100;

/// Plan and representation.
#[derive(Debug, Clone)]
pub struct Recipe {
    optimise: Arc<OptimisePlan>,
    method: Method,
}

impl Recipe {
    /// Plans `method` for a scan.
    ///
    /// # Errors
    /// As [`OptimisePlan::new`].
    pub fn new(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: &OptimiseSettings,
        method: Method,
    ) -> Result<Self, ReconstructError> {
        Ok(Self { optimise: Arc::new(OptimisePlan::new(geometry, grid, settings)?), method })
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
        self.optimise.buffers().into_iter().chain(self.method.buffers(self.optimise.grid())).collect()
    }

    /// Every buffer on the host and its bytes, where the others lie on a device: copies of what is read there, poses.
    #[must_use]
    pub fn host_buffers(&self) -> Vec<(&'static str, usize)> {
        let (grid, plan) = (self.optimise.grid(), &self.optimise);
        let volume = grid.len() * size_of::<f32>();
        let mut buffers = vec![
            ("optimise volume's copy", volume),
            ("optimise a view's copy", plan.workload().columns * plan.workload().rows * size_of::<f32>()),
        ];
        buffers.extend(plan.buffers().into_iter().filter(|(name, _)| *name == "optimise poses"));
        // At the most: a representation's values while they are drawn or adapted.
        buffers.extend(self.method.buffers(grid));
        buffers
    }

    /// Bytes of the carrier's scratch.
    #[must_use]
    pub fn scratch_bytes(&self, compute: &dyn Operations) -> usize {
        compute.scratch_bytes(&self.optimise.workload())
            + compute.loss_scratch_bytes(&self.optimise.loss_workload())
            + compute.experts_scratch_bytes(self.optimise.prior_voxels())
            + self.method.scratch_bytes(compute, self.optimise.grid())
    }

    /// Makes the carrier ready.
    ///
    /// # Errors
    /// [`ReconstructError::Compute`] where the memory is not to be had.
    pub fn prepare(&self, compute: &mut dyn Operations) -> Result<(), ReconstructError> {
        compute.prepare(&self.optimise.workload())?;
        compute.prepare_losses(&self.optimise.loss_workload())?;
        compute.prepare_experts(self.optimise.prior_voxels())?;
        match &self.method {
            Method::Gaussians(plan) => compute.prepare_gaussians(&plan.workload(self.optimise.grid()))?,
            Method::Field(plan) => compute.prepare_field(&plan.workload(self.optimise.grid()))?,
        }
        Ok(())
    }

    /// Takes all memory of a run.
    ///
    /// # Errors
    /// [`OptimiseError`] where the memory is not to be had or the representation refuses its plan.
    pub fn optimiser(&self, compute: &dyn Operations) -> Result<Optimiser, OptimiseError> {
        let representation = self.method.build(compute, self.optimise.grid())?;
        Ok(Optimiser::new(compute, Arc::clone(&self.optimise), representation)?)
    }
}
