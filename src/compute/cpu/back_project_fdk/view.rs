//! One view as the kernels see it, and where it sees a few columns of voxels.

#![forbid(unsafe_code)]

use super::transpose::Layout;
use crate::geometry::{ViewPose, VolumeGrid};

/// Columns of voxels whose rays are worked out together: one vector of doubles.
pub(super) const RAYS: usize = 8;

/// One view: its copy in `[u][v]` order and its matrix in voxel indices.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) pixels: &'a [f32],
    pub(super) layout: Layout,
    /// Takes `(ix, iy, iz, 1)` to `w (u, v, 1)`; `v` counts in the order of the copy, upwards in z.
    pub(super) matrix: [[f64; 4]; 3],
    /// Whether `u` and `w` do not depend on z.
    pub(super) upright: bool,
}

/// Where an upright view sees some columns of voxels `(ix, iy..iy + RAYS)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rays {
    /// The detector column (of the copy, margin included) left of the voxel column; the next one follows.
    pub(super) left: [usize; RAYS],
    /// Weights of the left and the right detector column, `1/w^2` included.
    pub(super) weights: [[f32; RAYS]; 2],
    /// Detector row of voxel z = 0.
    pub(super) row: [f64; RAYS],
    /// Detector rows from one voxel to the next, > 0.
    pub(super) step: [f64; RAYS],
    /// First voxel that the detector sees, and the one after the last; equal where it sees none.
    pub(super) first: [usize; RAYS],
    pub(super) end: [usize; RAYS],
}

impl<'a> View<'a> {
    pub(super) const EMPTY: View<'static> =
        View { pixels: &[], layout: Layout::EMPTY, matrix: [[0.0; 4]; 3], upright: false };

    pub(super) fn new(layout: Layout, pose: &ViewPose, grid: &VolumeGrid, pixels: &'a [f32]) -> Self {
        let world = pose.projection_matrix();
        let (origin, voxel) = (grid.origin_mm(), grid.voxel_mm);
        let mut matrix = world.map(|r| {
            let constant = r[0] * origin.x + r[1] * origin.y + r[2] * origin.z + r[3];
            [r[0] * voxel.x, r[1] * voxel.y, r[2] * voxel.z, constant]
        });
        if layout.flip(pose) {
            let last = layout.rows as f64 - 1.0;
            matrix[1] = std::array::from_fn(|i| last * matrix[2][i] - matrix[1][i]);
        }
        // Over the whole column, u moves by less than 1e-4 pixel and w by less than 1e-7 of the distance to the detector.
        let height = grid.voxels[2] as f64;
        let upright =
            (matrix[0][2] * height).abs() < 1e-4 && (matrix[2][2] * height).abs() < 1e-7 && matrix[1][2] > 0.0;
        Self { pixels, layout, matrix, upright }
    }

    /// The rays of voxels `(ix, iy..iy + count)`, for columns of `height` voxels.
    #[inline(always)]
    pub(super) fn rays(&self, ix: usize, iy: usize, count: usize, height: usize) -> Rays {
        let [u, v, w] = &self.matrix;
        let x = ix as f64;
        let base = [u, v, w].map(|r| r[0] * x + r[3]);
        let (columns, rows, height) = (self.layout.columns as f64, self.layout.rows as f64, height as f64);
        let voxels_of_row = 1.0 / v[2];
        let mut rays = Rays {
            left: [0; RAYS],
            weights: [[0.0; RAYS]; 2],
            row: [0.0; RAYS],
            step: [1.0; RAYS],
            first: [0; RAYS],
            end: [0; RAYS],
        };
        for i in 0..RAYS {
            let y = (iy + i) as f64;
            let depth = base[2] + w[1] * y;
            let near = 1.0 / depth;
            // Column -1 is the left margin.
            let column = (base[0] + u[1] * y) * near + 1.0;
            let row = (base[1] + v[1] * y) * near;
            // Rows between -1 and `rows` touch the detector. One voxel too many does no harm: it reads margin.
            let per_row = depth * voxels_of_row;
            let first = ((-1.0 - row) * per_row).clamp(0.0, height);
            let end = ((rows - row) * per_row + 1.0).clamp(0.0, height);
            // The depth's limit keeps 1/w^2 finite in float32.
            let seen = i < count && depth >= 1e-6 && column > 0.0 && column < columns + 1.0;
            let (column, first, end) = if seen { (column, first, end) } else { (0.0, 0.0, 0.0) };
            let left = column as i32;
            let part = column - f64::from(left);
            let gain = near * near;
            rays.left[i] = left as usize;
            rays.weights[0][i] = ((1.0 - part) * gain) as f32;
            rays.weights[1][i] = (part * gain) as f32;
            rays.row[i] = row;
            rays.step[i] = v[2] * near;
            rays.first[i] = first as i32 as usize;
            rays.end[i] = end as i32 as usize;
        }
        rays
    }
}

impl Rays {
    /// The two detector columns of ray `i`, one after the other.
    #[inline(always)]
    pub(super) fn pair<'a>(&self, i: usize, view: &View<'a>) -> &'a [f32] {
        let start = self.left[i] * view.layout.stride;
        &view.pixels[start..start + 2 * view.layout.stride]
    }
}
