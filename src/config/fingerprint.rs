//! The settings' hash that stands in the header of every volume.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Settings;

/// What decides the voxels, in a fixed order of fields; nothing else (names, logs, time-outs, threads) enters the hash, so that
/// two volumes with the same hash came of the same recipe.
#[derive(Serialize)]
struct Recipe<'a> {
    format: u32,
    geometry: &'a crate::geometry::ScanGeometry,
    grid: &'a crate::geometry::VolumeGrid,
    mu_water_per_mm: f64,
    preprocess: &'a super::PreprocessSettings,
    method: &'static str,
    window: String,
    /// Representation, losses and schedule in Rust's own words, which stand for every number exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    optimised: Option<String>,
    /// What the model is told and where it repairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    slice_fixer: Option<String>,
}

impl Settings {
    /// SHA-256 over the canonical form (JSON, fields in a fixed order, shortest round-trip numbers) of the validated settings
    /// that decide the voxels: geometry, volume, preprocess, reconstruct.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        // Publications on the way do not decide the voxels.
        let optimised =
            self.optimised.as_ref().map(|o| format!("{:?} {:?} {:?} {:?}", o.method, o.optimise, o.budget, o.early));
        // The model itself has a hash of its own in the header; who runs it stands there too.
        let slice_fixer = self.optimised.as_ref().and_then(|optimised| optimised.slice_fixer.as_ref());
        let slice_fixer = slice_fixer.map(|fixer| format!("{} {:?}", fixer.anatomy, fixer.planes));
        let recipe = Recipe {
            format: 1,
            geometry: &self.geometry,
            grid: &self.grid,
            mu_water_per_mm: self.mu_water_per_mm,
            preprocess: &self.preprocess,
            method: self.optimised.as_ref().map_or("fdk", |optimised| optimised.method.name()),
            window: format!("{:?}", self.window),
            optimised,
            slice_fixer,
        };
        // These types have string keys and finite numbers only, which JSON always takes.
        let canonical = serde_json::to_vec(&recipe).unwrap_or_default();
        Sha256::digest(&canonical).into()
    }
}
