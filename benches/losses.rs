//! Speed of the losses against the machine's floor.
//!
//! `cargo bench --bench losses [-- FILTER]`. Each line: medians of five, wall clock and processor time of all threads, and the processor time over the floor:
//! the lane operations named at the heads of `loss_window.rs` and `loss_volume.rs` on two vector units at the clock that a chain of dependent
//! instructions shows.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::losses::{ImageLoss, LossCompute, LossWorkload, VolumeSsimLoss};
use diffnr::geometry::Detector;

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

/// Clock in GHz: shift, exclusive or and multiplication, each waiting for the one before, take 1, 1 and 3 periods.
fn clock_ghz() -> f64 {
    let [_, seconds] = medians(|| {
        let mut x = std::hint::black_box(3u64);
        for _ in 0..20_000_000u32 {
            x = (x ^ (x >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        std::hint::black_box(x);
    });
    5.0 * 0.02 / seconds
}

fn lanes(simd: SimdLevel) -> f64 {
    match simd {
        SimdLevel::Avx512 => 16.0,
        SimdLevel::Avx2 => 8.0,
        SimdLevel::Plain => 1.0,
    }
}

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|k| 0.02 * (1.0 + (k as f32 * 0.013 + phase).sin())).collect()
}

fn volume(edge: usize, threads: usize, simd: SimdLevel, ghz: f64) {
    let (voxels, n) = ([edge; 3], edge.pow(3));
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    cpu.prepare_losses(&LossWorkload { voxels, ..LossWorkload::default() }).unwrap();
    let (a, b, mut by) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let settings = VolumeSsimLoss { weight: 0.5, data_range: 0.04, empty_at: 0.0 };
    let [wall, processor] = medians(|| {
        cpu.volume_ssim_loss(voxels, &settings, &a, &b, &mut by).unwrap();
    });
    let floor = 3.0 * n as f64 * PLANE / (2.0 * lanes(simd) * ghz * 1e9);
    println!(
        "volume {edge:3}^3 {simd:8} {threads}: {:8.2} ms wall {:8.2} ms processor, floor {:8.2} ms processor, {:4.1} x floor",
        1e3 * wall,
        1e3 * processor,
        1e3 * floor,
        processor / floor
    );
}

fn images(edge: usize, views: usize, dissimilarity: f32, threads: usize, ghz: f64) {
    let (detector, n) = (Detector { columns: edge, rows: edge }, views * edge * edge);
    let mut cpu = CpuCompute::new(threads).unwrap();
    cpu.prepare_losses(&LossWorkload { columns: edge, rows: edge, views_per_call: views, voxels: [0; 3] }).unwrap();
    let (p, m, mut by) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let settings = ImageLoss { l1: 1.0, huber: 0.0, squares: 1.0, dissimilarity, data_range: 0.04 };
    let [wall, processor] = medians(|| {
        cpu.image_loss(detector, &settings, &p, &m, None, &mut by).unwrap();
    });
    let operations = if dissimilarity > 0.0 { PLANE } else { 0.0 } + 10.0;
    let floor = n as f64 * operations / (2.0 * lanes(cpu.simd()) * ghz * 1e9);
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
    let ghz = std::env::var("DIFFNR_CLOCK_GHZ").ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock_ghz);
    println!("clock {ghz:.2} GHz (DIFFNR_CLOCK_GHZ overrides)");
    if "volume".contains(&filter) {
        for simd in SimdLevel::available().filter(|&simd| simd != SimdLevel::Plain) {
            volume(128, 1, simd, ghz);
        }
        for edge in [64, 128, 256] {
            volume(edge, 2, SimdLevel::detect(), ghz);
        }
    }
    if "images".contains(&filter) {
        for (edge, views) in [(128, 1), (128, 4), (256, 4), (512, 2)] {
            images(edge, views, 0.0, 2, ghz);
            images(edge, views, 0.25, 2, ghz);
        }
    }
}
