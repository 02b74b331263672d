//! Whether an execution provider really runs on this machine: each is given one small graph. That a library has a provider compiled in says
//! nothing.

#![forbid(unsafe_code)]

use std::path::Path;

use ort::value::Tensor;

use super::RepairError;
use super::library::Library;
use super::providers::{Demand, Provider, Setting};
use super::session::through_the_chain;

/// `y = x w` for float32 `[8][8]` with `w` twice the identity (tests/data/repair/make.py).
const GRAPH: &[u8] = include_bytes!("probe.onnx");

const SIDE: usize = 8;

/// Has the provider multiply two small matrices.
///
/// # Errors
/// Why it does not: ONNX Runtime's words, or what was wrong with its result.
pub fn probe(library: &Library, provider: Provider) -> Result<(), String> {
    run(library, provider).map_err(|error| match error {
        RepairError::Demanded { reason, .. } | RepairError::Graph { reason, .. } | RepairError::Run { reason } => {
            reason
        }
        other => other.to_string(),
    })
}

fn run(library: &Library, provider: Provider) -> Result<(), RepairError> {
    let setting = Setting {
        model_sha256: [0; 32],
        cache_folder: None,
        profiles: None,
        channels: 1,
        context: [1, SIDE],
        device: 0,
    };
    let (mut session, _) =
        through_the_chain(library, 1, Demand::Only(provider), Path::new("probe.onnx"), GRAPH, &setting)?;
    let failed = |error: ort::Error| RepairError::run(&error);
    // Whole numbers, exact even in half precision.
    let given: Vec<f32> = (0..SIDE * SIDE).map(|n| n as f32 - 20.0).collect();
    let x = Tensor::from_array(([SIDE, SIDE], given.clone())).map_err(failed)?;
    let outputs = session.run(ort::inputs!["x" => x]).map_err(failed)?;
    let (_, found) = outputs["y"].try_extract_tensor::<f32>().map_err(failed)?;
    let wrong = given.iter().zip(found).find(|(x, y)| **y != 2.0 * **x);
    match wrong {
        None if found.len() == given.len() => Ok(()),
        None => Err(RepairError::Run { reason: format!("it gave {} values in place of {}", found.len(), given.len()) }),
        Some((x, y)) => Err(RepairError::Run { reason: format!("it computed 2 * {x} as {y}") }),
    }
}
