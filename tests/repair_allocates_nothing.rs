//! A repair allocates nothing (of ours; ONNX Runtime has its own arena): counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use counting_allocator::ALLOCATIONS;
use diffnr::compute::Values;
use diffnr::compute::cpu::CpuCompute;
use diffnr::repair::{
    Conditioning, Given, Manifest, Options, Repair, RepairError, Repaired, SliceBuffers, SliceFixer, library,
};
use ndarray::Array2;

#[test]
fn a_repair_allocates_nothing() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os(library::VARIABLE).is_none().then(|| here.join(library::FOLDER));
    let voxels = [17, 20, 23];
    let options = Options { threads: 2, onnxruntime: named, ..Options::new(voxels) };
    let mut compute = CpuCompute::new(2).unwrap();
    let manifest = Manifest::read(&here.join("tests/data/repair")).unwrap();
    let buffers = SliceBuffers::take(&mut compute, &manifest, &options).unwrap();
    let mut fixer = match SliceFixer::load(manifest, &options, &compute, buffers) {
        Err(error @ RepairError::LibraryMissing { .. }) => return eprintln!("SKIPPED: {error}"),
        loaded => loaded.unwrap(),
    };
    let views = [Array2::from_elem((8, 9), 1.0), Array2::from_elem((8, 9), 2.0)];
    fixer.condition(&Conditioning { views: [views[0].view(), views[1].view()], anatomy: "chest" }).unwrap();
    fixer.warm_up(&compute).unwrap();
    let repair = Repair::new(0.02).unwrap();
    let volume: Vec<f32> = (0..voxels.iter().product()).map(|k| 0.02 + 0.01 * (0.1 * k as f32).sin()).collect();
    let (mut per_mm, mut disagreement_hu) = (volume.clone(), volume.clone());
    // Within the carrier's own threads, as the optimisation loop runs.
    let counted = compute.install(|| {
        let mut before = 0;
        // The first round lets threads and locks set up what they keep; on a busy machine a thread might only begin in a later one.
        rayon::broadcast(|_| ());
        for round in 0..3 {
            if round == 1 {
                before = ALLOCATIONS.load(Ordering::SeqCst);
            }
            let deadline = Instant::now() + Duration::from_secs(600);
            let given = Given { volume: Values::from(&volume), unexplained: Values::Host(&[]) };
            let repaired = Repaired { per_mm: (&mut per_mm).into(), disagreement_hu: (&mut disagreement_hu).into() };
            repair.run(&compute, &mut fixer, given, repaired, Some(deadline), &mut ()).unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert_eq!(counted, 0, "allocations in two repairs");
}
