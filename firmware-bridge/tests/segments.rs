//! Segments in /dev/shm: what is refused and how it is named; restart of each side.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use common::{SHAPE, TestName, frame_header, pixels, values, volume_header};
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::error::SegmentError;
use firmware_bridge::mapping::{
    Mapping, MappingError, Served, attach_producer, attach_reader, frames_path, observe_frames, serve, volumes_path,
    wait_for,
};
use firmware_bridge::ring::{Arrival, DropPolicy, FrameProducer, Polled, RingGeometry, Sent};
use firmware_bridge::slots::VolumeGeometry;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const RING: RingGeometry = RingGeometry::for_detector(common::COLUMNS, common::ROWS, 4, DropPolicy::DropNewest);
const VOLUMES: VolumeGeometry = VolumeGeometry::for_shape(SHAPE, 3);

fn serve_test(name: &TestName) -> Served {
    serve(&name.0, RING, VOLUMES, 0o600).unwrap()
}

fn send(producer: &mut FrameProducer<Mapping>, sequence: u64) -> Sent {
    producer.send(&frame_header(sequence), bytemuck::cast_slice(&pixels(sequence)), monotonic_ns())
}

fn overwrite(path: &std::path::Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// The segment errors that producer, observer and reader get after `change` has been made to both files.
fn refusals(change: impl Fn(&std::path::Path)) -> Vec<SegmentError> {
    let name = TestName::new("refusal");
    drop(serve_test(&name));
    change(&frames_path(&name.0).unwrap());
    change(&volumes_path(&name.0).unwrap());
    [
        attach_producer(&name.0).map(|_| ()).unwrap_err(),
        observe_frames(&name.0).map(|_| ()).unwrap_err(),
        attach_reader(&name.0).map(|_| ()).unwrap_err(),
    ]
    .into_iter()
    .map(|error| match error {
        MappingError::Segment { source, .. } => source,
        other => panic!("{other}"),
    })
    .collect()
}

#[test]
fn frames_in_volumes_out_through_dev_shm() {
    let name = TestName::new("both-ways");
    let Served { mut consumer, mut writer, frames_reattached, volumes_reattached } = serve_test(&name);
    assert!(!frames_reattached && !volumes_reattached);
    let mut producer = attach_producer(&name.0).unwrap();
    for sequence in 0..10 {
        assert_eq!(send(&mut producer, sequence), Sent::Written { replaced: false });
        let Polled::Frame(frame) = consumer.poll(monotonic_ns()) else { panic!("no frame {sequence}") };
        assert_eq!(frame.pixels_u16().unwrap(), pixels(sequence));
        assert_eq!((frame.header().sequence, frame.header().epoch), (sequence, 1));
    }
    let reader = attach_reader(&name.0).unwrap();
    for generation in 1..8 {
        writer.publish(&volume_header(), &values(generation), monotonic_ns()).unwrap();
        assert_eq!(reader.newest(monotonic_ns(), 1_000_000_000).unwrap().read().unwrap(), values(generation));
    }
}

#[test]
fn another_major_version_is_a_version_mismatch() {
    for error in refusals(|path| overwrite(path, 8, &[2, 0])) {
        assert_eq!(error, SegmentError::VersionMismatch { found: 2, expected: 1 });
    }
    // A higher minor version only gives meaning to reserved fields.
    let name = TestName::new("minor");
    let _served = serve_test(&name);
    overwrite(&frames_path(&name.0).unwrap(), 10, &[9, 0]);
    attach_producer(&name.0).unwrap();
}

#[test]
fn a_segment_without_magic_is_not_yet_finalized() {
    for error in refusals(|path| overwrite(path, 0, &[0; 8])) {
        assert_eq!(error, SegmentError::NotYetFinalized);
    }
    for error in refusals(|path| drop(OpenOptions::new().write(true).truncate(true).open(path).unwrap())) {
        assert_eq!(error, SegmentError::NotYetFinalized);
    }
}

#[test]
fn a_foreign_file_has_the_wrong_magic() {
    for error in refusals(|path| overwrite(path, 0, b"\x7fELF\x02\x01\x01\0")) {
        assert!(matches!(error, SegmentError::WrongMagic { .. }), "{error}");
    }
}

#[test]
fn a_truncated_or_padded_segment_has_the_wrong_size() {
    for change in [-1_i64, 1, 4096, -4096] {
        let set = |path: &std::path::Path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len().saturating_add_signed(change).max(1);
            file.set_len(len).unwrap();
        };
        for error in refusals(set) {
            assert!(matches!(error, SegmentError::WrongSize { .. }), "{change}: {error}");
        }
    }
}

#[test]
fn every_constant_of_the_header_is_checked() {
    // Each 32-bit word of the constants after version and size, set to rubbish: never accepted, except for what is free
    // (instance_id 24, created_ns 32, creator_pid 40).
    for offset in (12..88).step_by(4).filter(|offset| !(24..44).contains(offset)) {
        for error in refusals(|path| overwrite(path, offset, &[0xfb; 4])) {
            let named = matches!(error, SegmentError::BadField { .. } | SegmentError::WrongSize { .. });
            assert!(named, "offset {offset}: {error}");
        }
    }
}

#[test]
fn there_is_one_daemon_and_one_producer() {
    let name = TestName::new("one");
    let served = serve_test(&name);
    let error = serve(&name.0, RING, VOLUMES, 0o600).unwrap_err();
    assert!(matches!(error, MappingError::AlreadyServed { .. }), "{error}");
    let producer = attach_producer(&name.0).unwrap();
    let error = attach_producer(&name.0).unwrap_err();
    assert!(matches!(error, MappingError::ProducerAlive { .. }), "{error}");
    drop((served, producer));
    serve_test(&name);
    attach_producer(&name.0).unwrap();
}

#[test]
fn a_restarted_daemon_takes_the_same_layout_over() {
    let name = TestName::new("restart");
    let mut first = serve_test(&name);
    let mut producer = attach_producer(&name.0).unwrap();
    let reader = attach_reader(&name.0).unwrap();
    first.writer.publish(&volume_header(), &values(1), monotonic_ns()).unwrap();
    send(&mut producer, 0);
    assert!(matches!(first.consumer.poll(monotonic_ns()), Polled::Frame(_)));
    drop(first); // as kill -9 leaves it
    send(&mut producer, 1);
    let mut second = serve_test(&name);
    assert!(second.frames_reattached && second.volumes_reattached);
    send(&mut producer, 2);
    assert_eq!(producer.epoch(), 1, "the producer goes on as if nothing had happened");
    let Polled::Frame(frame) = second.consumer.poll(monotonic_ns()) else { panic!("frame 1 is lost") };
    let missing = Some(firmware_bridge::layout::SequenceRange { first: 0, last: 0 });
    assert_eq!((frame.header().sequence, frame.arrival()), (1, Arrival::NewEpoch { missing }));
    drop(frame);
    assert!(matches!(second.consumer.poll(monotonic_ns()), Polled::Frame(_)));
    let lease_ns = 1_000_000_000;
    assert_eq!(reader.newest(monotonic_ns(), lease_ns).unwrap().read().unwrap(), values(1));
    assert_eq!(second.writer.publish(&volume_header(), &values(2), monotonic_ns()).unwrap().generation, 2);
    assert_eq!(reader.newest(monotonic_ns(), lease_ns).unwrap().read().unwrap(), values(2));
    assert_eq!(reader.slots().status().attachments, 2);
}

#[test]
fn another_layout_replaces_the_segments_and_tells_the_peers() {
    let name = TestName::new("replace");
    drop(serve_test(&name));
    let mut producer = attach_producer(&name.0).unwrap();
    let reader = attach_reader(&name.0).unwrap();
    let instance = producer.ring().instance_id();
    let larger = RingGeometry { slot_count: 8, ..RING };
    let served = serve(&name.0, larger, VolumeGeometry::for_shape([9, 9, 9], 3), 0o600).unwrap();
    assert!(!served.frames_reattached && !served.volumes_reattached);
    assert_eq!(send(&mut producer, 0), Sent::Retired);
    assert!(reader.slots().is_retired());
    drop(producer);
    let producer = attach_producer(&name.0).unwrap();
    assert_ne!(producer.ring().instance_id(), instance);
    assert_eq!(producer.ring().geometry(), &larger);
}

#[test]
fn a_damaged_segment_is_replaced() {
    for offset in [0_u64, 8, 48] {
        let name = TestName::new("damaged");
        drop(serve_test(&name));
        overwrite(&frames_path(&name.0).unwrap(), offset, &[0; 2]);
        overwrite(&volumes_path(&name.0).unwrap(), offset, &[0; 2]);
        let served = serve_test(&name);
        assert!(!served.frames_reattached && !served.volumes_reattached, "offset {offset}");
        attach_producer(&name.0).unwrap();
    }
}

#[test]
fn a_start_that_was_killed_half_way_does_not_matter() {
    let name = TestName::new("half-way");
    for path in [frames_path(&name.0).unwrap(), volumes_path(&name.0).unwrap()] {
        let mut left_over = path.into_os_string();
        left_over.push(".new");
        std::fs::write(left_over, [1; 10_000]).unwrap();
    }
    serve_test(&name);
    attach_producer(&name.0).unwrap();
}

#[test]
fn missing_segments_are_waited_for() {
    let name = TestName::new("wait");
    let error = wait_for(Duration::from_millis(20), || attach_producer(&name.0)).unwrap_err();
    assert!(matches!(error, MappingError::NotFound { .. }) && error.to_string().contains("diffnr serve"), "{error}");
    let starter = name.0.clone();
    let daemon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        serve(&starter, RING, VOLUMES, 0o600).unwrap()
    });
    wait_for(Duration::from_secs(10), || attach_producer(&name.0)).unwrap();
    wait_for(Duration::from_secs(10), || attach_reader(&name.0)).unwrap();
    drop(daemon.join().unwrap());
}

#[test]
fn impossible_requests_are_refused_before_anything_is_made() {
    let name = TestName::new("impossible");
    for ring in [
        RingGeometry { slot_count: 1, ..RING },
        RingGeometry { max_columns: 0, ..RING },
        RingGeometry { max_rows: 65537, ..RING },
        RingGeometry { payload_capacity: 0, ..RING },
        RingGeometry { payload_capacity: u64::MAX / 2, ..RING },
    ] {
        assert!(serve(&name.0, ring, VOLUMES, 0o600).is_err(), "{ring:?}");
    }
    for volumes in [
        VolumeGeometry { slot_count: 2, ..VOLUMES },
        VolumeGeometry { payload_capacity: 6, ..VOLUMES },
        VolumeGeometry { payload_capacity: u64::MAX - 3, ..VOLUMES },
        VolumeGeometry::for_shape([0, 1, 1], 3),
    ] {
        assert!(serve(&name.0, RING, volumes, 0o600).is_err(), "{volumes:?}");
    }
    let error = serve(&name.0, RING, VolumeGeometry { slot_count: 64, payload_capacity: 1 << 40 }, 0o600).unwrap_err();
    assert!(matches!(error, MappingError::NoSpace { .. }), "{error}");
    assert!(!volumes_path(&name.0).unwrap().exists());
    for bad in ["", "a b", "café", &"x".repeat(300)] {
        assert!(matches!(frames_path(bad), Err(MappingError::BadName { .. })), "{bad}");
    }
}

#[test]
fn absurd_sizes_saturate_instead_of_overflowing() {
    assert_eq!(
        RingGeometry::for_detector(u32::MAX, u32::MAX, u32::MAX, DropPolicy::DropNewest).segment_bytes(),
        u64::MAX
    );
    assert_eq!(VolumeGeometry::for_shape([u32::MAX; 3], u32::MAX).segment_bytes(), u64::MAX);
}

/// The daemon moves its two ends to different threads.
#[test]
fn both_ends_can_be_sent_to_threads() {
    fn is_send<T: Send>() {}
    is_send::<firmware_bridge::ring::FrameConsumer<Mapping>>();
    is_send::<firmware_bridge::slots::VolumeWriter<Mapping>>();
    is_send::<firmware_bridge::slots::VolumeReader<Mapping>>();
    is_send::<FrameProducer<Mapping>>();
}
