//! The scans that were used last, ready on the device: an operation is given a geometry by reference, and the same few come again and again.

#![forbid(unsafe_code)]

use bytemuck::Pod;

use super::super::ComputeError;
use super::{DeviceSlice, Launcher};
use crate::geometry::{ScanGeometry, ViewPose};

/// Scans that are kept: the subsets of a run, be it one for each view. Of one more the records are copied each time.
const SLOTS: usize = 128;

/// Room for the records `R` of scans, one a view, which `K` beside the poses decides; takes no memory after [`RecordCache::allocate`].
#[derive(Debug)]
pub(super) struct RecordCache<R, K> {
    slots: Vec<Slot<R, K>>,
    /// Records on their way to the device.
    fresh: Vec<R>,
    /// Counts the uses.
    turn: u64,
}

impl<R, K> Default for RecordCache<R, K> {
    fn default() -> Self {
        Self { slots: Vec::new(), fresh: Vec::new(), turn: 0 }
    }
}

#[derive(Debug)]
struct Slot<R, K> {
    records: DeviceSlice<R>,
    views: Vec<ViewPose>,
    key: Option<K>,
    used: u64,
}

impl<R: Pod, K: PartialEq> RecordCache<R, K> {
    /// Bytes on the device of [`RecordCache::allocate`].
    pub(super) fn bytes(views: usize) -> usize {
        SLOTS * views.saturating_mul(size_of::<R>())
    }

    /// Room for scans of up to so many views.
    pub(super) fn allocate(launcher: &dyn Launcher, views: usize) -> Result<Self, ComputeError> {
        let slot = |_| {
            let records = DeviceSlice::allocate(launcher, views)?;
            Ok(Slot { records, views: Vec::with_capacity(views), key: None, used: 0 })
        };
        Ok(Self {
            slots: (0..SLOTS).map(slot).collect::<Result<_, ComputeError>>()?,
            fresh: Vec::with_capacity(views),
            turn: 0,
        })
    }

    /// Views of the largest scan there is room for.
    pub(super) fn views(&self) -> usize {
        self.slots.first().map_or(0, |slot| slot.records.len())
    }

    /// The records of a scan, uploaded as `records` gives them where they are not there any more.
    pub(super) fn of(
        &mut self,
        launcher: &dyn Launcher,
        operation: &'static str,
        (geometry, key): (&ScanGeometry, K),
        records: impl Iterator<Item = R>,
    ) -> Result<DeviceSlice<R>, ComputeError> {
        self.turn += 1;
        let (needed, prepared, key) = (geometry.views.len(), self.views(), Some(key));
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.key == key && slot.views == geometry.views) {
            slot.used = self.turn;
            return Ok(slot.part(needed));
        }
        let slot = self.slots.iter_mut().min_by_key(|slot| slot.used).filter(|_| needed <= prepared);
        let bytes = |views: usize| Self::bytes(views);
        let slot = slot.ok_or(ComputeError::Scratch { operation, needed: bytes(needed), prepared: bytes(prepared) })?;
        // Not this scan's before its records are there.
        slot.key = None;
        self.fresh.clear();
        self.fresh.extend(records);
        slot.part(needed).copy_from(launcher, &self.fresh)?;
        slot.views.clear();
        slot.views.extend_from_slice(&geometry.views);
        (slot.key, slot.used) = (key, self.turn);
        Ok(slot.part(needed))
    }
}

impl<R: Pod, K> Slot<R, K> {
    fn part(&self, views: usize) -> DeviceSlice<R> {
        // As many as there is room for at the most.
        self.records.part(0..views).unwrap_or(self.records)
    }
}
