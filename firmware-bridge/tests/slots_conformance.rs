//! Volume slots: every rule of PROTOCOL.md, section "Volumes".
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use common::{SHAPE, VOXELS, reader, slots, values, volume_header};
use firmware_bridge::error::{PublishError, ReadError};
use firmware_bridge::layout::{
    DaemonState, METHOD_GAUSSIANS, SequenceRange, VOLUME_SLOT_PAYLOAD_OFFSET, VOLUMES_HEADER_BYTES, VolumeHeader,
};
use firmware_bridge::memory::SharedMemory;
use firmware_bridge::slots::{Status, StatusDetail, VolumeGeometry, VolumeSlots, VolumeWriter, text_of, text_to};

const MS: u64 = 1_000_000;

#[test]
fn the_newest_volume_is_read_back() {
    let (_memory, mut writer, reader) = slots(3);
    assert_eq!(reader.newest(0, MS).unwrap_err(), ReadError::NothingPublished);
    for generation in 1..10 {
        let receipt = writer.publish(&volume_header(), &values(generation), generation * 100).unwrap();
        assert_eq!((receipt.generation, reader.newest_generation()), (generation, generation));
        let volume = reader.newest(0, MS).unwrap();
        assert_eq!(volume.read().unwrap(), values(generation));
        let header = volume.header();
        assert_eq!((header.generation, header.publish_ns, header.instance_id), (generation, generation * 100, 7));
        assert_eq!((header.shape, header.payload_bytes), (SHAPE, VOXELS as u64 * 4));
        assert_eq!(header.payload_crc32c, receipt.payload_crc32c);
    }
    let status = reader.slots().status();
    assert_eq!((status.published, status.publish_skipped, status.leases_revoked), (9, 0, 0));
}

#[test]
fn a_leased_volume_stays_while_others_are_published() {
    let (memory, mut writer, first) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let held = first.newest(0, 1000 * MS).unwrap();
    for generation in 2..20 {
        writer.publish(&volume_header(), &values(generation), 0).unwrap();
        assert_eq!(reader(&memory).newest(0, MS).unwrap().read().unwrap(), values(generation));
    }
    assert_eq!(held.read().unwrap(), values(1));
    assert!(held.is_held());
}

#[test]
fn with_all_slots_leased_the_publication_is_skipped_and_counted() {
    let (_memory, mut writer, reader) = slots(3);
    let mut held = Vec::new();
    for generation in 1..=3 {
        writer.publish(&volume_header(), &values(generation), 0).unwrap();
        held.push(reader.newest(0, 1000 * MS).unwrap());
    }
    held.pop();
    // Slots of 1 and 2 are leased; the slot of 3 is not, but it is the newest: it must stay readable.
    assert_eq!(writer.publish(&volume_header(), &values(9), 0).unwrap_err(), PublishError::AllSlotsLeased);
    assert_eq!(writer.publish(&volume_header(), &values(9), 0).unwrap_err(), PublishError::AllSlotsLeased);
    assert_eq!(reader.slots().status().publish_skipped, 2);
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(3));
    for (volume, generation) in held.iter().zip(1..) {
        assert_eq!(volume.read().unwrap(), values(generation), "a skipped publication harms nobody");
    }
    held.remove(0); // gives the lease on 1 back
    assert_eq!(writer.publish(&volume_header(), &values(4), 0).unwrap().generation, 4);
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(4));
}

#[test]
fn a_dead_readers_lease_expires_and_is_revoked() {
    let (_memory, mut writer, reader) = slots(3);
    for generation in 1..=3 {
        writer.publish(&volume_header(), &values(generation), 0).unwrap();
        reader.newest(0, 50 * MS).unwrap().leak(); // killed here
    }
    assert_eq!(writer.publish(&volume_header(), &values(4), 49 * MS).unwrap_err(), PublishError::AllSlotsLeased);
    writer.publish(&volume_header(), &values(4), 50 * MS).unwrap();
    assert_eq!(reader.slots().status().leases_revoked, 1);
    assert_eq!(reader.newest(50 * MS, MS).unwrap().read().unwrap(), values(4));
}

#[test]
fn a_revoked_reader_is_told_and_throws_its_copy_away() {
    let (_memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let mut slow = reader.newest(0, 10 * MS).unwrap();
    writer.publish(&volume_header(), &values(2), 20 * MS).unwrap();
    writer.publish(&volume_header(), &values(3), 20 * MS).unwrap();
    writer.publish(&volume_header(), &values(4), 20 * MS).unwrap();
    assert!(!slow.is_held());
    assert_eq!(slow.read().unwrap_err(), ReadError::LeaseRevoked);
    assert_eq!(slow.renew(20 * MS, MS).unwrap_err(), ReadError::LeaseRevoked);
    drop(slow); // must not free somebody else's lease
    assert_eq!(reader.newest(20 * MS, MS).unwrap().read().unwrap(), values(4));
}

#[test]
fn a_renewed_lease_outlives_its_first_expiry() {
    let (_memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let mut volume = reader.newest(0, 10 * MS).unwrap();
    volume.renew(9 * MS, 100 * MS).unwrap();
    for generation in 2..6 {
        writer.publish(&volume_header(), &values(generation), 50 * MS).unwrap();
    }
    assert_eq!(volume.read().unwrap(), values(1));
}

#[test]
fn the_lease_table_has_an_end() {
    let (_memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let held: Vec<_> = (0..64).map(|_| reader.newest(0, 10 * MS).unwrap()).collect();
    assert_eq!(reader.newest(0, MS).unwrap_err(), ReadError::NoFreeLease);
    drop(held);
    assert!(reader.newest(0, MS).is_ok());
}

/// Also while nothing is published: the next reader takes the entry of an expired lease over.
#[test]
fn the_entries_of_dead_readers_come_back() {
    let (_memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    for _ in 0..64 {
        reader.newest(0, 10 * MS).unwrap().leak();
    }
    assert_eq!(reader.newest(9 * MS, MS).unwrap_err(), ReadError::NoFreeLease);
    assert_eq!(reader.newest(10 * MS, MS).unwrap().read().unwrap(), values(1));
    for generation in 2..=4 {
        writer.publish(&volume_header(), &values(generation), 20 * MS).unwrap();
    }
    assert_eq!(reader.slots().status().leases_revoked, 63);
}

/// A reader that asks for hours gets ten seconds; one that writes nonsense into the table gets nothing.
#[test]
fn no_lease_outlives_the_limit() {
    use firmware_bridge::slots::machine::{LEASE_LIMIT_MS, SlotCells, lease_word};
    let (memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    reader.newest(0, u64::MAX).unwrap().leak();
    let nonsense = VolumeSlots::attach(memory).unwrap();
    nonsense.lease(5).store(lease_word(1, 0, 1 << 39), std::sync::atomic::Ordering::Relaxed);
    for generation in 2..=3 {
        writer.publish(&volume_header(), &values(generation), 0).unwrap();
        reader.newest(0, u64::MAX).unwrap().leak();
    }
    assert_eq!(writer.slots().status().leases_revoked, 1, "the nonsense only");
    // Slots 0 and 1 are leased as long as can be, slot 2 is the newest.
    let error = writer.publish(&volume_header(), &values(4), 0).unwrap_err();
    assert_eq!(error, PublishError::AllSlotsLeased);
    assert!(writer.publish(&volume_header(), &values(4), LEASE_LIMIT_MS * MS).is_ok());
}

#[test]
fn a_writer_that_dies_in_mid_publication_leaves_the_old_volume() {
    let (memory, mut first, reader) = slots(3);
    first.publish(&volume_header(), &values(1), 0).unwrap();
    let mut slot = first.begin(&volume_header(), 0).unwrap();
    slot.append(&values(2)[..50]).unwrap();
    std::mem::forget(slot); // killed here
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(1));
    let mut second = VolumeWriter::attach(VolumeSlots::attach(memory).unwrap());
    assert_eq!(reader.slots().status().reclaimed_writing, 1);
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(1));
    for expected in 3..8 {
        // The generation of the half-written volume is not used again.
        assert_eq!(second.publish(&volume_header(), &values(expected), 0).unwrap().generation, expected);
    }
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(7));
}

#[test]
fn spoilt_bytes_are_found_by_the_crc() {
    let (memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let slot = VOLUMES_HEADER_BYTES; // the first volume lies in slot 0
    let flip = |offset: usize| {
        let at = memory.base().as_ptr().wrapping_add(offset);
        // SAFETY: inside the memory of this test; no other thread runs.
        #[allow(unsafe_code)]
        unsafe {
            *at ^= 1;
        }
    };
    flip(slot + VOLUME_SLOT_PAYLOAD_OFFSET + 17);
    let error = reader.newest(0, MS).unwrap().read().unwrap_err();
    assert!(matches!(error, ReadError::Crc { part: "payload", .. }), "{error}");
    flip(slot + VOLUME_SLOT_PAYLOAD_OFFSET + 17);
    flip(slot + 128 + 64); // the shape
    let error = reader.newest(0, MS).unwrap_err();
    assert!(matches!(error, ReadError::Crc { part: "header", .. }), "{error}");
}

#[test]
fn impossible_volumes_are_not_published() {
    let (_memory, mut writer, reader) = slots(3);
    for shape in [[0, 1, 1], [u32::MAX; 3], [3, 5, 8]] {
        let error = writer.publish(&VolumeHeader { shape, ..volume_header() }, &[], 0).unwrap_err();
        assert!(error.to_string().contains("shape"), "{error}");
    }
    let error = writer.publish(&VolumeHeader { missing_count: 17, ..volume_header() }, &[], 0).unwrap_err();
    assert!(error.to_string().contains("missing_count"), "{error}");
    for count in [VOXELS - 1, VOXELS + 1] {
        let error = writer.publish(&volume_header(), &vec![0.0; count], 0).unwrap_err();
        assert!(error.to_string().contains("values"), "{error}");
    }
    assert_eq!(reader.newest(0, MS).unwrap_err(), ReadError::NothingPublished);
    assert_eq!(reader.slots().status().published, 0);
}

#[test]
fn a_volume_may_be_appended_in_pieces() {
    let (_memory, mut writer, reader) = slots(3);
    let mut slot = writer.begin(&volume_header(), 0).unwrap();
    for piece in values(1).chunks(10) {
        slot.append(piece).unwrap();
    }
    slot.publish(5).unwrap();
    assert_eq!(reader.newest(0, MS).unwrap().read().unwrap(), values(1));
    let mut slot = writer.begin(&volume_header(), 0).unwrap();
    slot.append(&[1.0; 3]).unwrap();
    assert!(slot.append(&[1.0; 3]).is_err(), "an odd piece may only be the last");
}

#[test]
fn a_small_destination_is_refused() {
    let (_memory, mut writer, reader) = slots(3);
    writer.publish(&volume_header(), &values(1), 0).unwrap();
    let error = reader.newest(0, MS).unwrap().read_into(&mut [0.0; VOXELS - 1]).unwrap_err();
    assert_eq!(error, ReadError::DestinationTooSmall { needed: VOXELS, actual: VOXELS - 1 });
}

#[test]
fn status_is_read_back() {
    let (_memory, mut writer, reader) = slots(3);
    assert_eq!(reader.slots().status().state, None);
    let status = Status {
        state: Some(DaemonState::Receiving),
        daemon_pid: 42,
        heartbeat_ns: 1,
        frames_accepted: 2,
        frames_rejected: 3,
        frames_missing: 4,
        epoch: 5,
        last_sequence: 6,
        last_frame_ns: 7,
        scan_frames: 8,
        scan_views: 9,
        method: METHOD_GAUSSIANS.into(),
        iteration: 10,
        iterations_planned: 11,
        residual_1e9: 12,
        method_ns: 13,
        attachments: 1, // the writer's own
        ..Status::default()
    };
    writer.set_status(&status);
    assert_eq!(reader.slots().status(), status);
    let ranges: Vec<SequenceRange> = (0..40).map(|i| SequenceRange { first: i * 10, last: i * 10 + 1 }).collect();
    writer.set_status_detail(&StatusDetail::new("3 frames missing: café", &ranges));
    let detail = reader.slots().status_detail().unwrap();
    assert_eq!(text_of(&detail.message), "3 frames missing: café");
    assert_eq!((detail.missing(), detail.missing_unlisted), (&ranges[..32], 8));
}

#[test]
fn texts_are_cut_at_a_characters_border() {
    assert_eq!(text_of(&text_to::<8>("cpu")), "cpu");
    assert_eq!(text_of(&text_to::<4>("abcé")), "abc");
    assert_eq!(text_of(&[b'a', 0xff, b'b']), "a");
}

/// Four readers and a writer at full speed, leases so short that some are revoked: what is read is always one volume.
#[test]
fn no_torn_volume_is_ever_readable() {
    use firmware_bridge::clock::monotonic_ns;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const LARGE: usize = 64 * 1024;
    let geometry = VolumeGeometry::for_shape([64, 32, 32], 3);
    let memory = std::sync::Arc::new(firmware_bridge::memory::HeapMemory::new(geometry.segment_bytes() as usize));
    let slots = VolumeSlots::initialise(memory.clone(), geometry, 7, 1, 1).unwrap();
    let mut writer = VolumeWriter::attach(slots);
    let header = VolumeHeader { shape: [64, 32, 32], ..volume_header() };
    writer.publish(&header, &vec![1.0; LARGE], monotonic_ns()).unwrap();
    let (done, whole, revoked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for lease_ns in [0, 0, MS, 1000 * MS] {
            let (memory, done, whole, revoked) = (memory.clone(), &done, &whole, &revoked);
            scope.spawn(move || {
                let reader = reader(&memory);
                let mut values = vec![0.0; LARGE];
                while !done.load(Ordering::Relaxed) {
                    let volume = match reader.newest(monotonic_ns(), lease_ns) {
                        Ok(volume) => volume,
                        Err(ReadError::LeaseRevoked | ReadError::Contended) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    match volume.read_into(&mut values) {
                        Ok(()) => {
                            let generation = volume.header().generation as f32;
                            assert!(values.iter().all(|&value| value == generation), "torn");
                            whole.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(ReadError::LeaseRevoked) => {
                            revoked.fetch_add(1, Ordering::Relaxed);
                        }
                        // With the lease held, the CRC must be right.
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let mut generation = 2;
        while generation < 1500 {
            if writer.publish(&header, &vec![generation as f32; LARGE], monotonic_ns()).is_ok() {
                generation += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(whole.load(Ordering::Relaxed) > 0);
    let status = writer.slots().status();
    assert_eq!(status.published, 1499);
    println!("{} whole, {} revoked, {:?}", whole.into_inner(), revoked.into_inner(), status);
}
