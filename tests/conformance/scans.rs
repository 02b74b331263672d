//! Geometries to project with: named ones, and any.

use std::f64::consts::TAU;

use diffnr::compute::Workload;
use diffnr::compute::cpu::CpuCompute;
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use glam::DVec3;
use proptest::prelude::*;

/// What properties run with: the same cases in every run, so that a failure can be looked for; fewer where `PROPTEST_CASES` says so (under a tool that makes
/// kernels slow).
pub(crate) fn settings(cases: u32) -> ProptestConfig {
    let most = std::env::var("PROPTEST_CASES").ok().and_then(|most| most.parse().ok()).unwrap_or(u32::MAX);
    ProptestConfig {
        cases: cases.min(most),
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }
}

/// The CPU, ready for this scan.
pub(crate) fn cpu(geometry: &ScanGeometry, grid: &VolumeGrid) -> CpuCompute {
    use diffnr::compute::Compute as _;
    let mut cpu = CpuCompute::new(1).unwrap();
    let workload = Workload {
        columns: geometry.detector.columns,
        rows: geometry.detector.rows,
        views_per_call: geometry.views.len(),
        voxels: grid.voxels,
    };
    cpu.prepare(&workload).unwrap();
    cpu
}

pub(crate) fn orbit(columns: usize, rows: usize, width_mm: f64) -> CircularOrbit {
    let pitch = width_mm / columns as f64;
    CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns, rows },
        pitch_u_mm: pitch,
        pitch_v_mm: pitch,
        ..CircularOrbit::default()
    }
}

pub(crate) fn grid(voxels: [usize; 3], size_mm: f64) -> VolumeGrid {
    VolumeGrid::over_box(voxels, DVec3::splat(size_mm), DVec3::ZERO)
}

/// The cases that have their own ways through the kernels, by name.
pub(crate) fn named() -> Vec<(&'static str, ScanGeometry, VolumeGrid)> {
    // Cones of 60 degrees about a tall grid near the source: rays along z.
    let steep = CircularOrbit {
        source_to_isocenter_mm: 60.0,
        source_to_detector_mm: 120.0,
        pitch_v_mm: 400.0 / 24.0,
        ..orbit(20, 24, 100.0)
    };
    let tall = VolumeGrid::over_box([9, 10, 60], DVec3::new(30.0, 30.0, 140.0), DVec3::ZERO);
    let tilted = CircularOrbit { roll_rad: 0.4, pitch_rad: -0.2, yaw_rad: 0.1, ..orbit(19, 21, 150.0) };
    // The source 3300 voxels away, and a detector of many pixels: what float32 positions are hardest tried by.
    let far = CircularOrbit {
        source_to_isocenter_mm: 1000.0,
        source_to_detector_mm: 1500.0,
        offset_u_mm: 0.31,
        ..orbit(7, 9, 4.0)
    };
    let long = VolumeGrid::over_box([900, 5, 6], DVec3::new(270.0, 1.5, 1.8), DVec3::ZERO);
    let wide = CircularOrbit { pitch_v_mm: 1.0, ..orbit(1500, 3, 600.0) };
    let flat = VolumeGrid::over_box([40, 40, 2], DVec3::new(380.0, 380.0, 2.0), DVec3::ZERO);
    // A block of voxels casts its shadow on more columns and rows than it stages at a time; more heights than a block has.
    let fine = CircularOrbit { pitch_v_mm: 0.75, ..orbit(90, 200, 22.0) };
    let column = VolumeGrid::over_box([3, 4, 70], DVec3::new(4.0, 5.0, 90.0), DVec3::ZERO);
    let quarter = CircularOrbit { roll_rad: 1.57, ..orbit(15, 13, 150.0) };
    let offset = CircularOrbit { offset_u_mm: 60.0, offset_v_mm: -5.1, ..orbit(17, 12, 150.0) };
    let shifted = VolumeGrid::over_box([12, 15, 22], DVec3::new(60.0, 75.0, 50.0), DVec3::new(17.0, -9.0, 6.0));
    let above = VolumeGrid::over_box([8; 3], DVec3::splat(10.0), DVec3::new(0.0, 0.0, 300.0));
    vec![
        ("circle", orbit(24, 20, 150.0).over_arc(6, 0.1, TAU), grid([17; 3], 100.0)),
        ("half-fan", offset.over_arc(5, 0.3, -TAU), grid([16, 18, 12], 100.0)),
        ("tilted", tilted.over_arc(4, 0.2, TAU), grid([14, 13, 15], 100.0)),
        ("rolled by a quarter", quarter.over_arc(3, 0.2, TAU), grid([11, 12, 9], 100.0)),
        ("steep", steep.over_arc(4, 0.1, TAU), tall),
        ("shifted grid", orbit(20, 22, 150.0).over_arc(5, 0.1, TAU), shifted),
        ("nothing seen", orbit(9, 9, 150.0).over_arc(2, 0.1, TAU), above),
        ("one of each", orbit(1, 1, 150.0).over_arc(1, 0.1, TAU), grid([1; 3], 90.0)),
        ("large pixels", orbit(3, 4, 150.0).over_arc(3, 0.1, TAU), grid([20, 19, 21], 100.0)),
        ("far source", far.at_angles(&[0.0, 0.002, 0.5 * TAU + 0.001]), long),
        ("wide detector", wide.over_arc(3, 0.1, TAU), flat),
        ("small pixels", fine.over_arc(2, 0.1, TAU), column),
        ("large voxels", orbit(40, 38, 150.0).over_arc(3, 0.1, TAU), grid([3, 4, 5], 100.0)),
    ]
}

/// Any pose and grid.
pub(crate) fn any() -> impl Strategy<Value = (ScanGeometry, VolumeGrid)> {
    (
        (1usize..20, 1usize..20, 1usize..36),
        (1usize..30, 1usize..40, 1usize..4),
        prop::array::uniform3(20.0..120.0f64),
        prop::array::uniform3(-15.0..15.0f64),
        (-40.0..40.0f64, -20.0..20.0f64),
        prop::option::of(prop::array::uniform3(-0.5..0.5f64)),
        (60.0..300.0f64, 60.0..300.0f64, 0.0..TAU),
    )
        .prop_map(|((nx, ny, nz), (columns, rows, views), size, centre, offsets, tilt, (width, height, start))| {
            let [roll_rad, pitch_rad, yaw_rad] = tilt.unwrap_or_default();
            let orbit = CircularOrbit {
                pitch_v_mm: height / rows as f64,
                offset_u_mm: offsets.0,
                offset_v_mm: offsets.1,
                roll_rad,
                pitch_rad,
                yaw_rad,
                ..orbit(columns, rows, width)
            };
            let grid = VolumeGrid::over_box([nx, ny, nz], DVec3::from_array(size), DVec3::from_array(centre));
            (orbit.over_arc(views, start, TAU), grid)
        })
}

/// Whether a ray is as long along one axis as along another, to within rounding: which one Joseph's method steps along is then open, and
/// carriers may differ.
pub(crate) fn is_tie(geometry: &ScanGeometry, grid: &VolumeGrid, pixel: usize) -> bool {
    let columns = geometry.detector.columns;
    let (view, pixel) = (pixel / geometry.detector.pixels(), pixel % geometry.detector.pixels());
    let pose = &geometry.views[view];
    let ray = pose.pixel_mm((pixel / columns) as f64, (pixel % columns) as f64) - pose.source_mm;
    let mut lengths = (ray / grid.voxel_mm).abs().to_array();
    lengths.sort_by(f64::total_cmp);
    lengths[2] - lengths[1] < 1e-5 * lengths[2]
}
