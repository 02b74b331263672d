//! What the bridge costs: CRC, a frame through the ring, a volume through a slot. Medians of 21 runs in one process.
//!
//! `cargo run -p firmware-bridge --features std --release --example speed`

use bytemuck::Zeroable;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::crc::{crc32c, portable_append};
use firmware_bridge::layout::{FRAME_PAYLOAD_CRC, FrameHeader, FrameKind, VolumeHeader};
use firmware_bridge::memory::HeapMemory;
use firmware_bridge::ring::{DropPolicy, FrameConsumer, FrameProducer, FrameRing, Polled, RingGeometry};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

/// Median time of one call, ns.
fn median_ns(rounds: u64, mut call: impl FnMut()) -> f64 {
    let mut times: Vec<u64> = (0..21)
        .map(|_| {
            let start = monotonic_ns();
            (0..rounds).for_each(|_| call());
            monotonic_ns() - start
        })
        .collect();
    times.sort_unstable();
    times[10] as f64 / rounds as f64
}

fn report(what: &str, bytes: usize, ns: f64) {
    println!("{what:34} {bytes:9} bytes {:10.1} us {:7.2} GB/s", ns / 1e3, bytes as f64 / ns);
}

fn main() -> Result<(), Box<dyn Error>> {
    let data: Vec<u8> = (0..64 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [252, 131_072, 262_144, 64 << 20] {
        let (data, rounds) = (&data[..bytes], ((16 << 20) / bytes + 1) as u64);
        report("Rust, crate crc32c", bytes, median_ns(rounds, || _ = black_box(crc32c(black_box(data)))));
        let portable = || _ = black_box(portable_append(0, black_box(data)));
        report("Rust, look-up tables", bytes, median_ns(rounds, portable));
    }

    let geometry = RingGeometry::for_detector(256, 256, 8, DropPolicy::DropNewest);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let mut consumer = FrameConsumer::attach(FrameRing::initialise(memory.clone(), geometry, 1, 1, 1)?, 1, 1);
    let mut producer = FrameProducer::attach(FrameRing::attach(memory)?, 1, 1);
    let mut header = FrameHeader {
        kind: FrameKind::LineIntegralsF32 as u32,
        columns: 256,
        rows: 256,
        relative_exposure: 1.0,
        column_step_mm: [0.0, 1.0, 0.0],
        row_step_mm: [0.0, 0.0, -1.0],
        ..FrameHeader::zeroed()
    };
    for (what, flags) in [("ring: send + poll, payload CRC", FRAME_PAYLOAD_CRC), ("ring: send + poll, no CRC", 0)] {
        header.flags = flags;
        let ns = median_ns(64, || {
            producer.send(&header, &data[..262_144], 1);
            header.sequence += 1;
            match consumer.poll(1) {
                Polled::Frame(frame) => _ = black_box(frame.payload()[77]),
                other => println!("unexpected: {other:?}"),
            }
        });
        report(what, 262_144, ns);
    }

    let shape = [256, 256, 256];
    let geometry = VolumeGeometry::for_shape(shape, 3);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let mut writer = VolumeWriter::attach(VolumeSlots::initialise(memory.clone(), geometry, 1, 1, 1)?);
    let reader = VolumeReader::new(VolumeSlots::attach(memory)?, 1);
    let (values, mut copy) = (vec![1.5_f32; 1 << 24], vec![0.0_f32; 1 << 24]);
    let header = VolumeHeader { shape, ..VolumeHeader::zeroed() };
    let mut failures = 0;
    let publish = median_ns(1, || failures += u32::from(writer.publish(&header, &values, monotonic_ns()).is_err()));
    report("slots: publish 256^3", 64 << 20, publish);
    let read = median_ns(1, || {
        let volume = reader.newest(monotonic_ns(), 5_000_000_000);
        failures += u32::from(volume.and_then(|volume| volume.read_into(&mut copy)).is_err());
    });
    report("slots: lease + read 256^3", 64 << 20, read);
    if failures > 0 {
        return Err(format!("{failures} publications or reads failed").into());
    }
    Ok(())
}
