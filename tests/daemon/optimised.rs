//! What follows the FDK volume: better ones, for as long as nothing more urgent comes.

use std::process::Command;
use std::time::Duration;

use super::support::*;
use diffnr::compute::ValuesMut;
use diffnr::config::Settings;
use diffnr::preprocess::{CalibrationOnCarrier, Preprocessor};
use diffnr::reconstruct::Unobserved;
use diffnr::reconstruct::optimise::{Budget, EarlyStart, ScanViews};
use ndarray::Array3;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Without an early start: these frames come as quickly as they can, or not at the rate that the settings say.
fn room(numbers: &str) -> Room {
    Room::new(&format!("[reconstruct]\nmethod = \"gaussians\"\nearly_iterations = 0\n{numbers}\n"))
}

fn replay(room: &Room, scene: &str) {
    let sent = run(diffnr().arg("replay").arg(room.path(scene)).args(["--rate", "0", "--name", &room.name]));
    expect_code(&sent, 0);
}

/// What the room's settings make of its scene offline, without the views `missing`, on one thread.
fn offline(room: &Room, iterations: usize, missing: &[usize]) -> Array3<f32> {
    offline_after(room, None, iterations, missing)
}

/// The same after an early start, whose iterations count.
fn offline_after(room: &Room, early: Option<EarlyStart>, iterations: usize, missing: &[usize]) -> Array3<f32> {
    let scan = diffnr::formats::scene::read_scan(&room.path("scene")).unwrap();
    offline_of(room, &scan.projections, early, iterations, missing)
}

/// The same of other line integrals than the scene's.
fn offline_of(
    room: &Room,
    line_integrals: &Array3<f32>,
    early: Option<EarlyStart>,
    iterations: usize,
    missing: &[usize],
) -> Array3<f32> {
    let settings = Settings::load_with(&room.path("gantry.toml"), []).unwrap();
    let recipe = settings.optimised.unwrap().recipe(&settings.geometry, &settings.grid).unwrap();
    let scan = diffnr::formats::scene::read_scan(&room.path("scene")).unwrap();
    let present: Vec<bool> = (0..VIEWS).map(|view| !missing.contains(&view)).collect();
    let line_integrals = line_integrals.as_slice().unwrap();
    let views = ScanViews { line_integrals, poses: None, present: Some(&present) };
    let mut compute = diffnr::compute::cpu::CpuCompute::new(1).unwrap();
    recipe.prepare(&mut compute).unwrap();
    let mut optimiser = recipe.optimiser(&compute).unwrap();
    let before = early.map_or(0, |early| early.iterations);
    if let Some(early) = early {
        let first = early.present(VIEWS);
        optimiser.load_views(&compute, &ScanViews { present: Some(&first), ..views }).unwrap();
        optimiser.begin(&compute, None, &Unobserved).unwrap();
        optimiser.run(&compute, Budget::Iterations(before), &mut Unobserved).unwrap();
    }
    optimiser.load_views(&compute, &views).unwrap();
    if early.is_none() {
        optimiser.begin(&compute, None, &Unobserved).unwrap();
    }
    optimiser.go_on(&compute, before, Budget::Iterations(iterations - before), &mut Unobserved).unwrap();
    let volume = Array3::from_shape_vec(scan.grid.voxels, optimiser.into_volume(&compute).unwrap()).unwrap();
    scan.scale.volume_values(volume.view())
}

/// The lines of the log that tell of publications, from `FULL` on.
fn publications(log: &str) -> Vec<String> {
    let told = |line: &str| line.split_once(" published: ").map(|(_, rest)| rest.to_owned());
    log.lines().filter_map(told).filter(|line| !line.starts_with("PREVIEW")).collect()
}

#[test]
fn fdk_comes_first_then_better_volumes_and_the_last_is_the_offline_one_bit_for_bit() {
    let room = room("iterations = 12\npublish_every = 4");
    let daemon = room.serve(&["--once", "--json"]);
    replay(&room, "scene");
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    let seen = room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    let volume = &seen["volume"];
    assert_eq!((volume["status"].as_str(), volume["method"].as_str()), (Some("FULL"), Some("gaussians")));
    assert_eq!((volume["iteration"].as_u64(), volume["iterations_planned"].as_u64()), (Some(12), Some(12)));
    assert!(volume["residual"].as_f64() > Some(0.0) && volume["seconds"].as_f64() > Some(0.0), "{volume}");
    let output = daemon.end();
    let report = json(&output);
    let counters = &report["optimise"]["counters"];
    assert_eq!((counters["runs"].as_u64(), counters["done"].as_u64()), (Some(1), Some(1)));
    assert_eq!((counters["intermediate"].as_u64(), counters["last"].as_u64()), (Some(2), Some(1)));
    assert_eq!(counters["iterations"], 12);
    assert_eq!(report["reconstruct"]["full"], 1, "the low-latency volume");
    assert_eq!((report["rung"].as_str(), report["stalls"].as_u64()), (Some("full"), Some(0)));
    let log = stderr(&output);
    assert!(log.contains("gaussians: 12 iterations of"), "the banner: {log}");
    let heads: Vec<String> =
        publications(&log).iter().map(|line| line.split(", 40 frames").next().unwrap().into()).collect();
    assert_eq!(heads, ["FULL", "FULL, iteration 4", "FULL, iteration 8", "FULL, iteration 12"]);

    let streamed = diffnr::formats::npy::read_volume(&out).unwrap();
    assert_eq!(streamed, offline(&room, 12, &[]));
}

#[test]
fn counts_are_handed_over_as_line_integrals() {
    let room = room("iterations = 4\npublish_every = 0");
    let daemon = room.serve(&["--once"]);
    let sent = run(diffnr().arg("replay").arg(room.path("scene")).args(["--raw", "--rate", "0", "--name", &room.name]));
    expect_code(&sent, 0);
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    expect_code(&daemon.end(), 0);

    let settings = Settings::load_with(&room.path("gantry.toml"), []).unwrap();
    let (settings, detector) = (settings.preprocess, settings.geometry.detector);
    let mut compute = diffnr::compute::cpu::CpuCompute::new(1).unwrap();
    let on_carrier = CalibrationOnCarrier::take(&mut compute, &settings, detector).unwrap();
    let mut preprocessor = Preprocessor::new(&settings, detector, [None, None], on_carrier).unwrap();
    let raw = diffnr::formats::scene::read(&scene).unwrap().raw.unwrap();
    let [dark, flat] = [raw.dark, raw.flat].map(|image| image.map(|count| count.round() as u16));
    preprocessor.add_dark(dark.as_slice().unwrap());
    preprocessor.add_flat(flat.as_slice().unwrap(), 1.0).unwrap();
    preprocessor.finish_calibration().unwrap();
    let mut line_integrals = Array3::zeros(raw.counts.dim());
    for (counts, mut made) in raw.counts.outer_iter().zip(line_integrals.outer_iter_mut()) {
        let made = ValuesMut::Host(made.as_slice_mut().unwrap());
        preprocessor.counts(&compute, counts.as_slice().unwrap(), 1.0, 0.0, made).unwrap();
    }
    let expected = offline_of(&room, &line_integrals, None, 4, &[]);
    assert_eq!(diffnr::formats::npy::read_volume(&out).unwrap(), expected);
}

#[test]
fn a_field_is_optimised_in_the_same_way() {
    let room =
        Room::new("[reconstruct]\nmethod = \"field\"\niterations = 2\nearly_iterations = 0\npublish_every = 0\n");
    let daemon = room.serve(&["--once", "--json"]);
    replay(&room, "scene");
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    let seen = room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    let volume = &seen["volume"];
    assert_eq!((volume["status"].as_str(), volume["method"].as_str()), (Some("FULL"), Some("field")));
    assert_eq!((volume["iteration"].as_u64(), volume["iterations_planned"].as_u64()), (Some(2), Some(2)));
    expect_code(&daemon.end(), 0);
    assert_eq!(diffnr::formats::npy::read_volume(&out).unwrap(), offline(&room, 2, &[]));
}

#[test]
fn an_early_start_leaves_less_to_do_after_the_last_frame_and_its_volume_is_the_offline_one() {
    let Some(gantry) = gantry_sim() else { return };
    let room = Room::new(
        "[reconstruct]\nmethod = \"gaussians\"\niterations = 12\nearly_iterations = 5\npublish_every = 4\n[supervise]\nframe_timeout_ms = 60000\n",
    );
    let recording = room.recording(false);
    let daemon = room.serve(&["--json"]);
    // The gantry stands still after the 30th view until the early start is done: it cannot know, so it is told by a long stall.
    let player = Process::start(
        Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200", "--stall", "30:4000"]),
    );
    let status = room.wait_for_status("the early start", |s| s["optimise"]["iteration"] == 5);
    assert_eq!(
        (status["optimise"]["early_iterations"].as_u64(), status["optimise"]["early_views"].as_u64()),
        (Some(5), Some(30))
    );
    assert_eq!(
        (status["optimise"]["iterations_planned"].as_u64(), status["state"].as_str()),
        (Some(12), Some("receiving"))
    );
    expect_code(&player.end(), 0);
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    let seen = room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    let volume = &seen["volume"];
    let numbers =
        ["iteration", "iterations_planned", "early_iterations", "early_views"].map(|name| volume[name].as_u64());
    assert_eq!(numbers, [Some(12), Some(12), Some(5), Some(30)], "{volume}");
    let output = daemon.stop();
    let report = json(&output);
    let counters = &report["optimise"]["counters"];
    let counted = ["runs", "done", "early_starts", "early_starts_given_up", "iterations", "intermediate"];
    // Of the seven iterations after the last frame only the eighth is one to publish.
    assert_eq!(counted.map(|name| counters[name].as_u64().unwrap()), [1, 1, 1, 0, 12, 1], "{counters}");
    let log = stderr(&output);
    assert!(log.contains("early start of scan") && log.contains("5 iterations from 30 views in"), "{log}");
    assert!(log.contains("after 5 from its first 30 views"), "the banner: {log}");
    let streamed = diffnr::formats::npy::read_volume(&out).unwrap();
    let early = EarlyStart { views: 30, iterations: 5 };
    assert_eq!(streamed, offline_after(&room, Some(early), 12, &[]));
    assert_ne!(streamed, offline(&room, 12, &[]));
}

#[test]
fn an_early_start_that_is_not_done_in_time_is_given_up_and_the_run_begins_anew() {
    let Some(gantry) = gantry_sim() else { return };
    let room = Room::new(
        "[reconstruct]\nmethod = \"gaussians\"\niterations = 100000\nearly_iterations = 50000\npublish_every = 3\n",
    );
    let recording = room.recording(false);
    let daemon = room.serve(&["--json"]);
    expect_code(
        &run(Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200", "--stall", "30:300"])),
        0,
    );
    room.wait_for_status("a volume on the way", |s| s["optimise"]["counters"]["intermediate"].as_u64() >= Some(1));
    let volume = &room.watch(&[])["volume"];
    assert_eq!((volume["early_iterations"].as_u64(), volume["early_views"].as_u64()), (Some(0), Some(0)), "{volume}");
    let output = daemon.stop();
    let counters = &json(&output)["optimise"]["counters"];
    let counted = ["runs", "early_starts", "early_starts_given_up", "superseded"];
    assert_eq!(counted.map(|name| counters[name].as_u64().unwrap()), [1, 0, 1, 0], "{counters}");
    assert!(stderr(&output).contains("the optimisation begins anew"), "{}", stderr(&output));
}

#[test]
fn a_scan_that_lacks_views_is_optimised_from_those_that_came() {
    let Some(gantry) = gantry_sim() else { return };
    let room = room("iterations = 5\npublish_every = 0");
    let recording = room.recording(false);
    let daemon = room.serve(&["--once", "--json"]);
    let switches = ["--fps", "200", "--drop", "3,4,20"];
    expect_code(&run(Command::new(gantry).arg(&room.name).arg(recording).args(switches)), 0);
    let report = json(&daemon.end());
    assert_eq!((report["reconstruct"]["partial"].as_u64(), report["reconstruct"]["full"].as_u64()), (Some(1), Some(0)));
    assert_eq!(
        (report["optimise"]["counters"]["intermediate"].as_u64(), report["optimise"]["iteration"].as_u64()),
        (Some(0), Some(5))
    );
    let (out, scene) = (room.path("out.npy"), room.path("scene"));
    let seen = room.watch(&["--wait", "final", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    let volume = &seen["volume"];
    assert_eq!((volume["status"].as_str(), volume["frames"].as_u64()), (Some("PARTIAL"), Some(37)));
    assert_eq!((volume["iteration"].as_u64(), volume["missing"].clone()), (Some(5), json!([[3, 4], [20, 20]])));
    assert_eq!(diffnr::formats::npy::read_volume(&out).unwrap(), offline(&room, 5, &[3, 4, 20]));
}

#[test]
fn the_next_scan_and_a_stop_end_an_optimisation_and_no_frame_is_lost() {
    let Some(gantry) = gantry_sim() else { return };
    // Some 10 minutes of iterations: only by being ended does anything here end.
    let room = room("iterations = 100000\npublish_every = 3");
    let recording = room.recording(true);
    let daemon = room.serve(&["--json"]);
    let play = |scans: &str| {
        let switches = ["--fps", "200", "--loop", scans];
        expect_code(&run(Command::new(&gantry).arg(&room.name).arg(&recording).args(switches)), 0);
    };
    play("1");
    let status =
        room.wait_for_status("volumes on the way", |s| s["optimise"]["counters"]["intermediate"].as_u64() >= Some(2));
    assert_eq!(
        (status["state"].as_str(), status["optimise"]["running"].as_bool()),
        (Some("reconstructing"), Some(true))
    );
    let seen = room.watch(&[]);
    assert_eq!((seen["method"].as_str(), seen["iterations_planned"].as_u64()), (Some("gaussians"), Some(100_000)));
    assert!(seen["iteration"].as_u64() >= Some(6) && seen["residual"].as_f64() > Some(0.0), "{seen}");
    assert!(seen["seconds"].as_f64() > Some(0.0), "{seen}");
    let volume = &seen["volume"];
    assert_eq!((volume["status"].as_str(), volume["method"].as_str()), (Some("FULL"), Some("gaussians")));
    // The next two scans at once, while the first is being optimised.
    play("2");
    let status = room.wait_for_status("the third scan's optimisation", |s| {
        s["reconstruct"]["full"] == 3
            && s["optimise"]["running"] == true
            && s["optimise"]["iteration"].as_u64() >= Some(1)
    });
    assert_eq!(status["optimise"]["counters"]["superseded"], 2);
    assert_eq!(status["optimise"]["counters"]["done"], 0);
    for counter in ["missing", "rejected_header", "rejected_payload", "dropped_newest", "dropped_oldest"] {
        assert_eq!(status["ingest"][counter], 0, "{counter}");
    }
    assert_eq!((status["reconstruct"]["views"].as_u64(), status["rung"].as_str()), (Some(120), Some("full")));
    let report = json(&daemon.stop());
    assert_eq!((report["state"].as_str(), report["stalls"].as_u64()), (Some("stopped"), Some(0)));
    let volume = &room.watch(&[])["volume"];
    assert!(volume["iteration"].as_u64() < volume["iterations_planned"].as_u64(), "{volume}");
}

#[test]
fn frames_that_come_late_begin_the_optimisation_anew() {
    let Some(gantry) = gantry_sim() else { return };
    let room = room("iterations = 100000\npublish_every = 0");
    let recording = room.recording(false);
    let daemon = room.serve(&[]);
    // The stall is more than twice the frame time-out.
    let mut player = Process::start(
        Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200", "--stall", "25:1200"]),
    );
    room.wait_for_status("the optimisation of 25 views", |s| {
        s["reconstruct"]["partial"] == 1 && s["optimise"]["counters"]["runs"] == 1
    });
    let status = room.wait_for_status("that of all views", |s| {
        s["reconstruct"]["full"] == 1 && s["optimise"]["counters"]["runs"] == 2
    });
    assert_eq!(status["optimise"]["counters"]["superseded"], 1);
    player.signal(Signal::CONT);
    expect_code(&player.end(), 0);
    daemon.stop();
}

#[test]
fn a_missed_deadline_freezes_the_representation_and_its_last_good_volume_is_degraded() {
    let room = room("deadline_s = 5.0\npublish_every = 0");
    let mut daemon = room.serve(&["--json"]);
    replay(&room, "scene");
    let status = room.wait_for_status("an iteration", |s| {
        s["optimise"]["running"] == true && s["optimise"]["iteration"].as_u64() >= Some(2)
    });
    let planned = status["optimise"]["iterations_planned"].as_u64().unwrap();
    // The machine does something else until the time is over.
    daemon.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(5100));
    daemon.signal(Signal::CONT);
    let status = room.wait_for_status("the frozen rung", |s| s["rung"] == "frozen");
    assert_eq!((status["ladder"]["frozen"].as_u64(), status["state"].as_str()), (Some(1), Some("degraded")));
    let counters = &status["optimise"]["counters"];
    assert_eq!((counters["deadlines_missed"].as_u64(), counters["degraded"].as_u64()), (Some(1), Some(1)));
    let seen = room.watch(&["--wait", "final"]);
    assert_eq!(seen["volume"]["status"], "FULL|DEGRADED");
    let iteration = seen["volume"]["iteration"].as_u64().unwrap();
    assert!((1..planned).contains(&iteration), "{seen}");
    assert!(seen["message"].as_str().unwrap().contains("given up"), "{seen}");
    let log = stderr(&daemon.stop());
    assert!(log.contains("missed its deadline (reconstruct.deadline_s)"), "{log}");
}

#[test]
fn a_scan_that_nothing_can_be_made_of_keeps_its_fdk_volume_as_degraded_until_the_next_is_done() {
    let room = room("iterations = 6\npublish_every = 0");
    let mut air = diffnr::formats::scene::read(&room.path("scene")).unwrap();
    (air.raw, air.scan.projections) = (None, Array3::zeros(air.scan.projections.raw_dim()));
    diffnr::formats::scene::write(&room.path("air"), &air).unwrap();
    let daemon = room.serve(&[]);
    replay(&room, "air");
    let status = room
        .wait_for_status("the frozen rung", |s| s["rung"] == "frozen" && s["optimise"]["counters"]["degraded"] == 1);
    assert_eq!(
        (status["optimise"]["counters"]["refused"].as_u64(), status["reconstruct"]["full"].as_u64()),
        (Some(1), Some(1))
    );
    let volume = &room.watch(&["--wait", "final"])["volume"];
    assert_eq!((volume["status"].as_str(), volume["method"].as_str()), (Some("FULL|DEGRADED"), Some("fdk")));
    replay(&room, "scene");
    let status =
        room.wait_for_status("an optimised volume", |s| s["optimise"]["counters"]["done"] == 1 && s["rung"] == "full");
    // Previews that were skipped on a busy machine count as well.
    assert_eq!(
        (status["ladder"]["frozen"].as_u64(), status["ladder"]["recovered"].as_u64() >= Some(1)),
        (Some(1), true)
    );
    let volume = &room.watch(&["--wait", "final"])["volume"];
    assert_eq!((volume["status"].as_str(), volume["iteration"].as_u64()), (Some("FULL"), Some(6)));

    // A scan that is lost: what is marked stale is the optimised volume, not the FDK one before it.
    let mut turned = diffnr::formats::scene::read(&room.path("scene")).unwrap();
    turned.scan.geometry.views.rotate_left(VIEWS / 2);
    diffnr::formats::scene::write(&room.path("turned"), &turned).unwrap();
    replay(&room, "turned");
    room.wait_for_status("the lost scan", |s| s["reconstruct"]["scans_lost"] == 1);
    let stale: Value = room.watch(&[])["volume"].clone();
    assert_eq!((stale["status"].as_str(), stale["iteration"].as_u64()), (Some("FULL|STALE"), Some(6)));
    daemon.stop();
}

#[test]
fn the_plan_lists_what_the_optimisation_takes_and_says_what_it_does() {
    let room = room("iterations = 77\npublish_every = 7\ngaussians = 1000");
    let plan = |room: &Room| run(diffnr().args(["plan", "--json", "--config"]).arg(room.path("gantry.toml")));
    let output = plan(&room);
    expect_code(&output, 0);
    let (with, text) = (json(&output), String::from_utf8_lossy(&output.stdout).into_owned());
    for part in
        ["77 iterations", "every 7 iterations", "1000 elements of a gaussians", "optimise: gaussians", "\"frozen\""]
    {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let listed: u64 = with["buffers"].as_array().unwrap().iter().map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
    assert_eq!(with["total_bytes"].as_u64(), Some(listed));
    room.settings("");
    let without = json(&plan(&room));
    assert!(with["total_bytes"].as_u64() > without["total_bytes"].as_u64());
    // Between the two: refused, by the name of what is large.
    room.settings(&format!(
        "[reconstruct]\nmethod = \"gaussians\"\n[memory]\nhost_limit = \"{} B\"\n",
        without["total_bytes"].as_u64().unwrap() + 1000
    ));
    let refused = plan(&room);
    expect_code(&refused, 6);
    assert!(stderr(&refused).contains("memory.host_limit"), "{}", stderr(&refused));
}

#[test]
fn a_deadline_that_no_iteration_fits_into_is_refused_before_ready() {
    let room =
        Room::new("[reconstruct]\nmethod = \"gaussians\"\ndeadline_s = 0.1\n[volume]\nvoxels = [128, 128, 128]\n");
    let refused = run(diffnr().arg("serve").arg("--config").arg(room.path("gantry.toml")));
    expect_code(&refused, 3);
    let words = stderr(&refused);
    assert!(words.contains("reconstruct.deadline_s = 0.1") && words.contains("raise it"), "{words}");
}
