//! Speed of the Gaussian operations against the machine's floor, and how it grows with Gaussians, pixels, views and voxels.
//!
//! `cargo bench --bench gaussians [-- FILTER]`. Each line: medians of five of one call, wall clock and processor time of all threads; pairs of Gaussian and pixel (voxel) within the cut-off a
//! second of processor time, and that time over the floor: what the lane operations named at the head of each operation take if every lane were in
//! use, at the rate of multiply-adds that one core shows in the same run.

#![allow(missing_docs, clippy::unwrap_used)]

mod floor;

use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::gaussians::{AdamStep, GaussianCompute, GaussianGradients, GaussianSet, GaussianWorkload};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use floor::Floor;
use glam::DVec3;
use rand::{RngExt, SeedableRng};

/// Lane operations an evaluation (see the heads of the operations' files).
const PROJECT: f64 = 31.0;
const PROJECT_BACKWARD: f64 = 47.0;
const VOXELISE: f64 = 9.0;
const VOXELISE_BACKWARD: f64 = 21.0;

/// Processor time of all threads: what a call costs on a machine that others use as well.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Medians of five: wall clock and processor time, in seconds.
fn medians(mut f: impl FnMut()) -> [f64; 2] {
    f();
    let times: [[f64; 2]; 5] = std::array::from_fn(|_| {
        let (start, processor) = (Instant::now(), processor_seconds());
        f();
        [start.elapsed().as_secs_f64(), processor_seconds() - processor]
    });
    [0, 1].map(|clock| {
        let mut five = times.map(|time| time[clock]);
        five.sort_by(f64::total_cmp);
        five[2]
    })
}

struct Case {
    arrays: [Vec<f32>; 11],
    geometry: ScanGeometry,
    grid: VolumeGrid,
}

impl Case {
    /// `n` Gaussians of 1 to 2 voxels of 2 mm in a cylinder of 200 mm, `m^2` pixels over 256 mm at the isocenter.
    fn new(n: usize, m: usize, views: usize, voxels: usize, shuffled: bool) -> Self {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut arrays: [Vec<f32>; 11] = std::array::from_fn(|_| Vec::with_capacity(n));
        let mut all = Vec::with_capacity(n);
        for _ in 0..n {
            let (radius, angle) = (100.0 * rng.random::<f64>().sqrt(), rng.random_range(0.0..std::f64::consts::TAU));
            let mut value = [0.0; 11];
            value[0] = rng.random_range(0.002..0.01);
            value[1] = radius * angle.cos();
            value[2] = radius * angle.sin();
            value[3] = rng.random_range(-90.0..90.0);
            for v in &mut value[4..7] {
                *v = rng.random_range(2.0f64..4.0).ln() - (n as f64 / 5e4).ln() / 3.0;
            }
            for v in &mut value[7..] {
                *v = rng.random_range(-1.0..1.0);
            }
            all.push(value);
        }
        // By voxel, as the initialisation draws them, or as they come.
        if !shuffled {
            let index = |value: f64| ((value + 128.0) / 256.0 * voxels as f64) as usize;
            all.sort_by_key(|value| [index(value[1]), index(value[2]), index(value[3])]);
        }
        for value in all {
            for (array, v) in arrays.iter_mut().zip(value) {
                array.push(v as f32);
            }
        }
        let pitch = 256.0 * 1.5 / m as f64;
        let orbit = CircularOrbit {
            detector: Detector { columns: m, rows: m },
            pitch_u_mm: pitch,
            pitch_v_mm: pitch,
            ..CircularOrbit::default()
        };
        let geometry = orbit.over_arc(views, 0.0, std::f64::consts::TAU);
        Self { arrays, geometry, grid: VolumeGrid::over_box([voxels; 3], DVec3::splat(256.0), DVec3::ZERO) }
    }

    fn set(&self) -> GaussianSet<'_> {
        let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz] = self.arrays.each_ref().map(Vec::as_slice);
        GaussianSet {
            density_per_mm: density,
            position_mm: [px, py, pz],
            log_scale: [s0, s1, s2],
            rotation: [rw, rx, ry, rz],
            low_pass_mm: 0.5,
        }
    }

    fn run(&self, name: &str, threads: usize, simd: SimdLevel) {
        let n = self.arrays[0].len();
        let (detector, views, set) = (self.geometry.detector, self.geometry.views.len(), self.set());
        let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
        cpu.prepare_gaussians(&GaussianWorkload {
            gaussians: n,
            columns: detector.columns,
            rows: detector.rows,
            views_per_call: views,
            voxels: self.grid.voxels,
        })
        .unwrap();
        let mut projections = vec![0.0f32; self.geometry.projection_len()];
        let mut volume = vec![0.0f32; self.grid.len()];
        let mut by: [Vec<f32>; 12] = std::array::from_fn(|_| vec![0.0; n]);
        let [density, px, py, pz, s0, s1, s2, rw, rx, ry, rz, view_norm] = by.each_mut().map(Vec::as_mut_slice);
        let mut gradients = GaussianGradients {
            density_per_mm: density,
            position_mm: [px, py, pz],
            log_scale: [s0, s1, s2],
            rotation: [rw, rx, ry, rz],
            view_norm,
        };
        let pixels = CpuCompute::gaussian_pixel_evaluations(&self.geometry, &set) as f64;
        let voxel_pairs = CpuCompute::gaussian_voxel_evaluations(&self.grid, &set) as f64;
        let core = Floor::measure(simd, 1);
        let report = |operation: &str, [wall, processor]: [f64; 2], evaluations: f64, operations: f64| {
            let floor = core.seconds(evaluations * operations, 0.0);
            println!(
                "{name:9} {n:6} x {m:3}^2 x {views:2}, {voxels:3}^3 {simd:8} {threads} {operation:18} {:8.2} ms wall {:8.2} ms processor {:6.1} e6 pairs \
                 {:6.3} e9/s/core {:5.1} x floor",
                1e3 * wall,
                1e3 * processor,
                1e-6 * evaluations,
                1e-9 * evaluations / processor,
                processor / floor,
                m = detector.columns,
                voxels = self.grid.voxels[0],
            );
        };
        let seconds = medians(|| cpu.gaussian_project(&self.geometry, &set, &mut projections).unwrap());
        report("project", seconds, pixels, PROJECT);
        let seconds = medians(|| {
            cpu.gaussian_project_backward(&self.geometry, &set, &projections, &mut gradients).unwrap();
        });
        report("project_backward", seconds, pixels, PROJECT_BACKWARD);
        let seconds = medians(|| cpu.gaussian_voxelise(&self.grid, &set, &mut volume).unwrap());
        report("voxelise", seconds, voxel_pairs, VOXELISE);
        let seconds = medians(|| {
            cpu.gaussian_voxelise_backward(&self.grid, &set, &volume, &mut gradients).unwrap();
        });
        report("voxelise_backward", seconds, voxel_pairs, VOXELISE_BACKWARD);
    }
}

fn adam(threads: usize) {
    let n = 11 * 50_000;
    let cpu = CpuCompute::new(threads).unwrap();
    let (mut p, g) = (vec![0.0f32; n], vec![1e-3f32; n]);
    let (mut m, mut v) = (vec![0.0f32; n], vec![0.0f32; n]);
    let seconds = medians(|| cpu.adam_step(&AdamStep::new(1e-3, 1), &mut p, &g, &mut m, &mut v).unwrap());
    let [wall, processor] = seconds;
    println!(
        "adam_step, 50,000 Gaussians, {threads} threads: {:.3} ms wall, {:.3} ms processor, {:.1} GB/s a core",
        1e3 * wall,
        1e3 * processor,
        28e-9 * n as f64 / processor
    );
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let best = SimdLevel::detect();
    let run = |name: &str, n, m, views, voxels, threads, simd| {
        if name.contains(&filter) {
            Case::new(n, m, views, voxels, name == "shuffled").run(name, threads, simd);
        }
    };
    for simd in SimdLevel::available() {
        run("levels", 50_000, 128, 4, 128, 1, simd);
    }
    run("threads", 50_000, 128, 4, 128, 2, best);
    run("shuffled", 50_000, 128, 4, 128, 2, best);
    for n in [5_000, 50_000, 200_000] {
        run("gaussians", n, 128, 4, 128, 2, best);
    }
    for m in [64, 128, 256, 512] {
        run("pixels", 50_000, m, 4, 64, 2, best);
    }
    for views in [1, 4, 16] {
        run("views", 50_000, 128, views, 64, 2, best);
    }
    for voxels in [64, 128, 256] {
        run("voxels", 50_000, 64, 1, voxels, 2, best);
    }
    if "adam".contains(&filter) {
        (1..=2).for_each(adam);
    }
}
