//! How an iterative method shows where it stands, and why it ended.

use serde::Serialize;

use crate::compute::Values;

/// Where an iterative method stands after an iteration.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Iterations done.
    pub iteration: usize,
    /// Iterations at most.
    pub iterations: usize,
    /// Root of the mean squared difference of measured and projected line integrals, dimensionless, over the pixels whose rays meet the
    /// volume; each method says at which of its volumes.
    pub residual: f64,
    /// Attenuation in 1/mm, `[x][y][z]`, where [`Observer::wants_volume`] asked for it.
    pub volume: Option<Values<'a>>,
}

impl<'a> Progress<'a> {
    /// The volume on the host, unless the observer said that it takes it from where it lies.
    #[must_use]
    pub fn volume_on_host(&self) -> Option<&'a [f32]> {
        self.volume.and_then(|volume| volume.host("observe").ok())
    }
}

/// Watches an iterative method.
pub trait Observer: Send {
    /// Whether to show the volume after this iteration. From this call to the end of [`Observer::observe`] the time is the observer's
    /// (a representation has to be turned into a volume first), not the method's.
    fn wants_volume(&mut self, iteration: usize) -> bool;

    /// Whether volumes are wanted on the host, and not where the carrier works on them.
    fn wants_on_host(&self) -> bool {
        true
    }

    /// Called after each iteration.
    fn observe(&mut self, progress: &Progress<'_>);

    /// Whether to leave the method now, with what it has; asked between the operations of an iteration, so that a caller waits for
    /// none of them longer than it takes.
    fn interrupts(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn wants_volume(&mut self, _: usize) -> bool {
        false
    }

    fn observe(&mut self, _: &Progress<'_>) {}
}

/// Why an iterative method ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All iterations were done.
    Iterations,
    /// The residual came down to the noise: going on would fit the noise (Morozov's discrepancy principle).
    Discrepancy,
    /// The volume hardly changed any more.
    Change,
    /// The residual of the views held back has been growing.
    HeldBack,
    /// The method's own rule says that it has converged.
    Converged,
    /// Whoever watches asked for the end: the volume of the last whole iteration stands.
    Interrupted,
    /// The residual is no number any more, or far above that of an empty volume: the last good volume stands.
    Diverged,
}

impl StopReason {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Iterations => "all iterations done",
            Self::Discrepancy => "residual down to the noise",
            Self::Change => "volume hardly changed any more",
            Self::HeldBack => "residual of the held-back views grew",
            Self::Converged => "converged",
            Self::Interrupted => "interrupted",
            Self::Diverged => "diverged: the last good volume stands",
        }
    }
}
