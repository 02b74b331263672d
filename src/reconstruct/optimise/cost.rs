//! What the parts of a run take on this machine, measured on whatever views are loaded.

use std::time::{Duration, Instant};

use super::run::Optimiser;
use super::{OptimiseError, OptimisePlan};
use crate::compute::Operations;
use crate::reconstruct::Unobserved;

/// Times of the parts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunCost {
    /// A step of the starting volume.
    pub approach: Duration,
    /// First elements from that volume.
    pub begin: Duration,
    /// A step of the representation towards it.
    pub fit: Duration,
    /// An iteration.
    pub iteration: Duration,
    /// Turning the representation into a volume.
    pub voxelise: Duration,
    /// A repair, its volume included; zero without repairs.
    pub repair: Duration,
    /// What the similarity to the repaired volume adds to an iteration that it is applied in; zero where there is none, or the repair failed.
    pub similarity: Duration,
}

impl RunCost {
    /// Time up to the first iteration.
    #[must_use]
    pub fn before(&self, plan: &OptimisePlan) -> Duration {
        let settings = plan.settings();
        self.approach * settings.approach_iterations as u32 + self.begin + self.fit * settings.fit_iterations as u32
    }
}

/// Times each is taken: the first warms the caches.
const TIMES: usize = 3;

impl Optimiser {
    /// Goes once through everything that a run does, so that its first iteration is no slower than the next, and times it. The views loaded
    /// must not be empty. What the repair came to stands in [`Optimiser::repairs`].
    ///
    /// # Errors
    /// As [`Optimiser::begin`] and [`Optimiser::run`].
    pub fn measure(&mut self, compute: &dyn Operations) -> Result<RunCost, OptimiseError> {
        let mut cost =
            RunCost { approach: Duration::MAX, fit: Duration::MAX, iteration: Duration::MAX, ..RunCost::default() };
        self.clear(compute)?;
        for step in 0..TIMES {
            let began = Instant::now();
            self.approach(compute, step, &Unobserved)?;
            compute.finish()?;
            cost.approach = cost.approach.min(began.elapsed());
        }
        let began = Instant::now();
        self.begin_representation(compute)?;
        compute.finish()?;
        cost.begin = began.elapsed();
        for step in 0..TIMES {
            let began = Instant::now();
            self.fit(compute, step)?;
            compute.finish()?;
            cost.fit = cost.fit.min(began.elapsed());
        }
        for iteration in 0..TIMES {
            let began = Instant::now();
            self.iterate(compute, iteration, 0.0, &Unobserved)?;
            compute.finish()?;
            cost.iteration = cost.iteration.min(began.elapsed());
        }
        let began = Instant::now();
        self.voxelise(compute)?;
        cost.voxelise = began.elapsed();
        let began = Instant::now();
        if let Some(is_repaired) = self.repair(compute)? {
            cost.repair = began.elapsed();
            if is_repaired {
                cost.similarity = self.measure_similarity(compute)?.saturating_sub(cost.iteration);
            }
        }
        Ok(cost)
    }

    /// Iterations that are held to the repaired volume.
    fn measure_similarity(&mut self, compute: &dyn Operations) -> Result<Duration, OptimiseError> {
        let every = self.plan().settings().augment.map_or(1, |augment| augment.every);
        let mut held = Duration::MAX;
        for time in 0..TIMES {
            let began = Instant::now();
            self.iterate(compute, time * every, 0.0, &Unobserved)?;
            compute.finish()?;
            held = held.min(began.elapsed());
        }
        Ok(held)
    }
}
