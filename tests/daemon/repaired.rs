//! SliceFixer in the daemon: the volume repaired on its way, as offline, and what happens when that fails.

use std::path::{Path, PathBuf};

use super::support::*;
use diffnr::formats::npy::read_volume;
use diffnr::repair::library;
use serde_json::Value;

/// ONNX Runtime's folder or file; says so where it is not there.
fn onnx_runtime() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(library::FOLDER);
    let found = std::env::var_os(library::VARIABLE).map(PathBuf::from).or_else(|| fetched.is_dir().then_some(fetched));
    if found.is_none() {
        eprintln!("SKIPPED: no ONNX Runtime (make onnxruntime, or DIFFNR_ONNXRUNTIME)");
    }
    found
}

fn test_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/repair")
}

/// A copy of the test's model with another repairing graph, whose hash is right.
fn broken_model(room: &Room, graph: &str) -> PathBuf {
    use sha2::{Digest, Sha256};
    let (from, to) = (test_model(), room.path(graph.trim_end_matches(".onnx")));
    std::fs::create_dir(&to).unwrap();
    let hash = |path: PathBuf| -> String {
        Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    std::fs::copy(from.join("condition.onnx"), to.join("condition.onnx")).unwrap();
    std::fs::copy(from.join("broken").join(graph), to.join("repair.onnx")).unwrap();
    let manifest = std::fs::read_to_string(from.join("manifest.toml")).unwrap();
    let manifest = manifest.replace(&hash(from.join("repair.onnx")), &hash(to.join("repair.onnx")));
    std::fs::write(to.join("manifest.toml"), manifest).unwrap();
    to
}

/// Settings with a model; `numbers` are further keys of `[slice_fixer]`.
fn settings(reconstruct: &str, model: &Path, onnxruntime: &Path, numbers: &str) -> String {
    format!(
        "[reconstruct]\nmethod = \"field\"\npublish_every = 3\n{reconstruct}\n[slice_fixer]\nmodel = {model:?}\nonnxruntime = {onnxruntime:?}\n{numbers}\n"
    )
}

fn replay(room: &Room) {
    let sent = run(diffnr().arg("replay").arg(room.path("scene")).args(["--rate", "0", "--name", &room.name]));
    expect_code(&sent, 0);
}

/// The last volume of the present scan: what the reader says of it, and its values.
fn last_volume(room: &Room) -> (Value, ndarray::Array3<f32>) {
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    let seen = room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    (seen["volume"].clone(), read_volume(&out).unwrap())
}

/// `diffnr reconstruct` of the room's scene by a field.
fn offline(room: &Room, onnxruntime: &Path, more: &[&str]) -> ndarray::Array3<f32> {
    let out = room.path("offline.npy");
    let mut command = diffnr();
    command.arg("reconstruct").arg(room.path("scene")).args(["--method", "field", "--device", "cpu", "-o"]).arg(&out);
    expect_code(&run(command.args(more).env(library::VARIABLE, onnxruntime)), 0);
    read_volume(&out).unwrap()
}

fn numbers<const N: usize>(value: &Value, names: [&str; N]) -> [Option<u64>; N] {
    names.map(|name| value[name].as_u64())
}

const REPAIRS: [&str; 3] = ["repairs", "repairs_planned", "repairs_failed"];

#[test]
fn a_scan_is_repaired_on_its_way_and_its_volume_is_the_offline_one_bit_for_bit() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let model = test_model();
    let keys = "anatomy = \"thorax\"\nrepairs = 2\nrepair_from = 0.5\nweight = 2.0\nevery = 2\nprovider = \"cpu\"";
    let room = Room::new(&settings("iterations = 8\nearly_iterations = 0", &model, &onnxruntime, keys));
    let daemon = room.serve(&["--json"]);
    replay(&room);
    let (volume, streamed) = last_volume(&room);
    assert_eq!((volume["status"].as_str(), volume["iteration"].as_u64()), (Some("FULL"), Some(8)));
    assert_eq!(numbers(&volume, REPAIRS), [Some(2), Some(2), Some(0)], "{volume}");
    assert_eq!((volume["repair_model"].as_str(), volume["repair_provider"].as_str()), (Some("test"), Some("CPU")));
    let manifest = std::fs::read_to_string(model.join("manifest.toml")).unwrap();
    let hash = volume["model_hash"].as_str().unwrap();
    assert!(hash.len() == 64 && manifest.contains(hash), "{hash}");
    let options =
        ["--iterations", "8", "--anatomy", "thorax", "--repairs", "2", "--repair-from", "0.5", "--repair-weight", "2"];
    let model = ["--repair-every", "2", "--slice-fixer", model.to_str().unwrap()];
    assert_eq!(streamed, offline(&room, &onnxruntime, &[&options[..], &model].concat()));
    assert_ne!(streamed, offline(&room, &onnxruntime, &["--iterations", "8"]));
    // The next scan the same, whatever the model was told before.
    replay(&room);
    room.wait_for_status("the second scan", |status| status["optimise"]["counters"]["done"] == 2);
    assert_eq!(last_volume(&room).1, streamed);
    let output = daemon.stop();
    let report = json(&output);
    let fixer = &report["slice_fixer"];
    assert_eq!((fixer["model"].as_str(), fixer["provider"].as_str()), (Some("test"), Some("CPU")), "{report}");
    assert!(hash.starts_with(fixer["model_hash"].as_str().unwrap()), "{fixer}");
    assert_eq!(numbers(&fixer["run"], ["planned", "done", "failed"]), [Some(2), Some(2), Some(0)]);
    assert_eq!(numbers(&fixer["counters"], ["done", "late", "bad_output"]), [Some(4), Some(0), Some(0)]);
    assert!(fixer["repair_s"].as_f64() > Some(0.0) && fixer["deadline_s"].as_f64() >= Some(5.0));
    assert_eq!((report["rung"].as_str(), fixer["slices"].as_u64()), (Some("full"), Some(32 + 28 + 24)));
    let log = stderr(&output);
    for part in [
        "SliceFixer test (",
        ") on CPU: 2 repairs of 84 slices",
        "repaired by SliceFixer after iteration 4",
        "(2 of 2)",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn a_volume_on_its_way_says_what_it_was_held_to_so_far() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let room =
        Room::new(&settings("iterations = 6\nearly_iterations = 0", &test_model(), &onnxruntime, "repair_from = 0.6"));
    let daemon = room.serve(&[]);
    replay(&room);
    room.wait_for_status("the run", |status| status["optimise"]["counters"]["done"] == 1);
    // The one after three iterations came before the repair, which is due after four.
    assert_eq!(numbers(&last_volume(&room).0, REPAIRS), [Some(1), Some(1), Some(0)]);
    let log = stderr(&daemon.stop());
    let place = |part: &str| log.find(part).unwrap_or_else(|| panic!("{part}: {log}"));
    assert!(place("FULL, iteration 3") < place("after iteration 4 in"), "{log}");
    assert!(place("after iteration 4 in") < place("FULL, iteration 6"), "{log}");
}

#[test]
fn an_early_start_is_not_repaired_and_its_volume_is_the_offline_one() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let Some(gantry) = gantry_sim() else { return };
    let model = test_model();
    let reconstruct = "iterations = 8\nearly_iterations = 4\n[supervise]\nframe_timeout_ms = 60000";
    let room = Room::new(&settings(reconstruct, &model, &onnxruntime, "repair_from = 0.25\nrepairs = 3"));
    let recording = room.recording(false);
    let daemon = room.serve(&["--json"]);
    let mut player = std::process::Command::new(gantry);
    let player = Process::start(player.arg(&room.name).arg(recording).args(["--fps", "200", "--stall", "30:4000"]));
    room.wait_for_status("the early start", |status| status["optimise"]["iteration"] == 4);
    expect_code(&player.end(), 0);
    let (volume, streamed) = last_volume(&room);
    assert_eq!(numbers(&volume, ["early_iterations", "early_views"]), [Some(4), Some(30)], "{volume}");
    assert_eq!(numbers(&volume, REPAIRS), [Some(3), Some(3), Some(0)], "{volume}");
    let options = ["--iterations", "8", "--early", "30:4", "--repair-from", "0.25", "--repairs", "3", "--slice-fixer"];
    assert_eq!(streamed, offline(&room, &onnxruntime, &[&options[..], &[model.to_str().unwrap()]].concat()));
    daemon.stop();
}

/// A model whose repairs all fail: the run goes on without, on a rung of its own, until the next daemon with a sound one.
fn goes_on_without(graph: &str, keys: &str, counter: &str, words: &str) {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let room = Room::new("");
    let model = broken_model(&room, graph);
    let reconstruct = "iterations = 8\nearly_iterations = 0";
    room.settings(&settings(reconstruct, &model, &onnxruntime, &format!("repairs = 2\nrepair_from = 0.5\n{keys}")));
    let daemon = room.serve(&["--json"]);
    replay(&room);
    let (volume, streamed) = last_volume(&room);
    assert_eq!((volume["status"].as_str(), volume["iteration"].as_u64()), (Some("FULL|DEGRADED"), Some(8)));
    assert_eq!(numbers(&volume, REPAIRS), [Some(0), Some(2), Some(2)], "{volume}");
    assert_eq!((volume["repair_model"].as_str(), volume["model_hash"].as_str()), (Some(""), Some(&*"0".repeat(64))));
    // Not a voxel of it is the model's.
    assert_eq!(streamed, offline(&room, &onnxruntime, &["--iterations", "8"]));
    let status = room.wait_for_status("the rung", |status| status["rung"] == "without_slice_fixer");
    assert_eq!(numbers(&status["ladder"], ["without_slice_fixer", "frozen"]), [Some(1), Some(0)]);
    assert_eq!(
        (status["state"].as_str(), status["optimise"]["counters"]["done"].as_u64()),
        (Some("degraded"), Some(1))
    );
    assert!(room.watch(&[])["message"].as_str().unwrap().contains("without SliceFixer"));
    let output = daemon.stop();
    let counters = &json(&output)["slice_fixer"]["counters"];
    assert_eq!(numbers(counters, ["done", counter]), [Some(0), Some(2)], "{counters}");
    let log = stderr(&output);
    assert!(log.contains("SliceFixer's rehearsal failed") && log.contains(words), "{log}");
    assert!(log.contains("Full -> WithoutSliceFixer"), "{log}");
}

#[test]
fn a_model_that_stalls_is_left_out() {
    goes_on_without("stall.onnx", "deadline_s = 0.3", "late", "the repair was late; the optimisation goes on without");
}

#[test]
fn a_model_whose_output_is_no_number_or_beyond_its_window_is_left_out() {
    goes_on_without("nan.onnx", "", "bad_output", "not finite, or far outside its window; the optimisation goes on");
    goes_on_without("far.onnx", "", "bad_output", "not finite, or far outside its window; the optimisation goes on");
}

#[test]
fn the_next_scan_and_a_stop_end_a_repair_that_stalls() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let room = Room::new("");
    let model = broken_model(&room, "stall.onnx");
    // The rehearsal takes as long; the rest of the test must not.
    let (reconstruct, deadline) = ("iterations = 8\nearly_iterations = 0", "repair_from = 0.5\ndeadline_s = 6.0");
    room.settings(&settings(reconstruct, &model, &onnxruntime, deadline));
    let daemon = room.serve(&["--json"]);
    for scan in 1..=2 {
        replay(&room);
        room.wait_for_status("the iterations before the repair", |status| {
            status["optimise"]["counters"]["runs"] == scan && status["optimise"]["iteration"] == 4
        });
    }
    let report = json(&daemon.stop());
    let counters = &report["slice_fixer"]["counters"];
    assert_eq!(numbers(counters, ["interrupted", "late", "failed"]), [Some(2), Some(0), Some(0)], "{counters}");
    assert_eq!(report["optimise"]["counters"]["superseded"], 1);
    assert_eq!(report["ladder"]["without_slice_fixer"], 0);
}

#[test]
fn the_plan_says_when_what_is_repaired_and_what_that_takes() {
    let room = Room::new("");
    let model = test_model();
    let plan = |reconstruct: &str, more: &[&str]| {
        // No ONNX Runtime is needed for this: the manifest says all.
        let text = settings(
            reconstruct,
            &model,
            Path::new("."),
            "repairs = 2\nrepair_from = 0.5\nplanes = [\"axial\", \"coronal\"]",
        );
        room.settings(&text.replace("onnxruntime = \".\"", ""));
        run(diffnr().args(["plan", "--config"]).arg(room.path("gantry.toml")).args(more))
    };
    let output = plan("iterations = 100", &["--json"]);
    expect_code(&output, 0);
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "after iteration 50, 75 of 100",
        "repair 52 slices (axial, coronal) with test",
        "each iteration from then on",
        "repair: slices in and out",
        "\"without_slice_fixer\"",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Four slices of 32 x 32 pixels with padding, of float32: three images of each in, one out.
    let buffers = json(&output)["buffers"].clone();
    let slices = buffers.as_array().unwrap().iter().find(|b| b["name"] == "repair: slices in and out");
    assert_eq!(slices.unwrap()["bytes"], 4 * 4 * 32 * 32 * (3 + 1));
    let by_deadline = plan("deadline_s = 60.0", &[]);
    expect_code(&by_deadline, 0);
    let words = String::from_utf8_lossy(&by_deadline.stdout).into_owned();
    assert!(words.contains("after 50 %, 75 % of the iterations"), "{words}");

    let Some(onnxruntime) = onnx_runtime() else { return };
    room.settings(&settings("iterations = 8", &model, &onnxruntime, ""));
    let rehearsed = run(diffnr().args(["plan", "--rehearse", "--json", "--config"]).arg(room.path("gantry.toml")));
    expect_code(&rehearsed, 0);
    let found = json(&rehearsed)["rehearsal"].clone();
    let share = found["repair_share"].as_f64().unwrap();
    assert!(
        share > 0.0 && share < 1.0 && found["repairs"] == 1 && found["slice_fixer"]["provider"] == "CPU",
        "{found}"
    );
}

#[test]
fn a_deadline_without_time_for_the_repairs_is_refused_before_ready() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let room = Room::new("");
    let model = broken_model(&room, "stall.onnx");
    // In the rehearsal it takes two seconds, as long as it is given.
    room.settings(&settings("deadline_s = 1.0", &model, &onnxruntime, "deadline_s = 2.0"));
    let refused = run(diffnr().arg("serve").arg("--config").arg(room.path("gantry.toml")));
    expect_code(&refused, 3);
    let words = stderr(&refused);
    assert!(words.contains("reconstruct.deadline_s = 1") && words.contains("slice_fixer.repairs"), "{words}");
}

#[test]
fn what_cannot_be_had_is_refused_before_ready() {
    let Some(onnxruntime) = onnx_runtime() else { return };
    let room = Room::new("");
    let refused = |model: &Path, keys: &str, code: i32, parts: &[&str]| {
        room.settings(&settings("iterations = 8", model, &onnxruntime, keys));
        let output = run(diffnr().arg("serve").arg("--config").arg(room.path("gantry.toml")));
        let words = stderr(&output);
        // Where TensorRT is there, it serves until it is ended.
        if output.status.code().is_none() && keys.contains("tensorrt") {
            return;
        }
        expect_code(&output, code);
        assert!(parts.iter().all(|part| words.contains(part)), "{parts:?}: {words}");
    };
    let model = test_model();
    refused(&model, "provider = \"tensorrt\"", 8, &["TensorRT was demanded", "allow any provider"]);
    let damaged = broken_model(&room, "nan.onnx");
    std::fs::copy(model.join("repair.onnx"), damaged.join("repair.onnx")).unwrap();
    refused(&damaged, "", 4, &["slice_fixer", "sha256"]);
    std::fs::remove_file(damaged.join("manifest.toml")).unwrap();
    refused(&damaged, "", 4, &["manifest.toml", "cannot be read"]);
    refused(&room.path("nowhere"), "", 3, &["slice_fixer.model = ", "nowhere"]);
}
