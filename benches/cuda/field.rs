//! The operations of the neural field: on the voxels, which the usual method takes, and along rays.

use diffnr::compute::cuda::CudaCompute;
use diffnr::compute::field::{FieldCompute as _, FieldLayout, FieldRays, FieldWorkload, RayPixel};
use diffnr::compute::gaussians::{AdamStep, GaussianCompute as _};
use diffnr::compute::{ComputeError, Memory as _};
use diffnr::geometry::VolumeGrid;
use diffnr::represent::field::{Field, FieldError, FieldPlan};

use crate::measure::{Cost, Row, Settings, uneven};
use crate::views::{grid, scan};

/// The usual field of a grid, ready on a device with room for so many floats more.
fn usual(
    settings: &Settings,
    grid: &VolumeGrid,
    rays: usize,
    floats: usize,
) -> Result<(CudaCompute, Field, FieldLayout), ComputeError> {
    let plan = FieldPlan::for_grid(grid, 1);
    let workload = FieldWorkload { rays, ..plan.workload(grid) };
    let layout = FieldLayout::new(&plan.shape, grid)?;
    let of_field = 4 * (layout.tables_len() + layout.network_len());
    let scratch = settings.adviser()?.field_scratch_bytes(&workload);
    let mut compute = settings.carrier(of_field + floats, scratch)?;
    compute.prepare_field(&workload)?;
    let field = Field::new(&compute, &plan.shape, grid).map_err(|error| match error {
        FieldError::Compute(error) => error,
        other => ComputeError::Device { device: "cuda".into(), reason: other.to_string() },
    })?;
    Ok((compute, field, layout))
}

pub(crate) fn voxels(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let grid = settings.size(grid(256), grid(16));
    let floats = 4 * FieldLayout::new(&FieldPlan::for_grid(&grid, 1).shape, &grid)?.tables_len();
    let (compute, mut field, layout) = usual(settings, &grid, 0, grid.len() + floats)?;
    let (n, entries) = (grid.len() as f64, layout.tables_len() as f64);
    let mut volume = compute.buffer("volume", grid.len())?;
    let cost = Cost { bytes: 4.0 * (entries + n), operations: 1300.0 * n, ..Cost::default() };
    settings.time(rows, &compute, ("field_voxelise", cost), || {
        compute.field_voxelise(&grid, &field.parameters(), None, volume.values_mut())
    })?;
    // With the sums set to 0, added to, read, and what field_gradients.cu moves.
    let cost = Cost {
        bytes: 4.0 * (entries + n) + 24.0 * entries + 16.0 * entries,
        operations: 4600.0 * n,
        second_level_bytes: 144.0 * n,
        launches: 5.0,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("field_voxelise_backward", cost), || {
        let (parameters, gradients) = field.parameters_and_gradients();
        compute.field_voxelise_backward(&grid, &parameters, None, volume.values(), gradients)
    })?;
    drop(field);
    let len = layout.tables_len();
    let (mut parameters, gradients) = (uneven(&compute, len, 1e-3)?, uneven(&compute, len, 1e-3)?);
    let (mut first, mut second) = (compute.buffer("first", len)?, compute.buffer("second", len)?);
    settings.time(rows, &compute, ("adam_step, tables", Cost::bytes(len, 28.0)), || {
        let (first, second) = (first.values_mut(), second.values_mut());
        compute.adam_step(&AdamStep::new(1e-3, 1), parameters.values_mut(), gradients.values(), first, second)
    })
}

pub(crate) fn rays(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (grid, geometry, count, samples) =
        settings.size((grid(256), scan(50, 512), 4096, 384), (grid(16), scan(3, 24), 40, 24));
    let (compute, mut field, layout) = usual(settings, &grid, count, 2 * count)?;
    // Anywhere on the middle of the views, so that all go through the box.
    let (side, views) = (geometry.detector.columns / 2, geometry.views.len());
    let place = |i: usize, factor: u32| (i as u32).wrapping_mul(factor) >> 12;
    let pixels: Vec<RayPixel> = (0..count)
        .map(|i| RayPixel {
            view: place(i, 2_654_435_761) % views as u32,
            row: (side / 2) as u32 + place(i, 805_459_861) % side as u32,
            column: (side / 2) as u32 + place(i, 3_674_653_429) % side as u32,
        })
        .collect();
    let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples, jitter: None };
    let (mut integrals, by_integrals) = (compute.buffer("integrals", count)?, uneven(&compute, count, 1.0)?);
    let (n, entries) = ((count * samples) as f64, layout.tables_len() as f64);
    let cost = Cost { operations: 1200.0 * n, second_level_bytes: 312.0 * n, ..Cost::default() };
    settings.time(rows, &compute, ("field_project", cost), || {
        compute.field_project(&rays, &field.parameters(), integrals.values_mut())
    })?;
    let cost = Cost {
        bytes: 24.0 * entries,
        operations: 3800.0 * n,
        second_level_bytes: 1536.0 * n,
        launches: 5.0,
        ..Cost::default()
    };
    settings.time(rows, &compute, ("field_project_backward", cost), || {
        let (parameters, gradients) = field.parameters_and_gradients();
        compute.field_project_backward(&rays, &parameters, by_integrals.values(), gradients)
    })
}
