#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;

use glam::DVec3;

use super::*;
use crate::compute::cpu::CpuCompute;
use crate::geometry::{CircularOrbit, Coverage, Detector};
use crate::reconstruct::stopping::Outcome;
use crate::reconstruct::test_scan::{carrier, error, grid, noise, object, orbit, project};
use crate::reconstruct::{Observer, Progress, StopReason, Unobserved};

fn settings(iterations: usize) -> OsSartSettings {
    OsSartSettings { subset_views: Some(3), stop: StopRules::iterations(iterations), ..OsSartSettings::default() }
}

fn run(geometry: &ScanGeometry, settings: OsSartSettings, line_integrals: &[f32]) -> (Vec<f32>, Outcome) {
    let mut compute = CpuCompute::new(2).unwrap();
    reconstruct(&mut compute, geometry, &grid(), settings, line_integrals).unwrap()
}

#[test]
fn a_sweep_is_the_formula_with_the_projectors_matrix() {
    // Every column of the matrix is what a single voxel projects to.
    let grid = VolumeGrid::over_box([4, 5, 3], DVec3::new(200.0, 200.0, 150.0), DVec3::new(5.0, 0.0, 10.0));
    let geometry =
        CircularOrbit { detector: Detector { columns: 7, rows: 5 }, pitch_u_mm: 45.0, pitch_v_mm: 50.0, ..orbit() }
            .over_arc(6, 0.3, TAU);
    let mut compute = CpuCompute::new(1).unwrap();
    let settings = OsSartSettings {
        subset_views: Some(2),
        relaxation: 0.8,
        weights: PixelWeights::Photons { power: 0.5 },
        ..settings(1)
    };
    let plan = Arc::new(OsSartPlan::new(&mut compute, &geometry, &grid, settings).unwrap());
    let pixels = geometry.detector.pixels();
    let mut matrix = vec![vec![0.0_f32; geometry.projection_len()]; grid.len()];
    for (voxel, column) in matrix.iter_mut().enumerate() {
        let mut volume = vec![0.0; grid.len()];
        volume[voxel] = 1.0;
        for view in 0..6 {
            let one = ScanGeometry { detector: geometry.detector, views: vec![geometry.views[view]] };
            compute.forward_project(&one, &grid, &volume, &mut column[view * pixels..][..pixels]).unwrap();
        }
    }
    let measured: Vec<f32> = noise(geometry.projection_len(), 0.4).iter().map(|v| v + 1.0).collect();
    let mut expected = vec![0.0_f64; grid.len()];
    let shortest = grid.voxel_mm.min_element();
    for subset in plan.subsets() {
        let rows: Vec<usize> = subset.iter().flat_map(|view| view * pixels..(view + 1) * pixels).collect();
        let entry = |voxel: usize, row: usize| f64::from(matrix[voxel][row]);
        let (mut step, mut sums) = (vec![0.0; grid.len()], vec![0.0; grid.len()]);
        for row in rows {
            let length: f64 = (0..grid.len()).map(|voxel| entry(voxel, row)).sum();
            if length == 0.0 {
                continue;
            }
            let projected: f64 = (0..grid.len()).map(|voxel| entry(voxel, row) * expected[voxel]).sum();
            let weight = (-0.5 * f64::from(measured[row].max(0.0))).exp();
            for voxel in 0..grid.len() {
                step[voxel] +=
                    entry(voxel, row) * weight / length.max(shortest) * (f64::from(measured[row]) - projected);
                sums[voxel] += entry(voxel, row) * weight;
            }
        }
        for voxel in 0..grid.len() {
            if sums[voxel] > 0.0 {
                expected[voxel] = (expected[voxel] + 0.8 * step[voxel] / sums[voxel]).max(0.0);
            }
        }
    }
    let mut sart = OsSart::new(plan, &compute, &measured).unwrap();
    sart.sweep(&compute).unwrap();
    let largest = expected.iter().copied().fold(0.0, f64::max);
    for (voxel, (&value, &expected)) in sart.volume(&compute).unwrap().iter().zip(&expected).enumerate() {
        // Float32 sums over some hundred terms.
        assert!((f64::from(value) - expected).abs() < 1e-5 * largest, "voxel {voxel}: {value} {expected}");
    }
}

#[test]
fn the_object_that_was_projected_stays_as_it_is() {
    let geometry = orbit().over_arc(9, 0.0, TAU);
    let truth = object(&grid());
    let mut compute = CpuCompute::new(2).unwrap();
    let plan = Arc::new(OsSartPlan::new(&mut compute, &geometry, &grid(), settings(1)).unwrap());
    let mut sart = OsSart::new(plan, &compute, &project(&geometry, &truth)).unwrap();
    crate::compute::Memory::write(&compute, &truth, sart.values_mut()).unwrap();
    let sweep = sart.sweep(&compute).unwrap();
    // The residual is zero but for the order of float32 sums.
    assert!(sweep.residual < 1e-6 && error(sart.volume(&compute).unwrap(), &truth) < 1e-6, "{sweep:?}");
}

#[test]
fn consistent_data_are_fitted_ever_better_and_the_object_comes_back() {
    let geometry = orbit().over_arc(24, 0.0, TAU);
    let truth = object(&grid());
    let line_integrals = project(&geometry, &truth);
    let mut residuals = Vec::new();
    struct Keep<'a>(&'a mut Vec<f64>);
    impl Observer for Keep<'_> {
        fn wants_volume(&mut self, iteration: usize) -> bool {
            iteration == 2
        }
        fn observe(&mut self, progress: &Progress<'_>) {
            assert_eq!(progress.volume.is_some(), progress.iteration == 2);
            self.0.push(progress.residual);
        }
    }
    let mut compute = CpuCompute::new(2).unwrap();
    let plan = Arc::new(OsSartPlan::new(&mut compute, &geometry, &grid(), settings(30)).unwrap());
    let mut sart = OsSart::new(plan, &compute, &line_integrals).unwrap();
    let outcome = sart.run(&compute, &mut Keep(&mut residuals)).unwrap();
    assert!(residuals.windows(2).all(|pair| pair[1] < pair[0]), "{residuals:?}");
    assert_eq!((outcome.iterations, outcome.stopped, residuals.len()), (30, StopReason::Iterations, 30));
    assert_eq!(outcome.residual, residuals[29]);
    assert!(sart.residual(&compute).unwrap() < outcome.residual);
    // 24 views of 1440 pixels for 11,520 unknowns: what is left is the slow convergence of fine detail.
    let error = error(sart.volume(&compute).unwrap(), &truth);
    assert!(error < 0.02, "{error}");
    assert!(outcome.unexplained() < 1e-4 && outcome.warning().is_none(), "{outcome:?}");
}

#[test]
fn scans_that_fdk_refuses_are_reconstructed() {
    let truth = object(&grid());
    let half_fan = CircularOrbit { offset_u_mm: 90.0, ..orbit() };
    let mut wobbling = orbit().over_arc(40, 0.0, TAU);
    for (view, pose) in wobbling.views.iter_mut().enumerate() {
        let way = DVec3::new((view % 3) as f64, (view % 5) as f64, (view % 7) as f64);
        pose.source_mm += 20.0 * way;
        pose.detector_origin_mm -= 4.0 * way;
    }
    for (name, geometry, largest) in [
        // Missing angles leave the object blurred along them.
        ("short arc", orbit().over_arc(30, 0.2, 2.3), 0.25),
        ("half-fan on less than a turn", half_fan.over_arc(40, 0.0, 5.0), 0.06),
        ("half-fan", half_fan.over_arc(40, 0.0, TAU), 0.04),
        ("poses of their own", wobbling, 0.03),
        ("rolled detector", CircularOrbit { roll_rad: 0.4, ..orbit() }.over_arc(24, 0.0, TAU), 0.03),
    ] {
        assert!(name == "half-fan" || Coverage::analyse(&geometry, &grid()).is_err(), "{name}");
        let (volume, outcome) = run(&geometry, settings(30), &project(&geometry, &truth));
        let error = error(&volume, &truth);
        assert!(error < largest, "{name}: {error} {outcome:?}");
    }
}

#[test]
fn each_rule_stops_the_work() {
    let geometry = orbit().over_arc(18, 0.0, TAU);
    let truth = object(&grid());
    let mut line_integrals = project(&geometry, &truth);
    let sigma = 0.05;
    line_integrals.iter_mut().zip(noise(geometry.projection_len(), sigma)).for_each(|(value, noise)| *value += noise);
    let with = |stop: StopRules| run(&geometry, OsSartSettings { stop, ..settings(1) }, &line_integrals);
    let all = StopRules::iterations(60);

    let limit = 1.2 * f64::from(sigma);
    let (_, discrepancy) = with(StopRules { residual: Some(limit), ..all });
    assert_eq!(discrepancy.stopped, StopReason::Discrepancy);
    assert!(discrepancy.residual <= limit && discrepancy.iterations > 1, "{discrepancy:?}");
    let (_, before) = with(StopRules { iterations: discrepancy.iterations - 1, residual: Some(limit), ..all });
    assert!(before.residual > limit && before.stopped == StopReason::Iterations);

    let (_, change) = with(StopRules { change: Some(0.1), ..all });
    assert!(change.stopped == StopReason::Change && change.iterations > 1, "{change:?}");

    let (held_back, outcome) = with(StopRules { held_back_views: 4, ..all });
    assert_eq!(outcome.stopped, StopReason::HeldBack);
    assert!(outcome.iterations < 60 && outcome.held_back_residual.unwrap() > f64::from(sigma), "{outcome:?}");
    // The volume is that of the best iteration, not the last.
    let iterations = outcome.iterations - crate::reconstruct::stopping::HELD_BACK_PATIENCE;
    let (best, _) = with(StopRules { iterations, held_back_views: 4, ..all });
    assert!(held_back == best);
    // Which is nearer to the truth than fitting the noise to the end.
    let (fitted, _) = with(all);
    assert!(error(&best, &truth) < error(&fitted, &truth));
}

#[test]
fn bits_depend_neither_on_threads_nor_on_how_column_sums_are_kept() {
    let geometry = orbit().over_arc(10, 0.0, TAU);
    let line_integrals = project(&geometry, &object(&grid()));
    let with = |threads: usize, keeps: bool| {
        let mut compute = CpuCompute::new(threads).unwrap();
        let mut plan = OsSartPlan::new(&mut compute, &geometry, &grid(), settings(4)).unwrap();
        assert!(plan.keeps_column_sums);
        plan.keeps_column_sums = keeps;
        let mut sart = OsSart::new(Arc::new(plan), &compute, &line_integrals).unwrap();
        let outcome = sart.run(&compute, &mut Unobserved).unwrap();
        let bits: Vec<u32> = sart.volume(&compute).unwrap().iter().map(|v| v.to_bits()).collect();
        (bits, outcome)
    };
    let first = with(1, true);
    assert!(first.0.iter().any(|&bits| bits != 0));
    for (threads, keeps) in [(2, true), (3, true), (2, false)] {
        assert!(with(threads, keeps) == first, "{threads} threads, {keeps}");
    }
}

#[test]
fn the_plan_lists_what_is_allocated() {
    let geometry = orbit().over_arc(10, 0.0, TAU);
    let settings = OsSartSettings { stop: StopRules { held_back_views: 2, ..StopRules::iterations(1) }, ..settings(1) };
    let plan = OsSartPlan::without_scratch(&geometry, &grid(), settings).unwrap();
    assert_eq!((plan.subsets().len(), plan.held_back().len()), (3, 2));
    let bytes: std::collections::BTreeMap<_, _> = plan.buffers().into_iter().collect();
    let compute = carrier(1, 10);
    let sart = OsSart::new(Arc::new(plan), &compute, &vec![0.0; geometry.projection_len()]).unwrap();
    for (name, floats) in sart.allocated() {
        assert_eq!(bytes[name], 4 * floats, "{name}");
    }
    assert_eq!(bytes.len(), 8);
}

#[test]
fn noise_alone_ends_finite_and_says_so() {
    let geometry = orbit().over_arc(9, 0.0, TAU);
    for sigma in [3.0, LARGEST_LINE_INTEGRAL / 10.0] {
        let line_integrals = noise(geometry.projection_len(), sigma);
        let (volume, outcome) = run(&geometry, settings(10), &line_integrals);
        assert!(volume.iter().all(|v| v.is_finite()));
        assert!(outcome.residual.is_finite() && outcome.warning().unwrap().contains("mostly noise"), "{outcome:?}");
    }
    let (volume, outcome) = run(&geometry, settings(2), &vec![0.0; geometry.projection_len()]);
    assert!(volume.iter().all(|&v| v == 0.0) && outcome.warning().is_none());
}

#[test]
fn bad_settings_and_bad_data_are_refused_by_name() {
    let geometry = orbit().over_arc(6, 0.0, TAU);
    let says =
        |settings: OsSartSettings| OsSartPlan::without_scratch(&geometry, &grid(), settings).unwrap_err().to_string();
    let good = settings(3);
    let stop = StopRules::iterations(3);
    for (bad, part) in [
        (OsSartSettings { relaxation: 2.0, ..good }, "relaxation = 2"),
        (OsSartSettings { relaxation: f64::NAN, ..good }, "relaxation = NaN"),
        (OsSartSettings { relaxation_factor: 1.1, ..good }, "relaxation_factor = 1.1"),
        (OsSartSettings { subset_views: Some(0), ..good }, "subset_views = 0"),
        (OsSartSettings { weights: PixelWeights::Photons { power: 0.0 }, ..good }, "weights.power = 0"),
        (OsSartSettings { stop: StopRules::iterations(0), ..good }, "iterations = 0"),
        (OsSartSettings { stop: StopRules { residual: Some(-1.0), ..stop }, ..good }, "stop.residual = -1"),
        (OsSartSettings { stop: StopRules { change: Some(f64::INFINITY), ..stop }, ..good }, "stop.change = inf"),
        (OsSartSettings { stop: StopRules { held_back_views: 4, ..stop }, ..good }, "held_back_views = 4"),
    ] {
        let message = says(bad);
        assert!(message.contains(part), "\"{part}\" is missing in: {message}");
    }
    let compute = carrier(1, 6);
    let plan = Arc::new(OsSartPlan::without_scratch(&geometry, &grid(), good).unwrap());
    let mut line_integrals = vec![0.5; geometry.projection_len()];
    let refusal =
        |line_integrals: &[f32]| OsSart::new(Arc::clone(&plan), &compute, line_integrals).unwrap_err().to_string();
    assert!(refusal(&line_integrals[1..]).contains("need 8640"));
    for value in [f32::NAN, f32::NEG_INFINITY, 2.0 * LARGEST_LINE_INTEGRAL] {
        line_integrals[2 * 1440 + 3 * 40 + 5] = value;
        let message = refusal(&line_integrals);
        assert!(message.contains("view 2") && message.contains("row 3, column 5"), "{message}");
    }
    let beside = CircularOrbit { offset_u_mm: 900.0, ..orbit() }.over_arc(6, 0.0, TAU);
    let refused = OsSartPlan::without_scratch(&beside, &grid(), good).unwrap_err();
    assert!(refused.to_string().contains("misses the volume"), "{refused}");
}
