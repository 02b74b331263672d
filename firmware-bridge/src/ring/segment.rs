//! The segment `NAME.frames` in memory: geometry, initialisation, attachment.

use super::machine::{DropPolicy, RingCells};
use crate::error::SegmentError;
use crate::layout::{
    CACHE_LINE, FRAME_HEADER_BYTES, FRAME_SLOT_CONTROL_BYTES, FRAMES_HEADER_BYTES, FRAMES_MAGIC, FramesHeader,
    VERSION_MAJOR, VERSION_MINOR,
};
use crate::memory::{SharedMemory, load_bytes, store_bytes, word};
use bytemuck::Zeroable;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// A cursor at or above this is nonsense (tickets have 56 bits).
const TICKET_LIMIT: u64 = 1 << 55;

/// Size of a ring. The daemon fixes it; all bounds checks use this copy, never numbers re-read from shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGeometry {
    /// Number of slots, 2 to 65536.
    pub slot_count: u32,
    /// Largest number of detector columns (u), 1 to 65536.
    pub max_columns: u32,
    /// Largest number of detector rows (v), 1 to 65536.
    pub max_rows: u32,
    /// Largest payload, bytes; at least 1, at most 4 bytes a pixel of the largest frame.
    pub payload_capacity: u64,
    /// What to do when the ring is full.
    pub policy: DropPolicy,
}

impl RingGeometry {
    /// Room for frames of `columns` x `rows` pixels of any kind (4 bytes a pixel).
    pub const fn for_detector(columns: u32, rows: u32, slot_count: u32, policy: DropPolicy) -> Self {
        let payload_capacity = (columns as u64 * rows as u64).saturating_mul(4);
        Self { slot_count, max_columns: columns, max_rows: rows, payload_capacity, policy }
    }

    /// Bytes from one slot to the next.
    pub const fn slot_stride(&self) -> u64 {
        let bytes = ((FRAME_SLOT_CONTROL_BYTES + FRAME_HEADER_BYTES) as u64).saturating_add(self.payload_capacity);
        bytes.div_ceil(CACHE_LINE as u64).saturating_mul(CACHE_LINE as u64)
    }

    /// Bytes of the whole segment; saturates for sizes that `check` refuses.
    pub const fn segment_bytes(&self) -> u64 {
        (FRAMES_HEADER_BYTES as u64).saturating_add(self.slot_stride().saturating_mul(self.slot_count as u64))
    }

    /// Checks every field's range, and that the segment fits the address space.
    pub fn check(&self) -> Result<(), SegmentError> {
        let bad = |field, value, wanted| Err(SegmentError::BadField { field, value, wanted });
        if !(2..=65536).contains(&self.slot_count) {
            return bad("slot_count", self.slot_count.into(), "must be 2 to 65536");
        }
        if !(1..=65536).contains(&self.max_columns) {
            return bad("max_columns", self.max_columns.into(), "must be 1 to 65536");
        }
        if !(1..=65536).contains(&self.max_rows) {
            return bad("max_rows", self.max_rows.into(), "must be 1 to 65536");
        }
        if !(1..=u64::from(self.max_columns) * u64::from(self.max_rows) * 4).contains(&self.payload_capacity) {
            return bad("payload_capacity", self.payload_capacity, "must be 1 to max_columns x max_rows x 4");
        }
        if self.segment_bytes() > isize::MAX as u64 {
            return bad("segment_bytes", self.segment_bytes(), "does not fit the address space");
        }
        Ok(())
    }

    pub(super) const fn header_offset(&self, index: u64) -> usize {
        FRAMES_HEADER_BYTES + (index * self.slot_stride()) as usize + FRAME_SLOT_CONTROL_BYTES
    }

    pub(super) const fn payload_offset(&self, index: u64) -> usize {
        self.header_offset(index) + FRAME_HEADER_BYTES
    }
}

/// The producer's counters, as they stand in the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerCounters {
    /// Frames published.
    pub written: u64,
    /// New frames dropped, the ring being full.
    pub dropped_newest: u64,
    /// Unread frames overwritten.
    pub dropped_oldest: u64,
    /// Slots reclaimed from a dead producer.
    pub reclaimed_writing: u64,
    /// Attachments of producers so far (the current epoch).
    pub epoch: u64,
    /// Last sign of life, CLOCK_MONOTONIC ns; 0 = never.
    pub heartbeat_ns: u64,
    /// Process id; 0 = nobody attached.
    pub pid: u64,
}

/// A mapped ring whose header has been checked.
#[derive(Debug)]
pub struct FrameRing<M> {
    pub(super) memory: M,
    geometry: RingGeometry,
    instance_id: u64,
}

impl<M: SharedMemory> FrameRing<M> {
    /// Makes a new ring in `memory` (zeroed here), whose length must be `geometry.segment_bytes()`.
    ///
    /// `instance_id` should be random; `now_ns` is CLOCK_MONOTONIC.
    pub fn initialise(
        memory: M,
        geometry: RingGeometry,
        instance_id: u64,
        creator_pid: u32,
        now_ns: u64,
    ) -> Result<Self, SegmentError> {
        geometry.check()?;
        if memory.len() as u64 != geometry.segment_bytes() {
            return Err(SegmentError::WrongSize { expected: geometry.segment_bytes(), actual: memory.len() as u64 });
        }
        let header = FramesHeader {
            version_major: VERSION_MAJOR,
            version_minor: VERSION_MINOR,
            header_bytes: FRAMES_HEADER_BYTES as u32,
            segment_bytes: geometry.segment_bytes(),
            instance_id,
            created_ns: now_ns,
            creator_pid,
            policy: geometry.policy as u32,
            slot_count: geometry.slot_count,
            frame_header_bytes: FRAME_HEADER_BYTES as u32,
            slots_offset: FRAMES_HEADER_BYTES as u64,
            slot_stride: geometry.slot_stride(),
            payload_capacity: geometry.payload_capacity,
            max_columns: geometry.max_columns,
            max_rows: geometry.max_rows,
            ..FramesHeader::zeroed() // the magic too
        };
        store_bytes(&memory, 0, bytemuck::bytes_of(&header));
        let ring = Self { memory, geometry, instance_id };
        for index in 0..u64::from(geometry.slot_count) {
            ring.slot(index).store(0, Ordering::Relaxed);
        }
        // SYNC POINT S1: the magic last, Release: who sees it sees the finished header and slots.
        ring.field(offset_of!(FramesHeader, magic)).store(FRAMES_MAGIC, Ordering::Release);
        Ok(ring)
    }

    /// Takes a ring that somebody else has made; every number of the header is checked against the memory's length.
    pub fn attach(memory: M) -> Result<Self, SegmentError> {
        let actual = memory.len() as u64;
        if actual < FRAMES_HEADER_BYTES as u64 {
            return Err(SegmentError::WrongSize { expected: FRAMES_HEADER_BYTES as u64, actual });
        }
        // SYNC POINT S1 (other side): Acquire.
        match word(&memory, offset_of!(FramesHeader, magic)).load(Ordering::Acquire) {
            FRAMES_MAGIC => {}
            0 => return Err(SegmentError::NotYetFinalized),
            found => {
                return Err(SegmentError::WrongMagic { found, expected: FRAMES_MAGIC });
            }
        }
        let mut header = FramesHeader::zeroed();
        load_bytes(&memory, 0, bytemuck::bytes_of_mut(&mut header));
        if header.version_major != VERSION_MAJOR {
            return Err(SegmentError::VersionMismatch { found: header.version_major, expected: VERSION_MAJOR });
        }
        let policy = DropPolicy::from_number(header.policy).ok_or(SegmentError::BadField {
            field: "policy",
            value: header.policy.into(),
            wanted: "must be 0 (drop newest) or 1 (drop oldest)",
        })?;
        let geometry = RingGeometry {
            slot_count: header.slot_count,
            max_columns: header.max_columns,
            max_rows: header.max_rows,
            payload_capacity: header.payload_capacity,
            policy,
        };
        geometry.check()?;
        for (field, value, wanted) in [
            ("header_bytes", u64::from(header.header_bytes), FRAMES_HEADER_BYTES as u64),
            ("frame_header_bytes", header.frame_header_bytes.into(), FRAME_HEADER_BYTES as u64),
            ("slots_offset", header.slots_offset, FRAMES_HEADER_BYTES as u64),
            ("slot_stride", header.slot_stride, geometry.slot_stride()),
            ("segment_bytes", header.segment_bytes, geometry.segment_bytes()),
        ] {
            if value != wanted {
                return Err(SegmentError::BadField { field, value, wanted: "does not follow from the other fields" });
            }
        }
        if actual != geometry.segment_bytes() {
            return Err(SegmentError::WrongSize { expected: geometry.segment_bytes(), actual });
        }
        let cursor = word(&memory, offset_of!(FramesHeader, write_cursor)).load(Ordering::Acquire);
        if cursor >= TICKET_LIMIT {
            return Err(SegmentError::BadField { field: "write_cursor", value: cursor, wanted: "must be below 2^55" });
        }
        if word(&memory, offset_of!(FramesHeader, retired)).load(Ordering::Acquire) != 0 {
            return Err(SegmentError::Retired);
        }
        Ok(Self { memory, geometry, instance_id: header.instance_id })
    }

    /// The ring's size.
    pub fn geometry(&self) -> &RingGeometry {
        &self.geometry
    }

    /// Number of this segment's creation.
    pub fn instance_id(&self) -> u64 {
        self.instance_id
    }

    /// Whether the daemon has replaced this segment.
    pub fn is_retired(&self) -> bool {
        self.field(offset_of!(FramesHeader, retired)).load(Ordering::Acquire) != 0
    }

    /// Tells attached producers to look for the new segment.
    pub fn retire(&self) {
        self.field(offset_of!(FramesHeader, retired)).store(1, Ordering::Release);
    }

    /// The producer's counters now.
    pub fn producer_counters(&self) -> ProducerCounters {
        let load = |offset| self.field(offset).load(Ordering::Relaxed);
        ProducerCounters {
            written: load(offset_of!(FramesHeader, written)),
            dropped_newest: load(offset_of!(FramesHeader, dropped_newest)),
            dropped_oldest: load(offset_of!(FramesHeader, dropped_oldest)),
            reclaimed_writing: load(offset_of!(FramesHeader, reclaimed_writing)),
            epoch: load(offset_of!(FramesHeader, epoch)),
            heartbeat_ns: load(offset_of!(FramesHeader, producer_heartbeat_ns)),
            pid: load(offset_of!(FramesHeader, producer_pid)),
        }
    }

    /// The consumer's last sign of life, CLOCK_MONOTONIC ns; 0 = never.
    pub fn consumer_heartbeat_ns(&self) -> u64 {
        self.field(offset_of!(FramesHeader, consumer_heartbeat_ns)).load(Ordering::Relaxed)
    }

    pub(super) fn field(&self, offset: usize) -> &AtomicU64 {
        word(&self.memory, offset)
    }

    /// Adds to a counter that one process writes at a time.
    pub(super) fn count(&self, offset: usize, by: u64) {
        self.field(offset).fetch_add(by, Ordering::Relaxed);
    }
}

impl<M: SharedMemory> RingCells for FrameRing<M> {
    fn slot_count(&self) -> u64 {
        self.geometry.slot_count.into()
    }
    fn slot(&self, index: u64) -> &AtomicU64 {
        self.field(self.geometry.header_offset(index) - FRAME_SLOT_CONTROL_BYTES)
    }
    fn write_cursor(&self) -> &AtomicU64 {
        self.field(offset_of!(FramesHeader, write_cursor))
    }
}
