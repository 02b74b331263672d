//! Frames in: the ring `NAME.frames`, one producer (gantry), one consumer (daemon).

#[cfg(not(loom))]
mod consumer;
pub mod machine;
#[cfg(not(loom))]
mod producer;
#[cfg(not(loom))]
mod segment;
#[cfg(not(loom))]
mod tracker;
#[cfg(not(loom))]
mod validate;

#[cfg(not(loom))]
pub use consumer::{ConsumerCounters, Frame, FrameConsumer, Polled, Rejection};
pub use machine::DropPolicy;
#[cfg(not(loom))]
pub use producer::{FrameProducer, Sent, WriteSlot};
#[cfg(not(loom))]
pub use segment::{FrameRing, ProducerCounters, RingGeometry};
#[cfg(not(loom))]
pub use tracker::{Arrival, GAP_CAPACITY, GapRange, SequenceTracker, TrackerCounts};
