//! Settings: raw (as written in TOML and `DIFFNR_*`) and validated, two types.
//!
//! [`RawSettings`] is what stands in the file; [`Settings`] is what the daemon runs by: everything resolved (poses, grid,
//! bytes), checked, and never changed after. Between the two stands [`Settings::load`], which refuses
//! * a key that is not known, by its path, with the nearest known one;
//! * a value of the wrong type or out of range, by its field, with the value and what to change.
//!
//! **Environment.** `DIFFNR_SECTION__KEY=value` overrides `key` of `[section]` (two underscores between the two), for instance
//! `DIFFNR_SHARED_MEMORY__NAME=gantry2` or `DIFFNR_VOLUME__VOXELS='[256, 256, 256]'`. The value is read as TOML where it is TOML
//! (numbers, booleans, lists), else as a string. Variables without `__` are not settings and are left alone.

#![forbid(unsafe_code)]

mod bytes;
mod fingerprint;
mod keys;
mod raw;
mod reconstruct;
mod resolve;
mod settings;
mod slice_fixer;

pub use bytes::{format_bytes, parse_bytes};
pub use raw::RawSettings;
pub use reconstruct::{EarlyIterations, OptimisedSettings, PublishEvery, RunBudget};
pub use settings::{
    Calibration, ComputeSettings, DropPolicy, LogFormat, PreprocessSettings, PublishSettings, Settings,
    SharedMemorySettings, SuperviseSettings,
};
pub use slice_fixer::{ModelChoice, SliceFixerSettings};

use std::path::{Path, PathBuf};

use crate::error::{Classed, ErrorClass};
use crate::geometry::GeometryError;

/// Why settings were refused; each names the field, its value and what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("settings {path}: {reason}; give a readable TOML file, for instance a copy of examples/gantry.toml", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's or the parser's words.
        reason: String,
    },
    /// A key that means nothing.
    #[error("settings: `{path}` is not a known key (from {origin}){suggestion}", suggestion = did_you_mean(.nearest.as_deref(), .known))]
    UnknownKey {
        /// `section.key`, or `section`.
        path: String,
        /// File or environment variable.
        origin: String,
        /// The nearest known key, if one is near.
        nearest: Option<String>,
        /// All keys known at that place.
        known: String,
    },
    /// A value of the wrong type.
    #[error("settings: {reason}; correct the value's type (numbers without quotes, lists as [x, y, z])")]
    Type {
        /// The deserialiser's words, with the key.
        reason: String,
    },
    /// A value that cannot be used.
    #[error("settings: {field} = {value}: {requirement}")]
    Value {
        /// `section.key`.
        field: String,
        /// The value given.
        value: String,
        /// What it must satisfy, and what to change.
        requirement: String,
    },
    /// The geometry that the settings describe is refused.
    #[error("settings [geometry]/[volume]: {0}")]
    Geometry(#[from] GeometryError),
}

impl Classed for ConfigError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

fn did_you_mean(nearest: Option<&str>, known: &str) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => format!("; known here: {known}"),
    }
}

impl ConfigError {
    /// A refusal of one value.
    pub(crate) fn value(field: &str, value: impl std::fmt::Display, requirement: impl Into<String>) -> Self {
        Self::Value { field: field.into(), value: value.to_string(), requirement: requirement.into() }
    }
}

impl Settings {
    /// Reads `path`, lays the environment's overrides over it, checks and resolves everything. Relative paths in the settings
    /// count from the file's folder.
    ///
    /// # Errors
    /// [`ConfigError`], naming field, value and what to change.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, std::env::vars())
    }

    /// As [`Settings::load`], with the environment given: pairs of name and value.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_with(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::File { path: path.into(), reason: error.to_string() })?;
        let raw = RawSettings::parse(&text, &path.display().to_string(), environment).map_err(|error| match error {
            ConfigError::File { reason, .. } => ConfigError::File { path: path.into(), reason },
            other => other,
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        resolve::resolve(&raw, folder)
    }

    /// Settings from TOML text alone, without environment; relative paths count from `folder`.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_toml(text: &str, folder: &Path) -> Result<Self, ConfigError> {
        resolve::resolve(&RawSettings::parse(text, "the settings", [])?, folder)
    }
}

#[cfg(test)]
mod tests;
