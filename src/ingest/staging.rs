//! Buffers between ingest and reconstruction: allocated once, handed to and fro.

use std::sync::OnceLock;
use std::thread::Thread;

use bytemuck::Zeroable;
use crossbeam::queue::ArrayQueue;
use firmware_bridge::layout::{FrameHeader, FrameKind};
use firmware_bridge::ring::Arrival;

use crate::geometry::Detector;

/// A frame copied out of the ring.
#[derive(Debug)]
pub struct StagedFrame {
    /// The checked header.
    pub header: FrameHeader,
    /// What the pixels are.
    pub kind: FrameKind,
    /// How it arrived.
    pub arrival: Arrival,
    /// When ingest took it, CLOCK_MONOTONIC ns.
    pub taken_ns: u64,
    /// Pixels `[row v][column u]`; u16 kinds fill the first half.
    storage: Vec<f32>,
}

impl StagedFrame {
    fn new(detector: Detector) -> Self {
        Self {
            header: FrameHeader::zeroed(),
            kind: FrameKind::CountsU16,
            arrival: Arrival::InOrder,
            taken_ns: 0,
            storage: vec![0.0; detector.pixels()],
        }
    }

    /// Takes a frame over; `payload` is of the planned detector's size (its shape was checked before).
    pub(super) fn fill(
        &mut self,
        header: &FrameHeader,
        kind: FrameKind,
        arrival: Arrival,
        taken_ns: u64,
        payload: &[u8],
    ) {
        (self.header, self.kind, self.arrival, self.taken_ns) = (*header, kind, arrival, taken_ns);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.storage);
        let len = payload.len().min(bytes.len());
        bytes[..len].copy_from_slice(&payload[..len]);
    }

    /// Counts `[row v][column u]`; of line integrals: nothing of use.
    #[must_use]
    pub fn counts(&self) -> &[u16] {
        let pixels = self.storage.len();
        &bytemuck::cast_slice(&self.storage)[..pixels]
    }

    /// Line integrals `[row v][column u]`; of counts: nothing of use.
    #[must_use]
    pub fn line_integrals(&self) -> &[f32] {
        &self.storage
    }
}

/// The buffers: free ones, and filled ones in the order of arrival. Each buffer belongs to whoever took it out of its queue.
#[derive(Debug)]
pub struct Staging {
    free: ArrayQueue<Box<StagedFrame>>,
    filled: ArrayQueue<Box<StagedFrame>>,
    receiver: OnceLock<Thread>,
}

impl Staging {
    /// Bytes that [`Staging::new`] allocates.
    #[must_use]
    pub fn bytes(frames: usize, detector: Detector) -> u64 {
        // Two queues of (pointer, stamp) beside the frames.
        (frames * (detector.pixels() * 4 + size_of::<StagedFrame>() + 2 * 16)) as u64
    }

    /// `frames` free buffers.
    #[must_use]
    pub fn new(frames: usize, detector: Detector) -> Self {
        let (free, filled) = (ArrayQueue::new(frames), ArrayQueue::new(frames));
        for _ in 0..frames {
            // Never more than the queue's capacity.
            let _full = free.push(Box::new(StagedFrame::new(detector)));
        }
        Self { free, filled, receiver: OnceLock::new() }
    }

    /// How many buffers there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.filled.capacity()
    }

    /// How many filled ones wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.filled.len()
    }

    /// The calling thread is the one to wake when a frame is handed on.
    pub fn receive_here(&self) {
        let _set_before = self.receiver.set(std::thread::current());
    }

    /// A free buffer, if there is one.
    pub fn take_free(&self) -> Option<Box<StagedFrame>> {
        self.free.pop()
    }

    /// Makes a buffer free again.
    pub fn give_back(&self, frame: Box<StagedFrame>) {
        // There are only as many buffers as the queue holds.
        let _full = self.free.push(frame);
    }

    /// Hands a filled buffer on; returns how many wait now.
    pub fn hand_on(&self, frame: Box<StagedFrame>) -> usize {
        let _full = self.filled.push(frame);
        self.wake();
        self.filled.len()
    }

    /// The next filled buffer, if there is one.
    pub fn take_filled(&self) -> Option<Box<StagedFrame>> {
        self.filled.pop()
    }

    /// Wakes the receiver.
    pub fn wake(&self) {
        if let Some(receiver) = self.receiver.get() {
            receiver.unpark();
        }
    }
}
