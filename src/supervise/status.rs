//! The status report: what `--json` prints and the status file holds.

use std::io::Write;
use std::path::Path;

use firmware_bridge::layout::DaemonState;
use firmware_bridge::slots::Status;
use serde::Serialize;

use super::{
    IngestCounters, LadderCounters, OptimiseTelemetry, ReconstructCounters, Rung, SliceFixerTelemetry, Supervision,
};
use crate::daemon::ScanSummary;
use crate::measure::latency::LatencySummary;
use crate::preprocess::PreprocessCounters;

/// Everything that the daemon knows of itself.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// `ready`, `receiving`, ...
    pub state: &'static str,
    /// The daemon's process.
    pub pid: u32,
    /// The present rung of the ladder.
    pub rung: Rung,
    /// The scan that runs or ran last.
    pub scan: ScanSummary,
    /// Missing frames of that scan: first and last sequence number of each range (as many as the status block lists).
    pub missing: Vec<[u64; 2]>,
    /// Counters of ingest.
    pub ingest: IngestCounters,
    /// Counters of preprocessing.
    pub preprocess: PreprocessCounters,
    /// Counters of reconstruction.
    pub reconstruct: ReconstructCounters,
    /// The optimisation; `null` where nothing is optimised.
    pub optimise: Option<OptimiseTelemetry>,
    /// The repairs of the optimisation; `null` where nothing is repaired.
    pub slice_fixer: Option<SliceFixerTelemetry>,
    /// Counters of the ladder.
    pub ladder: LadderCounters,
    /// Exposure's end to the view being in the volume.
    pub frame_latency: LatencySummary,
    /// Exposure's end of a volume's last frame to the volume being readable.
    pub preview_latency: LatencySummary,
    /// How volumes come into their slots: `host`, by the CPU; `device`, by the GPU itself; `staged`, from the GPU through the host, because its
    /// driver refuses the shared memory.
    pub volume_copies: &'static str,
    /// Volumes published in this segment.
    pub volumes_published: u64,
    /// Expired leases revoked.
    pub leases_revoked: u64,
    /// Publications skipped, all slots being leased.
    pub publish_skipped: u64,
    /// Volume slots that a daemon before left half written, and that were emptied.
    pub reclaimed_writing: u64,
    /// Times that a stage was found without a sign of life.
    pub stalls: u64,
    /// Events lost for want of room.
    pub events_lost: u64,
}

/// A state's name.
pub(crate) fn state_name(state: Option<DaemonState>) -> &'static str {
    match state {
        Some(DaemonState::Starting) => "starting",
        Some(DaemonState::Ready) => "ready",
        Some(DaemonState::Receiving) => "receiving",
        Some(DaemonState::Reconstructing) => "reconstructing",
        Some(DaemonState::Degraded) => "degraded",
        Some(DaemonState::Stopping) => "stopping",
        Some(DaemonState::Stopped) => "stopped",
        None => "unknown",
    }
}

impl StatusReport {
    /// The report of this moment.
    #[must_use]
    pub fn new(supervision: &Supervision, state: DaemonState, slots: &Status, stalls: u64) -> Self {
        let ingest = *supervision.ingest();
        let optimise = *supervision.optimise();
        let slice_fixer = supervision.slice_fixer().clone();
        let telemetry = supervision.reconstruct();
        Self {
            optimise,
            slice_fixer,
            state: state_name(Some(state)),
            pid: std::process::id(),
            rung: telemetry.rung,
            scan: telemetry.scan,
            missing: telemetry.missing[..telemetry.missing_count].iter().map(|r| [r.first, r.last]).collect(),
            ingest,
            preprocess: telemetry.preprocess,
            reconstruct: telemetry.counters,
            ladder: telemetry.ladder,
            frame_latency: telemetry.frame_latency.summary(),
            preview_latency: telemetry.preview_latency.summary(),
            volume_copies: "host",
            volumes_published: slots.published,
            leases_revoked: slots.leases_revoked,
            publish_skipped: slots.publish_skipped,
            reclaimed_writing: slots.reclaimed_writing,
            stalls,
            events_lost: supervision.events_lost(),
        }
    }
}

/// Writes `text` beside `path` and renames it, so that a reader never sees half of it.
///
/// # Errors
/// The operating system's.
pub fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    std::fs::rename(&beside, path)
}
