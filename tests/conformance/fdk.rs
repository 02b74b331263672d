//! What FDK is made of: weights, filter, back-projection.

use std::f64::consts::TAU;

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cpu::ramp_filter::{RampFilter, Window};
use diffnr::compute::cuda::{DeviceWeights, FilterTable, ScanTable, back_project_fdk, filter_rows, weight_projections};
use diffnr::compute::{Compute as _, ComputeError, ProjectionWeights, Workload};
use diffnr::geometry::{Detector, ScanGeometry, VolumeGrid};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::{any, cpu, grid, named, orbit, settings};
use crate::values::{assert_close, download, random, signed, unwritten, upload};

/// Of the largest value, on a detector of so many pixels along its longer side. Float32 positions are good to 2e-7 of their distance from the
/// detector's middle (matrix, quotient and product round at 6e-8 each), times the slope of random data, up to 2 a pixel: 1e-5 at the most in
/// the small cases on the executor, 1e-4 at 1500 pixels. What else rounds is far below.
fn back_projection_share(pixels: usize) -> f32 {
    2e-5 + 2e-7 * pixels as f32
}

/// Of the largest value: 20 stages of float32 butterflies here, as many of another order on the CPU, each rounding at 6e-8.
const FILTER: f32 = 2e-6;

fn assert_weights(carrier: &Carrier, detector: Detector, views: usize, pad: [usize; 2], image_per_view: bool) {
    let image = random(detector.pixels() * if image_per_view { views } else { 1 }, 1);
    let columns = signed(views * detector.columns, 2);
    let projections = random(views * detector.pixels(), 3);
    let weights = ProjectionWeights { detector, pad, image: &image[..], columns: &columns };
    let mut expected = vec![f32::NAN; views * detector.rows * weights.wide_columns()];
    CpuCompute::new(1).unwrap().weight_projections(&weights, &projections, &mut expected).unwrap();
    let weighted = carrier.run(|launcher| {
        let weighted = unwritten(launcher, expected.len());
        let weights =
            DeviceWeights { detector, pad, image: upload(launcher, &image), columns: upload(launcher, &columns) };
        weight_projections(launcher, &weights, upload(launcher, &projections), weighted).unwrap();
        vec![download(launcher, weighted)]
    });
    // Two products in the same order, and nothing else: the same bits.
    assert!(weighted[0] == expected, "{}: {detector:?}, {views} views, pads {pad:?}", carrier.name);
}

#[test]
fn weights_are_those_of_the_cpu_to_the_bit() {
    on_each("weight_projections", |carrier| {
        proptest!(settings(24), |(
            columns in 1usize..140, rows in 1usize..20, views in 1usize..4,
            pad in prop::array::uniform2(0usize..9), image_per_view: bool,
        )| assert_weights(carrier, Detector { columns, rows }, views, pad, image_per_view));
    });
}

fn assert_filter(carrier: &Carrier, columns: usize, rows: usize, window: Window, cutoff: f64) {
    let filter = RampFilter::new(columns, window, cutoff);
    let values = signed(rows * columns, 4);
    let mut expected = values.clone();
    let mut cpu = CpuCompute::new(1).unwrap();
    cpu.prepare(&Workload { columns, rows, views_per_call: 1, voxels: [1; 3] }).unwrap();
    cpu.filter_rows(&filter, &mut expected).unwrap();
    let filtered = carrier.run(|launcher| {
        let table = FilterTable::upload(launcher, &filter).unwrap();
        let projections = upload(launcher, &values);
        filter_rows(launcher, &table, projections).unwrap();
        vec![download(launcher, projections)]
    });
    assert_close(&format!("{}: {rows} rows of {columns}", carrier.name), FILTER, &filtered[0], &expected);
}

#[test]
fn rows_are_filtered_as_on_the_cpu() {
    on_each("filter_rows", |carrier| {
        // The shortest, both kinds of length, the longest; even and odd counts of rows.
        for (columns, rows) in [(1, 1), (8, 2), (12, 3), (13, 5), (96, 2), (100, 1), (257, 3), (700, 2), (4096, 1)] {
            assert_filter(carrier, columns, rows, Window::RamLak, 1.0);
        }
        proptest!(settings(16), |(columns in 1usize..400, rows in 1usize..7, cutoff in 0.1..1.0f64)| {
            assert_filter(carrier, columns, rows, Window::Hann, cutoff);
        });
        let launcher = carrier.launcher();
        let error = FilterTable::upload(launcher.as_ref(), &RampFilter::new(4097, Window::RamLak, 1.0)).unwrap_err();
        assert!(matches!(error, ComputeError::Setting { of: "filter_rows", .. }), "{error}");
    });
}

/// A row must not hear of the row that shares its transform.
#[test]
fn rows_do_not_mix() {
    on_each("filter_rows, two rows", |carrier| {
        let columns = 50;
        let filter = RampFilter::new(columns, Window::RamLak, 1.0);
        let mut values = vec![0.0; 3 * columns];
        values[7] = 1.0;
        let filtered = carrier.run(|launcher| {
            let table = FilterTable::upload(launcher, &filter).unwrap();
            let projections = upload(launcher, &values);
            filter_rows(launcher, &table, projections).unwrap();
            vec![download(launcher, projections)]
        });
        // The band-limited ramp at the impulse and beside it, and nothing in the other rows but rounding.
        assert!((filtered[0][7] - 0.25).abs() < 1e-6 && filtered[0][8] < -0.1);
        assert!(filtered[0][columns..].iter().all(|value| value.abs() < 1e-6));
    });
}

fn assert_back_projection(carrier: &Carrier, what: &str, geometry: &ScanGeometry, grid: &VolumeGrid) {
    let (filtered, volume) = (signed(geometry.projection_len(), 5), random(grid.len(), 6));
    let mut expected = volume.clone();
    cpu(geometry, grid).back_project_fdk(geometry, grid, &filtered, &mut expected).unwrap();
    let given = carrier.run(|launcher| {
        let scan = ScanTable::upload(launcher, geometry, grid).unwrap();
        let volume = upload(launcher, &volume);
        back_project_fdk(launcher, &scan, upload(launcher, &filtered), volume).unwrap();
        vec![download(launcher, volume)]
    });
    let share = back_projection_share(geometry.detector.columns.max(geometry.detector.rows));
    assert_close(&format!("{}, {what}", carrier.name), share, &given[0], &expected);
}

#[test]
fn back_projection_of_named_cases_is_as_on_the_cpu() {
    on_each("back_project_fdk", |carrier| {
        for (what, geometry, grid) in named() {
            assert_back_projection(carrier, what, &geometry, &grid);
        }
        // About a block.
        for voxels in [[4, 8, 32], [5, 9, 33], [3, 7, 31], [1, 1, 8]] {
            assert_back_projection(
                carrier,
                "a block",
                &orbit(12, 11, 150.0).over_arc(3, 0.1, TAU),
                &grid(voxels, 90.0),
            );
        }
    });
}

#[test]
fn back_projection_of_any_pose_and_grid_is_as_on_the_cpu() {
    on_each("back_project_fdk, any pose and grid", |carrier| {
        proptest!(settings(64), |((geometry, grid) in any())| {
            assert_back_projection(carrier, "any", &geometry, &grid);
        });
    });
}
