//! Output that no slice can be, deadlines, interruptions, wrong arguments: never a bad volume.

use std::time::{Duration, Instant};

use super::*;
use crate::error::{Classed, ErrorClass};

fn loaded(folder: &Path, library: PathBuf, voxels: [usize; 3]) -> Loaded {
    let mut loaded = Loaded::new(folder, &options(library, voxels)).unwrap();
    conditioned(&mut loaded.fixer, "head");
    loaded
}

#[test]
fn output_that_is_no_number_or_far_out_refuses_the_repair() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [9, 10, 11];
    for (graph, shown) in [("broken/nan.onnx", "NaN"), ("broken/far.onnx", "")] {
        let model = changed(graph, |text| text);
        let mut loaded = loaded(model.path(), library.clone(), voxels);
        let refused = loaded.repair(&volume(voxels), None, &mut ()).unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Degrade);
        let RepairError::Output { plane, slice, value, limit } = refused else { panic!("{refused}") };
        // Heights above one half go wrong: slice 6 of 11 is the first.
        assert_eq!((plane, slice, limit), (Plane::Axial, 6, volume::LARGEST));
        assert!(value.is_nan() == (shown == "NaN"), "{value}");
    }
}

#[test]
fn what_the_volume_holds_already_is_no_fault_of_the_model() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [6, 7, 8];
    let mut loaded = loaded(&models(), library, voxels);
    let mut metal = volume(voxels);
    // 20 000 HU: 20 half windows.
    metal[100] = (21.0 * MU_WATER_PER_MM) as f32;
    assert!(loaded.repair(&metal, None, &mut ()).is_ok());
}

/// Dawdles after the last batch.
struct Dawdling(Instant);

impl Watch for Dawdling {
    fn at(&mut self, done: usize, slices: usize) {
        while done == slices && Instant::now() < self.0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_ends_after_the_deadline_is_late() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [3, 3, 3];
    let mut loaded = loaded(&models(), library, voxels);
    // Three runs of microseconds, unless the machine stands still.
    let deadline = Instant::now() + Duration::from_millis(800);
    let late = loaded.repair(&volume(voxels), Some(deadline), &mut Dawdling(deadline)).unwrap_err();
    assert!(matches!(late, RepairError::Late { done: 9, slices: 9 }), "{late}");
}

struct Counting {
    seen: Vec<(usize, usize)>,
    stop_at: usize,
}

impl Watch for Counting {
    fn at(&mut self, done: usize, slices: usize) {
        self.seen.push((done, slices));
    }

    fn interrupts(&self) -> bool {
        self.seen.last().is_some_and(|(done, _)| *done >= self.stop_at)
    }
}

#[test]
fn deadlines_and_interruptions_are_looked_at_between_batches() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [6, 7, 8];
    let mut loaded = loaded(&models(), library, voxels);
    let volume = volume(voxels);
    let mut watch = Counting { seen: Vec::new(), stop_at: usize::MAX };
    let late = loaded.repair(&volume, Some(Instant::now()), &mut watch).unwrap_err();
    assert!(matches!(late, RepairError::Late { done: 0, slices: 21 }), "{late}");
    assert_eq!(late.class(), ErrorClass::Degrade);
    assert!(watch.seen.is_empty());

    let in_time = Some(Instant::now() + Duration::from_secs(3600));
    let whole = loaded.repair(&volume, in_time, &mut watch).unwrap();
    assert_eq!(watch.seen.last(), Some(&(21, 21)));
    assert!(watch.seen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[1].0 - pair[0].0 <= 3));

    let mut watch = Counting { seen: Vec::new(), stop_at: 8 };
    let interrupted = loaded.repair(&volume, None, &mut watch).unwrap_err();
    assert!(matches!(interrupted, RepairError::Interrupted), "{interrupted}");
    assert_eq!(watch.seen.last().unwrap().0, 8);
    // What was left half done does not show in the next.
    assert_eq!(loaded.repair(&volume, None, &mut ()).unwrap(), whole);
}

#[test]
fn a_run_that_stalls_is_ended_at_the_deadline() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [9, 10, 11];
    // Slices above half of the height go through a loop of 2^60 turns.
    let model = changed("broken/stall.onnx", |text| text);
    let mut loaded = loaded(model.path(), library, voxels);
    loaded.warm_up();
    for _ in 0..2 {
        let deadline = Some(Instant::now() + Duration::from_millis(200));
        let late = loaded.repair(&volume(voxels), deadline, &mut ()).unwrap_err();
        assert!(matches!(late, RepairError::Late { done: 6, slices: 30 }), "{late}");
    }
    // The session lives on.
    loaded.warm_up();
}

/// Says that it is to leave off from a moment on.
struct Until(Instant);

impl Watch for Until {
    fn at(&mut self, _: usize, _: usize) {}

    fn interrupts(&self) -> bool {
        Instant::now() >= self.0
    }
}

#[test]
fn a_run_that_stalls_is_ended_from_another_thread() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [9, 10, 11];
    let model = changed("broken/stall.onnx", |text| text);
    let mut loaded = loaded(model.path(), library, voxels);
    let (ender, moment) = (loaded.fixer.ender(), Instant::now() + Duration::from_millis(300));
    let ended = std::thread::spawn(move || {
        while Instant::now() < moment + Duration::from_millis(50) {
            std::thread::sleep(Duration::from_millis(10));
        }
        ender.end();
    });
    let interrupted = loaded.repair(&volume(voxels), None, &mut Until(moment)).unwrap_err();
    assert!(matches!(interrupted, RepairError::Interrupted), "{interrupted}");
    ended.join().unwrap();
    // What was ended does not end what comes after it, the telling of a scan included.
    loaded.fixer.ender().end();
    conditioned(&mut loaded.fixer, "chest");
    loaded.warm_up();
}

#[test]
fn wrong_arguments_are_named() {
    let Some(library) = onnx_runtime() else { return };
    let voxels = [4, 5, 6];
    let mut loaded = loaded(&models(), library.clone(), voxels);
    let says = |error: RepairError, part: &str| assert!(error.to_string().contains(part), "{part}: {error}");
    says(loaded.repair(&[0.0; 7], None, &mut ()).unwrap_err(), "volume = 7 voxels: must be [4, 5, 6]");
    let mut holed = volume(voxels);
    holed[(2 * 5 + 3) * 6 + 4] = f32::NAN;
    says(loaded.repair(&holed, None, &mut ()).unwrap_err(), "volume[2, 3, 4] = NaN");
    loaded.fixer.forget();
    says(loaded.repair(&volume(voxels), None, &mut ()).unwrap_err(), "conditioned");
    for mu in [0.0, -0.02, f64::NAN, f64::INFINITY] {
        says(Repair::new(mu).unwrap_err(), "mu_water_per_mm");
    }
    conditioned(&mut loaded.fixer, "head");
    let views = views();
    let mut bad = views[1].clone();
    bad[[2, 1]] = f32::INFINITY;
    let told = Conditioning { views: [views[0].view(), bad.view()], anatomy: "head" };
    says(loaded.fixer.condition(&told).unwrap_err(), "pixel [2, 1] = inf");
    assert!(!loaded.fixer.is_conditioned());
    let empty = Array2::zeros((0, 4));
    let told = Conditioning { views: [views[0].view(), empty.view()], anatomy: "head" };
    says(loaded.fixer.condition(&told).unwrap_err(), "0 x 4 pixels");

    let usual = options(library, voxels);
    for (options, part) in [
        (Options { voxels: [4, 0, 4], ..usual.clone() }, "voxels = 0"),
        (Options { voxels: [4, usize::MAX, 4], ..usual.clone() }, "voxels = 18446744073709551615"),
        (Options { planes: vec![Plane::Axial; 2], ..usual.clone() }, "planes"),
        (Options { batch: 0, ..usual.clone() }, "batch = 0"),
        (Options { threads: 100_000, ..usual.clone() }, "threads = 100000"),
    ] {
        says(Loaded::new(&models(), &options).map(drop).unwrap_err(), part);
    }
    let axial = changed("repair.onnx", |text| text.replace("\"axial\", \"coronal\", \"sagittal\"", "\"axial\""));
    let coronal = Options { planes: vec![Plane::Coronal], ..usual.clone() };
    says(Loaded::new(axial.path(), &coronal).map(drop).unwrap_err(), "planes = coronal: the model test knows axial");
    // Unasked, a model repairs along what it knows.
    let known: Vec<Plane> = Loaded::new(axial.path(), &usual).unwrap().fixer.planes().collect();
    assert_eq!(known, [Plane::Axial]);
}

#[test]
fn a_model_that_is_shipped_is_found_or_the_places_are_named() {
    // The crate's own models folder may hold one or not; what is named must hold a manifest.
    match shipped() {
        Ok(folder) => assert!(folder.join("manifest.toml").is_file()),
        Err(error) => {
            assert!(error.to_string().contains("models") && error.to_string().contains(session::MODELS_VARIABLE))
        }
    }
}
