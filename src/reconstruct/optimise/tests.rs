#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::*;
use crate::compute::cpu::CpuCompute;
use crate::reconstruct::test_scan::{error, grid, noise, object, orbit, project};
use crate::reconstruct::{Observer, Progress, StopReason, Unobserved};
use crate::represent::field::FieldPlan;
use crate::represent::gaussians::GaussianPlan;

/// Full turn.
fn geometry(views: usize) -> ScanGeometry {
    orbit().over_arc(views, 0.1, std::f64::consts::TAU)
}

fn settings() -> OptimiseSettings {
    OptimiseSettings { views_per_iteration: 6, fit_iterations: 10, ..OptimiseSettings::default() }
}

fn gaussians() -> Method {
    Method::Gaussians(GaussianPlan::for_grid(&grid(), None, 3))
}

fn field() -> Method {
    Method::Field(FieldPlan::for_grid(&grid(), 3))
}

fn prepared(recipe: &Recipe, threads: usize) -> (CpuCompute, Optimiser) {
    let mut compute = CpuCompute::new(threads).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let optimiser = recipe.optimiser(&compute).unwrap();
    (compute, optimiser)
}

fn reconstruct(
    method: Method,
    settings: &OptimiseSettings,
    budget: Budget,
    threads: usize,
    line_integrals: &[f32],
    views: usize,
) -> (Vec<f32>, Outcome) {
    let recipe = Recipe::new(&geometry(views), &grid(), settings, method).unwrap();
    let (compute, mut optimiser) = prepared(&recipe, threads);
    optimiser.load(&compute, line_integrals).unwrap();
    let outcome = compute.install(|| {
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        optimiser.run(&compute, budget, &mut Unobserved).unwrap()
    });
    (optimiser.into_volume(&compute).unwrap(), outcome)
}

#[test]
fn both_representations_find_the_object_that_was_projected() {
    let truth = object(&grid());
    let line_integrals = project(&geometry(18), &truth);
    for (method, iterations, most) in [(gaussians(), 60, 0.08), (field(), 60, 0.04)] {
        let name = method.name();
        let (volume, outcome) =
            reconstruct(method, &settings(), Budget::Iterations(iterations), 2, &line_integrals, 18);
        // 18 noise-free views of two smooth blobs: what is left is the total variation's bias and what descent has not reached. An empty
        // volume has an error of 1, a shift by half a voxel one of 0.17.
        let error = error(&volume, &truth);
        assert!(error < most, "{name}: {error}");
        assert_eq!((outcome.stopped, outcome.iterations), (StopReason::Iterations, iterations), "{name}");
        assert!(outcome.iterative().unexplained() < 0.01, "{name}: {outcome:?}");
        assert_eq!(outcome.iterative().warning(), None, "{name}");
        assert!(volume.iter().all(|value| *value >= 0.0), "{name}");
    }
}

#[test]
fn threads_and_runs_give_the_same_bits() {
    let line_integrals = project(&geometry(7), &object(&grid()));
    for method in [gaussians(), field()] {
        let run = |threads| {
            let (volume, outcome) =
                reconstruct(method, &settings(), Budget::Iterations(6), threads, &line_integrals, 7);
            (volume.into_iter().map(f32::to_bits).collect::<Vec<_>>(), outcome)
        };
        let one = run(1);
        assert_eq!(one, run(2), "{}", method.name());
        assert_eq!(one, run(3), "{}", method.name());
    }
}

#[test]
fn a_deadline_fixes_a_number_that_gives_the_same_bits() {
    let line_integrals = project(&geometry(7), &object(&grid()));
    let at = Instant::now() + Duration::from_secs(3);
    let deadline = Budget::Deadline { at, reserve: Duration::from_millis(100), most: 40 };
    let (volume, outcome) = reconstruct(gaussians(), &settings(), deadline, 2, &line_integrals, 7);
    assert_eq!(outcome.iterations, outcome.planned);
    assert!(outcome.planned >= 1 && outcome.planned <= 40, "{outcome:?}");
    let again = reconstruct(gaussians(), &settings(), Budget::Iterations(outcome.planned), 1, &line_integrals, 7);
    assert_eq!(volume, again.0);
}

#[test]
fn the_pace_fixes_what_fits() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let budget = Budget::Deadline { at: now + 100 * second, reserve: 10 * second, most: 1000 };
    let mut pace = Pace::new(budget);
    for done in 0..Pace::MEASURED {
        assert_eq!((pace.iterations(), pace.share(done)), (None, 0.0));
        // The first is slow, as first ones are.
        pace.took(if done == 0 { 5 * second } else { second }, now);
    }
    // 90 s left, a tenth of it kept: 81 more at a second each.
    assert_eq!(pace.iterations(), Some(Pace::MEASURED + 81));
    assert_eq!(pace.share(Pace::MEASURED), 0.0);
    assert_eq!(pace.share(Pace::MEASURED + 81), 1.0);
    // A deadline that has passed ends the run after the iteration at hand.
    let mut late = Pace::new(Budget::Deadline { at: now, reserve: second, most: 1000 });
    late.took(second, now);
    assert_eq!(late.iterations(), Some(1));
    // The same number, given: the same shares.
    let given = Pace::new(Budget::Iterations(Pace::MEASURED + 81));
    for done in 0..90 {
        assert_eq!(given.share(done), pace.share(done));
    }
}

#[test]
fn rays_held_back_end_a_run_that_fits_noise() {
    let views = 6;
    let values = noise(geometry(views).projection_len(), 1.0);
    let settings =
        OptimiseSettings { hold_back_one_in: 5, patience: 0.1, tv_mm: 0.0, approach_iterations: 2, ..settings() };
    let (volume, outcome) = reconstruct(gaussians(), &settings, Budget::Iterations(100), 2, &values, views);
    assert_eq!(outcome.stopped, StopReason::HeldBack, "{outcome:?}");
    assert!(outcome.iterations < 100 && outcome.of_iteration < outcome.iterations);
    assert!(outcome.held_back_residual.unwrap().is_finite());
    assert!(volume.iter().all(|value| value.is_finite()));
}

#[test]
fn absurd_noise_gives_a_finite_volume_and_a_warning() {
    let values = noise(geometry(8).projection_len(), 50.0);
    for method in [gaussians(), field()] {
        let (volume, outcome) = reconstruct(method, &settings(), Budget::Iterations(10), 2, &values, 8);
        assert!(volume.iter().all(|value| value.is_finite()), "{}", method.name());
        let warning = outcome.iterative().warning().unwrap();
        assert!(warning.contains("unexplained") || warning.contains("diverged"), "{warning}");
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let refused = |settings: OptimiseSettings| {
        Recipe::new(&geometry(4), &grid(), &settings, gaussians()).unwrap_err().to_string()
    };
    let usual = settings();
    let data = usual.data;
    for (settings, field) in [
        (OptimiseSettings { views_per_iteration: 0, ..usual }, "views_per_iteration"),
        (OptimiseSettings { tv_mm: -1.0, ..usual }, "tv_mm"),
        (OptimiseSettings { tv_epsilon_per_mm: 0.0, ..usual }, "tv_epsilon_per_mm"),
        (OptimiseSettings { hold_back_one_in: 1, ..usual }, "hold_back_one_in"),
        (OptimiseSettings { patience: 2.0, ..usual }, "patience"),
        (OptimiseSettings { sharpness: 1.5, ..usual }, "sharpness"),
        (OptimiseSettings { aperture: -0.1, ..usual }, "aperture"),
        (OptimiseSettings { data: DataTerm { photons: f64::NAN, ..data }, ..usual }, "photons"),
        (OptimiseSettings { data: DataTerm { model_error: 0.0, ..data }, ..usual }, "model_error"),
        (OptimiseSettings { data: DataTerm { squares: 0.0, ..data }, ..usual }, "squares"),
    ] {
        let message = refused(settings);
        assert!(message.contains(field), "{message}");
    }
    let recipe = Recipe::new(&geometry(4), &grid(), &usual, gaussians()).unwrap();
    let compute = CpuCompute::new(1).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    assert!(optimiser.load(&compute, &[0.0; 7]).unwrap_err().to_string().contains("4 views of 36 x 40 pixels"));
    let mut values = project(&geometry(4), &object(&grid()));
    values[2 * 36 * 40 + 3 * 40 + 5] = f32::NAN;
    let message = optimiser.load(&compute, &values).unwrap_err().to_string();
    assert!(message.contains("view 2") && message.contains("row 3, column 5"), "{message}");
}

/// Interrupts at its nth question.
struct Impatient {
    left: std::cell::Cell<usize>,
}

impl Observer for Impatient {
    fn wants_volume(&mut self, _: usize) -> bool {
        false
    }

    fn observe(&mut self, _: &Progress<'_>) {}

    fn interrupts(&self) -> bool {
        self.left.set(self.left.get().saturating_sub(1));
        self.left.get() == 0
    }
}

#[test]
fn an_interrupted_run_leaves_the_last_good_volume() {
    let line_integrals = project(&geometry(6), &object(&grid()));
    let recipe = Recipe::new(&geometry(6), &grid(), &settings(), gaussians()).unwrap();
    let (compute, mut optimiser) = prepared(&recipe, 2);
    let whole = reconstruct(gaussians(), &settings(), Budget::Iterations(20), 2, &line_integrals, 6).1;
    for questions in [1, 9, 10, 11, 12] {
        optimiser.load(&compute, &line_integrals).unwrap();
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        let mut observer = Impatient { left: questions.into() };
        let outcome = optimiser.run(&compute, Budget::Iterations(20), &mut observer).unwrap();
        assert_eq!(outcome.stopped, StopReason::Interrupted);
        assert!(outcome.iterations < whole.iterations && outcome.of_iteration <= outcome.iterations);
        assert!(error(optimiser.volume(&compute).unwrap(), &object(&grid())) < 0.5);
    }
}

#[test]
fn every_view_has_its_turn_and_views_may_be_missing() {
    let plan = OptimisePlan::new(&geometry(11), &grid(), &OptimiseSettings { views_per_iteration: 3, ..settings() });
    let plan = plan.unwrap();
    let mut seen = plan.order.clone();
    seen.sort_unstable();
    assert_eq!(seen, (0..11).collect::<Vec<_>>());
    assert_eq!(plan.round(), 4);

    let line_integrals = project(&geometry(11), &object(&grid()));
    let recipe = Recipe::new(&geometry(11), &grid(), &settings(), gaussians()).unwrap();
    let (compute, mut optimiser) = prepared(&recipe, 2);
    let mut run = |present: &[bool], values: &[f32]| {
        let scan = ScanViews { line_integrals: values, poses: None, present: Some(present) };
        optimiser.load_views(&compute, &scan).unwrap();
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        optimiser.run(&compute, Budget::Iterations(8), &mut Unobserved).unwrap();
        optimiser.volume(&compute).unwrap().to_vec()
    };
    let present: Vec<bool> = (0..11).map(|view| view != 4).collect();
    let without = run(&present, &line_integrals);
    // What stands in the place of a view that is not there has no influence.
    let mut other = line_integrals.clone();
    other[4 * 36 * 40..5 * 36 * 40].fill(f32::NAN);
    assert_eq!(without, run(&present, &other));
    assert_ne!(without, run(&[true; 11], &line_integrals));
}

#[test]
fn curvature_is_what_the_gradient_changes_by() {
    // The loss without priors is quadratic: <g(x + d) - g(x), d> is its second derivative along d, exactly.
    let line_integrals = project(&geometry(5), &object(&grid()));
    for sharpness in [0.0, 0.97] {
        let settings = OptimiseSettings { prior: 0.0, sharpness, hold_back_one_in: 9, ..settings() };
        let plan = std::sync::Arc::new(OptimisePlan::new(&geometry(5), &grid(), &settings).unwrap());
        let recipe = Recipe::new(&geometry(5), &grid(), &settings, gaussians()).unwrap();
        let (compute, _) = prepared(&recipe, 2);
        let mut views = super::views::MeasuredViews::new(&compute, plan).unwrap();
        views.load(&compute, &ScanViews::whole(&line_integrals)).unwrap();
        let at = object(&grid());
        let direction: Vec<f32> = noise(at.len(), 0.01);
        let mut gradient = |volume: &[f32]| {
            let mut by_volume = vec![0.0; at.len()];
            views.gradient(&compute, 0, volume.into(), (&mut by_volume).into(), &Unobserved).unwrap();
            by_volume
        };
        let moved: Vec<f32> = at.iter().zip(&direction).map(|(x, d)| x + d).collect();
        let (before, after) = (gradient(&at), gradient(&moved));
        let changed: f64 = after
            .iter()
            .zip(&before)
            .zip(&direction)
            .map(|((after, before), d)| f64::from(after - before) * f64::from(*d))
            .sum();
        let curvature = views.curvature(&compute, 0, (&direction).into()).unwrap();
        // Float32 sums over 36 x 40 x 5 rays and 11 520 voxels.
        assert!((changed - curvature).abs() < 1e-3 * curvature, "{sharpness}: {changed} {curvature}");
        assert!(curvature > 0.0);
    }
}

#[test]
fn what_a_volume_lacks_is_unexplained() {
    let (grid, views) = (grid(), 11);
    let (whole, nothing) = (object(&grid), vec![0.0; grid.len()]);
    let half: Vec<f32> = whole.iter().map(|mu| 0.5 * mu).collect();
    // Readings of the projector itself: the aperture is another thing.
    let line_integrals = project(&geometry(views), &whole);
    let unexplained = |views_per_iteration: usize, volume: &[f32]| {
        let settings = OptimiseSettings { views_per_iteration, aperture: 0.0, ..settings() };
        let mut compute = CpuCompute::new(2).unwrap();
        let mut of_scan = Unexplained::new(&mut compute, &geometry(views), &grid, &settings).unwrap();
        of_scan.load(&compute, &ScanViews::whole(&line_integrals)).unwrap();
        of_scan.of(&compute, volume).unwrap().to_vec()
    };
    let all = unexplained(views, &nothing);
    // Of an empty volume it is the object, streaks and the weights' bias aside: as an FDK volume of eleven views.
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let scale = dot(&all, &whole) / dot(&whole, &whole);
    assert!((0.6..1.4).contains(&scale), "{scale}");
    assert!(dot(&all, &whole) > 0.8 * (dot(&all, &all) * dot(&whole, &whole)).sqrt());
    // It is linear, and nothing is left of the object itself, to float32 sums of 40 pixels a row.
    let largest = all.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (volume, share) in [(&half, 0.5), (&whole, 0.0)] {
        for (part, all) in unexplained(views, volume).iter().zip(&all) {
            assert!((part - share * all).abs() < 1e-4 * largest, "{part} {all}");
        }
    }
    // Subsets add up to the same.
    for (part, all) in unexplained(4, &nothing).iter().zip(&all) {
        assert!((part - all).abs() < 1e-4 * largest, "{part} {all}");
    }
}
