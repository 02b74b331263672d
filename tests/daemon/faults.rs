//! A gantry that drops, repeats, reorders, spoils, stalls: every loss is reported as ranges, nothing is interpolated.

use std::process::Command;

use super::support::*;
use serde_json::{Value, json};

/// Plays the scene with `switches` and returns the status report at the end of the scan.
fn played(room: &Room, switches: &[&str]) -> Option<Value> {
    let gantry = gantry_sim()?;
    let recording = room.recording(false);
    let daemon = room.serve(&["--once", "--json"]);
    expect_code(&run(Command::new(gantry).arg(&room.name).arg(recording).args(switches)), 0);
    let output = daemon.end();
    expect_code(&output, 0);
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn dropped_frames_make_a_partial_volume_that_names_their_ranges() {
    let room = Room::new("");
    let Some(report) = played(&room, &["--fps", "200", "--drop", "0,5-7,20,39"]) else { return };
    assert_eq!(report["reconstruct"]["partial"], 1);
    assert_eq!(report["reconstruct"]["views"], 34);
    assert_eq!(report["missing"], json!([[0, 0], [5, 7], [20, 20], [39, 39]]));
    let volume = &room.watch(&[])["volume"];
    assert_eq!(volume["status"], "PARTIAL");
    assert_eq!((volume["frames"].as_u64(), volume["missing_frames"].as_u64()), (Some(34), Some(6)));
    assert_eq!(volume["missing"], json!([[0, 0], [5, 7], [20, 20], [39, 39]]));
    // The lost tail shows by the time-out alone; the ring's own count cannot know of it.
    assert_eq!(report["ingest"]["missing"], 5);
}

#[test]
fn a_partial_volume_keeps_the_scale() {
    let room = Room::new("");
    let Some(_) = played(&room, &["--fps", "200", "--drop", "3,8,13,18,23,28,33,38"]) else { return };
    let out = room.path("partial.nii.gz");
    room.watch(&["--save", out.to_str().unwrap()]);
    // Every fifth view is lost, evenly: normalised by the arc covered, water is still water (32 views: more streaks).
    let water = mean_hu(&saved_hu(&out), [5.0, -30.0, 25.0], 10.0);
    assert!(water.abs() < 60.0, "{water} HU");
}

#[test]
fn reordered_and_repeated_frames_cost_nothing() {
    let room = Room::new("");
    let switches = ["--fps", "400", "--reorder", "0.3", "--duplicate", "0.3", "--seed", "3"];
    let Some(report) = played(&room, &switches) else { return };
    assert_eq!(report["reconstruct"]["full"], 1);
    assert_eq!(report["reconstruct"]["views"], 40);
    let (late, repeated) = (&report["ingest"]["late"], &report["ingest"]["rejected_duplicate"]);
    assert!(late.as_u64() > Some(0) && repeated.as_u64() > Some(0), "late {late}, repeated {repeated}");
    assert_eq!(report["ingest"]["missing"], 0);
    assert_eq!(room.watch(&[])["volume"]["status"], "FULL");
}

#[test]
fn spoilt_frames_are_rejected_and_missing() {
    let room = Room::new("");
    let switches = ["--fps", "200", "--corrupt", "payload:0.15", "--corrupt", "header:0.1", "--seed", "5"];
    let Some(report) = played(&room, &switches) else { return };
    let count = |path: &str| report.pointer(path).unwrap().as_u64().unwrap();
    let spoilt = count("/ingest/rejected_payload") + count("/ingest/rejected_header");
    assert!(count("/ingest/rejected_payload") > 0 && count("/ingest/rejected_header") > 0, "{report:#?}");
    assert_eq!(count("/reconstruct/views") + spoilt, 40);
    assert_eq!(count("/reconstruct/partial"), 1);
    assert_eq!(room.watch(&[])["volume"]["missing_frames"].as_u64(), Some(spoilt));
}

#[test]
fn a_scan_that_breaks_off_is_published_and_goes_on_when_its_frames_do() {
    let Some(gantry) = gantry_sim() else { return };
    let room = Room::new("");
    let recording = room.recording(false);
    let daemon = room.serve(&[]);
    // The stall is twice the frame time-out.
    let mut player =
        Process::start(Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200", "--stall", "25:900"]));
    let status = room.wait_for_status("the partial volume of the stalled scan", |s| s["reconstruct"]["partial"] == 1);
    assert_eq!(status["scan"]["views"], 25);
    let volume = &room.watch(&[])["volume"];
    assert_eq!((volume["status"].as_str(), volume["missing"].clone()), (Some("PARTIAL"), json!([[25, 39]])));
    room.wait_for_status("the full volume after all", |s| s["reconstruct"]["full"] == 1);
    assert_eq!(room.watch(&[])["volume"]["status"], "FULL");
    player.signal(rustix::process::Signal::CONT);
    expect_code(&player.end(), 0);
    daemon.stop();
}

/// A ring of two frames before a slow volume loses frames by its policy, and every loss is counted once.
fn overrun(policy: &str) -> Option<(Value, Value)> {
    let gantry = gantry_sim()?;
    let room = Room::new(&format!(
        "[shared_memory]\nring_slots = 2\ndrop_policy = \"{policy}\"\n[supervise]\nstaging_frames = 2\nframe_timeout_ms = 400\n[volume]\nvoxels = [128, 128, 128]\n"
    ));
    let recording = room.recording(false);
    let daemon = room.serve(&["--once", "--json"]);
    expect_code(&run(Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "0"])), 0);
    let output = daemon.end();
    expect_code(&output, 0);
    let watched = room.watch(&[]);
    Some((serde_json::from_slice(&output.stdout).unwrap(), watched))
}

#[test]
fn a_full_ring_loses_frames_by_its_policy_and_counts_them() {
    for (policy, counter) in [("newest", "dropped_newest"), ("oldest", "dropped_oldest")] {
        let Some((report, watched)) = overrun(policy) else { return };
        let count = |counter: &str| report["ingest"][counter].as_u64().unwrap();
        assert!(count(counter) > 0, "{policy}: {report:#?}");
        // Under "oldest" the newest frame goes where the daemon holds the oldest in its hands at that moment.
        let dropped = count("dropped_newest") + count("dropped_oldest");
        let views = report["reconstruct"]["views"].as_u64().unwrap();
        assert_eq!(views + dropped, 40, "{policy}: {report:#?}");
        assert_eq!(watched["volume"]["missing_frames"].as_u64(), Some(dropped), "{policy}");
        assert!(report["ingest"]["ring_high_water"].as_u64() <= Some(2), "{report:#?}");
    }
}

#[test]
fn frames_of_another_geometry_are_refused_and_the_last_volume_is_marked_stale() {
    let room = Room::new("");
    let daemon = room.serve(&[]);
    let replay = |scene: &str| {
        let sent = run(diffnr().arg("replay").arg(room.path(scene)).args(["--rate", "0", "--name", &room.name]));
        expect_code(&sent, 0);
    };
    replay("scene");
    room.wait_for_status("the first volume", |s| s["reconstruct"]["full"] == 1);

    // The same scan, begun a quarter turn further on: its weights and poses are not the planned ones.
    let mut turned = diffnr::formats::scene::read(&room.path("scene")).unwrap();
    let quarter = glam::DQuat::from_rotation_z(std::f64::consts::FRAC_PI_2);
    for pose in &mut turned.scan.geometry.views {
        for vector in
            [&mut pose.source_mm, &mut pose.detector_origin_mm, &mut pose.column_step_mm, &mut pose.row_step_mm]
        {
            *vector = quarter * *vector;
        }
    }
    diffnr::formats::scene::write(&room.path("turned"), &turned).unwrap();
    replay("turned");
    let status = room.wait_for_status("the lost scan", |s| s["reconstruct"]["scans_lost"] == 1);
    assert_eq!((status["rung"].as_str(), status["ladder"]["stale"].as_u64()), (Some("stale"), Some(1)));
    assert_eq!(status["reconstruct"]["refused"], 40);
    let seen = room.watch(&[]);
    assert_eq!(seen["volume"]["status"], "FULL|STALE");
    assert!(seen["message"].as_str().unwrap().contains("STALE"), "{seen}");
    assert_eq!(seen["daemon"], "degraded");

    replay("scene");
    let status = room.wait_for_status("the next volume", |s| s["reconstruct"]["full"] == 2);
    assert_eq!(status["rung"], "full");
    assert!(status["ladder"]["recovered"].as_u64() >= Some(1), "{status:#}");
    assert_eq!(room.watch(&[])["volume"]["status"], "FULL");
    let log = stderr(&daemon.stop());
    assert!(log.contains("from where the settings plan it"), "{log}");
}

#[test]
fn several_scans_follow_each_other_without_a_word_between_them() {
    let Some(gantry) = gantry_sim() else { return };
    let room = Room::new("");
    let recording = room.recording(true);
    let daemon = room.serve(&[]);
    let switches = ["--fps", "300", "--loop", "3"];
    expect_code(&run(Command::new(gantry).arg(&room.name).arg(recording).args(switches)), 0);
    let status = room.wait_for_status("three volumes", |s| s["reconstruct"]["full"] == 3);
    assert_eq!(status["reconstruct"]["scans"], 3);
    assert_eq!(status["preprocess"]["dark_frames"], 3);
    daemon.stop();
}
