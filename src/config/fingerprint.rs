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
}

impl Settings {
    /// SHA-256 over the canonical form (JSON, fields in a fixed order, shortest round-trip numbers) of the validated settings
    /// that decide the voxels: geometry, volume, preprocess, reconstruct.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let recipe = Recipe {
            format: 1,
            geometry: &self.geometry,
            grid: &self.grid,
            mu_water_per_mm: self.mu_water_per_mm,
            preprocess: &self.preprocess,
            method: "fdk",
            window: format!("{:?}", self.window),
        };
        // These types have string keys and finite numbers only, which JSON always takes.
        let canonical = serde_json::to_vec(&recipe).unwrap_or_default();
        Sha256::digest(&canonical).into()
    }
}
