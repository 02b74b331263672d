//! After `prepare_gaussians` and `Gaussians::new` a whole iteration (projection, gradient, voxels of a part, their gradient, Adam, adaptive
//! control) allocates nothing: counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::sync::atomic::Ordering;

use counting_allocator::ALLOCATIONS;
use diffnr::compute::Operations;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::gaussians::{GaussianCompute, GaussianWorkload};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::represent::gaussians::adapt::AdaptiveControl;
use diffnr::represent::gaussians::initialise::Initialisation;
use diffnr::represent::gaussians::{GaussianLimits, GaussianRates, Gaussians};
use glam::DVec3;

#[test]
fn an_iteration_allocates_nothing() {
    let orbit = CircularOrbit {
        detector: Detector { columns: 65, rows: 47 },
        pitch_u_mm: 6.0,
        pitch_v_mm: 6.0,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(3, 0.0, 6.0);
    let grid = VolumeGrid::over_box([32; 3], DVec3::splat(200.0), DVec3::ZERO);
    let mut volume: Vec<f32> = (0..grid.len()).map(|k| 0.01 + 1e-7 * k as f32).collect();
    let mut cpu = CpuCompute::new(2).unwrap();
    cpu.prepare_gaussians(&GaussianWorkload {
        gaussians: 3000,
        columns: 65,
        rows: 47,
        views_per_call: 3,
        voxels: grid.voxels,
    })
    .unwrap();
    let mut gaussians = Gaussians::new(
        &cpu,
        &GaussianLimits {
            capacity: 3000,
            density_unit_per_mm: 0.02,
            smallest_scale_mm: 1.0,
            largest_scale_mm: 50.0,
            low_pass_mm: 2.0,
        },
    )
    .unwrap();
    let settings = Initialisation { gaussians: 2000, ..Initialisation::default() };
    let mut projections = vec![0.0; geometry.projection_len()];
    let rules =
        AdaptiveControl { gradient_threshold: 0.0, clone_up_to_mm: 8.0, prune_below_per_mm: 1e-5, seed: 1, round: 0 };
    let part = grid.part([4, 5, 6], [16; 3]);
    // Within the carrier's own threads, as the optimisation loop runs.
    let compute: &dyn Operations = &cpu;
    let counted = cpu.install(|| {
        let mut before = 0;
        // The first round lets threads and locks set up what they keep.
        for round in 0..3 {
            if round == 1 {
                before = ALLOCATIONS.load(Ordering::SeqCst);
            }
            gaussians.initialise_from_volume(&cpu, &grid, &volume, &settings).unwrap();
            gaussians.begin_step(&cpu, 3).unwrap();
            let (set, gradients) = gaussians.arrays_and_gradients();
            compute.gaussian_project(&geometry, &set, (&mut projections).into()).unwrap();
            compute.gaussian_project_backward(&geometry, &set, (&projections).into(), gradients).unwrap();
            let voxels = &mut volume[..part.len()];
            compute.gaussian_voxelise(&part, &set, voxels.into()).unwrap();
            let (set, gradients) = gaussians.arrays_and_gradients();
            compute.gaussian_voxelise_backward(&part, &set, (&volume[..part.len()]).into(), gradients).unwrap();
            gaussians.step(&cpu, &GaussianRates::usual(0.0, 100.0), 1).unwrap();
            let adapted = gaussians.adapt(&cpu, &grid, &rules).unwrap();
            assert!(adapted.cloned + adapted.split == 1000 && gaussians.len() == 3000, "{adapted:?}");
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert_eq!(counted, 0, "allocations in two iterations");
}
