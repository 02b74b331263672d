//! Other bodies made of a CT volume: turned, stretched and bent, so that a model does not learn the few there are by heart.

use std::f64::consts::TAU;

use glam::{DMat3, DVec3};
use ndarray::{Array3, Axis};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::formats::nifti::CtVolume;

/// HU beyond the volume.
const AIR_HU: f32 = -1000.0;
/// Most that a body is turned about the rotation axis, and tilted about the others.
const TURN_RAD: f64 = 0.35;
const TILT_RAD: f64 = 0.1;
/// Natural logarithm of the most that it is stretched or shrunk along an axis.
const STRETCH: f64 = 0.13;
/// Waves along each axis, how long they are, and how steep at most: all nine together stay below 1, where a body would fold.
const WAVES: usize = 3;
const WAVE_MM: [f64; 2] = [70.0, 250.0];
const STEEPNESS: f64 = 0.1;

/// `shift_mm sin(turns_per_mm . p + phase_rad)`.
#[derive(Debug, Clone, Copy)]
struct Wave {
    shift_mm: f64,
    turns_per_mm: DVec3,
    phase_rad: f64,
}

/// Where each place of the new body comes from: `matrix p + waves(p)`, in mm about the volume's middle, in its own axes.
#[derive(Debug, Clone)]
pub(super) struct Deformation {
    matrix: DMat3,
    waves: [[Wave; WAVES]; 3],
}

impl Deformation {
    /// One of those that there are.
    pub(super) fn drawn(random: &mut ChaCha8Rng) -> Self {
        let mut within = |most: f64| random.random_range(-most..=most);
        let turn = DMat3::from_rotation_x(within(TILT_RAD))
            * DMat3::from_rotation_y(within(TILT_RAD))
            * DMat3::from_rotation_z(within(TURN_RAD));
        let stretch = DVec3::new(within(STRETCH), within(STRETCH), within(STRETCH)).exp();
        let mut wave = || {
            let direction = loop {
                let point = DVec3::new(within(1.0), within(1.0), within(1.0));
                if (0.01..=1.0).contains(&point.length_squared()) {
                    break point.normalize();
                }
            };
            let length_mm = 0.5 * (WAVE_MM[0] + WAVE_MM[1]) + within(0.5 * (WAVE_MM[1] - WAVE_MM[0]));
            let shift_mm = within(STEEPNESS) * length_mm / TAU;
            Wave { shift_mm, turns_per_mm: direction * (TAU / length_mm), phase_rad: within(0.5 * TAU) }
        };
        let waves = std::array::from_fn(|_| std::array::from_fn(|_| wave()));
        Self { matrix: turn * DMat3::from_diagonal(stretch), waves }
    }

    fn source_of(&self, point_mm: DVec3) -> DVec3 {
        let along = |waves: &[Wave; WAVES]| -> f64 {
            waves.iter().map(|wave| wave.shift_mm * (wave.turns_per_mm.dot(point_mm) + wave.phase_rad).sin()).sum()
        };
        self.matrix * point_mm + DVec3::new(along(&self.waves[0]), along(&self.waves[1]), along(&self.waves[2]))
    }

    /// The deformed body on the volume's own voxels; between voxels by Catmull and Rom's cubic, which keeps what is fine.
    pub(super) fn of(&self, ct: &CtVolume) -> CtVolume {
        let (ni, nj, nk) = ct.hu.dim();
        let spacing_mm = ct.spacing_mm();
        let middle = 0.5 * (DVec3::new(ni as f64, nj as f64, nk as f64) - 1.0);
        let mut hu = Array3::zeros((ni, nj, nk));
        hu.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(i, mut slab)| {
            for ((j, k), out) in slab.indexed_iter_mut() {
                let point_mm = (DVec3::new(i as f64, j as f64, k as f64) - middle) * spacing_mm;
                *out = cubic_at(&ct.hu, self.source_of(point_mm) / spacing_mm + middle);
            }
        });
        CtVolume { hu, voxel_to_world_mm: ct.voxel_to_world_mm }
    }
}

/// Value at a place in voxel indices; air outside.
fn cubic_at(hu: &Array3<f32>, index: DVec3) -> f32 {
    let shape = <[usize; 3]>::from(hu.dim());
    let ends = DVec3::new(shape[0] as f64, shape[1] as f64, shape[2] as f64) - 0.5;
    if index.min_element() < -0.5 || (index - ends).max_element() > 0.0 {
        return AIR_HU;
    }
    let base = index.floor();
    let weights = (index - base).to_array().map(|t| {
        let (t2, t3) = (t * t, t * t * t);
        [0.5 * (2.0 * t2 - t3 - t), 0.5 * (3.0 * t3 - 5.0 * t2 + 2.0), 0.5 * (4.0 * t2 - 3.0 * t3 + t), 0.5 * (t3 - t2)]
    });
    let base = base.to_array();
    let place =
        |axis: usize, tap: usize| (base[axis] as isize + tap as isize - 1).clamp(0, shape[axis] as isize - 1) as usize;
    let mut sum = 0.0;
    for a in 0..4 {
        for b in 0..4 {
            let across = weights[0][a] * weights[1][b];
            for c in 0..4 {
                sum += across * weights[2][c] * f64::from(hu[[place(0, a), place(1, b), place(2, c)]]);
            }
        }
    }
    sum as f32
}

#[cfg(test)]
mod tests {
    use glam::DAffine3;
    use rand::SeedableRng;

    use super::*;

    fn volume(shape: [usize; 3], spacing_mm: DVec3, value: impl Fn(DVec3) -> f32) -> CtVolume {
        let middle = 0.5 * (DVec3::from_array(shape.map(|n| n as f64)) - 1.0);
        let hu = Array3::from_shape_fn(shape, |(i, j, k)| {
            value((DVec3::new(i as f64, j as f64, k as f64) - middle) * spacing_mm)
        });
        CtVolume { hu, voxel_to_world_mm: DAffine3::from_scale(spacing_mm) }
    }

    fn still() -> Deformation {
        let wave = Wave { shift_mm: 0.0, turns_per_mm: DVec3::X, phase_rad: 0.0 };
        Deformation { matrix: DMat3::IDENTITY, waves: [[wave; WAVES]; 3] }
    }

    #[test]
    fn nothing_deformed_is_the_volume_itself_and_a_constant_stays_one() {
        let ct = volume([7, 5, 6], DVec3::new(1.0, 2.0, 3.0), |p| (p.x * 31.0 + p.y * p.z * 7.0) as f32);
        assert_eq!(still().of(&ct).hu, ct.hu);
        let water = volume([40, 40, 40], DVec3::ONE, |_| 40.0);
        let bent = Deformation::drawn(&mut ChaCha8Rng::seed_from_u64(1)).of(&water);
        // Weights sum to 1 to a rounding; what came from outside is air.
        assert!(bent.hu.iter().all(|hu| (hu - 40.0).abs() < 1e-3 || *hu == AIR_HU));
        assert!(bent.hu.iter().filter(|hu| **hu != AIR_HU).count() > 30 * 30 * 30);
    }

    #[test]
    fn a_smooth_body_goes_where_the_map_says_in_mm() {
        let blob = |p: DVec3| (1000.0 * (-(p - DVec3::new(6.0, -4.0, 3.0)).length_squared() / 50.0).exp()) as f32;
        let ct = volume([40, 30, 20], DVec3::new(1.0, 1.3, 2.0), blob);
        let map = Deformation::drawn(&mut ChaCha8Rng::seed_from_u64(2));
        let expected = volume([40, 30, 20], DVec3::new(1.0, 1.3, 2.0), |p| blob(map.source_of(p)));
        let bent = map.of(&ct);
        let inside = bent.hu.iter().zip(&expected.hu).filter(|(found, _)| **found != AIR_HU);
        // The blob's third derivative times the cube of 2 mm, over some ten: 1000 / 5^3 * 8 / 10.
        let worst = inside.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
        assert!(worst < 6.0, "{worst} HU");
        assert!(ct.hu.iter().zip(&bent.hu).any(|(before, after)| (before - after).abs() > 100.0));
    }

    #[test]
    fn no_body_is_folded_whatever_is_drawn() {
        for seed in 0..200 {
            let map = Deformation::drawn(&mut ChaCha8Rng::seed_from_u64(seed));
            let mut random = ChaCha8Rng::seed_from_u64(seed + 1000);
            for _ in 0..50 {
                let p = DVec3::from_array(std::array::from_fn(|_| random.random_range(-200.0..200.0)));
                let columns =
                    [DVec3::X, DVec3::Y, DVec3::Z].map(|d| map.source_of(p + 0.5 * d) - map.source_of(p - 0.5 * d));
                let grown = DMat3::from_cols(columns[0], columns[1], columns[2]).determinant();
                assert!((0.3..3.0).contains(&grown), "seed {seed} at {p}: {grown}");
            }
        }
    }
}
