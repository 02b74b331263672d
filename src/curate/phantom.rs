//! A body of no kind: ellipsoids of tissue, air, bone and contrast in an ellipsoid of fat and muscle, for artefacts without anatomy.

use glam::{DQuat, DVec3, EulerRot};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::simulate::ellipsoids::Ellipsoid;
use crate::simulate::layered::LayeredPhantom;

/// Lowest and highest HU of what lies within the body, and how often it does, in tenths.
const TISSUES: [([f64; 2], u32); 5] =
    [([-1000.0, -700.0], 2), ([-120.0, -60.0], 1), ([10.0, 90.0], 4), ([120.0, 350.0], 1), ([400.0, 1600.0], 2)];

/// The body of a seed. `mu_water_per_mm` sets the scale: mu = mu_water (1 + HU/1000).
#[must_use]
pub(super) fn ellipsoids(seed: u64, mu_water_per_mm: f64) -> LayeredPhantom {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = |low: f64, high: f64| rng.random_range(low..high);
    let mu = |hu: f64| mu_water_per_mm * (1.0 + hu / 1000.0);
    let semi_axes_mm = DVec3::new(uniform(70.0, 190.0), uniform(60.0, 130.0), uniform(90.0, 190.0));
    let skin_mm = uniform(3.0, 20.0);
    let mut layers = vec![
        Ellipsoid::aligned(DVec3::ZERO, semi_axes_mm, mu(-95.0)),
        Ellipsoid::aligned(DVec3::ZERO, semi_axes_mm - skin_mm, mu(uniform(20.0, 60.0))),
    ];
    let parts = uniform(12.0, 50.0) as usize;
    for part in 0..parts {
        // Large parts below, small ones on top of them.
        let size_mm = semi_axes_mm.min_element() * uniform(0.6, 1.4) * 0.55 * (1.0 - 0.85 * part as f64 / parts as f64);
        let shape = DVec3::new(uniform(0.35, 1.3), uniform(0.35, 1.3), uniform(0.35, 2.0));
        let mut direction = DVec3::new(uniform(-1.0, 1.0), uniform(-1.0, 1.0), uniform(-1.0, 1.0));
        direction /= direction.length().max(1.0);
        let rotation = DQuat::from_euler(EulerRot::ZYX, uniform(0.0, 6.3), uniform(0.0, 6.3), uniform(0.0, 6.3));
        let mut tenth = uniform(0.0, 10.0) as u32;
        let mut hu = TISSUES[0].0;
        for (range, tenths) in TISSUES {
            hu = range;
            if tenth < tenths {
                break;
            }
            tenth -= tenths;
        }
        layers.push(Ellipsoid {
            centre_mm: direction * (semi_axes_mm - skin_mm) * 0.75,
            semi_axes_mm: (size_mm * shape).max(DVec3::splat(1.5)),
            rotation,
            mu_per_mm: mu(uniform(hu[0], hu[1])),
        });
    }
    LayeredPhantom { layers }
}
