//! The forward projector and its adjoint.

use std::f64::consts::TAU;

use diffnr::compute::cuda::{Launcher, ScanTable, back_project_matched, forward_project};
use diffnr::geometry::{CircularOrbit, ScanGeometry, VolumeGrid};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::{any, cpu, grid, is_tie, named, orbit, settings};
use crate::values::{assert_close, dot, download, random, unwritten, upload};

/// Of the largest value. Kernels hold positions in float32: at these sizes (up to 40 voxels and pixels) to 1e-5 voxel, times the slope of
/// random data, which is up to 1 a voxel, in each of many samples, as random in sign: 4e-6 at the most in these cases on the executor. Half a
/// voxel or pixel is ten thousand times as much.
const SHARE: f32 = 2e-5;

/// Of the inner products. Both projectors use the same positions, bit for bit; what is left is the rounding of weights and of float32 sums.
/// It averages out where there are many rays (2e-7 and less); a single ray that grazes the grid has weights near 0, which interpolation
/// takes as differences of larger numbers (1e-6 in one of these cases).
const ADJOINT: f64 = 5e-6;

fn both(launcher: &dyn Launcher, geometry: &ScanGeometry, grid: &VolumeGrid, x: &[f32], y: &[f32]) -> Vec<Vec<f32>> {
    let scan = ScanTable::upload(launcher, geometry, grid).unwrap();
    let (ax, aty) = (unwritten(launcher, geometry.projection_len()), unwritten(launcher, grid.len()));
    forward_project(launcher, &scan, upload(launcher, x), ax).unwrap();
    back_project_matched(launcher, &scan, upload(launcher, y), aty).unwrap();
    vec![download(launcher, ax), download(launcher, aty)]
}

/// Values are the CPU's, and `<A x, y> = <x, A' y>`.
fn assert_projectors(carrier: &Carrier, what: &str, geometry: &ScanGeometry, grid: &VolumeGrid) {
    let what = format!("{}, {what}", carrier.name);
    let ties: Vec<usize> = (0..geometry.projection_len()).filter(|&pixel| is_tie(geometry, grid, pixel)).collect();
    assert!(ties.len() <= 1 + geometry.projection_len() / 50, "{what}: {} ties", ties.len());
    let without_ties = |mut values: Vec<f32>| {
        ties.iter().for_each(|&pixel| values[pixel] = 0.0);
        values
    };
    let (x, y) = (random(grid.len(), 1), without_ties(random(geometry.projection_len(), 2)));
    let [ax, aty] = carrier.run(|launcher| both(launcher, geometry, grid, &x, &y)).try_into().unwrap();

    let cpu = cpu(geometry, grid);
    let (mut cpu_ax, mut cpu_aty) = (vec![0.0; ax.len()], vec![0.0; aty.len()]);
    cpu.forward_project(geometry, grid, &x, &mut cpu_ax).unwrap();
    cpu.back_project_matched(geometry, grid, &y, &mut cpu_aty).unwrap();
    assert_close(&format!("{what}, A x"), SHARE, &without_ties(ax.clone()), &without_ties(cpu_ax));
    assert_close(&format!("{what}, A' y"), SHARE, &aty, &cpu_aty);

    let (a, b) = (dot(&ax, &y), dot(&x, &aty));
    println!("{what}, adjoint: within {:.1e} of {ADJOINT:.0e}", (a / b - 1.0).abs());
    assert!((a - b).abs() <= ADJOINT * a.abs(), "{what}: <Ax,y> = {a}, <x,A'y> = {b}, ratio - 1 = {:e}", a / b - 1.0);
}

#[test]
fn named_cases_are_as_on_the_cpu_and_adjoint() {
    on_each("projectors", |carrier| {
        for (what, geometry, grid) in named() {
            assert_projectors(carrier, what, &geometry, &grid);
        }
    });
}

#[test]
fn sizes_about_a_block_are_as_on_the_cpu_and_adjoint() {
    on_each("projectors, sizes about a block", |carrier| {
        for (voxels, columns, rows) in
            [([1, 1, 1], 8, 32), ([4, 8, 16], 9, 33), ([5, 9, 17], 7, 31), ([3, 7, 15], 16, 1)]
        {
            let orbit = CircularOrbit { pitch_v_mm: 150.0 / rows as f64, ..orbit(columns, rows, 150.0) };
            assert_projectors(carrier, &format!("{voxels:?}"), &orbit.over_arc(3, 0.1, TAU), &grid(voxels, 90.0));
        }
    });
}

/// More views than a block has threads, the first of which see nothing of the grid: what a block keeps of views is not taken anew while it is read.
#[test]
fn many_views_that_see_nothing_at_first() {
    on_each("projectors, many views", |carrier| {
        let beside = CircularOrbit { offset_u_mm: 900.0, ..orbit(9, 10, 150.0) };
        let mut geometry = beside.over_arc(280, 0.1, TAU);
        geometry.views.extend(orbit(9, 10, 150.0).over_arc(20, 0.1, TAU).views);
        assert_projectors(carrier, "many views", &geometry, &grid([9, 10, 11], 100.0));
    });
}

#[test]
fn any_pose_and_grid() {
    on_each("projectors, any pose and grid", |carrier| {
        proptest!(settings(64), |((geometry, grid) in any())| assert_projectors(carrier, "any", &geometry, &grid));
    });
}

/// A source within the grid, which reconstruction refuses: nothing behind it is seen, and both still agree.
#[test]
fn nothing_is_seen_behind_the_source() {
    on_each("projectors, a source within the grid", |carrier| {
        let inside = CircularOrbit { source_to_isocenter_mm: 30.0, ..orbit(20, 18, 500.0) };
        assert_projectors(carrier, "inside", &inside.over_arc(3, 0.1, TAU), &grid([12, 13, 14], 100.0));
    });
}

/// Every element of the matrix: the projection of one voxel against the back-projection of one pixel.
#[test]
fn the_adjoint_is_the_transposed_matrix() {
    on_each("the matrix and its transpose", |carrier| {
        let tilted = CircularOrbit { roll_rad: 0.3, pitch_rad: 0.2, ..orbit(4, 3, 150.0) };
        for geometry in [orbit(4, 3, 150.0).over_arc(2, 0.6, TAU), tilted.over_arc(2, 0.6, TAU)] {
            let grid = grid([3, 4, 5], 100.0);
            let (voxels, pixels) = (grid.len(), geometry.projection_len());
            let launcher = carrier.launcher();
            let launcher = launcher.as_ref();
            let scan = ScanTable::upload(launcher, &geometry, &grid).unwrap();
            let (x, y) = (unwritten(launcher, voxels), unwritten(launcher, pixels));
            let unit = |len: usize, i: usize| (0..len).map(|j| f32::from(u8::from(i == j))).collect::<Vec<f32>>();
            let mut matrix = vec![0.0; voxels * pixels];
            for voxel in 0..voxels {
                x.copy_from(launcher, &unit(voxels, voxel)).unwrap();
                forward_project(launcher, &scan, x, y).unwrap();
                let column = download(launcher, y);
                (0..pixels).for_each(|pixel| matrix[pixel * voxels + voxel] = column[pixel]);
            }
            let mut transposed = Vec::new();
            for pixel in 0..pixels {
                y.copy_from(launcher, &unit(pixels, pixel)).unwrap();
                back_project_matched(launcher, &scan, y, x).unwrap();
                transposed.extend(download(launcher, x));
            }
            assert!(matrix.iter().filter(|&&element| element > 0.0).count() > pixels);
            // Three roundings of 6e-8 each in either.
            assert_close(carrier.name, 4e-7, &transposed, &matrix);
        }
    });
}

#[test]
fn empty_scans_and_grids_give_zeros() {
    on_each("empty scans and grids", |carrier| {
        let launcher = carrier.launcher();
        let launcher = launcher.as_ref();
        let full = grid([4; 3], 10.0);
        let none = orbit(8, 8, 20.0).over_arc(0, 0.0, TAU);
        let scan = ScanTable::upload(launcher, &none, &full).unwrap();
        let volume = unwritten(launcher, full.len());
        let empty = upload(launcher, &[]);
        forward_project(launcher, &scan, volume, empty).unwrap();
        back_project_matched(launcher, &scan, empty, volume).unwrap();
        assert_eq!(download(launcher, volume), vec![0.0; full.len()]);

        let geometry = orbit(8, 8, 20.0).over_arc(2, 0.0, TAU);
        let scan = ScanTable::upload(launcher, &geometry, &VolumeGrid { voxels: [4, 0, 4], ..full }).unwrap();
        let projections = unwritten(launcher, geometry.projection_len());
        forward_project(launcher, &scan, empty, projections).unwrap();
        back_project_matched(launcher, &scan, projections, empty).unwrap();
        assert_eq!(download(launcher, projections), vec![0.0; geometry.projection_len()]);
    });
}

#[test]
fn not_a_number_spreads_only_along_its_rays() {
    on_each("not a number", |carrier| {
        let grid = grid([20; 3], 95.0);
        for roll_rad in [0.0, 0.1] {
            let geometry = CircularOrbit { roll_rad, ..orbit(24, 24, 150.0) }.over_arc(3, 0.1, TAU);
            let (mut x, mut y) = (random(grid.len(), 1), random(geometry.projection_len(), 2));
            x[grid.index(10, 9, 3)] = f32::NAN;
            y[5 * 24 + 7] = f32::INFINITY;
            let results = carrier.run(|launcher| both(launcher, &geometry, &grid, &x, &y));
            for values in results {
                let bad = values.iter().filter(|value| !value.is_finite()).count();
                // Without any the value was lost; a ray or voxel touches about 1 % of the others.
                assert!(bad > 0 && bad < values.len() / 20, "{}: {bad} of {}", carrier.name, values.len());
            }
        }
    });
}

/// The scale is right for any voxel, pixel and distance: a box of known attenuation along its axis.
#[test]
fn a_box_has_its_length() {
    on_each("the scale of a projection", |carrier| {
        let grid = VolumeGrid::over_box([10, 14, 12], glam::DVec3::new(70.0, 42.0, 60.0), glam::DVec3::ZERO);
        let geometry = orbit(1, 1, 2.0).at_angles(&[0.0, 0.25 * TAU]);
        let x = vec![0.02; grid.len()];
        let y = vec![1.0; 2];
        let ax = carrier.run(|launcher| both(launcher, &geometry, &grid, &x, &y)).swap_remove(0);
        // Attenuation 0.02 / mm over 70 mm and 42 mm.
        assert_close(carrier.name, 1e-6, &ax, &[1.4, 0.84]);
    });
}
