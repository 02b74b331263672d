//! Training pairs for SliceFixer: what the methods of this program make of few views, beside the truth.
//!
//! ```text
//! subject (CT volume | phantom) ─▶ reference on the grid ────────────────────────────────▶ reference.safetensors
//!      │                                                                                        │
//!      └─▶ dense views of each geometry ─▶ subset, noise ─▶ Gaussians | field | FDK | OS-SART ──▶ NNN.safetensors
//!                    (simulate)              (draw)              (degrade)                      (shard)
//! ```
//!
//! Every draw depends on the seed, the subject's name and the scan's number alone, so that shards do not depend on the order in which
//! they are made, on threads, or on whether the work was interrupted. `docs/curation.md` is the format.

#![forbid(unsafe_code)]

mod body;
mod catalogue;
mod deform;
mod degrade;
mod draw;
mod error;
mod options;
mod phantom;
mod picture;
mod run;
mod shard;
mod subjects;

#[cfg(test)]
mod tests;

pub use catalogue::CATALOGUE_FILE;
pub use draw::{AngleLaw, DegradedBy, DetectorPlace, GeometryDraw, ScanDraw, scan};
pub use error::CurateError;
pub use options::Options;
pub use picture::PICTURE_FILE;
pub use run::{Progress, Summary, curate};
pub use subjects::{Gathered, Request, Source, Split, Subject, gather};

/// Version of the format; the first thing that a reader should look at.
pub const FORMAT: &str = "diffnr-curation 2";

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
