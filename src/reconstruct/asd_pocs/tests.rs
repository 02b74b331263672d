#![allow(clippy::unwrap_used)]

use std::f64::consts::TAU;
use std::sync::Arc;

use super::*;
use crate::compute::cpu::CpuCompute;
use crate::compute::total_variation::TotalVariation;
use crate::reconstruct::test_scan::{carrier, error, grid, noise, orbit, project};
use crate::reconstruct::{OsSart, StopReason, StopRules, Unobserved};

/// What total variation is made for: a ball with a box in it, each of one value.
fn object() -> Vec<f32> {
    let grid = grid();
    let [nx, ny, nz] = grid.voxels;
    let mut volume = Vec::new();
    for x in 0..nx {
        for y in 0..ny {
            for z in 0..nz {
                let at = grid.voxel_centre_mm(x, y, z);
                let ball = if at.length() < 70.0 { 0.02 } else { 0.0 };
                let inner = (at - glam::DVec3::new(15.0, -10.0, 0.0)).abs().max_element() < 25.0;
                volume.push(if inner { 0.035 } else { ball });
            }
        }
    }
    volume
}

fn settings(iterations: usize) -> AsdPocsSettings {
    let default = AsdPocsSettings::default();
    AsdPocsSettings { sart: OsSartSettings { stop: StopRules::iterations(iterations), ..default.sart }, ..default }
}

fn start(
    geometry: &ScanGeometry,
    settings: AsdPocsSettings,
    line_integrals: &[f32],
    threads: usize,
) -> (CpuCompute, AsdPocs) {
    let mut compute = CpuCompute::new(threads).unwrap();
    let plan = AsdPocsPlan::new(&mut compute, geometry, &grid(), settings).unwrap();
    let method = AsdPocs::new(Arc::new(plan), &compute, line_integrals).unwrap();
    (compute, method)
}

/// Few views with noise.
fn sparse() -> (ScanGeometry, Vec<f32>) {
    let geometry = orbit().over_arc(9, 0.1, TAU);
    let mut line_integrals = project(&geometry, &object());
    line_integrals.iter_mut().zip(noise(geometry.projection_len(), 0.02)).for_each(|(value, noise)| *value += noise);
    (geometry, line_integrals)
}

#[test]
fn few_views_of_a_piecewise_constant_object_come_out_far_better_than_by_sart() {
    let (geometry, line_integrals) = sparse();
    // Half the noise put in: with few views the best volume fits the noise to some degree.
    let chosen = AsdPocsSettings { epsilon: Epsilon::Rms(0.01), ..settings(100) };
    let (compute, mut method) = start(&geometry, chosen, &line_integrals, 2);
    let outcome = method.run(&compute, &mut Unobserved).unwrap();
    assert_eq!((outcome.iterations, outcome.stopped), (100, StopReason::Iterations));
    let plan = OsSartPlan::without_scratch(&geometry, &grid(), settings(100).sart).unwrap();
    let mut sart = OsSart::new(Arc::new(plan), &compute, &line_integrals).unwrap();
    sart.run(&compute, &mut Unobserved).unwrap();
    let (ours, theirs) =
        (error(method.volume(&compute).unwrap(), &object()), error(sart.volume(&compute).unwrap(), &object()));
    // 0.04 against 0.09, 7 dB.
    assert!(ours < 0.55 * theirs, "{ours} {theirs}");
    let variation = TotalVariation::on(&grid(), 1e-5);
    let of = |volume: &[f32]| compute.total_variation(&variation, volume).unwrap();
    assert!(of(method.volume(&compute).unwrap()) < of(sart.volume(&compute).unwrap()));
    assert!(method.volume(&compute).unwrap().iter().all(|&v| v >= 0.0));
}

#[test]
fn an_iteration_is_a_sweep_and_steps_of_one_length() {
    let (geometry, line_integrals) = sparse();
    let chosen = AsdPocsSettings { tv_steps: 3, alpha: 0.01, epsilon: Epsilon::Rms(0.0), ..settings(5) };
    // Without the bound at zero each step's length is exact.
    let chosen = AsdPocsSettings { sart: OsSartSettings { non_negative: false, ..chosen.sart }, ..chosen };
    let (compute, mut method) = start(&geometry, chosen, &line_integrals, 2);
    let plan = OsSartPlan::without_scratch(&geometry, &grid(), chosen.sart).unwrap();
    let mut sart = OsSart::new(Arc::new(plan), &compute, &line_integrals).unwrap();
    sart.sweep(&compute).unwrap();
    let first = method.iterate(&compute).unwrap();
    let norm = sart.volume(&compute).unwrap().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    assert!((first.data_step / norm - 1.0).abs() < 1e-5, "{first:?} {norm}");
    // Three steps of length alpha dp, nearly in one direction: between one and three of them.
    let step = 0.01 * first.data_step;
    assert!(first.descent > step && first.descent < 3.0001 * step, "{first:?}");
    let mut lengths = vec![first];
    for _ in 1..5 {
        lengths.push(method.iterate(&compute).unwrap());
    }
    // The descent is shortened by 0.95 where it undid more than r_max of the data step, and not otherwise.
    for pair in lengths.windows(2) {
        let shorter = pair[0].descent > 0.95 * pair[0].data_step;
        let ratio = pair[1].descent / pair[0].descent;
        assert!(if shorter { ratio < 0.99 } else { ratio > 0.9 }, "{pair:?}");
    }
    assert!(lengths.windows(2).all(|pair| pair[1].data_step < pair[0].data_step));
}

#[test]
fn met_data_keep_the_descent_as_it_is() {
    let (geometry, line_integrals) = sparse();
    let run = |epsilon: Epsilon| {
        let chosen = AsdPocsSettings { alpha: 0.02, epsilon, ..settings(12) };
        let (compute, mut method) = start(&geometry, chosen, &line_integrals, 2);
        (0..12).map(|_| method.iterate(&compute).unwrap()).last().unwrap()
    };
    let (free, bound) = (run(Epsilon::Rms(10.0)), run(Epsilon::Rms(1e-6)));
    assert!(free.descent > 1.1 * bound.descent && free.residual > bound.residual, "{free:?} {bound:?}");
}

#[test]
fn epsilon_follows_the_noise_of_the_line_integrals() {
    let (geometry, line_integrals) = sparse();
    let (_, method) =
        start(&geometry, AsdPocsSettings { epsilon: Epsilon::NoiseTimes(2.0), ..settings(1) }, &line_integrals, 1);
    assert_eq!(method.epsilon(), 2.0 * method.noise().unwrap().rms);
    let clean = project(&geometry, &object());
    let (_, of_clean) = start(&geometry, settings(1), &clean, 1);
    assert!(of_clean.epsilon() < method.epsilon());
}

#[test]
fn each_rule_stops_the_work() {
    let (geometry, line_integrals) = sparse();
    let with = |stop: StopRules| {
        let chosen = AsdPocsSettings { sart: OsSartSettings { stop, ..settings(1).sart }, ..settings(1) };
        let (compute, mut method) = start(&geometry, chosen, &line_integrals, 2);
        let outcome = method.run(&compute, &mut Unobserved).unwrap();
        (method.into_volume(&compute).unwrap(), outcome)
    };
    let all = StopRules::iterations(80);
    let (_, outcome) = with(StopRules { residual: Some(0.05), ..all });
    assert!(outcome.stopped == StopReason::Discrepancy && outcome.residual <= 0.05, "{outcome:?}");
    let (_, outcome) = with(StopRules { change: Some(0.02), ..all });
    assert!(outcome.stopped == StopReason::Change && outcome.iterations > 1, "{outcome:?}");
    let (_, outcome) = with(StopRules { held_back_views: 2, ..all });
    assert!(outcome.held_back_residual.unwrap() > 0.0, "{outcome:?}");
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (geometry, line_integrals) = sparse();
    let with = |threads: usize| {
        let (compute, mut method) = start(&geometry, settings(4), &line_integrals, threads);
        method.run(&compute, &mut Unobserved).unwrap();
        method.volume(&compute).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let first = with(1);
    assert!(with(2) == first && with(3) == first);
}

#[test]
fn nothing_and_noise_end_finite() {
    let geometry = orbit().over_arc(5, 0.0, TAU);
    let (compute, mut method) = start(&geometry, settings(3), &vec![0.0; geometry.projection_len()], 2);
    method.run(&compute, &mut Unobserved).unwrap();
    assert!(method.volume(&compute).unwrap().iter().all(|&v| v == 0.0));
    let (compute, mut method) = start(&geometry, settings(10), &noise(geometry.projection_len(), 5.0), 2);
    let outcome = method.run(&compute, &mut Unobserved).unwrap();
    assert!(
        method.volume(&compute).unwrap().iter().all(|v| v.is_finite()) && outcome.warning().is_some(),
        "{outcome:?}"
    );
}

#[test]
fn the_plan_lists_three_more_volumes_than_sart() {
    let (geometry, _) = sparse();
    let plan = AsdPocsPlan::without_scratch(&geometry, &grid(), settings(1)).unwrap();
    let bytes = |buffers: Vec<(&str, usize)>| buffers.iter().map(|(_, bytes)| bytes).sum::<usize>();
    assert_eq!(bytes(plan.buffers()) - bytes(plan.sart().buffers()), 3 * 4 * grid().len());
    assert_eq!(plan.workload(), plan.sart().workload());
}

#[test]
fn bad_settings_are_refused_by_name() {
    let (geometry, mut line_integrals) = sparse();
    let good = settings(3);
    for (bad, part) in [
        (AsdPocsSettings { tv_steps: 0, ..good }, "tv_steps = 0"),
        (AsdPocsSettings { alpha: 0.0, ..good }, "alpha = 0"),
        (AsdPocsSettings { alpha_factor: 1.5, ..good }, "alpha_factor = 1.5"),
        (AsdPocsSettings { r_max: f64::NAN, ..good }, "r_max = NaN"),
        (AsdPocsSettings { epsilon: Epsilon::Rms(-1.0), ..good }, "epsilon = -1"),
        (AsdPocsSettings { epsilon: Epsilon::NoiseTimes(f64::INFINITY), ..good }, "epsilon = inf"),
        (AsdPocsSettings { tv_epsilon: 0.0, ..good }, "tv_epsilon = 0"),
        (AsdPocsSettings { sart: OsSartSettings { relaxation: 3.0, ..good.sart }, ..good }, "relaxation = 3"),
    ] {
        let message = AsdPocsPlan::without_scratch(&geometry, &grid(), bad).unwrap_err().to_string();
        assert!(message.contains(part), "\"{part}\" is missing in: {message}");
    }
    line_integrals[7] = f32::NAN;
    let plan = Arc::new(AsdPocsPlan::without_scratch(&geometry, &grid(), good).unwrap());
    let message = AsdPocs::new(plan, &carrier(1, 9), &line_integrals).unwrap_err().to_string();
    assert!(message.contains("view 0") && message.contains("column 7"), "{message}");
}
