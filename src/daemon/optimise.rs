//! The optimise thread: from a scan's views to better and better volumes, until the last iteration, the next scan, or a stop.
//!
//! It has a carrier of its own, whose threads are nice, so that frames that come meanwhile find the processor: the gantry never waits.
//! Between any two operations of an iteration it looks whether it is still wanted.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::error::PublishError;
use firmware_bridge::layout::{METHOD_FIELD, METHOD_GAUSSIANS, VOLUME_DEGRADED, VolumeHeader};

use super::handover::{Ended, Handover, LastVolume};
use crate::compute::cpu::CpuCompute;
use crate::config::PublishEvery;
use crate::publish::Publisher;
use crate::reconstruct::optimise::{Budget, Method, OptimiseError, Optimiser, Outcome, Recipe};
use crate::reconstruct::{Observer, Progress, StopReason};
use crate::supervise::{Event, OptimisationEnd, OptimiseProgress, Stage, Supervision};

/// How long the thread sleeps at most when there is nothing to do.
const NAP: Duration = Duration::from_millis(20);

/// How long it waits for a slot for its last volume before it looks again.
const SLOT_NAP: Duration = Duration::from_millis(5);

/// What the thread is given.
pub(super) struct OptimiseParts {
    pub(super) recipe: Recipe,
    pub(super) publisher: Publisher,
    pub(super) handover: Arc<Handover>,
    pub(super) last: Arc<Mutex<LastVolume>>,
    pub(super) supervision: Arc<Supervision>,
    pub(super) publish: PublishEvery,
    pub(super) deadline_ns: Option<u64>,
}

/// The thread's state; every buffer in it is in the plan.
pub(super) struct Optimisation<'p> {
    pub(super) compute: &'p CpuCompute,
    pub(super) optimiser: Optimiser,
    pub(super) parts: OptimiseParts,
    /// Iterations of a run.
    pub(super) iterations: usize,
    /// What publishing the last volume takes: a run must end that long before its deadline.
    pub(super) reserve_ns: u64,
}

impl<'p> Optimisation<'p> {
    /// Allocates everything.
    pub(super) fn new(parts: OptimiseParts, compute: &'p CpuCompute) -> Result<Self, OptimiseError> {
        let optimiser = parts.recipe.optimiser()?;
        Ok(Self { compute, optimiser, parts, iterations: 0, reserve_ns: 0 })
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
        let (iterations, reserve_ns) = (self.iterations, self.reserve_ns);
        let parts = &mut self.parts;
        let job = parts.handover.job();
        if job.number != number {
            return;
        }
        let header = VolumeHeader {
            method: method_number(parts.recipe.method()),
            iterations_planned: iterations as u32,
            ..job.header
        };
        let deadline_ns = parts.deadline_ns.map(|ns| (header.last_frame_ns + ns).saturating_sub(reserve_ns));
        let mut watch = Watch {
            number,
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
        let loaded = self.optimiser.load_views(&job.scan.views()).map_err(OptimiseError::from);
        drop(job);
        let outcome = loaded
            .and_then(|()| self.optimiser.begin(self.compute, None, &watch))
            .and_then(|()| self.optimiser.run(self.compute, Budget::Iterations(iterations), &mut watch));
        watch.end(outcome.ok(), self.optimiser.volume(), self.optimiser.representation().elements());
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
    number: u64,
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

    fn begin(&self) {
        let (scan_id, planned) = (self.header.scan_id, self.iterations as u32);
        self.tell(|progress| {
            let OptimiseProgress { method, iteration_s, elements, .. } = *progress;
            *progress = OptimiseProgress {
                running: true,
                scan_id,
                iterations_planned: planned,
                method,
                iteration_s,
                elements,
                iteration: 0,
                residual: None,
                seconds: 0.0,
            };
        });
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.counters.runs += 1;
        }
    }

    /// Publishes a volume, if the run is still wanted and a slot is free.
    fn publish(&mut self, values: &[f32], iteration: usize, residual: f64, status: u32) -> Published {
        let began_ns = monotonic_ns();
        let header = VolumeHeader {
            iteration: iteration as u32,
            residual: residual as f32,
            method_ns: began_ns.saturating_sub(self.began_ns),
            status: self.header.status | status,
            // Where a run ended of its own rules, it has come to its end all the same.
            iterations_planned: self.iterations as u32,
            ..self.header
        };
        let (handover, number) = (self.handover, self.number);
        let outcome = self.publisher.if_wanted(&header, values, || {
            let wanted = handover.wanted() == number;
            if wanted {
                handover.set_published(true);
            }
            wanted
        });
        let receipt = match outcome {
            Ok(Some(receipt)) => receipt,
            Ok(None) => return Published::NotWanted,
            Err(error) => {
                handover.set_published(self.published_iteration > 0);
                debug_assert!(matches!(error, PublishError::AllSlotsLeased), "{error}");
                if let Some(optimise) = self.supervision.optimise().as_mut() {
                    optimise.counters.slots_leased += 1;
                }
                return Published::NoSlot;
            }
        };
        if self.is_wanted() {
            self.last.lock().unwrap_or_else(PoisonError::into_inner).keep(Some(header), values, 1.0);
        }
        self.published_iteration = iteration;
        let now_ns = monotonic_ns();
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            let counters = &mut optimise.counters;
            match (status & VOLUME_DEGRADED != 0, iteration >= self.iterations) {
                (true, _) => counters.degraded += 1,
                (false, true) => counters.last += 1,
                (false, false) => counters.intermediate += 1,
            }
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

    /// As [`Watch::publish`], waiting for a slot for as long as the run is wanted.
    fn publish_at_last(&mut self, values: &[f32], iteration: usize, residual: f64, status: u32) {
        while let Published::NoSlot = self.publish(values, iteration, residual, status) {
            self.supervision.beat(Stage::Optimise);
            if !self.is_wanted() {
                break;
            }
            std::thread::park_timeout(SLOT_NAP);
        }
    }

    /// Publishes what the run came to, and counts how it ended.
    fn end(&mut self, outcome: Option<Outcome>, values: &[f32], elements: usize) {
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
                self.publish_at_last(values, of_iteration, residual, 0);
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
            OptimisationEnd::Done => Ended::Done,
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
