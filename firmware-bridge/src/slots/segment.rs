//! The segment `NAME.volumes` in memory: geometry, initialisation, attachment.

use super::machine::SlotCells;
use crate::error::SegmentError;
use crate::layout::{
    LEASE_BYTES, LEASE_COUNT, LEASES_OFFSET, VERSION_MAJOR, VERSION_MINOR, VOLUME_HEADER_BYTES,
    VOLUME_SLOT_HEADER_OFFSET, VOLUME_SLOT_PAYLOAD_OFFSET, VOLUMES_HEADER_BYTES, VOLUMES_MAGIC, VolumesHeader,
};
use crate::memory::{SharedMemory, load_bytes, store_bytes, word};
use bytemuck::Zeroable;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// Size of the volume slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeGeometry {
    /// Number of slots, 3 to 64.
    pub slot_count: u32,
    /// Largest payload, bytes: 4 to 2^40, a multiple of 4.
    pub payload_capacity: u64,
}

impl VolumeGeometry {
    /// Room for volumes of `shape` voxels (x, y, z) of f32.
    pub const fn for_shape(shape: [u32; 3], slot_count: u32) -> Self {
        let payload_capacity = (shape[0] as u64 * shape[1] as u64).saturating_mul(shape[2] as u64).saturating_mul(4);
        Self { slot_count, payload_capacity }
    }

    /// Bytes from one slot to the next.
    pub const fn slot_stride(&self) -> u64 {
        let payload = self.payload_capacity.div_ceil(4096).saturating_mul(4096);
        payload.saturating_add(VOLUME_SLOT_PAYLOAD_OFFSET as u64)
    }

    /// Bytes of the whole segment; saturates for sizes that `check` refuses.
    pub const fn segment_bytes(&self) -> u64 {
        (VOLUMES_HEADER_BYTES as u64).saturating_add(self.slot_stride().saturating_mul(self.slot_count as u64))
    }

    /// Checks every field's range, and that the segment fits the address space.
    pub fn check(&self) -> Result<(), SegmentError> {
        let bad = |field, value, wanted| Err(SegmentError::BadField { field, value, wanted });
        if !(3..=64).contains(&self.slot_count) {
            return bad("slot_count", self.slot_count.into(), "must be 3 to 64");
        }
        if !(4..=1 << 40).contains(&self.payload_capacity) || !self.payload_capacity.is_multiple_of(4) {
            return bad("payload_capacity", self.payload_capacity, "must be a multiple of 4 from 4 to 2^40");
        }
        if self.segment_bytes() > isize::MAX as u64 {
            return bad("segment_bytes", self.segment_bytes(), "does not fit the address space");
        }
        Ok(())
    }

    pub(super) const fn slot_offset(&self, index: usize) -> usize {
        VOLUMES_HEADER_BYTES + index * self.slot_stride() as usize
    }

    pub(super) const fn header_offset(&self, index: usize) -> usize {
        self.slot_offset(index) + VOLUME_SLOT_HEADER_OFFSET
    }

    pub(super) const fn payload_offset(&self, index: usize) -> usize {
        self.slot_offset(index) + VOLUME_SLOT_PAYLOAD_OFFSET
    }
}

/// Mapped volume slots whose header has been checked.
#[derive(Debug)]
pub struct VolumeSlots<M> {
    pub(super) memory: M,
    geometry: VolumeGeometry,
    instance_id: u64,
}

impl<M: SharedMemory> VolumeSlots<M> {
    /// Makes new slots in `memory`, whose length must be `geometry.segment_bytes()`.
    ///
    /// `instance_id` should be random; `now_ns` is CLOCK_MONOTONIC.
    pub fn initialise(
        memory: M,
        geometry: VolumeGeometry,
        instance_id: u64,
        creator_pid: u32,
        now_ns: u64,
    ) -> Result<Self, SegmentError> {
        geometry.check()?;
        if memory.len() as u64 != geometry.segment_bytes() {
            return Err(SegmentError::WrongSize { expected: geometry.segment_bytes(), actual: memory.len() as u64 });
        }
        // Zeroes all of the header by parts: a whole VolumesHeader is large for a small stack.
        store_bytes(&memory, 0, &[0; 256]);
        for offset in (256..VOLUMES_HEADER_BYTES).step_by(256) {
            store_bytes(&memory, offset, &[0; 256]);
        }
        let slots = Self { memory, geometry, instance_id };
        for index in 0..geometry.slot_count as usize {
            slots.slot(index).store(0, Ordering::Relaxed);
        }
        let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let version = u32::from(VERSION_MAJOR) | u32::from(VERSION_MINOR) << 16;
        for (offset, value) in [
            (offset_of!(VolumesHeader, version_major), half(version, VOLUMES_HEADER_BYTES as u32)),
            (offset_of!(VolumesHeader, segment_bytes), geometry.segment_bytes()),
            (offset_of!(VolumesHeader, instance_id), instance_id),
            (offset_of!(VolumesHeader, created_ns), now_ns),
            (offset_of!(VolumesHeader, creator_pid), half(creator_pid, geometry.slot_count)),
            (offset_of!(VolumesHeader, lease_count), half(LEASE_COUNT as u32, VOLUME_HEADER_BYTES as u32)),
            (offset_of!(VolumesHeader, slots_offset), VOLUMES_HEADER_BYTES as u64),
            (offset_of!(VolumesHeader, slot_stride), geometry.slot_stride()),
            (offset_of!(VolumesHeader, payload_capacity), geometry.payload_capacity),
            (offset_of!(VolumesHeader, leases_offset), LEASES_OFFSET as u64),
        ] {
            slots.field(offset).store(value, Ordering::Relaxed);
        }
        // SYNC POINT S1: the magic last, Release.
        slots.field(offset_of!(VolumesHeader, magic)).store(VOLUMES_MAGIC, Ordering::Release);
        Ok(slots)
    }

    /// Takes slots that somebody else has made; every number of the header is checked against the memory's length.
    pub fn attach(memory: M) -> Result<Self, SegmentError> {
        let actual = memory.len() as u64;
        if actual < VOLUMES_HEADER_BYTES as u64 {
            return Err(SegmentError::WrongSize { expected: VOLUMES_HEADER_BYTES as u64, actual });
        }
        // SYNC POINT S1 (other side): Acquire.
        match word(&memory, offset_of!(VolumesHeader, magic)).load(Ordering::Acquire) {
            VOLUMES_MAGIC => {}
            0 => return Err(SegmentError::NotYetFinalized),
            found => {
                return Err(SegmentError::WrongMagic { found, expected: VOLUMES_MAGIC });
            }
        }
        let mut constants = ConstantsLine::zeroed();
        load_bytes(&memory, 0, bytemuck::bytes_of_mut(&mut constants));
        if constants.version_major != VERSION_MAJOR {
            return Err(SegmentError::VersionMismatch { found: constants.version_major, expected: VERSION_MAJOR });
        }
        let geometry =
            VolumeGeometry { slot_count: constants.slot_count, payload_capacity: constants.payload_capacity };
        geometry.check()?;
        for (field, value, wanted) in [
            ("header_bytes", u64::from(constants.header_bytes), VOLUMES_HEADER_BYTES as u64),
            ("lease_count", constants.lease_count.into(), LEASE_COUNT as u64),
            ("volume_header_bytes", constants.volume_header_bytes.into(), VOLUME_HEADER_BYTES as u64),
            ("slots_offset", constants.slots_offset, VOLUMES_HEADER_BYTES as u64),
            ("slot_stride", constants.slot_stride, geometry.slot_stride()),
            ("leases_offset", constants.leases_offset, LEASES_OFFSET as u64),
            ("segment_bytes", constants.segment_bytes, geometry.segment_bytes()),
        ] {
            if value != wanted {
                return Err(SegmentError::BadField { field, value, wanted: "does not follow from the other fields" });
            }
        }
        if actual != geometry.segment_bytes() {
            return Err(SegmentError::WrongSize { expected: geometry.segment_bytes(), actual });
        }
        if word(&memory, offset_of!(VolumesHeader, retired)).load(Ordering::Acquire) != 0 {
            return Err(SegmentError::Retired);
        }
        Ok(Self { memory, geometry, instance_id: constants.instance_id })
    }

    /// The slots' size.
    pub fn geometry(&self) -> &VolumeGeometry {
        &self.geometry
    }

    /// The memory that they lie in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Number of this segment's creation.
    pub fn instance_id(&self) -> u64 {
        self.instance_id
    }

    /// Whether the daemon has replaced this segment.
    pub fn is_retired(&self) -> bool {
        self.field(offset_of!(VolumesHeader, retired)).load(Ordering::Acquire) != 0
    }

    /// Tells attached readers to look for the new segment.
    pub fn retire(&self) {
        self.field(offset_of!(VolumesHeader, retired)).store(1, Ordering::Release);
    }

    pub(super) fn field(&self, offset: usize) -> &AtomicU64 {
        word(&self.memory, offset)
    }
}

/// The first 88 bytes of [`VolumesHeader`].
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct ConstantsLine {
    magic: u64,
    version_major: u16,
    version_minor: u16,
    header_bytes: u32,
    segment_bytes: u64,
    instance_id: u64,
    created_ns: u64,
    creator_pid: u32,
    slot_count: u32,
    lease_count: u32,
    volume_header_bytes: u32,
    slots_offset: u64,
    slot_stride: u64,
    payload_capacity: u64,
    leases_offset: u64,
}

const _: () = {
    assert!(size_of::<ConstantsLine>() == offset_of!(VolumesHeader, reserved0));
    assert!(offset_of!(ConstantsLine, slot_count) == offset_of!(VolumesHeader, slot_count));
    assert!(offset_of!(ConstantsLine, leases_offset) == offset_of!(VolumesHeader, leases_offset));
};

impl<M: SharedMemory> SlotCells for VolumeSlots<M> {
    fn slot_count(&self) -> usize {
        self.geometry.slot_count as usize
    }
    fn lease_count(&self) -> usize {
        LEASE_COUNT
    }
    fn slot(&self, index: usize) -> &AtomicU64 {
        self.field(self.geometry.slot_offset(index))
    }
    fn lease(&self, index: usize) -> &AtomicU64 {
        self.field(LEASES_OFFSET + index * LEASE_BYTES)
    }
    fn newest(&self) -> &AtomicU64 {
        self.field(offset_of!(VolumesHeader, newest))
    }
}
