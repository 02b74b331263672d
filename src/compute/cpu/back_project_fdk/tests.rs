#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;

use glam::DVec3;

use crate::compute::cpu::{CpuCompute, SimdLevel};
use crate::compute::{Compute, Workload};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};

/// The definition, voxel by voxel in double precision.
fn reference(geometry: &ScanGeometry, grid: &VolumeGrid, filtered: &[f32]) -> Vec<f64> {
    let (columns, rows) = (geometry.detector.columns as i64, geometry.detector.rows as i64);
    let mut volume = vec![0.0; grid.len()];
    for (pose, view) in geometry.views.iter().zip(filtered.chunks_exact(geometry.detector.pixels())) {
        let pixel = |v: i64, u: i64| {
            let inside = (0..rows).contains(&v) && (0..columns).contains(&u);
            if inside { f64::from(view[(v * columns + u) as usize]) } else { 0.0 }
        };
        for ix in 0..grid.voxels[0] {
            for iy in 0..grid.voxels[1] {
                for iz in 0..grid.voxels[2] {
                    let Some((u, v, w)) = pose.project(grid.voxel_centre_mm(ix, iy, iz)) else { continue };
                    let (u0, v0, fu, fv) = (u.floor(), v.floor(), u - u.floor(), v - v.floor());
                    if u0.abs() > 1e6 || v0.abs() > 1e6 {
                        continue;
                    }
                    let (u0, v0) = (u0 as i64, v0 as i64);
                    let row = |v: i64| (1.0 - fu) * pixel(v, u0) + fu * pixel(v, u0 + 1);
                    volume[grid.index(ix, iy, iz)] += ((1.0 - fv) * row(v0) + fv * row(v0 + 1)) / (w * w);
                }
            }
        }
    }
    volume
}

/// Values with no structure that an index error could hide in.
fn noise(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 24) as f32 - 0.3).collect()
}

fn carrier(simd: SimdLevel, threads: usize, geometry: &ScanGeometry, grid: &VolumeGrid, views: usize) -> CpuCompute {
    let mut compute = CpuCompute::with_simd(threads, simd).unwrap();
    let Detector { columns, rows } = geometry.detector;
    compute.prepare(&Workload { columns, rows, views_per_call: views, voxels: grid.voxels }).unwrap();
    compute
}

fn run(simd: SimdLevel, threads: usize, per_pass: usize, geometry: &ScanGeometry, grid: &VolumeGrid) -> Vec<f32> {
    let mut volume = vec![0.0; grid.len()];
    let compute = carrier(simd, threads, geometry, grid, per_pass);
    compute.back_project_fdk(geometry, grid, &noise(geometry.projection_len()), &mut volume).unwrap();
    volume
}

fn orbit(columns: usize, rows: usize, pitch: f64) -> CircularOrbit {
    CircularOrbit {
        source_to_isocenter_mm: 400.0,
        source_to_detector_mm: 600.0,
        detector: Detector { columns, rows },
        pitch_u_mm: pitch,
        pitch_v_mm: 0.9 * pitch,
        ..CircularOrbit::default()
    }
}

/// Orbits and grids that reach every branch: voxels finer than pixels, as coarse as 1 to 2, 2 to 4 and more pixels, partly and
/// wholly outside the detector, odd sizes, volumes off the axis, upside-down rows, tilts.
fn scenes() -> Vec<(&'static str, ScanGeometry, VolumeGrid)> {
    let grid = |voxels, size: f64| VolumeGrid::over_box(voxels, DVec3::splat(size), DVec3::ZERO);
    let turn = |orbit: CircularOrbit| orbit.over_arc(5, 0.2, TAU);
    let mut upwards = turn(orbit(40, 50, 3.0));
    for view in &mut upwards.views {
        view.detector_origin_mm += 49.0 * view.row_step_mm;
        view.row_step_mm = -view.row_step_mm;
    }
    let shifted = VolumeGrid { centre_mm: DVec3::new(20.0, -31.0, 12.0), ..grid([11, 20, 37], 90.0) };
    vec![
        ("fine voxels", turn(orbit(33, 41, 5.0)), grid([9, 10, 67], 100.0)),
        ("one pixel a voxel", turn(orbit(64, 64, 3.0)), grid([16, 17, 48], 100.0)),
        ("two to three pixels a voxel", turn(orbit(70, 133, 1.5)), grid([12, 9, 50], 100.0)),
        ("six pixels a voxel", turn(orbit(90, 200, 1.0)), grid([7, 8, 21], 120.0)),
        ("volume larger than the detector", turn(orbit(31, 17, 2.0)), grid([21, 18, 90], 200.0)),
        ("one voxel, one pixel", turn(orbit(1, 1, 50.0)), grid([1, 1, 1], 20.0)),
        ("rows upwards", upwards, grid([10, 10, 33], 90.0)),
        ("volume off the axis", turn(orbit(60, 70, 2.0)), shifted),
        (
            "tilted",
            turn(CircularOrbit { roll_rad: 0.1, pitch_rad: 0.07, yaw_rad: -0.05, ..orbit(50, 60, 2.5) }),
            grid([12, 13, 35], 100.0),
        ),
    ]
}

#[test]
fn every_simd_level_equals_the_definition() {
    for (name, geometry, grid) in scenes() {
        let expected = reference(&geometry, &grid, &noise(geometry.projection_len()));
        let scale = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        assert!(scale > 0.1, "{name}: nothing to compare");
        for simd in SimdLevel::available() {
            let volume = run(simd, 2, 5, &geometry, &grid);
            let worst = volume.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            // Rows are known to 2^-24 of 16 voxels' span, sums of five values to 1e-7; tilted poses divide in float32: 1e-5 pixel.
            assert!(worst < 2e-5 * scale, "{name}, {simd}: {worst} of {scale}");
        }
    }
}

#[test]
fn the_upright_way_equals_the_general_way() {
    // A roll of 1e-5 moves u by 1e-3 pixel at most but takes the general way.
    for simd in SimdLevel::available() {
        let grid = VolumeGrid::over_box([12, 11, 40], DVec3::splat(100.0), DVec3::ZERO);
        let upright = run(simd, 1, 5, &orbit(50, 60, 2.5).over_arc(5, 0.2, TAU), &grid);
        let general =
            run(simd, 1, 5, &CircularOrbit { roll_rad: 1e-5, ..orbit(50, 60, 2.5) }.over_arc(5, 0.2, TAU), &grid);
        let worst = upright.iter().zip(&general).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Neighbouring pixels differ by up to 1, five views of weight 2.4: 1e-3 pixel is 0.01.
        assert!(worst < 0.01 && upright != general, "{simd}: {worst}");
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_on_the_views_of_a_pass() {
    for (name, geometry, grid) in scenes() {
        for simd in SimdLevel::available() {
            let one = run(simd, 1, 5, &geometry, &grid);
            for (threads, per_pass) in [(2, 5), (3, 5), (2, 1), (3, 2)] {
                assert!(one == run(simd, threads, per_pass, &geometry, &grid), "{name}, {simd}, {threads}, {per_pass}");
            }
        }
    }
}

#[test]
fn adds_to_what_is_there_and_refuses_wrong_buffers() {
    let (_, geometry, grid) = scenes().remove(1);
    let compute = carrier(SimdLevel::detect(), 2, &geometry, &grid, 2);
    let filtered = vec![0.0; geometry.projection_len()];
    let mut volume = noise(grid.len());
    compute.back_project_fdk(&geometry, &grid, &filtered, &mut volume).unwrap();
    assert_eq!(volume, noise(grid.len()));
    let wrong = compute.back_project_fdk(&geometry, &grid, &filtered[1..], &mut volume).unwrap_err();
    assert!(wrong.to_string().contains("`filtered`"), "{wrong}");
    let unprepared =
        CpuCompute::new(1).unwrap().back_project_fdk(&geometry, &grid, &filtered, &mut volume).unwrap_err();
    assert!(unprepared.to_string().contains("scratch"), "{unprepared}");
    let none = ScanGeometry { views: Vec::new(), ..geometry };
    compute.back_project_fdk(&none, &grid, &[], &mut volume).unwrap();
}

#[test]
fn a_source_inside_the_volume_and_pixels_that_are_no_numbers_do_no_harm() {
    let near = CircularOrbit { source_to_isocenter_mm: 30.0, source_to_detector_mm: 90.0, ..orbit(40, 40, 3.0) };
    let grid = VolumeGrid::over_box([16, 16, 16], DVec3::splat(100.0), DVec3::ZERO);
    let geometry = near.over_arc(7, 0.0, TAU);
    for simd in SimdLevel::available() {
        assert!(run(simd, 2, 7, &geometry, &grid).iter().all(|x| x.is_finite()));
        let mut volume = vec![0.0; grid.len()];
        let filtered = vec![f32::NAN; geometry.projection_len()];
        carrier(simd, 2, &geometry, &grid, 7).back_project_fdk(&geometry, &grid, &filtered, &mut volume).unwrap();
        assert!(volume.iter().any(|x| x.is_nan()));
    }
}
