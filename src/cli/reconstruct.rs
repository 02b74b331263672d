//! `diffnr reconstruct`.

mod inputs;
mod outputs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::Failure;
use crate::compute::Compute;
use crate::compute::cpu::CpuCompute;
use crate::compute::cpu::ramp_filter::Window;
use crate::error::exit;
use crate::formats::Scan;
use crate::geometry::Coverage;
use crate::reconstruct::{FdkAccumulator, FdkPlan, FdkSettings, ReconstructError};

const EXAMPLES: &str = "\
Examples:
  diffnr reconstruct scan -o volume.nii.gz                     all views, the scene's own grid, HU where the scene says its scale
  diffnr reconstruct scan -o volume.npy                        axes, units and scale of the scene's vol_gt.npy
  diffnr reconstruct scan --size 128 --window hann:0.8 -o preview.nii.gz --png preview.png
  diffnr reconstruct scan --views 0:360:10 -o sparse.nii.gz    every tenth view
  diffnr reconstruct geometry.xml --projections stack.mha -o volume.nii.gz
  diffnr reconstruct scan -o volume.nii.gz --json | jq .seconds

A scan that cannot be reconstructed (arc below 180 degrees + fan, half-fan on less than a turn, detector beside the volume, lengths
in pixels ...) is refused with the numbers that say why.
Exit codes: 0 done, 2 options, 4 input, 5 impossible geometry, 6 too little memory, 8 device not there, 9 output.";

/// How to reconstruct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Feldkamp, Davis and Kress: weight, ramp-filter, back-project
    Fdk,
}

/// What carries out the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The fastest that is there
    Auto,
    /// All cores, SIMD found at run time
    Cpu,
    /// NVIDIA GPU (not in this build)
    Cuda,
}

/// Arguments of `diffnr reconstruct`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Scene folder (with meta_data.json), or RTK's geometry.xml together with --projections
    scan: PathBuf,
    /// Projection stack (.mha) of an RTK geometry [default: the only .mha beside it]
    #[arg(long, value_name = "STACK.mha")]
    projections: Option<PathBuf>,
    /// Counts without an object, for stacks of unsigned short (RTK)
    #[arg(long, value_name = "I0")]
    i0: Option<f64>,
    /// Method
    #[arg(long, value_enum, default_value = "fdk")]
    method: Method,
    /// Voxels along the volume's longest axis, over the same box [default: the scene's own nVoxel]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    size: Option<u32>,
    /// Window of the ramp filter and its cut-off, a share of the highest frequency: ram-lak, shepp-logan, cosine, hamming or hann, e.g.
    /// hann:0.9
    #[arg(long, value_name = "NAME[:CUTOFF]", default_value = "ram-lak", value_parser = inputs::window)]
    window: (Window, f64),
    /// Use only these views: FIRST:END:STEP, each may be left out (0:180, ::2)
    #[arg(long, value_name = "A:B:STEP", value_parser = inputs::parse_views)]
    views: Option<inputs::ViewRange>,
    /// Volume to write: .nii or .nii.gz (HU), or .npy (axes and scale of the scene's vol_gt.npy)
    #[arg(short, long, value_name = "FILE", required = true, num_args = 1)]
    output: Vec<PathBuf>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Threads (0: one for each processor)
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Also write the three middle slices as a picture
    #[arg(long, value_name = "FILE.png")]
    png: Option<PathBuf>,
    /// Print the result as JSON; nothing else goes to standard output
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let begin = Instant::now();
    outputs::check(arguments)?;
    let mut compute = carrier(arguments)?;
    let scan = inputs::load(arguments)?;
    let read_s = begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let grid = arguments.size.map_or(scan.grid, |n| scan.grid.resampled(n as usize));
    let (window, cutoff) = arguments.window;
    let settings = FdkSettings { window, cutoff, views_per_call: None };
    let plan = Arc::new(FdkPlan::without_scratch(&scan.geometry, &grid, settings).map_err(failure)?);
    check_memory(&plan, &compute)?;
    compute.prepare(&plan.workload()).map_err(|error| failure(error.into()))?;
    let mut accumulator = FdkAccumulator::new(Arc::clone(&plan)).map_err(failure)?;
    let plan_s = begin.elapsed().as_secs_f64();
    for warning in &plan.coverage().warnings {
        eprintln!("diffnr: warning: {warning}");
    }
    if !arguments.json {
        say!("{}", plan.coverage().summary());
    }

    let begin = Instant::now();
    add_all(&mut accumulator, &compute, &scan)?;
    let fdk_s = begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let [x, y, z] = grid.voxels;
    let volume = ndarray::Array3::from_shape_vec((x, y, z), accumulator.into_volume())
        .map_err(|error| Failure { message: error.to_string(), code: exit::FAILURE })?;
    outputs::write(arguments, &scan, &grid, volume.view())?;
    let write_s = begin.elapsed().as_secs_f64();

    let gups = (grid.len() * scan.geometry.views.len()) as f64 / fdk_s / 1e9;
    if arguments.json {
        let coverage = plan.coverage();
        let result = json!({
            "method": "fdk",
            "scan": arguments.scan,
            "outputs": arguments.output,
            "device": compute.description(),
            "voxels": grid.voxels,
            "voxel_mm": grid.voxel_mm.to_array(),
            "views": scan.geometry.views.len(),
            "unit": outputs::unit(&scan.scale),
            "window": {"name": window.name(), "cutoff": cutoff},
            "seconds": {"read": read_s, "plan": plan_s, "reconstruct": fdk_s, "write": write_s},
            "gups": gups,
            "peak_memory_bytes": peak_memory_bytes(),
            "planned_bytes": plan.buffers().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "scratch_bytes": compute.scratch_bytes(&plan.workload()),
            "coverage": coverage_json(coverage),
            "warnings": coverage.warnings,
        });
        say!("{result}");
    } else {
        say!(
            "FDK {x} x {y} x {z} from {} views in {fdk_s:.3} s ({gups:.2} GUPS) on {}; read {read_s:.2} s, plan {plan_s:.3} s, write \
             {write_s:.2} s, peak memory {}",
            scan.geometry.views.len(),
            compute.description(),
            peak_memory_bytes().map_or("not known".into(), |bytes| format!("{} MiB", bytes >> 20)),
        );
        for path in arguments.output.iter().chain(&arguments.png) {
            say!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// The carrier that the arguments ask for; `auto` says in a line what it took.
fn carrier(arguments: &Arguments) -> Result<CpuCompute, Failure> {
    match arguments.device {
        Device::Cuda => {
            return Err(Failure {
                message: "device cuda: this build has no CUDA kernels; use --device cpu (or auto, which takes the CPU)"
                    .into(),
                code: exit::DEVICE,
            });
        }
        Device::Auto => eprintln!("diffnr: device auto: running on the CPU, as this build has no CUDA kernels"),
        Device::Cpu => {}
    }
    CpuCompute::new(arguments.threads).map_err(|error| Failure::new(exit::DEVICE, &error))
}

/// Refuses a volume for which the machine has no memory left, rather than being killed half-way.
fn check_memory(plan: &FdkPlan, compute: &CpuCompute) -> Result<(), Failure> {
    let buffers: usize = plan.buffers().iter().map(|(_, bytes)| bytes).sum();
    // Volumes in the unit of the output are copies.
    let copy = plan.grid().len() * size_of::<f32>();
    let needed = buffers.saturating_add(compute.scratch_bytes(&plan.workload())).saturating_add(copy);
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    });
    match available {
        Some(kib) if needed >> 10 > kib => Err(Failure {
            message: format!(
                "{} MiB are needed for a volume of {:?} voxels and its working memory, {} MiB are available; use a smaller --size",
                needed >> 20,
                plan.grid().voxels,
                kib >> 10
            ),
            code: exit::BUDGET,
        }),
        _ => Ok(()),
    }
}

/// Adds all views, with a bar on a terminal.
fn add_all(accumulator: &mut FdkAccumulator, compute: &CpuCompute, scan: &Scan) -> Result<(), Failure> {
    let plan = Arc::clone(accumulator.plan());
    let projections = scan.projections.as_standard_layout();
    let values = projections.as_slice().unwrap_or(&[]);
    let bar = indicatif::ProgressBar::new(scan.geometry.views.len() as u64);
    bar.set_style(
        indicatif::ProgressStyle::with_template("FDK {wide_bar} {pos}/{len} views, {eta} left")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
    );
    let group = plan.views_per_call();
    for (index, part) in values.chunks(group * plan.detector().pixels()).enumerate() {
        accumulator.add_views(compute, index * group, part).map_err(failure)?;
        bar.set_position(accumulator.views_added() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn coverage_json(coverage: &Coverage) -> serde_json::Value {
    json!({
        "class": coverage.class,
        "source_to_isocenter_mm": coverage.source_to_isocenter_mm,
        "source_to_detector_mm": coverage.source_to_detector_mm,
        "magnification": coverage.magnification,
        "counter_clockwise": coverage.counter_clockwise,
        "arc_rad": coverage.arc_rad,
        "largest_gap_rad": coverage.largest_gap_rad,
        "fan_rad": [coverage.fan_min_rad, coverage.fan_max_rad],
        "tilt_rad": coverage.tilt_rad,
        "field_of_view": coverage.field_of_view,
    })
}

fn failure(error: ReconstructError) -> Failure {
    let code = match &error {
        ReconstructError::Geometry(_) => exit::GEOMETRY,
        ReconstructError::Compute(_) => exit::DEVICE,
        ReconstructError::Setting { .. } => exit::USAGE,
        ReconstructError::Memory { .. } => exit::BUDGET,
        ReconstructError::View { .. } | ReconstructError::Length { .. } | ReconstructError::NotFinite { .. } => {
            exit::INPUT
        }
    };
    Failure::new(code, &error)
}

/// Largest resident memory of this process so far, as Linux counts it.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
