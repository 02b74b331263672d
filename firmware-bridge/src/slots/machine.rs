//! The state machine of volume slots and leases, on its atomic words alone (so that loom can check this very source).
//!
//! Three kinds of words:
//! * a slot's: `generation << 8 | state` (0 EMPTY, 1 WRITING, 2 PUBLISHED);
//! * `newest`: `generation << 8 | (slot + 1)`, 0 = none;
//! * a lease's: `expiry_ms << 24 | nonce << 8 | (slot + 1)`, low byte 0 = free.
//!
//! Writer: mark the slot WRITING, fence, look at the leases; a living one → put the slot back and try another.
//! Reader: claim a lease, fence, look at the slot; not PUBLISHED any more → give the lease back and start again.
//! The two sequentially consistent fences make it impossible that neither sees the other (Dekker).

use crate::sync::{AtomicU64, Ordering, fence};

/// State of a volume slot (low byte of its word).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeSlotState {
    /// Nothing in it.
    Empty = 0,
    /// The writer's.
    Writing = 1,
    /// Holds a volume.
    Published = 2,
}

/// Puts a slot word together.
pub const fn volume_word(generation: u64, state: VolumeSlotState) -> u64 {
    generation << 8 | state as u64
}

const fn is_published(word: u64) -> bool {
    word & 0xff == VolumeSlotState::Published as u64
}

/// Slot and generation of the word `newest`; `None`: nothing published, or a slot that does not exist.
pub const fn split_newest(word: u64, slot_count: usize) -> Option<(usize, u64)> {
    let number = (word & 0xff) as usize;
    if number == 0 || number > slot_count { None } else { Some((number - 1, word >> 8)) }
}

/// Puts a lease word together; `expiry_ms` is cut to 40 bits (34 years of uptime).
pub const fn lease_word(slot: usize, nonce: u64, expiry_ms: u64) -> u64 {
    (expiry_ms & 0xff_ffff_ffff) << 24 | (nonce & 0xffff) << 8 | (slot as u64 + 1)
}

/// The word of an entry given back: the nonce stays, the next lease of the entry counts it up.
const fn freed(word: u64) -> u64 {
    word & 0xff_ff00
}

const fn lease_is_free(word: u64) -> bool {
    word & 0xff == 0
}

const fn lease_slot(word: u64) -> Option<usize> {
    match (word & 0xff) as usize {
        0 => None,
        number => Some(number - 1),
    }
}

/// Longest lease, ms. An expiry further away is nonsense and counts as expired, so that no reader, however wrong, can hold a
/// slot for longer.
pub const LEASE_LIMIT_MS: u64 = 10_000;

const fn lease_lives(word: u64, now_ms: u64) -> bool {
    let expiry_ms = lease_expiry_ms(word);
    // One ms more, as expiries are rounded up.
    now_ms < expiry_ms && expiry_ms <= now_ms.saturating_add(LEASE_LIMIT_MS + 1)
}

/// Expiry of a lease word, ms.
pub const fn lease_expiry_ms(word: u64) -> u64 {
    word >> 24
}

/// The atomic words of the volume slots, wherever they are.
pub trait SlotCells {
    /// Number of slots, at least 3, at most 255.
    fn slot_count(&self) -> usize;
    /// Number of lease entries.
    fn lease_count(&self) -> usize;
    /// Word of slot `index`.
    fn slot(&self, index: usize) -> &AtomicU64;
    /// Word of lease entry `index`.
    fn lease(&self, index: usize) -> &AtomicU64;
    /// The newest volume.
    fn newest(&self) -> &AtomicU64;
}

/// A lease that a reader holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Entry in the lease table.
    pub entry: usize,
    /// Its word; as long as the entry holds it, the writer stays out of the slot.
    pub word: u64,
    /// The leased slot.
    pub slot: usize,
    /// Generation of the volume in it.
    pub generation: u64,
}

/// Why no lease was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseRefusal {
    /// No volume yet.
    NothingPublished,
    /// The table is full.
    NoFreeEntry,
    /// The newest volume changed each time.
    Contended,
}

/// Reader: leases the newest volume until `expiry_ms` (at most [`LEASE_LIMIT_MS`] from `now_ms`).
/// At most `attempts` rounds. The entry of an expired lease is taken over if none is free.
pub fn acquire<S: SlotCells + ?Sized>(
    cells: &S,
    now_ms: u64,
    expiry_ms: u64,
    attempts: u32,
) -> Result<Lease, LeaseRefusal> {
    for _ in 0..attempts {
        // SYNC POINT V1: Acquire pairs with the writer's Release in `publish`.
        let newest = cells.newest().load(Ordering::Acquire);
        let (slot, generation) = split_newest(newest, cells.slot_count()).ok_or(LeaseRefusal::NothingPublished)?;
        let (entry, word) = claim_entry(cells, slot, now_ms, expiry_ms).ok_or(LeaseRefusal::NoFreeEntry)?;
        let lease = Lease { entry, word, slot, generation };
        // SYNC POINT V2: our lease before our look at the slot; pairs with the writer's fence in `claim_slot`.
        fence(Ordering::SeqCst);
        // Acquire: as V1, for the slot's own word.
        if cells.slot(slot).load(Ordering::Acquire) == volume_word(generation, VolumeSlotState::Published) {
            return Ok(lease);
        }
        release(cells, &lease);
    }
    Err(LeaseRefusal::Contended)
}

fn claim_entry<S: SlotCells + ?Sized>(cells: &S, slot: usize, now_ms: u64, expiry_ms: u64) -> Option<(usize, u64)> {
    for expired_too in [false, true] {
        for entry in 0..cells.lease_count() {
            let old = cells.lease(entry).load(Ordering::Relaxed);
            if !(lease_is_free(old) || expired_too && !lease_lives(old, now_ms)) {
                continue;
            }
            // The nonce goes up with each lease, so that a revoked reader does not take a
            // successor's word for its own.
            let word = lease_word(slot, (old >> 8).wrapping_add(1), expiry_ms);
            // AcqRel: whoever sees the entry freed after us also knows of our predecessor's end (V4).
            let entry_word = cells.lease(entry);
            if entry_word.compare_exchange(old, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some((entry, word));
            }
        }
    }
    None
}

/// Reader, after copying with relaxed loads: whether the lease held all the while. False: throw the copy away.
pub fn still_held<S: SlotCells + ?Sized>(cells: &S, lease: &Lease) -> bool {
    // SYNC POINT V3: Acquire fence after the relaxed loads of the payload; pairs with the Release fence in `claim_slot`: who
    // read a byte of the next volume sees the revocation here.
    fence(Ordering::Acquire);
    cells.lease(lease.entry).load(Ordering::Relaxed) == lease.word
}

/// Reader: gives the lease back. False: it had been revoked.
pub fn release<S: SlotCells + ?Sized>(cells: &S, lease: &Lease) -> bool {
    // SYNC POINT V4: Release pairs with the writer's Acquire load in `leased`: our reads happen before its next writes.
    let free = freed(lease.word);
    cells.lease(lease.entry).compare_exchange(lease.word, free, Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Reader: moves the expiry. Returns the new lease; `None`: it had been revoked.
pub fn renew<S: SlotCells + ?Sized>(cells: &S, lease: &Lease, expiry_ms: u64) -> Option<Lease> {
    let word = lease_word(lease.slot, lease.word >> 8, expiry_ms);
    let exchange = cells.lease(lease.entry).compare_exchange(lease.word, word, Ordering::AcqRel, Ordering::Relaxed);
    exchange.is_ok().then_some(Lease { word, ..*lease })
}

/// A slot that the writer may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedSlot {
    /// Which.
    pub slot: usize,
    /// Generation that it will hold.
    pub generation: u64,
    previous: u64,
}

/// Writer: claims a slot for `generation` that is neither the newest nor leased; expired leases are revoked, and added to
/// `revoked`. `None`: all leased. Never waits.
pub fn claim_slot<S: SlotCells + ?Sized>(
    cells: &S,
    generation: u64,
    now_ms: u64,
    revoked: &mut u64,
) -> Option<ClaimedSlot> {
    let newest = split_newest(cells.newest().load(Ordering::Relaxed), cells.slot_count()).map(|(slot, _)| slot);
    let mut tried = 0_u64; // at most 255 slots, but no more than 64 are allowed by the segment
    for _ in 0..cells.slot_count() {
        // The oldest volume first, so that recent ones stay readable longest.
        let candidates = (0..cells.slot_count()).filter(|&slot| Some(slot) != newest && tried & 1 << slot == 0);
        let slot = candidates.min_by_key(|&slot| cells.slot(slot).load(Ordering::Relaxed) >> 8)?;
        tried |= 1 << slot;
        if leased(cells, slot, now_ms, revoked) {
            continue;
        }
        let previous = cells.slot(slot).load(Ordering::Relaxed);
        cells.slot(slot).store(volume_word(generation, VolumeSlotState::Writing), Ordering::Relaxed);
        // SYNC POINT V2 (other side): WRITING before our look at the leases. It is a Release fence too (V3): whoever reads
        // what we write from here on sees WRITING and the revocations above.
        fence(Ordering::SeqCst);
        if leased(cells, slot, now_ms, revoked) {
            cells.slot(slot).store(previous, Ordering::Release); // unharmed: nothing was written
            continue;
        }
        // Revocations made by the second look must come before the writes as well (V3).
        fence(Ordering::Release);
        return Some(ClaimedSlot { slot, generation, previous });
    }
    None
}

/// Whether a living lease holds `slot`; expired ones are revoked.
fn leased<S: SlotCells + ?Sized>(cells: &S, slot: usize, now_ms: u64, revoked: &mut u64) -> bool {
    (0..cells.lease_count()).any(|entry| entry_holds(cells.lease(entry), slot, now_ms, revoked))
}

fn entry_holds(entry: &AtomicU64, slot: usize, now_ms: u64, revoked: &mut u64) -> bool {
    // A reader may give back, take over or renew in between; who does so again and again holds the slot.
    for _ in 0..4 {
        // SYNC POINT V4 (other side): Acquire.
        let word = entry.load(Ordering::Acquire);
        if lease_slot(word) != Some(slot) {
            return false;
        }
        if lease_lives(word, now_ms) {
            return true;
        }
        if entry.compare_exchange(word, freed(word), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            *revoked += 1;
            return false;
        }
    }
    true
}

/// Writer: makes the volume visible.
pub fn publish<S: SlotCells + ?Sized>(cells: &S, claimed: &ClaimedSlot) {
    // SYNC POINT V1 (other side): Release, header and payload are written before PUBLISHED or `newest` is seen.
    let word = volume_word(claimed.generation, VolumeSlotState::Published);
    cells.slot(claimed.slot).store(word, Ordering::Release);
    cells.newest().store(claimed.generation << 8 | (claimed.slot as u64 + 1), Ordering::Release);
}

/// Writer: gives a claimed slot up; what was in it is gone.
pub fn abandon<S: SlotCells + ?Sized>(cells: &S, claimed: &ClaimedSlot) {
    cells.slot(claimed.slot).store(volume_word(claimed.previous >> 8, VolumeSlotState::Empty), Ordering::Release);
}

/// A new writer, its predecessor being gone: slots left WRITING become EMPTY. Returns (next generation, slots emptied).
pub fn reclaim_writer<S: SlotCells + ?Sized>(cells: &S) -> (u64, u64) {
    let (mut generation, mut emptied) = (cells.newest().load(Ordering::Acquire) >> 8, 0);
    for index in 0..cells.slot_count() {
        let word = cells.slot(index).load(Ordering::Acquire);
        generation = generation.max(word >> 8);
        if word != 0 && !is_published(word) && word & 0xff != VolumeSlotState::Empty as u64 {
            cells.slot(index).store(volume_word(word >> 8, VolumeSlotState::Empty), Ordering::Release);
            emptied += 1;
        }
    }
    (generation + 1, emptied)
}
