//! What is seen of a method while it works: a bar on a terminal and, with `--trace`, a file of quality against seconds.
//!
//! The file holds `{"method", "scan", "views", "voxels", "field_of_view", "points": [{"seconds", "iteration", "residual", "psnr_db"}]}`.
//! `seconds` are the method's own: planning and the time spent on evaluating are not counted. `psnr_db` is that of `diffnr evaluate
//! --fov`: within the field of view where the scan has one (`field_of_view` says so), window -1000:1000 HU or 0:1 in scene values; it is
//! left out where the scene holds no ground truth on the volume's grid.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ndarray::{Array3, ArrayView3};
use serde_json::{Value, json};

use super::Arguments;
use crate::cli::Failure;
use crate::error::exit;
use crate::formats::{Scan, SceneScale, scene};
use crate::geometry::{Coverage, VolumeGrid};
use crate::measure;
use crate::reconstruct::{Observer, Progress};

/// Points of a trace where the user does not say how many.
const POINTS: usize = 100;

/// Options of the trace.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Trace")]
pub(super) struct Options {
    /// Write seconds, iteration, residual and (where the scene has a vol_gt) PSNR while the method works
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Iterations between two points of the trace [default: a hundredth of all]
    #[arg(long, value_name = "N", requires = "trace", value_parser = clap::value_parser!(u32).range(1..))]
    trace_every: Option<u32>,
}

impl Options {
    /// The file to write.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.trace.as_ref()
    }
}

/// Ground truth and where it counts.
struct Truth {
    per_mm: Array3<f32>,
    field_of_view: Option<Array3<bool>>,
    /// Attenuation that the window of the PSNR spans.
    range_per_mm: f64,
}

impl Truth {
    /// `None`, with a word on standard error, where there is nothing to compare with.
    fn read(arguments: &Arguments, scan: &Scan, grid: &VolumeGrid) -> Result<Option<Self>, Failure> {
        let read = if arguments.scan.is_dir() {
            scene::read_ground_truth_per_mm(&arguments.scan).map_err(|error| Failure::new(exit::INPUT, &error))?
        } else {
            None
        };
        let Some(per_mm) = read else {
            eprintln!("diffnr: the trace has no PSNR: the scan holds no ground truth");
            return Ok(None);
        };
        if *grid != scan.grid {
            eprintln!("diffnr: the trace has no PSNR: the ground truth is on another grid than the volume (--size)");
            return Ok(None);
        }
        let field_of_view = Coverage::analyse(&scan.geometry, grid).ok().map(|coverage| {
            let fov = coverage.field_of_view;
            Array3::from_shape_fn(per_mm.raw_dim(), |(x, y, z)| fov.contains(grid.voxel_centre_mm(x, y, z)))
        });
        Ok(Some(Self { per_mm, field_of_view, range_per_mm: range_per_mm(&scan.scale) }))
    }

    fn psnr_db(&self, volume: &[f32]) -> Option<f64> {
        let volume = ArrayView3::from_shape(self.per_mm.raw_dim(), volume).ok()?;
        let mask = self.field_of_view.as_ref().map(|mask| mask.view());
        let psnr_db = measure::psnr_db(volume, self.per_mm.view(), self.range_per_mm, mask).ok()?;
        psnr_db.is_finite().then_some(psnr_db)
    }
}

/// -1000:1000 HU, or 0:1 in the scene's own values: what `diffnr evaluate` takes.
fn range_per_mm(scale: &SceneScale) -> f64 {
    if scale.is_absolute { 2.0 * scale.mu_water_per_mm } else { scale.mu_per_value_per_mm }
}

/// Bar and trace.
pub(super) struct Tracer {
    bar: indicatif::ProgressBar,
    file: Option<PathBuf>,
    every: Option<usize>,
    head: Value,
    truth: Option<Truth>,
    points: Vec<Value>,
    iterations: usize,
    begin: Instant,
    paused_at: Option<Instant>,
    paused: Duration,
}

impl Tracer {
    /// Reads the ground truth where a trace was asked for.
    pub(super) fn new(arguments: &Arguments, scan: &Scan, grid: &VolumeGrid) -> Result<Self, Failure> {
        let options = &arguments.trace;
        let truth = if options.trace.is_some() { Truth::read(arguments, scan, grid)? } else { None };
        Ok(Self {
            bar: indicatif::ProgressBar::hidden(),
            file: options.trace.clone(),
            every: options.trace_every.map(|n| n as usize),
            head: json!({
                "method": arguments.method.name(),
                "scan": arguments.scan,
                "views": scan.geometry.views.len(),
                "voxels": grid.voxels,
                "field_of_view": truth.as_ref().is_some_and(|truth| truth.field_of_view.is_some()),
            }),
            truth,
            points: Vec::new(),
            iterations: 1,
            begin: Instant::now(),
            paused_at: None,
            paused: Duration::ZERO,
        })
    }

    /// The method's volumes are in `factor` times the scan's attenuations.
    pub(super) fn work_at(&mut self, factor: f64) {
        if let Some(truth) = self.truth.as_mut().filter(|_| factor != 1.0) {
            truth.per_mm.mapv_inplace(|value| value * factor as f32);
            truth.range_per_mm *= factor;
        }
    }

    /// The method begins: `iterations` of what `unit` calls them. The clock starts.
    pub(super) fn begin(&mut self, title: &str, unit: &str, iterations: usize) {
        self.bar = indicatif::ProgressBar::new(iterations as u64);
        self.bar.set_style(
            indicatif::ProgressStyle::with_template(&format!(
                "{title} {{wide_bar}} {{pos}}/{{len}} {unit}, {{eta}} left"
            ))
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
        );
        self.iterations = iterations.max(1);
        let every = self.every.get_or_insert((iterations / POINTS).max(1));
        self.points.reserve(iterations / *every + 2);
        (self.begin, self.paused) = (Instant::now(), Duration::ZERO);
    }

    /// So many iterations are done.
    pub(super) fn at(&self, iteration: usize) {
        self.bar.set_position(iteration as u64);
    }

    /// Whether the trace has a point after this iteration.
    fn is_due(&self, iteration: usize) -> bool {
        iteration.is_multiple_of(self.every.unwrap_or(1)) || iteration == 1 || iteration == self.iterations
    }

    /// The method has ended.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Time since [`Tracer::begin`] without that spent on evaluating.
    pub(super) fn method_s(&self) -> f64 {
        (self.begin.elapsed() - self.paused).as_secs_f64()
    }

    /// Writes the file, where one was asked for.
    pub(super) fn write(&mut self) -> Result<(), Failure> {
        let Some(path) = &self.file else { return Ok(()) };
        let mut trace = std::mem::take(&mut self.head);
        trace["points"] = std::mem::take(&mut self.points).into();
        std::fs::write(path, format!("{trace}\n")).map_err(|error| Failure {
            message: format!("{}: cannot write: {error}", path.display()),
            code: exit::OUTPUT,
        })
    }
}

impl Observer for Tracer {
    fn wants_volume(&mut self, iteration: usize) -> bool {
        self.paused_at = Some(Instant::now());
        self.truth.is_some() && self.is_due(iteration)
    }

    fn observe(&mut self, progress: &Progress<'_>) {
        self.at(progress.iteration);
        if self.file.is_some() && self.is_due(progress.iteration) {
            let until = self.paused_at.unwrap_or_else(Instant::now);
            let seconds = (until - self.begin).saturating_sub(self.paused).as_secs_f64();
            let mut point = json!({
                "seconds": seconds,
                "iteration": progress.iteration,
                "residual": progress.residual,
            });
            let psnr_db =
                self.truth.as_ref().zip(progress.volume_on_host()).and_then(|(truth, volume)| truth.psnr_db(volume));
            if let Some(psnr_db) = psnr_db {
                point["psnr_db"] = psnr_db.into();
            }
            self.points.push(point);
        }
        if let Some(at) = self.paused_at.take() {
            self.paused += at.elapsed();
        }
    }
}
