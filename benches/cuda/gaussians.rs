//! The operations of 3D Gaussians.

use std::f64::consts::PI;

use diffnr::compute::cuda::CudaCompute;
use diffnr::compute::gaussians::{CHANNELS, CUTOFF, GaussianArrays, GaussianCompute as _, GaussianWorkload};
use diffnr::compute::{ComputeError, Memory as _};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::measure::{Cost, Row, Settings};
use crate::views::{grid, scan};

/// What lists take: a count, three passes of six.
const LAUNCHES: f64 = 21.0;

/// As R2-Gaussian has them: 50,000, some voxels wide.
pub(crate) fn large(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (gaussians, voxels, pixels, views) = settings.size((50_000, 256, 512, 4), (200, 16, 24, 2));
    run(settings, rows, (gaussians, 3.0), (voxels, pixels, views))
}

/// As many as fill the volume: two in fifteen voxels, a voxel wide.
pub(crate) fn small(settings: &Settings, rows: &mut Vec<Row>) -> Result<(), ComputeError> {
    let (gaussians, voxels, pixels, views) = settings.size((2_300_000, 256, 512, 1), (500, 16, 24, 1));
    run(settings, rows, (gaussians, 1.0), (voxels, pixels, views))
}

/// Values `[channel][gaussian]` and densities: places anywhere in the box, all of one deviation in mm, turned at random.
fn values(n: usize, sigma_mm: f64) -> (Vec<f32>, Vec<f32>) {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut parameters = vec![0.0; CHANNELS * n];
    for (channel, values) in parameters.chunks_exact_mut(n).enumerate() {
        values.iter_mut().for_each(|value| {
            *value = match channel {
                0 => -1.0,
                1..=3 => random.random_range(-120.0..120.0),
                4..=6 => sigma_mm.ln() as f32,
                _ => random.random_range(-1.0..1.0),
            };
        });
    }
    (parameters, (0..n).map(|_| random.random_range(0.001..0.01)).collect())
}

/// Warps of a lattice of boxes (edges in steps) that a ball of radius `r` meets, all places being alike.
fn met(r: f64, edges: [f64; 3]) -> f64 {
    let [a, b, c] = edges.map(|edge| edge - 1.0);
    let volume = a * b * c + 2.0 * r * (a * b + b * c + c * a) + PI * r * r * (a + b + c) + 4.0 / 3.0 * PI * r.powi(3);
    volume / edges.iter().product::<f64>()
}

/// The same of a disc and rectangles.
fn met_flat(r: f64, [a, b]: [f64; 2]) -> f64 {
    ((a - 1.0) * (b - 1.0) + 2.0 * r * (a + b - 2.0) + PI * r * r) / (a * b)
}

/// Steps of a warp over a disc's rows: lanes that lie along a row, rows walked at once.
fn steps(r: f64, rows: f64) -> f64 {
    let longest = 2.0 * r + 1.0;
    let lanes = [8.0, 16.0].into_iter().find(|&lanes| longest <= lanes).unwrap_or(32.0);
    (rows * lanes / 32.0).ceil() * (longest / lanes).ceil()
}

fn run(
    settings: &Settings,
    rows: &mut Vec<Row>,
    (gaussians, sigma_voxels): (usize, f64),
    (voxels, pixels, views): (usize, usize, usize),
) -> Result<(), ComputeError> {
    let (geometry, grid) = (scan(views, pixels), grid(voxels));
    let workload =
        GaussianWorkload { gaussians, columns: pixels, rows: pixels, views_per_call: views, voxels: grid.voxels };
    let scratch = settings.adviser()?.gaussian_scratch_bytes(&workload);
    let floats = (2 * CHANNELS + 2) * gaussians + geometry.projection_len() + grid.len();
    let mut compute: CudaCompute = settings.carrier(floats, scratch)?;
    compute.prepare_gaussians(&workload)?;
    let compute = &compute;
    let sigma_mm = sigma_voxels * grid.voxel_mm.x;
    let (parameters, densities) = values(gaussians, sigma_mm);
    let (mut on_device, mut density) =
        (compute.buffer("parameters", parameters.len())?, compute.buffer("densities", gaussians)?);
    compute.write(&parameters, on_device.values_mut())?;
    compute.write(&densities, density.values_mut())?;
    let mut gradients = compute.buffer("gradients", (CHANNELS + 1) * gaussians)?;
    let (mut image, mut volume) =
        (compute.buffer("views", geometry.projection_len())?, compute.buffer("volume", grid.len())?);
    let (n, lanes) = (gaussians as f64, 32.0);
    let set = GaussianArrays {
        parameters: on_device.values(),
        density_per_mm: density.values(),
        len: gaussians,
        low_pass_mm: 0.0,
    };

    // Radius of the cut-off in voxels, and in pixels at the isocentre.
    let r = CUTOFF.sqrt() * sigma_voxels;
    let cost = Cost {
        bytes: n * (108.0 + 320.0 + 16.0 * met(r, [8.0, 8.0, 16.0])) + 4.0 * grid.len() as f64,
        operations: n * lanes * 66.0 * met(r, [4.0, 4.0, 8.0]),
        launches: LAUNCHES,
        ..Cost::default()
    };
    settings.time(rows, compute, ("gaussian_voxelise", cost), || {
        compute.gaussian_voxelise(&grid, &set, volume.values_mut())
    })?;
    let planes = 2.0 * r + 1.0;
    let cost = Cost {
        bytes: n * 284.0 + 4.0 * grid.len() as f64,
        operations: n * lanes * (200.0 + planes * (24.0 + 76.0 * steps(r, PI / 2.0 * r))),
        launches: 3.0,
        ..Cost::default()
    };
    settings.time(rows, compute, ("gaussian_voxelise_backward", cost), || {
        compute.gaussian_voxelise_backward(&grid, &set, volume.values(), gradients.values_mut())
    })?;
    let r = CUTOFF.sqrt() * sigma_mm / (geometry.views[0].column_step_mm.length() / 1.5);
    let m = views as f64;
    let cost = Cost {
        bytes: m * (n * (124.0 + 160.0 + 16.0 * met_flat(r, [16.0, 16.0])) + 4.0 * (pixels * pixels) as f64),
        operations: m * n * lanes * 68.0 * met_flat(r, [8.0, 8.0]),
        launches: m * LAUNCHES,
        ..Cost::default()
    };
    settings.time(rows, compute, ("gaussian_project", cost), || {
        compute.gaussian_project(&geometry, &set, image.values_mut())
    })?;
    let lines = 2.0 * r + 1.0;
    let cost = Cost {
        bytes: m * (n * 314.0 + 8.0 * (pixels * pixels) as f64),
        operations: m * n * lanes * (120.0 + 39.0 * lines + 53.0 * steps(r, lines)),
        launches: 4.0 * m,
        ..Cost::default()
    };
    settings.time(rows, compute, ("gaussian_project_backward", cost), || {
        compute.gaussian_project_backward(&geometry, &set, image.values(), gradients.values_mut())
    })?;
    settings.time(rows, compute, ("weigh_density_gradient", Cost::bytes(gaussians, 12.0)), || {
        compute.weigh_density_gradient(&set, 0.004, gradients.values_mut())
    })?;
    settings.time(rows, compute, ("add_position_norms", Cost::bytes(gaussians, 20.0)), || {
        compute.add_position_norms(&set, gradients.values_mut())
    })?;
    let cost = Cost::bytes(gaussians, 64.0);
    settings.time(rows, compute, ("settle_gaussians", cost), || {
        let set = GaussianArrays {
            parameters: on_device.values_mut(),
            density_per_mm: density.values_mut(),
            len: gaussians,
            low_pass_mm: 0.0,
        };
        compute.settle_gaussians(set, 0.004, [0.1, 20.0])
    })
}
