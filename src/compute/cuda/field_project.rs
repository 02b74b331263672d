//! Launches `kernels/field_project.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::ComputeError;
use super::super::field::{FieldJitter, FieldLayout, RayPixel};
use super::field_table::{Batch, THREADS};
use super::field_voxelise::jitter_key;
use super::{Arguments, DeviceField, DeviceSlice, LaunchShape, Launcher, check_len, count};
use crate::geometry::{Detector, ScanGeometry};

const OPERATION: &str = "field_project";

/// Most samples of a ray, as on the CPU.
const MOST_SAMPLES: usize = 4096;

/// Most blocks of a launch.
const MOST_BLOCKS: usize = 1056;

/// `field::Rays` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RaysArgument {
    size_mm: [f64; 3],
    count: i32,
    samples: i32,
    views: i32,
    rows: i32,
    columns: i32,
    jitter: i32,
    key: [u32; 4],
}

/// `field::RayView` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct RayView {
    source: [f64; 3],
    origin: [f64; 3],
    column_step: [f64; 3],
    row_step: [f64; 3],
}

/// `[view, row v, column u]`, as kernels read pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PixelRecord([u32; 3]);

impl From<RayPixel> for PixelRecord {
    fn from(pixel: RayPixel) -> Self {
        Self([pixel.view, pixel.row, pixel.column])
    }
}

/// The views of a scan as rays through a field's box see them, on one launcher.
#[derive(Debug, Clone, Copy)]
pub struct RayTable {
    views: DeviceSlice<RayView>,
    detector: Detector,
    low_mm: DVec3,
}

impl RayTable {
    /// Uploads the views.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn upload(
        launcher: &dyn Launcher,
        geometry: &ScanGeometry,
        layout: &FieldLayout,
    ) -> Result<Self, ComputeError> {
        let low_mm = layout.low_mm();
        let of = |pose: &crate::geometry::ViewPose| RayView {
            source: (pose.source_mm - low_mm).to_array(),
            origin: (pose.detector_origin_mm - pose.source_mm).to_array(),
            column_step: pose.column_step_mm.to_array(),
            row_step: pose.row_step_mm.to_array(),
        };
        let views: Vec<RayView> = geometry.views.iter().map(of).collect();
        Ok(Self { views: DeviceSlice::upload(launcher, &views)?, detector: geometry.detector, low_mm })
    }
}

/// Rays on the device, as [`crate::compute::field::FieldRays`].
#[derive(Debug, Clone, Copy)]
pub struct DeviceRays<'a> {
    /// Poses of the views, for the field's box.
    pub table: &'a RayTable,
    /// One ray each. A pixel that the detector does not have gives NaN, and no gradient.
    pub pixels: DeviceSlice<PixelRecord>,
    /// Samples on each ray.
    pub samples: usize,
    /// Where in its step each sample lies; the middle without.
    pub jitter: Option<FieldJitter>,
}

impl DeviceRays<'_> {
    pub(super) fn argument(&self, operation: &'static str, layout: &FieldLayout) -> Result<RaysArgument, ComputeError> {
        let refuse =
            |setting, value, requirement| Err(ComputeError::Setting { of: operation, setting, value, requirement });
        if !(1..=MOST_SAMPLES).contains(&self.samples) {
            return refuse("samples", self.samples as f64, "must be between 1 and 4096");
        }
        if self.table.low_mm != layout.low_mm() {
            return refuse("box", self.table.low_mm.x, "the rays' table is another box's; upload one for this field");
        }
        Ok(RaysArgument {
            size_mm: layout.size_mm().to_array(),
            count: count(operation, "rays", self.pixels.len())?,
            samples: self.samples as i32,
            views: count(operation, "views", self.table.views.len())?,
            rows: count(operation, "rows", self.table.detector.rows)?,
            columns: count(operation, "columns", self.table.detector.columns)?,
            jitter: i32::from(self.jitter.is_some()),
            key: jitter_key(self.jitter),
        })
    }

    pub(super) fn views(&self) -> DeviceSlice<RayView> {
        self.table.views
    }
}

/// See [`crate::compute::field::FieldCompute::field_project`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Value`] where a level's weight is not finite,
/// [`ComputeError::Setting`] for sizes that kernels cannot work with or another box's rays, [`ComputeError::Device`] where the device refuses.
pub fn field_project(
    launcher: &dyn Launcher,
    rays: &DeviceRays<'_>,
    field: &DeviceField<'_>,
    integrals: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "integrals", integrals.len(), rays.pixels.len())?;
    field.check(OPERATION)?;
    let layout = field.table.layout();
    let of_rays = rays.argument(OPERATION, layout)?;
    if integrals.is_empty() {
        return Ok(());
    }
    let batch = Batch::new(OPERATION, layout.shape(), false)?;
    let shape = LaunchShape {
        grid: [batch.of_rays(rays.pixels.len()).min(MOST_BLOCKS) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared_bytes: batch.shared_bytes as u32,
    };
    let arguments = Arguments::new()
        .value(field.argument(&batch))
        .value(of_rays)
        .read(field.table.levels())
        .read(field.tables)
        .read(field.network)
        .read(rays.views())
        .read(rays.pixels)
        .write(integrals);
    // SAFETY: the arguments of the kernel; it holds entries to the levels' tables, looks at views that there are only, and writes an integral
    // a ray.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
