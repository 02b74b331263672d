//! Speed of the losses against the machine's floor.
//!
//! `cargo bench --bench losses [-- FILTER]`. Each line: medians of five, wall clock and processor time of all threads, and the processor time over the floor:
//! the lane operations named at the heads of `loss_window.rs` and `loss_image.rs` at the rate of multiply-adds that one core shows in the same
//! run, or the bytes at the rate of copying.

#![allow(missing_docs, clippy::unwrap_used)]

mod floor;

use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::losses::{ImageLoss, LossCompute, LossWorkload, VolumeSsimLoss};
use diffnr::geometry::Detector;
use floor::Floor;

/// Lane operations a pixel of a plane.
const PLANE: f64 = 196.0;

/// Processor time of all threads.
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

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|k| 0.02 * (1.0 + (k as f32 * 0.013 + phase).sin())).collect()
}

fn volume(edge: usize, threads: usize, simd: SimdLevel, axes: [f32; 3]) {
    let (voxels, n) = ([edge; 3], edge.pow(3));
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    cpu.prepare_losses(&LossWorkload { voxels, ..LossWorkload::default() }).unwrap();
    let (a, b, mut by) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let settings = VolumeSsimLoss { weight: 0.5, data_range: 0.04, empty_at: 0.0, axes };
    let [wall, processor] = medians(|| {
        cpu.volume_ssim_loss(voxels, &settings, &a, &b, &mut by).unwrap();
    });
    // For each axis both volumes and the gradient, there and back; two more readings to check and to find empty slices.
    let swept = axes.iter().filter(|&&weight| weight > 0.0).count() as f64;
    let floor = Floor::measure(simd, 1).seconds(swept * PLANE * n as f64, (swept * 16.0 + 12.0) * n as f64);
    println!(
        "volume {edge:3}^3 {simd:8} {threads} axes {axes:?}: {:8.2} ms wall {:8.2} ms processor, floor {:8.2} ms processor, {:4.1} x floor",
        1e3 * wall,
        1e3 * processor,
        1e3 * floor,
        processor / floor
    );
}

fn images(edge: usize, views: usize, dissimilarity: f32, threads: usize) {
    let (detector, n) = (Detector { columns: edge, rows: edge }, views * edge * edge);
    let mut cpu = CpuCompute::new(threads).unwrap();
    cpu.prepare_losses(&LossWorkload { columns: edge, rows: edge, views_per_call: views, voxels: [0; 3] }).unwrap();
    let (p, m, mut by) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let settings = ImageLoss { l1: 1.0, huber: 0.0, squares: 1.0, dissimilarity, data_range: 0.04 };
    let [wall, processor] = medians(|| {
        cpu.image_loss(detector, &settings, &p, &m, None, &mut by).unwrap();
    });
    let operations = if dissimilarity > 0.0 { PLANE } else { 0.0 } + 10.0;
    let floor = Floor::measure(cpu.simd(), 1).seconds(operations * n as f64, 0.0);
    println!(
        "images {edge:3}^2 x {views:2}, similarity {}, {threads}: {:7.3} ms wall {:7.3} ms processor, floor {:7.3} ms processor, {:4.1} x floor",
        if dissimilarity > 0.0 { "on " } else { "off" },
        1e3 * wall,
        1e3 * processor,
        1e3 * floor,
        processor / floor
    );
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    if "volume".contains(&filter) {
        for simd in SimdLevel::available().filter(|&simd| simd != SimdLevel::Plain) {
            volume(128, 1, simd, [1.0; 3]);
        }
        for axis in 0..3 {
            let mut axes = [0.0; 3];
            axes[axis] = 1.0;
            volume(128, 1, SimdLevel::detect(), axes);
        }
        for edge in [64, 128, 256] {
            volume(edge, 2, SimdLevel::detect(), [1.0; 3]);
        }
    }
    if "images".contains(&filter) {
        for (edge, views) in [(128, 1), (128, 4), (256, 4), (512, 2)] {
            images(edge, views, 0.0, 2);
            images(edge, views, 0.25, 2);
        }
    }
}
