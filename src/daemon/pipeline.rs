//! The reconstruct thread: correct, weight, filter, back-project, publish, frame by frame.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytemuck::Zeroable;
use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{FrameHeader, FrameKind, VolumeHeader};

use super::handover::{Ended, Handover, LastVolume, Portion, ScanStore};
use super::{DaemonError, ScanState, tell_rung};
use crate::compute::{Buffer, ComputeError, Operations, Values};
use crate::config::Settings;
use crate::geometry::ViewPose;
use crate::ingest::{StagedFrame, Staging};
use crate::preprocess::{CalibrationOnCarrier, CalibrationSource, CountsError, Preprocessor};
use crate::publish::{Moment, Outgoing, Publisher, Receipt, Sent};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::fdk::FdkAccumulator;
use crate::supervise::{Event, Ladder, Refusal, Stage, Supervision};

/// How long the thread sleeps at most when nothing comes: the grain of the frame time-out.
const NAP: Duration = Duration::from_millis(5);

/// A frame's source may stand this share of its distance from the isocenter away from where it is planned (3 degrees of
/// gantry angle): the weights were worked out for the planned pose.
const POSE_TOLERANCE: f64 = 0.05;

/// What the thread is given.
pub(super) struct Parts {
    pub(super) settings: Settings,
    pub(super) publisher: Publisher,
    pub(super) accumulator: FdkAccumulator,
    pub(super) calibration: CalibrationOnCarrier,
    /// Room for the line integrals of one view.
    pub(super) view: Buffer,
    pub(super) staging: Arc<Staging>,
    pub(super) supervision: Arc<Supervision>,
    pub(super) files: [Option<Vec<f32>>; 2],
    /// Where something is optimised.
    pub(super) handover: Option<Arc<Handover>>,
    pub(super) last: Arc<Mutex<LastVolume>>,
}

/// The thread's state; every buffer in it is in the plan.
pub(super) struct Pipeline<'p> {
    compute: &'p dyn Operations,
    accumulator: FdkAccumulator,
    preprocessor: Preprocessor,
    scan: ScanState,
    ladder: Ladder,
    publisher: Publisher,
    staging: Arc<Staging>,
    supervision: Arc<Supervision>,
    settings: Settings,
    /// Line integrals of one view that came as counts, where the carrier works on them.
    view: Buffer,
    /// The last volume, kept for STALE once the accumulator works on the next scan.
    last: Arc<Mutex<LastVolume>>,
    /// The scan's views, for the optimisation.
    store: Option<ScanStore>,
    handover: Option<Arc<Handover>>,
    /// The scan's views are to be handed over.
    offer_due: bool,
    /// Number of the job that they were handed over as; 0: not yet.
    offered: u64,
    /// Number of the job of its first views, for an early start; 0: none.
    offered_early: u64,
    /// The accumulator holds the last volume of a scan that has ended; times this.
    in_accumulator: Option<f32>,
    /// A publication found every slot leased and waits.
    owed: bool,
    /// The LAST frame has been answered with a PARTIAL volume already.
    closed_at_last: bool,
    /// A volume of this scan has been published.
    scan_has_volume: bool,
    /// Views in the last volume published at the scan's end.
    views_at_end: u32,
    told_no_calibration: bool,
    last_frame_ns: u64,
}

impl<'p> Pipeline<'p> {
    /// Allocates everything.
    pub(super) fn new(parts: Parts, compute: &'p dyn Operations) -> Result<Self, DaemonError> {
        let Parts { settings, publisher, accumulator, calibration, view, staging, supervision, files, handover, last } =
            parts;
        let detector = settings.geometry.detector;
        Ok(Self {
            compute,
            accumulator,
            preprocessor: Preprocessor::new(&settings.preprocess, detector, files, calibration)?,
            scan: ScanState::new(settings.geometry.views.len()),
            ladder: Ladder::default(),
            publisher,
            staging,
            supervision,
            view,
            last,
            store: handover.as_ref().map(|_| ScanStore::new(&settings.geometry)),
            handover,
            offer_due: false,
            offered: 0,
            offered_early: 0,
            in_accumulator: None,
            owed: false,
            closed_at_last: false,
            scan_has_volume: false,
            views_at_end: 0,
            told_no_calibration: false,
            last_frame_ns: 0,
            settings,
        })
    }

    /// Sends one blank view through all stages, so that whatever allocates at its first use has done so; marks the carrier's
    /// threads as the frame path.
    pub(super) fn warm_up(&mut self) -> Result<(), DaemonError> {
        self.preprocessor.line_integrals(&vec![0.0; self.view.len()])?;
        let blank = vec![1u16; self.view.len()];
        // i0 = 1 count: line integrals of 0.
        self.preprocessor.counts(self.compute, &blank, 1.0, 1.0, self.view.values_mut())?;
        let pose = self.settings.geometry.views[0];
        self.accumulator.add_view(self.compute, 0, Some(&pose), &self.view)?;
        self.preprocessor.finish_frame(self.compute)?;
        let volume = outgoing(self.compute, &self.accumulator, 1.0);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).keep(None, volume)?;
        self.publisher.warm_up(volume)?;
        self.accumulator.reset(self.compute)?;
        self.preprocessor.forget_counters();
        self.supervision.reconstruct().scan = self.scan.summary();
        self.staging.receive_here();
        let _clock = monotonic_ns();
        self.compute.each_thread(&crate::supervise::mark_frame_path);
        Ok(())
    }

    /// Works until ingest has ended and nothing waits any more.
    pub(super) fn run(&mut self) -> Result<(), DaemonError> {
        loop {
            self.supervision.beat(Stage::Reconstruct);
            if let Some(frame) = self.staging.take_filled() {
                let began_ns = monotonic_ns();
                let outcome = self.frame(&frame);
                self.staging.give_back(frame);
                self.account(began_ns);
                if let Err(error) = outcome {
                    tell_rung(&self.supervision, self.ladder.stop(), self.ladder.rung());
                    self.supervision.reconstruct().rung = self.ladder.rung();
                    return Err(error);
                }
                continue;
            }
            if self.supervision.ingest_ended.load(Ordering::Acquire) && self.staging.waiting() == 0 {
                break;
            }
            if self.owed {
                self.pay()?;
            }
            self.check_time_out()?;
            self.offer();
            self.heed_optimisation()?;
            std::thread::park_timeout(NAP);
        }
        if self.scan.is_running() {
            self.end_scan()?;
        }
        self.heed_optimisation()?;
        self.account(monotonic_ns());
        Ok(())
    }

    /// One frame. An error here is one that nothing can be done about.
    fn frame(&mut self, frame: &StagedFrame) -> Result<(), DaemonError> {
        let header = &frame.header;
        self.last_frame_ns = monotonic_ns();
        match frame.kind {
            FrameKind::DarkU16 => self.preprocessor.add_dark(frame.counts()),
            FrameKind::FlatU16 => {
                if let Err(error) = self.preprocessor.add_flat(frame.counts(), header.relative_exposure) {
                    self.refuse(header, error.into());
                }
            }
            FrameKind::CountsU16 | FrameKind::LineIntegralsF32 => return self.projection(frame),
        }
        Ok(())
    }

    fn projection(&mut self, frame: &StagedFrame) -> Result<(), DaemonError> {
        let header = &frame.header;
        // Without previews there is nothing to skip.
        if self.settings.publish.preview_every_views > 0 {
            let changed = self.ladder.frame(self.staging.waiting(), self.staging.capacity());
            tell_rung(&self.supervision, changed, self.ladder.rung());
        }
        let planned = self.settings.geometry.views.len();
        let Some(planned_pose) = self.settings.geometry.views.get(header.view_index as usize).copied() else {
            self.refuse(header, Refusal::View { view: header.view_index, planned });
            return Ok(());
        };
        if self.scan.begins_with(header) {
            self.begin_scan(header)?;
        }
        if !self.scan.is_running() {
            // Given up after a time-out, and going on after all.
            self.scan.set_running(true);
        }
        let pose = pose_of(header);
        if let Some(why) = pose_refusal(header.view_index, &pose, &planned_pose) {
            self.scan.note(header);
            self.refuse(header, why);
            self.after_frame(header)?;
            return Ok(());
        }
        let began_ns = monotonic_ns();
        if let Err(why) = self.line_integrals(frame)? {
            self.scan.note(header);
            self.refuse(header, why);
            self.after_frame(header)?;
            return Ok(());
        }
        let corrected_ns = monotonic_ns();
        let view = view_of(frame, &self.view);
        let added = self.accumulator.add_view(self.compute, header.view_index as usize, Some(&pose), view);
        if let Err(ReconstructError::Compute(error)) = added {
            return Err(error.into());
        }
        // Waited for, so that the latency is that of a view in the volume.
        self.preprocessor.finish_frame(self.compute)?;
        self.compute.finish()?;
        if added.is_err() {
            // What one frame carries cannot end the daemon; what its carrier cannot do does.
            self.scan.note(header);
            self.refuse(header, Refusal::Operation);
            self.after_frame(header)?;
            return Ok(());
        }
        self.scan.add(header);
        let done_ns = monotonic_ns();
        {
            let mut telemetry = self.supervision.reconstruct();
            telemetry.counters.views += 1;
            telemetry.counters.preprocess_ns += corrected_ns - began_ns;
            telemetry.counters.back_project_ns += done_ns - corrected_ns;
            telemetry.frame_latency.record(done_ns.saturating_sub(header.timestamp_ns), header.sequence);
        }
        self.after_frame(header)?;
        // After what is published of it, which need not wait for this.
        if let Some(store) = &mut self.store {
            store.add(self.compute, header.view_index as usize, &pose, view_of(frame, &self.view))?;
        }
        Ok(())
    }

    /// Makes counts into line integrals in `view`, looks at line integrals. An error is the carrier's.
    fn line_integrals(&mut self, frame: &StagedFrame) -> Result<Result<(), Refusal>, ComputeError> {
        let header = &frame.header;
        match self.preprocessor.finish_calibration() {
            Ok(Some(report)) => self.supervision.tell(Event::Calibrated(report)),
            Ok(None) => {}
            Err(error) => self.supervision.tell(Event::CalibrationRefused(error)),
        }
        if frame.kind == FrameKind::LineIntegralsF32 {
            return Ok(self.preprocessor.line_integrals(frame.line_integrals()).map_err(Refusal::from));
        }
        let (exposure, i0) = (header.relative_exposure, header.i0_counts);
        match self.preprocessor.counts(self.compute, frame.counts(), exposure, i0, self.view.values_mut()) {
            Ok(()) => {}
            Err(CountsError::Refused(why)) => return Ok(Err(why.into())),
            Err(CountsError::Compute(error)) => return Err(error),
        }
        let [dark, flat] = self.preprocessor.sources().map(|source| source == CalibrationSource::None);
        if (dark || flat) && !self.told_no_calibration {
            self.told_no_calibration = true;
            self.supervision.tell(Event::NoCalibration { dark, flat });
        }
        Ok(Ok(()))
    }

    /// Publishes what is due after a projection.
    fn after_frame(&mut self, header: &FrameHeader) -> Result<(), DaemonError> {
        if self.scan.is_complete() {
            self.end_scan()?;
            return Ok(());
        }
        if self.scan.has_last() && !self.closed_at_last {
            // Views are missing. Late ones may still come: the scan stays open until the time-out or the next scan.
            self.closed_at_last = true;
            if self.scan.views() as usize >= self.settings.publish.partial_min_views {
                self.publish(Moment::End)?;
            }
            return Ok(());
        }
        let every = self.settings.publish.preview_every_views;
        let is_due = every > 0 && self.scan.views() > 0 && (self.scan.views() as usize).is_multiple_of(every);
        // Due once: a refused frame does not make the same preview again.
        if is_due && !self.closed_at_last && self.scan.identity().3 == header.sequence {
            if self.ladder.allows_previews() {
                self.publish(Moment::Underway)?;
                return Ok(());
            }
            self.supervision.reconstruct().counters.previews_skipped += 1;
        }
        Ok(())
    }

    fn begin_scan(&mut self, header: &FrameHeader) -> Result<(), DaemonError> {
        if self.scan.is_running() {
            self.end_scan()?;
        }
        self.end_optimisation();
        if let Some(scale) = self.in_accumulator.take() {
            let header = self.publisher.last();
            // Where the lock is taken, a better volume of that scan is being kept at this very moment.
            if let Ok(mut last) = self.last.try_lock()
                && !last.is_optimised_of(header)
            {
                last.keep(header, outgoing(self.compute, &self.accumulator, scale))?;
            }
        }
        self.accumulator.reset(self.compute)?;
        self.scan.begin(header);
        (self.owed, self.closed_at_last, self.scan_has_volume, self.views_at_end) = (false, false, false, 0);
        self.supervision.reconstruct().counters.scans += 1;
        self.supervision.tell(Event::ScanStarted {
            epoch: header.epoch,
            scan_id: header.scan_id,
            sequence: header.sequence,
            announced: header.total_views,
            planned: self.scan.planned(),
        });
        Ok(())
    }

    /// The scan has ended, with all views or without: the volume of what there is, or the last one as STALE.
    fn end_scan(&mut self) -> Result<(), DaemonError> {
        let (views, planned) = (self.scan.views(), self.scan.planned());
        self.scan.set_running(false);
        let enough = views as usize >= self.settings.publish.partial_min_views;
        // Not what was published at the LAST frame, or before a time-out, once more.
        if enough && views != self.views_at_end {
            self.publish(Moment::End)?;
        }
        if !self.scan_has_volume && !self.owed {
            tell_rung(&self.supervision, self.ladder.scan_lost(), self.ladder.rung());
            // The accumulator has begun on the lost scan: what was published before it was kept.
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = last.volume().map(|(header, values)| {
                let volume = Outgoing { compute: self.compute, values: Values::Host(values), scale: 1.0 };
                self.publisher.stale(header, volume)
            });
            drop(last);
            if let Some(outcome) = outcome.transpose()? {
                self.published(outcome);
            }
        }
        {
            let mut telemetry = self.supervision.reconstruct();
            let counters = &mut telemetry.counters;
            match views {
                _ if views == planned => counters.scans_full += 1,
                _ if enough => counters.scans_partial += 1,
                _ => counters.scans_lost += 1,
            }
        }
        tell_rung(&self.supervision, self.ladder.scan_ended(self.staging.waiting()), self.ladder.rung());
        self.supervision.tell(Event::ScanEnded { views, planned });
        self.supervision.scans_ended.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn check_time_out(&mut self) -> Result<(), DaemonError> {
        let waited_ms = monotonic_ns().saturating_sub(self.last_frame_ns) / 1_000_000;
        if !self.scan.is_running() || waited_ms < self.settings.supervise.frame_timeout_ms {
            return Ok(());
        }
        self.supervision.tell(Event::TimedOut { views: self.scan.views(), waited_ms });
        self.end_scan()?;
        self.account(monotonic_ns());
        Ok(())
    }

    /// Publishes the views so far, normalised by the share of the arc that they cover: about the right attenuation everywhere,
    /// with the streaks of the directions that are missing.
    fn publish(&mut self, moment: Moment) -> Result<(), DaemonError> {
        let began_ns = monotonic_ns();
        let fraction = self.accumulator.angular_fraction();
        let scale = if self.scan.is_complete() || fraction <= 0.0 { 1.0 } else { (1.0 / fraction) as f32 };
        if moment == Moment::End {
            (self.in_accumulator, self.views_at_end) = (Some(scale), self.scan.views());
        }
        let volume = outgoing(self.compute, &self.accumulator, scale);
        let outcome = self.publisher.publish(volume, &self.scan, moment)?;
        // A preview that found no slot is not tried again: the next one is on its way.
        self.owed = outcome.is_err() && moment == Moment::End;
        self.published(outcome);
        if let (Moment::End, Some(handover)) = (moment, &self.handover) {
            let superseded = handover.expect();
            (self.offer_due, self.offered) = (true, 0);
            self.count_superseded(superseded);
        }
        self.supervision.reconstruct().counters.publish_ns += monotonic_ns() - began_ns;
        Ok(())
    }

    /// The next scan begins: what works on the one before ends.
    fn end_optimisation(&mut self) {
        let Some(handover) = &self.handover else { return };
        let superseded = handover.withdraw();
        self.publisher.announce(handover.iterations());
        self.count_superseded(superseded);
        (self.offer_due, self.offered, self.offered_early) = (false, 0, 0);
        if let Some(store) = &mut self.store {
            store.clear();
        }
    }

    fn count_superseded(&self, superseded: bool) {
        if let Some(optimise) = self.supervision.optimise().as_mut() {
            optimise.counters.superseded += u64::from(superseded);
        }
    }

    /// Hands the scan's views over, if that is due: only when no frame waits.
    fn offer(&mut self) {
        let (Some(handover), Some(store)) = (&self.handover, &self.store) else { return };
        if let (true, Some(header)) = (self.offer_due, self.publisher.last()) {
            if let Some(number) = handover.offer(store, &header, Portion::Whole { after: self.offered_early }) {
                // What late frames begin anew has nothing to go on from: the representation has moved on.
                (self.offer_due, self.offered, self.offered_early) = (false, number, 0);
            }
        } else if self.offered_early == 0
            && self.views_at_end == 0
            && self.scan.is_running()
            && handover.early_views() > 0
            // Just these views and no others, so that the volume does not depend on how quickly they came.
            && self.scan.views() == handover.early_views()
        {
            let (epoch, scan_id, ..) = self.scan.identity();
            let header = VolumeHeader { epoch, scan_id, ..VolumeHeader::zeroed() };
            self.offered_early = handover.offer(store, &header, Portion::First).unwrap_or(0);
        }
    }

    /// Heeds how the last optimisation ended, and whether it does without a repair.
    fn heed_optimisation(&mut self) -> Result<(), DaemonError> {
        let Some(handover) = &self.handover else { return Ok(()) };
        // In this order: a repair given up after the run that has ended belongs to the next.
        let (ended, unrepaired) = (handover.take_ended(), handover.take_unrepaired());
        match ended {
            None => {}
            Some(Ended::Done { repaired }) => {
                if repaired {
                    tell_rung(&self.supervision, self.ladder.repaired(), self.ladder.rung());
                }
                tell_rung(&self.supervision, self.ladder.thawed(), self.ladder.rung());
            }
            Some(Ended::Frozen { number, has_volume }) => {
                tell_rung(&self.supervision, self.ladder.froze(), self.ladder.rung());
                // The volume that it began from is the last good one.
                if let (false, true, Some(scale)) = (has_volume, number == self.offered, self.in_accumulator)
                    && let Some(outcome) = self.publisher.degraded(outgoing(self.compute, &self.accumulator, scale))?
                {
                    self.owed = outcome.is_err();
                    self.published(outcome);
                }
            }
        }
        if unrepaired {
            tell_rung(&self.supervision, self.ladder.unrepaired(), self.ladder.rung());
        }
        if unrepaired || ended.is_some() {
            self.account(monotonic_ns());
        }
        Ok(())
    }

    /// Tries a publication once more that found every slot leased.
    fn pay(&mut self) -> Result<(), DaemonError> {
        let Some(scale) = self.in_accumulator else { return Ok(()) };
        // A better one of the same scan is there already, or about to be.
        if self.handover.as_ref().is_some_and(|handover| handover.has_published()) {
            return Ok(());
        }
        let volume = outgoing(self.compute, &self.accumulator, scale);
        if let Some(outcome @ Ok(_)) = self.publisher.again(volume)? {
            self.owed = false;
            self.published(outcome);
        }
        Ok(())
    }

    fn published(&mut self, outcome: Sent) {
        use firmware_bridge::layout::{VOLUME_DEGRADED, VOLUME_PREVIEW, VOLUME_STALE};
        let receipt = match outcome {
            Ok(receipt) => receipt,
            Err(_all_leased) => {
                self.supervision.reconstruct().counters.slots_leased += 1;
                self.supervision.tell(Event::SlotsLeased { is_final: self.owed });
                return;
            }
        };
        let Receipt { generation, status, frames, missing, latency_ns, last_sequence, iteration } = receipt;
        let is_stale = status & VOLUME_STALE != 0;
        if !is_stale {
            self.scan_has_volume = true;
            tell_rung(&self.supervision, self.ladder.volume_published(), self.ladder.rung());
        }
        let is_degraded = status & VOLUME_DEGRADED != 0;
        if let (true, false, Some(optimise)) = (is_degraded, is_stale, self.supervision.optimise().as_mut()) {
            optimise.counters.degraded += 1;
        }
        {
            let mut telemetry = self.supervision.reconstruct();
            let counters = &mut telemetry.counters;
            match status {
                // Published again with another status.
                _ if is_degraded && !is_stale => {}
                _ if is_stale => counters.stale += 1,
                _ if status & VOLUME_PREVIEW != 0 => counters.previews += 1,
                _ if missing == 0 => counters.full += 1,
                _ => counters.partial += 1,
            }
            // A PARTIAL volume comes after a time-out, a STALE one after a loss: neither is due by its last frame.
            if !is_stale && !is_degraded && (missing == 0 || status & VOLUME_PREVIEW != 0) {
                counters.deadlines_missed += u64::from(latency_ns > self.settings.publish.frame_time_ns());
                telemetry.preview_latency.record(latency_ns, last_sequence);
            }
        }
        self.supervision.tell(Event::Published { generation, status, frames, missing, latency_ns, iteration });
    }

    fn refuse(&self, header: &FrameHeader, why: Refusal) {
        self.supervision.reconstruct().counters.refused += 1;
        self.supervision.tell(Event::Refused { sequence: header.sequence, why });
    }

    /// Brings the shared telemetry up to date after a frame.
    fn account(&mut self, began_ns: u64) {
        let cycle_ns = monotonic_ns() - began_ns;
        let mut telemetry = self.supervision.reconstruct();
        telemetry.counters.max_cycle_ns = telemetry.counters.max_cycle_ns.max(cycle_ns);
        telemetry.counters.cycles_over_frame_time += u64::from(cycle_ns > self.settings.publish.frame_time_ns());
        telemetry.preprocess = self.preprocessor.counters();
        telemetry.ladder = self.ladder.counters();
        telemetry.rung = self.ladder.rung();
        telemetry.scan = self.scan.summary();
        telemetry.missing_count = self.scan.missing(&mut telemetry.missing, self.scan.is_running()).0;
    }
}

/// A frame's line integrals: as they came, or those made of its counts.
fn view_of<'a>(frame: &'a StagedFrame, made: &'a Buffer) -> Values<'a> {
    match frame.kind {
        FrameKind::LineIntegralsF32 => frame.line_integrals().into(),
        _ => made.values(),
    }
}

/// The accumulator's volume.
fn outgoing<'a>(compute: &'a dyn Operations, accumulator: &'a FdkAccumulator, scale: f32) -> Outgoing<'a> {
    Outgoing { compute, values: accumulator.volume(), scale }
}

fn pose_of(header: &FrameHeader) -> ViewPose {
    ViewPose {
        source_mm: header.source_mm.into(),
        detector_origin_mm: header.detector_origin_mm.into(),
        column_step_mm: header.column_step_mm.into(),
        row_step_mm: header.row_step_mm.into(),
    }
}

/// Refuses a frame whose source is not where the plan has it: it belongs to another scan, and its weights would be wrong; and a
/// pose that is none. (Said here and not by [`ViewPose::check`], which words its errors on the heap.)
fn pose_refusal(view: u32, pose: &ViewPose, planned: &ViewPose) -> Option<Refusal> {
    let off_mm = (pose.source_mm - planned.source_mm).length();
    let limit_mm = POSE_TOLERANCE * planned.source_mm.length();
    if off_mm.is_nan() || off_mm > limit_mm {
        return Some(Refusal::Pose { view, off_mm, limit_mm });
    }
    let (column, row) = (pose.column_step_mm, pose.row_step_mm);
    let area_mm2 = column.cross(row).length();
    let spans_a_plane = area_mm2 >= 1e-9 * column.length().max(row.length()).max(1e-9);
    let distance_mm = if spans_a_plane { pose.source_to_plane_mm() } else { 0.0 };
    (distance_mm.is_nan() || distance_mm < 1e-6).then_some(Refusal::Degenerate { view, area_mm2, distance_mm })
}
