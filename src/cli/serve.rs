//! `diffnr serve`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::Failure;
use crate::config::{ConfigError, Settings};
use crate::daemon::{Daemon, DaemonError};
use crate::error::exit;
use crate::plan::{Plan, PlanError};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::optimise::OptimiseError;
use crate::repair::RepairError;
use crate::supervise::{self, StatusReport};

/// Arguments of `diffnr serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr serve --config gantry.toml
  diffnr serve --config gantry.toml --once --json        # one scan, then the counters as JSON
  DIFFNR_SHARED_MEMORY__NAME=room2 diffnr serve --config gantry.toml

SIGTERM or SIGINT takes what is still in the ring (supervise.grace_ms at most), publishes what there is, and ends with exit code 0;
a second signal ends at once with 128 + its number. The segments stay, so that readers keep the last volume; --remove removes them.
Exit codes: 3 settings, 4 calibration files, 5 geometry, 6 memory limit, 7 shared memory, 8 device.")]
pub(super) struct Arguments {
    /// The settings file; examples/gantry.toml lists every key
    #[arg(long, value_name = "GANTRY.TOML")]
    config: PathBuf,
    /// End after the first scan (and its optimisation, where one follows)
    #[arg(long)]
    once: bool,
    /// At the end, print the status report as JSON
    #[arg(long)]
    json: bool,
    /// At the end, remove the shared-memory segments
    #[arg(long)]
    remove: bool,
}

/// The exit code of refused settings.
pub(super) fn config_failure(error: &ConfigError) -> Failure {
    let code = match error {
        ConfigError::Geometry(_) => exit::GEOMETRY,
        _ => exit::CONFIG,
    };
    Failure::new(code, error)
}

fn reconstruct_code(error: &ReconstructError) -> u8 {
    match error {
        ReconstructError::Geometry(_) => exit::GEOMETRY,
        ReconstructError::Compute(_) => exit::DEVICE,
        ReconstructError::Setting { .. } => exit::CONFIG,
        ReconstructError::Memory { .. } => exit::BUDGET,
        _ => exit::FAILURE,
    }
}

fn repair_code(error: &RepairError) -> u8 {
    match error {
        // What it was given stands in the settings.
        RepairError::Input { .. } => exit::CONFIG,
        _ => super::repair::code(error),
    }
}

/// The exit code of a refused plan.
pub(super) fn plan_failure(error: &PlanError) -> Failure {
    let code = match error {
        PlanError::OverLimit { .. } => exit::BUDGET,
        PlanError::Reconstruct(error) | PlanError::Optimise(OptimiseError::Reconstruct(error)) => {
            reconstruct_code(error)
        }
        PlanError::Optimise(OptimiseError::Represent(_)) => exit::CONFIG,
        PlanError::Compute(_) => exit::DEVICE,
        PlanError::Repair(error) => repair_code(error),
    };
    Failure::new(code, error)
}

/// The exit code of a daemon that did not start, or ended.
pub(super) fn daemon_failure(error: &DaemonError) -> Failure {
    let code = match error {
        DaemonError::Plan(error) => return plan_failure(error),
        DaemonError::Mapping(_) => exit::SHARED_MEMORY,
        DaemonError::Compute(_) => exit::DEVICE,
        DaemonError::Calibration(_) | DaemonError::Preprocess(_) => exit::INPUT,
        DaemonError::Reconstruct(error) | DaemonError::Optimise(OptimiseError::Reconstruct(error)) => {
            reconstruct_code(error)
        }
        DaemonError::Optimise(OptimiseError::Represent(_)) | DaemonError::Deadline { .. } => exit::CONFIG,
        DaemonError::Repair(error) => repair_code(error),
        DaemonError::Thread { .. } => exit::FAILURE,
    };
    Failure::new(code, error)
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let settings = Settings::load(&arguments.config).map_err(|error| config_failure(&error))?;
    supervise::start_log(&settings.supervise);
    let stop = stop_on_signals()?;
    let (device, told) = crate::daemon::device(&settings).map_err(|error| daemon_failure(&error))?;
    if let Some(told) = told {
        tracing::info!("{told}");
    }
    let plan = Plan::of(&settings, &device).map_err(|error| plan_failure(&error))?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let daemon = Daemon::start(&settings, &device, plan).map_err(|error| daemon_failure(&error))?;
    tracing::info!("{}", daemon.banner());

    let every = Duration::from_millis(settings.supervise.status_every_ms);
    let mut written = Instant::now();
    let mut failed_to_write = false;
    let mut write = |report: &StatusReport| {
        let Some(file) = &settings.supervise.status_file else { return };
        let outcome = serde_json::to_string(report)
            .map_err(std::io::Error::other)
            .and_then(|text| supervise::write_atomically(file, &text));
        // Said once, not five times a second: the daemon goes on without.
        if let Err(error) = &outcome
            && !failed_to_write
        {
            tracing::error!("supervise.status_file {}: {error}", file.display());
        }
        failed_to_write = outcome.is_err();
    };
    write(&daemon.supervise());
    while !stop.load(Ordering::Acquire) && !daemon.has_ended() {
        let scan_ended = daemon.has_ended_a_scan();
        let report = daemon.supervise();
        if written.elapsed() >= every {
            write(&report);
            written = Instant::now();
        }
        if arguments.once && scan_ended {
            break;
        }
        std::thread::sleep(every.min(Duration::from_millis(20)));
    }
    let outcome = daemon.finish();
    if arguments.remove
        && let Err(error) = firmware_bridge::mapping::unlink(&settings.shared_memory.name)
    {
        tracing::error!("{error}");
    }
    let report = outcome.map_err(|error| daemon_failure(&error))?;
    write(&report);
    tracing::info!(
        "stopped: {} scans, {} views, {} volumes; frame to volume p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        report.reconstruct.scans,
        report.reconstruct.views,
        report.volumes_published,
        report.preview_latency.p50_ms,
        report.preview_latency.p99_ms,
        report.preview_latency.max_ms
    );
    if arguments.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::new(exit::FAILURE, &error))?;
        say!("{text}");
    }
    Ok(())
}

/// A flag that the first SIGTERM or SIGINT sets; the second ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal finds the flag unset and only sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::new(exit::FAILURE, &error))?;
    }
    Ok(stop)
}
