//! The operations: what reconstruction asks of a processor. One trait ([`Operations`], in parts), carried out by [`cpu`] and, under the same names, by [`cuda`];
//! [`device`] chooses. Knows nothing of frames, schedules or files.
//!
//! Buffers lie where operations work on them ([`Memory`], [`Buffer`]): a loop takes its own from its carrier and never asks where that is. What has to
//! be seen on the host is read there.
//!
//! Orders of memory are those of [`crate::geometry`]: volumes `[x][y][z]`, projections `[view][row v][column u]`, float32.
//! Every operation gives bit-identical results for any number of threads.

mod buffer;
pub mod device;
pub mod cpu;
pub mod counts;
pub mod cuda;
pub mod elements;
pub mod experts;
pub mod field;
pub mod gaussians;
pub mod sart;
pub mod total_variation;
pub mod losses;
pub mod slices;

pub use buffer::{Address, Buffer, Values, ValuesMut};

use cuda::{Pending, Registered};

use crate::error::{Classed, ErrorClass};
use crate::geometry::{Detector, ScanGeometry, VolumeGrid};

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A buffer has another length than geometry and grid demand.
    #[error("{operation}: buffer `{buffer}` holds {given} values, but the geometry needs {needed}")]
    Shape {
        /// The operation's name.
        operation: &'static str,
        /// Which argument.
        buffer: &'static str,
        /// Its length.
        given: usize,
        /// The length needed.
        needed: usize,
    },
    /// The workload is larger than what was prepared (see [`Compute::prepare`]).
    #[error(
        "{operation}: needs {needed} bytes of scratch, but {prepared} were prepared; prepare the larger workload before the start"
    )]
    Scratch {
        /// The operation's name.
        operation: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        prepared: usize,
    },
    /// There is no memory for a buffer.
    #[error("no memory for {buffer}: {bytes} bytes; use a smaller grid, or fewer views a call")]
    Memory {
        /// Which.
        buffer: &'static str,
        /// Its bytes.
        bytes: usize,
    },
    /// A value that no result can come from.
    #[error("{operation}: `{parameter}` of element {index} is {value}; it {requirement}")]
    Value {
        /// The operation's name.
        operation: &'static str,
        /// Which argument.
        parameter: &'static str,
        /// Position in that argument.
        index: usize,
        /// What stands there.
        value: f32,
        /// What it must satisfy.
        requirement: &'static str,
    },
    /// A setting that cannot work.
    #[error("{of}: {setting} = {value}: {requirement}")]
    Setting {
        /// What is being set up.
        of: &'static str,
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What it must satisfy.
        requirement: &'static str,
    },
    /// The device asked for is not there or cannot do this.
    #[error("device {device}: {reason}")]
    Device {
        /// `cpu`, `cuda`, ...
        device: String,
        /// Why, and what to change.
        reason: String,
    },
}

impl Classed for ComputeError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// Largest problem that a carrier must be ready for; its scratch is allocated from this once, before "ready".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Detector columns.
    pub columns: usize,
    /// Detector rows.
    pub rows: usize,
    /// Views handed over in one call.
    pub views_per_call: usize,
    /// Voxels along x, y, z.
    pub voxels: [usize; 3],
}

/// Pixel weights of some views, as a product of two factors: what all rows of a view share changes from view to view
/// (redundancy, angular step), the rest mostly does not (cosine), so that no weight image a view need be held.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionWeights<'a, V = &'a [f32]> {
    /// Size of the views.
    pub detector: Detector,
    /// Columns of zeros to put before the first and after the last column (half-fan).
    pub pad: [usize; 2],
    /// `[row v][column u]`: one image for all views, or one a view.
    pub image: V,
    /// `[view][column u]`.
    pub columns: &'a [f32],
}

impl<V> ProjectionWeights<'_, V> {
    /// Columns of a weighted view.
    #[must_use]
    pub fn wide_columns(&self) -> usize {
        self.detector.columns + self.pad[0] + self.pad[1]
    }
}

/// All operations: what the optimisation of a representation asks of a carrier.
pub trait Operations:
    sart::AlgebraicCompute
    + gaussians::GaussianCompute
    + field::FieldCompute
    + experts::ExpertsCompute
    + losses::LossCompute
    + elements::ElementCompute
    + slices::SliceCompute
    + counts::CountsCompute
{
}

impl<T> Operations for T where
    T: sart::AlgebraicCompute
        + gaussians::GaussianCompute
        + field::FieldCompute
        + experts::ExpertsCompute
        + losses::LossCompute
        + elements::ElementCompute
        + slices::SliceCompute
        + counts::CountsCompute
{
}

/// A value that an operation finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Left<T> {
    /// Here it is.
    AtHand(T),
    /// The carrier has it, or will, once the operation's group has ended (see [`Compute::begin_group`]) or the device has done it; it can be asked for until
    /// the next operation of the kind.
    WithCarrier,
}

/// Does `work` as one group ([`Compute::begin_group`]); where it fails, what still waits is not carried out.
///
/// # Errors
/// Those of `work`, and of its operations as far as they waited.
pub fn together<T, E: From<ComputeError>>(
    compute: &dyn Operations,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    compute.begin_group()?;
    let done = work();
    match &done {
        Ok(_) => compute.end_group()?,
        Err(_) => compute.give_up_group(),
    }
    done
}

/// A carrier's memory: where buffers lie that its operations work on.
pub trait Memory: Send + Sync {
    /// A buffer of `len` zeros; `buffer` names it where there is no memory for it.
    ///
    /// # Errors
    /// [`ComputeError::Memory`].
    fn buffer(&self, buffer: &'static str, len: usize) -> Result<Buffer, ComputeError>;

    /// Copies from the host into a buffer.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
    fn write(&self, from: &[f32], to: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// Copies from a buffer to the host, after every operation before has ended.
    ///
    /// # Errors
    /// As [`Memory::write`].
    fn read(&self, from: Values<'_>, to: &mut [f32]) -> Result<(), ComputeError>;

    /// Begins to copy to shared memory that the device writes by itself; what is asked for meanwhile does not wait for that. The values must stay as they
    /// are until [`Pending::wait`].
    ///
    /// # Errors
    /// As [`Memory::write`].
    fn begin_read<'a>(&'a self, from: Values<'a>, _to: Registered<'a>) -> Result<Pending<'a>, ComputeError> {
        from.device("begin_read")?;
        Err(ComputeError::Device { device: "cpu".into(), reason: "begin_read: there is no device that copies".into() })
    }

    /// Copies from one buffer to another.
    ///
    /// # Errors
    /// As [`Memory::write`].
    fn copy(&self, from: Values<'_>, to: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// Sets every value.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses.
    fn fill(&self, value: f32, to: ValuesMut<'_>) -> Result<(), ComputeError>;

    /// Waits until everything asked for before has been done: for whoever takes times. What is read waits of itself.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed since the last wait.
    fn finish(&self) -> Result<(), ComputeError> {
        Ok(())
    }

    /// Where values lie, if others can work on them there: between [`Memory::finish`] and the next operation, and only as long as the carrier lives.
    fn address(&self, values: ValuesMut<'_>) -> Option<Address> {
        match values {
            ValuesMut::Host(values) => Some(Address::Host(values.as_mut_ptr().expose_provenance())),
            ValuesMut::Device(..) => None,
        }
    }

    /// Floats that a copy on the host of `len` values takes: none where buffers lie there themselves.
    fn copy_len(&self, len: usize) -> usize;

    /// Values on the host: those of the buffer itself where it lies there, else read into `copy`, which has [`Memory::copy_len`] floats (or more).
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn on_host<'a>(&self, values: Values<'a>, copy: &'a mut [f32]) -> Result<&'a [f32], ComputeError> {
        let Values::Host(values) = values else {
            let copy = buffer::enough("on_host", copy, values.len())?;
            self.read(values, copy)?;
            return Ok(copy);
        };
        Ok(values)
    }

    /// Values of the host where operations can read them: as they are where buffers lie on the host, else written into `room`, a buffer of
    /// [`Memory::copy_len`] floats (or more).
    ///
    /// # Errors
    /// As [`Memory::write`].
    fn on_carrier<'a>(&self, values: &'a [f32], room: &'a mut Buffer) -> Result<Values<'a>, ComputeError> {
        if self.copy_len(values.len()) < values.len() {
            return Ok(Values::Host(values));
        }
        self.write(values, room.values_mut().part(0..values.len()))?;
        Ok(room.values().part(0..values.len()))
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// As [`Memory::buffer`] and [`Memory::write`].
    fn filled(&self, buffer: &'static str, values: &[f32]) -> Result<Buffer, ComputeError> {
        let mut filled = self.buffer(buffer, values.len())?;
        self.write(values, filled.values_mut())?;
        Ok(filled)
    }

    /// Gives up a buffer for its values.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn take(&self, buffer: Buffer) -> Result<Vec<f32>, ComputeError> {
        buffer.into_host().or_else(|buffer| {
            let mut values = vec![0.0; buffer.len()];
            self.read(buffer.values(), &mut values)?;
            Ok(values)
        })
    }
}

/// The operations. Implementations: [`cpu::CpuCompute`], [`cuda::CudaCompute`].
///
/// A call's scratch comes from what [`Compute::prepare`] allocated; no operation allocates on the heap after that.
pub trait Compute: Memory {
    /// What carries out the operations, in words (processor, SIMD level, threads), as status and volume headers quote it.
    fn description(&self) -> String;

    /// Bytes of scratch that `workload` needs; `plan` lists them.
    fn scratch_bytes(&self, workload: &Workload) -> usize;

    /// Allocates the scratch of `workload`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare(&mut self, workload: &Workload) -> Result<(), ComputeError>;

    /// Runs `work` where operations begin soonest: within the carrier's own threads, where it has such.
    fn within(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Has each of the threads do `work` that carry out what [`Compute::within`] runs.
    fn each_thread(&self, work: &(dyn Fn() + Sync)) {
        work();
    }

    /// What runs the operations and how, in a word or two: SIMD level and threads, or the GPU's name.
    fn provider(&self) -> String;

    /// Operations asked for from here on may wait until [`Compute::end_group`], which carries them out as one where the carrier gains by that (a CUDA graph:
    /// [`together`] is how to ask). Results are the same; but what an operation would return or refuse may be known only then.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses.
    fn begin_group(&self) -> Result<(), ComputeError> {
        Ok(())
    }

    /// Carries out what still waits.
    ///
    /// # Errors
    /// Those of the operations, as far as they waited.
    fn end_group(&self) -> Result<(), ComputeError> {
        Ok(())
    }

    /// Forgets what still waits.
    fn give_up_group(&self) {}

    /// Forward projection (`A x`): line integrals of `volume` (1/mm) along each pixel's ray, dimensionless, by Joseph's method
    /// (bilinear interpolation in the planes across the ray's dominant axis). Overwrites `projections`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn forward_project(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        volume: Values<'_>,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// The matched adjoint of [`Compute::forward_project`] (`A' y`), the same weights transposed. Overwrites `volume`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn back_project_matched(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        projections: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// `weighted[view][v][pad + u] = image[v][u] * columns[view][u] * projections[view][v][u]`, zero in the columns added by
    /// `weights.pad`. Overwrites `weighted`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn weight_projections(
        &self,
        weights: &ProjectionWeights<'_, Values<'_>>,
        projections: Values<'_>,
        weighted: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Filters every row along u with the frequency response `filter` (see [`cpu::ramp_filter::RampFilter`]), in place.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn filter_rows(
        &self,
        filter: &cpu::ramp_filter::RampFilter,
        projections: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Voxel-driven, distance-weighted back-projection of filtered views for FDK, **added** to `volume`:
    /// `volume[x] += sum_views scale / w^2 * bilinear(filtered_view, u(x), v(x))`, `w` the relative depth of
    /// [`crate::geometry::ViewPose::project`]; samples outside the detector are zero.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn back_project_fdk(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        filtered: Values<'_>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;
}
