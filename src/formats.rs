//! Scans and volumes on disk. A leaf: depends on [`crate::geometry`] only.

#![forbid(unsafe_code)]

use ndarray::Array3;

use crate::geometry::{ScanGeometry, VolumeGrid};

/// How a scene's lengths and values become absolute ones.
///
/// The scene folder's lengths are in one arbitrary unit and its values are usually normalised to [0, 1]; its projections are
/// line integrals in value times unit. Where a scene says nothing of units, one unit is taken as 1 mm and `is_absolute` is
/// false: HU then cannot be given, and results are written in the scene's own values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SceneScale {
    /// Millimetres in one length unit of the scene.
    pub unit_mm: f64,
    /// Attenuation (1/mm) of the scene's value 1.
    pub mu_per_value_per_mm: f64,
    /// Attenuation of water that HU refer to.
    pub mu_water_per_mm: f64,
    /// Whether the scene stated the scale.
    pub is_absolute: bool,
}

/// A scan in memory: geometry in mm, line integrals dimensionless (attenuation in 1/mm times mm).
#[derive(Debug, Clone)]
pub struct Scan {
    /// Detector and the poses of the training views.
    pub geometry: ScanGeometry,
    /// The scene's own volume grid, in mm.
    pub grid: VolumeGrid,
    /// Line integrals `[view][row v][column u]`.
    pub projections: Array3<f32>,
    /// How to go back to the scene's lengths and values.
    pub scale: SceneScale,
}
