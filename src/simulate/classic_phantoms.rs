//! Well-known test objects made of ellipsoids.

use glam::{DQuat, DVec3};

use super::ellipsoids::{Ellipsoid, EllipsoidPhantom};

/// Which densities the Shepp-Logan ellipsoids carry; their shapes are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SheppLoganContrast {
    /// Kak and Slaney 1988, table 3.1, densities relative to water: skull 2, brain 1.02, details of 1 to 2 %. RTK uses these.
    #[default]
    KakSlaney,
    /// Raised contrast in [0, 1] (Yu, Ye and Wang, "Katsevich-type algorithms for variable radius spiral cone-beam CT", 2004),
    /// as TIGRE's head phantom.
    Modified,
}

/// A line of the Shepp-Logan table: centre, semi-axes, turn about z (degrees), density, density in the modified version.
type SheppLoganLine = ([f64; 3], [f64; 3], f64, f64, f64);

/// Kak and Slaney's table 3.1 for the 3D head, in units of the radius. z is the axis of rotation.
#[rustfmt::skip]
const SHEPP_LOGAN: [SheppLoganLine; 10] = [
    ([ 0.00,  0.000,  0.000], [0.6900, 0.920, 0.900],   0.0,  2.00,  1.0),
    ([ 0.00,  0.000,  0.000], [0.6624, 0.874, 0.880],   0.0, -0.98, -0.8),
    ([-0.22,  0.000, -0.250], [0.4100, 0.160, 0.210], 108.0, -0.02, -0.2),
    ([ 0.22,  0.000, -0.250], [0.3100, 0.110, 0.220],  72.0, -0.02, -0.2),
    ([ 0.00,  0.350, -0.250], [0.2100, 0.250, 0.500],   0.0,  0.02,  0.2),
    ([ 0.00,  0.100, -0.250], [0.0460, 0.046, 0.046],   0.0,  0.02,  0.2),
    ([-0.08, -0.650, -0.250], [0.0460, 0.023, 0.020],   0.0,  0.01,  0.1),
    ([ 0.06, -0.650, -0.250], [0.0460, 0.023, 0.020],  90.0,  0.01,  0.1),
    ([ 0.06, -0.105,  0.625], [0.0560, 0.040, 0.100],  90.0,  0.02,  0.2),
    ([ 0.00,  0.100,  0.625], [0.0560, 0.056, 0.100],   0.0, -0.02, -0.2),
];

impl EllipsoidPhantom {
    /// The 3D Shepp-Logan head of Kak and Slaney in a ball of `radius_mm`, its tabulated densities taken as 1/mm; use
    /// [`EllipsoidPhantom::scaled`] with water's attenuation for a physical head.
    #[must_use]
    pub fn shepp_logan(radius_mm: f64) -> Self {
        Self::shepp_logan_with(radius_mm, SheppLoganContrast::KakSlaney)
    }

    /// [`Self::shepp_logan`] with the densities of choice.
    #[must_use]
    pub fn shepp_logan_with(radius_mm: f64, contrast: SheppLoganContrast) -> Self {
        let ellipsoids = SHEPP_LOGAN
            .iter()
            .map(|&(centre, semi_axes, degrees, kak_slaney, modified)| Ellipsoid {
                centre_mm: DVec3::from_array(centre) * radius_mm,
                semi_axes_mm: DVec3::from_array(semi_axes) * radius_mm,
                rotation: DQuat::from_rotation_z(degrees.to_radians()),
                mu_per_mm: if contrast == SheppLoganContrast::KakSlaney { kak_slaney } else { modified },
            })
            .collect();
        Self { ellipsoids }
    }

    /// One sphere of constant attenuation.
    #[must_use]
    pub fn sphere(centre_mm: DVec3, radius_mm: f64, mu_per_mm: f64) -> Self {
        Self { ellipsoids: vec![Ellipsoid::aligned(centre_mm, DVec3::splat(radius_mm), mu_per_mm)] }
    }

    /// Five unlike ellipsoids with no symmetry under any flip or exchange of axes, within a ball of `radius_mm`; the body has
    /// attenuation `mu_per_mm`. A wrong sign, swapped axis or shifted index anywhere changes its image.
    #[must_use]
    pub fn asymmetric(radius_mm: f64, mu_per_mm: f64) -> Self {
        let part = |centre: [f64; 3], semi_axes: [f64; 3], (x, y, z): (f64, f64, f64), factor: f64| Ellipsoid {
            centre_mm: DVec3::from_array(centre) * radius_mm,
            semi_axes_mm: DVec3::from_array(semi_axes) * radius_mm,
            rotation: DQuat::from_euler(glam::EulerRot::XYZ, x, y, z),
            mu_per_mm: factor * mu_per_mm,
        };
        Self {
            ellipsoids: vec![
                part([0.05, -0.04, 0.03], [0.80, 0.65, 0.72], (0.10, 0.05, 0.20), 1.0),
                part([0.42, 0.05, 0.10], [0.12, 0.16, 0.20], (0.30, 0.0, 0.40), 1.0),
                part([-0.10, 0.32, -0.20], [0.20, 0.10, 0.14], (0.0, 0.50, -0.30), -0.7),
                part([-0.25, -0.22, 0.38], [0.10, 0.15, 0.08], (0.20, -0.20, 0.70), 0.6),
                part([0.15, -0.30, -0.35], [0.09, 0.07, 0.11], (0.0, 0.0, 0.0), -1.0),
            ],
        }
    }
}
