//! Overlap of two masks: Dice and average surface distance.

use ndarray::{Array3, ArrayView3, Axis};
use rayon::prelude::*;

use super::{MeasureError, same_shape};

/// Dice coefficient `2 |A and B| / (|A| + |B|)`.
///
/// # Errors
/// [`MeasureError::Shapes`]; [`MeasureError::Empty`] where both masks are empty.
pub fn dice(a: ArrayView3<'_, bool>, b: ArrayView3<'_, bool>) -> Result<f64, MeasureError> {
    same_shape(a.shape(), b.shape())?;
    let (mut both, mut sum) = (0_u64, 0_u64);
    for (&a, &b) in a.iter().zip(&b) {
        both += u64::from(a && b);
        sum += u64::from(a) + u64::from(b);
    }
    if sum == 0 {
        return Err(MeasureError::Empty("both masks are empty"));
    }
    Ok(2.0 * both as f64 / sum as f64)
}

/// Average symmetric surface distance (ASD) in mm: the mean distance from A's surface voxels to the nearest of B's, and from B's to
/// A's, averaged.
///
/// A surface voxel is one of the mask with a face neighbour outside it (beyond the volume counts as outside). Distances are
/// exact Euclidean ones between voxel centres at the given spacing.
///
/// # Errors
/// [`MeasureError::Shapes`]; [`MeasureError::Empty`] where a mask is empty.
pub fn surface_distance_mm(
    a: ArrayView3<'_, bool>,
    b: ArrayView3<'_, bool>,
    spacing_mm: [f64; 3],
) -> Result<f64, MeasureError> {
    same_shape(a.shape(), b.shape())?;
    let (a, b) = (surface(a), surface(b));
    Ok(0.5 * (mean_distance_mm(&a, &b, spacing_mm)? + mean_distance_mm(&b, &a, spacing_mm)?))
}

/// The mask's surface voxels; see [`surface_distance_mm`].
pub(crate) fn surface(mask: ArrayView3<'_, bool>) -> Array3<bool> {
    let (nx, ny, nz) = mask.dim();
    // Wrapping below zero gives an index beyond the end: outside.
    let inside = |x: usize, y: usize, z: usize| mask.get([x, y, z]).copied().unwrap_or(false);
    let surface = |(x, y, z): (usize, usize, usize)| {
        mask[[x, y, z]]
            && !(inside(x.wrapping_sub(1), y, z)
                && inside(x + 1, y, z)
                && inside(x, y.wrapping_sub(1), z)
                && inside(x, y + 1, z)
                && inside(x, y, z.wrapping_sub(1))
                && inside(x, y, z + 1))
    };
    Array3::from_shape_fn((nx, ny, nz), surface)
}

fn mean_distance_mm(from: &Array3<bool>, to: &Array3<bool>, spacing_mm: [f64; 3]) -> Result<f64, MeasureError> {
    let squared = squared_distance_mm2(to, spacing_mm).ok_or(MeasureError::Empty("a mask is empty"))?;
    let distances = from.iter().zip(&squared).filter(|(on, _)| **on).map(|(_, d)| f64::from(*d).sqrt());
    let (sum, count) = distances.fold((0.0, 0_usize), |(sum, count), distance| (sum + distance, count + 1));
    if count == 0 { Err(MeasureError::Empty("a mask is empty")) } else { Ok(sum / count as f64) }
}

/// Squared distance of every voxel to the nearest of the set (Felzenszwalb and Huttenlocher 2012: the lower envelope of parabolas,
/// axis by axis, exact); `None` for an empty set.
pub(crate) fn squared_distance_mm2(set: &Array3<bool>, spacing_mm: [f64; 3]) -> Option<Array3<f32>> {
    if !set.iter().any(|&on| on) {
        return None;
    }
    let mut distance = set.mapv(|on| if on { 0.0 } else { f32::INFINITY });
    for (axis, spacing) in spacing_mm.into_iter().enumerate() {
        // Lines along `axis`, in planes of another axis so that planes are independent.
        let across = usize::from(axis == 0);
        let mut planes: Vec<_> = distance.axis_iter_mut(Axis(across)).collect();
        planes.par_iter_mut().for_each_init(Envelope::default, |envelope, plane| {
            // Removing `across` (0, or 1 for axis 0) leaves `axis` here:
            let along = if axis == 0 { 0 } else { axis - 1 };
            for mut line in plane.lanes_mut(Axis(along)) {
                envelope.load(line.iter().copied());
                envelope.transform(spacing);
                line.iter_mut().zip(&envelope.result).for_each(|(slot, value)| *slot = *value as f32);
            }
        });
    }
    Some(distance)
}

/// Buffers of one line's transform.
#[derive(Default)]
struct Envelope {
    height: Vec<f64>,
    result: Vec<f64>,
    /// Position of each parabola of the envelope, and from where on it is the lowest.
    foot: Vec<usize>,
    start: Vec<f64>,
}

impl Envelope {
    fn load(&mut self, line: impl Iterator<Item = f32>) {
        self.height.clear();
        self.height.extend(line.map(f64::from));
    }

    fn transform(&mut self, spacing: f64) {
        let (h, weight) = (&self.height, spacing * spacing);
        self.result.clear();
        self.foot.clear();
        self.start.clear();
        for q in (0..h.len()).filter(|&q| h[q].is_finite()) {
            let position = q as f64;
            let mut start = f64::NEG_INFINITY;
            while let Some(&p) = self.foot.last() {
                // Where the parabolas about p and q meet, in voxels.
                let foot = p as f64;
                let meet = 0.5 * ((h[q] - h[p]) / weight + position * position - foot * foot) / (position - foot);
                if meet > self.start[self.foot.len() - 1] {
                    start = meet;
                    break;
                }
                self.foot.pop();
                self.start.pop();
            }
            self.foot.push(q);
            self.start.push(start);
        }
        if self.foot.is_empty() {
            self.result.extend_from_slice(h);
            return;
        }
        let mut at = 0;
        for x in 0..h.len() {
            while at + 1 < self.foot.len() && self.start[at + 1] < x as f64 {
                at += 1;
            }
            let away = x as f64 - self.foot[at] as f64;
            self.result.push(h[self.foot[at]] + weight * away * away);
        }
    }
}
