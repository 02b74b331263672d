//! `diffnr doctor`: what this machine can run, and what to install or set for more.

mod checks;
mod machine;

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Failure;
use crate::config::Settings;
use crate::error::exit;
use crate::plan::Plan;

/// Arguments of `diffnr doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr doctor
  diffnr doctor --config gantry.toml                      # does this plan fit this machine?
  diffnr doctor --slice-fixer trained --onnxruntime /opt/onnxruntime/capi
  diffnr doctor --json | jq .checks.slice_fixer.state
  diffnr doctor --json | jq -e '.checks.provider_tensorrt.state == \"good\"'

  \u{2714} is there and works, - could be had (\"for more\" says how), \u{2718} stands in the way of the main job: frames in through shared
  memory, volumes out. GPUs are held against the CPU by small reconstructions, execution providers
  each given a small graph to run; the model is loaded and run on the CPU.
Exit codes: 0 the main job can be done here, with SliceFixer or without; 3 settings, 5 their geometry; 6 the plan needs more memory than there is;
7 shared memory cannot be used, or is too small for the plan.")]
pub(super) struct Arguments {
    /// Settings whose plan is held against this machine's memory and shared memory
    #[arg(long, value_name = "GANTRY.TOML")]
    config: Option<PathBuf>,
    /// SliceFixer's model: shipped, or a model's folder
    #[arg(long, value_name = "MODEL", default_value = "shipped")]
    slice_fixer: PathBuf,
    /// ONNX Runtime: the library or its folder [default: DIFFNR_ONNXRUNTIME, then .onnxruntime here or beside the program]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There, and it works.
    Good,
    /// Could be had; the main job is done without.
    Missing,
    /// In the way of the main job.
    Bad,
}

impl State {
    fn mark(self) -> char {
        match self {
            Self::Good => '\u{2714}',
            Self::Missing => '-',
            Self::Bad => '\u{2718}',
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Missing => "missing",
            Self::Bad => "bad",
        }
    }
}

/// What was found of one thing.
#[derive(Debug)]
struct Check {
    /// Its name in JSON.
    key: &'static str,
    label: &'static str,
    state: State,
    /// What is there, or why it is not.
    found: String,
    /// What to install or set.
    more: Option<String>,
    /// Figures, for JSON.
    facts: Value,
}

impl Check {
    fn new(key: &'static str, label: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { key, label, state, found: found.into(), more: None, facts: json!({}) }
    }

    fn good(key: &'static str, label: &'static str, found: impl Into<String>) -> Self {
        Self::new(key, label, State::Good, found)
    }

    fn more(self, more: impl Into<String>) -> Self {
        Self { more: Some(more.into()), ..self }
    }

    fn facts(self, facts: Value) -> Self {
        Self { facts, ..self }
    }

    fn json(&self) -> Value {
        let mut object = json!({"state": self.state.name(), "found": self.found, "more": self.more});
        if let (Some(object), Some(facts)) = (object.as_object_mut(), self.facts.as_object()) {
            object.extend(facts.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        object
    }
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let need = arguments.config.as_deref().map(need).transpose()?;
    let (mut checks, memory_bytes, shared_bytes) = checks::of_machine();
    checks.extend(checks::of_slice_fixer(&arguments.slice_fixer, arguments.onnxruntime.as_deref()));
    if let Some(need) = &need {
        checks.push(checks::of_plan(need, memory_bytes, shared_bytes));
    }
    let in_the_way: Vec<&Check> = checks.iter().filter(|check| check.state == State::Bad).collect();
    let summary = summary(&checks, &in_the_way);
    if arguments.json {
        let by_key: Map<String, Value> = checks.iter().map(|check| (check.key.to_string(), check.json())).collect();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": in_the_way.is_empty(),
            "summary": summary,
            "checks": by_key,
        });
        say!("{report:#}");
    } else {
        let width = checks.iter().map(|check| check.label.len()).max().unwrap_or(0);
        for check in &checks {
            say!("{} {:width$}  {}", check.state.mark(), check.label, check.found);
            if let Some(more) = &check.more {
                say!("  {:width$}  for more: {more}", "");
            }
        }
        say!("\n{summary}");
    }
    match in_the_way.first() {
        None => Ok(()),
        Some(check) => Err(Failure {
            message: format!("{}: {}", check.label, check.found),
            code: if check.key == "plan" && check.facts["fits_memory"] == false {
                exit::BUDGET
            } else {
                exit::SHARED_MEMORY
            },
        }),
    }
}

fn summary(checks: &[Check], in_the_way: &[&Check]) -> String {
    if !in_the_way.is_empty() {
        let names: Vec<&str> = in_the_way.iter().map(|check| check.label).collect();
        return format!("The main job cannot be done here: {}.", names.join(", "));
    }
    let repaired = checks.iter().any(|check| check.key == "slice_fixer" && check.state == State::Good);
    let fixer = if repaired { "with SliceFixer" } else { "without SliceFixer" };
    format!("The main job can be done here, {fixer}: frames in through shared memory, volumes out.")
}

/// What a plan takes.
#[derive(Debug)]
struct Need {
    /// All but device memory, shared memory included.
    host_bytes: u64,
    shared_bytes: u64,
}

fn need(config: &std::path::Path) -> Result<Need, Failure> {
    let settings = Settings::load(config).map_err(|error| super::serve::config_failure(&error))?;
    let (device, _) = crate::daemon::device(&settings).map_err(|error| super::serve::daemon_failure(&error))?;
    let plan = Plan::of(&settings, &device).map_err(|error| super::serve::plan_failure(&error))?;
    let shared = plan.buffers.iter().filter(|buffer| buffer.place == crate::plan::Place::Shared);
    Ok(Need { host_bytes: plan.host_bytes(), shared_bytes: shared.map(|buffer| buffer.bytes).sum() })
}
