//! The whole of `diffnr simulate` without files: a recipe in, a scene out.

use std::path::PathBuf;

use glam::DVec3;

use super::acquire;
use super::classic_phantoms::SheppLoganContrast;
use super::ct_object::CtObject;
use super::ellipsoids::EllipsoidPhantom;
use super::error::SimulateError;
use super::nodule_set::NoduleSet;
use super::object::{Extent, Object};
use super::orbit_design::{self, AngleLaw, OrbitDesign, OrbitRequest, volume_grid};
use super::photon_noise::PhotonNoise;
use super::thorax::{Nodule, thorax, thorax_with};
use crate::compute::Compute;
use crate::compute::cpu::CpuCompute;
use crate::formats::scene::{Acquisition, Scene, TestViews};
use crate::formats::{Scan, SceneScale, nifti};
use crate::geometry::coverage::Coverage;
use crate::geometry::{GeometryError, ScanGeometry, VolumeGrid};

/// What stands in the beam.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectChoice {
    /// A CT volume in HU (NIfTI).
    Ct(PathBuf),
    /// The 3D Shepp-Logan head of radius 100 mm, densities relative to water.
    SheppLogan(SheppLoganContrast),
    /// The chest of a seed.
    Thorax(u64),
    /// The chest of a seed with nodules of one's own choice.
    ThoraxWithNodules(u64, NoduleSet),
    /// A sphere of water, radius 100 mm.
    WaterSphere,
    /// Five unlike ellipsoids within 100 mm, of water and less.
    Asymmetric,
}

/// All settings of a simulated scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What stands in the beam.
    pub object: ObjectChoice,
    /// Orbit and detector.
    pub orbit: OrbitRequest,
    /// Voxels of the scan's own grid.
    pub voxels: [usize; 3],
    /// Whole size of that grid; chosen from the object if not given.
    pub size_mm: Option<[f64; 3]>,
    /// Attenuation of water.
    pub mu_water_per_mm: f64,
    /// Rays across and down a pixel.
    pub subpixels: usize,
    /// How much finer than the scan's grid a CT volume is sampled for projection, at least.
    pub oversample: f64,
    /// Photons and noise of the detector.
    pub noise: PhotonNoise,
    /// Leave the noise out.
    pub noise_free: bool,
    /// Also make raw counts.
    pub raw: bool,
    /// Noise-free views held back.
    pub test_views: usize,
    /// Write a scan even where no analytic reconstruction of it is possible.
    pub unchecked_geometry: bool,
    /// Threads (0: all).
    pub threads: usize,
}

/// A scan and what is known of it.
pub struct Simulated {
    /// The scan with its ground truth.
    pub scene: Scene,
    /// Known nodules of the thorax phantom.
    pub nodules: Vec<Nodule>,
    /// Space that the object takes up.
    pub extent: Extent,
    /// Grid from which a CT volume was projected.
    pub fine_grid: Option<VolumeGrid>,
    /// What was chosen and what to mind, for the user.
    pub notes: Vec<String>,
}

/// What the simulator is doing, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Views still to be projected in all.
    Views(usize),
    /// So many more views are done.
    Done(usize),
    /// A step without views begins.
    Step(&'static str),
}

/// Carries out a recipe.
///
/// # Errors
/// [`SimulateError`] naming the option or file.
pub fn simulate(recipe: &Recipe, mut progress: impl FnMut(Progress)) -> Result<Simulated, SimulateError> {
    check(recipe)?;
    progress(Progress::Step("reading the object"));
    let mu_water = recipe.mu_water_per_mm;
    let (mut nodules, mut homeless) = (Vec::new(), 0);
    let mut patient_offset_mm = DVec3::ZERO;
    let mut ct = None;
    let mut analytic = None;
    match &recipe.object {
        ObjectChoice::Ct(path) => {
            let volume = CtObject::new(&path.display().to_string(), nifti::read_ct(path)?, mu_water)?;
            patient_offset_mm = volume.patient_offset_mm;
            ct = Some(volume);
        }
        ObjectChoice::SheppLogan(contrast) => {
            analytic = Some(Object::Additive(EllipsoidPhantom::shepp_logan_with(100.0, *contrast).scaled(mu_water)));
        }
        ObjectChoice::Thorax(seed) => {
            let chest = thorax(*seed, mu_water);
            nodules = chest.nodules;
            analytic = Some(Object::Layered(chest.phantom));
        }
        ObjectChoice::ThoraxWithNodules(seed, set) => {
            let wanted = set.radii_and_hu();
            let chest = thorax_with(*seed, mu_water, &wanted);
            homeless = wanted.len() - chest.nodules.len();
            nodules = chest.nodules;
            analytic = Some(Object::Layered(chest.phantom));
        }
        ObjectChoice::WaterSphere => {
            analytic = Some(Object::Additive(EllipsoidPhantom::sphere(DVec3::ZERO, 100.0, mu_water)));
        }
        ObjectChoice::Asymmetric => {
            analytic = Some(Object::Additive(EllipsoidPhantom::asymmetric(100.0, mu_water)));
        }
    }
    let extent = match (&ct, &analytic) {
        (Some(ct), _) => ct.extent(),
        (None, Some(Object::Additive(phantom))) => Extent::of(&phantom.ellipsoids),
        (None, Some(Object::Layered(phantom))) => Extent::of(&phantom.layers),
        _ => Extent::EMPTY,
    };
    let (grid, mut notes) = volume_grid(recipe.voxels, recipe.size_mm, &extent)?;
    if homeless > 0 {
        notes.push(format!("{homeless} nodules found no room in the lungs and were left out"));
    }
    let design = OrbitDesign::new(&recipe.orbit, &extent)?;
    notes.extend(design.notes.iter().cloned());
    let geometry = design.geometry();
    geometry.check()?;
    grid.check()?;
    check_coverage(recipe, &design, &geometry, &grid, &mut notes)?;

    let fine_grid = ct.as_ref().map(|ct| ct.fine_grid(&grid, recipe.oversample));
    let needed_mib = needed_mib(recipe, &grid, ct.as_ref().map_or(0, CtObject::voxels), fine_grid.as_ref());
    check_memory(needed_mib)?;
    notes.push(format!("memory at the peak about {needed_mib} MiB"));
    let object = match (ct, fine_grid, analytic) {
        (Some(ct), Some(fine_grid), _) => {
            progress(Progress::Step("sampling the volume"));
            let ratio = grid.voxel_mm / fine_grid.voxel_mm;
            notes.push(format!(
                "projected from {} x {} x {} voxels of {:.3} x {:.3} x {:.3} mm, {:.2} x {:.2} x {:.2} times finer than the scan's grid \
                 and off it by a fraction of a voxel",
                fine_grid.voxels[0], fine_grid.voxels[1], fine_grid.voxels[2],
                fine_grid.voxel_mm.x, fine_grid.voxel_mm.y, fine_grid.voxel_mm.z,
                ratio.x, ratio.y, ratio.z,
            ));
            let (fine, _) = ct.resample(&fine_grid).into_raw_vec_and_offset();
            let compute = prepared(recipe, &fine_grid)?;
            Object::Sampled { ct: Box::new(ct), grid: fine_grid, fine, compute }
        }
        (_, _, Some(object)) => object,
        _ => return Err(SimulateError::setting("object", "none", "give a CT volume or --phantom")),
    };

    progress(Progress::Views(recipe.orbit.views + recipe.test_views));
    let exact = acquire::project(&object, &geometry, recipe.subpixels, |n| progress(Progress::Done(n)))?;
    let test = if recipe.test_views > 0 {
        let geometry = design.test_geometry(recipe.test_views);
        let projections = acquire::project(&object, &geometry, recipe.subpixels, |n| progress(Progress::Done(n)))?;
        Some(TestViews { geometry, projections })
    } else {
        None
    };
    progress(Progress::Step("counting photons"));
    let raw = recipe.raw.then(|| acquire::raw_counts(&exact, &recipe.noise, recipe.noise_free));
    let mut projections = exact;
    if !recipe.noise_free {
        let clamped = acquire::add_noise(&mut projections, &recipe.noise);
        if clamped > 0 {
            notes.push(format!(
                "{clamped} of {} readings ({:.2} %) fell below one photon and were taken as one (line integral {:.2})",
                projections.len(),
                100.0 * clamped as f64 / projections.len() as f64,
                recipe.noise.photons.ln()
            ));
        }
    }
    progress(Progress::Step("averaging the ground truth"));
    let ground_truth_per_mm = Some(object.voxelise(&grid));
    let noisy = (!recipe.noise_free || recipe.raw).then_some(recipe.noise);
    let scene = Scene {
        scan: Scan { geometry, grid, projections, scale: SceneScale::hu_window(mu_water), patient_offset_mm },
        test,
        ground_truth_per_mm,
        acquisition: Acquisition {
            photons: noisy.map(|n| n.photons),
            electronic_noise_sigma: noisy.map(|n| if recipe.noise_free { 0.0 } else { n.electronic_sigma }),
            seed: noisy.map(|n| n.seed),
        },
        raw,
    };
    Ok(Simulated { scene, nodules, extent, fine_grid, notes })
}

fn prepared(recipe: &Recipe, grid: &VolumeGrid) -> Result<Box<CpuCompute>, SimulateError> {
    let n = recipe.subpixels;
    let detector = recipe.orbit.detector;
    let mut compute = CpuCompute::new(recipe.threads)?;
    compute.prepare(&crate::compute::Workload {
        columns: detector.columns * n,
        rows: detector.rows * n,
        views_per_call: acquire::views_per_chunk(detector, n),
        voxels: grid.voxels,
    })?;
    Ok(Box::new(compute))
}

fn check(recipe: &Recipe) -> Result<(), SimulateError> {
    let noise = &recipe.noise;
    if !(1.0..=1e12).contains(&noise.photons) {
        return Err(SimulateError::setting("--photons", noise.photons, "must be between 1 and 1e12 per pixel"));
    }
    if !(0.0..=1e6).contains(&noise.electronic_sigma) {
        return Err(SimulateError::setting(
            "--electronic-noise",
            noise.electronic_sigma,
            "must be between 0 and 1e6 photons",
        ));
    }
    if !(1e-4..=1.0).contains(&recipe.mu_water_per_mm) {
        return Err(SimulateError::setting(
            "--mu-water",
            recipe.mu_water_per_mm,
            "must be between 0.0001 and 1 per mm (0.0193 at about 70 keV): is it given per cm?",
        ));
    }
    if !(1..=8).contains(&recipe.subpixels) {
        return Err(SimulateError::setting("--subpixels", recipe.subpixels, "must be between 1 and 8"));
    }
    if !(1.0..=8.0).contains(&recipe.oversample) {
        return Err(SimulateError::setting("--oversample", recipe.oversample, "must be between 1 and 8"));
    }
    if recipe.test_views > 20_000 {
        return Err(SimulateError::setting("--test-views", recipe.test_views, "must be at most 20000"));
    }
    Ok(())
}

/// Refuses scans that cannot be reconstructed. Non-uniform angles are judged as if they were uniform: gaps are what such scans
/// are made for, and an analytic method that refuses them is only mentioned.
fn check_coverage(
    recipe: &Recipe,
    design: &OrbitDesign,
    geometry: &ScanGeometry,
    grid: &VolumeGrid,
    notes: &mut Vec<String>,
) -> Result<(), SimulateError> {
    let coverage = Coverage::analyse(geometry, grid);
    let verdict = match recipe.orbit.angles {
        AngleLaw::Uniform => coverage,
        AngleLaw::Random(_) | AngleLaw::Jittered(_) => {
            if let Err(error) = &coverage {
                notes.push(format!("FDK will refuse these angles ({error})"));
            }
            let views = recipe.orbit.views;
            let angles = orbit_design::angles(AngleLaw::Uniform, views, recipe.orbit.start_rad, design.arc_rad);
            coverage.or_else(|_| Coverage::analyse(&design.orbit.at_angles(&angles), grid))
        }
    };
    match verdict {
        Ok(coverage) => {
            notes.push(coverage.summary());
            notes.extend(coverage.warnings);
            Ok(())
        }
        Err(error) if recipe.unchecked_geometry => {
            notes.push(format!("written unchecked: {error}"));
            Ok(())
        }
        Err(GeometryError::Impossible { reason, advice }) => {
            let advice = format!("{advice} (--unchecked-geometry writes the scan all the same)");
            Err(GeometryError::Impossible { reason, advice }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// MiB at the peak: projections (train, test, raw), sub-pixel chunk, ground truth, the CT's `ct_voxels` and its fine grid.
#[must_use]
pub fn needed_mib(recipe: &Recipe, grid: &VolumeGrid, ct_voxels: usize, fine_grid: Option<&VolumeGrid>) -> usize {
    let pixels = recipe.orbit.detector.pixels();
    let views = recipe.orbit.views + recipe.test_views;
    let stack = 4 * pixels * views + if recipe.raw { 2 * pixels * recipe.orbit.views } else { 0 };
    let per_chunk = acquire::views_per_chunk(recipe.orbit.detector, recipe.subpixels).min(views);
    let chunk = 4 * pixels * recipe.subpixels.pow(2) * per_chunk;
    // Writing takes a second copy of the ground truth.
    (stack + chunk + 8 * grid.len() + 4 * (ct_voxels + fine_grid.map_or(0, VolumeGrid::len))) >> 20
}

fn check_memory(needed_mib: usize) -> Result<(), SimulateError> {
    match available_mib() {
        Some(available_mib) if needed_mib > available_mib => Err(SimulateError::Memory { needed_mib, available_mib }),
        _ => Ok(()),
    }
}

/// Memory that Linux says can be had without swapping; `None` where it says nothing.
pub(crate) fn available_mib() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib >> 10)
}
