//! What the projectors need of a scan, on the device: one record a view, worked out in double precision once and read by every launch.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::ComputeError;
use super::{DeviceSlice, Launcher, check_len, count};
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};

const OPERATION: &str = "ScanTable";

/// A scan and a grid, ready for the projectors on one launcher.
#[derive(Debug, Clone, Copy)]
pub struct ScanTable {
    argument: ScanArgument,
    records: DeviceSlice<ViewRecord>,
    detector: Detector,
    voxels: [usize; 3],
    level: bool,
}

/// Grid and detector as kernels take them: `Scan` of `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ScanArgument {
    voxels: [i32; 3],
    columns: i32,
    rows: i32,
    views: i32,
    voxel_mm: [f32; 3],
}

/// One view as kernels read it: `View` of `kernels/common.cuh`. Voxels and pixels are counted from the middles of grid and detector.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(16))]
pub struct ViewRecord {
    /// From the source to the detector's middle, in voxels; the source's x.
    direction: [f32; 4],
    /// What that changes by from column to column; the source's y.
    column_step: [f32; 4],
    /// The same from row to row; the source's z.
    row_step: [f32; 4],
    /// Source times direction (cross product); 1 where column and depth do not hang on z.
    moment: [f32; 4],
    /// What the moment changes by from column to column, and from row to row.
    moment_column: [f32; 4],
    moment_row: [f32; 4],
    /// Rows of the matrix from voxels to pixels.
    projection: [[f32; 4]; 3],
}

/// A view's rays to pixels, in voxels: from the source to the detector's middle, and what that changes by from pixel to pixel.
#[derive(Debug, Clone, Copy)]
struct Rays {
    source: DVec3,
    direction: DVec3,
    column_step: DVec3,
    row_step: DVec3,
    /// Whether detector rows follow each other along z and no ray has z as its dominant axis.
    level: bool,
}

impl Rays {
    fn new(pose: &ViewPose, detector: Detector, grid: &VolumeGrid) -> Self {
        let [middle_u, middle_v] = [detector.columns, detector.rows].map(middle);
        let centre_mm = pose.pixel_mm(middle_v, middle_u);
        let direction = (centre_mm - pose.source_mm) / grid.voxel_mm;
        let (column_step, mut row_step) = (pose.column_step_mm / grid.voxel_mm, pose.row_step_mm / grid.voxel_mm);
        // The nearest and the steepest ray to the detector, which is a plane: of two coordinates the larger is at least 0.7 of both.
        let (half_u, half_v) = (middle_u.max(0.0), middle_v.max(0.0));
        let (flat, flat_step) = (direction.truncate(), column_step.truncate());
        let nearest_u = (-flat.dot(flat_step) / flat_step.length_squared()).clamp(-half_u, half_u);
        let nearest = (flat + nearest_u * flat_step).length();
        let steepest = direction.z.abs() + half_u * column_step.z.abs() + half_v * row_step.z.abs();
        // A hundred-thousandth of a voxel: no ray is noticeably elsewhere where rows are taken to be along z.
        let level = half_v * row_step.truncate().length() < 1e-5 && steepest < 0.7 * nearest;
        if level {
            row_step = DVec3::new(0.0, 0.0, row_step.z);
        }
        Self { source: (pose.source_mm - grid.centre_mm) / grid.voxel_mm, direction, column_step, row_step, level }
    }
}

/// Half of the last index.
fn middle(count: usize) -> f64 {
    0.5 * (count as f64 - 1.0)
}

impl ViewRecord {
    /// Of each view.
    pub(super) fn of(geometry: &ScanGeometry, grid: &VolumeGrid) -> impl Iterator<Item = Self> {
        geometry.views.iter().map(|pose| Self::new(pose, geometry.detector, grid))
    }

    fn new(pose: &ViewPose, detector: Detector, grid: &VolumeGrid) -> Self {
        let (middle_u, middle_v) = (middle(detector.columns), middle(detector.rows));
        let Rays { source, direction, column_step, row_step, .. } = Rays::new(pose, detector, grid);

        let world = pose.projection_matrix();
        let mut matrix = world.map(|[x, y, z, constant]| {
            let scaled = DVec3::new(x, y, z) * grid.voxel_mm;
            [scaled.x, scaled.y, scaled.z, DVec3::new(x, y, z).dot(grid.centre_mm) + constant]
        });
        for (row, middle) in [(0, middle_u), (1, middle_v)] {
            matrix[row] = std::array::from_fn(|i| matrix[row][i] - middle * matrix[2][i]);
        }
        // Over a whole column of voxels u moves by less than 1e-4 pixel and w by less than 1e-7, as on the CPU.
        let height = grid.voxels[2] as f64;
        let upright = (matrix[0][2] * height).abs() < 1e-4 && (matrix[2][2] * height).abs() < 1e-7;

        let four = |v: DVec3, last: f64| [v.x as f32, v.y as f32, v.z as f32, last as f32];
        Self {
            direction: four(direction, source.x),
            column_step: four(column_step, source.y),
            row_step: four(row_step, source.z),
            moment: four(source.cross(direction), f64::from(u8::from(upright))),
            moment_column: four(source.cross(column_step), 0.0),
            moment_row: four(source.cross(row_step), 0.0),
            projection: matrix.map(|row| row.map(|value| value as f32)),
        }
    }
}

impl ScanTable {
    /// Uploads the records of all views.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] where a count is too large for kernels, [`ComputeError::Device`] where the memory is not to be had.
    pub fn upload(launcher: &dyn Launcher, geometry: &ScanGeometry, grid: &VolumeGrid) -> Result<Self, ComputeError> {
        let records: Vec<ViewRecord> = ViewRecord::of(geometry, grid).collect();
        Self::over(DeviceSlice::upload(launcher, &records)?, geometry, grid)
    }

    /// Of records that are on the device already.
    pub(super) fn over(
        records: DeviceSlice<ViewRecord>,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
    ) -> Result<Self, ComputeError> {
        let [x, y, z] = grid.voxels;
        // Kernels count the pixels of a view in 32 bits.
        count(OPERATION, "pixels", geometry.detector.pixels())?;
        let argument = ScanArgument {
            voxels: [
                count(OPERATION, "voxels along x", x)?,
                count(OPERATION, "voxels along y", y)?,
                count(OPERATION, "voxels along z", z)?,
            ],
            columns: count(OPERATION, "columns", geometry.detector.columns)?,
            rows: count(OPERATION, "rows", geometry.detector.rows)?,
            views: count(OPERATION, "views", geometry.views.len())?,
            voxel_mm: grid.voxel_mm.to_array().map(|edge| edge as f32),
        };
        let level = geometry.views.iter().all(|pose| Rays::new(pose, geometry.detector, grid).level);
        Ok(Self { argument, records, detector: geometry.detector, voxels: grid.voxels, level })
    }

    /// Floats of the projections.
    #[must_use]
    pub fn projection_len(&self) -> usize {
        self.records.len() * self.detector.pixels()
    }

    /// Floats of the volume.
    #[must_use]
    pub fn volume_len(&self) -> usize {
        self.voxels.iter().product()
    }

    /// Pixel counts.
    #[must_use]
    pub fn detector(&self) -> Detector {
        self.detector
    }

    /// Views.
    #[must_use]
    pub fn views(&self) -> usize {
        self.records.len()
    }

    /// Voxels along x, y, z.
    #[must_use]
    pub fn voxels(&self) -> [usize; 3] {
        self.voxels
    }

    /// Whether every view's detector rows are along z, and no ray has z as its dominant axis.
    pub(super) fn is_level(&self) -> bool {
        self.level
    }

    pub(super) fn argument(&self) -> ScanArgument {
        self.argument
    }

    pub(super) fn records(&self) -> DeviceSlice<ViewRecord> {
        self.records
    }

    /// Refuses projections or a volume of another length.
    pub(super) fn check(
        &self,
        operation: &'static str,
        (buffer, projections): (&'static str, DeviceSlice<f32>),
        volume: DeviceSlice<f32>,
    ) -> Result<(), ComputeError> {
        check_len(operation, buffer, projections.len(), self.projection_len())?;
        check_len(operation, "volume", volume.len(), self.volume_len())
    }
}
