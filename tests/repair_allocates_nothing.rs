//! A repair allocates nothing (of ours; ONNX Runtime has its own arena): counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use counting_allocator::ALLOCATIONS;
use diffnr::compute::cpu::CpuCompute;
use diffnr::repair::{Conditioning, Options, Repair, RepairError, SliceFixer, library};
use ndarray::Array2;

#[test]
fn a_repair_allocates_nothing() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os(library::VARIABLE).is_none().then(|| here.join(library::FOLDER));
    let voxels = [17, 20, 23];
    let options = Options { threads: 2, onnxruntime: named, ..Options::new(voxels) };
    let mut fixer = match SliceFixer::load(&here.join("tests/data/repair"), &options) {
        Err(error @ RepairError::LibraryMissing { .. }) => return eprintln!("SKIPPED: {error}"),
        loaded => loaded.unwrap(),
    };
    let views = [Array2::from_elem((8, 9), 1.0), Array2::from_elem((8, 9), 2.0)];
    fixer.condition(&Conditioning { views: [views[0].view(), views[1].view()], anatomy: "chest" }).unwrap();
    fixer.warm_up().unwrap();
    let mut repair = Repair::new(&fixer, 0.02).unwrap();
    let volume: Vec<f32> = (0..voxels.iter().product()).map(|k| 0.02 + 0.01 * (0.1 * k as f32).sin()).collect();
    // Within the carrier's own threads, as the optimisation loop runs.
    let counted = CpuCompute::new(2).unwrap().install(|| {
        let mut before = 0;
        // The first round lets threads and locks set up what they keep; on a busy machine a thread might only begin in a later one.
        rayon::broadcast(|_| ());
        for round in 0..3 {
            if round == 1 {
                before = ALLOCATIONS.load(Ordering::SeqCst);
            }
            let deadline = Instant::now() + Duration::from_secs(600);
            repair.run(&mut fixer, &volume, &[], Some(deadline), &mut ()).unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert_eq!(counted, 0, "allocations in two repairs");
}
