//! Volumes and status out: the slots `NAME.volumes`, one writer (daemon), many readers with leases.

pub mod machine;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod segment;
#[cfg(not(loom))]
mod status;
#[cfg(not(loom))]
mod writer;

#[cfg(not(loom))]
pub use reader::{LeasedVolume, VolumeReader};
#[cfg(not(loom))]
pub use segment::{VolumeGeometry, VolumeSlots};
#[cfg(not(loom))]
pub use status::{Status, StatusDetail, text_of, text_to};
#[cfg(not(loom))]
pub use writer::{Published, VolumeSlotWriter, VolumeWriter};
