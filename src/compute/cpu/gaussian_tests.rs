//! Tests of the Gaussian operations against independent float64 references, and what all of them share.

#![allow(clippy::unwrap_used)]

mod edges;
mod gradients;
mod values;

use glam::{DMat3, DQuat, DVec3};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::gaussians::{CUTOFF, GaussianCompute, GaussianGradients, GaussianSet, GaussianWorkload};
use super::gaussian_kernel::voxel_f64;
use super::{CpuCompute, SimdLevel};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, ViewPose, VolumeGrid};

/// Names of the eleven arrays of [`Owned`].
pub(super) const NAMES: [&str; 11] = [
    "density",
    "position x",
    "position y",
    "position z",
    "log scale 0",
    "log scale 1",
    "log scale 2",
    "rotation w",
    "rotation x",
    "rotation y",
    "rotation z",
];

/// Gaussians with their memory: density, position, log scale, rotation.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    pub(super) arrays: [Vec<f32>; 11],
    pub(super) low_pass_mm: f32,
}

/// One Gaussian of a test.
#[derive(Debug, Clone, Copy)]
pub(super) struct One {
    pub(super) density: f64,
    pub(super) position: DVec3,
    pub(super) scale: DVec3,
    /// w, x, y, z
    pub(super) rotation: [f64; 4],
}

impl One {
    pub(super) fn values(&self) -> [f64; 11] {
        let (p, s, r) = (self.position, self.scale, self.rotation);
        [self.density, p.x, p.y, p.z, s.x.ln(), s.y.ln(), s.z.ln(), r[0], r[1], r[2], r[3]]
    }

    pub(super) fn of(v: &[f64; 11]) -> Self {
        Self {
            density: v[0],
            position: DVec3::new(v[1], v[2], v[3]),
            scale: DVec3::new(v[4], v[5], v[6]).exp(),
            rotation: [v[7], v[8], v[9], v[10]],
        }
    }

    /// `S^-1 R'` after the low pass, and the amplitude.
    fn to_unit(self, low_pass: f64) -> (DMat3, f64) {
        let [w, x, y, z] = self.rotation;
        let rotation = DMat3::from_quat(DQuat::from_xyzw(x, y, z, w).normalize());
        let wide = (self.scale * self.scale + low_pass * low_pass).map(f64::sqrt);
        let kept = (self.scale / wide).element_product();
        (DMat3::from_diagonal(wide.recip()) * rotation.transpose(), self.density * kept)
    }

    /// Value at a point.
    pub(super) fn value_at(&self, point: DVec3, low_pass: f64) -> f64 {
        let (m, amplitude) = self.to_unit(low_pass);
        amplitude * voxel_f64((m * (point - self.position)).length_squared())
    }

    /// The line integral by the textbook's formula (`w = v - (u.v / u.u) u`) and `kernel`, the `g2` to use.
    pub(super) fn line_integral(
        &self,
        pose: &ViewPose,
        pixel: DVec3,
        low_pass: f64,
        kernel: impl Fn(f64) -> f64,
    ) -> f64 {
        let (m, amplitude) = self.to_unit(low_pass);
        let u = m * (pixel - pose.source_mm).normalize();
        let v = m * (self.position - pose.source_mm);
        let w = v - u * (u.dot(v) / u.length_squared());
        amplitude * (std::f64::consts::TAU / u.length_squared()).sqrt() * kernel(w.length_squared())
    }

    /// The line integral by the midpoint rule over the density.
    pub(super) fn quadrature(&self, pose: &ViewPose, pixel: DVec3, low_pass: f64) -> f64 {
        let (m, amplitude) = self.to_unit(low_pass);
        let direction = (pixel - pose.source_mm).normalize();
        let (u, v) = (m * direction, m * (self.position - pose.source_mm));
        let nearest = u.dot(v) / u.length_squared();
        let half = (CUTOFF / u.length_squared()).sqrt();
        let steps = 4000;
        let h = 2.0 * half / f64::from(steps);
        let at = |k: i32| nearest - half + (f64::from(k) + 0.5) * h;
        (0..steps).map(|k| voxel_f64((u * at(k) - v).length_squared())).sum::<f64>() * h * amplitude
    }
}

impl Owned {
    pub(super) fn new(gaussians: &[One], low_pass_mm: f32) -> Self {
        let mut arrays: [Vec<f32>; 11] = Default::default();
        for one in gaussians {
            for (array, value) in arrays.iter_mut().zip(one.values()) {
                array.push(value as f32);
            }
        }
        Self { arrays, low_pass_mm }
    }

    pub(super) fn len(&self) -> usize {
        self.arrays[0].len()
    }

    /// What the float32 values say, exactly.
    pub(super) fn one(&self, i: usize) -> One {
        One::of(&self.arrays.each_ref().map(|array| f64::from(array[i])))
    }

    pub(super) fn set(&self) -> GaussianSet<'_> {
        let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz] = self.arrays.each_ref().map(Vec::as_slice);
        GaussianSet {
            density_per_mm: density,
            position_mm: [px, py, pz],
            log_scale: [s0, s1, s2],
            rotation: [rw, rx, ry, rz],
            low_pass_mm: self.low_pass_mm,
        }
    }
}

/// Gradients with their memory; the last array is `view_norm`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OwnedGradients(pub(super) [Vec<f32>; 12]);

impl OwnedGradients {
    pub(super) fn zeros(n: usize) -> Self {
        Self(std::array::from_fn(|_| vec![0.0; n]))
    }

    pub(super) fn lend(&mut self) -> GaussianGradients<'_> {
        let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz, norm] = self.0.each_mut().map(Vec::as_mut_slice);
        GaussianGradients {
            density_per_mm: density,
            position_mm: [px, py, pz],
            log_scale: [s0, s1, s2],
            rotation: [rw, rx, ry, rz],
            view_norm: norm,
        }
    }
}

pub(super) fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Gaussians within `spread` mm of the isocenter, scales from `small` to `large` mm (log-uniform), any rotation.
pub(super) fn scene(n: usize, spread: f64, small: f64, large: f64, rng: &mut impl Rng) -> Vec<One> {
    (0..n)
        .map(|_| {
            let mut vector = |low: f64, high: f64| {
                DVec3::new(rng.random_range(low..high), rng.random_range(low..high), rng.random_range(low..high))
            };
            let position = vector(-spread, spread);
            let scale = vector(small.ln(), large.ln() + 1e-9).exp();
            let axis = vector(-1.0, 1.0);
            let density = rng.random_range(0.005..0.03);
            let w = rng.random_range(-1.0..1.0);
            One { density, position, scale, rotation: [w, axis.x, axis.y, axis.z] }
        })
        .collect()
}

/// Tilted, displaced detector with odd sizes and oblong pixels.
pub(super) fn awkward(views: usize) -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns: 61, rows: 45 },
        pitch_u_mm: 2.1,
        pitch_v_mm: 2.7,
        offset_u_mm: 17.0,
        offset_v_mm: -5.0,
        roll_rad: 0.11,
        pitch_rad: -0.2,
        yaw_rad: 0.15,
    };
    orbit.over_arc(views, 0.4, 5.0)
}

pub(super) fn carrier(
    threads: usize,
    simd: SimdLevel,
    n: usize,
    geometry: &ScanGeometry,
    voxels: [usize; 3],
) -> CpuCompute {
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    cpu.prepare_gaussians(&GaussianWorkload {
        gaussians: n,
        columns: geometry.detector.columns,
        rows: geometry.detector.rows,
        views_per_call: geometry.views.len(),
        voxels,
    })
    .unwrap();
    cpu
}

/// Projections by the fastest level on two threads.
pub(super) fn project(geometry: &ScanGeometry, gaussians: &Owned) -> Vec<f32> {
    let cpu = carrier(2, SimdLevel::detect(), gaussians.len(), geometry, [1; 3]);
    let mut projections = vec![f32::NAN; geometry.projection_len()];
    cpu.gaussian_project(geometry, &gaussians.set(), &mut projections).unwrap();
    projections
}

pub(super) fn voxelise(grid: &VolumeGrid, gaussians: &Owned) -> Vec<f32> {
    let cpu = carrier(2, SimdLevel::detect(), gaussians.len(), &awkward(1), grid.voxels);
    let mut volume = vec![f32::NAN; grid.len()];
    cpu.gaussian_voxelise(grid, &gaussians.set(), &mut volume).unwrap();
    volume
}
