//! Joseph's method ray by ray, for any pose (roll, pitch, steep cones): see [`super::joseph`].
//!
//! One ray after the other in scalar code, about 35 (forward) and 55 (adjoint) cycles a sample: some 40 times slower than the path by columns.

#![forbid(unsafe_code)]

use super::back_project_matched::Tile;
use super::joseph::{IndexView, clip};

/// Rays nearer to the source than this share of the source-to-pixel distance are not sampled (planes behind the source).
const NEAREST: f64 = 1e-6;

/// One ray through the planes across its dominant axis; `p` and `q` are the two other axes, in the order of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ray {
    /// 0: x, 1: y, 2: z.
    pub(super) axis: usize,
    /// Position in plane 0 and step from plane to plane along the other two axes.
    p: f64,
    p_step: f64,
    q: f64,
    q_step: f64,
    /// Planes that the ray crosses within the grid.
    first: usize,
    last: usize,
    /// Length between two planes.
    pub(super) length_mm: f32,
}

/// Counts and memory strides of the axes across `axis`, in the order of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planes {
    pub(super) count: usize,
    pub(super) stride: usize,
    pub(super) p_count: usize,
    pub(super) p_stride: usize,
    pub(super) q_count: usize,
    pub(super) q_stride: usize,
}

impl Planes {
    /// The planes across `axis`.
    pub(super) fn across(axis: usize, voxels: [usize; 3]) -> Self {
        let strides = [voxels[1] * voxels[2], voxels[2], 1];
        let (p, q) = [(1, 2), (0, 2), (0, 1)][axis];
        Self {
            count: voxels[axis],
            stride: strides[axis],
            p_count: voxels[p],
            p_stride: strides[p],
            q_count: voxels[q],
            q_stride: strides[q],
        }
    }
}

/// A sample's neighbours in a plane: lower index on each axis (-1: outside) and weights of the upper one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) plane: usize,
    pub(super) p: isize,
    pub(super) q: isize,
    pub(super) p_weight: f32,
    pub(super) q_weight: f32,
}

impl Ray {
    /// The ray to pixel (row `v`, column `u`).
    pub(super) fn new(view: &IndexView, v: usize, u: usize) -> Self {
        let d = view.direction(v, u);
        let size = d.abs();
        // Ties go to x, then y, as for columns.
        let axis = if size.z >= size.x.max(size.y) { 2 } else { usize::from(size.y > size.x) };
        let (p, q) = [(1, 2), (0, 2), (0, 1)][axis];
        let (source, d) = (view.source.to_array(), d);
        let t_step = 1.0 / d[axis];
        let t = -source[axis] * t_step;
        let mut ray = Self {
            axis,
            p: source[p] + t * d[p],
            p_step: t_step * d[p],
            q: source[q] + t * d[q],
            q_step: t_step * d[q],
            first: 0,
            last: 0,
            length_mm: ((d * view.voxel_mm).length() * t_step.abs()) as f32,
        };
        let mut range = (0.0, view.voxels[axis] as f64 - 1.0);
        clip(&mut range, (t, t_step), (NEAREST, f64::INFINITY));
        clip(&mut range, (ray.p, ray.p_step), (-1.0, view.voxels[p] as f64));
        clip(&mut range, (ray.q, ray.q_step), (-1.0, view.voxels[q] as f64));
        if range.0 <= range.1 {
            (ray.first, ray.last) = (range.0.ceil() as usize, range.1.floor() as usize + 1);
        }
        ray
    }

    /// Samples in planes `first..last`, in their order.
    #[inline(always)]
    pub(super) fn samples(self, planes: Planes, first: usize, last: usize) -> impl Iterator<Item = Sample> {
        (self.first.max(first)..self.last.min(last)).filter_map(move |plane| {
            let p = self.p + plane as f64 * self.p_step;
            let q = self.q + plane as f64 * self.q_step;
            // Rounding may have let a plane in where the ray just touches the neighbourhood of a face.
            if p <= -1.0 || p >= planes.p_count as f64 || q <= -1.0 || q >= planes.q_count as f64 {
                return None;
            }
            // Both are above -1 here: truncation after a shift, where the plain target's `floor` is a call.
            let (p_floor, q_floor) = (whole_above(p), whole_above(q));
            Some(Sample {
                plane,
                p: p_floor as isize,
                q: q_floor as isize,
                p_weight: (p - f64::from(p_floor)) as f32,
                q_weight: (q - f64::from(q_floor)) as f32,
            })
        })
    }
}

/// Floor of a number above -1.
#[inline(always)]
fn whole_above(value: f64) -> i32 {
    (value + 1.0) as i32 - 1
}

/// Line integral along the ray to pixel (`v`, `u`).
pub(super) fn integrate(view: &IndexView, volume: &[f32], v: usize, u: usize) -> f32 {
    let ray = Ray::new(view, v, u);
    let planes = Planes::across(ray.axis, view.voxels);
    let (p_inner, q_inner) = (0..planes.p_count as isize - 1, 0..planes.q_count as isize - 1);
    let mut sum = 0.0;
    for sample in ray.samples(planes, 0, planes.count) {
        if p_inner.contains(&sample.p) && q_inner.contains(&sample.q) {
            let start = sample.plane * planes.stride
                + sample.p as usize * planes.p_stride
                + sample.q as usize * planes.q_stride;
            let near = &volume[start..start + planes.p_stride + planes.q_stride + 1];
            let (a, b) = (near[0], near[planes.q_stride]);
            let (c, d) = (near[planes.p_stride], near[planes.p_stride + planes.q_stride]);
            let (a, b) = (a + sample.q_weight * (b - a), c + sample.q_weight * (d - c));
            sum += a + sample.p_weight * (b - a);
            continue;
        }
        let value = |p: isize, q: isize| {
            if (0..planes.p_count as isize).contains(&p) && (0..planes.q_count as isize).contains(&q) {
                volume[sample.plane * planes.stride + p as usize * planes.p_stride + q as usize * planes.q_stride]
            } else {
                0.0
            }
        };
        let along = |p: isize| {
            let (a, b) = (value(p, sample.q), value(p, sample.q + 1));
            a + sample.q_weight * (b - a)
        };
        let (a, b) = (along(sample.p), along(sample.p + 1));
        sum += a + sample.p_weight * (b - a);
    }
    sum * ray.length_mm
}

/// Adds the rays of a view that cross planes across `axis` to a tile of the adjoint, in the order of pixels.
pub(super) fn scatter(view: &IndexView, axis: usize, pixels: &[f32], tile: &mut Tile<'_>) {
    let low = tile.heights.start as isize;
    let heights = tile.heights.len() as isize;
    let columns = view.detector.columns;
    let planes = Planes::across(axis, view.voxels);
    for (index, &pixel) in pixels.iter().enumerate() {
        let ray = Ray::new(view, index / columns, index % columns);
        if ray.axis != axis {
            continue;
        }
        let value = pixel * ray.length_mm;
        for sample in ray.samples(planes, tile.planes.start, tile.planes.end) {
            let plane = (sample.plane - tile.planes.start) * (tile.others + 2);
            let q = sample.q - low;
            for (p, p_value) in [(sample.p, (1.0 - sample.p_weight) * value), (sample.p + 1, sample.p_weight * value)] {
                // The tile's columns start one beyond the face.
                let start = (plane + (p + 1) as usize) * tile.stride;
                if (0..heights).contains(&q) {
                    tile.sums[start + q as usize] += (1.0 - sample.q_weight) * p_value;
                }
                if (0..heights).contains(&(q + 1)) {
                    tile.sums[start + (q + 1) as usize] += sample.q_weight * p_value;
                }
            }
        }
    }
}
