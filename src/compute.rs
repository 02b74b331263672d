//! The operations: what reconstruction asks of a processor. One trait, carried out by [`cpu`]; [`cuda`] has some of them under the same
//! names, on buffers that stay on the device. Knows nothing of frames, schedules or files.
//!
//! Orders of memory are those of [`crate::geometry`]: volumes `[x][y][z]`, projections `[view][row v][column u]`, float32.
//! Every operation gives bit-identical results for any number of threads.

pub mod cpu;
pub mod cuda;
pub mod experts;
pub mod field;
pub mod gaussians;
pub mod sart;
pub mod total_variation;
pub mod losses;

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
pub struct ProjectionWeights<'a> {
    /// Size of the views.
    pub detector: Detector,
    /// Columns of zeros to put before the first and after the last column (half-fan).
    pub pad: [usize; 2],
    /// `[row v][column u]`: one image for all views, or one a view.
    pub image: &'a [f32],
    /// `[view][column u]`.
    pub columns: &'a [f32],
}

impl ProjectionWeights<'_> {
    /// Columns of a weighted view.
    #[must_use]
    pub fn wide_columns(&self) -> usize {
        self.detector.columns + self.pad[0] + self.pad[1]
    }
}

/// All operations: what the optimisation of a representation asks of a carrier.
pub trait Operations:
    Compute
    + gaussians::GaussianCompute
    + field::FieldCompute
    + experts::ExpertsCompute
    + losses::LossCompute
    + sart::SartCompute
    + total_variation::VariationCompute
{
}

impl<T> Operations for T where
    T: Compute
        + gaussians::GaussianCompute
        + field::FieldCompute
        + experts::ExpertsCompute
        + losses::LossCompute
        + sart::SartCompute
        + total_variation::VariationCompute
{
}

/// The operations. Implementations: [`cpu::CpuCompute`].
///
/// A call's scratch comes from what [`Compute::prepare`] allocated; no operation allocates on the heap after that.
pub trait Compute: Send + Sync {
    /// What carries out the operations, in words (processor, SIMD level, threads), as status and volume headers quote it.
    fn description(&self) -> String;

    /// Bytes of scratch that `workload` needs; `plan` lists them.
    fn scratch_bytes(&self, workload: &Workload) -> usize;

    /// Allocates the scratch of `workload`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    fn prepare(&mut self, workload: &Workload) -> Result<(), ComputeError>;

    /// Forward projection (`A x`): line integrals of `volume` (1/mm) along each pixel's ray, dimensionless, by Joseph's method
    /// (bilinear interpolation in the planes across the ray's dominant axis). Overwrites `projections`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn forward_project(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        volume: &[f32],
        projections: &mut [f32],
    ) -> Result<(), ComputeError>;

    /// The matched adjoint of [`Compute::forward_project`] (`A' y`), the same weights transposed. Overwrites `volume`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn back_project_matched(
        &self,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        projections: &[f32],
        volume: &mut [f32],
    ) -> Result<(), ComputeError>;

    /// `weighted[view][v][pad + u] = image[v][u] * columns[view][u] * projections[view][v][u]`, zero in the columns added by
    /// `weights.pad`. Overwrites `weighted`.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn weight_projections(
        &self,
        weights: &ProjectionWeights<'_>,
        projections: &[f32],
        weighted: &mut [f32],
    ) -> Result<(), ComputeError>;

    /// Filters every row along u with the frequency response `filter` (see [`cpu::ramp_filter::RampFilter`]), in place.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where a buffer does not fit.
    fn filter_rows(&self, filter: &cpu::ramp_filter::RampFilter, projections: &mut [f32]) -> Result<(), ComputeError>;

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
        filtered: &[f32],
        volume: &mut [f32],
    ) -> Result<(), ComputeError>;
}
