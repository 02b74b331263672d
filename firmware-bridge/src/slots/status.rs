//! The daemon's status block in `NAME.volumes`.

use super::segment::VolumeSlots;
use crate::layout::{DaemonState, STATUS_MESSAGE_BYTES, STATUS_MISSING_RANGES, SequenceRange, VolumesHeader};
use crate::memory::{SharedMemory, load_bytes, store_bytes};
use bytemuck::Zeroable;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

/// Single numbers of the status: each is read and written atomically, not all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What the daemon is doing; `None`: never started, or a number of a newer version.
    pub state: Option<DaemonState>,
    /// The daemon's process id; 0 = stopped in an orderly way.
    pub daemon_pid: u64,
    /// Last sign of life, CLOCK_MONOTONIC ns.
    pub heartbeat_ns: u64,
    /// Daemon attachments to this segment.
    pub attachments: u64,
    /// Volumes published.
    pub published: u64,
    /// Publications skipped, all slots being leased.
    pub publish_skipped: u64,
    /// Expired leases revoked.
    pub leases_revoked: u64,
    /// Slots found WRITING by an attaching daemon.
    pub reclaimed_writing: u64,
    /// Frames accepted.
    pub frames_accepted: u64,
    /// Frames rejected.
    pub frames_rejected: u64,
    /// Sequence numbers missing in the current scan.
    pub frames_missing: u64,
    /// Epoch of the last frame.
    pub epoch: u64,
    /// Number of the last frame.
    pub last_sequence: u64,
    /// Arrival of the last frame, CLOCK_MONOTONIC ns.
    pub last_frame_ns: u64,
    /// Frames of the current scan taken in.
    pub scan_frames: u64,
    /// Views that the scan announced; 0 = not known.
    pub scan_views: u64,
    /// `METHOD_*` number; 0 = not known.
    pub method: u64,
    /// Iterations done.
    pub iteration: u64,
    /// Iterations planned.
    pub iterations_planned: u64,
    /// Residual of the line integrals, times 1e9.
    pub residual_1e9: u64,
    /// Time that the method has worked, ns.
    pub method_ns: u64,
}

/// The part of the status that is read all together: message and missing ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusDetail {
    /// UTF-8, zero-padded; see [`text_of`] and [`text_to`].
    pub message: [u8; STATUS_MESSAGE_BYTES],
    /// Entries of `missing` in use.
    pub missing_count: usize,
    /// Missing ranges beyond those listed.
    pub missing_unlisted: u64,
    /// Missing sequence numbers of the current scan.
    pub missing: [SequenceRange; STATUS_MISSING_RANGES],
}

impl StatusDetail {
    /// A message and as many ranges as there is room for; the rest is counted.
    pub fn new(message: &str, ranges: &[SequenceRange]) -> Self {
        let mut missing = [SequenceRange::zeroed(); STATUS_MISSING_RANGES];
        let missing_count = ranges.len().min(STATUS_MISSING_RANGES);
        missing[..missing_count].copy_from_slice(&ranges[..missing_count]);
        let missing_unlisted = (ranges.len() - missing_count) as u64;
        Self { message: text_to(message), missing_count, missing_unlisted, missing }
    }

    /// The ranges in use.
    pub fn missing(&self) -> &[SequenceRange] {
        &self.missing[..self.missing_count.min(STATUS_MISSING_RANGES)]
    }
}

/// A text as a zero-padded field, cut at a character's border if too long.
pub fn text_to<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let mut end = text.len().min(N);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

/// The text of a zero-padded field; the valid part of it if it is not UTF-8.
pub fn text_of(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    match core::str::from_utf8(&bytes[..end]) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

impl<M: SharedMemory> VolumeSlots<M> {
    /// The single numbers of the status.
    pub fn status(&self) -> Status {
        let load = |offset| self.field(offset).load(Ordering::Relaxed);
        Status {
            state: DaemonState::from_number(load(offset_of!(VolumesHeader, state))),
            daemon_pid: load(offset_of!(VolumesHeader, daemon_pid)),
            heartbeat_ns: load(offset_of!(VolumesHeader, heartbeat_ns)),
            attachments: load(offset_of!(VolumesHeader, attachments)),
            published: load(offset_of!(VolumesHeader, published)),
            publish_skipped: load(offset_of!(VolumesHeader, publish_skipped)),
            leases_revoked: load(offset_of!(VolumesHeader, leases_revoked)),
            reclaimed_writing: load(offset_of!(VolumesHeader, reclaimed_writing)),
            frames_accepted: load(offset_of!(VolumesHeader, frames_accepted)),
            frames_rejected: load(offset_of!(VolumesHeader, frames_rejected)),
            frames_missing: load(offset_of!(VolumesHeader, frames_missing)),
            epoch: load(offset_of!(VolumesHeader, epoch)),
            last_sequence: load(offset_of!(VolumesHeader, last_sequence)),
            last_frame_ns: load(offset_of!(VolumesHeader, last_frame_ns)),
            scan_frames: load(offset_of!(VolumesHeader, scan_frames)),
            scan_views: load(offset_of!(VolumesHeader, scan_views)),
            method: load(offset_of!(VolumesHeader, method)),
            iteration: load(offset_of!(VolumesHeader, iteration)),
            iterations_planned: load(offset_of!(VolumesHeader, iterations_planned)),
            residual_1e9: load(offset_of!(VolumesHeader, residual_1e9)),
            method_ns: load(offset_of!(VolumesHeader, method_ns)),
        }
    }

    /// Message and missing ranges, of one moment; `None` if the writer kept changing them (or died doing so): try later.
    pub fn status_detail(&self) -> Option<StatusDetail> {
        let version = self.field(offset_of!(VolumesHeader, detail_version));
        for _ in 0..64 {
            let before = version.load(Ordering::Acquire);
            if before % 2 == 1 {
                core::hint::spin_loop();
                continue;
            }
            let mut detail = StatusDetail::new("", &[]);
            load_bytes(&self.memory, offset_of!(VolumesHeader, message), &mut detail.message);
            let ranges = bytemuck::cast_slice_mut(&mut detail.missing);
            load_bytes(&self.memory, offset_of!(VolumesHeader, missing), ranges);
            let count = self.field(offset_of!(VolumesHeader, missing_count)).load(Ordering::Relaxed);
            detail.missing_count = count.min(STATUS_MISSING_RANGES as u64) as usize;
            detail.missing_unlisted = self.field(offset_of!(VolumesHeader, missing_unlisted)).load(Ordering::Relaxed);
            // SYNC POINT T1: the loads above before the second look; all of them are atomic words.
            fence(Ordering::Acquire);
            if version.load(Ordering::Relaxed) == before {
                return Some(detail);
            }
        }
        None
    }

    /// Writer only: the numbers that the daemon keeps (`published`, `publish_skipped`, `leases_revoked`, `attachments`,
    /// `reclaimed_writing` are kept by the writer itself and left alone).
    pub(super) fn store_status(&self, status: &Status) {
        for (offset, value) in [
            (offset_of!(VolumesHeader, state), status.state.map_or(0, |state| state as u64)),
            (offset_of!(VolumesHeader, daemon_pid), status.daemon_pid),
            (offset_of!(VolumesHeader, heartbeat_ns), status.heartbeat_ns),
            (offset_of!(VolumesHeader, frames_accepted), status.frames_accepted),
            (offset_of!(VolumesHeader, frames_rejected), status.frames_rejected),
            (offset_of!(VolumesHeader, frames_missing), status.frames_missing),
            (offset_of!(VolumesHeader, epoch), status.epoch),
            (offset_of!(VolumesHeader, last_sequence), status.last_sequence),
            (offset_of!(VolumesHeader, last_frame_ns), status.last_frame_ns),
            (offset_of!(VolumesHeader, scan_frames), status.scan_frames),
            (offset_of!(VolumesHeader, scan_views), status.scan_views),
            (offset_of!(VolumesHeader, method), status.method),
            (offset_of!(VolumesHeader, iteration), status.iteration),
            (offset_of!(VolumesHeader, iterations_planned), status.iterations_planned),
            (offset_of!(VolumesHeader, residual_1e9), status.residual_1e9),
            (offset_of!(VolumesHeader, method_ns), status.method_ns),
        ] {
            self.field(offset).store(value, Ordering::Relaxed);
        }
    }

    /// Writer only: message and ranges.
    pub(super) fn store_status_detail(&self, detail: &StatusDetail) {
        let version = self.field(offset_of!(VolumesHeader, detail_version));
        // A writer that died in between left it odd: start from the even number below.
        let start = version.load(Ordering::Relaxed) & !1;
        version.store(start | 1, Ordering::Relaxed);
        // SYNC POINT T1 (other side): the odd number before the stores, the even one after them.
        fence(Ordering::Release);
        store_bytes(&self.memory, offset_of!(VolumesHeader, message), &detail.message);
        store_bytes(&self.memory, offset_of!(VolumesHeader, missing), bytemuck::cast_slice(&detail.missing));
        self.field(offset_of!(VolumesHeader, missing_count)).store(detail.missing_count as u64, Ordering::Relaxed);
        self.field(offset_of!(VolumesHeader, missing_unlisted)).store(detail.missing_unlisted, Ordering::Relaxed);
        version.store(start.wrapping_add(2), Ordering::Release);
    }
}
