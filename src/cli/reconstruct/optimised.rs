//! `--method gaussians`: representations that are optimised against the projections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Job, Reconstructed, failure, memory};
use crate::cli::Failure;
use crate::compute::Compute;
use crate::compute::cpu::ramp_filter::Window;
use crate::compute::gaussians::{GaussianCompute, GaussianWorkload};
use crate::compute::losses::LossCompute;
use crate::error::exit;
use crate::reconstruct::optimise::{Budget, OptimiseError, OptimisePlan, OptimiseSettings, Optimiser};
use crate::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings};
use crate::represent::gaussians::initialise::Initialisation;
use crate::represent::gaussians::{GaussianLimits, GaussianRates, GaussianRepresentation, GaussianSchedule, Gaussians};

/// Options of the methods that optimise a representation.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Representations (gaussians, field)")]
pub(super) struct Options {
    /// Seconds until the volume must be there, from the start of the method; the number of iterations that fits is measured, fixed and
    /// printed
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    #[arg(long, value_name = "N")]
    optimise_iterations: Option<usize>,
    #[arg(long = "set", value_name = "NAME=VALUE", hide = true)]
    set: Vec<String>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        self.deadline.map(|_| "--deadline")
    }
    fn get(&self, name: &str, default: f64) -> f64 {
        self.set
            .iter()
            .find_map(|s| s.split_once('=').filter(|(n, _)| *n == name).and_then(|(_, v)| v.parse().ok()))
            .unwrap_or(default)
    }
}

fn refused(error: OptimiseError) -> Failure {
    match error {
        OptimiseError::Reconstruct(error) => failure(error),
        OptimiseError::Represent(error) => Failure::new(exit::INPUT, &error),
    }
}

pub(super) fn run(job: &mut Job<'_>) -> Result<Reconstructed, Failure> {
    let begin = Instant::now();
    let options = &job.arguments.optimised;
    let get = |name: &str, default: f64| options.get(name, default);
    let scan = job.scan;
    let mut settings = OptimiseSettings::default();
    settings.tv_mm = get("tv", f64::from(settings.tv_mm)) as f32;
    settings.tv_epsilon_per_mm = get("eps", f64::from(settings.tv_epsilon_per_mm)) as f32;
    settings.data.photons = get("photons", settings.data.photons);
    settings.data.model_error = get("model", settings.data.model_error);
    settings.data.squares = get("squares", f64::from(settings.data.squares)) as f32;
    settings.data.modulus = get("modulus", f64::from(settings.data.modulus)) as f32;
    settings.data.dissimilarity = get("ssim", f64::from(settings.data.dissimilarity)) as f32;
    settings.fit_iterations = get("fit", settings.fit_iterations as f64) as usize;
    settings.views_per_iteration = get("views", settings.views_per_iteration as f64) as usize;
    settings.hold_back_one_in = get("hold", settings.hold_back_one_in as f64) as usize;
    let plan = Arc::new(OptimisePlan::new(&scan.geometry, &job.grid, &settings).map_err(failure)?);
    let voxel_mm = job.grid.voxel_mm.min_element() as f32;
    let number = (get("n", 0.07) * job.grid.len() as f64) as usize;
    let capacity = (get("capacity", 1.0) * number as f64) as usize;
    let limits = GaussianLimits {
        capacity,
        density_unit_per_mm: get("unit", 0.004) as f32,
        smallest_scale_mm: get("smallest", 0.3) as f32 * voxel_mm,
        largest_scale_mm: 20.0 * voxel_mm,
        low_pass_mm: get("lp", 0.45) as f32 * voxel_mm,
    };
    let schedule = GaussianSchedule {
        initialisation: Initialisation {
            gaussians: number,
            threshold_per_mm: 0.0,
            density_factor: get("df", 0.3) as f32,
            scale_factor: get("sf", 0.6) as f32,
            seed: settings.seed,
        },
        start_threshold: get("threshold", 0.2) as f32,
        rates: GaussianRates {
            density: get("rd", 0.06) as f32,
            position_mm: get("rp", 0.2) as f32,
            log_scale: get("rs", 0.04) as f32,
            rotation: get("rr", 0.02) as f32,
        },
        decay: get("decay", 0.1) as f32,
        adapt_every: get("every", 0.0) as u32,
        adapt_until: get("until", 0.6) as f32,
        adapt_share: get("share", 0.05) as f32,
        prune_below: get("prune", 1e-3) as f32,
    };
    let mut buffers = plan.buffers();
    buffers.push(("gaussians", Gaussians::bytes(capacity)));
    let workload =
        GaussianWorkload { gaussians: capacity, columns: 1, rows: 1, views_per_call: 1, voxels: job.grid.voxels };
    let fdk_settings = FdkSettings { window: Window::Hann, cutoff: get("cutoff", 0.7), views_per_call: None };
    let fdk = Arc::new(FdkPlan::without_scratch(&scan.geometry, &job.grid, fdk_settings).map_err(failure)?);
    let scratch_bytes = job.compute.scratch_bytes(&plan.workload())
        + job.compute.gaussian_scratch_bytes(&workload)
        + job.compute.loss_scratch_bytes(&plan.loss_workload());
    memory::check(&buffers, scratch_bytes, &job.grid, "use a smaller --size")?;
    let compute = |error: crate::compute::ComputeError| failure(error.into());
    job.compute.prepare(&plan.workload()).map_err(compute)?;
    job.compute.prepare(&fdk.workload()).map_err(compute)?;
    job.compute.prepare_gaussians(&workload).map_err(compute)?;
    job.compute.prepare_losses(&plan.loss_workload()).map_err(compute)?;
    let representation = GaussianRepresentation::new(&limits, &schedule, &job.grid)
        .map_err(|error| Failure::new(exit::USAGE, &error))?;
    let mut optimiser = Optimiser::new(Arc::clone(&plan), Box::new(representation)).map_err(failure)?;
    let plan_s = begin.elapsed().as_secs_f64();

    let iterations = options.optimise_iterations.unwrap_or(150);
    job.tracer.begin("Gaussians", "iterations", iterations);
    let start = Instant::now();
    let integrals = job.line_integrals();
    optimiser.load(integrals).map_err(failure)?;
    let mut accumulator = FdkAccumulator::new(Arc::clone(&fdk)).map_err(failure)?;
    let group = fdk.views_per_call();
    for (index, part) in integrals.chunks(group * fdk.detector().pixels()).enumerate() {
        accumulator.add_views(&job.compute, index * group, part).map_err(failure)?;
    }
    let mut volume = accumulator.into_volume();
    volume.iter_mut().for_each(|v| *v = v.max(0.0));
    let budget = match options.deadline {
        Some(seconds) => Budget::Deadline {
            at: start + Duration::from_secs_f64(seconds),
            reserve: Duration::from_millis(200),
            most: 100_000,
        },
        None => Budget::Iterations(iterations),
    };
    let (compute, tracer) = (&job.compute, &mut job.tracer);
    let outcome = compute
        .install(|| {
            optimiser.begin(compute, &volume)?;
            optimiser.run(compute, budget, tracer)
        })
        .map_err(refused)?;
    let reconstruct_s = job.tracer.method_s();
    job.tracer.end();
    let elements = optimiser.representation().elements();
    Ok(Reconstructed {
        plan_s,
        reconstruct_s,
        buffers,
        scratch_bytes,
        coverage: None,
        warnings: Vec::new(),
        facts: [
            ("iterations".to_owned(), Value::from(outcome.iterations)),
            ("elements".to_owned(), Value::from(elements)),
            ("residual".to_owned(), json!(outcome.residual)),
            ("held_back_residual".to_owned(), json!(outcome.held_back_residual)),
            ("stopped".to_owned(), json!(outcome.stopped)),
        ]
        .into_iter()
        .collect(),
        summary: format!("{} iterations, {elements} Gaussians", outcome.iterations),
        volume: optimiser.into_volume(),
    })
}
