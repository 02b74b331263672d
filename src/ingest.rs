//! Frames out of the ring: checked, copied once, handed on.
//!
//! ```text
//! ring slot ──poll: header and payload checked in place──▶ copy ──▶ staging buffer ──▶ reconstruction
//!     ▲                                                     │             ▲                │
//!     └──────────── given back right after the copy ────────┘             └──── free ──────┘
//! ```
//!
//! Ingest runs on its own thread. It holds a ring slot no longer than check and copy take; where no staging buffer is free it leaves
//! the frames in the ring, where the ring's own drop policy counts what is lost. Nothing here allocates after the start.

#![forbid(unsafe_code)]

mod staging;

pub use staging::{StagedFrame, Staging};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::FrameHeader;
use firmware_bridge::mapping::Mapping;
use firmware_bridge::ring::{Arrival, FrameConsumer, Polled, Rejection};

use crate::geometry::Detector;
use crate::supervise::{Event, Refusal, Stage, Supervision};

/// How long an idle ingest sleeps between two looks: far below a frame time, and a thousandth of a core.
const IDLE: Duration = Duration::from_micros(250);

/// What ingest needs.
#[derive(Debug)]
pub struct Ingest {
    /// The ring's consumer.
    pub consumer: FrameConsumer<Mapping>,
    /// Buffers between ingest and reconstruction.
    pub staging: Arc<Staging>,
    /// Counters, events, stop.
    pub supervision: Arc<Supervision>,
    /// The planned detector.
    pub detector: Detector,
    /// One frame time, ns: what the cycle time is compared with.
    pub frame_time_ns: u64,
    /// How long a stop waits for the frames still in the ring, ns.
    pub grace_ns: u64,
}

impl Ingest {
    /// Takes frames until asked to stop; then those still in the ring, for the grace time at most. Gives the consumer back.
    pub fn run(mut self) -> FrameConsumer<Mapping> {
        // Frames published before the first empty look: the ring's fill counts from there.
        let mut fill_base = None;
        let mut stop_since = None;
        let mut buffer = None;
        loop {
            self.supervision.beat(Stage::Ingest);
            let now_ns = monotonic_ns();
            if self.supervision.stop.load(Ordering::Acquire) {
                let since = *stop_since.get_or_insert(now_ns);
                if now_ns.saturating_sub(since) > self.grace_ns {
                    break;
                }
            }
            let Some(frame) = buffer.take().or_else(|| self.staging.take_free()) else {
                self.supervision.ingest().staging_full += 1;
                self.note_fill(&mut fill_base, false);
                std::thread::sleep(IDLE);
                continue;
            };
            self.note_fill(&mut fill_base, false);
            match self.take(frame) {
                Taken::Empty(frame) => {
                    buffer = Some(frame);
                    self.note_fill(&mut fill_base, true);
                    if stop_since.is_some() {
                        break;
                    }
                    std::thread::sleep(IDLE);
                }
                Taken::Rejected(frame) => buffer = Some(frame),
                Taken::Staged => {}
            }
        }
        if let Some(frame) = buffer {
            self.staging.give_back(frame);
        }
        self.supervision.ingest_ended.store(true, Ordering::Release);
        self.staging.wake();
        self.consumer
    }

    /// Looks for one frame and stages it.
    fn take(&mut self, mut staged: Box<StagedFrame>) -> Taken {
        let began_ns = monotonic_ns();
        let missing_before = self.consumer.tracker().counts().missing;
        let event = match self.consumer.poll(began_ns) {
            Polled::Empty => return Taken::Empty(staged),
            Polled::Rejected(rejection) => Err(rejection),
            Polled::Frame(frame) => {
                let checked_ns = monotonic_ns();
                let header = *frame.header();
                let arrival = frame.arrival();
                let fits = is_of(&header, self.detector);
                if fits {
                    staged.fill(&header, frame.kind(), arrival, began_ns, frame.payload());
                }
                drop(frame);
                let copied_ns = monotonic_ns();
                let mut counters = self.supervision.ingest();
                counters.check_ns += checked_ns - began_ns;
                counters.copy_ns += copied_ns - checked_ns;
                counters.max_cycle_ns = counters.max_cycle_ns.max(copied_ns - began_ns);
                counters.cycles_over_frame_time += u64::from(copied_ns - began_ns > self.frame_time_ns);
                counters.epoch = header.epoch.into();
                counters.last_sequence = header.sequence;
                counters.last_frame_ns = began_ns;
                Ok((header, arrival, fits))
            }
        };
        self.account(missing_before);
        match event {
            Err(rejection) => {
                self.reject(rejection);
                Taken::Rejected(staged)
            }
            Ok((header, arrival, fits)) => {
                self.tell_arrival(&header, arrival);
                if !fits {
                    self.refuse_shape(&header);
                    return Taken::Rejected(staged);
                }
                let waiting = self.staging.hand_on(staged) as u64;
                let mut counters = self.supervision.ingest();
                counters.frames += 1;
                counters.staging_high_water = counters.staging_high_water.max(waiting);
                Taken::Staged
            }
        }
    }

    /// Brings gaps and missing numbers up to date with the tracker.
    fn account(&self, missing_before: u64) {
        let tracker = *self.consumer.tracker().counts();
        let mut counters = self.supervision.ingest();
        counters.gaps = tracker.gaps;
        counters.late = tracker.late;
        // Late frames lower the tracker's number.
        counters.missing = (counters.missing + tracker.missing).saturating_sub(missing_before);
    }

    fn tell_arrival(&self, header: &FrameHeader, arrival: Arrival) {
        let epoch = header.epoch;
        match arrival {
            Arrival::NewEpoch { missing } => {
                self.supervision.ingest().epochs += 1;
                self.supervision.tell(Event::NewEpoch { epoch });
                if let Some(range) = missing {
                    self.supervision.tell(Event::Gap { epoch, range });
                }
            }
            Arrival::AfterGap(range) => self.supervision.tell(Event::Gap { epoch, range }),
            Arrival::InOrder | Arrival::Late | Arrival::Duplicate => {}
        }
    }

    fn reject(&self, rejection: Rejection) {
        let mut counters = self.supervision.ingest();
        match rejection {
            Rejection::Header(_) => counters.rejected_header += 1,
            Rejection::Payload { .. } => counters.rejected_payload += 1,
            Rejection::Duplicate { .. } => counters.rejected_duplicate += 1,
        }
        drop(counters);
        self.supervision.tell(Event::Rejected(rejection));
    }

    fn refuse_shape(&self, header: &FrameHeader) {
        self.supervision.ingest().rejected_shape += 1;
        let why = Refusal::Shape {
            columns: header.columns,
            rows: header.rows,
            planned_columns: self.detector.columns as u32,
            planned_rows: self.detector.rows as u32,
        };
        self.supervision.tell(Event::Refused { sequence: header.sequence, why });
    }

    /// Frames in the ring now: published, less overwritten, less taken; counted from a moment at which it was empty.
    fn note_fill(&self, base: &mut Option<u64>, is_empty: bool) {
        let producer = self.consumer.ring().producer_counters();
        let consumed = self.consumer.counters().consumed;
        let balance = producer.written.wrapping_sub(producer.dropped_oldest).wrapping_sub(consumed);
        if is_empty && base.is_none() {
            *base = Some(balance);
        }
        let mut counters = self.supervision.ingest();
        counters.producer_pid = producer.pid;
        counters.dropped_newest = producer.dropped_newest;
        counters.dropped_oldest = producer.dropped_oldest;
        if let Some(base) = *base {
            let slots = u64::from(self.consumer.geometry().slot_count);
            let fill = balance.wrapping_sub(base);
            // A negative balance wraps: counters of two processes are not read at one moment.
            if fill <= slots {
                counters.ring_high_water = counters.ring_high_water.max(fill);
            }
        }
    }
}

enum Taken {
    Empty(Box<StagedFrame>),
    Rejected(Box<StagedFrame>),
    Staged,
}

fn is_of(header: &FrameHeader, detector: Detector) -> bool {
    (header.columns as usize, header.rows as usize) == (detector.columns, detector.rows)
}
