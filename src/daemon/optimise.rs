//! The optimise thread: from a scan's views to better and better volumes, until the last iteration, the next scan, or a stop.
//!
//! It has a carrier of its own, whose threads are nice, so that frames that come meanwhile find the processor: the gantry never waits.
//! Between any two operations of an iteration it looks whether it is still wanted.
//!
//! An early start ([`EarlyStart`]) is a run of its own, which publishes nothing: the scan's run goes on from it if it came to its end, and
//! begins anew if it did not, so that there are two possible volumes of a scan and not as many as there are moments for a last frame.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::error::PublishError;
use firmware_bridge::layout::{METHOD_FIELD, METHOD_GAUSSIANS, VOLUME_DEGRADED, VolumeHeader};

use super::early::EarlyWatch;
use super::handover::{Ended, Handover, Job, LastVolume, Portion};
use super::repairs::ScanRepairs;
use crate::compute::{ComputeError, Operations, Values};
use crate::config::PublishEvery;
use crate::geometry::ScanGeometry;
use crate::publish::{Outgoing, Publisher};
use crate::reconstruct::optimise::{Budget, EarlyStart, Method, OptimiseError, Optimiser, Outcome, Recipe};
use crate::reconstruct::{Observer, Progress, StopReason};
use crate::supervise::{Event, OptimisationEnd, OptimiseProgress, RunRepairs, Stage, Supervision};

/// How long the thread sleeps at most when there is nothing to do.
const NAP: Duration = Duration::from_millis(20);

/// How long it waits for a slot for its last volume before it looks again.
const SLOT_NAP: Duration = Duration::from_millis(5);

/// What the thread is given.
pub(super) struct OptimiseParts {
    pub(super) recipe: Recipe,
    pub(super) geometry: ScanGeometry,
    pub(super) publisher: Publisher,
    pub(super) handover: Arc<Handover>,
    pub(super) last: Arc<Mutex<LastVolume>>,
    pub(super) supervision: Arc<Supervision>,
    pub(super) publish: PublishEvery,
    pub(super) deadline_ns: Option<u64>,
}

/// How many iterations there are, fixed before ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Schedule {
    /// Of a run that begins after the last frame.
    pub(super) iterations: usize,
    /// What is done before it, where something is.
    pub(super) early: Option<EarlyStart>,
    /// Of a run that goes on from there, the early ones included.
    pub(super) iterations_with_early: usize,
}

/// The thread's state; every buffer in it is in the plan.
pub(super) struct Optimisation<'p> {
    pub(super) compute: &'p dyn Operations,
    pub(super) optimiser: Optimiser,
    pub(super) parts: OptimiseParts,
    pub(super) schedule: Schedule,
    /// What repairs the volume on its way.
    pub(super) repairs: Option<ScanRepairs>,
    /// The early start that came to its end last, where nothing came after it: number of its job, and seconds.
    early_done: Option<(u64, f64)>,
    /// What publishing the last volume takes: a run must end that long before its deadline.
    pub(super) reserve_ns: u64,
}

impl<'p> Optimisation<'p> {
    /// Gives the run what repairs its volumes.
    pub(super) fn new(
        parts: OptimiseParts,
        repairs: Option<ScanRepairs>,
        compute: &'p dyn Operations,
        mut optimiser: Optimiser,
    ) -> Self {
        if let Some(repairs) = &repairs {
            let teller = Some((Arc::clone(&parts.supervision), Arc::clone(&parts.handover)));
            optimiser.repair_with(repairs.repairer(teller));
        }
        let schedule = Schedule::default();
        Self { compute, optimiser, parts, schedule, repairs, early_done: None, reserve_ns: 0 }
    }

    /// Works off jobs until a stop.
    pub(super) fn run(&mut self) {
        let (handover, supervision) = (Arc::clone(&self.parts.handover), Arc::clone(&self.parts.supervision));
        let mut done = 0;
        while !supervision.stop.load(Ordering::Acquire) {
            supervision.beat(Stage::Optimise);
            let wanted = handover.wanted();
            if wanted == 0 || wanted == done {
                std::thread::park_timeout(NAP);
                continue;
            }
            self.work(wanted);
            done = wanted;
        }
    }

    /// One run, from load to last volume.
    fn work(&mut self, number: u64) {
        let began_ns = monotonic_ns();
        let early_done = self.early_done.take();
        let reserve_ns = self.reserve_ns;
        let parts = &mut self.parts;
        let job = parts.handover.job();
        if job.number != number {
            return;
        }
        let Portion::Whole { after } = job.portion else {
            self.early_done = start_early(&mut self.optimiser, self.compute, parts, self.schedule, job);
            return;
        };
        let early_done = early_done.filter(|(early, _)| *early == after);
        let early = self.schedule.early.filter(|_| early_done.is_some());
        if after != 0 {
            parts.tell_early_start(self.schedule, job.header.scan_id, early_done.map(|(_, seconds)| seconds));
        }
        let (before, iterations) = match early {
            Some(early) => (early.iterations, self.schedule.iterations_with_early),
            None => (0, self.schedule.iterations),
        };
        let header = VolumeHeader {
            method: method_number(parts.recipe.method()),
            iterations_planned: iterations as u32,
            early_iterations: before as u32,
            early_views: early.map_or(0, |early| early.views as u32),
            ..job.header
        };
        let deadline_ns = parts.deadline_ns.map(|ns| (header.last_frame_ns + ns).saturating_sub(reserve_ns));
        if let Some(repairs) = &mut self.repairs {
            let until = deadline_ns
                .and_then(|ns| Instant::now().checked_add(Duration::from_nanos(ns.saturating_sub(monotonic_ns()))));
            repairs.begin(&job.scan.views(), &parts.geometry, until);
            begin_repairs(&parts.supervision, repairs.augment.planned(before, iterations));
        }
        let mut watch = Watch {
            compute: self.compute,
            number,
            repairs: self.repairs.as_ref(),
            header,
            began_ns,
            deadline_ns,
            iterations,
            every: parts.publish,
            publisher: &mut parts.publisher,
            handover: &parts.handover,
            last: &parts.last,
            supervision: &parts.supervision,
            missed: Cell::new(false),
            iteration_began_ns: began_ns,
            volume_ns: began_ns,
            published_iteration: 0,
            residual: 0.0,
        };
        watch.begin();
        // The views are copied; the job is held for no longer than that.
        let loaded = self.optimiser.load_views(self.compute, &job.scan.views()).map_err(OptimiseError::from);
        drop(job);
        let outcome = loaded
            .and_then(|()| if early.is_some() { Ok(()) } else { self.optimiser.begin(self.compute, None, &watch) })
            .and_then(|()| {
                self.optimiser.go_on(self.compute, before, Budget::Iterations(iterations - before), &mut watch)
            });
        let elements = self.optimiser.representation().elements();
        watch.end(outcome.ok(), self.optimiser.values(), elements);
    }
}

/// An early start, as far as its scan's last frame lets it; number of its job and seconds, if it came to its end.
fn start_early(
    optimiser: &mut Optimiser,
    compute: &dyn Operations,
    parts: &OptimiseParts,
    schedule: Schedule,
    job: MutexGuard<'_, Job>,
) -> Option<(u64, f64)> {
    let began_ns = monotonic_ns();
    let iterations = schedule.early?.iterations;
    let (handover, supervision) = (&*parts.handover, &*parts.supervision);
    let mut watch = EarlyWatch { number: job.number, began_ns, handover, supervision };
    begin_progress(supervision, job.header.scan_id, schedule.iterations_with_early);
    let loaded = optimiser.load_views(compute, &job.scan.views()).map_err(OptimiseError::from);
    drop(job);
    let outcome = loaded
        .and_then(|()| optimiser.begin(compute, None, &watch))
        .and_then(|()| optimiser.start_early(compute, iterations, &mut watch));
    if let Some(optimise) = supervision.optimise().as_mut() {
        optimise.progress.running = false;
    }
    let is_done = outcome.is_ok_and(|outcome| outcome.of_iteration == iterations);
    is_done.then(|| (watch.number, monotonic_ns().saturating_sub(began_ns) as f64 / 1e9))
}

/// A run of a scan begins: what was told of the one before is over.
fn begin_progress(supervision: &Supervision, scan_id: u64, iterations: usize) {
    if let Some(optimise) = supervision.optimise().as_mut() {
        let progress = &mut optimise.progress;
        (progress.running, progress.scan_id, progress.iterations_planned) = (true, scan_id, iterations as u32);
        (progress.iteration, progress.residual, progress.seconds) = (0, None, 0.0);
    }
}

/// The same of its repairs.
fn begin_repairs(supervision: &Supervision, planned: usize) {
    if let Some(telemetry) = supervision.slice_fixer().as_mut() {
        telemetry.run = RunRepairs { planned: planned as u32, ..RunRepairs::default() };
    }
}

impl OptimiseParts {
    /// Tells and counts what became of an early start, now that its scan has ended; `seconds` where it came to its end.
    fn tell_early_start(&self, schedule: Schedule, scan_id: u64, seconds: Option<f64>) {
        let Some(early) = schedule.early else { return };
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            let counters = &mut optimise.counters;
            match seconds {
                Some(_) => counters.early_starts += 1,
                None => counters.early_starts_given_up += 1,
            }
        }
        let (iterations, views) = (early.iterations as u32, early.views as u32);
        self.supervision.tell(Event::EarlyStartEnded { scan_id, iterations, views, seconds });
    }
}

/// The number that headers and status have for a method.
pub(super) fn method_number(method: &Method) -> u32 {
    match method {
        Method::Gaussians(_) => METHOD_GAUSSIANS,
        Method::Field(_) => METHOD_FIELD,
    }
}

/// Watches a run: publishes, tells, and says when it is over.
struct Watch<'a> {
    compute: &'a dyn Operations,
    number: u64,
    repairs: Option<&'a ScanRepairs>,
    header: VolumeHeader,
    began_ns: u64,
    deadline_ns: Option<u64>,
    iterations: usize,
    every: PublishEvery,
    publisher: &'a mut Publisher,
    handover: &'a Handover,
    last: &'a Mutex<LastVolume>,
    supervision: &'a Supervision,
    /// The time was over before the iterations.
    missed: Cell<bool>,
    iteration_began_ns: u64,
    /// When the last volume was published.
    volume_ns: u64,
    published_iteration: usize,
    /// Of the last iteration that had one.
    residual: f64,
}

impl Watch<'_> {
    fn is_wanted(&self) -> bool {
        self.handover.wanted() == self.number && !self.supervision.stop.load(Ordering::Acquire)
    }

    fn tell(&self, change: impl FnOnce(&mut OptimiseProgress)) {
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.progress.seconds = monotonic_ns().saturating_sub(self.began_ns) as f64 / 1e9;
            change(&mut optimise.progress);
        }
    }

    /// What the run's repairs have come to.
    fn run_repairs(&self) -> RunRepairs {
        self.supervision.slice_fixer().as_ref().map_or(RunRepairs::default(), |telemetry| telemetry.run)
    }

    fn begin(&self) {
        begin_progress(self.supervision, self.header.scan_id, self.iterations);
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.counters.runs += 1;
        }
    }

    /// Publishes a volume, if the run is still wanted and a slot is free.
    fn publish(&mut self, values: Values<'_>, iteration: usize, residual: f64, status: u32) -> Published {
        let began_ns = monotonic_ns();
        let volume = Outgoing { compute: self.compute, values, scale: 1.0 };
        let mut header = VolumeHeader {
            iteration: iteration as u32,
            residual: residual as f32,
            method_ns: began_ns.saturating_sub(self.began_ns),
            status: self.header.status | status,
            // Where a run ended of its own rules, it has come to its end all the same.
            iterations_planned: self.iterations as u32,
            ..self.header
        };
        if let Some(repairs) = self.repairs {
            repairs.stamp(self.run_repairs(), &mut header);
        }
        let (handover, number) = (self.handover, self.number);
        let outcome = self.publisher.if_wanted(&header, volume, || {
            let wanted = handover.wanted() == number;
            if wanted {
                handover.set_published(true);
            }
            wanted
        });
        let receipt = match outcome {
            Ok(Some(Ok(receipt))) => receipt,
            Ok(None) => return Published::NotWanted,
            Err(error) => return self.not_given(&error),
            Ok(Some(Err(error))) => {
                handover.set_published(self.published_iteration > 0);
                debug_assert!(matches!(error, PublishError::AllSlotsLeased), "{error}");
                if let Some(optimise) = self.supervision.optimise().as_mut() {
                    optimise.counters.slots_leased += 1;
                }
                return Published::NoSlot;
            }
        };
        if self.is_wanted()
            && let Err(error) = self.last.lock().unwrap_or_else(PoisonError::into_inner).keep(Some(header), volume)
        {
            return self.not_given(&error);
        }
        self.published_iteration = iteration;
        let now_ns = monotonic_ns();
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            let counters = &mut optimise.counters;
            let (is_degraded, is_last) = (status & VOLUME_DEGRADED != 0, iteration >= self.iterations);
            counters.degraded += u64::from(is_degraded);
            counters.last += u64::from(is_last);
            counters.intermediate += u64::from(!is_degraded && !is_last);
            counters.publish_ns += now_ns - began_ns;
            let interval_ns = now_ns - std::mem::replace(&mut self.volume_ns, now_ns);
            counters.max_volume_interval_ns = counters.max_volume_interval_ns.max(interval_ns);
        }
        self.supervision.tell(Event::Published {
            generation: receipt.generation,
            status: receipt.status,
            frames: receipt.frames,
            missing: receipt.missing,
            latency_ns: receipt.latency_ns,
            iteration: receipt.iteration,
        });
        Published::Yes
    }

    /// A device that does not give a volume fails the next operation as well: the run, or the next one, is refused by that.
    fn not_given(&self, error: &ComputeError) -> Published {
        tracing::error!("a volume was not published: {error}");
        self.handover.set_published(self.published_iteration > 0);
        Published::NotWanted
    }

    /// As [`Watch::publish`], waiting for a slot for as long as the run is wanted.
    fn publish_at_last(&mut self, values: Values<'_>, iteration: usize, residual: f64, status: u32) {
        while let Published::NoSlot = self.publish(values, iteration, residual, status) {
            self.supervision.beat(Stage::Optimise);
            if !self.is_wanted() {
                break;
            }
            std::thread::park_timeout(SLOT_NAP);
        }
    }

    /// Publishes what the run came to, and counts how it ended.
    fn end(&mut self, outcome: Option<Outcome>, values: Values<'_>, elements: usize) {
        let end = match outcome.map(|outcome| outcome.stopped) {
            _ if !self.is_wanted() => OptimisationEnd::Superseded,
            None => OptimisationEnd::Refused,
            Some(StopReason::Diverged) => OptimisationEnd::Diverged,
            Some(StopReason::Interrupted) if self.missed.get() => OptimisationEnd::DeadlineMissed,
            Some(StopReason::Interrupted) => OptimisationEnd::Superseded,
            Some(_) => OptimisationEnd::Done,
        };
        let residual = self.residual;
        let iterations = outcome.map_or(0, |outcome| outcome.iterations);
        let of_iteration = outcome.map_or(0, |outcome| outcome.of_iteration);
        match end {
            OptimisationEnd::Done => {
                // A run that its own rules ended before is as done as any.
                self.iterations = of_iteration;
                // With a repair left out it is less than was planned.
                let status = if self.run_repairs().failed > 0 { VOLUME_DEGRADED } else { 0 };
                self.publish_at_last(values, of_iteration, residual, status);
            }
            OptimisationEnd::Diverged | OptimisationEnd::DeadlineMissed if of_iteration > 0 => {
                self.publish_at_last(values, of_iteration, residual, VOLUME_DEGRADED);
            }
            _ => {}
        }
        let done = end == OptimisationEnd::Done;
        self.tell(|progress| {
            progress.running = false;
            progress.iteration = iterations as u32;
            progress.elements = elements as u64;
            if done {
                progress.iterations_planned = iterations as u32;
            }
        });
        let ended = match end {
            OptimisationEnd::Done => Ended::Done { repaired: self.run_repairs().failed == 0 },
            _ => Ended::Frozen { number: self.number, has_volume: of_iteration > 0 },
        };
        // Which of the two sides comes first decides what the run counts as.
        let end = if end != OptimisationEnd::Superseded && self.handover.end(self.number, ended) {
            end
        } else {
            OptimisationEnd::Superseded
        };
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            let counters = &mut optimise.counters;
            match end {
                OptimisationEnd::Done => counters.done += 1,
                // Counted by whoever ended it; a stop is not counted.
                OptimisationEnd::Superseded => {}
                OptimisationEnd::Diverged => counters.diverged += 1,
                OptimisationEnd::DeadlineMissed => counters.deadlines_missed += 1,
                OptimisationEnd::Refused => counters.refused += 1,
            }
        }
        self.supervision.tell(Event::OptimisationEnded {
            scan_id: self.header.scan_id,
            end,
            iterations: iterations as u32,
            planned: self.iterations as u32,
            residual: self.residual,
            seconds: monotonic_ns().saturating_sub(self.began_ns) as f64 / 1e9,
        });
    }
}

/// What became of a publication.
enum Published {
    Yes,
    NoSlot,
    NotWanted,
}

impl Observer for Watch<'_> {
    fn wants_volume(&mut self, iteration: usize) -> bool {
        let is_due = match self.every {
            PublishEvery::Iterations(0) => false,
            PublishEvery::Iterations(every) => iteration.is_multiple_of(every),
            PublishEvery::Ms(ms) => monotonic_ns().saturating_sub(self.volume_ns) >= ms * 1_000_000,
        };
        // The last one is published when the run is over.
        is_due && iteration < self.iterations
    }

    fn wants_on_host(&self) -> bool {
        false
    }

    fn observe(&mut self, progress: &Progress<'_>) {
        let now_ns = monotonic_ns();
        let iteration_ns = now_ns.saturating_sub(std::mem::replace(&mut self.iteration_began_ns, now_ns));
        self.residual = progress.residual;
        self.tell(|told| {
            (told.iteration, told.residual) = (progress.iteration as u32, Some(progress.residual));
        });
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.counters.iterations += 1;
            // The first of a run counts from its beginning, the start included.
            if progress.iteration > 1 {
                optimise.counters.max_iteration_ns = optimise.counters.max_iteration_ns.max(iteration_ns);
            }
        }
        if let Some(values) = progress.volume {
            // One that finds no slot is left out: the next is on its way.
            self.publish(values, progress.iteration, progress.residual, 0);
        }
    }

    fn interrupts(&self) -> bool {
        self.supervision.beat(Stage::Optimise);
        if self.deadline_ns.is_some_and(|deadline_ns| monotonic_ns() > deadline_ns) {
            self.missed.set(true);
            return true;
        }
        !self.is_wanted()
    }
}
