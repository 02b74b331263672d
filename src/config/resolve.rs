//! From raw to validated: defaults, ranges, poses, grid.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use glam::DVec3;

use super::raw::{RawGeometry, RawPreprocess, RawSettings, RawSupervise, RawVolume};
use super::{
    Calibration, ComputeSettings, ConfigError, DropPolicy, LogFormat, PreprocessSettings, PublishSettings, Settings,
    SharedMemorySettings, SuperviseSettings, parse_bytes,
};
use crate::compute::cpu::ramp_filter::Window;
use crate::geometry::{CircularOrbit, Detector, ScanGeometry, VolumeGrid};

/// `value` where it lies in `low..=high`, `default` where it is not given.
pub(super) fn in_range<T: PartialOrd + Display + Copy>(
    field: &str,
    value: Option<T>,
    default: T,
    low: T,
    high: T,
) -> Result<T, ConfigError> {
    let value = value.unwrap_or(default);
    // A NaN is in no range.
    if value >= low && value <= high {
        return Ok(value);
    }
    Err(ConfigError::value(field, value, format!("must lie between {low} and {high} (default {default})")))
}

pub(super) fn count(field: &str, value: Option<i64>, default: i64, low: i64, high: i64) -> Result<usize, ConfigError> {
    in_range(field, value, default, low, high).map(|v| v as usize)
}

pub(super) fn choice<T: Copy>(
    field: &str,
    value: Option<&str>,
    default: &str,
    choices: &[(&str, T)],
) -> Result<T, ConfigError> {
    let value = value.unwrap_or(default);
    let lower = value.to_ascii_lowercase();
    choices.iter().find(|(name, _)| *name == lower).map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        ConfigError::value(field, format!("\"{value}\""), format!("must be one of {}", names.join(", ")))
    })
}

fn vector(field: &str, value: &[f64]) -> Result<DVec3, ConfigError> {
    match value {
        [x, y, z] if x.is_finite() && y.is_finite() && z.is_finite() => Ok(DVec3::new(*x, *y, *z)),
        _ => Err(ConfigError::value(field, format!("{value:?}"), "must be three finite numbers [x, y, z] in mm")),
    }
}

/// Everything checked and resolved; relative paths count from `folder`.
pub(super) fn resolve(raw: &RawSettings, folder: &Path) -> Result<Settings, ConfigError> {
    let source = geometry(&raw.geometry, folder)?;
    let grid = grid(&raw.volume, source.grid)?;
    grid.check()?;
    source.geometry.check()?;
    let mu_water_per_mm =
        in_range("volume.mu_water_per_mm", raw.volume.mu_water_per_mm.or(source.mu_water_per_mm), 0.0193, 1e-4, 1.0)?;
    let views = source.geometry.views.len() as i64;
    let mut optimised = super::reconstruct::optimised(&raw.reconstruct, &grid)?;
    let is_absolute = source.is_absolute || raw.volume.mu_water_per_mm.is_some();
    super::slice_fixer::slice_fixer(&raw.slice_fixer, &mut optimised, is_absolute, folder)?;
    let window = choice("reconstruct.window", raw.reconstruct.window.as_deref(), "ram-lak", &Window::NAMES)?;
    let limit = raw.memory.host_limit.as_deref().unwrap_or("2 GiB");
    let host_limit_bytes = parse_bytes(limit).filter(|bytes| *bytes > 0).ok_or_else(|| {
        ConfigError::value(
            "memory.host_limit",
            format!("\"{limit}\""),
            "must be a size such as \"2 GiB\" or \"512 MB\"",
        )
    })?;
    Ok(Settings {
        shared_memory: shared_memory(raw)?,
        publish: PublishSettings {
            preview_every_views: count("publish.preview_every_views", raw.publish.preview_every_views, 0, 0, views)?,
            frame_rate_fps: in_range("publish.frame_rate_fps", raw.publish.frame_rate_fps, 30.0, 0.01, 10_000.0)?,
            partial_min_views: count("publish.partial_min_views", raw.publish.partial_min_views, 1, 1, views)?,
        },
        geometry: source.geometry,
        geometry_origin: source.words,
        grid,
        mu_water_per_mm,
        preprocess: preprocess(&raw.preprocess, folder)?,
        window,
        optimised,
        host_limit_bytes,
        supervise: supervise(&raw.supervise, folder)?,
        compute: compute(raw)?,
    })
}

fn shared_memory(raw: &RawSettings) -> Result<SharedMemorySettings, ConfigError> {
    let section = &raw.shared_memory;
    let name = section.name.clone().unwrap_or_else(|| "diffnr".into());
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if name.is_empty() || name.len() > 64 || !plain || name.starts_with('.') {
        let requirement = "must be 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'";
        return Err(ConfigError::value("shared_memory.name", format!("\"{name}\""), requirement));
    }
    Ok(SharedMemorySettings {
        name,
        ring_slots: count("shared_memory.ring_slots", section.ring_slots, 32, 2, 4096)?,
        drop_policy: choice(
            "shared_memory.drop_policy",
            section.drop_policy.as_deref(),
            "newest",
            &[("newest", DropPolicy::Newest), ("oldest", DropPolicy::Oldest)],
        )?,
        volume_slots: count("shared_memory.volume_slots", section.volume_slots, 4, 3, 64)?,
    })
}

/// Poses, and what came with them.
struct PoseSource {
    geometry: ScanGeometry,
    grid: Option<VolumeGrid>,
    mu_water_per_mm: Option<f64>,
    /// Lengths are mm and values attenuations: HU mean something.
    is_absolute: bool,
    words: String,
}

fn geometry(raw: &RawGeometry, folder: &Path) -> Result<PoseSource, ConfigError> {
    if let Some(scan) = &raw.scan {
        let orbit_keys = RawGeometry { scan: None, ..raw.clone() };
        let given = serde_json::to_value(&orbit_keys).ok().and_then(|value| {
            value
                .as_object()?
                .iter()
                .find(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.clone(), value.to_string()))
        });
        if let Some((key, value)) = given {
            let requirement = "cannot stand beside geometry.scan, which gives all poses; remove one of the two";
            return Err(ConfigError::value(&format!("geometry.{key}"), value, requirement));
        }
        return from_scan(&folder.join(scan));
    }
    orbit(raw, folder)
}

fn from_scan(path: &Path) -> Result<PoseSource, ConfigError> {
    let description = crate::formats::scene::read_description(path)
        .map_err(|error| ConfigError::value("geometry.scan", path.display(), error.to_string()))?;
    let words = format!("{} views of the scene {}", description.geometry.views.len(), path.display());
    Ok(PoseSource {
        geometry: description.geometry,
        grid: Some(description.grid),
        mu_water_per_mm: Some(description.scale.mu_water_per_mm),
        is_absolute: description.scale.is_absolute,
        words,
    })
}

fn orbit(raw: &RawGeometry, folder: &Path) -> Result<PoseSource, ConfigError> {
    let needed_length = |field: &str, value: Option<f64>| match value {
        Some(value) if value.is_finite() && value > 0.0 && value < 1e6 => Ok(value),
        Some(value) => Err(ConfigError::value(field, value, "must be a length in mm, > 0 and < 1000000")),
        None => Err(ConfigError::value(
            field,
            "(not given)",
            "is needed: describe the orbit in [geometry], or give geometry.scan = \"SCENE_DIR\"",
        )),
    };
    let needed_count = |field: &str, value: Option<i64>| match value {
        Some(value) if (1..=65_535).contains(&value) => Ok(value as usize),
        Some(value) => Err(ConfigError::value(field, value, "must be a count between 1 and 65535")),
        None => Err(ConfigError::value(
            field,
            "(not given)",
            "is needed: describe the orbit in [geometry], or give geometry.scan = \"SCENE_DIR\"",
        )),
    };
    let shift = |field: &str, value: Option<f64>| in_range(field, value, 0.0, -1e6, 1e6);
    let tilt = |field: &str, value: Option<f64>| in_range(field, value, 0.0, -89.0, 89.0).map(f64::to_radians);
    let orbit = CircularOrbit {
        source_to_isocenter_mm: needed_length("geometry.source_to_isocenter_mm", raw.source_to_isocenter_mm)?,
        source_to_detector_mm: needed_length("geometry.source_to_detector_mm", raw.source_to_detector_mm)?,
        detector: Detector {
            columns: needed_count("geometry.columns", raw.columns)?,
            rows: needed_count("geometry.rows", raw.rows)?,
        },
        pitch_u_mm: needed_length("geometry.pitch_u_mm", raw.pitch_u_mm)?,
        pitch_v_mm: needed_length("geometry.pitch_v_mm", raw.pitch_v_mm)?,
        offset_u_mm: shift("geometry.offset_u_mm", raw.offset_u_mm)?,
        offset_v_mm: shift("geometry.offset_v_mm", raw.offset_v_mm)?,
        roll_rad: tilt("geometry.roll_deg", raw.roll_deg)?,
        pitch_rad: tilt("geometry.pitch_deg", raw.pitch_deg)?,
        yaw_rad: tilt("geometry.yaw_deg", raw.yaw_deg)?,
    };
    let (geometry, words) = match &raw.angles_file {
        Some(file) => {
            for (key, given) in [
                ("views", raw.views.is_some()),
                ("start_deg", raw.start_deg.is_some()),
                ("arc_deg", raw.arc_deg.is_some()),
            ] {
                if given {
                    let requirement =
                        "cannot stand beside geometry.angles_file, which gives all angles; remove one of the two";
                    return Err(ConfigError::value(&format!("geometry.{key}"), "(given)", requirement));
                }
            }
            let file = folder.join(file);
            let angles = angles(&file)?;
            (orbit.at_angles(&angles), format!("circular orbit, {} angles of {}", angles.len(), file.display()))
        }
        None => {
            let views = needed_count("geometry.views", raw.views)?;
            let start_deg = in_range("geometry.start_deg", raw.start_deg, 0.0, -360.0, 360.0)?;
            let arc_deg = in_range("geometry.arc_deg", raw.arc_deg, 360.0, -360.0, 360.0)?;
            if arc_deg == 0.0 {
                return Err(ConfigError::value(
                    "geometry.arc_deg",
                    arc_deg,
                    "must not be 0; negative turns the other way",
                ));
            }
            let words = format!("circular orbit, {views} views over {arc_deg} degrees from {start_deg}");
            (orbit.over_arc(views, start_deg.to_radians(), arc_deg.to_radians()), words)
        }
    };
    Ok(PoseSource { geometry, grid: None, mu_water_per_mm: None, is_absolute: true, words })
}

/// Gantry angles in degrees, one a line; empty lines and `#` comments are left out.
fn angles(file: &Path) -> Result<Vec<f64>, ConfigError> {
    let field = "geometry.angles_file";
    let text = std::fs::read_to_string(file)
        .map_err(|error| ConfigError::value(field, file.display(), format!("cannot be read: {error}")))?;
    let mut angles = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let angle = f64::from_str(line).ok().filter(|a| a.is_finite()).ok_or_else(|| {
            let place = format!("{} line {}: \"{line}\"", file.display(), index + 1);
            ConfigError::value(field, place, "must be one gantry angle in degrees a line")
        })?;
        angles.push(angle.to_radians());
    }
    if angles.is_empty() || angles.len() > 65_535 {
        let value = format!("{} ({} angles)", file.display(), angles.len());
        return Err(ConfigError::value(field, value, "must hold between 1 and 65535 angles"));
    }
    Ok(angles)
}

fn grid(raw: &RawVolume, from_scan: Option<VolumeGrid>) -> Result<VolumeGrid, ConfigError> {
    let voxels = match (&raw.voxels, from_scan) {
        (Some(counts), _) => {
            let valid: Vec<usize> =
                counts.iter().filter(|count| (1..=8192).contains(*count)).map(|count| *count as usize).collect();
            <[usize; 3]>::try_from(valid).ok().filter(|_| counts.len() == 3).ok_or_else(|| {
                let requirement = "must be three counts [x, y, z] between 1 and 8192";
                ConfigError::value("volume.voxels", format!("{counts:?}"), requirement)
            })?
        }
        (None, Some(grid)) => grid.voxels,
        (None, None) => [128; 3],
    };
    let size_mm = match (&raw.size_mm, from_scan) {
        (Some(size), _) => {
            let size_mm = vector("volume.size_mm", size)?;
            if size_mm.min_element() <= 0.0 {
                return Err(ConfigError::value("volume.size_mm", format!("{size:?}"), "must be > 0 on every axis"));
            }
            size_mm
        }
        (None, Some(grid)) => grid.size_mm(),
        (None, None) => {
            let requirement = "is needed: the whole size [x, y, z] of the volume in mm";
            return Err(ConfigError::value("volume.size_mm", "(not given)", requirement));
        }
    };
    let centre_mm = match (&raw.centre_mm, from_scan) {
        (Some(centre), _) => vector("volume.centre_mm", centre)?,
        (None, Some(grid)) => grid.centre_mm,
        (None, None) => DVec3::ZERO,
    };
    Ok(VolumeGrid::over_box(voxels, size_mm, centre_mm))
}

fn preprocess(raw: &RawPreprocess, folder: &Path) -> Result<PreprocessSettings, ConfigError> {
    let source = |value: Option<&str>| match value {
        None | Some("ring") => Calibration::Ring,
        Some("none") => Calibration::None,
        Some(file) => Calibration::File(folder.join(file)),
    };
    let i0_counts = match raw.i0 {
        Some(i0) if !(i0.is_finite() && i0 > 0.0 && i0 <= 1e9) => {
            return Err(ConfigError::value("preprocess.i0", i0, "must be counts > 0 of an unattenuated pixel"));
        }
        i0 => i0,
    };
    let settings = PreprocessSettings {
        i0_counts,
        dark: source(raw.dark.as_deref()),
        flat: source(raw.flat.as_deref()),
        dead_below: in_range("preprocess.dead_below", raw.dead_below, 0.2, 0.0, 0.99)?,
        hot_above: in_range("preprocess.hot_above", raw.hot_above, 0.3, 0.01, 1.0)?,
        max_bad_fraction: in_range("preprocess.max_bad_fraction", raw.max_bad_fraction, 0.02, 0.0, 0.25)?,
        min_transmission: in_range("preprocess.min_transmission", raw.min_transmission, 1e-5, 1e-9, 0.5)?,
    };
    for (field, calibration) in [("preprocess.dark", &settings.dark), ("preprocess.flat", &settings.flat)] {
        if let Calibration::File(file) = calibration
            && !file.is_file()
        {
            let requirement = "must be \"ring\", \"none\" or an existing .npy file of float32 [row][column]";
            return Err(ConfigError::value(field, file.display(), requirement));
        }
    }
    Ok(settings)
}

fn supervise(raw: &RawSupervise, folder: &Path) -> Result<SuperviseSettings, ConfigError> {
    let log_level = raw.log_level.clone().unwrap_or_else(|| "info".into());
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log_level) {
        let requirement = format!("must be a filter such as \"info\" or \"diffnr=debug\": {error}");
        return Err(ConfigError::value("supervise.log_level", log_level, requirement));
    }
    Ok(SuperviseSettings {
        status_file: raw.status_file.as_ref().map(|file: &PathBuf| folder.join(file)),
        status_every_ms: count("supervise.status_every_ms", raw.status_every_ms, 200, 10, 60_000)? as u64,
        log_level,
        log_format: choice(
            "supervise.log_format",
            raw.log_format.as_deref(),
            "text",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )?,
        frame_timeout_ms: count("supervise.frame_timeout_ms", raw.frame_timeout_ms, 2_000, 10, 3_600_000)? as u64,
        grace_ms: count("supervise.grace_ms", raw.grace_ms, 2_000, 0, 600_000)? as u64,
        stall_ms: count("supervise.stall_ms", raw.stall_ms, 5_000, 100, 600_000)? as u64,
        staging_frames: count("supervise.staging_frames", raw.staging_frames, 8, 2, 1024)?,
    })
}

fn compute(raw: &RawSettings) -> Result<ComputeSettings, ConfigError> {
    let device = raw.compute.device.as_deref().unwrap_or("auto").to_ascii_lowercase();
    let device = device
        .parse()
        .map_err(|requirement: String| ConfigError::value("compute.device", format!("\"{device}\""), requirement))?;
    let threads = match count("compute.threads", raw.compute.threads, 0, 0, 1024)? {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        threads => threads,
    };
    Ok(ComputeSettings { device, self_test: raw.compute.self_test.unwrap_or(true), threads })
}
