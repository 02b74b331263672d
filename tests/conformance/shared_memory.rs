//! From a device straight into shared memory: scaled copies and CRCs as on the CPU, the copy beside other work, what is refused and given back.
#![allow(unsafe_code)] // Looks into shared memory that nobody has published.

use std::sync::Arc;

use bytemuck::Zeroable as _;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda::{self, CudaCompute, DeviceSlice, Registration};
use diffnr::compute::elements::ElementCompute as _;
use diffnr::compute::{Compute as _, Memory as _, Workload};
use firmware_bridge::layout::VolumeHeader;
use firmware_bridge::memory::{HeapMemory, SharedMemory as _};
use firmware_bridge::slots::{VolumeGeometry, VolumeReader, VolumeSlots, VolumeWriter};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::driver::{GOOD, SMALL, on_the_stand_in};
use crate::scans::settings;
use crate::stand_in;
use crate::values::{download, signed, unwritten, upload};

const SHAPE: [u32; 3] = [20, 25, 11];
const VOXELS: usize = 20 * 25 * 11;

type Shared = Arc<HeapMemory>;

/// Volume slots in this process's memory.
fn slots() -> (Shared, VolumeWriter<Shared>) {
    let geometry = VolumeGeometry::for_shape(SHAPE, 3);
    let memory = Arc::new(HeapMemory::new(geometry.segment_bytes() as usize));
    let slots = VolumeSlots::initialise(Arc::clone(&memory), geometry, 7, 1, 1).unwrap();
    (memory, VolumeWriter::attach(slots))
}

fn header() -> VolumeHeader {
    VolumeHeader { shape: SHAPE, spacing_mm: [1.0; 3], value_scale: 1.0, ..VolumeHeader::zeroed() }
}

fn carrier(device: usize) -> CudaCompute {
    let mut compute = CudaCompute::new(Box::new(stand_in::driver(device, 1 << 19).unwrap()));
    let workload = Workload { columns: 8, rows: 8, views_per_call: 1, voxels: SHAPE.map(|count| count as usize) };
    compute.prepare(&workload).unwrap();
    compute
}

fn assert_copied_and_summed(carrier: &Carrier, n: usize, offset: usize, factor: f32) {
    let mut values = signed(n + offset, n as u64);
    // Bits are bits, whatever they stand for.
    values[n / 2] = f32::NAN;
    values[n / 3] = f32::NEG_INFINITY;
    let cpu = CpuCompute::new(1).unwrap();
    let mut scaled = vec![0.0; n];
    cpu.copy_scaled(factor, (&values[offset..]).into(), (&mut scaled).into()).unwrap();
    let given = carrier.run(|launcher| {
        let (from, to) = (upload(launcher, &values), unwritten(launcher, n));
        let from = from.part(offset..offset + n).unwrap();
        cuda::copy_scaled(launcher, factor, from, to).unwrap();
        let crc = DeviceSlice::<u32>::allocate(launcher, 1).unwrap();
        let sums = [from, to].map(|values| {
            cuda::crc32c(launcher, values, crc).unwrap();
            let mut found = [0];
            crc.copy_to(launcher, &mut found).unwrap();
            f32::from_bits(found[0])
        });
        vec![download(launcher, to), sums.to_vec()]
    });
    // One product, rounded once; and what is no number has no bits of its own.
    for (given, expected) in given[0].iter().zip(&scaled) {
        assert!(given.to_bits() == expected.to_bits() || given.is_nan() && expected.is_nan(), "{given} {expected}");
    }
    for (found, values) in given[1].iter().zip([&values[offset..], &given[0]]) {
        assert_eq!(found.to_bits(), cpu.crc32c(values.into()).unwrap(), "CRC of {n} values, offset {offset}");
    }
}

/// Counts about a thread's four, a turn's 1024, a block's 32768; any offset within 16 bytes.
#[test]
fn scaled_copies_and_crcs_are_those_of_the_cpu() {
    on_each("copy_scaled and crc32c", |carrier| {
        let counts = prop_oneof![1usize..9, 1020usize..1030, 32_764usize..32_774, 1usize..100_000];
        proptest!(settings(16), |(n in counts, offset in 0usize..4, factor in -3.0f32..3.0)| {
            assert_copied_and_summed(carrier, n, offset, factor);
        });
        // An odd number of blocks and an even one; ten, so that powers of several bits join them.
        for blocks in [3, 10] {
            assert_copied_and_summed(carrier, blocks * 32_768 - 5, 0, 1.0 / 3.0);
        }
        let empty = carrier.run(|launcher| {
            let (none, crc) = (upload(launcher, &[]), DeviceSlice::<u32>::upload(launcher, &[7]).unwrap());
            cuda::copy_scaled(launcher, 2.0, none, none).unwrap();
            cuda::crc32c(launcher, none, crc).unwrap();
            let mut found = [1];
            crc.copy_to(launcher, &mut found).unwrap();
            vec![vec![f32::from_bits(found[0])]]
        });
        assert_eq!(empty[0][0].to_bits(), 0);
    });
}

#[test]
fn a_volume_goes_into_its_slot_while_the_next_view_is_added() {
    on_the_stand_in("volumes into shared memory", || {
        for device in GOOD {
            let compute = carrier(device);
            let (memory, mut writer) = slots();
            let registration = Registration::new(device, Arc::clone(&memory)).unwrap();
            let reader = VolumeReader::new(VolumeSlots::attach(memory).unwrap(), 1);
            let mut values = signed(VOXELS, 3);
            let mut volume = compute.filled("volume", &values).unwrap();
            let [mut scaled, mut view] = ["scaled", "view"].map(|name| compute.buffer(name, VOXELS).unwrap());
            for generation in 1..=5_u64 {
                let factor = 1.0 + 1.0 / generation as f32;
                compute.copy_scaled(factor, volume.values(), scaled.values_mut()).unwrap();
                let mut slot = writer.begin(&header(), generation).unwrap();
                let copy = compute.begin_read(scaled.values(), registration.of(slot.payload()).unwrap()).unwrap();
                compute.write(&signed(VOXELS, generation), view.values_mut()).unwrap();
                compute.add_scaled(0.25, view.values(), volume.values_mut()).unwrap();
                let crc = compute.crc32c(scaled.values()).unwrap();
                copy.wait().unwrap();
                slot.filled(crc);
                slot.publish(generation).unwrap();

                let lease = reader.newest(generation, 1_000_000).unwrap();
                let mut read = vec![0.0; VOXELS];
                // Compares the CRC.
                lease.read_into(&mut read).unwrap();
                let expected: Vec<f32> = values.iter().map(|value| factor * value).collect();
                assert!(read == expected, "device {device}, volume {generation}");
                for (value, view) in values.iter_mut().zip(signed(VOXELS, generation)) {
                    *value += 0.25 * view;
                }
            }
        }
    });
}

/// What is asked for after the copy does not wait for it, and the host does: on the device that does everything as late as it may.
#[test]
fn only_who_waits_for_the_copy_waits_for_it() {
    on_the_stand_in("copies beside other work", || {
        let compute = carrier(0);
        let (memory, mut writer) = slots();
        let registration = Registration::new(0, Arc::clone(&memory)).unwrap();
        let volume = compute.filled("volume", &signed(VOXELS, 1)).unwrap();
        let mut other = compute.filled("other", &signed(VOXELS, 2)).unwrap();
        let mut slot = writer.begin(&header(), 1).unwrap();
        let payload = slot.payload();
        let start = payload.start().cast::<f32>();
        // SAFETY: within the slot, aligned to its pages; the stand-in writes when it is waited for, by this thread.
        let first = || unsafe { start.as_ptr().read_volatile() };
        let copy = compute.begin_read(volume.values(), registration.of(payload).unwrap()).unwrap();
        compute.scale(2.0, other.values_mut()).unwrap();
        let mut read = vec![0.0; VOXELS];
        compute.read(other.values(), &mut read).unwrap();
        assert_eq!((read[0], first()), (2.0 * signed(VOXELS, 2)[0], 0.0));
        // As `wait`, but for the error.
        drop(copy);
        assert_eq!(first(), signed(VOXELS, 1)[0]);
    });
}

#[test]
fn memory_is_registered_once_and_given_back() {
    on_the_stand_in("registered memory", || {
        let driver = stand_in::driver(SMALL, 1 << 12).unwrap();
        let (memory, mut writer) = slots();
        let (other, mut other_writer) = slots();
        let before = stand_in::alive(SMALL as i32);
        let registration = Registration::new(SMALL, Arc::clone(&memory)).unwrap();
        let twice = Registration::new(SMALL, Arc::clone(&memory)).unwrap_err().to_string();
        let bytes = memory.len();
        assert!(
            twice.contains(&format!("{bytes} bytes of shared memory")) && twice.contains("ALREADY_REGISTERED"),
            "{twice}"
        );
        let elsewhere = Registration::new(SMALL, other).unwrap();
        let mut slots = [&mut writer, &mut other_writer].map(|writer| writer.begin(&header(), 1).unwrap());
        let of = slots.each_mut().map(|slot| [&registration, &elsewhere].map(|of| of.of(slot.payload()).is_some()));
        assert_eq!(of, [[true, false], [false, true]]);
        drop((registration, elsewhere));
        assert_eq!(stand_in::alive(SMALL as i32), before);
        Registration::new(SMALL, memory).unwrap();
        drop(driver);
        assert_eq!(stand_in::alive(SMALL as i32), 0);
    });
}
