#![allow(clippy::unwrap_used)]

use std::f64::consts::{PI, TAU};
use std::sync::Arc;

use glam::DVec3;

use super::*;
use crate::compute::cpu::CpuCompute;
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
        let grid = VolumeGrid::over_box(
            [case.voxels, case.voxels - 3, case.voxels + 2],
            DVec3::splat(case.size_mm),
            case.centre,
        );
        let geometry = case.orbit.at_angles(&case.angles);
        let phantom = EllipsoidPhantom::sphere(case.centre, case.radius_mm, MU_WATER);
        let volume = fdk(&phantom, &geometry, &grid, FdkSettings::default());
        let (mean, low, high) = inside(&volume, &grid, case.centre, 0.7 * case.radius_mm);
        println!("{}: mean {mean:.2} HU, {low:.2} .. {high:.2}", case.name);
    }
}
