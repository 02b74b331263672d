//! The daemon: its threads and what they share.
//!
//! ```text
//! ring ─▶ ingest thread ─▶ staging ─▶ reconstruct thread (of the carrier's pool) ─▶ volume slots
//!              │                           │  │                                      ▲
//!              │                           │  └─ a scan's views ─▶ optimise thread ──┘
//!              │                           │                       (of a nice pool, only where something is optimised)
//!              └── counters, events ───────┴──▶ supervising thread ─▶ log, status block, status file
//! ```
//!
//! [`Daemon::start`] allocates everything that the [`Plan`] lists, sends one blank view through all stages and only then reports ready.
//! From there on the frame path (ingest, reconstruct, the carrier's threads) and the optimisation allocate nothing.

#![forbid(unsafe_code)]

mod early;
mod handover;
mod optimise;
mod pipeline;
mod rehearsal;
mod repairs;
mod scan;

pub use handover::{Handover, LastVolume, ScanStore};
pub use rehearsal::{Rehearsed, rehearse_plan};
pub use scan::{ScanState, ScanSummary};

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{DaemonState, METHOD_FDK, STATUS_MISSING_RANGES, SequenceRange};
use firmware_bridge::mapping::{self, Mapping, MappingError};
use firmware_bridge::ring::FrameConsumer;
use firmware_bridge::slots::{Status, StatusDetail};

use crate::compute::device::Device;
use crate::compute::{Buffer, ComputeError, Operations};
use crate::config::{Calibration, OptimisedSettings, PreprocessSettings, RunBudget, Settings};
use crate::error::{Classed, ErrorClass};
use crate::formats::FormatError;
use crate::ingest::{Ingest, Staging};
use crate::plan::{Plan, PlanError, RepairPlan};
use crate::preprocess::{CalibrationOnCarrier, CountsError, PreprocessError};
use crate::publish::{Carrier, Publisher, SharedWriter};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::fdk::{FdkAccumulator, FdkPlan};
use crate::reconstruct::optimise::{OptimiseError, Optimiser, Recipe};
use crate::repair::{RepairError, SliceBuffers};
use crate::supervise::{
    Event, OptimiseCounters, OptimiseProgress, OptimiseTelemetry, Rung, StatusReport, Supervision, is_alive,
};
use optimise::{Optimisation, OptimiseParts, Schedule, method_number};
use pipeline::{Parts, Pipeline};
use rehearsal::{Cost, Rehearsal};
use repairs::ScanRepairs;

/// How nice the threads of the optimisation are: against one of theirs a thread of the frame path has nine tenths of a core.
const NICE: i32 = 10;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No plan, or one above the limit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Shared memory is not to be had.
    #[error("shared memory: {0}")]
    Mapping(#[from] MappingError),
    /// The carrier cannot work.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A calibration file is missing or damaged.
    #[error("calibration file: {0}")]
    Calibration(#[from] FormatError),
    /// A calibration file is of no use.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// Reconstruction cannot start or go on.
    #[error(transparent)]
    Reconstruct(#[from] ReconstructError),
    /// The optimisation cannot start.
    #[error("optimisation: {0}")]
    Optimise(#[from] OptimiseError),
    /// The model that is to repair volumes cannot be had.
    #[error("slice_fixer: {0}")]
    Repair(#[from] RepairError),
    /// No iteration fits.
    #[error(
        "reconstruct.deadline_s = {deadline_s}: on this machine a run of {} takes {least_s:.2} s; raise it, lower volume.voxels or reconstruct.gaussians{}, or give reconstruct.iterations",
        if *repairs == 0 { "one iteration".to_string() } else { format!("few iterations with {repairs} repairs") },
        if *repairs == 0 { "" } else { " or slice_fixer.repairs" },
    )]
    Deadline {
        /// What was asked for.
        deadline_s: f64,
        /// The least that would do.
        least_s: f64,
        /// Repairs in it.
        repairs: usize,
    },
    /// A thread could not be started, or died.
    #[error("thread {name}: {reason}")]
    Thread {
        /// Which.
        name: &'static str,
        /// Why.
        reason: String,
    },
}

impl From<CountsError> for DaemonError {
    fn from(error: CountsError) -> Self {
        match error {
            CountsError::Refused(why) => why.into(),
            CountsError::Compute(why) => why.into(),
        }
    }
}

impl Classed for DaemonError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    supervision: Arc<Supervision>,
    writer: SharedWriter,
    ingest: Option<JoinHandle<FrameConsumer<Mapping>>>,
    reconstruct: Option<JoinHandle<Result<(), DaemonError>>>,
    optimise: Option<JoinHandle<Result<(), DaemonError>>>,
    handover: Option<Arc<Handover>>,
    /// Number of the method, for the status.
    method: u32,
    on_device: bool,
    reattached: [bool; 2],
    stall_ns: u64,
    stalls: AtomicU64,
    banner: String,
}

/// The device that the settings ask for; with `auto` also a line that says what was taken.
///
/// # Errors
/// [`DaemonError::Compute`] where a GPU was asked for and is not there.
pub fn device(settings: &Settings) -> Result<(Device, Option<String>), DaemonError> {
    Ok(crate::self_test::choose(settings.compute.device, settings.compute.threads, settings.compute.self_test)?)
}

/// What the frame path takes of the device.
pub(crate) struct FramePath {
    accumulator: FdkAccumulator,
    calibration: CalibrationOnCarrier,
    /// Line integrals of a view.
    view: Buffer,
    /// Where the device's memory is not the host's, a volume to scale previews into.
    scaled: Buffer,
}

impl FramePath {
    /// Takes it.
    pub(crate) fn take(
        compute: &mut dyn Operations,
        fdk: &Arc<FdkPlan>,
        settings: &PreprocessSettings,
    ) -> Result<Self, ReconstructError> {
        compute.prepare(&fdk.workload())?;
        Ok(Self {
            calibration: CalibrationOnCarrier::take(compute, settings, fdk.detector())?,
            view: compute.buffer("line integrals of one view", fdk.detector().pixels())?,
            scaled: compute.buffer("scaled volume", compute.copy_len(fdk.grid().len()))?,
            accumulator: FdkAccumulator::new(compute, Arc::clone(fdk))?,
        })
    }
}

fn calibration_file(source: &Calibration, shape: [usize; 2]) -> Result<Option<Vec<f32>>, DaemonError> {
    fn read(file: &Path, shape: [usize; 2]) -> Result<Vec<f32>, FormatError> {
        let mut values = vec![0.0; shape[0] * shape[1]];
        crate::formats::npy::read_f32_into(file, &shape, &mut values)?;
        Ok(values)
    }
    match source {
        Calibration::File(file) => Ok(Some(read(file, shape)?)),
        _ => Ok(None),
    }
}

impl Daemon {
    /// Allocates, starts the threads, warms up; returns when ready.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn start(settings: &Settings, device: &Device, plan: Plan) -> Result<Self, DaemonError> {
        plan.check_limit()?;
        let detector = settings.geometry.detector;
        let shape = [detector.rows, detector.columns];
        let files =
            [calibration_file(&settings.preprocess.dark, shape)?, calibration_file(&settings.preprocess.flat, shape)?];
        let served = mapping::serve(&settings.shared_memory.name, plan.ring, plan.slots, 0o660)?;
        let reattached = [served.frames_reattached, served.volumes_reattached];
        let mut writer = SharedWriter::new(served.writer);
        let starting = Status {
            state: Some(DaemonState::Starting),
            daemon_pid: std::process::id().into(),
            heartbeat_ns: monotonic_ns(),
            ..Status::default()
        };
        writer.lock().set_status(&starting);

        let supervision = Arc::new(Supervision::new());
        let staging = Arc::new(Staging::new(settings.supervise.staging_frames, detector));
        let fdk = Arc::new(plan.fdk);
        let (compute, path) = device.ready(|compute| FramePath::take(compute, &fdk, &settings.preprocess))?;
        if let Err(error) = writer.register(device) {
            tracing::warn!("volumes go through the host, and take some ten times as long to be published: {error}");
        }
        let carrier =
            Carrier { device: device.name().into(), provider: compute.provider(), precision: "float32".into() };
        let total = crate::config::format_bytes(Plan::host_bytes_of(&plan.buffers));
        let mut banner = format!(
            "diffnr {} ready: {}; {} in {} buffers; {} views of {} x {} into {:?} voxels; segments {}.frames, {}.volumes{}",
            env!("CARGO_PKG_VERSION"),
            compute.description(),
            total,
            plan.buffers.len(),
            settings.geometry.views.len(),
            detector.columns,
            detector.rows,
            settings.grid.voxels,
            settings.shared_memory.name,
            settings.shared_memory.name,
            match reattached {
                [true, true] => " (taken over from a daemon before)",
                _ => "",
            },
        );

        let last = Arc::new(Mutex::new(LastVolume::new(settings.grid.len())));
        let method = plan.recipe.as_ref().map_or(METHOD_FDK, |recipe| method_number(recipe.method()));
        let (mut handover, mut optimise) = (None, None);
        if let (Some(recipe), Some(optimised)) = (plan.recipe, &settings.optimised) {
            let shared = Arc::new(Handover::new(&settings.geometry));
            let parts = OptimiseParts {
                recipe,
                geometry: settings.geometry.clone(),
                publisher: Publisher::new(writer.clone(), settings, &carrier, Buffer::default()),
                handover: Arc::clone(&shared),
                last: Arc::clone(&last),
                supervision: Arc::clone(&supervision),
                publish: optimised.publish,
                deadline_ns: match optimised.budget {
                    RunBudget::DeadlineS(seconds) => Some((seconds * 1e9) as u64),
                    RunBudget::Iterations(_) => None,
                },
            };
            let (thread, words) = start_optimisation(parts, plan.repairs, device, settings, optimised)?;
            banner += &words;
            (handover, optimise) = (Some(shared), Some(thread));
        }

        let (ready, is_ready) = crossbeam::channel::bounded::<()>(1);
        let parts = Parts {
            handover: handover.clone(),
            last,
            settings: settings.clone(),
            publisher: Publisher::new(writer.clone(), settings, &carrier, path.scaled),
            accumulator: path.accumulator,
            calibration: path.calibration,
            view: path.view,
            staging: Arc::clone(&staging),
            supervision: Arc::clone(&supervision),
            files,
        };
        let reconstruct = spawn("reconstruct", move || {
            compute.install(|| {
                let mut pipeline = Pipeline::new(parts, &*compute)?;
                pipeline.warm_up()?;
                // The one-way latch: nothing of the daemon is ready before this.
                let _receiver_gone = ready.send(());
                drop(ready);
                pipeline.run()
            })
        })?;
        if is_ready.recv().is_err() {
            supervision.stop.store(true, Ordering::Release);
            // The thread ended before it was ready: its own reason is the one to tell.
            join("reconstruct", reconstruct)??;
            return Err(DaemonError::Thread { name: "reconstruct", reason: "ended before it was ready".into() });
        }
        let ingest = Ingest {
            consumer: served.consumer,
            staging,
            supervision: Arc::clone(&supervision),
            detector,
            frame_time_ns: settings.publish.frame_time_ns(),
            grace_ns: settings.supervise.grace_ms * 1_000_000,
        };
        let ingest = spawn("ingest", move || {
            crate::supervise::mark_frame_path();
            ingest.run()
        })?;
        let daemon = Self {
            supervision,
            writer,
            ingest: Some(ingest),
            reconstruct: Some(reconstruct),
            optimise,
            handover,
            method,
            on_device: matches!(device, Device::Cuda(_)),
            reattached,
            stall_ns: settings.supervise.stall_ms * 1_000_000,
            stalls: AtomicU64::new(0),
            banner,
        };
        daemon.set_status(DaemonState::Ready);
        Ok(daemon)
    }

    /// One line: version, device, SIMD level, threads, totals of the plan.
    #[must_use]
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// What the threads share.
    #[must_use]
    pub fn supervision(&self) -> &Arc<Supervision> {
        &self.supervision
    }

    /// Whether frames and volumes segments were taken over from a daemon before.
    #[must_use]
    pub fn reattached(&self) -> [bool; 2] {
        self.reattached
    }

    /// Whether a thread of the frame path has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let ended = |finished: Option<bool>| finished.unwrap_or(true);
        ended(self.ingest.as_ref().map(JoinHandle::is_finished))
            || ended(self.reconstruct.as_ref().map(JoinHandle::is_finished))
            || self.optimise.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Whether a scan has ended, and what was to follow it: what `--once` waits for.
    #[must_use]
    pub fn has_ended_a_scan(&self) -> bool {
        self.supervision.scans_ended.load(Ordering::Acquire) > 0
            && !self.handover.as_ref().is_some_and(|handover| handover.is_open())
    }

    /// Logs what happened, looks for stalled stages, brings the status block up to date and returns the report.
    pub fn supervise(&self) -> StatusReport {
        while let Some(event) = self.supervision.next_event() {
            if event.is_warning() {
                tracing::warn!("{event}");
            } else {
                tracing::info!("{event}");
            }
            if matches!(event, Event::TimedOut { .. }) {
                self.say_how_the_producer_is();
            }
        }
        for (stage, silent_ns) in self.supervision.stalled(monotonic_ns(), self.stall_ns) {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                "stage {} has shown no sign of life for {} ms: it is stuck, or the machine is overloaded",
                stage.name(),
                silent_ns / 1_000_000
            );
        }
        let state = self.state();
        self.set_status(state);
        self.report(state)
    }

    fn say_how_the_producer_is(&self) {
        match self.supervision.ingest().producer_pid {
            0 => tracing::warn!("the producer has detached in an orderly way"),
            pid if is_alive(pid) => tracing::warn!("the producer (process {pid}) is alive, but sends nothing"),
            pid => tracing::warn!("the producer (process {pid}) is dead: waiting for the next epoch"),
        }
    }

    fn state(&self) -> DaemonState {
        let optimising = self.supervision.optimise().is_some_and(|optimise| optimise.progress.running);
        let telemetry = self.supervision.reconstruct();
        if self.supervision.stop.load(Ordering::Acquire) {
            DaemonState::Stopping
        } else if telemetry.rung != Rung::Full {
            DaemonState::Degraded
        } else if telemetry.scan.running && telemetry.scan.views == telemetry.scan.planned {
            DaemonState::Reconstructing
        } else if telemetry.scan.running {
            DaemonState::Receiving
        } else if optimising {
            DaemonState::Reconstructing
        } else {
            DaemonState::Ready
        }
    }

    fn report(&self, state: DaemonState) -> StatusReport {
        let slots = self.writer.lock().slots().status();
        let volume_copies = match (self.on_device, self.writer.is_registered()) {
            (false, _) => "host",
            (true, true) => "device",
            (true, false) => "staged",
        };
        let report = StatusReport::new(&self.supervision, state, &slots, self.stalls.load(Ordering::Relaxed));
        StatusReport { volume_copies, ..report }
    }

    fn set_status(&self, state: DaemonState) {
        let ingest = *self.supervision.ingest();
        let progress = self.supervision.optimise().map(|optimise| optimise.progress);
        let (scan, rung, refused, ranges, count) = {
            let telemetry = self.supervision.reconstruct();
            let (ranges, count) = (telemetry.missing, telemetry.missing_count);
            (telemetry.scan, telemetry.rung, telemetry.counters.refused, ranges, count)
        };
        let rejected = ingest.rejected_header
            + ingest.rejected_payload
            + ingest.rejected_duplicate
            + ingest.rejected_shape
            + refused;
        let status = Status {
            state: Some(state),
            daemon_pid: if state == DaemonState::Stopped { 0 } else { std::process::id().into() },
            heartbeat_ns: monotonic_ns(),
            frames_accepted: ingest.frames,
            frames_rejected: rejected,
            frames_missing: scan.missing.into(),
            epoch: ingest.epoch,
            last_sequence: ingest.last_sequence,
            last_frame_ns: ingest.last_frame_ns,
            scan_frames: scan.views.into(),
            scan_views: scan.planned.into(),
            method: self.method.into(),
            iteration: progress.map_or(0, |progress| progress.iteration.into()),
            iterations_planned: progress.map_or(0, |progress| progress.iterations_planned.into()),
            residual_1e9: progress.and_then(|progress| progress.residual).map_or(0, |residual| (1e9 * residual) as u64),
            method_ns: progress.map_or(0, |progress| (1e9 * progress.seconds) as u64),
            ..Status::default()
        };
        let message = match rung {
            Rung::Full => "ok",
            Rung::WithoutSliceFixer => {
                "a repair was given up: the last optimised volume is without SliceFixer, DEGRADED"
            }
            Rung::Frozen => "the last optimisation was given up: its last good volume is DEGRADED",
            Rung::PreviewsSkipped => "late: previews are skipped",
            Rung::Stale => "the last scan gave no volume: the newest volume is STALE",
            Rung::Stopped => "stopped by an error: see the log",
        };
        let mut writer = self.writer.lock();
        writer.set_status(&status);
        writer.set_status_detail(&StatusDetail::new(message, &ranges[..count.min(STATUS_MISSING_RANGES)]));
    }

    /// Asks for the end; [`Daemon::finish`] waits for it.
    pub fn stop(&self) {
        self.supervision.stop.store(true, Ordering::Release);
        if let Some(handover) = &self.handover {
            handover.end_repair();
            handover.wake();
        }
    }

    /// Stops: takes what is in the ring (for the grace time at most), publishes what there is, marks the status stopped.
    ///
    /// # Errors
    /// What made the daemon end, if it was not asked to.
    pub fn finish(mut self) -> Result<StatusReport, DaemonError> {
        self.stop();
        let consumer = self.ingest.take().map(|handle| join("ingest", handle)).transpose();
        // A dead ingest thread must not leave the other waiting.
        self.supervision.ingest_ended.store(true, Ordering::Release);
        let outcome = self.reconstruct.take().map(|handle| join("reconstruct", handle)).transpose();
        let optimised = self.optimise.take().map(|handle| join("optimise", handle)).transpose();
        let report = self.supervise();
        self.set_status(DaemonState::Stopped);
        if let Some(consumer) = consumer? {
            drop(consumer.detach());
        }
        outcome?.transpose()?;
        optimised?.transpose()?;
        Ok(StatusReport { state: "stopped", ..report })
    }
}

/// What the optimisation and its repairs take of their device.
pub(crate) fn take_optimisation<E: From<OptimiseError> + From<RepairError>>(
    compute: &mut dyn Operations,
    recipe: &Recipe,
    repairs: Option<&RepairPlan>,
) -> Result<(Optimiser, Option<SliceBuffers>), E> {
    recipe.prepare(compute).map_err(OptimiseError::from)?;
    let optimiser = recipe.optimiser(compute)?;
    let slices = repairs.map(|repairs| SliceBuffers::take(compute, &repairs.manifest, &repairs.options));
    Ok((optimiser, slices.transpose()?))
}

/// Starts the thread that optimises, has it rehearse, and says in words what it found.
fn start_optimisation(
    parts: OptimiseParts,
    repairs: Option<RepairPlan>,
    device: &Device,
    settings: &Settings,
    optimised: &OptimisedSettings,
) -> Result<(JoinHandle<Result<(), DaemonError>>, String), DaemonError> {
    let method = parts.recipe.method().name();
    let (supervision, handover) = (Arc::clone(&parts.supervision), Arc::clone(&parts.handover));
    let taken = |compute: &mut dyn Operations| -> Result<_, DaemonError> {
        take_optimisation(compute, &parts.recipe, repairs.as_ref())
    };
    let (compute, (optimiser, slices)) = device.ready(taken)?;
    let (settings, optimised) = (settings.clone(), optimised.clone());
    let (ready, is_ready) = crossbeam::channel::bounded::<(Schedule, Cost)>(1);
    let thread = spawn("optimise", move || {
        compute.install(|| {
            compute.each_thread(&|| {
                // On Linux the priority of a thread, not of its process; ONNX Runtime's threads get that of the thread that makes them. Being
                // as urgent as the frames is worse, but no reason to stop.
                let _as_it_was = rustix::process::setpriority_process(None, NICE);
            });
            let repairs = repairs.as_ref().zip(slices);
            let repairs = repairs.map(|(plan, slices)| ScanRepairs::load(plan, &settings, &*compute, slices));
            let repairs = repairs.transpose()?;
            let mut optimisation = Optimisation::new(parts, repairs, &*compute, optimiser);
            let Optimisation { optimiser, repairs, parts, .. } = &mut optimisation;
            let last = Arc::clone(&parts.last);
            let rehearsal = Rehearsal { compute: &*compute, optimiser, repairs: repairs.as_mut(), last: &last };
            let (cost, schedule) = rehearsal::rehearse(rehearsal, &settings, &optimised)?;
            optimisation.schedule = schedule;
            optimisation.reserve_ns = cost.volume.as_nanos() as u64;
            if let (Some(repairs), Some(found)) = (&optimisation.repairs, cost.repairs) {
                *optimisation.parts.supervision.slice_fixer() = Some(repairs.telemetry(found.repair));
                optimisation.parts.handover.set_ender(repairs.ender());
            }
            compute.each_thread(&crate::supervise::mark_frame_path);
            optimisation.parts.handover.work_here();
            let _receiver_gone = ready.send((optimisation.schedule, cost));
            drop(ready);
            optimisation.run();
            Ok(())
        })
    })?;
    let Ok((schedule, cost)) = is_ready.recv() else {
        // The thread ended before it was ready: its own reason is the one to tell.
        join("optimise", thread)??;
        return Err(DaemonError::Thread { name: "optimise", reason: "ended before it was ready".into() });
    };
    let (iterations, early) = (schedule.iterations, schedule.early);
    let early_views = early.map_or(0, |early| early.views as u32);
    handover.fix(iterations as u32, early_views);
    let (seconds, iteration_s) = (cost.run(iterations).as_secs_f64(), cost.iteration.as_secs_f64());
    *supervision.optimise() = Some(OptimiseTelemetry {
        progress: OptimiseProgress {
            method,
            running: false,
            scan_id: 0,
            iteration: 0,
            iterations_planned: iterations as u32,
            early_iterations: early.map_or(0, |early| early.iterations as u32),
            early_views,
            residual: None,
            elements: 0,
            seconds: 0.0,
            iteration_s,
        },
        counters: OptimiseCounters::default(),
    });
    let mut words = format!(
        "; {method}: {iterations} iterations of {:.0} ms after each scan, some {seconds:.1} s",
        1e3 * iteration_s
    );
    if let Some(early) = early {
        let after = schedule.iterations_with_early - early.iterations;
        let seconds =
            (cost.load + cost.go_on(early.iterations, schedule.iterations_with_early) + cost.volume).as_secs_f64();
        words += &format!(
            ", or {after} in {seconds:.1} s after {} from its first {} views before the last frame comes",
            early.iterations, early.views
        );
    }
    if let (Some(found), Some(fixer)) = (cost.repairs, supervision.slice_fixer().as_ref()) {
        let repairs = found.augment.planned(0, iterations);
        words += &format!(
            "; SliceFixer {} ({}) on {}: {} of {} slices, {:.2} s each, {:.0} % of the time with what follows",
            fixer.model,
            fixer.model_hash,
            fixer.provider,
            if repairs == 1 { "1 repair".into() } else { format!("{repairs} repairs") },
            fixer.slices,
            found.repair.as_secs_f64(),
            100.0 * found.of(0, iterations).as_secs_f64() / seconds
        );
    }
    Ok((thread, words))
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, DaemonError> {
    let failed = |error: std::io::Error| DaemonError::Thread { name, reason: error.to_string() };
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(failed)
}

fn join<T>(name: &'static str, handle: JoinHandle<T>) -> Result<T, DaemonError> {
    handle.join().map_err(|panic| {
        let reason = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panicked".into());
        DaemonError::Thread { name, reason }
    })
}

/// Room for missing ranges in the telemetry.
pub type MissingRanges = [SequenceRange; STATUS_MISSING_RANGES];

/// Tells of a rung change.
fn tell_rung(supervision: &Supervision, from: Option<Rung>, to: Rung) {
    if let Some(from) = from {
        supervision.tell(Event::Rung { from, to });
    }
}
