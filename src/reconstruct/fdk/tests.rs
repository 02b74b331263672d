#![allow(clippy::unwrap_used)]

use std::f64::consts::{PI, TAU};
use std::sync::Arc;

use glam::DVec3;

use super::*;
use crate::compute::cpu::{CpuCompute, SimdLevel};
use crate::geometry::CircularOrbit;
use crate::simulate::ellipsoids::EllipsoidPhantom;

const MU_WATER: f64 = 0.0193;

fn hu(mu: f64) -> f64 {
    1000.0 * (mu / MU_WATER - 1.0)
}

/// FDK of exact line integrals.
fn fdk(phantom: &EllipsoidPhantom, geometry: &ScanGeometry, grid: &VolumeGrid, settings: FdkSettings) -> Vec<f32> {
    let mut compute = CpuCompute::new(2).unwrap();
    let plan = Arc::new(FdkPlan::new(&mut compute, geometry, grid, settings).unwrap());
    let projections = phantom.line_integrals(geometry);
    reconstruct(&compute, plan, projections.as_slice().unwrap()).unwrap()
}

/// A scan of which only some numbers matter; the others are a small C-arm's.
struct Case {
    name: &'static str,
    orbit: CircularOrbit,
    angles: Vec<f64>,
    voxels: usize,
    size_mm: f64,
    centre: DVec3,
    radius_mm: f64,
}

fn uniform(n: usize, start: f64, arc: f64) -> Vec<f64> {
    (0..n).map(|i| start + arc * i as f64 / n as f64).collect()
}

fn orbit(dso: f64, dsd: f64, pixels: [usize; 2], pitch: [f64; 2]) -> CircularOrbit {
    CircularOrbit {
        source_to_isocenter_mm: dso,
        source_to_detector_mm: dsd,
        detector: Detector { columns: pixels[0], rows: pixels[1] },
        pitch_u_mm: pitch[0],
        pitch_v_mm: pitch[1],
        ..CircularOrbit::default()
    }
}

fn cases() -> Vec<Case> {
    let base = || Case {
        name: "full turn",
        orbit: orbit(1000.0, 1500.0, [128, 96], [2.0, 2.0]),
        angles: uniform(180, 0.3, TAU),
        voxels: 48,
        size_mm: 120.0,
        centre: DVec3::ZERO,
        radius_mm: 50.0,
    };
    let mut jittered = uniform(180, 0.0, TAU);
    jittered.iter_mut().enumerate().for_each(|(i, a)| *a += 0.02 * ((i * 7919 % 97) as f64 / 97.0 - 0.5));
    vec![
        base(),
        Case { name: "clockwise from 4 rad", angles: uniform(180, 4.0, -TAU), ..base() },
        Case {
            name: "near source, small voxels, odd sizes",
            orbit: orbit(400.0, 650.0, [161, 121], [0.9, 0.8]),
            voxels: 51,
            size_mm: 61.0,
            radius_mm: 25.0,
            ..base()
        },
        Case {
            name: "large voxels and pixels not square",
            orbit: orbit(700.0, 1000.0, [100, 131], [3.1, 2.3]),
            voxels: 33,
            size_mm: 180.0,
            radius_mm: 75.0,
            ..base()
        },
        Case { name: "short scan of 180 deg + fan", angles: uniform(120, 1.0, PI + 2.0 * 0.09), ..base() },
        Case { name: "short scan of 250 deg, clockwise", angles: uniform(150, 1.0, -250.0 * PI / 180.0), ..base() },
        Case { name: "short scan of 340 deg", angles: uniform(170, -2.0, 340.0 * PI / 180.0), ..base() },
        Case {
            name: "half-fan, detector shifted to +u",
            orbit: CircularOrbit { offset_u_mm: 48.0, ..orbit(1000.0, 1500.0, [80, 96], [2.0, 2.0]) },
            angles: uniform(360, 0.0, TAU),
            ..base()
        },
        Case {
            name: "half-fan, detector shifted to -u, clockwise",
            orbit: CircularOrbit { offset_u_mm: -61.0, ..orbit(1000.0, 1500.0, [77, 96], [2.0, 2.0]) },
            angles: uniform(360, 0.5, -TAU),
            ..base()
        },
        Case {
            name: "offsets of detector and volume",
            orbit: CircularOrbit {
                offset_u_mm: 1.3,
                offset_v_mm: -7.0,
                ..orbit(1000.0, 1500.0, [141, 128], [2.0, 2.0])
            },
            centre: DVec3::new(7.0, -5.0, 4.0),
            ..base()
        },
        Case { name: "angles not uniform", angles: jittered, ..base() },
        Case {
            name: "pitch 5 deg, yaw 4 deg",
            orbit: CircularOrbit {
                pitch_rad: 5.0 * PI / 180.0,
                yaw_rad: -4.0 * PI / 180.0,
                ..orbit(1000.0, 1500.0, [128, 96], [2.0, 2.0])
            },
            ..base()
        },
    ]
}

/// Mean and extremes of HU within a share of the sphere.
fn inside(volume: &[f32], grid: &VolumeGrid, centre: DVec3, radius: f64) -> (f64, f64, f64) {
    let (mut sum, mut n, mut low, mut high) = (0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY);
    for ix in 0..grid.voxels[0] {
        for iy in 0..grid.voxels[1] {
            for iz in 0..grid.voxels[2] {
                if (grid.voxel_centre_mm(ix, iy, iz) - centre).length() <= radius {
                    let value = hu(f64::from(volume[grid.index(ix, iy, iz)]));
                    sum += value;
                    n += 1.0;
                    low = low.min(value);
                    high = high.max(value);
                }
            }
        }
    }
    (sum / n, low, high)
}

#[test]
fn a_water_sphere_reads_zero_hu_for_every_scan() {
    for case in cases() {
        let voxels = [case.voxels, case.voxels - 3, case.voxels + 2];
        let grid = VolumeGrid::over_box(voxels, DVec3::splat(case.size_mm), case.centre);
        let geometry = case.orbit.at_angles(&case.angles);
        let phantom = EllipsoidPhantom::sphere(case.centre, case.radius_mm, MU_WATER);
        let volume = fdk(&phantom, &geometry, &grid, FdkSettings::default());
        let (mean, low, high) = inside(&volume, &grid, case.centre, 0.7 * case.radius_mm);
        println!("{}: mean {mean:.2} HU, {low:.2} .. {high:.2}", case.name);
        // The issue asks for 5 HU. Single voxels also carry the ringing of the sphere's edge.
        assert!(mean.abs() < 2.0 && low > -10.0 && high < 10.0, "{}: {mean} ({low} .. {high})", case.name);
    }
}

#[test]
fn windows_keep_the_scale() {
    let case = cases().remove(0);
    let grid = VolumeGrid::over_box([40; 3], DVec3::splat(120.0), DVec3::ZERO);
    let geometry = case.orbit.at_angles(&case.angles);
    let phantom = EllipsoidPhantom::sphere(DVec3::ZERO, 50.0, MU_WATER);
    for (name, window) in Window::NAMES {
        let settings = FdkSettings { window, cutoff: 0.7, ..FdkSettings::default() };
        let (mean, ..) = inside(&fdk(&phantom, &geometry, &grid, settings), &grid, DVec3::ZERO, 30.0);
        assert!(mean.abs() < 2.0, "{name}: {mean}");
    }
}

/// RTK's own test of its FDK: 3D Shepp-Logan, 180 views of 128 x 128 pixels, 128^3 voxels; mean error < 0.03, PSNR > 26 dB with
/// the skull's 2 as peak.
#[test]
fn shepp_logan_passes_rtks_test() {
    let orbit = orbit(600.0, 1200.0, [128, 128], [4.0, 4.0]);
    let grid = VolumeGrid::over_box([128; 3], DVec3::splat(256.0), DVec3::ZERO);
    let phantom = EllipsoidPhantom::shepp_logan(116.0);
    let truth = phantom.voxelise(&grid, 1);
    let centred = orbit.over_arc(180, 0.0, TAU);
    let view = Coverage::analyse(&centred, &grid).unwrap().field_of_view;
    // RTK moves the source by 20 mm along the columns' axis and 15 mm up, the detector not.
    let mut moved = centred.clone();
    for view in &mut moved.views {
        view.source_mm += 20.0 * view.column_step_mm.normalize() - 15.0 * view.row_step_mm.normalize();
    }
    for (name, geometry) in [("centred", centred), ("source moved", moved)] {
        let volume = fdk(&phantom, &geometry, &grid, FdkSettings::default());
        let (mut sum, mut squares, mut n) = (0.0, 0.0, 0.0);
        for (index, truth) in truth.indexed_iter() {
            // Outside the field of view the test sets 0.
            let seen = view.contains(grid.voxel_centre_mm(index.0, index.1, index.2));
            let value = if seen { volume[grid.index(index.0, index.1, index.2)] } else { 0.0 };
            let error = f64::from(value - truth);
            sum += error.abs();
            squares += error * error;
            n += 1.0;
        }
        let (mean, psnr) = (sum / n, 10.0 * (4.0 / (squares / n)).log10());
        println!("{name}: mean error {mean:.4}, PSNR {psnr:.2} dB");
        assert!(mean < 0.03 && psnr > 26.0, "{name}: {mean} {psnr}");
    }
}

/// Normalised error of one grid's volume against the phantom's cell averages, over the whole phantom.
fn error_of(phantom: &EllipsoidPhantom, geometry: &ScanGeometry, grid: &VolumeGrid) -> f64 {
    let volume = fdk(phantom, geometry, grid, FdkSettings::default());
    relative(&volume, phantom.voxelise(grid, 3).as_slice().unwrap())
}

fn relative(volume: &[f32], truth: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = volume.iter().zip(truth).map(|(a, b)| square(f64::from(a - b))).sum();
    (error / truth.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// An object without symmetry: a flip, an exchange of axes or a shift by half a voxel or pixel anywhere costs more than the
/// method's own error.
#[test]
fn an_asymmetric_object_comes_out_the_right_way_round() {
    let grid = VolumeGrid {
        centre_mm: DVec3::new(3.0, -2.0, 1.5),
        ..VolumeGrid::over_box([56, 60, 64], DVec3::new(112.0, 120.0, 128.0), DVec3::ZERO)
    };
    let orbit = CircularOrbit { offset_u_mm: 2.6, offset_v_mm: -3.4, ..orbit(600.0, 900.0, [128, 120], [1.7, 1.8]) };
    let geometry = orbit.over_arc(240, 0.9, TAU);
    let phantom = EllipsoidPhantom::asymmetric(50.0, 0.02);
    let volume = fdk(&phantom, &geometry, &grid, FdkSettings::default());
    let truth = phantom.voxelise(&grid, 3);
    let right = relative(&volume, truth.as_slice().unwrap());
    println!("relative error {right:.4}");
    assert!(right < 0.12, "{right}");
    for axis in 0..3 {
        let mut flipped = truth.clone();
        flipped.invert_axis(ndarray::Axis(axis));
        let wrong = relative(&volume, flipped.as_standard_layout().as_slice().unwrap());
        assert!(wrong > 1.5 * right, "flip of axis {axis}: {wrong}, right {right}");
        let mut half = grid;
        half.centre_mm[axis] += 0.5 * grid.voxel_mm[axis];
        let wrong = relative(&volume, phantom.voxelise(&half, 3).as_slice().unwrap());
        assert!(wrong > 1.1 * right, "half a voxel along axis {axis}: {wrong}, right {right}");
    }
    // Half a pixel of the detector, told to the simulator only; on a short arc, as over a full turn opposite views blur what
    // u displaces.
    let short = |orbit: CircularOrbit| orbit.over_arc(240, 0.9, 3.6);
    let error = |simulated: CircularOrbit| {
        let mut compute = CpuCompute::new(2).unwrap();
        let plan = Arc::new(FdkPlan::new(&mut compute, &short(orbit), &grid, FdkSettings::default()).unwrap());
        let projections = phantom.line_integrals(&short(simulated));
        relative(&reconstruct(&compute, plan, projections.as_slice().unwrap()).unwrap(), truth.as_slice().unwrap())
    };
    let right = error(orbit);
    for (u, v) in [(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)] {
        let wrong = error(CircularOrbit {
            offset_u_mm: orbit.offset_u_mm + u * orbit.pitch_u_mm,
            offset_v_mm: orbit.offset_v_mm + v * orbit.pitch_v_mm,
            ..orbit
        });
        assert!(wrong > 1.3 * right, "half a pixel ({u}, {v}): {wrong}, right {right}");
    }
}

/// Within the mid-plane FDK is exact but for sampling: the error falls as everything is sampled finer.
#[test]
fn the_central_slice_converges_to_the_object() {
    let phantom = EllipsoidPhantom::asymmetric(50.0, 0.02);
    let error = |n: usize| {
        let orbit = orbit(600.0, 900.0, [2 * n, 3], [160.0 / n as f64, 120.0 / n as f64]);
        let grid = VolumeGrid::over_box([n, n, 1], DVec3::new(110.0, 110.0, 110.0 / n as f64), DVec3::ZERO);
        error_of(&phantom, &orbit.over_arc(4 * n, 0.0, TAU), &grid)
    };
    let (coarse, fine) = (error(40), error(160));
    println!("central slice: {coarse:.4} -> {fine:.4}");
    // Edges make it fall as the square root of the pixel at least: by 2 for pixels 4 times finer.
    assert!(fine < 0.55 * coarse && fine < 0.05, "{coarse} {fine}");
}

/// What FDK costs at the limits up to which tilts and wobbling orbits are accepted.
#[test]
fn the_error_at_the_limits_of_tilt_and_wobble_is_bounded() {
    let deg = PI / 180.0;
    let ideal = orbit(600.0, 900.0, [96, 96], [2.3, 2.3]);
    let grid = VolumeGrid::over_box([48; 3], DVec3::splat(110.0), DVec3::ZERO);
    let phantom = EllipsoidPhantom::asymmetric(50.0, 0.02);
    let truth = phantom.voxelise(&grid, 3);
    // Smoothed: without a window, aliasing hides the tilts (any asymmetry reduces it).
    let settings = FdkSettings { window: Window::Hann, ..FdkSettings::default() };
    let error =
        |geometry: &ScanGeometry| relative(&fdk(&phantom, geometry, &grid, settings), truth.as_slice().unwrap());
    let best = error(&ideal.over_arc(180, 0.0, TAU));
    let mut wobbling = ideal.over_arc(180, 0.0, TAU);
    for (i, view) in wobbling.views.iter_mut().enumerate() {
        // 1.9 % of the distance, three times a turn: source and detector together.
        let shift = 0.019 * 600.0 * (3.0 * TAU * i as f64 / 180.0).sin();
        let radial = DVec3::new(view.source_mm.x, view.source_mm.y, 0.0).normalize();
        view.source_mm += shift * radial;
        view.detector_origin_mm += shift * radial;
    }
    for (name, geometry, limit) in [
        ("roll 3 deg", CircularOrbit { roll_rad: 2.99 * deg, ..ideal }.over_arc(180, 0.0, TAU), 1.15),
        ("pitch 25 deg", CircularOrbit { pitch_rad: 25.0 * deg, ..ideal }.over_arc(180, 0.0, TAU), 1.15),
        ("yaw 25 deg", CircularOrbit { yaw_rad: 25.0 * deg, ..ideal }.over_arc(180, 0.0, TAU), 1.15),
        ("wobble 1.9 %", wobbling, 1.15),
    ] {
        let error = error(&geometry);
        println!("{name}: {error:.4}, ideal {best:.4}");
        assert!(error < limit * best, "{name}: {error}, ideal {best}");
    }
}

#[test]
fn a_half_fan_sees_objects_wider_than_its_detector() {
    // The detector alone sees 0.6 of the object's radius on one side.
    let full = orbit(600.0, 900.0, [160, 96], [2.0, 2.0]);
    let half = CircularOrbit { offset_u_mm: 60.0, ..orbit(600.0, 900.0, [100, 96], [2.0, 2.0]) };
    let grid = VolumeGrid::over_box([60; 3], DVec3::splat(120.0), DVec3::ZERO);
    let phantom = EllipsoidPhantom::asymmetric(58.0, 0.02);
    let best = error_of(&phantom, &full.over_arc(360, 0.0, TAU), &grid);
    let error = error_of(&phantom, &half.over_arc(360, 0.0, TAU), &grid);
    println!("half-fan {error:.4}, whole fan {best:.4}");
    // Each line is measured once instead of twice: aliasing no longer averages out between opposite views.
    assert!(error < 1.2 * best, "{error} {best}");
}

/// Streaming and offline, any grouping, any number of threads: the same bits.
#[test]
fn streaming_gives_the_bits_of_offline() {
    let half = CircularOrbit { offset_u_mm: 40.0, ..orbit(600.0, 900.0, [51, 47], [3.0, 3.0]) };
    let mut wobbling = orbit(600.0, 900.0, [64, 47], [3.0, 3.0]).over_arc(23, 0.1, TAU);
    wobbling.views[4].detector_origin_mm.z += 0.5;
    for geometry in
        [half.over_arc(23, 0.1, TAU), wobbling, orbit(600.0, 900.0, [64, 47], [3.0, 3.0]).over_arc(23, 0.1, 3.8)]
    {
        let grid = VolumeGrid::over_box([21, 20, 33], DVec3::splat(90.0), DVec3::ZERO);
        let phantom = EllipsoidPhantom::asymmetric(40.0, 0.02);
        let projections = phantom.line_integrals(&geometry);
        let views: Vec<&[f32]> = projections.outer_iter().map(|v| v.to_slice().unwrap()).collect();
        let mut results = Vec::new();
        for (threads, per_call) in [(2, None), (1, None), (3, Some(1)), (2, Some(4))] {
            let mut compute = CpuCompute::new(threads).unwrap();
            let settings = FdkSettings { views_per_call: per_call, ..FdkSettings::default() };
            let plan = Arc::new(FdkPlan::new(&mut compute, &geometry, &grid, settings).unwrap());
            let mut accumulator = FdkAccumulator::new(&compute, plan).unwrap();
            for _ in 0..2 {
                accumulator.reset(&compute).unwrap();
                if per_call == Some(1) {
                    for (view, data) in views.iter().enumerate() {
                        // The planned pose as an override changes nothing.
                        let pose = (view % 2 == 0).then(|| geometry.views[view]);
                        accumulator.add_view(&compute, view, pose.as_ref(), data).unwrap();
                        assert!(accumulator.has_view(view) && accumulator.views_added() == view + 1);
                    }
                } else {
                    accumulator.add_views(&compute, 0, projections.as_slice().unwrap()).unwrap();
                }
            }
            assert!((accumulator.angular_fraction() - 1.0).abs() < 1e-9);
            results.push(accumulator.volume().host("test").unwrap().to_vec());
        }
        assert!(results.iter().all(|volume| *volume == results[0]));
        assert!(results[0].iter().any(|x| *x > 0.01));
    }
}

#[test]
fn simd_levels_agree() {
    let case = cases().remove(0);
    let geometry = case.orbit.over_arc(30, 0.0, TAU);
    let grid = VolumeGrid::over_box([24; 3], DVec3::splat(120.0), DVec3::ZERO);
    let projections = EllipsoidPhantom::asymmetric(50.0, 0.02).line_integrals(&geometry);
    let volumes: Vec<Vec<f32>> = SimdLevel::available()
        .map(|simd| {
            let mut compute = CpuCompute::with_simd(2, simd).unwrap();
            let plan = Arc::new(FdkPlan::new(&mut compute, &geometry, &grid, FdkSettings::default()).unwrap());
            reconstruct(&compute, plan, projections.as_slice().unwrap()).unwrap()
        })
        .collect();
    for volume in &volumes[1..] {
        // Fused multiply-adds round once instead of twice.
        assert!(volume.iter().zip(&volumes[0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
fn part_of_the_views_has_the_scale_of_all_once_divided_by_its_fraction() {
    let case = cases().remove(0);
    let geometry = case.orbit.at_angles(&case.angles);
    let grid = VolumeGrid::over_box([24; 3], DVec3::splat(120.0), DVec3::ZERO);
    let projections = EllipsoidPhantom::sphere(DVec3::ZERO, 50.0, MU_WATER).line_integrals(&geometry);
    let mut compute = CpuCompute::new(2).unwrap();
    let plan = Arc::new(FdkPlan::new(&mut compute, &geometry, &grid, FdkSettings::default()).unwrap());
    let mut accumulator = FdkAccumulator::new(&compute, plan).unwrap();
    let part = 90 * geometry.detector.pixels();
    accumulator.add_views(&compute, 0, &projections.as_slice().unwrap()[..part]).unwrap();
    let fraction = accumulator.angular_fraction();
    assert!((fraction - 0.5).abs() < 1e-9);
    let scaled: Vec<f32> = accumulator.volume().host("test").unwrap().iter().map(|x| x / fraction as f32).collect();
    let (mean, ..) = inside(&scaled, &grid, DVec3::ZERO, 20.0);
    assert!(mean.abs() < 20.0, "{mean}");
}

#[test]
fn wrong_views_are_refused_and_leave_the_volume_alone() {
    let geometry = cases().remove(0).orbit.over_arc(12, 0.0, TAU);
    let grid = VolumeGrid::over_box([9; 3], DVec3::splat(100.0), DVec3::ZERO);
    let mut compute = CpuCompute::new(1).unwrap();
    let plan = Arc::new(FdkPlan::new(&mut compute, &geometry, &grid, FdkSettings::default()).unwrap());
    let mut accumulator = FdkAccumulator::new(&compute, plan).unwrap();
    let good = vec![1.0_f32; geometry.detector.pixels()];
    accumulator.add_view(&compute, 3, None, &good).unwrap();
    let before = accumulator.volume().host("test").unwrap().to_vec();
    let mut says = |view: usize, pose: Option<&ViewPose>, data: &[f32], part: &str| {
        let error = accumulator.add_view(&compute, view, pose, data).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    says(3, None, &good, "view 3: was added before");
    says(12, None, &good, "view 12: is not in the plan (the plan has 12 views)");
    says(4, None, &good[1..], "12287 values, but 1 views of 96 x 128 pixels need 12288");
    says(4, None, &[], "0 values");
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        for (at, place) in [(5, "row 0, column 5"), (12287, "row 95, column 127")] {
            let mut bad = good.clone();
            bad[at] = value;
            says(4, None, &bad, &format!("{place} is {shown}"));
        }
    }
    let mut pose = geometry.views[4];
    pose.source_mm.z = f64::NAN;
    says(4, Some(&pose), &good, "source_mm");
    assert_eq!(accumulator.volume().host("test").unwrap(), before);
    assert_eq!(accumulator.views_added(), 1);
    accumulator.add_views(&compute, 0, &[]).unwrap();
    accumulator.reset(&compute).unwrap();
    assert!(accumulator.volume().host("test").unwrap().iter().all(|x| *x == 0.0) && !accumulator.has_view(3));
    let setting = |settings| FdkPlan::without_scratch(&geometry, &grid, settings).unwrap_err().to_string();
    assert!(setting(FdkSettings { cutoff: f64::NAN, ..FdkSettings::default() }).contains("cutoff = NaN"));
    assert!(setting(FdkSettings { cutoff: 1.2, ..FdkSettings::default() }).contains("cutoff = 1.2"));
    assert!(setting(FdkSettings { views_per_call: Some(0), ..FdkSettings::default() }).contains("views_per_call"));
}
