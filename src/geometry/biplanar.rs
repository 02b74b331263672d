//! Two views of a scan at right angles: what SliceFixer is shown of the measurement itself.

use std::f64::consts::{FRAC_PI_2, TAU};

/// Distance of two angles on the circle, 0 to pi.
fn apart_rad(a_rad: f64, b_rad: f64) -> f64 {
    let turned = (a_rad - b_rad).rem_euclid(TAU);
    turned.min(TAU - turned)
}

/// Indices of the views that serve as the biplanar pair: the first near 0 (the source on +x), the second near 90 degrees (on +y), and
/// above all at right angles to each other. Of all pairs the one with the least `4 |b - a - 90 deg| + |a| + |b - 90 deg|` (angles on the
/// circle); of equals the first in order. `None` with fewer than two views.
#[must_use]
pub fn biplanar_pair(angles_rad: &[f64]) -> Option<[usize; 2]> {
    let mut best: Option<(f64, [usize; 2])> = None;
    for (i, &a) in angles_rad.iter().enumerate() {
        for (j, &b) in angles_rad.iter().enumerate().filter(|(j, _)| *j != i) {
            let cost = 4.0 * apart_rad(b - a, FRAC_PI_2) + apart_rad(a, 0.0) + apart_rad(b, FRAC_PI_2);
            // A hair, so that rounding does not choose between equals.
            if best.is_none_or(|(least, _)| cost < least - 1e-9) {
                best = Some((cost, [i, j]));
            }
        }
    }
    best.map(|(_, pair)| pair)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_uniform_scan_gives_its_views_at_0_and_90_degrees() {
        for views in [4, 12, 24, 36, 360] {
            let angles: Vec<f64> = (0..views).map(|i| TAU * f64::from(i) / f64::from(views)).collect();
            assert_eq!(biplanar_pair(&angles), Some([0, views as usize / 4]));
            // The other way round, and begun elsewhere.
            let turned: Vec<f64> = angles.iter().map(|a| -a - FRAC_PI_2).collect();
            let [i, j] = biplanar_pair(&turned).unwrap();
            assert!(apart_rad(turned[i], 0.0) < 1e-9 && apart_rad(turned[j], FRAC_PI_2) < 1e-9);
        }
    }

    #[test]
    fn right_angles_come_before_the_place_on_the_circle() {
        let degrees = |list: &[f64]| list.iter().map(|d| d.to_radians()).collect::<Vec<_>>();
        // Nothing stands near 0: the pair at right angles further on is taken, and not the two nearest, which are neighbours.
        assert_eq!(biplanar_pair(&degrees(&[60.0, 70.0, 110.0, 150.0])), Some([0, 3]));
        assert_eq!(biplanar_pair(&degrees(&[359.0, 91.0, 88.5])), Some([0, 2]));
        assert_eq!(biplanar_pair(&degrees(&[10.0])), None);
        assert_eq!(biplanar_pair(&[]), None);
    }
}
