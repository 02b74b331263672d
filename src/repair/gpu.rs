//! What TensorRT's engines depend on besides the model: its version and the GPU.

#![allow(unsafe_code)] // One call into TensorRT that asks for its version.

/// Version of the TensorRT that ONNX Runtime's provider would load, as `major * 10000 + minor * 100 + patch` (from 10 on); `None` where there
/// is none: the provider is refused then.
pub(super) fn tensorrt_version() -> Option<i32> {
    // SAFETY: the library that the TensorRT provider loads by the same name a moment later.
    let library = unsafe { libloading::Library::new("libnvinfer.so.10") }.ok()?;
    // SAFETY: `extern "C" int32_t getInferLibVersion() noexcept` of NvInferRuntime.h, in all of 10.x.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"getInferLibVersion") }.ok()?;
    // SAFETY: takes nothing, returns a constant.
    Some(unsafe { version() })
}

/// Names of the GPUs as the driver lists them; empty where there is no driver.
pub(super) fn names() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path().join("information")).collect();
    paths.sort();
    let model =
        |text: String| text.lines().find_map(|line| line.strip_prefix("Model:").map(|name| name.trim().to_string()));
    paths.into_iter().filter_map(|path| std::fs::read_to_string(path).ok().and_then(model)).collect()
}
