//! Phantoms of additive ellipsoids, whose line integrals and voxel averages are exact (Kak and Slaney, *Principles of
//! Computerized Tomographic Imaging*, 1988, section 3.1: the projection of an ellipse is its chord times its density).

use glam::{DMat3, DQuat, DVec3};
use ndarray::{Array3, ArrayViewMut3, Axis};
use rayon::prelude::*;

use crate::geometry::{ScanGeometry, ViewPose, VolumeGrid};

/// A solid ellipsoid of constant attenuation. Attenuations of overlapping ellipsoids add up; they may be negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ellipsoid {
    /// Centre, in the world frame.
    pub centre_mm: DVec3,
    /// Half lengths of the ellipsoid's own x, y and z axes; each > 0.
    pub semi_axes_mm: DVec3,
    /// Turns the ellipsoid's own axes into the world's.
    pub rotation: DQuat,
    /// Attenuation that it adds inside itself.
    pub mu_per_mm: f64,
}

impl Ellipsoid {
    /// An ellipsoid along the world's axes.
    #[must_use]
    pub fn aligned(centre_mm: DVec3, semi_axes_mm: DVec3, mu_per_mm: f64) -> Self {
        Self { centre_mm, semi_axes_mm, rotation: DQuat::IDENTITY, mu_per_mm }
    }

    /// Maps an offset from the centre (mm) to the frame in which the ellipsoid is the unit ball.
    #[must_use]
    pub fn to_unit_ball(&self) -> DMat3 {
        DMat3::from_diagonal(self.semi_axes_mm.recip()) * DMat3::from_quat(self.rotation.conjugate())
    }

    /// Length (mm) inside the ellipsoid of the segment between two points; 0 where it misses or only touches it.
    #[must_use]
    pub fn chord_mm(&self, from_mm: DVec3, to_mm: DVec3) -> f64 {
        chord(&self.to_unit_ball(), self.to_unit_ball() * (from_mm - self.centre_mm), to_mm - from_mm)
    }

    /// Whether a point lies inside or on the surface.
    #[must_use]
    pub fn contains(&self, point_mm: DVec3) -> bool {
        (self.to_unit_ball() * (point_mm - self.centre_mm)).length_squared() <= 1.0
    }

    /// Volume in mm^3.
    #[must_use]
    pub fn volume_mm3(&self) -> f64 {
        4.0 / 3.0 * std::f64::consts::PI * self.semi_axes_mm.element_product()
    }

    /// Half size of the smallest world-aligned box about the ellipsoid.
    #[must_use]
    pub fn half_box_mm(&self) -> DVec3 {
        let axes = DMat3::from_quat(self.rotation) * DMat3::from_diagonal(self.semi_axes_mm);
        DVec3::new(axes.row(0).length(), axes.row(1).length(), axes.row(2).length())
    }
}

/// Part of the segment `from + t step`, t in [0, 1], inside the unit ball of `to_ball`; `from_ball` is the start mapped there.
fn span(to_ball: &DMat3, from_ball: DVec3, step_mm: DVec3) -> Option<(f64, f64)> {
    let d = *to_ball * step_mm;
    let a = d.length_squared();
    // Discriminant of |from + t d| = 1 over a; the cross product keeps it accurate for small balls far from the source.
    let reach = 1.0 - from_ball.cross(d).length_squared() / a;
    if reach.is_nan() || reach <= 0.0 {
        return None;
    }
    let middle = -from_ball.dot(d) / a;
    let half = (reach / a).sqrt();
    let (begin, end) = ((middle - half).max(0.0), (middle + half).min(1.0));
    (begin < end).then_some((begin, end))
}

/// Length of [`span`], in mm.
fn chord(to_ball: &DMat3, from_ball: DVec3, step_mm: DVec3) -> f64 {
    span(to_ball, from_ball, step_mm).map_or(0.0, |(begin, end)| (end - begin) * step_mm.length())
}

/// A sum of ellipsoids in air.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EllipsoidPhantom {
    /// The ellipsoids; order does not matter.
    pub ellipsoids: Vec<Ellipsoid>,
}

impl EllipsoidPhantom {
    /// Exact line integral (dimensionless) of the attenuation over the segment from the source to a pixel's centre.
    #[must_use]
    pub fn line_integral(&self, source_mm: DVec3, pixel_mm: DVec3) -> f64 {
        self.ellipsoids.iter().map(|e| e.mu_per_mm * e.chord_mm(source_mm, pixel_mm)).sum()
    }

    /// Attenuation (1/mm) at a point.
    #[must_use]
    pub fn value_at(&self, point_mm: DVec3) -> f64 {
        self.ellipsoids.iter().filter(|e| e.contains(point_mm)).map(|e| e.mu_per_mm).sum()
    }

    /// Integral of the attenuation over space, in mm^2 (1/mm times mm^3).
    #[must_use]
    pub fn mass_mm2(&self) -> f64 {
        self.ellipsoids.iter().map(|e| e.mu_per_mm * e.volume_mm3()).sum()
    }

    /// Corners of the smallest world-aligned box about all ellipsoids; `None` without any.
    #[must_use]
    pub fn bounds_mm(&self) -> Option<(DVec3, DVec3)> {
        let boxes = self.ellipsoids.iter().map(|e| (e.centre_mm - e.half_box_mm(), e.centre_mm + e.half_box_mm()));
        boxes.reduce(|(low, high), (l, h)| (low.min(l), high.max(h)))
    }

    /// The phantom with every attenuation multiplied by `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.ellipsoids.iter_mut().for_each(|e| e.mu_per_mm *= factor);
        self
    }

    /// The phantom moved by `offset_mm`.
    #[must_use]
    pub fn moved(mut self, offset_mm: DVec3) -> Self {
        self.ellipsoids.iter_mut().for_each(|e| e.centre_mm += offset_mm);
        self
    }

    /// Exact line integrals to all pixels' centres, `[view][row v][column u]`, summed in f64. The same for any number of threads.
    #[must_use]
    pub fn line_integrals(&self, geometry: &ScanGeometry) -> Array3<f32> {
        let mut projections = Array3::zeros((geometry.views.len(), geometry.detector.rows, geometry.detector.columns));
        self.project_into(&geometry.views, projections.view_mut());
        projections
    }

    /// [`Self::line_integrals`] into `projections` (`[view][row v][column u]`, one view a pose).
    ///
    /// # Panics
    /// Where `projections` has another number of views than `poses`.
    pub fn project_into(&self, poses: &[ViewPose], mut projections: ArrayViewMut3<'_, f32>) {
        assert_eq!(poses.len(), projections.len_of(Axis(0)), "one pose a view");
        let (rows, columns) = (projections.len_of(Axis(1)), projections.len_of(Axis(2)));
        for (pose, mut view) in poses.iter().zip(projections.outer_iter_mut()) {
            let seen: Vec<Seen> = self.ellipsoids.iter().map(|e| Seen::new(e, pose, rows, columns)).collect();
            view.outer_iter_mut().into_par_iter().enumerate().for_each_init(
                || vec![0.0_f64; columns],
                |sums, (v, mut row)| {
                    sums.fill(0.0);
                    for e in seen.iter().filter(|e| (e.rows.0..e.rows.1).contains(&v)) {
                        for (u, sum) in sums.iter_mut().enumerate().take(e.columns.1).skip(e.columns.0) {
                            let step = pose.pixel_mm(v as f64, u as f64) - pose.source_mm;
                            *sum += e.mu_per_mm * chord(&e.to_ball, e.source_in_ball, step);
                        }
                    }
                    row.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = sum as f32);
                },
            );
        }
    }

    /// Cell averages `[x][y][z]` (1/mm): exact in voxels wholly inside or outside each ellipsoid, the mean over `subsamples`^3
    /// points in those that its surface cuts. `subsamples` 0 counts as 1.
    #[must_use]
    pub fn voxelise(&self, grid: &VolumeGrid, subsamples: usize) -> Array3<f32> {
        let [nx, ny, nz] = grid.voxels;
        let subsamples = subsamples.max(1);
        let offsets: Vec<f64> = (0..subsamples).map(|i| (i as f64 + 0.5) / subsamples as f64 - 0.5).collect();
        let mut volume = Array3::zeros((nx, ny, nz));
        volume.outer_iter_mut().into_par_iter().enumerate().for_each_init(
            || vec![0.0_f64; ny * nz],
            |sums, (ix, mut slab)| {
                sums.fill(0.0);
                for e in &self.ellipsoids {
                    add_to_slab(e, grid, ix, &offsets, sums);
                }
                slab.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = sum as f32);
            },
        );
        volume
    }
}

/// Adds one ellipsoid's cell averages to the slab `[y][z]` at `ix`.
fn add_to_slab(e: &Ellipsoid, grid: &VolumeGrid, ix: usize, offsets: &[f64], slab: &mut [f64]) {
    let to_ball = e.to_unit_ball();
    let reach = voxel_reach(&to_ball, grid.voxel_mm);
    let index_range = |axis: usize| index_range(e, grid, axis);
    let (x0, x1) = index_range(0);
    if !(x0..x1).contains(&ix) {
        return;
    }
    let ((y0, y1), (z0, z1)) = (index_range(1), index_range(2));
    let per_sample = e.mu_per_mm / (offsets.len() as f64).powi(3);
    for iy in y0..y1 {
        for iz in z0..z1 {
            let centre = to_ball * (grid.voxel_centre_mm(ix, iy, iz) - e.centre_mm);
            let distance = centre.length();
            let sum = &mut slab[iy * grid.voxels[2] + iz];
            if distance + reach <= 1.0 {
                *sum += e.mu_per_mm;
            } else if distance - reach < 1.0 {
                let [cx, cy, cz] = to_ball.to_cols_array_2d().map(DVec3::from_array);
                let mut inside = 0_u32;
                for fx in offsets {
                    for fy in offsets {
                        let base = centre + cx * (fx * grid.voxel_mm.x) + cy * (fy * grid.voxel_mm.y);
                        for fz in offsets {
                            inside += u32::from((base + cz * (fz * grid.voxel_mm.z)).length_squared() <= 1.0);
                        }
                    }
                }
                *sum += per_sample * f64::from(inside);
            }
        }
    }
}

/// Half-open range of voxels along `axis` that an ellipsoid's box can reach.
pub(super) fn index_range(e: &Ellipsoid, grid: &VolumeGrid, axis: usize) -> (usize, usize) {
    let (half, origin) = (e.half_box_mm()[axis], grid.origin_mm()[axis]);
    let at = |mm: f64| (mm - origin) / grid.voxel_mm[axis];
    let first = (at(e.centre_mm[axis] - half) - 0.5).ceil().max(0.0) as usize;
    let end = (at(e.centre_mm[axis] + half) + 0.5).floor() + 1.0;
    (first, (end.max(0.0) as usize).min(grid.voxels[axis]))
}

/// Largest distance from a voxel's centre to its corners, seen in the unit ball's frame.
pub(super) fn voxel_reach(to_ball: &DMat3, voxel_mm: DVec3) -> f64 {
    [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)]
        .map(|(y, z)| (*to_ball * (0.5 * voxel_mm * DVec3::new(1.0, y, z))).length())
        .into_iter()
        .fold(0.0, f64::max)
}

/// An ellipsoid as one view sees it.
pub(super) struct Seen {
    to_ball: DMat3,
    source_in_ball: DVec3,
    pub(super) mu_per_mm: f64,
    /// Half-open range of rows outside which its shadow does not fall.
    pub(super) rows: (usize, usize),
    /// The same of columns.
    pub(super) columns: (usize, usize),
}

impl Seen {
    /// Part of the ray from the view's source along `step_mm` that lies inside, as fractions of the step.
    pub(super) fn span(&self, step_mm: DVec3) -> Option<(f64, f64)> {
        span(&self.to_ball, self.source_in_ball, step_mm)
    }

    /// As seen from a point, with no detector to bound it.
    pub(super) fn from_point(e: &Ellipsoid, source_mm: DVec3) -> Self {
        let to_ball = e.to_unit_ball();
        Self {
            to_ball,
            source_in_ball: to_ball * (source_mm - e.centre_mm),
            mu_per_mm: e.mu_per_mm,
            rows: (0, usize::MAX),
            columns: (0, usize::MAX),
        }
    }

    pub(super) fn new(e: &Ellipsoid, pose: &ViewPose, rows: usize, columns: usize) -> Self {
        let (u, v) = shadow_bounds(e, pose);
        let clip = |bounds: Option<(f64, f64)>, count: usize| match bounds {
            // One pixel of margin swallows the rounding of the tangents.
            Some((low, high)) => ((low - 1.0).max(0.0) as usize, ((high + 2.0).max(0.0).min(count as f64)) as usize),
            None => (0, count),
        };
        Self { rows: clip(v, rows), columns: clip(u, columns), ..Self::from_point(e, pose.source_mm) }
    }
}

/// Bounds of a shadow along one detector axis, in pixels; `None`: unbounded.
type ShadowBounds = Option<(f64, f64)>;

/// Exact bounds in u and v (pixels) of an ellipsoid's shadow; `None` where the ellipsoid reaches back to the source's plane.
///
/// The shadow's outline is the conic whose dual is `P Q* P'`, with `Q*` the dual of the ellipsoid's quadric (Hartley and
/// Zisserman, *Multiple View Geometry*, result 8.9); lines `u = k` that touch it are the bounds.
fn shadow_bounds(e: &Ellipsoid, pose: &ViewPose) -> (ShadowBounds, ShadowBounds) {
    let p = pose.projection_matrix();
    let axes = DMat3::from_quat(e.rotation) * DMat3::from_diagonal(e.semi_axes_mm);
    // Rows of P in the frame of the ellipsoid's axes, in which Q* = diag(1, 1, 1, -1).
    let rows = p.map(|r| {
        let g = DVec3::new(r[0], r[1], r[2]);
        (axes.transpose() * g, g.dot(e.centre_mm) + r[3])
    });
    let dual = |i: usize, j: usize| rows[i].0.dot(rows[j].0) - rows[i].1 * rows[j].1;
    let ww = dual(2, 2);
    let along = |axis: usize| {
        (ww < 0.0 && rows[2].1 > 0.0).then(|| {
            let (middle, root) = (dual(axis, 2), (dual(axis, 2).powi(2) - dual(axis, axis) * ww).max(0.0).sqrt());
            ((middle + root) / ww, (middle - root) / ww)
        })
    };
    (along(0), along(1))
}

#[cfg(test)]
mod tests;
