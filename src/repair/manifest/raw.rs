//! The manifest as it stands in the file.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::Plane;

/// All that is read of it; `[training]` is for people.
#[derive(Debug, Deserialize)]
pub(super) struct RawManifest {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) opset: u32,
    pub(super) window_hu: [f64; 2],
    pub(super) neighbours: u32,
    #[serde(default)]
    pub(super) unexplained: bool,
    pub(super) multiple: u32,
    pub(super) planes: Vec<Plane>,
    pub(super) anatomies: Vec<String>,
    #[serde(default)]
    pub(super) anatomy_of_name: BTreeMap<String, String>,
    pub(super) graph: Vec<RawGraph>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawGraph {
    pub(super) role: String,
    pub(super) file: String,
    pub(super) sha256: String,
    pub(super) input: Vec<RawValue>,
    pub(super) output: Vec<RawValue>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RawValue {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) shape: Vec<Dimension>,
}

/// A fixed size, or the name of one that varies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Dimension {
    Number(i64),
    Name(String),
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            // A hostile file may hold a name of any length.
            Self::Name(name) => f.write_str(name.get(..name.len().min(40)).unwrap_or("?")),
        }
    }
}
