//! Whole reconstructions by the runtime's own code, arena and order of launches included, on the carrier of kernels against the CPU.

use std::f64::consts::TAU;
use std::sync::Arc;

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda::CudaCompute;
use diffnr::compute::gaussians::{CHANNELS, GaussianArrays, GaussianWorkload};
use diffnr::compute::sart::AlgebraicCompute;
use diffnr::compute::{Compute as _, ComputeError, Memory as _, Operations, Values, ValuesMut, together};
use diffnr::geometry::{CircularOrbit, ScanGeometry, VolumeGrid};
use diffnr::reconstruct::asd_pocs::{AsdPocs, AsdPocsPlan, AsdPocsSettings};
use diffnr::reconstruct::fdk::{FdkAccumulator, FdkPlan, FdkSettings};
use diffnr::reconstruct::optimise::{AugmentSettings, Budget, Method, NotRepaired, OptimiseSettings, Recipe, Repairer};
use diffnr::reconstruct::os_sart::{OsSart, OsSartPlan, OsSartSettings};
use diffnr::reconstruct::{StopRules, Unobserved};
use diffnr::represent::field::FieldPlan;
use diffnr::represent::gaussians::GaussianPlan;
use diffnr::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};
use glam::DVec3;

use crate::carriers::on_each;
use crate::scans::{grid, orbit};
use crate::values::assert_close;

/// Two bodies of water, one in the other.
pub(crate) fn line_integrals(geometry: &ScanGeometry) -> Vec<f32> {
    let body =
        |centre: [f64; 3], half: [f64; 3]| Ellipsoid::aligned(DVec3::from_array(centre), DVec3::from_array(half), 0.02);
    let ellipsoids = vec![body([0.0, 5.0, 0.0], [38.0, 30.0, 40.0]), body([10.0, -8.0, 6.0], [9.0, 12.0, 8.0])];
    EllipsoidPhantom { ellipsoids }.line_integrals(geometry).into_iter().collect()
}

/// Of the largest value: projectors differ by up to 2e-5 of theirs (see `projectors`), filters and sums by less.
const FDK: f32 = 5e-5;

fn fdk(compute: &mut dyn diffnr::compute::Compute, geometry: &ScanGeometry, grid: &VolumeGrid) -> Vec<Vec<f32>> {
    let projections = line_integrals(geometry);
    let settings = FdkSettings { views_per_call: Some(3), ..FdkSettings::default() };
    let plan = Arc::new(FdkPlan::new(compute, geometry, grid, settings).unwrap());
    let mut accumulator = FdkAccumulator::new(compute, plan).unwrap();
    // In groups, and once more view by view, with the poses that the gantry reports, as the daemon does.
    accumulator.add_views(compute, 0, &projections).unwrap();
    let mut groups = vec![0.0; grid.len()];
    compute.read(accumulator.volume(), &mut groups).unwrap();
    accumulator.reset(compute).unwrap();
    for (view, part) in projections.chunks_exact(geometry.detector.pixels()).enumerate() {
        accumulator.add_view(compute, view, Some(&geometry.views[view]), part).unwrap();
    }
    let streamed = accumulator.into_volume(compute).unwrap();
    assert!(groups == streamed, "groups of views and single ones give the same bits");
    vec![groups]
}

#[test]
fn fdk_is_as_on_the_cpu() {
    let tilted = CircularOrbit { roll_rad: 0.02, ..orbit(30, 24, 150.0) };
    let half_fan = CircularOrbit { offset_u_mm: 40.0, ..orbit(30, 24, 150.0) };
    on_each("FDK as a whole", |carrier| {
        for (what, geometry) in [
            ("circle", orbit(30, 24, 150.0).over_arc(10, 0.1, TAU)),
            ("rolled", tilted.over_arc(7, 0.1, TAU)),
            ("half-fan, its columns widened", half_fan.over_arc(10, 0.1, TAU)),
        ] {
            let grid = grid([20, 18, 22], 84.0);
            let given = carrier.run_whole(|compute| fdk(compute, &geometry, &grid)).swap_remove(0);
            let expected = fdk(&mut CpuCompute::new(1).unwrap(), &geometry, &grid).swap_remove(0);
            assert!(expected.iter().any(|value| *value > 0.01));
            assert_close(&format!("{}, FDK, {what}", carrier.name), FDK, &given, &expected);
        }
    });
}

/// Of the largest value: the projectors' differences, which each step takes back as far as the views see them. 7e-7 here.
const SART: f32 = 2e-5;

fn algebraic(compute: &mut dyn AlgebraicCompute, geometry: &ScanGeometry, grid: &VolumeGrid) -> Vec<Vec<f32>> {
    let projections = line_integrals(geometry);
    let stop = StopRules { held_back_views: 1, ..StopRules::iterations(3) };
    let settings = OsSartSettings { stop, ..OsSartSettings::default() };
    let plan = OsSartPlan::without_scratch(geometry, grid, settings).unwrap();
    compute.prepare(&plan.workload()).unwrap();
    let mut sart = OsSart::new(Arc::new(plan), compute, &projections).unwrap();
    let outcome = sart.run(compute, &mut Unobserved).unwrap();
    let sart = sart.into_volume(compute).unwrap();

    let settings = AsdPocsSettings { sart: settings, ..AsdPocsSettings::default() };
    let plan = AsdPocsPlan::without_scratch(geometry, grid, settings).unwrap();
    let mut method = AsdPocs::new(Arc::new(plan), compute, &projections).unwrap();
    method.run(compute, &mut Unobserved).unwrap();
    let residuals = vec![outcome.residual as f32, outcome.held_back_residual.unwrap() as f32];
    vec![sart, method.into_volume(compute).unwrap(), residuals]
}

#[test]
fn algebraic_methods_are_as_on_the_cpu() {
    on_each("OS-SART and ASD-POCS as a whole", |carrier| {
        let (geometry, grid) = (orbit(30, 24, 150.0).over_arc(9, 0.1, TAU), grid([20, 18, 22], 84.0));
        let given = carrier.run_whole(|compute| algebraic(compute, &geometry, &grid));
        let expected = algebraic(&mut CpuCompute::new(1).unwrap(), &geometry, &grid);
        for (what, (given, expected)) in ["OS-SART", "ASD-POCS", "residuals"].iter().zip(given.iter().zip(&expected)) {
            assert!(expected.iter().any(|value| *value > 0.0));
            assert_close(&format!("{}, {what}", carrier.name), SART, given, expected);
        }
    });
}

/// A carrier that was prepared for less, buffers of another carrier, and more scans than are kept.
#[test]
fn what_a_carrier_lacks_is_refused_and_scans_come_and_go() {
    on_each("the carrier's refusals", |carrier| {
        let (all, grid) = (orbit(8, 6, 150.0).over_arc(260, 0.1, TAU), grid([5, 4, 6], 60.0));
        let mut compute = CudaCompute::new(carrier.launcher());
        let part = |views: std::ops::Range<usize>| ScanGeometry { views: all.views[views].to_vec(), ..all.clone() };
        let two = part(0..2);
        let volume = compute.filled("volume", &vec![0.02; grid.len()]).unwrap();
        let mut views = compute.buffer("views", two.projection_len()).unwrap();
        let unprepared = compute.forward_project(&two, &grid, volume.values(), views.values_mut()).unwrap_err();
        assert!(unprepared.to_string().contains("0 were prepared"), "{unprepared}");
        let norm = diffnr::compute::sart::SartCompute::squared_norm(&compute, volume.values()).unwrap_err();
        assert!(norm.to_string().contains("squared_norm"), "{norm}");

        let workload = diffnr::compute::Workload { columns: 8, rows: 6, views_per_call: 2, voxels: grid.voxels };
        let bytes = compute.scratch_bytes(&workload);
        compute.prepare(&workload).unwrap();
        assert!(bytes > 0);
        let three = part(0..3);
        let mut more = compute.buffer("views", three.projection_len()).unwrap();
        let refused = compute.forward_project(&three, &grid, volume.values(), more.values_mut()).unwrap_err();
        assert!(refused.to_string().contains("prepare the larger workload"), "{refused}");

        let host = vec![0.0; grid.len()];
        let elsewhere = compute.forward_project(&two, &grid, Values::from(&host), views.values_mut()).unwrap_err();
        assert!(elsewhere.to_string().contains("forward_project: a buffer lies in another"), "{elsewhere}");
        let cpu = CpuCompute::new(1).unwrap();
        let elsewhere = cpu.on_host(volume.values(), &mut vec![0.0; grid.len()]).unwrap_err();
        assert!(elsewhere.to_string().contains("copy: a buffer lies in another"), "{elsewhere}");

        // More scans than the 128 that are kept, gone through twice, and twice in a row.
        let mut expected = vec![0.0; two.projection_len()];
        let mut given = expected.clone();
        let mut prepared = CpuCompute::new(1).unwrap();
        prepared.prepare(&workload).unwrap();
        for scan in (0..130).chain(0..130).flat_map(|scan| [scan, scan]) {
            let geometry = part(2 * scan..2 * scan + 2);
            compute.forward_project(&geometry, &grid, volume.values(), views.values_mut()).unwrap();
            compute.read(views.values(), &mut given).unwrap();
            prepared.forward_project(&geometry, &grid, &vec![0.02; grid.len()], &mut expected).unwrap();
            assert_close("a scan that was kept or came anew", 2e-5, &given, &expected);
        }
    });
}

/// Of the largest value, after eight iterations and what comes before them (8e-6 here). Adam's steps are about as long whatever the gradient's size:
/// where one is next to nothing its rounding may decide a step's sign.
const OPTIMISED: f32 = 1e-3;
/// Of the volume's norm (1.5e-6 here).
const OPTIMISED_RMS: f64 = 5e-5;

fn optimised(
    compute: &mut dyn Operations,
    method: Method,
    (geometry, hold_back_one_in): (&ScanGeometry, usize),
    grid: &VolumeGrid,
) -> Vec<Vec<f32>> {
    let augment = AugmentSettings { first: 0.5, ..AugmentSettings::default() };
    let settings = OptimiseSettings {
        views_per_iteration: 4,
        fit_iterations: 4,
        approach_iterations: 3,
        tv_mm: 1e-3,
        hold_back_one_in,
        augment: Some(augment),
        ..OptimiseSettings::default()
    };
    let recipe = Recipe::new(geometry, grid, &settings, method).unwrap();
    recipe.prepare(compute).unwrap();
    let mut optimiser = recipe.optimiser(compute).unwrap();
    optimiser.repair_with(Box::new(Smooths));
    optimiser.load(compute, &line_integrals(geometry)).unwrap();
    optimiser.begin(compute, None, &Unobserved).unwrap();
    let outcome = optimiser.run(compute, Budget::Iterations(8), &mut Unobserved).unwrap();
    let repairs = *optimiser.repairs().unwrap();
    assert_eq!((repairs.done, outcome.iterations), (1, 8));
    let held_back = outcome.held_back_residual.unwrap_or(0.0);
    let residuals = [outcome.residual, held_back, repairs.dissimilarity.unwrap()];
    vec![optimiser.into_volume(compute).unwrap(), residuals.map(|value| value as f32).to_vec()]
}

/// Stands in for SliceFixer: a reference that is the volume, a tenth of what is unexplained added.
struct Smooths;

impl Repairer for Smooths {
    fn sees_unexplained(&self) -> bool {
        true
    }

    fn repair(
        &mut self,
        compute: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        mut reference: ValuesMut<'_>,
        _: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        compute.copy(volume, reference.reborrow()).unwrap();
        compute.add_scaled(0.1, unexplained, reference).unwrap();
        Ok(())
    }
}

#[test]
fn optimised_representations_are_as_on_the_cpu() {
    on_each("optimisation as a whole", |carrier| {
        let (geometry, grid) = (orbit(30, 24, 150.0).over_arc(8, 0.1, TAU), grid([20, 18, 22], 84.0));
        let field = FieldPlan::for_grid(&grid, 3);
        let methods = [
            // With rays held back the host has a part in every iteration; without, iterations are carried out as one, but for the first, when a field's
            // tables go to the device.
            ("gaussians", Method::Gaussians(GaussianPlan::for_grid(&grid, Some(900), 3)), 0, (true, false)),
            ("field, jittered", Method::Field(FieldPlan { jitter: true, ..field }), 0, (true, false)),
            ("field", Method::Field(field), 7, (true, true)),
        ];
        for (name, method, hold_back_one_in, as_one_and_broken) in methods {
            let given = carrier.run_whole(|compute| {
                let given = optimised(compute, method, (&geometry, hold_back_one_in), &grid);
                let groups = compute.groups();
                assert_eq!((groups.replayed > 0, groups.broken > 1), as_one_and_broken, "{name}: {groups:?}");
                given
            });
            let expected = optimised(&mut CpuCompute::new(1).unwrap(), method, (&geometry, hold_back_one_in), &grid);
            let of = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let pairs = || given[0].iter().zip(&expected[0]);
            let apart = of(&mut pairs().map(|(a, b)| f64::from(a - b))) / of(&mut pairs().map(|(_, b)| f64::from(*b)));
            println!("{}, {name}: {apart:.1e} of the volume's norm, tolerance {OPTIMISED_RMS:.0e}", carrier.name);
            assert!(apart < OPTIMISED_RMS, "{name}: {apart}");
            assert_close(&format!("{}, {name}", carrier.name), OPTIMISED, &given[0], &expected[0]);
            assert_close(&format!("{}, {name}: residuals", carrier.name), OPTIMISED, &given[1], &expected[1]);
        }
    });
}

/// Gaussians that the kernels leave out are not lost in silence: the carrier refuses them, as the CPU does.
#[test]
fn gaussians_that_are_not_finite_are_refused() {
    on_each("the carrier's refusal of Gaussians", |carrier| {
        let (geometry, grid) = (orbit(8, 6, 150.0).over_arc(2, 0.1, TAU), grid([5, 4, 6], 60.0));
        let refused = |compute: &mut dyn Operations, broken: f32| {
            let workload =
                GaussianWorkload { gaussians: 3, columns: 8, rows: 6, views_per_call: 2, voxels: grid.voxels };
            compute.prepare_gaussians(&workload).unwrap();
            let mut parameters = vec![1.0; CHANNELS * 3];
            // The second Gaussian's position along y.
            parameters[2 * 3 + 1] = broken;
            let parameters = compute.filled("parameters", &parameters).unwrap();
            let densities = compute.filled("densities", &[0.02; 3]).unwrap();
            let (parameters, density_per_mm) = (parameters.values(), densities.values());
            let gaussians = GaussianArrays { parameters, density_per_mm, len: 3, low_pass_mm: 0.1 };
            let mut volume = compute.buffer("volume", grid.len()).unwrap();
            let mut views = compute.buffer("views", geometry.projection_len()).unwrap();
            [
                compute.gaussian_voxelise(&grid, &gaussians, volume.values_mut()),
                compute.gaussian_project(&geometry, &gaussians, views.values_mut()),
                // In a group, at its end.
                together(compute, || compute.gaussian_voxelise(&grid, &gaussians, volume.values_mut())),
            ]
            .map(|outcome| match outcome {
                Ok(()) => None,
                Err(ComputeError::Value { index, .. }) => Some(index),
                Err(other) => panic!("{other}"),
            })
        };
        for (broken, index) in [(0.5, None), (f32::NAN, Some(1)), (f32::INFINITY, Some(1))] {
            assert_eq!(refused(&mut CpuCompute::new(1).unwrap(), broken), [index; 3], "cpu, {broken}");
            assert_eq!(refused(&mut CudaCompute::new(carrier.launcher()), broken), [index; 3], "{broken}");
        }
    });
}
