//! The validated settings: what the daemon runs by.

use std::path::PathBuf;

use serde::Serialize;

use super::OptimisedSettings;
use crate::compute::device::DeviceChoice;
use crate::geometry::{ScanGeometry, VolumeGrid};

/// All settings, checked and resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names and sizes of what is shared.
    pub shared_memory: SharedMemorySettings,
    /// The planned poses, one a view, in the order of `view_index`.
    pub geometry: ScanGeometry,
    /// Where the poses came from, in words, for messages.
    pub geometry_origin: String,
    /// The volume's grid.
    pub grid: VolumeGrid,
    /// Attenuation of water that HU refer to.
    pub mu_water_per_mm: f64,
    /// Counts to line integrals.
    pub preprocess: PreprocessSettings,
    /// Window of the ramp filter.
    pub window: Window,
    /// What goes on from the FDK volume; `None`: nothing.
    pub optimised: Option<OptimisedSettings>,
    /// What is published when.
    pub publish: PublishSettings,
    /// Host memory that the daemon may take, shared memory included; bytes.
    pub host_limit_bytes: u64,
    /// Status, logs, time-outs.
    pub supervise: SuperviseSettings,
    /// What carries out the operations.
    pub compute: ComputeSettings,
}

/// `[shared_memory]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMemorySettings {
    /// Name of the segments (`/dev/shm/NAME.frames`, `/dev/shm/NAME.volumes`).
    pub name: String,
    /// Frames that the ring holds.
    pub ring_slots: usize,
    /// What a full ring does.
    pub drop_policy: DropPolicy,
    /// Volumes that the segment holds, at least 3.
    pub volume_slots: usize,
}

/// What a full ring does with a new frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropPolicy {
    /// The new frame is lost.
    Newest,
    /// The oldest unread frame is lost.
    Oldest,
}

/// Where a calibration image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Calibration {
    /// From calibration frames on the ring, averaged.
    Ring,
    /// From a file `[row v][column u]` (.npy, float32).
    File(PathBuf),
    /// None: dark is 0, flat is `i0` everywhere.
    None,
}

/// `[preprocess]`: counts to line integrals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreprocessSettings {
    /// Counts of an unattenuated pixel where there is no flat image; `None`: taken from the frame's header.
    pub i0_counts: Option<f64>,
    /// The dark image.
    pub dark: Calibration,
    /// The flat image.
    pub flat: Calibration,
    /// A pixel is dead where flat - dark is below this share of the detector's median.
    pub dead_below: f64,
    /// A pixel is hot where dark exceeds the median dark by this share of the median of flat - dark, or flat - dark exceeds
    /// 1 / this share times its median.
    pub hot_above: f64,
    /// Largest share of bad pixels that a calibration may have before it is refused.
    pub max_bad_fraction: f64,
    /// The clamp: transmissions below this count as this, so that a line integral never exceeds `-ln` of it.
    pub min_transmission: f64,
}

use crate::compute::cpu::ramp_filter::Window;

/// `[publish]`: what is published when.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishSettings {
    /// A preview after every so many views; 0: none before the last frame.
    pub preview_every_views: usize,
    /// The gantry's frame rate, which the deadlines follow from: a preview is due one frame time after its last frame.
    pub frame_rate_fps: f64,
    /// Fewest views from which a scan that broke off is still published as PARTIAL.
    pub partial_min_views: usize,
}

impl PublishSettings {
    /// One frame time, in ns.
    #[must_use]
    pub fn frame_time_ns(&self) -> u64 {
        (1e9 / self.frame_rate_fps) as u64
    }
}

/// `[supervise]`: status, logs, time-outs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperviseSettings {
    /// JSON status file, written atomically; `None`: only the status block in shared memory.
    pub status_file: Option<PathBuf>,
    /// How often status is written.
    pub status_every_ms: u64,
    /// tracing's filter (`info`, `diffnr=debug`, ...).
    pub log_level: String,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// A scan whose next frame takes longer than this has broken off.
    pub frame_timeout_ms: u64,
    /// How long a stop waits for the frames still in the ring.
    pub grace_ms: u64,
    /// A stage without a sign of life for this long is reported as stalled.
    pub stall_ms: u64,
    /// Frames between ingest and reconstruction.
    pub staging_frames: usize,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[compute]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeSettings {
    /// `auto`, `cpu` or `cuda`, as asked for.
    pub device: DeviceChoice,
    /// Whether a GPU is tested before it is taken ([`crate::self_test`]).
    pub self_test: bool,
    /// Threads of the pool; never 0.
    pub threads: usize,
}
