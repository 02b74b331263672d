//! quick
#![allow(missing_docs, clippy::unwrap_used)]
use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::{Compute, Workload};
use diffnr::geometry::{CircularOrbit, VolumeGrid};
use glam::DVec3;
use std::time::Instant;

fn median(mut f: impl FnMut()) -> f64 {
    f();
    let mut t: Vec<f64> = (0..5)
        .map(|_| {
            let s = Instant::now();
            f();
            s.elapsed().as_secs_f64()
        })
        .collect();
    t.sort_by(f64::total_cmp);
    t[2]
}

fn main() {
    let only: Option<String> = std::env::var("ONLY").ok();
    for (n, views) in [(64, 50), (128, 50), (256, 50)] {
        let orbit = CircularOrbit::default();
        let geometry = orbit.over_arc(views, 0.0, std::f64::consts::TAU);
        let grid = VolumeGrid::over_box([n; 3], DVec3::splat(270.0), DVec3::ZERO);
        let volume: Vec<f32> = (0..grid.len()).map(|i| (i % 1013) as f32 * 1e-5).collect();
        let mut projections = vec![0.0f32; geometry.projection_len()];
        for simd in SimdLevel::available() {
            if only.as_ref().is_some_and(|o| *o != simd.to_string()) {
                continue;
            }
            for threads in [1, 2] {
                let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
                cpu.prepare(&Workload { columns: 256, rows: 256, views_per_call: views, voxels: [n; 3] }).unwrap();
                let f = median(|| cpu.forward_project(&geometry, &grid, &volume, &mut projections).unwrap());
                let mut back = vec![0.0f32; grid.len()];
                let b = median(|| {
                    let _ = cpu.back_project_matched(&geometry, &grid, &projections, &mut back);
                });
                println!(
                    "{n:4} {views:4} {simd:8} {threads} fwd {f:.4} s  adj {b:.4} s  checksum {}",
                    projections.iter().map(|&x| x as f64).sum::<f64>()
                );
            }
        }
    }
}
