//! The list of every buffer.

use serde::Serialize;

/// Where a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Ordinary memory of the daemon.
    Host,
    /// Memory that a device reads without a copy.
    Pinned,
    /// Memory of the device.
    Device,
    /// Shared memory.
    Shared,
}

impl Place {
    /// In words, as the table prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Pinned => "pinned",
            Self::Device => "device",
            Self::Shared => "shared",
        }
    }
}

/// One buffer: what it is for, how large, where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// Stage and content.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Where it lies.
    pub place: Place,
}

impl Buffer {
    /// A buffer of the list.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: u64, place: Place) -> Self {
        Self { name: name.into(), bytes, place }
    }
}
