//! Gaussians to work with, on either side.

use std::array::from_fn;

use diffnr::compute::ComputeError;
use diffnr::compute::cuda::{DeviceGaussians, Launcher};
use diffnr::compute::gaussians::{GaussianGradients, GaussianSet};
use glam::DVec3;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::values::upload;

/// Density, position x y z, log scales, quaternion w x y z of each Gaussian.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) arrays: [Vec<f32>; 11],
    pub(crate) low_pass_mm: f32,
}

/// One Gaussian.
#[derive(Debug, Clone, Copy)]
pub(crate) struct One {
    pub(crate) density: f64,
    pub(crate) position: DVec3,
    pub(crate) scale: DVec3,
    pub(crate) rotation: [f64; 4],
}

pub(crate) const ROUND: One =
    One { density: 0.02, position: DVec3::ZERO, scale: DVec3::splat(1.5), rotation: [1.0, 0.0, 0.0, 0.0] };

impl Scene {
    pub(crate) fn new(gaussians: &[One], low_pass_mm: f32) -> Self {
        let mut arrays: [Vec<f32>; 11] = Default::default();
        for one in gaussians {
            let (p, s, r) = (one.position, one.scale, one.rotation);
            let values = [one.density, p.x, p.y, p.z, s.x.ln(), s.y.ln(), s.z.ln(), r[0], r[1], r[2], r[3]];
            arrays.iter_mut().zip(values).for_each(|(array, value)| array.push(value as f32));
        }
        Self { arrays, low_pass_mm }
    }

    pub(crate) fn len(&self) -> usize {
        self.arrays[0].len()
    }

    pub(crate) fn set(&self) -> GaussianSet<'_> {
        let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz] = self.arrays.each_ref().map(Vec::as_slice);
        GaussianSet {
            density_per_mm: density,
            position_mm: [px, py, pz],
            log_scale: [s0, s1, s2],
            rotation: [rw, rx, ry, rz],
            low_pass_mm: self.low_pass_mm,
        }
    }

    /// On a device with room for more; raw densities, which no operation reads, and what is beyond the last Gaussian are not numbers.
    pub(crate) fn upload(&self, launcher: &dyn Launcher) -> DeviceGaussians {
        let capacity = self.len() + 5;
        let spread = |values: &[f32]| {
            let mut values = values.to_vec();
            values.resize(capacity, f32::NAN);
            values
        };
        let raw = vec![f32::NAN; capacity];
        let parameters: Vec<f32> =
            [raw].into_iter().chain(self.arrays[1..].iter().map(|array| spread(array))).flatten().collect();
        DeviceGaussians {
            parameters: upload(launcher, &parameters),
            density_per_mm: upload(launcher, &spread(&self.arrays[0])),
            len: self.len(),
            low_pass_mm: self.low_pass_mm,
        }
    }
}

/// Gaussians within `half` mm of the middle along each axis, scales from `small` to `large` mm, any rotation, some densities negative.
pub(crate) fn scene(n: usize, half: DVec3, [small, large]: [f64; 2], seed: u64) -> Vec<One> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let vector =
        |rng: &mut ChaCha8Rng, low: f64, high: f64| DVec3::from_array(from_fn(|_| rng.random_range(low..high)));
    (0..n)
        .map(|_| One {
            density: rng.random_range(-0.01..0.03),
            position: vector(&mut rng, -1.0, 1.0) * half,
            scale: vector(&mut rng, small.ln(), large.ln() + 1e-9).exp(),
            rotation: from_fn(|_| rng.random_range(-1.0..1.0)),
        })
        .collect()
}

/// The CPU's gradients, added to `before` (`[12][n]`).
pub(crate) fn lend(arrays: &mut [Vec<f32>; 12]) -> GaussianGradients<'_> {
    let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz, norm] = arrays.each_mut().map(Vec::as_mut_slice);
    GaussianGradients {
        density_per_mm: density,
        position_mm: [px, py, pz],
        log_scale: [s0, s1, s2],
        rotation: [rw, rx, ry, rz],
        view_norm: norm,
    }
}

/// Gradients of the device by channel, each cut to the Gaussians there are.
pub(crate) fn channels(gradients: &[f32], n: usize) -> [Vec<f32>; 12] {
    let capacity = gradients.len() / 12;
    from_fn(|channel| gradients[channel * capacity..][..n].to_vec())
}

#[track_caller]
pub(crate) fn refused(result: Result<(), ComputeError>, expected: &str) {
    match result {
        Err(ComputeError::Shape { buffer: name, .. } | ComputeError::Value { parameter: name, .. }) => {
            assert_eq!(name, expected);
        }
        other => panic!("{expected}: {other:?}"),
    }
}
