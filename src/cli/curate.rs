//! `diffnr curate`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Failure;
use crate::curate::{self, CurateError, Options, Progress, Request, ScanDraw, Subject};
use crate::error::exit;
use crate::formats::{DEFAULT_MU_WATER_PER_MM, FormatError};
use crate::reconstruct::ReconstructError;
use crate::reconstruct::optimise::OptimiseError;
use crate::simulate::error::SimulateError;

const EXAMPLES: &str = "\
Examples:
  diffnr curate ct/*.nii.gz --phantoms 8 --validation chest_lidc0002,headneck_vhf -o pairs
  diffnr curate chest.nii.gz leg=scan7.nii.gz -o pairs --licence 'CC BY 3.0' --list
  diffnr curate chest.nii.gz -o pairs --size 64 --detector 64 --scans 4      small pairs, quickly

The anatomy is the part of a file's name before the first '_', or ANATOMY=PATH; what follows it says whose body it is: all volumes of one
subject stand on one side of the split. Masks (*_labels, *_lungs, *_gtv, *_mask) and *slices_* are left out with a line. The same command
goes on where an interrupted one ended. Format: docs/curation.md.
Exit codes: 0 done, 2 options, 4 input, 5 impossible geometry, 6 too little memory, 9 output.";

/// Arguments of `diffnr curate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// CT volumes in HU (.nii or .nii.gz), each PATH or ANATOMY=PATH
    #[arg(value_name = "VOLUMES")]
    volumes: Vec<String>,
    /// Add so many seeded phantoms, chests and bodies of random ellipsoids by turns
    #[arg(long, value_name = "N", default_value_t = 0)]
    phantoms: usize,
    /// Add so many other bodies made of each volume that is learnt from: turned, stretched and bent
    #[arg(long, value_name = "N", default_value_t = 0)]
    deformed: usize,
    /// Folder to write, or to go on with
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Subjects that are kept out of the training set
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    validation: Vec<String>,
    /// Licence of the volumes' data: TEXT for all, NAME=TEXT for one
    #[arg(long, value_name = "[NAME=]TEXT")]
    licence: Vec<String>,
    /// Seed of every draw
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Scans of each subject
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Scans")]
    scans: usize,
    /// Geometries of each subject: the usual one, then others
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Scans")]
    geometries: usize,
    /// Fewest and most views of a scan
    #[arg(long, value_name = "FEWEST,MOST", default_value = "10,60", value_parser = pair::<usize>, help_heading = "Scans")]
    views: [usize; 2],
    /// Dense views over the turn, of which a scan has some
    #[arg(long, value_name = "K", default_value_t = 360, help_heading = "Scans")]
    views_dense: usize,
    /// Shares of the usual iterations between which Gaussians and fields are stopped
    #[arg(long, value_name = "LOW,HIGH", default_value = "0.25,0.5", value_parser = pair::<f64>, help_heading = "Scans")]
    stopped_at: [f64; 2],

    /// Voxels along each edge of the cube
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Sizes")]
    size: usize,
    /// Detector pixels: ROWSxCOLUMNS or one number
    #[arg(long, value_name = "RxC", default_value = "128", value_parser = super::simulate::detector, help_heading = "Sizes")]
    detector: [usize; 2],
    /// Attenuation of water in 1/mm
    #[arg(long, value_name = "MU", default_value_t = DEFAULT_MU_WATER_PER_MM, help_heading = "Sizes")]
    mu_water: f64,
    /// Rays across and down each pixel
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Sizes")]
    subpixels: usize,
    /// How many times finer than the cube a CT volume is sampled for projection, at least
    #[arg(long, value_name = "FACTOR", default_value_t = 1.37, help_heading = "Sizes")]
    oversample: f64,

    /// Only print what would be made
    #[arg(long, help_heading = "Output")]
    list: bool,
    /// Print a summary as JSON on standard output, and no progress
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Threads (0: all); shards do not depend on it
    #[arg(long, default_value_t = 0, help_heading = "Output")]
    threads: usize,
}

/// Parses `LOW,HIGH`.
fn pair<T: std::str::FromStr>(text: &str) -> Result<[T; 2], String> {
    let bad = || format!("`{text}` is not two numbers; write LOW,HIGH");
    let (low, high) = text.split_once(',').ok_or_else(bad)?;
    let number = |part: &str| part.trim().parse().map_err(|_| bad());
    Ok([number(low)?, number(high)?])
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            seed: self.seed,
            scans: self.scans,
            geometries: self.geometries,
            size: self.size,
            detector: self.detector,
            views_dense: self.views_dense,
            views: self.views,
            stopped_at: self.stopped_at,
            mu_water_per_mm: self.mu_water,
            subpixels: self.subpixels,
            oversample: self.oversample,
        }
    }
}

fn failure(error: CurateError) -> Failure {
    let code = match &error {
        CurateError::Setting { .. } => exit::USAGE,
        CurateError::Folder { .. } => exit::OUTPUT,
        CurateError::Memory { .. } => exit::BUDGET,
        CurateError::Compute(_) => exit::DEVICE,
        CurateError::Format(FormatError::Io { action, .. }) if *action != "read" => exit::OUTPUT,
        CurateError::Simulate { reason: SimulateError::Geometry(_), .. }
        | CurateError::Reconstruct { reason: OptimiseError::Reconstruct(ReconstructError::Geometry(_)), .. } => {
            exit::GEOMETRY
        }
        _ => exit::INPUT,
    };
    Failure::new(code, &error)
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.threads > 1024 {
        return Err(Failure { message: format!("--threads = {}: at most 1024", arguments.threads), code: exit::USAGE });
    }
    let begin = Instant::now();
    let options = arguments.options();
    options.check().map_err(failure)?;
    let gathered = curate::gather(&Request {
        volumes: arguments.volumes.clone(),
        phantoms: arguments.phantoms,
        deformed: arguments.deformed,
        validation: arguments.validation.clone(),
        licences: arguments.licence.clone(),
        seed: arguments.seed,
    })
    .map_err(failure)?;
    for line in &gathered.left_out {
        eprintln!("diffnr: left out {line}");
    }
    if arguments.list {
        list(arguments, &options, &gathered.subjects);
        return Ok(());
    }
    if arguments.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(arguments.threads)
            .build_global()
            .map_err(|error| Failure::new(exit::FAILURE, &error))?;
    }
    let mut display = Display::new(arguments.json);
    let summary = curate::curate(&options, &gathered.subjects, &arguments.output, arguments.threads, &mut |progress| {
        display.show(progress);
    });
    display.finish();
    let summary = summary.map_err(failure)?;
    let seconds = begin.elapsed().as_secs_f64();
    if arguments.json {
        let summary = json!({
            "folder": arguments.output,
            "subjects": summary.subjects,
            "made": summary.made,
            "kept": summary.kept,
            "left_out": gathered.left_out,
            "picture": summary.picture,
            "seconds": seconds,
        });
        say!("{summary}");
    } else {
        say!(
            "{}: {} subjects, {} shards made, {} kept, {seconds:.0} s; look at {}",
            arguments.output.display(),
            summary.subjects,
            summary.made,
            summary.kept,
            summary.picture.display()
        );
    }
    Ok(())
}

fn list(arguments: &Arguments, options: &Options, subjects: &[Subject]) {
    let draws = |subject: &Subject| -> Vec<ScanDraw> {
        (0..options.scans).map(|index| curate::scan(options, &subject.name, index)).collect()
    };
    if arguments.json {
        let all: Vec<_> = subjects
            .iter()
            .flat_map(|subject| draws(subject).into_iter().map(move |draw| (subject, draw)))
            .map(|(subject, draw)| {
                json!({
                    "subject": subject.name, "split": subject.split, "anatomy": subject.anatomy, "scan": draw.index,
                    "method": draw.by.name(), "iterations": draw.by.iterations(), "views": draw.views.len(),
                    "angles": draw.law.name(), "photons": draw.photons, "geometry": draw.geometry,
                })
            })
            .collect();
        say!("{}", json!(all));
        return;
    }
    for subject in subjects {
        say!("{:10} {} ({}, {})", subject.split.name(), subject.name, subject.anatomy, subject.source_name());
        for draw in draws(subject) {
            let photons = draw.photons.map_or("no noise".into(), |n| format!("{n:.0} photons"));
            say!(
                "           {:03}  {:9} {:3} iterations  {:2} views {:8}  {photons:13}  geometry {}",
                draw.index,
                draw.by.name(),
                draw.by.iterations(),
                draw.views.len(),
                draw.law.name(),
                draw.geometry
            );
        }
    }
    say!("{} subjects, {} shards", subjects.len(), subjects.len() * options.scans);
}

/// A bar on a terminal, a line a shard elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    quiet: bool,
    begin: Instant,
    to_make: usize,
    made: usize,
}

impl Display {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len} shards, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, quiet, begin: Instant::now(), to_make: 0, made: 0 }
    }

    fn show(&mut self, progress: Progress<'_>) {
        let seconds = self.begin.elapsed().as_secs_f64();
        match progress {
            Progress::Planned { to_make, kept } => {
                self.to_make = to_make;
                match &self.bar {
                    Some(bar) => bar.set_length(to_make as u64),
                    None if !self.quiet => eprintln!("{seconds:7.1} s  {to_make} shards to make, {kept} there"),
                    None => {}
                }
            }
            Progress::Step { subject, step } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{subject}: {step}"));
                }
            }
            Progress::Made { path, metadata } => {
                self.made += 1;
                if let Some(bar) = &self.bar {
                    bar.set_position(self.made as u64);
                } else if !self.quiet {
                    let text = |key: &str| metadata.get(key).map_or("", String::as_str);
                    let left_s = seconds / self.made as f64 * (self.to_make - self.made) as f64;
                    eprintln!(
                        "{seconds:7.1} s  {} of {}  {path}  {} {}, {} views {}, photons {}: {} dB; about {:.0} min left",
                        self.made,
                        self.to_make,
                        text("method"),
                        text("iterations"),
                        text("views"),
                        text("angles"),
                        text("photons"),
                        text("psnr_db"),
                        (left_s / 60.0).ceil(),
                    );
                }
            }
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_numbers_are_read_and_others_refused_with_an_example() {
        assert_eq!(pair::<f64>("0.25, 0.5").unwrap(), [0.25, 0.5]);
        assert_eq!(pair::<usize>("10,60").unwrap(), [10, 60]);
        for text in ["", "10", "a,b", "1,2,3", "-1,4"] {
            assert!(pair::<usize>(text).unwrap_err().contains("LOW,HIGH"), "{text}");
        }
    }

    #[test]
    fn failures_end_with_their_exit_codes() {
        let setting = CurateError::Setting { field: "--scans", value: "0".into(), requirement: "must be 1".into() };
        assert_eq!(failure(setting).code, exit::USAGE);
        let missing = curate::gather(&Request { volumes: vec!["nowhere/chest_a.nii".into()], ..Request::default() });
        let missing = failure(missing.unwrap_err());
        assert_eq!(missing.code, exit::INPUT);
        assert!(missing.message.contains("chest_a.nii"), "{}", missing.message);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("letter"), "dear").unwrap();
        let subjects = curate::gather(&Request { phantoms: 1, ..Request::default() }).unwrap().subjects;
        let occupied = curate::curate(&Options::default(), &subjects, folder.path(), 1, &mut |_| ());
        assert_eq!(failure(occupied.unwrap_err()).code, exit::OUTPUT);
    }
}
