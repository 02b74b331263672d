//! `manifest.toml`: what a model's graphs take and give. Written by `python -m slicefixer export`, checked here field by field, and again
//! against what ONNX Runtime says of the graphs.

#![forbid(unsafe_code)]

mod raw;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::RepairError;
use crate::compute::slices::WindowUnits;
use raw::{Dimension, RawGraph, RawManifest, RawValue};

/// Version of the manifest that is understood.
pub const FORMAT: u32 = 1;

/// The only operator set that all execution providers take as our export writes it.
pub const OPSET: u32 = 18;

/// A manifest is some kilobytes.
const MOST_MANIFEST_BYTES: u64 = 1 << 20;

/// A graph is one protobuf message, which cannot be longer.
const MOST_GRAPH_BYTES: u64 = (1 << 31) - 1;

/// Most entries of one dimension of a projection or context.
const MOST_PER_DIMENSION: i64 = 1 << 16;

/// Most entries of a projection or context as a whole.
const MOST_VALUES: usize = 1 << 24;

/// A family of parallel slices. Slices' rows and columns are those of `models/slicefixer/data.py`, whose arrays are `[z][y][x]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// Slices along z; rows are y, columns x.
    Axial,
    /// Slices along y; rows are z, columns x.
    Coronal,
    /// Slices along x; rows are z, columns y.
    Sagittal,
}

impl Plane {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Axial, Self::Coronal, Self::Sagittal];

    /// As manifests and the command line have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Axial => "axial",
            Self::Coronal => "coronal",
            Self::Sagittal => "sagittal",
        }
    }

    /// Which of a volume's axes (0: x, 1: y, 2: z) its slices stand across.
    #[must_use]
    pub fn axis(self) -> usize {
        match self {
            Self::Axial => 2,
            Self::Coronal => 1,
            Self::Sagittal => 0,
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// HU that become -1 and 1; linear, nothing is clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HuWindow {
    /// -1.
    pub low_hu: f64,
    /// 1.
    pub high_hu: f64,
}

impl HuWindow {
    /// Window units of attenuations in 1/mm.
    #[must_use]
    pub fn of_attenuation(&self, mu_water_per_mm: f64) -> WindowUnits {
        let per_hu = 2.0 / (self.high_hu - self.low_hu);
        WindowUnits { scale: 1000.0 / mu_water_per_mm * per_hu, offset: (-1000.0 - self.low_hu) * per_hu - 1.0 }
    }
}

/// One graph of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphContract {
    /// Its file, beside the manifest.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes.
    pub sha256: [u8; 32],
    inputs: Vec<RawValue>,
    outputs: Vec<RawValue>,
}

fn channels(neighbours: usize, unexplained: bool) -> usize {
    (2 * neighbours + 1) * (1 + usize::from(unexplained))
}

/// A checked manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Where it was read.
    pub path: PathBuf,
    /// The model's name.
    pub name: String,
    /// Its window.
    pub window: HuWindow,
    /// Slices that the model sees on each side of the one it repairs.
    pub neighbours: usize,
    /// Whether it also sees, of each of these, what the scan says and the volume does not
    /// ([`crate::reconstruct::optimise::Unexplained`]).
    pub unexplained: bool,
    /// Rows and columns are padded to multiples of this.
    pub multiple: usize,
    /// Planes it knows; the index is what it is told.
    pub planes: Vec<Plane>,
    /// Parts of the body it knows; the index is what it is told, 0 for all others.
    pub anatomies: Vec<String>,
    /// Other names of parts of the body.
    pub anatomy_of_name: BTreeMap<String, String>,
    /// Rows and columns of the projections that condition it.
    pub projection: [usize; 2],
    /// Tokens and width of the context.
    pub context: [usize; 2],
    /// Scan to context.
    pub condition: GraphContract,
    /// Slices and context to repaired slices.
    pub repair: GraphContract,
}

impl Manifest {
    /// Reads a manifest: the file itself, the folder that holds `manifest.toml`, or the repair graph (`.onnx`) that it lies beside.
    ///
    /// # Errors
    /// [`RepairError::Read`], [`RepairError::Manifest`] naming the field.
    pub fn read(model: &Path) -> Result<Self, RepairError> {
        let is_graph = model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"));
        let path = if is_graph {
            model.with_file_name("manifest.toml")
        } else if model.is_dir() {
            model.join("manifest.toml")
        } else {
            model.to_path_buf()
        };
        let bytes = read_bounded(&path, MOST_MANIFEST_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| refuse(&path, "the file", "(bytes)", "must be UTF-8 text"))?;
        let raw: RawManifest = toml::from_str(&text).map_err(|error| {
            refuse(&path, "the file", "(TOML)", format!("does not follow the manifest's form: {}", error.message()))
        })?;
        let manifest = Self::checked(&path, raw)?;
        if is_graph && manifest.repair.path.file_name() != model.file_name() {
            let named = manifest.repair.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(refuse(&path, "graph.repair.file", named, format!("{} was asked for", model.display())));
        }
        Ok(manifest)
    }

    fn checked(path: &Path, raw: RawManifest) -> Result<Self, RepairError> {
        let no = |field: &str, value: String, requirement: &str| Err(refuse(path, field, value, requirement));
        if raw.format != FORMAT {
            return no("format", raw.format.to_string(), "this build understands 1: export the model anew");
        }
        if raw.opset != OPSET {
            return no("opset", raw.opset.to_string(), "must be 18: export the model anew");
        }
        let [low_hu, high_hu] = raw.window_hu;
        if !(low_hu.is_finite() && high_hu.is_finite() && low_hu < high_hu && high_hu - low_hu <= 1e5) {
            return no("window_hu", format!("{:?}", raw.window_hu), "must be finite, ascending, at most 1e5 HU wide");
        }
        if raw.neighbours > 8 {
            return no("neighbours", raw.neighbours.to_string(), "must be 0 to 8");
        }
        if !(1..=256).contains(&raw.multiple) {
            return no("multiple", raw.multiple.to_string(), "must be 1 to 256");
        }
        let twice = (1..raw.planes.len()).any(|place| raw.planes[..place].contains(&raw.planes[place]));
        if raw.planes.is_empty() || twice {
            return no("planes", format!("{:?}", raw.planes), "must name each plane at most once, and one at least");
        }
        let names = || raw.anatomies.iter().chain(raw.anatomy_of_name.values());
        if raw.anatomies.is_empty() || raw.anatomies.len() > 4096 || names().any(|name| name.len() > 64) {
            return no("anatomies", format!("{} names", raw.anatomies.len()), "must be 1 to 4096 short names");
        }
        if let Some(name) = raw.anatomy_of_name.values().find(|name| !raw.anatomies.contains(name)) {
            return no("anatomy_of_name", name.clone(), "must be one of anatomies");
        }
        let graph = |role: &str| {
            let mut of_role = raw.graph.iter().filter(|graph| graph.role == role);
            match (of_role.next(), of_role.next()) {
                (Some(graph), None) => GraphContract::checked(path, graph),
                (None, _) => Err(refuse(path, "graph", format!("no role \"{role}\""), "there must be one")),
                _ => Err(refuse(path, "graph", format!("role \"{role}\" twice"), "there must be one")),
            }
        };
        let (condition, repair) = (graph("condition")?, graph("repair")?);
        let [_, _, rows, columns] = condition.sizes(path, "condition", "projections", ["1", "2", "#", "#"])?;
        condition.sizes(path, "condition", "anatomy", ["1"])?;
        let [_, tokens, width] = condition.sizes(path, "condition", "context", ["1", "#", "#"])?;
        for (name, values) in [("projections", rows * columns), ("context", tokens * width)] {
            if values > MOST_VALUES {
                return no(&format!("graph.condition.{name}"), format!("{values} values"), "must be at most 2^24");
            }
        }
        let channels = channels(raw.neighbours as usize, raw.unexplained).to_string();
        repair.sizes(path, "repair", "slices", ["batch", &channels, "rows", "columns"])?;
        repair.sizes(path, "repair", "context", ["1", &tokens.to_string(), &width.to_string()])?;
        repair.sizes(path, "repair", "plane", ["batch"])?;
        repair.sizes(path, "repair", "height", ["batch"])?;
        repair.sizes(path, "repair", "repaired", ["batch", "1", "rows", "columns"])?;
        for (role, graph, inputs) in [("condition", &condition, 2), ("repair", &repair, 4)] {
            if graph.inputs.len() != inputs || graph.outputs.len() != 1 {
                let count = format!("{} inputs, {} outputs", graph.inputs.len(), graph.outputs.len());
                return no(&format!("graph.{role}"), count, &format!("must be {inputs} inputs and 1 output"));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            name: raw.name.chars().take(64).collect(),
            window: HuWindow { low_hu, high_hu },
            neighbours: raw.neighbours as usize,
            unexplained: raw.unexplained,
            multiple: raw.multiple as usize,
            planes: raw.planes,
            anatomies: raw.anatomies,
            anatomy_of_name: raw.anatomy_of_name,
            projection: [rows, columns],
            context: [tokens, width],
            condition,
            repair,
        })
    }

    /// Images of which a slice is repaired.
    #[must_use]
    pub fn channels(&self) -> usize {
        channels(self.neighbours, self.unexplained)
    }

    /// What the model is told of a part of the body: its index, 0 for one it does not know.
    #[must_use]
    pub fn anatomy_index(&self, name: &str) -> usize {
        let name = self.anatomy_of_name.get(name).map_or(name, String::as_str);
        self.anatomies.iter().position(|known| known == name).unwrap_or(0)
    }

    /// What the model is told of a plane.
    ///
    /// # Errors
    /// [`RepairError::Input`] for one it does not know.
    pub fn plane_index(&self, plane: Plane) -> Result<usize, RepairError> {
        let index = self.planes.iter().position(|known| *known == plane);
        index.ok_or_else(|| {
            let known: Vec<&str> = self.planes.iter().map(|plane| plane.name()).collect();
            RepairError::input("planes", plane, format!("the model {} knows {}", self.name, known.join(", ")))
        })
    }
}

impl GraphContract {
    fn checked(manifest: &Path, raw: &RawGraph) -> Result<Self, RepairError> {
        let field = |name: &str| format!("graph.{}.{name}", raw.role);
        let mut components = Path::new(&raw.file).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        // A separator of another system would be part of a name here and a path there.
        if !plain || raw.file.contains(['/', '\\', '\0']) {
            return Err(refuse(
                manifest,
                &field("file"),
                &raw.file,
                "must be the plain name of a file beside the manifest",
            ));
        }
        let mut sha256 = [0_u8; 32];
        let digits = raw.sha256.as_bytes();
        let nibble = |byte: u8| (byte as char).to_digit(16);
        let parsed = digits.len() == 64
            && sha256.iter_mut().zip(digits.as_chunks::<2>().0).all(|(byte, pair)| {
                let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else { return false };
                *byte = (16 * high + low) as u8;
                true
            });
        if !parsed {
            return Err(refuse(manifest, &field("sha256"), &raw.sha256, "must be 64 hexadecimal digits"));
        }
        Ok(Self {
            path: manifest.with_file_name(&raw.file),
            sha256,
            inputs: raw.input.clone(),
            outputs: raw.output.clone(),
        })
    }

    /// Bytes of its file.
    ///
    /// # Errors
    /// [`RepairError::Read`].
    pub fn file_bytes(&self) -> Result<u64, RepairError> {
        let failed = |error: std::io::Error| RepairError::Read { path: self.path.clone(), reason: error.to_string() };
        Ok(std::fs::metadata(&self.path).map_err(failed)?.len())
    }

    /// Sizes of a value, which must be as `wanted` has them: a name, a number, or `#` for any number; 0 where a name stands.
    fn sizes<const N: usize>(
        &self,
        manifest: &Path,
        role: &str,
        name: &str,
        wanted: [&str; N],
    ) -> Result<[usize; N], RepairError> {
        let field = format!("graph.{role}.{name}");
        let mut values = self.inputs.iter().chain(&self.outputs);
        let Some(value) = values.find(|value| value.name == name) else {
            return Err(refuse(manifest, &field, "(missing)", "the graph must take or give it"));
        };
        let kind = if ["anatomy", "plane"].contains(&name) { "int64" } else { "float32" };
        if value.kind != kind {
            return Err(refuse(manifest, &field, &value.kind, format!("must be {kind}")));
        }
        let fits = |(size, wanted): (&Dimension, &&str)| match size {
            Dimension::Number(n) if *wanted == "#" => (1..=MOST_PER_DIMENSION).contains(n),
            size => size.to_string() == **wanted,
        };
        if value.shape.len() != N || !value.shape.iter().zip(&wanted).all(fits) {
            let wanted = wanted.join(", ").replace('#', "1 to 65536");
            return Err(refuse(manifest, &field, shown(&value.shape), format!("must be [{wanted}]")));
        }
        Ok(std::array::from_fn(|axis| match value.shape[axis] {
            Dimension::Number(n) => n as usize,
            Dimension::Name(_) => 0,
        }))
    }

    /// The file's bytes, if they are those that the manifest means.
    ///
    /// # Errors
    /// [`RepairError::Read`], [`RepairError::Contract`] for another hash.
    pub fn bytes(&self) -> Result<Vec<u8>, RepairError> {
        let bytes = read_bounded(&self.path, MOST_GRAPH_BYTES)?;
        let found: [u8; 32] = Sha256::digest(&bytes).into();
        if found == self.sha256 { Ok(bytes) } else { Err(self.differs("sha256", hex(&self.sha256), hex(&found))) }
    }

    /// Holds a session against the contract: operator set, names, types and shapes as ONNX Runtime has them.
    ///
    /// # Errors
    /// [`RepairError::Contract`] naming what differs.
    pub fn check(&self, session: &Session) -> Result<(), RepairError> {
        let opset = session.opset_for_domain("").unwrap_or(0);
        if opset != OPSET {
            return Err(self.differs("opset", OPSET.to_string(), opset.to_string()));
        }
        for (kind, contract, found) in
            [("input", &self.inputs, session.inputs()), ("output", &self.outputs, session.outputs())]
        {
            let names = |list: &mut dyn Iterator<Item = &str>| list.collect::<Vec<_>>().join(", ");
            let (wanted, given) = (
                names(&mut contract.iter().map(|value| value.name.as_str())),
                names(&mut found.iter().map(|value| value.name())),
            );
            if wanted != given {
                return Err(self.differs(format!("the list of {kind}s"), wanted, given));
            }
            for (value, outlet) in contract.iter().zip(found) {
                let (wanted, given) = (format!("{} {}", value.kind, shown(&value.shape)), described(outlet));
                if wanted != given {
                    return Err(self.differs(format!("{kind} {}", value.name), wanted, given));
                }
            }
        }
        Ok(())
    }

    fn differs(&self, what: impl Into<String>, manifest: String, found: String) -> RepairError {
        RepairError::Contract { path: self.path.clone(), what: what.into(), manifest, found }
    }
}

fn read_bounded(path: &Path, most_bytes: u64) -> Result<Vec<u8>, RepairError> {
    let refuse = |reason: String| RepairError::Read { path: path.to_path_buf(), reason };
    let file = std::fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(most_bytes + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
    if bytes.len() as u64 > most_bytes {
        return Err(refuse(format!("longer than {most_bytes} bytes")));
    }
    Ok(bytes)
}

fn refuse(path: &Path, field: &str, value: impl ToString, requirement: impl Into<String>) -> RepairError {
    // A hostile file may hold a value of any length.
    let value: String = value.to_string().chars().take(80).collect();
    RepairError::Manifest { path: path.to_path_buf(), field: field.into(), value, requirement: requirement.into() }
}

fn shown(shape: &[Dimension]) -> String {
    let sizes: Vec<String> = shape.iter().take(16).map(ToString::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

/// What ONNX Runtime says of a graph's value, in the manifest's words.
fn described(outlet: &Outlet) -> String {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else { return "no tensor".into() };
    let kind = match ty {
        TensorElementType::Float32 => "float32".to_string(),
        TensorElementType::Int64 => "int64".to_string(),
        other => format!("{other:?}").to_lowercase(),
    };
    let size = |axis: usize, size: i64| match dimension_symbols.get(axis) {
        Some(name) if size < 0 && !name.is_empty() => Dimension::Name(name.clone()),
        _ => Dimension::Number(size),
    };
    let sizes: Vec<Dimension> = shape.iter().enumerate().map(|(axis, n)| size(axis, *n)).collect();
    format!("{kind} {}", shown(&sizes))
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
