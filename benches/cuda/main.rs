//! Seconds of every CUDA operation against its floor on this device, of whole iterations, and of the volume after the last frame.
//!
//! `cargo bench --bench cuda -- [--device INDEX] [--sizes small|full] [--json FILE] [--list] [CASE ...]`, INDEX as in `diffnr doctor`. CASE: a case's
//! name, or a part of some names, to run those alone; `--list` says the names. Each figure is the median of several rounds of repetitions between two
//! waits for the device, memory on the device, after a warm-up.
//!
//! **Floors** are the contracts' of `kernels/*.cu`, with this device's figures in place of the H200's: bytes of memory at the measured copy bandwidth,
//! operations at multiprocessors x 128 x clock, bytes out of the first-level caches at multiprocessors x 128 x clock, bytes out of the second-level cache
//! at [`SECOND_LEVEL`] times the copy bandwidth; the largest of them. Launches that follow each other, and what an operation that returns a value waits for,
//! are measured on this device and counted too.

mod device;
mod gaussians;
mod field;
mod iterations;
mod measure;
mod preview;
mod slots;
mod volumes;
mod views;

use std::process::ExitCode;

use diffnr::compute::ComputeError;
use serde_json::{Value, json};

use iterations::Of;
use measure::{Machine, Row, Settings};

/// Bytes a second out of the second-level cache over those of a copy: 5 TB/s beside 4.3 TB/s on an H200.
const SECOND_LEVEL: f64 = 1.16;

struct Options {
    device: usize,
    small: bool,
    json: Option<String>,
    list: bool,
    cases: Vec<String>,
}

impl Options {
    fn of_arguments() -> Result<Self, String> {
        let mut options = Self { device: 0, small: false, json: None, list: false, cases: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--device" => options.device = value()?.parse().map_err(|_| "--device needs an index, 0 and up")?,
                "--json" => options.json = Some(value()?),
                "--sizes" => {
                    options.small = match value()?.as_str() {
                        "small" => true,
                        "full" => false,
                        other => return Err(format!("--sizes {other}: small or full")),
                    }
                }
                "--list" => options.list = true,
                "--bench" => {} // cargo's own
                _ if argument.starts_with('-') => {
                    return Err(format!("{argument}: --device, --sizes, --json, --list, or cases"));
                }
                _ => options.cases.push(argument),
            }
        }
        Ok(options)
    }

    /// Whether a case is asked for: by its name, or by what is no case's name but a part of this one's.
    fn ask_for(&self, name: &str) -> bool {
        let is_asked = |asked: &String| match CASES.iter().any(|(other, ..)| other == asked) {
            true => name == asked,
            false => name.contains(asked.as_str()),
        };
        self.cases.is_empty() || self.cases.iter().any(is_asked)
    }
}

/// What a case measures.
#[derive(Clone, Copy)]
enum Case {
    /// Some operations on a device of their own.
    Operations(fn(&Settings, &mut Vec<Row>) -> Result<(), ComputeError>),
    /// Whole iterations of so many views each.
    Iterations(Of, usize),
    /// From the last frame to the volume.
    Preview,
}

/// Name, sizes where they are full, what is measured: what a scanner waits for first.
const CASES: [(&str, &str, Case); 17] = [
    ("preview", "256^3, 50 frames of 512^2", Case::Preview),
    ("fdk", "512^3, 496 views of 512^2", Case::Operations(views::fdk)),
    ("projectors", "256^3, 50 views of 512^2", Case::Operations(views::projectors)),
    ("losses", "256^3, 8 views of 512^2", Case::Operations(volumes::losses)),
    // R2-Gaussian's iterations see one view each, ours up to 48.
    ("iterations of 50,000 Gaussians, a view each", "256^3, 50 views of 512^2", Case::Iterations(Of::FewGaussians, 1)),
    ("iterations of 50,000 Gaussians", "256^3, 50 views of 512^2", Case::Iterations(Of::FewGaussians, 48)),
    ("iterations of Gaussians", "256^3, 50 views of 512^2", Case::Iterations(Of::Gaussians, 48)),
    ("iterations of the field", "256^3, 50 views of 512^2", Case::Iterations(Of::Field, 48)),
    ("elements of volumes", "256^3", Case::Operations(volumes::elements)),
    ("elements of views", "50 views of 512^2", Case::Operations(views::elements)),
    ("variation and experts", "256^3, 24 experts", Case::Operations(volumes::priors)),
    ("gaussians, large", "50,000 of 3 voxels, 256^3, 4 views of 512^2", Case::Operations(gaussians::large)),
    ("gaussians, small", "2.3 million of 1 voxel, 256^3, 1 view of 512^2", Case::Operations(gaussians::small)),
    ("field", "the usual one of 256^3", Case::Operations(field::voxels)),
    ("field, rays", "the usual one of 256^3, 4096 rays of 384 samples", Case::Operations(field::rays)),
    ("slices", "16 across 256^3 and 2 on either side", Case::Operations(volumes::slices)),
    ("rolled detector", "256^3, 50 views of 512^2", Case::Operations(views::rolled)),
];

fn main() -> ExitCode {
    match Options::of_arguments().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("bench cuda: {why}");
            ExitCode::from(2)
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    rows: Vec<Value>,
    iterations: Vec<Value>,
    preview: Value,
    failed: Vec<Value>,
}

impl Findings {
    /// Runs a case; what it found before it failed counts.
    fn add(&mut self, settings: &Settings, (name, sizes, case): (&str, &str, Case)) -> Result<(), String> {
        match case {
            Case::Operations(work) => {
                let mut rows = Vec::new();
                let outcome = work(settings, &mut rows);
                self.rows.extend(rows.iter().map(|row| row.json((name, sizes), &settings.machine)));
                outcome.map_err(|error| error.to_string())
            }
            Case::Iterations(of, views) => {
                iterations::measure(settings, of, views).map(|row| self.iterations.push(row))
            }
            Case::Preview => preview::measure(settings).map(|preview| self.preview = preview),
        }
    }

    /// Writes the report, of a run that is cut off later too.
    fn write(&self, path: &str, settings: &Settings) -> Result<(), String> {
        let Self { rows, iterations, preview, failed } = self;
        let report = json!({
            "bench": "cuda", "sizes": settings.size("full", "small"), "machine": settings.machine.json(), "rows": rows,
            "failed": failed, "preview": preview, "iterations": iterations,
        });
        std::fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{path}: {error}"))
    }
}

/// Whether every case came through.
fn run(options: &Options) -> Result<bool, String> {
    let asked = CASES.into_iter().filter(|(name, ..)| options.ask_for(name));
    if options.list {
        asked.for_each(|(name, ..)| println!("{name}"));
        return Ok(true);
    }
    let machine = Machine::measure(options.device, options.small).map_err(|error| error.to_string())?;
    println!("{machine}");
    let settings = Settings { machine, small: options.small };
    let mut findings = Findings::default();
    for (name, sizes, case) in asked {
        let sizes = settings.size(sizes, "next to nothing");
        println!("\n{name} ({sizes}):");
        if let Err(error) = findings.add(&settings, (name, sizes, case)) {
            println!("  FAILED: {error}");
            findings.failed.push(json!({"case": name, "error": error}));
        }
        if let Some(path) = &options.json {
            findings.write(path, &settings)?;
        }
    }
    Ok(findings.failed.is_empty())
}
