//! A logarithm that the compiler can vectorise.

#![forbid(unsafe_code)]

/// `-ln(x)` for normal positive `x`, within 2 units in the last place of the larger of |ln x| and 1.
///
/// `x = m 2^e` with `m` in [sqrt(1/2), sqrt 2); with `s = (m - 1) / (m + 1)`, |s| < 0.172:
/// `ln m = 2 atanh s = 2 s (1 + s^2/3 + s^4/5 + s^6/7 + s^8/9)`, the next term being below 2e-9 of the first.
/// `kernels/line_integrals.cu` has the same roundings.
#[inline]
#[must_use]
pub(super) fn minus_ln(x: f32) -> f32 {
    /// ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Bits of sqrt(1/2): subtracting them puts the break between exponents there.
    const SQRT_HALF_BITS: i32 = 0x3f35_04f3;
    let bits = x.to_bits() as i32;
    let exponent = (bits - SQRT_HALF_BITS) >> 23;
    let m = f32::from_bits((bits - (exponent << 23)) as u32);
    let e = exponent as f32;
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = s * q * (2.0 / 3.0 + q * (2.0 / 5.0 + q * (2.0 / 7.0 + q * (2.0 / 9.0))));
    -(e * LN2_HIGH + (2.0 * s + (series + e * LN2_LOW)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_double_precision_over_the_range_of_transmissions() {
        let mut x = 1e-9f32;
        while x < 50.0 {
            let exact = -f64::from(x).ln();
            let error = (f64::from(minus_ln(x)) - exact).abs();
            // Two roundings of the sum at the result's own magnitude.
            assert!(error <= 2.0 * f64::from(f32::EPSILON) * exact.abs().max(1.0), "{x}: {error}");
            x *= 1.000_37;
        }
        assert_eq!(minus_ln(1.0), 0.0);
    }
}
