//! OS-SART: the simultaneous algebraic reconstruction technique (Andersen and Kak 1984) over ordered subsets of views (Wang and Jiang 2004).
//!
//! For each subset `s` in turn, with its rows `A_s` of the projector and the line integrals `b_s` measured,
//!
//! ```text
//! x <- max(0, x + lambda A_s' W_s (b_s - A_s x) / (A_s' q_s))        W = q / (A 1)
//! ```
//!
//! `A 1` are the rays' lengths in the volume, `q` the pixels' statistical weights (1, or see [`PixelWeights`]): with `q = 1` the divisor is
//! `A_s' 1`, which is SART. `lambda` is multiplied by a factor below 1 after each sweep over all subsets, as ordered subsets circle about the
//! solution at a constant one. Forward and backward projector are exact adjoints, so that the method converges.
//!
//! [`OsSartPlan`] settles subsets, sizes and buffers; [`OsSart`] holds them and takes sweeps.

mod solver;

pub use solver::OsSart;

use std::sync::Arc;

use super::ReconstructError;
use super::stopping::StopRules;
use super::subsets::{hold_back, subsets_by_angular_distance};
use crate::compute::sart::AlgebraicCompute;
use crate::compute::{Compute, Workload};
use crate::geometry::{ScanGeometry, ViewPose, VolumeGrid, check_sight};

/// Largest magnitude of a line integral that is taken for one: beyond, sums of squares would leave float32.
pub const LARGEST_LINE_INTEGRAL: f32 = 1e6;

/// How much a pixel counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelWeights {
    /// All alike.
    Uniform,
    /// `exp(-power * p)` of the line integral `p` measured: with power 1 the inverse of the variance of counted photons, with less a
    /// compromise between noise and the evenness of the convergence.
    Photons {
        /// In (0, 1].
        power: f64,
    },
}

impl PixelWeights {
    fn of(self, line_integral: f32) -> f32 {
        match self {
            Self::Uniform => 1.0,
            // Noise makes line integrals of air negative: no weight above that of air.
            Self::Photons { power } => (-power * f64::from(line_integral.max(0.0))).exp() as f32,
        }
    }
}

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OsSartSettings {
    /// Views of a subset; `None` for the rule of [`OsSartSettings::views_per_subset`].
    pub subset_views: Option<usize>,
    /// `lambda` of the first sweep, in (0, 2).
    pub relaxation: f64,
    /// Factor of `lambda` from sweep to sweep, in (0, 1].
    pub relaxation_factor: f64,
    /// Weights of the pixels.
    pub weights: PixelWeights,
    /// Whether values below zero are set to zero.
    pub non_negative: bool,
    /// When to stop.
    pub stop: StopRules,
}

impl Default for OsSartSettings {
    fn default() -> Self {
        Self {
            subset_views: None,
            relaxation: 1.0,
            relaxation_factor: 0.99,
            weights: PixelWeights::Uniform,
            non_negative: true,
            stop: StopRules::iterations(20),
        }
    }
}

impl OsSartSettings {
    /// Views of a subset where none is given: single views of sparse scans, more of dense ones, so that there are at most 36 subsets.
    #[must_use]
    pub fn views_per_subset(&self, views: usize) -> usize {
        self.subset_views.unwrap_or(views.div_ceil(36)).clamp(1, views.max(1))
    }

    fn check(&self, views: usize) -> Result<(), ReconstructError> {
        let refuse = |field, value: String, requirement| Err(ReconstructError::Setting { field, value, requirement });
        if !(self.relaxation > 0.0 && self.relaxation < 2.0) {
            return refuse(
                "relaxation",
                self.relaxation.to_string(),
                "must lie in (0, 2): beyond, the iteration diverges",
            );
        }
        if !(self.relaxation_factor > 0.0 && self.relaxation_factor <= 1.0) {
            return refuse("relaxation_factor", self.relaxation_factor.to_string(), "must lie in (0, 1]");
        }
        if self.subset_views == Some(0) {
            return refuse("subset_views", "0".into(), "must be at least 1");
        }
        if let PixelWeights::Photons { power } = self.weights
            && !(power > 0.0 && power <= 1.0)
        {
            return refuse("weights.power", power.to_string(), "must lie in (0, 1]");
        }
        self.stop.check(views)
    }
}

/// Column sums of all subsets are kept where they fit into this; else each is worked out again when its subset comes, which costs
/// half as much again as the sweep.
const COLUMN_SUM_BYTES: usize = 1 << 30;

/// Everything about a reconstruction that is known before its projections.
#[derive(Debug, Clone)]
pub struct OsSartPlan {
    settings: OsSartSettings,
    geometry: ScanGeometry,
    grid: VolumeGrid,
    /// View indices, in the order of work.
    subsets: Vec<Vec<usize>>,
    held_back: Vec<usize>,
    keeps_column_sums: bool,
}

impl OsSartPlan {
    /// Works out the subsets and prepares `compute` for the workload.
    ///
    /// # Errors
    /// [`ReconstructError::Geometry`] for a scan that makes no sense ([`check_sight`]), [`ReconstructError::Setting`],
    /// [`ReconstructError::Compute`] where scratch is not to be had.
    pub fn new(
        compute: &mut dyn Compute,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: OsSartSettings,
    ) -> Result<Self, ReconstructError> {
        let plan = Self::without_scratch(geometry, grid, settings)?;
        compute.prepare(&plan.workload())?;
        Ok(plan)
    }

    /// The plan alone: what it would need, without a carrier.
    ///
    /// # Errors
    /// As [`OsSartPlan::new`].
    pub fn without_scratch(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: OsSartSettings,
    ) -> Result<Self, ReconstructError> {
        check_sight(geometry, grid)?;
        settings.check(geometry.views.len())?;
        let (used, held_back) = hold_back(geometry.views.len(), settings.stop.held_back_views);
        let subsets = subsets_by_angular_distance(geometry, &used, settings.views_per_subset(used.len()));
        let column_sums = subsets.len().saturating_mul(grid.len()).saturating_mul(size_of::<f32>());
        Ok(Self {
            settings,
            geometry: geometry.clone(),
            grid: *grid,
            subsets,
            held_back,
            keeps_column_sums: column_sums <= COLUMN_SUM_BYTES,
        })
    }

    /// As chosen.
    #[must_use]
    pub fn settings(&self) -> &OsSartSettings {
        &self.settings
    }

    /// The scan's geometry, all views.
    #[must_use]
    pub fn geometry(&self) -> &ScanGeometry {
        &self.geometry
    }

    /// The volume's grid.
    #[must_use]
    pub fn grid(&self) -> &VolumeGrid {
        &self.grid
    }

    /// View indices of the subsets, in the order of work.
    #[must_use]
    pub fn subsets(&self) -> &[Vec<usize>] {
        &self.subsets
    }

    /// Views that are only looked at ([`StopRules::held_back_views`]).
    #[must_use]
    pub fn held_back(&self) -> &[usize] {
        &self.held_back
    }

    /// What a carrier must be prepared for.
    #[must_use]
    pub fn workload(&self) -> Workload {
        Workload {
            columns: self.geometry.detector.columns,
            rows: self.geometry.detector.rows,
            views_per_call: self.views_per_call(),
            voxels: self.grid.voxels,
        }
    }

    /// Every buffer in bytes; the carrier's scratch ([`Compute::scratch_bytes`]) comes on top.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        let floats = |n: usize| n.saturating_mul(size_of::<f32>());
        let projections = floats(self.geometry.projection_len());
        let volume = floats(self.grid.len());
        vec![
            ("sart volume", volume),
            ("sart correction", volume),
            ("sart column sums", self.column_sum_volumes().saturating_mul(volume)),
            ("sart line integrals by subset", projections),
            ("sart pixel weights", projections),
            ("sart residual", floats(self.views_per_call() * self.geometry.detector.pixels())),
            ("sart best volume", if self.held_back.is_empty() { 0 } else { volume }),
            ("sart poses", 2 * self.geometry.views.len() * size_of::<ViewPose>()),
        ]
    }

    fn column_sum_volumes(&self) -> usize {
        if self.keeps_column_sums { self.subsets.len() } else { 1 }
    }

    /// Views of the largest call.
    fn views_per_call(&self) -> usize {
        self.subsets.iter().map(Vec::len).chain([self.held_back.len()]).max().unwrap_or(1)
    }
}

/// Reconstructs a scan from start to end; see [`OsSartPlan::new`] and [`OsSart::run`].
///
/// # Errors
/// As both.
pub fn reconstruct(
    compute: &mut dyn AlgebraicCompute,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    settings: OsSartSettings,
    line_integrals: &[f32],
) -> Result<(Vec<f32>, super::stopping::Outcome), ReconstructError> {
    let plan = OsSartPlan::without_scratch(geometry, grid, settings)?;
    compute.prepare(&plan.workload())?;
    let mut sart = OsSart::new(Arc::new(plan), compute, line_integrals)?;
    let outcome = sart.run(compute, &mut super::Unobserved)?;
    Ok((sart.into_volume(compute)?, outcome))
}

#[cfg(test)]
mod tests;
