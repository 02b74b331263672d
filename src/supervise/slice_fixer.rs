//! What the repairs tell of themselves.

use serde::Serialize;

use crate::reconstruct::optimise::NotRepaired;

/// Counters of all runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RepairCounters {
    /// Volumes repaired.
    pub done: u64,
    /// Repairs that did not come to their end in time.
    pub late: u64,
    /// Repairs whose output was no number, or far outside the model's window.
    pub bad_output: u64,
    /// Repairs that failed in another way.
    pub failed: u64,
    /// Repairs that the end of their run ended.
    pub interrupted: u64,
    /// Time in repairs, total ns.
    pub repair_ns: u64,
    /// Longest repair, ns.
    pub max_repair_ns: u64,
}

/// Repairs of the run that is under way, or was last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RunRepairs {
    /// Planned.
    pub planned: u32,
    /// Done: the run is held to them.
    pub done: u32,
    /// Given up: the run goes on without them.
    pub failed: u32,
    /// Time in both, ns.
    pub ns: u64,
}

/// All that is told of the model and its repairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceFixerTelemetry {
    /// The model's name.
    pub model: String,
    /// The first 12 digits of the SHA-256 of its repairing graph; headers have all of it.
    pub model_hash: String,
    /// Who really got the graph's nodes.
    pub provider: String,
    /// Providers that were asked before, with the reason why they do not run it.
    pub refused: Vec<String>,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// What the model is told of the body.
    pub anatomy: String,
    /// Slices of a repair.
    pub slices: usize,
    /// What a repair was found to take before ready, s.
    pub repair_s: f64,
    /// A repair that takes longer is late, s.
    pub deadline_s: f64,
    /// The present run's repairs.
    pub run: RunRepairs,
    /// Those of all runs.
    pub counters: RepairCounters,
}

impl SliceFixerTelemetry {
    /// A repair has ended.
    pub fn count(&mut self, outcome: Result<(), NotRepaired>, ns: u64) {
        let (run, counters) = (&mut self.run, &mut self.counters);
        (run.ns, counters.repair_ns) = (run.ns + ns, counters.repair_ns + ns);
        counters.max_repair_ns = counters.max_repair_ns.max(ns);
        let counter = match outcome {
            Ok(()) => &mut counters.done,
            Err(NotRepaired::Late) => &mut counters.late,
            Err(NotRepaired::Output) => &mut counters.bad_output,
            Err(NotRepaired::Session) => &mut counters.failed,
            Err(NotRepaired::Interrupted) => &mut counters.interrupted,
        };
        *counter += 1;
        match outcome {
            Ok(()) => run.done += 1,
            // The run ends with it.
            Err(NotRepaired::Interrupted) => {}
            Err(_) => run.failed += 1,
        }
    }
}
