//! `meta_data.json`: from JSON to checked numbers.

use std::f64::consts::TAU;
use std::path::{Component, Path, PathBuf};

use glam::DVec3;
use serde_json::Value;

use super::super::{FormatError, MAX_VOXELS, SceneScale};
use super::{Acquisition, META_FILE};
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, ViewPose, VolumeGrid};

/// Longest description accepted: 10,000 views with poses take about 5 MB.
const MAX_META_BYTES: u64 = 64 << 20;

/// Keys known under `"diffnr"`.
const KEYS: [&str; 11] = [
    "version",
    "unit_mm",
    "mu_per_value_per_mm",
    "mu_water_per_mm",
    "patient_offset_mm",
    "photons",
    "electronic_noise_sigma",
    "seed",
    "poses_train",
    "poses_test",
    "raw",
];

/// One list of views: files and poses, equally long.
#[derive(Debug)]
pub(super) struct ViewList {
    pub files: Vec<PathBuf>,
    pub geometry: ScanGeometry,
}

/// Files of the raw counts.
#[derive(Debug)]
pub(super) struct RawFiles {
    pub files: Vec<PathBuf>,
    pub dark: PathBuf,
    pub flat: PathBuf,
    pub gain: f64,
}

/// The whole description, checked, in mm.
#[derive(Debug)]
pub(super) struct Meta {
    pub path: PathBuf,
    pub train: ViewList,
    pub test: ViewList,
    pub grid: VolumeGrid,
    pub scale: SceneScale,
    pub patient_offset_mm: DVec3,
    pub ground_truth: Option<PathBuf>,
    pub acquisition: Acquisition,
    pub raw: Option<RawFiles>,
}

impl Meta {
    pub(super) fn read(folder: &Path) -> Result<Self, FormatError> {
        let path = folder.join(META_FILE);
        let text = super::super::read_text(&path, MAX_META_BYTES)?;
        Self::parse(folder, &text)
    }

    /// Parses the description's text; touches no other file.
    pub(super) fn parse(folder: &Path, text: &str) -> Result<Self, FormatError> {
        let path = folder.join(META_FILE);
        let root: Value = serde_json::from_str(text).map_err(|error| {
            FormatError::damaged(
                &path,
                format!("not valid JSON: {error}"),
                "NaN and trailing commas are not JSON either",
            )
        })?;
        let root = Node { path: &path, name: String::new(), value: &root };
        let own = root.find("diffnr")?;
        let scale = read_scale(own.as_ref())?;
        let scanner = root.get("scanner")?;
        let orbit = read_orbit(&scanner, scale.unit_mm)?;
        let grid = read_grid(&scanner, scale.unit_mm)?;

        let views = |list: &str, poses: &str, required: bool| -> Result<ViewList, FormatError> {
            let (files, angles) = match root.find(list)? {
                Some(entries) => read_list(folder, &entries)?,
                None if required => return Err(root.missing(list)),
                None => (Vec::new(), Vec::new()),
            };
            let geometry = match own.as_ref().map(|own| own.find(poses)).transpose()?.flatten() {
                Some(poses) => ScanGeometry { detector: orbit.detector, views: read_poses(&poses, files.len(), list)? },
                None => orbit.at_angles(&angles),
            };
            if required || !files.is_empty() {
                geometry.check().map_err(|reason| FormatError::Geometry { path: path.clone(), reason })?;
            }
            Ok(ViewList { files, geometry })
        };
        let train = views("proj_train", "poses_train", true)?;
        let test = views("proj_test", "poses_test", false)?;

        let ground_truth = match root.find("vol")? {
            Some(name) => Some(inside(folder, &name)?),
            None => None,
        };
        let mut meta = Self {
            train,
            test,
            grid,
            scale,
            patient_offset_mm: DVec3::ZERO,
            ground_truth,
            acquisition: Acquisition::default(),
            raw: None,
            path: path.clone(),
        };
        if let Some(own) = own {
            meta.read_own(folder, &own)?;
        }
        Ok(meta)
    }

    fn read_own(&mut self, folder: &Path, own: &Node<'_>) -> Result<(), FormatError> {
        if let Some(offset) = own.find("patient_offset_mm")? {
            self.patient_offset_mm = DVec3::from_array(offset.numbers::<3>()?);
        }
        let at_least_zero = |key: &str| -> Result<Option<f64>, FormatError> {
            let Some(node) = own.find(key)? else { return Ok(None) };
            let number = node.number()?;
            if number < 0.0 { Err(node.bad("must be at least 0")) } else { Ok(Some(number)) }
        };
        self.acquisition.photons = at_least_zero("photons")?;
        self.acquisition.electronic_noise_sigma = at_least_zero("electronic_noise_sigma")?;
        if let Some(seed) = own.find("seed")? {
            self.acquisition.seed =
                Some(seed.value.as_u64().ok_or_else(|| seed.bad("must be a whole number of at least 0"))?);
        }
        let Some(raw) = own.find("raw")? else { return Ok(()) };
        let list = raw.get("proj_train")?;
        let files = list.items()?.iter().map(|item| inside(folder, item)).collect::<Result<Vec<_>, _>>()?;
        if files.len() != self.train.files.len() {
            return Err(list.wrong(
                format!("{} files", files.len()),
                format!("must have one file for each of the {} training views", self.train.files.len()),
            ));
        }
        self.raw = Some(RawFiles {
            files,
            dark: inside(folder, &raw.get("dark")?)?,
            flat: inside(folder, &raw.get("flat")?)?,
            gain: raw.get("gain")?.positive()?,
        });
        Ok(())
    }
}

fn read_scale(own: Option<&Node<'_>>) -> Result<SceneScale, FormatError> {
    let mut scale = SceneScale::unstated();
    let Some(own) = own else { return Ok(scale) };
    for key in own.object()?.keys() {
        if !KEYS.contains(&key.as_str()) {
            let nearest = KEYS
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)))
                .unwrap_or(&"unit_mm");
            return Err(FormatError::field(
                own.path,
                format!("diffnr.{}", key.chars().take(60).collect::<String>()),
                "(unknown key)",
                format!("the nearest known key is \"{nearest}\""),
            ));
        }
    }
    if let Some(version) = own.find("version")?
        && version.value.as_u64() != Some(1)
    {
        return Err(version.bad("only version 1 is known; use a newer diffnr"));
    }
    let positive = |key: &str| own.find(key)?.map(|node| node.positive()).transpose();
    let (unit, mu) = (positive("unit_mm")?, positive("mu_per_value_per_mm")?);
    scale.is_absolute = unit.is_some() && mu.is_some();
    scale.unit_mm = unit.unwrap_or(scale.unit_mm);
    scale.mu_per_value_per_mm = mu.unwrap_or(scale.mu_per_value_per_mm);
    scale.mu_water_per_mm = positive("mu_water_per_mm")?.unwrap_or(scale.mu_water_per_mm);
    Ok(scale)
}

fn read_orbit(scanner: &Node<'_>, unit_mm: f64) -> Result<CircularOrbit, FormatError> {
    let mode = scanner.get("mode")?;
    match mode.value.as_str() {
        Some("cone") => {}
        Some("parallel") => {
            return Err(
                mode.bad("only \"cone\" is reconstructed: parallel beams have no source position to place per view")
            );
        }
        _ => return Err(mode.bad("must be \"cone\"")),
    }
    let (dso, dsd) = (scanner.get("DSO")?.positive()?, scanner.get("DSD")?.positive()?);
    if dsd <= dso {
        return Err(scanner.get("DSD")?.bad(format!(
            "must be larger than DSO = {dso}: the detector stands beyond the isocenter (magnification DSD/DSO would be {:.3})",
            dsd / dso
        )));
    }
    let [rows, columns] = scanner.get("nDetector")?.counts::<2>(65_535)?;
    let [height, width] = scanner.get("sDetector")?.sizes::<2>()?;
    let [offset_u, offset_v] = scanner.find("offDetector")?.map_or(Ok([0.0; 2]), |node| node.numbers::<2>())?;
    Ok(CircularOrbit {
        source_to_isocenter_mm: dso * unit_mm,
        source_to_detector_mm: dsd * unit_mm,
        detector: Detector { columns, rows },
        pitch_u_mm: width / columns as f64 * unit_mm,
        pitch_v_mm: height / rows as f64 * unit_mm,
        offset_u_mm: offset_u * unit_mm,
        offset_v_mm: offset_v * unit_mm,
        roll_rad: 0.0,
        pitch_rad: 0.0,
        yaw_rad: 0.0,
    })
}

fn read_grid(scanner: &Node<'_>, unit_mm: f64) -> Result<VolumeGrid, FormatError> {
    let counts = scanner.get("nVoxel")?;
    let voxels = counts.counts::<3>(8192)?;
    if voxels.iter().product::<usize>() > MAX_VOXELS {
        return Err(counts.bad(format!("more than {MAX_VOXELS} voxels in all; ask for a coarser grid")));
    }
    let size = DVec3::from_array(scanner.get("sVoxel")?.sizes::<3>()?) * unit_mm;
    let centre = scanner.find("offOrigin")?.map_or(Ok([0.0; 3]), |node| node.numbers::<3>())?;
    let grid = VolumeGrid::over_box(voxels, size, DVec3::from_array(centre) * unit_mm);
    grid.check().map_err(|reason| FormatError::Geometry { path: scanner.path.to_path_buf(), reason })?;
    Ok(grid)
}

fn read_list(folder: &Path, list: &Node<'_>) -> Result<(Vec<PathBuf>, Vec<f64>), FormatError> {
    let mut files = Vec::new();
    let mut angles = Vec::new();
    for entry in list.items()? {
        files.push(inside(folder, &entry.get("file_path")?)?);
        let angle = entry.get("angle")?;
        let radians = angle.number()?;
        // 16 turns are beyond any gantry; a list in degrees exceeds it at once.
        if radians.abs() > 16.0 * TAU {
            return Err(angle.bad("angles are in radians; this looks like degrees"));
        }
        angles.push(radians);
    }
    Ok((files, angles))
}

fn read_poses(list: &Node<'_>, files: usize, of: &str) -> Result<Vec<ViewPose>, FormatError> {
    let items = list.items()?;
    if items.len() != files {
        return Err(list
            .wrong(format!("{} poses", items.len()), format!("must have one for each of the {files} views of {of}")));
    }
    let vector = |item: &Node<'_>, key: &str| Ok(DVec3::from_array(item.get(key)?.numbers::<3>()?));
    items
        .iter()
        .map(|item| {
            Ok(ViewPose {
                source_mm: vector(item, "source_mm")?,
                detector_origin_mm: vector(item, "detector_origin_mm")?,
                column_step_mm: vector(item, "column_step_mm")?,
                row_step_mm: vector(item, "row_step_mm")?,
            })
        })
        .collect()
}

/// The file a description names, refused where it lies outside the scene's folder. (A link inside the folder may lead out: the
/// owner put it there.)
fn inside(folder: &Path, name: &Node<'_>) -> Result<PathBuf, FormatError> {
    let text = name.value.as_str().ok_or_else(|| name.bad("must be a path as a string"))?;
    let relative = Path::new(text);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if text.is_empty() || text.contains('\0') || !plain {
        return Err(name.bad("must be a path relative to the scene's folder, without \"..\""));
    }
    Ok(folder.join(relative))
}

/// A place in the description, with its name for messages.
struct Node<'a> {
    path: &'a Path,
    name: String,
    value: &'a Value,
}

impl<'a> Node<'a> {
    fn wrong(&self, value: impl ToString, requirement: impl Into<String>) -> FormatError {
        FormatError::field(self.path, self.name.clone(), value, requirement)
    }

    fn bad(&self, requirement: impl Into<String>) -> FormatError {
        let shown = match self.value {
            Value::Object(_) => "{...}".to_string(),
            Value::Array(items) if items.len() > 8 => format!("a list of {}", items.len()),
            other => other.to_string(),
        };
        self.wrong(shown, requirement)
    }

    fn named(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_string() } else { format!("{}.{key}", self.name) }
    }

    fn missing(&self, key: &str) -> FormatError {
        FormatError::field(self.path, self.named(key), "(missing)", "this key is required")
    }

    fn object(&self) -> Result<&'a serde_json::Map<String, Value>, FormatError> {
        self.value.as_object().ok_or_else(|| {
            if self.name.is_empty() {
                FormatError::damaged(self.path, "not a JSON object", "the description is {\"scanner\": {...}, ...}")
            } else {
                self.bad("must be an object {...}")
            }
        })
    }

    /// The value of a key; null counts as missing.
    fn find(&self, key: &str) -> Result<Option<Node<'a>>, FormatError> {
        let value = self.object()?.get(key).filter(|value| !value.is_null());
        Ok(value.map(|value| Node { path: self.path, name: self.named(key), value }))
    }

    fn get(&self, key: &str) -> Result<Node<'a>, FormatError> {
        self.find(key)?.ok_or_else(|| self.missing(key))
    }

    fn items(&self) -> Result<Vec<Node<'a>>, FormatError> {
        let items = self.value.as_array().ok_or_else(|| self.bad("must be a list [...]"))?;
        let name = |index| format!("{}[{index}]", self.name);
        Ok(items.iter().enumerate().map(|(index, value)| Node { path: self.path, name: name(index), value }).collect())
    }

    fn exactly<const N: usize>(&self) -> Result<[Node<'a>; N], FormatError> {
        if self.value.as_array().is_none_or(|items| items.len() != N) {
            return Err(self.bad(format!("must be a list of {N} numbers")));
        }
        self.items()?.try_into().map_err(|_| self.bad(format!("must be a list of {N} numbers")))
    }

    fn number(&self) -> Result<f64, FormatError> {
        self.value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.bad("must be a finite number"))
    }

    fn positive(&self) -> Result<f64, FormatError> {
        let number = self.number()?;
        // The bounds keep products of two such numbers far from overflow and underflow.
        if (1e-30..=1e30).contains(&number) { Ok(number) } else { Err(self.bad("must be > 0 (and below 1e30)")) }
    }

    fn numbers<const N: usize>(&self) -> Result<[f64; N], FormatError> {
        let mut out = [0.0; N];
        for (slot, node) in out.iter_mut().zip(self.exactly::<N>()?) {
            *slot = node.number()?;
        }
        Ok(out)
    }

    fn sizes<const N: usize>(&self) -> Result<[f64; N], FormatError> {
        let mut out = [0.0; N];
        for (slot, node) in out.iter_mut().zip(self.exactly::<N>()?) {
            *slot = node.positive()?;
        }
        Ok(out)
    }

    fn counts<const N: usize>(&self, most: usize) -> Result<[usize; N], FormatError> {
        let mut out = [0; N];
        for (slot, node) in out.iter_mut().zip(self.exactly::<N>()?) {
            let number = node.number()?;
            if number.fract() != 0.0 || number < 1.0 || number > most as f64 {
                return Err(node.bad(format!("must be a whole number between 1 and {most}")));
            }
            *slot = number as usize;
        }
        Ok(out)
    }
}
