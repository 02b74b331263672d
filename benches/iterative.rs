//! Speed of what the iterative methods add to the projectors: `cargo bench --bench iterative`.
//!
//! Prints milliseconds (median of nine) and the ratio to the floor: the operations and bytes named at the head of each operation's file at
//! the rates measured in the same run.
#![allow(clippy::unwrap_used)]

mod floor;

use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::total_variation::{TotalVariation, VariationCompute};
use floor::Floor;

fn median_s(mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds = [0.0; 9];
    for second in &mut seconds {
        let start = Instant::now();
        work();
        *second = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    seconds[4]
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for simd in SimdLevel::available() {
        for threads in [1, all] {
            let cpu = CpuCompute::with_simd(threads, simd).unwrap();
            let floor = Floor::measure(simd, threads);
            for n in [128_usize, 256] {
                let variation = TotalVariation { voxels: [n; 3], scale: [1.0; 3], epsilon: 1e-4 };
                let volume: Vec<f32> =
                    (0..n * n * n).map(|k| 0.02 * ((k * 2_654_435_761) % 1024) as f32 / 1024.0).collect();
                let mut gradient = vec![0.0; volume.len()];
                let seconds = median_s(|| {
                    cpu.add_total_variation_gradient(&variation, 1.0, &volume, &mut gradient).unwrap();
                });
                let voxels = volume.len() as f64;
                let operations = floor.seconds(45.0 * voxels, 0.0);
                let bytes = floor.seconds(0.0, 12.0 * voxels);
                println!(
                    "total variation gradient {n}^3 {simd} {threads} threads: {:7.2} ms, {:.1} x bytes' floor, {:.1} x operations' floor",
                    1e3 * seconds,
                    seconds / bytes,
                    seconds / operations
                );
            }
        }
    }
}
