//! SliceFixer on carriers of kernels: where ONNX Runtime reaches a carrier's memory itself (the executor's is the host's) and through the host (the driver's
//! stand-in), the same bits as on the CPU. Needs ONNX Runtime (`make onnxruntime`, or DIFFNR_ONNXRUNTIME), else says SKIPPED.
#![allow(unsafe_code)] // Hands launches on.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda::{Arguments, CudaCompute, Driver, LaunchShape, Launcher};
use diffnr::compute::{Address, ComputeError, Memory as _, Operations};
use diffnr::repair::{
    Conditioning, Demand, Given, Manifest, Options, Plane, Provider, Repair, RepairError, Repaired, SliceBuffers,
    SliceFixer,
};
use ndarray::Array2;

use crate::carriers::{on_each, skipped};
use crate::driver::on_the_stand_in;
use crate::stand_in;
use crate::values::{assert_close, signed};

const VOXELS: [usize; 3] = [13, 18, 35];
const MU_WATER_PER_MM: f64 = 0.02;

fn models() -> PathBuf {
    // On a machine without the checkout the data lies elsewhere.
    let data = std::env::var_os("DIFFNR_TEST_DATA").map(PathBuf::from);
    data.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")).join("repair")
}

/// The tests' model, or the one with another graph in place of its repairing one.
fn manifest(graph: &str) -> Manifest {
    let mut manifest = Manifest::read(&models()).unwrap();
    manifest.repair.path = models().join(graph);
    manifest.repair.sha256 =
        <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(&manifest.repair.path).unwrap()).into();
    manifest
}

/// A model that was told of a scan, run by the CPU's provider.
fn loaded(compute: &mut dyn Operations, graph: &str) -> Option<SliceFixer> {
    loaded_by(Provider::Cpu, compute, graph)
}

/// The same by another provider; `None`, with a line that says so, where there is no ONNX Runtime, or none with it.
fn loaded_by(provider: Provider, compute: &mut dyn Operations, graph: &str) -> Option<SliceFixer> {
    let options = Options { threads: 1, batch: 5, demand: Demand::Only(provider), ..Options::new(VOXELS) };
    let manifest = manifest(graph);
    let buffers = SliceBuffers::take(compute, &manifest, &options).unwrap();
    let mut fixer = match SliceFixer::load(manifest, &options, compute, buffers) {
        Err(error @ (RepairError::LibraryMissing { .. } | RepairError::Demanded { .. })) => {
            skipped("repairs", &error.to_string());
            return None;
        }
        loaded => loaded.unwrap(),
    };
    let views = [Array2::from_elem((8, 9), 1.0), Array2::from_elem((8, 9), 2.0)];
    fixer.condition(&Conditioning { views: [views[0].view(), views[1].view()], anatomy: "chest" }).unwrap();
    fixer.warm_up(compute).unwrap();
    Some(fixer)
}

/// Mean and disagreement of a volume with metal in it.
fn repaired(compute: &dyn Operations, fixer: &mut SliceFixer) -> Result<Vec<Vec<f32>>, RepairError> {
    let n = VOXELS.iter().product();
    let mut volume: Vec<f32> = signed(n, 1).iter().map(|value| 0.02 + 0.01 * value).collect();
    volume[n / 3] = 0.3;
    let volume = compute.filled("volume", &volume)?;
    let none = vec![f32::NAN; n];
    let (mut per_mm, mut disagreement) = (compute.filled("mean", &none)?, compute.filled("disagreement", &none)?);
    let given = Given { volume: volume.values(), unexplained: (&[]).into() };
    let into = Repaired { per_mm: per_mm.values_mut(), disagreement_hu: disagreement.values_mut() };
    Repair::new(MU_WATER_PER_MM)?.run(compute, fixer, given, into, None, &mut ())?;
    Ok(vec![compute.take(per_mm)?, compute.take(disagreement)?])
}

#[test]
fn volumes_are_repaired_to_the_bit_in_place_and_through_the_host() {
    on_each("repairs", |carrier| {
        let mut cpu = CpuCompute::new(1).unwrap();
        let Some(mut fixer) = loaded(&mut cpu, "repair.onnx") else { return };
        assert!(fixer.in_place());
        let expected = repaired(&cpu, &mut fixer).unwrap();
        assert!(expected.iter().flatten().all(|value| value.is_finite()));
        assert!(expected[1].iter().any(|hu| *hu > 1.0));
        let given = carrier.run_whole(|compute| {
            let mut fixer = loaded(compute, "repair.onnx").unwrap();
            // The CPU's provider reaches the host's memory, which the executor's is, and no GPU's.
            assert_eq!(fixer.in_place(), carrier.name == "kernel executor");
            let first = repaired(compute, &mut fixer).unwrap();
            assert!(first == repaired(compute, &mut fixer).unwrap(), "the same again");
            first
        });
        assert!(given == expected, "{}", carrier.name);
    });
}

/// The driver on its stand-in, whose memory is the host's after all: what is asked for is put off there until somebody waits for it.
struct Reachable(Driver);

impl Launcher for Reachable {
    fn description(&self) -> String {
        self.0.description()
    }

    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
        self.0.allocate(bytes)
    }

    fn address_of(&self, offset: usize) -> Option<Address> {
        let Some(Address::Cuda { device: 0, pointer }) = self.0.address_of(offset) else { panic!("no GPU's address") };
        Some(Address::Host(pointer as usize))
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError> {
        self.0.copy_in(offset, from)
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        self.0.copy_out(offset, to)
    }

    unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.begin_copy_out(offset, to, bytes) }
    }
    fn end_copy_out(&self) -> Result<(), ComputeError> {
        self.0.end_copy_out()
    }
    fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
        self.0.copy(from, to, bytes)
    }

    fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
        self.0.fill(bytes, pattern)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(kernel, shape, arguments) }
    }

    fn synchronize(&self) -> Result<(), ComputeError> {
        self.0.synchronize()
    }
}

/// ONNX Runtime finds the slices that were asked for before it, on a carrier that is as late as it may be.
#[test]
fn runs_in_place_wait_for_the_carrier() {
    on_the_stand_in("repairs on a carrier that is late", || {
        let mut cpu = CpuCompute::new(1).unwrap();
        let Some(mut fixer) = loaded(&mut cpu, "repair.onnx") else { return };
        let expected = repaired(&cpu, &mut fixer).unwrap();
        let mut late = CudaCompute::new(Box::new(Reachable(stand_in::driver(0, 8 << 20).unwrap())));
        let mut fixer = loaded(&mut late, "repair.onnx").unwrap();
        assert!(fixer.in_place());
        assert!(repaired(&late, &mut fixer).unwrap() == expected);
    });
}

/// Only a GPU with a provider for it shows this: the model runs on the carrier's memory, and no more than its own arithmetic differs.
#[test]
fn providers_on_the_carriers_gpu_work_in_place() {
    if std::env::var_os("DIFFNR_DEVICE").is_none() {
        return skipped("repairs by a GPU's providers", "no GPU was named (DIFFNR_DEVICE)");
    }
    on_each("repairs by a GPU's providers", |carrier| {
        let mut cpu = CpuCompute::new(1).unwrap();
        let Some(mut fixer) = loaded(&mut cpu, "repair.onnx") else { return };
        let expected = repaired(&cpu, &mut fixer).unwrap();
        // Float32 without TF32, a handful of operations; half precision, 5e-4 of each value.
        for (provider, share) in [(Provider::Cuda, 1e-5), (Provider::TensorRt, 5e-3)] {
            let mut compute = CudaCompute::new(carrier.launcher());
            let Some(mut fixer) = loaded_by(provider, &mut compute, "repair.onnx") else { continue };
            assert!(fixer.in_place(), "{provider}");
            let given = repaired(&compute, &mut fixer).unwrap();
            assert_close(&format!("repaired by {provider}"), share, &given[0], &expected[0]);
        }
    });
}

#[test]
fn output_that_is_no_slice_is_refused_by_plane_and_slice() {
    on_each("repairs that are refused", |carrier| {
        // Heights above one half go wrong, slice 18 of 35 is the first; a thousand times as much as above, slice 19 is the first farther out than four
        // times the metal, which is 14 half windows away.
        for (graph, first) in [("broken/nan.onnx", 18), ("broken/far.onnx", 19)] {
            let mut compute = CudaCompute::new(carrier.launcher());
            let Some(mut fixer) = loaded(&mut compute, graph) else { return };
            let refused = repaired(&compute, &mut fixer).unwrap_err();
            let RepairError::Output { plane, slice, value, limit } = refused else { panic!("{refused}") };
            assert_eq!((plane, slice, limit.round()), (Plane::Axial, first, 56.0));
            assert!(if graph.contains("nan") { value.is_nan() } else { value.abs() > limit }, "{value}");
        }
    });
}

/// The memory that a model is bound to lives with its carrier.
#[test]
fn another_carrier_than_the_models_own_is_refused() {
    on_each("repairs on another carrier", |carrier| {
        let mut own = CudaCompute::new(carrier.launcher());
        let Some(mut fixer) = loaded(&mut own, "repair.onnx") else { return };
        if fixer.in_place() {
            let mut other = CudaCompute::new(carrier.launcher());
            SliceBuffers::take(&mut other, &manifest("repair.onnx"), &Options::new(VOXELS)).unwrap();
            let refused = fixer.warm_up(&other).unwrap_err().to_string();
            assert!(refused.contains("carrier = kernel executor"), "{refused}");
        }
    });
}

#[test]
fn values_that_are_no_numbers_are_named_by_their_place() {
    on_each("repairs of what is no volume", |carrier| {
        let mut compute = CudaCompute::new(carrier.launcher());
        let Some(mut fixer) = loaded(&mut compute, "repair.onnx") else { return };
        let mut volume = vec![0.02; VOXELS.iter().product()];
        volume[(2 * 18 + 3) * 35 + 4] = f32::NEG_INFINITY;
        let volume = compute.filled("volume", &volume).unwrap();
        let mut mean = compute.buffer("mean", volume.len()).unwrap();
        let given = Given { volume: volume.values(), unexplained: (&[]).into() };
        let into = Repaired { per_mm: mean.values_mut(), disagreement_hu: (&mut []).into() };
        let refused = Repair::new(MU_WATER_PER_MM).unwrap().run(&compute, &mut fixer, given, into, None, &mut ());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("volume[2, 3, 4] = -inf"), "{refused}");
    });
}
