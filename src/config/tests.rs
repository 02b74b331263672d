#![allow(clippy::unwrap_used)]

use super::*;
use crate::reconstruct::optimise::AugmentSettings;

const ORBIT: &str = "
[geometry]
source_to_isocenter_mm = 1000
source_to_detector_mm = 1500.0
columns = 64
rows = 32
pitch_u_mm = 4.0
pitch_v_mm = 4.0
views = 90
[volume]
size_mm = [100, 100, 50]
";

fn refusal(extra: &str) -> String {
    Settings::from_toml(&format!("{ORBIT}\n{extra}"), Path::new(".")).unwrap_err().to_string()
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn the_example_is_valid_complete_and_says_the_defaults() {
    let text = include_str!("../../examples/gantry.toml");
    let settings = Settings::from_toml(text, Path::new(".")).unwrap();
    assert_eq!(settings.geometry.views.len(), 180);
    for (section, keys) in keys::known() {
        assert!(text.contains(&format!("[{section}]")), "section {section} is missing in the example");
        for key in keys {
            assert!(text.contains(&format!("{key} = ")), "{section}.{key} is missing in the example");
        }
    }
    let bare = Settings::from_toml(ORBIT, Path::new(".")).unwrap();
    assert_eq!(bare.shared_memory, settings.shared_memory);
    assert_eq!(bare.preprocess, settings.preprocess);
    assert_eq!(bare.supervise, settings.supervise);
    assert_eq!(bare.compute, settings.compute);
    assert_eq!(bare.host_limit_bytes, settings.host_limit_bytes);
    // The numbers of the optimisation are the defaults too.
    let optimised = |text: &str| Settings::from_toml(text, Path::new(".")).unwrap().optimised.unwrap();
    let example = optimised(&text.replace("method = \"fdk\"", "method = \"gaussians\""));
    let bare = optimised(&format!("{ORBIT}\n[reconstruct]\nmethod = \"gaussians\""));
    assert_eq!((bare.optimise, bare.budget, bare.publish), (example.optimise, example.budget, example.publish));
    assert!(bare.slice_fixer.is_none() && example.slice_fixer.is_none(), "none unless asked for");
    // And those of the repairs.
    let method = text.replace("method = \"fdk\"", "method = \"gaussians\"");
    let example = optimised(&method.replace("model = \"none\"", "model = \"shipped\""));
    let bare =
        optimised(&format!("{ORBIT}\n[reconstruct]\nmethod = \"gaussians\"\n[slice_fixer]\nmodel = \"shipped\""));
    assert!(bare.optimise.augment == Some(AugmentSettings::default()) && bare.slice_fixer.is_some());
    assert_eq!((bare.optimise, bare.slice_fixer), (example.optimise, example.slice_fixer));
}

#[test]
fn unknown_keys_are_refused_with_their_path_and_the_nearest_known_one() {
    for (text, path, nearest) in [
        ("[shared_memory]\nring_slot = 4", "shared_memory.ring_slot", "shared_memory.ring_slots"),
        ("[publsh]\npreview_every_views = 4", "publsh.preview_every_views", "publish.preview_every_views"),
        ("[memory]\nhost_limt = \"1 GiB\"", "memory.host_limt", "memory.host_limit"),
        ("[compute]\nwindow = \"hann\"", "compute.window", "reconstruct.window"),
    ] {
        let message = refusal(text);
        assert!(message.contains(&format!("`{path}` is not a known key")), "{message}");
        assert!(message.contains(&format!("did you mean `{nearest}`")), "{message}");
    }
    let message = Settings::from_toml("host_limit = \"1 GiB\"", Path::new(".")).unwrap_err().to_string();
    assert!(message.contains("did you mean `memory.host_limit`"), "{message}");
    let message = refusal("[memory]\nzzz = 1");
    assert!(message.contains("known here: host_limit"), "{message}");
}

#[test]
fn refusals_name_field_value_and_what_to_change() {
    for (text, parts) in [
        ("[shared_memory]\nvolume_slots = 2", ["shared_memory.volume_slots = 2", "between 3 and 64"]),
        ("[shared_memory]\nname = \"a/b\"", ["shared_memory.name = \"a/b\"", "letters, digits"]),
        ("[shared_memory]\ndrop_policy = \"all\"", ["shared_memory.drop_policy = \"all\"", "\"newest\", \"oldest\""]),
        ("[memory]\nhost_limit = \"much\"", ["memory.host_limit = \"much\"", "2 GiB"]),
        ("[publish]\nframe_rate_fps = nan", ["publish.frame_rate_fps = NaN", "between"]),
        ("[publish]\npreview_every_views = 91", ["publish.preview_every_views = 91", "between 0 and 90"]),
        ("[preprocess]\ni0 = -3.0", ["preprocess.i0 = -3", "> 0"]),
        ("[preprocess]\nflat = \"nowhere.npy\"", ["preprocess.flat = ", "existing .npy file"]),
        ("[supervise]\nlog_level = \"diffnr=lots\"", ["supervise.log_level = diffnr=lots", "filter"]),
        ("[reconstruct]\nmethod = \"magic\"", ["reconstruct.method = \"magic\"", "\"fdk\", \"gaussians\", \"field\""]),
        ("[reconstruct]\niterations = 0", ["reconstruct.iterations = 0", "between 1 and"]),
        (
            "[reconstruct]\niterations = 10\nearly_iterations = 7",
            ["reconstruct.early_iterations = 7", "between 0 and 5"],
        ),
        ("[reconstruct]\ndeadline_s = nan", ["reconstruct.deadline_s = NaN", "between 0.1 and"]),
        (
            "[reconstruct]\niterations = 9\ndeadline_s = 9.0",
            ["reconstruct.deadline_s", "beside reconstruct.iterations"],
        ),
        (
            "[reconstruct]\npublish_every = 9\npublish_interval_ms = 9",
            ["reconstruct.publish_interval_ms", "beside reconstruct.publish_every"],
        ),
        ("[reconstruct]\npublish_interval_ms = 0", ["reconstruct.publish_interval_ms = 0", "between 1 and"]),
        ("[reconstruct]\ngaussians = -1", ["reconstruct.gaussians = -1", "between 0 and"]),
        ("[reconstruct]\ntv_mm = -0.5", ["reconstruct.tv_mm = -0.5", "between 0 and"]),
        ("[reconstruct]\nphotons = inf", ["reconstruct.photons = inf", "between 1 and"]),
        ("[reconstruct]\nviews_per_iteration = 0", ["reconstruct.views_per_iteration = 0", "between 1 and"]),
        ("[reconstruct]\nseed = -1", ["reconstruct.seed = -1", "between 0 and"]),
        ("[slice_fixer]\nmodel = \"nowhere\"", ["slice_fixer.model = \"nowhere\"", "manifest.toml"]),
        ("[slice_fixer]\nmodel = \"\"", ["slice_fixer.model = \"\"", "\"shipped\""]),
        (
            "[slice_fixer]\nmodel = \"shipped\"",
            ["slice_fixer.model = \"shipped\"", "reconstruct.method = \"gaussians\""],
        ),
        ("[slice_fixer]\nrepairs = 0", ["slice_fixer.repairs = 0", "between 1 and"]),
        ("[slice_fixer]\nrepair_from = 1.0", ["slice_fixer.repair_from = 1", "between 0 and"]),
        ("[slice_fixer]\nweight = 0.0", ["slice_fixer.weight = 0", "default 4"]),
        ("[slice_fixer]\nevery = 0", ["slice_fixer.every = 0", "between 1 and"]),
        ("[slice_fixer]\nmodulus = \"perhaps\"", ["modulus", "correct the value's type"]),
        (
            "[slice_fixer]\nplanes = [\"axial\", \"axial\"]",
            ["slice_fixer.planes = [\"axial\", \"axial\"]", "at most once"],
        ),
        ("[slice_fixer]\nplanes = [\"oblique\"]", ["slice_fixer.planes = [\"oblique\"]", "\"sagittal\""]),
        ("[slice_fixer]\nprovider = \"rocm\"", ["slice_fixer.provider = \"rocm\"", "\"tensorrt-rtx\""]),
        ("[slice_fixer]\nonnxruntime = \"nowhere\"", ["slice_fixer.onnxruntime = ", "is not there"]),
        ("[slice_fixer]\nanatomy = \"\"", ["slice_fixer.anatomy = \"\"", "part of the body"]),
        ("[slice_fixer]\ndeadline_s = 0.0", ["slice_fixer.deadline_s = 0", "between 0.01 and"]),
        (
            "[reconstruct]\nmethod = \"field\"\niterations = 1\n[slice_fixer]\nmodel = \"shipped\"",
            ["slice_fixer.repair_from = 0.9", "reconstruct.iterations = 1"],
        ),
        ("[compute]\nthreads = \"many\"", ["many", "correct the value's type"]),
    ] {
        let message = refusal(text);
        for part in parts {
            assert!(message.contains(part), "{part} not in: {message}");
        }
    }
    let missing = Settings::from_toml("[geometry]\nviews = 3", Path::new(".")).unwrap_err().to_string();
    assert!(missing.contains("geometry.source_to_isocenter_mm = (not given)"), "{missing}");
    let broken = Settings::from_toml("[geometry\n", Path::new(".")).unwrap_err().to_string();
    assert!(broken.contains("readable TOML"), "{broken}");
}

#[test]
fn the_environment_overrides_the_file_and_is_checked_as_strictly() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gantry.toml");
    std::fs::write(&file, ORBIT).unwrap();
    let variables = environment(&[
        ("DIFFNR_SHARED_MEMORY__NAME", "gantry2"),
        ("DIFFNR_VOLUME__VOXELS", "[8, 9, 10]"),
        ("DIFFNR_GEOMETRY__VIEWS", "7"),
        ("DIFFNR_PUBLISH__FRAME_RATE_FPS", "2.5"),
        ("DIFFNR_SHARED", "/not/a/setting"),
        ("OTHER__THING", "1"),
    ]);
    let settings = Settings::load_with(&file, variables).unwrap();
    assert_eq!(settings.shared_memory.name, "gantry2");
    assert_eq!(settings.grid.voxels, [8, 9, 10]);
    assert_eq!(settings.geometry.views.len(), 7);
    assert_eq!(settings.publish.frame_time_ns(), 400_000_000);
    let unknown = Settings::load_with(&file, environment(&[("DIFFNR_GEOMETRY__VIEW", "7")])).unwrap_err().to_string();
    assert!(unknown.contains("environment variable DIFFNR_GEOMETRY__VIEW"), "{unknown}");
    assert!(unknown.contains("did you mean `geometry.views`"), "{unknown}");
}

#[test]
fn angles_come_from_a_file_and_bad_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let orbit = ORBIT.replace("views = 90", "angles_file = \"angles.txt\"");
    std::fs::write(folder.path().join("angles.txt"), "# degrees\n0\n10.5 # second\n\n-20\n").unwrap();
    let settings = Settings::from_toml(&orbit, folder.path()).unwrap();
    let angles: Vec<f64> = settings.geometry.views.iter().map(|v| v.source_angle_rad().to_degrees()).collect();
    for (angle, expected) in angles.iter().zip([0.0, 10.5, -20.0]) {
        assert!((angle - expected).abs() < 1e-9, "{angles:?}");
    }
    std::fs::write(folder.path().join("angles.txt"), "0\nten\n").unwrap();
    let message = Settings::from_toml(&orbit, folder.path()).unwrap_err().to_string();
    assert!(message.contains("angles.txt line 2: \"ten\""), "{message}");
    let both = orbit.replace("[volume]", "views = 3\n[volume]");
    let message = Settings::from_toml(&both, folder.path()).unwrap_err().to_string();
    assert!(message.contains("geometry.views"), "{message}");
}

#[test]
fn the_hash_is_of_what_decides_the_voxels_and_of_nothing_else() {
    let hash = |extra: &str| Settings::from_toml(&format!("{ORBIT}\n{extra}"), Path::new(".")).unwrap().hash();
    let base = hash("");
    assert_eq!(base, hash("[shared_memory]\nname = \"other\"\n[compute]\nthreads = 3"));
    assert_ne!(base, hash("[preprocess]\nmin_transmission = 1e-4"));
    let numbers = "[reconstruct]\niterations = 7\ntv_mm = 0.1";
    assert_eq!(base, hash(numbers), "FDK has none of these");
    let optimised = |extra: &str| hash(&format!("[reconstruct]\nmethod = \"gaussians\"\n{extra}"));
    assert_ne!(base, optimised(""));
    assert_eq!(optimised(""), optimised("publish_every = 3"));
    for extra in [
        "iterations = 7",
        "early_iterations = 7",
        "deadline_s = 7.0",
        "tv_mm = 0.1",
        "gaussians = 5",
        "seed = 1",
        "photons = 1e4",
    ] {
        assert_ne!(optimised(""), optimised(extra), "{extra}");
    }
    let fixed = |extra: &str| optimised(&format!("[slice_fixer]\nmodel = \"shipped\"\n{extra}"));
    assert_ne!(fixed(""), optimised(""));
    assert_eq!(fixed(""), fixed("provider = \"cpu\"\ndeadline_s = 3.0"), "who runs it stands in the header");
    for extra in ["weight = 0.4", "repairs = 2", "planes = [\"axial\"]", "anatomy = \"chest\"", "modulus = true"] {
        assert_ne!(fixed(""), fixed(extra), "{extra}");
    }
    let other_size = ORBIT.replace("[100, 100, 50]", "[100, 100, 51]");
    assert_ne!(base, Settings::from_toml(&other_size, Path::new(".")).unwrap().hash());
}

#[test]
fn a_scene_gives_poses_volume_and_water_and_cannot_stand_beside_an_orbit() {
    let folder = tempfile::tempdir().unwrap();
    let orbit = crate::geometry::CircularOrbit {
        detector: crate::geometry::Detector { columns: 8, rows: 6 },
        ..Default::default()
    };
    let geometry = orbit.over_arc(5, 0.1, 3.0);
    let scan = crate::formats::Scan {
        projections: ndarray::Array3::zeros((5, 6, 8)),
        geometry: geometry.clone(),
        grid: crate::geometry::VolumeGrid::over_box(
            [4, 5, 6],
            glam::DVec3::splat(60.0),
            glam::DVec3::new(1.0, 2.0, 3.0),
        ),
        scale: crate::formats::SceneScale::hu_window(0.0205),
        patient_offset_mm: glam::DVec3::ZERO,
    };
    let scene = crate::formats::scene::Scene::new(scan.clone());
    crate::formats::scene::write(&folder.path().join("scene"), &scene).unwrap();
    let settings = Settings::from_toml("[geometry]\nscan = \"scene\"", folder.path()).unwrap();
    assert_eq!(settings.grid.voxels, [4, 5, 6]);
    assert_eq!(settings.mu_water_per_mm, 0.0205);
    for (pose, expected) in settings.geometry.views.iter().zip(&geometry.views) {
        assert!((pose.source_mm - expected.source_mm).length() < 1e-6, "{pose:?} {expected:?}");
    }
    let finer = "[geometry]\nscan = \"scene\"\n[volume]\nvoxels = [8, 10, 12]";
    let finer = Settings::from_toml(finer, folder.path()).unwrap();
    assert_eq!((finer.grid.voxels, finer.grid.size_mm()), ([8, 10, 12], settings.grid.size_mm()));
    // Without a scale there are no HU, and so nothing for SliceFixer; unless the settings say what water is.
    let relative = crate::formats::Scan { scale: crate::formats::SceneScale::unstated(), ..scan };
    let relative = crate::formats::scene::Scene::new(relative);
    crate::formats::scene::write(&folder.path().join("relative"), &relative).unwrap();
    let text = "[geometry]\nscan = \"relative\"\n[reconstruct]\nmethod = \"field\"\n[slice_fixer]\nmodel = \"shipped\"";
    let refused = Settings::from_toml(text, folder.path()).unwrap_err().to_string();
    assert!(refused.contains("slice_fixer.model = \"shipped\"") && refused.contains("no absolute scale"), "{refused}");
    let with_water = format!("{text}\n[volume]\nmu_water_per_mm = 0.02");
    assert!(Settings::from_toml(&with_water, folder.path()).unwrap().optimised.unwrap().slice_fixer.is_some());
    let both = Settings::from_toml("[geometry]\nscan = \"scene\"\nviews = 3", folder.path()).unwrap_err().to_string();
    assert!(both.contains("geometry.views = 3") && both.contains("geometry.scan"), "{both}");
    let missing = Settings::from_toml("[geometry]\nscan = \"nowhere\"", folder.path()).unwrap_err().to_string();
    assert!(missing.contains("geometry.scan") && missing.contains("meta_data.json"), "{missing}");
}
