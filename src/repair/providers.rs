//! Execution providers, registered one by one: TensorRT, TensorRT-RTX, CUDA, CPU. ONNX Runtime alone falls to the CPU without a word.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use sha2::{Digest, Sha256};

use super::library::Library;
use super::manifest::hex;
use super::{RepairError, gpu, raw};

/// Names the plugin library of TensorRT-RTX.
pub const RTX_VARIABLE: &str = "DIFFNR_TENSORRT_RTX";

/// The plugin's usual name.
const RTX_FILE: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// What runs a graph's nodes, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// TensorRT 10 through ONNX Runtime's GPU build.
    TensorRt,
    /// TensorRT for RTX, a plugin.
    TensorRtRtx,
    /// CUDA and cuDNN through ONNX Runtime's GPU build.
    Cuda,
    /// In every build.
    Cpu,
}

impl Provider {
    /// All, in the order in which they are asked.
    pub const CHAIN: [Self; 4] = [Self::TensorRt, Self::TensorRtRtx, Self::Cuda, Self::Cpu];

    /// As people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorRt => "TensorRT",
            Self::TensorRtRtx => "TensorRT-RTX",
            Self::Cuda => "CUDA",
            Self::Cpu => "CPU",
        }
    }

    /// As ONNX Runtime has it.
    fn own_name(self) -> &'static str {
        match self {
            Self::TensorRt => "TensorrtExecutionProvider",
            Self::TensorRtRtx => "NvTensorRTRTXExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::Cpu => "CPUExecutionProvider",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which providers may run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Demand {
    /// The first of the chain that is there.
    #[default]
    Any,
    /// This one (nodes that it does not know may fall to the CPU), or none.
    Only(Provider),
}

impl FromStr for Demand {
    type Err = String;

    /// `any`, or a provider's name without regard to case.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("any") {
            return Ok(Self::Any);
        }
        let provider = Provider::CHAIN.into_iter().find(|provider| provider.name().eq_ignore_ascii_case(text));
        provider.map(Self::Only).ok_or_else(|| "there are any, tensorrt, tensorrt-rtx, cuda, cpu".into())
    }
}

/// What became of the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Providers {
    /// Those that ONNX Runtime took, in order; the CPU is always the last.
    pub registered: Vec<Provider>,
    /// Those that it refused, or that could not carry the model, with the reason.
    pub refused: Vec<(Provider, String)>,
    /// Who really got nodes of the graph, with their number, as ONNX Runtime says after dividing it.
    pub assigned: Vec<(String, usize)>,
}

impl Providers {
    /// Who runs it, for a header's field of 31 bytes: `CPU`, `TensorRT+CPU`.
    #[must_use]
    pub fn header_text(&self) -> String {
        let text = self.assigned.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("+");
        text.chars().filter(char::is_ascii).take(31).collect()
    }

    /// The whole story, for the log.
    #[must_use]
    pub fn log_text(&self) -> String {
        let nodes: Vec<String> = self.assigned.iter().map(|(name, nodes)| format!("{name} {nodes} nodes")).collect();
        let refused: Vec<String> =
            self.refused.iter().map(|(provider, reason)| format!("{provider} refused: {reason}")).collect();
        [nodes.join(", ")].into_iter().chain(refused).collect::<Vec<_>>().join("; ")
    }

    /// Whether inputs live on another device than the host, so that binding them copies.
    pub(super) fn copies_inputs(&self) -> bool {
        self.registered.iter().any(|provider| *provider != Provider::Cpu)
    }

    /// Whether who really got nodes works in the memory of the driver's own context.
    pub(super) fn run_on_cuda(&self) -> bool {
        let there = |provider: &Provider| self.assigned.iter().any(|(name, _)| name == provider.name());
        [Provider::TensorRt, Provider::Cuda].iter().any(there)
    }

    /// Reads back who got which nodes.
    pub(super) fn read_back(&mut self, session: &Session) -> Result<(), RepairError> {
        let nodes = raw::nodes_by_provider(session).map_err(|reason| RepairError::Run { reason })?;
        let place = |name: &str| Provider::CHAIN.iter().position(|provider| provider.own_name() == name);
        let mut known: Vec<(usize, String, usize)> = nodes
            .into_iter()
            .map(|(name, nodes)| match place(&name) {
                Some(place) => (place, Provider::CHAIN[place].name().to_string(), nodes),
                None => (Provider::CHAIN.len(), name, nodes),
            })
            .collect();
        known.sort();
        self.assigned = known.into_iter().map(|(_, name, nodes)| (name, nodes)).collect();
        Ok(())
    }

    /// Why a provider does not run the model; `None` where it does.
    pub(super) fn missing(&self, provider: Provider) -> Option<String> {
        if self.assigned.iter().any(|(name, _)| name == provider.name()) {
            return None;
        }
        let refused = self.refused.iter().find(|(refused, _)| *refused == provider);
        Some(refused.map_or_else(|| "it took none of the graph's nodes".into(), |(_, reason)| reason.clone()))
    }
}

/// What providers are told of the runs to come: shapes of the inputs, and where to keep what they build.
#[derive(Debug, Clone)]
pub(super) struct Setting<'a> {
    /// SHA-256 of the model.
    pub(super) model_sha256: [u8; 32],
    /// Engines and timings are kept here, in a folder for each model, ONNX Runtime, TensorRT and GPU.
    pub(super) cache_folder: Option<&'a Path>,
    /// Slices, rows and columns: smallest, usual, largest; `None` for a graph whose shapes are fixed.
    pub(super) profiles: Option<[[usize; 3]; 3]>,
    /// Slices that the model sees at once.
    pub(super) channels: usize,
    /// Shape of the context.
    pub(super) context: [usize; 2],
    /// Index of the GPU: the one that the carrier is on, where it is on one.
    pub(super) device: i32,
}

impl Setting<'_> {
    /// `slices:8x3x128x128,context:1x136x96,...` of the given profile.
    fn shapes(&self, profile: usize) -> Option<String> {
        let [batch, rows, columns] = self.profiles?[profile];
        let [tokens, width] = self.context;
        Some(format!(
            "slices:{batch}x{}x{rows}x{columns},context:1x{tokens}x{width},plane:{batch},height:{batch}",
            self.channels
        ))
    }

    /// The folder of this model on this machine. Engines die with any change of these, and must never be taken for another's.
    fn cache(&self, library: &Library) -> Option<PathBuf> {
        let key = format!(
            "{} {} {:?} {:?} {:?}",
            hex(&self.model_sha256),
            library.version,
            gpu::tensorrt_version(),
            gpu::names(),
            self.profiles
        );
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        self.cache_folder.map(|folder| folder.join(&hex(&digest)[..32]))
    }
}

/// Registers one provider; its reason where it is refused.
pub(super) fn register(
    provider: Provider,
    builder: SessionBuilder,
    library: &Library,
    setting: &Setting<'_>,
) -> Result<SessionBuilder, String> {
    match provider {
        Provider::Cpu => Ok(builder),
        Provider::TensorRt => tensorrt(builder, library, setting),
        Provider::TensorRtRtx => tensorrt_rtx(builder, library, setting),
        Provider::Cuda => {
            // Trying out algorithms by time, and TF32's 10 bits, would give other bits from run to run and from GPU to GPU.
            let cuda = ep::CUDA::default()
                .with_device_id(setting.device)
                .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
                .with_tf32(false);
            registered(&cuda, builder)
        }
    }
}

fn registered(provider: &impl ExecutionProvider, mut builder: SessionBuilder) -> Result<SessionBuilder, String> {
    provider.register(&mut builder).map_err(|error| one_line(error.message())).map(|()| builder)
}

fn tensorrt(builder: SessionBuilder, library: &Library, setting: &Setting<'_>) -> Result<SessionBuilder, String> {
    let mut tensorrt =
        ep::TensorRT::default().with_device_id(setting.device).with_fp16(true).with_layer_norm_fp32_fallback(true);
    if let (Some(min), Some(opt), Some(max)) = (setting.shapes(0), setting.shapes(1), setting.shapes(2)) {
        tensorrt = tensorrt.with_profile_min_shapes(min).with_profile_opt_shapes(opt).with_profile_max_shapes(max);
    }
    let folder = setting.cache(library);
    if let Some(folder) = &folder {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("its cache {} cannot be made: {error}", folder.display()))?;
        let folder = folder.display();
        tensorrt = tensorrt
            .with_engine_cache(true)
            .with_engine_cache_path(folder.to_string())
            .with_timing_cache(true)
            .with_timing_cache_path(folder.to_string());
    }
    let outcome = registered(&tensorrt, builder);
    if let (Err(_), Some(folder)) = (&outcome, &folder) {
        // Where TensorRT is not there, no folder is left; one that holds engines stays.
        let _ = std::fs::remove_dir(folder);
    }
    outcome
}

/// TensorRT-RTX comes as a plugin: a library of its own that ONNX Runtime loads, and that then lists its devices.
fn tensorrt_rtx(builder: SessionBuilder, library: &Library, setting: &Setting<'_>) -> Result<SessionBuilder, String> {
    let named = std::env::var_os(RTX_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = named.unwrap_or_else(|| library.path.with_file_name(RTX_FILE));
    if !path.is_file() {
        return Err(format!("no plugin: {} is not there ({RTX_VARIABLE} names another)", path.display()));
    }
    let own = Provider::TensorRtRtx.own_name();
    let environment = library.environment();
    let here = |environment: &ort::environment::Environment| {
        environment.devices().filter(|device| device.ep().is_ok_and(|name| name == own)).count()
    };
    // A plugin is registered once a process.
    if here(environment) == 0 {
        environment.register_ep_library(own, &path).map_err(|error| one_line(error.message()))?;
    }
    if here(environment) == 0 {
        return Err(format!("the plugin {} finds no device", path.display()));
    }
    let options: Vec<(String, String)> = ["min", "opt", "max"]
        .into_iter()
        .enumerate()
        .filter_map(|(profile, name)| {
            setting.shapes(profile).map(|shapes| (format!("{own}.nv_profile_{name}_shapes"), shapes))
        })
        .collect();
    let devices = environment.devices().filter(|device| device.ep().is_ok_and(|name| name == own)).take(1);
    builder.with_devices(devices, Some(&options)).map_err(|error| one_line(error.message()))
}

/// The reason without ONNX Runtime's source files and line breaks, which say nothing to the user.
pub(super) fn one_line(message: &str) -> String {
    let text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    // "/file.cc:1 function() [ONNXRuntimeError] : 1 : FAIL : reason"
    let reason = match text.split_once("[ONNXRuntimeError]") {
        Some((_, rest)) => rest.splitn(4, " : ").last().unwrap_or(rest),
        None => &text,
    };
    reason.trim_end_matches('.').chars().take(400).collect()
}
