//! How a Gaussian falls off and where it ends: one pair of functions for volume and projection.
//!
//! With `q` the squared Mahalanobis distance and `Q` the [`CUTOFF`], the volume's kernel is
//! `g3(q) = exp(-q/2) - exp(-Q) exp(q/2) = 2 exp(-Q/2) sinh((Q - q)/2)`: continuous, 0 at `Q`. Integrated along a line that passes at `q`,
//! with `T = sqrt(Q - q)` and Dawson's integral `D`, and divided by `sqrt(2 pi)`, it is
//! `g2(q) = exp(-q/2) - exp(-Q/2) C(T)`, `C = exp(T^2/2) erfc(T / sqrt 2) + 2 / sqrt(pi) D(T / sqrt 2)`.
//! `C` lies between 0.43 and 1.11; a polynomial of degree 4 in `Q - q` gives it to 0.045, that is `g2` to 4.1e-5 of the peak: by that
//! much projection and volume may disagree.
//!
//! Distances are kept times `log2(e)/2` so that the exponential is a power of two: `y = q log2(e)/2`, `exp(-q/2) = 2^-y`.

// Generic SIMD, see `gaussian_lanes`.
#![allow(unsafe_code)]

use std::f64::consts::{LN_2, LOG2_E};

use super::super::gaussians::CUTOFF;
use super::gaussian_lanes::{Wide, polynomial};

/// `y` of a squared distance of 1.
pub(super) const Y_OF_Q: f64 = 0.5 * LOG2_E;
/// `y` at the cut-off.
pub(super) const Y_CUTOFF: f64 = CUTOFF * Y_OF_Q;

/// `exp(-Q/2) C` as a polynomial in `Y_CUTOFF - y`, lowest first (fitted for `Q = 14`, exact at the edge).
const TAIL: [f32; 5] = [9.118_82e-4, 1.628_898_5e-4, -1.107_767_2e-4, 1.662_919_8e-5, -7.721_298e-7];
/// Its derivative's coefficients.
const TAIL_SLOPE: [f32; 4] = [TAIL[1], 2.0 * TAIL[2], 3.0 * TAIL[3], 4.0 * TAIL[4]];
const _: () = assert!(CUTOFF == 14.0, "TAIL is fitted for a cut-off of 14");

/// `g2` at `y` (to be masked beyond the cut-off).
///
/// # Safety
/// As [`Wide`].
#[inline(always)]
pub(super) unsafe fn projected<W: Wide>(y: W::V) -> W::V {
    // SAFETY: the caller's.
    unsafe {
        let inside = W::sub(W::splat(Y_CUTOFF as f32), y);
        W::sub(W::power(W::sub(W::splat(0.0), y)), polynomial::<W, 5>(inside, &TAIL))
    }
}

/// `g2` and `dg2/dy` at `y` within the cut-off.
///
/// # Safety
/// As [`Wide`].
#[inline(always)]
pub(super) unsafe fn projected_with_slope<W: Wide>(y: W::V) -> (W::V, W::V) {
    // SAFETY: the caller's.
    unsafe {
        let inside = W::sub(W::splat(Y_CUTOFF as f32), y);
        let power = W::power(W::sub(W::splat(0.0), y));
        let value = W::sub(power, polynomial::<W, 5>(inside, &TAIL));
        (value, W::fma(power, W::splat(-LN_2 as f32), polynomial::<W, 4>(inside, &TAIL_SLOPE)))
    }
}

/// `g3` and `-dg3/dq` times 2 where `-y` is given, within the cut-off.
///
/// # Safety
/// As [`Wide`].
#[inline(always)]
pub(super) unsafe fn voxel_with_slope<W: Wide>(minus_y: W::V) -> (W::V, W::V) {
    // SAFETY: the caller's. The small term needs no more than the rough reciprocal's digits.
    unsafe {
        let power = W::power(minus_y);
        let inverse = W::rough_reciprocal(power);
        (W::fma(W::splat(-EDGE), inverse, power), W::fma(W::splat(EDGE), inverse, power))
    }
}

/// `exp(-Q)`.
const EDGE: f32 = 8.315_287e-7;

/// A Gaussian's mass over that of the endless Gaussian `rho (2 pi)^(3/2) s1 s2 s3`.
#[cfg(test)]
pub(super) const MASS: f64 = 0.994_586_069_6;

/// `g3` in double precision.
#[cfg(test)]
pub(super) fn voxel_f64(q: f64) -> f64 {
    if q < CUTOFF { (-0.5 * q).exp() - (0.5 * q - CUTOFF).exp() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::gaussian_lanes::{Plain, at_each_level};
    use super::super::simd::SimdLevel;
    use super::*;

    /// `g2` by the midpoint rule along the chord.
    fn projected_f64(q: f64) -> f64 {
        let half = (CUTOFF - q).max(0.0).sqrt();
        let steps = 20_000;
        let h = 2.0 * half / f64::from(steps);
        let sum: f64 = (0..steps)
            .map(|k| {
                let t = -half + (f64::from(k) + 0.5) * h;
                voxel_f64(q + t * t)
            })
            .sum();
        sum * h / std::f64::consts::TAU.sqrt()
    }

    #[test]
    fn projected_kernel_is_the_line_integral_of_the_volume_kernel() {
        let (mut worst, mut to_endless) = (0.0f64, 0.0f64);
        for k in 0..=200 {
            let q = CUTOFF * f64::from(k) / 200.0;
            // SAFETY: plain floats.
            let (value, alone) = unsafe {
                let y = (q * Y_OF_Q) as f32;
                (projected_with_slope::<Plain>(y).0, projected::<Plain>(y))
            };
            assert_eq!(value, alone);
            worst = worst.max((f64::from(value) - projected_f64(q)).abs());
            to_endless = to_endless.max((f64::from(value) - (-0.5 * q).exp()).abs());
        }
        println!("g2 against quadrature: {worst:.2e}; against the endless Gaussian: {to_endless:.2e} of the peak");
        // The polynomial's own error, 4.12e-5, and float32.
        assert!(worst < 4.2e-5, "{worst}");
        assert!(to_endless < 1.02e-3, "{to_endless}");
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for k in 1..100 {
            let y = Y_CUTOFF as f32 * k as f32 / 100.0;
            let h = 1e-2;
            // SAFETY: plain floats.
            unsafe {
                let slope = (projected::<Plain>(y + h) - projected::<Plain>(y - h)) / (2.0 * h);
                // float32 differences over 2h: 1e-5; h^2/6 of the third derivative: 6e-6.
                assert!((projected_with_slope::<Plain>(y).1 - slope).abs() < 3e-5);
                let difference = (voxel_with_slope::<Plain>(-y - h).0 - voxel_with_slope::<Plain>(h - y).0) / (2.0 * h);
                let slope = -LN_2 as f32 * voxel_with_slope::<Plain>(-y).1;
                assert!((slope - difference).abs() < 3e-5);
            }
        }
    }

    /// Writes power, reciprocal root and both kernels of each `y`.
    #[inline(always)]
    unsafe fn tabulate<W: Wide>(y: &[f32], out: &mut [[f32; 16]; 3]) {
        // SAFETY: the caller's; 16 floats each.
        unsafe {
            for at in (0..16).step_by(W::N) {
                let v = W::load(y[at..].as_ptr());
                W::store(out[0][at..].as_mut_ptr(), W::power(W::sub(W::splat(0.0), v)));
                W::store(out[1][at..].as_mut_ptr(), W::reciprocal_root(v));
                W::store(out[2][at..].as_mut_ptr(), voxel_with_slope::<W>(W::sub(W::splat(0.0), v)).0);
            }
        }
    }
    at_each_level!(tabulate_at => tabulate(y: &[f32], out: &mut [[f32; 16]; 3]));

    #[test]
    fn power_root_and_kernel_hold_their_errors_at_every_level() {
        for simd in SimdLevel::available() {
            let mut worst = [0.0f64; 3];
            for block in 0..4000 {
                let y: Vec<f32> = (0..16).map(|k| 0.01 + (block * 16 + k) as f32 * (10.0 / 64_000.0)).collect();
                let mut out = [[0.0f32; 16]; 3];
                tabulate_at(simd, &y, &mut out);
                for (k, &y) in y.iter().enumerate() {
                    let y = f64::from(y);
                    let exact = [(-y).exp2(), y.powf(-0.5), voxel_f64(y / Y_OF_Q)];
                    worst[0] = worst[0].max((f64::from(out[0][k]) / exact[0] - 1.0).abs());
                    worst[1] = worst[1].max((f64::from(out[1][k]) / exact[1] - 1.0).abs());
                    worst[2] = worst[2].max((f64::from(out[2][k]) - exact[2]).abs());
                }
            }
            println!(
                "{simd}: 2^x {:.1e}, 1/sqrt {:.1e} (relative), g3 {:.1e} (of the peak)",
                worst[0], worst[1], worst[2]
            );
            assert!(worst[0] < 3e-7 && worst[1] < 4e-7 && worst[2] < 4e-7, "{simd}: {worst:?}");
        }
    }
}
