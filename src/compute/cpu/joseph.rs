//! Joseph's method (P. M. Joseph, IEEE Trans. Med. Imaging 1(3), 1982): where rays cross the planes of voxels.
//!
//! A ray is sampled once in each plane of voxel centres across its dominant axis (the one along which it crosses most planes),
//! bilinearly within the plane, voxels outside the grid being zero; the sum times the length of the ray between two planes is the
//! line integral. Everything here is in *index coordinates* (voxel 0 at 0, voxel 1 at 1 on each axis) and in double precision; only
//! offsets within a column are handed to single precision.
//!
//! **Columns.** Where the detector's rows run along z (any circular orbit, any offset, any yaw), all rays of one detector column
//! lie in one vertical plane: they share the horizontal path, and in each plane their heights are linear in the row. The
//! two-dimensional interpolation falls apart into a blend of two z-columns of the volume and a resampling along z, which is what the
//! fast paths of the forward projector and of its adjoint use.

// One conversion whose range is checked before.
#![deny(unsafe_code)]

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use crate::geometry::{Detector, ViewPose, VolumeGrid};

/// Rays nearer to the source than this share of the source-to-pixel distance are not sampled (planes behind the source).
const NEAREST: f64 = 1e-6;

/// One view in the grid's index coordinates.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexView {
    pub(super) source: DVec3,
    pub(super) corner: DVec3,
    pub(super) column_step: DVec3,
    pub(super) row_step: DVec3,
    pub(super) voxel_mm: DVec3,
    pub(super) voxels: [usize; 3],
    pub(super) detector: Detector,
}

/// Path of the rays of one detector column through the planes across `axis`; rows counted so that z grows with them ("risen" rows: the
/// detector's own where its row step points to +z, else from its last row up).
///
/// In plane `k`: the other horizontal coordinate is `other + k * other_step`, and risen row `r` is at height
/// `z + k * z_step + r * (slope + k * slope_step)`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Column {
    pub(super) other: f64,
    pub(super) other_step: f64,
    pub(super) z: f64,
    pub(super) z_step: f64,
    pub(super) slope: f64,
    pub(super) slope_step: f64,
    /// Squared horizontal length from source to pixel, mm^2.
    horizontal2_mm2: f64,
    /// Height of risen row 0 over the source, mm.
    rise_mm: f64,
    /// Height from one risen row to the next, mm.
    rise_step_mm: f64,
    /// Share of the source-to-pixel distance between two planes.
    share: f64,
    /// First plane that the column crosses within the grid, and one past the last.
    pub(super) first: u32,
    pub(super) last: u32,
    /// 0: planes across x; 1: across y.
    pub(super) axis: u32,
    reserved: u32,
}

impl IndexView {
    /// The view `pose` as the grid sees it.
    pub(super) fn new(pose: &ViewPose, detector: Detector, grid: &VolumeGrid) -> Self {
        let origin = grid.origin_mm();
        Self {
            source: (pose.source_mm - origin) / grid.voxel_mm,
            corner: (pose.detector_origin_mm - origin) / grid.voxel_mm,
            column_step: pose.column_step_mm / grid.voxel_mm,
            row_step: pose.row_step_mm / grid.voxel_mm,
            voxel_mm: grid.voxel_mm,
            voxels: grid.voxels,
            detector,
        }
    }

    /// From the source to pixel (row `v`, column `u`).
    pub(super) fn direction(&self, v: usize, u: usize) -> DVec3 {
        self.corner + u as f64 * self.column_step + v as f64 * self.row_step - self.source
    }

    /// Whether the view can go by columns: rows along z, and no ray steeper than its horizontal path is long.
    pub(super) fn goes_by_columns(&self) -> bool {
        let (rows, columns) = (self.detector.rows, self.detector.columns);
        // The sideways drift over all rows must be far below the accuracy of positions (1e-4 voxel).
        let drift = self.row_step.x.abs().max(self.row_step.y.abs()) * rows as f64;
        drift < 1e-6
            && (0..columns).all(|u| {
                [0, rows - 1].into_iter().all(|v| {
                    let d = self.direction(v, u).abs();
                    d.z < d.x.max(d.y)
                })
            })
    }

    /// Whether risen rows count against the detector's own.
    pub(super) fn rows_descend(&self) -> bool {
        self.row_step.z < 0.0
    }

    /// The path of column `u`; the view must go by columns.
    pub(super) fn column(&self, u: usize) -> Column {
        let lowest_row = if self.rows_descend() { self.detector.rows - 1 } else { 0 };
        let d = self.direction(lowest_row, u);
        let rise_step = self.row_step.z.abs();
        let axis = usize::from(d.y.abs() > d.x.abs());
        let other = 1 - axis;
        let (source, d_axis, d_other) = (self.source.to_array(), d[axis], d[other]);
        // Share of the way from source to pixel at plane 0 and from plane to plane.
        let t_step = 1.0 / d_axis;
        let t = -source[axis] * t_step;
        let mut column = Column {
            other: source[other] + t * d_other,
            other_step: t_step * d_other,
            z: source[2] + t * d.z,
            z_step: t_step * d.z,
            slope: t * rise_step,
            slope_step: t_step * rise_step,
            horizontal2_mm2: (d.x * self.voxel_mm.x).powi(2) + (d.y * self.voxel_mm.y).powi(2),
            rise_mm: d.z * self.voxel_mm.z,
            rise_step_mm: rise_step * self.voxel_mm.z,
            share: t_step.abs(),
            first: 0,
            last: 0,
            axis: axis as u32,
            reserved: 0,
        };
        let mut range = (0.0, self.voxels[axis] as f64 - 1.0);
        clip(&mut range, (t, t_step), (NEAREST, f64::INFINITY));
        clip(&mut range, (column.other, column.other_step), (-1.0, self.voxels[other] as f64));
        if range.0 <= range.1 {
            column.first = range.0.ceil() as u32;
            column.last = range.1.floor() as u32 + 1;
        }
        column
    }
}

impl Column {
    /// Length in mm between two planes of the ray to risen row `row`.
    pub(super) fn length_mm(&self, row: usize) -> f32 {
        // Single precision: 6e-8 of the length is far below the method's own error.
        let rise = self.rise_mm as f32 + row as f32 * self.rise_step_mm as f32;
        (self.horizontal2_mm2 as f32 + rise * rise).sqrt() * self.share as f32
    }
}

/// Narrows `range` to the planes `k` in which `line.0 + k * line.1` lies within `bounds`.
pub(super) fn clip(range: &mut (f64, f64), line: (f64, f64), bounds: (f64, f64)) {
    let (start, step) = line;
    if step.abs() < 1e-12 {
        if !(bounds.0..=bounds.1).contains(&start) {
            *range = (0.0, -1.0);
        }
        return;
    }
    let (a, b) = ((bounds.0 - start) / step, (bounds.1 - start) / step);
    *range = (range.0.max(a.min(b)), range.1.min(a.max(b)));
}

/// Floor of `value` within bounds that fit into 31 bits; NaN gives the lower bound. In fewer instructions than a checked `as`.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) fn whole(value: f64, low: f64, high: f64) -> i32 {
    let kept = value.max(low).min(high);
    // SAFETY: `kept` is a number within [low, high] (`max` drops a NaN), and these are counts of rows, planes or voxels.
    let truncated = unsafe { kept.to_int_unchecked::<i32>() };
    truncated - i32::from(f64::from(truncated) > kept)
}
