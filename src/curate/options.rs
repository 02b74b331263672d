//! What decides the shards, beside the subjects.

use serde::{Deserialize, Serialize};

use super::CurateError;
use crate::formats::DEFAULT_MU_WATER_PER_MM;

/// What is the same for all shards of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Seed of every draw.
    pub seed: u64,
    /// Scans of each subject.
    pub scans: usize,
    /// Geometries of each subject, of which each scan has one; geometry 0 is the usual one.
    pub geometries: usize,
    /// Voxels along each edge of the cube.
    pub size: usize,
    /// Detector rows and columns.
    pub detector: [usize; 2],
    /// Views over the whole turn from which subsets are taken.
    pub views_dense: usize,
    /// Fewest and most views of a scan.
    pub views: [usize; 2],
    /// Shares of the usual iterations between which Gaussians and fields are stopped.
    pub stopped_at: [f64; 2],
    /// Attenuation of water in 1/mm.
    pub mu_water_per_mm: f64,
    /// Rays across and down each pixel.
    pub subpixels: usize,
    /// How many times finer than the grid a CT volume is sampled for projection, at least.
    pub oversample: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            scans: 8,
            geometries: 2,
            size: 128,
            detector: [128, 128],
            views_dense: 360,
            views: [10, 60],
            stopped_at: [0.25, 0.5],
            mu_water_per_mm: DEFAULT_MU_WATER_PER_MM,
            subpixels: 2,
            oversample: 1.37,
        }
    }
}

impl Options {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`CurateError::Setting`] naming the option.
    pub fn check(&self) -> Result<(), CurateError> {
        let whole = |field, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(CurateError::setting(field, value, format!("must be between {low} and {high}")))
        };
        whole("--scans", self.scans, 1, 1000)?;
        whole("--geometries", self.geometries, 1, 64)?;
        whole("--size", self.size, 16, 1024)?;
        whole("--detector (rows)", self.detector[0], 16, 2048)?;
        whole("--detector (columns)", self.detector[1], 16, 2048)?;
        whole("--views-dense", self.views_dense, 8, 7200)?;
        whole("--subpixels", self.subpixels, 1, 8)?;
        let [low, high] = self.views;
        if low < 2 || low > high || 2 * high > self.views_dense {
            let given = format!("{low},{high}");
            let most = self.views_dense / 2;
            let requirement = format!(
                "must be FEWEST,MOST with 2 <= FEWEST <= MOST <= {most} (half of --views-dense {})",
                self.views_dense
            );
            return Err(CurateError::setting("--views", given, requirement));
        }
        let [low, high] = self.stopped_at;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(CurateError::setting(
                "--stopped-at",
                format!("{low},{high}"),
                "must be LOW,HIGH with 0 < LOW <= HIGH <= 1: shares of the usual iterations",
            ));
        }
        if !(1e-4..=1.0).contains(&self.mu_water_per_mm) {
            return Err(CurateError::setting(
                "--mu-water",
                self.mu_water_per_mm,
                "must be between 0.0001 and 1 per mm (0.0193 at about 70 keV): is it given per cm?",
            ));
        }
        if !(1.0..=8.0).contains(&self.oversample) {
            return Err(CurateError::setting("--oversample", self.oversample, "must be between 1 and 8"));
        }
        Ok(())
    }
}
