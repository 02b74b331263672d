//! `diffnr reconstruct`: what all methods share; each method has a file of its own.

mod experiments;
mod fdk;
mod inputs;
mod iterative;
mod memory;
mod optimised;
mod outputs;
mod slice_fixer;
mod trace;
mod working_scale;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::Failure;
use crate::compute::ComputeError;
use crate::compute::device::{Device, DeviceChoice};
use crate::error::exit;
use crate::formats::Scan;
use crate::geometry::{Coverage, VolumeGrid};
use crate::reconstruct::ReconstructError;
use crate::self_test;
use trace::Tracer;

const EXAMPLES: &str = "\
Examples:
  diffnr reconstruct scan -o volume.nii.gz                     all views, the scene's own grid, HU where the scene says its scale
  diffnr reconstruct scan -o volume.npy                        axes, units and scale of the scene's vol_gt.npy
  diffnr reconstruct scan --size 128 --window hann:0.8 -o preview.nii.gz --png preview.png
  diffnr reconstruct scan --views 0:360:10 -o sparse.nii.gz    every tenth view
  diffnr reconstruct geometry.xml --projections stack.mha -o volume.nii.gz
  diffnr reconstruct scan --method os-sart --iterations 10 --trace curve.json -o volume.nii.gz
  diffnr reconstruct scan -o volume.nii.gz --json | jq .seconds

FDK refuses a scan that it would reconstruct wrongly (arc below 180 degrees + fan, half-fan on less than a turn ...) with the numbers
that say why; iterative methods refuse only what makes no sense (detector beside the volume, lengths in pixels ...).
Exit codes: 0 done, 2 options, 4 input, 5 impossible geometry, 6 too little memory, 8 device not there or failing its self-test, 9 output.";

/// How to reconstruct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Feldkamp, Davis and Kress: weight, ramp-filter, back-project
    Fdk,
    /// Ordered-subset SART: algebraic, non-negative
    OsSart,
    /// Adaptive steepest descent of the total variation between sweeps of OS-SART
    AsdPocs,
    /// 3D Gaussians, optimised against the projections
    Gaussians,
    /// Neural field (hash grid and small network), optimised against the projections
    Field,
}

impl Method {
    /// As the command line has it.
    fn name(self) -> &'static str {
        match self {
            Self::Fdk => "fdk",
            Self::Gaussians => "gaussians",
            Self::Field => "field",
            Self::OsSart => "os-sart",
            Self::AsdPocs => "asd-pocs",
        }
    }

    /// As people write it.
    fn title(self) -> &'static str {
        match self {
            Self::Fdk => "FDK",
            Self::Gaussians => "Gaussians",
            Self::Field => "Field",
            Self::OsSart => "OS-SART",
            Self::AsdPocs => "ASD-POCS",
        }
    }
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
    /// Use only these views: FIRST:END:STEP, each may be left out (0:180, ::2)
    #[arg(long, value_name = "A:B:STEP", value_parser = inputs::parse_views)]
    views: Option<inputs::ViewRange>,
    /// Volume to write: .nii or .nii.gz (HU), or .npy (axes and scale of the scene's vol_gt.npy)
    #[arg(short, long, value_name = "FILE", required = true, num_args = 1)]
    output: Vec<PathBuf>,
    /// Device: auto (the first GPU that passes its self-test, else the CPU), cpu, cuda, or cuda:N for the GPU with index N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Take a GPU without holding it against the CPU first
    #[arg(long)]
    no_self_test: bool,
    /// Threads (0: one for each processor)
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Also write the three middle slices as a picture
    #[arg(long, value_name = "FILE.png")]
    png: Option<PathBuf>,
    /// Print the result as JSON; nothing else goes to standard output
    #[arg(long)]
    json: bool,
    /// Iterations at most, of an iterative method [default: the method's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,
    #[command(flatten)]
    fdk: fdk::Options,
    #[command(flatten)]
    optimised: optimised::Options,
    #[command(flatten)]
    slice_fixer: slice_fixer::Options,
    #[command(flatten)]
    iterative: iterative::Options,
    #[command(flatten)]
    asd_pocs: iterative::AsdPocsOptions,
    #[command(flatten)]
    trace: trace::Options,
}

impl Arguments {
    /// Refuses options that belong to other methods: they would be passed over in silence.
    fn check_options(&self) -> Result<(), Failure> {
        let iterations = self.iterations.map(|_| "--iterations");
        let groups: [(&[Method], Option<&str>); 6] = [
            (&[Method::OsSart, Method::AsdPocs, Method::Gaussians, Method::Field], iterations),
            (&[Method::Fdk], self.fdk.given()),
            (&[Method::OsSart, Method::AsdPocs], self.iterative.given()),
            (&[Method::AsdPocs], self.asd_pocs.given()),
            (&[Method::Gaussians, Method::Field], self.optimised.given()),
            (&[Method::Gaussians, Method::Field], self.slice_fixer.given()),
        ];
        for (methods, given) in groups {
            if let Some(option) = given.filter(|_| !methods.contains(&self.method)) {
                return Err(Failure {
                    message: format!("{option} is no option of --method {}", self.method.name()),
                    code: exit::USAGE,
                });
            }
        }
        Ok(())
    }
}

/// What a method is given to work on.
struct Job<'a> {
    arguments: &'a Arguments,
    scan: &'a Scan,
    grid: VolumeGrid,
    device: Device,
    /// Bar on the terminal, and the trace.
    tracer: Tracer,
}

impl<'a> Job<'a> {
    /// Threads that the processor has for this.
    fn threads(&self) -> usize {
        match self.arguments.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            threads => threads,
        }
    }

    /// The scan's line integrals, `[view][row v][column u]`.
    fn line_integrals(&self) -> &'a [f32] {
        // `inputs::load` hands out arrays in standard order.
        self.scan.projections.as_slice().unwrap_or(&[])
    }
}

/// What a method hands back.
struct Reconstructed {
    /// What carried it out.
    device: String,
    /// Attenuation in 1/mm, `[x][y][z]`.
    volume: Vec<f32>,
    plan_s: f64,
    /// The method's own time, without that spent on observing it.
    reconstruct_s: f64,
    /// Every buffer and its bytes.
    buffers: Vec<(&'static str, usize)>,
    scratch_bytes: usize,
    coverage: Option<Coverage>,
    warnings: Vec<String>,
    /// The method's own keys of the JSON result.
    facts: Map<String, Value>,
    /// The same for people, in one line.
    summary: String,
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let begin = Instant::now();
    arguments.check_options()?;
    outputs::check(arguments)?;
    let device = device(arguments)?;
    let scan = inputs::load(arguments)?;
    let grid = arguments.size.map_or(scan.grid, |n| scan.grid.resampled(n as usize));
    let tracer = Tracer::new(arguments, &scan, &grid)?;
    let read_s = begin.elapsed().as_secs_f64();

    let mut job = Job { arguments, scan: &scan, grid, device, tracer };
    let done = match arguments.method {
        Method::Fdk => fdk::run(&mut job)?,
        Method::Gaussians | Method::Field => optimised::run(&mut job)?,
        Method::OsSart => iterative::run_os_sart(&mut job)?,
        Method::AsdPocs => iterative::run_asd_pocs(&mut job)?,
    };
    job.tracer.write()?;

    let begin = Instant::now();
    let [x, y, z] = grid.voxels;
    let volume = ndarray::Array3::from_shape_vec((x, y, z), done.volume)
        .map_err(|error| Failure { message: error.to_string(), code: exit::FAILURE })?;
    outputs::write(arguments, &scan, &grid, volume.view())?;
    let write_s = begin.elapsed().as_secs_f64();

    if arguments.json {
        let mut result = json!({
            "method": arguments.method.name(),
            "scan": arguments.scan,
            "outputs": arguments.output,
            "device": done.device,
            "voxels": grid.voxels,
            "voxel_mm": grid.voxel_mm.to_array(),
            "views": scan.geometry.views.len(),
            "unit": outputs::unit(&scan.scale),
            "seconds": {"read": read_s, "plan": done.plan_s, "reconstruct": done.reconstruct_s, "write": write_s},
            "peak_memory_bytes": memory::peak_bytes(),
            "planned_bytes": done.buffers.into_iter().collect::<BTreeMap<_, _>>(),
            "scratch_bytes": done.scratch_bytes,
            "coverage": done.coverage.as_ref().map(coverage_json),
            "warnings": done.warnings,
        });
        if let Value::Object(result) = &mut result {
            result.extend(done.facts);
        }
        say!("{result}");
    } else {
        say!(
            "{} {x} x {y} x {z} from {} views in {:.3} s ({}) on {}; read {read_s:.2} s, plan {:.3} s, write {write_s:.2} s, peak \
             memory {}",
            arguments.method.title(),
            scan.geometry.views.len(),
            done.reconstruct_s,
            done.summary,
            done.device,
            done.plan_s,
            memory::peak_bytes().map_or("not known".into(), |bytes| format!("{} MiB", bytes >> 20)),
        );
        for path in arguments.output.iter().chain(&arguments.png).chain(arguments.trace.file()) {
            say!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// The device that the arguments ask for; a line says what `auto` took and how a GPU's test went.
fn device(arguments: &Arguments) -> Result<Device, Failure> {
    let (device, told) = self_test::choose(arguments.device, arguments.threads, !arguments.no_self_test)
        .map_err(|error| Failure::new(exit::DEVICE, &error))?;
    if let Some(told) = told {
        eprintln!("diffnr: {told}");
    }
    Ok(device)
}

fn coverage_json(coverage: &Coverage) -> Value {
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

impl From<ComputeError> for Failure {
    fn from(error: ComputeError) -> Self {
        failure(error.into())
    }
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
