//! The ring: every rule of PROTOCOL.md, section "Frames".
#![cfg(all(feature = "std", not(loom)))]
#![allow(clippy::unwrap_used)]

mod common;

use bytemuck::Zeroable;
use common::{COLUMNS, PIXELS, ROWS, consumer, frame_header, pixels, producer, receive, receive_all, ring, send};
use firmware_bridge::error::FrameError;
use firmware_bridge::layout::{FrameHeader, FrameKind, SequenceRange};
use firmware_bridge::ring::{Arrival, DropPolicy, Polled, Rejection, Sent};

const WRITTEN: Sent = Sent::Written { replaced: false };
const REPLACED: Sent = Sent::Written { replaced: true };

fn range(first: u64, last: u64) -> SequenceRange {
    SequenceRange { first, last }
}

#[test]
fn frames_go_round_and_round_in_order() {
    for policy in [DropPolicy::DropNewest, DropPolicy::DropOldest] {
        for slot_count in [2, 3, 5] {
            let (_memory, mut producer, mut consumer) = ring(slot_count, policy);
            for burst in 0..20_u64 {
                let first = burst * u64::from(slot_count);
                let numbers: Vec<u64> = (first..first + u64::from(slot_count)).collect();
                for &sequence in &numbers {
                    assert_eq!(send(&mut producer, sequence), WRITTEN);
                }
                assert_eq!(receive_all(&mut consumer), numbers);
            }
            assert_eq!(consumer.counters().consumed, 20 * u64::from(slot_count));
            assert_eq!(consumer.tracker().counts().missing, 0);
            assert_eq!(consumer.ring().producer_counters().written, 20 * u64::from(slot_count));
        }
    }
}

#[test]
fn a_full_ring_drops_the_newest() {
    let (_memory, mut producer, mut consumer) = ring(3, DropPolicy::DropNewest);
    let sent: Vec<Sent> = (0..7).map(|sequence| send(&mut producer, sequence)).collect();
    assert_eq!(sent[..3], [WRITTEN; 3]);
    assert_eq!(sent[3..], [Sent::Dropped; 4]);
    assert_eq!(receive_all(&mut consumer), [0, 1, 2]);
    assert_eq!(send(&mut producer, 7), WRITTEN);
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("frame 7 is missing") };
    assert_eq!(frame.arrival(), Arrival::AfterGap(range(3, 6)));
    drop(frame);
    let counters = consumer.ring().producer_counters();
    assert_eq!((counters.written, counters.dropped_newest, counters.dropped_oldest), (4, 4, 0));
    assert_eq!(consumer.tracker().counts().missing, 4);
}

#[test]
fn a_full_ring_drops_the_oldest() {
    let (_memory, mut producer, mut consumer) = ring(3, DropPolicy::DropOldest);
    let sent: Vec<Sent> = (0..8).map(|sequence| send(&mut producer, sequence)).collect();
    assert_eq!(sent[..3], [WRITTEN; 3]);
    assert_eq!(sent[3..], [REPLACED; 5]);
    assert_eq!(receive_all(&mut consumer), [5, 6, 7]);
    let counters = consumer.ring().producer_counters();
    assert_eq!((counters.written, counters.dropped_newest, counters.dropped_oldest), (8, 0, 5));
    assert_eq!(consumer.tracker().gaps()[0].range, range(0, 4));
}

#[test]
fn drop_oldest_spares_the_frame_being_read() {
    let (_memory, mut producer, mut consumer) = ring(3, DropPolicy::DropOldest);
    for sequence in 0..3 {
        send(&mut producer, sequence);
    }
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("no frame") };
    // The next ticket's slot is the one being read: the new frame goes, the one in the reader's hands stays.
    assert_eq!(send(&mut producer, 3), Sent::Dropped);
    assert_eq!(frame.pixels_u16().unwrap(), pixels(0));
    drop(frame);
    assert_eq!(send(&mut producer, 4), WRITTEN);
    assert_eq!(send(&mut producer, 5), REPLACED); // over frame 1
    assert_eq!(receive_all(&mut consumer), [2, 4, 5]);
    let counters = consumer.ring().producer_counters();
    assert_eq!((counters.dropped_newest, counters.dropped_oldest), (1, 1));
    assert_eq!(consumer.tracker().counts().missing, 2); // 1 and 3
}

#[test]
fn gaps_duplicates_and_late_frames_are_told_apart() {
    let (_memory, mut producer, mut consumer) = ring(16, DropPolicy::DropNewest);
    for sequence in [0, 1, 4, 4, 3, 9, 0, 6] {
        send(&mut producer, sequence);
    }
    let mut seen = Vec::new();
    loop {
        match consumer.poll(1) {
            Polled::Empty => break,
            Polled::Frame(frame) => seen.push((frame.header().sequence, Some(frame.arrival()))),
            Polled::Rejected(Rejection::Duplicate { sequence, .. }) => seen.push((sequence, None)),
            Polled::Rejected(why) => panic!("{why:?}"),
        }
    }
    assert_eq!(
        seen,
        [
            (0, Some(Arrival::NewEpoch { missing: None })),
            (1, Some(Arrival::InOrder)),
            (4, Some(Arrival::AfterGap(range(2, 3)))),
            (4, None),
            (3, Some(Arrival::Late)),
            (9, Some(Arrival::AfterGap(range(5, 8)))),
            (0, None),
            (6, Some(Arrival::Late)),
        ]
    );
    let ranges: Vec<SequenceRange> = consumer.tracker().gaps().iter().map(|gap| gap.range).collect();
    assert_eq!(ranges, [range(2, 2), range(5, 5), range(7, 8)]);
    let counts = consumer.tracker().counts();
    assert_eq!((counts.gaps, counts.missing, counts.duplicates, counts.late), (2, 4, 2, 2));
}

#[test]
fn a_spoilt_payload_is_rejected_and_missing() {
    let (_memory, mut producer, mut consumer) = ring(4, DropPolicy::DropNewest);
    send(&mut producer, 0);
    let mut slot = producer.begin(1).unwrap();
    slot.payload_mut()[..PIXELS * 2].copy_from_slice(bytemuck::cast_slice(&pixels(2)));
    let mut header = frame_header(2);
    header.epoch = 1;
    header.payload_crc32c = firmware_bridge::crc::crc32c(bytemuck::cast_slice(&pixels(2))) ^ 1;
    header.seal();
    slot.commit_sealed(&header);
    send(&mut producer, 3);
    assert_eq!(receive(&mut consumer), Some(0));
    let Polled::Rejected(Rejection::Payload { sequence, missing, .. }) = consumer.poll(1) else { panic!("accepted") };
    assert_eq!((sequence, missing), (2, Some(range(1, 2))));
    // Frame 3 follows directly: the gap before it has been told already.
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("no frame 3") };
    assert_eq!(frame.arrival(), Arrival::InOrder);
    drop(frame);
    assert_eq!(consumer.counters().crc_errors_payload, 1);
    assert_eq!(consumer.tracker().counts().missing, 2);
}

#[test]
fn a_spoilt_header_is_rejected_and_shows_as_a_gap() {
    let (_memory, mut producer, mut consumer) = ring(4, DropPolicy::DropNewest);
    send(&mut producer, 0);
    let mut header = frame_header(1);
    header.epoch = 1;
    header.seal();
    header.view_index ^= 1; // after sealing
    producer.begin(1).unwrap().commit_sealed(&header);
    send(&mut producer, 2);
    assert_eq!(receive(&mut consumer), Some(0));
    let Polled::Rejected(Rejection::Header(FrameError::HeaderCrc { .. })) = consumer.poll(1) else {
        panic!("accepted")
    };
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("no frame 2") };
    assert_eq!(frame.arrival(), Arrival::AfterGap(range(1, 1)));
    drop(frame);
    assert_eq!(consumer.counters().crc_errors_header, 1);
}

/// A name of a field and a change that makes it impossible.
type Mutation = (&'static str, fn(&mut FrameHeader));

#[test]
fn hostile_headers_with_a_right_crc_are_refused_by_name() {
    let mutations: &[Mutation] = &[
        ("header_bytes", |h| h.header_bytes = 255),
        ("kind", |h| h.kind = 0),
        ("kind", |h| h.kind = 5),
        ("sequence", |h| h.sequence = u64::MAX),
        ("sequence", |h| h.sequence = 1 << 48),
        ("columns", |h| h.columns = 0),
        ("columns", |h| h.columns = COLUMNS + 1),
        ("columns", |h| h.columns = u32::MAX),
        ("rows", |h| h.rows = 0),
        ("rows", |h| h.rows = ROWS + 1),
        ("payload_bytes", |h| h.payload_bytes = u64::MAX),
        ("payload_bytes", |h| h.payload_bytes -= 1),
        ("payload_bytes", |h| h.kind = FrameKind::LineIntegralsF32 as u32),
        ("view_index", |h| (h.view_index, h.total_views) = (10, 10)),
        ("source_mm", |h| h.source_mm[2] = f64::NAN),
        ("source_mm", |h| h.source_mm[0] = 1e300),
        ("detector_origin_mm", |h| h.detector_origin_mm[1] = f64::NEG_INFINITY),
        ("column_step_mm", |h| h.column_step_mm = [0.0; 3]),
        ("row_step_mm", |h| h.row_step_mm[0] = f64::INFINITY),
        ("relative_exposure", |h| h.relative_exposure = 0.0),
        ("relative_exposure", |h| h.relative_exposure = f32::NAN),
        ("i0_counts", |h| h.i0_counts = -1.0),
    ];
    let (_memory, mut producer, mut consumer) = ring(2, DropPolicy::DropNewest);
    for (field, mutate) in mutations {
        let mut header = frame_header(0);
        header.seal();
        mutate(&mut header);
        header.header_crc32c = header.computed_header_crc32c();
        producer.begin(1).unwrap().commit_sealed(&header);
        let Polled::Rejected(Rejection::Header(error)) = consumer.poll(1) else { panic!("{field} accepted") };
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
    let mut header = frame_header(0);
    header.seal();
    header.version_major = 2;
    header.header_crc32c = header.computed_header_crc32c();
    producer.begin(1).unwrap().commit_sealed(&header);
    let Polled::Rejected(Rejection::Header(FrameError::Version { found: 2, .. })) = consumer.poll(1) else {
        panic!("version accepted")
    };
    assert_eq!(consumer.counters().invalid_headers, mutations.len() as u64 + 1);
    assert_eq!(consumer.tracker().epoch(), None, "a refused header must not move the tracker");
}

#[test]
fn calibration_frames_need_no_pose() {
    let (_memory, mut producer, mut consumer) = ring(2, DropPolicy::DropNewest);
    for (sequence, kind) in [FrameKind::DarkU16, FrameKind::FlatU16].into_iter().enumerate() {
        let header = FrameHeader {
            sequence: sequence as u64,
            kind: kind as u32,
            columns: COLUMNS,
            rows: ROWS,
            relative_exposure: if kind == FrameKind::DarkU16 { 0.0 } else { 1.0 },
            ..FrameHeader::zeroed()
        };
        producer.send(&header, &[9; PIXELS * 2], 1);
        let Polled::Frame(frame) = consumer.poll(1) else { panic!("{kind:?} refused") };
        assert_eq!((frame.kind(), frame.pixels_u16().unwrap()[3]), (kind, 0x0909));
    }
}

#[test]
fn line_integrals_come_as_floats() {
    let (_memory, mut producer, mut consumer) = ring(2, DropPolicy::DropNewest);
    let values: Vec<f32> = (0..PIXELS).map(|i| i as f32 * 0.25).collect();
    let header = FrameHeader { kind: FrameKind::LineIntegralsF32 as u32, ..frame_header(0) };
    assert_eq!(producer.send(&header, bytemuck::cast_slice(&values), 1), WRITTEN);
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("refused") };
    assert_eq!((frame.pixels_f32().unwrap(), frame.pixels_u16()), (&values[..], None));
}

#[test]
fn a_restarted_producer_is_a_new_epoch() {
    let (memory, mut first, mut consumer) = ring(8, DropPolicy::DropNewest);
    send(&mut first, 0);
    send(&mut first, 1);
    drop(first); // no orderly detach
    let mut second = producer(&memory);
    assert_eq!(second.epoch(), 2);
    send(&mut second, 1); // its number 0 was lost
    assert_eq!(receive(&mut consumer), Some(0));
    assert_eq!(receive(&mut consumer), Some(1));
    let Polled::Frame(frame) = consumer.poll(1) else { panic!("no frame of the new epoch") };
    assert_eq!(frame.arrival(), Arrival::NewEpoch { missing: Some(range(0, 0)) });
    assert_eq!(frame.header().epoch, 2);
    drop(frame);
    assert_eq!(consumer.tracker().counts().epoch_changes, 1);
}

#[test]
fn a_producer_that_dies_in_mid_write_leaves_no_trace() {
    for policy in [DropPolicy::DropNewest, DropPolicy::DropOldest] {
        let (memory, mut first, mut consumer) = ring(3, policy);
        send(&mut first, 0);
        let mut slot = first.begin(1).unwrap();
        slot.payload_mut().fill(0xee);
        std::mem::forget(slot); // killed here
        assert_eq!(receive_all(&mut consumer), [0], "nothing behind the half-written frame yet");
        let mut second = producer(&memory);
        assert_eq!(consumer.ring().producer_counters().reclaimed_writing, 1);
        for sequence in 0..3 {
            assert_eq!(send(&mut second, sequence), WRITTEN, "all slots are usable again");
        }
        assert_eq!(receive_all(&mut consumer), [0, 1, 2]);
        assert_eq!(consumer.tracker().counts().missing, 0);
    }
}

#[test]
fn a_superseded_producer_cannot_publish() {
    let (memory, mut first, mut consumer) = ring(3, DropPolicy::DropNewest);
    let slot = first.begin(1).unwrap();
    let mut second = producer(&memory);
    send(&mut second, 0);
    assert_eq!(slot.commit(frame_header(0)), Sent::Superseded);
    assert_eq!(receive_all(&mut consumer), [0]);
}

#[test]
fn a_consumer_that_dies_reading_loses_that_frame_only() {
    let (memory, mut producer, mut first) = ring(3, DropPolicy::DropNewest);
    for sequence in 0..3 {
        send(&mut producer, sequence);
    }
    let Polled::Frame(frame) = first.poll(1) else { panic!("no frame") };
    std::mem::forget(frame); // killed here
    let mut second = consumer(&memory);
    assert_eq!(second.counters().reclaimed_reading, 1);
    assert_eq!(receive_all(&mut second), [1, 2]);
    assert_eq!(second.tracker().gaps()[0].range, range(0, 0));
    for sequence in 3..6 {
        assert_eq!(send(&mut producer, sequence), WRITTEN);
    }
    assert_eq!(receive_all(&mut second), [3, 4, 5]);
}

#[test]
fn an_abandoned_slot_is_used_again() {
    let (_memory, mut producer, mut consumer) = ring(2, DropPolicy::DropNewest);
    drop(producer.begin(1).unwrap());
    assert_eq!(receive(&mut consumer), None);
    assert_eq!(send(&mut producer, 0), WRITTEN);
    assert_eq!(receive_all(&mut consumer), [0]);
}

#[test]
fn a_retired_ring_refuses_frames() {
    let (_memory, mut producer, consumer) = ring(2, DropPolicy::DropNewest);
    consumer.ring().retire();
    assert_eq!(send(&mut producer, 0), Sent::Retired);
}

#[test]
fn payloads_larger_than_a_slot_are_refused() {
    let (_memory, mut producer, _consumer) = ring(2, DropPolicy::DropNewest);
    assert_eq!(producer.send(&frame_header(0), &[0; PIXELS * 4 + 1], 1), Sent::TooLarge);
}

/// Producer and consumer at full speed on two threads: every frame arrives whole and in order, or is counted as dropped.
#[test]
fn nothing_is_torn_or_miscounted_at_full_speed() {
    for policy in [DropPolicy::DropNewest, DropPolicy::DropOldest] {
        let (_memory, mut producer, mut consumer) = ring(4, policy);
        let total = 40_000_u64;
        let sender = std::thread::spawn(move || {
            let mut lost = 0;
            for sequence in 0..total {
                match send(&mut producer, sequence) {
                    Sent::Written { replaced } => lost += u64::from(replaced),
                    Sent::Dropped => lost += 1,
                    other => panic!("{other:?}"),
                }
                if sequence % 3 == 0 {
                    std::hint::spin_loop();
                }
            }
            (producer, lost)
        });
        let (mut received, mut last) = (0, None);
        let mut drain = |consumer: &mut _| {
            while let Some(sequence) = receive(consumer) {
                assert!(last.is_none_or(|last| last < sequence), "{policy:?}: {sequence} after {last:?}");
                last = Some(sequence);
                received += 1;
            }
        };
        while !sender.is_finished() {
            drain(&mut consumer);
            std::thread::yield_now();
        }
        let (mut producer, mut lost) = sender.join().unwrap();
        drain(&mut consumer);
        // One more, so that frames dropped at the very end show as a gap too.
        lost += u64::from(send(&mut producer, total) != WRITTEN);
        drain(&mut consumer);
        assert_eq!(received + lost, total + 1, "{policy:?}");
        assert_eq!(consumer.tracker().counts().missing, lost, "{policy:?}");
        assert_eq!(consumer.tracker().counts().duplicates, 0);
    }
}
