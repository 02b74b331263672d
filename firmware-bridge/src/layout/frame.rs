//! `NAME.frames`: header, slots and the header of one frame.

use super::{CACHE_LINE, assert_offsets};
use bytemuck::{Pod, Zeroable};

/// First eight bytes of `NAME.frames`, ASCII "DNRFRAM1" read as a little-endian u64. Written last.
pub const FRAMES_MAGIC: u64 = u64::from_le_bytes(*b"DNRFRAM1");
/// Bytes before the first slot.
pub const FRAMES_HEADER_BYTES: usize = 1024;
/// Bytes of one [`FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = 256;
/// Bytes of a slot's control line, before the frame header.
pub const FRAME_SLOT_CONTROL_BYTES: usize = CACHE_LINE;
/// Sequence numbers at or above this are refused as nonsense (2^48: eight years at a million frames a second).
pub const SEQUENCE_LIMIT: u64 = 1 << 48;

/// Header of the segment `NAME.frames`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct FramesHeader {
    /// [`FRAMES_MAGIC`], stored last with Release; 0 while the daemon is still initialising. Atomic.
    pub magic: u64,
    /// Protocol major version.
    pub version_major: u16,
    /// Protocol minor version.
    pub version_minor: u16,
    /// Bytes before the first slot.
    pub header_bytes: u32,
    /// Bytes of the whole segment.
    pub segment_bytes: u64,
    /// Random number of this segment's creation; a re-created segment has another one.
    pub instance_id: u64,
    /// CLOCK_MONOTONIC at creation, ns.
    pub created_ns: u64,
    /// Process that created the segment.
    pub creator_pid: u32,
    /// 0 = DROP_NEWEST, 1 = DROP_OLDEST.
    pub policy: u32,
    /// Number of slots.
    pub slot_count: u32,
    /// Bytes of a frame header.
    pub frame_header_bytes: u32,
    /// Offset of slot 0 from the segment's start.
    pub slots_offset: u64,
    /// Bytes from one slot to the next.
    pub slot_stride: u64,
    /// Largest payload of a slot, bytes.
    pub payload_capacity: u64,
    /// Largest number of detector columns (u).
    pub max_columns: u32,
    /// Largest number of detector rows (v).
    pub max_rows: u32,
    /// Zero.
    pub reserved0: [u64; 5],
    /// Producer line: ticket that will be published next. Atomic.
    pub write_cursor: u64,
    /// Number of producer attachments so far; the current producer's epoch. Atomic.
    pub epoch: u64,
    /// The producer's CLOCK_MONOTONIC at its last call, ns. Atomic.
    pub producer_heartbeat_ns: u64,
    /// The producer's process id, 0 after an orderly detach. Atomic.
    pub producer_pid: u64,
    /// Zero.
    pub reserved1: [u64; 12],
    /// Frames published. Atomic, as all counters.
    pub written: u64,
    /// New frames dropped because the ring was full.
    pub dropped_newest: u64,
    /// Unread frames overwritten (DROP_OLDEST).
    pub dropped_oldest: u64,
    /// Slots found WRITING by an attaching producer (its predecessor died in mid-write).
    pub reclaimed_writing: u64,
    /// Zero.
    pub reserved2: [u64; 12],
    /// Consumer line: ticket the consumer looks at next (for display). Atomic.
    pub read_cursor: u64,
    /// The daemon's CLOCK_MONOTONIC at its last poll, ns. Atomic.
    pub consumer_heartbeat_ns: u64,
    /// The daemon's process id, 0 after an orderly detach. Atomic.
    pub consumer_pid: u64,
    /// 1 once the daemon has replaced this segment by a new one: re-attach. Atomic.
    pub retired: u64,
    /// Zero.
    pub reserved3: [u64; 12],
    /// Frames taken out of the ring, good or bad.
    pub consumed: u64,
    /// Frames whose header CRC was wrong.
    pub crc_errors_header: u64,
    /// Frames whose payload CRC was wrong.
    pub crc_errors_payload: u64,
    /// Frames whose header has a right CRC and impossible contents.
    pub invalid_headers: u64,
    /// Frames seen before.
    pub duplicates: u64,
    /// Frames that arrived after a later one.
    pub late: u64,
    /// Ranges of missing sequence numbers opened.
    pub gaps: u64,
    /// Sequence numbers missing now (late arrivals subtract).
    pub missing_frames: u64,
    /// Times that the epoch changed between two frames.
    pub epoch_changes: u64,
    /// Slots found READING by an attaching consumer (its predecessor died holding them).
    pub reclaimed_reading: u64,
    /// Consumer attachments.
    pub consumer_attachments: u64,
    /// Zero.
    pub reserved4: [u64; 53],
}

assert_offsets!(FramesHeader, size FRAMES_HEADER_BYTES, {
    magic: 0, version_major: 8, version_minor: 10, header_bytes: 12, segment_bytes: 16, instance_id: 24, created_ns: 32,
    creator_pid: 40, policy: 44, slot_count: 48, frame_header_bytes: 52, slots_offset: 56, slot_stride: 64,
    payload_capacity: 72, max_columns: 80, max_rows: 84, reserved0: 88,
    write_cursor: 128, epoch: 136, producer_heartbeat_ns: 144, producer_pid: 152, reserved1: 160,
    written: 256, dropped_newest: 264, dropped_oldest: 272, reclaimed_writing: 280, reserved2: 288,
    read_cursor: 384, consumer_heartbeat_ns: 392, consumer_pid: 400, retired: 408, reserved3: 416,
    consumed: 512, crc_errors_header: 520, crc_errors_payload: 528, invalid_headers: 536, duplicates: 544, late: 552,
    gaps: 560, missing_frames: 568, epoch_changes: 576, reclaimed_reading: 584, consumer_attachments: 592, reserved4: 600,
});

/// Control line of a frame slot; the frame header and the payload follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct FrameSlotControl {
    /// Ticket << 8 | state (0 FREE, 1 WRITING, 2 FULL, 3 READING). Atomic.
    pub word: u64,
    /// Zero.
    pub reserved: [u64; 15],
}

assert_offsets!(FrameSlotControl, size FRAME_SLOT_CONTROL_BYTES, { word: 0, reserved: 8 });

/// What the pixels of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FrameKind {
    /// Raw detector counts, u16.
    CountsU16 = 1,
    /// Line integrals of attenuation (dimensionless), f32.
    LineIntegralsF32 = 2,
    /// Calibration: detector without X-rays, u16.
    DarkU16 = 3,
    /// Calibration: X-rays without object, u16.
    FlatU16 = 4,
}

impl FrameKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::CountsU16),
            2 => Some(Self::LineIntegralsF32),
            3 => Some(Self::DarkU16),
            4 => Some(Self::FlatU16),
            _ => None,
        }
    }

    /// Bytes of one pixel.
    pub const fn bytes_per_pixel(self) -> u64 {
        match self {
            Self::LineIntegralsF32 => 4,
            _ => 2,
        }
    }

    /// Whether the frame is a view of the object (and so needs a pose), not a calibration frame.
    pub const fn is_projection(self) -> bool {
        matches!(self, Self::CountsU16 | Self::LineIntegralsF32)
    }
}

/// Flag: first frame of a scan.
pub const FRAME_FIRST: u32 = 1 << 0;
/// Flag: last frame of a scan.
pub const FRAME_LAST: u32 = 1 << 1;
/// Flag: `payload_crc32c` holds the CRC of the payload.
pub const FRAME_PAYLOAD_CRC: u32 = 1 << 2;

/// Header of one frame, in the ring and in a recording.
///
/// World frame: isocentre at 0, z the rotation axis, mm. The centre of pixel (row i, column j) lies at
/// `detector_origin_mm + j * column_step_mm + i * row_step_mm`. The payload is `[row v][column u]`, u fastest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Zeroable, Pod)]
pub struct FrameHeader {
    /// Protocol major version.
    pub version_major: u16,
    /// Protocol minor version.
    pub version_minor: u16,
    /// Bytes of this header (256).
    pub header_bytes: u32,
    /// Number of the frame in its epoch, from 0, without holes: what the receiver counts gaps by.
    pub sequence: u64,
    /// CLOCK_MONOTONIC when the exposure ended, ns.
    pub timestamp_ns: u64,
    /// Epoch of the producer that wrote it.
    pub epoch: u32,
    /// [`FrameKind`] as a number.
    pub kind: u32,
    /// `FRAME_*` bits; unknown bits are ignored.
    pub flags: u32,
    /// View of the scan, from 0 (calibration frames: number of the repetition).
    pub view_index: u32,
    /// Views of the scan; 0 = not known.
    pub total_views: u32,
    /// Detector columns (u).
    pub columns: u32,
    /// Detector rows (v).
    pub rows: u32,
    /// Exposure of this frame relative to that of the flat frames (1 = same tube output and time).
    pub relative_exposure: f32,
    /// columns x rows x bytes of a pixel.
    pub payload_bytes: u64,
    /// X-ray source, mm.
    pub source_mm: [f64; 3],
    /// Centre of pixel (row 0, column 0), mm.
    pub detector_origin_mm: [f64; 3],
    /// From one column's centre to the next, mm.
    pub column_step_mm: [f64; 3],
    /// From one row's centre to the next, mm.
    pub row_step_mm: [f64; 3],
    /// Free number of the scan; 0 = none.
    pub scan_id: u64,
    /// Counts of an unattenuated pixel, for scans without flat frames; 0 = not known.
    pub i0_counts: f32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved1: [u64; 9],
    /// CRC32C of the payload, with flag PAYLOAD_CRC; else 0.
    pub payload_crc32c: u32,
    /// CRC32C of bytes 0 to 251 of this header.
    pub header_crc32c: u32,
}

assert_offsets!(FrameHeader, size FRAME_HEADER_BYTES, {
    version_major: 0, version_minor: 2, header_bytes: 4, sequence: 8, timestamp_ns: 16, epoch: 24, kind: 28, flags: 32,
    view_index: 36, total_views: 40, columns: 44, rows: 48, relative_exposure: 52, payload_bytes: 56, source_mm: 64,
    detector_origin_mm: 88, column_step_mm: 112, row_step_mm: 136, scan_id: 160, i0_counts: 168, reserved0: 172,
    reserved1: 176, payload_crc32c: 248, header_crc32c: 252,
});

/// Magic of a recording file, ASCII "DNRREC01".
pub const RECORDING_MAGIC: u64 = u64::from_le_bytes(*b"DNRREC01");
/// Bytes of [`RecordingHeader`].
pub const RECORDING_HEADER_BYTES: usize = 64;

/// First bytes of a recording; `frame_count` records (frame header, payload, zero bytes up to a multiple of 8) follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable, Pod)]
pub struct RecordingHeader {
    /// [`RECORDING_MAGIC`].
    pub magic: u64,
    /// Protocol major version.
    pub version_major: u16,
    /// Protocol minor version.
    pub version_minor: u16,
    /// Bytes of this header (64).
    pub header_bytes: u32,
    /// Number of frames; 0 while being written.
    pub frame_count: u64,
    /// Largest payload of a frame, bytes.
    pub max_payload_bytes: u64,
    /// Largest number of columns.
    pub max_columns: u32,
    /// Largest number of rows.
    pub max_rows: u32,
    /// Zero.
    pub reserved: [u64; 2],
    /// Zero.
    pub reserved_last: u32,
    /// CRC32C of bytes 0 to 59.
    pub header_crc32c: u32,
}

assert_offsets!(RecordingHeader, size RECORDING_HEADER_BYTES, {
    magic: 0, version_major: 8, version_minor: 10, header_bytes: 12, frame_count: 16, max_payload_bytes: 24,
    max_columns: 32, max_rows: 36, reserved: 40, reserved_last: 56, header_crc32c: 60,
});
