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
use firmware_bridge::slots::{VolumeSlotWriter, VolumeWriter, text_to};

use crate::compute::cuda::Registration;
use crate::compute::device::Device;
use crate::compute::{Buffer, ComputeError, Operations, Values};
use crate::config::Settings;
use crate::daemon::ScanState;

/// The volume writer, shared with the supervising thread, which sets the status block through it.
#[derive(Debug, Clone)]
pub struct SharedWriter {
    writer: Arc<Mutex<VolumeWriter<Arc<Mapping>>>>,
    /// Where a device fills slots by itself.
    registration: Option<Arc<Registration>>,
}

impl SharedWriter {
    /// Shares `writer`.
    #[must_use]
    pub fn new(writer: VolumeWriter<Arc<Mapping>>) -> Self {
        Self { writer: Arc::new(Mutex::new(writer)), registration: None }
    }

    /// Lets `device` fill slots by itself, if it is one that can.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where it refuses the shared memory; its volumes then go through the host.
    pub fn register(&mut self, device: &Device) -> Result<(), ComputeError> {
        let memory = Arc::clone(self.lock().slots().memory());
        self.registration = device.register(memory)?.map(Arc::new);
        Ok(())
    }

    /// Whether a device fills slots by itself.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registration.is_some()
    }

    /// The writer, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, VolumeWriter<Arc<Mapping>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume on its way out.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// Whose memory it lies in.
    pub compute: &'a dyn Operations,
    /// `[x][y][z]`; times `scale`: 1/mm.
    pub values: Values<'a>,
    /// What the values are multiplied by on the way.
    pub scale: f32,
}

/// What became of a publication; its error is that every slot is leased.
pub type Sent = Result<Receipt, PublishError>;

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
    piece: Vec<f32>,
    /// A scaled volume, where the carrier is a device.
    scaled: Buffer,
}

/// Values scaled at a time (16 KiB, half of a first-level cache); even, as the slots' writer wants its pieces.
const PIECE: usize = 4096;

/// Values read from a device at a time that cannot fill a slot by itself (1 MiB: the copy takes longer than being asked for).
const DEVICE_PIECE: usize = 1 << 18;

impl Publisher {
    /// A publisher of volumes made by `settings` on `carrier`. On a device `scaled` is room for a volume in its memory, if any is published with
    /// a scale other than 1.
    #[must_use]
    pub fn new(writer: SharedWriter, settings: &Settings, carrier: &Carrier, scaled: Buffer) -> Self {
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
        let piece = if carrier.device == "cpu" { PIECE } else { DEVICE_PIECE };
        Self { writer, template, current: None, iterations_planned: 0, piece: vec![0.0; piece], scaled }
    }

    /// Bytes that [`Publisher::new`] allocates on the host for volumes of a device.
    #[must_use]
    pub fn device_piece_bytes() -> usize {
        DEVICE_PIECE * size_of::<f32>()
    }

    /// Has a device do once what publishing asks of it.
    ///
    /// # Errors
    /// [`ComputeError`] where the device refuses.
    pub fn warm_up(&mut self, volume: Outgoing<'_>) -> Result<(), ComputeError> {
        if let Values::Device(..) = volume.values {
            volume.compute.copy_scaled(1.0, volume.values, self.scaled.values_mut())?;
            volume.compute.crc32c(volume.values)?;
        }
        Ok(())
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

    /// Publishes a volume made of the views of `scan` so far. The status bits follow from the moment and from what is missing.
    /// [`PublishError::AllSlotsLeased`]: skipped and counted; [`Publisher::again`] tries once more.
    ///
    /// # Errors
    /// [`ComputeError`] where a device does not give the volume.
    pub fn publish(&mut self, volume: Outgoing<'_>, scan: &ScanState, moment: Moment) -> Result<Sent, ComputeError> {
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
        self.send(&header, volume)
    }

    /// Publishes the last volume once more, unchanged (after every slot was leased). `None`: there is none.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn again(&mut self, volume: Outgoing<'_>) -> Result<Option<Sent>, ComputeError> {
        self.current.map(|header| self.send(&header, volume)).transpose()
    }

    /// As [`Publisher::again`], marked DEGRADED: what was to follow it does not. `None`: there is none.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn degraded(&mut self, volume: Outgoing<'_>) -> Result<Option<Sent>, ComputeError> {
        if let Some(current) = &mut self.current {
            current.status |= VOLUME_DEGRADED;
        }
        self.again(volume)
    }

    /// Publishes a volume of before once more, marked STALE.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn stale(&mut self, header: &VolumeHeader, volume: Outgoing<'_>) -> Result<Sent, ComputeError> {
        let status = header.status | VOLUME_STALE;
        self.send(&VolumeHeader { status, ..*header }, volume)
    }

    /// Publishes a volume under `header`, if `is_wanted` still says so once no other volume is being published: a
    /// volume of the scan before must not come after one of the present scan.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn if_wanted(
        &mut self,
        header: &VolumeHeader,
        volume: Outgoing<'_>,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Sent>, ComputeError> {
        let writer = self.writer.clone();
        let mut writer = writer.lock();
        if !is_wanted() {
            return Ok(None);
        }
        self.send_by(&mut writer, header, volume).map(Some)
    }

    fn send(&mut self, header: &VolumeHeader, volume: Outgoing<'_>) -> Result<Sent, ComputeError> {
        let writer = self.writer.clone();
        let mut writer = writer.lock();
        self.send_by(&mut writer, header, volume)
    }

    fn send_by(
        &mut self,
        writer: &mut VolumeWriter<Arc<Mapping>>,
        header: &VolumeHeader,
        volume: Outgoing<'_>,
    ) -> Result<Sent, ComputeError> {
        let mut slot = match writer.begin(header, monotonic_ns()) {
            Ok(slot) => slot,
            Err(error) => return Ok(Err(error)),
        };
        let filled = match volume.values {
            Values::Host(values) => self.append(&mut slot, values, volume.scale),
            Values::Device(..) => self.fill(&mut slot, volume)?,
        };
        let now_ns = monotonic_ns();
        Ok(filled.and_then(|()| slot.publish(now_ns)).map(|published| Receipt {
            generation: published.generation,
            status: header.status,
            frames: header.frames_used,
            missing: header.missing_frames,
            latency_ns: now_ns.saturating_sub(header.last_frame_ns),
            last_sequence: header.last_sequence,
            iteration: header.iteration,
        }))
    }

    /// Values of the host into the slot.
    fn append(&mut self, slot: &mut Slot<'_>, values: &[f32], scale: f32) -> Result<(), PublishError> {
        if scale == 1.0 {
            return slot.append(values);
        }
        // Scaled in the cache on the way, so that memory is read once and written once.
        for piece in values.chunks(PIECE) {
            let scaled = &mut self.piece[..piece.len()];
            for (scaled, value) in scaled.iter_mut().zip(piece) {
                *scaled = value * scale;
            }
            slot.append(scaled)?;
        }
        Ok(())
    }

    /// A device's values into the slot: by itself, or through the host where its driver has not registered the shared memory.
    fn fill(
        &mut self,
        slot: &mut Slot<'_>,
        Outgoing { compute, values, scale }: Outgoing<'_>,
    ) -> Result<Result<(), PublishError>, ComputeError> {
        let values = if scale == 1.0 {
            values
        } else {
            // Beside the volume, to which views are still to be added.
            compute.copy_scaled(scale, values, self.scaled.values_mut())?;
            self.scaled.values()
        };
        if let Some(registration) = &self.writer.registration
            && let Some(payload) = registration.of(slot.payload())
        {
            let copy = compute.begin_read(values, payload)?;
            // Meanwhile; so it is that of the values on the device, which whoever reads the slot compares with those that came.
            let crc = compute.crc32c(values)?;
            copy.wait()?;
            slot.filled(crc);
            return Ok(Ok(()));
        }
        for begin in (0..values.len()).step_by(DEVICE_PIECE) {
            let end = values.len().min(begin + DEVICE_PIECE);
            let piece = &mut self.piece[..end - begin];
            compute.read(values.part(begin..end), piece)?;
            if let Err(error) = slot.append(piece) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

type Slot<'a> = VolumeSlotWriter<'a, Arc<Mapping>>;
