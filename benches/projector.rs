//! Speed of the forward projector and its matched adjoint: `cargo bench --bench projector [-- --json FILE] [--quick]`.
//!
//! Prints seconds (median of five), processor seconds, GUPS (1e9 voxel-views a second) and the ratio to the floor, that is to the time that
//! the operations and bytes named at the head of each operation's file take at the rates measured in the same run. First by SIMD
//! level and threads, then the growth with voxels and views.
#![allow(clippy::unwrap_used)]

mod floor;

use std::f64::consts::TAU;
use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::{Compute, Workload};
use diffnr::geometry::{CircularOrbit, ScanGeometry, VolumeGrid};
use diffnr::simulate::ellipsoids::EllipsoidPhantom;
use floor::Floor;
use glam::DVec3;

/// The box that fills the field of view of [`CircularOrbit::default`].
const BOX_MM: f64 = 270.0;
/// Roll that takes the path ray by ray instead of the path by columns.
const TILT_RAD: f64 = 0.01;

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Medians of five of wall and processor seconds, after one call to warm up.
fn medians(mut work: impl FnMut()) -> (f64, f64) {
    work();
    let (mut wall, mut processor) = ([0.0; 5], [0.0; 5]);
    for (wall, processor) in wall.iter_mut().zip(&mut processor) {
        let (start, start_processor) = (Instant::now(), processor_seconds());
        work();
        (*wall, *processor) = (start.elapsed().as_secs_f64(), processor_seconds() - start_processor);
    }
    wall.sort_by(f64::total_cmp);
    processor.sort_by(f64::total_cmp);
    (wall[2], processor[2])
}

/// Samples that Joseph's method takes in this scan, estimated from every 61st ray: planes crossed within the box.
fn samples(geometry: &ScanGeometry, grid: &VolumeGrid) -> f64 {
    let (low, high) = (grid.origin_mm() - grid.voxel_mm, grid.origin_mm() + grid.size_mm());
    let (columns, pixels) = (geometry.detector.columns, geometry.projection_len());
    let taken = (0..pixels).step_by(61).map(|index| {
        let pose = &geometry.views[index / geometry.detector.pixels()];
        let pixel = index % geometry.detector.pixels();
        let d = pose.pixel_mm((pixel / columns) as f64, (pixel % columns) as f64) - pose.source_mm;
        let (a, b) = ((low - pose.source_mm) / d, (high - pose.source_mm) / d);
        let share = (a.max(b).min_element() - a.min(b).max_element()).max(0.0);
        share * (d / grid.voxel_mm).abs().max_element()
    });
    taken.sum::<f64>() * 61.0
}

/// Lane operations and bytes of the two operations, as the heads of their files count them.
fn work(geometry: &ScanGeometry, grid: &VolumeGrid) -> [(f64, f64); 2] {
    let samples = samples(geometry, grid);
    let pose = &geometry.views[0];
    let magnification = pose.source_to_plane_mm() / pose.source_mm.length();
    let slope = pose.row_step_mm.length() / magnification / grid.voxel_mm.z;
    let (voxels, pixels) = (grid.len() as f64, geometry.projection_len() as f64);
    let forward = samples * (9.0 + 2.0 * slope);
    let back = samples * slope * (10.0 + 5.0 * (2.0 / slope).ceil());
    // What has to move at least: volume and projections once (the caches decide how much more does).
    let bytes = 4.0 * (voxels + pixels);
    [(forward, bytes), (back, bytes)]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let json_path = arguments.iter().position(|a| a == "--json").and_then(|i| arguments.get(i + 1));
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let best = SimdLevel::detect();

    let mut cases = Vec::new();
    for simd in SimdLevel::available() {
        cases.extend([(128, 50, simd, 1, 0.0), (128, 50, simd, all, 0.0)]);
    }
    cases.extend([64, 256].map(|n| (n, 50, best, all, 0.0)));
    if !quick {
        cases.extend([25, 100, 200, 400].map(|views| (128, views, best, all, 0.0)));
        cases.push((128, 50, best, all, TILT_RAD));
    }

    println!("{}", CpuCompute::new(all).unwrap().description());
    println!(
        "detector 256 x 256, box {BOX_MM} mm; GUPS: 1e9 voxel-views a second; floor: operations and bytes at measured rates\n"
    );
    println!("operation  voxels  views  SIMD     threads  median s  processor s    GUPS  x floor");
    let mut floors: Vec<((SimdLevel, usize), Floor)> = Vec::new();
    let mut results = Vec::new();
    for (n, views, simd, threads, roll_rad) in cases {
        let floor = match floors.iter().find(|(key, _)| *key == (simd, threads)) {
            Some((_, floor)) => *floor,
            None => {
                floors.push(((simd, threads), Floor::measure(simd, threads)));
                floors[floors.len() - 1].1
            }
        };
        let geometry = CircularOrbit { roll_rad, ..CircularOrbit::default() }.over_arc(views, 0.0, TAU);
        let grid = VolumeGrid::over_box([n; 3], DVec3::splat(BOX_MM), DVec3::ZERO);
        let mut volume = EllipsoidPhantom::shepp_logan(0.5 * BOX_MM).voxelise(&grid, 1).into_raw_vec_and_offset().0;
        let mut projections = vec![0.0f32; geometry.projection_len()];
        let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
        cpu.prepare(&Workload { columns: 256, rows: 256, views_per_call: views, voxels: grid.voxels }).unwrap();
        let timings = [
            ("forward", medians(|| cpu.forward_project(&geometry, &grid, &volume, &mut projections).unwrap())),
            ("adjoint", medians(|| cpu.back_project_matched(&geometry, &grid, &projections, &mut volume).unwrap())),
        ];
        for ((operation, (wall, processor)), (operations, bytes)) in timings.into_iter().zip(work(&geometry, &grid)) {
            let gups = grid.len() as f64 * views as f64 * 1e-9 / wall;
            let over_floor = wall / floor.seconds(operations, bytes);
            let tilted = if roll_rad == 0.0 { "" } else { "  (rolled: ray by ray)" };
            println!(
                "{operation:9}  {n:4}^3  {views:5}  {:7}  {threads:7}  {wall:8.4}  {processor:11.4}  {gups:6.2}  {over_floor:7.2}{tilted}",
                simd.to_string(),
            );
            results.push(serde_json::json!({
                "operation": operation, "voxels": n, "views": views, "simd": simd.to_string(), "threads": threads, "roll_rad": roll_rad,
                "median_s": wall, "processor_s": processor, "gups": gups, "over_floor": over_floor,
                "lane_operations": operations, "bytes": bytes,
            }));
        }
    }
    println!("\nfloor      SIMD     threads  1e9 lane operations/s  copied GB/s");
    for ((simd, threads), floor) in &floors {
        println!(
            "           {:7}  {threads:7}  {:21.1}  {:11.1}",
            simd.to_string(),
            floor.lane_operations_per_s * 1e-9,
            floor.bytes_per_s * 1e-9
        );
    }
    if let Some(path) = json_path {
        let floors: Vec<_> = floors
            .iter()
            .map(|((simd, threads), floor)| {
                serde_json::json!({
                    "simd": simd.to_string(), "threads": threads,
                    "lane_operations_per_s": floor.lane_operations_per_s, "copy_bytes_per_s": floor.bytes_per_s,
                })
            })
            .collect();
        let description = CpuCompute::new(all).unwrap().description();
        let report = serde_json::json!({ "machine": description, "results": results, "floor": floors });
        std::fs::write(path, format!("{report:#}\n")).unwrap();
        println!("\nwritten: {path}");
    }
}
