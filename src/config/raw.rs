//! What stands in the file: one struct a section, every key optional.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, keys};

/// The sections of `gantry.toml`, as written.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs)] // The sections and keys are documented in examples/gantry.toml, which a test holds complete.
pub struct RawSettings {
    pub shared_memory: RawSharedMemory,
    pub geometry: RawGeometry,
    pub volume: RawVolume,
    pub preprocess: RawPreprocess,
    pub reconstruct: RawReconstruct,
    pub slice_fixer: RawSliceFixer,
    pub publish: RawPublish,
    pub memory: RawMemory,
    pub supervise: RawSupervise,
    pub compute: RawCompute,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize, Serialize)]
        #[serde(default)]
        #[allow(missing_docs)]
        pub struct $name {
            $(pub $field: Option<$type>,)+
        }
    };
}

section! {
    /// `[shared_memory]`.
    RawSharedMemory { name: String, ring_slots: i64, drop_policy: String, volume_slots: i64 }
}
section! {
    /// `[geometry]`: a scene folder, or a circular orbit.
    RawGeometry {
        scan: PathBuf,
        source_to_isocenter_mm: f64,
        source_to_detector_mm: f64,
        columns: i64,
        rows: i64,
        pitch_u_mm: f64,
        pitch_v_mm: f64,
        offset_u_mm: f64,
        offset_v_mm: f64,
        roll_deg: f64,
        pitch_deg: f64,
        yaw_deg: f64,
        views: i64,
        start_deg: f64,
        arc_deg: f64,
        angles_file: PathBuf,
    }
}
section! {
    /// `[volume]`.
    RawVolume { voxels: Vec<i64>, size_mm: Vec<f64>, centre_mm: Vec<f64>, mu_water_per_mm: f64 }
}
section! {
    /// `[preprocess]`.
    RawPreprocess {
        i0: f64,
        dark: String,
        flat: String,
        dead_below: f64,
        hot_above: f64,
        max_bad_fraction: f64,
        min_transmission: f64,
    }
}
section! {
    /// `[reconstruct]`.
    RawReconstruct {
        method: String,
        window: String,
        iterations: i64,
        deadline_s: f64,
        publish_every: i64,
        publish_interval_ms: i64,
        early_iterations: i64,
        gaussians: i64,
        prior: f64,
        tv_mm: f64,
        photons: f64,
        views_per_iteration: i64,
        seed: i64,
    }
}
section! {
    /// `[slice_fixer]`.
    RawSliceFixer {
        model: String,
        anatomy: String,
        repairs: i64,
        repair_from: f64,
        weight: f64,
        every: i64,
        modulus: bool,
        planes: Vec<String>,
        provider: String,
        onnxruntime: PathBuf,
        engines: PathBuf,
        deadline_s: f64,
    }
}
section! {
    /// `[publish]`.
    RawPublish { preview_every_views: i64, frame_rate_fps: f64, partial_min_views: i64 }
}
section! {
    /// `[memory]`.
    RawMemory { host_limit: String }
}
section! {
    /// `[supervise]`.
    RawSupervise {
        status_file: PathBuf,
        status_every_ms: i64,
        log_level: String,
        log_format: String,
        frame_timeout_ms: i64,
        grace_ms: i64,
        stall_ms: i64,
        staging_frames: i64,
    }
}
section! {
    /// `[compute]`.
    RawCompute { device: String, self_test: bool, threads: i64 }
}

impl RawSettings {
    /// Parses TOML `text` (from `origin`, for messages) and lays the `DIFFNR_SECTION__KEY` variables over it.
    ///
    /// # Errors
    /// [`ConfigError::File`] for text that is not TOML, [`ConfigError::UnknownKey`], [`ConfigError::Type`].
    pub fn parse(
        text: &str,
        origin: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let type_error = |error: config::ConfigError| ConfigError::Type { reason: error.to_string() };
        let table: toml::Table = toml::from_str(text)
            .map_err(|error| ConfigError::File { path: origin.into(), reason: error.to_string().trim().to_string() })?;
        keys::check(&table, origin)?;
        let mut builder = config::Config::builder().add_source(config::File::from_str(text, config::FileFormat::Toml));
        let mut overrides: Vec<(String, String)> =
            environment.into_iter().filter(|(name, _)| name.starts_with("DIFFNR_") && name.contains("__")).collect();
        overrides.sort();
        for (name, value) in overrides {
            let path = name["DIFFNR_".len()..].to_ascii_lowercase().replacen("__", ".", 1);
            keys::check_path(&path, &format!("environment variable {name}"))?;
            builder = builder.set_override(&path, environment_value(&value)).map_err(type_error)?;
        }
        builder.build().and_then(config::Config::try_deserialize).map_err(type_error)
    }
}

/// TOML where it is TOML, else the string itself.
fn environment_value(text: &str) -> config::Value {
    fn convert(value: toml::Value) -> config::Value {
        let kind = match value {
            toml::Value::Integer(i) => config::ValueKind::I64(i),
            toml::Value::Float(f) => config::ValueKind::Float(f),
            toml::Value::Boolean(b) => config::ValueKind::Boolean(b),
            toml::Value::Array(items) => config::ValueKind::Array(items.into_iter().map(convert).collect()),
            toml::Value::String(s) => config::ValueKind::String(s),
            other => config::ValueKind::String(other.to_string()),
        };
        config::Value::new(None, kind)
    }
    match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value").map_or_else(|| text.to_string().into(), convert),
        _ => text.to_string().into(),
    }
}
