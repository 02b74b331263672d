//! `--method os-sart` and `--method asd-pocs`.

use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::{Arguments, Job, Reconstructed, failure, memory};
use crate::cli::Failure;
use crate::geometry::Coverage;
use crate::reconstruct::{
    AsdPocs, AsdPocsPlan, AsdPocsSettings, Epsilon, OsSart, OsSartPlan, OsSartSettings, Outcome, PixelWeights,
    StopRules,
};

/// How pixels count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weights {
    /// All alike
    Uniform,
    /// By the number of photons, exp(-p): the inverse of the variance
    Photons,
    /// By its root: a compromise between noise and speed
    RootPhotons,
}

impl Weights {
    fn pixel_weights(self) -> PixelWeights {
        match self {
            Self::Uniform => PixelWeights::Uniform,
            Self::Photons => PixelWeights::Photons { power: 1.0 },
            Self::RootPhotons => PixelWeights::Photons { power: 0.5 },
        }
    }
}

/// Options of the classical iterative methods.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "os-sart, asd-pocs")]
pub(super) struct Options {
    /// Views of an ordered subset [default: a 36th of all, at least 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    subset_views: Option<u32>,
    /// Relaxation of the first sweep, in (0, 2) [default: 1]
    #[arg(long, value_name = "LAMBDA")]
    relaxation: Option<f64>,
    /// Factor of the relaxation from sweep to sweep, in (0, 1] [default: see the method's documentation]
    #[arg(long, value_name = "FACTOR")]
    relaxation_factor: Option<f64>,
    /// How much a pixel counts [default: uniform]
    #[arg(long, value_enum, value_name = "WEIGHTS")]
    weights: Option<Weights>,
    /// Let values go below zero
    #[arg(long)]
    allow_negative: bool,
    /// Stop once the residual's root mean square (of line integrals, dimensionless) is down to this
    #[arg(long, value_name = "RMS")]
    stop_residual: Option<f64>,
    /// Stop once a sweep changes the volume by less than this share of its norm
    #[arg(long, value_name = "SHARE")]
    stop_change: Option<f64>,
    /// Hold back N views and stop when their residual grows
    #[arg(long, value_name = "N")]
    hold_back: Option<u32>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        [
            ("--subset-views", self.subset_views.is_some()),
            ("--relaxation", self.relaxation.is_some()),
            ("--relaxation-factor", self.relaxation_factor.is_some()),
            ("--weights", self.weights.is_some()),
            ("--allow-negative", self.allow_negative),
            ("--stop-residual", self.stop_residual.is_some()),
            ("--stop-change", self.stop_change.is_some()),
            ("--hold-back", self.hold_back.is_some()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    /// The settings of OS-SART: what was given over `default`.
    fn os_sart(arguments: &Arguments, default: OsSartSettings) -> OsSartSettings {
        let options = &arguments.iterative;
        OsSartSettings {
            subset_views: options.subset_views.map_or(default.subset_views, |n| Some(n as usize)),
            relaxation: options.relaxation.unwrap_or(default.relaxation),
            relaxation_factor: options.relaxation_factor.unwrap_or(default.relaxation_factor),
            weights: options.weights.map_or(default.weights, Weights::pixel_weights),
            non_negative: !options.allow_negative,
            stop: StopRules {
                iterations: arguments.iterations.map_or(default.stop.iterations, |n| n as usize),
                residual: options.stop_residual.or(default.stop.residual),
                change: options.stop_change.or(default.stop.change),
                held_back_views: options.hold_back.map_or(default.stop.held_back_views, |n| n as usize),
            },
        }
    }
}

/// Options of ASD-POCS.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "asd-pocs")]
pub(super) struct AsdPocsOptions {
    /// Steps of the descent of total variation in each iteration [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tv_steps: Option<u32>,
    /// Length of a descent step over that of the first sweep [default: 0.002]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Factor of the step's length where the descent goes too far [default: 0.95]
    #[arg(long, value_name = "FACTOR")]
    alpha_factor: Option<f64>,
    /// Largest share of the data step that the descent may undo [default: 0.95]
    #[arg(long, value_name = "SHARE")]
    r_max: Option<f64>,
    /// Residual (root mean square) at which the data count as met [default: 0.8 times the noise estimated]
    #[arg(long, value_name = "RMS")]
    epsilon: Option<f64>,
}

impl AsdPocsOptions {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        [
            ("--tv-steps", self.tv_steps.is_some()),
            ("--alpha", self.alpha.is_some()),
            ("--alpha-factor", self.alpha_factor.is_some()),
            ("--r-max", self.r_max.is_some()),
            ("--epsilon", self.epsilon.is_some()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    fn settings(&self, arguments: &Arguments) -> AsdPocsSettings {
        let default = AsdPocsSettings::default();
        AsdPocsSettings {
            sart: Options::os_sart(arguments, default.sart),
            tv_steps: self.tv_steps.map_or(default.tv_steps, |n| n as usize),
            alpha: self.alpha.unwrap_or(default.alpha),
            alpha_factor: self.alpha_factor.unwrap_or(default.alpha_factor),
            r_max: self.r_max.unwrap_or(default.r_max),
            epsilon: self.epsilon.map_or(default.epsilon, Epsilon::Rms),
            tv_epsilon: default.tv_epsilon,
        }
    }
}

/// Reconstructs by OS-SART.
pub(super) fn run_os_sart(job: &mut Job<'_>) -> Result<Reconstructed, Failure> {
    let begin = Instant::now();
    let settings = Options::os_sart(job.arguments, OsSartSettings::default());
    let plan = OsSartPlan::without_scratch(&job.scan.geometry, &job.grid, settings).map_err(failure)?;
    let planner = job.device.planner().map_err(|error| failure(error.into()))?;
    let scratch_bytes = planner.scratch_bytes(&plan.workload());
    memory::check(
        &job.device,
        &plan.buffers(),
        scratch_bytes,
        &job.grid,
        "use a smaller --size or more --subset-views",
    )?;
    drop(planner);
    let plan = Arc::new(plan);
    let ready = job.device.ready(|compute| {
        compute.prepare(&plan.workload())?;
        OsSart::new(Arc::clone(&plan), compute, job.line_integrals())
    });
    let (compute, mut sart) = ready.map_err(failure)?;
    let compute = &*compute;
    let plan_s = begin.elapsed().as_secs_f64();

    let tracer = &mut job.tracer;
    tracer.begin("OS-SART", "sweeps", settings.stop.iterations);
    let outcome = compute.install(|| sart.run(compute, tracer)).map_err(failure)?;
    tracer.end();
    let facts = sart_facts(&plan);
    Ok(finish(
        job,
        outcome,
        facts,
        plan_s,
        plan.buffers(),
        scratch_bytes,
        (sart.into_volume(compute).map_err(failure)?, compute.description()),
    ))
}

/// Reconstructs by ASD-POCS.
pub(super) fn run_asd_pocs(job: &mut Job<'_>) -> Result<Reconstructed, Failure> {
    let begin = Instant::now();
    let settings = job.arguments.asd_pocs.settings(job.arguments);
    let plan = AsdPocsPlan::without_scratch(&job.scan.geometry, &job.grid, settings).map_err(failure)?;
    let planner = job.device.planner().map_err(|error| failure(error.into()))?;
    let scratch_bytes = planner.scratch_bytes(&plan.workload());
    memory::check(
        &job.device,
        &plan.buffers(),
        scratch_bytes,
        &job.grid,
        "use a smaller --size or more --subset-views",
    )?;
    drop(planner);
    let plan = Arc::new(plan);
    let ready = job.device.ready(|compute| {
        compute.prepare(&plan.workload())?;
        AsdPocs::new(Arc::clone(&plan), compute, job.line_integrals())
    });
    let (compute, mut method) = ready.map_err(failure)?;
    let compute = &*compute;
    let plan_s = begin.elapsed().as_secs_f64();

    let tracer = &mut job.tracer;
    tracer.begin("ASD-POCS", "iterations", settings.sart.stop.iterations);
    let outcome = compute.install(|| method.run(compute, tracer)).map_err(failure)?;
    tracer.end();
    let mut facts = sart_facts(plan.sart());
    facts.insert("tv_steps".into(), settings.tv_steps.into());
    facts.insert("alpha".into(), settings.alpha.into());
    facts.insert("alpha_factor".into(), settings.alpha_factor.into());
    facts.insert("r_max".into(), settings.r_max.into());
    facts.insert("epsilon".into(), method.epsilon().into());
    facts.insert("noise".into(), json!(method.noise()));
    Ok(finish(
        job,
        outcome,
        facts,
        plan_s,
        plan.buffers(),
        scratch_bytes,
        (method.into_volume(compute).map_err(failure)?, compute.description()),
    ))
}

/// What there is to know of the data step.
fn sart_facts(plan: &OsSartPlan) -> Map<String, Value> {
    let settings = plan.settings();
    let facts = json!({
        "subsets": plan.subsets().len(),
        "views_per_subset": plan.subsets().iter().map(Vec::len).max(),
        "held_back_views": plan.held_back(),
        "relaxation": settings.relaxation,
        "relaxation_factor": settings.relaxation_factor,
        "weights": format!("{:?}", settings.weights),
        "non_negative": settings.non_negative,
    });
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}

/// What both methods report.
fn finish(
    job: &Job<'_>,
    outcome: Outcome,
    mut facts: Map<String, Value>,
    plan_s: f64,
    buffers: Vec<(&'static str, usize)>,
    scratch_bytes: usize,
    (volume, device): (Vec<f32>, String),
) -> Reconstructed {
    let reconstruct_s = job.tracer.method_s();
    // What FDK would say of the scan: its coverage, or why it would refuse.
    let coverage = Coverage::analyse(&job.scan.geometry, &job.grid);
    let mut warnings: Vec<String> = outcome.warning().into_iter().collect();
    match &coverage {
        Ok(coverage) => warnings.extend(coverage.warnings.iter().cloned()),
        Err(error) => warnings.push(format!("incomplete data, parts of the volume may not be determined: {error}")),
    }
    for warning in &warnings {
        eprintln!("diffnr: warning: {warning}");
    }
    facts.insert("iterations".into(), outcome.iterations.into());
    facts.insert("stopped".into(), json!(outcome.stopped));
    facts.insert("residual".into(), outcome.residual.into());
    facts.insert("residual_of_nothing".into(), outcome.residual_of_nothing.into());
    facts.insert("held_back_residual".into(), json!(outcome.held_back_residual));
    Reconstructed {
        device,
        volume,
        plan_s,
        reconstruct_s,
        buffers,
        scratch_bytes,
        coverage: coverage.ok(),
        warnings,
        summary: format!(
            "{} iterations: {}; residual {:.5}",
            outcome.iterations,
            outcome.stopped.words(),
            outcome.residual
        ),
        facts,
    }
}
