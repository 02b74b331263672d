//! `--method gaussians` and `--method field`: representations that are optimised against the projections.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Arguments, Job, Method, Reconstructed, failure, memory};
use crate::cli::Failure;
use crate::error::exit;
use crate::reconstruct::optimise::{self, Budget, OptimiseError, OptimiseSettings, Recipe};
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;

/// Options of the methods that optimise a representation.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "gaussians, field")]
pub(super) struct Options {
    /// Seconds until the volume must be there, counted from when the scan is read: the first iterations are timed, the number that fits is
    /// fixed, printed and kept; --iterations of that number gives the same bits
    #[arg(long, value_name = "SECONDS", conflicts_with = "iterations")]
    deadline: Option<f64>,
    /// Number of Gaussians [default: 14 for 100 voxels]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    gaussians: Option<u32>,
    /// Weight of the total variation, in mm: more for noisier data or fewer views
    #[arg(long, value_name = "MM")]
    tv: Option<f64>,
    /// Photons per pixel without an object: less weight for rays behind thick objects; inf for noise-free data [default: 1e5]
    #[arg(long, value_name = "N")]
    photons: Option<f64>,
    /// Hold back one ray in N and stop when their residual grows [default: 0, none]
    #[arg(long, value_name = "N")]
    hold_back_rays: Option<u32>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[arg(long = "set", value_name = "NAME=VALUE", hide = true)]
    set: Vec<String>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        [
            ("--deadline", self.deadline.is_some()),
            ("--gaussians", self.gaussians.is_some()),
            ("--tv", self.tv.is_some()),
            ("--photons", self.photons.is_some()),
            ("--hold-back-rays", self.hold_back_rays.is_some()),
            ("--seed", self.seed.is_some()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    fn get(&self, name: &str, default: f64) -> f64 {
        self.set
            .iter()
            .find_map(|s| s.split_once('=').filter(|(n, _)| *n == name).and_then(|(_, v)| v.parse().ok()))
            .unwrap_or(default)
    }

    /// What was given over the defaults.
    fn settings(&self) -> OptimiseSettings {
        let mut settings = OptimiseSettings::default();
        settings.tv_mm = self.tv.map_or(settings.tv_mm, |mm| mm as f32);
        settings.data.photons = self.photons.unwrap_or(settings.data.photons);
        settings.hold_back_one_in = self.hold_back_rays.map_or(settings.hold_back_one_in, |n| n as usize);
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings.tv_epsilon_per_mm = self.get("eps", f64::from(settings.tv_epsilon_per_mm)) as f32;
        settings.data.model_error = self.get("model", settings.data.model_error);
        settings.data.modulus = self.get("modulus", f64::from(settings.data.modulus)) as f32;
        settings.data.squares = self.get("squares", f64::from(settings.data.squares)) as f32;
        settings.data.dissimilarity = self.get("ssim", f64::from(settings.data.dissimilarity)) as f32;
        settings.approach_iterations = self.get("approach", settings.approach_iterations as f64) as usize;
        settings.sharpness = self.get("sharp", f64::from(settings.sharpness)) as f32;
        settings.fit_iterations = self.get("fit", settings.fit_iterations as f64) as usize;
        settings.views_per_iteration = self.get("views", settings.views_per_iteration as f64) as usize;
        settings
    }
}

/// The representation that the arguments ask for.
fn method(arguments: &Arguments, grid: &crate::geometry::VolumeGrid, seed: u64) -> optimise::Method {
    let o = &arguments.optimised;
    if arguments.method == Method::Field {
        let mut plan = FieldPlan::for_grid(grid, seed);
        let levels = o.get("levels", plan.shape.levels as f64) as usize;
        let coarsest = o.get("coarsest", plan.shape.coarsest_cells as f64) as usize;
        let finest = o.get("finest", 128.0) as usize;
        plan.shape.levels = levels;
        plan.shape.coarsest_cells = coarsest;
        plan.shape.growth = crate::compute::field::FieldShape::growth_to(coarsest, finest, levels);
        plan.shape.features = o.get("features", plan.shape.features as f64) as usize;
        plan.shape.log2_table = o.get("table", f64::from(plan.shape.log2_table)) as u32;
        plan.shape.width = o.get("width", plan.shape.width as f64) as usize;
        plan.shape.hidden_layers = o.get("hidden", plan.shape.hidden_layers as f64) as usize;
        plan.rates.tables = o.get("rt", f64::from(plan.rates.tables)) as f32;
        plan.rates.network = o.get("rn", f64::from(plan.rates.network)) as f32;
        plan.decay = o.get("decay", f64::from(plan.decay)) as f32;
        plan.jitter = o.get("jitter", 1.0) > 0.0;
        return optimise::Method::Field(plan);
    }
    let mut number = o.gaussians.map(|n| n as usize);
    if o.get("n", 0.0) > 0.0 {
        number = Some((o.get("n", 0.0) * grid.len() as f64) as usize);
    }
    let mut plan = GaussianPlan::for_grid(grid, number, seed);
    let voxel_mm = grid.voxel_mm.min_element() as f32;
    plan.limits.capacity = (o.get("capacity", 1.0) * plan.limits.capacity as f64) as usize;
    plan.limits.low_pass_mm = o.get("lp", f64::from(plan.limits.low_pass_mm / voxel_mm)) as f32 * voxel_mm;
    plan.limits.smallest_scale_mm =
        o.get("smallest", f64::from(plan.limits.smallest_scale_mm / voxel_mm)) as f32 * voxel_mm;
    let s = &mut plan.schedule;
    s.initialisation.density_factor = o.get("df", f64::from(s.initialisation.density_factor)) as f32;
    s.initialisation.scale_factor = o.get("sf", f64::from(s.initialisation.scale_factor)) as f32;
    s.rates.density = o.get("rd", f64::from(s.rates.density)) as f32;
    s.rates.position_mm = o.get("rp", f64::from(s.rates.position_mm)) as f32;
    s.rates.log_scale = o.get("rs", f64::from(s.rates.log_scale)) as f32;
    s.rates.rotation = o.get("rr", f64::from(s.rates.rotation)) as f32;
    s.decay = o.get("decay", f64::from(s.decay)) as f32;
    s.adapt_every = o.get("every", f64::from(s.adapt_every)) as u32;
    s.adapt_share = o.get("share", f64::from(s.adapt_share)) as f32;
    s.prune_below = o.get("prune", f64::from(s.prune_below)) as f32;
    optimise::Method::Gaussians(plan)
}

fn refused(error: OptimiseError) -> Failure {
    match error {
        OptimiseError::Reconstruct(error) => failure(error),
        OptimiseError::Represent(error) => Failure::new(exit::INPUT, &error),
    }
}

/// Reconstructs.
pub(super) fn run(job: &mut Job<'_>) -> Result<Reconstructed, Failure> {
    let begin = Instant::now();
    let arguments = job.arguments;
    let options = &arguments.optimised;
    let settings = options.settings();
    let method = method(arguments, &job.grid, settings.seed);
    let default = optimise::usual_iterations(&method);
    let iterations = arguments.iterations.map_or(default, |n| n as usize);
    let deadline = match options.deadline {
        Some(seconds) if !(seconds > 0.0 && seconds < 1e6) => {
            return Err(Failure {
                message: format!("--deadline {seconds}: must be above 0 and below 1e6 seconds"),
                code: exit::USAGE,
            });
        }
        seconds => seconds.map(Duration::from_secs_f64),
    };
    let recipe = Recipe::new(&job.scan.geometry, &job.grid, &settings, method).map_err(failure)?;
    let scratch_bytes = recipe.scratch_bytes(&job.compute);
    memory::check(&recipe.buffers(), scratch_bytes, &job.grid, "use a smaller --size or fewer --gaussians")?;
    recipe.prepare(&mut job.compute).map_err(failure)?;
    let mut optimiser = recipe.optimiser().map_err(refused)?;
    let plan_s = begin.elapsed().as_secs_f64();

    let title = arguments.method.title();
    job.tracer.begin(title, "iterations", iterations);
    let budget = deadline.map_or(Budget::Iterations(iterations), |deadline| Budget::Deadline {
        at: begin + deadline,
        // The last volume, and its way to the disk.
        reserve: Duration::from_millis(500).min(deadline / 10),
        most: 100_000,
    });
    optimiser.load(job.line_integrals()).map_err(failure)?;
    let (compute, tracer) = (&job.compute, &mut job.tracer);
    let outcome = compute
        .install(|| {
            optimiser.begin(compute, None, tracer)?;
            optimiser.run(compute, budget, tracer)
        })
        .map_err(refused)?;
    let reconstruct_s = job.tracer.method_s();
    job.tracer.end();
    let elements = optimiser.representation().elements();
    let mut warnings = Vec::new();
    if outcome.stopped == crate::reconstruct::StopReason::Diverged {
        warnings.push(format!("{} after {} iterations", outcome.stopped.words(), outcome.iterations));
    }
    for warning in &warnings {
        eprintln!("diffnr: warning: {warning}");
    }
    let facts = json!({
        "iterations": outcome.iterations,
        "iterations_planned": outcome.planned,
        "stopped": outcome.stopped,
        "residual": outcome.residual,
        "held_back_residual": outcome.held_back_residual,
        "elements": elements,
        "tv_mm": settings.tv_mm,
        "photons": settings.data.photons.is_finite().then_some(settings.data.photons),
        "seed": settings.seed,
    });
    Ok(Reconstructed {
        plan_s,
        reconstruct_s,
        buffers: recipe.buffers(),
        scratch_bytes,
        coverage: None,
        warnings,
        facts: if let Value::Object(facts) = facts { facts } else { serde_json::Map::new() },
        summary: format!(
            "{} of {} iterations, {}, {elements} {}",
            outcome.iterations,
            outcome.planned,
            outcome.stopped.words(),
            optimiser.representation().unit()
        ),
        volume: optimiser.into_volume(),
    })
}
