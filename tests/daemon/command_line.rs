//! Exit codes and messages: each refusal names field, value and what to change.

use super::support::*;

fn refused(room: &Room, command: &str, code: i32) -> String {
    let output = run(diffnr().arg(command).arg("--config").arg(room.path("gantry.toml")));
    expect_code(&output, code);
    stderr(&output)
}

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` not in: {message}");
    }
}

#[test]
fn refused_settings_end_with_their_own_codes() {
    let room = Room::new("");
    for command in ["plan", "serve"] {
        room.settings("[memory]\nhost_limt = \"1 GiB\"");
        assert_names(&refused(&room, command, 3), &["memory.host_limt", "did you mean `memory.host_limit`"]);

        room.settings("[memory]\nhost_limit = \"300 KiB\"");
        let message = refused(&room, command, 6);
        assert_names(
            &message,
            &["memory.host_limit = 300.0 KiB", "largest buffers: ", "publish: volume slots", "raise memory.host_limit"],
        );

        room.settings("[volume]\nsize_mm = [4.0, 4.0, 4.0]\ncentre_mm = [900.0, 0.0, 0.0]");
        refused(&room, command, 5);
    }
    std::fs::remove_file(room.path("scene/meta_data.json")).unwrap();
    room.settings("");
    assert_names(&refused(&room, "serve", 3), &["geometry.scan", "meta_data.json"]);
}

#[test]
fn weights_of_priors_that_make_no_sense_are_refused_by_name_and_value() {
    let room = Room::new("");
    for (settings, named) in [
        ("prior = -1", "reconstruct.prior = -1"),
        ("prior = nan", "reconstruct.prior = NaN"),
        ("prior = inf", "reconstruct.prior = inf"),
        ("prior = 1001", "reconstruct.prior = 1001"),
        ("tv_mm = -0.5", "reconstruct.tv_mm = -0.5"),
    ] {
        room.settings(&format!("[reconstruct]\nmethod = \"field\"\n{settings}"));
        for command in ["plan", "serve"] {
            assert_names(&refused(&room, command, 3), &[named]);
        }
    }
}

#[test]
fn the_environment_reaches_the_settings() {
    let room = Room::new("");
    let plan = |name: &str, value: &str| {
        run(diffnr().args(["plan", "--json", "--config"]).arg(room.path("gantry.toml")).env(name, value))
    };
    let total = |output: &std::process::Output| {
        expect_code(output, 0);
        json(output)["total_bytes"].as_u64().unwrap()
    };
    let (small, large) = (plan("DIFFNR_VOLUME__VOXELS", "[16, 16, 16]"), plan("DIFFNR_VOLUME__VOXELS", "[64, 64, 64]"));
    // Accumulator, published volume and 4 slots of float32.
    let growth = 6 * 4 * (64u64.pow(3) - 16u64.pow(3));
    let grown = total(&large) - total(&small);
    assert!(grown >= growth && grown < growth + growth / 10, "{grown} {growth}");
    expect_code(&plan("DIFFNR_VOLUME__VOXEL", "[16, 16, 16]"), 3);
    let report = json(&small);
    let sum: u64 = report["buffers"].as_array().unwrap().iter().map(|b| b["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, report["total_bytes"].as_u64().unwrap());
    let schedule = report["schedule"].as_array().unwrap();
    assert!(schedule.iter().any(|step| step["when"] == "after views 10, 20, 30"), "{schedule:#?}");
    assert!(schedule.iter().any(|step| step["when"] == "after view 40"), "{schedule:#?}");
}

#[test]
fn the_plan_is_printed_as_tables() {
    let room = Room::new("");
    let output = run(diffnr().arg("plan").arg("--config").arg(room.path("gantry.toml")));
    expect_code(&output, 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_names(
        &text,
        &["SCHEDULE", "publish FULL", "DEGRADE LADDER", "Stale", "BUFFERS", "publish: volume slots", "all shared"],
    );
}

#[test]
fn readers_and_producers_without_a_daemon_say_so() {
    let room = Room::new("");
    let output = run(diffnr().args(["watch", "--name", &room.name, "--timeout", "0.1"]));
    expect_code(&output, 7);
    assert_names(&stderr(&output), &[&room.name, "diffnr serve"]);
    let output = run(diffnr().arg("replay").arg(room.path("scene")).args(["--name", &room.name, "--wait", "0.1"]));
    expect_code(&output, 7);
    assert_names(&stderr(&output), &[&room.name, "diffnr serve"]);
    let output = run(diffnr().arg("replay").arg(room.path("nowhere")).args(["--name", &room.name]));
    expect_code(&output, 4);
}

#[test]
fn a_volume_that_does_not_come_in_time_is_an_error_that_tells_how_far_it_got() {
    let room = Room::new("");
    let daemon = room.serve(&[]);
    let output = run(diffnr().args(["watch", "--name", &room.name, "--wait", "full", "--timeout", "0.2"]));
    expect_code(&output, 7);
    assert_names(&stderr(&output), &["no finished volume", "0 of 40 views", "--timeout"]);
    daemon.stop();
}

#[test]
fn files_that_cannot_be_written_end_with_the_output_code() {
    let room = Room::new("");
    let daemon = room.serve(&[]);
    expect_code(&run(diffnr().arg("replay").arg(room.path("scene")).args(["--rate", "0", "--name", &room.name])), 0);
    for (switch, file) in
        [("--save", "no/such/folder/out.nii.gz"), ("--save", "out.jpeg"), ("--png", "no/such/out.png")]
    {
        let output = run(diffnr().args(["watch", "--name", &room.name, "--wait", "full", switch]).arg(room.path(file)));
        expect_code(&output, 9);
    }
    let picture = room.path("slices.png");
    room.watch(&["--wait", "full", "--png", picture.to_str().unwrap()]);
    assert_eq!(&std::fs::read(picture).unwrap()[1..4], b"PNG");
    daemon.stop();
}

#[test]
fn a_second_daemon_on_the_same_name_is_refused() {
    let room = Room::new("");
    let daemon = room.serve(&[]);
    assert_names(&refused(&room, "serve", 7), &[&room.name, "another running daemon"]);
    daemon.stop();
}

#[test]
fn segments_stay_after_the_end_and_go_when_asked_to() {
    let room = Room::new("");
    let there = || std::path::Path::new("/dev/shm").join(format!("{}.volumes", room.name)).exists();
    room.serve(&[]).stop();
    assert!(there());
    assert_eq!(room.watch(&[])["daemon"], "stopped");
    room.serve(&["--remove"]).stop();
    assert!(!there());
}
