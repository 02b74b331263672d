//! Binary shapes: connected parts, and erosion and dilation by balls given in mm.
//!
//! Balls are exact: a voxel belongs to an eroded or dilated shape by the Euclidean distance of voxel centres. What lies beyond the volume is not
//! known and counts neither as inside nor as outside, so that a shape cut by the volume's faces is not eroded from there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

/// The shape, and what paths of at most `length_mm` from it reach without leaving `room`; steps go from face to face.
pub(super) fn grown_within(
    shape: &Array3<bool>,
    room: &Array3<bool>,
    length_mm: f64,
    spacing_mm: [f64; 3],
) -> Array3<bool> {
    // Whole micrometres have an order.
    let micrometres = |mm: f64| (1e3 * mm).round() as u32;
    let (most, edges) = (micrometres(length_mm), spacing_mm.map(micrometres));
    let mut reached = shape.clone();
    let mut front: BinaryHeap<(Reverse<u32>, [usize; 3])> = BinaryHeap::new();
    let push = |front: &mut BinaryHeap<_>, reached: &Array3<bool>, at: [usize; 3], way: u32| {
        for axis in 0..3 {
            let way = way.saturating_add(edges[axis]);
            for step in [usize::MAX, 1] {
                let mut next = at;
                // Below zero it wraps to beyond the end.
                next[axis] = at[axis].wrapping_add(step);
                if way <= most && room.get(next) == Some(&true) && !reached[next] {
                    front.push((Reverse(way), next));
                }
            }
        }
    };
    for ((x, y, z), _) in shape.indexed_iter().filter(|(_, on)| **on) {
        push(&mut front, &reached, [x, y, z], 0);
    }
    while let Some((Reverse(way), at)) = front.pop() {
        // The shortest way to a voxel comes first.
        if !std::mem::replace(&mut reached[at], true) {
            push(&mut front, &reached, at, way);
        }
    }
    reached
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_goes_around_walls_and_no_farther_than_told() {
        // A corridor in the shape of a U: 10 up, 2 across, down again, walls of one voxel between.
        let room = Array3::from_shape_fn((11, 3, 1), |(x, y, _)| y != 1 || x == 10);
        let shape = Array3::from_shape_fn((11, 3, 1), |(x, y, _)| x == 0 && y == 0);
        let reached = |mm: f64| grown_within(&shape, &room, mm, [2.0, 3.0, 1.0]);
        let count = |mm: f64| reached(mm).iter().filter(|&&on| on).count();
        assert_eq!((count(0.0), count(3.9), count(20.0), count(22.9)), (1, 2, 11, 11));
        // Two steps of 3 mm across, then down by 2 mm each.
        assert_eq!((count(23.0), count(26.0), count(30.0), count(1e9)), (12, 13, 15, 23));
        assert!(!reached(30.0)[[0, 2, 0]] && reached(1e9)[[0, 2, 0]]);
    }

    #[test]
    fn balls_are_balls_and_the_volumes_faces_are_no_edge() {
        let one = Array3::from_shape_fn((9, 9, 9), |at| at == (4, 4, 4));
        let ball = dilated(&one, 3.0, [1.0; 3]);
        // Lattice points within a sphere of radius 3.
        assert_eq!(ball.iter().filter(|&&on| on).count(), 123);
        assert_eq!(
            eroded(&ball.mapv(|on| !on), 3.0, [1.0; 3]).iter().filter(|&&on| !on).count(),
            dilated(&ball, 3.0, [1.0; 3]).iter().filter(|&&on| on).count()
        );
        let half = Array3::from_shape_fn((6, 4, 4), |(x, _, _)| x < 4);
        assert_eq!(eroded(&half, 1.0, [1.0; 3]), Array3::from_shape_fn((6, 4, 4), |(x, _, _)| x < 3));
    }

    #[test]
    fn parts_faces_and_holes() {
        let shell = Array3::from_shape_fn((7, 7, 7), |(x, y, z)| {
            let inside = [x, y, z].iter().all(|c| (1..6).contains(c));
            inside && [x, y, z].iter().any(|c| *c == 1 || *c == 5) || (x, y, z) == (3, 3, 3)
        });
        let (labels, sizes) = parts(&shell);
        assert_eq!((sizes, labels[[3, 3, 3]]), (vec![0, 98, 1], 2));
        assert_eq!(filled(&shell).iter().filter(|&&on| on).count(), 125);
        // Slice by slice across z, a lid does not matter: what is within the walls is not joined to the sides.
        let open = shell.mapv(|on| !on);
        assert!(joined_to_faces(&open, 2)[[3, 2, 0]]);
        assert!(!joined_to_faces(&open, 2)[[3, 2, 3]]);
    }
}
