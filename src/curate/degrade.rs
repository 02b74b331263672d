//! The degraded volume: our own methods on few views, stopped early.

use std::sync::Arc;

use ndarray::Array3;

use super::CurateError;
use super::body::BodyGeometry;
use super::draw::{DegradedBy, ScanDraw};
use crate::compute::Compute;
use crate::compute::cpu::CpuCompute;
use crate::reconstruct::optimise::{
    self, Budget, OptimiseError, OptimiseSettings, Recipe, ScanViews, USUAL_ITERATIONS, Unexplained,
};
use crate::reconstruct::{
    FdkAccumulator, FdkPlan, FdkSettings, Observer, OsSart, OsSartPlan, OsSartSettings, Progress, ReconstructError,
    StopRules, Unobserved,
};
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;

/// Keeps the volume of one iteration of the usual schedule, and ends the run there.
struct StopAfter {
    iteration: usize,
    volume: Option<Vec<f32>>,
}

impl Observer for StopAfter {
    fn wants_volume(&mut self, iteration: usize) -> bool {
        iteration == self.iteration
    }

    fn observe(&mut self, progress: &Progress<'_>) {
        if progress.iteration == self.iteration {
            self.volume = progress.volume_on_host().map(<[f32]>::to_vec);
        }
    }

    fn interrupts(&self) -> bool {
        self.volume.is_some()
    }
}

/// Reconstructs `projections` (`[view][row v][column u]`, dimensionless) of the scan's views; 1/mm, `[x][y][z]`.
pub(super) fn degrade(
    compute: &mut CpuCompute,
    scan: &str,
    draw: &ScanDraw,
    geometry: &BodyGeometry,
    projections: &Array3<f32>,
) -> Result<Array3<f32>, CurateError> {
    let line_integrals = projections.as_slice().unwrap_or(&[]);
    let volume = match draw.by {
        DegradedBy::Gaussians(n) | DegradedBy::Field(n) => optimised(compute, draw, geometry, line_integrals, n),
        DegradedBy::Fdk(_) => fdk(compute, draw, geometry, line_integrals).map_err(OptimiseError::from),
        DegradedBy::OsSart(n) => os_sart(compute, draw, geometry, line_integrals, n).map_err(OptimiseError::from),
    };
    let volume = volume.map_err(|error| CurateError::of_scan(scan, error))?;
    let [x, y, z] = geometry.grid.voxels;
    // Every method hands back a volume on the grid that it was given.
    Array3::from_shape_vec((x, y, z), volume)
        .map_err(|error| CurateError::subject(scan, error.to_string(), "this is a mistake in diffnr: report it"))
}

/// What the scan says that `volume` does not (see [`Unexplained`]); 1/mm, `[x][y][z]`.
pub(super) fn unexplained(
    compute: &mut CpuCompute,
    scan: &str,
    draw: &ScanDraw,
    geometry: &BodyGeometry,
    (projections, volume): (&Array3<f32>, &Array3<f32>),
) -> Result<Array3<f32>, CurateError> {
    let mut of = || -> Result<Vec<f32>, OptimiseError> {
        let mut of_scan = Unexplained::new(compute, &geometry.at(&draw.views), &geometry.grid, &settings_of(draw))?;
        of_scan.load(compute, &ScanViews::whole(projections.as_slice().unwrap_or(&[])))?;
        let compute = &*compute;
        compute.install(|| Ok(of_scan.of(compute, volume.as_slice().unwrap_or(&[]))?.to_vec()))
    };
    let values = of().map_err(|error| CurateError::of_scan(scan, error))?;
    Array3::from_shape_vec(volume.raw_dim(), values)
        .map_err(|error| CurateError::subject(scan, error.to_string(), "this is a mistake in diffnr: report it"))
}

fn settings_of(draw: &ScanDraw) -> OptimiseSettings {
    let mut settings = OptimiseSettings { seed: draw.seed, ..OptimiseSettings::default() };
    settings.data.photons = draw.photons.unwrap_or(f64::INFINITY);
    settings
}

fn optimised(
    compute: &mut CpuCompute,
    draw: &ScanDraw,
    geometry: &BodyGeometry,
    line_integrals: &[f32],
    stop_after: usize,
) -> Result<Vec<f32>, OptimiseError> {
    let grid = &geometry.grid;
    let settings = settings_of(draw);
    let method = match draw.by {
        DegradedBy::Field(_) => optimise::Method::Field(FieldPlan::for_grid(grid, draw.seed)),
        _ => optimise::Method::Gaussians(GaussianPlan::for_grid(grid, None, draw.seed)),
    };
    let recipe = Recipe::new(&geometry.at(&draw.views), grid, &settings, method)?;
    recipe.prepare(compute)?;
    let mut optimiser = recipe.optimiser(compute)?;
    optimiser.load(compute, line_integrals)?;
    // The schedule of the whole run, as a volume that is queried on the way has it behind it.
    let mut observer = StopAfter { iteration: stop_after, volume: None };
    let compute = &*compute;
    compute.install(|| {
        optimiser.begin(compute, None, &observer)?;
        optimiser.run(compute, Budget::Iterations(USUAL_ITERATIONS), &mut observer)
    })?;
    // A run that ended before (it diverged) leaves its last good volume.
    match observer.volume {
        Some(volume) => Ok(volume),
        None => Ok(optimiser.into_volume(compute)?),
    }
}

fn fdk(
    compute: &mut CpuCompute,
    draw: &ScanDraw,
    geometry: &BodyGeometry,
    line_integrals: &[f32],
) -> Result<Vec<f32>, ReconstructError> {
    let DegradedBy::Fdk(window) = draw.by else { return Ok(Vec::new()) };
    let settings = FdkSettings { window, ..FdkSettings::default() };
    let plan = FdkPlan::new(compute, &geometry.at(&draw.views), &geometry.grid, settings)?;
    let mut accumulator = FdkAccumulator::new(compute, Arc::new(plan))?;
    accumulator.add_views(compute, 0, line_integrals)?;
    accumulator.into_volume(compute)
}

fn os_sart(
    compute: &mut CpuCompute,
    draw: &ScanDraw,
    geometry: &BodyGeometry,
    line_integrals: &[f32],
    sweeps: usize,
) -> Result<Vec<f32>, ReconstructError> {
    let settings = OsSartSettings { stop: StopRules::iterations(sweeps), ..OsSartSettings::default() };
    let plan = OsSartPlan::without_scratch(&geometry.at(&draw.views), &geometry.grid, settings)?;
    compute.prepare(&plan.workload())?;
    let mut sart = OsSart::new(Arc::new(plan), &*compute, line_integrals)?;
    let compute = &*compute;
    compute.install(|| sart.run(compute, &mut Unobserved))?;
    sart.into_volume(compute)
}
