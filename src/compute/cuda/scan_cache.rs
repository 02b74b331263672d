//! The scans that were used last, ready on the device: an operation is given a geometry by reference, and the same few come again and again.

#![forbid(unsafe_code)]

use super::super::ComputeError;
use super::{DeviceSlice, Launcher, ScanTable, ViewRecord};
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};

/// Scans that are kept: the subsets of most runs. One more costs a copy of 160 bytes a view each time.
const SLOTS: usize = 16;

/// Room for scans; takes no memory after [`ScanCache::allocate`].
#[derive(Debug, Default)]
pub(super) struct ScanCache {
    slots: Vec<Slot>,
    /// Records on their way to the device.
    fresh: Vec<ViewRecord>,
    /// Counts the uses.
    turn: u64,
}

#[derive(Debug)]
struct Slot {
    records: DeviceSlice<ViewRecord>,
    views: Vec<ViewPose>,
    of: Option<(Detector, VolumeGrid)>,
    used: u64,
}

impl ScanCache {
    /// Bytes on the device of [`ScanCache::allocate`].
    pub(super) fn bytes(views: usize) -> usize {
        SLOTS * views.saturating_mul(size_of::<ViewRecord>())
    }

    /// Room for scans of up to so many views.
    pub(super) fn allocate(launcher: &dyn Launcher, views: usize) -> Result<Self, ComputeError> {
        let slot = |_| {
            let records = DeviceSlice::allocate(launcher, views)?;
            Ok(Slot { records, views: Vec::with_capacity(views), of: None, used: 0 })
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

    /// The table of a scan, uploaded where it is not there any more.
    pub(super) fn table(
        &mut self,
        launcher: &dyn Launcher,
        operation: &'static str,
        geometry: &ScanGeometry,
        grid: &VolumeGrid,
    ) -> Result<ScanTable, ComputeError> {
        self.turn += 1;
        let of = Some((geometry.detector, *grid));
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.of == of && slot.views == geometry.views) {
            slot.used = self.turn;
            return ScanTable::over(slot.part(geometry.views.len()), geometry, grid);
        }
        let (needed, prepared) = (geometry.views.len(), self.views());
        let slot = self.slots.iter_mut().min_by_key(|slot| slot.used).filter(|_| needed <= prepared);
        let bytes = |views: usize| Self::bytes(views);
        let slot = slot.ok_or(ComputeError::Scratch { operation, needed: bytes(needed), prepared: bytes(prepared) })?;
        // Not this scan's before its records are there.
        slot.of = None;
        self.fresh.clear();
        self.fresh.extend(ViewRecord::of(geometry, grid));
        slot.part(needed).copy_from(launcher, &self.fresh)?;
        slot.views.clear();
        slot.views.extend_from_slice(&geometry.views);
        (slot.of, slot.used) = (of, self.turn);
        ScanTable::over(slot.part(needed), geometry, grid)
    }
}

impl Slot {
    fn part(&self, views: usize) -> DeviceSlice<ViewRecord> {
        // As many as there is room for at the most.
        self.records.part(0..views).unwrap_or(self.records)
    }
}
