//! `[reconstruct]`: the method, and what a method that optimises a representation is told.

use super::raw::RawReconstruct;
use super::resolve::{choice, count, in_range};
use super::{ConfigError, SliceFixerSettings};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::optimise::{EarlyStart, Method, OptimiseSettings, Recipe, USUAL_ITERATIONS};
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;

/// Largest number of Gaussians, as their limits have it.
const MOST_GAUSSIANS: i64 = 1 << 26;

/// A method that goes on from the FDK volume.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimisedSettings {
    /// What is optimised.
    pub method: Method,
    /// Losses, subsets, seed.
    pub optimise: OptimiseSettings,
    /// How long.
    pub budget: RunBudget,
    /// When a volume is published on the way.
    pub publish: PublishEvery,
    /// What is done before the last frame.
    pub early: EarlyIterations,
    /// What repairs the volume on its way; `None`: nothing.
    pub slice_fixer: Option<SliceFixerSettings>,
}

/// How many iterations an [`EarlyStart`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyIterations {
    /// As many as are done before the last frame, by the gantry's rate and what an iteration is found to take; none where that are few.
    AsFit,
    /// So many; 0: none.
    Count(usize),
}

/// How long a run may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RunBudget {
    /// So many iterations.
    Iterations(usize),
    /// As many iterations as end within so many seconds after the last frame: fixed once, by what iterations cost at the start.
    DeadlineS(f64),
}

/// When a volume is published on the way; the last one always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishEvery {
    /// After every so many iterations; 0: none on the way.
    Iterations(usize),
    /// After the iteration that ends this long after the publication before, ms.
    Ms(u64),
}

impl OptimisedSettings {
    /// The plan of the method for a scan.
    ///
    /// # Errors
    /// As [`Recipe::new`].
    pub fn recipe(&self, geometry: &ScanGeometry, grid: &VolumeGrid) -> Result<Recipe, ReconstructError> {
        Recipe::new(geometry, grid, &self.optimise, self.method)
    }
}

/// Which of two keys is given; refused where both are.
fn one_of<A, B>(
    (field, first): (&str, Option<A>),
    (other, second): (&str, Option<B>),
) -> Result<Option<Result<A, B>>, ConfigError> {
    match (first, second) {
        (Some(_), Some(_)) => {
            Err(ConfigError::value(other, "(given)", format!("cannot stand beside {field}; remove one of the two")))
        }
        (first, second) => Ok(first.map(Ok).or(second.map(Err))),
    }
}

/// `None`: FDK alone. The numbers are checked whatever the method, so that changing it brings no surprise.
pub(super) fn optimised(raw: &RawReconstruct, grid: &VolumeGrid) -> Result<Option<OptimisedSettings>, ConfigError> {
    let usual = OptimiseSettings::default();
    let budget = one_of(("reconstruct.iterations", raw.iterations), ("reconstruct.deadline_s", raw.deadline_s))?;
    let publish = one_of(
        ("reconstruct.publish_every", raw.publish_every),
        ("reconstruct.publish_interval_ms", raw.publish_interval_ms),
    )?;
    let publish = match publish {
        Some(Err(ms)) => {
            PublishEvery::Ms(count("reconstruct.publish_interval_ms", Some(ms), 5_000, 1, 3_600_000)? as u64)
        }
        every => {
            let every = every.and_then(Result::ok);
            PublishEvery::Iterations(count("reconstruct.publish_every", every, 10, 0, 1_000_000)?)
        }
    };
    let seed = in_range("reconstruct.seed", raw.seed, 0, 0, i64::MAX)? as u64;
    let gaussians = match count("reconstruct.gaussians", raw.gaussians, 0, 0, MOST_GAUSSIANS)? {
        0 => None,
        gaussians => Some(gaussians),
    };
    let single = |field, value: Option<f64>, usual: f32, high: f64| {
        // Through its shortest decimals, so that the default reads as it is written.
        let usual: f64 = usual.to_string().parse().unwrap_or(f64::from(usual));
        in_range(field, value, usual, 0.0, high).map(|value| value as f32)
    };
    let views = usual.views_per_iteration as i64;
    let mut optimise = OptimiseSettings {
        prior: single("reconstruct.prior", raw.prior, usual.prior, 1e3)?,
        tv_mm: single("reconstruct.tv_mm", raw.tv_mm, usual.tv_mm, 1e3)?,
        views_per_iteration: count("reconstruct.views_per_iteration", raw.views_per_iteration, views, 1, 65_535)?,
        seed,
        ..usual
    };
    optimise.data.photons = in_range("reconstruct.photons", raw.photons, usual.data.photons, 1.0, 1e12)?;
    let method = raw.method.as_deref();
    let gaussians = Method::Gaussians(GaussianPlan::for_grid(grid, gaussians, seed));
    let field = Method::Field(FieldPlan::for_grid(grid, seed));
    let method = choice(
        "reconstruct.method",
        method,
        "fdk",
        &[("fdk", None), ("gaussians", Some(gaussians)), ("field", Some(field))],
    )?;
    let budget = match budget {
        Some(Err(seconds)) => {
            RunBudget::DeadlineS(in_range("reconstruct.deadline_s", Some(seconds), 60.0, 0.1, 86_400.0)?)
        }
        iterations => {
            let iterations = iterations.and_then(Result::ok);
            RunBudget::Iterations(count("reconstruct.iterations", iterations, USUAL_ITERATIONS as i64, 1, 1_000_000)?)
        }
    };
    let early = match raw.early_iterations {
        None => EarlyIterations::AsFit,
        given => {
            // Some are left for the whole scan.
            let most = match budget {
                RunBudget::Iterations(iterations) => EarlyStart::most(iterations) as i64,
                RunBudget::DeadlineS(_) => 1_000_000,
            };
            EarlyIterations::Count(count("reconstruct.early_iterations", given, 0, 0, most)?)
        }
    };
    Ok(method.map(|method| OptimisedSettings { method, optimise, budget, publish, early, slice_fixer: None }))
}
