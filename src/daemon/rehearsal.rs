//! A run on a made-up scan before "ready": every operation has been through once, and what a run costs is known.

use std::time::{Duration, Instant};

use super::DaemonError;
use super::early::FramePace;
use super::optimise::{Optimisation, Schedule};
use crate::config::{OptimisedSettings, PublishEvery, RunBudget};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::reconstruct::optimise::ScanViews;
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};

/// What the parts of a run take on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cost {
    /// Taking the scan's views.
    pub(super) load: Duration,
    /// From the scan's views to the first iteration, that included.
    pub(super) before: Duration,
    /// An iteration.
    pub(super) iteration: Duration,
    /// Making and publishing a volume.
    pub(super) volume: Duration,
}

impl Cost {
    /// Time of a run, without its publications on the way.
    pub(super) fn run(&self, iterations: usize) -> Duration {
        self.before + self.iteration.mul_f64(iterations as f64) + self.volume
    }

    /// Iterations that end, with their publications and the last one, within `deadline`, the first beginning after `before`; a tenth is kept
    /// for what slows a machine down.
    pub(super) fn iterations_within(&self, deadline: Duration, every: PublishEvery, before: Duration) -> usize {
        let left = deadline.mul_f64(0.9).saturating_sub(before + self.volume).as_secs_f64();
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
    fn least(&self) -> Duration {
        (self.before + self.volume + self.iteration).div_f64(0.9)
    }
}

/// Runs the rehearsal on `optimisation` and fixes the numbers of iterations.
pub(super) fn rehearse(
    optimisation: &mut Optimisation<'_>,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    settings: &OptimisedSettings,
    frame_time: Duration,
) -> Result<Cost, DaemonError> {
    let plan = std::sync::Arc::clone(optimisation.parts.recipe.plan());
    let views = phantom(grid).line_integrals(geometry);
    // In the order of memory that the phantom makes.
    let scan = ScanViews::whole(views.as_slice().unwrap_or(&[]));
    let compute = optimisation.compute;
    let began = Instant::now();
    optimisation.optimiser.load_views(&scan)?;
    let load = began.elapsed();
    let measured = compute.install(|| optimisation.optimiser.measure(compute))?;
    let began = Instant::now();
    {
        let mut last = optimisation.parts.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.keep(None, optimisation.optimiser.volume(), 0.0);
    }
    let copy = began.elapsed();
    let cost = Cost {
        load,
        before: load + measured.before(&plan),
        iteration: measured.iteration,
        // Into a slot with its CRC, and kept.
        volume: measured.voxelise + copy * 3,
    };
    let pace = FramePace { views: plan.views(), frame_time };
    let schedule = Schedule::new(&cost, settings.budget, settings.early, settings.publish, pace);
    optimisation.schedule = match (schedule, settings.budget) {
        (None, RunBudget::DeadlineS(deadline_s)) => {
            return Err(DaemonError::Deadline { deadline_s, least_s: cost.least().as_secs_f64() });
        }
        (schedule, _) => schedule.unwrap_or_default(),
    };
    optimisation.reserve_ns = cost.volume.as_nanos() as u64;
    Ok(cost)
}

/// Water that fills the inner part of the box, with a denser core: as many elements as a patient has, or more.
fn phantom(grid: &VolumeGrid) -> EllipsoidPhantom {
    let ellipsoid = |share: f64, mu| Ellipsoid::aligned(grid.centre_mm, grid.size_mm() * (0.5 * share), mu);
    EllipsoidPhantom { ellipsoids: vec![ellipsoid(0.85, 0.02), ellipsoid(0.4, 0.02)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_becomes_the_number_of_iterations_that_fits_with_all_its_publications() {
        let ms = Duration::from_millis;
        let cost = Cost { load: ms(10), before: ms(3000), iteration: ms(300), volume: ms(100) };
        let within = |deadline, every| cost.iterations_within(deadline, every, cost.before);
        // 0.9 x 20 s, less the start, 20 fits and the last volume: 14.9 s.
        assert_eq!(within(ms(20_000), PublishEvery::Iterations(0)), 49);
        // Every second iteration a volume: 350 ms each.
        assert_eq!(within(ms(20_000), PublishEvery::Iterations(2)), 42);
        // One a second: 300 ms + a tenth.
        assert_eq!(within(ms(20_000), PublishEvery::Ms(1_000)), 45);
        assert_eq!(within(ms(3_000), PublishEvery::Iterations(0)), 0);
        assert_eq!(within(cost.least() + ms(1), PublishEvery::Iterations(0)), 1);
    }
}
