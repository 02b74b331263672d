//! The daemon's end of the volume slots.

use super::machine::{ClaimedSlot, abandon, claim_slot, publish, reclaim_writer};
use super::segment::VolumeSlots;
use super::status::{Status, StatusDetail};
use crate::crc::{crc32c, crc32c_append};
use crate::error::PublishError;
use crate::layout::{
    VERSION_MAJOR, VERSION_MINOR, VOLUME_HEADER_BYTES, VOLUME_MISSING_RANGES, VolumeHeader, VolumesHeader,
};
use crate::memory::{ClaimedBytes, SharedMemory, claimed, store_bytes};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// Publishes volumes and status. One per segment (`mapping` holds a file lock for that).
#[derive(Debug)]
pub struct VolumeWriter<M: SharedMemory> {
    slots: VolumeSlots<M>,
    generation: u64,
}

/// Receipt of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Number of the volume.
    pub generation: u64,
    /// CRC32C of the payload.
    pub payload_crc32c: u32,
}

impl VolumeHeader {
    /// Voxels, if the shape is possible at all (each extent at least 1, at most 2^38 voxels).
    pub fn voxels(&self) -> Option<u64> {
        let [nx, ny, nz] = self.shape.map(u64::from);
        let voxels = nx.checked_mul(ny)?.checked_mul(nz)?;
        (1..=1 << 38).contains(&voxels).then_some(voxels)
    }

    /// CRC32C of the bytes before `header_crc32c`.
    pub fn computed_header_crc32c(&self) -> u32 {
        crc32c(&bytemuck::bytes_of(self)[..offset_of!(VolumeHeader, header_crc32c)])
    }
}

impl<M: SharedMemory> VolumeWriter<M> {
    /// Becomes the writer. Slots that a dead one left WRITING are emptied and counted; published volumes stay readable.
    pub fn attach(slots: VolumeSlots<M>) -> Self {
        let (generation, emptied) = reclaim_writer(&slots);
        let writer = Self { slots, generation };
        writer.count(offset_of!(VolumesHeader, reclaimed_writing), emptied);
        writer.count(offset_of!(VolumesHeader, attachments), 1);
        writer
    }

    /// The slots themselves: geometry, status, `retire`.
    pub fn slots(&self) -> &VolumeSlots<M> {
        &self.slots
    }

    /// Sets the single numbers of the status (not the counters that the writer keeps itself: `attachments`, `published`,
    /// `publish_skipped`, `leases_revoked`, `reclaimed_writing`).
    pub fn set_status(&mut self, status: &Status) {
        self.slots.store_status(status);
    }

    /// Sets message and missing ranges, seen by readers all together.
    pub fn set_status_detail(&mut self, detail: &StatusDetail) {
        self.slots.store_status_detail(detail);
    }

    /// Publishes `values` (`[x][y][z]`, z fastest) under `header`, of which version, generation, instance, `publish_ns`,
    /// `payload_bytes`, `value_kind` and CRCs are filled in here. Never waits.
    pub fn publish(&mut self, header: &VolumeHeader, values: &[f32], now_ns: u64) -> Result<Published, PublishError> {
        let mut slot = self.begin(header, now_ns)?;
        slot.append(values)?;
        slot.publish(now_ns)
    }

    /// Claims a slot for a volume with this header; fill it in order with [`VolumeSlotWriter::append`].
    pub fn begin(&mut self, header: &VolumeHeader, now_ns: u64) -> Result<VolumeSlotWriter<'_, M>, PublishError> {
        let bad = |field, value, wanted| Err(PublishError::BadField { field, value, wanted });
        let payload_bytes = match header.voxels() {
            Some(voxels) if voxels * 4 <= self.slots.geometry().payload_capacity => voxels * 4,
            Some(voxels) => {
                return bad("shape", voxels, "voxels; does not fit the slots' payload_capacity");
            }
            None => {
                return bad("shape", 0, "every extent must be at least 1, 2^38 voxels at most");
            }
        };
        if header.missing_count as usize > VOLUME_MISSING_RANGES {
            return bad("missing_count", header.missing_count.into(), "must be at most 16");
        }
        let mut revoked = 0;
        let claimed = claim_slot(&self.slots, self.generation, now_ns / 1_000_000, &mut revoked);
        self.count(offset_of!(VolumesHeader, leases_revoked), revoked);
        let Some(claimed) = claimed else {
            self.count(offset_of!(VolumesHeader, publish_skipped), 1);
            return Err(PublishError::AllSlotsLeased);
        };
        let header = VolumeHeader {
            version_major: VERSION_MAJOR,
            version_minor: VERSION_MINOR,
            header_bytes: VOLUME_HEADER_BYTES as u32,
            generation: claimed.generation,
            instance_id: self.slots.instance_id(),
            payload_bytes,
            value_kind: 1,
            ..*header
        };
        Ok(VolumeSlotWriter { writer: self, claimed, header, written: 0, crc: 0, finished: false })
    }

    fn count(&self, offset: usize, by: u64) {
        self.slots.field(offset).fetch_add(by, Ordering::Relaxed);
    }
}

/// A claimed volume slot. Dropping it gives the slot up unpublished.
#[derive(Debug)]
pub struct VolumeSlotWriter<'a, M: SharedMemory> {
    writer: &'a mut VolumeWriter<M>,
    claimed: ClaimedSlot,
    header: VolumeHeader,
    written: u64,
    crc: u32,
    finished: bool,
}

impl<M: SharedMemory> VolumeSlotWriter<'_, M> {
    /// Appends values, in order. All calls but the last must bring an even number of values (words of 8 bytes).
    pub fn append(&mut self, values: &[f32]) -> Result<(), PublishError> {
        let bad = |value, wanted| Err(PublishError::BadField { field: "values", value, wanted });
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if self.written + bytes.len() as u64 > self.header.payload_bytes {
            return bad(self.written + bytes.len() as u64, "bytes; more than the header's shape holds");
        }
        if !self.written.is_multiple_of(8) {
            return bad(self.written, "bytes so far; an odd number of values may only be appended last");
        }
        let slots = &self.writer.slots;
        let start = slots.geometry().payload_offset(self.claimed.slot) + self.written as usize;
        // By pieces that stay in the first-level cache between CRC and copy: memory is read once.
        for (i, piece) in bytes.chunks(16 * 1024).enumerate() {
            self.crc = crc32c_append(self.crc, piece);
            store_bytes(&slots.memory, start + i * 16 * 1024, piece);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// The whole payload, for a device that fills it by itself; [`VolumeSlotWriter::filled`] says that it has.
    pub fn payload(&mut self) -> ClaimedBytes<'_> {
        let slots = &self.writer.slots;
        claimed(&slots.memory, slots.geometry().payload_offset(self.claimed.slot), self.header.payload_bytes as usize)
    }

    /// A device has filled the payload with values whose CRC32C this is.
    pub fn filled(&mut self, payload_crc32c: u32) {
        (self.written, self.crc) = (self.header.payload_bytes, payload_crc32c);
    }

    /// Makes the volume visible. All values must have been appended, or [`VolumeSlotWriter::filled`] in.
    pub fn publish(mut self, now_ns: u64) -> Result<Published, PublishError> {
        if self.written != self.header.payload_bytes {
            let wanted = "bytes; fewer than the header's shape holds";
            return Err(PublishError::BadField { field: "values", value: self.written, wanted });
        }
        self.header.publish_ns = now_ns;
        self.header.payload_crc32c = self.crc;
        self.header.header_crc32c = self.header.computed_header_crc32c();
        let slots = &self.writer.slots;
        let offset = slots.geometry().header_offset(self.claimed.slot);
        store_bytes(&slots.memory, offset, bytemuck::bytes_of(&self.header));
        publish(slots, &self.claimed);
        self.finished = true;
        self.writer.count(offset_of!(VolumesHeader, published), 1);
        self.writer.generation += 1;
        Ok(Published { generation: self.claimed.generation, payload_crc32c: self.crc })
    }
}

impl<M: SharedMemory> Drop for VolumeSlotWriter<'_, M> {
    fn drop(&mut self) {
        if !self.finished {
            abandon(&self.writer.slots, &self.claimed);
        }
    }
}
