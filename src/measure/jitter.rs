//! How much neighbouring slices disagree: the mean absolute second difference from slice to slice.
//!
//! A volume that was repaired slice by slice, each for itself, shows steps between slices which a picture of one slice cannot show. The second
//! difference `|v[k-1] - 2 v[k] + v[k+1]|` is blind to what changes evenly from slice to slice, and anatomy has its own: compare with the same
//! figure of the reference. Below it, structure (or noise) along the axis was smoothed away; above it, slices jump.

use ndarray::{ArrayView3, Axis};
use rayon::prelude::*;

use super::{MeasureError, same_shape};

/// Mean of `|v[k-1] - 2 v[k] + v[k+1]|` along `axis` (0 to 2) of a volume `[x][y][z]`, in its unit, over all voxels whose neighbours along the axis lie in the
/// volume, and they and the voxel itself in the mask (where there is one). Slices that follow each other along axis 2 are axial.
///
/// # Errors
/// [`MeasureError::Shapes`]; [`MeasureError::Empty`] where no three voxels in a row take part.
pub fn second_difference(
    volume: ArrayView3<'_, f32>,
    mask: Option<ArrayView3<'_, bool>>,
    axis: usize,
) -> Result<f64, MeasureError> {
    if let Some(mask) = &mask {
        same_shape(volume.shape(), mask.shape())?;
    }
    let slice = |k: usize| volume.index_axis(Axis(axis), k);
    let sums: Vec<(f64, usize)> = (1..volume.len_of(Axis(axis)).saturating_sub(1))
        .into_par_iter()
        .map(|k| {
            let values = slice(k - 1).into_iter().zip(slice(k)).zip(slice(k + 1));
            let jumps = values.map(|((a, b), c)| (f64::from(*a) - 2.0 * f64::from(*b) + f64::from(*c)).abs());
            let Some(mask) = &mask else {
                return (jumps.sum(), slice(k).len());
            };
            let inside = [k - 1, k, k + 1].map(|k| mask.index_axis(Axis(axis), k));
            let inside = inside[0].iter().zip(inside[1]).zip(inside[2]).map(|((a, b), c)| *a && *b && *c);
            jumps.zip(inside).filter(|(_, inside)| *inside).fold((0.0, 0), |sum, (jump, _)| (sum.0 + jump, sum.1 + 1))
        })
        .collect();
    let (sum, count) = sums.iter().fold((0.0, 0), |total, slice| (total.0 + slice.0, total.1 + slice.1));
    if count == 0 {
        return Err(MeasureError::Empty("no three voxels in a row lie in the volume and in the mask"));
    }
    Ok(sum / count as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use ndarray::Array3;

    /// Irregular values of a few hundred.
    fn volume() -> Array3<f32> {
        Array3::from_shape_fn((5, 6, 7), |(x, y, z)| ((37 * x * x + 91 * y + 53 * z * z * y) % 401) as f32 - 200.0)
    }

    /// The formula by plain loops over every voxel and its two neighbours.
    fn by_loops(v: &Array3<f32>, mask: Option<&Array3<bool>>, axis: usize) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        let shape = [v.shape()[0], v.shape()[1], v.shape()[2]];
        for x in 0..shape[0] {
            for y in 0..shape[1] {
                for z in 0..shape[2] {
                    let at = [x, y, z];
                    if at[axis] == 0 || at[axis] + 1 == shape[axis] {
                        continue;
                    }
                    let (mut before, mut after) = (at, at);
                    before[axis] -= 1;
                    after[axis] += 1;
                    if mask.is_none_or(|mask| mask[at] && mask[before] && mask[after]) {
                        sum += (f64::from(v[before]) + f64::from(v[after]) - 2.0 * f64::from(v[at])).abs();
                        count += 1.0;
                    }
                }
            }
        }
        sum / count
    }

    #[test]
    fn it_is_the_formula_along_each_axis_with_and_without_a_mask() {
        let (v, mask) = (volume(), Array3::from_shape_fn((5, 6, 7), |(x, y, z)| (x + 2 * y + 3 * z) % 5 != 0));
        for axis in 0..3 {
            for mask in [None, Some(&mask)] {
                let figure = second_difference(v.view(), mask.map(|mask| mask.view()), axis).unwrap();
                // Both add in f64; only the order differs.
                assert!((figure - by_loops(&v, mask, axis)).abs() < 1e-9, "axis {axis}");
            }
        }
    }

    #[test]
    fn even_change_is_none_and_alternating_slices_are_four_times_their_height() {
        let ramp = Array3::from_shape_fn((4, 4, 9), |(x, y, z)| (3 * x) as f32 - (5 * y) as f32 + 40.0 * z as f32);
        assert_eq!(second_difference(ramp.view(), None, 2), Ok(0.0));
        let jumping =
            Array3::from_shape_fn((4, 4, 9), |(x, y, z)| ramp[[x, y, z]] + if z % 2 == 0 { 10.0 } else { -10.0 });
        assert_eq!(second_difference(jumping.view(), None, 2), Ok(40.0));
        // Within a slice nothing has changed.
        assert_eq!(second_difference(jumping.view(), None, 0), Ok(0.0));
    }

    #[test]
    fn a_volume_without_three_slices_has_no_figure() {
        let v = volume();
        let thin = v.view().split_at(Axis(2), 2).0;
        assert!(matches!(second_difference(thin, None, 2), Err(MeasureError::Empty(_))));
        assert!(second_difference(thin, None, 1).is_ok());
        let nothing = Array3::from_elem((5, 6, 7), false);
        assert!(matches!(second_difference(v.view(), Some(nothing.view()), 0), Err(MeasureError::Empty(_))));
        let other = Array3::from_elem((5, 6, 6), true);
        assert!(matches!(second_difference(v.view(), Some(other.view()), 0), Err(MeasureError::Shapes { .. })));
    }
}
