//! What is missing: sequence numbers, duplicates, late frames, epochs. No allocation.

use crate::layout::SequenceRange;
use heapless::Vec;

/// Ranges that the tracker remembers; older ones are forgotten (and counted) beyond that.
pub const GAP_CAPACITY: usize = 64;

/// A range of missing sequence numbers of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapRange {
    /// Epoch of the producer.
    pub epoch: u32,
    /// The missing numbers.
    pub range: SequenceRange,
}

/// How a frame arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It follows the one before.
    InOrder,
    /// Some before it are missing.
    AfterGap(SequenceRange),
    /// It had been counted as missing.
    Late,
    /// It was there before.
    Duplicate,
    /// First frame of an epoch; `missing` = numbers before it, if it is not number 0.
    NewEpoch {
        /// Numbers missing before it.
        missing: Option<SequenceRange>,
    },
}

/// Sums over the tracker's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerCounts {
    /// Gap ranges opened.
    pub gaps: u64,
    /// Numbers missing now: gaps less late arrivals.
    pub missing: u64,
    /// Frames seen before.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub late: u64,
    /// Changes from one epoch to another.
    pub epoch_changes: u64,
    /// Missing numbers in ranges forgotten for want of room.
    pub unlisted: u64,
}

/// Follows sequence numbers from frame to frame.
#[derive(Clone, Debug, Default)]
pub struct SequenceTracker {
    epoch: Option<u32>,
    next: u64,
    gaps: Vec<GapRange, GAP_CAPACITY>,
    counts: TrackerCounts,
}

impl SequenceTracker {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A good frame has arrived.
    pub fn observe(&mut self, epoch: u32, sequence: u64) -> Arrival {
        if self.epoch != Some(epoch) {
            if self.epoch.is_some() {
                self.counts.epoch_changes += 1;
            }
            self.epoch = Some(epoch);
            let missing = (sequence > 0).then(|| self.open_gap(0, sequence - 1));
            self.next = sequence.saturating_add(1);
            return Arrival::NewEpoch { missing };
        }
        if sequence < self.next {
            return if self.close_gap(epoch, sequence) {
                self.counts.late += 1;
                self.counts.missing = self.counts.missing.saturating_sub(1);
                Arrival::Late
            } else {
                self.counts.duplicates += 1;
                Arrival::Duplicate
            };
        }
        let gap = (sequence > self.next).then(|| self.open_gap(self.next, sequence - 1));
        self.next = sequence.saturating_add(1);
        gap.map_or(Arrival::InOrder, Arrival::AfterGap)
    }

    /// A frame has arrived whose payload is spoilt: its number is missing. Returns the range that is missing now, ending
    /// with it; `None` if the number had been seen or counted before.
    pub fn observe_spoilt(&mut self, epoch: u32, sequence: u64) -> Option<SequenceRange> {
        let new_epoch = self.epoch != Some(epoch);
        if new_epoch {
            if self.epoch.is_some() {
                self.counts.epoch_changes += 1;
            }
            self.epoch = Some(epoch);
            self.next = 0;
        }
        if sequence < self.next {
            return None;
        }
        let range = self.open_gap(self.next, sequence);
        self.next = sequence.saturating_add(1);
        Some(range)
    }

    /// The epoch of the last frame.
    pub fn epoch(&self) -> Option<u32> {
        self.epoch
    }

    /// The number that should come next in this epoch.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Sums so far.
    pub fn counts(&self) -> &TrackerCounts {
        &self.counts
    }

    /// Missing ranges, in the order in which they were opened; touching ones are merged.
    pub fn gaps(&self) -> &[GapRange] {
        &self.gaps
    }

    /// Forgets the list of ranges (a new scan begins); the sums stay. A frame of a forgotten range is a duplicate.
    pub fn clear_gaps(&mut self) {
        self.gaps.clear();
    }

    fn open_gap(&mut self, first: u64, last: u64) -> SequenceRange {
        let range = SequenceRange { first, last };
        self.counts.gaps += 1;
        self.counts.missing = self.counts.missing.saturating_add(range.count());
        let epoch = self.epoch.unwrap_or_default();
        if let Some(previous) = self.gaps.last_mut()
            && previous.epoch == epoch
            && previous.range.last.checked_add(1) == Some(first)
        {
            previous.range.last = last;
            return range;
        }
        self.push(self.gaps.len(), GapRange { epoch, range });
        range
    }

    /// Inserts at `index`, forgetting the oldest range if there is no room.
    fn push(&mut self, index: usize, gap: GapRange) {
        let mut index = index;
        if self.gaps.is_full() {
            let forgotten = self.gaps.remove(0);
            self.counts.unlisted = self.counts.unlisted.saturating_add(forgotten.range.count());
            index = index.saturating_sub(1);
        }
        let _has_room = self.gaps.insert(index, gap);
    }

    /// Takes one number out of its range. False if it is in none.
    fn close_gap(&mut self, epoch: u32, sequence: u64) -> bool {
        let holds = |gap: &GapRange| gap.epoch == epoch && gap.range.contains(sequence);
        let Some(index) = self.gaps.iter().position(holds) else {
            return false;
        };
        let SequenceRange { first, last } = self.gaps[index].range;
        if first == last {
            self.gaps.remove(index);
        } else if sequence == first {
            self.gaps[index].range.first = first + 1;
        } else if sequence == last {
            self.gaps[index].range.last = last - 1;
        } else {
            self.gaps[index].range.last = sequence - 1;
            self.push(index + 1, GapRange { epoch, range: SequenceRange { first: sequence + 1, last } });
        }
        true
    }
}
