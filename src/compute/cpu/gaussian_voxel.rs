//! One Gaussian on the voxel grid: where its rows of voxels begin and end, and its gradients.
//!
//! Offsets `(x, y, z)` from the centre are counted in voxels. With `Q = D' D` taken apart from z to x, the squared distance is a sum of squares,
//! `y = kx x^2 + ky (y - my x)^2 + kz (z - zx x - zy y)^2` (times [`super::gaussian_kernel::Y_OF_Q`]): no cancellation for needles, and the
//! voxels within the cut-off in a row along z follow from one root.

// Generic SIMD, see `gaussian_lanes`.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::gaussians::CUTOFF;
use super::gaussian_kernel::{Y_CUTOFF, Y_OF_Q};
use super::gaussian_lanes::Wide;
use super::gaussian_shape::{Shape, ShapeGradient, Symmetric};
use crate::geometry::VolumeGrid;

/// What the inner loops need of one Gaussian on a grid.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
pub(super) struct VoxelFootprint {
    pub(super) amplitude: f32,
    kx: f32,
    ky: f32,
    pub(super) kz: f32,
    my: f32,
    zx: f32,
    zy: f32,
    /// The voxel next to the centre, and how far the centre lies behind it.
    voxel: [i32; 3],
    fraction: [f32; 3],
    /// Planes `first..end` across x with a voxel within the cut-off, within the grid; empty where there is none.
    pub(super) first_plane: i32,
    pub(super) end_plane: i32,
    padding: f32,
}

/// Floats a [`VoxelFootprint`] takes in the scratch.
pub(super) const VOXEL_FOOTPRINT_FLOATS: usize = size_of::<VoxelFootprint>() / size_of::<f32>();

/// A plane across x within a footprint: rows `first..end` and what they share.
#[derive(Debug, Clone, Copy)]
pub(super) struct VoxelPlane {
    pub(super) x: f32,
    y_of_x: f32,
    pub(super) first: usize,
    pub(super) end: usize,
}

/// Room for stretches; the last register of a store may touch [`SPARE`] more.
const ROOM: usize = 256;
const SPARE: usize = 16;

/// Stretches of rows along z, as long as a register at most, of one footprint: listed before they are worked on, so that the work is one loop whose
/// length is known, instead of three nested ones whose ends a processor cannot foresee.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Stretches {
    pub(super) count: usize,
    /// The plane whose first voxel `at` counts from.
    pub(super) plane: usize,
    /// Whether a register from one of the stretches' first voxels on may reach behind its row.
    pub(super) ragged: bool,
    /// The first voxel.
    pub(super) at: [i32; ROOM + SPARE],
    pub(super) x: [f32; ROOM + SPARE],
    /// `y - my x`.
    pub(super) e: [f32; ROOM + SPARE],
    /// `z - zx x - zy y` at the first voxel.
    pub(super) f: [f32; ROOM + SPARE],
    /// Minus the part of the squared distance that the row shares.
    pub(super) minus_y0: [f32; ROOM + SPARE],
}

impl Stretches {
    pub(super) const EMPTY: Self = Self {
        count: 0,
        plane: 0,
        ragged: false,
        at: [0; ROOM + SPARE],
        x: [0.0; ROOM + SPARE],
        e: [0.0; ROOM + SPARE],
        f: [0.0; ROOM + SPARE],
        minus_y0: [0.0; ROOM + SPARE],
    };

    /// Lanes from stretch `k`'s first voxel to the end of its row of `voxels`; all where the list is not ragged.
    #[inline(always)]
    pub(super) fn left(&self, k: usize, voxels: usize) -> usize {
        if self.ragged { voxels - self.at[k] as usize % voxels } else { usize::MAX }
    }
}

/// Where [`VoxelFootprint::list`] goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    plane: usize,
    end: usize,
    /// Rows and stretches of the plane that were listed before.
    row: usize,
    stretches: usize,
}

impl Walk {
    /// Over planes across x.
    pub(super) const fn over(planes: std::ops::Range<usize>) -> Self {
        Self { plane: planes.start, end: planes.end, row: 0, stretches: 0 }
    }
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
    /// Plane `ix`'s rows.
    #[inline(always)]
    pub(super) fn plane(&self, ix: usize, rows: usize) -> Option<VoxelPlane> {
        let x = (ix as i32 - self.voxel[0]) as f32 - self.fraction[0];
        let y_of_x = self.kx * x * x;
        let half = ((Y_CUTOFF as f32 - y_of_x) / self.ky).sqrt();
        let (first, end) = whole(self.fraction[1] + self.my * x, half, self.voxel[1], rows)?;
        Some(VoxelPlane { x, y_of_x, first, end })
    }

    /// Lists stretches from where `walk` stands on, as many as there is room for; `false` where there is none left.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn list<W: Wide>(&self, walk: &mut Walk, [rows, voxels]: [usize; 2], to: &mut Stretches) -> bool {
        to.count = 0;
        to.ragged = false;
        to.plane = walk.plane;
        while walk.plane < walk.end {
            let offset = (walk.plane - to.plane) * rows * voxels;
            // Integers of 32 bits count from the list's first plane.
            if offset > 1 << 30 && to.count > 0 {
                return true;
            }
            if let Some(plane) = self.plane(walk.plane, rows) {
                let mut iy = plane.first.max(walk.row);
                while iy < plane.end {
                    // SAFETY: the caller's.
                    if !unsafe {
                        self.list_rows::<W>(&plane, iy, offset + iy * voxels, voxels, &mut walk.stretches, to)
                    } {
                        walk.row = iy;
                        return true;
                    }
                    iy += W::N;
                }
            }
            walk.plane += 1;
            walk.row = 0;
        }
        to.count > 0
    }

    /// Lists a register of rows from `iy` on; `false` where there was no room for all, `done` then says how many stretches a row were listed.
    #[inline(always)]
    unsafe fn list_rows<W: Wide>(
        &self,
        plane: &VoxelPlane,
        iy: usize,
        offset: usize,
        voxels: usize,
        done: &mut usize,
        to: &mut Stretches,
    ) -> bool {
        // SAFETY: the caller's; a whole register fits behind `ROOM`.
        unsafe {
            // From the centre's row, in the plane's shear.
            let shift = self.my * plane.x;
            let e = W::add(W::splat((iy as i32 - self.voxel[1]) as f32 - self.fraction[1] - shift), W::ramp());
            let e2 = W::mul(e, e);
            let minus_y0 = W::fma(e2, W::splat(-self.ky), W::splat(-plane.y_of_x));
            let per_kz = 1.0 / self.kz;
            // Less than 0 beyond the ellipsoid: at most one voxel is then tried, and found beyond the cut-off.
            let inside = (Y_CUTOFF as f32 - plane.y_of_x) * per_kz;
            let square = W::fma(e2, W::splat(-self.ky * per_kz), W::splat(inside));
            let half = W::root(W::max(square, W::splat(0.0)));
            let middle = self.fraction[2] + self.zx * plane.x + self.zy * shift;
            let middle = W::fma(W::splat(self.zy), e, W::splat(middle));
            let anchor = self.voxel[2] as f32;
            let mut first = W::max(W::ceil(W::sub(middle, half)), W::splat(-anchor));
            let high = W::min(W::floor(W::add(middle, half)), W::splat(voxels as f32 - 1.0 - anchor));
            if *done > 0 {
                first = W::add(first, W::splat((*done * W::N) as f32));
            }
            // The first voxel from which on a register reaches behind the row.
            let ragged = W::splat(voxels as f32 - (W::N - 1) as f32 - anchor);
            loop {
                let kept = W::ordered(first, high, plane.end - iy);
                let count = W::count(kept);
                if count == 0 {
                    *done = 0;
                    return true;
                }
                if to.count + count > ROOM {
                    return false;
                }
                let at = to.count;
                let start = offset as i32 + self.voxel[2];
                W::store_kept_whole(to.at[at..].as_mut_ptr(), kept, first, start, voxels as i32);
                to.ragged |= W::count(W::ordered(ragged, first, W::N)) > 0;
                W::store(to.x[at..].as_mut_ptr(), W::splat(plane.x));
                W::store_kept(to.e[at..].as_mut_ptr(), kept, e);
                W::store_kept(to.f[at..].as_mut_ptr(), kept, W::sub(first, middle));
                W::store_kept(to.minus_y0[at..].as_mut_ptr(), kept, minus_y0);
                to.count += count;
                *done += 1;
                first = W::add(first, W::splat(W::N as f32));
            }
        }
    }
}

/// The float64 side of a [`VoxelFootprint`], kept for the gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    my: f64,
    zx: f64,
    zy: f64,
}

/// How a grid holds a Gaussian; `None` where no voxel is within the cut-off.
#[inline(always)]
pub(super) fn place(grid: &VolumeGrid, shape: &Shape) -> Option<(Placed, VoxelFootprint)> {
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
    let reach = reach[0] / step.x;
    let first_plane = (centre.x - reach).ceil().max(0.0);
    let end_plane = ((centre.x + reach).floor() + 1.0).min(grid.voxels[0] as f64);
    if first_plane >= end_plane {
        return None;
    }
    let voxel = centre.round();
    let footprint = VoxelFootprint {
        amplitude: shape.amplitude as f32,
        kx: (Y_OF_Q / sxx) as f32,
        ky: (Y_OF_Q / syy) as f32,
        kz: (Y_OF_Q * pzz) as f32,
        my: placed.my as f32,
        zx: placed.zx as f32,
        zy: placed.zy as f32,
        voxel: voxel.to_array().map(|c| c as i32),
        fraction: (centre - voxel).to_array().map(|c| c as f32),
        first_plane: first_plane as i32,
        end_plane: end_plane as i32,
        padding: 0.0,
    };
    Some((placed, footprint))
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
