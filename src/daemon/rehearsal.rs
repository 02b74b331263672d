//! A run on a made-up scan before "ready": every operation has been through once, and what a run costs is known.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::DaemonError;
use super::optimise::Optimisation;
use crate::config::{PublishEvery, RunBudget};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::optimise::{Budget, ScanViews};
use crate::reconstruct::{Observer, Progress};
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};

/// Steps and iterations that are measured after a first one that warms the caches.
const MEASURED: usize = 2;

/// What the parts of a run take on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cost {
    /// Load, start, first elements.
    pub(super) start: Duration,
    /// A step towards the start.
    pub(super) fit: Duration,
    /// An iteration.
    pub(super) iteration: Duration,
    /// Making and publishing a volume.
    pub(super) volume: Duration,
}

impl Cost {
    /// Time up to the first iteration.
    fn before(&self, fits: usize) -> Duration {
        self.start + self.fit * fits as u32
    }

    /// Time of a run, without its publications on the way.
    pub(super) fn run(&self, fits: usize, iterations: usize) -> Duration {
        self.before(fits) + self.iteration.mul_f64(iterations as f64) + self.volume
    }

    /// Iterations that end, with their publications and the last one, within `deadline`; a tenth is kept for what slows a machine down.
    pub(super) fn iterations_within(&self, deadline: Duration, fits: usize, every: PublishEvery) -> usize {
        let left = deadline.mul_f64(0.9).saturating_sub(self.before(fits) + self.volume).as_secs_f64();
        let (iteration, volume) = (self.iteration.as_secs_f64().max(1e-9), self.volume.as_secs_f64());
        let each = match every {
            PublishEvery::Iterations(0) => iteration,
            PublishEvery::Iterations(every) => iteration + volume / every as f64,
            // A volume takes its time out of each interval.
            PublishEvery::Ms(ms) => iteration * (1.0 + volume / (ms as f64 / 1e3).max(iteration)),
        };
        (left / each) as usize
    }

    /// The least deadline that leaves time for one iteration.
    fn least(&self, fits: usize) -> Duration {
        (self.before(fits) + self.volume + self.iteration).div_f64(0.9)
    }
}

/// Runs the rehearsal on `optimisation` and fixes the number of iterations.
pub(super) fn rehearse(
    optimisation: &mut Optimisation<'_>,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    budget: RunBudget,
) -> Result<Cost, DaemonError> {
    let plan = std::sync::Arc::clone(optimisation.parts.recipe.plan());
    let views = phantom(grid).line_integrals(geometry);
    // In the order of memory that the phantom makes.
    let scan = ScanViews::whole(views.as_slice().unwrap_or(&[]));
    let compute = optimisation.compute;
    let began = Instant::now();
    optimisation.optimiser.load_views(&scan)?;
    optimisation.start.make(compute, &scan, &Timer::default())?;
    let made = began.elapsed();
    let fits = Timer { limit: Some(2 + MEASURED), ..Timer::default() };
    let began = Instant::now();
    optimisation.optimiser.begin(compute, optimisation.start.volume(), &fits)?;
    let first = fits.marks.borrow().first().map_or(Duration::ZERO, |mark| mark.duration_since(began));
    let mut iterations = Timer { wants: true, ..Timer::default() };
    optimisation.optimiser.run(compute, Budget::Iterations(1 + MEASURED), &mut iterations)?;
    let began = Instant::now();
    {
        let mut last = optimisation.parts.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.keep(None, optimisation.optimiser.volume(), 0.0);
    }
    let copy = began.elapsed();
    let cost = Cost {
        start: made + first,
        fit: fits.median_step(),
        iteration: iterations.median(),
        // Into a slot with its CRC, and kept.
        volume: iterations.volume.get() + copy * 3,
    };
    let fit_steps = plan.settings().fit_iterations;
    optimisation.iterations = match budget {
        RunBudget::Iterations(count) => count,
        RunBudget::DeadlineS(seconds) => {
            let deadline = Duration::from_secs_f64(seconds);
            match cost.iterations_within(deadline, fit_steps, optimisation.parts.publish) {
                0 => {
                    return Err(DaemonError::Deadline {
                        deadline_s: seconds,
                        least_s: cost.least(fit_steps).as_secs_f64(),
                    });
                }
                count => count,
            }
        }
    };
    optimisation.reserve_ns = cost.volume.as_nanos() as u64;
    Ok(cost)
}

/// Water that fills the inner part of the box, with a denser core: as many elements as a patient has, or more.
fn phantom(grid: &VolumeGrid) -> EllipsoidPhantom {
    let ellipsoid = |share: f64, mu| Ellipsoid::aligned(grid.centre_mm, grid.size_mm() * (0.5 * share), mu);
    EllipsoidPhantom { ellipsoids: vec![ellipsoid(0.85, 0.02), ellipsoid(0.4, 0.02)] }
}

/// Notes when it is asked, and interrupts after so many questions.
#[derive(Default)]
struct Timer {
    limit: Option<usize>,
    wants: bool,
    marks: RefCell<Vec<Instant>>,
    asked: Cell<Option<Instant>>,
    /// Longest time from the wish for a volume to its being there.
    volume: Cell<Duration>,
    costs: Vec<Duration>,
}

impl Timer {
    /// Median of the times between questions, the first left out.
    fn median_step(&self) -> Duration {
        let marks = self.marks.borrow();
        let mut steps: Vec<Duration> = marks.windows(2).skip(1).map(|pair| pair[1].duration_since(pair[0])).collect();
        steps.sort_unstable();
        steps.get(steps.len() / 2).copied().unwrap_or_default()
    }

    /// Median of the iterations, the first left out.
    fn median(&self) -> Duration {
        let mut costs = self.costs.get(1..).unwrap_or(&[]).to_vec();
        costs.sort_unstable();
        costs.get(costs.len() / 2).copied().unwrap_or_default()
    }
}

impl Observer for Timer {
    fn wants_volume(&mut self, _: usize) -> bool {
        // An iteration has ended; the next begins after `observe`.
        let began = self.marks.get_mut().last().copied();
        self.costs.extend(began.map(|began| began.elapsed()));
        self.asked.set(Some(Instant::now()));
        self.wants
    }

    fn observe(&mut self, _: &Progress<'_>) {
        let took = self.asked.get().map_or(Duration::ZERO, |asked| asked.elapsed());
        self.volume.set(self.volume.get().max(took));
        self.marks.get_mut().clear();
    }

    fn interrupts(&self) -> bool {
        let mut marks = self.marks.borrow_mut();
        // Within an iteration only the first question counts.
        if self.limit.is_some() || marks.is_empty() {
            marks.push(Instant::now());
        }
        self.limit.is_some_and(|limit| marks.len() >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_becomes_the_number_of_iterations_that_fits_with_all_its_publications() {
        let ms = Duration::from_millis;
        let cost = Cost { start: ms(1000), fit: ms(100), iteration: ms(300), volume: ms(100) };
        // 0.9 x 20 s, less the start, 20 fits and the last volume: 14.9 s.
        assert_eq!(cost.iterations_within(ms(20_000), 20, PublishEvery::Iterations(0)), 49);
        // Every second iteration a volume: 350 ms each.
        assert_eq!(cost.iterations_within(ms(20_000), 20, PublishEvery::Iterations(2)), 42);
        // One a second: 300 ms + a tenth.
        assert_eq!(cost.iterations_within(ms(20_000), 20, PublishEvery::Ms(1_000)), 45);
        assert_eq!(cost.iterations_within(ms(3_000), 20, PublishEvery::Iterations(0)), 0);
        assert_eq!(cost.iterations_within(cost.least(20) + ms(1), 20, PublishEvery::Iterations(0)), 1);
    }
}
