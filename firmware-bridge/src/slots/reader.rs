//! A viewer's end of the volume slots.

use super::machine::{LEASE_LIMIT_MS, Lease, LeaseRefusal, acquire, release, renew, still_held};
use super::segment::VolumeSlots;
use crate::crc::crc32c_append;
use crate::error::ReadError;
use crate::layout::{LEASE_BYTES, LEASES_OFFSET, LeaseEntry, VERSION_MAJOR, VOLUME_MISSING_RANGES, VolumeHeader};
use crate::memory::{SharedMemory, load_bytes};
use bytemuck::Zeroable;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// Rounds of looking for a lease while volumes are being published.
const ATTEMPTS: u32 = 16;

fn expiry_ms(now_ns: u64, lease_ns: u64) -> u64 {
    let lease_ns = lease_ns.min(LEASE_LIMIT_MS * 1_000_000);
    now_ns.saturating_add(lease_ns).div_ceil(1_000_000)
}

/// Reads volumes. Many may do so at once; one that is killed costs the others nothing but a slot until its lease expires.
#[derive(Debug)]
pub struct VolumeReader<M: SharedMemory> {
    slots: VolumeSlots<M>,
    pid: u32,
}

impl<M: SharedMemory> VolumeReader<M> {
    /// A reader of these slots; `pid` is shown in the lease table.
    pub fn new(slots: VolumeSlots<M>, pid: u32) -> Self {
        Self { slots, pid }
    }

    /// The slots themselves: geometry, status, `is_retired`.
    pub fn slots(&self) -> &VolumeSlots<M> {
        &self.slots
    }

    /// Generation of the newest volume; 0 = none yet. Cheap: for polling.
    pub fn newest_generation(&self) -> u64 {
        use super::machine::SlotCells;
        self.slots.newest().load(Ordering::Acquire) >> 8
    }

    /// Leases the newest volume for `lease_ns` from now (10 s at most); its header is copied and checked.
    pub fn newest(&self, now_ns: u64, lease_ns: u64) -> Result<LeasedVolume<'_, M>, ReadError> {
        let lease =
            acquire(&self.slots, now_ns / 1_000_000, expiry_ms(now_ns, lease_ns), ATTEMPTS).map_err(|refusal| {
                match refusal {
                    LeaseRefusal::NothingPublished => ReadError::NothingPublished,
                    LeaseRefusal::NoFreeEntry => ReadError::NoFreeLease,
                    LeaseRefusal::Contended => ReadError::Contended,
                }
            })?;
        let entry = LEASES_OFFSET + lease.entry * LEASE_BYTES;
        let show = |offset, value| self.slots.field(entry + offset).store(value, Ordering::Relaxed);
        show(offset_of!(LeaseEntry, generation), lease.generation);
        show(offset_of!(LeaseEntry, reader_pid), self.pid.into());
        show(offset_of!(LeaseEntry, taken_ns), now_ns);
        let mut volume = LeasedVolume { slots: &self.slots, lease, header: VolumeHeader::zeroed() };
        let offset = self.slots.geometry().header_offset(lease.slot);
        load_bytes(&self.slots.memory, offset, bytemuck::bytes_of_mut(&mut volume.header));
        if !still_held(&self.slots, &lease) {
            return Err(ReadError::LeaseRevoked);
        }
        volume.check_header()?;
        Ok(volume)
    }
}

/// A leased volume. Dropping it gives the lease back.
#[derive(Debug)]
pub struct LeasedVolume<'a, M: SharedMemory> {
    slots: &'a VolumeSlots<M>,
    lease: Lease,
    header: VolumeHeader,
}

impl<M: SharedMemory> LeasedVolume<'_, M> {
    /// A private, checked copy of the header.
    pub fn header(&self) -> &VolumeHeader {
        &self.header
    }

    /// Number of values.
    pub fn voxels(&self) -> usize {
        (self.header.payload_bytes / 4) as usize
    }

    /// Copies the values (`[x][y][z]`, z fastest) into the front of `to`, checks that the lease held and that the CRC is
    /// right. On an error the contents of `to` are worthless.
    pub fn read_into(&self, to: &mut [f32]) -> Result<(), ReadError> {
        let (needed, actual) = (self.voxels(), to.len());
        let Some(to) = to.get_mut(..needed) else {
            return Err(ReadError::DestinationTooSmall { needed, actual });
        };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        let mut offset = self.slots.geometry().payload_offset(self.lease.slot);
        let mut computed = 0;
        // By pieces that stay in the first-level cache between copy and CRC.
        for piece in bytes.chunks_mut(16 * 1024) {
            load_bytes(&self.slots.memory, offset, piece);
            computed = crc32c_append(computed, piece);
            offset += piece.len();
        }
        if !still_held(self.slots, &self.lease) {
            return Err(ReadError::LeaseRevoked);
        }
        if computed != self.header.payload_crc32c {
            return Err(ReadError::Crc { part: "payload", found: self.header.payload_crc32c, computed });
        }
        Ok(())
    }

    /// The values in a new vector; see [`LeasedVolume::read_into`].
    #[cfg(feature = "std")]
    pub fn read(&self) -> Result<Vec<f32>, ReadError> {
        let mut values = vec![0.0; self.voxels()];
        self.read_into(&mut values)?;
        Ok(values)
    }

    /// Moves the expiry to `now_ns + lease_ns` (10 s at most).
    pub fn renew(&mut self, now_ns: u64, lease_ns: u64) -> Result<(), ReadError> {
        self.lease = renew(self.slots, &self.lease, expiry_ms(now_ns, lease_ns)).ok_or(ReadError::LeaseRevoked)?;
        Ok(())
    }

    /// Whether the lease has not been revoked so far.
    pub fn is_held(&self) -> bool {
        still_held(self.slots, &self.lease)
    }

    /// Gives up without giving the lease back: what a killed reader does. For tests.
    pub fn leak(self) {
        core::mem::forget(self);
    }

    fn check_header(&self) -> Result<(), ReadError> {
        let header = &self.header;
        let computed = header.computed_header_crc32c();
        if computed != header.header_crc32c {
            return Err(ReadError::Crc { part: "header", found: header.header_crc32c, computed });
        }
        let bad = |field, value, wanted| Err(ReadError::BadField { field, value, wanted });
        if header.version_major != VERSION_MAJOR {
            return bad("version_major", header.version_major.into(), "must be this program's");
        }
        if header.generation != self.lease.generation {
            return bad("generation", header.generation, "must be the leased one");
        }
        if header.value_kind != 1 {
            return bad("value_kind", header.value_kind.into(), "must be 1 (f32)");
        }
        if header.missing_count as usize > VOLUME_MISSING_RANGES {
            return bad("missing_count", header.missing_count.into(), "must be at most 16");
        }
        let fits = header.voxels().is_some_and(|voxels| voxels * 4 == header.payload_bytes);
        if !fits || header.payload_bytes > self.slots.geometry().payload_capacity {
            return bad("payload_bytes", header.payload_bytes, "must be nx x ny x nz x 4, within the slot");
        }
        Ok(())
    }
}

impl<M: SharedMemory> Drop for LeasedVolume<'_, M> {
    fn drop(&mut self) {
        let _revoked = release(self.slots, &self.lease);
    }
}
