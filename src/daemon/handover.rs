//! What the reconstruct thread hands over to the optimise thread, and what comes back. Neither waits for the other: who finds a lock taken
//! tries again later.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;

use bytemuck::Zeroable;
use firmware_bridge::layout::VolumeHeader;
use rayon::prelude::*;

use crate::compute::{ComputeError, Memory, Values};
use crate::geometry::{Detector, ScanGeometry, ViewPose};
use crate::publish::Outgoing;
use crate::reconstruct::optimise::ScanViews;
use crate::repair::Ender;

/// Values that one task copies.
const CHUNK: usize = 1 << 16;

/// The line integrals and poses of a scan's views that came.
#[derive(Debug)]
pub struct ScanStore {
    pixels: usize,
    /// `[view][row v][column u]`.
    line_integrals: Vec<f32>,
    poses: Vec<ViewPose>,
    present: Vec<bool>,
}

impl ScanStore {
    /// Room for the planned scan.
    #[must_use]
    pub fn new(planned: &ScanGeometry) -> Self {
        Self {
            pixels: planned.detector.pixels(),
            line_integrals: vec![0.0; planned.projection_len()],
            poses: planned.views.clone(),
            present: vec![false; planned.views.len()],
        }
    }

    /// Bytes that [`ScanStore::new`] allocates.
    #[must_use]
    pub fn bytes(views: usize, detector: Detector) -> usize {
        views * (detector.pixels() * size_of::<f32>() + size_of::<ViewPose>() + 1)
    }

    /// Forgets all views.
    pub fn clear(&mut self) {
        self.present.fill(false);
    }

    /// Takes a planned view, `memory` being where it lies if not on the host.
    ///
    /// # Errors
    /// [`ComputeError`] where a device does not give it.
    pub fn add(
        &mut self,
        memory: &dyn Memory,
        view: usize,
        pose: &ViewPose,
        line_integrals: Values<'_>,
    ) -> Result<(), ComputeError> {
        let kept = &mut self.line_integrals[view * self.pixels..][..self.pixels];
        match line_integrals {
            Values::Host(values) => kept.copy_from_slice(values),
            Values::Device(..) => memory.read(line_integrals, kept)?,
        }
        (self.poses[view], self.present[view]) = (*pose, true);
        Ok(())
    }

    fn copy_from(&mut self, other: &Self) {
        let pieces = self.line_integrals.par_chunks_mut(CHUNK).zip(other.line_integrals.par_chunks(CHUNK));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        self.poses.copy_from_slice(&other.poses);
        self.present.copy_from_slice(&other.present);
    }

    /// The views, for an optimisation.
    #[must_use]
    pub fn views(&self) -> ScanViews<'_> {
        ScanViews { line_integrals: &self.line_integrals, poses: Some(&self.poses), present: Some(&self.present) }
    }
}

/// What of a scan is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Portion {
    /// The views of an early start; frames still come.
    First,
    /// All that came. Goes on from the job of this number, where that was an early start of the same scan and came to its end; 0: there was
    /// none.
    Whole {
        /// Number of that job.
        after: u64,
    },
}

/// A scan to work on.
#[derive(Debug)]
pub(super) struct Job {
    /// Counts the jobs, from 1.
    pub(super) number: u64,
    /// What of it there is.
    pub(super) portion: Portion,
    /// Header of the volume that the scan's end was published with; of an early start only the scan's number.
    pub(super) header: VolumeHeader,
    /// Its views.
    pub(super) scan: ScanStore,
}

/// How a run ended, as far as it concerns the reconstruct thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// As planned.
    Done {
        /// Every repair that was planned was done; also where none was.
        repaired: bool,
    },
    /// Given up.
    Frozen {
        /// Of this job.
        number: u64,
        /// A volume of it stands, marked DEGRADED; else the one it began from is to be marked so.
        has_volume: bool,
    },
}

/// Between the two threads.
#[derive(Debug)]
pub struct Handover {
    job: Mutex<Job>,
    /// The job that is to be worked on; 0: none. A run of another number ends.
    wanted: AtomicU64,
    /// A scan has ended whose run has not: what `--once` waits for.
    open: AtomicBool,
    /// A volume of the wanted job has been published, or is about to be.
    published: AtomicBool,
    /// Iterations of a run, once they are fixed.
    iterations: AtomicU32,
    /// Views of an early start, once that is fixed; 0: there is none.
    early_views: AtomicU32,
    ended: Mutex<Option<Ended>>,
    /// A repair was given up.
    unrepaired: AtomicBool,
    /// Ends a repair.
    ender: OnceLock<Ender>,
    worker: OnceLock<Thread>,
}

impl Handover {
    /// Nothing handed over yet.
    #[must_use]
    pub fn new(planned: &ScanGeometry) -> Self {
        Self {
            job: Mutex::new(Job {
                number: 0,
                portion: Portion::Whole { after: 0 },
                header: VolumeHeader::zeroed(),
                scan: ScanStore::new(planned),
            }),
            wanted: AtomicU64::new(0),
            open: AtomicBool::new(false),
            published: AtomicBool::new(false),
            iterations: AtomicU32::new(0),
            early_views: AtomicU32::new(0),
            ended: Mutex::new(None),
            unrepaired: AtomicBool::new(false),
            ender: OnceLock::new(),
            worker: OnceLock::new(),
        }
    }

    /// Bytes that [`Handover::new`] allocates.
    #[must_use]
    pub fn bytes(views: usize, detector: Detector) -> usize {
        ScanStore::bytes(views, detector)
    }

    /// Whether a scan has ended whose run has not.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    // The reconstruct thread's side.

    /// A scan has ended and its run is due; one that works on fewer views of it ends. Returns whether there was one.
    pub(super) fn expect(&self) -> bool {
        self.wanted.store(0, Ordering::Release);
        self.end_repair();
        self.published.store(false, Ordering::Release);
        self.open.swap(true, Ordering::AcqRel)
    }

    /// Hands a scan over and returns the job's number; `None`: the worker is still taking the last one, so try again.
    pub(super) fn offer(&self, scan: &ScanStore, header: &VolumeHeader, portion: Portion) -> Option<u64> {
        let mut job = match self.job.try_lock() {
            Ok(job) => job,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        job.number += 1;
        (job.header, job.portion) = (*header, portion);
        job.scan.copy_from(scan);
        self.published.store(false, Ordering::Release);
        let number = job.number;
        self.wanted.store(number, Ordering::Release);
        drop(job);
        self.wake();
        Some(number)
    }

    /// The next scan begins: whatever runs or was due is over. Returns whether there was something.
    pub(super) fn withdraw(&self) -> bool {
        self.wanted.store(0, Ordering::Release);
        self.end_repair();
        self.open.swap(false, Ordering::AcqRel)
    }

    /// How the last run ended, once.
    pub(super) fn take_ended(&self) -> Option<Ended> {
        self.ended.try_lock().ok().and_then(|mut ended| ended.take())
    }

    /// Whether a repair was given up, once.
    pub(super) fn take_unrepaired(&self) -> bool {
        self.unrepaired.swap(false, Ordering::AcqRel)
    }

    /// The job that is wanted; 0: none.
    pub(super) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Acquire)
    }

    /// Whether a volume of the wanted job has been published.
    pub(super) fn has_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    /// Iterations of a run.
    pub(super) fn iterations(&self) -> u32 {
        self.iterations.load(Ordering::Acquire)
    }

    /// Views of an early start; 0: there is none.
    pub(super) fn early_views(&self) -> u32 {
        self.early_views.load(Ordering::Acquire)
    }

    /// Ends the repair that is going on; whoever works on it finds that it is not wanted any more.
    pub(super) fn end_repair(&self) {
        if let Some(ender) = self.ender.get() {
            ender.end();
        }
    }

    // The optimise thread's side.

    /// What ends a repair.
    pub(super) fn set_ender(&self, ender: Ender) {
        let _set_before = self.ender.set(ender);
    }

    /// The calling thread is the one to wake.
    pub(super) fn work_here(&self) {
        let _set_before = self.worker.set(std::thread::current());
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        if let Some(worker) = self.worker.get() {
            worker.unpark();
        }
    }

    /// The job, for as long as its views are read.
    pub(super) fn job(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fixes the number of iterations, and from how many views an early start is made.
    pub(super) fn fix(&self, iterations: u32, early_views: u32) {
        self.iterations.store(iterations, Ordering::Release);
        self.early_views.store(early_views, Ordering::Release);
    }

    /// A volume is about to be published, or could not be.
    pub(super) fn set_published(&self, published: bool) {
        self.published.store(published, Ordering::Release);
    }

    /// A repair was given up: the run goes on without it.
    pub(super) fn tell_unrepaired(&self) {
        self.unrepaired.store(true, Ordering::Release);
    }

    /// The run of job `number` is over; `false`: it was ended from the other side, and counts as superseded there.
    pub(super) fn end(&self, number: u64, ended: Ended) -> bool {
        let mut place = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let is_mine = self.wanted.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_mine {
            *place = Some(ended);
            self.open.store(false, Ordering::Release);
        }
        is_mine
    }
}

/// The last volume of a scan's end, for when a scan gives none.
#[derive(Debug)]
pub struct LastVolume {
    header: Option<VolumeHeader>,
    /// 1/mm, `[x][y][z]`.
    values: Vec<f32>,
}

impl LastVolume {
    /// None yet.
    #[must_use]
    pub fn new(voxels: usize) -> Self {
        Self { header: None, values: vec![0.0; voxels] }
    }

    /// Takes `values` times `scale`.
    ///
    /// # Errors
    /// [`ComputeError`] where a device does not give them; there is no volume then.
    pub(super) fn keep(
        &mut self,
        header: Option<VolumeHeader>,
        Outgoing { compute, values, scale }: Outgoing<'_>,
    ) -> Result<(), ComputeError> {
        self.header = None;
        match values {
            Values::Host(values) => {
                self.values.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(kept, last)| {
                    for (kept, last) in kept.iter_mut().zip(last) {
                        *kept = last * scale;
                    }
                });
            }
            Values::Device(..) => {
                compute.read(values, &mut self.values)?;
                if scale != 1.0 {
                    self.values.par_iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        self.header = header;
        Ok(())
    }

    /// Whether it is an optimised volume of the same scan as `header`'s, and so better than that.
    pub(super) fn is_optimised_of(&self, header: Option<VolumeHeader>) -> bool {
        let scan = |header: &VolumeHeader| (header.epoch, header.scan_id, header.first_sequence, header.frames_used);
        match (&self.header, &header) {
            (Some(kept), Some(header)) => kept.iteration > 0 && scan(kept) == scan(header),
            _ => false,
        }
    }

    /// Header and values, where there is a volume.
    pub(super) fn volume(&self) -> Option<(&VolumeHeader, &[f32])> {
        self.header.as_ref().map(|header| (header, &*self.values))
    }
}
