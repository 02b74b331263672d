//! Representations that are optimised against projections: parameters, initialisation, adaptive control.
//!
//! The operations they stand on are in [`crate::compute`]; the loop that drives them is in [`crate::reconstruct`].

#![forbid(unsafe_code)]

pub mod field;
pub mod gaussians;
