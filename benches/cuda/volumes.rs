//! What the optimisation of a volume does value by value, its losses and priors.

use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::experts::{Expert, Experts, ExpertsCompute as _, TAPS};
use diffnr::compute::gaussians::{AdamStep, GaussianCompute as _};
use diffnr::compute::losses::{ImageLoss, LossCompute as _, LossWorkload, VolumeSsimLoss};
use diffnr::compute::sart::{CorrectionStep, SartCompute as _};
use diffnr::compute::slices::{SliceBatch, SliceCompute as _, SliceLayout, WindowUnits};
use diffnr::compute::total_variation::{TotalVariation, VariationCompute as _};
use diffnr::compute::{Compute as _, ComputeError, Memory as _, Workload};

use crate::measure::{Cost, Row, Settings, uneven};
use crate::views::{grid, scan};

/// Experts of the shipped prior.
const EXPERTS: usize = 24;

fn workload(voxels: [usize; 3]) -> Workload {
    Workload { columns: 1, rows: 1, views_per_call: 1, voxels }
}

/// Operations value by value, on a volume.
pub(crate) fn elements(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let grid = settings.size(grid(256), grid(16));
    let (n, workload) = (grid.len(), workload(grid.voxels));
    let scratch = settings.adviser()?.scratch_bytes(&workload);
    let mut compute = settings.carrier(4 * n, scratch)?;
    compute.prepare(&workload)?;
    let compute = &compute;
    let (first, second) = (uneven(compute, n, 0.02)?, uneven(compute, n, 0.03)?);
    let (mut third, mut out) = (uneven(compute, n, 0.01)?, compute.buffer("out", n)?);
    let (a, b) = (first.values(), second.values());
    settings.time(rows, compute, ("fill", Cost::bytes(n, 4.0)), || compute.fill(0.0, out.values_mut()))?;
    settings.time(rows, compute, ("copy", Cost::bytes(n, 8.0)), || compute.copy(a, out.values_mut()))?;
    let of = Cost::bytes;
    settings.time(rows, compute, ("subtract", of(n, 12.0)), || compute.subtract(a, b, out.values_mut()))?;
    settings.time(rows, compute, ("add_scaled", of(n, 12.0)), || compute.add_scaled(1e-3, a, out.values_mut()))?;
    settings.time(rows, compute, ("scale", of(n, 8.0)), || compute.scale(1.0, out.values_mut()))?;
    settings.time(rows, compute, ("copy_scaled", of(n, 8.0)), || compute.copy_scaled(0.5, a, out.values_mut()))?;
    // Four look-ups a value at some 9 a clock and multiprocessor, of the 128 instructions that it has: 57 instructions; and joining.
    let cost = Cost { operations: 60.0 * n as f64, ..Cost::sum(n, 4.0) };
    settings.time(rows, compute, ("crc32c", cost), || compute.crc32c(a).map(drop))?;
    settings.time(rows, compute, ("dot", Cost::sum(n, 8.0)), || compute.dot(a, b).map(drop))?;
    settings.time(rows, compute, ("are_finite", Cost::sum(n, 4.0)), || compute.are_finite(a).map(drop))?;
    settings.time(rows, compute, ("hold_at_zero", of(n, 12.0)), || compute.hold_at_zero(a, out.values_mut()))?;
    settings.time(rows, compute, ("add_modulus_gradient", of(n, 16.0)), || {
        compute.add_modulus_gradient(1e-3, a, b, out.values_mut())
    })?;
    settings.time(rows, compute, ("weigh_residual", Cost::sum(n, 16.0)), || {
        compute.weigh_residual(a, b, out.values_mut()).map(drop)
    })?;
    let step = CorrectionStep { relaxation: 0.1, least_sum: 1e-6, least: 0.0 };
    settings.time(rows, compute, ("apply_correction", Cost::sum(n, 16.0)), || {
        compute.apply_correction(&step, a, b, out.values_mut()).map(drop)
    })?;
    settings.time(rows, compute, ("descend", of(n, 12.0)), || compute.descend(1e-3, a, 0.0, out.values_mut()))?;
    settings.time(rows, compute, ("squared_norm", Cost::sum(n, 4.0)), || compute.squared_norm(a).map(drop))?;
    settings
        .time(rows, compute, ("squared_distance", Cost::sum(n, 8.0)), || compute.squared_distance(a, b).map(drop))?;
    // The gradient is `a`; the moments begin as 0.
    compute.fill(0.0, out.values_mut())?;
    compute.fill(0.0, third.values_mut())?;
    let mut parameters = second;
    settings.time(rows, compute, ("adam_step", of(n, 28.0)), || {
        let (first, second) = (third.values_mut(), out.values_mut());
        compute.adam_step(&AdamStep::new(1e-4, 1), parameters.values_mut(), a, first, second)
    })?;
    // Through pinned memory: the host's link is the floor, which is not measured here.
    let mut host = vec![0.0; n];
    settings.time(rows, compute, ("read to the host", of(n, 4.0)), || compute.read(a, &mut host))?;
    settings.time(rows, compute, ("write from the host", of(n, 4.0)), || compute.write(&host, out.values_mut()))
}

/// The similarity of volumes and the loss of views.
pub(crate) fn losses(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (grid, geometry) = settings.size((grid(256), scan(8, 512)), (grid(16), scan(2, 24)));
    let (voxels, pixels) = (grid.len(), geometry.projection_len());
    let detector = geometry.detector;
    let workload = LossWorkload {
        columns: detector.columns,
        rows: detector.rows,
        views_per_call: geometry.views.len(),
        voxels: grid.voxels,
    };
    let scratch = settings.adviser()?.loss_scratch_bytes(&workload);
    let mut compute = settings.carrier(3 * voxels + 4 * pixels, scratch)?;
    compute.prepare_losses(&workload)?;
    let (volume, reference) = (uneven(&compute, voxels, 0.02)?, uneven(&compute, voxels, 0.03)?);
    let mut by_volume = compute.buffer("gradient", voxels)?;
    let of = VolumeSsimLoss { weight: 1e-3, data_range: 0.03, empty_at: 0.0, axes: [1.0; 3] };
    let n = voxels as f64;
    let cost = Cost { operations: 1658.0 * n, first_level_bytes: 1512.0 * n, launches: 6.0, ..Cost::sum(voxels, 52.0) };
    settings.time(rows, &compute, ("volume_ssim_loss", cost), || {
        let (volume, reference) = (volume.values(), reference.values());
        compute.volume_ssim_loss(grid.voxels, &of, volume, reference, by_volume.values_mut()).map(drop)
    })?;
    let (views, measured) = (uneven(&compute, pixels, 1.0)?, uneven(&compute, pixels, 1.5)?);
    let (weights, mut by_views) = (uneven(&compute, pixels, 1.0)?, compute.buffer("gradient", pixels)?);
    let all = ImageLoss { l1: 1.0, huber: 0.01, squares: 1.0, dissimilarity: 0.25, data_range: 1.5 };
    let (plain, n) = (ImageLoss { dissimilarity: 0.0, ..all }, pixels as f64);
    let cost = Cost { operations: 12.0 * n, ..Cost::sum(pixels, 16.0) };
    settings.time(rows, &compute, ("image_loss, no similarity", cost), || {
        let (views, measured, weights) = (views.values(), measured.values(), Some(weights.values()));
        compute.image_loss(detector, &plain, views, measured, weights, by_views.values_mut()).map(drop)
    })?;
    let cost = Cost { operations: 490.0 * n, ..Cost::sum(pixels, 32.0) };
    settings.time(rows, &compute, ("image_loss", cost), || {
        let (views, measured, weights) = (views.values(), measured.values(), Some(weights.values()));
        compute.image_loss(detector, &all, views, measured, weights, by_views.values_mut()).map(drop)
    })
}

/// Total variation and the learned prior.
pub(crate) fn priors(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let grid = settings.size(grid(256), grid(16));
    let (n, workload) = (grid.len(), workload(grid.voxels));
    let adviser = settings.adviser()?;
    let scratch = adviser.scratch_bytes(&workload) + adviser.experts_scratch_bytes(grid.voxels);
    let mut compute = settings.carrier(2 * n, scratch)?;
    compute.prepare(&workload)?;
    compute.prepare_experts(grid.voxels)?;
    let (volume, mut gradient) = (uneven(&compute, n, 0.02)?, compute.buffer("gradient", n)?);
    let variation = TotalVariation::on(&grid, 1e-4);
    settings.time(rows, &compute, ("total_variation", Cost::sum(n, 4.0)), || {
        compute.total_variation(&variation, volume.values()).map(drop)
    })?;
    let cost = Cost { operations: 55.0 * n as f64, ..Cost::sum(n, 12.0) };
    settings.time(rows, &compute, ("add_total_variation_gradient", cost), || {
        compute.add_total_variation_gradient(&variation, 1e-3, volume.values(), gradient.values_mut()).map(drop)
    })?;
    let experts = experts()?;
    let cost = Cost {
        operations: 1.37 * (64.0 * EXPERTS as f64 + 100.0) * n as f64,
        first_level_bytes: 41.0 * EXPERTS as f64 * n as f64,
        ..Cost::bytes(n, 12.0)
    };
    settings.time(rows, &compute, ("add_experts_gradient", cost), || {
        compute.add_experts_gradient(&experts, grid.voxels, 1e-3, volume.values(), gradient.values_mut())
    })
}

/// As many as ship, of other taps: what they take does not hang on them.
fn experts() -> Result<Experts, ComputeError> {
    let expert = |index: usize| {
        let mut taps: [f32; TAPS] = std::array::from_fn(|tap| ((tap * (index + 3)) % 7) as f32 / 7.0);
        let mean = taps.iter().sum::<f32>() / TAPS as f32;
        taps.iter_mut().for_each(|tap| *tap -= mean);
        Expert { taps, convex: [0.3, 0.1], saturating: [0.2, 0.3] }
    };
    Experts::new((0..EXPERTS).map(expert).collect(), vec![0.5, 2.0, 1.0, 0.25], 0.02)
}

/// A batch of slices between two neighbours on either side, and what it adds to mean and squares of a volume.
pub(crate) fn slices(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    const SLICES: usize = 16;
    let grid = settings.size(grid(256), grid(16));
    let batch = SliceBatch { first: 0, neighbours: 2, volumes: 1, volume: 0 };
    let units = WindowUnits { scale: 50.0, offset: -1.0 };
    let (n, of_slices) = (grid.len(), SLICES * grid.len() / grid.voxels[2]);
    let scratch = settings.adviser()?.slice_scratch_bytes();
    let mut compute = settings.carrier(3 * n + batch.channels() * of_slices, scratch)?;
    compute.prepare_slices()?;
    let (volume, mut mean, mut squares) =
        (uneven(&compute, n, 0.02)?, uneven(&compute, n, 0.02)?, uneven(&compute, n, 0.02)?);
    let mut slices = compute.buffer("slices", batch.channels() * of_slices)?;
    for (axis, gather, add) in [
        (0, "gather_slices across x", "add_slices across x"),
        (1, "gather_slices across y", "add_slices across y"),
        (2, "gather_slices across z", "add_slices across z"),
    ] {
        let layout = SliceLayout::across(axis, grid.voxels, 8);
        // Those in the batch and two on either side are read, five images of each written.
        let around = (SLICES + 2 * batch.neighbours) as f64 / SLICES as f64;
        let cost = Cost::bytes(of_slices, 4.0 * (around + batch.channels() as f64));
        settings.time(rows, &compute, (gather, cost), || {
            compute.gather_slices(&layout, &batch, units, volume.values(), slices.values_mut())
        })?;
        settings.time(rows, &compute, (add, Cost::bytes(of_slices, 20.0)), || {
            let of = slices.values().part(0..of_slices);
            compute.add_slices(&layout, 0, 1, of, mean.values_mut(), squares.values_mut())
        })?;
    }
    settings
        .time(rows, &compute, ("farthest", Cost::sum(n, 4.0)), || compute.farthest(units, volume.values()).map(drop))?;
    settings.time(rows, &compute, ("first_beyond", Cost::sum(n, 4.0)), || {
        compute.first_beyond(1e9, volume.values()).map(drop)
    })?;
    settings.time(rows, &compute, ("leave_window", Cost::bytes(n, 8.0)), || {
        compute.leave_window(units, mean.values_mut())
    })?;
    settings
        .time(rows, &compute, ("deviations", Cost::bytes(n, 8.0)), || compute.deviations(1.0, 3, squares.values_mut()))
}
