//! The operations on the CPU: all cores (an own rayon pool), SIMD chosen at run time, a file an operation.

mod adam_step;
mod back_project_fdk;
mod back_project_matched;
mod elements;
mod experts;
mod field_lanes;
mod field_lines;
mod field_network;
mod field_operations;
mod field_product;
mod field_project;
mod field_project_backward;
mod field_rays;
mod field_rows;
mod field_tables;
#[cfg(test)]
mod field_tests;
mod field_voxelise;
mod field_voxelise_backward;
mod filter_rows;
mod forward_project;
mod gaussian_bins;
mod gaussian_kernel;
mod gaussian_lanes;
mod gaussian_operations;
mod gaussian_project;
mod gaussian_project_backward;
mod gaussian_shape;
mod gaussian_step;
mod gaussian_view;
mod gaussian_voxel;
mod gaussian_voxelise;
mod gaussian_voxelise_backward;
#[cfg(test)]
mod gaussian_tests;
mod joseph;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod line_integrals;
mod loss_image;
mod loss_operations;
mod loss_volume;
mod loss_window;
#[cfg(test)]
mod loss_tests;
mod minus_ln;
pub mod ramp_filter;
mod rays;
mod sart;
mod scratch;
mod simd;
mod slices;
mod take_aperture;
mod total_variation;
mod weight_projections;

pub use simd::SimdLevel;

use std::ops::RangeInclusive;

use rayon::prelude::*;
use scratch::{Need, Scratch};

use super::{Compute, ComputeError, ProjectionWeights, Values, ValuesMut, Workload};
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Carries out the operations on the CPU.
///
/// Its threads are its own: [`CpuCompute::install`] runs a caller's loop inside them, where operations start without a
/// hand-over between threads (and so without the block that rayon's queue allocates now and then). Operations called from any
/// other thread work as well. One carrier does one operation at a time.
#[derive(Debug)]
pub struct CpuCompute {
    pool: rayon::ThreadPool,
    simd: SimdLevel,
    scratch: Scratch,
    gaussian_scratch: Scratch,
    loss_scratch: Scratch,
    field_scratch: Scratch,
    experts_scratch: Scratch,
}

impl CpuCompute {
    /// A carrier with `threads` threads (0: one for each processor this process may use) and the fastest SIMD level there is.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, ComputeError> {
        Self::with_simd(threads, SimdLevel::detect())
    }

    /// As [`CpuCompute::new`] with a given SIMD level; one that the processor lacks is refused.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the level is not there or the threads cannot be started.
    pub fn with_simd(threads: usize, simd: SimdLevel) -> Result<Self, ComputeError> {
        let device = |reason: String| ComputeError::Device { device: "cpu".into(), reason };
        let best = SimdLevel::detect();
        if simd > best {
            return Err(device(format!("SIMD level {simd} was asked for, but this processor offers {best}")));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|error| device(format!("cannot start {threads} threads: {error}")))?;
        // A thread takes memory of its own when it starts: that must not happen in an operation.
        pool.broadcast(|_| ());
        let threads = pool.current_num_threads();
        let [scratch, gaussian_scratch, loss_scratch, field_scratch, experts_scratch] =
            std::array::from_fn(|_| Scratch::new(threads));
        Ok(Self { pool, simd, scratch, gaussian_scratch, loss_scratch, field_scratch, experts_scratch })
    }

    /// The SIMD level in use.
    #[must_use]
    pub fn simd(&self) -> SimdLevel {
        self.simd
    }

    /// Threads in the pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on one of the carrier's own threads and returns what it returns.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    fn need(&self, workload: &Workload) -> Need {
        Need::default()
            .either(forward_project::need(workload))
            .either(back_project_matched::need(workload))
            .either(filter_rows::need(workload))
            .either(back_project_fdk::need(workload))
    }
}

impl Compute for CpuCompute {
    fn description(&self) -> String {
        format!("CPU ({}), {}, {} threads", processor(), self.simd, self.threads())
    }

    fn within(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(work);
    }

    fn each_thread(&self, work: &(dyn Fn() + Sync)) {
        self.pool.broadcast(|_| work());
    }

    fn provider(&self) -> String {
        format!("{} x{}", self.simd, self.threads())
    }

    fn scratch_bytes(&self, workload: &Workload) -> usize {
        self.need(workload).bytes(self.threads())
    }

    fn prepare(&mut self, workload: &Workload) -> Result<(), ComputeError> {
        self.scratch.prepare(self.need(workload))
    }

    fn forward_project(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        volume: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "forward_project";
        self.forward_project(geometry, grid, volume.host(OPERATION)?, projections.host(OPERATION)?)
    }

    fn back_project_matched(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        projections: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "back_project_matched";
        self.back_project_matched(geometry, grid, projections.host(OPERATION)?, volume.host(OPERATION)?)
    }

    fn weight_projections(
        &self,
        weights: &ProjectionWeights<'_, Values<'_>>,
        projections: Values<'_>,
        weighted: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "weight_projections";
        let ProjectionWeights { detector, pad, image, columns } = *weights;
        let weights = ProjectionWeights { detector, pad, image: image.host(OPERATION)?, columns };
        self.weight_projections(&weights, projections.host(OPERATION)?, weighted.host(OPERATION)?)
    }

    fn filter_rows(&self, filter: &ramp_filter::RampFilter, projections: ValuesMut<'_>) -> Result<(), ComputeError> {
        self.filter_rows(filter, projections.host("filter_rows")?)
    }

    fn back_project_fdk(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        filtered: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        const OPERATION: &str = "back_project_fdk";
        self.back_project_fdk(geometry, grid, filtered.host(OPERATION)?, volume.host(OPERATION)?)
    }
}

/// The operations on slices.
impl CpuCompute {
    /// See [`Compute::forward_project`].
    ///
    /// # Errors
    /// As there.
    pub fn forward_project(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        volume: &[f32],
        projections: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("forward_project", "volume", volume.len(), grid.len())?;
        check_len("forward_project", "projections", projections.len(), geometry.projection_len())?;
        self.pool
            .install(|| forward_project::forward_project(self.simd, &self.scratch, geometry, grid, volume, projections))
    }

    /// See [`Compute::back_project_matched`].
    ///
    /// # Errors
    /// As there.
    pub fn back_project_matched(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        projections: &[f32],
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("back_project_matched", "projections", projections.len(), geometry.projection_len())?;
        check_len("back_project_matched", "volume", volume.len(), grid.len())?;
        self.pool.install(|| {
            back_project_matched::back_project_matched(self.simd, &self.scratch, geometry, grid, projections, volume)
        })
    }

    /// See [`Compute::weight_projections`].
    ///
    /// # Errors
    /// As there.
    pub fn weight_projections(
        &self,
        weights: &ProjectionWeights<'_>,
        projections: &[f32],
        weighted: &mut [f32],
    ) -> Result<(), ComputeError> {
        self.pool.install(|| weight_projections::weight_projections(weights, projections, weighted))
    }

    /// See [`Compute::filter_rows`].
    ///
    /// # Errors
    /// As there.
    pub fn filter_rows(&self, filter: &ramp_filter::RampFilter, projections: &mut [f32]) -> Result<(), ComputeError> {
        self.pool.install(|| filter_rows::filter_rows(&self.scratch, filter, projections))
    }

    /// See [`Compute::back_project_fdk`].
    ///
    /// # Errors
    /// As there.
    pub fn back_project_fdk(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        filtered: &[f32],
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        check_len("back_project_fdk", "filtered", filtered.len(), geometry.projection_len())?;
        check_len("back_project_fdk", "volume", volume.len(), grid.len())?;
        self.pool
            .install(|| back_project_fdk::back_project_fdk(self.simd, &self.scratch, geometry, grid, filtered, volume))
    }
}

/// Refuses a buffer of the wrong length.
pub(super) fn check_len(
    operation: &'static str,
    buffer: &'static str,
    given: usize,
    needed: usize,
) -> Result<(), ComputeError> {
    if given == needed { Ok(()) } else { Err(ComputeError::Shape { operation, buffer, given, needed }) }
}

/// Refuses values outside `allowed` (and those that are not a number); the first is named.
pub(super) fn check_values(
    operation: &'static str,
    parameter: &'static str,
    values: &[f32],
    allowed: RangeInclusive<f32>,
) -> Result<(), ComputeError> {
    let (low, high) = (*allowed.start(), *allowed.end());
    // Without a branch a value, so that the compiler uses whole registers.
    let all = |values: &[f32]| values.iter().fold(true, |all, &value| all & (value >= low) & (value <= high));
    if values.par_chunks(1 << 16).all(all) {
        return Ok(());
    }
    let index = values.iter().position(|value| !allowed.contains(value)).unwrap_or(0);
    let requirement =
        if low < 0.0 { "must be finite and of a sensible size" } else { "must be finite and not negative" };
    Err(ComputeError::Value { operation, parameter, index, value: values[index], requirement })
}

/// The processor's name as Linux tells it.
fn processor() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
