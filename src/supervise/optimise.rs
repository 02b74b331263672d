//! What the optimisation tells of itself.

use serde::Serialize;

/// Counters of the optimisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OptimiseCounters {
    /// Runs begun, without early starts.
    pub runs: u64,
    /// Early starts that were done when the last frame came, so that the run went on from them.
    pub early_starts: u64,
    /// Early starts that were not: the run began anew.
    pub early_starts_given_up: u64,
    /// Runs that came to their end.
    pub done: u64,
    /// Runs that the next scan, or later frames of the same one, ended.
    pub superseded: u64,
    /// Runs that diverged.
    pub diverged: u64,
    /// Runs that missed their deadline.
    pub deadlines_missed: u64,
    /// Runs that could not be begun, or whose operations failed.
    pub refused: u64,
    /// Iterations of all runs.
    pub iterations: u64,
    /// Volumes published on the way.
    pub intermediate: u64,
    /// Last volumes published.
    pub last: u64,
    /// Volumes published as DEGRADED.
    pub degraded: u64,
    /// Publications that found every slot leased.
    pub slots_leased: u64,
    /// Time in publishing, total ns.
    pub publish_ns: u64,
    /// Longest iteration, ns.
    pub max_iteration_ns: u64,
    /// Longest time between two volumes of a run, ns.
    pub max_volume_interval_ns: u64,
}

/// Where the run stands that is under way, or was last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OptimiseProgress {
    /// `gaussians`, ...
    pub method: &'static str,
    /// Whether it is under way.
    pub running: bool,
    /// Number of its scan.
    pub scan_id: u64,
    /// Iterations done.
    pub iteration: u32,
    /// Iterations planned.
    pub iterations_planned: u32,
    /// Of these, so many before the last frame, where it comes no sooner than planned; 0: none.
    pub early_iterations: u32,
    /// From so many views.
    pub early_views: u32,
    /// Root of the mean squared difference of the line integrals at the last iteration; `None` before the first.
    pub residual: Option<f64>,
    /// Gaussians, or entries of the field's tables.
    pub elements: u64,
    /// Time of the run so far, s.
    pub seconds: f64,
    /// What an iteration was found to take before ready, s.
    pub iteration_s: f64,
}

/// Both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OptimiseTelemetry {
    /// Where it stands.
    #[serde(flatten)]
    pub progress: OptimiseProgress,
    /// What it has come to.
    pub counters: OptimiseCounters,
}
