//! After `prepare_losses` both losses allocate nothing: counted by the allocator itself.

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

mod counting_allocator;

use std::sync::atomic::Ordering;

use counting_allocator::ALLOCATIONS;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::losses::{ImageLoss, LossCompute, LossWorkload, VolumeSsimLoss};
use diffnr::geometry::Detector;

#[test]
fn losses_allocate_nothing() {
    let (detector, voxels, views) = (Detector { columns: 65, rows: 47 }, [33, 40, 50], 3);
    let mut cpu = CpuCompute::new(2).unwrap();
    let workload = LossWorkload { columns: 65, rows: 47, views_per_call: views, voxels };
    cpu.prepare_losses(&workload).unwrap();
    assert!(cpu.loss_scratch_bytes(&workload) > 0);
    let wave = |n: usize, phase: f32| -> Vec<f32> { (0..n).map(|k| 1.0 + (0.1 * k as f32 + phase).sin()).collect() };
    let n = views * detector.pixels();
    let (p, m, mut by) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let n = voxels.iter().product();
    let (a, b, mut by_volume) = (wave(n, 0.0), wave(n, 0.3), vec![0.0; n]);
    let images = ImageLoss { l1: 1.0, huber: 0.1, squares: 1.0, dissimilarity: 0.25, data_range: 2.0 };
    let volumes = VolumeSsimLoss { weight: 0.5, data_range: 2.0, empty_at: 0.0, axes: [1.0; 3] };
    // Within the carrier's own threads, as the optimisation loop runs.
    let counted = cpu.install(|| {
        let mut before = 0;
        // The first round lets threads and locks set up what they keep.
        for round in 0..3 {
            if round == 1 {
                before = ALLOCATIONS.load(Ordering::SeqCst);
            }
            cpu.image_loss(detector, &images, &p, &m, Some(&m), &mut by).unwrap();
            cpu.volume_ssim_loss(voxels, &volumes, &a, &b, &mut by_volume).unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert_eq!(counted, 0, "allocations in two rounds");
}
