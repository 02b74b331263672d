//! The daemon's end of the ring.
#![allow(unsafe_code)]

use super::machine::{reclaim_consumer, release, take};
use super::segment::{FrameRing, RingGeometry};
use super::tracker::{Arrival, SequenceTracker};
use crate::crc::crc32c;
use crate::error::FrameError;
use crate::layout::{FRAME_PAYLOAD_CRC, FrameHeader, FrameKind, FramesHeader, SequenceRange};
use crate::memory::{SharedMemory, load_bytes, owned_slice};
use bytemuck::Zeroable;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// Takes frames out of the ring, in place.
#[derive(Debug)]
pub struct FrameConsumer<M: SharedMemory> {
    ring: FrameRing<M>,
    cursor: u64,
    tracker: SequenceTracker,
    counters: ConsumerCounters,
}

/// What this consumer has seen; the sums over all consumers of the segment stand in its header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerCounters {
    /// Frames taken out, good or bad.
    pub consumed: u64,
    /// Header CRC wrong.
    pub crc_errors_header: u64,
    /// Payload CRC wrong.
    pub crc_errors_payload: u64,
    /// Header CRC right, contents impossible.
    pub invalid_headers: u64,
    /// Slots reclaimed from a dead consumer when attaching.
    pub reclaimed_reading: u64,
}

/// What [`FrameConsumer::poll`] found.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // boxing would allocate on the frame path
pub enum Polled<'a, M: SharedMemory> {
    /// Nothing new.
    Empty,
    /// A good frame; dropping it gives the slot back.
    Frame(Frame<'a, M>),
    /// A frame that cannot be used; its slot has been given back already.
    Rejected(Rejection),
}

/// Why a frame was rejected, and which.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rejection {
    /// Nothing in the header can be trusted; its number will show as a gap.
    Header(FrameError),
    /// The payload is spoilt; `missing` = the range of numbers that is missing now, ending with this frame.
    Payload {
        /// Stored and computed CRC.
        error: FrameError,
        /// Epoch of the frame.
        epoch: u32,
        /// Number of the frame.
        sequence: u64,
        /// Numbers newly missing.
        missing: Option<SequenceRange>,
    },
    /// Seen before.
    Duplicate {
        /// Epoch of the frame.
        epoch: u32,
        /// Number of the frame.
        sequence: u64,
    },
}

/// A frame in its slot. Dropping it gives the slot back to the producer.
#[derive(Debug)]
pub struct Frame<'a, M: SharedMemory> {
    ring: &'a FrameRing<M>,
    ticket: u64,
    header: FrameHeader,
    kind: FrameKind,
    arrival: Arrival,
}

impl<M: SharedMemory> Frame<'_, M> {
    /// A private, checked copy of the header.
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// What the pixels are.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// How it arrived: in order, after a gap, late, in a new epoch.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// The pixels as bytes, `[row v][column u]`, in place; aligned to 128 bytes.
    pub fn payload(&self) -> &[u8] {
        let geometry = self.ring.geometry();
        let offset = geometry.payload_offset(self.ticket % u64::from(geometry.slot_count));
        // SAFETY: the slot is READING by our compare-and-swap until `drop`; no producer touches it (protocol). The length
        // was checked against the ring's payload_capacity.
        unsafe { owned_slice(&self.ring.memory, offset, self.header.payload_bytes as usize) }
    }

    /// The pixels as u16 (counts, dark, flat); `None` for line integrals. `[row v][column u]`.
    pub fn pixels_u16(&self) -> Option<&[u16]> {
        (self.kind != FrameKind::LineIntegralsF32).then(|| bytemuck::cast_slice(self.payload()))
    }

    /// The pixels as f32 (line integrals); `None` for the others. `[row v][column u]`.
    pub fn pixels_f32(&self) -> Option<&[f32]> {
        (self.kind == FrameKind::LineIntegralsF32).then(|| bytemuck::cast_slice(self.payload()))
    }
}

impl<M: SharedMemory> Drop for Frame<'_, M> {
    fn drop(&mut self) {
        release(self.ring, self.ticket);
    }
}

impl<M: SharedMemory> FrameConsumer<M> {
    /// Becomes the ring's consumer. There must be no other one alive (`mapping` holds a file lock for that); slots that a
    /// dead one left READING are freed and counted.
    pub fn attach(ring: FrameRing<M>, pid: u32, now_ns: u64) -> Self {
        let (cursor, freed) = reclaim_consumer(&ring);
        ring.count(offset_of!(FramesHeader, reclaimed_reading), freed);
        ring.count(offset_of!(FramesHeader, consumer_attachments), 1);
        ring.field(offset_of!(FramesHeader, consumer_pid)).store(pid.into(), Ordering::Relaxed);
        ring.field(offset_of!(FramesHeader, consumer_heartbeat_ns)).store(now_ns, Ordering::Relaxed);
        let counters = ConsumerCounters { reclaimed_reading: freed, ..ConsumerCounters::default() };
        Self { ring, cursor, tracker: SequenceTracker::new(), counters }
    }

    /// Takes the next frame, if there is one: never waits. The header is copied out before it is looked at; every check
    /// uses this side's own geometry. The CRC of the payload is computed here if the frame carries one.
    pub fn poll(&mut self, now_ns: u64) -> Polled<'_, M> {
        self.ring.field(offset_of!(FramesHeader, consumer_heartbeat_ns)).store(now_ns, Ordering::Relaxed);
        let Some(ticket) = take(&self.ring, &mut self.cursor) else {
            return Polled::Empty;
        };
        self.ring.field(offset_of!(FramesHeader, read_cursor)).store(self.cursor, Ordering::Relaxed);
        self.counters.consumed += 1;
        self.ring.count(offset_of!(FramesHeader, consumed), 1);
        match self.inspect(ticket) {
            Ok((header, kind, arrival)) => Polled::Frame(Frame { ring: &self.ring, ticket, header, kind, arrival }),
            Err(rejection) => {
                release(&self.ring, ticket);
                Polled::Rejected(rejection)
            }
        }
    }

    fn inspect(&mut self, ticket: u64) -> Result<(FrameHeader, FrameKind, Arrival), Rejection> {
        let ring = &self.ring;
        let geometry = *ring.geometry();
        let index = ticket % u64::from(geometry.slot_count);
        let mut header = FrameHeader::zeroed();
        load_bytes(&ring.memory, geometry.header_offset(index), bytemuck::bytes_of_mut(&mut header));
        let kind = header.validate(&geometry).map_err(|error| {
            if matches!(error, FrameError::HeaderCrc { .. }) {
                self.counters.crc_errors_header += 1;
                ring.count(offset_of!(FramesHeader, crc_errors_header), 1);
            } else {
                self.counters.invalid_headers += 1;
                ring.count(offset_of!(FramesHeader, invalid_headers), 1);
            }
            Rejection::Header(error)
        })?;
        let (epoch, sequence) = (header.epoch, header.sequence);
        let before = *self.tracker.counts();
        if header.has(FRAME_PAYLOAD_CRC) {
            let (offset, len) = (geometry.payload_offset(index), header.payload_bytes as usize);
            // SAFETY: the slot is READING by our compare-and-swap; the length was validated.
            let computed = crc32c(unsafe { owned_slice(&ring.memory, offset, len) });
            if computed != header.payload_crc32c {
                self.counters.crc_errors_payload += 1;
                ring.count(offset_of!(FramesHeader, crc_errors_payload), 1);
                let missing = self.tracker.observe_spoilt(epoch, sequence);
                self.share_tracker_counts(&before);
                let error = FrameError::PayloadCrc { found: header.payload_crc32c, computed };
                return Err(Rejection::Payload { error, epoch, sequence, missing });
            }
        }
        let arrival = self.tracker.observe(epoch, sequence);
        self.share_tracker_counts(&before);
        if arrival == Arrival::Duplicate {
            return Err(Rejection::Duplicate { epoch, sequence });
        }
        Ok((header, kind, arrival))
    }

    /// Brings the segment's sums up to date with the tracker's.
    fn share_tracker_counts(&self, before: &super::TrackerCounts) {
        let now = self.tracker.counts();
        for (offset, before, now) in [
            (offset_of!(FramesHeader, duplicates), before.duplicates, now.duplicates),
            (offset_of!(FramesHeader, late), before.late, now.late),
            (offset_of!(FramesHeader, gaps), before.gaps, now.gaps),
            (offset_of!(FramesHeader, missing_frames), before.missing, now.missing),
            (offset_of!(FramesHeader, epoch_changes), before.epoch_changes, now.epoch_changes),
        ] {
            if now != before {
                // Wrapping: a late frame lowers `missing_frames`.
                self.ring.count(offset, now.wrapping_sub(before));
            }
        }
    }

    /// The ring itself: geometry, producer's counters, `retire`.
    pub fn ring(&self) -> &FrameRing<M> {
        &self.ring
    }

    /// The ring's size.
    pub fn geometry(&self) -> &RingGeometry {
        self.ring.geometry()
    }

    /// Gaps, duplicates, late frames, epochs.
    pub fn tracker(&self) -> &SequenceTracker {
        &self.tracker
    }

    /// For `clear_gaps` at the start of a scan.
    pub fn tracker_mut(&mut self) -> &mut SequenceTracker {
        &mut self.tracker
    }

    /// What this consumer has counted.
    pub fn counters(&self) -> &ConsumerCounters {
        &self.counters
    }

    /// Orderly detach: the segment says that nobody consumes.
    pub fn detach(self) -> FrameRing<M> {
        self.ring.field(offset_of!(FramesHeader, consumer_pid)).store(0, Ordering::Relaxed);
        self.ring
    }
}
