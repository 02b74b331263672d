//! SliceFixer: slices of a volume through a one-step model, and back as a pseudo-reference volume.
//!
//! ```text
//! manifest.toml ──▶ contract ─┐
//! ONNX Runtime  ──▶ library ──┼─▶ SliceFixer ── condition (two views, anatomy), once a scan
//! TensorRT | CUDA | CPU ──────┘        │
//!                                      ▼
//! volume 1/mm ──▶ slices of a plane between their neighbours ──▶ repaired ──▶ pseudo-reference 1/mm, disagreement HU
//! ```
//!
//! | module | |
//! |---|---|
//! | [`manifest`] | what a model takes and gives; a model that differs is refused by the name of what differs |
//! | [`library`] | finds and loads ONNX Runtime, once a process |
//! | [`providers`] | execution providers one by one, refusals kept, what really got the nodes |
//! | [`probe`], [`gpu`] | what a machine has, without a model: for `diffnr doctor` |
//! | [`session`] | the model in memory, warm-up |
//! | `runs` | the buffers of its runs, in the carrier's memory |
//! | [`conditioning`] | the two views and the part of the body that a scan is known by |
//! | [`volume`] | volume ▶ slices ▶ pseudo-reference |
//!
//! The method is DiffNR's (arXiv 2604.21518); unlike its released code one fixed window that can be inverted serves all slices, nothing passes
//! through 8 bit, nothing is sampled, and the two views are orthogonal.
//!
//! A model cannot spoil a volume: output that is no number or far outside the window refuses the whole repair ([`RepairError::Output`]),
//! as does a deadline that passes ([`RepairError::Late`]); both are [`crate::error::ErrorClass::Degrade`]: go on without, and count it.

pub mod conditioning;
mod error;
pub mod gpu;
pub mod library;
pub mod manifest;
pub mod probe;
pub mod providers;
mod raw;
mod runs;
pub mod session;
pub mod volume;
mod watchdog;

pub use conditioning::Conditioning;
pub use error::RepairError;
pub use manifest::{Manifest, Plane};
pub use providers::{Demand, Provider, Providers};
pub use runs::SliceBuffers;
pub use session::{Options, SliceFixer, WarmUp, shipped};
pub use volume::{Given, Repair, Repaired, Watch};
pub use watchdog::Ender;

#[cfg(test)]
mod tests;
