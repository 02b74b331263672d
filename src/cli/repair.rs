//! `diffnr repair`: a volume through SliceFixer alone, as a comparison to what the loop does with it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use glam::{DAffine3, DMat3, DVec3};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array3;
use serde_json::json;

use super::Failure;
use crate::compute::cpu::CpuCompute;
use crate::compute::{Values, ValuesMut};
use crate::error::exit;
use crate::formats::nifti::{self, CtVolume, Storage};
use crate::formats::{self, FormatError, Scan, SceneScale, npy};
use crate::geometry::VolumeGrid;
use crate::reconstruct::ReconstructError;
use crate::reconstruct::optimise::{OptimiseError, OptimiseSettings, ScanViews, Unexplained};
use crate::repair::{
    Conditioning, Demand, Given, Manifest, Options, Plane, Repair, RepairError, Repaired, SliceBuffers, SliceFixer,
    Watch, shipped,
};

const EXAMPLES: &str = "\
Examples:
  diffnr repair gaussians.nii.gz --scan scan -o repaired.nii.gz --anatomy chest
  diffnr repair gaussians.nii.gz --scan scan --model models -o repaired.nii.gz --planes axial --provider cpu
  diffnr repair volume.npy --scan scan -o repaired.npy --disagreement planes.nii.gz --json | jq .providers

This is post-processing: what the network makes of the slices stands in the result, true or not. For a volume that the projections still
answer for, let it supervise a reconstruction instead.
Exit codes: 0 done, 1 the model's output cannot be taken, 2 options, 4 input (also the model's files), 8 no ONNX Runtime or not the provider
demanded, 9 output.";

/// Arguments of `diffnr repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Volume to repair: .nii or .nii.gz in HU as `diffnr reconstruct` writes it, or .npy in the scan's own values
    volume: PathBuf,
    /// The scan that it came of: two of its views condition the model
    #[arg(long)]
    scan: PathBuf,
    /// The model: a folder with manifest.toml, that file, or the .onnx beside it [default: the one in DIFFNR_MODELS or models]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Volume to write: .nii, .nii.gz or .npy
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Planes to repair along; several are averaged [default: all that the model knows]
    #[arg(long, value_name = "PLANE,...", value_delimiter = ',', value_parser = plane)]
    planes: Vec<Plane>,
    /// Part of the body (chest, head, ...); one that the model does not know counts as other
    #[arg(long, default_value = "other")]
    anatomy: String,
    /// Photons a pixel without an object, by which a model that also looks at the residuals weighs them; inf: no noise
    #[arg(long, value_name = "N", default_value_t = 1e5, value_parser = photons)]
    photons: f64,
    /// Execution provider: any, tensorrt, tensorrt-rtx, cuda or cpu; one that is named runs, or nothing does
    #[arg(long, default_value = "any")]
    provider: Demand,
    /// Threads of the CPU provider (0: one for each processor)
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Slices at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// ONNX Runtime: the library or its folder [default: DIFFNR_ONNXRUNTIME, then .onnxruntime here or beside the program]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Folder for TensorRT's engines, which take minutes to build [default: none are kept]
    #[arg(long, value_name = "FOLDER")]
    engines: Option<PathBuf>,
    /// Also write the standard deviation over the planes in HU (.nii or .nii.gz)
    #[arg(long, value_name = "FILE")]
    disagreement: Option<PathBuf>,
    /// Print the result as JSON; nothing else goes to standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn plane(text: &str) -> Result<Plane, String> {
    let found = Plane::ALL.into_iter().find(|plane| plane.name() == text);
    found.ok_or_else(|| "there are axial, coronal, sagittal".into())
}

fn photons(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(photons) if photons > 0.0 => Ok(photons),
        _ => Err("must be a number above 0, or inf".into()),
    }
}

fn input(error: FormatError) -> Failure {
    Failure::new(exit::INPUT, &error)
}

/// The exit code of a repair that cannot be had, or failed.
pub(super) fn code(error: &RepairError) -> u8 {
    match error {
        RepairError::LibraryMissing { .. }
        | RepairError::Library { .. }
        | RepairError::LibraryTaken { .. }
        | RepairError::Demanded { .. }
        | RepairError::Compute(_) => exit::DEVICE,
        RepairError::Input { field, .. } if ["planes", "batch", "threads"].contains(&field.as_str()) => exit::USAGE,
        RepairError::Run { .. } | RepairError::Output { .. } | RepairError::Late { .. } | RepairError::Interrupted => {
            exit::FAILURE
        }
        _ => exit::INPUT,
    }
}

pub(super) fn failure(error: RepairError) -> Failure {
    Failure::new(code(&error), &error)
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    check_names(arguments)?;
    let scan = formats::read_scan(&arguments.scan).map_err(input)?;
    let scale = &scan.scale;
    let Some(volume) = Volume::read(&arguments.volume, &scan)? else {
        return Err(Failure {
            message: format!(
                "{}: the scan states no absolute scale (mu_water_per_mm), and SliceFixer sees slices in HU",
                arguments.scan.display()
            ),
            code: exit::INPUT,
        });
    };
    let model = arguments.model.clone().map_or_else(shipped, Ok).map_err(failure)?;
    let (x, y, z) = volume.per_mm.dim();
    let options = Options {
        planes: arguments.planes.clone(),
        batch: arguments.batch,
        threads: arguments.threads,
        demand: arguments.provider,
        cache_folder: arguments.engines.clone(),
        onnxruntime: arguments.onnxruntime.clone(),
        ..Options::new([x, y, z])
    };
    let begin = Instant::now();
    let manifest = Manifest::read(&model).map_err(failure)?;
    let mut compute = CpuCompute::new(arguments.threads).map_err(RepairError::from).map_err(failure)?;
    let buffers = SliceBuffers::take(&mut compute, &manifest, &options).map_err(failure)?;
    let mut fixer = SliceFixer::load(manifest, &options, &compute, buffers).map_err(failure)?;
    let conditioning =
        Conditioning::of_scan(&scan.geometry, scan.projections.view(), &arguments.anatomy).map_err(failure)?;
    fixer.condition(&conditioning).map_err(failure)?;
    let load_s = begin.elapsed().as_secs_f64();
    let warm = fixer.warm_up(&compute).map_err(failure)?;
    if arguments.disagreement.is_some() && fixer.planes().len() < 2 {
        let message = "--disagreement needs more than one of --planes".into();
        return Err(Failure { message, code: exit::USAGE });
    }
    let repair = Repair::new(scale.mu_water_per_mm).map_err(failure)?;
    let unexplained = if fixer.manifest().unexplained { volume.unexplained(arguments, &scan)? } else { Vec::new() };
    let mut per_mm = vec![0.0; volume.per_mm.len()];
    let mut disagreement_hu = vec![0.0; if fixer.planes().len() > 1 { volume.per_mm.len() } else { 0 }];

    let mut bar = Bar::new(fixer.slices());
    let begin = Instant::now();
    // Read in standard order.
    let values = volume.per_mm.as_slice().unwrap_or(&[]);
    let given = Given { volume: Values::from(values), unexplained: Values::from(&unexplained) };
    let repaired =
        Repaired { per_mm: ValuesMut::from(&mut per_mm), disagreement_hu: ValuesMut::from(&mut disagreement_hu) };
    let outcome = repair.run(&compute, &mut fixer, given, repaired, None, &mut bar);
    bar.0.finish_and_clear();
    outcome.map_err(failure)?;
    let repair_s = begin.elapsed().as_secs_f64();
    let disagreement = (!disagreement_hu.is_empty()).then(|| mean(&disagreement_hu));
    volume.write(arguments, scale, &per_mm, &disagreement_hu)?;

    let (manifest, providers) = (fixer.manifest(), fixer.providers());
    let slice_ms = 1000.0 * repair_s / fixer.slices() as f64;
    if arguments.json {
        let refused: Vec<_> = providers
            .refused
            .iter()
            .map(|(provider, reason)| json!({"provider": provider.name(), "reason": reason}))
            .collect();
        let assigned: Vec<_> =
            providers.assigned.iter().map(|(name, nodes)| json!({"provider": name, "nodes": nodes})).collect();
        say!(
            "{}",
            json!({
                "volume": arguments.volume,
                "output": arguments.output,
                "model": {"name": manifest.name, "manifest": manifest.path, "anatomy": manifest.anatomies[manifest.anatomy_index(&arguments.anatomy)]},
                "onnxruntime": {"version": fixer.onnxruntime().version, "path": fixer.onnxruntime().path},
                "providers": {"ran": providers.header_text(), "assigned": assigned, "refused": refused},
                "threads": fixer.threads(),
                "planes": fixer.planes().map(Plane::name).collect::<Vec<_>>(),
                "slices": fixer.slices(),
                "seconds": {"load": load_s, "warm_up": warm.whole.as_secs_f64(), "repair": repair_s},
                "milliseconds_a_slice": slice_ms,
                "mean_disagreement_hu": disagreement,
            })
        );
    } else {
        say!(
            "{} repaired {} slices in {repair_s:.2} s ({slice_ms:.1} ms a slice) on {}; load {load_s:.2} s, warm-up {:.2} s{}",
            manifest.name,
            fixer.slices(),
            providers.header_text(),
            warm.whole.as_secs_f64(),
            disagreement.map_or(String::new(), |hu| format!("; the planes disagree by {hu:.1} HU on average"))
        );
        say!("ONNX Runtime {}: {}", fixer.onnxruntime().version, providers.log_text());
        say!("wrote {}", arguments.output.display());
    }
    Ok(())
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len().max(1) as f64
}

/// Refuses names and folders that cannot be written, before the work is done.
fn check_names(arguments: &Arguments) -> Result<(), Failure> {
    let is_nifti = |path: &Path| [".nii", ".nii.gz"].iter().any(|end| path.to_string_lossy().ends_with(end));
    let named = [(Some(&arguments.output), true), (arguments.disagreement.as_ref(), false)];
    for (path, npy_too) in named.into_iter().filter_map(|(path, npy_too)| path.map(|path| (path, npy_too))) {
        let shown = path.display();
        if !(is_nifti(path) || npy_too && is_npy(path)) {
            let message = format!("{shown}: no name that can be written; end it in .nii.gz or .nii");
            return Err(Failure { message, code: exit::USAGE });
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            let message = format!("{shown}: the folder {} does not exist", folder.display());
            return Err(Failure { message, code: exit::OUTPUT });
        }
    }
    Ok(())
}

fn is_npy(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".npy")
}

/// The volume to repair, `[x][y][z]` along the gantry's axes.
struct Volume {
    per_mm: Array3<f32>,
    voxel_to_world_mm: DAffine3,
}

impl Volume {
    /// `None` where the scan has no absolute scale.
    fn read(path: &Path, scan: &Scan) -> Result<Option<Self>, Failure> {
        let refuse = |message: String| Failure { message: format!("{}: {message}", path.display()), code: exit::INPUT };
        if !scan.scale.is_absolute {
            return Ok(None);
        }
        if is_npy(path) {
            let values = npy::read_volume(path).map_err(input)?;
            if values.shape() != scan.grid.voxels {
                return Err(refuse(format!("shape {:?}, the scan's grid is {:?}", values.shape(), scan.grid.voxels)));
            }
            let factor = scan.scale.mu_per_value_per_mm;
            return Ok(Some(Self {
                per_mm: values.mapv_into(|value| (f64::from(value) * factor) as f32),
                voxel_to_world_mm: nifti::grid_to_world_mm(&scan.grid, scan.patient_offset_mm),
            }));
        }
        if nifti::holds_scene_values(path).map_err(input)? {
            return Err(refuse("holds a scene's own values, not HU".into()));
        }
        let CtVolume { hu, voxel_to_world_mm } = nifti::read_ct(path).map_err(input)?;
        let spacing_mm = voxel_to_world_mm.matrix3.diagonal();
        // A hundredth of a voxel over the whole volume.
        let straight = voxel_to_world_mm.matrix3.abs_diff_eq(DMat3::from_diagonal(spacing_mm), 1e-5);
        if !straight || spacing_mm.min_element() <= 0.0 {
            return Err(refuse(
                "its axes are not the gantry's (x, y, z ascending): give a volume that `diffnr reconstruct` wrote"
                    .into(),
            ));
        }
        let per_mm = hu.mapv_into(|hu| scan.scale.mu_per_mm(hu)).as_standard_layout().into_owned();
        Ok(Some(Self { per_mm, voxel_to_world_mm }))
    }

    /// What the scan says and the volume does not, 1/mm, as the volume lies.
    fn unexplained(&self, arguments: &Arguments, scan: &Scan) -> Result<Vec<f32>, Failure> {
        let refuse = |message: String| Failure {
            message: format!("{}: {message}", arguments.volume.display()),
            code: exit::INPUT,
        };
        let (x, y, z) = self.per_mm.dim();
        let voxels = [x, y, z];
        let corner_mm = self.voxel_to_world_mm.transform_point3(DVec3::ZERO);
        let voxel_mm = self.voxel_to_world_mm.matrix3.diagonal();
        let across = DVec3::new((x - 1) as f64, (y - 1) as f64, (z - 1) as f64);
        let offset_mm = scan.patient_offset_mm;
        let grid = VolumeGrid { voxels, voxel_mm, centre_mm: corner_mm + 0.5 * across * voxel_mm - offset_mm };
        let mut settings = OptimiseSettings::default();
        settings.data.photons = arguments.photons;
        let unexplained = || -> Result<Vec<f32>, OptimiseError> {
            let mut compute = CpuCompute::new(arguments.threads).map_err(ReconstructError::from)?;
            let mut of_scan = Unexplained::new(&mut compute, &scan.geometry, &grid, &settings)?;
            of_scan.load(&compute, &ScanViews::whole(scan.projections.as_slice().unwrap_or(&[])))?;
            let compute = &compute;
            compute.install(|| Ok(of_scan.of(compute, self.per_mm.as_slice().unwrap_or(&[]))?.to_vec()))
        };
        unexplained().map_err(|error| refuse(error.to_string()))
    }

    fn write(
        &self,
        arguments: &Arguments,
        scale: &SceneScale,
        repaired_per_mm: &[f32],
        disagreement_hu: &[f32],
    ) -> Result<(), Failure> {
        let output = |error: FormatError| Failure::new(exit::OUTPUT, &error);
        let shaped = |values: &[f32]| {
            Array3::from_shape_vec(self.per_mm.raw_dim(), values.to_vec())
                .map_err(|error| Failure { message: error.to_string(), code: exit::FAILURE })
        };
        let repaired = shaped(repaired_per_mm)?;
        if is_npy(&arguments.output) {
            npy::write_volume(&arguments.output, scale.volume_values(repaired.view()).view()).map_err(output)?;
        } else {
            let hu = scale.volume_hu(repaired.view());
            nifti::write(&arguments.output, hu.view(), &self.voxel_to_world_mm, Storage::Float32).map_err(output)?;
        }
        if let Some(path) = &arguments.disagreement {
            let values = shaped(disagreement_hu)?;
            nifti::write(path, values.view(), &self.voxel_to_world_mm, Storage::Float32).map_err(output)?;
        }
        Ok(())
    }
}

/// A bar on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(slices: usize) -> Self {
        let bar = ProgressBar::new(slices as u64);
        let style = ProgressStyle::with_template("SliceFixer {wide_bar} {pos}/{len} slices, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

impl Watch for Bar {
    fn at(&mut self, done: usize, _: usize) {
        self.0.set_position(done as u64);
    }
}
