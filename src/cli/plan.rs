//! `diffnr plan`.

use std::path::PathBuf;

use super::Failure;
use crate::config::{Settings, format_bytes};
use crate::error::exit;
use crate::plan::{Place, Plan};

/// Arguments of `diffnr plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr plan --config gantry.toml
  DIFFNR_VOLUME__VOXELS='[256, 256, 256]' diffnr plan --config gantry.toml
  diffnr plan --config gantry.toml --json | jq .total_bytes

Ends with exit code 3 where the settings are refused, 5 where the geometry is, 6 where the plan exceeds memory.host_limit.")]
pub(super) struct Arguments {
    /// The settings file; examples/gantry.toml lists every key
    #[arg(long, value_name = "GANTRY.TOML")]
    config: PathBuf,
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
    let compute = crate::daemon::carrier(&settings).map_err(|error| super::serve::daemon_failure(&error))?;
    let plan = Plan::of(&settings, &compute).map_err(|error| super::serve::plan_failure(&error))?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&plan.report()).map_err(|error| Failure::new(exit::FAILURE, &error))?;
        say!("{text}");
    } else {
        print_tables(&settings, &plan);
    }
    plan.check_limit().map_err(|error| super::serve::plan_failure(&error))
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
        say!("  {rung:16}  enters: {}", rule.enters);
        if !rule.leaves.is_empty() {
            say!("  {:16}  leaves: {}", "", rule.leaves);
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
