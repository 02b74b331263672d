//! The daemon: three threads and what they share.
//!
//! ```text
//! ring ─▶ ingest thread ─▶ staging ─▶ reconstruct thread (of the carrier's pool) ─▶ volume slots
//!              │                           │
//!              └── counters, events ───────┴──▶ supervising thread ─▶ log, status block, status file
//! ```
//!
//! [`Daemon::start`] allocates everything that the [`Plan`] lists, sends one blank view through all stages and only then reports ready.
//! From there on the frame path (ingest, reconstruct, the carrier's threads) allocates nothing.

#![forbid(unsafe_code)]

mod pipeline;
mod scan;

pub use scan::{ScanState, ScanSummary};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{DaemonState, STATUS_MISSING_RANGES, SequenceRange};
use firmware_bridge::mapping::{self, Mapping, MappingError};
use firmware_bridge::ring::FrameConsumer;
use firmware_bridge::slots::{Status, StatusDetail};

use crate::compute::cpu::CpuCompute;
use crate::compute::{Compute, ComputeError};
use crate::config::{Calibration, Settings};
use crate::error::{Classed, ErrorClass};
use crate::formats::FormatError;
use crate::ingest::{Ingest, Staging};
use crate::plan::{Plan, PlanError};
use crate::preprocess::PreprocessError;
use crate::publish::{Carrier, Publisher, SharedWriter};
use crate::reconstruct::ReconstructError;
use crate::supervise::{Event, Rung, StatusReport, Supervision, is_alive};
use pipeline::{Parts, Pipeline};

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
    /// The device asked for is not there.
    #[error("compute.device = \"{0}\": this build has the CPU only; set \"auto\" or \"cpu\"")]
    Device(String),
    /// A thread could not be started, or died.
    #[error("thread {name}: {reason}")]
    Thread {
        /// Which.
        name: &'static str,
        /// Why.
        reason: String,
    },
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
    reattached: [bool; 2],
    stall_ns: u64,
    stalls: AtomicU64,
    banner: String,
}

/// The carrier that the settings ask for.
///
/// # Errors
/// [`DaemonError::Device`], [`DaemonError::Compute`].
pub fn carrier(settings: &Settings) -> Result<CpuCompute, DaemonError> {
    match settings.compute.device.as_str() {
        "auto" | "cpu" => Ok(CpuCompute::new(settings.compute.threads)?),
        other => Err(DaemonError::Device(other.into())),
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
    pub fn start(settings: &Settings, mut compute: CpuCompute, plan: Plan) -> Result<Self, DaemonError> {
        plan.check_limit()?;
        let detector = settings.geometry.detector;
        let shape = [detector.rows, detector.columns];
        let files =
            [calibration_file(&settings.preprocess.dark, shape)?, calibration_file(&settings.preprocess.flat, shape)?];
        let served = mapping::serve(&settings.shared_memory.name, plan.ring, plan.slots, 0o660)?;
        let reattached = [served.frames_reattached, served.volumes_reattached];
        let writer = SharedWriter::new(served.writer);
        let starting = Status {
            state: Some(DaemonState::Starting),
            daemon_pid: std::process::id().into(),
            heartbeat_ns: monotonic_ns(),
            ..Status::default()
        };
        writer.lock().set_status(&starting);

        let supervision = Arc::new(Supervision::new());
        let staging = Arc::new(Staging::new(settings.supervise.staging_frames, detector));
        compute.prepare(&plan.fdk.workload())?;
        let carrier = Carrier {
            device: "cpu".into(),
            provider: format!("{} x{}", compute.simd(), compute.threads()),
            precision: "float32".into(),
        };
        let total = crate::config::format_bytes(plan.host_bytes());
        let banner = format!(
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

        let (ready, is_ready) = crossbeam::channel::bounded::<()>(1);
        let parts = Parts {
            settings: settings.clone(),
            publisher: Publisher::new(writer.clone(), settings, &carrier),
            staging: Arc::clone(&staging),
            supervision: Arc::clone(&supervision),
            files,
        };
        let reconstruct = spawn("reconstruct", move || {
            let fdk = Arc::new(plan.fdk);
            compute.install(|| {
                let mut pipeline = Pipeline::new(parts, &compute, fdk)?;
                pipeline.warm_up()?;
                // The one-way latch: nothing of the daemon is ready before this.
                let _receiver_gone = ready.send(());
                drop(ready);
                pipeline.run()
            })
        })?;
        if is_ready.recv().is_err() {
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
        let telemetry = self.supervision.reconstruct();
        if self.supervision.stop.load(Ordering::Acquire) {
            DaemonState::Stopping
        } else if telemetry.rung != Rung::Full {
            DaemonState::Degraded
        } else if telemetry.scan.running && telemetry.scan.views == telemetry.scan.planned {
            DaemonState::Reconstructing
        } else if telemetry.scan.running {
            DaemonState::Receiving
        } else {
            DaemonState::Ready
        }
    }

    fn report(&self, state: DaemonState) -> StatusReport {
        let slots = self.writer.lock().slots().status();
        StatusReport::new(&self.supervision, state, &slots, self.stalls.load(Ordering::Relaxed))
    }

    fn set_status(&self, state: DaemonState) {
        let ingest = *self.supervision.ingest();
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
            ..Status::default()
        };
        let message = match rung {
            Rung::Full => "ok",
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
        let report = self.supervise();
        self.set_status(DaemonState::Stopped);
        if let Some(consumer) = consumer? {
            drop(consumer.detach());
        }
        outcome?.transpose()?;
        Ok(StatusReport { state: "stopped", ..report })
    }
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
