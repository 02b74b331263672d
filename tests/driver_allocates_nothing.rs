//! Once the driver has begun, operations, fills and copies, and groups of operations that are known, allocate nothing on the heap: counted by the allocator itself, on the stand-in for the
//! driver's library (what a real library allocates for itself is its own).

// A counting allocator has to implement an unsafe trait.
#![allow(unsafe_code, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "conformance/carriers.rs"]
mod carriers;
mod counting_allocator;
#[allow(dead_code)]
#[path = "conformance/stand_in.rs"]
mod stand_in;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable as _;
use counting_allocator::ALLOCATIONS;
use diffnr::compute::cuda::{CudaCompute, DeviceSlice, DeviceSum, Launcher, Registration, add_scaled, dot, subtract};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::gaussians::{AdamStep, GaussianCompute as _};
use diffnr::compute::{Compute as _, Memory as _, Workload, together};
use diffnr::config::{Calibration, PreprocessSettings};
use diffnr::geometry::Detector;
use diffnr::preprocess::{CalibrationOnCarrier, Preprocessor};
use firmware_bridge::crc::crc32c;
use firmware_bridge::layout::VolumeHeader;
use firmware_bridge::memory::HeapMemory;
use firmware_bridge::slots::{VolumeGeometry, VolumeSlots, VolumeWriter};

#[test]
fn the_driver_allocates_nothing() {
    if let Err(reason) = carriers::library() {
        return carriers::skipped("what the driver allocates", &reason);
    }
    let driver = stand_in::driver(0, 8 << 20).unwrap();
    let launcher: &dyn Launcher = &driver;
    let values: Vec<f32> = (0..5000u16).map(f32::from).collect();
    let mut out = vec![0.0; values.len()];
    let [a, b, c] = [0; 3].map(|_| DeviceSlice::<f32>::allocate(launcher, values.len()).unwrap());
    let sum = DeviceSum::for_values(launcher, values.len()).unwrap();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..2 {
        a.copy_from(launcher, &values).unwrap();
        b.fill(launcher, 2.0).unwrap();
        subtract(launcher, a, b, c).unwrap();
        c.copy_to_slice(launcher, a).unwrap();
        add_scaled(launcher, 0.5, a, c).unwrap();
        dot(launcher, b, c, &sum).unwrap();
        assert!(sum.read(launcher).unwrap() > 0.0);
        c.copy_to(launcher, &mut out).unwrap();
        launcher.synchronize().unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    assert_eq!(out[100], 1.5 * 98.0);
    groups_allocate_nothing();
    a_publication_allocates_nothing();
    frames_of_counts_allocate_nothing();
}

/// Once a sequence is known, and its graph made.
fn groups_allocate_nothing() {
    let mut compute = CudaCompute::new(Box::new(stand_in::driver(0, 8 << 20).unwrap()));
    compute.prepare(&Workload { columns: 8, rows: 8, views_per_call: 1, voxels: [4; 3] }).unwrap();
    let ones = compute.filled("ones", &[1.0; 5000]).unwrap();
    let [mut at, mut first, mut second] = [0; 3].map(|_| compute.buffer("values", 5000).unwrap());
    let mut group = |step: u32| {
        let work = || {
            compute.add_scaled(0.5, ones.values(), at.values_mut())?;
            let (at, first, second) = (at.values_mut(), first.values_mut(), second.values_mut());
            compute.adam_step(&AdamStep::new(0.1 / step as f32, step), at, ones.values(), first, second)
        };
        together(&compute, work).unwrap();
    };
    (1..=2).for_each(&mut group);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (3..=6).for_each(&mut group);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    assert_eq!(compute.groups().replayed, 5);
}

/// From the volume on the device to the slot, as `diffnr::publish` has it.
fn a_publication_allocates_nothing() {
    let mut compute = CudaCompute::new(Box::new(stand_in::driver(0, 8 << 20).unwrap()));
    compute.prepare(&Workload { columns: 1, rows: 1, views_per_call: 1, voxels: [10; 3] }).unwrap();
    let geometry = VolumeGeometry::for_shape([10; 3], 3);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let registration = Registration::new(0, Arc::clone(&memory)).unwrap();
    let mut writer = VolumeWriter::attach(VolumeSlots::initialise(memory, geometry, 1, 1, 1).unwrap());
    let volume = compute.filled("volume", &[1.5; 1000]).unwrap();
    let mut scaled = compute.buffer("scaled", 1000).unwrap();
    let header = VolumeHeader { shape: [10; 3], ..VolumeHeader::zeroed() };
    let mut publish = || {
        compute.copy_scaled(2.0, volume.values(), scaled.values_mut()).unwrap();
        let mut slot = writer.begin(&header, 1).unwrap();
        let copy = compute.begin_read(scaled.values(), registration.of(slot.payload()).unwrap()).unwrap();
        let crc = compute.crc32c(scaled.values()).unwrap();
        copy.wait().unwrap();
        slot.filled(crc);
        slot.publish(1).unwrap().payload_crc32c
    };
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let sums = [publish(), publish()];
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    assert_eq!(sums, [crc32c(bytemuck::cast_slice(&[3.0_f32; 1000])); 2]);
}

/// Line integrals of them, and a new calibration before.
fn frames_of_counts_allocate_nothing() {
    let detector = Detector { columns: 20, rows: 10 };
    let settings = PreprocessSettings {
        i0_counts: None,
        dark: Calibration::Ring,
        flat: Calibration::Ring,
        dead_below: 0.2,
        hot_above: 0.3,
        max_bad_fraction: 0.1,
        min_transmission: 1e-3,
    };
    let mut compute = CudaCompute::new(Box::new(stand_in::driver(0, 8 << 20).unwrap()));
    let on_carrier = CalibrationOnCarrier::take(&mut compute, &settings, detector).unwrap();
    let mut preprocessor = Preprocessor::new(&settings, detector, [None, None], on_carrier).unwrap();
    let mut out = compute.buffer("line integrals", detector.pixels()).unwrap();
    let (dark, mut flat, frame) = ([10; 200], [1000; 200], [10; 200]);
    flat[70] = 10;
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..2 {
        preprocessor.add_dark(&dark);
        preprocessor.add_flat(&flat, 1.0).unwrap();
        preprocessor.finish_calibration().unwrap();
        for _ in 0..2 {
            preprocessor.counts(&compute, &frame, 1.0, 0.0, out.values_mut()).unwrap();
            preprocessor.finish_frame(&compute).unwrap();
            compute.finish().unwrap();
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    let counters = preprocessor.counters();
    assert_eq!((counters.frames, counters.clamped_pixels, counters.replaced_pixels), (4, 800, 4));
}
