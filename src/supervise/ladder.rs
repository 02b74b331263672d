//! The degrade ladder: go on with less, and say so.
//!
//! | rung | enters | leaves | what is lost |
//! |---|---|---|---|
//! | full | at the start; from below as stated there | | nothing |
//! | without SliceFixer | a repair was late, failed, or gave what no volume can be | an optimisation is done whose repairs all were | what that repair would have gained: the optimisation goes on without it, its last volume has DEGRADED |
//! | frozen | an optimisation diverged, missed its deadline or was refused | the next one is done | what the rest of that run would have gained: its last good volume stands, with DEGRADED |
//! | previews skipped | half of the staging buffers wait when a frame is taken up | no more than one waits, for 8 frames in a row or at a scan's end | previews; every frame still goes into the volume |
//! | stale | a scan ended (broke off, or its frames were all refused) without a volume | the next volume is published | the last volume stands, published again with STALE |
//! | stopped | an error that nothing can be done about | never | all; the daemon ends and says why |
//!
//! Whether the representation is frozen, and whether SliceFixer is left out, is known apart from the other rungs: who leaves one of those comes
//! back to it.
//!
//! The rung for what comes later ("without SliceFixer") goes between full and frozen: a variant in [`Rung`], a counter, and its two
//! rules here.

use serde::Serialize;

/// Frames in a row that must find the staging calm before previews come back.
pub(super) const CALM_FRAMES: u32 = 8;

/// Where on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Everything as planned.
    #[default]
    Full,
    /// A repair of the last optimisation was given up: it went on without.
    WithoutSliceFixer,
    /// The last optimisation was given up: its last good volume stands.
    Frozen,
    /// Late: previews are skipped.
    PreviewsSkipped,
    /// The last volume is not of the present scan.
    Stale,
    /// Nothing goes on.
    Stopped,
}

/// How often each rung was entered, and previews that it cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LadderCounters {
    /// Entries of "without SliceFixer".
    pub without_slice_fixer: u64,
    /// Entries of "frozen".
    pub frozen: u64,
    /// Entries of "previews skipped".
    pub previews_skipped: u64,
    /// Entries of "stale".
    pub stale: u64,
    /// Entries of "stopped": 0 or 1.
    pub stopped: u64,
    /// Ways back up: to "full", or to "without SliceFixer" or "frozen" from below it.
    pub recovered: u64,
}

/// The ladder's state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ladder {
    rung: Rung,
    calm: u32,
    frozen: bool,
    unrepaired: bool,
    counters: LadderCounters,
}

impl Ladder {
    /// The present rung.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Counters so far.
    #[must_use]
    pub fn counters(&self) -> LadderCounters {
        self.counters
    }

    /// A frame is taken up while `waiting` others wait in `capacity` staging buffers. Returns the rung left, where it changed.
    pub fn frame(&mut self, waiting: usize, capacity: usize) -> Option<Rung> {
        match self.rung {
            Rung::Full | Rung::WithoutSliceFixer | Rung::Frozen if waiting * 2 >= capacity => {
                self.go(Rung::PreviewsSkipped)
            }
            Rung::PreviewsSkipped if waiting <= 1 => {
                self.calm += 1;
                if self.calm >= CALM_FRAMES { self.go(self.best()) } else { None }
            }
            Rung::PreviewsSkipped => {
                self.calm = 0;
                None
            }
            _ => None,
        }
    }

    /// A scan has ended while `waiting` frames wait.
    pub fn scan_ended(&mut self, waiting: usize) -> Option<Rung> {
        if self.rung == Rung::PreviewsSkipped && waiting <= 1 { self.go(self.best()) } else { None }
    }

    /// An optimisation was given up.
    pub fn froze(&mut self) -> Option<Rung> {
        let was_frozen = std::mem::replace(&mut self.frozen, true);
        self.counters.frozen += u64::from(!was_frozen);
        if self.rung < Rung::Frozen { self.go(Rung::Frozen) } else { None }
    }

    /// An optimisation is done.
    pub fn thawed(&mut self) -> Option<Rung> {
        self.frozen = false;
        if self.rung == Rung::Frozen { self.go(self.best()) } else { None }
    }

    /// A repair was given up.
    pub fn unrepaired(&mut self) -> Option<Rung> {
        let was_unrepaired = std::mem::replace(&mut self.unrepaired, true);
        self.counters.without_slice_fixer += u64::from(!was_unrepaired);
        if self.rung < Rung::WithoutSliceFixer { self.go(Rung::WithoutSliceFixer) } else { None }
    }

    /// An optimisation is done whose repairs all were.
    pub fn repaired(&mut self) -> Option<Rung> {
        self.unrepaired = false;
        if self.rung == Rung::WithoutSliceFixer { self.go(Rung::Full) } else { None }
    }

    /// The rung to come back to.
    fn best(&self) -> Rung {
        match (self.frozen, self.unrepaired) {
            (true, _) => Rung::Frozen,
            (false, true) => Rung::WithoutSliceFixer,
            (false, false) => Rung::Full,
        }
    }

    /// Whether a preview that is due may be made now.
    #[must_use]
    pub fn allows_previews(&self) -> bool {
        self.rung != Rung::PreviewsSkipped && self.rung != Rung::Stopped
    }

    /// A scan ended without a volume.
    pub fn scan_lost(&mut self) -> Option<Rung> {
        if self.rung < Rung::Stale { self.go(Rung::Stale) } else { None }
    }

    /// A volume of the present scan was published.
    pub fn volume_published(&mut self) -> Option<Rung> {
        if self.rung == Rung::Stale { self.go(self.best()) } else { None }
    }

    /// Nothing can be done.
    pub fn stop(&mut self) -> Option<Rung> {
        if self.rung == Rung::Stopped { None } else { self.go(Rung::Stopped) }
    }

    fn go(&mut self, to: Rung) -> Option<Rung> {
        let from = self.rung;
        self.rung = to;
        self.calm = 0;
        match to {
            Rung::Full => self.counters.recovered += 1,
            // Counted where it happens, as the ladder may stand further down then.
            Rung::WithoutSliceFixer | Rung::Frozen => self.counters.recovered += u64::from(from > to),
            Rung::PreviewsSkipped => self.counters.previews_skipped += 1,
            Rung::Stale => self.counters.stale += 1,
            Rung::Stopped => self.counters.stopped += 1,
        }
        Some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_costs_previews_until_it_has_been_calm_for_a_while() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.frame(3, 8), None);
        assert!(ladder.allows_previews());
        assert_eq!(ladder.frame(4, 8), Some(Rung::Full));
        assert!(!ladder.allows_previews());
        // One busy frame in between starts the count anew.
        for waiting in [1, 1, 1, 2] {
            assert_eq!(ladder.frame(waiting, 8), None);
        }
        for _ in 1..CALM_FRAMES {
            assert_eq!(ladder.frame(0, 8), None);
        }
        assert_eq!(ladder.frame(1, 8), Some(Rung::PreviewsSkipped));
        assert!(ladder.allows_previews());
        assert_eq!(ladder.counters(), LadderCounters { previews_skipped: 1, recovered: 1, ..Default::default() });
        ladder.frame(8, 8);
        assert_eq!(ladder.scan_ended(2), None, "the next scan's frames wait already");
        assert_eq!(ladder.scan_ended(0), Some(Rung::PreviewsSkipped));
        assert_eq!(ladder.rung(), Rung::Full);
    }

    #[test]
    fn a_lost_scan_is_stale_until_the_next_volume() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.volume_published(), None);
        assert_eq!(ladder.scan_lost(), Some(Rung::Full));
        assert_eq!(ladder.scan_lost(), None, "entered once");
        assert_eq!(ladder.frame(8, 8), None, "a backlog does not raise the rung");
        assert_eq!(ladder.volume_published(), Some(Rung::Stale));
        assert_eq!((ladder.rung(), ladder.counters().stale), (Rung::Full, 1));
    }

    #[test]
    fn a_frozen_representation_stays_so_through_other_rungs_until_an_optimisation_is_done() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.froze(), Some(Rung::Full));
        assert_eq!(ladder.froze(), None, "entered once");
        assert!(ladder.allows_previews());
        assert_eq!(ladder.frame(8, 8), Some(Rung::Frozen));
        assert_eq!(ladder.scan_ended(0), Some(Rung::PreviewsSkipped));
        assert_eq!(ladder.rung(), Rung::Frozen, "still frozen");
        assert_eq!(ladder.scan_lost(), Some(Rung::Frozen));
        assert_eq!(ladder.thawed(), None, "no volume of the scan yet");
        assert_eq!(ladder.volume_published(), Some(Rung::Stale));
        assert_eq!(ladder.rung(), Rung::Full);
        assert_eq!(ladder.counters().frozen, 1);
        ladder.scan_lost();
        assert_eq!((ladder.froze(), ladder.counters().frozen), (None, 2), "counted on a lower rung too");
        ladder.volume_published();
        assert_eq!((ladder.rung(), ladder.thawed(), ladder.rung()), (Rung::Frozen, Some(Rung::Frozen), Rung::Full));
    }

    #[test]
    fn without_slice_fixer_is_one_rung_below_full_and_lasts_until_all_repairs_are_done() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.repaired(), None);
        assert_eq!((ladder.unrepaired(), ladder.unrepaired()), (Some(Rung::Full), None), "entered once");
        assert!(ladder.allows_previews());
        // The same run is frozen as well, and the next one is done, but not repaired.
        assert_eq!(ladder.froze(), Some(Rung::WithoutSliceFixer));
        assert_eq!(ladder.unrepaired(), None);
        assert_eq!((ladder.thawed(), ladder.rung()), (Some(Rung::Frozen), Rung::WithoutSliceFixer));
        assert_eq!(ladder.frame(8, 8), Some(Rung::WithoutSliceFixer), "a backlog costs previews all the same");
        assert_eq!((ladder.scan_ended(0), ladder.rung()), (Some(Rung::PreviewsSkipped), Rung::WithoutSliceFixer));
        assert_eq!((ladder.repaired(), ladder.rung()), (Some(Rung::WithoutSliceFixer), Rung::Full));
        assert_eq!(ladder.counters().without_slice_fixer, 1);
        // Counted on a lower rung too, and come back to.
        ladder.scan_lost();
        assert_eq!((ladder.unrepaired(), ladder.counters().without_slice_fixer), (None, 2));
        assert_eq!((ladder.volume_published(), ladder.rung()), (Some(Rung::Stale), Rung::WithoutSliceFixer));
    }

    #[test]
    fn stop_is_for_good() {
        let mut ladder = Ladder::default();
        assert_eq!(ladder.stop(), Some(Rung::Full));
        assert_eq!(ladder.stop(), None);
        assert_eq!(ladder.scan_lost(), None);
        assert_eq!(ladder.volume_published(), None);
        assert_eq!(ladder.rung(), Rung::Stopped);
        assert!(!ladder.allows_previews());
    }
}
