//! After `prepare`, the projectors allocate nothing, whatever thread of the pool works.
#![allow(clippy::unwrap_used, unsafe_code)]

mod counting_allocator;

use std::f64::consts::TAU;
use std::sync::atomic::Ordering;

use counting_allocator::ALLOCATIONS;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::{Compute, Workload};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use glam::DVec3;

// The only test of this binary: others would allocate beside it.
#[test]
fn nothing_is_allocated_inside_the_pool() {
    let detector = Detector { columns: 40, rows: 36 };
    let flat = CircularOrbit { detector, pitch_u_mm: 6.0, pitch_v_mm: 6.0, ..CircularOrbit::default() };
    let grid = VolumeGrid::over_box([30; 3], DVec3::splat(150.0), DVec3::ZERO);
    let scans = [flat, CircularOrbit { roll_rad: 0.1, ..flat }].map(|orbit| orbit.over_arc(8, 0.1, TAU));
    let mut cpu = CpuCompute::new(3).unwrap();
    cpu.prepare(&Workload { columns: 40, rows: 36, views_per_call: 8, voxels: grid.voxels }).unwrap();
    let (mut volume, mut projections) = (vec![0.01; grid.len()], vec![0.0; scans[0].projection_len()]);
    let counted = cpu.install(|| {
        let mut round = || {
            for geometry in &scans {
                cpu.forward_project(geometry, &grid, &volume, &mut projections).unwrap();
                cpu.back_project_matched(geometry, &grid, &projections, &mut volume).unwrap();
            }
        };
        // Threads set up what they keep (rayon's deques, thread-local epochs) on their first work.
        (0..3).for_each(|_| round());
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..20).for_each(|_| round());
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(counted, 0);
}
