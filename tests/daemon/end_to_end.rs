//! The main job: gantry in, volume out.

use super::support::*;

/// The phantom's parts at their places: any axis turned round, half-pixel or scale error shows here.
fn assert_is_the_phantom(hu: &ndarray::Array3<f32>) {
    for (centre, radius, expected, tolerance) in [
        // 40 views of 5 mm voxels: streaks of some tens of HU, blur at the inlays' edges.
        ([5.0, -30.0, 25.0], 10.0, 0.0, 40.0),
        ([25.0, 10.0, 15.0], 6.0, 1000.0, 100.0),
        ([-20.0, -15.0, -10.0], 6.0, -500.0, 80.0),
        // Air near the corner, where 40 views leave the strongest streaks.
        ([-70.0, 60.0, 0.0], 8.0, -1000.0, 100.0),
    ] {
        let mean = mean_hu(hu, centre, radius);
        assert!((mean - expected).abs() < tolerance, "at {centre:?}: {mean} HU, expected {expected}");
    }
}

#[test]
fn a_c_gantry_plays_raw_counts_and_a_reader_saves_the_volume() {
    let Some(gantry) = gantry_sim() else { return };
    let room = Room::new("");
    let recording = room.recording(true);
    let daemon = room.serve(&["--once", "--json"]);
    expect_code(&run(std::process::Command::new(gantry).arg(&room.name).arg(recording).args(["--fps", "200"])), 0);
    let out = room.path("out.nii.gz");
    let seen = room.watch(&["--wait", "full", "--save", out.to_str().unwrap()]);
    assert_eq!(seen["volume"]["status"], "FULL");
    assert_eq!(seen["volume"]["frames"], 40);
    assert_eq!(seen["volume"]["missing_frames"], 0);
    assert_eq!(seen["volume"]["device"], "cpu");
    // Two calibration frames came first.
    assert_eq!(
        (seen["volume"]["first_sequence"].as_u64(), seen["volume"]["last_sequence"].as_u64()),
        (Some(2), Some(41))
    );
    assert_is_the_phantom(&saved_hu(&out));
    let report = json(&daemon.end());
    assert_eq!(report["state"], "stopped");
    // On a busy machine the ladder may have skipped some of the three.
    let count = |name: &str| report["reconstruct"][name].as_u64().unwrap();
    assert_eq!(count("previews") + count("previews_skipped"), 3);
    assert_eq!(report["reconstruct"]["full"], 1);
    assert_eq!(report["preprocess"]["flat_frames"], 1);
    assert_eq!(report["preview_latency"]["count"].as_u64(), Some(count("previews") + 1));
    assert_eq!(report["frame_latency"]["count"], 40);
    assert_eq!(report["events_lost"], 0);
}

#[test]
fn replay_of_line_integrals_gives_the_offline_volume_bit_for_bit() {
    let room = Room::new("");
    let daemon = room.serve(&["--once"]);
    let scene = room.path("scene");
    let sent = run(diffnr().arg("replay").arg(&scene).args(["--rate", "0", "--name", &room.name, "--json"]));
    expect_code(&sent, 0);
    assert_eq!(json(&sent)["frames"], 40);
    let out = room.path("out.npy");
    room.watch(&["--wait", "full", "--save", out.to_str().unwrap(), "--scan", scene.to_str().unwrap()]);
    expect_code(&daemon.end(), 0);
    let streamed = diffnr::formats::npy::read_volume(&out).unwrap();

    let scan = diffnr::formats::scene::read_scan(&scene).unwrap();
    let mut compute = diffnr::compute::cpu::CpuCompute::new(1).unwrap();
    let settings = diffnr::reconstruct::FdkSettings::default();
    let plan = diffnr::reconstruct::FdkPlan::new(&mut compute, &scan.geometry, &scan.grid, settings).unwrap();
    let offline =
        diffnr::reconstruct::fdk::reconstruct(&compute, plan.into(), scan.projections.as_slice().unwrap()).unwrap();
    let offline = ndarray::Array3::from_shape_vec(scan.grid.voxels, offline).unwrap();
    assert_eq!(streamed, scan.scale.volume_values(offline.view()));
}
