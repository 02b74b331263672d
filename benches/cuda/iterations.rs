//! Whole iterations of an optimisation, started as one (a CUDA graph) and operation by operation.

use std::time::Instant;

use diffnr::compute::cuda::CudaCompute;
use diffnr::reconstruct::Unobserved;
use diffnr::reconstruct::optimise::{Budget, Method, OptimiseSettings, Optimiser, Recipe};
use diffnr::represent::field::FieldPlan;
use diffnr::represent::gaussians::GaussianPlan;
use serde_json::{Value, json};

use crate::measure::Settings;
use crate::views::{grid, scan};

/// Rounds of which the median is told, one way and the other in turn.
const ROUNDS: usize = 5;

/// What is optimised.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    /// R2-Gaussian's 50,000.
    FewGaussians,
    /// As many as the volume usually gets.
    Gaussians,
    Field,
}

pub(crate) fn measure(settings: &Settings, of: Of, views_per_iteration: usize) -> Result<Value, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (views, pixels, voxels, gaussians, iterations) = settings.size((50, 512, 256, 50_000, 40), (4, 24, 16, 200, 4));
    let (geometry, grid) = (scan(views, pixels), grid(voxels));
    let (name, method) = match of {
        Of::FewGaussians => {
            ("gaussians, R2-Gaussian's number", Method::Gaussians(GaussianPlan::for_grid(&grid, Some(gaussians), 1)))
        }
        Of::Gaussians => ("gaussians, the usual number", Method::Gaussians(GaussianPlan::for_grid(&grid, None, 1))),
        Of::Field => ("field", Method::Field(FieldPlan::for_grid(&grid, 1))),
    };
    let optimise = OptimiseSettings { views_per_iteration, ..OptimiseSettings::default() };
    let recipe = Recipe::new(&geometry, &grid, &optimise, method).map_err(|error| text(&error))?;
    let adviser = settings.adviser().map_err(|error| text(&error))?;
    let bytes: usize = recipe.buffers().iter().map(|(_, bytes)| bytes).sum();
    let scratch = recipe.scratch_bytes(&adviser);
    let mut compute = settings.carrier(bytes / size_of::<f32>(), scratch).map_err(|error| text(&error))?;
    recipe.prepare(&mut compute).map_err(|error| text(&error))?;
    let mut optimiser = recipe.optimiser(&compute).map_err(|error| text(&error))?;
    // A ball of water: Gaussians are drawn from where something is.
    let middle = (pixels as f32 - 1.0) / 2.0;
    let chord = |pixel: usize| {
        let (v, u) = ((pixel / pixels % pixels) as f32 - middle, (pixel % pixels) as f32 - middle);
        0.04 * 160.0 * (1.0 - (u * u + v * v) / (0.45 * pixels as f32).powi(2)).max(0.0).sqrt()
    };
    let line_integrals: Vec<f32> = (0..geometry.projection_len()).map(chord).collect();
    optimiser.load(&compute, &line_integrals).map_err(|error| text(&error))?;
    optimiser.begin(&compute, None, &Unobserved).map_err(|error| text(&error))?;
    // Twice round all views each, so that every sequence is known.
    let count = iterations.max(2 * views.div_ceil(views_per_iteration));
    let (mut as_one, mut singly) = (Vec::new(), Vec::new());
    let before = compute.groups();
    for _ in 0..=ROUNDS {
        compute.launch_singly(false);
        as_one.push(seconds(&mut optimiser, &compute, count)?);
        compute.launch_singly(true);
        singly.push(seconds(&mut optimiser, &compute, count)?);
    }
    let (as_one, singly) = (median(&mut as_one), median(&mut singly));
    let groups = compute.groups();
    println!(
        "  {name}, {views_per_iteration} of {views} views an iteration: {:.3} ms as one, {:.3} ms as {} launches, copies and fills",
        1e3 * as_one,
        1e3 * singly,
        groups.steps
    );
    Ok(json!({
        "what": name, "views_per_iteration": views_per_iteration, "views": views, "pixels": pixels, "voxels": voxels,
        "iterations": count, "as_one_s": as_one, "singly_s": singly, "rounds": ROUNDS,
        "steps": groups.steps, "replayed": groups.replayed - before.replayed, "launched_singly": groups.singly - before.singly,
        "graphs_refused": compute.groups_refused(),
    }))
}

fn seconds(optimiser: &mut Optimiser, compute: &CudaCompute, iterations: usize) -> Result<f64, String> {
    let began = Instant::now();
    let budget = Budget::Iterations(iterations);
    optimiser.run(compute, budget, &mut Unobserved).map_err(|error| error.to_string())?;
    Ok(began.elapsed().as_secs_f64() / iterations as f64)
}

/// Without the first, which warms up.
fn median(seconds: &mut Vec<f64>) -> f64 {
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
