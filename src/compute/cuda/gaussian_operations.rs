//! [`GaussianCompute`] on a device.

#![forbid(unsafe_code)]

use super::super::gaussians::{AdamStep, GaussianArrays, GaussianCompute, GaussianWorkload};
use super::super::{ComputeError, Values, ValuesMut};
use super::gaussian_views::GaussianView;
use super::record_cache::RecordCache;
use super::recorder::Recorder;
use super::{CudaCompute, DeviceGaussians, GaussianRoom, GaussianViews};
use crate::geometry::{ScanGeometry, VolumeGrid};

fn on_device(operation: &'static str, gaussians: &GaussianArrays<Values<'_>>) -> Result<DeviceGaussians, ComputeError> {
    Ok(DeviceGaussians {
        parameters: gaussians.parameters.device(operation)?,
        density_per_mm: gaussians.density_per_mm.device(operation)?,
        len: gaussians.len,
        low_pass_mm: gaussians.low_pass_mm,
    })
}

/// What the operations of Gaussians need beside their buffers.
pub(super) struct GaussiansRoom {
    workload: GaussianWorkload,
    room: GaussianRoom,
    views: RecordCache<GaussianView, ()>,
}

impl CudaCompute {
    fn gaussian_room(&self, operation: &'static str) -> Result<GaussianRoom, ComputeError> {
        let room = self.state().gaussians.as_ref().map(|prepared| prepared.room);
        room.ok_or(ComputeError::Scratch { operation, needed: size_of::<f32>(), prepared: 0 })
    }

    /// Refuses what the last operation had to leave out, as the CPU does, so that no Gaussian is lost in silence; waits for the operation. The way back is given
    /// the same Gaussians and need not ask again.
    pub(super) fn refuse_unsound(&self, operation: &'static str, room: &GaussianRoom) -> Result<(), ComputeError> {
        room.unsound(self.launcher())?.map_or(Ok(()), |index| {
            Err(ComputeError::Value {
                operation,
                parameter: "gaussians",
                index,
                // Which of its parameters it is stays on the device.
                value: f32::NAN,
                requirement: "must have finite parameters that can be worked with",
            })
        })
    }

    /// The same, once the group has ended where there is one.
    fn refuse_unsound_later(&self, operation: &'static str, room: &GaussianRoom) -> Result<(), ComputeError> {
        if !self.recorder.is_gathering() {
            return self.refuse_unsound(operation, room);
        }
        self.state().unsound_asked = Some((operation, *room));
        Ok(())
    }

    /// The views of a scan as Gaussians are seen from them.
    fn gaussian_views(&self, operation: &'static str, geometry: &ScanGeometry) -> Result<GaussianViews, ComputeError> {
        let mut state = self.state();
        let lacks = ComputeError::Scratch { operation, needed: size_of::<GaussianView>(), prepared: 0 };
        let views = &mut state.gaussians.as_mut().ok_or(lacks)?.views;
        let records = views.of(self.launcher(), operation, (geometry, ()), GaussianView::of(geometry))?;
        GaussianViews::over(records, geometry.detector)
    }
}

impl GaussianCompute for CudaCompute {
    fn gaussian_scratch_bytes(&self, workload: &GaussianWorkload) -> usize {
        GaussianRoom::bytes(workload)
            + RecordCache::<GaussianView, ()>::bytes(workload.views_per_call)
            + Recorder::bytes()
    }

    fn prepare_gaussians(&mut self, workload: &GaussianWorkload) -> Result<(), ComputeError> {
        self.recorder.prepare()?;
        let mut state = self.state();
        if state.gaussians.as_ref().is_none_or(|prepared| prepared.workload != *workload) {
            let room = GaussianRoom::allocate(self.launcher(), workload)?;
            let views = RecordCache::allocate(self.launcher(), workload.views_per_call)?;
            state.gaussians = Some(GaussiansRoom { workload: *workload, room, views });
        }
        Ok(())
    }

    fn gaussian_project(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianArrays<Values<'_>>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project";
        let (room, gaussians) = (self.gaussian_room(OPERATION)?, on_device(OPERATION, gaussians)?);
        let views = self.gaussian_views(OPERATION, geometry)?;
        super::gaussian_project(self.launcher(), &views, &gaussians, projections.device(OPERATION)?, &room)?;
        self.refuse_unsound_later(OPERATION, &room)
    }

    fn gaussian_project_backward(
        &self,
        geometry: &ScanGeometry,
        gaussians: &GaussianArrays<Values<'_>>,
        by_projections: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_project_backward";
        let (room, gaussians) = (self.gaussian_room(OPERATION)?, on_device(OPERATION, gaussians)?);
        let views = self.gaussian_views(OPERATION, geometry)?;
        let (by_projections, gradients) = (by_projections.device(OPERATION)?, gradients.device(OPERATION)?);
        super::gaussian_project_backward(self.launcher(), &views, &gaussians, by_projections, gradients, &room)
    }

    fn gaussian_voxelise(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise";
        let (room, gaussians) = (self.gaussian_room(OPERATION)?, on_device(OPERATION, gaussians)?);
        super::gaussian_voxelise(self.launcher(), grid, &gaussians, volume.device(OPERATION)?, &room)?;
        self.refuse_unsound_later(OPERATION, &room)
    }

    fn gaussian_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        gaussians: &GaussianArrays<Values<'_>>,
        by_volume: Values<'_>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "gaussian_voxelise_backward";
        let (room, gaussians) = (self.gaussian_room(OPERATION)?, on_device(OPERATION, gaussians)?);
        let (by_volume, gradients) = (by_volume.device(OPERATION)?, gradients.device(OPERATION)?);
        super::gaussian_voxelise_backward(self.launcher(), grid, &gaussians, by_volume, gradients, &room)
    }

    fn adam_step(
        &self,
        settings: &AdamStep,
        parameters: ValuesMut<'_>,
        gradients: Values<'_>,
        first: ValuesMut<'_>,
        second: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "adam_step";
        let changing = self.recorder.parameters(OPERATION, &super::changing(settings).map(f32::to_bits))?;
        super::adam_step(
            self.launcher(),
            settings,
            changing.floats(),
            parameters.device(OPERATION)?,
            gradients.device(OPERATION)?,
            first.device(OPERATION)?,
            second.device(OPERATION)?,
        )
    }

    fn weigh_density_gradient(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        density_unit_per_mm: f32,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "weigh_density_gradient";
        let gaussians = on_device(OPERATION, gaussians)?;
        super::weigh_density_gradient(self.launcher(), &gaussians, density_unit_per_mm, gradients.device(OPERATION)?)
    }

    fn add_position_norms(
        &self,
        gaussians: &GaussianArrays<Values<'_>>,
        gradients: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "add_position_norms";
        super::add_position_norms(self.launcher(), &on_device(OPERATION, gaussians)?, gradients.device(OPERATION)?)
    }

    fn settle_gaussians(
        &self,
        gaussians: GaussianArrays<ValuesMut<'_>>,
        density_unit_per_mm: f32,
        scales_mm: [f32; 2],
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "settle_gaussians";
        let gaussians = DeviceGaussians {
            parameters: gaussians.parameters.device(OPERATION)?,
            density_per_mm: gaussians.density_per_mm.device(OPERATION)?,
            len: gaussians.len,
            low_pass_mm: gaussians.low_pass_mm,
        };
        super::settle_gaussians(self.launcher(), &gaussians, density_unit_per_mm, scales_mm)
    }
}
