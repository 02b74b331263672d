//! Resampling of a volume whose axes run along the world's (in any order and direction): the trilinear interpolant is then a product
//! of three linear ones, and its averages over cells are exact sums of few weighted voxels along each axis in turn.

use ndarray::{Array3, ArrayView3, Axis};
use rayon::prelude::*;

/// Where a grid's cells lie on one axis of the volume, in voxel indices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cells {
    /// Index at the centre of cell 0.
    pub(super) first: f64,
    /// Indices from a cell's centre to the next; negative where the axes run against each other.
    pub(super) step: f64,
    /// Number of cells.
    pub(super) count: usize,
}

/// Weighted neighbours on one axis: the voxel that the weights begin at, and the weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Value of the linear interpolant through `n` voxels: constant over the outer half of the outermost voxels, nothing beyond.
fn linear(at: f64, n: usize, add: &mut dyn FnMut(usize, f64), weight: f64) {
    let p = at.clamp(0.0, (n - 1) as f64);
    let base = p.floor();
    let fraction = p - base;
    add(base as usize, weight * (1.0 - fraction));
    if fraction > 0.0 {
        add(base as usize + 1, weight * fraction);
    }
}

impl Cells {
    /// Taps of each cell's average over the interpolant of `n` voxels.
    pub(super) fn means(&self, n: usize) -> Vec<Taps> {
        self.taps(n, |centre, add| {
            let half = 0.5 * self.step.abs();
            let (begin, end) = ((centre - half).max(-0.5), (centre + half).min(n as f64 - 0.5));
            // Between whole indices the interpolant is linear: its mean is its value in the middle.
            let mut low = begin;
            while low < end {
                let high = (low.floor() + 1.0).min(end);
                linear(0.5 * (low + high), n, add, (high - low) / (2.0 * half));
                low = high;
            }
        })
    }

    /// Taps of the interpolant at each cell's centre.
    pub(super) fn points(&self, n: usize) -> Vec<Taps> {
        self.taps(n, |centre, add| {
            if (-0.5..=n as f64 - 0.5).contains(&centre) {
                linear(centre, n, add, 1.0);
            }
        })
    }

    fn taps(&self, n: usize, gather: impl Fn(f64, &mut dyn FnMut(usize, f64))) -> Vec<Taps> {
        let of_cell = |cell: usize| {
            let mut found: Vec<(usize, f64)> = Vec::new();
            gather(self.first + self.step * cell as f64, &mut |index, weight| found.push((index.min(n - 1), weight)));
            let first = found.iter().map(|f| f.0).min().unwrap_or(0);
            let last = found.iter().map(|f| f.0 + 1).max().unwrap_or(0);
            let mut weights = vec![0.0_f64; last - first];
            found.iter().for_each(|&(index, weight)| weights[index - first] += weight);
            Taps { first, weights: weights.into_iter().map(|w| w as f32).collect() }
        };
        (0..self.count).map(of_cell).collect()
    }
}

/// Sums `volume` (`[x][y][z]` in the order of the world's axes) over the taps of the three axes. Works slab by slab: beside the result
/// it needs two planes a thread.
pub(super) fn resample(volume: ArrayView3<'_, f32>, [x, y, z]: [&[Taps]; 3]) -> Array3<f32> {
    let (_, rows, columns) = volume.dim();
    let mut out = Array3::zeros((x.len(), y.len(), z.len()));
    out.outer_iter_mut().into_par_iter().zip(x).for_each_init(
        || (vec![0.0_f32; rows * columns], vec![0.0_f32; columns]),
        |(plane, line), (mut slab, taps)| {
            plane.fill(0.0);
            for (k, &weight) in taps.weights.iter().enumerate() {
                let source = volume.index_axis(Axis(0), taps.first + k);
                for (row, values) in plane.chunks_exact_mut(columns).zip(source.outer_iter()) {
                    row.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * value);
                }
            }
            for (mut target, taps) in slab.outer_iter_mut().zip(y) {
                line.fill(0.0);
                for (k, &weight) in taps.weights.iter().enumerate() {
                    let row = &plane[(taps.first + k) * columns..][..columns];
                    line.iter_mut().zip(row).for_each(|(sum, &value)| *sum += weight * value);
                }
                for (value, taps) in target.iter_mut().zip(z) {
                    let near = &line[taps.first..];
                    *value = taps.weights.iter().zip(near).fold(0.0, |sum, (weight, value)| sum + weight * value);
                }
            }
        },
    );
    out
}
