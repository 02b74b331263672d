#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use glam::DVec3;

use super::super::{Budget, Method, OptimiseSettings, Recipe, ScanViews};
use super::*;
use crate::compute::cpu::CpuCompute;
use crate::compute::experts::ExpertsCompute;
use crate::compute::losses::LossCompute;
use crate::compute::{Compute, ComputeError, Values, ValuesMut};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};
use crate::reconstruct::Unobserved;
use crate::represent::RepresentError;
use crate::represent::gaussians::GaussianPlan;
use crate::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};

const VIEWS: usize = 10;

fn grid() -> VolumeGrid {
    VolumeGrid::over_box([14, 12, 10], DVec3::new(140.0, 120.0, 100.0), DVec3::ZERO)
}

fn geometry() -> ScanGeometry {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 500.0,
        source_to_detector_mm: 750.0,
        detector: Detector { columns: 24, rows: 20 },
        pitch_u_mm: 12.0,
        pitch_v_mm: 12.0,
        ..CircularOrbit::default()
    };
    orbit.over_arc(VIEWS, 0.2, std::f64::consts::TAU)
}

fn line_integrals(geometry: &ScanGeometry) -> Vec<f32> {
    let ball = Ellipsoid::aligned(DVec3::new(5.0, -8.0, 3.0), DVec3::new(45.0, 38.0, 30.0), 0.02);
    EllipsoidPhantom { ellipsoids: vec![ball] }.line_integrals(geometry).into_iter().collect()
}

fn recipe(geometry: &ScanGeometry, views_per_iteration: usize, approach_iterations: usize) -> Recipe {
    let usual = OptimiseSettings::default();
    let settings = OptimiseSettings { views_per_iteration, approach_iterations, fit_iterations: 4, ..usual };
    let method = Method::Gaussians(GaussianPlan::for_grid(&grid(), Some(300), 1));
    Recipe::new(geometry, &grid(), &settings, method).unwrap()
}

/// Runs `recipe` on `scan`.
fn run(recipe: &Recipe, scan: &ScanViews<'_>, iterations: usize) -> (Vec<f32>, Outcome) {
    let mut compute = CpuCompute::new(2).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    optimiser.load_views(&compute, scan).unwrap();
    optimiser.begin(&compute, None, &Unobserved).unwrap();
    let outcome = optimiser.run(&compute, Budget::Iterations(iterations), &mut Unobserved).unwrap();
    (optimiser.into_volume(&compute).unwrap(), outcome)
}

#[test]
fn a_scan_that_lacks_views_is_the_scan_of_the_others() {
    let whole = geometry();
    let measured = line_integrals(&whole);
    let present: Vec<bool> = (0..VIEWS).map(|view| !matches!(view, 0 | 4 | 9)).collect();
    let others: Vec<usize> = (0..VIEWS).filter(|view| present[*view]).collect();
    let few = ScanGeometry { detector: whole.detector, views: others.iter().map(|v| whole.views[*v]).collect() };
    let pixels = whole.detector.pixels();
    let of_few: Vec<f32> = others.iter().flat_map(|v| measured[v * pixels..][..pixels].to_vec()).collect();
    // What the missing views hold must not be looked at.
    let mut spoilt = measured.clone();
    (0..VIEWS).filter(|view| !present[*view]).for_each(|v| spoilt[v * pixels..][..pixels].fill(f32::NAN));
    let scan = ScanViews { line_integrals: &spoilt, poses: Some(&whole.views), present: Some(&present) };
    // All views in one subset, so that both plans deal them out alike.
    let (lacking, outcome) = run(&recipe(&whole, VIEWS, 3), &scan, 5);
    let (alone, expected) = run(&recipe(&few, VIEWS, 3), &ScanViews::whole(&of_few), 5);
    assert_eq!(lacking, alone);
    assert_eq!(outcome, expected);
    // Subsets of one view, some of them empty: still every iteration has a view to learn from.
    let (one_by_one, outcome) = run(&recipe(&whole, 1, 3), &scan, 20);
    assert!(one_by_one.iter().all(|value| value.is_finite()) && outcome.residual > 0.0, "{outcome:?}");
}

#[test]
fn the_poses_are_those_that_the_gantry_reported() {
    let planned = geometry();
    let mut real = planned.clone();
    for pose in &mut real.views {
        pose.source_mm *= 1.02;
    }
    let measured = line_integrals(&real);
    let scan = ScanViews { line_integrals: &measured, poses: Some(&real.views), present: None };
    let (reported, _) = run(&recipe(&planned, 4, 3), &scan, 4);
    let (known, _) = run(&recipe(&real, 4, 3), &ScanViews::whole(&measured), 4);
    assert_eq!(reported, known);
    let (ignored, _) = run(&recipe(&planned, 4, 3), &ScanViews::whole(&measured), 4);
    assert_ne!(reported, ignored);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let geometry = geometry();
    let measured = line_integrals(&geometry);
    let recipe = recipe(&geometry, 4, 3);
    let volume = |threads| {
        let mut compute = CpuCompute::new(threads).unwrap();
        recipe.prepare(&mut compute).unwrap();
        let mut optimiser = recipe.optimiser(&compute).unwrap();
        optimiser.load(&compute, &measured).unwrap();
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        optimiser.run(&compute, Budget::Iterations(7), &mut Unobserved).unwrap();
        optimiser.into_volume(&compute).unwrap()
    };
    assert_eq!(volume(1), volume(3));
}

/// Interrupts after so many questions; keeps the volumes that it was shown.
struct Impatient {
    questions: Cell<usize>,
    patience: usize,
    shown: Vec<Vec<f32>>,
}

impl Impatient {
    fn new(patience: usize) -> Self {
        Self { questions: Cell::new(0), patience, shown: Vec::new() }
    }
}

impl Observer for Impatient {
    fn wants_volume(&mut self, _: usize) -> bool {
        true
    }
    fn observe(&mut self, progress: &Progress<'_>) {
        self.shown.push(progress.volume_on_host().unwrap().to_vec());
    }
    fn interrupts(&self) -> bool {
        self.questions.set(self.questions.get() + 1);
        self.questions.get() > self.patience
    }
}

#[test]
fn a_run_may_be_left_at_any_operation_and_leaves_a_volume_whose_residual_was_in_order() {
    let geometry = geometry();
    let measured = line_integrals(&geometry);
    let recipe = recipe(&geometry, VIEWS, 0);
    let mut compute = CpuCompute::new(1).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    optimiser.load(&compute, &measured).unwrap();
    let start: Vec<f32> = vec![0.01; grid().len()];
    let mut undisturbed = Impatient::new(usize::MAX);
    optimiser.begin(&compute, Some(&start), &Unobserved).unwrap();
    optimiser.run(&compute, Budget::Iterations(4), &mut undisturbed).unwrap();
    // Four questions an iteration; the third iteration's is left before each of its operations.
    for patience in 8..12 {
        let mut observer = Impatient::new(patience);
        optimiser.begin(&compute, Some(&start), &Unobserved).unwrap();
        let outcome = optimiser.run(&compute, Budget::Iterations(4), &mut observer).unwrap();
        assert_eq!((outcome.stopped, outcome.iterations), (StopReason::Interrupted, 2), "{patience}");
        assert_eq!(observer.shown, undisturbed.shown[..2], "the run before left nothing behind");
        // Until the third iteration has its gradient, nothing is known of the volume after two of them.
        assert_eq!(outcome.of_iteration, 1, "{patience}");
        assert_eq!(optimiser.volume(&compute).unwrap(), undisturbed.shown[0], "{patience}");
    }
    // Before the first iteration the start stands.
    optimiser.begin(&compute, Some(&start), &Unobserved).unwrap();
    let outcome = optimiser.run(&compute, Budget::Iterations(4), &mut Impatient::new(0)).unwrap();
    assert_eq!((outcome.of_iteration, optimiser.volume(&compute).unwrap()), (0, &*start));
}

/// A volume of one value, which goes wrong at a step.
struct Wild {
    steps: usize,
    wrong_at: usize,
    wrong: f32,
    voxelised: Arc<AtomicUsize>,
}

impl Representation for Wild {
    fn name(&self) -> &'static str {
        "wild"
    }
    fn elements(&self) -> usize {
        1
    }
    fn unit(&self) -> &'static str {
        "values"
    }
    fn begin(&mut self, _: &dyn Operations, _: &VolumeGrid, _: &[f32]) -> Result<(), RepresentError> {
        self.steps = 0;
        Ok(())
    }
    fn voxelise(
        &self,
        compute: &dyn Operations,
        _: &VolumeGrid,
        _: Option<u64>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        self.voxelised.fetch_add(1, Ordering::Relaxed);
        let value = if self.steps >= self.wrong_at { self.wrong } else { 0.001 * self.steps as f32 };
        compute.fill(value, volume)
    }
    fn voxelise_backward(
        &mut self,
        _: &dyn Operations,
        _: &VolumeGrid,
        _: Option<u64>,
        _: Values<'_>,
    ) -> Result<(), ComputeError> {
        Ok(())
    }
    fn step(&mut self, _: &dyn Operations, _: &VolumeGrid, _: Stage) -> Result<(), ComputeError> {
        self.steps += 1;
        Ok(())
    }
}

#[test]
fn a_run_that_diverges_ends_with_its_last_good_volume() {
    let geometry = geometry();
    let measured = line_integrals(&geometry);
    let settings = OptimiseSettings { approach_iterations: 0, fit_iterations: 0, ..OptimiseSettings::default() };
    let plan = Arc::new(OptimisePlan::new(&geometry, &grid(), &settings).unwrap());
    let mut compute = CpuCompute::new(1).unwrap();
    compute.prepare(&plan.workload()).unwrap();
    compute.prepare_losses(&plan.loss_workload()).unwrap();
    compute.prepare_experts(plan.prior_voxels()).unwrap();
    // No number, and a number far above an empty volume's residual; found by the loss, or by whoever wants to see the volume.
    for (wrong, wants_volumes) in [(f32::NAN, false), (1e3, false), (f32::INFINITY, true)] {
        let wild = Wild { steps: 0, wrong_at: 3, wrong, voxelised: Arc::default() };
        let mut optimiser = Optimiser::new(&compute, Arc::clone(&plan), Box::new(wild)).unwrap();
        optimiser.load(&compute, &measured).unwrap();
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        let mut watching = Impatient::new(usize::MAX);
        let observer: &mut dyn Observer = if wants_volumes { &mut watching } else { &mut Unobserved };
        let outcome = optimiser.run(&compute, Budget::Iterations(50), observer).unwrap();
        assert_eq!((outcome.stopped, outcome.of_iteration), (StopReason::Diverged, 2), "{wrong}");
        assert!(optimiser.volume(&compute).unwrap().iter().all(|value| *value == 0.002), "{wrong}");
    }
    // Only the volume after the last step is wrong.
    let wild = Wild { steps: 0, wrong_at: 4, wrong: f32::NAN, voxelised: Arc::default() };
    let mut optimiser = Optimiser::new(&compute, plan, Box::new(wild)).unwrap();
    optimiser.load(&compute, &measured).unwrap();
    optimiser.begin(&compute, None, &Unobserved).unwrap();
    let outcome = optimiser.run(&compute, Budget::Iterations(4), &mut Unobserved).unwrap();
    assert_eq!((outcome.stopped, outcome.of_iteration), (StopReason::Diverged, 3));
    assert!(optimiser.volume(&compute).unwrap().iter().all(|value| *value == 0.003));
}

#[test]
fn absurd_noise_ends_in_a_finite_volume() {
    let geometry = geometry();
    // Up to three times as large as the signal, and one pixel that is beyond all bounds.
    let mut measured = line_integrals(&geometry);
    measured.iter_mut().enumerate().for_each(|(i, value)| *value += [4.0, -3.0, 0.0, 5.0, -4.0][i * 7 % 5]);
    measured[777] = 1e6;
    let (volume, outcome) = run(&recipe(&geometry, 4, 3), &ScanViews::whole(&measured), 10);
    assert!(volume.iter().all(|value| value.is_finite()), "{outcome:?}");
    // The status says so: this is no noise of 1e5 photons.
    assert!(outcome.residual > 1.0, "{outcome:?}");
}
