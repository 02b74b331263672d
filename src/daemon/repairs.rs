//! The repairs of the optimisation: the model is loaded, told of each scan, and what becomes of its work is counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use firmware_bridge::layout::VolumeHeader;
use firmware_bridge::slots::text_to;
use ndarray::ArrayView2;

use super::handover::Handover;
use crate::compute::{Operations, Values, ValuesMut};
use crate::config::{OptimisedSettings, Settings};
use crate::geometry::ScanGeometry;
use crate::plan::RepairPlan;
use crate::reconstruct::optimise::{AugmentSettings, NotRepaired, Repairer, ScanViews, SliceFixing};
use crate::repair::conditioning::biplanar;
use crate::repair::{Conditioning, Ender, RepairError, SliceBuffers, SliceFixer};
use crate::supervise::{Event, RepairCounters, RunRepairs, SliceFixerTelemetry, Supervision};

/// A repair may take so many times what it took in the rehearsal, where the settings do not say how long.
const PATIENCE: u32 = 4;

/// The shortest time that it is given then: a machine may be busy for a moment.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// The model and what it needs of a scan; every buffer in it is in the plan.
pub(super) struct ScanRepairs {
    fixing: Arc<Mutex<SliceFixing>>,
    anatomy: String,
    pub(super) augment: AugmentSettings,
    /// Of the views that are there, and which these are.
    angles_rad: Vec<f64>,
    views: Vec<usize>,
    /// What a repair may take.
    limit: Duration,
    /// As headers have them.
    model_hash: [u8; 32],
    model: [u8; 32],
    provider: [u8; 32],
}

impl ScanRepairs {
    /// Loads the model and warms it up.
    pub(super) fn load(
        plan: &RepairPlan,
        settings: &Settings,
        compute: &dyn Operations,
        buffers: SliceBuffers,
    ) -> Result<Self, RepairError> {
        let mut fixer = SliceFixer::load(plan.manifest.clone(), &plan.options, compute, buffers)?;
        let warm = fixer.warm_up(compute)?;
        let asked = settings.optimised.as_ref().and_then(|optimised| optimised.slice_fixer.as_ref()?.deadline_ms);
        let estimate = warm.slice * fixer.slices() as u32;
        let limit = asked.map_or_else(|| patience(estimate), Duration::from_millis);
        let manifest = fixer.manifest();
        let (model_hash, model) = (manifest.repair.sha256, text_to(&manifest.name));
        let provider = text_to(&fixer.providers().header_text());
        let views = settings.geometry.views.len();
        let mut fixing = SliceFixing::new(fixer, settings.mu_water_per_mm)?;
        fixing.allow(Some(limit), None);
        Ok(Self {
            fixing: Arc::new(Mutex::new(fixing)),
            anatomy: plan.anatomy.clone(),
            augment: plan.augment,
            angles_rad: Vec::with_capacity(views),
            views: Vec::with_capacity(views),
            limit,
            model_hash,
            model,
            provider,
        })
    }

    fn fixing(&self) -> MutexGuard<'_, SliceFixing> {
        lock(&self.fixing)
    }

    /// What the optimiser repairs with; `teller`: whom each repair is told to, once its telemetry is there.
    pub(super) fn repairer(&self, teller: Option<(Arc<Supervision>, Arc<Handover>)>) -> Box<dyn Repairer> {
        Box::new(Told { fixing: Arc::clone(&self.fixing), teller })
    }

    /// What ends a repair from another thread.
    pub(super) fn ender(&self) -> Ender {
        self.fixing().fixer().ender()
    }

    /// The rehearsal found that a repair takes so long; `None`: it came to nothing. What the settings say stands.
    pub(super) fn found(&mut self, repair: Option<Duration>, settings: &OptimisedSettings) {
        let asked = settings.slice_fixer.as_ref().and_then(|fixer| fixer.deadline_ms);
        if let (None, Some(repair)) = (asked, repair) {
            self.limit = patience(repair);
        }
        self.fixing().allow(Some(self.limit), None);
    }

    /// Tells the model of a scan, by two of its views at right angles; repairs must be done by `until`. Where it cannot be told, the
    /// repairs of the run will fail.
    pub(super) fn begin(&mut self, scan: &ScanViews<'_>, planned: &ScanGeometry, until: Option<Instant>) {
        let mut fixing = lock(&self.fixing);
        fixing.allow(Some(self.limit), until);
        fixing.forget();
        (self.angles_rad, self.views) = {
            let (mut angles, mut views) = (std::mem::take(&mut self.angles_rad), std::mem::take(&mut self.views));
            angles.clear();
            views.clear();
            let poses = scan.poses.unwrap_or(&planned.views);
            for (view, pose) in poses.iter().enumerate().filter(|(view, _)| scan.has(*view)) {
                angles.push(pose.source_angle_rad());
                views.push(view);
            }
            (angles, views)
        };
        let detector = planned.detector;
        let image = |view: usize| {
            let pixels = scan.line_integrals.get(view * detector.pixels()..).unwrap_or(&[]);
            let pixels = pixels.get(..detector.pixels()).unwrap_or(&[]);
            ArrayView2::from_shape((detector.rows, detector.columns), pixels).unwrap_or(ArrayView2::from(&[[]; 0]))
        };
        let told = biplanar(&self.angles_rad).and_then(|pair| {
            let views = pair.map(|place| image(self.views[place]));
            fixing.condition(&Conditioning { views, anatomy: &self.anatomy })
        });
        if let Err(error) = told {
            tracing::warn!("the scan cannot be told to the model, its repairs will fail: {error}");
        }
    }

    /// Puts what a run's repairs have come to into the header of one of its volumes.
    pub(super) fn stamp(&self, run: RunRepairs, header: &mut VolumeHeader) {
        header.repairs_planned = run.planned;
        (header.repairs, header.repairs_failed) = (run.done, run.failed);
        header.repair_ms = u32::try_from(run.ns / 1_000_000).unwrap_or(u32::MAX);
        if run.done > 0 {
            (header.model_hash, header.repair_model) = (self.model_hash, self.model);
            header.repair_provider = self.provider;
        }
    }

    /// What status and log have of the model; `repair`: what the rehearsal found.
    pub(super) fn telemetry(&self, repair: Duration) -> SliceFixerTelemetry {
        let fixing = self.fixing();
        let fixer = fixing.fixer();
        let (manifest, providers) = (fixer.manifest(), fixer.providers());
        SliceFixerTelemetry {
            model: manifest.name.clone(),
            model_hash: self.model_hash[..6].iter().map(|byte| format!("{byte:02x}")).collect(),
            provider: providers.header_text(),
            refused: providers.refused.iter().map(|(provider, reason)| format!("{provider}: {reason}")).collect(),
            onnxruntime: fixer.onnxruntime().version.clone(),
            anatomy: manifest.anatomies[manifest.anatomy_index(&self.anatomy)].clone(),
            slices: fixer.slices(),
            repair_s: repair.as_secs_f64(),
            deadline_s: self.limit.as_secs_f64(),
            run: RunRepairs::default(),
            counters: RepairCounters::default(),
        }
    }
}

fn lock(fixing: &Mutex<SliceFixing>) -> MutexGuard<'_, SliceFixing> {
    fixing.lock().unwrap_or_else(PoisonError::into_inner)
}

fn patience(repair: Duration) -> Duration {
    (repair * PATIENCE).max(LEAST_PATIENCE)
}

/// Repairs, and tells of each.
struct Told {
    fixing: Arc<Mutex<SliceFixing>>,
    teller: Option<(Arc<Supervision>, Arc<Handover>)>,
}

impl Repairer for Told {
    fn sees_unexplained(&self) -> bool {
        lock(&self.fixing).sees_unexplained()
    }

    fn repair(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        reference: ValuesMut<'_>,
        interrupts: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        let began = Instant::now();
        let outcome = lock(&self.fixing).repair(compute, volume, unexplained, reference, interrupts);
        let took = began.elapsed();
        let Some((supervision, handover)) = &self.teller else { return outcome };
        let run = {
            let mut telemetry = supervision.slice_fixer();
            // The rehearsal's does not count.
            let Some(telemetry) = telemetry.as_mut() else { return outcome };
            telemetry.count(outcome, took.as_nanos() as u64);
            telemetry.run
        };
        let (scan_id, iteration) =
            supervision.optimise().map_or((0, 0), |optimise| (optimise.progress.scan_id, optimise.progress.iteration));
        let seconds = took.as_secs_f64();
        match outcome {
            Ok(()) => {
                let (number, planned) = (run.done + run.failed, run.planned);
                supervision.tell(Event::Repaired { scan_id, iteration, number, planned, seconds });
            }
            Err(NotRepaired::Interrupted) => {}
            Err(why) => {
                supervision.tell(Event::NotRepaired { scan_id, iteration, why, seconds });
                handover.tell_unrepaired();
            }
        }
        outcome
    }
}
