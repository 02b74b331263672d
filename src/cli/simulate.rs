//! `diffnr simulate`.

mod display;
mod parse;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use ndarray::Axis;
use serde_json::json;

use super::Failure;
use crate::error::exit;
use crate::formats::{DEFAULT_MU_WATER_PER_MM, scene};
use crate::geometry::Detector;
use crate::simulate::classic_phantoms::SheppLoganContrast;
use crate::simulate::contact_picture;
use crate::simulate::error::SimulateError;
use crate::simulate::nodule_set::NoduleSet;
use crate::simulate::orbit_design::{AngleLaw, OrbitRequest};
use crate::simulate::photon_noise::PhotonNoise;
use crate::simulate::recipe::{ObjectChoice, Recipe, Simulated, simulate};
use crate::simulate::thorax;
use display::Display;

pub(super) use parse::detector;

const EXAMPLES: &str = "\
Examples:
  diffnr simulate chest.nii.gz -o scan                         360 views of a CT, everything else chosen from it
  diffnr simulate chest.nii.gz -o scan --views 50 --photons 1e4 --electronic-noise 10
  diffnr simulate --phantom thorax --seed 3 -o scan --raw --png scan.png
  diffnr simulate --phantom thorax --nodules 16:3:8 -o scan --views 24    to count what a method keeps (evaluate --nodules)
  diffnr simulate --phantom shepp-logan -o scan --views 180 --detector 128 --voxels 128 --noise-free
  diffnr simulate chest.nii.gz -o scan --views 36 --non-uniform 7
  diffnr simulate chest.nii.gz -o scan --half-fan --detector 256x320
  diffnr simulate chest.nii.gz -o scan --short-scan --direction cw --start 90

Lengths are in mm, angles in degrees. A scan is a folder as the field's data sets have it (meta_data.json, proj_train/,
vol_gt.npy); its projections are line integrals. Axes: z is the rotation axis and, of a CT, the patient's superior direction.
Exit codes: 0 done, 2 options, 4 input, 5 impossible geometry, 6 too little memory, 9 output.";

/// Built-in objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phantom {
    /// A chest with lungs, heart, ribs, spine, vessels and nodules (see --seed)
    Thorax,
    /// 3D Shepp-Logan head, densities of Kak and Slaney relative to water
    SheppLogan,
    /// The same with the raised contrast of Yu, Ye and Wang
    SheppLoganModified,
    /// A sphere of water, radius 100 mm
    WaterSphere,
    /// Five unlike ellipsoids: shows any mistake of axis or sign
    Asymmetric,
}

/// Sense of rotation seen from +z (from the patient's head).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Counter-clockwise: angles grow
    Ccw,
    /// Clockwise: angles fall
    Cw,
}

/// How non-uniform angles are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Law {
    /// Uniformly on the arc: gaps and clusters
    Random,
    /// One in each equal step, at a random place of it
    Jittered,
}

/// Arguments of `diffnr simulate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Arguments {
    /// CT volume in HU (.nii or .nii.gz, any affine)
    #[arg(value_name = "CT.nii.gz", required_unless_present = "phantom", conflicts_with = "phantom")]
    ct: Option<PathBuf>,
    /// Built-in object instead of a CT volume
    #[arg(long, value_enum)]
    phantom: Option<Phantom>,
    /// In the thorax, this many nodules of these radii (mm) in place of the usual twelve of 10 to 1.5 mm: solid, sub-solid, solid, cyst in turn.
    /// phantom.json in the scan lists them, for `diffnr evaluate --nodules`
    #[arg(long, value_name = "N:MIN:MAX", requires = "phantom")]
    nodules: Option<NoduleSet>,
    /// Folder to write
    #[arg(short, long, value_name = "SCAN_DIR")]
    output: PathBuf,
    /// Replace the scan that is already there
    #[arg(long)]
    force: bool,

    /// Number of views
    #[arg(long, default_value_t = 360, help_heading = "Orbit")]
    views: usize,
    /// Arc in degrees [default: 360, or what a short scan needs]
    #[arg(long, value_name = "DEGREES", help_heading = "Orbit")]
    arc: Option<f64>,
    /// Gantry angle of the first view in degrees; at 0 the source stands on +x (the patient's right), at 90 in front
    #[arg(long, value_name = "DEGREES", default_value_t = 0.0, help_heading = "Orbit")]
    start: f64,
    /// Sense of rotation, seen from +z
    #[arg(long, value_enum, default_value = "ccw", help_heading = "Orbit")]
    direction: Direction,
    /// Non-uniform angles drawn with this seed
    #[arg(long, value_name = "SEED", help_heading = "Orbit")]
    non_uniform: Option<u64>,
    /// How non-uniform angles are drawn
    #[arg(long, value_enum, default_value = "random", requires = "non_uniform", help_heading = "Orbit")]
    angle_law: Law,
    /// Turn 180 degrees plus the fan only
    #[arg(long, help_heading = "Orbit")]
    short_scan: bool,
    /// Also make this many noise-free views in between (proj_test)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Orbit")]
    test_views: usize,

    /// Source-to-isocenter distance in mm
    #[arg(long, value_name = "MM", default_value_t = 1000.0, help_heading = "Detector")]
    dso: f64,
    /// Source-to-detector distance in mm
    #[arg(long, value_name = "MM", default_value_t = 1500.0, help_heading = "Detector")]
    dsd: f64,
    /// Pixels: ROWSxCOLUMNS or one number
    #[arg(long, value_name = "RxC", default_value = "256", value_parser = parse::detector, help_heading = "Detector")]
    detector: [usize; 2],
    /// Pixel pitch in mm, one number or UxV [default: the object is seen whole]
    #[arg(long, value_name = "MM", value_parser = parse::pitch, help_heading = "Detector")]
    pitch: Option<[f64; 2]>,
    /// Shift of the detector along its rows (towards the tangent of the rotation) in mm
    #[arg(long, value_name = "MM", help_heading = "Detector")]
    offset_u: Option<f64>,
    /// Shift of the detector along its columns (positive: towards -z) in mm
    #[arg(long, value_name = "MM", default_value_t = 0.0, help_heading = "Detector")]
    offset_v: f64,
    /// Rotation of the detector about its normal in degrees
    #[arg(long, value_name = "DEGREES", default_value_t = 0.0, help_heading = "Detector")]
    roll: f64,
    /// Rotation of the detector about its horizontal axis in degrees
    #[arg(long, value_name = "DEGREES", default_value_t = 0.0, help_heading = "Detector")]
    pitch_tilt: f64,
    /// Rotation of the detector about its vertical axis in degrees
    #[arg(long, value_name = "DEGREES", default_value_t = 0.0, help_heading = "Detector")]
    yaw: f64,
    /// Shift the detector so that it sees one half of the object; a whole turn sees the other half too
    #[arg(long, help_heading = "Detector")]
    half_fan: bool,
    /// Rays across and down each pixel
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Detector")]
    subpixels: usize,

    /// Voxels of the scan's own grid: N or NXxNYxNZ
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse::voxels, help_heading = "Volume")]
    voxels: [usize; 3],
    /// Whole size of that grid in mm: one number or XxYxZ [default: the object with a margin]
    #[arg(long, value_name = "MM", value_parser = parse::size_mm, help_heading = "Volume")]
    size_mm: Option<[f64; 3]>,
    /// Attenuation of water in 1/mm
    #[arg(long, value_name = "MU", default_value_t = DEFAULT_MU_WATER_PER_MM, help_heading = "Volume")]
    mu_water: f64,
    /// How many times finer than that grid a CT volume is sampled for projection, at least
    #[arg(long, value_name = "FACTOR", default_value_t = 1.37, help_heading = "Volume")]
    oversample: f64,

    /// Photons per pixel without an object
    #[arg(long, value_name = "I0", default_value_t = 1e5, help_heading = "Noise")]
    photons: f64,
    /// Standard deviation of the electronic noise, in photons
    #[arg(long, value_name = "SIGMA", default_value_t = 10.0, help_heading = "Noise")]
    electronic_noise: f64,
    /// No noise at all
    #[arg(long, help_heading = "Noise")]
    noise_free: bool,
    /// Seed of the noise and of the thorax
    #[arg(long, default_value_t = 0, help_heading = "Noise")]
    seed: u64,
    /// Also write uint16 counts with dark and flat images (proj_raw)
    #[arg(long, help_heading = "Noise")]
    raw: bool,

    /// Write a picture of a few projections
    #[arg(long, value_name = "FILE.png", help_heading = "Output")]
    png: Option<PathBuf>,
    /// Print a summary as JSON on standard output, and no progress
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Threads (0: all)
    #[arg(long, default_value_t = 0, help_heading = "Output")]
    threads: usize,
    /// Write the scan even where its geometry cannot be reconstructed
    #[arg(long, help_heading = "Output")]
    unchecked_geometry: bool,
}

impl Arguments {
    fn recipe(&self) -> Recipe {
        let object = match (&self.ct, self.phantom) {
            (Some(path), _) => ObjectChoice::Ct(path.clone()),
            (None, Some(Phantom::SheppLogan)) => ObjectChoice::SheppLogan(SheppLoganContrast::KakSlaney),
            (None, Some(Phantom::SheppLoganModified)) => ObjectChoice::SheppLogan(SheppLoganContrast::Modified),
            (None, Some(Phantom::WaterSphere)) => ObjectChoice::WaterSphere,
            (None, Some(Phantom::Asymmetric)) => ObjectChoice::Asymmetric,
            (None, Some(Phantom::Thorax) | None) => match self.nodules {
                Some(set) => ObjectChoice::ThoraxWithNodules(self.seed, set),
                None => ObjectChoice::Thorax(self.seed),
            },
        };
        let angles = match (self.non_uniform, self.angle_law) {
            (None, _) => AngleLaw::Uniform,
            (Some(seed), Law::Random) => AngleLaw::Random(seed),
            (Some(seed), Law::Jittered) => AngleLaw::Jittered(seed),
        };
        Recipe {
            object,
            orbit: OrbitRequest {
                views: self.views,
                start_rad: self.start.to_radians(),
                arc_rad: self.arc.map(f64::to_radians),
                clockwise: self.direction == Direction::Cw,
                angles,
                source_to_isocenter_mm: self.dso,
                source_to_detector_mm: self.dsd,
                detector: Detector { rows: self.detector[0], columns: self.detector[1] },
                pitch_mm: self.pitch,
                offset_u_mm: self.offset_u,
                offset_v_mm: self.offset_v,
                tilt_rad: [self.roll, self.pitch_tilt, self.yaw].map(f64::to_radians),
                half_fan: self.half_fan,
                short_scan: self.short_scan,
            },
            voxels: self.voxels,
            size_mm: self.size_mm,
            mu_water_per_mm: self.mu_water,
            subpixels: self.subpixels,
            oversample: self.oversample,
            noise: PhotonNoise { photons: self.photons, electronic_sigma: self.electronic_noise, seed: self.seed },
            noise_free: self.noise_free,
            raw: self.raw,
            test_views: self.test_views,
            unchecked_geometry: self.unchecked_geometry,
            threads: self.threads,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let begin = Instant::now();
    check_target(&arguments.output, arguments.force)?;
    if arguments.nodules.is_some() && arguments.phantom != Some(Phantom::Thorax) {
        let message = "--nodules: only --phantom thorax has lungs to plant them in".to_string();
        return Err(Failure { message, code: exit::USAGE });
    }
    let recipe = arguments.recipe();
    let mut display = Display::new(arguments.json);
    let simulated = simulate_with_threads(&recipe, &mut display)?;
    display.say("writing");
    write(arguments, &recipe, &simulated)?;
    display.finish();
    report(arguments, &simulated, begin.elapsed().as_secs_f64());
    Ok(())
}

fn simulate_with_threads(recipe: &Recipe, display: &mut Display) -> Result<Simulated, Failure> {
    if recipe.threads > 1024 {
        return Err(Failure { message: format!("--threads = {}: at most 1024", recipe.threads), code: exit::USAGE });
    }
    // Work outside the projector runs in rayon's own pool, which is sized once.
    if recipe.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(recipe.threads)
            .build_global()
            .map_err(|e| Failure::new(exit::FAILURE, &e))?;
    }
    simulate(recipe, |progress| display.show(progress)).map_err(|error| {
        let code = match &error {
            SimulateError::Setting { .. } => exit::USAGE,
            SimulateError::Object { .. } | SimulateError::Format(_) => exit::INPUT,
            SimulateError::Memory { .. } => exit::BUDGET,
            SimulateError::Geometry(_) => exit::GEOMETRY,
            SimulateError::Compute(_) => exit::DEVICE,
        };
        Failure::new(code, &error)
    })
}

fn output_failure(path: &Path, action: &str, error: &std::io::Error) -> Failure {
    Failure { message: format!("{}: cannot {action}: {error}", path.display()), code: exit::OUTPUT }
}

/// A folder with anything in it is replaced only with `--force`, and only if it is a scan.
fn check_target(folder: &Path, force: bool) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure { message, code: exit::OUTPUT });
    let shown = folder.display();
    let occupied = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(output_failure(folder, "look into it", &error)),
    };
    match (occupied, folder.join(scene::META_FILE).is_file()) {
        (true, false) => refuse(format!("{shown}: holds files but no scan; choose another folder for -o")),
        (true, true) if !force => refuse(format!("{shown}: holds a scan already; give --force to replace it")),
        _ => Ok(()),
    }
}

/// What an earlier run may have left: a scan with fewer views must not keep the old one's others.
fn clear(folder: &Path) -> Result<(), Failure> {
    for name in ["proj_train", "proj_test", "proj_raw"] {
        let path = folder.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(|e| output_failure(&path, "remove it", &e))?;
        }
    }
    for name in [scene::META_FILE, "vol_gt.npy", thorax::NODULES_FILE] {
        let path = folder.join(name);
        if path.is_file() {
            fs::remove_file(&path).map_err(|e| output_failure(&path, "remove it", &e))?;
        }
    }
    Ok(())
}

fn write(arguments: &Arguments, recipe: &Recipe, simulated: &Simulated) -> Result<(), Failure> {
    let folder = &arguments.output;
    if folder.is_dir() {
        clear(folder)?;
    }
    scene::write(folder, &simulated.scene).map_err(|e| Failure::new(exit::OUTPUT, &e))?;
    if let ObjectChoice::Thorax(seed) | ObjectChoice::ThoraxWithNodules(seed, _) = recipe.object {
        let path = folder.join(thorax::NODULES_FILE);
        let text = format!("{:#}\n", thorax::nodules_json(seed, &simulated.nodules));
        fs::write(&path, text).map_err(|e| output_failure(&path, "write", &e))?;
    }
    if let Some(path) = &arguments.png {
        let projections = &simulated.scene.scan.projections;
        let views = projections.len_of(Axis(0));
        let count = views.min(8);
        let shown: Vec<_> = (0..count).map(|i| projections.index_axis(Axis(0), i * views / count)).collect();
        let high = shown.iter().flat_map(|image| image.iter()).copied().fold(0.0, f32::max);
        contact_picture::write_png(path, &shown, 4, (0.0, high)).map_err(|e| output_failure(path, "write", &e))?;
    }
    Ok(())
}

fn report(arguments: &Arguments, simulated: &Simulated, seconds: f64) {
    let scan = &simulated.scene.scan;
    let (views, rows, columns) = scan.projections.dim();
    let largest = scan.projections.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if arguments.json {
        let summary = json!({
            "scan": arguments.output,
            "views": views,
            "test_views": simulated.scene.test.as_ref().map_or(0, |t| t.geometry.views.len()),
            "detector": [rows, columns],
            "voxels": scan.grid.voxels,
            "size_mm": scan.grid.size_mm().to_array(),
            "object_radius_mm": simulated.extent.radius_mm,
            "patient_offset_mm": scan.patient_offset_mm.to_array(),
            "projected_from_voxels": simulated.fine_grid.map(|g| g.voxels),
            "largest_line_integral": largest,
            "raw_counts": simulated.scene.raw.is_some(),
            "nodules": simulated.nodules.len(),
            "notes": simulated.notes,
            "seconds": seconds,
        });
        say!("{summary}");
        return;
    }
    for note in &simulated.notes {
        say!("note: {note}");
    }
    say!(
        "{}: {views} views of {rows} x {columns} pixels, volume {} x {} x {}, largest line integral {largest:.2}, {seconds:.1} s",
        arguments.output.display(),
        scan.grid.voxels[0],
        scan.grid.voxels[1],
        scan.grid.voxels[2],
    );
}

#[cfg(test)]
mod tests;
