#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use glam::DVec3;

use super::super::{Budget, Method, OptimiseSettings, Outcome, Recipe, ScanViews, Unexplained};
use super::*;
use crate::compute::cpu::CpuCompute;
use crate::geometry::{CircularOrbit, Detector, ScanGeometry};
use crate::reconstruct::Unobserved;
use crate::represent::field::FieldPlan;
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};

const ITERATIONS: usize = 12;

fn grid() -> VolumeGrid {
    VolumeGrid::over_box([16, 15, 14], DVec3::new(160.0, 150.0, 140.0), DVec3::ZERO)
}

/// Few views, so that there is something to repair.
fn geometry() -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 500.0,
        source_to_detector_mm: 750.0,
        detector: Detector { columns: 24, rows: 22 },
        pitch_u_mm: 12.0,
        pitch_v_mm: 12.0,
        ..CircularOrbit::default()
    };
    orbit.over_arc(4, 0.2, std::f64::consts::TAU)
}

fn phantom() -> EllipsoidPhantom {
    let ball = |x, y, z, radius, mu| Ellipsoid::aligned(DVec3::new(x, y, z), DVec3::splat(radius), mu);
    EllipsoidPhantom { ellipsoids: vec![ball(5.0, -8.0, 3.0, 50.0, 0.02), ball(20.0, 10.0, 0.0, 18.0, 0.02)] }
}

fn truth() -> Vec<f32> {
    phantom().voxelise(&grid(), 3).into_iter().collect()
}

/// What the repairer saw, and what it is to do.
struct Fixed {
    truth: Option<Vec<f32>>,
    fails: Option<NotRepaired>,
    /// Whether it looks at what is unexplained, and keeps that.
    looks: bool,
    seen: Arc<Mutex<Vec<Vec<f32>>>>,
}

impl Repairer for Fixed {
    fn sees_unexplained(&self) -> bool {
        self.looks
    }

    fn repair(
        &mut self,
        _: &dyn Operations,
        volume: Values<'_>,
        unexplained: Values<'_>,
        reference: ValuesMut<'_>,
        _: &dyn Fn() -> bool,
    ) -> Result<(), NotRepaired> {
        let [volume, unexplained] = [volume, unexplained].map(|values| values.host("repair").unwrap());
        let reference = reference.host("repair").unwrap();
        assert_eq!(unexplained.len(), if self.looks { volume.len() } else { 0 });
        self.seen.lock().unwrap().push(if self.looks { unexplained } else { volume }.to_vec());
        if let Some(why) = self.fails {
            // What a failed repair leaves there must not matter.
            reference.fill(f32::NAN);
            return Err(why);
        }
        reference.copy_from_slice(self.truth.as_deref().unwrap_or(volume));
        Ok(())
    }
}

struct Run {
    volume: Vec<f32>,
    outcome: Outcome,
    repairs: Option<Repairs>,
    seen: Vec<Vec<f32>>,
}

fn run(augment: Option<AugmentSettings>, truth: Option<Vec<f32>>, fails: Option<NotRepaired>, threads: usize) -> Run {
    run_with(augment, Fixed { truth, fails, looks: false, seen: Arc::default() }, threads)
}

fn run_with(augment: Option<AugmentSettings>, repairer: Fixed, threads: usize) -> Run {
    let (grid, geometry) = (grid(), geometry());
    let settings = OptimiseSettings { approach_iterations: 3, fit_iterations: 4, augment, ..Default::default() };
    let method = Method::Field(FieldPlan::for_grid(&grid, 1));
    let recipe = Recipe::new(&geometry, &grid, &settings, method).unwrap();
    let mut compute = CpuCompute::new(threads).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    let seen = Arc::clone(&repairer.seen);
    optimiser.repair_with(Box::new(repairer));
    let measured: Vec<f32> = phantom().line_integrals(&geometry).into_iter().collect();
    optimiser.load_views(&compute, &ScanViews::whole(&measured)).unwrap();
    optimiser.begin(&compute, None, &Unobserved).unwrap();
    let outcome = optimiser.run(&compute, Budget::Iterations(ITERATIONS), &mut Unobserved).unwrap();
    let repairs = optimiser.repairs().copied();
    let seen = seen.lock().unwrap().clone();
    Run { volume: optimiser.into_volume(&compute).unwrap(), outcome, repairs, seen }
}

fn error(volume: &[f32]) -> f64 {
    volume.iter().zip(truth()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn a_good_reference_makes_a_better_volume_and_the_result_is_not_the_reference() {
    // Six iterations with the reference: firmly, so that so few show it.
    let augment = AugmentSettings { first: 0.5, repairs: 2, weight: 10.0, ..Default::default() };
    let (without, with) = (run(None, None, None, 1), run(Some(augment), Some(truth()), None, 1));
    assert!(error(&with.volume) < 0.6 * error(&without.volume), "{} {}", error(&with.volume), error(&without.volume));
    assert_ne!(with.volume, truth());
    let repairs = with.repairs.unwrap();
    assert_eq!((repairs.done, repairs.failed, repairs.why), (2, 0, None));
    assert!(repairs.dissimilarity.unwrap() > 0.0);
    assert!(without.repairs.is_none() && without.seen.is_empty());
}

#[test]
fn a_repairer_that_looks_is_shown_what_the_scan_says_and_the_volume_does_not() {
    let augment = AugmentSettings { first: 0.25, ..Default::default() };
    let fixed = |looks| Fixed { truth: Some(truth()), fails: None, looks, seen: Arc::default() };
    let (volume, shown) = (run_with(Some(augment), fixed(false), 1), run_with(Some(augment), fixed(true), 1));
    // Looking changes nothing of the run: the gradient's memory that it borrows is made anew.
    assert_eq!(volume.volume, shown.volume);
    let measured: Vec<f32> = phantom().line_integrals(&geometry()).into_iter().collect();
    let mut compute = CpuCompute::new(2).unwrap();
    let mut alone = Unexplained::new(&mut compute, &geometry(), &grid(), &OptimiseSettings::default()).unwrap();
    alone.load(&compute, &ScanViews::whole(&measured)).unwrap();
    assert_eq!(shown.seen[0], alone.of(&compute, &volume.seen[0]).unwrap());
}

#[test]
fn the_volume_is_repaired_at_the_planned_iterations() {
    let augment = AugmentSettings { first: 0.5, repairs: 3, ..Default::default() };
    assert_eq!([0, 1, 2].map(|number| augment.iteration_of(number, ITERATIONS)), [6, 8, 10]);
    let with = run(Some(augment), Some(truth()), None, 1);
    assert_eq!(with.seen.len(), 3);
    assert!(error(&with.seen[2]) < error(&with.seen[0]));
    assert_eq!(with.outcome.iterations, ITERATIONS);
}

#[test]
fn as_many_repairs_are_planned_as_are_made() {
    // The loop's rule, step by step.
    let made = |augment: &AugmentSettings, before: usize, iterations: usize| {
        let due = |made, done| made < augment.repairs && done >= augment.iteration_of(made, iterations);
        (before..iterations).fold(0, |made, done| made + usize::from(due(made, done)))
    };
    for first in [0.0, 0.3, 0.5, 0.97, 1.0] {
        for repairs in [1, 2, 3, 7, 40] {
            let augment = AugmentSettings { first, repairs, ..Default::default() };
            for iterations in 0..60 {
                for before in 0..=iterations / 2 {
                    let planned = augment.planned(before, iterations);
                    assert_eq!(planned, made(&augment, before, iterations), "{first} {repairs} {before} {iterations}");
                }
            }
        }
    }
}

#[test]
fn an_early_start_is_not_repaired_and_its_iterations_count_in_the_plan() {
    let (grid, geometry) = (grid(), geometry());
    let augment = AugmentSettings { first: 0.25, repairs: 3, ..Default::default() };
    let settings =
        OptimiseSettings { approach_iterations: 3, fit_iterations: 4, augment: Some(augment), ..Default::default() };
    let recipe = Recipe::new(&geometry, &grid, &settings, Method::Field(FieldPlan::for_grid(&grid, 1))).unwrap();
    let mut compute = CpuCompute::new(1).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    let seen: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
    let repairer = Fixed { truth: Some(truth()), fails: None, looks: false, seen: Arc::clone(&seen) };
    optimiser.repair_with(Box::new(repairer));
    let measured: Vec<f32> = phantom().line_integrals(&geometry).into_iter().collect();
    optimiser.load_views(&compute, &ScanViews::whole(&measured)).unwrap();
    optimiser.begin(&compute, None, &Unobserved).unwrap();
    // Of 12 iterations 4 come early: the repair that is due after 3 is made after 4, the others after 6 and 9 as ever.
    optimiser.start_early(&compute, 4, &mut Unobserved).unwrap();
    assert_eq!((seen.lock().unwrap().len(), optimiser.repairs().unwrap().done), (0, 0));
    optimiser.go_on(&compute, 4, Budget::Iterations(8), &mut Unobserved).unwrap();
    assert_eq!((augment.planned(4, 12), optimiser.repairs().unwrap().done), (3, 3));
    let seen = seen.lock().unwrap();
    // The first sees what the early start came to, the others better volumes.
    assert!(error(&seen[1]) < error(&seen[0]) && error(&seen[2]) < error(&seen[1]));
}

#[test]
fn a_repair_that_fails_leaves_the_run_as_it_is_without_one() {
    let without = run(None, None, None, 1);
    for why in [NotRepaired::Output, NotRepaired::Late, NotRepaired::Session] {
        let augment = AugmentSettings { first: 0.5, repairs: 2, ..Default::default() };
        let with = run(Some(augment), None, Some(why), 1);
        assert_eq!(with.volume, without.volume);
        let repairs = with.repairs.unwrap();
        assert_eq!((repairs.done, repairs.failed, repairs.why), (0, 2, Some(why)));
        assert_eq!(repairs.dissimilarity, None);
    }
}

#[test]
fn the_bits_do_not_depend_on_threads_and_every_other_iteration_counts_twice() {
    for modulus in [false, true] {
        let augment = AugmentSettings { first: 0.5, modulus, ..Default::default() };
        let [one, two] = [1, 2].map(|threads| run(Some(augment), Some(truth()), None, threads).volume);
        assert_eq!(one, two);
        let seldom = run(Some(AugmentSettings { every: 2, ..augment }), Some(truth()), None, 1).volume;
        let never = run(None, None, None, 1).volume;
        assert!(error(&seldom) < error(&never) && seldom != one, "{modulus}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let usual = AugmentSettings::default();
    let cases = [
        ("first", AugmentSettings { first: 1.5, ..usual }),
        ("repairs", AugmentSettings { repairs: 0, ..usual }),
        ("every", AugmentSettings { every: 0, ..usual }),
        ("weight", AugmentSettings { weight: f32::NAN, ..usual }),
        ("data_range_per_mm", AugmentSettings { data_range_per_mm: 0.0, ..usual }),
        ("axes", AugmentSettings { axes: [0.0; 3], ..usual }),
    ];
    for (name, settings) in cases {
        let refused = settings.check().unwrap_err().to_string();
        assert!(refused.contains(name), "{name}: {refused}");
    }
    usual.check().unwrap();
}
