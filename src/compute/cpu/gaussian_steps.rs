//! Rows of voxels within a Gaussian's footprint by steps from row to row, for Gaussians that are not too thin.
//!
//! In a plane across x, `y` is a quadratic form in row and voxel. From a row to the next it grows by what is linear in both, and that growth
//! grows by a constant: so `v = 2^-y` of a register of voxels follows from the row before by `v *= r`, `r *= c`, two products in place of a
//! power. Powers are taken once a plane. All rows of a plane share one window of registers, about its ellipse; rows need no ends of their own,
//! for `v` itself says which voxels are within the cut-off. The starts of all planes are worked out before the rows are gone through: a processor
//! cannot foresee where a plane's rows end, and would wait for the next plane's powers there.
//!
//! **Errors.** `r` starts with a relative error of 1e-7, and `c` is held to twice float32's digits: after 10 rows `v` is off by some 1e-6 of itself,
//! where it was small at the start and of order 1 about row 5.
//!
//! **Range.** [`VoxelFootprint::bend`] is set only where `y` stays below 120 all over the windows.

// Generic SIMD, see `gaussian_lanes`.
#![allow(unsafe_code)]

use std::f64::consts::LN_2;
use std::ops::Range;

use super::gaussian_kernel::{EDGE, Y_CUTOFF};
use super::gaussian_lanes::Wide;
use super::gaussian_voxel::VoxelFootprint;

/// Floats of the widest register.
const LANES: usize = 16;
/// Room for columns.
const ROOM: usize = 32;
/// Most registers of a plane's rows.
pub(super) const MOST_REGISTERS: usize = 8;

/// `2^-y` at the cut-off.
const POWER_AT_CUTOFF: f32 = 9.118_82e-4;

impl VoxelFootprint {
    /// Whether [`Columns`] may be used.
    #[inline(always)]
    pub(super) fn steps(&self) -> bool {
        self.bend > 0.0
    }
}

/// A register of voxels in one plane across x, to be stepped along y.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Column {
    /// `2^-y` in the first row.
    power: [f32; LANES],
    /// Of the second row's power to the first's, in lane 0.
    ratio: f32,
    /// `z - zx x - zy y` in the first row, in lane 0.
    f: f32,
    pub(super) x: f32,
    /// `y - my x` of the first row.
    pub(super) e: f32,
    /// The first voxel of the first row, counted from the list's first plane.
    pub(super) at: u32,
    pub(super) rows: u32,
}

/// Columns of one footprint.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Columns {
    /// How the ratio grows along a register, and from a register to the next.
    along: [f32; LANES],
    jump: f32,
    list: [Column; ROOM],
    planes: Planes,
    count: usize,
    /// The plane whose first voxel the columns count from.
    pub(super) plane: usize,
    /// Where to go on.
    next: Range<usize>,
}

/// What the columns of a plane have in common, for a register of planes at once.
#[derive(Debug)]
#[repr(C, align(64))]
struct Planes {
    x: [f32; LANES],
    e: [f32; LANES],
    /// These two of the first register's lane 0.
    f: [f32; LANES],
    ratio: [f32; LANES],
    /// Minus the part of `y` that the first row shares.
    minus_y0: [f32; LANES],
    first: [i32; LANES],
    /// None where no voxel is within the cut-off.
    rows: [i32; LANES],
    /// First voxel of the first register.
    start: [i32; LANES],
    registers: [i32; LANES],
}

/// `2^(a b + c)` where the exponent's rounding would be too much.
#[inline(always)]
unsafe fn power_of_sum<W: Wide>(a: W::V, b: W::V, c: W::V) -> W::V {
    // SAFETY: the caller's.
    unsafe {
        let sum = W::fma(a, b, c);
        let rest = W::fma(a, b, W::sub(c, sum));
        let power = W::fine_power(sum);
        W::fma(W::mul(power, W::splat(LN_2 as f32)), rest, power)
    }
}

impl Planes {
    /// Planes from `first` on.
    #[inline(always)]
    unsafe fn fill<W: Wide>(&mut self, footprint: &VoxelFootprint, first: usize, [rows, row]: [usize; 2]) {
        let VoxelFootprint { kx, ky, kz, my, zx, zy, voxel, fraction, .. } = *footprint;
        // SAFETY: the caller's; a register is no wider than the arrays.
        unsafe {
            let zero = W::splat(0.0);
            // Whole numbers first: a plane's values must not depend on the plane that a slab begins with.
            let plane = W::add(W::splat((first as i32 - voxel[0]) as f32), W::ramp());
            let x = W::sub(plane, W::splat(fraction[0]));
            let y_of_x = W::mul(W::mul(W::splat(kx), x), x);
            let inside = W::max(W::sub(W::splat(Y_CUTOFF as f32), y_of_x), zero);
            let shift = W::mul(W::splat(my), x);
            let middle_y = W::add(W::splat(fraction[1]), shift);
            let middle_z = W::fma(W::splat(zy), shift, W::fma(W::splat(zx), x, W::splat(fraction[2])));
            let half_y = W::root(W::mul(inside, W::splat(1.0 / ky)));
            let half_z = W::root(W::mul(inside, W::splat(zy * zy / ky + 1.0 / kz)));
            // Rows and voxels are counted from the centre's, and clipped to the grid.
            let [row_0, voxel_0] = [1, 2].map(|axis| -voxel[axis] as f32);
            let first = W::max(W::ceil(W::sub(middle_y, half_y)), W::splat(row_0));
            let last = W::min(W::floor(W::add(middle_y, half_y)), W::splat(row_0 + (rows - 1) as f32));
            let low = W::max(W::ceil(W::sub(middle_z, half_z)), W::splat(voxel_0));
            let high = W::min(W::floor(W::add(middle_z, half_z)), W::splat(voxel_0 + (row - 1) as f32));
            let length = W::add(W::sub(high, low), W::splat(1.0));
            let count = W::max(W::add(W::sub(last, first), W::splat(1.0)), zero);
            let count = W::below(W::splat(0.5), length, count);
            // About the ellipse's middle, so that no voxel lies farther off than need be, and within the row.
            let registers = W::ceil(W::mul(length, W::splat(1.0 / W::N as f32)));
            let floats = W::mul(registers, W::splat(W::N as f32));
            let start = W::sub(low, W::floor(W::mul(W::sub(floats, length), W::splat(0.5))));
            let start = W::min(start, W::sub(W::splat(voxel_0 + row as f32), floats));
            let start = W::max(start, W::splat(voxel_0));
            let e = W::sub(first, middle_y);
            let f = W::sub(W::sub(start, middle_z), W::mul(W::splat(zy), e));
            let growth = W::fma(W::splat(-2.0 * ky), e, W::splat(-(ky + kz * zy * zy)));
            W::store(self.ratio.as_mut_ptr(), power_of_sum::<W>(W::splat(2.0 * kz * zy), f, growth));
            W::store(self.x.as_mut_ptr(), x);
            W::store(self.e.as_mut_ptr(), e);
            W::store(self.f.as_mut_ptr(), f);
            let y0 = W::fma(W::mul(W::splat(ky), e), e, y_of_x);
            W::store(self.minus_y0.as_mut_ptr(), W::sub(zero, y0));
            W::store_whole(self.first.as_mut_ptr(), W::sub(first, W::splat(row_0)));
            W::store_whole(self.rows.as_mut_ptr(), count);
            W::store_whole(self.start.as_mut_ptr(), W::sub(start, W::splat(voxel_0)));
            W::store_whole(self.registers.as_mut_ptr(), registers);
        }
    }
}

impl Columns {
    pub(super) const EMPTY: Self = {
        let (none, zero) = ([0.0; LANES], [0; LANES]);
        let column = Column { power: none, ratio: 0.0, f: 0.0, x: 0.0, e: 0.0, at: 0, rows: 0 };
        let planes = Planes {
            x: none,
            e: none,
            f: none,
            ratio: none,
            minus_y0: none,
            first: zero,
            rows: zero,
            start: zero,
            registers: zero,
        };
        Self { along: none, jump: 1.0, list: [column; ROOM], planes, count: 0, plane: 0, next: 0..0 }
    };

    /// To begin with `planes` of a footprint.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn begin<W: Wide>(&mut self, footprint: &VoxelFootprint, planes: Range<usize>) {
        self.next = planes;
        // SAFETY: the caller's.
        unsafe {
            let slope = W::splat(2.0 * footprint.kz * footprint.zy);
            let along = power_of_sum::<W>(slope, W::ramp(), W::splat(0.0));
            W::store(self.along.as_mut_ptr(), along);
        }
        self.jump = self.along[W::N - 1] * self.along[1 % W::N];
    }

    /// The columns that are listed.
    #[inline(always)]
    pub(super) fn listed(&self) -> &[Column] {
        &self.list[..self.count]
    }

    /// Lists as many further columns as there is room for; `false` where there is none left. All registers of a column lie within their rows.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn fill<W: Wide>(&mut self, footprint: &VoxelFootprint, [rows, row]: [usize; 2]) -> bool {
        self.count = 0;
        self.plane = self.next.start;
        while self.next.start < self.next.end {
            let first = self.next.start;
            // SAFETY: the caller's.
            unsafe { self.planes.fill::<W>(footprint, first, [rows, row]) };
            let planes = &self.planes;
            for k in 0..W::N.min(self.next.end - first) {
                if planes.rows[k] > 0 {
                    let offset = (first + k - self.plane) * rows * row;
                    let registers = (planes.registers[k] as usize).min(MOST_REGISTERS);
                    // 32 bits count from the list's first plane.
                    if self.count + registers > ROOM || offset > 1 << 31 {
                        return true;
                    }
                    let at = offset + planes.first[k] as usize * row + planes.start[k] as usize;
                    let mut ratio = planes.ratio[k];
                    for register in 0..registers {
                        let to = &mut self.list[self.count];
                        to.f = planes.f[k] + (register * W::N) as f32;
                        // SAFETY: the caller's.
                        unsafe {
                            let f = W::add(W::ramp(), W::splat(to.f));
                            let minus_y = W::fma(W::mul(W::splat(-footprint.kz), f), f, W::splat(planes.minus_y0[k]));
                            W::store(to.power.as_mut_ptr(), W::fine_power(minus_y));
                        }
                        to.ratio = ratio;
                        ratio *= self.jump;
                        (to.x, to.e) = (planes.x[k], planes.e[k]);
                        (to.at, to.rows) = ((at + register * W::N) as u32, planes.rows[k] as u32);
                        self.count += 1;
                    }
                }
                self.next.start += 1;
            }
        }
        self.count > 0
    }
}

/// A column's register in one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps<W: Wide> {
    power: W::V,
    ratio: W::V,
    pub(super) f: W::V,
}

impl<W: Wide> Steps<W> {
    /// In the first row.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn of(columns: &Columns, column: &Column) -> Self {
        // SAFETY: the caller's; a register is no wider than the arrays.
        unsafe {
            Self {
                power: W::load(column.power.as_ptr()),
                ratio: W::mul(W::splat(column.ratio), W::load(columns.along.as_ptr())),
                f: W::add(W::splat(column.f), W::ramp()),
            }
        }
    }

    /// `g3` and `-dg3/dq` times 2 (to be masked by [`Steps::within`]).
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn value_and_slope(&self) -> (W::V, W::V) {
        // SAFETY: the caller's.
        unsafe {
            let inverse = W::rough_reciprocal(self.power);
            (W::fma(W::splat(-EDGE), inverse, self.power), W::fma(W::splat(EDGE), inverse, self.power))
        }
    }

    /// `value` in voxels within the cut-off, 0 in others.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn within(&self, value: W::V) -> W::V {
        // SAFETY: the caller's.
        unsafe { W::below(W::splat(POWER_AT_CUTOFF), self.power, value) }
    }

    /// To the next row.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn step(&mut self, bend: W::V, bend_rest: W::V) {
        // SAFETY: the caller's.
        unsafe {
            self.power = W::mul(self.power, self.ratio);
            self.ratio = W::fma(self.ratio, bend, W::mul(self.ratio, bend_rest));
        }
    }
}
