//! The early start: what the optimise thread does with a scan's first views while the rest still comes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use firmware_bridge::clock::monotonic_ns;

use super::handover::Handover;
use super::optimise::Schedule;
use super::rehearsal::Cost;
use crate::config::{EarlyIterations, PublishEvery, RunBudget};
use crate::reconstruct::optimise::EarlyStart;
use crate::reconstruct::{Observer, Progress};
use crate::supervise::{Stage, Supervision};

/// Share of the time between the early start and the last frame that is counted on: the frames take some of it, and an early start that is
/// not done in time is worth nothing.
const COUNTED_ON: f64 = 0.6;

/// When the frames of a scan come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FramePace {
    /// Views of the scan.
    pub(super) views: usize,
    /// Time from one frame to the next.
    pub(super) frame_time: Duration,
}

impl Schedule {
    /// The schedule that `cost` allows; `None`: not one iteration within the deadline.
    pub(super) fn new(
        cost: &Cost,
        budget: RunBudget,
        early: EarlyIterations,
        publish: PublishEvery,
        pace: FramePace,
    ) -> Option<Self> {
        let iterations = match budget {
            RunBudget::Iterations(count) => count,
            RunBudget::DeadlineS(seconds) => {
                cost.iterations_within(Duration::from_secs_f64(seconds), publish, cost.before, 0)
            }
        };
        if iterations == 0 {
            return None;
        }
        let views = EarlyStart::usual_views(pace.views);
        let left = pace.frame_time.mul_f64((pace.views - views) as f64 * COUNTED_ON);
        let fitting = left.saturating_sub(cost.before).as_secs_f64() / cost.iteration.as_secs_f64().max(1e-9);
        let early_iterations = match early {
            EarlyIterations::Count(count) => count,
            EarlyIterations::AsFit => match (fitting as usize).min(EarlyStart::most(iterations)) {
                few if few < EarlyStart::LEAST => 0,
                count => count,
            },
        };
        // One view is the first and the last.
        if early_iterations == 0 || views >= pace.views {
            return Some(Self { iterations, ..Self::default() });
        }
        let iterations_with_early = match budget {
            RunBudget::Iterations(count) => count,
            RunBudget::DeadlineS(seconds) => {
                // Only the views are to be loaded.
                let deadline = Duration::from_secs_f64(seconds);
                early_iterations + cost.iterations_within(deadline, publish, cost.load, early_iterations)
            }
        };
        let early = Some(EarlyStart { views, iterations: early_iterations });
        Some(Self { iterations, early, iterations_with_early })
    }
}

/// Watches an early start: tells how far it is, and says when the last frame has come.
pub(super) struct EarlyWatch<'a> {
    /// Of its job.
    pub(super) number: u64,
    pub(super) began_ns: u64,
    pub(super) handover: &'a Handover,
    pub(super) supervision: &'a Supervision,
}

impl Observer for EarlyWatch<'_> {
    fn wants_volume(&mut self, _: usize) -> bool {
        false
    }

    fn observe(&mut self, progress: &Progress<'_>) {
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.counters.iterations += 1;
            let told = &mut optimise.progress;
            (told.iteration, told.residual) = (progress.iteration as u32, Some(progress.residual));
            told.seconds = monotonic_ns().saturating_sub(self.began_ns) as f64 / 1e9;
        }
    }

    fn interrupts(&self) -> bool {
        self.supervision.beat(Stage::Optimise);
        self.handover.wanted() != self.number || self.supervision.stop.load(Ordering::Acquire)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COST: Cost = Cost {
        load: Duration::from_millis(50),
        before: Duration::from_millis(2_500),
        iteration: Duration::from_millis(100),
        volume: Duration::from_millis(100),
        repairs: None,
    };

    fn schedule(budget: RunBudget, early: EarlyIterations, seconds_a_scan: f64) -> Schedule {
        let pace = FramePace { views: 40, frame_time: Duration::from_secs_f64(seconds_a_scan / 40.0) };
        Schedule::new(&COST, budget, early, PublishEvery::Iterations(0), pace).unwrap()
    }

    #[test]
    fn a_gantry_that_turns_slowly_leaves_time_for_an_early_start() {
        let of = |seconds| schedule(RunBudget::Iterations(100), EarlyIterations::AsFit, seconds);
        // The last ten frames of 40 take 5 s, of which 3 are counted on, 2.5 before the first iteration: 5 fit, which are too few.
        assert_eq!(of(20.0), Schedule { iterations: 100, early: None, iterations_with_early: 0 });
        // 10 s: 6 s, 35 iterations.
        let early = Some(EarlyStart { views: 30, iterations: 35 });
        assert_eq!(of(40.0), Schedule { iterations: 100, early, iterations_with_early: 100 });
        // However long it takes, half of them are left for all views.
        assert_eq!(of(400.0).early.unwrap().iterations, 50);
    }

    #[test]
    fn a_deadline_holds_more_iterations_after_an_early_start() {
        let with = schedule(RunBudget::DeadlineS(10.0), EarlyIterations::AsFit, 40.0);
        // 0.9 x 10 s, less 2.6 s for start and volume: 64; less 0.15 s for load and volume: 88. Half of 64 may come early.
        let early = Some(EarlyStart { views: 30, iterations: 32 });
        assert_eq!(with, Schedule { iterations: 64, early, iterations_with_early: 32 + 88 });
    }

    #[test]
    fn a_number_that_is_given_is_taken_and_nought_is_none() {
        let given = schedule(RunBudget::Iterations(100), EarlyIterations::Count(7), 0.1);
        assert_eq!(given.early, Some(EarlyStart { views: 30, iterations: 7 }));
        assert_eq!(schedule(RunBudget::Iterations(100), EarlyIterations::Count(0), 400.0).early, None);
        let one_view = FramePace { views: 1, frame_time: Duration::from_secs(100) };
        let never = PublishEvery::Iterations(0);
        let of_one =
            Schedule::new(&COST, RunBudget::Iterations(100), EarlyIterations::Count(7), never, one_view).unwrap();
        assert_eq!(of_one.early, None);
        let hopeless = RunBudget::DeadlineS(1.0);
        assert_eq!(Schedule::new(&COST, hopeless, EarlyIterations::AsFit, never, one_view), None);
    }
}
