//! Seconds of every CUDA operation against its floor on this device, and of the volume after the last frame.
//!
//! `cargo bench --bench cuda -- [--device INDEX] [--sizes small|full] [--json FILE] [CASE ...]`, INDEX as in `diffnr doctor`. CASE: part of a case's name,
//! to run it alone. Each figure is the median of several rounds of repetitions between two waits for the device, memory on the device,
//! after a warm-up.
//!
//! **Floors** are the contracts' of `kernels/*.cu`, with this device's figures in place of the H200's: bytes of memory at the measured copy bandwidth,
//! operations at multiprocessors x 128 x clock, bytes out of the first-level caches at multiprocessors x 128 x clock, bytes out of the second-level cache
//! at [`SECOND_LEVEL`] times the copy bandwidth; the largest of them. Launches that follow each other, and what an operation that returns a value waits for,
//! are measured on this device and counted too.

mod device;
mod gaussians;
mod field;
mod measure;
mod preview;
mod volumes;
mod views;

use std::process::ExitCode;

use diffnr::compute::ComputeError;
use serde_json::{Value, json};

use measure::{Machine, Row, Settings};

/// Bytes a second out of the second-level cache over those of a copy: 5 TB/s beside 4.3 TB/s on an H200.
const SECOND_LEVEL: f64 = 1.16;

struct Options {
    device: usize,
    small: bool,
    json: Option<String>,
    cases: Vec<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { device: 0, small: false, json: None, cases: Vec::new() };
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
            "--bench" => {} // cargo's own
            _ if argument.starts_with('-') => return Err(format!("{argument}: --device, --sizes, --json, or cases")),
            _ => options.cases.push(argument),
        }
    }
    Ok(options)
}

/// A case: some operations on a device of their own.
type Case = fn(&Settings, &mut Vec<Row>) -> Result<(), ComputeError>;

/// Name, sizes where they are full, operations.
const CASES: [(&str, &str, Case); 11] = [
    ("fdk", "512^3, 496 views of 512^2", views::fdk),
    ("projectors", "256^3, 50 views of 512^2", views::projectors),
    ("elements of volumes", "256^3", volumes::elements),
    ("elements of views", "50 views of 512^2", views::elements),
    ("losses", "256^3, 8 views of 512^2", volumes::losses),
    ("slices", "16 across 256^3 and 2 on either side", volumes::slices),
    ("variation and experts", "256^3, 24 experts", volumes::priors),
    ("gaussians, large", "50,000 of 3 voxels, 256^3, 4 views of 512^2", gaussians::large),
    ("gaussians, small", "2.3 million of 1 voxel, 256^3, 1 view of 512^2", gaussians::small),
    ("field", "the usual one of 256^3", field::voxels),
    ("field, rays", "the usual one of 256^3, 4096 rays of 384 samples", field::rays),
];

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("bench cuda: {why}");
            ExitCode::from(2)
        }
    }
}

/// Whether every case came through.
fn run(options: &Options) -> Result<bool, String> {
    let machine = Machine::measure(options.device, options.small).map_err(|error| error.to_string())?;
    println!("{machine}");
    let settings = Settings { machine, small: options.small };
    let asked = |name: &str| options.cases.is_empty() || options.cases.iter().any(|case| name.contains(case.as_str()));
    let (mut rows, mut failed, mut preview) = (Vec::<Value>::new(), Vec::<Value>::new(), Value::Null);
    // After each case, so that a run that is cut off leaves what it has.
    let write = |rows: &[Value], failed: &[Value], preview: &Value| {
        let Some(path) = &options.json else { return Ok(()) };
        let report = json!({
            "bench": "cuda", "sizes": if options.small { "small" } else { "full" }, "machine": settings.machine.json(), "rows": rows,
            "failed": failed, "preview": preview,
        });
        std::fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{path}: {error}"))
    };
    write(&rows, &failed, &preview)?;
    for (name, sizes, case) in CASES.into_iter().filter(|(name, ..)| asked(name)) {
        let sizes = settings.size(sizes, "next to nothing");
        println!("\n{name} ({sizes}):");
        let mut of_case = Vec::new();
        if let Err(error) = case(&settings, &mut of_case) {
            println!("  FAILED: {error}");
            failed.push(json!({"case": name, "error": error.to_string()}));
        }
        rows.extend(of_case.iter().map(|row| row.json((name, sizes), &settings.machine)));
        write(&rows, &failed, &preview)?;
    }
    if asked("preview") {
        println!("\npreview:");
        match preview::measure(&settings) {
            Ok(found) => preview = found,
            Err(error) => {
                println!("  FAILED: {error}");
                failed.push(json!({"case": "preview", "error": error}));
            }
        }
        write(&rows, &failed, &preview)?;
    }
    Ok(failed.is_empty())
}
