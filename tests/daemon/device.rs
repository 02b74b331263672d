//! The daemon on a GPU: its driver is the stand-in of `kernels/host`, on which every kernel really runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::support::*;
use serde_json::json;

/// The folder of the stand-in, built once; `None` (with a visible word) where there is no C++ compiler.
fn stand_in() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(built_stand_in).as_deref()
}

fn built_stand_in() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stand-in-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host");
    let flags =
        "-std=c++17 -O2 -g1 -fPIC -shared -pthread -ffp-contract=off -Wno-unknown-pragmas -Wl,-soname,libcuda.so.1";
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(&compiler)
        .args(flags.split(' '))
        .args(["whole_driver.cpp", "driver.cpp", "library.cpp"].map(|source| sources.join(source)))
        .arg("-o")
        .arg(folder.join("libcuda.so.1"))
        .output();
    match built {
        Err(error) => {
            eprintln!("SKIPPED: the daemon on the stand-in for a GPU: no C++ compiler ({compiler}: {error})");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
            Some(folder)
        }
    }
}

#[test]
fn a_gpu_carries_the_frame_path_and_says_so_everywhere() {
    let Some(driver) = stand_in() else { return };
    let room = Room::new("[compute]\ndevice = \"cuda\"");
    let planned =
        run(diffnr().env("LD_LIBRARY_PATH", driver).args(["plan", "--json", "--config"]).arg(room.path("gantry.toml")));
    expect_code(&planned, 0);
    let planned = json(&planned);
    let on_device = |buffer: &&serde_json::Value| buffer["place"] == "device";
    let arena = planned["buffers"].as_array().unwrap().iter().find(on_device).unwrap();
    assert_eq!(arena["name"], "reconstruct: arena of the carrier");
    // The volume and a view, at least.
    assert!(arena["bytes"].as_u64() > Some(4 * (32 * 28 * 24 + 64 * 48)), "{arena}");
    assert!(planned["carrier"].as_str().unwrap().contains("stand-in"), "{planned}");

    let daemon = room.serve_with(&["--once", "--json"], &[("LD_LIBRARY_PATH", driver)]);
    let scene = room.path("scene");
    expect_code(&run(diffnr().arg("replay").arg(&scene).args(["--rate", "0", "--name", &room.name])), 0);
    let out = room.path("out.npy");
    let seen = room.watch(&["--wait", "full", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    let volume = &seen["volume"];
    assert_eq!((&volume["device"], &volume["precision"]), (&json!("cuda"), &json!("float32")));
    assert!(volume["provider"].as_str().unwrap().contains("sm_90"), "{volume}");
    let report = json(&daemon.end());
    assert_eq!((&report["reconstruct"]["full"], &report["frame_latency"]["count"]), (&json!(1), &json!(40)));
    assert_eq!(report["volume_copies"], "device");

    let offline = room.path("cpu.npy");
    let arguments = ["--method", "fdk", "--device", "cpu", "-o"];
    expect_code(&run(diffnr().arg("reconstruct").arg(&scene).args(arguments).arg(&offline)), 0);
    let [streamed, offline] = [&out, &offline].map(|path| diffnr::formats::npy::read_volume(path).unwrap());
    assert_near(&streamed, &offline);
}

/// As in tests/conformance, of which this is the whole.
fn assert_near(given: &ndarray::Array3<f32>, expected: &ndarray::Array3<f32>) {
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert!(largest > 0.01 && given.dim() == expected.dim());
    for (given, expected) in given.iter().zip(expected) {
        assert!((given - expected).abs() <= 5e-5 * largest, "{given} {expected}");
    }
}

/// The volume of a scan with gaps, scaled on its way for that, and how the daemon says that it came to its slot.
fn partial(gantry: &Path, driver: &Path, device: &str, registers: &str) -> (ndarray::Array3<f32>, serde_json::Value) {
    let room = Room::new(&format!("[compute]\ndevice = \"{device}\"\nself_test = false"));
    let recording = room.recording(false);
    let environment = [("LD_LIBRARY_PATH", driver), ("DIFFNR_STAND_IN_REGISTERS", Path::new(registers))];
    let daemon = room.serve_with(&["--once", "--json"], &environment);
    let sent = run(Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200", "--drop", "3,8,20-25"]));
    expect_code(&sent, 0);
    let out = room.path("out.npy");
    let seen = room.watch(&["--wait", "full", "--save", out.to_str().unwrap()]);
    assert_eq!(seen["volume"]["status"], "PARTIAL");
    let ended = daemon.end();
    assert_eq!(stderr(&ended).contains("volumes go through the host"), registers == "0", "{}", stderr(&ended));
    (diffnr::formats::npy::read_volume(&out).unwrap(), json(&ended)["volume_copies"].clone())
}

/// By itself or, where the driver refuses the shared memory, through the host.
#[test]
fn a_device_fills_slots_either_way_with_the_same_bits() {
    let (Some(driver), Some(gantry)) = (stand_in(), gantry_sim()) else { return };
    let (by_itself, copies) = partial(&gantry, driver, "cuda", "1");
    assert_eq!(copies, "device");
    let (through_the_host, copies) = partial(&gantry, driver, "cuda", "0");
    assert_eq!(copies, "staged");
    assert!(by_itself == through_the_host);
    let (on_the_cpu, copies) = partial(&gantry, driver, "cpu", "1");
    assert_eq!(copies, "host");
    assert_near(&by_itself, &on_the_cpu);
}

/// What `auto` takes, and how a GPU that does not compute what the CPU does is refused.
#[test]
fn a_gpu_is_taken_once_it_agrees_with_the_cpu() {
    let Some(driver) = stand_in() else { return };
    let room = Room::new("");
    // A device that leaves no kernel out, and one that does.
    let on = |command: &mut Command, left_out: &str| {
        run(command.env("LD_LIBRARY_PATH", driver).env("DIFFNR_STAND_IN_LEAVES_OUT", left_out))
    };
    let reconstruct = |left_out: &str, arguments: &[&str]| {
        let (scene, out) = (room.path("scene"), room.path("out.npy"));
        on(diffnr().arg("reconstruct").arg(scene).args(["--json", "-o"]).arg(out).args(arguments), left_out)
    };
    let device = |output: &Output| json(output)["device"].as_str().unwrap().to_string();

    let taken = reconstruct("", &[]);
    expect_code(&taken, 0);
    assert!(stderr(&taken).contains("device auto: cuda:0") && stderr(&taken).contains("passed its self-test"));
    assert!(device(&taken).contains("stand-in"), "{}", device(&taken));

    let left = reconstruct("filter_rows", &[]);
    expect_code(&left, 0);
    let told = stderr(&left);
    assert!(told.contains("device auto: running on the CPU") && told.contains("failed its self-test, FDK"), "{told}");
    assert!(!device(&left).contains("stand-in"), "{}", device(&left));

    let refused = reconstruct("filter_rows", &["--device", "cuda"]);
    expect_code(&refused, 8);
    assert!(stderr(&refused).contains("differs from the CPU's result by"), "{}", stderr(&refused));
    let at_own_risk = reconstruct("filter_rows", &["--device", "cuda", "--no-self-test"]);
    expect_code(&at_own_risk, 0);
    assert!(stderr(&at_own_risk).contains("not tested"), "{}", stderr(&at_own_risk));

    room.settings("[compute]\ndevice = \"cuda\"");
    let refused = on(diffnr().args(["serve", "--config"]).arg(room.path("gantry.toml")), "filter_rows");
    expect_code(&refused, 8);
    assert!(stderr(&refused).contains("failed its self-test, FDK"), "{}", stderr(&refused));

    let doctor = json(&on(diffnr().env("DIFFNR_STAND_IN_DEVICES", "1").args(["doctor", "--json"]), ""));
    let devices = &doctor["checks"]["cuda_kernels"]["devices"];
    assert_eq!(devices[0]["self_test"]["agreements"][0]["case"], "FDK", "{devices}");
}

/// Two scans of raw counts, each after a calibration of its own, with dead pixels, others behind lead, and some that read nothing: the last volume, and what the
/// daemon reports.
fn of_counts(driver: &Path, device: &str) -> (ndarray::Array3<f32>, serde_json::Value) {
    let room = Room::new(&format!("[compute]\ndevice = \"{device}\"\nself_test = false"));
    let daemon = room.serve_with(&["--json"], &[("LD_LIBRARY_PATH", driver)]);
    let folder = room.path("counts");
    for (scan, dead) in [&[[0, 0], [20, 30], [20, 31]][..], &[[47, 63]]].into_iter().enumerate() {
        let mut scene = scene();
        let raw = scene.raw.as_mut().unwrap();
        raw.dark += 10.0 * scan as f32;
        raw.flat += 10.0 * scan as f32;
        raw.counts += 10 * scan as u16;
        for &pixel in dead {
            raw.flat[pixel] = raw.dark[pixel];
        }
        raw.counts.slice_mut(ndarray::s![.., 5, ..9]).fill(0);
        diffnr::formats::scene::write(&folder, &scene).unwrap();
        let sent = run(diffnr().arg("replay").arg(&folder).args(["--raw", "--rate", "0", "--name", &room.name]));
        expect_code(&sent, 0);
        room.wait_for_status("a scan's end", |status| status["reconstruct"]["full"] == scan + 1);
    }
    let out = room.path("out.npy");
    room.watch(&["--save", out.to_str().unwrap()]);
    (diffnr::formats::npy::read_volume(&out).unwrap(), json(&daemon.stop()))
}

#[test]
fn a_gpu_makes_line_integrals_of_counts_as_the_cpu_does() {
    let Some(driver) = stand_in() else { return };
    let (volume, report) = of_counts(driver, "cuda");
    let (on_the_cpu, expected) = of_counts(driver, "cpu");
    assert_near(&volume, &on_the_cpu);
    let preprocess = &report["preprocess"];
    assert_eq!(preprocess, &expected["preprocess"]);
    // 9 pixels of every view, and what the object leaves too little of.
    assert!(preprocess["clamped_pixels"].as_u64() >= Some(2 * 40 * 9), "{preprocess}");
    assert_eq!((&preprocess["frames"], &preprocess["replaced_pixels"]), (&json!(80), &json!(40 * (3 + 1))));
    assert_eq!((&preprocess["dark_frames"], &preprocess["flat_frames"]), (&json!(2), &json!(2)));
}

#[test]
fn a_gpu_that_is_not_there_is_refused_by_what_to_change() {
    if diffnr::compute::cuda::present().is_ok() {
        println!("SKIPPED: a GPU that is not there: this machine has one");
        return;
    }
    let room = Room::new("[compute]\ndevice = \"cuda\"");
    for command in ["serve", "plan"] {
        let refused = run(diffnr().args([command, "--config"]).arg(room.path("gantry.toml")));
        expect_code(&refused, 8);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("device cuda: ") && told.contains("driver"), "{told}");
        assert_eq!(told.lines().filter(|line| line.contains("device cuda")).count(), 1, "{told}");
    }
    let refused = run(diffnr().arg("reconstruct").arg(room.path("scene")).args(["--device", "cuda:7", "-o", "x.npy"]));
    expect_code(&refused, 8);
    room.settings("[compute]\ndevice = \"gpu\"");
    let refused = run(diffnr().args(["plan", "--config"]).arg(room.path("gantry.toml")));
    expect_code(&refused, 3);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("compute.device") && told.contains("cuda:N"), "{told}");
}
