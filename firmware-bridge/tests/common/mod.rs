//! What the conformance suites share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use bytemuck::Zeroable;
use firmware_bridge::layout::{FRAME_PAYLOAD_CRC, FrameHeader, FrameKind, VolumeHeader};
use firmware_bridge::memory::HeapMemory;
use firmware_bridge::ring::{DropPolicy, FrameConsumer, FrameProducer, FrameRing, Polled, RingGeometry};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

pub const COLUMNS: u32 = 6;
pub const ROWS: u32 = 4;
pub const PIXELS: usize = (COLUMNS * ROWS) as usize;

pub type Heap = Arc<HeapMemory>;

/// A ring in this process's memory: its memory, a producer and a consumer.
pub fn ring(slot_count: u32, policy: DropPolicy) -> (Heap, FrameProducer<Heap>, FrameConsumer<Heap>) {
    let geometry = RingGeometry::for_detector(COLUMNS, ROWS, slot_count, policy);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let ring = FrameRing::initialise(memory.clone(), geometry, 7, 1, 1).unwrap();
    let consumer = FrameConsumer::attach(ring, 2, 1);
    (memory.clone(), producer(&memory), consumer)
}

pub fn producer(memory: &Heap) -> FrameProducer<Heap> {
    FrameProducer::attach(FrameRing::attach(memory.clone()).unwrap(), 3, 1)
}

pub fn consumer(memory: &Heap) -> FrameConsumer<Heap> {
    FrameConsumer::attach(FrameRing::attach(memory.clone()).unwrap(), 4, 1)
}

/// A good header of raw counts with a payload CRC.
pub fn frame_header(sequence: u64) -> FrameHeader {
    FrameHeader {
        sequence,
        kind: FrameKind::CountsU16 as u32,
        flags: FRAME_PAYLOAD_CRC,
        columns: COLUMNS,
        rows: ROWS,
        relative_exposure: 1.0,
        source_mm: [1000.0, 0.0, 0.0],
        detector_origin_mm: [-500.0, -2.5, 1.5],
        column_step_mm: [0.0, 1.0, 0.0],
        row_step_mm: [0.0, 0.0, -1.0],
        payload_bytes: PIXELS as u64 * 2,
        ..FrameHeader::zeroed()
    }
}

/// Pixels that only this frame has.
pub fn pixels(sequence: u64) -> Vec<u16> {
    (0..PIXELS as u64).map(|i| (sequence * 131 + i * 7) as u16).collect()
}

pub fn send(producer: &mut FrameProducer<Heap>, sequence: u64) -> firmware_bridge::ring::Sent {
    producer.send(&frame_header(sequence), bytemuck::cast_slice(&pixels(sequence)), 1)
}

/// Sequence number of the next frame, whose pixels must be right; `None` if there is none.
pub fn receive(consumer: &mut FrameConsumer<Heap>) -> Option<u64> {
    match consumer.poll(1) {
        Polled::Empty => None,
        Polled::Frame(frame) => {
            let sequence = frame.header().sequence;
            assert_eq!(frame.pixels_u16().unwrap(), pixels(sequence), "pixels of frame {sequence}");
            Some(sequence)
        }
        Polled::Rejected(why) => panic!("rejected: {why:?}"),
    }
}

/// All sequence numbers that are there now.
pub fn receive_all(consumer: &mut FrameConsumer<Heap>) -> Vec<u64> {
    std::iter::from_fn(|| receive(consumer)).collect()
}

pub const SHAPE: [u32; 3] = [3, 5, 7];
pub const VOXELS: usize = 105;

/// Volume slots in this process's memory: memory, writer, reader.
pub fn slots(slot_count: u32) -> (Heap, VolumeWriter<Heap>, VolumeReader<Heap>) {
    let geometry = VolumeGeometry::for_shape(SHAPE, slot_count);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let writer = VolumeWriter::attach(VolumeSlots::initialise(memory.clone(), geometry, 7, 1, 1).unwrap());
    (memory.clone(), writer, reader(&memory))
}

pub fn reader(memory: &Heap) -> VolumeReader<Heap> {
    VolumeReader::new(VolumeSlots::attach(memory.clone()).unwrap(), 5)
}

pub fn volume_header() -> VolumeHeader {
    VolumeHeader { shape: SHAPE, spacing_mm: [1.0; 3], value_scale: 1.0, ..VolumeHeader::zeroed() }
}

/// Values that only this generation has.
pub fn values(generation: u64) -> Vec<f32> {
    (0..VOXELS).map(|i| (generation % 1000) as f32 * 1000.0 + i as f32).collect()
}

/// A segment name that no other test uses; both segments are removed at the end.
pub struct TestName(pub String);

impl TestName {
    pub fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(format!("diffnr-test-{what}-{}-{count}", std::process::id()))
    }
}

impl Drop for TestName {
    fn drop(&mut self) {
        let _gone = firmware_bridge::mapping::unlink(&self.0);
    }
}

pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the crate's Makefile, once for a test binary; make and a C compiler must be there. Returns the folder.
pub fn build_c() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c");
        let mut make = Command::new("make");
        let made = make.arg(format!("BUILD={}", folder.display())).current_dir(crate_folder()).output();
        let made = made.expect("make and cc are needed for the cross-language tests");
        assert!(made.status.success(), "make: {}", String::from_utf8_lossy(&made.stderr));
        folder
    })
}
