//! The protocol between a CT gantry, the reconstruction daemon and the readers of its volumes.
//!
//! ```text
//!   gantry ──frames──▶ NAME.frames (ring)  ──▶ daemon ──▶ NAME.volumes (slots) ──volumes──▶ viewer
//!            producer                 consumer        writer                    readers
//! ```
//!
//! * [`layout`]: every byte that is shared, asserted here, in `include/diffnr_bridge.h` and tabulated in PROTOCOL.md;
//! * [`ring`]: frames in; one producer, one consumer, nobody waits;
//! * [`slots`]: volumes and status out; one writer, many readers with leases;
//! * [`memory`]: the unsafe room;
//! * with feature `std`: [`mapping`] (segments in /dev/shm), [`clock`], [`recording`] (scans on disk).
#![cfg_attr(feature = "std", doc = include_str!("../README.md"))]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

pub mod crc;
pub mod error;
pub mod layout;
#[cfg(not(loom))]
pub mod memory;
pub mod ring;
pub mod slots;
mod sync;

#[cfg(all(feature = "std", not(loom)))]
pub mod clock;
#[cfg(all(feature = "std", not(loom)))]
pub mod mapping;
#[cfg(all(feature = "std", not(loom)))]
pub mod recording;
