//! Speed of what the iterative methods add to the projectors: `cargo bench --bench iterative`.
//!
//! Prints milliseconds (median of nine) and the ratio to the floor: the operations and bytes named at the head of each operation's file at
//! the rates measured in the same run.
#![allow(clippy::unwrap_used)]

mod floor;

use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::experts::{Expert, Experts, ExpertsCompute, TAPS};
use diffnr::compute::total_variation::TotalVariation;
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

/// As many experts as the program ships with, each of all 27 taps; what the numbers are makes no difference to the time.
fn experts(count: usize) -> Experts {
    let expert = |k: usize| {
        let tap = |at: usize| ((at * 31 + k * 17) % 27) as f32 / 27.0 - 13.0 / 27.0;
        Expert { taps: std::array::from_fn::<_, TAPS, _>(tap), convex: [0.02, 0.05], saturating: [0.01, 0.02] }
    };
    Experts::new((0..count).map(expert).collect(), vec![1.0; 8], 0.0386).unwrap()
}

/// Experts of `models/prior/experts.json`.
fn shipped_experts() -> usize {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/prior/experts.json")).unwrap();
    let prior: serde_json::Value = serde_json::from_str(&text).unwrap();
    prior["experts"].as_array().unwrap().len()
}

/// The learned prior's gradient: 27 multiply-adds there and 27 back for a voxel and an expert, 12 bytes a voxel.
fn learned_prior(cpu: &mut CpuCompute, floor: &Floor, name: &str, n: usize, volume: &[f32], gradient: &mut [f32]) {
    let experts = experts(shipped_experts());
    let count = experts.experts().len();
    cpu.prepare_experts([n; 3]).unwrap();
    let seconds = median_s(|| cpu.add_experts_gradient(&experts, [n; 3], 1e-6, volume, gradient).unwrap());
    let voxels = volume.len() as f64;
    // The floor counts a multiply and an add as two where they are not fused.
    let each = if cpu.simd() == SimdLevel::Plain { 2 } else { 1 };
    let operations = (each * 2 * TAPS * count) as f64 * voxels;
    println!(
        "learned prior gradient, {count} experts {n}^3 {name}: {:7.2} ms, {:.1} x bytes' floor, {:.2} x operations' floor",
        1e3 * seconds,
        seconds / floor.seconds(0.0, 12.0 * voxels),
        seconds / floor.seconds(operations, 0.0)
    );
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for simd in SimdLevel::available() {
        for threads in [1, all] {
            let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
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
                let name = format!("{simd} {threads} threads");
                learned_prior(&mut cpu, &floor, &name, n, &volume, &mut gradient);
            }
        }
    }
}
