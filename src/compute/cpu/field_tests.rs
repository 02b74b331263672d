//! Tests of the field's operations against a float64 reference of their own, and what all of them share.

#![allow(clippy::unwrap_used)]

mod edges;
mod gradients;
mod values;

use glam::DVec3;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::field::{
    FieldCompute, FieldJitter, FieldLayout, FieldParameters, FieldRays, FieldShape, FieldWorkload, HostFieldGradients,
    RayPixel,
};
use super::{CpuCompute, SimdLevel};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};

/// A field with its memory, random throughout: features up to 1, so that every unit of the network works.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    pub(super) layout: FieldLayout,
    pub(super) tables: Vec<f32>,
    pub(super) network: Vec<f32>,
    pub(super) weights: Vec<f32>,
}

impl Owned {
    pub(super) fn new(shape: &FieldShape, grid: &VolumeGrid, seed: u64) -> Self {
        let layout = FieldLayout::new(shape, grid).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let tables = (0..layout.tables_len()).map(|_| random.random_range(-1.0..1.0)).collect();
        let mut network = vec![0.0; layout.network_len()];
        for index in 0..=shape.hidden_layers {
            let layer = layout.layer(index);
            let size = (3.0 / layer.inputs as f32).sqrt();
            let floats = &mut network[layer.first..layer.biases() + layer.outputs];
            floats.iter_mut().for_each(|weight| *weight = random.random_range(-size..size));
        }
        let weights = (0..shape.levels).map(|level| 1.0 - 0.05 * level as f32).collect();
        Self { layout, tables, network, weights }
    }

    pub(super) fn parameters(&self) -> FieldParameters<'_> {
        FieldParameters {
            layout: &self.layout,
            tables: &self.tables,
            network: &self.network,
            level_weights: &self.weights,
        }
    }

    /// The same in float64.
    pub(super) fn reference(&self) -> Reference<'_> {
        let wide = |floats: &[f32]| floats.iter().map(|&x| f64::from(x)).collect();
        Reference {
            layout: &self.layout,
            tables: wide(&self.tables),
            network: wide(&self.network),
            weights: wide(&self.weights),
        }
    }
}

/// The field by its definition, in float64.
pub(super) struct Reference<'a> {
    pub(super) layout: &'a FieldLayout,
    pub(super) tables: Vec<f64>,
    pub(super) network: Vec<f64>,
    pub(super) weights: Vec<f64>,
}

impl Reference<'_> {
    pub(super) fn value_at(&self, point_mm: DVec3) -> f64 {
        let (shape, at) = (self.layout.shape(), point_mm - self.layout.low_mm());
        if at.min_element() < -1e-9 || (at - self.layout.size_mm()).max_element() > 1e-9 {
            return 0.0;
        }
        let mut units = Vec::new();
        for (level, weight) in self.layout.levels().iter().zip(&self.weights) {
            let cells = DVec3::from_array(level.nodes.map(|n| (n - 1) as f64));
            let at = (at / level.cell_mm).clamp(DVec3::ZERO, cells);
            let low = at.floor().min(cells - 1.0);
            let share = at - low;
            for f in 0..shape.features {
                let mut sum = 0.0;
                for corner in 0..8 {
                    let upper = DVec3::from_array([2, 1, 0].map(|bit| f64::from(corner >> bit & 1)));
                    let node = (low + upper).to_array().map(|c| c as u64);
                    let entry = if level.hashed {
                        ((node[0] * 2_654_435_761) ^ (node[1] * 805_459_861) ^ node[2]) % level.entries as u64
                    } else {
                        (node[0] * level.nodes[1] as u64 + node[1]) * level.nodes[2] as u64 + node[2]
                    };
                    let of_corner = (upper * share + (1.0 - upper) * (1.0 - share)).element_product();
                    sum += of_corner * self.tables[level.first + f * level.entries + entry as usize];
                }
                units.push(weight * sum);
            }
        }
        for index in 0..=shape.hidden_layers {
            let layer = self.layout.layer(index);
            assert_eq!(layer.inputs, units.len());
            let sum = |o: usize| -> f64 {
                let of = |i: usize| self.network[layer.first + i * layer.outputs + o];
                units.iter().enumerate().map(|(i, unit)| unit * of(i)).sum::<f64>() + self.network[layer.biases() + o]
            };
            let last = index == shape.hidden_layers;
            let act = |x: f64| if last || x > 0.0 { x } else { f64::from(shape.leak) * x };
            units = (0..layer.outputs).map(|o| act(sum(o))).collect();
        }
        let softplus = units[0].max(0.0) + (-units[0].abs()).exp().ln_1p();
        f64::from(shape.density_unit_per_mm) * softplus
    }

    /// Sum over `points` of weight times value: a loss whose gradient by the values is the weights.
    pub(super) fn loss(&self, points: &[(DVec3, f64)]) -> f64 {
        points.iter().map(|&(point, weight)| weight * self.value_at(point)).sum()
    }
}

/// A small field with dense and hashed levels, leaky units, and 10 inputs (not a multiple of a register).
pub(super) fn small() -> FieldShape {
    FieldShape {
        levels: 5,
        features: 2,
        coarsest_cells: 3,
        growth: 1.7,
        log2_table: 9,
        width: 16,
        hidden_layers: 2,
        leak: 0.1,
        density_unit_per_mm: 0.02,
    }
}

/// An oblong grid of odd sizes, off the isocenter.
pub(super) fn odd() -> VolumeGrid {
    VolumeGrid { voxels: [13, 9, 37], voxel_mm: DVec3::new(2.0, 2.3, 1.1), centre_mm: DVec3::new(3.0, -2.0, 5.0) }
}

/// Tilted, displaced detector with odd sizes.
pub(super) fn awkward(views: usize) -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 100.0,
        source_to_detector_mm: 150.0,
        detector: Detector { columns: 21, rows: 17 },
        pitch_u_mm: 3.1,
        pitch_v_mm: 4.7,
        offset_u_mm: 5.0,
        offset_v_mm: -3.0,
        roll_rad: 0.11,
        pitch_rad: -0.2,
        yaw_rad: 0.15,
    };
    orbit.over_arc(views, 0.4, 5.0)
}

/// Every `step`-th pixel of all views.
pub(super) fn pixels(geometry: &ScanGeometry, step: usize) -> Vec<RayPixel> {
    let Detector { columns, rows } = geometry.detector;
    let of = |k: usize| RayPixel {
        view: (k / (rows * columns)) as u32,
        row: (k / columns % rows) as u32,
        column: (k % columns) as u32,
    };
    (0..geometry.projection_len()).step_by(step).map(of).collect()
}

/// Points of all voxels, by the definition of jitter: a stream a row, x and y first.
pub(super) fn voxel_points(grid: &VolumeGrid, jitter: Option<FieldJitter>) -> Vec<DVec3> {
    let [nx, ny, nz] = grid.voxels;
    let low = grid.centre_mm - 0.5 * grid.size_mm();
    let mut points = Vec::new();
    for row in 0..nx * ny {
        let mut random = jitter.map(|jitter| stream(jitter, row));
        let mut next = || random.as_mut().map_or(0.5, |random| f64::from(random.random::<f32>()));
        let (x, y) = ((row / ny) as f64 + next(), (row % ny) as f64 + next());
        points.extend((0..nz).map(|k| low + grid.voxel_mm * DVec3::new(x, y, k as f64 + next())));
    }
    points
}

/// Samples of one ray and their step.
pub(super) fn ray_points(layout: &FieldLayout, rays: &FieldRays<'_>, ray: usize) -> (Vec<DVec3>, f64) {
    let pixel = rays.pixels[ray];
    let pose = &rays.geometry.views[pixel.view as usize];
    let direction = (pose.pixel_mm(f64::from(pixel.row), f64::from(pixel.column)) - pose.source_mm).normalize();
    let low = (layout.low_mm() - pose.source_mm) / direction;
    let high = (layout.low_mm() + layout.size_mm() - pose.source_mm) / direction;
    let (enter, leave) = (low.min(high).max_element().max(0.0), low.max(high).min_element());
    if leave <= enter {
        return (vec![], 0.0);
    }
    let step = (leave - enter) / rays.samples as f64;
    let mut random = rays.jitter.map(|jitter| stream(jitter, ray));
    let mut next = || random.as_mut().map_or(0.5, |random| f64::from(random.random::<f32>()));
    let at = (0..rays.samples).map(|s| pose.source_mm + direction * (enter + step * (s as f64 + next())));
    (at.collect(), step)
}

fn stream(jitter: FieldJitter, stream: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&jitter.seed.to_le_bytes());
    key[8..16].copy_from_slice(&jitter.iteration.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    random.set_stream(stream as u64);
    random
}

pub(super) fn carrier(threads: usize, simd: SimdLevel, shape: &FieldShape, voxels: [usize; 3]) -> CpuCompute {
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    cpu.prepare_field(&FieldWorkload { shape: *shape, voxels, box_mm: [1.0; 3], rays: 0 }).unwrap();
    cpu
}

/// Results of all operations.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Results {
    pub(super) volume: Vec<f32>,
    pub(super) integrals: Vec<f32>,
    /// Tables, network.
    pub(super) by_volume: [Vec<f32>; 2],
    pub(super) by_rays: [Vec<f32>; 2],
}

/// Of so many pixels [`everything`] takes one: 33 rays.
pub(super) const STEP: usize = 33;

pub(super) const JITTER: Option<FieldJitter> = Some(FieldJitter { seed: 3, iteration: 8 });

/// All four operations on one carrier, with smooth weights as gradients.
pub(super) fn everything(
    cpu: &CpuCompute,
    grid: &VolumeGrid,
    owned: &Owned,
    jitter: Option<FieldJitter>,
    samples: usize,
) -> Results {
    let (field, geometry) = (owned.parameters(), awkward(3));
    let pixels = pixels(&geometry, STEP);
    let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples, jitter };
    let mut volume = vec![f32::NAN; grid.len()];
    let mut integrals = vec![f32::NAN; pixels.len()];
    cpu.field_voxelise(grid, &field, jitter, &mut volume).unwrap();
    cpu.field_project(&rays, &field, &mut integrals).unwrap();
    let gradients = || [vec![0.0; owned.tables.len()], vec![0.0; owned.network.len()]];
    let (mut by_volume, mut by_rays) = (gradients(), gradients());
    let weights = |n: usize| (0..n).map(|k| weight(k) as f32).collect::<Vec<_>>();
    {
        let [tables, network] = &mut by_volume;
        let mut lent = HostFieldGradients { tables, network };
        cpu.field_voxelise_backward(grid, &field, jitter, &weights(grid.len()), &mut lent).unwrap();
    }
    {
        let [tables, network] = &mut by_rays;
        let mut lent = HostFieldGradients { tables, network };
        cpu.field_project_backward(&rays, &field, &weights(pixels.len()), &mut lent).unwrap();
    }
    Results { volume, integrals, by_volume, by_rays }
}

/// Smooth weights of voxels or rays.
pub(super) fn weight(k: usize) -> f64 {
    let k = k as f64;
    f64::from(((0.13 * k + 0.3).sin() + (0.011 * k).cos() + 0.4) as f32)
}
