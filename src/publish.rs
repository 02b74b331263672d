//! Volumes out: shared-memory slots, leases, headers.
//!
//! The slots themselves (claims, leases, revocation) are `firmware-bridge`'s; here stands what goes into them: each volume
//! carries its status bits, the frames in it, the missing ranges, the settings' hash and what really computed it.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Zeroable;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::error::PublishError;
use firmware_bridge::layout::{
    METHOD_FDK, VOLUME_DEGRADED, VOLUME_FULL, VOLUME_PARTIAL, VOLUME_PREVIEW, VOLUME_STALE, VolumeHeader,
};
use firmware_bridge::mapping::Mapping;
use firmware_bridge::slots::{VolumeWriter, text_to};

use crate::config::Settings;
use crate::daemon::ScanState;

/// The volume writer, shared with the supervising thread, which sets the status block through it.
#[derive(Debug, Clone)]
pub struct SharedWriter(Arc<Mutex<VolumeWriter<Mapping>>>);

impl SharedWriter {
    /// Shares `writer`.
    #[must_use]
    pub fn new(writer: VolumeWriter<Mapping>) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    /// The writer, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, VolumeWriter<Mapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What carries out the operations, as volume headers quote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// `cpu`, ...
    pub device: String,
    /// SIMD level and threads, or the execution provider.
    pub provider: String,
    /// `float32`.
    pub precision: String,
}

/// A volume that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its number.
    pub generation: u64,
    /// Its status bits.
    pub status: u32,
    /// Frames in it.
    pub frames: u32,
    /// Missing frames.
    pub missing: u64,
    /// From the last frame's exposure to the volume being readable, ns.
    pub latency_ns: u64,
    /// Sequence number of its last frame.
    pub last_sequence: u64,
    /// Iterations behind it; 0 for an analytic one.
    pub iteration: u32,
}

/// When in its scan a volume is published; settles the status bits with what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While frames still come.
    Underway,
    /// At the end: FULL, or PARTIAL where frames are missing.
    End,
}

/// Publishes volumes.
#[derive(Debug)]
pub struct Publisher {
    writer: SharedWriter,
    template: VolumeHeader,
    /// Header of the last volume of a scan's end: what may be published again.
    current: Option<VolumeHeader>,
    /// Iterations of the optimisation that follows each scan; 0: none.
    iterations_planned: u32,
    /// A piece of a volume on its way into a slot.
    scratch: Vec<f32>,
}

/// Values scaled at a time (16 KiB, half of a first-level cache); even, as the slots' writer wants its pieces.
const PIECE: usize = 4096;

impl Publisher {
    /// A publisher of volumes made by `settings` on `carrier`.
    #[must_use]
    pub fn new(writer: SharedWriter, settings: &Settings, carrier: &Carrier) -> Self {
        let grid = &settings.grid;
        let template = VolumeHeader {
            shape: grid.voxels.map(|count| count as u32),
            spacing_mm: grid.voxel_mm.to_array(),
            origin_mm: grid.origin_mm().to_array(),
            mu_water_per_mm: settings.mu_water_per_mm as f32,
            value_scale: 1.0,
            method: METHOD_FDK,
            settings_hash: settings.hash(),
            device: text_to(&carrier.device),
            provider: text_to(&carrier.provider),
            precision: text_to(&carrier.precision),
            ..VolumeHeader::zeroed()
        };
        Self { writer, template, current: None, iterations_planned: 0, scratch: vec![0.0; PIECE] }
    }

    /// Says how many iterations of an optimisation follow each scan from now on: it stands in the headers, so that a reader knows that more
    /// will come.
    pub fn announce(&mut self, iterations: u32) {
        self.iterations_planned = iterations;
    }

    /// Header of the last volume of a scan's end.
    #[must_use]
    pub fn last(&self) -> Option<VolumeHeader> {
        self.current
    }

    /// Publishes `values` (`[x][y][z]`; times `scale`: 1/mm), made of the views of `scan` so far. The status bits follow from the
    /// moment and from what is missing.
    ///
    /// # Errors
    /// [`PublishError::AllSlotsLeased`]: skipped and counted; [`Publisher::again`] tries once more.
    pub fn publish(
        &mut self,
        values: &[f32],
        scale: f32,
        scan: &ScanState,
        moment: Moment,
    ) -> Result<Receipt, PublishError> {
        let mut header = self.template;
        let underway = moment == Moment::Underway;
        let (count, missing) = scan.missing(&mut header.missing, underway);
        let (epoch, scan_id, first_sequence, last_sequence, last_frame_ns) = scan.identity();
        header.status = match (underway, missing) {
            (true, 0) => VOLUME_PREVIEW,
            (true, _) => VOLUME_PREVIEW | VOLUME_PARTIAL,
            (false, 0) => VOLUME_FULL,
            (false, _) => VOLUME_PARTIAL,
        };
        (header.epoch, header.scan_id) = (epoch, scan_id);
        (header.first_sequence, header.last_sequence) = (first_sequence, last_sequence);
        header.frames_used = scan.views();
        header.missing_count = count as u32;
        header.missing_frames = missing;
        header.last_frame_ns = last_frame_ns;
        header.iterations_planned = self.iterations_planned;
        if !underway {
            self.current = Some(header);
        }
        self.send(&header, values, scale)
    }

    /// Publishes the last volume once more, unchanged (after every slot was leased). `None`: there is none.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn again(&mut self, values: &[f32], scale: f32) -> Option<Result<Receipt, PublishError>> {
        self.current.map(|header| self.send(&header, values, scale))
    }

    /// As [`Publisher::again`], marked DEGRADED: what was to follow it does not. `None`: there is none.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn degraded(&mut self, values: &[f32], scale: f32) -> Option<Result<Receipt, PublishError>> {
        self.current.as_mut()?.status |= VOLUME_DEGRADED;
        self.again(values, scale)
    }

    /// Publishes a volume of before once more, marked STALE.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn stale(&mut self, header: &VolumeHeader, values: &[f32]) -> Result<Receipt, PublishError> {
        let status = header.status | VOLUME_STALE;
        self.send(&VolumeHeader { status, ..*header }, values, 1.0)
    }

    /// Publishes `values` (1/mm, `[x][y][z]`) under `header`, if `is_wanted` still says so once no other volume is being published: a
    /// volume of the scan before must not come after one of the present scan.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn if_wanted(
        &mut self,
        header: &VolumeHeader,
        values: &[f32],
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Receipt>, PublishError> {
        let writer = self.writer.clone();
        let mut writer = writer.lock();
        if !is_wanted() {
            return Ok(None);
        }
        self.send_by(&mut writer, header, values, 1.0).map(Some)
    }

    fn send(&mut self, header: &VolumeHeader, values: &[f32], scale: f32) -> Result<Receipt, PublishError> {
        let writer = self.writer.clone();
        let mut writer = writer.lock();
        self.send_by(&mut writer, header, values, scale)
    }

    fn send_by(
        &mut self,
        writer: &mut VolumeWriter<Mapping>,
        header: &VolumeHeader,
        values: &[f32],
        scale: f32,
    ) -> Result<Receipt, PublishError> {
        let mut slot = writer.begin(header, monotonic_ns())?;
        if scale == 1.0 {
            slot.append(values)?;
        } else {
            // Scaled in the cache on the way, so that memory is read once and written once.
            for piece in values.chunks(PIECE) {
                let scaled = &mut self.scratch[..piece.len()];
                for (scaled, value) in scaled.iter_mut().zip(piece) {
                    *scaled = value * scale;
                }
                slot.append(scaled)?;
            }
        }
        let now_ns = monotonic_ns();
        let published = slot.publish(now_ns)?;
        Ok(Receipt {
            generation: published.generation,
            status: header.status,
            frames: header.frames_used,
            missing: header.missing_frames,
            latency_ns: now_ns.saturating_sub(header.last_frame_ns),
            last_sequence: header.last_sequence,
            iteration: header.iteration,
        })
    }
}
