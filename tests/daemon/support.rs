//! A room for one test: a scene on disk, settings, segments of an own name, and processes that end with the test.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use diffnr::formats::scene::{RawCounts, Scene, write};
use diffnr::formats::{Scan, SceneScale};
use diffnr::geometry::{CircularOrbit, Detector, VolumeGrid};
use diffnr::simulate::ellipsoids::{Ellipsoid, EllipsoidPhantom};
use glam::DVec3;
use ndarray::{Array2, Array3};
use serde_json::Value;

/// Views of the scene.
pub(crate) const VIEWS: usize = 40;
/// Attenuation of water in the scene.
pub(crate) const MU_WATER: f64 = 0.0193;
/// Counts of an unattenuated pixel above the dark level.
const I0: f64 = 50_000.0;

/// The program under test.
pub(crate) fn diffnr() -> Command {
    Command::new(env!("CARGO_BIN_EXE_diffnr"))
}

/// The C gantry, built once; `None` (with a visible word) where there is no C compiler or no make.
pub(crate) fn gantry_sim() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-bridge");
        let made = Command::new("make").arg("-C").arg(&folder).arg("all").output();
        let program = folder.join("build/gantry_sim");
        match made {
            Ok(output) if output.status.success() => Some(program),
            Ok(output) => panic!("the C gantry does not build:\n{}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => None,
        }
    });
    if built.is_none() {
        println!("SKIPPED: no `make`, so no C gantry");
    }
    built.clone()
}

/// An asymmetric phantom: a water body with a dense and a light inlay, none of them centred.
pub(crate) fn phantom() -> EllipsoidPhantom {
    let ellipsoid = |centre: [f64; 3], axes: [f64; 3], mu| Ellipsoid::aligned(centre.into(), axes.into(), mu);
    EllipsoidPhantom {
        ellipsoids: vec![
            ellipsoid([2.0, -3.0, 1.0], [60.0, 50.0, 55.0], MU_WATER),
            ellipsoid([25.0, 10.0, 15.0], [12.0, 9.0, 14.0], MU_WATER),
            ellipsoid([-20.0, -15.0, -10.0], [14.0, 12.0, 10.0], -0.5 * MU_WATER),
        ],
    }
}

/// Grid of the scene: 32 x 28 x 24 voxels of 5 mm.
pub(crate) fn grid() -> VolumeGrid {
    VolumeGrid::over_box([32, 28, 24], DVec3::new(160.0, 140.0, 120.0), DVec3::ZERO)
}

pub(crate) fn scene() -> Scene {
    let orbit = CircularOrbit {
        source_to_isocenter_mm: 500.0,
        source_to_detector_mm: 750.0,
        detector: Detector { columns: 64, rows: 48 },
        pitch_u_mm: 5.0,
        pitch_v_mm: 5.0,
        ..CircularOrbit::default()
    };
    let geometry = orbit.over_arc(VIEWS, 0.3, std::f64::consts::TAU);
    let projections = phantom().line_integrals(&geometry);
    let dark = Array2::from_shape_fn((48, 64), |(v, u)| (100 + (v + 3 * u) % 7) as f32);
    let flat = Array2::from_shape_fn((48, 64), |(v, u)| (I0 as f32) + dark[[v, u]] + (v * 10) as f32);
    let counts = Array3::from_shape_fn((VIEWS, 48, 64), |(view, v, u)| {
        let signal = f64::from(flat[[v, u]] - dark[[v, u]]) * f64::from(-projections[[view, v, u]]).exp();
        (f64::from(dark[[v, u]]) + signal).round() as u16
    });
    let scan = Scan {
        geometry,
        grid: grid(),
        projections,
        scale: SceneScale::hu_window(MU_WATER),
        patient_offset_mm: DVec3::new(10.0, 20.0, 30.0),
    };
    Scene { raw: Some(RawCounts { counts, dark, flat, gain: 1.0 }), ..Scene::new(scan) }
}

/// One test's room.
pub(crate) struct Room {
    folder: tempfile::TempDir,
    /// Name of its segments.
    pub(crate) name: String,
}

impl Drop for Room {
    fn drop(&mut self) {
        let _gone = firmware_bridge::mapping::unlink(&self.name);
    }
}

impl Room {
    /// A room with the scene and with settings that describe it; `extra` is further TOML.
    pub(crate) fn new(extra: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("dnr-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("scene"), &scene()).unwrap();
        let room = Self { folder, name };
        room.settings(extra);
        room
    }

    /// Writes the settings anew.
    pub(crate) fn settings(&self, extra: &str) {
        let has = |section: &str| extra.contains(&format!("[{section}]"));
        let mut text = String::from("[geometry]\nscan = \"scene\"\n");
        for (section, keys) in [
            ("shared_memory", format!("name = \"{}\"\nring_slots = 16\n", self.name)),
            ("publish", "preview_every_views = 10\nframe_rate_fps = 100.0\n".into()),
            // Whatever the machine has: volumes are compared with the CPU's, bit for bit.
            ("compute", "device = \"cpu\"\n".into()),
            (
                "supervise",
                "status_file = \"status.json\"\nstatus_every_ms = 20\nframe_timeout_ms = 400\nlog_level = \"debug\"\n"
                    .into(),
            ),
        ] {
            if has(section) {
                continue;
            }
            text += &format!("[{section}]\n{keys}");
        }
        let extra = extra.replace("[shared_memory]", &format!("[shared_memory]\nname = \"{}\"", self.name)).replace(
            "[supervise]",
            "[supervise]\nstatus_file = \"status.json\"\nstatus_every_ms = 20\nlog_level = \"debug\"",
        );
        std::fs::write(self.path("gantry.toml"), text + &extra).unwrap();
    }

    /// A file of the room.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// A recording of the scene for the C gantry.
    pub(crate) fn recording(&self, raw: bool) -> PathBuf {
        let file = self.path(if raw { "raw.dnr" } else { "scan.dnr" });
        let mut command = diffnr();
        command.arg("replay").arg(self.path("scene")).arg("--record").arg(&file);
        if raw {
            command.arg("--raw");
        }
        expect_code(&run(&mut command), 0);
        file
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn serve(&self, switches: &[&str]) -> Process {
        self.serve_with(switches, &[])
    }

    /// The same in another environment.
    pub(crate) fn serve_with(&self, switches: &[&str], environment: &[(&str, &Path)]) -> Process {
        let _before = std::fs::remove_file(self.path("status.json"));
        let mut command = diffnr();
        command.arg("serve").arg("--config").arg(self.path("gantry.toml")).args(switches);
        command.envs(environment.iter().copied());
        let process = Process::start(&mut command);
        self.wait_for_status("the daemon is ready", |status| status["state"] == "ready");
        process
    }

    /// `watch --json` of this room with further switches, its exit code being 0.
    pub(crate) fn watch(&self, switches: &[&str]) -> Value {
        let output = run(diffnr().args(["watch", "--name", &self.name, "--json"]).args(switches));
        expect_code(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The daemon's status file.
    pub(crate) fn status(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.path("status.json")).ok()?;
        // Written atomically: what is there is whole.
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Waits (20 s at most: a machine can be busy) until the status file satisfies `is`.
    pub(crate) fn wait_for_status(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| is(status)) {
                return status.clone();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "never came: {what}; last status: {status:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process that is killed with the test, whatever happens.
pub(crate) struct Process(Option<Child>);

impl Process {
    /// Starts it with its output kept.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(Some(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    /// Sends a signal.
    pub(crate) fn signal(&mut self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// kill -9, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.child().kill().unwrap();
        self.child().wait().unwrap();
    }

    /// Waits (20 s at most) for the end and returns everything.
    pub(crate) fn end(mut self) -> Output {
        let start = Instant::now();
        // The pipes are read meanwhile, or a talkative process would wait for ever.
        let mut child = self.0.take().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| read(&mut out));
            let stderr = scope.spawn(|| read(&mut err));
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if start.elapsed() > Duration::from_secs(20) {
                    child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(2));
            };
            Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
        })
    }

    /// SIGTERM, then everything; the exit code must be 0.
    pub(crate) fn stop(mut self) -> Output {
        self.signal(rustix::process::Signal::TERM);
        let output = self.end();
        expect_code(&output, 0);
        output
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    Process::start(command).end()
}

/// Fails with everything that the process said where its exit code is another.
pub(crate) fn expect_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout:\n{}\nstderr:\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What a process wrote to stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// JSON that a process printed.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    })
}

/// HU of a saved volume `[x][y][z]`.
pub(crate) fn saved_hu(path: &Path) -> Array3<f32> {
    diffnr::formats::nifti::read_ct(path).unwrap().hu
}

/// Mean HU over the voxels within `radius_mm` of a point.
pub(crate) fn mean_hu(hu: &Array3<f32>, centre_mm: [f64; 3], radius_mm: f64) -> f64 {
    let (grid, centre) = (grid(), DVec3::from(centre_mm));
    let near: Vec<f64> = hu
        .indexed_iter()
        .filter(|((x, y, z), _)| (grid.voxel_centre_mm(*x, *y, *z) - centre).length() <= radius_mm)
        .map(|(_, hu)| f64::from(*hu))
        .collect();
    assert!(!near.is_empty());
    near.iter().sum::<f64>() / near.len() as f64
}
