//! Binary shapes: connected parts, and erosion and dilation by balls given in mm.
//!
//! Balls are exact: a voxel belongs to an eroded or dilated shape by the Euclidean distance of voxel centres. What lies beyond the volume is not
//! known and counts neither as inside nor as outside, so that a shape cut by the volume's faces is not eroded from there.

use ndarray::{Array3, Zip};

use super::overlap::squared_distance_mm2;

/// Voxels farther than `radius_mm` from every voxel outside the shape.
pub(super) fn eroded(shape: &Array3<bool>, radius_mm: f64, spacing_mm: [f64; 3]) -> Array3<bool> {
    match squared_distance_mm2(&shape.mapv(|on| !on), spacing_mm) {
        Some(distance) => distance.mapv(|square| square > (radius_mm * radius_mm) as f32),
        None => shape.clone(),
    }
}

/// Voxels no farther than `radius_mm` from a voxel of the shape.
pub(super) fn dilated(shape: &Array3<bool>, radius_mm: f64, spacing_mm: [f64; 3]) -> Array3<bool> {
    match squared_distance_mm2(shape, spacing_mm) {
        Some(distance) => distance.mapv(|square| square <= (radius_mm * radius_mm) as f32),
        None => shape.clone(),
    }
}

/// Marks with `label` what is joined to `seed` over faces of voxels of `open` that have no label yet, along the first `axes` axes; gives the number of
/// voxels marked.
fn flood(open: &Array3<bool>, labels: &mut Array3<u32>, seed: [usize; 3], label: u32, axes: usize) -> usize {
    let mut marked = 0;
    let mut stack = vec![seed];
    while let Some(at) = stack.pop() {
        if !open[at] || labels[at] != 0 {
            continue;
        }
        labels[at] = label;
        marked += 1;
        for axis in 0..axes {
            for step in [usize::MAX, 1] {
                let mut next = at;
                // Below zero it wraps to beyond the end.
                next[axis] = at[axis].wrapping_add(step);
                if labels.get(next) == Some(&0) && open[next] {
                    stack.push(next);
                }
            }
        }
    }
    marked
}

/// The shape's parts, joined over faces: labels from 1 in the order of their first voxels, 0 outside; and the number of voxels of each label.
pub(super) fn parts(shape: &Array3<bool>) -> (Array3<u32>, Vec<usize>) {
    let mut labels = Array3::zeros(shape.raw_dim());
    let mut sizes = vec![0];
    for ((x, y, z), &on) in shape.indexed_iter() {
        if on && labels[[x, y, z]] == 0 {
            sizes.push(flood(shape, &mut labels, [x, y, z], sizes.len() as u32, 3));
        }
    }
    (labels, sizes)
}

/// What is joined to the volume's faces across the first `axes` axes, moving along these axes only (2: slice by slice across z).
pub(super) fn joined_to_faces(open: &Array3<bool>, axes: usize) -> Array3<bool> {
    let mut labels = Array3::zeros(open.raw_dim());
    let last = [0, 1, 2].map(|axis| open.shape()[axis].saturating_sub(1));
    for ((x, y, z), &on) in open.indexed_iter() {
        let at = [x, y, z];
        if on && (0..axes).any(|axis| at[axis] == 0 || at[axis] == last[axis]) {
            flood(open, &mut labels, at, 1, axes);
        }
    }
    labels.mapv(|label| label == 1)
}

/// The shape without holes: without parts of its outside that do not reach the volume's faces.
pub(super) fn filled(shape: &Array3<bool>) -> Array3<bool> {
    joined_to_faces(&shape.mapv(|on| !on), 3).mapv(|outside| !outside)
}

/// Takes away from `shape` what is not in `other`.
pub(super) fn keep_within(shape: &mut Array3<bool>, other: &Array3<bool>) {
    Zip::from(shape).and(other).for_each(|on, &also| *on &= also);
}
