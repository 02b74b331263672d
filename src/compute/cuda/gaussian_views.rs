//! What the Gaussians' projector needs of a scan, on the device: one record a view, in double precision.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::{DeviceSlice, Launcher, count};
use crate::geometry::{Detector, ScanGeometry, ViewPose};

const OPERATION: &str = "GaussianViews";

/// One view in mm: `gaussians::PixelView` of `kernels/gaussian_view.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GaussianView {
    source: [f64; 3],
    column: [f64; 3],
    row: [f64; 3],
    normal: [f64; 3],
    dual_column: [f64; 3],
    dual_row: [f64; 3],
    origin: [f64; 3],
    triple_square: f64,
}

impl GaussianView {
    /// Of each view.
    pub(super) fn of(geometry: &ScanGeometry) -> impl Iterator<Item = Self> {
        geometry.views.iter().map(Self::new)
    }

    fn new(pose: &ViewPose) -> Self {
        let (column, row) = (pose.column_step_mm, pose.row_step_mm);
        let (cc, rr, cr) = (column.length_squared(), row.length_squared(), column.dot(row));
        let det = cc * rr - cr * cr;
        let origin = pose.detector_origin_mm - pose.source_mm;
        Self {
            source: pose.source_mm.to_array(),
            column: column.to_array(),
            row: row.to_array(),
            normal: (pose.normal() / pose.source_to_plane_mm()).to_array(),
            dual_column: ((column * rr - row * cr) / det).to_array(),
            dual_row: ((row * cc - column * cr) / det).to_array(),
            origin: origin.to_array(),
            triple_square: origin.dot(column.cross(row)).powi(2),
        }
    }
}

/// `gaussians::Detector` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct DetectorArgument {
    columns: i32,
    rows: i32,
}

/// The views of a scan as the Gaussians' projector reads them, uploaded once.
#[derive(Debug, Clone, Copy)]
pub struct GaussianViews {
    views: DeviceSlice<GaussianView>,
    detector: Detector,
    argument: DetectorArgument,
}

impl GaussianViews {
    /// Uploads the records of all views.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] where a count is too large for kernels, [`ComputeError::Device`] where the memory is not to be had.
    pub fn upload(launcher: &dyn Launcher, geometry: &ScanGeometry) -> Result<Self, ComputeError> {
        let views: Vec<GaussianView> = GaussianView::of(geometry).collect();
        Self::over(DeviceSlice::upload(launcher, &views)?, geometry.detector)
    }

    /// Of records that are on the device already.
    pub(super) fn over(views: DeviceSlice<GaussianView>, detector: Detector) -> Result<Self, ComputeError> {
        let argument = DetectorArgument {
            columns: count(OPERATION, "columns", detector.columns)?,
            rows: count(OPERATION, "rows", detector.rows)?,
        };
        Ok(Self { views, detector, argument })
    }

    /// Floats of the projections.
    #[must_use]
    pub fn projection_len(&self) -> usize {
        self.views.len() * self.detector.pixels()
    }

    /// Pixel counts.
    #[must_use]
    pub fn detector(&self) -> Detector {
        self.detector
    }

    pub(super) fn argument(&self) -> DetectorArgument {
        self.argument
    }

    /// Each view with its part of `projections`, which holds [`GaussianViews::projection_len`] floats.
    pub(super) fn with_images(
        &self,
        projections: DeviceSlice<f32>,
    ) -> impl Iterator<Item = (DeviceSlice<GaussianView>, DeviceSlice<f32>)> {
        let (views, pixels) = (self.views, self.detector.pixels());
        (0..views.len()).map_while(move |view| {
            Some((views.part(view..view + 1)?, projections.part(view * pixels..(view + 1) * pixels)?))
        })
    }
}
