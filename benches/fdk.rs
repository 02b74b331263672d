//! Seconds, GUPS (1e9 voxel-views a second) and the ratio to the machine's floor of FDK's stages.
//!
//! `cargo bench --bench fdk -- [--quick] [--threads N] [--json FILE]`; RTK beside ours: `make bench-peers`. The scan is the field's scene in mm (DSO 400, DSD 600, detector
//! 300 mm of 256 x 256 pixels, volume 200 mm wide). Every figure is the median of five runs, data in memory, scratch warm.

mod floor;

use std::sync::Arc;
use std::time::Instant;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::{Compute as _, ProjectionWeights};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use diffnr::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings};
use floor::Floor;
use glam::DVec3;
use serde_json::json;

const RUNS: usize = 5;

struct Options {
    quick: bool,
    threads: usize,
    json: Option<String>,
}

fn options() -> Options {
    let mut options = Options { quick: false, threads: 0, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => options.quick = true,
            "--threads" => options.threads = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(0),
            "--json" => options.json = arguments.next(),
            _ => {} // cargo's own --bench
        }
    }
    options
}

fn scan(views: usize) -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns: 256, rows: 256 },
        pitch_u_mm: 300.0 / 256.0,
        pitch_v_mm: 300.0 / 256.0,
        ..CircularOrbit::default()
    };
    orbit.over_arc(views, 0.0, std::f64::consts::TAU)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn time(mut work: impl FnMut()) -> f64 {
    work();
    median(
        (0..RUNS)
            .map(|_| {
                let begin = Instant::now();
                work();
                begin.elapsed().as_secs_f64()
            })
            .collect(),
    )
}

/// Measured seconds of one size.
struct Row {
    voxels: usize,
    views: usize,
    weight: f64,
    filter: f64,
    back_project: f64,
    whole: f64,
    one_view: f64,
}

impl Row {
    fn measure(compute: &mut CpuCompute, voxels: usize, views: usize) -> Self {
        let geometry = scan(views);
        let grid = VolumeGrid::over_box([voxels; 3], DVec3::splat(200.0), DVec3::ZERO);
        let plan = FdkPlan::new(compute, &geometry, &grid, FdkSettings::default()).expect("the scan is sound");
        let plan = Arc::new(plan);
        let pixels = geometry.detector.pixels();
        let projections: Vec<f32> = (0..views * pixels).map(|i| 1.0 + (i % 251) as f32 * 0.01).collect();
        let mut weighted = vec![0.0_f32; projections.len()];
        let mut volume = vec![0.0_f32; grid.len()];
        let image = vec![0.5_f32; pixels];
        let columns = vec![1.0_f32; views * geometry.detector.columns];
        let weights =
            ProjectionWeights { detector: geometry.detector, pad: [0, 0], image: &image[..], columns: &columns };
        let filter = diffnr::compute::cpu::ramp_filter::RampFilter::new(
            geometry.detector.columns,
            diffnr::compute::cpu::ramp_filter::Window::RamLak,
            1.0,
        );
        let compute: &CpuCompute = compute;
        let weight = time(|| compute.weight_projections(&weights, &projections, &mut weighted).expect("fits"));
        // Filtering over and over drives values towards 0: denormals would slow it down.
        let filter_seconds = time(|| {
            weighted[..pixels].fill(1.0);
            compute.filter_rows(&filter, &mut weighted).expect("fits");
        });
        weighted.copy_from_slice(&projections);
        let back_project = time(|| compute.back_project_fdk(&geometry, &grid, &weighted, &mut volume).expect("fits"));
        drop(volume);
        let mut accumulator = FdkAccumulator::new(compute, Arc::clone(&plan)).expect("fits");
        let whole = time(|| {
            accumulator.reset(compute).expect("fits");
            accumulator.add_views(compute, 0, &projections).expect("fits");
        });
        let mut next = 0;
        let one_view = time(|| {
            if next == 0 {
                accumulator.reset(compute).expect("fits");
            }
            accumulator.add_view(compute, next, None, &projections[next * pixels..][..pixels]).expect("fits");
            next = (next + 1) % views;
        });
        Self { voxels, views, weight, filter: filter_seconds, back_project, whole, one_view }
    }

    fn gups(&self, seconds: f64) -> f64 {
        (self.voxels.pow(3) * self.views) as f64 / seconds / 1e9
    }

    /// Seconds that the machine needs at least: (weight, filter, back-project).
    fn floors(&self, machine: &Floor) -> (f64, f64, f64) {
        let (pixels, voxels) = ((self.views * 256 * 256) as f64, self.voxels.pow(3) as f64);
        let weight = machine.seconds(2.0 * pixels, 8.0 * pixels);
        // Two real transforms of 512 points: 2.5 n log2 n operations each, two of them in a multiply-add at best.
        let filter = machine.seconds(pixels / 256.0 * 2.0 * 2.5 * 512.0 * 9.0 / 2.0, 8.0 * pixels);
        // Nine operations a voxel and view to resample, two a pixel to blend, of which a voxel spans 1.25 (300 mm of
        // pixels on 200 mm of voxels at magnification 1.5) times pixels over voxels. Bytes: copies of the views, the volume.
        let blend = 2.0 * 256.0 / self.voxels as f64;
        let back = machine.seconds((9.0 + blend) * voxels * self.views as f64, 16.0 * pixels + 8.0 * voxels);
        (weight, filter, back)
    }

    fn print(&self, machine: &Floor) {
        let (weight, filter, back) = self.floors(machine);
        let ms = |s: f64| 1e3 * s;
        println!(
            "{:>4}^3 {:>5} views | weight {:>7.2} ms ({:>4.1}x floor) | filter {:>7.2} ms ({:>4.1}x) | back-project {:>8.2} ms \
             ({:>4.1}x) {:>6.2} GUPS | whole {:>8.2} ms ({:>4.1}x) {:>6.2} GUPS | one view {:>6.2} ms",
            self.voxels,
            self.views,
            ms(self.weight),
            self.weight / weight,
            ms(self.filter),
            self.filter / filter,
            ms(self.back_project),
            self.back_project / back,
            self.gups(self.back_project),
            ms(self.whole),
            self.whole / (weight + filter + back),
            self.gups(self.whole),
            ms(self.one_view),
        );
    }

    fn json(&self, machine: &Floor, simd: SimdLevel, threads: usize) -> serde_json::Value {
        let (weight, filter, back) = self.floors(machine);
        json!({
            "voxels": self.voxels, "views": self.views, "simd": simd.to_string(), "threads": threads,
            "weight_s": self.weight, "filter_s": self.filter, "back_project_s": self.back_project, "whole_s": self.whole,
            "one_view_s": self.one_view, "gups": self.gups(self.whole), "back_project_gups": self.gups(self.back_project),
            "floor_s": {"weight": weight, "filter": filter, "back_project": back},
        })
    }
}

fn main() {
    let options = options();
    let mut rows = Vec::new();
    let mut compute = CpuCompute::new(options.threads).expect("threads start");
    let machine = Floor::measure(compute.simd(), compute.threads());
    println!("{}", compute.description());
    println!(
        "floor: {:.0}e9 float operations/s, {:.1} GB/s",
        machine.lane_operations_per_s / 1e9,
        machine.bytes_per_s / 1e9
    );
    let sizes: &[usize] = if options.quick { &[128, 256] } else { &[64, 96, 128, 192, 256] };
    let mut measure = |compute: &mut CpuCompute, voxels, views, machine: &Floor| {
        let row = Row::measure(compute, voxels, views);
        row.print(machine);
        rows.push(row.json(machine, compute.simd(), compute.threads()));
    };
    println!("\nvolume sizes:");
    for &size in sizes {
        measure(&mut compute, size, 50, &machine);
    }
    if !options.quick {
        println!("\nviews:");
        for views in [25, 100, 200, 400] {
            measure(&mut compute, 128, views, &machine);
        }
        for simd in SimdLevel::available() {
            println!("\nSIMD level {simd}:");
            let mut compute = CpuCompute::with_simd(options.threads, simd).expect("the level is there");
            let machine = Floor::measure(simd, compute.threads());
            measure(&mut compute, 128, 50, &machine);
        }
        let all = compute.threads();
        for threads in [1, 2, 4, 8, 16, 32].into_iter().filter(|&n| n <= all) {
            println!("\n{threads} threads:");
            let mut compute = CpuCompute::new(threads).expect("threads start");
            let machine = Floor::measure(compute.simd(), threads);
            measure(&mut compute, 128, 50, &machine);
        }
    }
    if let Some(path) = options.json {
        let text = json!({
            "bench": "fdk", "device": compute.description(),
            "floor": {"lane_operations_per_s": machine.lane_operations_per_s, "bytes_per_s": machine.bytes_per_s},
            "rows": rows,
        });
        if let Err(error) = std::fs::write(&path, format!("{text:#}\n")) {
            eprintln!("{path}: {error}");
            std::process::exit(9);
        }
    }
}
