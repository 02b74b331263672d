//! `--method fdk`.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Job, Reconstructed, failure, inputs, memory};
use crate::cli::Failure;
use crate::compute::Values;
use crate::compute::cpu::ramp_filter::Window;
use crate::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings, Observer, Progress};

/// Options of FDK.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "FDK")]
pub(super) struct Options {
    /// Window of the ramp filter and its cut-off, a share of the highest frequency: ram-lak, shepp-logan, cosine, hamming or hann, e.g.
    /// hann:0.9 [default: ram-lak]
    #[arg(long, value_name = "NAME[:CUTOFF]", value_parser = inputs::window)]
    window: Option<(Window, f64)>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        self.window.map(|_| "--window")
    }
}

/// Reconstructs.
pub(super) fn run(job: &mut Job<'_>) -> Result<Reconstructed, Failure> {
    let begin = Instant::now();
    let (window, cutoff) = job.arguments.fdk.window.unwrap_or((Window::RamLak, 1.0));
    let settings = FdkSettings { window, cutoff, views_per_call: None };
    let plan = Arc::new(FdkPlan::without_scratch(&job.scan.geometry, &job.grid, settings).map_err(failure)?);
    let planner = job.device.planner().map_err(|error| failure(error.into()))?;
    let scratch_bytes = planner.scratch_bytes(&plan.workload());
    memory::check(&job.device, &plan.buffers(), scratch_bytes, &job.grid, "use a smaller --size")?;
    drop(planner);
    let ready = job.device.ready(|compute| {
        compute.prepare(&plan.workload())?;
        FdkAccumulator::new(compute, Arc::clone(&plan))
    });
    let (compute, mut accumulator) = ready.map_err(failure)?;
    let compute = &*compute;
    let plan_s = begin.elapsed().as_secs_f64();
    for warning in &plan.coverage().warnings {
        eprintln!("diffnr: warning: {warning}");
    }
    if !job.arguments.json {
        say!("{}", plan.coverage().summary());
    }

    job.tracer.begin("FDK", "views", job.scan.geometry.views.len());
    let group = plan.views_per_call();
    for (index, part) in job.line_integrals().chunks(group * plan.detector().pixels()).enumerate() {
        accumulator.add_views(compute, index * group, part).map_err(failure)?;
        job.tracer.at(accumulator.views_added());
    }
    compute.finish().map_err(|error| failure(error.into()))?;
    let reconstruct_s = job.tracer.method_s();
    let views = accumulator.views_added();
    // One point: the only volume there is.
    let wanted = job.tracer.wants_volume(views);
    let mut copy = vec![0.0; if wanted { compute.copy_len(job.grid.len()) } else { 0 }];
    let volume = wanted.then(|| compute.on_host(accumulator.volume(), &mut copy)).transpose();
    let volume = volume.map_err(|error| failure(error.into()))?.map(Values::Host);
    job.tracer.observe(&Progress { iteration: views, iterations: views, residual: f64::NAN, volume });
    job.tracer.end();

    let gups = (job.grid.len() * job.scan.geometry.views.len()) as f64 / reconstruct_s / 1e9;
    let facts = [
        ("window".to_owned(), json!({"name": window.name(), "cutoff": cutoff})),
        ("gups".to_owned(), Value::from(gups)),
    ];
    Ok(Reconstructed {
        volume: accumulator.into_volume(compute).map_err(failure)?,
        device: compute.description(),
        plan_s,
        reconstruct_s,
        buffers: plan.buffers(),
        scratch_bytes,
        coverage: Some(plan.coverage().clone()),
        warnings: plan.coverage().warnings.clone(),
        facts: facts.into_iter().collect(),
        summary: format!("{gups:.2} GUPS"),
    })
}
