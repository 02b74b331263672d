//! Phantoms and acquisition physics: from an object (an analytic phantom or a CT volume) to a scan on disk.

#![forbid(unsafe_code)]

pub mod classic_phantoms;
pub mod contact_picture;
pub mod ellipsoids;
pub mod gaussian_blob;
pub mod layered;
pub mod thorax;
