//! Determinism, carriers, and everything that is empty, unseen or wrong.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::compute::ComputeError;

/// All four operations on one carrier.
fn everything(
    cpu: &CpuCompute,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    owned: &Owned,
) -> (Vec<f32>, Vec<f32>, OwnedGradients) {
    let mut projections = vec![f32::NAN; geometry.projection_len()];
    let mut volume = vec![f32::NAN; grid.len()];
    let mut gradients = OwnedGradients::zeros(owned.len());
    cpu.gaussian_project(geometry, &owned.set(), &mut projections).unwrap();
    cpu.gaussian_voxelise(grid, &owned.set(), &mut volume).unwrap();
    cpu.gaussian_project_backward(geometry, &owned.set(), &projections, &mut gradients.lend()).unwrap();
    cpu.gaussian_voxelise_backward(grid, &owned.set(), &volume, &mut gradients.lend()).unwrap();
    (projections, volume, gradients)
}

fn case() -> (ScanGeometry, VolumeGrid, Owned) {
    let mut gaussians = scene(700, 30.0, 0.3, 5.0, &mut random(21));
    // Some behind the source, some around it, some without density.
    gaussians[3].position = DVec3::new(900.0, 500.0, 0.0);
    gaussians[4].scale = DVec3::splat(600.0);
    gaussians[5].density = 0.0;
    let grid =
        VolumeGrid { voxels: [33, 29, 31], voxel_mm: DVec3::new(1.0, 1.3, 1.1), centre_mm: DVec3::new(3.0, -2.0, 1.0) };
    (awkward(3), grid, Owned::new(&gaussians, 0.4))
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (geometry, grid, owned) = case();
    for simd in SimdLevel::available() {
        let of = |threads| {
            everything(&carrier(threads, simd, owned.len(), &geometry, grid.voxels), &geometry, &grid, &owned)
        };
        let one = of(1);
        assert!(one.0.iter().chain(&one.1).chain(one.2.0.iter().flatten()).all(|x| x.is_finite()));
        for threads in [2, 3] {
            assert!(of(threads) == one, "{simd}, {threads} threads");
        }
    }
}

#[test]
fn simd_levels_agree_to_rounding() {
    let (geometry, grid, owned) = case();
    let of = |simd| everything(&carrier(2, simd, owned.len(), &geometry, grid.voxels), &geometry, &grid, &owned);
    let plain = of(SimdLevel::Plain);
    let close = |name: &str, a: &[f32], b: &[f32], tolerance: f32| {
        let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / largest;
        assert!(worst < tolerance, "{name}: {worst:.1e} of {largest:.2e}");
    };
    for simd in SimdLevel::available().skip(1) {
        let wide = of(simd);
        close("projections", &plain.0, &wide.0, 2e-6);
        close("volume", &plain.1, &wide.1, 2e-6);
        for (name, (a, b)) in NAMES.iter().chain(&["view norm"]).zip(plain.2.0.iter().zip(&wide.2.0)) {
            // Sums over up to some thousand pixels, in another order.
            close(name, a, b, 2e-5);
        }
    }
}

#[test]
fn nothing_comes_of_no_gaussians_and_of_those_unseen() {
    let geometry = awkward(2);
    let source = geometry.views[0].source_mm;
    let one =
        |position, scale| One { density: 0.02, position, scale: DVec3::splat(scale), rotation: [1.0, 0.0, 0.0, 0.0] };
    let single = ScanGeometry { detector: geometry.detector, views: vec![geometry.views[0]] };
    let cases = [
        ("none", vec![]),
        ("behind the source", vec![one(source * 1.3, 3.0)]),
        ("around the source", vec![one(source * 0.99, 30.0)]),
        ("off the detector", vec![one(DVec3::new(0.0, 0.0, 300.0), 3.0), one(source.cross(DVec3::Z), 3.0)]),
        ("without density", vec![One { density: 0.0, ..one(DVec3::ZERO, 3.0) }]),
    ];
    for (name, gaussians) in cases {
        let owned = Owned::new(&gaussians, 0.3);
        assert!(project(&single, &owned).iter().all(|&x| x == 0.0), "{name}");
        if name != "without density" {
            let cpu = carrier(1, SimdLevel::detect(), owned.len(), &single, [1; 3]);
            let mut gradients = OwnedGradients::zeros(owned.len());
            let ones = vec![1.0; single.projection_len()];
            cpu.gaussian_project_backward(&single, &owned.set(), &ones, &mut gradients.lend()).unwrap();
            assert!(gradients.0.iter().flatten().all(|&g| g == 0.0), "{name}");
        }
    }
    let grid = VolumeGrid::over_box([5, 1, 7], DVec3::splat(10.0), DVec3::ZERO);
    for gaussians in [vec![], vec![one(DVec3::new(0.0, 50.0, 0.0), 3.0)]] {
        assert!(voxelise(&grid, &Owned::new(&gaussians, 0.0)).iter().all(|&x| x == 0.0));
    }
    // And one Gaussian on a single pixel and a single voxel.
    let orbit = CircularOrbit { detector: Detector { columns: 1, rows: 1 }, ..CircularOrbit::default() };
    let owned = Owned::new(&[one(DVec3::ZERO, 2.0)], 0.0);
    let value = f64::from(project(&orbit.over_arc(1, 0.0, 1.0), &owned)[0]);
    // Kernel's polynomial and edge: 4e-4 at the peak.
    assert!((value / (0.02 * 2.0 * std::f64::consts::TAU.sqrt()) - 1.0).abs() < 5e-4, "{value}");
    let voxel = VolumeGrid::over_box([1; 3], DVec3::ONE, DVec3::ZERO);
    assert!((voxelise(&voxel, &owned)[0] - 0.02).abs() < 1e-7);
}

#[test]
fn density_gets_a_gradient_even_at_zero() {
    let geometry = awkward(1);
    let one = One { density: 0.0, position: DVec3::ZERO, scale: DVec3::splat(3.0), rotation: [1.0, 0.0, 0.0, 0.0] };
    let owned = Owned::new(&[one], 0.0);
    let cpu = carrier(1, SimdLevel::detect(), 1, &geometry, [8; 3]);
    let mut gradients = OwnedGradients::zeros(1);
    let ones = vec![1.0; geometry.projection_len()];
    cpu.gaussian_project_backward(&geometry, &owned.set(), &ones, &mut gradients.lend()).unwrap();
    assert!(gradients.0[0][0] > 1.0, "{gradients:?}");
}

#[test]
fn more_entries_than_the_list_holds_change_nothing() {
    // Every Gaussian touches every strip: four times as many entries as there is room for.
    let geometry = awkward(1);
    let owned = Owned::new(&scene(2000, 10.0, 20.0, 30.0, &mut random(22)), 0.0);
    let all = project(&geometry, &owned);
    let mut sum = vec![0.0f64; all.len()];
    for half in 0..2 {
        let mut part = owned.clone();
        for array in &mut part.arrays {
            *array = array[half * 1000..(half + 1) * 1000].to_vec();
        }
        sum.iter_mut().zip(project(&geometry, &part)).for_each(|(s, x)| *s += f64::from(x));
    }
    // float32 sums of 2000 terms.
    assert!(all.iter().zip(&sum).all(|(&a, b)| (f64::from(a) / b - 1.0).abs() < 1e-5));
}

#[test]
fn values_that_no_result_can_come_from_are_refused_by_name() {
    let geometry = awkward(1);
    let grid = VolumeGrid::over_box([4; 3], DVec3::splat(4.0), DVec3::ZERO);
    let good = Owned::new(&scene(5, 10.0, 1.0, 2.0, &mut random(23)), 0.0);
    let cpu = carrier(2, SimdLevel::detect(), 5, &geometry, grid.voxels);
    let names = [
        (0, f32::NAN, "`density_per_mm` of element 3 is NaN"),
        (2, f32::INFINITY, "`position_mm.y` of element 3 is inf"),
        (5, f32::NAN, "`log_scale.1` of element 3 is NaN"),
        (6, 60.0, "`log_scale.2` of element 3 is 60"),
        (8, f32::NEG_INFINITY, "`rotation.x` of element 3 is -inf"),
    ];
    for (array, value, text) in names {
        let mut bad = good.clone();
        bad.arrays[array][3] = value;
        let mut gradients = OwnedGradients::zeros(5);
        let (mut image, mut volume) = (vec![0.0; geometry.projection_len()], vec![0.0; grid.len()]);
        let errors = [
            cpu.gaussian_project(&geometry, &bad.set(), &mut image).unwrap_err(),
            cpu.gaussian_voxelise(&grid, &bad.set(), &mut volume).unwrap_err(),
            cpu.gaussian_project_backward(&geometry, &bad.set(), &image, &mut gradients.lend()).unwrap_err(),
            cpu.gaussian_voxelise_backward(&grid, &bad.set(), &volume, &mut gradients.lend()).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains(text), "{error}");
        }
    }
    let mut zero = good.clone();
    (7..11).for_each(|k| zero.arrays[k][1] = 0.0);
    let mut image = vec![0.0; geometry.projection_len()];
    let error = cpu.gaussian_project(&geometry, &zero.set(), &mut image).unwrap_err().to_string();
    assert!(error.contains("rotation") && error.contains("element 1"), "{error}");
    let mut short = good.clone();
    short.arrays[4].pop();
    assert!(matches!(
        cpu.gaussian_project(&geometry, &short.set(), &mut image),
        Err(ComputeError::Shape { buffer: "log_scale.0", given: 4, needed: 5, .. })
    ));
    let more = Owned::new(&scene(2000, 10.0, 1.0, 2.0, &mut random(24)), 0.0);
    assert!(matches!(cpu.gaussian_project(&geometry, &more.set(), &mut image), Err(ComputeError::Scratch { .. })));
}
