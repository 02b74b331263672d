//! The loop that optimises a [`Representation`] against projections, on a schedule fixed before it starts.
//!
//! **Through the volume.** An iteration turns the representation into a volume, projects that ([`crate::compute::Compute::forward_project`]) onto a subset of the
//! views, compares, projects the gradient back with the matched adjoint, adds the gradients of the priors, and hands the
//! sum to the representation. One volume serves all views and all volume losses, and one turn of the representation into a
//! volume costs what a few views cost when each is integrated along its own rays.
//!
//! **Loss.** `1/2 sum_pixels w (p - m)^2 + prior_mm * R(volume) + tv_mm * TV(volume)` (`R`: [`crate::compute::experts`], its weight in what the views
//! that are there weigh) over dimensionless line integrals `p` (model) and `m` (measured), or the
//! modulus instead of the square, and `1 - SSIM` of the views, as [`DataTerm`] says. `w = 1 / (1 + (e^m / photons) / model_error^2)`: the
//! variance of a measured line integral over what the model itself errs by (voxels, beam hardening), see [`weights`].
//!
//! **Sharpness.** Plain back-projection brings low frequencies back many times as strong as high ones, which is why descent takes hundreds
//! of iterations to show an edge. A share of the squares is therefore taken of ramp-filtered residuals, `r' W^1/2 F W^1/2 r` with the
//! response `F` of FDK's filter: the same volume explains the same views, but all frequencies come at about the same pace.
//!
//! **Aperture.** A pixel reads the mean over its width, the projector interpolates between voxels; the difference of the two blurs is taken out of
//! the projections, and of the gradient on its way back.
//!
//! **Order.** The views are dealt out to subsets that each go round the whole circle; the subsets come in van der Corput's order. The last
//! subset's rays and all others weigh the same over a round.
//!
//! [`OptimisePlan`] settles sizes, subsets, schedule; [`Optimiser`] takes all memory at once and allocates nothing afterwards.

mod aperture;
mod augment;
mod budget;
mod cost;
mod early;
mod prior;
mod recipe;
mod run;
mod scan;
mod slice_fixer;
mod unexplained;
mod views;
mod weights;

pub use augment::{AugmentSettings, NotRepaired, Repairer, Repairs};
pub use budget::{Budget, Pace};
pub use cost::RunCost;
pub use early::EarlyStart;
pub use recipe::{Method, Recipe, USUAL_ITERATIONS};
pub use run::{Optimiser, Outcome};
pub use scan::ScanViews;
pub use slice_fixer::SliceFixing;
pub use unexplained::Unexplained;

use crate::compute::Workload;
use crate::compute::losses::LossWorkload;
use crate::geometry::{GeometryError, ScanGeometry, ViewPose, VolumeGrid};
use crate::represent::RepresentError;

use super::ReconstructError;

/// How views are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataTerm {
    /// Factor of half the weighted sum of squares.
    pub squares: f32,
    /// Factor of the weighted sum of moduli.
    pub modulus: f32,
    /// Factor of `1 - SSIM`, times the number of pixels.
    pub dissimilarity: f32,
    /// Photons per pixel without an object; infinite for noise-free data.
    pub photons: f64,
    /// What the model errs by in a line integral (standard deviation, dimensionless); above 0.
    pub model_error: f64,
}

impl Default for DataTerm {
    fn default() -> Self {
        Self { squares: 1.0, modulus: 0.0, dissimilarity: 0.0, photons: 1e5, model_error: 0.015 }
    }
}

/// What can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimiseSettings {
    /// Views an iteration at most; they are dealt out evenly.
    pub views_per_iteration: usize,
    /// Comparison of the views.
    pub data: DataTerm,
    /// Weight of the total variation, in mm (it weighs attenuation in 1/mm against dimensionless line integrals).
    pub tv_mm: f32,
    /// Differences of neighbouring voxels (1/mm) below which the total variation is smoothed.
    pub tv_epsilon_per_mm: f32,
    /// Weight of the learned prior ([`crate::compute::experts`]), counted in what the views weigh: 1 is what it was learnt at, 0 none.
    pub prior: f32,
    /// Steps of the starting volume itself, before the representation begins with it.
    pub approach_iterations: usize,
    /// Iterations that only bring the representation to that volume.
    pub fit_iterations: usize,
    /// One ray in this many is held back: not learnt from, but watched for overfitting. 0 for none.
    pub hold_back_one_in: usize,
    /// Iterations without a better residual of the held-back rays after which the run ends, as a share of all; 0 never ends it.
    pub patience: f64,
    /// Share of the data's loss, 0 to 1, that counts residuals by their frequency along the detector's rows, as the ramp filter does: see
    /// the module's documentation.
    pub sharpness: f32,
    /// How far projections take the pixels' width and the projector's own blur into account: 1 is what geometry says, 0 not at all (see the
    /// source of `aperture`).
    pub aperture: f32,
    /// Repair and augment; `None`: without.
    pub augment: Option<AugmentSettings>,
    /// Seed of every random choice.
    pub seed: u64,
}

impl Default for OptimiseSettings {
    fn default() -> Self {
        Self {
            views_per_iteration: 48,
            data: DataTerm::default(),
            tv_mm: 0.0,
            tv_epsilon_per_mm: 4e-4,
            prior: 1.0,
            approach_iterations: 15,
            fit_iterations: 20,
            hold_back_one_in: 0,
            patience: 0.2,
            sharpness: 0.97,
            aperture: 1.0,
            augment: None,
            seed: 0,
        }
    }
}

impl OptimiseSettings {
    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`ReconstructError::Setting`] naming the field.
    pub fn check(&self) -> Result<(), ReconstructError> {
        let refuse = |field, value: f64, requirement| {
            Err(ReconstructError::Setting { field, value: value.to_string(), requirement })
        };
        if self.views_per_iteration == 0 {
            return refuse("views_per_iteration", 0.0, "must be at least 1");
        }
        let data = &self.data;
        for (field, value) in [
            ("squares", data.squares),
            ("modulus", data.modulus),
            ("dissimilarity", data.dissimilarity),
            ("tv_mm", self.tv_mm),
            ("prior", self.prior),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(field, f64::from(value), "must be finite and not negative");
            }
        }
        if data.squares + data.modulus + data.dissimilarity <= 0.0 {
            return refuse("squares + modulus + dissimilarity", 0.0, "must be above 0: nothing would be learnt");
        }
        if data.photons.is_nan() || data.photons <= 0.0 {
            return refuse("photons", data.photons, "must be above 0");
        }
        if !(data.model_error > 0.0 && data.model_error.is_finite()) {
            return refuse("model_error", data.model_error, "must be finite and above 0");
        }
        if !(self.tv_epsilon_per_mm > 0.0 && self.tv_epsilon_per_mm.is_finite()) {
            return refuse("tv_epsilon_per_mm", f64::from(self.tv_epsilon_per_mm), "must be finite and above 0");
        }
        if !(0.0..=1.0).contains(&self.sharpness) {
            return refuse("sharpness", f64::from(self.sharpness), "must lie in [0, 1]");
        }
        // Twice as much would bring out what neither projector nor pixels have taken away.
        if !(0.0..=2.0).contains(&self.aperture) {
            return refuse("aperture", f64::from(self.aperture), "must lie in [0, 2]");
        }
        if self.hold_back_one_in == 1 {
            return refuse("hold_back_one_in", 1.0, "must be 0 (none) or at least 2: nothing would be learnt");
        }
        if !(0.0..=1.0).contains(&self.patience) {
            return refuse("patience", self.patience, "must lie in [0, 1]: a share of all iterations");
        }
        self.augment.as_ref().map_or(Ok(()), AugmentSettings::check)
    }
}

/// Everything about a run that is known before its first projection.
#[derive(Debug, Clone)]
pub struct OptimisePlan {
    settings: OptimiseSettings,
    grid: VolumeGrid,
    /// Geometry of each subset, in the order in which they are visited.
    subsets: Vec<ScanGeometry>,
    /// Which views these are: `[subset][position]`, all in one.
    order: Vec<usize>,
}

impl OptimisePlan {
    /// Deals out the views.
    ///
    /// # Errors
    /// [`ReconstructError::Setting`] or [`ReconstructError::Geometry`] for what cannot be reconstructed.
    pub fn new(
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
        settings: &OptimiseSettings,
    ) -> Result<Self, ReconstructError> {
        settings.check()?;
        geometry.check()?;
        grid.check()?;
        let views = geometry.views.len();
        let count = views.div_ceil(settings.views_per_iteration).max(1);
        let mut order = Vec::with_capacity(views);
        let subsets = van_der_corput(count)
            .map(|subset| {
                let members = (subset..views).step_by(count);
                order.extend(members.clone());
                let views = members.map(|view| geometry.views[view]).collect();
                ScanGeometry { detector: geometry.detector, views }
            })
            .collect();
        Ok(Self { settings: *settings, grid: *grid, subsets, order })
    }

    /// What was chosen.
    #[must_use]
    pub fn settings(&self) -> &OptimiseSettings {
        &self.settings
    }

    /// The volume's grid.
    #[must_use]
    pub fn grid(&self) -> &VolumeGrid {
        &self.grid
    }

    /// Views of the whole scan.
    #[must_use]
    pub fn views(&self) -> usize {
        self.order.len()
    }

    /// Iterations in which every view has its turn once.
    #[must_use]
    pub fn round(&self) -> usize {
        self.subsets.len()
    }

    fn pixels(&self) -> usize {
        self.subsets[0].detector.pixels()
    }

    fn views_per_call(&self) -> usize {
        self.subsets.iter().map(|subset| subset.views.len()).max().unwrap_or(0)
    }

    /// What the carrier must be ready for.
    #[must_use]
    pub fn workload(&self) -> Workload {
        let detector = self.subsets[0].detector;
        Workload {
            columns: detector.columns,
            rows: detector.rows,
            views_per_call: self.views_per_call(),
            voxels: self.grid.voxels,
        }
    }

    /// The same for the losses.
    #[must_use]
    pub fn loss_workload(&self) -> LossWorkload {
        let detector = self.subsets[0].detector;
        LossWorkload {
            columns: detector.columns,
            rows: detector.rows,
            views_per_call: self.views_per_call(),
            voxels: self.settings.augment.map_or([0; 3], |_| self.grid.voxels),
        }
    }

    /// Voxels that the learned prior's operation must be ready for; none where it has no weight.
    #[must_use]
    pub fn prior_voxels(&self) -> [usize; 3] {
        if self.settings.prior > 0.0 { self.grid.voxels } else { [0; 3] }
    }

    /// Every buffer of [`Optimiser`] and its bytes, without those of the representation.
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, usize)> {
        let floats = |n: usize| n * size_of::<f32>();
        let (scan, subset) = (self.views() * self.pixels(), self.views_per_call() * self.pixels());
        let mut buffers = vec![
            ("optimise volume", floats(self.grid.len())),
            ("optimise last good volume", floats(self.grid.len())),
            ("optimise gradient by the volume", floats(self.grid.len())),
            ("optimise line integrals", floats(scan)),
            ("optimise pixel weights", floats(scan)),
            ("optimise projections of a subset", floats(subset)),
            ("optimise gradient by the projections", floats(subset)),
            ("optimise poses", self.views() * (2 * size_of::<ViewPose>() + size_of::<usize>())),
        ];
        if self.settings.hold_back_one_in > 0 {
            buffers.push(("optimise best volume so far", floats(self.grid.len())));
        }
        if self.settings.augment.is_some() {
            buffers.push(("optimise pseudo-reference", floats(self.grid.len())));
        }
        buffers
    }
}

/// 0 to `count - 1` in van der Corput's order: each far from those before.
fn van_der_corput(count: usize) -> impl Iterator<Item = usize> {
    let bits = count.next_power_of_two().trailing_zeros();
    (0..count.next_power_of_two())
        .map(move |i| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) })
        .filter(move |&i| i < count)
}

/// Why a run was not begun or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum OptimiseError {
    /// Plan, memory or data.
    #[error(transparent)]
    Reconstruct(#[from] ReconstructError),
    /// The representation refuses.
    #[error(transparent)]
    Represent(#[from] RepresentError),
}

impl From<crate::compute::ComputeError> for OptimiseError {
    fn from(error: crate::compute::ComputeError) -> Self {
        Self::Reconstruct(error.into())
    }
}

impl From<GeometryError> for OptimiseError {
    fn from(error: GeometryError) -> Self {
        Self::Reconstruct(error.into())
    }
}

impl crate::error::Classed for OptimiseError {
    fn class(&self) -> crate::error::ErrorClass {
        match self {
            Self::Reconstruct(error) => error.class(),
            Self::Represent(error) => error.class(),
        }
    }
}

#[cfg(test)]
mod tests;
