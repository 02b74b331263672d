//! `--method gaussians` and `--method field`: representations that are optimised against the projections.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::experiments::Varied;
use super::slice_fixer;
use super::working_scale::WorkingScale;
use super::{Arguments, Job, Method, Reconstructed, failure, memory};
use crate::cli::{Failure, repair};
use crate::error::exit;
use crate::geometry::VolumeGrid;
use crate::reconstruct::optimise::{self, Budget, EarlyStart, OptimiseError, OptimiseSettings, Recipe, ScanViews};
use crate::repair::SliceBuffers;
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;

/// Options of the methods that optimise a representation.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "gaussians, field")]
pub(super) struct Options {
    /// Seconds until the volume must be there, counted from when the scan is read: the first iterations are timed, the number that fits is
    /// fixed, printed and kept; --iterations of that number gives the same bits
    #[arg(long, value_name = "SECONDS", conflicts_with = "iterations")]
    deadline: Option<f64>,
    /// Do the first ITERATIONS from the first VIEWS views alone, as a daemon does while the rest still comes: repeats its volume
    #[arg(long, value_name = "VIEWS:ITERATIONS", value_parser = early_start)]
    early: Option<EarlyStart>,
    /// Number of Gaussians [default: 14 for 100 voxels]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    gaussians: Option<u32>,
    /// Weight of the learned prior of how CT volumes look from voxel to voxel (models/prior): more is smoother, 0 is none [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    prior: Option<f64>,
    /// Weight of the total variation, in mm, beside the learned prior or in its place (0.03 is usual then) [default: 0]
    #[arg(long, value_name = "MM", allow_negative_numbers = true)]
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
    /// Change one inner number of the method, for experiments (docs/methods.md); a wrong name lists all
    #[arg(long, value_name = "NAME=VALUE")]
    experiment: Vec<String>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        [
            ("--deadline", self.deadline.is_some()),
            ("--early", self.early.is_some()),
            ("--gaussians", self.gaussians.is_some()),
            ("--prior", self.prior.is_some()),
            ("--tv", self.tv.is_some()),
            ("--photons", self.photons.is_some()),
            ("--hold-back-rays", self.hold_back_rays.is_some()),
            ("--seed", self.seed.is_some()),
            ("--experiment", !self.experiment.is_empty()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    /// What was given over the defaults.
    fn settings(&self) -> OptimiseSettings {
        let mut settings = OptimiseSettings::default();
        settings.prior = self.prior.map_or(settings.prior, |weight| weight as f32);
        settings.tv_mm = self.tv.map_or(settings.tv_mm, |mm| mm as f32);
        settings.data.photons = self.photons.unwrap_or(settings.data.photons);
        settings.hold_back_one_in = self.hold_back_rays.map_or(settings.hold_back_one_in, |n| n as usize);
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings
    }
}

/// `VIEWS:ITERATIONS`.
fn early_start(text: &str) -> Result<EarlyStart, String> {
    let count = |text: &str| text.parse().ok().filter(|count| *count > 0);
    match text.split_once(':').map(|(views, iterations)| (count(views), count(iterations))) {
        Some((Some(views), Some(iterations))) => Ok(EarlyStart { views, iterations }),
        _ => Err("must be two numbers above 0, VIEWS:ITERATIONS, as 27:60".into()),
    }
}

/// Refuses an early start that leaves nothing for the whole scan.
fn check_early(early: EarlyStart, views: usize, iterations: usize) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure { message, code: exit::USAGE });
    if early.views >= views {
        return refuse(format!("--early {} views: must be below the scan's {views}", early.views));
    }
    if early.iterations >= iterations {
        return refuse(format!("--early {} iterations: must be below --iterations, {iterations}", early.iterations));
    }
    Ok(())
}

/// The representation that the arguments ask for, and how it is optimised.
fn chosen(arguments: &Arguments, grid: &VolumeGrid) -> Result<(OptimiseSettings, optimise::Method), Failure> {
    let options = &arguments.optimised;
    let mut settings = options.settings();
    let mut method = if arguments.method == Method::Field {
        optimise::Method::Field(FieldPlan::for_grid(grid, settings.seed))
    } else {
        let number = options.gaussians.map(|n| n as usize);
        optimise::Method::Gaussians(GaussianPlan::for_grid(grid, number, settings.seed))
    };
    let mut varied = Varied { settings: &mut settings, method: &mut method, grid };
    options.experiment.iter().try_for_each(|text| varied.apply(text))?;
    Ok((settings, method))
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
    let scale = WorkingScale::of(job.scan);
    let (geometry, grid) = (scale.geometry(&job.scan.geometry), scale.grid(&job.grid));
    let (mut settings, method) = chosen(arguments, &grid)?;
    settings.augment = arguments.slice_fixer.settings()?;
    let asked = arguments.slice_fixer.asked(job)?;
    let iterations = arguments.iterations.map_or(optimise::USUAL_ITERATIONS, |n| n as usize);
    let deadline = match options.deadline {
        Some(seconds) if !(seconds > 0.0 && seconds < 1e6) => {
            return Err(Failure {
                message: format!("--deadline {seconds}: must be above 0 and below 1e6 seconds"),
                code: exit::USAGE,
            });
        }
        seconds => seconds.map(Duration::from_secs_f64),
    };
    let before = options.early.map_or(0, |early| early.iterations);
    if let Some(early) = options.early {
        check_early(early, geometry.views.len(), if deadline.is_some() { usize::MAX } else { iterations })?;
    }
    let recipe = Recipe::new(&geometry, &grid, &settings, method).map_err(failure)?;
    let planner = job.device.planner().map_err(|error| failure(error.into()))?;
    let scratch_bytes = recipe.scratch_bytes(&*planner);
    drop(planner);
    memory::check(&job.device, &recipe.buffers(), scratch_bytes, &grid, "use a smaller --size or fewer --gaussians")?;
    let mut buffers = recipe.buffers();
    let ready = job.device.ready(|compute| -> Result<_, Failure> {
        recipe.prepare(compute).map_err(failure)?;
        let optimiser = recipe.optimiser(compute).map_err(refused)?;
        let slices = asked.as_ref().map(|(manifest, options)| SliceBuffers::take(compute, manifest, options));
        Ok((optimiser, slices.transpose().map_err(repair::failure)?))
    });
    let (compute, (mut optimiser, slices)) = ready?;
    let compute = &*compute;
    let fixing_facts = match asked.zip(slices) {
        Some((asked, slices)) => {
            let (fixing, facts) = arguments.slice_fixer.load(job, asked, compute, slices)?;
            buffers.push(("SliceFixer's slices", fixing.buffer_bytes()));
            optimiser.repair_with(Box::new(fixing));
            Some(facts)
        }
        None => None,
    };
    let plan_s = begin.elapsed().as_secs_f64();

    let title = arguments.method.title();
    job.tracer.work_at(1.0 / scale.factor());
    job.tracer.begin(title, "iterations", iterations);
    let budget = deadline.map_or(Budget::Iterations(iterations - before), |deadline| Budget::Deadline {
        at: begin + deadline,
        // The last volume, and its way to the disk.
        reserve: Duration::from_millis(500).min(deadline / 10),
        most: 100_000,
    });
    let line_integrals = job.line_integrals();
    let present = options.early.map(|early| early.present(geometry.views.len()));
    let first = ScanViews { present: present.as_deref(), ..ScanViews::whole(line_integrals) };
    optimiser.load_views(compute, &first).map_err(failure)?;
    let tracer = &mut job.tracer;
    let outcome = compute
        .install(|| {
            optimiser.begin(compute, None, tracer)?;
            if before > 0 {
                optimiser.start_early(compute, before, tracer)?;
                optimiser.load(compute, line_integrals)?;
            }
            optimiser.go_on(compute, before, budget, tracer)
        })
        .map_err(refused)?;
    let reconstruct_s = job.tracer.method_s();
    job.tracer.end();
    let elements = optimiser.representation().elements();
    let mut warnings: Vec<String> = outcome.iterative().warning().into_iter().collect();
    let repairs = fixing_facts.zip(settings.augment).zip(optimiser.repairs().copied());
    let repairs = repairs.map(|((facts, augment), repairs)| {
        let (facts, warning) = slice_fixer::outcome(facts, &augment, &repairs);
        warnings.extend(warning);
        (facts, repairs)
    });
    for warning in &warnings {
        eprintln!("diffnr: warning: {warning}");
    }
    let facts = json!({
        "iterations": outcome.iterations,
        "iterations_planned": outcome.planned,
        "early_views": options.early.map(|early| early.views),
        "early_iterations": options.early.map(|early| early.iterations),
        "stopped": outcome.stopped,
        "residual": outcome.residual,
        "unexplained": outcome.iterative().unexplained(),
        "held_back_residual": outcome.held_back_residual,
        "elements": elements,
        "prior": settings.prior,
        "tv_mm": settings.tv_mm,
        "photons": settings.data.photons.is_finite().then_some(settings.data.photons),
        "seed": settings.seed,
        "working_scale": scale.factor(),
        "slice_fixer": repairs.as_ref().map(|(facts, _)| facts),
    });
    let summary = format!(
        "{} of {} iterations, {}, {elements} {}{}",
        outcome.iterations,
        outcome.planned,
        outcome.stopped.words(),
        optimiser.representation().unit(),
        repairs.map_or(String::new(), |(facts, repairs)| format!(
            ", {} repairs in {:.2} s by {} on {}",
            repairs.done,
            repairs.seconds,
            facts["model"].as_str().unwrap_or(""),
            facts["provider"].as_str().unwrap_or("")
        ))
    );
    let mut volume = optimiser.into_volume(compute).map_err(failure)?;
    scale.give_back(&mut volume);
    Ok(Reconstructed {
        device: compute.description(),
        plan_s,
        reconstruct_s,
        buffers,
        scratch_bytes,
        coverage: None,
        warnings,
        facts: if let Value::Object(facts) = facts { facts } else { serde_json::Map::new() },
        summary,
        volume,
    })
}
