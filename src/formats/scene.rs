//! The field's scene folder, as R2-Gaussian and its data sets use it.
//!
//! ```text
//! scene/
//!   meta_data.json            the acquisition (below)
//!   proj_train/*.npy          float32 [v][u], one file a view: the views to reconstruct from
//!   proj_test/*.npy           the same: views held back
//!   vol_gt.npy                float32 [x][y][z], usually normalised to [0, 1]
//! ```
//!
//! `meta_data.json` holds `scanner` (mode "cone", DSD, DSO, nDetector [v,u], sDetector [v,u], nVoxel [x,y,z], sVoxel [x,y,z],
//! offOrigin [x,y,z], offDetector [u,v]; s... are whole sizes), `vol` (the name of the ground truth) and the lists `proj_train` and
//! `proj_test` of {file_path, angle in rad}. All lengths are in one arbitrary unit; projections are line integrals in value
//! times unit. Axes and signs are those of [`crate::geometry`]: row 0 is at +z, columns run along (-sin a, cos a, 0), and an
//! offset moves the detector along its own axes.
//!
//! **What the format cannot say** goes into one optional object under the key `"diffnr"`, which other readers pass over:
//!
//! | key | meaning | when missing |
//! |---|---|---|
//! | `version` | 1 | 1 |
//! | `unit_mm` | millimetres in one length unit | 1, and the scene is not absolute |
//! | `mu_per_value_per_mm` | attenuation (1/mm) of value 1 | 1, and the scene is not absolute |
//! | `mu_water_per_mm` | attenuation of water that HU refer to | 0.0193 |
//! | `patient_offset_mm` | [x,y,z], added to gantry positions to give the patient's NIfTI (RAS) world | 0 |
//! | `photons` | photons per pixel without an object (I0) | not known |
//! | `electronic_noise_sigma` | standard deviation of the electronic noise, in photons | not known |
//! | `seed` | seed of the noise | not known |
//! | `poses_train`, `poses_test` | per view {source_mm, detector_origin_mm, column_step_mm, row_step_mm}, each [x,y,z] in mm: used instead of `angle` | the circular orbit of `scanner` |
//! | `raw` | {`proj_train`: list of uint16 .npy [v][u], `dark`, `flat`: .npy [v][u] in counts, `gain`: counts per photon} | no raw counts |
//!
//! Lengths under `"diffnr"` are in mm whatever `unit_mm` says. Unknown keys there are refused: a misspelt scale must not
//! pass in silence.
//!
//! **In memory** ([`Scene`]) everything is absolute: lengths times `unit_mm`, ground truth times `mu_per_value_per_mm` (1/mm), line
//! integrals times both (dimensionless). Writing divides again.

mod meta;
mod orbit;
mod write;

use std::path::{Path, PathBuf};

use glam::DVec3;
use ndarray::{Array2, Array3, Axis};

use super::{FormatError, MAX_PROJECTION_VALUES, MAX_VOXELS, Scan, SceneScale, npy};
use crate::geometry::{Detector, ScanGeometry, VolumeGrid};
use meta::Meta;

pub use write::write;

/// Name of the description within the folder.
pub const META_FILE: &str = "meta_data.json";

/// A whole scene folder in memory.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The views to reconstruct from (`proj_train`).
    pub scan: Scan,
    /// The views held back (`proj_test`).
    pub test: Option<TestViews>,
    /// Ground truth, attenuation in 1/mm, `[x][y][z]` on the scan's grid.
    pub ground_truth_per_mm: Option<Array3<f32>>,
    /// How the scan was made.
    pub acquisition: Acquisition,
    /// Raw counts of the training views.
    pub raw: Option<RawCounts>,
}

impl Scene {
    /// A scene of training views alone.
    #[must_use]
    pub fn new(scan: Scan) -> Self {
        Self { scan, test: None, ground_truth_per_mm: None, acquisition: Acquisition::default(), raw: None }
    }
}

/// Views that no method may reconstruct from.
#[derive(Debug, Clone)]
pub struct TestViews {
    /// Detector (that of the scan) and poses.
    pub geometry: ScanGeometry,
    /// Line integrals `[view][row v][column u]`.
    pub projections: Array3<f32>,
}

/// How a scan was made, as far as its folder says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Acquisition {
    /// Photons per pixel without an object (I0).
    pub photons: Option<f64>,
    /// Standard deviation of the electronic noise, in photons.
    pub electronic_noise_sigma: Option<f64>,
    /// Seed of the noise.
    pub seed: Option<u64>,
}

/// What the detector really counted in the training views: input of `preprocess`.
#[derive(Debug, Clone)]
pub struct RawCounts {
    /// Counts `[view][row v][column u]`.
    pub counts: Array3<u16>,
    /// Mean counts without beam `[row v][column u]`.
    pub dark: Array2<f32>,
    /// Mean counts with beam and without object `[row v][column u]`, dark included.
    pub flat: Array2<f32>,
    /// Counts per photon.
    pub gain: f64,
}

/// Reads a whole scene folder.
///
/// # Errors
/// [`FormatError`] naming file, key, value and what to change. Memory is taken only once every file is known to hold what the
/// description says.
pub fn read(folder: &Path) -> Result<Scene, FormatError> {
    let meta = Meta::read(folder)?;
    let scan = read_scan_of(&meta)?;
    let test = if meta.test.files.is_empty() {
        None
    } else {
        let projections = read_stack(&meta, &meta.test.files, "proj_test")?;
        Some(TestViews { geometry: meta.test.geometry.clone(), projections })
    };
    let ground_truth_per_mm = meta.ground_truth.as_deref().map(|path| read_ground_truth(&meta, path)).transpose()?;
    let raw = meta.raw.as_ref().map(|raw| read_raw(&meta, raw)).transpose()?;
    Ok(Scene { scan, test, ground_truth_per_mm, acquisition: meta.acquisition, raw })
}

/// What a scene's description says, without its views.
#[derive(Debug, Clone)]
pub struct Description {
    /// Detector and the poses of the training views.
    pub geometry: ScanGeometry,
    /// The scene's own volume grid, in mm.
    pub grid: VolumeGrid,
    /// The scene's lengths and values in absolute terms.
    pub scale: SceneScale,
    /// See [`Scan::patient_offset_mm`].
    pub patient_offset_mm: DVec3,
    /// How the scan was made.
    pub acquisition: Acquisition,
}

/// Reads `meta_data.json` alone: no view is opened.
///
/// # Errors
/// See [`read`].
pub fn read_description(folder: &Path) -> Result<Description, FormatError> {
    let meta = Meta::read(folder)?;
    Ok(Description {
        geometry: meta.train.geometry,
        grid: meta.grid,
        scale: meta.scale,
        patient_offset_mm: meta.patient_offset_mm,
        acquisition: meta.acquisition,
    })
}

/// Reads the training views alone: what a reconstruction needs.
///
/// # Errors
/// See [`read`].
pub fn read_scan(folder: &Path) -> Result<Scan, FormatError> {
    read_scan_of(&Meta::read(folder)?)
}

/// Reads the ground truth alone (attenuation in 1/mm, `[x][y][z]`), where the scene has one.
///
/// # Errors
/// See [`read`].
pub fn read_ground_truth_per_mm(folder: &Path) -> Result<Option<Array3<f32>>, FormatError> {
    let meta = Meta::read(folder)?;
    meta.ground_truth.as_deref().map(|path| read_ground_truth(&meta, path)).transpose()
}

fn read_scan_of(meta: &Meta) -> Result<Scan, FormatError> {
    let projections = read_stack(meta, &meta.train.files, "proj_train")?;
    Ok(Scan {
        geometry: meta.train.geometry.clone(),
        grid: meta.grid,
        projections,
        scale: meta.scale,
        patient_offset_mm: meta.patient_offset_mm,
    })
}

fn check_stack(meta: &Meta, files: &[PathBuf], list: &str) -> Result<(), FormatError> {
    let Detector { columns, rows } = meta.train.geometry.detector;
    let whole = files.len().checked_mul(rows).and_then(|n| n.checked_mul(columns));
    if whole.is_none_or(|n| n > MAX_PROJECTION_VALUES) {
        return Err(FormatError::field(
            &meta.path,
            list,
            format!("{} views of {rows} x {columns}", files.len()),
            format!("more than {MAX_PROJECTION_VALUES} values in all"),
        ));
    }
    for path in files {
        let header = npy::read_header(path)?;
        if header.shape != [rows, columns] {
            return Err(FormatError::field(
                path,
                "shape",
                format!("{:?}", header.shape),
                format!("must be [{rows}, {columns}] = scanner.nDetector [v, u] of {META_FILE}"),
            ));
        }
    }
    Ok(())
}

fn read_stack(meta: &Meta, files: &[PathBuf], list: &str) -> Result<Array3<f32>, FormatError> {
    check_stack(meta, files, list)?;
    let Detector { columns, rows } = meta.train.geometry.detector;
    let factor = meta.scale.line_integral_per_stored();
    let mut stack = Array3::zeros((files.len(), rows, columns));
    for (view, (path, mut image)) in files.iter().zip(stack.axis_iter_mut(Axis(0))).enumerate() {
        let values = image.as_slice_mut().unwrap_or_default();
        npy::read_f32_into(path, &[rows, columns], values)?;
        for (pixel, value) in values.iter_mut().enumerate() {
            let scaled = (f64::from(*value) * factor) as f32;
            if !scaled.is_finite() {
                return Err(FormatError::field(
                    path,
                    format!("view {view}, pixel (row {}, column {})", pixel / columns, pixel % columns),
                    *value,
                    "line integrals must be finite; replace dead pixels or take the view out of the list",
                ));
            }
            *value = scaled;
        }
    }
    Ok(stack)
}

fn read_ground_truth(meta: &Meta, path: &Path) -> Result<Array3<f32>, FormatError> {
    let [nx, ny, nz] = meta.grid.voxels;
    let header = npy::read_header(path)?;
    if header.shape != [nx, ny, nz] {
        return Err(FormatError::field(
            path,
            "shape",
            format!("{:?}", header.shape),
            format!("must be [{nx}, {ny}, {nz}] = scanner.nVoxel [x, y, z] of {META_FILE}"),
        ));
    }
    debug_assert!(header.len() <= MAX_VOXELS);
    let mut volume = npy::read_volume(path)?;
    let factor = meta.scale.mu_per_value_per_mm;
    for ((ix, iy, iz), value) in volume.indexed_iter_mut() {
        if !value.is_finite() {
            return Err(FormatError::field(path, format!("voxel [{ix}, {iy}, {iz}]"), *value, "must be finite"));
        }
        *value = (f64::from(*value) * factor) as f32;
    }
    Ok(volume)
}

fn read_raw(meta: &Meta, raw: &meta::RawFiles) -> Result<RawCounts, FormatError> {
    check_stack(meta, &raw.files, "diffnr.raw.proj_train")?;
    let Detector { columns, rows } = meta.train.geometry.detector;
    let mut counts = Array3::zeros((raw.files.len(), rows, columns));
    for (path, mut image) in raw.files.iter().zip(counts.axis_iter_mut(Axis(0))) {
        npy::read_u16_into(path, &[rows, columns], image.as_slice_mut().unwrap_or_default())?;
    }
    let calibration = |path: &PathBuf| -> Result<Array2<f32>, FormatError> {
        let mut image = Array2::zeros((rows, columns));
        npy::read_f32_into(path, &[rows, columns], image.as_slice_mut().unwrap_or_default())?;
        if let Some(((v, u), value)) = image.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(FormatError::field(path, format!("pixel (row {v}, column {u})"), value, "must be finite"));
        }
        Ok(image)
    };
    Ok(RawCounts { counts, dark: calibration(&raw.dark)?, flat: calibration(&raw.flat)?, gain: raw.gain })
}

#[cfg(test)]
mod tests;
