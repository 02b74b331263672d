//! The schedule (what runs when) and the memory budget (every byte), fixed before "ready".
//!
//! [`Plan::of`] turns settings into both and refuses what does not fit, before the first frame. The daemon allocates its buffers by
//! the same constructors that state their bytes here, and a test compares the list with what a counting allocator saw. Not in
//! the list: program code, thread stacks and some tens of KiB of small objects.

#![forbid(unsafe_code)]

mod buffers;
mod repairs;
mod schedule;

pub use buffers::{Buffer, Place};
pub use repairs::RepairPlan;
pub use schedule::{RungRule, Step};

use serde::Serialize;

use crate::compute::cuda::STAGING_BYTES;
use crate::compute::device::Device;
use crate::compute::{ComputeError, Operations};
use crate::config::{DropPolicy, Settings, format_bytes};
use crate::daemon::{FramePath, Handover, ScanState, ScanStore};
use crate::error::{Classed, ErrorClass};
use crate::ingest::Staging;
use crate::preprocess::Preprocessor;
use crate::publish::Publisher;
use crate::reconstruct::ReconstructError;
use crate::reconstruct::fdk::{FdkPlan, FdkSettings};
use crate::reconstruct::optimise::Recipe;
use crate::repair::RepairError;
use crate::supervise::Supervision;
use firmware_bridge::ring::RingGeometry;
use firmware_bridge::slots::VolumeGeometry;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// More memory than allowed.
    #[error(
        "plan: {needed} of memory are needed, but memory.host_limit = {limit}; the largest buffers: {largest}. Lower volume.voxels, shared_memory.volume_slots or ring_slots, or raise memory.host_limit"
    )]
    OverLimit {
        /// Bytes needed, in words.
        needed: String,
        /// Bytes allowed, in words.
        limit: String,
        /// The three largest buffers.
        largest: String,
    },
    /// The scan cannot be reconstructed, or the method not be planned.
    #[error("plan: {0}")]
    Reconstruct(#[from] ReconstructError),
    /// The carrier refuses.
    #[error("plan: {0}")]
    Compute(#[from] ComputeError),
    /// The representation refuses.
    #[error("plan: {0}")]
    Optimise(#[from] crate::reconstruct::optimise::OptimiseError),
    /// The model that is to repair volumes is not there, or not to be had.
    #[error("plan: slice_fixer: {0}")]
    Repair(#[from] RepairError),
}

impl Classed for PlanError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// What runs when, and every byte.
#[derive(Debug)]
pub struct Plan {
    /// The schedule.
    pub schedule: Vec<Step>,
    /// The degrade ladder, best rung first.
    pub ladder: Vec<RungRule>,
    /// Every buffer.
    pub buffers: Vec<Buffer>,
    /// Bytes allowed.
    pub host_limit_bytes: u64,
    /// What carries it out.
    pub carrier: String,
    /// Warnings about the scan's coverage.
    pub warnings: Vec<String>,
    /// Weights, filter, coverage.
    pub fdk: FdkPlan,
    /// What is optimised after it, and how.
    pub recipe: Option<Recipe>,
    /// What repairs volumes on its way.
    pub repairs: Option<RepairPlan>,
    /// The ring.
    pub ring: RingGeometry,
    /// The volume slots.
    pub slots: VolumeGeometry,
}

/// The part of a plan that `--json` prints.
#[derive(Debug, Serialize)]
pub struct PlanReport<'a> {
    schedule: &'a [Step],
    ladder: &'a [RungRule],
    buffers: &'a [Buffer],
    total_bytes: u64,
    host_limit_bytes: u64,
    carrier: &'a str,
    coverage: String,
    warnings: &'a [String],
}

impl Plan {
    /// Plans `settings` for `device`.
    ///
    /// # Errors
    /// [`PlanError`]; the limit is not checked here but by [`Plan::check_limit`], so that a plan that is too large can be shown.
    pub fn of(settings: &Settings, device: &Device) -> Result<Self, PlanError> {
        let compute = &*device.planner()?;
        let fdk_settings = FdkSettings { window: settings.window, views_per_call: Some(1), ..FdkSettings::default() };
        let fdk = FdkPlan::without_scratch(&settings.geometry, &settings.grid, fdk_settings)?;
        let recipe = settings
            .optimised
            .as_ref()
            .map(|optimised| optimised.recipe(&settings.geometry, &settings.grid))
            .transpose()?;
        let repairs = RepairPlan::of(settings)?;
        let detector = settings.geometry.detector;
        let policy = match settings.shared_memory.drop_policy {
            DropPolicy::Newest => firmware_bridge::ring::DropPolicy::DropNewest,
            DropPolicy::Oldest => firmware_bridge::ring::DropPolicy::DropOldest,
        };
        let ring = RingGeometry::for_detector(
            detector.columns as u32,
            detector.rows as u32,
            settings.shared_memory.ring_slots as u32,
            policy,
        );
        let slots = VolumeGeometry::for_shape(
            settings.grid.voxels.map(|count| count as u32),
            settings.shared_memory.volume_slots as u32,
        );
        let mut buffers = vec![
            Buffer::new("ring: frame slots", ring.segment_bytes(), Place::Shared),
            Buffer::new("publish: volume slots", slots.segment_bytes(), Place::Shared),
            Buffer::new(
                "ingest: staging frames",
                Staging::bytes(settings.supervise.staging_frames, detector),
                Place::Host,
            ),
        ];
        buffers.extend(Preprocessor::buffers(&settings.preprocess, detector));
        buffers.extend(on_frame_path(&fdk, settings, device, compute)?);
        let views = settings.geometry.views.len();
        buffers.push(Buffer::new("reconstruct: views seen", ScanState::bytes(views), Place::Host));
        buffers.push(Buffer::new("publish: last volume, kept for STALE", 4 * settings.grid.len() as u64, Place::Host));
        if let Some(recipe) = &recipe {
            let host = |(name, bytes): (&str, usize)| Buffer::new(name, bytes as u64, Place::Host);
            buffers.push(host(("reconstruct: views of the scan", ScanStore::bytes(views, detector))));
            buffers.push(host(("optimise: views handed over", Handover::bytes(views, detector))));
            buffers.extend(of_optimisation(recipe, repairs.as_ref(), device, compute)?);
        }
        if let Some(repairs) = &repairs {
            buffers.extend(repairs.buffers(views, device)?);
        }
        buffers.extend(Supervision::buffers());
        Ok(Self {
            schedule: schedule::schedule(settings, recipe.as_ref(), repairs.as_ref()),
            ladder: schedule::ladder(settings),
            buffers,
            host_limit_bytes: settings.host_limit_bytes,
            carrier: compute.description(),
            warnings: fdk.coverage().warnings.clone(),
            fdk,
            recipe,
            repairs,
            ring,
            slots,
        })
    }

    /// Bytes in all places but device memory: what `memory.host_limit` bounds.
    #[must_use]
    pub fn host_bytes(&self) -> u64 {
        Self::host_bytes_of(&self.buffers)
    }

    /// Bytes in all places but device memory.
    #[must_use]
    pub fn host_bytes_of(buffers: &[Buffer]) -> u64 {
        buffers.iter().filter(|buffer| buffer.place != Place::Device).map(|buffer| buffer.bytes).sum()
    }

    /// Refuses a plan above the limit.
    ///
    /// # Errors
    /// [`PlanError::OverLimit`] naming the largest buffers.
    pub fn check_limit(&self) -> Result<(), PlanError> {
        let needed = self.host_bytes();
        if needed <= self.host_limit_bytes {
            return Ok(());
        }
        let mut largest: Vec<&Buffer> = self.buffers.iter().collect();
        largest.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
        let largest: Vec<String> =
            largest.iter().take(3).map(|b| format!("{} ({})", b.name, format_bytes(b.bytes))).collect();
        Err(PlanError::OverLimit {
            needed: format_bytes(needed),
            limit: format_bytes(self.host_limit_bytes),
            largest: largest.join(", "),
        })
    }

    /// For `--json`.
    #[must_use]
    pub fn report(&self) -> PlanReport<'_> {
        PlanReport {
            schedule: &self.schedule,
            ladder: &self.ladder,
            buffers: &self.buffers,
            total_bytes: self.host_bytes(),
            host_limit_bytes: self.host_limit_bytes,
            carrier: &self.carrier,
            coverage: self.fdk.coverage().summary(),
            warnings: &self.warnings,
        }
    }
}

/// What a carrier on a GPU takes beside its arena, which holds all buffers that operations work on.
fn beside_the_arena(stage: &str, arena_bytes: usize, host: Vec<(&'static str, usize)>) -> Vec<Buffer> {
    let named = |(name, bytes): (&str, usize)| {
        Buffer::new(format!("{stage}: {}", name.trim_start_matches("optimise ")), bytes as u64, Place::Host)
    };
    let mut buffers = vec![
        Buffer::new(format!("{stage}: arena of the carrier"), arena_bytes as u64, Place::Device),
        Buffer::new(format!("{stage}: staging of copies"), STAGING_BYTES as u64, Place::Pinned),
    ];
    buffers.extend(host.into_iter().map(named));
    let piece = Publisher::device_piece_bytes() as u64;
    buffers.push(Buffer::new(format!("{stage}: a piece of a volume on its way out"), piece, Place::Host));
    buffers
}

/// Buffers of FDK, and of what makes line integrals for it, while frames arrive.
fn on_frame_path(
    fdk: &FdkPlan,
    settings: &Settings,
    device: &Device,
    compute: &dyn Operations,
) -> Result<Vec<Buffer>, PlanError> {
    if matches!(device, Device::Cuda(_)) {
        let shared = std::sync::Arc::new(fdk.clone());
        let take = |compute: &mut dyn Operations| FramePath::take(compute, &shared, &settings.preprocess).map(drop);
        let arena = device.arena_bytes(take)?;
        return Ok(beside_the_arena("reconstruct", arena, fdk.host_buffers()));
    }
    let host = |(name, bytes): (&str, usize)| Buffer::new(format!("reconstruct: {name}"), bytes as u64, Place::Host);
    let view = 4 * fdk.detector().pixels() as u64;
    let mut buffers = vec![Buffer::new("preprocess: line integrals of one view", view, Place::Host)];
    buffers.extend(fdk.buffers().into_iter().map(host));
    let scratch = compute.scratch_bytes(&fdk.workload()) as u64;
    buffers.push(Buffer::new("compute: scratch of all threads", scratch, Place::Host));
    Ok(buffers)
}

/// Buffers of the optimisation, which has a carrier of its own, so that frames are never kept waiting by one of its operations.
fn of_optimisation(
    recipe: &Recipe,
    repairs: Option<&RepairPlan>,
    device: &Device,
    compute: &dyn Operations,
) -> Result<Vec<Buffer>, PlanError> {
    if matches!(device, Device::Cuda(_)) {
        let arena = device.arena_bytes(|compute| -> Result<(), PlanError> {
            crate::daemon::take_optimisation(compute, recipe, repairs).map(drop)
        })?;
        return Ok(beside_the_arena("optimise", arena, recipe.host_buffers()));
    }
    let named = |(name, bytes): (&str, usize)| {
        Buffer::new(format!("optimise: {}", name.trim_start_matches("optimise ")), bytes as u64, Place::Host)
    };
    let mut buffers: Vec<Buffer> = recipe.buffers().into_iter().map(named).collect();
    let scratch = recipe.scratch_bytes(compute) as u64;
    buffers.push(Buffer::new("optimise: scratch of all threads", scratch, Place::Host));
    Ok(buffers)
}
