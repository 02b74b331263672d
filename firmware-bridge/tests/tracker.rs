//! The sequence tracker against a model that simply remembers every number.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use firmware_bridge::layout::SequenceRange;
use firmware_bridge::ring::{Arrival, GAP_CAPACITY, SequenceTracker};
use std::collections::BTreeSet;

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Seen numbers and the highest one: what is missing are the others below it.
#[derive(Default)]
struct Model {
    seen: BTreeSet<u64>,
    spoilt: BTreeSet<u64>,
    next: u64,
}

impl Model {
    fn missing(&self) -> Vec<u64> {
        (0..self.next).filter(|number| !self.seen.contains(number)).collect()
    }
}

fn listed(tracker: &SequenceTracker) -> Vec<u64> {
    tracker.gaps().iter().flat_map(|gap| gap.range.first..=gap.range.last).collect()
}

#[test]
fn the_tracker_knows_what_is_missing() {
    for seed in 0..300 {
        let mut state = seed * 7919 + 1;
        let (mut tracker, mut model) = (SequenceTracker::new(), Model::default());
        for _ in 0..60 {
            // Mostly near the front, sometimes far behind or ahead.
            let number = match random(&mut state) % 4 {
                0 => random(&mut state) % (model.next + 1),
                1 => model.next + random(&mut state) % 6,
                _ => model.next,
            };
            if random(&mut state).is_multiple_of(8) {
                let new = tracker.observe_spoilt(1, number);
                let expected = (number >= model.next).then_some(SequenceRange { first: model.next, last: number });
                assert_eq!(new, expected);
                model.spoilt.insert(number);
            } else {
                let arrival = tracker.observe(1, number);
                let gap = SequenceRange { first: model.next, last: number.wrapping_sub(1) };
                let first = model.next == 0;
                let expected = if model.seen.contains(&number) {
                    Arrival::Duplicate
                } else if number < model.next {
                    Arrival::Late
                } else if first && tracker.counts().epoch_changes == 0 && model.spoilt.is_empty() {
                    Arrival::NewEpoch { missing: (number > 0).then_some(gap) }
                } else if number > model.next {
                    Arrival::AfterGap(gap)
                } else {
                    Arrival::InOrder
                };
                assert_eq!(arrival, expected, "seed {seed}, number {number}");
                model.seen.insert(number);
            }
            model.next = model.next.max(number + 1);
            assert_eq!(tracker.next_sequence(), model.next);
            assert_eq!(tracker.counts().missing, model.missing().len() as u64);
            if tracker.counts().unlisted == 0 {
                assert_eq!(listed(&tracker), model.missing(), "seed {seed}");
            }
        }
    }
}

#[test]
fn more_ranges_than_room_are_counted() {
    let mut tracker = SequenceTracker::new();
    for i in 0..100 {
        tracker.observe(1, i * 3); // leaves 3i + 1 and 3i + 2 out
    }
    assert_eq!(tracker.gaps().len(), GAP_CAPACITY);
    assert_eq!((tracker.counts().gaps, tracker.counts().missing), (99, 198));
    assert_eq!(tracker.counts().unlisted, (99 - GAP_CAPACITY as u64) * 2);
    assert_eq!(tracker.gaps().last().unwrap().range, SequenceRange { first: 295, last: 296 });
    // A number whose range was forgotten cannot be told from a duplicate.
    assert_eq!(tracker.observe(1, 1), Arrival::Duplicate);
    assert_eq!(tracker.observe(1, 295), Arrival::Late);
}

#[test]
fn epochs_are_kept_apart() {
    let mut tracker = SequenceTracker::new();
    tracker.observe(1, 5);
    assert_eq!(tracker.observe(2, 0), Arrival::NewEpoch { missing: None });
    assert_eq!(tracker.observe(2, 3), Arrival::AfterGap(SequenceRange { first: 1, last: 2 }));
    assert_eq!(tracker.observe(2, 2), Arrival::Late, "the gap of epoch 1 holds this number too, but stays");
    let gaps: Vec<_> = tracker.gaps().iter().map(|gap| (gap.epoch, gap.range.first, gap.range.last)).collect();
    assert_eq!(gaps, [(1, 0, 4), (2, 1, 1)]);
    assert_eq!(tracker.counts().epoch_changes, 1);
    tracker.clear_gaps();
    assert!(tracker.gaps().is_empty());
    assert_eq!(tracker.counts().missing, 6, "the sums stay");
}

#[test]
fn huge_numbers_do_not_overflow() {
    let mut tracker = SequenceTracker::new();
    tracker.observe(1, u64::MAX);
    assert_eq!(
        tracker.observe(1, u64::MAX),
        Arrival::InOrder,
        "the counter saturates; such numbers are refused earlier"
    );
    tracker.observe(2, u64::MAX - 1);
    assert_eq!(tracker.counts().missing, u64::MAX);
}
