//! One Gaussian on the voxel grid: where its rows of voxels begin and end, and its gradients.
//!
//! Offsets `(x, y, z)` from the centre are counted in voxels. With `Q = D' D` taken apart from z to x, the squared distance is a sum of squares,
//! `y = kx x^2 + ky (y - my x)^2 + kz (z - zx x - zy y)^2` (times [`super::gaussian_kernel::Y_OF_Q`]): no cancellation for needles, and the
//! voxels within the cut-off in a row along z follow from one root.

#![forbid(unsafe_code)]

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::ComputeError;
use super::super::gaussians::CUTOFF;
use super::gaussian_kernel::{Y_CUTOFF, Y_OF_Q};
use super::gaussian_shape::{Shape, ShapeGradient, Symmetric};
use super::gaussian_steps::MOST_REGISTERS;
use crate::geometry::VolumeGrid;

/// What the inner loops need of one Gaussian on a grid.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
pub(super) struct VoxelFootprint {
    pub(super) amplitude: f32,
    pub(super) kx: f32,
    pub(super) ky: f32,
    pub(super) kz: f32,
    pub(super) my: f32,
    pub(super) zx: f32,
    pub(super) zy: f32,
    /// The voxel next to the centre, and how far the centre lies behind it.
    pub(super) voxel: [i32; 3],
    pub(super) fraction: [f32; 3],
    /// See [`VoxelFootprint::planes`].
    planes: [u16; 2],
    /// `2^-2 (ky + kz zy^2)`, by which the ratio of neighbouring rows changes from row to row, and what float32 leaves of it; not above 0
    /// where [`super::gaussian_steps`] must not be used.
    pub(super) bend: f32,
    pub(super) bend_rest: f32,
}
const _: () = assert!(VOXEL_FOOTPRINT_FLOATS == 16, "a footprint is one cache line");

/// Refuses a grid whose planes a [`VoxelFootprint`] cannot count.
pub(super) fn check_grid(operation: &'static str, grid: &VolumeGrid) -> Result<(), ComputeError> {
    // Planes are counted in 16 bits, voxels of two planes in 31.
    match grid.voxels.iter().zip([65_535, 32_768, 32_768]).position(|(&voxels, most)| voxels > most) {
        None => Ok(()),
        Some(index) => Err(ComputeError::Value {
            operation,
            parameter: "grid.voxels",
            index,
            value: grid.voxels[index] as f32,
            requirement: "must be at most 65535 along x and 32768 along y and z: work on parts of the grid",
        }),
    }
}

/// Floats a [`VoxelFootprint`] takes in the scratch.
pub(super) const VOXEL_FOOTPRINT_FLOATS: usize = size_of::<VoxelFootprint>() / size_of::<f32>();

/// A plane across x within a footprint: rows `first..end` and what they share.
#[derive(Debug, Clone, Copy)]
pub(super) struct VoxelPlane {
    pub(super) x: f32,
    pub(super) y_of_x: f32,
    pub(super) first: usize,
    pub(super) end: usize,
}

/// `first..end` of the whole numbers within `middle ± half` from `anchor` on, within `0..count`.
#[inline(always)]
fn whole(middle: f32, half: f32, anchor: i32, count: usize) -> Option<(usize, usize)> {
    let first = ((middle - half).ceil() as i32).saturating_add(anchor).max(0);
    let end = ((middle + half).floor() as i32).saturating_add(anchor).saturating_add(1).min(count as i32);
    // A NaN comes from a root of less than 0: beyond the ellipsoid.
    (first < end && half >= 0.0).then_some((first as usize, end as usize))
}

impl VoxelFootprint {
    /// Planes across x with a voxel within the cut-off, within the grid; empty where there is none.
    #[inline(always)]
    pub(super) fn planes(&self) -> Range<usize> {
        usize::from(self.planes[0])..usize::from(self.planes[1])
    }

    /// Plane `ix`'s rows.
    #[inline(always)]
    pub(super) fn plane(&self, ix: usize, rows: usize) -> Option<VoxelPlane> {
        let x = (ix as i32 - self.voxel[0]) as f32 - self.fraction[0];
        let y_of_x = self.kx * x * x;
        let half = ((Y_CUTOFF as f32 - y_of_x) / self.ky).sqrt();
        let (first, end) = whole(self.fraction[1] + self.my * x, half, self.voxel[1], rows)?;
        Some(VoxelPlane { x, y_of_x, first, end })
    }
}

/// The float64 side of a [`VoxelFootprint`], kept for the gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    my: f64,
    zx: f64,
    zy: f64,
}

/// How a grid holds a Gaussian, for registers of `lanes`; `None` where no voxel is within the cut-off.
#[inline(always)]
pub(super) fn place(grid: &VolumeGrid, shape: &Shape, lanes: usize) -> Option<(Placed, VoxelFootprint)> {
    let step = grid.voxel_mm;
    let centre = (shape.centre() - grid.origin_mm()) / step;
    let (s, p) = (&shape.covariance.0, &shape.precision.0);
    let reach = (CUTOFF * DVec3::new(s[0], s[3], s[5])).to_array().map(f64::sqrt);
    for (axis, reach) in reach.into_iter().enumerate() {
        let reach = reach / step[axis];
        if !(centre[axis] + reach >= 0.0 && centre[axis] - reach <= grid.voxels[axis] as f64 - 1.0) {
            return None;
        }
    }
    // As for pixels: float32 would have no digits left.
    if centre.abs().max_element() > 1e6 {
        return None;
    }
    let sxx = s[0] / (step.x * step.x);
    let pzz = p[5] * step.z * step.z;
    // Product of the three pivots: the determinant. All factors are positive: nothing is lost.
    let det = shape.volume * shape.volume / (step.x * step.y * step.z).powi(2);
    let syy = det * pzz / sxx;
    let placed = Placed {
        my: s[1] * step.x / (s[0] * step.y),
        zx: -p[2] * step.x / (p[5] * step.z),
        zy: -p[4] * step.y / (p[5] * step.z),
    };
    let reach_x = reach[0] / step.x;
    let first_plane = (centre.x - reach_x).ceil().max(0.0);
    let end_plane = ((centre.x + reach_x).floor() + 1.0).min(grid.voxels[0] as f64);
    if first_plane >= end_plane {
        return None;
    }
    let (ky, kz) = (Y_OF_Q / syy, Y_OF_Q * pzz);
    let bend = bend(grid.voxels[2], lanes, [ky, kz, placed.zy], centre.z, reach[2] / step.z);
    let voxel = centre.round();
    let footprint = VoxelFootprint {
        amplitude: shape.amplitude as f32,
        kx: (Y_OF_Q / sxx) as f32,
        ky: ky as f32,
        kz: kz as f32,
        my: placed.my as f32,
        zx: placed.zx as f32,
        zy: placed.zy as f32,
        voxel: voxel.to_array().map(|c| c as i32),
        fraction: (centre - voxel).to_array().map(|c| c as f32),
        planes: [first_plane as u16, end_plane as u16],
        bend: bend as f32,
        bend_rest: (bend - f64::from(bend as f32)) as f32,
    };
    Some((placed, footprint))
}

/// [`VoxelFootprint::bend`]: usable only where a window of registers over the footprint holds no voxel of which float32 could not hold `2^-y`.
#[inline(always)]
fn bend(row: usize, lanes: usize, [ky, kz, zy]: [f64; 3], centre: f64, reach: f64) -> f64 {
    let (half_y, half_z) = ((Y_CUTOFF / ky).sqrt(), (Y_CUTOFF * (zy * zy / ky + 1.0 / kz)).sqrt());
    let window = lanes as f64 * ((2.0 * half_z + 1.0) / lanes as f64).ceil();
    // A window lies about its plane's middle, but for the grid's ends.
    let middle = centre - reach > 0.5 * window + 1.0 && centre + reach < row as f64 - 0.5 * window - 2.0;
    let beside = if middle { 0.5 * window } else { window };
    let farthest = beside + 1.5 + zy.abs() * half_y;
    let change = 2.0 * (ky + kz * zy * zy);
    // Errors grow with the rows stepped through.
    let usable = lanes > 1
        && 2.0 * half_y <= 64.0
        && window <= row.min(MOST_REGISTERS * lanes) as f64
        && kz * farthest * farthest <= 100.0
        && 2.0 * kz * zy.abs() * window <= 100.0
        && change <= 100.0;
    if usable { (-change).exp2() } else { -1.0 }
}

/// Sums over the voxels of a footprint: with `G` the loss's gradient by the voxel, `value = sum G g3`, the others weigh by `-2 G dg3/dq`:
/// `x, e, f`, then `xx, xe, xf, ee, ef, ff` (`e = y - my x`, `f = z - zx x - zy y`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct VoxelMoments {
    pub(super) value: f64,
    pub(super) first: [f64; 3],
    pub(super) second: [f64; 6],
}

impl Placed {
    /// Adds the gradient by `shape` to `to`.
    #[inline(always)]
    pub(super) fn add_gradient(&self, grid: &VolumeGrid, shape: &Shape, sums: &VoxelMoments, to: &mut ShapeGradient) {
        let step = grid.voxel_mm;
        // (x, y, z) = x cx + e ce + f cf, in mm.
        let cx = step * DVec3::new(1.0, self.my, self.zx + self.zy * self.my);
        let ce = step * DVec3::new(0.0, 1.0, self.zy);
        let cf = step * DVec3::Z;
        let [x, e, f] = sums.first;
        to.centre += shape.amplitude * shape.precision.times(x * cx + e * ce + f * cf);
        to.amplitude += sums.value;
        let [xx, xe, xf, ee, ef, ff] = sums.second;
        let mut square = Symmetric::default();
        square.add_square(xx, cx);
        square.add_square(ee, ce);
        square.add_square(ff, cf);
        square.add_product(2.0 * xe, cx, ce);
        square.add_product(2.0 * xf, cx, cf);
        square.add_product(2.0 * ef, ce, cf);
        for (to, sum) in to.precision.0.iter_mut().zip(square.0) {
            *to -= 0.5 * shape.amplitude * sum;
        }
    }
}
