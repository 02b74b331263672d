//! The main way through both segments, in one process.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

use bytemuck::Zeroable;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{FRAME_PAYLOAD_CRC, FrameHeader, FrameKind, VolumeHeader};
use firmware_bridge::mapping::{attach_producer, attach_reader, serve, unlink};
use firmware_bridge::ring::{Arrival, DropPolicy, Polled, RingGeometry, Sent};
use firmware_bridge::slots::VolumeGeometry;

#[test]
fn frames_in_volumes_out() {
    let name = format!("diffnr-test-round-trip-{}", std::process::id());
    let ring = RingGeometry::for_detector(5, 3, 4, DropPolicy::DropNewest);
    let served = serve(&name, ring, VolumeGeometry::for_shape([3, 4, 5], 3), 0o600).unwrap();
    let (mut consumer, mut writer) = (served.consumer, served.writer);
    let mut producer = attach_producer(&name).unwrap();
    for sequence in 0..10_u64 {
        let pixels: Vec<u16> = (0..15).map(|i| i * 7 + sequence as u16).collect();
        let header = FrameHeader {
            sequence,
            kind: FrameKind::CountsU16 as u32,
            flags: FRAME_PAYLOAD_CRC,
            columns: 5,
            rows: 3,
            relative_exposure: 1.0,
            column_step_mm: [0.0, 1.0, 0.0],
            row_step_mm: [0.0, 0.0, -1.0],
            ..FrameHeader::zeroed()
        };
        let sent = producer.send(&header, bytemuck::cast_slice(&pixels), monotonic_ns());
        assert_eq!(sent, Sent::Written { replaced: false });
        let Polled::Frame(frame) = consumer.poll(monotonic_ns()) else { panic!("no frame {sequence}") };
        assert_eq!(frame.pixels_u16().unwrap(), pixels);
        assert_eq!((frame.header().sequence, frame.header().epoch), (sequence, 1));
        let expected = if sequence == 0 { Arrival::NewEpoch { missing: None } } else { Arrival::InOrder };
        assert_eq!(frame.arrival(), expected);
    }
    assert!(matches!(consumer.poll(monotonic_ns()), Polled::Empty));

    let reader = attach_reader(&name).unwrap();
    for generation in 1..8_u64 {
        let values: Vec<f32> = (0..60).map(|i| i as f32 * 0.5 + generation as f32).collect();
        let header = VolumeHeader { shape: [3, 4, 5], ..VolumeHeader::zeroed() };
        assert_eq!(writer.publish(&header, &values, monotonic_ns()).unwrap().generation, generation);
        let volume = reader.newest(monotonic_ns(), 1_000_000_000).unwrap();
        assert_eq!((volume.header().generation, volume.read().unwrap()), (generation, values));
    }
    unlink(&name).unwrap();
}
