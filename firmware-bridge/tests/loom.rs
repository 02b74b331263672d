//! Every interleaving (up to a bound on preemptions) of the state machines in `ring::machine` and `slots::machine`: the very
//! source that runs in shared memory, on loom's atomics. Payloads are loom cells, which report any data race.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p firmware-bridge --release --test loom`
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use firmware_bridge::ring::machine as ring;
use firmware_bridge::slots::machine as slots;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use ring::{Claim, DropPolicy, RingCells};
use slots::{LeaseRefusal, SlotCells};

/// Explores with at most this many preemptions a thread: loom's authors find nearly all faults at 2 or 3, one of ours took 4.
fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(check);
}

struct Ring {
    words: Vec<AtomicU64>,
    cursor: AtomicU64,
    payloads: Vec<UnsafeCell<u64>>,
}

// SAFETY: the cells are only touched while the state machine grants it; loom checks just that.
#[allow(unsafe_code)]
unsafe impl Sync for Ring {}

impl RingCells for Ring {
    fn slot_count(&self) -> u64 {
        self.words.len() as u64
    }
    fn slot(&self, index: u64) -> &AtomicU64 {
        &self.words[index as usize]
    }
    fn write_cursor(&self) -> &AtomicU64 {
        &self.cursor
    }
}

impl Ring {
    fn new(slot_count: usize) -> Arc<Self> {
        Arc::new(Self {
            words: (0..slot_count).map(|_| AtomicU64::new(0)).collect(),
            cursor: AtomicU64::new(0),
            payloads: (0..slot_count).map(|_| UnsafeCell::new(u64::MAX)).collect(),
        })
    }

    #[allow(unsafe_code)]
    fn write(&self, ticket: u64, value: u64) {
        let payload = &self.payloads[(ticket % self.slot_count()) as usize];
        // SAFETY: loom reports a race if the state machine allows one.
        payload.with_mut(|payload| unsafe { *payload = value });
    }

    #[allow(unsafe_code)]
    fn read(&self, ticket: u64) -> u64 {
        let payload = &self.payloads[(ticket % self.slot_count()) as usize];
        // SAFETY: as above.
        payload.with(|payload| unsafe { *payload })
    }

    /// Sends `value` as `ticket`; returns (written, replaced an unread one).
    fn send(&self, ticket: u64, value: u64, policy: DropPolicy) -> (bool, bool) {
        match ring::claim(self, ticket, policy) {
            Claim::Claimed { replaced } => {
                self.write(ticket, value);
                assert!(ring::publish(self, ticket));
                (true, replaced)
            }
            Claim::Full => (false, false),
        }
    }

    fn receive(&self, cursor: &mut u64) -> Option<u64> {
        let ticket = ring::take(self, cursor)?;
        let value = self.read(ticket);
        ring::release(self, ticket);
        Some(value)
    }
}

fn all_arrive_or_are_counted(policy: DropPolicy) {
    model(5, move || {
        let ring = Ring::new(2);
        let sender = ring.clone();
        let producer = thread::spawn(move || {
            let (mut ticket, mut lost) = (0, 0);
            for value in 0..3 {
                let (written, replaced) = sender.send(ticket, value, policy);
                ticket += u64::from(written);
                lost += u64::from(!written) + u64::from(replaced);
            }
            lost
        });
        let (mut cursor, mut received) = (0, Vec::new());
        for _ in 0..2 {
            received.extend(ring.receive(&mut cursor));
        }
        let lost = producer.join().unwrap();
        while let Some(value) = ring.receive(&mut cursor) {
            received.push(value);
        }
        assert!(received.is_sorted_by(|a, b| a < b), "{received:?}");
        assert_eq!(received.len() as u64 + lost, 3);
    });
}

#[test]
fn ring_drop_newest() {
    all_arrive_or_are_counted(DropPolicy::DropNewest);
}

#[test]
fn ring_drop_oldest() {
    all_arrive_or_are_counted(DropPolicy::DropOldest);
}

/// A new producer frees the slot of one that died in mid-write while the consumer is looking.
#[test]
fn ring_producer_dies_in_mid_write() {
    model(5, || {
        let ring = Ring::new(2);
        assert_eq!(ring.send(0, 10, DropPolicy::DropNewest), (true, false));
        assert!(matches!(ring::claim(&*ring, 1, DropPolicy::DropNewest), Claim::Claimed { .. })); // and dies
        let sender = ring.clone();
        let successor = thread::spawn(move || {
            let (next, freed) = ring::reclaim_producer(&*sender);
            assert_eq!((next, freed), (2, 1));
            sender.send(next, 20, DropPolicy::DropNewest).0
        });
        let (mut cursor, mut received) = (0, Vec::new());
        for _ in 0..2 {
            received.extend(ring.receive(&mut cursor));
        }
        let written = successor.join().unwrap();
        while let Some(value) = ring.receive(&mut cursor) {
            received.push(value);
        }
        assert_eq!(received, if written { vec![10, 20] } else { vec![10] });
    });
}

/// A stalled producer wakes up while its successor takes over: no frame is doubled or torn, the cursor never goes back.
#[test]
fn ring_superseded_producer() {
    model(5, || {
        let ring = Ring::new(2);
        assert!(matches!(ring::claim(&*ring, 0, DropPolicy::DropNewest), Claim::Claimed { .. }));
        ring.write(0, 10);
        let (old, new) = (ring.clone(), ring.clone());
        let stalled = thread::spawn(move || ring::publish(&*old, 0));
        let successor = thread::spawn(move || {
            let (next, _) = ring::reclaim_producer(&*new);
            assert_eq!(next, 1);
            new.send(next, 20, DropPolicy::DropNewest).0
        });
        let published = stalled.join().unwrap();
        assert!(successor.join().unwrap());
        let (mut cursor, mut received) = (0, Vec::new());
        while let Some(value) = ring.receive(&mut cursor) {
            received.push(value);
        }
        assert_eq!(received, if published { vec![10, 20] } else { vec![20] });
        assert_eq!(ring.cursor.load(Ordering::Relaxed), 2);
    });
}

/// A new consumer frees the slot that a dead one was reading while the producer goes on.
#[test]
fn ring_consumer_dies_reading() {
    model(5, || {
        let ring = Ring::new(2);
        ring.send(0, 10, DropPolicy::DropOldest);
        let mut dead_cursor = 0;
        assert_eq!(ring::take(&*ring, &mut dead_cursor), Some(0)); // and dies
        let sender = ring.clone();
        let producer = thread::spawn(move || {
            let (first, _) = sender.send(1, 11, DropPolicy::DropOldest);
            assert!(first);
            sender.send(2, 12, DropPolicy::DropOldest)
        });
        let (mut cursor, freed) = ring::reclaim_consumer(&*ring);
        assert_eq!(freed, 1);
        let mut received: Vec<u64> = ring.receive(&mut cursor).into_iter().collect();
        let (written, replaced) = producer.join().unwrap();
        assert!(!replaced, "its slot was being read, or free");
        while let Some(value) = ring.receive(&mut cursor) {
            received.push(value);
        }
        assert_eq!(received, if written { vec![11, 12] } else { vec![11] });
    });
}

struct Slots {
    words: Vec<AtomicU64>,
    leases: Vec<AtomicU64>,
    newest: AtomicU64,
    /// Read under a living lease: must never race.
    payloads: Vec<UnsafeCell<u64>>,
    /// Read under a lease that may be revoked: relaxed words, as in shared memory.
    words_of_payload: Vec<[AtomicU64; 2]>,
}

// SAFETY: as for `Ring`.
#[allow(unsafe_code)]
unsafe impl Sync for Slots {}

impl SlotCells for Slots {
    fn slot_count(&self) -> usize {
        self.words.len()
    }
    fn lease_count(&self) -> usize {
        self.leases.len()
    }
    fn slot(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }
    fn lease(&self, index: usize) -> &AtomicU64 {
        &self.leases[index]
    }
    fn newest(&self) -> &AtomicU64 {
        &self.newest
    }
}

impl Slots {
    /// Fewer slots than a segment has, so that the writer meets the reader sooner.
    fn new(slot_count: usize, lease_count: usize) -> Arc<Self> {
        let slots = Self {
            words: (0..slot_count).map(|_| AtomicU64::new(0)).collect(),
            leases: (0..lease_count).map(|_| AtomicU64::new(0)).collect(),
            newest: AtomicU64::new(0),
            payloads: (0..slot_count).map(|_| UnsafeCell::new(0)).collect(),
            words_of_payload: (0..slot_count).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
        };
        Arc::new(slots)
    }

    #[allow(unsafe_code)]
    fn publish(&self, generation: u64, now_ms: u64, with_cell: bool) -> bool {
        let mut revoked = 0;
        let Some(claimed) = slots::claim_slot(self, generation, now_ms, &mut revoked) else {
            return false;
        };
        if with_cell {
            // SAFETY: loom reports a race if the state machine allows one.
            self.payloads[claimed.slot].with_mut(|payload| unsafe { *payload = generation });
        }
        for word in &self.words_of_payload[claimed.slot] {
            word.store(generation, Ordering::Relaxed);
        }
        slots::publish(self, &claimed);
        true
    }

    #[allow(unsafe_code)]
    fn read_cell(&self, slot: usize) -> u64 {
        // SAFETY: as above.
        self.payloads[slot].with(|payload| unsafe { *payload })
    }
}

/// While a living lease is held, the writer never touches the slot: a plain read does not race.
#[test]
fn slots_a_living_lease_keeps_the_writer_out() {
    model(5, || {
        let slots = Slots::new(2, 1);
        assert!(slots.publish(1, 0, true));
        let publisher = slots.clone();
        let writer = thread::spawn(move || {
            for generation in 2..4 {
                publisher.publish(generation, 0, true);
            }
        });
        match slots::acquire(&*slots, 0, 100, 2) {
            Ok(lease) => {
                assert_eq!(slots.read_cell(lease.slot), lease.generation);
                assert!(slots::still_held(&*slots, &lease));
                assert!(slots::release(&*slots, &lease));
            }
            Err(refusal) => assert_eq!(refusal, LeaseRefusal::Contended),
        }
        writer.join().unwrap();
        assert_eq!(slots.leases[0].load(Ordering::Relaxed) & 0xff, 0, "the lease was given back");
    });
}

/// The lease has expired for the writer while the reader is still copying: either the copy is of one volume, or the reader
/// is told.
#[test]
fn slots_a_revoked_reader_never_accepts_a_torn_copy() {
    model(5, || {
        let slots = Slots::new(2, 1);
        assert!(slots.publish(1, 0, false));
        let publisher = slots.clone();
        let writer = thread::spawn(move || {
            for generation in 2..4 {
                assert!(publisher.publish(generation, 200, false), "no living lease may stand in the way");
            }
        });
        if let Ok(lease) = slots::acquire(&*slots, 0, 100, 2) {
            let copy = slots.words_of_payload[lease.slot].each_ref().map(|word| word.load(Ordering::Relaxed));
            if slots::still_held(&*slots, &lease) {
                assert_eq!(copy, [lease.generation; 2]);
            }
            slots::release(&*slots, &lease);
        }
        writer.join().unwrap();
    });
}

/// Two readers and one entry: one gets it, or both one after the other; the loser harms nobody.
#[test]
fn slots_two_readers_share_a_table_of_one() {
    model(4, || {
        let slots = Slots::new(2, 1);
        assert!(slots.publish(1, 0, true));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let slots = slots.clone();
                thread::spawn(move || match slots::acquire(&*slots, 0, 100, 1) {
                    Ok(lease) => {
                        assert_eq!(slots.read_cell(lease.slot), lease.generation);
                        assert!(slots::release(&*slots, &lease));
                        true
                    }
                    Err(refusal) => {
                        assert!(matches!(refusal, LeaseRefusal::NoFreeEntry | LeaseRefusal::Contended));
                        false
                    }
                })
            })
            .collect();
        slots.publish(2, 0, true);
        let granted = readers.into_iter().map(|reader| reader.join().unwrap()).filter(|&granted| granted).count();
        let _ = granted;
        assert!(slots.publish(3, 0, true) || slots.publish(3, 0, true), "no lease is left over");
    });
}

/// A reader takes the entry of a dead reader over while the writer revokes it.
#[test]
fn slots_an_expired_entry_changes_hands() {
    model(4, || {
        let slots = Slots::new(2, 1);
        assert!(slots.publish(1, 0, true));
        let dead = slots::acquire(&*slots, 0, 10, 1).unwrap(); // and dies
        let publisher = slots.clone();
        let writer = thread::spawn(move || {
            publisher.publish(2, 50, true);
            publisher.publish(3, 50, true);
        });
        if let Ok(lease) = slots::acquire(&*slots, 50, 100, 2) {
            assert_eq!(slots.read_cell(lease.slot), lease.generation);
            assert!(slots::release(&*slots, &lease));
        }
        writer.join().unwrap();
        assert!(!slots::still_held(&*slots, &dead) || slots.newest.load(Ordering::Relaxed) >> 8 == 1);
    });
}
