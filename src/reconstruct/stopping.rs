//! When an iterative method stops.

use serde::Serialize;

use super::{ReconstructError, StopReason};

/// Sweeps in a row without a better residual of the held-back views that end the work.
pub const HELD_BACK_PATIENCE: usize = 3;

/// The rules; the first that applies ends the work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopRules {
    /// Iterations at most, from 1.
    pub iterations: usize,
    /// Stop once the residual (root of mean square, dimensionless) is down to this: Morozov's discrepancy principle, with the noise of the
    /// line integrals times a factor near 1 (see [`super::noise`]).
    pub residual: Option<f64>,
    /// Stop once an iteration changes the volume by less than this share of its norm.
    pub change: Option<f64>,
    /// Hold back so many views, look at their residual after each iteration and stop when it has not gone down for
    /// [`HELD_BACK_PATIENCE`] iterations; the volume with the least residual stands. 0 for none.
    pub held_back_views: usize,
}

impl StopRules {
    /// A number of iterations and nothing else.
    #[must_use]
    pub fn iterations(iterations: usize) -> Self {
        Self { iterations, residual: None, change: None, held_back_views: 0 }
    }

    pub(super) fn check(&self, views: usize) -> Result<(), ReconstructError> {
        let refuse = |field, value: String, requirement| Err(ReconstructError::Setting { field, value, requirement });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if self.iterations == 0 {
            return refuse("iterations", "0".into(), "must be at least 1");
        }
        if let Some(residual) = self.residual.filter(|&r| !positive(r)) {
            return refuse("stop.residual", residual.to_string(), "must be finite and above 0");
        }
        if let Some(change) = self.change.filter(|&c| !positive(c)) {
            return refuse(
                "stop.change",
                change.to_string(),
                "must be finite and above 0: a share of the volume's norm",
            );
        }
        if self.held_back_views > 0 && 2 * self.held_back_views > views {
            return refuse(
                "stop.held_back_views",
                self.held_back_views.to_string(),
                "must leave at least half of the views to reconstruct from",
            );
        }
        Ok(())
    }

    /// Whether an iteration was the last. `residual`: of the views reconstructed from; `change`: relative.
    pub(super) fn reached(&self, iteration: usize, residual: f64, change: f64) -> Option<StopReason> {
        if self.residual.is_some_and(|limit| residual <= limit) {
            return Some(StopReason::Discrepancy);
        }
        if self.change.is_some_and(|limit| change <= limit) {
            return Some(StopReason::Change);
        }
        (iteration >= self.iterations).then_some(StopReason::Iterations)
    }
}

/// How an iterative reconstruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Iterations done.
    pub iterations: usize,
    /// Why it ended.
    pub stopped: StopReason,
    /// The last iteration's residual: root of the mean squared difference of measured and projected line integrals.
    pub residual: f64,
    /// That of an empty volume.
    pub residual_of_nothing: f64,
    /// Least residual of the held-back views.
    pub held_back_residual: Option<f64>,
}

impl Outcome {
    /// Share of the line integrals' mean square that the volume leaves unexplained: near 0 for a good reconstruction, near 1 where the
    /// projections are noise or do not belong to the geometry.
    #[must_use]
    pub fn unexplained(&self) -> f64 {
        if self.residual_of_nothing > 0.0 { (self.residual / self.residual_of_nothing).powi(2) } else { 0.0 }
    }

    /// What to tell about a result that cannot be trusted.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if self.stopped == StopReason::Diverged {
            return Some("the iteration diverged; the last good volume stands".into());
        }
        // A scan of a body leaves well below a hundredth, even at a few hundred photons a pixel.
        let unexplained = self.unexplained();
        (unexplained > 0.2).then(|| {
            format!(
                "the volume leaves {:.0} % of the line integrals' mean square unexplained: they are mostly noise, or do not belong to this \
                 geometry",
                100.0 * unexplained
            )
        })
    }
}
