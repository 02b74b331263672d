//! `diffnr watch`: the reader.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firmware_bridge::clock::monotonic_ns;
use firmware_bridge::layout::{
    DaemonState, METHOD_FDK, METHOD_FIELD, METHOD_GAUSSIANS, VOLUME_DEGRADED, VOLUME_FULL, VOLUME_PARTIAL,
    VOLUME_PREVIEW, VOLUME_STALE, VolumeHeader,
};
use firmware_bridge::mapping::{self, Mapping, MappingError};
use firmware_bridge::slots::{Status, VolumeReader, text_of};
use glam::DVec3;
use ndarray::ArrayView3;
use serde::Serialize;

use super::Failure;
use crate::error::exit;
use crate::formats::{FormatError, SceneScale, nifti, npy, picture, scene};
use crate::geometry::VolumeGrid;

/// How long a volume is leased for copying it out.
const LEASE_NS: u64 = 5_000_000_000;

/// Arguments of `diffnr watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  diffnr watch --follow                                       # a status line, until interrupted
  diffnr watch --wait full --timeout 60 --save thorax.nii.gz  # the volume of all frames, as soon as there is one, in HU
  diffnr watch --wait final --timeout 300 --save thorax.nii.gz  # the last one of the scan, once it has been optimised
  diffnr watch --png slices.png                               # three slices of whatever is newest

Ends with exit code 7 where there is no daemon's segment, or no such volume within the time-out, 9 where a file cannot be written.")]
pub(super) struct Arguments {
    /// Name of the segments (shared_memory.name of the daemon's settings)
    #[arg(long, default_value = "diffnr")]
    name: String,
    /// Go on showing the status until interrupted
    #[arg(long)]
    follow: bool,
    /// Save the volume: .nii.gz or .nii in HU, .npy in 1/mm (with --scan: in the scene's own values)
    #[arg(long, value_name = "OUT")]
    save: Option<PathBuf>,
    /// Save three orthogonal slices as a picture
    #[arg(long, value_name = "OUT.png")]
    png: Option<PathBuf>,
    /// The scene that the scan came from: its scale and the patient's position
    #[arg(long, value_name = "SCAN")]
    scan: Option<PathBuf>,
    /// Which volume to wait for
    #[arg(long, value_name = "WHICH")]
    wait: Option<Wait>,
    /// Leave out the volume that is there already: wait for one that is published from now on
    #[arg(long)]
    new: bool,
    /// How long to wait, seconds
    #[arg(long, default_value_t = 10.0)]
    timeout: f64,
    /// Print status and volume as JSON (one object a line with --follow)
    #[arg(long)]
    json: bool,
}

/// Which volume to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    /// FULL, or PARTIAL at a scan's end, however far its optimisation has come
    Full,
    /// The same with nothing more to come: all iterations done, or DEGRADED
    Final,
    /// Any
    Any,
}

impl Wait {
    fn accepts(self, header: &VolumeHeader) -> bool {
        match self {
            Self::Any => true,
            Self::Final => {
                let has_ended = header.iteration >= header.iterations_planned || header.status & VOLUME_DEGRADED != 0;
                has_ended && Self::Full.accepts(header)
            }
            Self::Full => {
                header.status & (VOLUME_FULL | VOLUME_PARTIAL) != 0
                    && header.status & (VOLUME_PREVIEW | VOLUME_STALE) == 0
            }
        }
    }
}

/// A volume copied out of its slot.
struct Copied {
    header: VolumeHeader,
    values: Vec<f32>,
}

fn unavailable(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), code: exit::SHARED_MEMORY }
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let timeout = Duration::try_from_secs_f64(arguments.timeout.max(0.0)).unwrap_or(Duration::MAX);
    let deadline = Instant::now().checked_add(timeout);
    let attach = || mapping::attach_reader(&arguments.name);
    let failed = |error: MappingError| Failure::new(exit::SHARED_MEMORY, &error);
    let mut reader = mapping::wait_for(timeout, attach).map_err(failed)?;
    let mut printer = Printer { json: arguments.json, last: String::new() };

    let wants_any = arguments.new || arguments.save.is_some() || arguments.png.is_some();
    let wanted = arguments.wait.or(wants_any.then_some(Wait::Any));
    if let Some(wanted) = wanted {
        let volume = wait_for_volume(&mut reader, arguments, wanted, deadline, &mut printer)?;
        save(arguments, &volume)?;
        printer.print(&reader, Some(&volume.header));
    }
    if !arguments.follow {
        if wanted.is_none() {
            let header = reader.newest(monotonic_ns(), LEASE_NS).ok().map(|volume| *volume.header());
            printer.print(&reader, header.as_ref());
        }
        return Ok(());
    }
    let mut saved = reader.newest_generation();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        reattach(&mut reader, arguments);
        let newest = reader.newest(monotonic_ns(), LEASE_NS).ok().map(|volume| *volume.header());
        if let Some(header) = newest
            && header.generation != saved
            && wanted.is_some_and(|wanted| wanted.accepts(&header))
            && let Ok(volume) = copy_newest(&reader)
        {
            saved = volume.header.generation;
            save(arguments, &volume)?;
        }
        printer.print(&reader, newest.as_ref());
    }
}

/// Follows a daemon that was restarted with another layout.
fn reattach(reader: &mut VolumeReader<Mapping>, arguments: &Arguments) {
    if reader.slots().is_retired()
        && let Ok(new) = mapping::attach_reader(&arguments.name)
    {
        *reader = new;
    }
}

fn wait_for_volume(
    reader: &mut VolumeReader<Mapping>,
    arguments: &Arguments,
    wanted: Wait,
    deadline: Option<Instant>,
    printer: &mut Printer,
) -> Result<Copied, Failure> {
    let mut looked_at = if arguments.new { reader.newest_generation() } else { 0 };
    loop {
        reattach(reader, arguments);
        let generation = reader.newest_generation();
        if generation != 0 && generation != looked_at {
            match copy_newest(reader) {
                Ok(volume) if wanted.accepts(&volume.header) => return Ok(volume),
                Ok(volume) => looked_at = volume.header.generation,
                // A lease lost to a faster daemon: look again.
                Err(error) => tracing::debug!("{error}"),
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let status = reader.slots().status();
            let what = match wanted {
                Wait::Any => "volume",
                Wait::Full => "finished volume",
                Wait::Final => "optimised volume",
            };
            return Err(unavailable(format!(
                "no {what} on \"{}\" within {} s (daemon {}, {} of {} views): raise --timeout, or see the daemon's log",
                arguments.name,
                arguments.timeout,
                daemon_words(&status),
                status.scan_frames,
                status.scan_views
            )));
        }
        if !arguments.json {
            printer.progress(reader);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn copy_newest(reader: &VolumeReader<Mapping>) -> Result<Copied, firmware_bridge::error::ReadError> {
    let volume = reader.newest(monotonic_ns(), LEASE_NS)?;
    let values = volume.read()?;
    Ok(Copied { header: *volume.header(), values })
}

fn save(arguments: &Arguments, volume: &Copied) -> Result<(), Failure> {
    if arguments.save.is_none() && arguments.png.is_none() {
        return Ok(());
    }
    let Copied { header, values } = volume;
    let scene = arguments.scan.as_deref().map(scene::read_description).transpose();
    let scene = scene.map_err(|error| Failure::new(exit::INPUT, &error))?;
    let failed = |error: FormatError| Failure::new(exit::OUTPUT, &error);
    let voxels = header.shape.map(|count| count as usize);
    let voxel_mm = DVec3::from(header.spacing_mm);
    let counts = DVec3::new(voxels[0] as f64, voxels[1] as f64, voxels[2] as f64);
    let centre_mm = DVec3::from(header.origin_mm) + 0.5 * (counts - 1.0) * voxel_mm;
    let grid = VolumeGrid { voxels, voxel_mm, centre_mm };
    let mu = ArrayView3::from_shape(voxels, values)
        .map_err(|_| unavailable("the volume's header and its values do not fit together"))?;
    let mu = mu.mapv(|value| value * header.value_scale);
    let absolute = SceneScale::hu_window(f64::from(header.mu_water_per_mm));
    let scale = scene.as_ref().map_or(absolute, |scene| scene.scale);
    let offset_mm = scene.as_ref().map_or(DVec3::ZERO, |scene| scene.patient_offset_mm);
    if let Some(path) = &arguments.save {
        if has_ending(path, ".npy") {
            let values = if scene.is_some() { scale.volume_values(mu.view()) } else { mu.clone() };
            npy::write_volume(path, values.view()).map_err(failed)?;
        } else {
            nifti::write_mu(path, mu.view(), &grid, &scale, offset_mm, nifti::Storage::Float32).map_err(failed)?;
        }
    }
    if let Some(path) = &arguments.png {
        if scale.is_absolute {
            write_picture(path, header, scale.volume_hu(mu.view()).view(), picture::Window::WIDE)?;
        } else {
            // The scene's own values, which its field normalises to [0, 1].
            let window = picture::Window { low: 0.0, high: 1.0, unit: "" };
            write_picture(path, header, scale.volume_values(mu.view()).view(), window)?;
        }
    }
    Ok(())
}

/// Three slices, with what the volume's header says of it.
fn write_picture(
    path: &Path,
    header: &VolumeHeader,
    values: ArrayView3<'_, f32>,
    window: picture::Window,
) -> Result<(), Failure> {
    let seen = SeenVolume::of(header);
    let missing = if seen.missing_frames > 0 { format!(", {} missing", seen.missing_frames) } else { String::new() };
    let iteration = if seen.iteration > 0 { format!(", {} {}", seen.method, seen.iteration) } else { String::new() };
    let caption = format!("{} volume {}: {} frames{missing}{iteration}", seen.status, seen.generation, seen.frames);
    let panel = picture::Panel { volume: values, spacing_mm: header.spacing_mm, caption };
    picture::write_slices(path, &panel, window).map_err(|error| Failure::new(exit::OUTPUT, &error))
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.to_string_lossy().to_ascii_lowercase().ends_with(ending)
}

/// Whether the daemon lives, in words.
fn daemon_words(status: &Status) -> String {
    let state = crate::supervise::state_name(status.state);
    let age_ms = monotonic_ns().saturating_sub(status.heartbeat_ns) / 1_000_000;
    if status.daemon_pid == 0 || status.state == Some(DaemonState::Stopped) {
        return state.into();
    }
    let alive = crate::supervise::is_alive(status.daemon_pid);
    if alive { state.into() } else { format!("dead (was {state}; last sign of life {age_ms} ms ago)") }
}

/// A method's name.
fn method_name(number: u64) -> &'static str {
    const METHODS: [(u32, &str); 3] = [(METHOD_FDK, "fdk"), (METHOD_GAUSSIANS, "gaussians"), (METHOD_FIELD, "field")];
    METHODS.iter().find(|(method, _)| u64::from(*method) == number).map_or("unknown", |(_, name)| name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `--json` prints.
#[derive(Serialize)]
struct Seen {
    daemon: String,
    daemon_pid: u64,
    message: String,
    scan_frames: u64,
    scan_views: u64,
    frames_accepted: u64,
    frames_rejected: u64,
    frames_missing: u64,
    missing: Vec<[u64; 2]>,
    epoch: u64,
    published: u64,
    method: &'static str,
    iteration: u64,
    iterations_planned: u64,
    residual: f64,
    seconds: f64,
    volume: Option<SeenVolume>,
}

#[derive(Serialize)]
struct SeenVolume {
    generation: u64,
    status: String,
    shape: [u32; 3],
    spacing_mm: [f64; 3],
    frames: u32,
    method: &'static str,
    iteration: u32,
    iterations_planned: u32,
    early_iterations: u32,
    early_views: u32,
    residual: f32,
    seconds: f64,
    repairs: u32,
    repairs_planned: u32,
    repairs_failed: u32,
    repair_seconds: f64,
    repair_model: String,
    repair_provider: String,
    model_hash: String,
    first_sequence: u64,
    last_sequence: u64,
    missing_frames: u64,
    missing: Vec<[u64; 2]>,
    epoch: u32,
    scan_id: u64,
    latency_ms: f64,
    settings_hash: String,
    device: String,
    provider: String,
    precision: String,
}

impl SeenVolume {
    fn of(header: &VolumeHeader) -> Self {
        let count = (header.missing_count as usize).min(header.missing.len());
        Self {
            generation: header.generation,
            status: crate::supervise::status_words(header.status),
            shape: header.shape,
            spacing_mm: header.spacing_mm,
            frames: header.frames_used,
            method: method_name(header.method.into()),
            iteration: header.iteration,
            iterations_planned: header.iterations_planned,
            early_iterations: header.early_iterations,
            early_views: header.early_views,
            residual: header.residual,
            seconds: header.method_ns as f64 / 1e9,
            repairs: header.repairs,
            repairs_planned: header.repairs_planned,
            repairs_failed: header.repairs_failed,
            repair_seconds: f64::from(header.repair_ms) / 1e3,
            repair_model: text_of(&header.repair_model).into(),
            repair_provider: text_of(&header.repair_provider).into(),
            model_hash: hex(&header.model_hash),
            first_sequence: header.first_sequence,
            last_sequence: header.last_sequence,
            missing_frames: header.missing_frames,
            missing: header.missing[..count].iter().map(|r| [r.first, r.last]).collect(),
            epoch: header.epoch,
            scan_id: header.scan_id,
            latency_ms: header.publish_ns.saturating_sub(header.last_frame_ns) as f64 / 1e6,
            settings_hash: hex(&header.settings_hash),
            device: text_of(&header.device).into(),
            provider: text_of(&header.provider).into(),
            precision: text_of(&header.precision).into(),
        }
    }
}

impl SeenVolume {
    /// What repaired it, in words; empty where nothing was to.
    fn repair_words(&self) -> String {
        let (done, planned) = (self.repairs, self.repairs_planned);
        match (planned, done) {
            (0, _) => String::new(),
            (_, 0) => format!(", 0 of {planned} repairs"),
            _ => format!(", {done} of {planned} repairs by {} on {}", self.repair_model, self.repair_provider),
        }
    }
}

struct Printer {
    json: bool,
    last: String,
}

impl Printer {
    fn print(&mut self, reader: &VolumeReader<Mapping>, header: Option<&VolumeHeader>) {
        let status = reader.slots().status();
        let detail = reader.slots().status_detail();
        if self.json {
            let seen = Seen {
                daemon: daemon_words(&status),
                daemon_pid: status.daemon_pid,
                message: detail.as_ref().map_or(String::new(), |d| text_of(&d.message).into()),
                scan_frames: status.scan_frames,
                scan_views: status.scan_views,
                frames_accepted: status.frames_accepted,
                frames_rejected: status.frames_rejected,
                frames_missing: status.frames_missing,
                missing: detail.map_or(Vec::new(), |d| d.missing().iter().map(|r| [r.first, r.last]).collect()),
                epoch: status.epoch,
                published: status.published,
                method: method_name(status.method),
                iteration: status.iteration,
                iterations_planned: status.iterations_planned,
                residual: status.residual_1e9 as f64 / 1e9,
                seconds: status.method_ns as f64 / 1e9,
                volume: header.map(SeenVolume::of),
            };
            if let Ok(text) = serde_json::to_string(&seen) {
                say!("{text}");
            }
            return;
        }
        let volume = header.map_or("no volume yet".into(), |header| {
            let seen = SeenVolume::of(header);
            let [x, y, z] = seen.shape;
            let missing =
                if seen.missing_frames > 0 { format!(", {} missing", seen.missing_frames) } else { String::new() };
            let method = match seen.iterations_planned {
                0 => String::new(),
                planned => format!(" {} iteration {} of {planned}{}", seen.method, seen.iteration, seen.repair_words()),
            };
            format!(
                "volume {} {}{method} {x}x{y}x{z}, {} frames{missing}, {:.2} ms after its last frame, on {} {}",
                seen.generation, seen.status, seen.frames, seen.latency_ms, seen.device, seen.provider
            )
        });
        let line = format!("{}; {volume}", self.status_words(&status));
        self.say(line);
    }

    fn progress(&mut self, reader: &VolumeReader<Mapping>) {
        let status = reader.slots().status();
        // On a terminal the line tells how far it is; elsewhere only changes of state are worth a line.
        let line = self.status_words(&status);
        let line = if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            line
        } else {
            format!("daemon {}, waiting", daemon_words(&status))
        };
        self.say(line);
    }

    fn status_words(&self, status: &Status) -> String {
        let optimisation = match status.iterations_planned {
            0 => String::new(),
            planned => format!(
                "; {} iteration {} of {planned}, residual {:.5}, {:.1} s",
                method_name(status.method),
                status.iteration,
                status.residual_1e9 as f64 / 1e9,
                status.method_ns as f64 / 1e9
            ),
        };
        format!(
            "daemon {}: {} of {} views, {} missing, {} rejected, epoch {}{optimisation}",
            daemon_words(status),
            status.scan_frames,
            status.scan_views,
            status.frames_missing,
            status.frames_rejected,
            status.epoch
        )
    }

    /// A line, where it says something new.
    fn say(&mut self, line: String) {
        if line != self.last {
            say!("{line}");
            self.last = line;
        }
    }
}
