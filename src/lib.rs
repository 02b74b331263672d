//! `diffnr`: the reconstruction runtime beside a cone-beam CT gantry.
//!
//! ```text
//! gantry ──frames──▶ ingest ▶ preprocess ▶ reconstruct ─────────────▶ publish ──volumes──▶ viewer
//!          (shm ring)                       analytic: FDK preview     (shm slots)   NIfTI
//!                           plan (schedule + memory budget) governs all of it; compute carries it out
//! ```
//!
//! Modules, in the order of the data's way:

pub mod cli;
pub mod config;
pub mod error;
pub mod geometry;

pub mod plan;

pub mod ingest;
pub mod preprocess;
pub mod compute;
pub mod reconstruct;
pub mod represent;
pub mod repair;
pub mod publish;

pub mod self_test;
pub mod daemon;
pub mod supervise;

pub mod formats;
pub mod measure;
pub mod simulate;
pub mod curate;
