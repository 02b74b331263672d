//! How long a run may take: a number of iterations, or a deadline that becomes one.

use std::time::{Duration, Instant};

/// What ends a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So many iterations.
    Iterations(usize),
    /// As many as end before `at`, worked out once, after the first [`Pace::MEASURED`] iterations have shown what one costs. The
    /// same number given as [`Budget::Iterations`] gives the same bits.
    Deadline {
        /// When the volume must be there.
        at: Instant,
        /// What turning the representation into the final volume and handing it out will take.
        reserve: Duration,
        /// At most so many, however much time there is.
        most: usize,
    },
}

/// The cost of iterations, measured while the first ones run.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    budget: Budget,
    fixed: Option<usize>,
    costs: [Duration; Self::MEASURED],
    done: usize,
}

impl Pace {
    /// Iterations that are measured: they run at the rates of the start, whatever the whole number will be.
    pub const MEASURED: usize = 5;

    /// Nothing measured yet.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        let fixed = match budget {
            Budget::Iterations(count) => Some(count),
            Budget::Deadline { .. } => None,
        };
        Self { budget, fixed, costs: [Duration::ZERO; Self::MEASURED], done: 0 }
    }

    /// The number of iterations, once it is known.
    #[must_use]
    pub fn iterations(&self) -> Option<usize> {
        self.fixed
    }

    /// Share of the run that is done after `done` iterations.
    #[must_use]
    pub fn share(&self, done: usize) -> f32 {
        let Some(count) = self.fixed else { return 0.0 };
        let (done, rest) = (done.saturating_sub(Self::MEASURED), count.saturating_sub(Self::MEASURED).max(1));
        (done as f32 / rest as f32).min(1.0)
    }

    /// An iteration took `cost` and ended at `now`. Fixes the number once enough are measured.
    pub fn took(&mut self, cost: Duration, now: Instant) {
        if let Some(slot) = self.costs.get_mut(self.done) {
            *slot = cost;
        }
        self.done += 1;
        if let (None, Budget::Deadline { at, reserve, most }) = (self.fixed, self.budget) {
            let left = at.saturating_duration_since(now).saturating_sub(reserve);
            if left.is_zero() {
                self.fixed = Some(self.done);
            } else if self.done >= Self::MEASURED {
                self.costs.sort_unstable();
                // The median: the first one warms caches. A tenth is kept for what slows a machine down later.
                let each = self.costs[Self::MEASURED / 2].as_secs_f64().max(1e-9);
                let more = (0.9 * left.as_secs_f64() / each) as usize;
                self.fixed = Some((self.done + more).min(most).max(self.done));
            }
        }
    }
}
