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

pub(crate) fn measure(settings: &Settings) -> Result<Value, String> {
    let (views, pixels, voxels, gaussians, iterations) = settings.size((50, 512, 256, 50_000, 40), (4, 24, 16, 200, 4));
    let grid = grid(voxels);
    // R2-Gaussian's iterations see one view each, ours up to 48.
    let of = |gaussians| Method::Gaussians(GaussianPlan::for_grid(&grid, gaussians, 1));
    let cases = [
        ("gaussians, R2-Gaussian's number", of(Some(gaussians)), 1),
        ("gaussians, R2-Gaussian's number", of(Some(gaussians)), 48),
        ("gaussians, the usual number", of(None), 48),
        ("field", Method::Field(FieldPlan::for_grid(&grid, 1)), 48),
    ];
    let mut rows = Vec::new();
    for (name, method, views_per_iteration) in cases {
        let optimise = OptimiseSettings { views_per_iteration, ..OptimiseSettings::default() };
        let geometry = scan(views, pixels);
        let recipe = Recipe::new(&geometry, &grid, &optimise, method).map_err(|error| error.to_string())?;
        let adviser = settings.adviser().map_err(|error| error.to_string())?;
        let bytes: usize = recipe.buffers().iter().map(|(_, bytes)| bytes).sum();
        let mut compute = settings
            .carrier(bytes / size_of::<f32>(), recipe.scratch_bytes(&adviser))
            .map_err(|error| error.to_string())?;
        recipe.prepare(&mut compute).map_err(|error| error.to_string())?;
        let mut optimiser = recipe.optimiser(&compute).map_err(|error| error.to_string())?;
        // A ball of water: Gaussians are drawn from where something is.
        let middle = (pixels as f32 - 1.0) / 2.0;
        let chord = |pixel: usize| {
            let (v, u) = ((pixel / pixels % pixels) as f32 - middle, (pixel % pixels) as f32 - middle);
            0.04 * 160.0 * (1.0 - (u * u + v * v) / (0.45 * pixels as f32).powi(2)).max(0.0).sqrt()
        };
        let line_integrals: Vec<f32> = (0..geometry.projection_len()).map(chord).collect();
        optimiser.load(&compute, &line_integrals).map_err(|error| error.to_string())?;
        optimiser.begin(&compute, None, &Unobserved).map_err(|error| error.to_string())?;
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
        rows.push(json!({
            "what": name, "views_per_iteration": views_per_iteration, "views": views, "pixels": pixels, "voxels": voxels,
            "iterations": count, "as_one_s": as_one, "singly_s": singly, "rounds": ROUNDS,
            "steps": groups.steps, "replayed": groups.replayed - before.replayed, "launched_singly": groups.singly - before.singly,
            "graphs_refused": compute.groups_refused(),
        }));
    }
    Ok(json!(rows))
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
