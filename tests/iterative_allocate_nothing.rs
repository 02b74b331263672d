//! After `new` an iteration of OS-SART and ASD-POCS allocates nothing: counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use counting_allocator::ALLOCATIONS;
use diffnr::compute::Compute;
use diffnr::compute::cpu::CpuCompute;
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::reconstruct::{
    AsdPocs, AsdPocsPlan, AsdPocsSettings, Observer, OsSart, OsSartPlan, OsSartSettings, Progress, StopRules,
};
use glam::DVec3;

/// Counts the allocations from the first iteration's end to the last's: the first lets threads and locks set up what they keep.
#[derive(Default)]
struct Counter {
    after_first: usize,
    iterations: usize,
    in_later: usize,
}

impl Observer for Counter {
    fn wants_volume(&mut self, _: usize) -> bool {
        true
    }

    fn observe(&mut self, progress: &Progress<'_>) {
        assert!(progress.volume.is_some());
        self.iterations = progress.iteration;
        let count = ALLOCATIONS.load(Ordering::SeqCst);
        if progress.iteration == 1 {
            self.after_first = count;
        }
        self.in_later = count - self.after_first;
    }
}

#[test]
fn iterations_allocate_nothing() {
    let orbit = CircularOrbit {
        detector: Detector { columns: 41, rows: 33 },
        pitch_u_mm: 9.0,
        pitch_v_mm: 9.0,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(10, 0.0, 6.0);
    let grid = VolumeGrid::over_box([28, 26, 24], DVec3::splat(190.0), DVec3::ZERO);
    let mut cpu = CpuCompute::new(2).unwrap();
    let line_integrals: Vec<f32> = (0..geometry.projection_len()).map(|k| 0.5 + 0.1 * (k % 7) as f32).collect();
    let stop = StopRules { held_back_views: 2, change: Some(1e-9), ..StopRules::iterations(4) };
    let sart = OsSartSettings { stop, ..OsSartSettings::default() };

    let plan = OsSartPlan::without_scratch(&geometry, &grid, sart).unwrap();
    let asd =
        AsdPocsPlan::without_scratch(&geometry, &grid, AsdPocsSettings { sart, ..AsdPocsSettings::default() }).unwrap();
    for workload in [plan.workload(), asd.workload()] {
        cpu.prepare(&workload).unwrap();
    }
    let mut sart = OsSart::new(Arc::new(plan), &cpu, &line_integrals).unwrap();
    let mut asd = AsdPocs::new(Arc::new(asd), &cpu, &line_integrals).unwrap();

    let mut counters: [Counter; 2] = Default::default();
    let [first, second] = &mut counters;
    // Within the carrier's own threads, as the command line runs them.
    cpu.install(|| {
        sart.run(&cpu, first).unwrap();
        asd.run(&cpu, second).unwrap();
    });
    for (name, counter) in ["os-sart", "asd-pocs"].into_iter().zip(&counters) {
        assert!(counter.iterations >= 2, "{name}");
        assert_eq!(counter.in_later, 0, "{name}: allocations in later iterations");
    }
    // The counter itself counts, else this could not fail.
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before);
}
