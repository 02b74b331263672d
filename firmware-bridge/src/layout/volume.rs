//! `NAME.volumes`: header with status and leases, slots, and the header of one volume.

use super::{CACHE_LINE, assert_offsets};
use bytemuck::{Pod, Zeroable};

/// First eight bytes of `NAME.volumes`, ASCII "DNRVOLS1" read as a little-endian u64. Written last.
pub const VOLUMES_MAGIC: u64 = u64::from_le_bytes(*b"DNRVOLS1");
/// Bytes before the first volume slot: constants, status, leases.
pub const VOLUMES_HEADER_BYTES: usize = 8192;
/// Offset of the lease table.
pub const LEASES_OFFSET: usize = 4096;
/// Entries of the lease table.
pub const LEASE_COUNT: usize = 64;
/// Bytes of one [`LeaseEntry`].
pub const LEASE_BYTES: usize = 64;
/// Bytes of one [`VolumeHeader`].
pub const VOLUME_HEADER_BYTES: usize = 1024;
/// Offset of the volume header in a slot.
pub const VOLUME_SLOT_HEADER_OFFSET: usize = CACHE_LINE;
/// Offset of the payload in a slot (a page, so that a payload can be mapped alone).
pub const VOLUME_SLOT_PAYLOAD_OFFSET: usize = 4096;
/// Missing ranges that a volume header can list.
pub const VOLUME_MISSING_RANGES: usize = 16;
/// Missing ranges that the status block can list.
pub const STATUS_MISSING_RANGES: usize = 32;
/// Bytes of the status message.
pub const STATUS_MESSAGE_BYTES: usize = 128;

/// An inclusive range of sequence numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Zeroable, Pod)]
pub struct SequenceRange {
    /// First number of the range.
    pub first: u64,
    /// Last number of the range (included).
    pub last: u64,
}

assert_offsets!(SequenceRange, size 16, { first: 0, last: 8 });

impl SequenceRange {
    /// How many numbers the range holds.
    pub const fn count(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// Whether `sequence` lies in the range.
    pub const fn contains(&self, sequence: u64) -> bool {
        self.first <= sequence && sequence <= self.last
    }
}

/// Header of the segment `NAME.volumes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct VolumesHeader {
    /// [`VOLUMES_MAGIC`], stored last with Release; 0 while the daemon is still initialising. Atomic.
    pub magic: u64,
    /// Protocol major version.
    pub version_major: u16,
    /// Protocol minor version.
    pub version_minor: u16,
    /// Bytes before the first slot.
    pub header_bytes: u32,
    /// Bytes of the whole segment.
    pub segment_bytes: u64,
    /// Random number of this segment's creation.
    pub instance_id: u64,
    /// CLOCK_MONOTONIC at creation, ns.
    pub created_ns: u64,
    /// Process that created the segment.
    pub creator_pid: u32,
    /// Number of slots, at least 3.
    pub slot_count: u32,
    /// Entries of the lease table.
    pub lease_count: u32,
    /// Bytes of a volume header.
    pub volume_header_bytes: u32,
    /// Offset of slot 0.
    pub slots_offset: u64,
    /// Bytes from one slot to the next.
    pub slot_stride: u64,
    /// Largest payload of a slot, bytes.
    pub payload_capacity: u64,
    /// Offset of the lease table.
    pub leases_offset: u64,
    /// Zero.
    pub reserved0: [u64; 5],
    /// Generation << 8 | (slot + 1) of the newest volume; 0 = none yet. Atomic.
    pub newest: u64,
    /// 1 once the daemon has replaced this segment by a new one: re-attach. Atomic.
    pub retired: u64,
    /// Zero.
    pub reserved1: [u64; 14],
    /// [`DaemonState`] as a number. Atomic, as everything below.
    pub state: u64,
    /// The daemon's process id, 0 after an orderly stop.
    pub daemon_pid: u64,
    /// The daemon's CLOCK_MONOTONIC at its last sign of life, ns.
    pub heartbeat_ns: u64,
    /// Daemon attachments to this segment.
    pub attachments: u64,
    /// Volumes published.
    pub published: u64,
    /// Publications skipped because every slot was leased.
    pub publish_skipped: u64,
    /// Expired leases revoked.
    pub leases_revoked: u64,
    /// Slots found WRITING by an attaching daemon.
    pub reclaimed_writing: u64,
    /// Frames accepted since the daemon started.
    pub frames_accepted: u64,
    /// Frames rejected (CRC, header, duplicate).
    pub frames_rejected: u64,
    /// Sequence numbers missing in the current scan.
    pub frames_missing: u64,
    /// Epoch of the last frame.
    pub epoch: u64,
    /// Sequence number of the last frame.
    pub last_sequence: u64,
    /// Arrival of the last frame, CLOCK_MONOTONIC ns.
    pub last_frame_ns: u64,
    /// Frames of the current scan in the running reconstruction.
    pub scan_frames: u64,
    /// Views that the current scan announced; 0 = not known.
    pub scan_views: u64,
    /// Method that works on the scan, a `METHOD_*` number; 0 = not known (daemons of version 1.0).
    pub method: u64,
    /// Iterations done of the scan that is being optimised, or was last.
    pub iteration: u64,
    /// Iterations planned for it; 0 for analytic methods.
    pub iterations_planned: u64,
    /// Root of the mean squared difference of its line integrals at the last iteration, times 1e9.
    pub residual_1e9: u64,
    /// Time that the method has worked on it, ns.
    pub method_ns: u64,
    /// Zero.
    pub reserved2: [u64; 11],
    /// Counts up before and after each change of the detail below: odd = being changed.
    pub detail_version: u64,
    /// Entries of `missing` in use.
    pub missing_count: u64,
    /// Missing ranges that did not fit into `missing`.
    pub missing_unlisted: u64,
    /// Zero.
    pub reserved3: u64,
    /// UTF-8, zero-padded.
    pub message: [u8; STATUS_MESSAGE_BYTES],
    /// Missing sequence numbers of the current scan.
    pub missing: [SequenceRange; STATUS_MISSING_RANGES],
    /// Zero.
    pub reserved4: [u64; 364],
    /// Lease table.
    pub leases: [LeaseEntry; LEASE_COUNT],
}

assert_offsets!(VolumesHeader, size VOLUMES_HEADER_BYTES, {
    magic: 0, version_major: 8, version_minor: 10, header_bytes: 12, segment_bytes: 16, instance_id: 24, created_ns: 32,
    creator_pid: 40, slot_count: 44, lease_count: 48, volume_header_bytes: 52, slots_offset: 56, slot_stride: 64,
    payload_capacity: 72, leases_offset: 80, reserved0: 88,
    newest: 128, retired: 136, reserved1: 144,
    state: 256, daemon_pid: 264, heartbeat_ns: 272, attachments: 280, published: 288, publish_skipped: 296,
    leases_revoked: 304, reclaimed_writing: 312, frames_accepted: 320, frames_rejected: 328, frames_missing: 336,
    epoch: 344, last_sequence: 352, last_frame_ns: 360, scan_frames: 368, scan_views: 376, method: 384,
    iteration: 392, iterations_planned: 400, residual_1e9: 408, method_ns: 416, reserved2: 424,
    detail_version: 512, missing_count: 520, missing_unlisted: 528, reserved3: 536, message: 544, missing: 672,
    reserved4: 1184, leases: 4096,
});

/// One entry of the lease table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct LeaseEntry {
    /// Expiry in ms of CLOCK_MONOTONIC << 24 | nonce << 8 | (slot + 1); low byte 0 = free. Atomic.
    pub word: u64,
    /// Generation of the leased volume (for display; the word decides). Atomic.
    pub generation: u64,
    /// The reader's process id (for display). Atomic.
    pub reader_pid: u64,
    /// When the lease was taken, CLOCK_MONOTONIC ns (for display). Atomic.
    pub taken_ns: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

assert_offsets!(LeaseEntry, size LEASE_BYTES, { word: 0, generation: 8, reader_pid: 16, taken_ns: 24, reserved: 32 });

/// Control line of a volume slot; the volume header follows it, the payload starts at [`VOLUME_SLOT_PAYLOAD_OFFSET`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct VolumeSlotControl {
    /// Generation << 8 | state (0 EMPTY, 1 WRITING, 2 PUBLISHED). Atomic.
    pub word: u64,
    /// Zero.
    pub reserved: [u64; 15],
}

assert_offsets!(VolumeSlotControl, size CACHE_LINE, { word: 0, reserved: 8 });

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum DaemonState {
    /// Buffers are being made; frames are not taken yet.
    Starting = 1,
    /// Ready, no scan running.
    Ready = 2,
    /// Frames are arriving.
    Receiving = 3,
    /// All frames are in; the volume is being computed.
    Reconstructing = 4,
    /// Running with less than was asked for (see the message).
    Degraded = 5,
    /// Asked to stop; finishing.
    Stopping = 6,
    /// Stopped in an orderly way.
    Stopped = 7,
}

impl DaemonState {
    /// The state with this number, if there is one.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Starting),
            2 => Some(Self::Ready),
            3 => Some(Self::Receiving),
            4 => Some(Self::Reconstructing),
            5 => Some(Self::Degraded),
            6 => Some(Self::Stopping),
            7 => Some(Self::Stopped),
            _ => None,
        }
    }
}

/// Method: filtered back-projection, with no iterations.
pub const METHOD_FDK: u32 = 1;
/// Method: 3D Gaussians.
pub const METHOD_GAUSSIANS: u32 = 2;
/// Method: neural field.
pub const METHOD_FIELD: u32 = 3;

/// Volume status bit: made before the last frame.
pub const VOLUME_PREVIEW: u32 = 1 << 0;
/// Volume status bit: made of all frames of the scan. How far its method has come, `iteration` and `iterations_planned` say.
pub const VOLUME_FULL: u32 = 1 << 1;
/// Volume status bit: a planned stage was left out or broken off: what there is of the scan stands.
pub const VOLUME_DEGRADED: u32 = 1 << 2;
/// Volume status bit: frames of the scan are missing (see the ranges).
pub const VOLUME_PARTIAL: u32 = 1 << 3;
/// Volume status bit: older than the schedule promises.
pub const VOLUME_STALE: u32 = 1 << 4;

/// Header of one volume. The payload is f32 `[x][y][z]`, z fastest; attenuation in 1/mm is value x `value_scale`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Zeroable, Pod)]
pub struct VolumeHeader {
    /// Protocol major version.
    pub version_major: u16,
    /// Protocol minor version.
    pub version_minor: u16,
    /// Bytes of this header (1024).
    pub header_bytes: u32,
    /// Number of the volume in this segment, from 1.
    pub generation: u64,
    /// `instance_id` of the segment.
    pub instance_id: u64,
    /// Number of the scan, from its frames; 0 = none.
    pub scan_id: u64,
    /// Epoch of its frames.
    pub epoch: u32,
    /// `VOLUME_*` bits.
    pub status: u32,
    /// First sequence number that went in.
    pub first_sequence: u64,
    /// Last sequence number that went in.
    pub last_sequence: u64,
    /// How many frames went in.
    pub frames_used: u32,
    /// Iteration of the reconstruction; 0 for analytic ones.
    pub iteration: u32,
    /// Voxels along x, y, z.
    pub shape: [u32; 3],
    /// Entries of `missing` in use.
    pub missing_count: u32,
    /// Distance of voxel centres along x, y, z, mm.
    pub spacing_mm: [f64; 3],
    /// Centre of voxel (0, 0, 0), mm.
    pub origin_mm: [f64; 3],
    /// Attenuation of water, for HU = 1000 (mu - mu_water) / mu_water; 1/mm.
    pub mu_water_per_mm: f32,
    /// Attenuation in 1/mm of a stored 1.0.
    pub value_scale: f32,
    /// Arrival of the last frame that went in, CLOCK_MONOTONIC ns.
    pub last_frame_ns: u64,
    /// Publication, CLOCK_MONOTONIC ns.
    pub publish_ns: u64,
    /// nx x ny x nz x 4.
    pub payload_bytes: u64,
    /// Sequence numbers missing in all (also those of unlisted ranges).
    pub missing_frames: u64,
    /// SHA-256 of the settings.
    pub settings_hash: [u8; 32],
    /// SHA-256 of the repair model, where `repairs` is above 0; zero = none.
    pub model_hash: [u8; 32],
    /// Device that really ran, UTF-8, zero-padded.
    pub device: [u8; 32],
    /// Execution provider or carrier that really ran, UTF-8, zero-padded.
    pub provider: [u8; 32],
    /// Precision that really ran, UTF-8, zero-padded.
    pub precision: [u8; 16],
    /// 1 = f32.
    pub value_kind: u32,
    /// Iterations planned: once `iteration` has come to it, no better volume of the scan follows. 0 for analytic methods with nothing after
    /// them.
    pub iterations_planned: u32,
    /// Missing sequence numbers between `first_sequence` and `last_sequence`.
    pub missing: [SequenceRange; VOLUME_MISSING_RANGES],
    /// Method that made the volume, a `METHOD_*` number; 0 = not known (daemons of version 1.0).
    pub method: u32,
    /// Root of the mean squared difference of the line integrals at that iteration, dimensionless; 0 for analytic methods.
    pub residual: f32,
    /// Time that the method took up to this volume, ns, without what it did before the last frame; 0 for analytic methods.
    pub method_ns: u64,
    /// How many of the iterations were done while frames still came; 0: none.
    pub early_iterations: u32,
    /// From how many views these were: the first that came.
    pub early_views: u32,
    /// Repairs that the method was held to on its way to this volume.
    pub repairs: u32,
    /// Repairs planned for the whole run; 0: none.
    pub repairs_planned: u32,
    /// Repairs that were late or whose output could not be taken: the method went on without them.
    pub repairs_failed: u32,
    /// Time in all of these, ms.
    pub repair_ms: u32,
    /// Name of the repair model, where `repairs` is above 0; UTF-8, zero-padded.
    pub repair_model: [u8; 32],
    /// Execution provider that really ran it, UTF-8, zero-padded.
    pub repair_provider: [u8; 32],
    /// Zero.
    pub reserved1: [u64; 42],
    /// CRC32C of the payload.
    pub payload_crc32c: u32,
    /// CRC32C of bytes 0 to 1019 of this header.
    pub header_crc32c: u32,
}

assert_offsets!(VolumeHeader, size VOLUME_HEADER_BYTES, {
    version_major: 0, version_minor: 2, header_bytes: 4, generation: 8, instance_id: 16, scan_id: 24, epoch: 32,
    status: 36, first_sequence: 40, last_sequence: 48, frames_used: 56, iteration: 60, shape: 64, missing_count: 76,
    spacing_mm: 80, origin_mm: 104, mu_water_per_mm: 128, value_scale: 132, last_frame_ns: 136, publish_ns: 144,
    payload_bytes: 152, missing_frames: 160, settings_hash: 168, model_hash: 200, device: 232, provider: 264,
    precision: 296, value_kind: 312, iterations_planned: 316, missing: 320, method: 576, residual: 580,
    method_ns: 584, early_iterations: 592, early_views: 596, repairs: 600, repairs_planned: 604,
    repairs_failed: 608, repair_ms: 612, repair_model: 616, repair_provider: 648, reserved1: 680,
    payload_crc32c: 1016, header_crc32c: 1020,
});
