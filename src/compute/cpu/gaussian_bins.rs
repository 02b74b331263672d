//! Which Gaussians touch which strip of rows (or slab of planes): counted, summed up and filled in, always in the Gaussians' order.
//! No sorting by depth: the composite is a sum.
//!
//! The list's room is fixed. Where the Gaussians touch more strips than fit, they are gone through in several passes of as many as do fit;
//! a strip takes its Gaussians in the same order whatever the passes, so that room never changes a result.

// Tasks write disjoint ranges of one list, which slices cannot express.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

/// Gaussians counted together.
pub(super) const CHUNK: usize = 256;
/// Room in the list for each Gaussian; a strip is hardly lower than a footprint, which then touches two or three.
const ROOM: usize = 4;

/// Chunks of `gaussians`.
fn chunks(gaussians: usize) -> usize {
    gaussians.div_ceil(CHUNK)
}

/// Sizes in 32-bit words of the table and of the list.
pub(super) fn words(gaussians: usize, bins: usize) -> [usize; 2] {
    let list = (ROOM * gaussians).max(CHUNK * bins);
    [(chunks(gaussians) + 1) * bins, list]
}

/// Bins being filled.
pub(super) struct Bins<'a> {
    bins: usize,
    /// `[chunk][bin]`: first the counts, then where the chunk's entries start (and after filling: where they end); one more row: where bins start.
    table: &'a mut [u32],
    list: &'a mut [u32],
}

/// One pass: for each bin its Gaussians.
pub(super) struct Pass<'a> {
    ends: &'a [u32],
    list: &'a [u32],
}

impl Pass<'_> {
    /// Gaussians of a bin, in ascending order.
    pub(super) fn of(&self, bin: usize) -> &[u32] {
        let start = if bin == 0 { 0 } else { self.ends[bin - 1] as usize };
        &self.list[start..self.ends[bin] as usize]
    }
}

#[derive(Clone, Copy)]
struct List(*mut u32);
// SAFETY: tasks write disjoint ranges, and nobody reads before all have ended.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Sync for List {}

impl List {
    /// # Safety
    /// Within the list, and nobody else's place.
    unsafe fn put(&self, at: usize, gaussian: u32) {
        // SAFETY: the caller's.
        unsafe { *self.0.add(at) = gaussian }
    }
}

impl<'a> Bins<'a> {
    /// Bins in memory of the sizes that [`words`] gives (or more).
    pub(super) fn new(bins: usize, gaussians: usize, table: &'a mut [u32], list: &'a mut [u32]) -> Self {
        Self { bins, table: &mut table[..(chunks(gaussians) + 1) * bins], list }
    }

    /// The counts of each chunk, to be set by [`count`] before [`Bins::passes`].
    pub(super) fn par_counts(&mut self) -> rayon::slice::ChunksExactMut<'_, u32> {
        let rows = self.table.len() - self.bins;
        self.table[..rows].par_chunks_exact_mut(self.bins)
    }

    /// Goes through all Gaussians in as few passes as fit; `bins_of` gives the bins of a Gaussian as counted. Calls `work` at least once.
    pub(super) fn passes(
        &mut self,
        gaussians: usize,
        bins_of: impl Fn(usize) -> Range<usize> + Sync,
        mut work: impl FnMut(&Pass<'_>),
    ) {
        let bins = self.bins;
        let (rows, ends) = self.table.split_at_mut(chunks(gaussians) * bins);
        let mut start = 0;
        loop {
            let (mut end, mut total) = (start, 0);
            while end < chunks(gaussians) {
                let more: usize = rows[end * bins..][..bins].iter().map(|&n| n as usize).sum();
                if total + more > self.list.len() {
                    break;
                }
                total += more;
                end += 1;
            }
            let mut at = 0;
            for bin in 0..bins {
                for row in rows[start * bins..end * bins].chunks_exact_mut(bins) {
                    let count = row[bin];
                    row[bin] = at;
                    at += count;
                }
                ends[bin] = at;
            }
            let list = List(self.list.as_mut_ptr());
            rows[start * bins..end * bins].par_chunks_exact_mut(bins).enumerate().for_each(|(chunk, cursors)| {
                let first = (start + chunk) * CHUNK;
                for gaussian in first..gaussians.min(first + CHUNK) {
                    for bin in bins_of(gaussian) {
                        // SAFETY: below `total`, which fits the list, in the range that this chunk counted for this bin.
                        unsafe { list.put(cursors[bin] as usize, gaussian as u32) };
                        cursors[bin] += 1;
                    }
                }
            });
            work(&Pass { ends, list: &self.list[..total] });
            start = end;
            if start >= chunks(gaussians) {
                return;
            }
        }
    }
}

/// Counts a chunk's Gaussians into its row.
pub(super) fn count(row: &mut [u32], bins_of: impl Iterator<Item = Range<usize>>) {
    row.fill(0);
    for range in bins_of {
        for n in &mut row[range] {
            *n += 1;
        }
    }
}
