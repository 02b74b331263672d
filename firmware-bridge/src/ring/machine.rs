//! The state machine of the frame ring, on its atomic words alone (so that loom can check this very source).
//!
//! A slot's word is `ticket << 8 | state`. Tickets count frames of the segment's whole life and are never reused; ticket
//! `t` lives in slot `t % slot_count`. `write_cursor` is the next ticket: every ticket below it was published or given up.
//!
//! ```text
//!            claim (P)              publish (P)            take (C)
//!   FREE ───────────────▶ WRITING ───────────────▶ FULL ──────────────▶ READING ──┐
//!    ▲                     ▲   │                     │                            │
//!    │                     │   │ reclaim (new P)     │ claim, DROP_OLDEST (P)     │
//!    │                     └───┼─────────────────────┘                            │
//!    └─────────────────────────┴───────────────────────────── release (C) ────────┘
//! ```
//! P = producer, C = consumer. Every arrow is one compare-and-swap; nobody waits for anybody.

use crate::sync::{AtomicU64, Ordering};

/// What to do with a new frame when the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DropPolicy {
    /// The new frame is dropped.
    DropNewest = 0,
    /// The oldest unread frame is overwritten; if the consumer is reading just that one, the new frame is dropped.
    DropOldest = 1,
}

impl DropPolicy {
    /// The policy with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::DropNewest),
            1 => Some(Self::DropOldest),
            _ => None,
        }
    }
}

/// State of a slot (low byte of its word).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody's.
    Free = 0,
    /// The producer's.
    Writing = 1,
    /// Holds a frame that nobody has claimed.
    Full = 2,
    /// The consumer's.
    Reading = 3,
}

/// Puts a slot word together.
pub const fn slot_word(ticket: u64, state: SlotState) -> u64 {
    ticket << 8 | state as u64
}

/// Ticket and state of a slot word; a state byte that no peer of this version writes reads as WRITING (nobody touches it).
pub const fn split_word(word: u64) -> (u64, SlotState) {
    let state = match word & 0xff {
        0 => SlotState::Free,
        2 => SlotState::Full,
        3 => SlotState::Reading,
        _ => SlotState::Writing,
    };
    (word >> 8, state)
}

/// The atomic words of a ring, wherever they are.
pub trait RingCells {
    /// Number of slots.
    fn slot_count(&self) -> u64;
    /// Word of slot `index`, below `slot_count`.
    fn slot(&self, index: u64) -> &AtomicU64;
    /// The next ticket.
    fn write_cursor(&self) -> &AtomicU64;
}

fn slot_of<R: RingCells + ?Sized>(ring: &R, ticket: u64) -> &AtomicU64 {
    ring.slot(ticket % ring.slot_count())
}

/// Outcome of [`claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The slot is the producer's; `replaced` = an unread frame was overwritten.
    Claimed {
        /// Whether an unread frame was given up for it.
        replaced: bool,
    },
    /// No room by the policy: drop the new frame.
    Full,
}

/// Producer: asks for the slot of `ticket`. Never waits: at most three compare-and-swaps.
pub fn claim<R: RingCells + ?Sized>(ring: &R, ticket: u64, policy: DropPolicy) -> Claim {
    let slot = slot_of(ring, ticket);
    let target = slot_word(ticket, SlotState::Writing);
    // The consumer can change the word twice at most (take, release) while we look.
    for _ in 0..3 {
        // SYNC POINT R1: Acquire pairs with the consumer's Release in `release`: its reads of the old payload happen
        // before our writes of the new one.
        let word = slot.load(Ordering::Acquire);
        let replaced = match split_word(word).1 {
            SlotState::Free => false,
            SlotState::Full if policy == DropPolicy::DropOldest => true,
            _ => return Claim::Full,
        };
        if slot.compare_exchange(word, target, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Claim::Claimed { replaced };
        }
    }
    Claim::Full
}

/// Producer: makes the frame in the slot of `ticket` visible. False: a new producer took the slot over; the frame is lost.
pub fn publish<R: RingCells + ?Sized>(ring: &R, ticket: u64) -> bool {
    let (from, to) = (slot_word(ticket, SlotState::Writing), slot_word(ticket, SlotState::Full));
    // SYNC POINT R2: Release pairs with the consumer's Acquire in `take`: header and payload are written before FULL is seen.
    if slot_of(ring, ticket).compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_err() {
        return false;
    }
    // SYNC POINT R3: Release pairs with the Acquire load in `take`: who sees the cursor beyond a ticket sees its FULL (or
    // what came after it). A maximum, so that a superseded producer cannot turn the cursor back.
    ring.write_cursor().fetch_max(ticket.saturating_add(1), Ordering::Release);
    true
}

/// Producer: gives a claimed slot back unused; the ticket may be claimed again.
pub fn abandon<R: RingCells + ?Sized>(ring: &R, ticket: u64) {
    let (from, to) = (slot_word(ticket, SlotState::Writing), slot_word(ticket, SlotState::Free));
    let _superseded = slot_of(ring, ticket).compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
}

/// A new producer, its predecessor being gone: frees slots left WRITING. Returns (next ticket, slots freed).
pub fn reclaim_producer<R: RingCells + ?Sized>(ring: &R) -> (u64, u64) {
    let (mut next, mut freed) = (ring.write_cursor().load(Ordering::Acquire), 0);
    for index in 0..ring.slot_count() {
        let word = ring.slot(index).load(Ordering::Acquire);
        let (ticket, state) = split_word(word);
        if word != 0 {
            next = next.max(ticket + 1);
        }
        if state == SlotState::Writing {
            let free = slot_word(ticket, SlotState::Free);
            freed +=
                u64::from(ring.slot(index).compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        }
    }
    // SYNC POINT R4: Release as R3: the freed tickets lie below the cursor, the consumer passes over them as holes.
    ring.write_cursor().fetch_max(next, Ordering::Release);
    (next, freed)
}

/// A new consumer, its predecessor being gone: frees slots left READING. Returns (ticket to start at, slots freed).
pub fn reclaim_consumer<R: RingCells + ?Sized>(ring: &R) -> (u64, u64) {
    let mut freed = 0;
    for index in 0..ring.slot_count() {
        let word = ring.slot(index).load(Ordering::Acquire);
        let (ticket, state) = split_word(word);
        if state == SlotState::Reading {
            let free = slot_word(ticket, SlotState::Free);
            freed +=
                u64::from(ring.slot(index).compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        }
    }
    (ring.write_cursor().load(Ordering::Acquire).saturating_sub(ring.slot_count()), freed)
}

/// Consumer: takes the oldest frame at or after `cursor`, which is moved past it. `None`: nothing there now.
///
/// Tickets that were overwritten or given up are passed over; sequence numbers tell what was lost.
pub fn take<R: RingCells + ?Sized>(ring: &R, cursor: &mut u64) -> Option<u64> {
    // One turn of the ring and one more step is all that can be passed over, unless the producer laps us meanwhile.
    for _ in 0..=ring.slot_count() {
        // SYNC POINT R3 (other side): the cursor before the word; see `publish`.
        let next = ring.write_cursor().load(Ordering::Acquire);
        if next.saturating_sub(*cursor) > ring.slot_count() || *cursor > next.saturating_add(1) {
            // Lapped by more than a turn, or nonsense (a taken ticket may be one ahead of its cursor store): the oldest frame that can still exist.
            *cursor = next.saturating_sub(ring.slot_count());
        }
        let slot = slot_of(ring, *cursor);
        let word = slot.load(Ordering::Acquire);
        let (ticket, state) = split_word(word);
        if ticket == *cursor && state == SlotState::Full {
            let reading = slot_word(ticket, SlotState::Reading);
            // SYNC POINT R2 (other side): Acquire, payload and header are visible.
            if slot.compare_exchange(word, reading, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                *cursor += 1;
                return Some(ticket);
            }
            continue; // overwritten in this instant (DROP_OLDEST)
        }
        if ticket > *cursor || *cursor < next {
            *cursor += 1; // overwritten, or given up by a dead producer
            continue;
        }
        return None;
    }
    None
}

/// Consumer: gives the slot of a taken ticket back.
pub fn release<R: RingCells + ?Sized>(ring: &R, ticket: u64) {
    let (from, to) = (slot_word(ticket, SlotState::Reading), slot_word(ticket, SlotState::Free));
    // SYNC POINT R1 (other side): Release, our reads of the payload happen before the producer's next writes.
    let _superseded = slot_of(ring, ticket).compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
}
