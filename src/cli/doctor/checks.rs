//! Each thing looked at, with what to install or set for more.

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::json;

use super::machine::{Memory, Processor, SharedMemory, lockable_bytes};
use super::{Check, Need, State};
use crate::compute::ComputeError;
use crate::compute::cpu::{CpuCompute, SimdLevel};
use crate::compute::cuda::{self, DeviceFacts};
use crate::compute::device::Device;
use crate::config::format_bytes;
use crate::repair::library::{self, Library};
use crate::repair::{
    Demand, Manifest, Options, Plane, Provider, RepairError, SliceBuffers, SliceFixer, gpu, probe, shipped,
};
use crate::self_test::{self, SelfTest};

/// A ring and slots for 256^3 voxels fit well into this.
const COMFORTABLE_SHARED_BYTES: u64 = 512 << 20;

/// Side of the slices that a model is tried on.
const TRIED_SIDE: usize = 128;

/// Processor to GPU; with the memory that is available and the shared memory that is free.
pub(super) fn of_machine() -> (Vec<Check>, Option<u64>, Option<u64>) {
    let memory = Memory::read();
    let shared = SharedMemory::read(Path::new("/dev/shm"));
    let free = shared.as_ref().ok().map(|shared| shared.free_bytes);
    let available = memory.as_ref().map(|memory| memory.available_bytes);
    (vec![processor(), of_memory(memory), of_shared(shared), locked(), graphics(), kernels()], available, free)
}

fn processor() -> Check {
    let (processor, simd) = (Processor::read(), SimdLevel::detect());
    // As many as this process may use.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let amx = if processor.instructions.contains(&"amx_bf16") { ", AMX bfloat16" } else { "" };
    let found = format!("{}: {threads} of {} threads, {simd}{amx}", processor.model, processor.count.max(threads));
    let check = Check::good("processor", "processor", found).facts(json!({
        "model": processor.model,
        "processors": processor.count,
        "threads": threads,
        "simd": simd.to_string(),
        "instructions": processor.instructions,
    }));
    match simd {
        SimdLevel::Plain => check.more("a processor with AVX2 is several times as fast"),
        _ if threads < processor.count => {
            check.more("affinity or the container's quota keeps this process from the other processors")
        }
        _ => check,
    }
}

fn of_memory(memory: Option<Memory>) -> Check {
    let (key, label) = ("memory", "memory");
    let Some(memory) = memory else {
        return Check::new(key, label, State::Missing, "the system does not say (/proc/meminfo)");
    };
    let limit = if memory.limit_bytes.is_some() { " (the container's limit)" } else { "" };
    let [total, available] = [memory.total_bytes, memory.available_bytes].map(format_bytes);
    Check::good(key, label, format!("{available} available of {total}{limit}"))
        .facts(json!({"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes}))
}

fn of_shared(shared: Result<SharedMemory, String>) -> Check {
    let (key, label) = ("shared_memory", "shared memory");
    let hint = "mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g";
    match shared {
        Err(reason) => Check::new(key, label, State::Bad, reason)
            .more("mount -t tmpfs -o size=4G tmpfs /dev/shm, writable for the daemon's user"),
        Ok(shared) => {
            let [size, free] = [shared.size_bytes, shared.free_bytes].map(format_bytes);
            let found = format!("/dev/shm: {free} free of {size}");
            let facts = json!({"path": "/dev/shm", "size_bytes": shared.size_bytes, "free_bytes": shared.free_bytes});
            if shared.free_bytes < COMFORTABLE_SHARED_BYTES {
                let enough = format_bytes(COMFORTABLE_SHARED_BYTES);
                let found = format!("{found}: enough for small volumes only ({enough} for 256 x 256 x 256)");
                return Check::new(key, label, State::Missing, found).more(hint).facts(facts);
            }
            Check::good(key, label, found).facts(facts)
        }
    }
}

fn locked() -> Check {
    let limit = lockable_bytes();
    let bytes = limit.map_or("no limit".into(), format_bytes);
    Check::good("locked_memory", "locked memory", format!("{bytes} (ulimit -l); nothing in this build locks memory"))
        .facts(json!({"limit_bytes": limit}))
}

fn cuda_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn graphics() -> Check {
    let (names, cuda) = (gpu::names(), gpu::cuda_version());
    let facts = json!({"names": names, "driver_cuda": cuda.map(cuda_text)});
    let check = match (names.as_slice(), cuda) {
        ([], None) => Check::new("gpu", "GPU", State::Missing, "no NVIDIA GPU with its driver")
            .more("an NVIDIA GPU and its driver, 580 or newer (in a container: --gpus all)"),
        (_, None) => {
            Check::new("gpu", "GPU", State::Missing, format!("{}, but libcuda.so.1 is not there", names.join(", ")))
                .more("the driver's user libraries (in a container: --gpus all)")
        }
        ([], Some(cuda)) => {
            Check::new("gpu", "GPU", State::Missing, format!("a driver for CUDA {}, but no GPU", cuda_text(cuda)))
        }
        (names, Some(cuda)) => {
            Check::good("gpu", "GPU", format!("{}, driver for CUDA {}", names.join(", "), cuda_text(cuda)))
        }
    };
    check.facts(facts)
}

/// The devices that the kernels run on.
fn kernels() -> Check {
    of_kernels(cuda::present(), |facts| self_test::test(&Device::Cuda(facts.clone())))
}

fn of_kernels(
    present: Result<Vec<DeviceFacts>, ComputeError>,
    test: impl Fn(&DeviceFacts) -> Result<SelfTest, ComputeError>,
) -> Check {
    let (key, label) = ("cuda_kernels", "CUDA kernels");
    let devices = match present {
        Ok(devices) => devices,
        Err(error) => {
            return Check::new(key, label, State::Missing, error.to_string())
                .facts(json!({"built_in": true, "devices": []}));
        }
    };
    let (mut facts, mut lines, mut any) = (Vec::new(), Vec::new(), false);
    for device in &devices {
        let [major, minor] = device.capability;
        let mut of_device = json!({
            "index": device.index,
            "name": device.name,
            "capability": format!("{major}.{minor}"),
            "memory_bytes": device.memory_bytes,
            "supported": device.supported().is_ok(),
        });
        let tested = device.supported().and_then(|()| test(device));
        if device.supported().is_ok() {
            of_device["self_test"] = match &tested {
                Ok(passed) => json!(passed),
                Err(failed) => json!({"failed": failed.to_string()}),
            };
        }
        facts.push(of_device);
        lines.push(match &tested {
            Ok(passed) => format!("{device}: passed the self-test ({passed})"),
            Err(refused) => refused.to_string(),
        });
        any |= tested.is_ok();
    }
    Check::new(key, label, if any { State::Good } else { State::Missing }, lines.join("; "))
        .facts(json!({"built_in": true, "devices": facts}))
}

/// ONNX Runtime, its providers and the model.
pub(super) fn of_slice_fixer(model: &Path, onnxruntime: Option<&Path>) -> Vec<Check> {
    let (key, label) = ("onnxruntime", "ONNX Runtime");
    let library = library::load(onnxruntime);
    let mut checks = vec![match &library {
        Ok(library) => Check::good(key, label, format!("{} at {}", library.version, library.path.display()))
            .facts(json!({"version": library.version, "path": library.path})),
        Err(error) => {
            let hint = "make onnxruntime, or pip install onnxruntime and DIFFNR_ONNXRUNTIME=.../onnxruntime/capi";
            Check::new(key, label, State::Missing, error.to_string()).more(hint)
        }
    }];
    checks.extend(Provider::CHAIN.map(|provider| of_provider(provider, library.as_ref().ok())));
    checks.push(of_model(model, library.is_ok().then_some(onnxruntime)));
    checks
}

fn of_provider(provider: Provider, library: Option<&Library>) -> Check {
    let (key, label, hint) = match provider {
        Provider::TensorRt => (
            "provider_tensorrt",
            "  TensorRT",
            "make onnxruntime ONNXRUNTIME=onnxruntime-gpu==1.31.1; CUDA 13 with cuDNN 9 and TensorRT 10 (pip install 'tensorrt-cu13<11') in LD_LIBRARY_PATH",
        ),
        Provider::TensorRtRtx => (
            "provider_tensorrt_rtx",
            "  TensorRT-RTX",
            "the plugin library beside ONNX Runtime, or its path in DIFFNR_TENSORRT_RTX",
        ),
        Provider::Cuda => (
            "provider_cuda",
            "  CUDA",
            "make onnxruntime ONNXRUNTIME=onnxruntime-gpu==1.31.1; CUDA 13 (cuBLAS, cuFFT, cuRAND) with cuDNN 9 in LD_LIBRARY_PATH",
        ),
        Provider::Cpu => ("provider_cpu", "  CPU", "another ONNX Runtime: make onnxruntime"),
    };
    let Some(library) = library else {
        return Check::new(key, label, State::Missing, "not tried: no ONNX Runtime");
    };
    match probe::probe(library, provider) {
        Ok(()) => Check::good(key, label, "runs"),
        Err(reason) => {
            let hint = if provider != Provider::Cpu && gpu::names().is_empty() {
                format!("an NVIDIA GPU; then {hint}")
            } else {
                hint.into()
            };
            Check::new(key, label, State::Missing, reason).more(hint)
        }
    }
}

/// The model; tried where there is an ONNX Runtime (`Some` of what was asked for).
fn of_model(model: &Path, onnxruntime: Option<Option<&Path>>) -> Check {
    let (key, label) = ("slice_fixer", "SliceFixer");
    let path = if model == Path::new("shipped") { shipped() } else { Ok(model.to_path_buf()) };
    let read = path.and_then(|path| {
        let manifest = Manifest::read(&path)?;
        for graph in [&manifest.condition, &manifest.repair] {
            graph.bytes()?;
        }
        Ok((path, manifest))
    });
    let (path, manifest) = match read {
        Ok(read) => read,
        Err(error) => return Check::new(key, label, State::Missing, error.to_string()).more(model_hint(&error)),
    };
    let facts = json!({"name": manifest.name, "path": path});
    let Some(asked) = onnxruntime else {
        let found = format!("{} is whole, but not tried: no ONNX Runtime", manifest.name);
        return Check::new(key, label, State::Missing, found).more("ONNX Runtime, as above").facts(facts);
    };
    match tried(&path, asked) {
        Ok(slice_ms) => {
            let side = TRIED_SIDE;
            let mut check = Check::good(
                key,
                label,
                format!(
                    "{} at {}: {slice_ms:.0} ms a slice of {side} x {side} on the CPU",
                    manifest.name,
                    path.display()
                ),
            )
            .facts(facts);
            check.facts["cpu_slice_ms"] = slice_ms.into();
            check
        }
        Err(error) => Check::new(key, label, State::Missing, error.to_string()).more(model_hint(&error)).facts(facts),
    }
}

fn model_hint(error: &RepairError) -> &'static str {
    match error {
        RepairError::ModelMissing { .. } | RepairError::Read { .. } => {
            "models/README.md says how a model is trained and exported; name its folder by --slice-fixer or DIFFNR_MODELS"
        }
        _ => "export the model anew: python -m slicefixer export",
    }
}

/// Milliseconds that a slice takes on the CPU.
fn tried(path: &Path, onnxruntime: Option<&Path>) -> Result<f64, RepairError> {
    let options = Options {
        planes: vec![Plane::Axial],
        demand: Demand::Only(Provider::Cpu),
        onnxruntime: onnxruntime.map(Path::to_path_buf),
        ..Options::new([TRIED_SIDE; 3])
    };
    let (manifest, mut compute) = (Manifest::read(path)?, CpuCompute::new(1)?);
    let buffers = SliceBuffers::take(&mut compute, &manifest, &options)?;
    let mut fixer = SliceFixer::load(manifest, &options, &compute, buffers)?;
    Ok(1000.0 * fixer.warm_up(&compute)?.slice.as_secs_f64())
}

/// A plan against this machine.
pub(super) fn of_plan(need: &Need, memory_bytes: Option<u64>, shared_bytes: Option<u64>) -> Check {
    let (key, label) = ("plan", "plan");
    let fits = |bytes: u64, there: Option<u64>| there.is_none_or(|there| bytes <= there);
    let (fits_memory, fits_shared) = (fits(need.host_bytes, memory_bytes), fits(need.shared_bytes, shared_bytes));
    let [host, shared] = [need.host_bytes, need.shared_bytes].map(format_bytes);
    let found = format!("takes {host} of memory, {shared} of it shared");
    let facts = json!({
        "host_bytes": need.host_bytes,
        "shared_bytes": need.shared_bytes,
        "fits_memory": fits_memory,
        "fits_shared_memory": fits_shared,
    });
    let shown = |there: Option<u64>| there.map_or_else(|| "an unknown amount".into(), format_bytes);
    let check = if !fits_memory {
        let found = format!("{found}: {} are available", shown(memory_bytes));
        Check::new(key, label, State::Bad, found).more("fewer voxels, ring_slots or volume_slots, or more memory")
    } else if !fits_shared {
        let found = format!("{found}: {} are free in /dev/shm", shown(shared_bytes));
        Check::new(key, label, State::Bad, found)
            .more("a larger /dev/shm (as above), or fewer ring_slots or volume_slots; a daemon that runs already has its segments there")
    } else {
        Check::good(key, label, found)
    };
    check.facts(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_that_cannot_be_used_is_in_the_way_a_small_one_is_not() {
        let of = |free_bytes| of_shared(Ok(SharedMemory { size_bytes: 1 << 40, free_bytes }));
        assert_eq!(of(COMFORTABLE_SHARED_BYTES).state, State::Good);
        let small = of(64 << 20);
        assert_eq!(small.state, State::Missing);
        assert!(small.found.contains("64.0 MiB free") && small.more.is_some_and(|more| more.contains("--shm-size")));
        let none = of_shared(Err("/dev/shm: no file can be made: Permission denied".into()));
        assert_eq!(none.state, State::Bad);
        assert!(none.more.is_some_and(|more| more.contains("mount -t tmpfs")));
    }

    #[test]
    fn a_plan_is_held_against_memory_and_shared_memory() {
        let need = Need { host_bytes: 300, shared_bytes: 200 };
        let of = |memory, shared| of_plan(&need, memory, shared);
        assert_eq!(of(Some(300), Some(200)).state, State::Good);
        // What the system does not say cannot refuse.
        assert_eq!(of(None, None).state, State::Good);
        let memory = of(Some(299), Some(200));
        assert!(memory.state == State::Bad && memory.facts["fits_memory"] == false, "{memory:?}");
        assert!(memory.found.contains("299 B are available"), "{memory:?}");
        let shared = of(Some(300), Some(199));
        assert!(shared.state == State::Bad && shared.facts["fits_memory"] == true, "{shared:?}");
        assert!(shared.found.contains("199 B are free in /dev/shm"), "{shared:?}");
    }

    #[test]
    fn kernels_are_good_where_one_device_can_run_them() {
        let device = |name: &str, capability| DeviceFacts {
            index: 0,
            name: name.into(),
            capability,
            memory_bytes: 24 << 30,
            driver_version: 13_000,
        };
        let (old, new) = (device("Old", [7, 5]), device("New", [8, 9]));
        let passes = |device: &DeviceFacts| {
            assert_eq!(device.name, "New", "others are not tested");
            Ok(SelfTest { agreements: Vec::new(), seconds: 0.25 })
        };
        let broken = |reason: &str| ComputeError::Device { device: "cuda".into(), reason: reason.into() };
        let check = of_kernels(Ok(vec![old.clone(), new.clone()]), passes);
        assert_eq!(check.state, State::Good);
        assert!(
            check.found.contains("Old is sm_75") && check.found.contains("New, sm_89, 24.0 GiB"),
            "{}",
            check.found
        );
        let tested = &check.facts["devices"][1];
        assert_eq!((&tested["capability"], &tested["self_test"]["seconds"]), (&json!("8.9"), &json!(0.25)));
        assert_eq!(of_kernels(Ok(vec![old]), passes).state, State::Missing);
        let failed = of_kernels(Ok(vec![new]), |_| Err(broken("failed its self-test, FDK")));
        assert!(failed.state == State::Missing && failed.found.contains("failed its self-test, FDK"), "{failed:?}");
        assert!(failed.facts["devices"][0]["self_test"]["failed"].is_string());
        let none = of_kernels(Err(broken("install a driver")), passes);
        assert!(none.state == State::Missing && none.found.contains("install a driver"), "{none:?}");
    }

    #[test]
    fn versions_of_cuda_are_shown_as_people_write_them() {
        assert_eq!([cuda_text(13_000), cuda_text(12_080)], ["13.0", "12.8"]);
    }
}
