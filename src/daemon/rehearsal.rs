//! A run on a made-up scan before "ready": every operation has been through once, and what a run costs is known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::DaemonError;
use super::early::FramePace;
use super::handover::LastVolume;
use super::optimise::Schedule;
use super::repairs::ScanRepairs;
use crate::compute::Operations;
use crate::compute::device::Device;
use crate::config::{OptimisedSettings, PublishEvery, RunBudget, Settings};
use crate::geometry::{ScanGeometry, VolumeGrid};
use crate::plan::Plan;
use crate::publish::Outgoing;
use crate::reconstruct::optimise::{AugmentSettings, Optimiser, ScanViews};
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};
use crate::supervise::SliceFixerTelemetry;

/// What the parts of a run take on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cost {
    /// Taking the scan's views.
    pub(super) load: Duration,
    /// From the scan's views to the first iteration, that included.
    pub(super) before: Duration,
    /// An iteration that is not held to a repaired volume.
    pub(super) iteration: Duration,
    /// Making and publishing a volume.
    pub(super) volume: Duration,
    /// The repairs; `None`: none.
    pub(super) repairs: Option<RepairCost>,
}

/// What the repairs of a run take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RepairCost {
    /// When they are made.
    pub(super) augment: AugmentSettings,
    /// A repair.
    pub(super) repair: Duration,
    /// What an iteration takes longer that is held to the repaired volume.
    pub(super) similarity: Duration,
}

impl RepairCost {
    /// Repairs, and what the iterations after them take longer, in a run of `iterations` whose first `early` came before the last frame.
    pub(super) fn of(&self, early: usize, iterations: usize) -> Duration {
        let held = self.augment.share_held() * iterations as f64;
        self.repair * self.augment.planned(early, iterations) as u32 + self.similarity.mul_f64(held)
    }

    /// Fewest iterations that leave room for every repair.
    fn least_iterations(&self) -> usize {
        let repairs = self.augment.repairs;
        (repairs..100 * repairs)
            .find(|iterations| self.augment.planned(0, *iterations) == repairs)
            .unwrap_or(100 * repairs)
    }
}

impl Cost {
    /// Time of a run of `iterations`, without its publications on the way.
    pub(super) fn run(&self, iterations: usize) -> Duration {
        self.before + self.go_on(0, iterations) + self.volume
    }

    /// Time of iterations and repairs, after `early` of them.
    pub(super) fn go_on(&self, early: usize, iterations: usize) -> Duration {
        let repairs = self.repairs.map_or(Duration::ZERO, |repairs| repairs.of(early, iterations));
        self.iteration.mul_f64((iterations - early) as f64) + repairs
    }

    /// Iterations that end, with their repairs, publications and the last volume, within `deadline`, the first beginning after `before`; a tenth
    /// is kept for what slows a machine down. `early` iterations are done already. 0 where there is no time for all repairs.
    pub(super) fn iterations_within(
        &self,
        deadline: Duration,
        every: PublishEvery,
        before: Duration,
        early: usize,
    ) -> usize {
        let left = deadline.mul_f64(0.9).saturating_sub(before + self.volume).as_secs_f64();
        let (iteration, volume) = (self.iteration.as_secs_f64().max(1e-9), self.volume.as_secs_f64());
        let each = match every {
            PublishEvery::Iterations(0) => iteration,
            PublishEvery::Iterations(every) => iteration + volume / every as f64,
            // A volume takes its time out of each interval.
            PublishEvery::Ms(ms) => iteration * (1.0 + volume / (ms as f64 / 1e3).max(iteration)),
        };
        let most = (left / each) as usize;
        let Some(repairs) = self.repairs else { return most };
        // More iterations never take less time: halving finds the last that fits.
        let fits = |count: usize| count as f64 * each + repairs.of(early, early + count).as_secs_f64() <= left;
        let (mut fitting, mut too_many) = (0, most + 1);
        while too_many - fitting > 1 {
            let middle = fitting + (too_many - fitting) / 2;
            if fits(middle) { fitting = middle } else { too_many = middle }
        }
        if early == 0 && fitting < repairs.least_iterations() { 0 } else { fitting }
    }

    /// The least deadline that leaves time for one iteration, or for as many as the repairs need.
    fn least(&self) -> Duration {
        let iterations = self.repairs.map_or(1, |repairs| repairs.least_iterations());
        self.run(iterations).div_f64(0.9)
    }
}

/// What a rehearsal needs.
pub(super) struct Rehearsal<'a> {
    pub(super) compute: &'a dyn Operations,
    pub(super) optimiser: &'a mut Optimiser,
    pub(super) repairs: Option<&'a mut ScanRepairs>,
    pub(super) last: &'a Mutex<LastVolume>,
}

/// Runs the rehearsal and fixes the numbers of iterations.
pub(super) fn rehearse(
    parts: Rehearsal<'_>,
    settings: &Settings,
    optimised: &OptimisedSettings,
) -> Result<(Cost, Schedule), DaemonError> {
    let Rehearsal { compute, optimiser, repairs, last } = parts;
    let (geometry, grid): (&ScanGeometry, &VolumeGrid) = (&settings.geometry, &settings.grid);
    let plan = Arc::clone(optimiser.plan());
    let views = phantom(grid).line_integrals(geometry);
    // In the order of memory that the phantom makes.
    let scan = ScanViews::whole(views.as_slice().unwrap_or(&[]));
    let began = Instant::now();
    optimiser.load_views(compute, &scan)?;
    let load = began.elapsed();
    let (mut told, mut repairs) = (Duration::ZERO, repairs);
    if let Some(repairs) = &mut repairs {
        let began = Instant::now();
        repairs.begin(&scan, geometry, None);
        told = began.elapsed();
    }
    let measured = compute.install(|| optimiser.measure(compute))?;
    let repairs = repairs.map(|repairs| {
        let came_to = optimiser.repairs().copied().unwrap_or_default();
        if let Some(why) = came_to.why {
            tracing::warn!(
                "SliceFixer's rehearsal failed after {:.2} s: {why}; each scan tries anew, and goes on without where that fails",
                measured.repair.as_secs_f64()
            );
        }
        repairs.found((came_to.done > 0).then_some(measured.repair), optimised);
        RepairCost { augment: repairs.augment, repair: measured.repair, similarity: measured.similarity }
    });
    let began = Instant::now();
    let volume = Outgoing { compute, values: optimiser.values(), scale: 0.0 };
    last.lock().unwrap_or_else(PoisonError::into_inner).keep(None, volume)?;
    let copy = began.elapsed();
    let cost = Cost {
        load: load + told,
        before: load + told + measured.before(&plan),
        iteration: measured.iteration,
        // Into a slot with its CRC, and kept.
        volume: measured.voxelise + copy * 3,
        repairs,
    };
    let frame_time = Duration::from_nanos(settings.publish.frame_time_ns());
    let pace = FramePace { views: plan.views(), frame_time };
    let schedule = Schedule::new(&cost, optimised.budget, optimised.early, optimised.publish, pace);
    match (schedule, optimised.budget) {
        (None, RunBudget::DeadlineS(deadline_s)) => {
            let repairs = cost.repairs.map_or(0, |repairs| repairs.augment.repairs);
            Err(DaemonError::Deadline { deadline_s, least_s: cost.least().as_secs_f64(), repairs })
        }
        (schedule, _) => Ok((cost, schedule.unwrap_or_default())),
    }
}

/// What a rehearsal finds, for people: times of this machine, by which the daemon fixes its iterations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rehearsed {
    /// Iterations of a run that begins after the last frame.
    pub iterations: usize,
    /// Of a run that goes on from an early start, the early ones included; 0: there is none.
    pub iterations_with_early: usize,
    /// How many of these come early.
    pub early_iterations: usize,
    /// From the last frame to the first iteration, s.
    pub before_s: f64,
    /// An iteration, s.
    pub iteration_s: f64,
    /// A volume on its way, s.
    pub volume_s: f64,
    /// A whole run, s.
    pub run_s: f64,
    /// Repairs of a run.
    pub repairs: usize,
    /// A repair, s.
    pub repair_s: f64,
    /// What an iteration takes longer that is held to the repaired volume, s.
    pub similarity_s: f64,
    /// Share of the run's time in the repairs and in what follows from them, 0 to 1.
    pub repair_share: f64,
    /// The model, and who runs it; `null`: none.
    pub slice_fixer: Option<SliceFixerTelemetry>,
}

/// Rehearses what `plan` says, as the daemon does before ready, without a daemon; `None`: nothing is optimised.
///
/// # Errors
/// As the daemon's start, as far as the optimisation is concerned.
pub fn rehearse_plan(settings: &Settings, device: &Device, plan: &Plan) -> Result<Option<Rehearsed>, DaemonError> {
    let (Some(recipe), Some(optimised)) = (&plan.recipe, &settings.optimised) else { return Ok(None) };
    let taken = |compute: &mut dyn Operations| -> Result<_, DaemonError> {
        super::take_optimisation(compute, recipe, plan.repairs.as_ref())
    };
    let (compute, (mut optimiser, slices)) = device.ready(taken)?;
    let compute = &*compute;
    let repairs = plan.repairs.as_ref().zip(slices);
    let mut repairs = repairs.map(|(plan, slices)| ScanRepairs::load(plan, settings, compute, slices)).transpose()?;
    if let Some(repairs) = &repairs {
        optimiser.repair_with(repairs.repairer(None));
    }
    let last = Mutex::new(LastVolume::new(settings.grid.len()));
    let (cost, schedule) = compute.install(|| {
        let parts = Rehearsal { compute, optimiser: &mut optimiser, repairs: repairs.as_mut(), last: &last };
        rehearse(parts, settings, optimised)
    })?;
    let seconds = |duration: Duration| duration.as_secs_f64();
    let (iterations, run_s) = (schedule.iterations, seconds(cost.run(schedule.iterations)));
    let found = cost.repairs;
    Ok(Some(Rehearsed {
        iterations,
        iterations_with_early: schedule.iterations_with_early,
        early_iterations: schedule.early.map_or(0, |early| early.iterations),
        before_s: seconds(cost.before),
        iteration_s: seconds(cost.iteration),
        volume_s: seconds(cost.volume),
        run_s,
        repairs: found.map_or(0, |found| found.augment.planned(0, iterations)),
        repair_s: found.map_or(0.0, |found| seconds(found.repair)),
        similarity_s: found.map_or(0.0, |found| seconds(found.similarity)),
        repair_share: found.map_or(0.0, |found| seconds(found.of(0, iterations)) / run_s),
        slice_fixer: repairs.zip(found).map(|(repairs, found)| repairs.telemetry(found.repair)),
    }))
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
        let cost = Cost { load: ms(10), before: ms(3000), iteration: ms(300), volume: ms(100), repairs: None };
        let within = |deadline, every| cost.iterations_within(deadline, every, cost.before, 0);
        // 0.9 x 20 s, less the start, 20 fits and the last volume: 14.9 s.
        assert_eq!(within(ms(20_000), PublishEvery::Iterations(0)), 49);
        // Every second iteration a volume: 350 ms each.
        assert_eq!(within(ms(20_000), PublishEvery::Iterations(2)), 42);
        // One a second: 300 ms + a tenth.
        assert_eq!(within(ms(20_000), PublishEvery::Ms(1_000)), 45);
        assert_eq!(within(ms(3_000), PublishEvery::Iterations(0)), 0);
        assert_eq!(within(cost.least() + ms(1), PublishEvery::Iterations(0)), 1);
    }

    #[test]
    fn repairs_and_what_follows_them_come_out_of_the_deadline() {
        let ms = Duration::from_millis;
        let augment = AugmentSettings { first: 0.5, repairs: 2, ..AugmentSettings::default() };
        let repairs = Some(RepairCost { augment, repair: ms(2000), similarity: ms(100) });
        let cost = Cost { load: ms(10), before: ms(3000), iteration: ms(300), volume: ms(100), repairs };
        let within = |seconds, before, early| {
            cost.iterations_within(Duration::from_secs(seconds), PublishEvery::Iterations(0), before, early)
        };
        // 14.9 s, less two repairs: 10.9 s of iterations that take 300 ms, and 100 ms more in half of them.
        assert_eq!(within(20, cost.before, 0), 31);
        assert!(cost.run(31) <= ms(18_000) && cost.run(32) > ms(18_000));
        // After 10 early ones both repairs and their half are still to come: 18 - 0.11 - 4 s for 300 ms each and 50 ms of all.
        assert_eq!(within(20, cost.load, 10), 38);
        // A deadline without time for the repairs is none, and the least one has it.
        assert_eq!(within(8, cost.before, 0), 0);
        let least = cost.least();
        // Four iterations are the fewest of which the latter half has room for two repairs.
        assert_eq!(least, (ms(3000 + 4 * 300 + 2 * 2000 + 200 + 100)).div_f64(0.9));
        assert_eq!(cost.iterations_within(least + ms(1), PublishEvery::Iterations(0), cost.before, 0), 4);
    }
}
