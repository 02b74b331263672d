//! The carrier of a device: its memory, and the operations of [`Compute`].

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::cpu::ramp_filter::RampFilter;
use super::super::{Address, Buffer, Compute, ComputeError, Memory, ProjectionWeights, Values, ValuesMut, Workload};
use super::field_operations::FieldRoom;
use super::gaussian_operations::GaussiansRoom;
use super::record_cache::RecordCache;
use super::recorder::Recorder;
use super::{
    CountsRoom, DeviceSlice, DeviceSum, DeviceWeights, ExpertsTable, FilterTable, GaussianRoom, GroupCounts,
    ImageLossSums, Launcher, Pending, Registered, ScanTable, SliceRoom, ViewRecord, VolumeSsimRoom, sart,
    total_variation,
};
use crate::compute::experts::Experts;
use crate::compute::losses::{ImageLoss, VolumeSsimLoss};
use crate::geometry::{Detector, ScanGeometry, VolumeGrid};

/// Carries out the operations on a device, which a [`Launcher`] stands for.
///
/// Buffers lie in the launcher's one arena, which the plan sizes; what an operation needs beside them is taken by the `prepare` methods. Operations are put
/// in order on the device and do not wait for it, but for those that return a value. A ramp filter and the learned prior are uploaded when they are
/// first used, which a daemon's rehearsal does before it is ready.
pub struct CudaCompute {
    pub(super) recorder: Recorder,
    state: Mutex<State>,
}

/// What the operations need beside their buffers.
#[derive(Default)]
pub(super) struct State {
    scans: RecordCache<ViewRecord, (Detector, VolumeGrid)>,
    filters: Vec<(Vec<f32>, FilterTable)>,
    /// `[view][column u]` of a call's weights.
    columns: Option<DeviceSlice<f32>>,
    /// Of operations that return a sum.
    sum: Option<DeviceSum>,
    sum_blocks: usize,
    /// Of values' CRC.
    pub(super) crc: Option<DeviceSlice<u32>>,
    pub(super) image_loss: Option<ImageLossSums>,
    pub(super) image_loss_bytes: usize,
    pub(super) volume_loss: Option<([usize; 3], VolumeSsimRoom)>,
    experts: Option<(Experts, ExpertsTable)>,
    pub(super) gaussians: Option<GaussiansRoom>,
    /// What of a group has still to be asked for Gaussians that were left out.
    pub(super) unsound_asked: Option<(&'static str, GaussianRoom)>,
    /// Settings and pixels of the last loss of views that left its value on the device, and settings of the last of a volume.
    pub(super) image_loss_left: Option<(ImageLoss, usize)>,
    pub(super) volume_loss_left: Option<VolumeSsimLoss>,
    pub(super) field: Option<FieldRoom>,
    pub(super) slices: Option<SliceRoom>,
    pub(super) counts: Option<CountsRoom>,
}

impl std::fmt::Debug for CudaCompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaCompute").field("launcher", &self.recorder.description()).finish_non_exhaustive()
    }
}

impl CudaCompute {
    /// A carrier that launches through `launcher`.
    #[must_use]
    pub fn new(launcher: Box<dyn Launcher>) -> Self {
        Self { recorder: Recorder::new(launcher), state: Mutex::default() }
    }

    /// The table of a scan.
    fn scan(
        &self,
        operation: &'static str,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
    ) -> Result<ScanTable, ComputeError> {
        let (key, records) = ((geometry.detector, *grid), ViewRecord::of(geometry, grid));
        let records = self.state().scans.of(self.launcher(), operation, (geometry, key), records)?;
        ScanTable::over(records, geometry, grid)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn launcher(&self) -> &dyn Launcher {
        &self.recorder
    }

    /// How groups of operations ([`Compute::begin_group`]) were carried out so far.
    #[must_use]
    pub fn groups(&self) -> GroupCounts {
        self.recorder.counts()
    }

    /// Whether groups are carried out operation by operation, to compare.
    pub fn launch_singly(&self, singly: bool) {
        self.recorder.launch_singly(singly);
    }

    /// Why groups are not carried out as one, where the device refused that.
    #[must_use]
    pub fn groups_refused(&self) -> Option<String> {
        self.recorder.refused()
    }
}

/// Bytes of a CRC.
pub(super) const CRC_BYTES: usize = size_of::<u32>();

/// Blocks of the largest launch of this workload that leaves a sum.
fn sum_blocks(workload: &Workload) -> usize {
    let pixels = workload.views_per_call * workload.rows * workload.columns;
    let voxels = workload.voxels.iter().product::<usize>();
    sart::blocks(pixels.max(voxels)).max(total_variation::blocks(workload.voxels)).max(1)
}

impl State {
    /// The sum that an operation leaves.
    pub(super) fn sum(&self, operation: &'static str) -> Result<DeviceSum, ComputeError> {
        self.sum.ok_or(ComputeError::Scratch { operation, needed: DeviceSum::bytes(1), prepared: 0 })
    }

    fn filter(&mut self, launcher: &dyn Launcher, filter: &RampFilter) -> Result<FilterTable, ComputeError> {
        if let Some((_, table)) = self.filters.iter().find(|(response, _)| response == filter.response()) {
            return Ok(*table);
        }
        let table = FilterTable::upload(launcher, filter)?;
        self.filters.push((filter.response().to_vec(), table));
        Ok(table)
    }

    /// The experts' table, uploaded at their first use.
    pub(super) fn experts(&mut self, launcher: &dyn Launcher, experts: &Experts) -> Result<ExpertsTable, ComputeError> {
        if let Some((_, table)) = self.experts.as_ref().filter(|(known, _)| known == experts) {
            return Ok(*table);
        }
        let table = ExpertsTable::upload(launcher, experts)?;
        self.experts = Some((experts.clone(), table));
        Ok(table)
    }
}

impl Memory for CudaCompute {
    fn buffer(&self, _buffer: &'static str, len: usize) -> Result<Buffer, ComputeError> {
        let slice = DeviceSlice::<f32>::allocate(self.launcher(), len)?;
        slice.fill(self.launcher(), 0.0)?;
        Ok(slice.into())
    }

    fn write(&self, from: &[f32], to: ValuesMut<'_>) -> Result<(), ComputeError> {
        to.device("write")?.copy_from(self.launcher(), from)
    }

    fn read(&self, from: Values<'_>, to: &mut [f32]) -> Result<(), ComputeError> {
        from.device("read")?.copy_to(self.launcher(), to)
    }

    fn begin_read<'a>(&'a self, from: Values<'a>, to: Registered<'a>) -> Result<Pending<'a>, ComputeError> {
        to.begin(self.launcher(), from.device("begin_read")?)
    }

    fn copy(&self, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        from.device("copy")?.copy_to_slice(self.launcher(), to.device("copy")?)
    }

    fn fill(&self, value: f32, to: ValuesMut<'_>) -> Result<(), ComputeError> {
        to.device("fill")?.fill(self.launcher(), value)
    }

    fn finish(&self) -> Result<(), ComputeError> {
        self.recorder.synchronize()
    }

    fn address(&self, values: ValuesMut<'_>) -> Option<Address> {
        self.recorder.address_of(values.device("address").ok()?.bytes().start)
    }

    fn copy_len(&self, len: usize) -> usize {
        len
    }
}

impl Compute for CudaCompute {
    fn description(&self) -> String {
        self.recorder.description()
    }

    fn provider(&self) -> String {
        self.recorder.description()
    }

    fn scratch_bytes(&self, workload: &Workload) -> usize {
        RecordCache::<ViewRecord, (Detector, VolumeGrid)>::bytes(workload.views_per_call)
            + workload.views_per_call * workload.columns * size_of::<f32>()
            + DeviceSum::bytes(sum_blocks(workload))
            + Recorder::bytes()
            + CRC_BYTES
    }

    fn prepare(&mut self, workload: &Workload) -> Result<(), ComputeError> {
        self.recorder.prepare()?;
        let (launcher, mut state) = (self.launcher(), self.state());
        if state.scans.views() < workload.views_per_call {
            state.scans = RecordCache::allocate(launcher, workload.views_per_call)?;
        }
        let columns = workload.views_per_call * workload.columns;
        if state.columns.is_none_or(|room| room.len() < columns) {
            state.columns = Some(DeviceSlice::allocate(launcher, columns)?);
        }
        let blocks = sum_blocks(workload);
        if state.sum_blocks < blocks {
            (state.sum, state.sum_blocks) = (Some(DeviceSum::for_blocks(launcher, blocks)?), blocks);
        }
        if state.crc.is_none() {
            state.crc = Some(DeviceSlice::allocate(launcher, 1)?);
        }
        Ok(())
    }

    fn begin_group(&self) -> Result<(), ComputeError> {
        self.recorder.begin();
        Ok(())
    }

    fn end_group(&self) -> Result<(), ComputeError> {
        self.recorder.end()?;
        if self.recorder.is_gathering() {
            return Ok(());
        }
        let asked = self.state().unsound_asked.take();
        asked.map_or(Ok(()), |(operation, room)| self.refuse_unsound(operation, &room))
    }

    fn give_up_group(&self) {
        self.state().unsound_asked = None;
        self.recorder.give_up();
    }

    fn forward_project(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        volume: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "forward_project";
        let scan = self.scan(OPERATION, geometry, grid)?;
        super::forward_project(self.launcher(), &scan, volume.device(OPERATION)?, projections.device(OPERATION)?)
    }

    fn back_project_matched(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        projections: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "back_project_matched";
        let scan = self.scan(OPERATION, geometry, grid)?;
        super::back_project_matched(self.launcher(), &scan, projections.device(OPERATION)?, volume.device(OPERATION)?)
    }

    fn weight_projections(
        &self,
        weights: &ProjectionWeights<'_, Values<'_>>,
        projections: Values<'_>,
        weighted: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "weight_projections";
        let ProjectionWeights { detector, pad, image, columns } = *weights;
        let (needed, room) = (columns.len(), self.state().columns);
        let prepared = room.map_or(0, |room| room.len());
        let bytes = |columns: usize| columns * size_of::<f32>();
        let room = room.and_then(|room| room.part(0..needed));
        let room = room.ok_or(ComputeError::Scratch {
            operation: OPERATION,
            needed: bytes(needed),
            prepared: bytes(prepared),
        })?;
        room.copy_from(self.launcher(), columns)?;
        let weights = DeviceWeights { detector, pad, image: image.device(OPERATION)?, columns: room };
        let (projections, weighted) = (projections.device(OPERATION)?, weighted.device(OPERATION)?);
        super::weight_projections(self.launcher(), &weights, projections, weighted)
    }

    fn filter_rows(&self, filter: &RampFilter, projections: ValuesMut<'_>) -> Result<(), ComputeError> {
        let filter = self.state().filter(self.launcher(), filter)?;
        super::filter_rows(self.launcher(), &filter, projections.device("filter_rows")?)
    }

    fn back_project_fdk(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        filtered: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "back_project_fdk";
        let scan = self.scan(OPERATION, geometry, grid)?;
        super::back_project_fdk(self.launcher(), &scan, filtered.device(OPERATION)?, volume.device(OPERATION)?)
    }
}
