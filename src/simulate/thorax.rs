//! A chest of ellipsoids with the attenuation of real tissues: body, lungs with vessels and nodules, heart, aorta, airways, liver,
//! spine, ribs, sternum, clavicles and scapulae. Axes as NIfTI's world: +x the patient's right, +y anterior, +z superior.
//!
//! Sizes are those of an adult (lateral width of the chest about 340 mm); each seed varies proportions, the heart, the tree of
//! vessels and the nodules. The two sides differ in every one.

use glam::{DQuat, DVec3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ellipsoids::Ellipsoid;
use super::layered::LayeredPhantom;

/// A small sphere in the lung whose place is known, to count what a method keeps, loses or invents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nodule {
    /// Centre.
    pub centre_mm: DVec3,
    /// Radius.
    pub radius_mm: f64,
    /// Its value; the lung about it has [`LUNG_HU`].
    pub hu: f64,
}

/// A chest and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Thorax {
    /// The body.
    pub phantom: LayeredPhantom,
    /// The nodules, in the order in which they were placed (largest first).
    pub nodules: Vec<Nodule>,
    /// Lungs as ellipsoids (right, right apex, left, left apex), before what overlaps them is painted.
    pub lungs: Vec<Ellipsoid>,
}

/// Name of the file in the scene folder that lists the nodules of [`nodules_json`].
pub const NODULES_FILE: &str = "phantom.json";

/// The nodules as they stand beside a scan: gantry frame, mm, HU.
#[must_use]
pub fn nodules_json(seed: u64, nodules: &[Nodule]) -> serde_json::Value {
    let entry =
        |n: &Nodule| serde_json::json!({"centre_mm": n.centre_mm.to_array(), "radius_mm": n.radius_mm, "hu": n.hu});
    serde_json::json!({
        "phantom": "thorax",
        "seed": seed,
        "lung_hu": LUNG_HU,
        "nodules": nodules.iter().map(entry).collect::<Vec<_>>(),
    })
}

/// Aerated lung.
pub const LUNG_HU: f64 = -840.0;
const FAT_HU: f64 = -95.0;
const MUSCLE_HU: f64 = 50.0;
const BLOOD_HU: f64 = 45.0;
const HEART_WALL_HU: f64 = 60.0;
const LIVER_HU: f64 = 60.0;
const AIR_HU: f64 = -1000.0;
const CORTICAL_HU: f64 = 950.0;
const MARROW_HU: f64 = 220.0;
const DISC_HU: f64 = 85.0;
const CARTILAGE_HU: f64 = 130.0;

/// Radii of the nodules; every second one of those above 3 mm is sub-solid.
const NODULE_RADII_MM: [f64; 12] = [10.0, 8.0, 6.0, 6.0, 5.0, 4.0, 4.0, 3.0, 3.0, 2.5, 2.0, 1.5];
/// A solid nodule.
pub const SOLID_NODULE_HU: f64 = 35.0;
/// A sub-solid one: ground glass.
pub const SUBSOLID_NODULE_HU: f64 = -450.0;

/// The chest of a seed. `mu_water_per_mm` sets the scale: mu = mu_water (1 + HU/1000).
#[must_use]
pub fn thorax(seed: u64, mu_water_per_mm: f64) -> Thorax {
    let usual = NODULE_RADII_MM.iter().enumerate().map(|(index, &radius_mm)| {
        let hu = if radius_mm > 3.0 && index % 2 == 1 { SUBSOLID_NODULE_HU } else { SOLID_NODULE_HU };
        (radius_mm, hu)
    });
    thorax_with(seed, mu_water_per_mm, &usual.collect::<Vec<_>>())
}

/// The same body with other nodules: radius (mm) and value (HU) of each, placed in this order where aerated lung has room for it.
#[must_use]
pub fn thorax_with(seed: u64, mu_water_per_mm: f64, nodules: &[(f64, f64)]) -> Thorax {
    let mut builder = Builder::new(seed, mu_water_per_mm);
    builder.body();
    let mut lungs = builder.lungs();
    builder.vessels(&lungs);
    builder.mediastinum();
    builder.abdomen();
    builder.spine();
    builder.ribs();
    builder.shoulder_girdle();
    let mut nodules = builder.nodules(&lungs, nodules);
    let mut phantom = LayeredPhantom { layers: builder.layers };
    // The middle of the body stands at the isocenter.
    if let Some((low, high)) = phantom.bounds_mm() {
        let shift = -0.5 * (low + high);
        phantom.layers.iter_mut().chain(&mut lungs).for_each(|e| e.centre_mm += shift);
        nodules.iter_mut().for_each(|n| n.centre_mm += shift);
    }
    Thorax { phantom, nodules, lungs }
}

struct Builder {
    layers: Vec<Ellipsoid>,
    rng: ChaCha8Rng,
    mu_water_per_mm: f64,
    /// Proportions of this body.
    stretch: DVec3,
}

impl Builder {
    fn new(seed: u64, mu_water_per_mm: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut factor = || rng.random_range(0.94..1.06);
        let stretch = DVec3::new(factor(), factor(), 0.88 * factor());
        Self { layers: Vec::new(), rng, mu_water_per_mm, stretch }
    }

    /// Uniform within `1 +- spread`.
    fn vary(&mut self, spread: f64) -> f64 {
        self.rng.random_range(1.0 - spread..1.0 + spread)
    }

    fn mu(&self, hu: f64) -> f64 {
        self.mu_water_per_mm * (1.0 + hu / 1000.0)
    }

    /// Paints an ellipsoid given before the body's stretch.
    fn paint(&mut self, centre: [f64; 3], semi_axes: [f64; 3], rotation: DQuat, hu: f64) -> Ellipsoid {
        // Each semi-axis is stretched as the body is along its direction.
        let stretched = |axis: DVec3, length: f64| length * (self.stretch * (rotation * axis)).length();
        let ellipsoid = Ellipsoid {
            centre_mm: DVec3::from_array(centre) * self.stretch,
            semi_axes_mm: DVec3::new(
                stretched(DVec3::X, semi_axes[0]),
                stretched(DVec3::Y, semi_axes[1]),
                stretched(DVec3::Z, semi_axes[2]),
            ),
            rotation,
            mu_per_mm: self.mu(hu),
        };
        self.layers.push(ellipsoid);
        ellipsoid
    }

    fn aligned(&mut self, centre: [f64; 3], semi_axes: [f64; 3], hu: f64) -> Ellipsoid {
        self.paint(centre, semi_axes, DQuat::IDENTITY, hu)
    }

    /// Overlapping ellipsoids along a path: tubes, ribs. `across`: half thickness along `outward` and along the third axis.
    fn chain(&mut self, path: &[DVec3], outward: impl Fn(DVec3) -> DVec3, across: (f64, f64), hu: f64) {
        for pair in path.windows(2) {
            let (middle, along) = (0.5 * (pair[0] + pair[1]), pair[1] - pair[0]);
            let x = along.normalize();
            let y =
                (outward(middle) - outward(middle).dot(x) * x).try_normalize().unwrap_or(x.any_orthonormal_vector());
            let axes = glam::DMat3::from_cols(x, y, x.cross(y));
            // A whole step: neighbours overlap where they are still thick.
            let semi = [along.length(), across.0, across.1];
            self.paint(middle.to_array(), semi, DQuat::from_mat3(&axes), hu);
        }
    }

    fn body(&mut self) {
        let parts: [([f64; 3], [f64; 3]); 6] = [
            ([0.0, 0.0, 10.0], [172.0, 124.0, 215.0]),
            ([0.0, 4.0, -75.0], [166.0, 120.0, 165.0]),
            ([0.0, -8.0, 190.0], [62.0, 62.0, 75.0]),
            ([118.0, -18.0, 118.0], [72.0, 62.0, 66.0]),
            ([-118.0, -18.0, 118.0], [72.0, 62.0, 66.0]),
            ([0.0, -12.0, 105.0], [160.0, 96.0, 82.0]),
        ];
        for (centre, semi) in parts {
            self.aligned(centre, semi, FAT_HU);
        }
        let skin_fat = 9.0 * self.vary(0.4);
        for (centre, semi) in parts {
            self.aligned(centre, semi.map(|s| s - skin_fat), MUSCLE_HU);
        }
    }

    fn lungs(&mut self) -> Vec<Ellipsoid> {
        let left = self.vary(0.05);
        let tilt = |degrees: f64| DQuat::from_rotation_y(degrees.to_radians());
        vec![
            self.paint([74.0, -4.0, -18.0], [62.0, 88.0, 128.0], tilt(-6.0), LUNG_HU),
            self.paint([52.0, -18.0, 78.0], [44.0, 60.0, 60.0], tilt(-10.0), LUNG_HU),
            self.paint([-76.0, -6.0, -14.0], [57.0 * left, 86.0, 124.0], tilt(6.0), LUNG_HU),
            self.paint([-53.0, -19.0, 80.0], [43.0, 58.0, 58.0], tilt(10.0), LUNG_HU),
        ]
    }

    /// A tree of vessels in each lung from its hilum, thinning towards the pleura.
    fn vessels(&mut self, lungs: &[Ellipsoid]) {
        for side in [1.0, -1.0] {
            let hilum = DVec3::new(30.0 * side, -8.0, 8.0 + 6.0 * side);
            let own: Vec<Ellipsoid> = lungs.iter().copied().filter(|e| e.centre_mm.x * side > 0.0).collect();
            let mut open = Vec::new();
            for turn in 0..8 {
                let angle = std::f64::consts::TAU * (f64::from(turn) + self.rng.random_range(-0.3..0.3)) / 8.0;
                let direction = DVec3::new(1.1 * side, 0.9 * angle.cos(), 1.3 * angle.sin()).normalize();
                open.push((hilum, direction, 5.5 * self.vary(0.25)));
            }
            while let Some((start, direction, radius)) = open.pop() {
                let end = start + direction * (7.0 * radius + 4.0) * self.vary(0.2);
                let inside =
                    own.iter().any(|e| (e.to_unit_ball() * (end * self.stretch - e.centre_mm)).length() < 0.95);
                if !inside || radius < 0.7 {
                    continue;
                }
                self.chain(&[start, end], |_| DVec3::Z, (radius, radius), BLOOD_HU);
                let sideways = direction.any_orthonormal_vector();
                let roll = DQuat::from_axis_angle(direction, self.rng.random_range(0.0..std::f64::consts::TAU));
                for sign in [1.0, -1.0] {
                    let bend = sign * (roll * sideways) * self.rng.random_range(0.3..0.75);
                    let thinner = radius * self.rng.random_range(0.62..0.82);
                    open.push((end, (direction + bend).normalize(), thinner));
                }
            }
        }
    }

    fn mediastinum(&mut self) {
        self.aligned([0.0, -4.0, 30.0], [27.0, 62.0, 120.0], MUSCLE_HU - 30.0);
        self.aligned([0.0, 40.0, 25.0], [19.0, 46.0, 95.0], FAT_HU + 20.0);
        // Heart: apex to the patient's left, front and below.
        let size = self.vary(0.09);
        let turn = DQuat::from_euler(glam::EulerRot::ZYX, 0.5, 0.55, 0.1);
        let heart = [62.0 * size, 46.0 * size, 47.0 * size];
        self.paint([-24.0, 24.0, -48.0], heart.map(|s| s + 4.0), turn, FAT_HU);
        self.paint([-24.0, 24.0, -48.0], heart, turn, HEART_WALL_HU);
        self.paint([-38.0, 28.0, -58.0], [34.0 * size, 23.0 * size, 24.0 * size], turn, BLOOD_HU - 5.0);
        self.paint([8.0, 30.0, -40.0], [22.0 * size, 24.0 * size, 30.0 * size], turn, BLOOD_HU - 5.0);
        // Great vessels.
        let arch: Vec<DVec3> = (0..=8)
            .map(|i| {
                let angle = std::f64::consts::PI * f64::from(i) / 8.0;
                DVec3::new(5.0 - 3.0 * f64::from(i), -8.0 + 34.0 * angle.cos(), 48.0 + 26.0 * angle.sin())
            })
            .collect();
        let ascending = [DVec3::new(2.0, 24.0, -20.0), DVec3::new(6.0, 28.0, 14.0), arch[0]];
        let descending: Vec<DVec3> = (0..=6)
            .map(|i| DVec3::new(-20.0 + f64::from(i), -42.0 - f64::from(i), 50.0 - 36.0 * f64::from(i)))
            .collect();
        self.chain(&ascending, |_| DVec3::Y, (15.0, 15.0), BLOOD_HU);
        self.chain(&arch, |_| DVec3::X, (12.5, 12.5), BLOOD_HU);
        self.chain(&descending, |_| DVec3::Y, (11.5, 11.5), BLOOD_HU);
        let cava = [DVec3::new(24.0, 12.0, 95.0), DVec3::new(25.0, 14.0, 40.0), DVec3::new(22.0, 16.0, -10.0)];
        self.chain(&cava, |_| DVec3::Y, (9.0, 8.0), BLOOD_HU);
        // Airways.
        let trachea: Vec<DVec3> =
            (0..=5).map(|i| DVec3::new(2.0, 2.0 - 4.0 * f64::from(i), 175.0 - 27.0 * f64::from(i))).collect();
        let carina = trachea[5];
        self.chain(&trachea, |_| DVec3::Y, (8.0, 9.0), AIR_HU + 5.0);
        self.chain(&[carina, carina + DVec3::new(32.0, 0.0, -26.0)], |_| DVec3::Y, (6.5, 6.5), AIR_HU + 5.0);
        self.chain(&[carina, carina + DVec3::new(-38.0, -2.0, -22.0)], |_| DVec3::Y, (5.5, 5.5), AIR_HU + 5.0);
        self.aligned([-6.0, -44.0, 30.0], [6.0, 5.0, 120.0], MUSCLE_HU - 15.0);
    }

    fn abdomen(&mut self) {
        let dome = 8.0 * self.vary(1.0);
        self.aligned([62.0, 2.0, -150.0 + dome], [80.0, 88.0, 72.0], LIVER_HU);
        self.aligned([-64.0, 4.0, -158.0 + 0.5 * dome], [76.0, 84.0, 66.0], MUSCLE_HU + 5.0);
        self.aligned([-58.0, 34.0, -140.0], [24.0, 20.0, 18.0], AIR_HU + 30.0);
        self.aligned([-88.0, -44.0, -152.0], [24.0, 30.0, 40.0], BLOOD_HU + 12.0);
    }

    fn spine(&mut self) {
        let pitch = 25.0;
        for level in -6..=6 {
            let z = pitch * f64::from(level);
            // A gentle kyphosis: furthest back in the middle of the chest.
            let y = -68.0 + 24.0 * (z / 190.0).powi(2);
            let scale = 1.0 - 0.0009 * z;
            self.aligned([0.0, y, z + 0.5 * pitch], [16.0 * scale, 13.0 * scale, 5.0], DISC_HU);
            for (shrink, hu) in [(0.0, CORTICAL_HU - 250.0), (2.0, MARROW_HU)] {
                self.aligned([0.0, y, z], [18.0 * scale - shrink, 14.5 * scale - shrink, 13.0 - shrink], hu);
            }
            let back = y - 22.0;
            for (shrink, hu) in [(0.0, CORTICAL_HU - 150.0), (2.0, MARROW_HU + 60.0)] {
                self.aligned([0.0, back - 6.0, z], [30.0 - shrink, 5.5 - shrink, 7.0 - shrink], hu);
                let slope = DQuat::from_rotation_x(0.6);
                self.paint([0.0, back - 9.0, z - 5.0], [3.5 - 0.5 * shrink, 13.0 - shrink, 7.0 - shrink], slope, hu);
            }
        }
        let canal: Vec<DVec3> = (-7..=7)
            .map(|level| {
                let z = pitch * f64::from(level);
                DVec3::new(0.0, -88.0 + 24.0 * (z / 190.0).powi(2), z)
            })
            .collect();
        self.chain(&canal, |_| DVec3::Y, (7.0, 8.5), 10.0);
        self.chain(&canal, |_| DVec3::Y, (4.0, 5.0), 35.0);
    }

    fn ribs(&mut self) {
        let steps = 15;
        for rib in 0..10 {
            let level = f64::from(rib);
            for side in [1.0, -1.0] {
                let start = 118.0 - 24.5 * level;
                let droop = (28.0 + 9.0 * level).min(75.0) * self.vary(0.06);
                let path: Vec<DVec3> = (0..=steps)
                    .map(|i| {
                        let t = f64::from(i) / f64::from(steps);
                        let angle = (-80.0 + 142.0 * t).to_radians();
                        let z = start - droop * (0.5 - 0.5 * (std::f64::consts::PI * t).cos());
                        // The cage narrows towards the top.
                        let narrow = (1.0 - ((z + 30.0) / 198.0).powi(2)).max(0.12).sqrt();
                        let (a, b) = (145.0 * narrow, 104.0 * narrow.max(0.62));
                        DVec3::new(side * a * angle.cos(), b * angle.sin() - 2.0, z)
                    })
                    .collect();
                let outward = |p: DVec3| DVec3::new(p.x / 145.0, p.y / 104.0, 0.0);
                let bone = &path[..12];
                self.chain(&path[11..], outward, (3.6, 6.0), CARTILAGE_HU);
                self.chain(bone, outward, (3.8, 6.5), CORTICAL_HU);
                self.chain(bone, outward, (2.3, 4.8), MARROW_HU + 100.0);
            }
        }
    }

    fn shoulder_girdle(&mut self) {
        let lean = DQuat::from_rotation_x(0.28);
        for (shrink, hu) in [(0.0, CORTICAL_HU - 350.0), (1.8, MARROW_HU)] {
            self.paint([0.0, 100.0, 5.0], [17.0 - shrink, 5.5 - shrink, 62.0 - shrink], lean, hu);
            self.paint([0.0, 84.0, 66.0], [25.0 - shrink, 6.5 - shrink, 21.0 - shrink], lean, hu);
        }
        for side in [1.0, -1.0] {
            let lift = self.rng.random_range(-3.0..3.0);
            let clavicle: Vec<DVec3> = (0..=6)
                .map(|i| {
                    let t = f64::from(i) / 6.0;
                    let wave = 10.0 * (std::f64::consts::TAU * t).sin();
                    DVec3::new(side * (22.0 + 110.0 * t), 66.0 - 52.0 * t + wave, 98.0 + (30.0 + lift) * t)
                })
                .collect();
            self.chain(&clavicle, |_| DVec3::Z, (6.0, 6.0), CORTICAL_HU);
            self.chain(&clavicle, |_| DVec3::Z, (3.6, 3.6), MARROW_HU);
            // Blade of the scapula and head of the humerus.
            let turn = DQuat::from_rotation_z(side * 0.55) * DQuat::from_rotation_y(side * 0.15);
            self.paint([side * 94.0, -80.0, 68.0], [36.0, 3.6, 52.0], turn, CORTICAL_HU - 350.0);
            for (shrink, hu) in [(0.0, CORTICAL_HU - 200.0), (3.0, MARROW_HU - 60.0)] {
                self.aligned([side * 148.0, -14.0, 118.0 + lift], [22.0 - shrink, 22.0 - shrink, 24.0 - shrink], hu);
            }
        }
    }

    /// Nodules wholly in aerated lung: their surroundings are free of every other layer.
    fn nodules(&mut self, lungs: &[Ellipsoid], wanted: &[(f64, f64)]) -> Vec<Nodule> {
        let mut placed: Vec<Nodule> = Vec::new();
        let aerated = LayeredPhantom { layers: self.layers.clone() };
        let lung_mu = self.mu(LUNG_HU);
        for &(radius, hu) in wanted {
            // A few hundred draws find a place; a body so crowded that none is found goes without that nodule.
            for _ in 0..2000 {
                let lung = lungs[self.rng.random_range(0..lungs.len())];
                let mut coordinate = || self.rng.random_range(-0.9..0.9);
                let unit = DVec3::new(coordinate(), coordinate(), coordinate());
                let centre = lung.centre_mm + lung.rotation * (lung.semi_axes_mm * unit);
                let clear = radius + 1.0;
                let apart = placed.iter().all(|n| (n.centre_mm - centre).length() > n.radius_mm + radius + 12.0);
                let free = || {
                    fibonacci_sphere(60)
                        .flat_map(|d| [centre + clear * d, centre + 0.5 * clear * d])
                        .chain([centre])
                        .all(|p| aerated.value_at(p) == lung_mu)
                };
                if apart && free() {
                    placed.push(Nodule { centre_mm: centre, radius_mm: radius, hu });
                    self.layers.push(Ellipsoid::aligned(centre, DVec3::splat(radius), self.mu(hu)));
                    break;
                }
            }
        }
        placed
    }
}

/// `count` directions spread evenly.
fn fibonacci_sphere(count: usize) -> impl Iterator<Item = DVec3> {
    let golden = std::f64::consts::PI * (3.0 - 5.0_f64.sqrt());
    (0..count).map(move |i| {
        let z = 1.0 - (2 * i + 1) as f64 / count as f64;
        let (sin, cos) = (golden * i as f64).sin_cos();
        let across = (1.0 - z * z).sqrt();
        DVec3::new(across * cos, across * sin, z)
    })
}
