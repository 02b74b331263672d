//! Phantoms painted in layers: where ellipsoids overlap, the later one replaces what lies beneath, as organs do.
//!
//! Line integrals are exact: each ray's spans are laid down from the top layer to the bottom, each counting only where nothing above
//! it lies.

use glam::DVec3;
use ndarray::{Array3, ArrayViewMut3, Axis};
use rayon::prelude::*;

use super::ellipsoids::{Ellipsoid, Seen, index_range, voxel_reach};
use crate::geometry::{ScanGeometry, ViewPose, VolumeGrid};

/// Pixels of a row that share one list of candidate layers.
const BLOCK: usize = 16;

/// Ellipsoids in the order of painting, in air.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayeredPhantom {
    /// Bottom to top; `mu_per_mm` is the attenuation there, not an addition.
    pub layers: Vec<Ellipsoid>,
}

impl LayeredPhantom {
    /// Attenuation (1/mm) at a point.
    #[must_use]
    pub fn value_at(&self, point_mm: DVec3) -> f64 {
        self.layers.iter().rev().find(|e| e.contains(point_mm)).map_or(0.0, |e| e.mu_per_mm)
    }

    /// Exact line integral (dimensionless) over the segment from the source to a pixel's centre.
    #[must_use]
    pub fn line_integral(&self, source_mm: DVec3, pixel_mm: DVec3) -> f64 {
        let step = pixel_mm - source_mm;
        let seen: Vec<Seen> = self.layers.iter().rev().map(|e| Seen::from_point(e, source_mm)).collect();
        integral(&seen.iter().collect::<Vec<_>>(), step, &mut Vec::new()) * step.length()
    }

    /// Corners of the smallest world-aligned box about all layers; `None` without any.
    #[must_use]
    pub fn bounds_mm(&self) -> Option<(DVec3, DVec3)> {
        let boxes = self.layers.iter().map(|e| (e.centre_mm - e.half_box_mm(), e.centre_mm + e.half_box_mm()));
        boxes.reduce(|(low, high), (l, h)| (low.min(l), high.max(h)))
    }

    /// Exact line integrals to all pixels' centres, `[view][row v][column u]`, summed in f64. The same for any number of threads.
    #[must_use]
    pub fn line_integrals(&self, geometry: &ScanGeometry) -> Array3<f32> {
        let mut out = Array3::zeros((geometry.views.len(), geometry.detector.rows, geometry.detector.columns));
        self.project_into(&geometry.views, out.view_mut());
        out
    }

    /// [`Self::line_integrals`] into `projections` (`[view][row v][column u]`, one view a pose).
    ///
    /// # Panics
    /// Where `projections` has another number of views than `poses`.
    pub fn project_into(&self, poses: &[ViewPose], mut projections: ArrayViewMut3<'_, f32>) {
        assert_eq!(poses.len(), projections.len_of(Axis(0)), "one pose a view");
        let (rows, columns) = (projections.len_of(Axis(1)), projections.len_of(Axis(2)));
        for (pose, mut view) in poses.iter().zip(projections.outer_iter_mut()) {
            // Top layer first.
            let seen: Vec<Seen> = self.layers.iter().rev().map(|e| Seen::new(e, pose, rows, columns)).collect();
            view.outer_iter_mut().into_par_iter().enumerate().for_each_init(
                || (Vec::new(), Vec::new()),
                |(candidates, covered), (v, mut row)| {
                    for (block, mut pixels) in row.axis_chunks_iter_mut(Axis(0), BLOCK).enumerate() {
                        let first = block * BLOCK;
                        candidates.clear();
                        candidates.extend(seen.iter().filter(|e| {
                            (e.rows.0..e.rows.1).contains(&v) && e.columns.0 < first + BLOCK && first < e.columns.1
                        }));
                        for (j, out) in pixels.iter_mut().enumerate() {
                            let step = pose.pixel_mm(v as f64, (first + j) as f64) - pose.source_mm;
                            *out = (integral(candidates, step, covered) * step.length()) as f32;
                        }
                    }
                },
            );
        }
    }

    /// Cell averages `[x][y][z]` (1/mm): exact in voxels that no surface cuts, the mean over `subsamples`^3 points in the others.
    /// `subsamples` 0 counts as 1.
    #[must_use]
    pub fn voxelise(&self, grid: &VolumeGrid, subsamples: usize) -> Array3<f32> {
        let n = subsamples.max(1);
        let offsets: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64 - 0.5).collect();
        // Top layer first, each with its index ranges.
        let layers: Vec<_> = self
            .layers
            .iter()
            .rev()
            .map(|e| {
                let to_ball = e.to_unit_ball();
                (e, to_ball, voxel_reach(&to_ball, grid.voxel_mm), [0, 1, 2].map(|axis| index_range(e, grid, axis)))
            })
            .collect();
        let mut volume = Array3::zeros(grid.voxels);
        volume.outer_iter_mut().into_par_iter().enumerate().for_each(|(ix, mut slab)| {
            let of_slab: Vec<_> = layers.iter().filter(|l| (l.3[0].0..l.3[0].1).contains(&ix)).collect();
            let mut cut = Vec::new();
            for (iy, mut line) in slab.outer_iter_mut().enumerate() {
                let of_line: Vec<_> = of_slab.iter().filter(|l| (l.3[1].0..l.3[1].1).contains(&iy)).collect();
                for (iz, out) in line.iter_mut().enumerate() {
                    let centre = grid.voxel_centre_mm(ix, iy, iz);
                    // From the top: surfaces that cut this voxel, until a layer that fills it (or air).
                    cut.clear();
                    let mut ground = 0.0;
                    for (e, to_ball, reach, ranges) in of_line.iter().map(|l| **l) {
                        if !(ranges[2].0..ranges[2].1).contains(&iz) {
                            continue;
                        }
                        let distance = (*to_ball * (centre - e.centre_mm)).length();
                        if distance + reach <= 1.0 {
                            ground = e.mu_per_mm;
                            break;
                        }
                        if distance - reach < 1.0 {
                            cut.push((*e, *to_ball));
                        }
                    }
                    *out = if cut.is_empty() { ground } else { mean(&cut, ground, centre, grid.voxel_mm, &offsets) }
                        as f32;
                }
            }
        });
        volume
    }
}

/// Mean over the sub-voxel points of the topmost of `cut` that holds each, else of `ground`.
fn mean(cut: &[(&Ellipsoid, glam::DMat3)], ground: f64, centre: DVec3, voxel_mm: DVec3, offsets: &[f64]) -> f64 {
    let mut sum = 0.0;
    for &x in offsets {
        for &y in offsets {
            for &z in offsets {
                let point = centre + voxel_mm * DVec3::new(x, y, z);
                let top = cut.iter().find(|(e, to_ball)| (*to_ball * (point - e.centre_mm)).length_squared() <= 1.0);
                sum += top.map_or(ground, |(e, _)| e.mu_per_mm);
            }
        }
    }
    sum / (offsets.len() as f64).powi(3)
}

/// Sum over `top_first` of attenuation times the part of the step that no layer above has taken.
fn integral(top_first: &[&Seen], step_mm: DVec3, covered: &mut Vec<(f64, f64)>) -> f64 {
    covered.clear();
    top_first
        .iter()
        .filter_map(|e| e.span(step_mm).map(|(begin, end)| e.mu_per_mm * newly_covered(covered, begin, end)))
        .sum()
}

/// Adds [begin, end] to a sorted list of disjoint spans; returns the length that was not covered before.
fn newly_covered(covered: &mut Vec<(f64, f64)>, begin: f64, end: f64) -> f64 {
    let first = covered.iter().position(|span| span.1 >= begin).unwrap_or(covered.len());
    let (mut free, mut merged, mut last) = (end - begin, (begin, end), first);
    while last < covered.len() && covered[last].0 <= end {
        let span = covered[last];
        free -= span.1.min(end) - span.0.max(begin);
        merged = (merged.0.min(span.0), merged.1.max(span.1));
        last += 1;
    }
    covered.splice(first..last, [merged]);
    free.max(0.0)
}
