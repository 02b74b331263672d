//! Which views of the present scan are in the volume, and which frames are missing.

use firmware_bridge::layout::{FRAME_FIRST, FRAME_LAST, FrameHeader, SequenceRange};
use serde::Serialize;

/// Sequence number of a view that has not come.
const NOT_SEEN: u64 = u64::MAX;

/// The scan in numbers, for status and reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ScanSummary {
    /// Number of the scan, from its frames; 0 = none.
    pub scan_id: u64,
    /// Epoch of its frames.
    pub epoch: u32,
    /// Views in the volume.
    pub views: u32,
    /// Views planned.
    pub planned: u32,
    /// Views missing up to the last that came.
    pub missing: u32,
    /// Whether frames may still come.
    pub running: bool,
}

/// Bookkeeping of one scan; of fixed size once made.
///
/// A scan is recognised by what its frames carry, so that it survives the loss of any of them. A frame begins a **new scan** where
/// * its epoch or its scan number is another, or
/// * its view is in the volume already (duplicates have been sorted out by sequence number before), or
/// * it comes later in sequence, and has the FIRST flag or an earlier view than the last: the gantry has begun again.
///
/// A frame that comes late, but of the same scan, is none of these and goes into its place, also after a time-out.
#[derive(Debug)]
pub struct ScanState {
    /// Sequence number of each view, [`NOT_SEEN`] where it has not come.
    sequence_of_view: Vec<u64>,
    running: bool,
    epoch: u32,
    scan_id: u64,
    views: u32,
    first_sequence: u64,
    last_sequence: u64,
    /// View and arrival of the frame with the highest sequence number.
    newest_view: u32,
    last_flag_seen: bool,
    /// Time stamp of the newest frame, ns.
    last_frame_ns: u64,
}

impl ScanState {
    /// No scan yet, of `planned` views.
    #[must_use]
    pub fn new(planned: usize) -> Self {
        Self {
            sequence_of_view: vec![NOT_SEEN; planned],
            running: false,
            epoch: 0,
            scan_id: 0,
            views: 0,
            first_sequence: 0,
            last_sequence: 0,
            newest_view: 0,
            last_flag_seen: false,
            last_frame_ns: 0,
        }
    }

    /// Bytes that [`ScanState::new`] allocates.
    #[must_use]
    pub fn bytes(planned: usize) -> u64 {
        planned as u64 * 8
    }

    /// Whether `header` (a projection with a planned view) begins a new scan.
    #[must_use]
    pub fn begins_with(&self, header: &FrameHeader) -> bool {
        if self.views == 0 && !self.running {
            return true;
        }
        let seen = self.sequence_of_view.get(header.view_index as usize).is_some_and(|s| *s != NOT_SEEN);
        let forward = header.sequence > self.last_sequence;
        header.epoch != self.epoch
            || header.scan_id != self.scan_id
            || seen
            || (forward && self.views > 0 && (header.has(FRAME_FIRST) || header.view_index < self.newest_view))
    }

    /// Starts the scan that `header` belongs to.
    pub fn begin(&mut self, header: &FrameHeader) {
        self.sequence_of_view.fill(NOT_SEEN);
        self.running = true;
        (self.epoch, self.scan_id) = (header.epoch, header.scan_id);
        self.views = 0;
        (self.first_sequence, self.last_sequence) = (header.sequence, header.sequence);
        self.newest_view = header.view_index;
        self.last_flag_seen = false;
        self.last_frame_ns = header.timestamp_ns;
    }

    /// The view of `header` is in the volume.
    pub fn add(&mut self, header: &FrameHeader) {
        if let Some(slot) = self.sequence_of_view.get_mut(header.view_index as usize)
            && *slot == NOT_SEEN
        {
            *slot = header.sequence;
            self.views += 1;
        }
        self.first_sequence = self.first_sequence.min(header.sequence);
        self.last_frame_ns = self.last_frame_ns.max(header.timestamp_ns);
        self.note(header);
    }

    /// A frame of this scan came, in the volume or not.
    pub fn note(&mut self, header: &FrameHeader) {
        if header.sequence >= self.last_sequence {
            (self.last_sequence, self.newest_view) = (header.sequence, header.view_index);
        }
        self.last_flag_seen |= header.has(FRAME_LAST);
    }

    /// Frames may still come, or may not.
    pub fn set_running(&mut self, running: bool) {
        self.running = running;
    }

    /// Whether frames may still come.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Views in the volume.
    #[must_use]
    pub fn views(&self) -> u32 {
        self.views
    }

    /// Views planned.
    #[must_use]
    pub fn planned(&self) -> u32 {
        self.sequence_of_view.len() as u32
    }

    /// Whether every planned view is in the volume.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.views == self.planned()
    }

    /// Whether the frame flagged LAST has come.
    #[must_use]
    pub fn has_last(&self) -> bool {
        self.last_flag_seen
    }

    /// Epoch, scan number, first and last sequence number, time stamp of the newest frame.
    #[must_use]
    pub fn identity(&self) -> (u32, u64, u64, u64, u64) {
        (self.epoch, self.scan_id, self.first_sequence, self.last_sequence, self.last_frame_ns)
    }

    /// The numbers of the scan.
    #[must_use]
    pub fn summary(&self) -> ScanSummary {
        ScanSummary {
            scan_id: self.scan_id,
            epoch: self.epoch,
            views: self.views,
            planned: self.planned(),
            missing: self.missing(&mut [], self.running).1 as u32,
            running: self.running,
        }
    }

    /// Missing frames as ranges of sequence numbers, into `ranges` as far as there is room; returns how many ranges were written
    /// and how many frames are missing in all. While the scan runs (`so_far`), only views before the last that came count.
    ///
    /// A run of missing views takes the numbers after that of the view before it (or before that of the view after it, at
    /// the scan's beginning): a gantry numbers its frames without holes.
    pub fn missing(&self, ranges: &mut [SequenceRange], so_far: bool) -> (usize, u64) {
        let views = &self.sequence_of_view;
        let last_seen = views.iter().rposition(|s| *s != NOT_SEEN);
        let end = match last_seen {
            _ if !so_far => views.len(),
            Some(last) => last + 1,
            None => 0,
        };
        let (mut written, mut total) = (0, 0);
        let mut view = 0;
        while view < end {
            if views[view] != NOT_SEEN {
                view += 1;
                continue;
            }
            let run = views[view..end].iter().take_while(|s| **s == NOT_SEEN).count();
            total += run as u64;
            let before = view.checked_sub(1).map(|previous| views[previous]);
            let after = views.get(view + run).copied().filter(|s| *s != NOT_SEEN);
            let first = match (before, after) {
                (Some(before), _) => before + 1,
                (None, Some(after)) => after.saturating_sub(run as u64),
                (None, None) => self.first_sequence,
            };
            if let Some(range) = ranges.get_mut(written) {
                *range = SequenceRange { first, last: first + run as u64 - 1 };
                written += 1;
            }
            view += run;
        }
        (written, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn header(sequence: u64, view: u32, flags: u32) -> FrameHeader {
        FrameHeader { sequence, view_index: view, flags, epoch: 1, scan_id: 5, ..FrameHeader::zeroed() }
    }

    fn scan_with(views: &[(u64, u32)]) -> ScanState {
        let mut scan = ScanState::new(10);
        for &(sequence, view) in views {
            let header = header(sequence, view, if view == 0 { FRAME_FIRST } else { 0 });
            if scan.begins_with(&header) {
                scan.begin(&header);
            }
            scan.add(&header);
        }
        scan
    }

    fn ranges(scan: &ScanState, so_far: bool) -> (Vec<(u64, u64)>, u64) {
        let mut ranges = [SequenceRange { first: 0, last: 0 }; 4];
        let (count, total) = scan.missing(&mut ranges, so_far);
        (ranges[..count].iter().map(|r| (r.first, r.last)).collect(), total)
    }

    #[test]
    fn missing_views_are_ranges_of_sequence_numbers_at_both_ends_and_between() {
        // Frames 20 (view 0) and 23, 24 are lost, and the tail from 27 on.
        let scan = scan_with(&[(21, 1), (22, 2), (25, 5), (26, 6)]);
        assert_eq!(ranges(&scan, true), (vec![(20, 20), (23, 24)], 3));
        assert_eq!(ranges(&scan, false), (vec![(20, 20), (23, 24), (27, 29)], 6));
        assert_eq!(scan.missing(&mut [], false), (0, 6));
        assert!(!scan.is_complete());
    }

    #[test]
    fn late_frames_fill_their_gap_without_beginning_a_scan() {
        let mut scan = scan_with(&[(0, 0), (1, 1), (3, 3)]);
        let late = header(2, 2, 0);
        assert!(!scan.begins_with(&late));
        scan.add(&late);
        assert_eq!(ranges(&scan, true), (vec![], 0));
        // Also a first frame that was overtaken.
        let overtaken = scan_with(&[(1, 1)]);
        assert!(!overtaken.begins_with(&header(0, 0, FRAME_FIRST)));
    }

    #[test]
    fn a_scan_that_was_given_up_goes_on_where_it_stopped() {
        let mut scan = scan_with(&[(0, 0), (1, 1)]);
        scan.set_running(false);
        assert!(!scan.begins_with(&header(2, 2, 0)));
    }

    #[test]
    fn new_scans_are_recognised_whatever_frame_was_lost() {
        let scan = scan_with(&[(7, 0), (8, 1), (9, 2), (10, 3)]);
        let other_epoch = FrameHeader { epoch: 2, ..header(0, 4, 0) };
        let other_scan = FrameHeader { scan_id: 6, ..header(11, 4, 0) };
        assert!(scan.begins_with(&other_epoch));
        assert!(scan.begins_with(&other_scan));
        assert!(scan.begins_with(&header(11, 0, FRAME_FIRST)), "an orderly new scan");
        assert!(scan.begins_with(&header(12, 1, 0)), "its first frame was lost");
        assert!(!scan.begins_with(&header(11, 4, 0)), "the same scan going on");
        let headless = scan_with(&[(8, 1), (9, 2)]);
        assert!(headless.begins_with(&header(11, 0, FRAME_FIRST)), "view 0 was never seen, but this is another turn");
        assert!(ScanState::new(10).begins_with(&header(0, 0, 0)));
    }

    #[test]
    fn a_complete_scan_says_so() {
        let views: Vec<(u64, u32)> = (0..10).map(|v| (100 + u64::from(v), v)).collect();
        let scan = scan_with(&views);
        assert!(scan.is_complete());
        assert_eq!(ranges(&scan, false), (vec![], 0));
        let (epoch, scan_id, first, last, _) = scan.identity();
        assert_eq!((epoch, scan_id, first, last), (1, 5, 100, 109));
    }
}
