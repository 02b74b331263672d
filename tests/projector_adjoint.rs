//! The forward projector and its adjoint are one operator and its transpose, for all poses, sizes, paths and SIMD levels, and the same to
//! the bit for any number of threads.
#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;

use diffnr::compute::cpu::{CpuCompute, SimdLevel};
use diffnr::compute::{Compute, ComputeError, Workload};
use diffnr::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use glam::DVec3;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform in [0, 1): inner products are then far from zero, so that their ratio means something.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn carrier(threads: usize, simd: SimdLevel, geometry: &ScanGeometry, grid: &VolumeGrid) -> CpuCompute {
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    let workload = Workload {
        columns: geometry.detector.columns,
        rows: geometry.detector.rows,
        views_per_call: geometry.views.len(),
        voxels: grid.voxels,
    };
    cpu.prepare(&workload).unwrap();
    cpu
}

/// `A x` and `A' y` into buffers full of NaN: every value must be written.
fn both(cpu: &CpuCompute, geometry: &ScanGeometry, grid: &VolumeGrid, x: &[f32], y: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut ax = vec![f32::NAN; geometry.projection_len()];
    let mut aty = vec![f32::NAN; grid.len()];
    cpu.forward_project(geometry, grid, x, &mut ax).unwrap();
    cpu.back_project_matched(geometry, grid, y, &mut aty).unwrap();
    (ax, aty)
}

/// 1e-5 is the requirement. Float32 rounding of positions (3e-5 voxel at these sizes) and of sums is random and averages out over the thousands
/// of terms of an inner product.
fn assert_adjoint(what: &str, geometry: &ScanGeometry, grid: &VolumeGrid) {
    let (x, y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
    let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
    for simd in SimdLevel::available() {
        let (ax, aty) = both(&carrier(2, simd, geometry, grid), geometry, grid, &x, &y);
        let (a, b) = (dot(&ax, &y), dot(&x, &aty));
        assert!(a.is_finite() && b.is_finite(), "{what}, {simd}: {a} {b}");
        assert!(
            (a - b).abs() <= 1e-5 * a.abs(),
            "{what}, {simd}: <Ax,y> = {a}, <x,A'y> = {b}, ratio - 1 = {:e}",
            a / b - 1.0
        );
        match &first {
            None => first = Some((ax, aty)),
            Some((px, py)) => {
                assert_close(&format!("{what}, {simd}, A x"), &ax, px);
                assert_close(&format!("{what}, {simd}, A' y"), &aty, py);
            }
        }
    }
}

/// Levels and paths differ by rounding: of positions (1e-4 voxel at the worst, times the slope of the data, which is up to 1 a voxel
/// here) in each of many samples; relative to the largest value.
fn assert_close(what: &str, a: &[f32], b: &[f32]) {
    let scale = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 5e-5 * scale, "{what}: at {i}: {a} and {b}, largest {scale}");
    }
}

fn orbit(columns: usize, rows: usize, width_mm: f64) -> CircularOrbit {
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

fn cube(n: usize, size_mm: f64) -> VolumeGrid {
    VolumeGrid::over_box([n; 3], DVec3::splat(size_mm), DVec3::ZERO)
}

#[test]
fn plain_circle() {
    assert_adjoint("circle", &orbit(48, 40, 150.0).over_arc(24, 0.0, TAU), &cube(33, 100.0));
}

#[test]
fn offsets_and_half_fan() {
    let o = CircularOrbit { offset_u_mm: 3.7, offset_v_mm: -5.1, ..orbit(40, 40, 150.0) };
    assert_adjoint("offsets", &o.over_arc(11, 0.3, TAU), &cube(32, 100.0));
    let o = CircularOrbit { offset_u_mm: 60.0, ..orbit(40, 24, 150.0) };
    assert_adjoint("half-fan", &o.over_arc(13, 0.1, -TAU), &cube(32, 100.0));
}

#[test]
fn tilts() {
    for (roll_rad, pitch_rad, yaw_rad) in
        [(0.05, 0.0, 0.0), (0.0, 0.08, 0.0), (0.0, 0.0, 0.3), (0.4, -0.2, 0.1), (1.57, 0.0, 0.0)]
    {
        let o = CircularOrbit { roll_rad, pitch_rad, yaw_rad, ..orbit(30, 26, 150.0) };
        assert_adjoint(&format!("tilt {roll_rad} {pitch_rad} {yaw_rad}"), &o.over_arc(9, 0.2, TAU), &cube(24, 100.0));
    }
}

#[test]
fn odd_sizes() {
    for (n, columns, rows) in [(1, 1, 1), (1, 17, 33), (3, 17, 1), (17, 3, 17), (33, 1, 64), (31, 33, 17), (2, 16, 16)]
    {
        let o = orbit(columns, rows, 150.0);
        // A single wide pixel would be a square as high as wide.
        let o = CircularOrbit { pitch_v_mm: 150.0 / rows as f64, ..o };
        assert_adjoint(&format!("{n}^3, {columns} x {rows}"), &o.over_arc(7, 0.1, TAU), &cube(n, 90.0));
    }
}

#[test]
fn fine_and_coarse_rows() {
    // Rises per row from 0.05 to about 20 voxels: every way of grouping rows or heights, and the plain fallback.
    for (n, rows) in [(8, 200), (12, 90), (16, 64), (24, 40), (40, 30), (64, 30), (64, 14), (64, 8), (100, 4)] {
        let o = CircularOrbit { pitch_v_mm: 140.0 / rows as f64, ..orbit(16, rows, 150.0) };
        let grid = VolumeGrid::over_box([12, 14, n], DVec3::splat(90.0), DVec3::ZERO);
        assert_adjoint(&format!("{n} heights, {rows} rows"), &o.over_arc(6, 0.1, TAU), &grid);
    }
}

#[test]
fn anisotropic_shifted_and_tall_grids() {
    let o = orbit(40, 44, 150.0);
    for (voxels, size, centre) in [
        ([20, 31, 44], [80.0, 95.0, 60.0], [0.0, 0.0, 0.0]),
        ([24, 24, 24], [60.0, 60.0, 60.0], [17.0, -9.0, 6.0]),
        // Much taller than the fan, and much flatter.
        ([16, 16, 150], [80.0, 80.0, 900.0], [0.0, 0.0, 20.0]),
        ([32, 32, 3], [90.0, 90.0, 6.0], [0.0, 0.0, -4.0]),
        // Wholly beside the fan.
        ([8, 8, 8], [10.0, 10.0, 10.0], [0.0, 0.0, 300.0]),
    ] {
        let grid = VolumeGrid::over_box(voxels, DVec3::from_array(size), DVec3::from_array(centre));
        if centre[2] == 300.0 {
            // Nothing is seen: both are exactly zero.
            let (x, y) = (random(grid.len(), 1), random(o.detector.pixels(), 2));
            let geometry = o.over_arc(1, 0.0, TAU);
            let (ax, aty) = both(&carrier(1, SimdLevel::detect(), &geometry, &grid), &geometry, &grid, &x, &y);
            assert!(ax.iter().chain(&aty).all(|&v| v == 0.0));
        } else {
            assert_adjoint(&format!("{voxels:?} {size:?} {centre:?}"), &o.over_arc(10, 0.1, TAU), &grid);
        }
    }
}

#[test]
fn detectors_larger_and_smaller_than_the_volume() {
    assert_adjoint("larger", &orbit(64, 64, 500.0).over_arc(9, 0.0, TAU), &cube(32, 100.0));
    assert_adjoint("smaller", &orbit(32, 32, 40.0).over_arc(9, 0.0, TAU), &cube(48, 100.0));
}

#[test]
fn several_slabs_of_heights() {
    // More heights than a tile of the adjoint holds.
    let o = CircularOrbit { pitch_v_mm: 4.0, ..orbit(8, 120, 100.0) };
    let grid = VolumeGrid::over_box([9, 8, 300], DVec3::new(60.0, 60.0, 280.0), DVec3::ZERO);
    assert_adjoint("slabs", &o.over_arc(5, 0.1, TAU), &grid);
    let o = CircularOrbit { roll_rad: 0.02, ..o };
    assert_adjoint("slabs, rolled", &o.over_arc(5, 0.1, TAU), &grid);
}

#[test]
fn steep_cones_go_along_z() {
    // Cone angles over 45 degrees: planes across z.
    let o = CircularOrbit {
        source_to_isocenter_mm: 100.0,
        source_to_detector_mm: 150.0,
        pitch_v_mm: 400.0 / 24.0,
        ..orbit(24, 24, 150.0)
    };
    assert_adjoint("steep", &o.over_arc(5, 0.1, TAU), &cube(20, 60.0));
}

#[test]
fn both_paths_give_the_same_values() {
    let grid = VolumeGrid::over_box([30, 34, 28], DVec3::new(90.0, 95.0, 80.0), DVec3::new(2.0, -3.0, 1.0));
    let by_columns = CircularOrbit { offset_u_mm: 4.0, yaw_rad: 0.1, ..orbit(40, 44, 150.0) }.over_arc(12, 0.1, TAU);
    // A lean of the rows far below any pixel's size, but above what the path by columns accepts.
    let mut by_rays = by_columns.clone();
    for pose in &mut by_rays.views {
        pose.row_step_mm.x += 1e-6;
    }
    let (x, y) = (random(grid.len(), 1), random(by_columns.projection_len(), 2));
    for simd in SimdLevel::available() {
        let cpu = carrier(2, simd, &by_columns, &grid);
        let (a, at) = both(&cpu, &by_columns, &grid, &x, &y);
        let (b, bt) = both(&cpu, &by_rays, &grid, &x, &y);
        assert_close("A x", &a, &b);
        assert_close("A' y", &at, &bt);
    }
}

#[test]
fn the_same_to_the_bit_for_any_number_of_threads_and_from_inside_the_pool() {
    let flat = orbit(40, 44, 150.0);
    let rolled = CircularOrbit { roll_rad: 0.05, ..flat };
    let grid = cube(37, 95.0);
    for o in [flat, rolled] {
        let geometry = o.over_arc(17, 0.1, TAU);
        let (x, y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
        for simd in SimdLevel::available() {
            let one = both(&carrier(1, simd, &geometry, &grid), &geometry, &grid, &x, &y);
            for threads in [2, 3] {
                let cpu = carrier(threads, simd, &geometry, &grid);
                assert!(one == both(&cpu, &geometry, &grid, &x, &y), "{simd}, {threads} threads");
                assert!(
                    one == cpu.install(|| both(&cpu, &geometry, &grid, &x, &y)),
                    "{simd}, {threads} threads, inside"
                );
            }
        }
    }
}

#[test]
fn more_views_than_one_pass_takes() {
    // A detector of 2000 x 2000 pixels is brought into order four views at a time.
    let geometry = orbit(2000, 2000, 150.0).over_arc(5, 0.1, TAU);
    let grid = cube(6, 90.0);
    let (x, y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
    let (ax, aty) = both(&carrier(2, SimdLevel::detect(), &geometry, &grid), &geometry, &grid, &x, &y);
    let (a, b) = (dot(&ax, &y), dot(&x, &aty));
    assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
}

#[test]
fn views_one_by_one_add_up() {
    let grid = cube(24, 95.0);
    let geometry = orbit(32, 30, 150.0).over_arc(6, 0.1, TAU);
    let cpu = carrier(2, SimdLevel::detect(), &geometry, &grid);
    let (x, y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
    let (ax, aty) = both(&cpu, &geometry, &grid, &x, &y);
    let pixels = geometry.detector.pixels();
    let mut sum = vec![0.0f32; grid.len()];
    for (i, &pose) in geometry.views.iter().enumerate() {
        let single = ScanGeometry { detector: geometry.detector, views: vec![pose] };
        let range = i * pixels..(i + 1) * pixels;
        let (a, at) = both(&cpu, &single, &grid, &x, &y[range.clone()]);
        assert!(a == ax[range], "view {i}");
        sum.iter_mut().zip(&at).for_each(|(s, v)| *s += v);
    }
    assert_close("A' y", &sum, &aty);
}

#[test]
fn empty_scans_and_grids() {
    let cpu = CpuCompute::new(1).unwrap();
    let grid = cube(4, 10.0);
    let none = orbit(8, 8, 20.0).over_arc(0, 0.0, TAU);
    let mut volume = vec![1.0; grid.len()];
    cpu.forward_project(&none, &grid, &volume, &mut []).unwrap();
    cpu.back_project_matched(&none, &grid, &[], &mut volume).unwrap();
    assert!(volume.iter().all(|&v| v == 0.0), "no views: A' y is zero");

    let empty = VolumeGrid { voxels: [4, 0, 4], ..grid };
    let geometry = orbit(8, 8, 20.0).over_arc(2, 0.0, TAU);
    let mut projections = vec![1.0; geometry.projection_len()];
    cpu.forward_project(&geometry, &empty, &[], &mut projections).unwrap();
    cpu.back_project_matched(&geometry, &empty, &projections, &mut []).unwrap();
    assert!(projections.iter().all(|&v| v == 0.0), "no voxels: A x is zero");
}

#[test]
fn wrong_lengths_and_unprepared_workloads_are_refused() {
    let (grid, geometry) = (cube(4, 10.0), orbit(8, 8, 20.0).over_arc(3, 0.0, TAU));
    let mut cpu = CpuCompute::new(1).unwrap();
    let (mut x, mut y) = (vec![0.0; grid.len()], vec![0.0; geometry.projection_len()]);
    let error = cpu.forward_project(&geometry, &grid, &x, &mut y).unwrap_err();
    assert!(matches!(error, ComputeError::Scratch { operation: "forward_project", .. }), "{error}");
    let workload = Workload { columns: 8, rows: 8, views_per_call: 3, voxels: [4; 3] };
    assert!(cpu.scratch_bytes(&workload) > 0);
    cpu.prepare(&workload).unwrap();
    let error = cpu.forward_project(&geometry, &grid, &x[1..], &mut y).unwrap_err().to_string();
    assert!(error.contains("`volume` holds 63") && error.contains("needs 64"), "{error}");
    let error = cpu.forward_project(&geometry, &grid, &x, &mut y[1..]).unwrap_err().to_string();
    assert!(error.contains("`projections` holds 191"), "{error}");
    let error = cpu.back_project_matched(&geometry, &grid, &y[1..], &mut x).unwrap_err().to_string();
    assert!(error.contains("`projections` holds 191"), "{error}");
    let error = cpu.back_project_matched(&geometry, &grid, &y, &mut x[1..]).unwrap_err().to_string();
    assert!(error.contains("`volume` holds 63"), "{error}");
    cpu.forward_project(&geometry, &grid, &x, &mut y).unwrap();
}

#[test]
fn not_a_number_spreads_only_along_its_rays() {
    let grid = cube(20, 95.0);
    for roll_rad in [0.0, 0.1] {
        let geometry = CircularOrbit { roll_rad, ..orbit(32, 32, 150.0) }.over_arc(5, 0.1, TAU);
        for simd in SimdLevel::available() {
            let cpu = carrier(2, simd, &geometry, &grid);
            let (mut x, mut y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
            x[grid.index(10, 9, 3)] = f32::NAN;
            y[5 * 32 + 7] = f32::INFINITY;
            let (ax, aty) = both(&cpu, &geometry, &grid, &x, &y);
            for (what, values) in [("A x", ax), ("A' y", aty)] {
                let bad = values.iter().filter(|v| !v.is_finite()).count();
                // Without any the value was lost; a ray or voxel touches about 1 % of the others.
                assert!(bad > 0 && bad < values.len() / 20, "{what}, {simd}: {bad} of {}", values.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_pose_and_grid(
        (nx, ny, nz) in (1usize..28, 1usize..28, 1usize..40),
        (columns, rows, views) in (1usize..36, 1usize..48, 1usize..5),
        size in prop::array::uniform3(20.0..120.0f64),
        centre in prop::array::uniform3(-15.0..15.0f64),
        (offset_u_mm, offset_v_mm) in (-40.0..40.0f64, -20.0..20.0f64),
        tilt in prop::option::of(prop::array::uniform3(-0.5..0.5f64)),
        (width, height, start) in (60.0..300.0f64, 60.0..300.0f64, 0.0..TAU),
    ) {
        let [roll_rad, pitch_rad, yaw_rad] = tilt.unwrap_or_default();
        let o = CircularOrbit {
            pitch_v_mm: height / rows as f64,
            offset_u_mm, offset_v_mm, roll_rad, pitch_rad, yaw_rad,
            ..orbit(columns, rows, width)
        };
        let grid = VolumeGrid::over_box([nx, ny, nz], DVec3::from_array(size), DVec3::from_array(centre));
        assert_adjoint("any", &o.over_arc(views, start, TAU), &grid);
    }
}
