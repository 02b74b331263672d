//! Phantoms and acquisition physics: from an object (an analytic phantom or a CT volume) to a scan on disk.
//!
//! ```text
//! ellipsoids ┐                  orbit_design
//! layered    ├─▶ object ──────────▶ acquire ──▶ photon_noise ──▶ line integrals ─┐
//! ct_object  ┘     │        (sub-pixel rays)        │                            ├─▶ scene folder
//!                  │                                └─▶ raw_detector ▶ counts ───┤
//!                  └─▶ cell averages on the scan's grid: the ground truth ───────┘
//! ```

#![forbid(unsafe_code)]

pub mod acquire;
pub mod classic_phantoms;
pub mod contact_picture;
pub mod ct_object;
pub mod ellipsoids;
pub mod error;
pub mod gaussian_blob;
pub mod layered;
pub mod object;
pub mod nodule_set;
pub mod orbit_design;
pub mod photon_noise;
pub mod raw_detector;
pub mod recipe;
mod separable;
pub mod thorax;

#[cfg(test)]
mod tests;
