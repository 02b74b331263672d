//! The gantry's end of the ring in Rust (`c/producer.c` is its twin): for `diffnr replay` and tests.
#![allow(unsafe_code)]

use super::machine::{Claim, abandon, claim, publish, reclaim_producer};
use super::segment::FrameRing;
use crate::crc::crc32c;
use crate::layout::{FRAME_PAYLOAD_CRC, FrameHeader, FramesHeader};
use crate::memory::{SharedMemory, owned_slice_mut, store_bytes};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// Puts frames into the ring. Never waits.
#[derive(Debug)]
pub struct FrameProducer<M: SharedMemory> {
    ring: FrameRing<M>,
    ticket: u64,
    epoch: u32,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the ring; `replaced` = an unread frame was overwritten for it.
    Written {
        /// Whether an unread frame was given up.
        replaced: bool,
    },
    /// The ring was full: dropped and counted.
    Dropped,
    /// The payload is larger than a slot: not counted, a mistake of the caller.
    TooLarge,
    /// The daemon has replaced the segment by a new one: attach again. Not counted.
    Retired,
    /// Another producer has taken the slot over: stop, attach again.
    Superseded,
}

/// A claimed slot: fill the payload, then [`WriteSlot::commit`]. Dropping it gives the slot back unused.
#[derive(Debug)]
pub struct WriteSlot<'a, M: SharedMemory> {
    producer: &'a mut FrameProducer<M>,
    replaced: bool,
    finished: bool,
}

impl<M: SharedMemory> FrameProducer<M> {
    /// Becomes the ring's producer: the epoch goes up by one, slots left WRITING by a dead producer are freed and counted.
    /// There must be no other producer alive (`mapping` holds a file lock for that).
    pub fn attach(ring: FrameRing<M>, pid: u32, now_ns: u64) -> Self {
        let epoch = ring.field(offset_of!(FramesHeader, epoch)).fetch_add(1, Ordering::AcqRel).wrapping_add(1) as u32;
        let (ticket, freed) = reclaim_producer(&ring);
        ring.count(offset_of!(FramesHeader, reclaimed_writing), freed);
        ring.field(offset_of!(FramesHeader, producer_pid)).store(pid.into(), Ordering::Relaxed);
        ring.field(offset_of!(FramesHeader, producer_heartbeat_ns)).store(now_ns, Ordering::Relaxed);
        Self { ring, ticket, epoch }
    }

    /// This producer's epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The ring itself: geometry, counters, `is_retired`.
    pub fn ring(&self) -> &FrameRing<M> {
        &self.ring
    }

    /// Asks for a slot to write into; `None`: full, the frame counts as dropped.
    pub fn begin(&mut self, now_ns: u64) -> Option<WriteSlot<'_, M>> {
        self.ring.field(offset_of!(FramesHeader, producer_heartbeat_ns)).store(now_ns, Ordering::Relaxed);
        match claim(&self.ring, self.ticket, self.ring.geometry().policy) {
            Claim::Claimed { replaced } => {
                if replaced {
                    self.ring.count(offset_of!(FramesHeader, dropped_oldest), 1);
                }
                Some(WriteSlot { producer: self, replaced, finished: false })
            }
            Claim::Full => {
                self.ring.count(offset_of!(FramesHeader, dropped_newest), 1);
                None
            }
        }
    }

    /// Copies one frame into the ring. `epoch`, `payload_bytes`, version and CRCs of the header are filled in here (the
    /// payload's CRC with flag PAYLOAD_CRC).
    pub fn send(&mut self, header: &FrameHeader, payload: &[u8], now_ns: u64) -> Sent {
        if payload.len() as u64 > self.ring.geometry().payload_capacity {
            return Sent::TooLarge;
        }
        if self.ring.is_retired() {
            return Sent::Retired;
        }
        let Some(mut slot) = self.begin(now_ns) else {
            return Sent::Dropped;
        };
        slot.payload_mut()[..payload.len()].copy_from_slice(payload);
        let mut header = *header;
        header.payload_bytes = payload.len() as u64;
        slot.commit(header)
    }

    /// Orderly detach: the segment says that nobody produces.
    pub fn detach(self) -> FrameRing<M> {
        self.ring.field(offset_of!(FramesHeader, producer_pid)).store(0, Ordering::Relaxed);
        self.ring
    }

    fn index(&self) -> u64 {
        self.ticket % u64::from(self.ring.geometry().slot_count)
    }
}

impl<M: SharedMemory> WriteSlot<'_, M> {
    /// The slot's whole payload, of the ring's capacity; aligned to 128 bytes.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let ring = &self.producer.ring;
        let offset = ring.geometry().payload_offset(self.producer.index());
        // SAFETY: the slot is WRITING by our compare-and-swap; `&mut self` makes the slice the only one.
        unsafe { owned_slice_mut(&ring.memory, offset, ring.geometry().payload_capacity as usize) }
    }

    /// Seals the header and makes the frame visible. `payload_bytes` must be set; epoch, version, CRCs are filled in.
    pub fn commit(mut self, mut header: FrameHeader) -> Sent {
        header.epoch = self.producer.epoch;
        header.payload_crc32c = 0;
        if header.has(FRAME_PAYLOAD_CRC) {
            let Some(payload) = self.payload_mut().get(..header.payload_bytes as usize) else {
                return Sent::TooLarge; // dropped: the slot is given back
            };
            header.payload_crc32c = crc32c(payload);
        }
        header.seal();
        self.commit_sealed(&header)
    }

    /// Makes the frame visible with the header as it is: for recordings and for tests of broken headers.
    pub fn commit_sealed(mut self, header: &FrameHeader) -> Sent {
        self.finished = true;
        let producer = &mut *self.producer;
        let ring = &producer.ring;
        store_bytes(&ring.memory, ring.geometry().header_offset(producer.index()), bytemuck::bytes_of(header));
        if !publish(ring, producer.ticket) {
            return Sent::Superseded;
        }
        ring.count(offset_of!(FramesHeader, written), 1);
        producer.ticket = producer.ticket.saturating_add(1);
        Sent::Written { replaced: self.replaced }
    }
}

impl<M: SharedMemory> Drop for WriteSlot<'_, M> {
    fn drop(&mut self) {
        if !self.finished {
            abandon(&self.producer.ring, self.producer.ticket);
        }
    }
}
