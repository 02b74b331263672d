//! Gaussian smoothing by a width in mm.

use ndarray::{Array3, Axis};
use rayon::prelude::*;

/// Convolves with a Gaussian of `sigma_mm`, cut at three sigma, the volume's edge continued outwards.
pub(super) fn smooth(values: &mut Array3<f32>, sigma_mm: f64, spacing_mm: [f64; 3]) {
    for (axis, spacing) in spacing_mm.into_iter().enumerate() {
        let length = values.len_of(Axis(axis));
        // Beyond the volume's length there is but the edge: bounds the taps of a tiny spacing.
        let reach = ((3.0 * sigma_mm / spacing) as usize).min(length);
        let weight = |tap: usize| (-0.5 * ((tap as f64 - reach as f64) * spacing / sigma_mm).powi(2)).exp();
        let total: f64 = (0..=2 * reach).map(weight).sum();
        let taps: Vec<f32> = (0..=2 * reach).map(|tap| (weight(tap) / total) as f32).collect();
        // Lines along `axis`, in planes of another axis so that planes are independent.
        let across = usize::from(axis == 0);
        let along = if axis == 0 { 0 } else { axis - 1 };
        let mut planes: Vec<_> = values.axis_iter_mut(Axis(across)).collect();
        planes.par_iter_mut().for_each_init(Vec::new, |wide: &mut Vec<f32>, plane| {
            for mut line in plane.lanes_mut(Axis(along)) {
                wide.clear();
                wide.extend((0..length + 2 * reach).map(|at| line[at.saturating_sub(reach).min(length - 1)]));
                for (at, value) in line.iter_mut().enumerate() {
                    *value = taps.iter().zip(&wide[at..]).map(|(weight, value)| weight * value).sum();
                }
            }
        });
    }
}
