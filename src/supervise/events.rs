//! What happened, as plain copies that the frame path can leave without allocating.

use std::fmt;

use firmware_bridge::layout::{
    SequenceRange, VOLUME_DEGRADED, VOLUME_FULL, VOLUME_PARTIAL, VOLUME_PREVIEW, VOLUME_STALE,
};
use firmware_bridge::ring::Rejection;

use super::Rung;
use crate::preprocess::{CalibrationReport, PreprocessError};
use crate::reconstruct::optimise::NotRepaired;

/// Why reconstruction refused a frame that ingest had taken.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No line integrals could be made of it.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The plan has no such view.
    #[error("view_index {view} is outside the plan's {planned} views: settings and gantry describe different scans")]
    View {
        /// The frame's view.
        view: u32,
        /// Views in the plan.
        planned: usize,
    },
    /// The gantry stands elsewhere than planned.
    #[error(
        "view {view}: the source stands {off_mm:.1} mm from where the settings plan it (limit {limit_mm:.1}): check [geometry] against the gantry, direction and start angle first"
    )]
    Pose {
        /// The frame's view.
        view: u32,
        /// Distance between the source's planned and real positions.
        off_mm: f64,
        /// Largest distance accepted.
        limit_mm: f64,
    },
    /// A pose that is none.
    #[error(
        "view {view}: a pixel spans {area_mm2} mm^2, the source is {distance_mm} mm before the detector's plane: both must be > 0; check the pose that the gantry sends"
    )]
    Degenerate {
        /// The frame's view.
        view: u32,
        /// Area between the column and row steps.
        area_mm2: f64,
        /// Source to detector plane; 0 where there is no plane.
        distance_mm: f64,
    },
    /// Another detector.
    #[error(
        "frame of {columns} x {rows} pixels, planned {planned_columns} x {planned_rows}: correct [geometry] columns and rows"
    )]
    Shape {
        /// Columns of the frame.
        columns: u32,
        /// Rows of the frame.
        rows: u32,
        /// Columns of the plan.
        planned_columns: u32,
        /// Rows of the plan.
        planned_rows: u32,
    },
    /// The operations refused it.
    #[error("the view could not be added (geometry or operation refused it)")]
    Operation,
}

/// How an optimisation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimisationEnd {
    /// All iterations, or as many as its own rules wanted.
    Done,
    /// By the next scan, by later frames of its own, or by a stop.
    Superseded,
    /// Its residual grew beyond bounds.
    Diverged,
    /// Its time was over.
    DeadlineMissed,
    /// It could not be begun, or an operation failed.
    Refused,
}

impl OptimisationEnd {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Superseded => "ended by the next scan, later frames or a stop",
            Self::Diverged => "diverged: its last good volume stands",
            Self::DeadlineMissed => "missed its deadline (reconstruct.deadline_s): its last good volume stands",
            Self::Refused => "could not be carried out (nothing in the volume?): the FDK volume stands",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A producer (again).
    NewEpoch {
        /// Its number.
        epoch: u32,
    },
    /// Numbers are missing.
    Gap {
        /// In this epoch.
        epoch: u32,
        /// These.
        range: SequenceRange,
    },
    /// The ring's consumer rejected a frame.
    Rejected(Rejection),
    /// Reconstruction (or ingest, for its shape) refused a frame.
    Refused {
        /// Sequence number.
        sequence: u64,
        /// Why.
        why: Refusal,
    },
    /// A calibration is in use.
    Calibrated(CalibrationReport),
    /// A calibration was refused.
    CalibrationRefused(PreprocessError),
    /// There are no flat (or dark) frames: i0 (or 0) serves.
    NoCalibration {
        /// Dark images are missing.
        dark: bool,
        /// Flat images are missing.
        flat: bool,
    },
    /// A scan begins.
    ScanStarted {
        /// Epoch of its first frame.
        epoch: u32,
        /// Number of the scan.
        scan_id: u64,
        /// First sequence number.
        sequence: u64,
        /// Views that its frames announce; 0 = not known.
        announced: u32,
        /// Views planned.
        planned: u32,
    },
    /// No frame came for too long.
    TimedOut {
        /// Views so far.
        views: u32,
        /// How long, ms.
        waited_ms: u64,
    },
    /// A scan ended.
    ScanEnded {
        /// Views in its volume.
        views: u32,
        /// Views planned.
        planned: u32,
    },
    /// A volume is readable.
    Published {
        /// Its number.
        generation: u64,
        /// `VOLUME_*` bits.
        status: u32,
        /// Frames in it.
        frames: u32,
        /// Missing frames.
        missing: u64,
        /// Since its last frame's exposure, ns.
        latency_ns: u64,
        /// Iterations behind it; 0 for an analytic one.
        iteration: u32,
    },
    /// An early start has ended.
    EarlyStartEnded {
        /// The scan's number.
        scan_id: u64,
        /// Its iterations.
        iterations: u32,
        /// From so many views.
        views: u32,
        /// Time that it took, s; `None`: it was not done when the last frame came.
        seconds: Option<f64>,
    },
    /// The volume was repaired into a pseudo-reference.
    Repaired {
        /// The scan's number.
        scan_id: u64,
        /// After so many iterations.
        iteration: u32,
        /// Which of the run's repairs, from 1.
        number: u32,
        /// How many are planned.
        planned: u32,
        /// Time that it took, s.
        seconds: f64,
    },
    /// The volume could not be repaired; the optimisation goes on without.
    NotRepaired {
        /// The scan's number.
        scan_id: u64,
        /// After so many iterations.
        iteration: u32,
        /// Why.
        why: NotRepaired,
        /// Time that it took, s.
        seconds: f64,
    },
    /// An optimisation has ended.
    OptimisationEnded {
        /// The scan's number.
        scan_id: u64,
        /// How.
        end: OptimisationEnd,
        /// Iterations done.
        iterations: u32,
        /// Iterations planned.
        planned: u32,
        /// Root of the mean squared difference of the line integrals.
        residual: f64,
        /// Time that it took, s.
        seconds: f64,
    },
    /// No slot was free.
    SlotsLeased {
        /// A scan's last volume, which is tried again; a preview is not.
        is_final: bool,
    },
    /// Another rung of the ladder.
    Rung {
        /// Left.
        from: Rung,
        /// Entered.
        to: Rung,
    },
}

impl Event {
    /// Whether an operator should look at it.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Gap { .. }
            | Self::Rejected(_)
            | Self::Refused { .. }
            | Self::CalibrationRefused(_)
            | Self::NoCalibration { .. }
            | Self::TimedOut { .. }
            | Self::NotRepaired { .. }
            | Self::SlotsLeased { .. } => true,
            Self::ScanEnded { views, planned } => views < planned,
            Self::EarlyStartEnded { seconds, .. } => seconds.is_none(),
            Self::OptimisationEnded { end, .. } => !matches!(end, OptimisationEnd::Done | OptimisationEnd::Superseded),
            Self::Rung { to, .. } => *to != Rung::Full,
            _ => false,
        }
    }
}

/// The status bits in words.
pub(crate) fn status_words(status: u32) -> String {
    let names = [
        (VOLUME_PREVIEW, "PREVIEW"),
        (VOLUME_FULL, "FULL"),
        (VOLUME_DEGRADED, "DEGRADED"),
        (VOLUME_PARTIAL, "PARTIAL"),
        (VOLUME_STALE, "STALE"),
    ];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| status & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "-".into() } else { set.join("|") }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewEpoch { epoch } => write!(f, "producer of epoch {epoch}: resynchronised"),
            Self::Gap { epoch, range } => {
                write!(f, "frames {}..={} of epoch {epoch} are missing", range.first, range.last)
            }
            Self::Rejected(Rejection::Header(error)) => write!(f, "frame rejected: {error}"),
            Self::Rejected(Rejection::Payload { error, sequence, .. }) => {
                write!(f, "frame {sequence} rejected: {error}")
            }
            Self::Rejected(Rejection::Duplicate { sequence, .. }) => {
                write!(f, "frame {sequence} rejected: seen before")
            }
            Self::Refused { sequence, why } => write!(f, "frame {sequence} refused: {why}"),
            Self::Calibrated(report) => write!(
                f,
                "calibration in use: {} dark, {} flat frames, median dark {:.1}, median signal {:.1} counts, {} bad pixels",
                report.dark_frames, report.flat_frames, report.median_dark, report.median_signal, report.bad_pixels
            ),
            Self::CalibrationRefused(error) => write!(f, "{error}"),
            Self::NoCalibration { dark, flat } => match (dark, flat) {
                (true, true) => write!(f, "no dark and no flat frames came: dark 0 and flat i0 serve"),
                (true, false) => write!(f, "no dark frames came: dark 0 serves"),
                _ => write!(f, "no flat frames came: i0 serves"),
            },
            Self::ScanStarted { epoch, scan_id, sequence, announced, planned } => {
                write!(f, "scan {scan_id} begins with frame {sequence} of epoch {epoch}: {planned} views planned")?;
                if *announced != 0 && announced != planned {
                    write!(f, ", but its frames announce {announced}: check [geometry] views")?;
                }
                Ok(())
            }
            Self::TimedOut { views, waited_ms } => {
                write!(f, "no frame for {waited_ms} ms after {views} views: the scan has broken off")
            }
            Self::ScanEnded { views, planned } => write!(f, "scan ended with {views} of {planned} views"),
            Self::Published { generation, status, frames, missing, latency_ns, iteration } => {
                write!(f, "volume {generation} published: {}, ", status_words(*status))?;
                if *iteration > 0 {
                    write!(f, "iteration {iteration}, ")?;
                }
                let latency_ms = *latency_ns as f64 / 1e6;
                write!(f, "{frames} frames, {missing} missing, {latency_ms:.2} ms after its last frame")
            }
            Self::EarlyStartEnded { scan_id, iterations, views, seconds } => {
                write!(f, "early start of scan {scan_id}: {iterations} iterations from {views} views ")?;
                match seconds {
                    Some(seconds) => write!(f, "in {seconds:.2} s; the optimisation goes on from there"),
                    None => write!(
                        f,
                        "were not done when the last frame came: the optimisation begins anew (is publish.frame_rate_fps the gantry's rate?)"
                    ),
                }
            }
            Self::Repaired { scan_id, iteration, number, planned, seconds } => {
                write!(
                    f,
                    "scan {scan_id} repaired by SliceFixer after iteration {iteration} in {seconds:.2} s ({number} of {planned})"
                )
            }
            Self::NotRepaired { scan_id, iteration, why, seconds } => write!(
                f,
                "scan {scan_id} not repaired by SliceFixer after iteration {iteration}, {seconds:.2} s: {why}; the optimisation goes on without"
            ),
            Self::OptimisationEnded { scan_id, end, iterations, planned, residual, seconds } => write!(
                f,
                "optimisation of scan {scan_id} {}; {iterations} of {planned} iterations in {seconds:.2} s, residual {residual:.5}",
                end.words()
            ),
            Self::SlotsLeased { is_final: true } => {
                write!(
                    f,
                    "every slot is leased by readers: the scan's volume waits for one (shared_memory.volume_slots gives more)"
                )
            }
            Self::SlotsLeased { is_final: false } => write!(f, "every slot is leased by readers: preview left out"),
            Self::Rung { from, to } => write!(f, "degrade ladder: {from:?} -> {to:?}"),
        }
    }
}
