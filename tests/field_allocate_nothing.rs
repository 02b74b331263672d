//! After `prepare_field` and `Field::new` whole iterations (voxels and rays, their gradients, Adam) allocate nothing:
//! counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::sync::atomic::Ordering;

use counting_allocator::ALLOCATIONS;
use diffnr::compute::Operations;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::field::{FieldCompute, FieldJitter, FieldRays, FieldShape, FieldWorkload, RayPixel};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::represent::field::draw::draw_rays;
use diffnr::represent::field::{Field, FieldRates};
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
    let grid = VolumeGrid::over_box([40; 3], DVec3::splat(200.0), DVec3::ZERO);
    let shape = FieldShape {
        levels: 6,
        features: 2,
        coarsest_cells: 4,
        growth: 1.9,
        log2_table: 12,
        width: 32,
        hidden_layers: 2,
        leak: 0.0,
        density_unit_per_mm: 0.02,
    };
    let mut cpu = CpuCompute::new(2).unwrap();
    cpu.prepare_field(&FieldWorkload { shape, voxels: grid.voxels, box_mm: [200.0; 3], rays: 300 }).unwrap();
    let mut field = Field::new(&cpu, &shape, &grid).unwrap();
    let mut work = vec![0.0; grid.len()];
    let mut pixels = vec![RayPixel::default(); 300];
    let mut integrals = vec![0.0; pixels.len()];
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
            let jitter = FieldJitter { seed: 1, iteration: round };
            field.set_level_weights(&[1.0, 1.0, 1.0, 1.0, 0.5, 0.0]).unwrap();
            draw_rays(&geometry, &[0, 2], jitter, &mut pixels);
            let rays = FieldRays { geometry: &geometry, pixels: &pixels, samples: 50, jitter: Some(jitter) };
            compute.field_project(&rays, &field.parameters(), (&mut integrals).into()).unwrap();
            let voxels = &mut work[..part.len()];
            compute.field_voxelise(&part, &field.parameters(), Some(jitter), voxels.into()).unwrap();
            field.begin_step(&cpu).unwrap();
            let (parameters, gradients) = field.parameters_and_gradients();
            compute.field_project_backward(&rays, &parameters, (&integrals).into(), gradients).unwrap();
            let (parameters, gradients) = field.parameters_and_gradients();
            let voxels = (&work[..part.len()]).into();
            compute.field_voxelise_backward(&part, &parameters, Some(jitter), voxels, gradients).unwrap();
            let rates = FieldRates::default();
            field.step(&cpu, &rates, 1).unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert_eq!(counted, 0, "allocations in two iterations");
}
