//! One Gaussian seen in one view: the exact line integral as a function of the pixel, without cancellation, and its gradients.
//!
//! With the source at the origin, let `t D` be the Gaussian's centre, `D` ending where the centre projects (column `jc`, row `ic`), `C` and `R`
//! the steps to the next column and row, `S` covariance, `P` precision. The ray to the pixel at offset `(dj, di)` from there has
//! direction `D + dj C + di R`, and passes the centre at the squared Mahalanobis distance
//!
//! `q = t^2 |dj N1 + di N2|_S^2 / (det S |D + dj C + di R|_P^2)`, `N1 = D x C`, `N2 = D x R`
//!
//! (`|M a x M b|^2 = |a x b|_S^2 / det S`): a quadratic form without constant term over a positive one. Its cross term is taken
//! out by counting columns along the sheared step `R' = R - s C` with `s = (N1 S N2) / (N1 S N1)`, so `d = dj + s di`; then
//! `N2' S N2' = det S (D . C x R)^2 |D|_P^2 / (N1 S N1)`, a product of positive terms, however thin the Gaussian is. The line integral is
//!
//! `I = amplitude sqrt(2 pi) |D + dj C + di R| / |D + dj C + di R|_P  g2(q)`, the length being the pixel's alone.
//!
//! **Work.** About 150 float64 operations a Gaussian and view forward, 350 backward.

// Generic SIMD, see `gaussian_lanes`.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};
use glam::DVec3;

use super::super::gaussians::CUTOFF;
use super::gaussian_kernel::{Y_CUTOFF, Y_OF_Q};
use super::gaussian_lanes::Wide;
use super::gaussian_shape::{Shape, ShapeGradient};
use crate::geometry::{Detector, ViewPose};

/// What all Gaussians of a view share.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    detector: Detector,
    source: DVec3,
    column: DVec3,
    row: DVec3,
    /// `normal . (x - source)` is the relative depth: 1 on the detector.
    normal: DVec3,
    /// `dual . (D - origin)` is a column, a row.
    dual_column: DVec3,
    dual_row: DVec3,
    /// Pixel (0, 0) from the source.
    origin: DVec3,
    /// `(D . C x R)^2`, the same for every point of the detector.
    triple_square: f64,
}

impl View {
    pub(super) fn new(pose: &ViewPose, detector: Detector) -> Self {
        let (c, r) = (pose.column_step_mm, pose.row_step_mm);
        let (cc, rr, cr) = (c.length_squared(), r.length_squared(), c.dot(r));
        let det = cc * rr - cr * cr;
        let origin = pose.detector_origin_mm - pose.source_mm;
        Self {
            detector,
            source: pose.source_mm,
            column: c,
            row: r,
            normal: pose.normal() / pose.source_to_plane_mm(),
            dual_column: (c * rr - r * cr) / det,
            dual_row: (r * cc - c * cr) / det,
            origin,
            triple_square: origin.dot(c.cross(r)).powi(2),
        }
    }

    /// `|D|^2` along row `row` as `a + (b + c j) j`: what the pixels' lengths are made of.
    pub(super) fn length_square(&self, row: usize) -> [f32; 3] {
        let start = self.origin + row as f64 * self.row;
        [start.length_squared() as f32, (2.0 * start.dot(self.column)) as f32, self.column.length_squared() as f32]
    }
}

/// What the inner loops need of one Gaussian in one view; see the module for `d`, `s`.
///
/// `y = (kd d^2 + ki di^2) / den`, `den = 1 + d (a1 + c di + a2 d) + di (b1 + b2 di)`, value `amplitude / sqrt(den) g2`. The pixels within
/// the cut-off are, in row `di`, those with `|d - mid - slope (di - centre)| <= sqrt(half0 - half1 (di - centre)^2)`.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C)]
pub(super) struct Footprint {
    pub(super) amplitude: f32,
    pub(super) kd: f32,
    pub(super) ki: f32,
    pub(super) shear: f32,
    pub(super) a1: f32,
    pub(super) a2: f32,
    pub(super) b1: f32,
    pub(super) b2: f32,
    pub(super) c: f32,
    mid: f32,
    slope: f32,
    centre: f32,
    half0: f32,
    half1: f32,
    /// The pixel next to the projected centre, and how far that lies behind it.
    column: i32,
    row: i32,
    column_fraction: f32,
    row_fraction: f32,
    /// Rows with a pixel within the cut-off: `first..end`, within the detector; empty where the Gaussian is not seen.
    pub(super) first_row: i32,
    pub(super) end_row: i32,
}

/// Floats a [`Footprint`] takes in the scratch.
pub(super) const FOOTPRINT_FLOATS: usize = size_of::<Footprint>() / size_of::<f32>();

/// Rows whose spans are found together.
pub(super) const BLOCK: usize = 16;

/// The pixels within a footprint in [`BLOCK`] rows, and the rows' terms: worked out once a block, in lanes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Spans {
    /// Columns `first..=last`; nothing where `last < first`.
    pub(super) first: [i32; BLOCK],
    pub(super) last: [i32; BLOCK],
    pub(super) di: [f32; BLOCK],
    /// `d` of column `first`.
    pub(super) d: [f32; BLOCK],
    /// `den = den0 + d (den1 + a2 d)`; `y = (kd d^2 + y0) / den`.
    pub(super) den0: [f32; BLOCK],
    pub(super) den1: [f32; BLOCK],
    pub(super) y0: [f32; BLOCK],
}

impl Spans {
    pub(super) const EMPTY: Self = Self {
        first: [0; BLOCK],
        last: [-1; BLOCK],
        di: [0.0; BLOCK],
        d: [0.0; BLOCK],
        den0: [0.0; BLOCK],
        den1: [0.0; BLOCK],
        y0: [0.0; BLOCK],
    };
}

impl Footprint {
    /// Fills in the spans of `rows` (at most [`BLOCK`]) rows from `first_row` on; `first..=last` lies within `0..columns`.
    ///
    /// # Safety
    /// As [`Wide`].
    #[inline(always)]
    pub(super) unsafe fn spans<W: Wide>(&self, first_row: i32, rows: usize, columns: usize, to: &mut Spans) {
        debug_assert!(rows <= BLOCK);
        // SAFETY: the caller's; whole registers fit, for a block is a multiple of every level's lanes.
        unsafe {
            let mut at = 0;
            while at < rows {
                let row = W::add(W::splat((first_row - self.row + at as i32) as f32), W::ramp());
                let di = W::sub(row, W::splat(self.row_fraction));
                let off = W::sub(di, W::splat(self.centre));
                let square = W::sub(W::splat(self.half0), W::mul(W::mul(W::splat(self.half1), off), off));
                // Less than 0 beyond the ellipse: at most one pixel is then tried, and found beyond the cut-off.
                let half = W::root(W::max(square, W::splat(0.0)));
                // Where the projected column stands if `d` is 0.
                let zero = W::sub(W::splat(self.column_fraction), W::mul(W::splat(self.shear), di));
                let mid = W::add(zero, W::fma(W::splat(self.slope), off, W::splat(self.mid)));
                let anchor = self.column as f32;
                let none = W::splat(0.0);
                let low = W::sub(none, W::floor(W::sub(half, mid)));
                let low = W::max(W::min(low, W::splat(columns as f32 - anchor)), W::splat(-anchor));
                let high = W::floor(W::add(mid, half));
                let high = W::max(W::min(high, W::splat(columns as f32 - 1.0 - anchor)), W::splat(-1.0 - anchor));
                W::store_whole(to.first[at..].as_mut_ptr(), W::add(low, W::splat(anchor)));
                W::store_whole(to.last[at..].as_mut_ptr(), W::add(high, W::splat(anchor)));
                W::store(to.di[at..].as_mut_ptr(), di);
                W::store(to.d[at..].as_mut_ptr(), W::sub(low, zero));
                let den0 = W::fma(W::fma(W::splat(self.b2), di, W::splat(self.b1)), di, W::splat(1.0));
                W::store(to.den0[at..].as_mut_ptr(), den0);
                W::store(to.den1[at..].as_mut_ptr(), W::fma(W::splat(self.c), di, W::splat(self.a1)));
                W::store(to.y0[at..].as_mut_ptr(), W::mul(W::mul(W::splat(self.ki), di), di));
                at += W::N;
            }
        }
    }
}

/// The float64 side of a [`Footprint`], kept for the gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    depth: f64,
    d: DVec3,
    sheared: DVec3,
    shear: f64,
    n1: DVec3,
    n2: DVec3,
    z1: DVec3,
    /// `N1 . S N1`.
    g11: f64,
    y0: DVec3,
    y_column: DVec3,
    y_row: DVec3,
    /// `1 / |D|_P^2`.
    h: f64,
    a1: f64,
    a2: f64,
    b1: f64,
    b2: f64,
    c: f64,
    kd: f64,
    ki: f64,
    amplitude: f64,
}

const ROOT_TAU: f64 = 2.506_628_274_631_000_7;

impl View {
    /// How the view sees a Gaussian; `None` where it adds nothing, whatever its density: behind the source, off the detector.
    #[inline(always)]
    pub(super) fn see(&self, shape: &Shape) -> Option<(Seen, Footprint)> {
        let x = shape.centre() - self.source;
        let depth = self.normal.dot(x);
        let reach = CUTOFF * self.normal.dot(shape.covariance.times(self.normal));
        if depth <= 0.0 || depth * depth <= reach {
            return None;
        }
        let d = x * (1.0 / depth);
        let jc = self.dual_column.dot(d - self.origin);
        let ic = self.dual_row.dot(d - self.origin);
        let n1 = d.cross(self.column);
        let z1 = shape.covariance.times(n1);
        let g11 = n1.dot(z1);
        let plain_n2 = d.cross(self.row);
        let inverse_g11 = 1.0 / g11;
        let shear = plain_n2.dot(z1) * inverse_g11;
        let sheared = self.row - shear * self.column;
        let n2 = plain_n2 - shear * n1;
        let (y0, y_column) = (shape.precision.times(d), shape.precision.times(self.column));
        let y_row = shape.precision.times(sheared);
        let square = d.dot(y0);
        let h = 1.0 / square;
        let inverse_det = 1.0 / (shape.volume * shape.volume);
        let depth_square = depth * depth;
        let seen = Seen {
            depth,
            d,
            sheared,
            shear,
            n1,
            n2,
            z1,
            g11,
            y0,
            y_column,
            y_row,
            h,
            a1: d.dot(y_column) * h,
            a2: self.column.dot(y_column) * h,
            b1: d.dot(y_row) * h,
            b2: sheared.dot(y_row) * h,
            c: sheared.dot(y_column) * h,
            kd: Y_OF_Q * depth_square * inverse_det * h * g11,
            ki: Y_OF_Q * depth_square * self.triple_square * inverse_g11,
            amplitude: shape.amplitude * ROOT_TAU * h.sqrt(),
        };
        let footprint = seen.footprint(self.detector, jc, ic)?;
        Some((seen, footprint))
    }
}

impl Seen {
    /// The ellipse `y <= Y_CUTOFF`, clipped to the detector.
    #[inline(always)]
    fn footprint(&self, detector: Detector, jc: f64, ic: f64) -> Option<Footprint> {
        let e = self.kd - Y_CUTOFF * self.a2;
        let f = -Y_CUTOFF * self.c;
        let g = self.ki - Y_CUTOFF * self.b2;
        let det = e * g - f * f;
        // Not an ellipse: the source is inside the Gaussian. (Also where anything is not a number.)
        if !(e > 0.0 && det > 0.0) {
            return None;
        }
        let (ld, li) = (Y_CUTOFF * self.a1, Y_CUTOFF * self.b1);
        let (inverse_det, inverse_e) = (1.0 / det, 1.0 / e);
        let centre = (e * li - f * ld) * inverse_det;
        let mid = (g * ld - f * li) * inverse_det;
        let level = Y_CUTOFF + ld * mid + li * centre;
        let half_rows = (level * e * inverse_det).sqrt();
        let first_row = (ic + centre - half_rows).ceil().max(0.0);
        let end_row = ((ic + centre + half_rows).floor() + 1.0).min(detector.rows as f64);
        // Columns of the whole ellipse: dj = d - shear di.
        let half_columns = (level * (g + 2.0 * self.shear * f + self.shear * self.shear * e) * inverse_det).sqrt();
        let mid_column = jc + mid - self.shear * centre;
        let on_columns = mid_column + half_columns >= 0.0 && mid_column - half_columns <= detector.columns as f64 - 1.0;
        // A centre that far off the detector leaves float32 no digits for its pixels; no object within the field of view gets there.
        if !(first_row < end_row && on_columns && jc.abs() < 1e6 && ic.abs() < 1e6) {
            return None;
        }
        let (column, row) = (jc.round(), ic.round());
        Some(Footprint {
            amplitude: self.amplitude as f32,
            kd: self.kd as f32,
            ki: self.ki as f32,
            shear: self.shear as f32,
            a1: 2.0 * self.a1 as f32,
            a2: self.a2 as f32,
            b1: 2.0 * self.b1 as f32,
            b2: self.b2 as f32,
            c: 2.0 * self.c as f32,
            mid: mid as f32,
            slope: (-f * inverse_e) as f32,
            centre: centre as f32,
            half0: (level * inverse_e) as f32,
            half1: (det * inverse_e * inverse_e) as f32,
            column: column as i32,
            row: row as i32,
            column_fraction: (jc - column) as f32,
            row_fraction: (ic - row) as f32,
            first_row: first_row as i32,
            end_row: end_row as i32,
        })
    }
}

/// Sums over the pixels of a footprint that the gradient is made of. With `G` the loss's gradient by the pixel times the pixel's length and
/// `r = 1/sqrt(den)`: `value = sum G r g2`; `alpha` weighs by `G r^3 g2'`, `beta` by `G r^3 (g2/2 + y g2')`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) value: f64,
    /// `d`, `di`, `d^2`, `d di`, `di^2`.
    pub(super) alpha: [f64; 5],
    /// 1, `d`, `di`, `d^2`, `d di`, `di^2`.
    pub(super) beta: [f64; 6],
}

impl View {
    /// Adds the gradient by `shape` to `to`.
    #[inline(always)]
    pub(super) fn add_gradient(&self, shape: &Shape, seen: &Seen, sums: &Moments, to: &mut ShapeGradient) {
        let s = seen;
        let scale = s.amplitude;
        let alpha = sums.alpha.map(|m| m * scale);
        let beta = sums.beta.map(|m| m * scale);
        let (k11, k12, k22) = (alpha[2], 2.0 * alpha[3], alpha[4]);
        let (by_a1, by_b1) = (-2.0 * beta[1], -2.0 * beta[2]);
        let (by_a2, by_c, by_b2) = (-beta[3], -2.0 * beta[4], -beta[5]);
        // By a shift of all `d` and all `di`.
        let by_d = 2.0 * (s.kd * alpha[0] - s.a1 * beta[0] - s.a2 * beta[1] - s.c * beta[2]);
        let by_di = 2.0 * (s.ki * alpha[1] - s.b1 * beta[0] - s.c * beta[1] - s.b2 * beta[2]);
        // By `h` times `h`, and by |D|_P^2 = 1 / h.
        let forms = k11 * s.kd + k22 * s.ki;
        let by_h_h =
            by_a1 * s.a1 + by_b1 * s.b1 + by_a2 * s.a2 + by_c * s.c + by_b2 * s.b2 + forms + 0.5 * sums.value * scale;
        let by_square = -by_h_h * s.h;
        let [by_e1, by_e2, by_f11, by_f12, by_f22] = [by_a1, by_b1, by_a2, by_c, by_b2].map(|g| g * s.h);
        let tau = s.kd / s.g11;
        let [by_g11, by_g12, by_g22] = [k11, k12, k22].map(|g| g * tau);
        let z2 = shape.covariance.times(s.n2);
        let by_n1 = 2.0 * by_g11 * s.z1 + by_g12 * z2;
        let by_n2 = 2.0 * by_g22 * z2 + by_g12 * s.z1;
        let by_point = self.column.cross(by_n1)
            + s.sheared.cross(by_n2)
            + 2.0 * by_square * s.y0
            + by_e1 * s.y_column
            + by_e2 * s.y_row
            - by_d * (self.dual_column + s.shear * self.dual_row)
            - by_di * self.dual_row;
        let by_centre = (by_point - self.normal * s.d.dot(by_point)) / s.depth + self.normal * (2.0 * forms / s.depth);
        to.centre += by_centre;
        to.view_norm += by_centre.length();
        to.amplitude += sums.value * ROOT_TAU * s.h.sqrt();
        to.log_volume -= 2.0 * forms;
        to.covariance.add_square(by_g11, s.n1);
        to.covariance.add_product(by_g12, s.n1, s.n2);
        to.covariance.add_square(by_g22, s.n2);
        let with_point = by_square * s.d + by_e1 * self.column + by_e2 * s.sheared;
        to.precision.add_product(1.0, s.d, with_point);
        to.precision.add_square(by_f11, self.column);
        to.precision.add_product(by_f12, self.column, s.sheared);
        to.precision.add_square(by_f22, s.sheared);
    }
}
