//! What is compared: two volumes on one grid and the region that counts.

use std::path::{Path, PathBuf};

use glam::{DAffine3, DVec3};
use ndarray::{Array3, ArrayView3, Zip};

use super::{Arguments, Hung, parse_window};
use crate::cli::Failure;
use crate::error::exit;
use crate::formats::nifti::{self, CtVolume, grid_to_world_mm};
use crate::formats::picture::Window;
use crate::formats::{FormatError, npy, scene};
use crate::geometry::coverage::Coverage;

/// Two volumes on one grid.
pub(super) struct Pair {
    /// File of the volume to judge.
    pub path: PathBuf,
    pub out: Array3<f32>,
    pub reference: Array3<f32>,
    /// Voxels that count; all where there is none.
    pub region: Option<Array3<bool>>,
    /// Voxels whose values both volumes know: the region without the user's mask.
    pub seen: Option<Array3<bool>>,
    pub window: Window,
    /// Voxel edges, where the files tell them.
    pub spacing_mm: Option<[f64; 3]>,
    pub voxel_to_world_mm: Option<DAffine3>,
    pub resampled: bool,
    /// The field of view in words.
    pub covered: Option<String>,
}

impl Pair {
    /// Why this volume cannot stand beside another, in words; `None` where it can.
    pub(super) fn differs_from(&self, other: &Self) -> Option<String> {
        if self.window.unit != other.window.unit {
            return Some("one is in HU, the other in a scene's own values: compare like with like".into());
        }
        let place = |pair: &Self| (pair.out.dim(), pair.voxel_to_world_mm);
        places_differ(place(self), place(other))
            .map(|why| format!("the grids differ: {why}; volumes are compared side by side on one grid"))
    }

    /// A volume on the pair's grid as a picture hangs it.
    pub(super) fn hung<'a>(&self, volume: ArrayView3<'a, f32>) -> Hung<'a> {
        match &self.voxel_to_world_mm {
            Some(affine) => nifti::canonical(volume, affine),
            None => (volume, self.spacing_mm.unwrap_or([1.0; 3])),
        }
    }
}

/// A volume from disk; an `.npy` has no place in the world.
struct Volume {
    values: Array3<f32>,
    voxel_to_world_mm: Option<DAffine3>,
    is_hu: bool,
}

fn input(error: FormatError) -> Failure {
    Failure::new(exit::INPUT, &error)
}

pub(super) fn refuse(message: String) -> Failure {
    Failure { message, code: exit::INPUT }
}

fn read(path: &Path) -> Result<Volume, Failure> {
    let name = path.to_string_lossy();
    if name.ends_with(".npy") {
        let values = npy::read_volume(path).map_err(input)?;
        if let Some((at, value)) = values.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(refuse(format!("{name}: voxel {at:?} = {value}: must be finite")));
        }
        return Ok(Volume { values, voxel_to_world_mm: None, is_hu: false });
    }
    if name.ends_with(".nii") || name.ends_with(".nii.gz") {
        let CtVolume { hu, voxel_to_world_mm } = nifti::read_ct(path).map_err(input)?;
        let is_hu = !nifti::holds_scene_values(path).map_err(input)?;
        return Ok(Volume { values: hu, voxel_to_world_mm: Some(voxel_to_world_mm), is_hu });
    }
    Err(refuse(format!("{name}: not a volume by its name; give a .nii, .nii.gz or .npy")))
}

/// The ground truth of a scene folder: in HU beside a volume in HU, else in the scene's own values.
fn read_ground_truth(folder: &Path, as_hu: bool) -> Result<Volume, Failure> {
    let scan = scene::read_description(folder).map_err(input)?;
    let Some(mu_per_mm) = scene::read_ground_truth_per_mm(folder).map_err(input)? else {
        return Err(refuse(format!(
            "{}: this scene holds no ground truth (`vol` in meta_data.json)",
            folder.display()
        )));
    };
    let is_hu = as_hu && scan.scale.is_absolute;
    let values =
        if is_hu { scan.scale.volume_hu(mu_per_mm.view()) } else { scan.scale.volume_values(mu_per_mm.view()) };
    Ok(Volume { values, voxel_to_world_mm: Some(grid_to_world_mm(&scan.grid, scan.patient_offset_mm)), is_hu })
}

/// Reads one of the volumes and everything else that the arguments name, and brings it onto that volume's grid.
pub(super) fn load(arguments: &Arguments, path: &Path) -> Result<Pair, Failure> {
    let mut out = read(path)?;
    let mut reference = if arguments.reference.is_dir() {
        read_ground_truth(&arguments.reference, out.is_hu)?
    } else {
        read(&arguments.reference)?
    };
    let names = || format!("{} and {}", path.display(), arguments.reference.display());
    if !arguments.dice && out.is_hu != reference.is_hu {
        return Err(refuse(format!(
            "{}: one is in HU, the other in a scene's own values (.npy, or a scan without an absolute scale); compare like with like",
            names()
        )));
    }
    let scan = arguments.fov.as_deref().map(scene::read_description).transpose().map_err(input)?;
    if let Some(scan) = &scan {
        // An .npy of the scan's own shape stands on the scan's own grid.
        let place = grid_to_world_mm(&scan.grid, scan.patient_offset_mm);
        for volume in [&mut out, &mut reference] {
            if volume.voxel_to_world_mm.is_none() && volume.values.shape() == scan.grid.voxels {
                volume.voxel_to_world_mm = Some(place);
            }
        }
    }

    let mut region: Option<Array3<bool>> = None;
    let mut resampled = false;
    let difference = grids_differ(&out, &reference);
    let values = match difference {
        None => reference.values,
        Some(why) if !arguments.resample => {
            return Err(refuse(format!(
                "{}: the grids differ: {why}; nothing is resampled in silence: give --resample to average {} onto the grid of {}",
                names(),
                arguments.reference.display(),
                path.display()
            )));
        }
        Some(why) => {
            let (Some(place), Some(voxel_to_world_mm)) = (out.voxel_to_world_mm, reference.voxel_to_world_mm) else {
                return Err(refuse(format!("{}: {why}; an .npy has no place in the world to resample by", names())));
            };
            let (nx, ny, nz) = out.values.dim();
            let fine = CtVolume { hu: reference.values, voxel_to_world_mm };
            let (mut values, inside) = fine.averaged_onto(&place, [nx, ny, nz]);
            // Voxels beyond the reference do not count, but SSIM's windows beside them see them: there the volume stands
            // against itself.
            let beyond = Zip::from(&mut values).and(&out.values).and(&inside);
            beyond.for_each(|value, &own, &inside| *value = if inside { *value } else { own });
            region = Some(inside);
            resampled = true;
            values
        }
    };

    let mut covered = None;
    if let Some(scan) = &scan {
        let Some(place) = out.voxel_to_world_mm else {
            return Err(refuse(format!(
                "{}: shape {:?} is not that of the scan's grid {:?}, so its place in the field of view is not known",
                path.display(),
                out.values.shape(),
                scan.grid.voxels
            )));
        };
        let coverage =
            Coverage::analyse(&scan.geometry, &scan.grid).map_err(|error| Failure::new(exit::GEOMETRY, &error))?;
        let fov = coverage.field_of_view;
        let inside = Array3::from_shape_fn(out.values.raw_dim(), |(x, y, z)| {
            let world = place.transform_point3(DVec3::new(x as f64, y as f64, z as f64));
            fov.contains(world - scan.patient_offset_mm)
        });
        narrow(&mut region, inside);
        covered = Some(format!("field of view of radius {:.1} mm", fov.radius_mm));
    }
    let seen = if arguments.lungs || arguments.nodules.is_some() { region.clone() } else { None };
    if let Some(mask_path) = &arguments.mask {
        let mask = read(mask_path)?;
        let mask_shape = mask.values.shape().to_vec();
        if let Some(why) = grids_differ(&out, &mask) {
            return Err(refuse(format!(
                "{} {mask_shape:?} is not on the grid of {}: {why}",
                mask_path.display(),
                path.display()
            )));
        }
        narrow(&mut region, mask.values.mapv(|value| value != 0.0));
    }
    Ok(Pair {
        window: window(arguments, path, out.is_hu)?,
        path: path.to_path_buf(),
        spacing_mm: out.voxel_to_world_mm.map(spacing_mm),
        voxel_to_world_mm: out.voxel_to_world_mm,
        out: out.values,
        reference: values,
        region,
        seen,
        resampled,
        covered,
    })
}

fn window(arguments: &Arguments, path: &Path, is_hu: bool) -> Result<Window, Failure> {
    match (&arguments.window_hu, is_hu) {
        (Some(text), true) => parse_window(text),
        (None, true) => Ok(Window::WIDE),
        (None, false) => Ok(Window { low: 0.0, high: 1.0, unit: "" }),
        (Some(_), false) if arguments.dice => Ok(Window::WIDE),
        (Some(text), false) => Err(Failure {
            message: format!("--window-hu {text}: {} is not in HU; its window is 0:1", path.display()),
            code: exit::USAGE,
        }),
    }
}

fn narrow(region: &mut Option<Array3<bool>>, by: Array3<bool>) {
    match region {
        None => *region = Some(by),
        Some(region) => Zip::from(region).and(&by).for_each(|inside, &also| *inside &= also),
    }
}

fn spacing_mm(affine: DAffine3) -> [f64; 3] {
    [affine.matrix3.x_axis, affine.matrix3.y_axis, affine.matrix3.z_axis].map(DVec3::length)
}

/// How two grids differ, in words; `None` where they are the same: equal shapes, and every corner within a hundredth of a voxel
/// (headers hold float32).
fn grids_differ(a: &Volume, b: &Volume) -> Option<String> {
    places_differ((a.values.dim(), a.voxel_to_world_mm), (b.values.dim(), b.voxel_to_world_mm))
}

/// A grid: its shape, and its place where that is known.
type Place = ((usize, usize, usize), Option<DAffine3>);

fn places_differ((a, a_to_world_mm): Place, (b, b_to_world_mm): Place) -> Option<String> {
    if a != b {
        let shown = |(x, y, z)| [x, y, z];
        return Some(format!("shapes {:?} and {:?}", shown(a), shown(b)));
    }
    let (Some(first), Some(second)) = (a_to_world_mm, b_to_world_mm) else {
        return None;
    };
    let (ni, nj, nk) = a;
    let last = DVec3::new(ni as f64, nj as f64, nk as f64) - 1.0;
    let smallest = spacing_mm(first).into_iter().fold(f64::INFINITY, f64::min);
    let corner = |n: usize| last * DVec3::new((n & 1) as f64, (n >> 1 & 1) as f64, (n >> 2 & 1) as f64);
    (0..8).map(corner).find_map(|corner| {
        let (p, q) = (first.transform_point3(corner), second.transform_point3(corner));
        let away = (p - q).length();
        (away > 0.01 * smallest).then(|| format!("voxel {corner} lies at {p:.2} mm and at {q:.2} mm"))
    })
}
