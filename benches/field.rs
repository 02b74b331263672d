//! Speed of the field's operations against the machine's floor, for several shapes.
//!
//! `cargo bench --bench field [-- FILTER]`. Each line: medians of five of one call, wall clock and processor time of all threads, and that time over the
//! floor. The floor is the network's multiply-adds at the rate of lane operations that this machine shows at the start (forward `m`, backward `4 m` a
//! point for `m` weights), plus for the encoding what [`encoding`] counts; bytes are fewer than the machine moves in that time.

#![allow(missing_docs, clippy::unwrap_used)]

mod floor;

use std::time::Instant;

use diffnr::compute::Operations;
use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::field::{FieldCompute as _, FieldJitter, FieldRays, FieldShape, FieldWorkload, RayPixel};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::represent::field::draw::draw_rays;
use diffnr::represent::field::{Field, FieldRates};
use floor::Floor;
use glam::DVec3;

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

/// Lane operations a point that the encoding cannot do without, forward and in the backward pass: for voxels by rows of `row` (lines: 4 multiply-adds a node
/// and feature, twice for the adjoint; interpolation: 2 operations a feature, 4 for the adjoint), for single points 8 a feature and level.
fn encoding(shape: &FieldShape, row: Option<usize>) -> [f64; 2] {
    let features = shape.features as f64;
    let of_level = |level: usize| match row {
        Some(row) => {
            let nodes = (shape.cells(level) + 1).min(2 * row) as f64;
            [features * (4.0 * nodes / row as f64 + 2.0), features * (8.0 * nodes / row as f64 + 6.0)]
        }
        None => [8.0 * features, 16.0 * features],
    };
    (0..shape.levels).map(of_level).fold([0.0; 2], |sum, of| [sum[0] + of[0], sum[1] + of[1]])
}

struct Case {
    name: &'static str,
    shape: FieldShape,
    voxels: usize,
}

impl Case {
    fn run(&self, threads: usize, simd: SimdLevel) {
        let Self { name, shape, voxels } = self;
        let floor = Floor::measure(simd, threads);
        let grid = VolumeGrid::over_box([*voxels; 3], DVec3::splat(256.0), DVec3::ZERO);
        let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
        cpu.prepare_field(&FieldWorkload { shape: *shape, voxels: grid.voxels, box_mm: [256.0; 3], rays: 2048 })
            .unwrap();
        let compute: &dyn Operations = &cpu;
        let mut field = Field::new(compute, shape, &grid).unwrap();
        let weights = field.layout().network_len() as f64;
        let parameters = (field.layout().tables_len() + field.layout().network_len()) as f64;
        let jitter = Some(FieldJitter { seed: 1, iteration: 2 });
        let report = |operation: &str, [wall, processor]: [f64; 2], points: f64, of_point: f64, bytes: f64| {
            let least = floor.seconds(points * of_point, bytes);
            println!(
                "{name:14} {simd:8} {threads} {operation:18} {:8.1} ms wall {:8.1} ms processor {:7.2} ns a point {:5.1} x floor",
                1e3 * wall,
                1e3 * processor,
                1e9 * processor / points,
                processor / threads as f64 / least,
            );
        };
        println!(
            "{name}: {} levels x {} to {} cells, table 2^{}, network {} x {}, {:.2} M parameters",
            shape.levels,
            shape.features,
            shape.cells(shape.levels - 1),
            shape.log2_table,
            shape.hidden_layers,
            shape.width,
            1e-6 * parameters
        );
        let mut volume = vec![0.0f32; grid.len()];
        let points = grid.len() as f64;
        let [forward, backward] = encoding(shape, Some(*voxels));
        let seconds =
            medians(|| compute.field_voxelise(&grid, &field.parameters(), jitter, (&mut volume).into()).unwrap());
        report("voxelise", seconds, points, weights + forward, 4.0 * points);
        volume.iter_mut().enumerate().for_each(|(k, by)| *by = 1e-3 * (k as f32 * 0.01).sin());
        let seconds = medians(|| {
            let (parameters, gradients) = field.parameters_and_gradients();
            compute.field_voxelise_backward(&grid, &parameters, jitter, (&volume).into(), gradients).unwrap();
        });
        report("voxelise_backward", seconds, points, 4.0 * weights + backward, 4.0 * points);

        let orbit = CircularOrbit {
            source_to_isocenter_mm: 1000.0,
            source_to_detector_mm: 1500.0,
            detector: Detector { columns: 128, rows: 128 },
            pitch_u_mm: 3.0,
            pitch_v_mm: 3.0,
            ..CircularOrbit::default()
        };
        let geometry = orbit.over_arc(36, 0.0, std::f64::consts::TAU);
        let mut pixels = vec![RayPixel::default(); 2048];
        let views: Vec<usize> = (0..36).collect();
        draw_rays(&geometry, &views, FieldJitter { seed: 1, iteration: 2 }, &mut pixels);
        let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples: *voxels, jitter };
        let mut integrals = vec![0.0f32; pixels.len()];
        let seconds = medians(|| compute.field_project(&rays, &field.parameters(), (&mut integrals).into()).unwrap());
        let hit = integrals.iter().filter(|&&integral| integral != 0.0).count() as f64;
        let points = hit * *voxels as f64;
        let [forward, backward] = encoding(shape, None);
        report("project", seconds, points, weights + forward, 0.0);
        let seconds = medians(|| {
            let (parameters, gradients) = field.parameters_and_gradients();
            compute.field_project_backward(&rays, &parameters, (&integrals).into(), gradients).unwrap();
        });
        report("project_backward", seconds, points, 4.0 * weights + backward, 0.0);
        let rates = FieldRates { tables: 1e-6, network: 1e-6, ..FieldRates::default() };
        let seconds = medians(|| field.step(compute, &rates, 1).unwrap());
        report("adam_step", seconds, parameters, 12.0, 28.0 * parameters);
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let shape = |levels, features, finest, log2_table, width, hidden_layers| FieldShape {
        levels,
        features,
        coarsest_cells: 8,
        growth: FieldShape::growth_to(8, finest, levels),
        log2_table,
        width,
        hidden_layers,
        leak: 0.01,
        density_unit_per_mm: 0.02,
    };
    let best = SimdLevel::detect();
    let cases = [
        Case {
            name: "3x2-22-w16",
            shape: FieldShape { coarsest_cells: 32, growth: 2.0, ..shape(3, 2, 128, 22, 16, 1) },
            voxels: 128,
        },
        Case { name: "8x2-17", shape: shape(8, 2, 128, 17, 32, 2), voxels: 128 },
        Case { name: "16x2-19", shape: shape(16, 2, 128, 19, 32, 2), voxels: 128 },
        Case { name: "4x4-19-w64", shape: shape(4, 4, 64, 19, 64, 2), voxels: 128 },
        Case { name: "8x2-17-w16", shape: shape(8, 2, 128, 17, 16, 1), voxels: 128 },
        Case { name: "8x2-19-256", shape: shape(8, 2, 256, 19, 32, 2), voxels: 256 },
    ];
    for case in cases.iter().filter(|case| case.name.contains(&filter)) {
        case.run(2, best);
    }
    if "levels".contains(&filter) {
        for simd in SimdLevel::available() {
            Case { name: "levels", shape: shape(8, 2, 128, 17, 32, 2), voxels: 64 }.run(1, simd);
        }
    }
}
