//! `diffnr plan`.

use std::path::PathBuf;

use super::Failure;
use crate::config::{Settings, format_bytes};
use crate::daemon::{Rehearsed, rehearse_plan};
use crate::error::exit;
use crate::plan::{Place, Plan};

/// Arguments of `diffnr plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr plan --config gantry.toml
  DIFFNR_VOLUME__VOXELS='[256, 256, 256]' diffnr plan --config gantry.toml
  diffnr plan --config gantry.toml --json | jq .total_bytes
  diffnr plan --config gantry.toml --rehearse              # and what an optimisation and its repairs take on this machine

Ends with exit code 3 where the settings are refused, 5 where the geometry is, 6 where the plan exceeds memory.host_limit.")]
pub(super) struct Arguments {
    /// The settings file; examples/gantry.toml lists every key
    #[arg(long, value_name = "GANTRY.TOML")]
    config: PathBuf,
    /// Also time what is optimised and repaired, as the daemon does before it is ready: some seconds
    #[arg(long)]
    rehearse: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let settings = Settings::load(&arguments.config).map_err(|error| super::serve::config_failure(&error))?;
    let (device, _) = crate::daemon::device(&settings).map_err(|error| super::serve::daemon_failure(&error))?;
    let plan = Plan::of(&settings, &device).map_err(|error| super::serve::plan_failure(&error))?;
    let failed = |error: serde_json::Error| Failure::new(exit::FAILURE, &error);
    if !arguments.json {
        print_tables(&settings, &plan);
    }
    let limit = plan.check_limit().map_err(|error| super::serve::plan_failure(&error));
    let rehearsed = match arguments.rehearse && limit.is_ok() {
        true => rehearse_plan(&settings, &device, &plan).map_err(|error| super::serve::daemon_failure(&error))?,
        false => None,
    };
    if arguments.json {
        let mut report = serde_json::to_value(plan.report()).map_err(failed)?;
        if let Some(rehearsed) = &rehearsed {
            report["rehearsal"] = serde_json::to_value(rehearsed).map_err(failed)?;
        }
        say!("{}", serde_json::to_string_pretty(&report).map_err(failed)?);
    } else if let Some(rehearsed) = &rehearsed {
        print_rehearsal(rehearsed);
    }
    limit
}

fn print_rehearsal(found: &Rehearsed) {
    say!("\nREHEARSAL ON THIS MACHINE");
    say!("  to the first iteration  {:>9.3} s", found.before_s);
    say!("  an iteration            {:>9.3} s", found.iteration_s);
    if let Some(fixer) = &found.slice_fixer {
        say!(
            "  a repair                {:>9.3} s  {} slices by {} ({}) on {}",
            found.repair_s,
            fixer.slices,
            fixer.model,
            fixer.model_hash,
            fixer.provider
        );
        say!("  being held to it        {:>9.3} s  more an iteration", found.similarity_s);
        for refused in &fixer.refused {
            say!("  {:34}  not by {refused}", "");
        }
    }
    say!("  a volume                {:>9.3} s", found.volume_s);
    say!("  a run of {:<6} iterations {:>6.1} s", found.iterations, found.run_s);
    if found.slice_fixer.is_some() {
        let share = 100.0 * found.repair_share;
        say!("  of which {share:.1} % for repairs ({}) and what follows from them", found.repairs);
    }
    if found.iterations_with_early > 0 {
        let (early, all) = (found.early_iterations, found.iterations_with_early);
        say!("  after an early start of {early} iterations: {} more", all - early);
    }
}

fn print_tables(settings: &Settings, plan: &Plan) {
    say!("scan      {}", settings.geometry_origin);
    say!("coverage  {}", plan.fdk.coverage().summary());
    say!("carrier   {}", plan.carrier);
    for warning in &plan.warnings {
        say!("warning   {warning}");
    }
    say!("\nSCHEDULE");
    let width = plan.schedule.iter().map(|step| step.when.len()).max().unwrap_or(0);
    for step in &plan.schedule {
        say!("  {:width$}  {}", step.when, step.what);
        if !step.deadline.is_empty() {
            say!("  {:width$}  within {}", "", step.deadline);
        }
    }
    say!("\nDEGRADE LADDER");
    for rule in &plan.ladder {
        let rung = format!("{:?}", rule.rung);
        say!("  {rung:17}  enters: {}", rule.enters);
        if !rule.leaves.is_empty() {
            say!("  {:17}  leaves: {}", "", rule.leaves);
        }
    }
    say!("\nBUFFERS");
    let width = plan.buffers.iter().map(|buffer| buffer.name.len()).max().unwrap_or(0);
    for buffer in &plan.buffers {
        say!(
            "  {:width$}  {:>14}  {:>10}  {}",
            buffer.name,
            buffer.bytes,
            format_bytes(buffer.bytes),
            buffer.place.name()
        );
    }
    for place in [Place::Host, Place::Pinned, Place::Device, Place::Shared] {
        let bytes: u64 = plan.buffers.iter().filter(|b| b.place == place).map(|b| b.bytes).sum();
        if bytes > 0 {
            let total = format!("all {}", place.name());
            say!("  {total:width$}  {bytes:>14}  {:>10}", format_bytes(bytes));
        }
    }
    let share = 100.0 * plan.host_bytes() as f64 / plan.host_limit_bytes as f64;
    say!(
        "\n{} of memory.host_limit = {} ({share:.1} %)",
        format_bytes(plan.host_bytes()),
        format_bytes(plan.host_limit_bytes)
    );
}
