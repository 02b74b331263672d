//! A sphere against the shell about it, as weights of voxels.

use glam::{DAffine3, DVec3};
use ndarray::ArrayView3;

use super::{Sphere, Volumes};

/// Share of the voxel at `offset` (in voxels from the sphere's centre) that lies inside it, by `samples`^3 points.
pub(super) fn occupancy(offset: DVec3, voxel_to_world_mm: &DAffine3, radius_mm: f64, samples: usize) -> f64 {
    let step = 1.0 / samples as f64;
    let part = |n: usize| (n as f64 + 0.5) * step - 0.5;
    let mut inside = 0;
    for x in 0..samples {
        for y in 0..samples {
            for z in 0..samples {
                let point = offset + DVec3::new(part(x), part(y), part(z));
                inside += usize::from(voxel_to_world_mm.transform_vector3(point).length() <= radius_mm);
            }
        }
    }
    inside as f64 * step.powi(3)
}

/// Weights of the voxels in a sphere, and of those in the shell about it; each add up to 1.
pub(super) struct Probe {
    /// Voxel nearest the sphere's centre.
    pub home: [i64; 3],
    /// The shell's outer radius.
    pub reach_mm: f64,
    ball: Vec<([i64; 3], f64)>,
    shell: Vec<([i64; 3], f64)>,
}

impl Probe {
    pub(super) fn new(sphere: &Sphere, voxel_to_world_mm: &DAffine3, voxel_mm: f64) -> Self {
        let r = sphere.radius_mm;
        let (inner_mm, reach_mm) = (f64::max(1.25 * r, r + 0.5 * voxel_mm), f64::max(1.75 * r, r + 1.5 * voxel_mm));
        let centre = voxel_to_world_mm.inverse().transform_point3(sphere.centre_mm);
        let home = centre.round();
        let matrix = voxel_to_world_mm.matrix3;
        let half =
            [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(|edge| (reach_mm / edge.length()).ceil() as i64 + 1);
        // Large spheres have few voxels at their surface.
        let samples = if r < 4.0 * voxel_mm { 5 } else { 2 };
        let (mut ball, mut shell) = (Vec::new(), Vec::new());
        for x in -half[0]..=half[0] {
            for y in -half[1]..=half[1] {
                for z in -half[2]..=half[2] {
                    let offset = home + DVec3::new(x as f64, y as f64, z as f64) - centre;
                    let share = |radius_mm: f64| occupancy(offset, voxel_to_world_mm, radius_mm, samples);
                    let outer = share(reach_mm);
                    if outer == 0.0 {
                        continue;
                    }
                    let (inside, between) = (share(r), outer - share(inner_mm));
                    if inside > 0.0 {
                        ball.push(([x, y, z], inside));
                    }
                    if between > 0.0 {
                        shell.push(([x, y, z], between));
                    }
                }
            }
        }
        if ball.is_empty() {
            // Smaller than the distance of the points in a voxel.
            ball.push(([0; 3], 1.0));
        }
        for part in [&mut ball, &mut shell] {
            let total: f64 = part.iter().map(|(_, weight)| weight).sum();
            part.iter_mut().for_each(|(_, weight)| *weight /= total);
        }
        // Far away centres saturate, and fit nowhere.
        Self { home: [home.x, home.y, home.z].map(|index| index as i64), reach_mm, ball, shell }
    }

    fn at(&self, home: [i64; 3], offset: [i64; 3]) -> Option<[usize; 3]> {
        let index = |axis: usize| usize::try_from(home[axis].checked_add(offset[axis])?).ok();
        Some([index(0)?, index(1)?, index(2)?])
    }

    /// All voxels lie in the volume and are seen, with the sphere's home at this voxel.
    pub(super) fn fits(&self, volumes: &Volumes<'_>, home: [i64; 3]) -> bool {
        self.ball.iter().chain(&self.shell).all(|&(offset, _)| {
            let Some(at) = self.at(home, offset) else { return false };
            match &volumes.seen {
                Some(seen) => seen.get(at) == Some(&true),
                None => volumes.result.get(at).is_some(),
            }
        })
    }

    /// The sphere's own voxels lie in the mask.
    pub(super) fn ball_lies_in(&self, mask: ArrayView3<'_, bool>, home: [i64; 3]) -> bool {
        self.ball.iter().all(|&(offset, _)| self.at(home, offset).is_some_and(|at| mask.get(at) == Some(&true)))
    }

    /// Mean inside less the median about it; the sphere [fits](Self::fits).
    pub(super) fn contrast(&self, volume: ArrayView3<'_, f32>, home: [i64; 3]) -> f64 {
        let value = |offset| self.at(home, offset).and_then(|at| volume.get(at).copied()).unwrap_or(0.0);
        let inside: f64 = self.ball.iter().map(|&(offset, weight)| weight * f64::from(value(offset))).sum();
        let mut about: Vec<(f32, f64)> = self.shell.iter().map(|&(offset, weight)| (value(offset), weight)).collect();
        about.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        let median = about.iter().find(|(_, weight)| {
            below += weight;
            below >= 0.5
        });
        // Weights that add up to a rounding less than 1 still pass a half.
        inside - median.map_or(0.0, |(value, _)| f64::from(*value))
    }
}
