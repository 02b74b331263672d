//! `diffnr replay`: the producer from Rust.

mod frames;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::mapping::{self, MappingError};
use firmware_bridge::recording::{RecordingError, RecordingWriter};
use firmware_bridge::ring::Sent;
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use crate::error::exit;
use crate::formats::scene;
use frames::Frames;

/// Arguments of `diffnr replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr replay scans/thorax --rate 30                       # into the daemon's ring
  diffnr replay scans/thorax --rate 30 --raw                 # dark and flat frames first, then raw counts
  diffnr replay scans/thorax --raw --record thorax.dnr       # a recording for the C gantry simulator

Ends with exit code 4 where the scene is refused, 7 where there is no daemon or another producer runs.")]
pub(super) struct Arguments {
    /// The scene folder
    #[arg(value_name = "SCAN")]
    scan: PathBuf,
    /// Frames a second; 0: as fast as the ring takes them
    #[arg(long, value_name = "FPS", default_value_t = 30.0)]
    rate: f64,
    /// Name of the segments (shared_memory.name of the daemon's settings)
    #[arg(long, default_value = "diffnr")]
    name: String,
    /// Send what the detector counted (uint16, with dark and flat frames) instead of line integrals
    #[arg(long)]
    raw: bool,
    /// Number of the scan that the frames carry; 0: none
    #[arg(long, default_value_t = 0)]
    scan_id: u64,
    /// How often the scan is played
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Write a recording instead of playing into the ring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "times"])]
    record: Option<PathBuf>,
    /// How long to wait for the daemon, seconds
    #[arg(long, default_value_t = 5.0)]
    wait: f64,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// What became of the frames.
#[derive(Debug, Default, serde::Serialize)]
struct Outcome {
    frames: u64,
    dropped: u64,
    replaced: u64,
    late_by_max_ms: f64,
    seconds: f64,
    epoch: u32,
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !(arguments.rate.is_finite() && (0.0..=100_000.0).contains(&arguments.rate)) {
        let message = format!("--rate {}: must lie between 0 and 100000 frames a second", arguments.rate);
        return Err(Failure { message, code: exit::USAGE });
    }
    let scene = scene::read(&arguments.scan).map_err(|error| Failure::new(exit::INPUT, &error))?;
    let frames = Frames::new(scene, arguments.raw, arguments.scan_id).map_err(|message| {
        let message = format!("{}: {message}", arguments.scan.display());
        Failure { message, code: exit::INPUT }
    })?;
    match &arguments.record {
        Some(file) => record(file, &frames, arguments.json),
        None => play(arguments, &frames),
    }
}

fn record(file: &std::path::Path, frames: &Frames, json: bool) -> Result<(), Failure> {
    let failed = |error: RecordingError| Failure::new(exit::OUTPUT, &error);
    let [columns, rows] = frames.size();
    let mut writer = RecordingWriter::create(file, columns, rows).map_err(failed)?;
    for index in 0..frames.len() {
        let (header, payload) = frames.frame(index);
        writer.append(&header, payload).map_err(failed)?;
    }
    let count = writer.finish().map_err(failed)?;
    if json {
        say!("{{\"frames\": {count}}}");
    } else {
        say!("{count} frames recorded in {}", file.display());
    }
    Ok(())
}

fn play(arguments: &Arguments, frames: &Frames) -> Result<(), Failure> {
    let failed = |error: MappingError| Failure::new(exit::SHARED_MEMORY, &error);
    let wait = Duration::try_from_secs_f64(arguments.wait.max(0.0)).unwrap_or(Duration::MAX);
    let mut producer = mapping::wait_for(wait, || mapping::attach_producer(&arguments.name)).map_err(failed)?;
    let total = frames.len() as u64 * u64::from(arguments.times);
    // Draws on terminals only.
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} frames, {per_sec}, {msg}") {
        bar.set_style(style);
    }
    let mut outcome = Outcome { epoch: producer.epoch(), ..Outcome::default() };
    let start = Instant::now();
    let period = if arguments.rate > 0.0 { 1.0 / arguments.rate } else { 0.0 };
    for sequence in 0..total {
        let due = Duration::from_secs_f64(sequence as f64 * period);
        if let Some(early) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(early);
        }
        if period > 0.0 {
            let late_ms = start.elapsed().saturating_sub(due).as_secs_f64() * 1e3;
            outcome.late_by_max_ms = outcome.late_by_max_ms.max(late_ms);
        }
        let (mut header, payload) = frames.frame((sequence % frames.len() as u64) as usize);
        header.sequence = sequence;
        let sent = loop {
            header.timestamp_ns = monotonic_ns();
            let sent = producer.send(&header, payload, header.timestamp_ns);
            // As fast as the ring takes them: this producer, unlike a gantry, can wait.
            if sent != Sent::Dropped || period > 0.0 || start.elapsed() > due + Duration::from_secs(600) {
                break sent;
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        match sent {
            Sent::Written { replaced } => outcome.replaced += u64::from(replaced),
            Sent::Dropped => outcome.dropped += 1,
            Sent::TooLarge => {
                let [columns, rows] = frames.size();
                let message = format!(
                    "a frame of {columns} x {rows} pixels does not fit the daemon's ring: its settings describe another detector"
                );
                return Err(Failure { message, code: exit::SHARED_MEMORY });
            }
            Sent::Retired => {
                let message = "the daemon was restarted with another layout: start the replay again".into();
                return Err(Failure { message, code: exit::SHARED_MEMORY });
            }
            Sent::Superseded => {
                let message = "another producer has taken the ring over".into();
                return Err(Failure { message, code: exit::SHARED_MEMORY });
            }
        }
        outcome.frames += 1;
        bar.set_message(format!("{} dropped", outcome.dropped));
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(producer.detach());
    outcome.seconds = start.elapsed().as_secs_f64();
    if arguments.json {
        let text = serde_json::to_string(&outcome).map_err(|error| Failure::new(exit::FAILURE, &error))?;
        say!("{text}");
    } else {
        say!(
            "{} frames in {:.2} s (epoch {}): {} dropped, {} replaced unread frames, at most {:.2} ms behind schedule",
            outcome.frames,
            outcome.seconds,
            outcome.epoch,
            outcome.dropped,
            outcome.replaced,
            outcome.late_by_max_ms
        );
    }
    Ok(())
}
