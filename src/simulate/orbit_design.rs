//! Orbit, angles and grid of a simulated scan: what the user gave, and the rest chosen from the object so that it is seen whole.

use std::f64::consts::{PI, TAU};

use glam::DVec3;
use rand::RngExt;

use super::error::SimulateError;
use super::object::Extent;
use super::photon_noise::{Stream, stream};
use crate::geometry::{CircularOrbit, Detector, GeometryError, ScanGeometry, VolumeGrid};

/// Room left about the object's shadow on the detector and about the object in the volume, as a share.
const MARGIN: f64 = 0.03;
/// Share of the half fan that a half-fan detector reaches beyond the axis on its short side.
const HALF_FAN_OVERLAP: f64 = 0.2;

/// How angles lie on the arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AngleLaw {
    /// Equal steps.
    Uniform,
    /// Drawn uniformly on the arc with a seed, then sorted.
    Random(u64),
    /// One at a random place of each of the equal steps, with a seed.
    Jittered(u64),
}

/// What the user asked for; `None` is chosen from the object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OrbitRequest {
    /// Number of views.
    pub views: usize,
    /// Gantry angle of the arc's beginning.
    pub start_rad: f64,
    /// Arc, > 0; a full turn or the short scan by default.
    pub arc_rad: Option<f64>,
    /// Turn clockwise seen from +z instead of counter-clockwise.
    pub clockwise: bool,
    /// Where on the arc the views lie.
    pub angles: AngleLaw,
    /// Source-to-isocenter distance (DSO).
    pub source_to_isocenter_mm: f64,
    /// Source-to-detector distance (DSD).
    pub source_to_detector_mm: f64,
    /// Pixel counts.
    pub detector: Detector,
    /// Pixel pitch along u and v.
    pub pitch_mm: Option<[f64; 2]>,
    /// Detector shift along u; for a half-fan chosen so that one side is seen whole.
    pub offset_u_mm: Option<f64>,
    /// Detector shift along v.
    pub offset_v_mm: f64,
    /// Roll, pitch and yaw of the detector.
    pub tilt_rad: [f64; 3],
    /// Shift the detector sideways to see one half of the object, the other half from the other side.
    pub half_fan: bool,
    /// Turn no further than 180 degrees plus the fan.
    pub short_scan: bool,
}

/// A worked-out acquisition.
#[derive(Debug, Clone, PartialEq)]
pub struct OrbitDesign {
    /// The orbit.
    pub orbit: CircularOrbit,
    /// Gantry angle of each view, in the order of acquisition.
    pub angles_rad: Vec<f64>,
    /// Arc, with its sign.
    pub arc_rad: f64,
    /// What was chosen and what to mind, for the user.
    pub notes: Vec<String>,
}

impl OrbitDesign {
    /// Works out what was left open.
    ///
    /// # Errors
    /// [`SimulateError::Setting`] or [`SimulateError::Geometry`] naming the option, for values that cannot work alone, with each
    /// other or with the object.
    pub fn new(request: &OrbitRequest, extent: &Extent) -> Result<Self, SimulateError> {
        check(request, extent)?;
        let (dso, dsd) = (request.source_to_isocenter_mm, request.source_to_detector_mm);
        let (columns, rows) = (request.detector.columns as f64, request.detector.rows as f64);
        let mut notes = Vec::new();
        let half_width = (1.0 + MARGIN) * dsd * (extent.radius_mm / dso).asin().tan();
        // The near side of the object throws the highest shadow.
        let half_height =
            (1.0 + MARGIN) * extent.half_height_mm() * dsd / (dso - extent.radius_mm) + request.offset_v_mm.abs();
        let span = if request.half_fan { (1.0 + HALF_FAN_OVERLAP) * half_width } else { 2.0 * half_width };
        let span = span + if request.half_fan { 0.0 } else { 2.0 * request.offset_u_mm.unwrap_or(0.0).abs() };
        let [pitch_u_mm, pitch_v_mm] = request.pitch_mm.unwrap_or_else(|| {
            let (across, down) = (round_up(span / columns), round_up(2.0 * half_height / rows));
            // Square pixels, except where a half-fan would see the whole object with them.
            let pitch = if request.half_fan { [across, across.max(down)] } else { [across.max(down); 2] };
            notes.push(format!(
                "pixel pitch {} x {} mm, so that the object (radius {:.0} mm, height +-{:.0} mm) is seen whole",
                pitch[0],
                pitch[1],
                extent.radius_mm,
                extent.half_height_mm()
            ));
            pitch
        });
        let offset_u_mm = request.offset_u_mm.unwrap_or_else(|| {
            let offset = (half_width - 0.5 * columns * pitch_u_mm).max(0.0);
            if request.half_fan {
                notes.push(format!("detector offset {offset:.1} mm along u for the half-fan"));
                offset
            } else {
                0.0
            }
        });
        let far = 0.5 * columns * pitch_u_mm + offset_u_mm.abs();
        let near = 0.5 * columns * pitch_u_mm - offset_u_mm.abs();
        let reach = if request.half_fan { far } else { near };
        let seen = dso * (reach / dsd).atan().sin();
        if seen < extent.radius_mm {
            notes.push(format!(
                "the detector sees a radius of {seen:.0} mm, the object reaches {:.0} mm: projections are truncated",
                extent.radius_mm
            ));
        }
        let seen_height = (0.5 * rows * pitch_v_mm - request.offset_v_mm.abs()) * (dso - extent.radius_mm) / dsd;
        if seen_height < extent.half_height_mm() {
            notes.push(format!(
                "the detector sees heights to +-{seen_height:.0} mm, the object reaches +-{:.0} mm: its ends are seen in part",
                extent.half_height_mm()
            ));
        }
        let arc = request.arc_rad.unwrap_or_else(|| {
            if !request.short_scan {
                return TAU;
            }
            // 180 degrees and the whole fan of the detector, with half a percent in hand.
            let arc = 1.005 * (PI + 2.0 * (far / dsd).atan());
            notes.push(format!("arc {:.1} degrees for the short scan", arc.to_degrees()));
            arc
        });
        let arc_rad = if request.clockwise { -arc } else { arc };
        let orbit = CircularOrbit {
            source_to_isocenter_mm: dso,
            source_to_detector_mm: dsd,
            detector: request.detector,
            pitch_u_mm,
            pitch_v_mm,
            offset_u_mm,
            offset_v_mm: request.offset_v_mm,
            roll_rad: request.tilt_rad[0],
            pitch_rad: request.tilt_rad[1],
            yaw_rad: request.tilt_rad[2],
        };
        let angles_rad = angles(request.angles, request.views, request.start_rad, arc_rad);
        Ok(Self { orbit, angles_rad, arc_rad, notes })
    }

    /// The scan's geometry.
    #[must_use]
    pub fn geometry(&self) -> ScanGeometry {
        self.orbit.at_angles(&self.angles_rad)
    }

    /// `count` equally spaced views over the whole turn, between the training views of a uniform scan.
    #[must_use]
    pub fn test_geometry(&self, count: usize) -> ScanGeometry {
        let step = self.arc_rad.abs() / self.angles_rad.len().max(1) as f64;
        let start = self.angles_rad.first().copied().unwrap_or(0.0) + 0.5 * step;
        self.orbit.over_arc(count, start, TAU)
    }
}

/// Gantry angles of a law on the arc `[start, start + arc)`.
#[must_use]
pub fn angles(law: AngleLaw, views: usize, start_rad: f64, arc_rad: f64) -> Vec<f64> {
    let n = views as f64;
    let draws = |seed: u64| {
        let mut rng = stream(seed, Stream::Angles);
        (0..views).map(|_| rng.random_range(0.0..1.0)).collect::<Vec<f64>>()
    };
    let shares: Vec<f64> = match law {
        AngleLaw::Uniform => (0..views).map(|i| i as f64 / n).collect(),
        AngleLaw::Random(seed) => {
            let mut shares = draws(seed);
            shares.sort_by(f64::total_cmp);
            shares
        }
        AngleLaw::Jittered(seed) => draws(seed).iter().enumerate().map(|(i, r)| (i as f64 + r) / n).collect(),
    };
    shares.into_iter().map(|share| start_rad + arc_rad * share).collect()
}

/// The reconstruction's grid about the isocenter: `size_mm`, or a cube that holds the object with a margin.
///
/// # Errors
/// [`SimulateError::Setting`] for counts and sizes that cannot be meant.
pub fn volume_grid(
    voxels: [usize; 3],
    size_mm: Option<[f64; 3]>,
    extent: &Extent,
) -> Result<(VolumeGrid, Vec<String>), SimulateError> {
    for n in voxels {
        if !(2..=2048).contains(&n) {
            return Err(SimulateError::setting("--voxels", n, "must be between 2 and 2048 along each axis"));
        }
    }
    let mut notes = Vec::new();
    let size = match size_mm {
        Some(size) => {
            for s in size {
                if !(1.0..=5000.0).contains(&s) {
                    return Err(SimulateError::setting(
                        "--size-mm",
                        s,
                        "must be between 1 and 5000 mm: the whole size of the volume, not that of a voxel",
                    ));
                }
            }
            DVec3::from_array(size)
        }
        None => {
            // Cubic voxels: the longest side of the object gets the largest count.
            let largest = voxels.into_iter().max().unwrap_or(1) as f64;
            let counts = DVec3::new(voxels[0] as f64, voxels[1] as f64, voxels[2] as f64);
            let half = extent.low_mm.abs().max(extent.high_mm.abs());
            let voxel = round_up((2.0 * (1.0 + MARGIN) * half / counts).max_element());
            notes.push(format!("volume of {:.1} mm ({voxel} mm voxels) about the object", voxel * largest));
            voxel * counts
        }
    };
    Ok((VolumeGrid::over_box(voxels, size, DVec3::ZERO), notes))
}

/// Up to the next number of three significant digits, for figures that people read.
fn round_up(value: f64) -> f64 {
    let digits = 2 - value.log10().floor() as i32;
    let scale = 10.0_f64.powi(digits.abs());
    if digits >= 0 { (value * scale - 1e-9).ceil() / scale } else { (value / scale - 1e-9).ceil() * scale }
}

fn check(request: &OrbitRequest, extent: &Extent) -> Result<(), SimulateError> {
    let setting = |field, value: f64, requirement: String| Err(SimulateError::setting(field, value, requirement));
    let (dso, dsd) = (request.source_to_isocenter_mm, request.source_to_detector_mm);
    if !(1..=20_000).contains(&request.views) {
        return setting("--views", request.views as f64, "must be between 1 and 20000".into());
    }
    for (field, count) in
        [("--detector (rows)", request.detector.rows), ("--detector (columns)", request.detector.columns)]
    {
        if !(2..=8192).contains(&count) {
            return setting(field, count as f64, "must be between 2 and 8192 pixels".into());
        }
    }
    for (field, value) in [("--dso", dso), ("--dsd", dsd)] {
        if !(1.0..=20_000.0).contains(&value) {
            return setting(field, value, "must be between 1 and 20000 mm".into());
        }
    }
    let geometry =
        |field: &str, value, requirement| Err(GeometryError::Value { field: field.into(), value, requirement }.into());
    if dsd < dso {
        let magnification = dsd / dso;
        return geometry(
            "--dsd",
            dsd,
            format!(
                "is shorter than --dso {dso} (magnification {magnification:.3} < 1): is it measured from the source, or were the \
                 two exchanged?"
            ),
        );
    }
    if extent.radius_mm >= 0.95 * dso {
        let radius = extent.radius_mm;
        return geometry(
            "--dso",
            dso,
            format!(
                "the source would turn within the object, which reaches {radius:.1} mm from the axis: is it in mm?"
            ),
        );
    }
    for pitch in request.pitch_mm.into_iter().flatten() {
        if !(1e-3..=100.0).contains(&pitch) {
            return setting("--pitch", pitch, "must be between 0.001 and 100 mm a pixel".into());
        }
    }
    for (field, value) in [("--offset-u", request.offset_u_mm.unwrap_or(0.0)), ("--offset-v", request.offset_v_mm)] {
        if !(-5000.0..=5000.0).contains(&value) {
            return setting(field, value, "must lie within +-5000 mm".into());
        }
    }
    for (field, value) in ["--roll", "--pitch-tilt", "--yaw"].into_iter().zip(request.tilt_rad) {
        if !(-0.5 * PI..=0.5 * PI).contains(&value) {
            return setting(field, value.to_degrees(), "must lie within +-90 degrees".into());
        }
    }
    if !request.start_rad.is_finite() {
        return setting("--start", request.start_rad, "must be finite".into());
    }
    if let Some(arc) = request.arc_rad
        && !(arc > 0.0 && arc <= TAU * (1.0 + 1e-12))
    {
        return setting(
            "--arc",
            arc.to_degrees(),
            "must be above 0 and at most 360 degrees; --direction sets its sense".into(),
        );
    }
    let turn = request.arc_rad.unwrap_or(if request.short_scan { PI } else { TAU });
    if request.half_fan && turn < TAU * (1.0 - 1e-6) {
        return geometry(
            "--half-fan with an arc in degrees",
            turn.to_degrees(),
            "a half-fan needs the whole turn: each view sees only half of the object".into(),
        );
    }
    Ok(())
}
