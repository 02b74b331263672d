//! A seeded mutational fuzzer over everything that is parsed out of shared memory or a recording.
//!
//! `DIFFNR_FUZZ_SECONDS` is the time for all targets together (default 1), `DIFFNR_FUZZ_SEED` the seed. The property is the
//! same for all: no panic, no access outside the memory, and what is accepted has been checked. `make fuzz SECONDS=600` runs
//! long. A failure prints target, seed and round: the same seed fails again.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use bytemuck::Zeroable;
use common::{COLUMNS, Heap, ROWS, SHAPE, frame_header, pixels, values, volume_header};
use firmware_bridge::layout::*;
use firmware_bridge::memory::{HeapMemory, SharedMemory};
use firmware_bridge::recording::{RecordingReader, RecordingWriter};
use firmware_bridge::ring::{DropPolicy, FrameConsumer, FrameProducer, FrameRing, Polled, RingGeometry};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};
use std::mem::offset_of;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Numbers that break things more often than others.
    fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => f64::NAN.to_bits(),
            5 => self.below(300),
            _ => self.next(),
        }
    }

    /// Changes a few bytes or fields in place.
    fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() as u64) as usize;
            match self.below(4) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                width => {
                    let width = if width == 2 { 4 } else { 8 };
                    let at = at / width * width;
                    let end = (at + width).min(bytes.len());
                    let value = self.interesting().to_le_bytes();
                    bytes[at..end].copy_from_slice(&value[..end - at]);
                }
            }
        }
    }
}

/// Runs `round` with ever new random numbers for a share of the time.
fn fuzz(target: &str, mut round: impl FnMut(&mut Random)) {
    let number = |name: &str, default: f64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    // Five targets share the time.
    let time = Duration::from_secs_f64(number("DIFFNR_FUZZ_SECONDS", 1.0) / 5.0);
    let seed = number("DIFFNR_FUZZ_SEED", 1.0) as u64;
    let (start, mut rounds) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        struct Report<'a>(&'a str, u64, u64);
        impl Drop for Report<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    eprintln!("fuzz target {}: seed {}, round {}", self.0, self.1, self.2);
                }
            }
        }
        let _report = Report(target, seed, rounds);
        round(&mut Random(seed << 32 ^ rounds.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        rounds += 1;
    }
    println!("fuzz target {target}: {rounds} rounds in {:.1} s", start.elapsed().as_secs_f64());
}

/// Overwrites shared memory as a hostile peer would: atomically, anywhere.
#[allow(unsafe_code)]
fn poke(memory: &Heap, offset: usize, value: u8) {
    assert!(offset < memory.len());
    // SAFETY: inside the memory; every access of this test and the crate to these bytes is atomic or granted by a slot word
    // (payload bytes are only poked by the thread that would read them).
    unsafe { AtomicU8::from_ptr(memory.base().as_ptr().add(offset)).store(value, Ordering::Relaxed) }
}

#[allow(unsafe_code)]
fn poke_word(memory: &Heap, offset: usize, value: u64) {
    assert!(offset.is_multiple_of(8) && offset + 8 <= memory.len());
    // SAFETY: as `poke`.
    unsafe { AtomicU64::from_ptr(memory.base().as_ptr().add(offset).cast()).store(value, Ordering::Relaxed) }
}

fn geometry() -> RingGeometry {
    RingGeometry::for_detector(COLUMNS, ROWS, 3, DropPolicy::DropOldest)
}

fn drain(consumer: &mut FrameConsumer<Heap>) {
    for _ in 0..16 {
        match consumer.poll(1) {
            Polled::Empty => return,
            Polled::Frame(frame) => {
                let header = *frame.header();
                assert!(header.columns <= COLUMNS && header.rows <= ROWS && header.columns * header.rows > 0);
                assert!(header.source_mm.iter().all(|value| value.is_finite()) || !frame.kind().is_projection());
                let pixels = (header.columns * header.rows) as usize;
                let count = frame.pixels_u16().map(<[u16]>::len).or(frame.pixels_f32().map(<[f32]>::len));
                assert_eq!(count, Some(pixels));
                let _touched: u64 = frame.payload().iter().map(|&byte| u64::from(byte)).sum();
            }
            Polled::Rejected(_) => {}
        }
    }
}

/// Frame headers: mutated, half of them with a right CRC again, so that the checks behind it are reached.
#[test]
fn frame_headers() {
    let (_memory, mut producer, mut consumer) = common::ring(3, DropPolicy::DropNewest);
    let mut accepted = 0_u64;
    fuzz("frame_headers", |random| {
        let mut header = frame_header(random.below(50));
        header.flags = random.below(8) as u32;
        header.epoch = random.below(3) as u32;
        header.payload_crc32c = firmware_bridge::crc::crc32c(bytemuck::cast_slice(&pixels(1)));
        header.seal();
        let keep = header.header_crc32c;
        random.mutate(bytemuck::bytes_of_mut(&mut header));
        header.header_crc32c = if random.below(4) > 0 { header.computed_header_crc32c() } else { keep };
        let mut slot = producer.begin(1).unwrap();
        slot.payload_mut()[..common::PIXELS * 2].copy_from_slice(bytemuck::cast_slice(&pixels(1)));
        slot.commit_sealed(&header);
        let before = consumer.counters().crc_errors_header + consumer.counters().invalid_headers;
        drain(&mut consumer);
        accepted += u64::from(before == consumer.counters().crc_errors_header + consumer.counters().invalid_headers);
        assert!(consumer.tracker().gaps().len() <= 64);
    });
    let refused = consumer.counters().crc_errors_header + consumer.counters().invalid_headers;
    assert!(accepted > 0 && refused > 0, "the fuzzer must reach both sides: {accepted} accepted, {refused} refused");
}

/// Any byte of the ring (cursors, slot words, headers, payloads) changes while another thread mutates its words, and
/// producer, consumer, attachments of both go on.
#[test]
fn ring_segment() {
    fuzz("ring_segment", |random| {
        let memory = Arc::new(HeapMemory::new(geometry().segment_bytes() as usize));
        let ring = FrameRing::initialise(memory.clone(), geometry(), 7, 1, 1).unwrap();
        let mut consumer = FrameConsumer::attach(ring, 2, 1);
        let mut producer = common::producer(&memory);
        let done = AtomicBool::new(false);
        let mut vandal = Random(random.next());
        std::thread::scope(|scope| {
            let (memory, done) = (&memory, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // Header words and slot control and frame headers; not payloads, which are plain memory to the crate.
                    let slot = vandal.below(3) as usize * geometry().slot_stride() as usize + FRAMES_HEADER_BYTES;
                    let offset = match vandal.below(3) {
                        0 => 88 + vandal.below((FRAMES_HEADER_BYTES - 88) as u64) as usize,
                        1 => slot,
                        _ => slot + FRAME_SLOT_CONTROL_BYTES + vandal.below(FRAME_HEADER_BYTES as u64) as usize,
                    };
                    poke_word(memory, offset / 8 * 8, vandal.interesting());
                }
            });
            for sequence in 0..40 {
                let _result = producer.send(&frame_header(sequence), bytemuck::cast_slice(&pixels(sequence)), 1);
                drain(&mut consumer);
                if random.below(8) == 0
                    && let Ok(ring) = FrameRing::attach(memory.clone())
                {
                    producer = FrameProducer::attach(ring, 3, 1);
                }
                if random.below(8) == 0
                    && let Ok(ring) = FrameRing::attach(memory.clone())
                {
                    consumer = FrameConsumer::attach(ring, 2, 1);
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

/// Segment headers: what `attach` accepts must fit the memory.
#[test]
fn segment_headers() {
    let ring_memory = Arc::new(HeapMemory::new(geometry().segment_bytes() as usize));
    let volumes = VolumeGeometry::for_shape(SHAPE, 3);
    let volume_memory = Arc::new(HeapMemory::new(volumes.segment_bytes() as usize));
    fuzz("segment_headers", |random| {
        FrameRing::initialise(ring_memory.clone(), geometry(), 7, 1, 1).unwrap();
        VolumeSlots::initialise(volume_memory.clone(), volumes, 7, 1, 1).unwrap();
        for memory in [&ring_memory, &volume_memory] {
            for _ in 0..=random.below(3) {
                let offset = random.below(88) as usize;
                if random.below(2) == 0 {
                    poke(memory, offset, random.next() as u8);
                } else {
                    poke_word(memory, offset / 8 * 8, random.interesting());
                }
            }
        }
        if let Ok(ring) = FrameRing::attach(ring_memory.clone()) {
            assert_eq!(ring.geometry().segment_bytes(), ring_memory.len() as u64);
            drain(&mut FrameConsumer::attach(ring, 1, 1));
        }
        if let Ok(slots) = VolumeSlots::attach(volume_memory.clone()) {
            assert_eq!(slots.geometry().segment_bytes(), volume_memory.len() as u64);
            let reader = VolumeReader::new(slots, 1);
            assert!(reader.newest(1, 1).is_err());
        }
    });
}

/// Volume headers, slot words, `newest`, leases and status under mutation.
#[test]
fn volume_segment() {
    let geometry = VolumeGeometry::for_shape(SHAPE, 3);
    let mut whole = 0_u64;
    fuzz("volume_segment", |random| {
        let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
        let slots = VolumeSlots::initialise(memory.clone(), geometry, 7, 1, 1).unwrap();
        let mut writer = VolumeWriter::attach(slots);
        let reader = common::reader(&memory);
        let mut to = vec![0.0; common::VOXELS];
        for generation in 1..6 {
            let _result = writer.publish(&volume_header(), &values(generation), generation * 1_000_000);
            for _ in 0..random.below(4) {
                let slot = VOLUMES_HEADER_BYTES + random.below(3) as usize * geometry.slot_stride() as usize;
                let offset = match random.below(5) {
                    0 => 88 + random.below((VOLUMES_HEADER_BYTES - 88) as u64) as usize,
                    1 => offset_of!(VolumesHeader, newest),
                    2 => slot + VOLUME_SLOT_HEADER_OFFSET + random.below(VOLUME_HEADER_BYTES as u64) as usize,
                    3 => LEASES_OFFSET + random.below(4) as usize * LEASE_BYTES,
                    _ => slot,
                };
                poke_word(&memory, offset / 8 * 8, random.interesting());
            }
            if random.below(2) == 0 {
                // A header with a right CRC and rubbish in it.
                let slot = VOLUMES_HEADER_BYTES + random.below(3) as usize * geometry.slot_stride() as usize;
                let mut header = VolumeHeader { generation, payload_bytes: 420, value_kind: 1, ..volume_header() };
                header.version_major = 1;
                random.mutate(bytemuck::bytes_of_mut(&mut header));
                header.header_crc32c = header.computed_header_crc32c();
                for (i, byte) in bytemuck::bytes_of(&header).iter().enumerate() {
                    poke(&memory, slot + VOLUME_SLOT_HEADER_OFFSET + i, *byte);
                }
            }
            if let Ok(volume) = reader.newest(1, random.interesting()) {
                assert!(volume.voxels() <= common::VOXELS && volume.header().missing_count <= 16);
                whole += u64::from(volume.read_into(&mut to).is_ok());
                if random.below(4) == 0 {
                    volume.leak();
                }
            }
            let _status = (reader.slots().status(), reader.slots().status_detail());
            if random.below(8) == 0 {
                writer = VolumeWriter::attach(
                    VolumeSlots::attach(memory.clone())
                        .unwrap_or_else(|_| VolumeSlots::initialise(memory.clone(), geometry, 7, 1, 1).unwrap()),
                );
            }
        }
    });
    assert!(whole > 0, "the fuzzer must also reach good volumes");
}

/// Recordings: mutated, cut, and with headers made right again.
#[test]
fn recordings() {
    let path = PathBuf::from(format!("/dev/shm/diffnr-fuzz-{}.recording", std::process::id()));
    let mut writer = RecordingWriter::create(&path, COLUMNS, ROWS).unwrap();
    for sequence in 0..3 {
        writer.append(&frame_header(sequence), bytemuck::cast_slice(&pixels(sequence))).unwrap();
    }
    writer.finish().unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut frames = 0_u64;
    fuzz("recordings", |random| {
        let mut bytes = good.clone();
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        if !bytes.is_empty() {
            random.mutate(&mut bytes);
        }
        if bytes.len() >= 320 && random.below(2) == 0 {
            let mut header = RecordingHeader::zeroed();
            bytemuck::bytes_of_mut(&mut header).copy_from_slice(&bytes[..64]);
            if random.below(2) == 0 {
                random.mutate(bytemuck::bytes_of_mut(&mut header));
            }
            header.header_crc32c = firmware_bridge::crc::crc32c(&bytemuck::bytes_of(&header)[..60]);
            bytes[..64].copy_from_slice(bytemuck::bytes_of(&header));
            let mut frame = FrameHeader::zeroed();
            bytemuck::bytes_of_mut(&mut frame).copy_from_slice(&bytes[64..320]);
            random.mutate(bytemuck::bytes_of_mut(&mut frame));
            frame.header_crc32c = frame.computed_header_crc32c();
            bytes[64..320].copy_from_slice(bytemuck::bytes_of(&frame));
        }
        std::fs::write(&path, &bytes).unwrap();
        let Ok(mut reader) = RecordingReader::open(&path) else { return };
        // A hostile frame_count ends in an error, not in a long loop.
        while let Ok(Some((header, payload))) = reader.next_frame() {
            assert_eq!(header.payload_bytes, payload.len() as u64);
            assert!(payload.len() < bytes.len());
            frames += 1;
        }
    });
    let _gone = std::fs::remove_file(&path);
    assert!(frames > 0, "the fuzzer must also reach good frames");
}
