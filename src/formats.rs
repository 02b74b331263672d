//! Scans and volumes on disk. A leaf: depends on [`crate::geometry`] only.
//!
//! | module | reads | writes |
//! |---|---|---|
//! | [`scene`] | the field's scene folder (`meta_data.json` and `.npy` files) | the same |
//! | [`nifti`] | CT volumes and masks with any affine | volumes and masks |
//! | [`rtk`] | RTK's geometry XML with a projection stack | the same, and volumes |
//! | [`metaimage`] | `.mha`, `.mhd` | `.mha`, `.mhd` (float32) |
//! | [`picture`] | | PNG pictures of volumes |
//! | [`npy`] | float32/float64/uint16/uint8/bool arrays | float32, uint16 |
//!
//! Every reader bounds what it allocates by what the file really holds and by the limits below, and refuses what it does not
//! understand with a [`FormatError`] that names file, field, value and what to change. Writers write beside the target and rename, so
//! that a file with the final name is always whole.

#![forbid(unsafe_code)]

pub mod metaimage;
pub mod nifti;
pub mod npy;
pub mod picture;
pub mod rtk;
pub mod safetensors;
pub mod scene;

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use glam::DVec3;
use ndarray::{Array3, ArrayView3};

use crate::error::{Classed, ErrorClass};
use crate::geometry::{GeometryError, ScanGeometry, VolumeGrid};

/// Most voxels of one volume that a reader accepts (1024^3, 4 GiB as float32): more is taken for a damaged header.
pub const MAX_VOXELS: usize = 1 << 30;

/// Most values of a projection stack that a reader accepts (16 GiB as float32).
pub const MAX_PROJECTION_VALUES: usize = 1 << 32;

/// Attenuation of water at about 70 keV, used where nothing else is stated (METHOD: mu = mu_water (1 + HU/1000)).
pub const DEFAULT_MU_WATER_PER_MM: f64 = 0.0193;

/// Why a file could not be read or written. Messages hold the system's or the geometry's reason; there is no further source.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done ("read", "write", "create the folder").
        action: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// A field has a value that cannot be used.
    #[error("{}: {field} = {value}: {requirement}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field as it is written in the file, e.g. `scanner.nDetector[0]`.
        field: String,
        /// The value found, or "(missing)".
        value: String,
        /// What the field must satisfy, or what to change.
        requirement: String,
    },
    /// The file as a whole is not what its name or header says (truncated, other format).
    #[error("{}: {problem}; {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// What to change or try.
        advice: String,
    },
    /// The numbers are readable, but no geometry follows from them.
    #[error("{}: {reason}", path.display())]
    Geometry {
        /// The file that holds the geometry.
        path: PathBuf,
        /// The reason.
        reason: GeometryError,
    },
}

impl Classed for FormatError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl FormatError {
    pub(crate) fn io(path: &Path, action: &'static str, reason: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), action, reason }
    }

    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        value: impl ToString,
        requirement: impl Into<String>,
    ) -> Self {
        // A hostile file may hold a value of any length.
        let mut value = value.to_string();
        if value.chars().count() > 80 {
            value = value.chars().take(77).collect::<String>() + "...";
        }
        Self::Field { path: path.to_path_buf(), field: field.into(), value, requirement: requirement.into() }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), problem: problem.into(), advice: advice.into() }
    }
}

/// How a scene's lengths and values become absolute ones.
///
/// The scene folder's lengths are in one arbitrary unit and its values are usually normalised to [0, 1]; its projections are
/// line integrals in value times unit. Where a scene says nothing of units, one unit is taken as 1 mm and `is_absolute` is
/// false: HU then cannot be given, and results are written in the scene's own values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SceneScale {
    /// Millimetres in one length unit of the scene.
    pub unit_mm: f64,
    /// Attenuation (1/mm) of the scene's value 1.
    pub mu_per_value_per_mm: f64,
    /// Attenuation of water that HU refer to.
    pub mu_water_per_mm: f64,
    /// Whether the scene stated the scale.
    pub is_absolute: bool,
}

impl SceneScale {
    /// The scale of a scene that says nothing: 1 unit = 1 mm, value 1 = 1 per mm, not absolute.
    #[must_use]
    pub fn unstated() -> Self {
        Self { unit_mm: 1.0, mu_per_value_per_mm: 1.0, mu_water_per_mm: DEFAULT_MU_WATER_PER_MM, is_absolute: false }
    }

    /// The scale of our own simulated scenes: lengths in mm, value 1 = 2 mu_water, so value = (HU + 1000) / 2000.
    #[must_use]
    pub fn hu_window(mu_water_per_mm: f64) -> Self {
        Self { unit_mm: 1.0, mu_per_value_per_mm: 2.0 * mu_water_per_mm, mu_water_per_mm, is_absolute: true }
    }

    /// HU of an attenuation in 1/mm: 1000 (mu / mu_water - 1).
    #[must_use]
    pub fn hu(&self, mu_per_mm: f32) -> f32 {
        (1000.0 * (f64::from(mu_per_mm) / self.mu_water_per_mm - 1.0)) as f32
    }

    /// Attenuation in 1/mm of a value in HU.
    #[must_use]
    pub fn mu_per_mm(&self, hu: f32) -> f32 {
        (self.mu_water_per_mm * (1.0 + f64::from(hu) / 1000.0)) as f32
    }

    /// The scene's own value of an attenuation in 1/mm.
    #[must_use]
    pub fn value(&self, mu_per_mm: f32) -> f32 {
        (f64::from(mu_per_mm) / self.mu_per_value_per_mm) as f32
    }

    /// A volume of attenuations (1/mm) in HU.
    #[must_use]
    pub fn volume_hu(&self, mu_per_mm: ArrayView3<'_, f32>) -> Array3<f32> {
        mu_per_mm.mapv(|mu| self.hu(mu))
    }

    /// A volume of attenuations (1/mm) in the scene's own values, as `vol_gt.npy` has them.
    #[must_use]
    pub fn volume_values(&self, mu_per_mm: ArrayView3<'_, f32>) -> Array3<f32> {
        mu_per_mm.mapv(|mu| self.value(mu))
    }

    /// What a stored projection value is multiplied with to give a dimensionless line integral.
    #[must_use]
    pub fn line_integral_per_stored(&self) -> f64 {
        self.unit_mm * self.mu_per_value_per_mm
    }
}

/// A scan in memory: geometry in mm, line integrals dimensionless (attenuation in 1/mm times mm).
#[derive(Debug, Clone)]
pub struct Scan {
    /// Detector and the poses of the training views.
    pub geometry: ScanGeometry,
    /// The scene's own volume grid, in mm.
    pub grid: VolumeGrid,
    /// Line integrals `[view][row v][column u]`.
    pub projections: Array3<f32>,
    /// How to go back to the scene's lengths and values.
    pub scale: SceneScale,
    /// Added to a position in the gantry frame to give the patient's (NIfTI RAS) world, so that results overlay the CT they came
    /// from. Zero where nothing is known.
    pub patient_offset_mm: DVec3,
}

/// Reads a text file of limited length.
pub(crate) fn read_text(path: &Path, most_bytes: u64) -> Result<String, FormatError> {
    let io_error = |source| FormatError::io(path, "read", source);
    let mut bytes = Vec::new();
    File::open(path).map_err(io_error)?.take(most_bytes + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > most_bytes {
        return Err(FormatError::damaged(path, format!("longer than {most_bytes} bytes"), "no such file is that long"));
    }
    String::from_utf8(bytes).map_err(|_| FormatError::damaged(path, "not UTF-8 text", "save it as UTF-8"))
}

/// Reads a scan of any kind: a scene folder, or a folder with one geometry of RTK (`.xml`) and one stack of line integrals (`.mha` or
/// `.mhd`).
///
/// # Errors
/// [`FormatError`] of the format that the folder holds, or one that says what was looked for.
pub fn read_scan(folder: &Path) -> Result<Scan, FormatError> {
    if folder.join(scene::META_FILE).is_file() {
        return scene::read_scan(folder);
    }
    let entries = fs::read_dir(folder).map_err(|source| FormatError::io(folder, "read", source))?;
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let ending = |endings: &[&str]| -> Vec<&PathBuf> {
        let fits = |path: &&PathBuf| path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e));
        paths.iter().filter(fits).collect()
    };
    match (&ending(&["xml"])[..], &ending(&["mha", "mhd"])[..]) {
        ([geometry], [stack]) => rtk::read(geometry, stack, None),
        (geometries, stacks) => Err(FormatError::damaged(
            folder,
            format!(
                "holds no scan: no {}, and {} .xml with {} .mha or .mhd",
                scene::META_FILE,
                geometries.len(),
                stacks.len()
            ),
            "give a scene folder, or a folder with one geometry of RTK and one stack",
        )),
    }
}

/// Writes a file beside `path` and renames it when whole; a failed attempt leaves nothing behind.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FormatError> {
    let mut name = path
        .file_name()
        .ok_or_else(|| FormatError::damaged(path, "the path names no file", "give a file name"))?
        .to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    let attempt = || -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 18, File::create(&partial)?);
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        fs::rename(&partial, path)
    };
    attempt().map_err(|source| {
        // The first failure is the one to report.
        let _ = fs::remove_file(&partial);
        FormatError::io(path, "write", source)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::geometry::{CircularOrbit, Detector};

    #[test]
    fn scans_are_known_by_what_their_folder_holds() {
        let folder = tempfile::tempdir().unwrap();
        let orbit = CircularOrbit { detector: Detector { columns: 4, rows: 3 }, ..CircularOrbit::default() };
        let geometry = orbit.over_arc(2, 0.0, 6.0);
        let projections = Array3::from_shape_fn((2, 3, 4), |(n, v, u)| (100 * n + 10 * v + u) as f32);
        let scan = Scan {
            grid: rtk::default_grid(&geometry),
            geometry,
            projections,
            scale: SceneScale::unstated(),
            patient_offset_mm: DVec3::ZERO,
        };
        assert!(read_scan(folder.path()).unwrap_err().to_string().contains("holds no scan"));
        rtk::write(&folder.path().join("g.xml"), &folder.path().join("p.mha"), &scan).unwrap();
        assert_eq!(read_scan(folder.path()).unwrap().projections, scan.projections);
        let twice = folder.path().join("q.mha");
        fs::copy(folder.path().join("p.mha"), &twice).unwrap();
        assert!(read_scan(folder.path()).unwrap_err().to_string().contains("1 .xml with 2 .mha"));
        scene::write(folder.path(), &scene::Scene::new(scan.clone())).unwrap();
        assert_eq!(read_scan(folder.path()).unwrap().geometry.views.len(), 2);
        assert!(read_scan(&folder.path().join("gone")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn an_attempt_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume.npy");
        fs::write(&path, b"old").unwrap();
        let failed = write_whole(&path, |writer| {
            writer.write_all(b"new, but")?;
            Err(io::Error::other("no space left"))
        });
        assert!(failed.unwrap_err().to_string().contains("no space left"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
