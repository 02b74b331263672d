//! Rows of voxels within a Gaussian's footprint, listed in pieces of a register's length: the way for Gaussians of any shape
//! ([`super::gaussian_steps`] is the faster one for those not too thin).

// Generic SIMD, see `gaussian_lanes`.
#![allow(unsafe_code)]

use super::gaussian_kernel::Y_CUTOFF;
use super::gaussian_lanes::Wide;
use super::gaussian_voxel::{VoxelFootprint, VoxelPlane};

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

impl VoxelFootprint {
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
