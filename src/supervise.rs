//! Status, counters, watchdog, logs.
//!
//! The threads of the frame path allocate nothing, and so do not log: they leave [`Event`]s in a bounded queue and counters
//! behind short locks; the supervising thread turns both into log lines, the status block in shared memory and the status file.

#![forbid(unsafe_code)]

mod events;
mod ladder;
mod log;
mod optimise;
mod slice_fixer;
mod status;

pub(crate) use events::status_words;
pub use events::{Event, OptimisationEnd, Refusal};
pub use ladder::{Ladder, LadderCounters, Rung};
pub use log::start as start_log;
pub use optimise::{OptimiseCounters, OptimiseProgress, OptimiseTelemetry};
pub use slice_fixer::{RepairCounters, RunRepairs, SliceFixerTelemetry};
pub(crate) use status::state_name;
pub use status::{StatusReport, write_atomically};

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam::queue::ArrayQueue;
use firmware_bridge::clock::monotonic_ns;

use crate::measure::latency::LatencyHistogram;
use crate::plan::{Buffer, Place};

/// Events that wait for the supervising thread; more are counted as lost.
const EVENT_CAPACITY: usize = 1024;

thread_local! {
    static ON_FRAME_PATH: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one of the frame path: from "ready" on it must not allocate.
pub fn mark_frame_path() {
    ON_FRAME_PATH.set(true);
}

/// Whether this thread was marked; a counting allocator asks.
#[must_use]
pub fn is_on_frame_path() -> bool {
    ON_FRAME_PATH.try_with(Cell::get).unwrap_or(false)
}

/// The threads that show signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Takes frames out of the ring.
    Ingest,
    /// Corrects, filters, back-projects, publishes.
    Reconstruct,
    /// Optimises, publishes; not in every configuration.
    Optimise,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Reconstruct, Self::Optimise];

    /// Its name in logs and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Reconstruct => "reconstruct",
            Self::Optimise => "optimise",
        }
    }
}

/// Counters of ingest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct IngestCounters {
    /// Frames handed on to reconstruction, calibration frames included.
    pub frames: u64,
    /// Frames whose header's CRC or contents are wrong.
    pub rejected_header: u64,
    /// Frames whose payload's CRC is wrong.
    pub rejected_payload: u64,
    /// Frames seen before.
    pub rejected_duplicate: u64,
    /// Frames of another detector than planned.
    pub rejected_shape: u64,
    /// Frames that came after a later one, and were taken.
    pub late: u64,
    /// Ranges of missing sequence numbers.
    pub gaps: u64,
    /// Sequence numbers missing in all scans together.
    pub missing: u64,
    /// Producers seen.
    pub epochs: u64,
    /// New frames that the full ring lost (the producer's count).
    pub dropped_newest: u64,
    /// Unread frames that the full ring lost (the producer's count).
    pub dropped_oldest: u64,
    /// Frames in the ring at most.
    pub ring_high_water: u64,
    /// Frames waiting for reconstruction at most.
    pub staging_high_water: u64,
    /// Times that no staging buffer was free and frames had to wait in the ring.
    pub staging_full: u64,
    /// Checking (CRC) of frames, total ns.
    pub check_ns: u64,
    /// Copying of frames, total ns.
    pub copy_ns: u64,
    /// Longest time from taking a frame to giving its slot back, ns.
    pub max_cycle_ns: u64,
    /// Times that this took longer than a frame time.
    pub cycles_over_frame_time: u64,
    /// The last frame's epoch.
    pub epoch: u64,
    /// The last frame's sequence number.
    pub last_sequence: u64,
    /// When it was taken, CLOCK_MONOTONIC ns.
    pub last_frame_ns: u64,
    /// The producer's process; 0: none attached.
    pub producer_pid: u64,
}

/// Whether a process of this number lives.
#[must_use]
pub fn is_alive(pid: u64) -> bool {
    i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).is_some_and(|pid| {
        // Not being allowed to signal it means that it is there.
        !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    })
}

/// Counters of reconstruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReconstructCounters {
    /// Views added to a volume.
    pub views: u64,
    /// Frames refused after ingest (see the events for the reasons).
    pub refused: u64,
    /// Scans begun.
    pub scans: u64,
    /// Scans that ended with all views.
    pub scans_full: u64,
    /// Scans that ended with views missing.
    pub scans_partial: u64,
    /// Scans that ended without a volume.
    pub scans_lost: u64,
    /// Previews published.
    pub previews: u64,
    /// Previews that were due and were skipped.
    pub previews_skipped: u64,
    /// FULL volumes published.
    pub full: u64,
    /// PARTIAL volumes published at a scan's end.
    pub partial: u64,
    /// Volumes published again as STALE.
    pub stale: u64,
    /// Publications that found every slot leased.
    pub slots_leased: u64,
    /// Previews and volumes that came later than one frame time after their last frame.
    pub deadlines_missed: u64,
    /// Time in preprocessing, total ns; on a GPU that of asking for it, which itself counts as back-projection.
    pub preprocess_ns: u64,
    /// Time in weighting, filtering and back-projection, total ns.
    pub back_project_ns: u64,
    /// Time in publishing (normalise, copy, CRC), total ns.
    pub publish_ns: u64,
    /// Longest time for one frame, previews included, ns.
    pub max_cycle_ns: u64,
    /// Times that this took longer than a frame time.
    pub cycles_over_frame_time: u64,
}

/// What the threads of the daemon share.
#[derive(Debug)]
pub struct Supervision {
    /// Stop after what is in the ring.
    pub stop: AtomicBool,
    /// Ingest has ended: nothing more will be staged.
    pub ingest_ended: AtomicBool,
    /// Scans ended so far.
    pub scans_ended: AtomicU64,
    heartbeats: [AtomicU64; 3],
    events: ArrayQueue<Event>,
    events_lost: AtomicU64,
    ingest: Mutex<IngestCounters>,
    reconstruct: Mutex<ReconstructTelemetry>,
    optimise: Mutex<Option<OptimiseTelemetry>>,
    slice_fixer: Mutex<Option<SliceFixerTelemetry>>,
}

/// What reconstruction tells of itself.
#[derive(Debug)]
pub struct ReconstructTelemetry {
    /// Counters.
    pub counters: ReconstructCounters,
    /// Counters of preprocessing.
    pub preprocess: crate::preprocess::PreprocessCounters,
    /// Exposure's end to the view being in the volume.
    pub frame_latency: LatencyHistogram,
    /// Exposure's end of the last frame to the volume being readable.
    pub preview_latency: LatencyHistogram,
    /// The degrade ladder.
    pub ladder: LadderCounters,
    /// The rung it stands on.
    pub rung: Rung,
    /// The scan that runs or ran last.
    pub scan: crate::daemon::ScanSummary,
    /// Its missing ranges.
    pub missing: crate::daemon::MissingRanges,
    /// Entries of `missing` in use.
    pub missing_count: usize,
}

/// A lock that a panicking thread left is taken all the same: counters are never half written in a way that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervision {
    /// Buffers that [`Supervision::new`] allocates.
    #[must_use]
    pub fn buffers() -> Vec<Buffer> {
        vec![
            Buffer::new("supervise: latency histograms", 2 * LatencyHistogram::bytes(), Place::Host),
            Buffer::new(
                "supervise: event queue",
                // A queue's cell is its element and a sequence number.
                (EVENT_CAPACITY * (size_of::<Event>().next_multiple_of(8) + 8)) as u64,
                Place::Host,
            ),
        ]
    }

    /// Everything at zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            ingest_ended: AtomicBool::new(false),
            scans_ended: AtomicU64::new(0),
            heartbeats: [const { AtomicU64::new(0) }; 3],
            events: ArrayQueue::new(EVENT_CAPACITY),
            events_lost: AtomicU64::new(0),
            ingest: Mutex::new(IngestCounters::default()),
            reconstruct: Mutex::new(ReconstructTelemetry {
                counters: ReconstructCounters::default(),
                preprocess: crate::preprocess::PreprocessCounters::default(),
                frame_latency: LatencyHistogram::new(),
                preview_latency: LatencyHistogram::new(),
                ladder: LadderCounters::default(),
                rung: Rung::Full,
                scan: crate::daemon::ScanSummary::default(),
                missing: [bytemuck::Zeroable::zeroed(); _],
                missing_count: 0,
            }),
            optimise: Mutex::new(None),
            slice_fixer: Mutex::new(None),
        }
    }

    /// A sign of life.
    pub fn beat(&self, stage: Stage) {
        self.heartbeats[stage as usize].store(monotonic_ns(), Ordering::Relaxed);
    }

    /// Stages that have shown no sign of life for `stall_ns`, with how long.
    pub fn stalled(&self, now_ns: u64, stall_ns: u64) -> impl Iterator<Item = (Stage, u64)> {
        Stage::ALL.into_iter().filter_map(move |stage| {
            let silent = now_ns.saturating_sub(self.heartbeats[stage as usize].load(Ordering::Relaxed));
            // Its operations work on the whole volume: one iteration is its grain.
            let iteration_s = match stage {
                Stage::Optimise => self.optimise().map_or(0.0, |optimise| optimise.progress.iteration_s),
                _ => 0.0,
            };
            let stall_ns = stall_ns.max((3e9 * iteration_s) as u64);
            (silent > stall_ns && silent < now_ns).then_some((stage, silent))
        })
    }

    /// Leaves an event for the supervising thread; counts it as lost where the queue is full.
    pub fn tell(&self, event: Event) {
        if self.events.push(event).is_err() {
            self.events_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next event, if there is one.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.events.pop()
    }

    /// Events lost for want of room.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events_lost.load(Ordering::Relaxed)
    }

    /// Ingest's counters, to read or change.
    pub fn ingest(&self) -> MutexGuard<'_, IngestCounters> {
        lock(&self.ingest)
    }

    /// Reconstruction's counters, to read or change.
    pub fn reconstruct(&self) -> MutexGuard<'_, ReconstructTelemetry> {
        lock(&self.reconstruct)
    }

    /// The optimisation's telemetry, to read or change; `None` where nothing is optimised.
    pub fn optimise(&self) -> MutexGuard<'_, Option<OptimiseTelemetry>> {
        lock(&self.optimise)
    }

    /// The repairs' telemetry, to read or change; `None` where nothing is repaired.
    pub fn slice_fixer(&self) -> MutexGuard<'_, Option<SliceFixerTelemetry>> {
        lock(&self.slice_fixer)
    }
}

impl Default for Supervision {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_shows_no_sign_of_life_is_reported_with_how_long() {
        let supervision = Supervision::new();
        let now_ns = monotonic_ns();
        assert_eq!(supervision.stalled(now_ns, 1_000).count(), 0, "not started yet is not stalled");
        supervision.beat(Stage::Ingest);
        supervision.beat(Stage::Reconstruct);
        let later_ns = monotonic_ns() + 5_000_000_000;
        supervision.heartbeats[Stage::Ingest as usize].store(later_ns, Ordering::Relaxed);
        let stalled: Vec<_> = supervision.stalled(later_ns, 1_000_000_000).collect();
        assert_eq!(stalled.len(), 1);
        assert!(stalled[0].0 == Stage::Reconstruct && stalled[0].1 >= 5_000_000_000, "{stalled:?}");
    }

    #[test]
    fn events_beyond_the_queue_are_counted_as_lost() {
        let supervision = Supervision::new();
        for epoch in 0..EVENT_CAPACITY as u32 + 3 {
            supervision.tell(Event::NewEpoch { epoch });
        }
        assert_eq!(supervision.events_lost(), 3);
        assert_eq!(supervision.next_event(), Some(Event::NewEpoch { epoch: 0 }));
    }

    #[test]
    fn processes_are_told_alive_from_dead() {
        assert!(is_alive(std::process::id().into()));
        assert!(!is_alive(0) && !is_alive(u64::MAX));
    }
}
