//! The GPU, its driver and TensorRT, as a machine has them.

#![allow(unsafe_code)] // Calls into the driver and TensorRT that ask for their versions.

/// Version of the TensorRT that ONNX Runtime's provider would load, as `major * 10000 + minor * 100 + patch` (from 10 on); `None` where there
/// is none: the provider is refused then.
#[must_use]
pub fn tensorrt_version() -> Option<i32> {
    // SAFETY: the library that the TensorRT provider loads by the same name a moment later.
    let library = unsafe { libloading::Library::new("libnvinfer.so.10") }.ok()?;
    // SAFETY: `extern "C" int32_t getInferLibVersion() noexcept` of NvInferRuntime.h, in all of 10.x.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"getInferLibVersion") }.ok()?;
    // SAFETY: takes nothing, returns a constant.
    Some(unsafe { version() })
}

/// Newest CUDA that the driver carries, as `1000 * major + 10 * minor`; `None` where there is no driver.
#[must_use]
pub fn cuda_version() -> Option<i32> {
    // SAFETY: the driver's library, which the CUDA provider loads by the same name.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.ok()?;
    // SAFETY: `CUresult cuDriverGetVersion(int *)` of cuda.h, which needs no initialisation; CUresult is an enum, an int.
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"cuDriverGetVersion") }.ok()?;
    let mut version = 0;
    // SAFETY: writes one int where the pointer points.
    (unsafe { get(&mut version) } == 0).then_some(version)
}

/// Names of the GPUs as the driver lists them; empty where there is no driver.
#[must_use]
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path().join("information")).collect();
    paths.sort();
    let model =
        |text: String| text.lines().find_map(|line| line.strip_prefix("Model:").map(|name| name.trim().to_string()));
    paths.into_iter().filter_map(|path| std::fs::read_to_string(path).ok().and_then(model)).collect()
}
