//! Why a segment, a frame or a volume was refused.

use thiserror::Error;

/// A segment cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// The magic is still zero.
    #[error("the segment is not finalised yet (its magic is still 0): wait for the daemon, or remove the segment")]
    NotYetFinalized,
    /// The magic is another one.
    #[error("not a segment of this kind: magic is {found:#018x}, must be {expected:#018x}")]
    WrongMagic {
        /// Value found.
        found: u64,
        /// Value wanted.
        expected: u64,
    },
    /// Another major version of the protocol.
    #[error(
        "protocol version {found} in the segment, this program speaks {expected}: use the same release on both sides"
    )]
    VersionMismatch {
        /// Major version found.
        found: u16,
        /// Major version wanted.
        expected: u16,
    },
    /// The mapping is shorter or longer than the header says.
    #[error("the segment has {actual} bytes but its header needs {expected}: it is truncated or of another layout")]
    WrongSize {
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes mapped.
        actual: u64,
    },
    /// A field of the segment's header is impossible.
    #[error("segment header: {field} is {value}; {wanted}")]
    BadField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// The daemon has replaced this segment.
    #[error("the segment was replaced by a restarted daemon: attach again")]
    Retired,
    /// A found segment has another layout than asked for.
    #[error("the existing segment differs in {field}: {found}, wanted {wanted}")]
    LayoutDiffers {
        /// Name of the field.
        field: &'static str,
        /// Value in the segment.
        found: u64,
        /// Value asked for.
        wanted: u64,
    },
}

/// Why a frame header is not usable. Every variant means: do not look at the payload.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum FrameError {
    /// Header CRC differs: no field can be trusted.
    #[error("header CRC32C is {found:#010x}, computed {computed:#010x}")]
    HeaderCrc {
        /// Stored value.
        found: u32,
        /// Value of the bytes.
        computed: u32,
    },
    /// Payload CRC differs.
    #[error("payload CRC32C is {found:#010x}, computed {computed:#010x}")]
    PayloadCrc {
        /// Stored value.
        found: u32,
        /// Value of the bytes.
        computed: u32,
    },
    /// Another version.
    #[error("frame header version {found}, this program speaks {expected}")]
    Version {
        /// Major version found.
        found: u16,
        /// Major version wanted.
        expected: u16,
    },
    /// A whole-number field is impossible.
    #[error("frame header: {field} is {value}; {wanted}")]
    Integer {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// A real field is impossible.
    #[error("frame header: {field} is {value}; {wanted}")]
    Real {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        wanted: &'static str,
    },
}

/// Why a volume was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Every slot but the newest is leased; the publication was skipped and counted.
    #[error("all volume slots are leased by readers: publication skipped")]
    AllSlotsLeased,
    /// The payload does not fit its header or the slot.
    #[error("volume: {field} is {value}; {wanted}")]
    BadField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
}

/// Why a volume could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// No volume has been published yet.
    #[error("no volume has been published yet")]
    NothingPublished,
    /// Every entry of the lease table is taken.
    #[error("no free entry in the lease table: too many readers")]
    NoFreeLease,
    /// The newest volume kept changing while a lease was sought.
    #[error("the newest volume changed too often while a lease was sought: try again")]
    Contended,
    /// The lease ran out and the writer took the slot: what was read must be thrown away.
    #[error("the lease expired and was revoked while reading: ask for a longer lease")]
    LeaseRevoked,
    /// A CRC differs.
    #[error("{part} CRC32C is {found:#010x}, computed {computed:#010x}")]
    Crc {
        /// "header" or "payload".
        part: &'static str,
        /// Stored value.
        found: u32,
        /// Value of the bytes.
        computed: u32,
    },
    /// A header field is impossible.
    #[error("volume header: {field} is {value}; {wanted}")]
    BadField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// The destination is too small.
    #[error("the destination holds {actual} values, the volume has {needed}")]
    DestinationTooSmall {
        /// Values wanted.
        needed: usize,
        /// Values there.
        actual: usize,
    },
}
