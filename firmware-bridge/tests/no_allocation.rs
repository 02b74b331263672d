//! After attaching, neither frames nor volumes nor status allocate: a counting allocator sees to it.
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use common::{VOXELS, frame_header, pixels, ring, slots, values, volume_header};
use firmware_bridge::layout::SequenceRange;
use firmware_bridge::ring::{DropPolicy, Polled};
use firmware_bridge::slots::{Status, StatusDetail};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test only: the counter is the process's.
#[test]
fn frames_and_volumes_allocate_nothing() {
    let (_memory, mut producer, mut consumer) = ring(4, DropPolicy::DropOldest);
    let (_volumes, mut writer, reader) = slots(3);
    let (good, pixels, values, mut copy) = (frame_header(0), pixels(0), values(1), vec![0.0; VOXELS]);
    let detail = StatusDetail::new("message", &[SequenceRange { first: 1, last: 2 }]);
    let (mut taken, mut rejected) = (0, 0);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for round in 0..200_u64 {
        let mut header = good;
        // Gaps (every 7th number is left out), duplicates (every 10th), more ranges than the tracker has room for.
        header.sequence = if round % 10 == 9 { 0 } else { round + round / 7 };
        producer.send(&header, bytemuck::cast_slice(&pixels), 1);
        if round % 13 == 0 {
            header.payload_bytes = u64::MAX; // refused by name
            header.seal();
            producer.begin(1).unwrap().commit_sealed(&header);
        }
        loop {
            match consumer.poll(1) {
                Polled::Empty => break,
                Polled::Frame(frame) => taken += usize::from(frame.payload()[0] == 0),
                Polled::Rejected(_) => rejected += 1,
            }
        }
        writer.publish(&volume_header(), &values, round).unwrap();
        writer.set_status(&Status::default());
        writer.set_status_detail(&detail);
        reader.newest(round, 1_000_000).unwrap().read_into(&mut copy).unwrap();
        let _seen = (reader.slots().status(), reader.slots().status_detail());
    }
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(taken > 100 && rejected > 20, "{taken} taken, {rejected} rejected");
    assert_eq!(allocated, 0);
}
