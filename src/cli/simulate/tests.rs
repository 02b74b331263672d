#![allow(clippy::unwrap_used)]

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn run_line(words: &str, folder: &Path) -> Result<(), Failure> {
    let folder = folder.to_str().unwrap();
    let line = ["simulate", "-o", folder, "--detector", "24x32", "--voxels", "16", "--json"];
    let line = Line::try_parse_from(line.into_iter().chain(words.split_whitespace())).unwrap();
    run(&line.arguments)
}

#[test]
fn a_scan_is_written_and_read_back() {
    let place = tempfile::tempdir().unwrap();
    let (folder, png) = (place.path().join("scan"), place.path().join("scan.png"));
    let words = format!("--phantom thorax --views 10 --test-views 3 --raw --seed 4 --png {}", png.display());
    run_line(&words, &folder).unwrap();
    let scene = scene::read(&folder).unwrap();
    assert_eq!(scene.scan.projections.dim(), (10, 24, 32));
    assert_eq!(scene.test.unwrap().projections.dim(), (3, 24, 32));
    assert_eq!(scene.raw.unwrap().counts.dim(), (10, 24, 32));
    assert_eq!(scene.ground_truth_per_mm.unwrap().dim(), (16, 16, 16));
    assert_eq!(scene.acquisition.photons, Some(1e5));
    assert_eq!(scene.acquisition.seed, Some(4));
    assert!(scene.scan.scale.is_absolute);
    let nodules: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join(thorax::NODULES_FILE)).unwrap()).unwrap();
    assert_eq!(nodules["seed"], 4);
    // A grey PNG of 8 tiles, 4 across: 4 x 32 + 3 gaps of 4 wide.
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(png).unwrap()));
    assert_eq!(decoder.read_info().unwrap().info().size(), (4 * 32 + 12, 2 * 24 + 4));
}

#[test]
fn nothing_is_overwritten_unasked() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("scan");
    run_line("--phantom water-sphere --views 9 --test-views 2 --raw", &folder).unwrap();
    let refused = run_line("--phantom water-sphere --views 5", &folder).unwrap_err();
    assert!(refused.code == exit::OUTPUT && refused.message.contains("--force"), "{refused:?}");
    run_line("--phantom water-sphere --views 5 --force", &folder).unwrap();
    let scene = scene::read(&folder).unwrap();
    assert!(scene.scan.geometry.views.len() == 5 && scene.test.is_none() && scene.raw.is_none());
    assert_eq!(fs::read_dir(folder.join("proj_train")).unwrap().count(), 5, "views of the old scan must not stay");
    // A folder of other things is never touched.
    let other = place.path().join("letters");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("dear.txt"), "x").unwrap();
    let refused = run_line("--phantom water-sphere --force", &other).unwrap_err();
    assert!(refused.code == exit::OUTPUT && refused.message.contains("no scan"), "{refused:?}");
}

#[test]
fn failures_have_their_documented_codes() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("scan");
    for (words, code, needle) in [
        ("missing.nii.gz", exit::INPUT, "missing.nii.gz"),
        ("--phantom water-sphere --photons 0", exit::USAGE, "--photons"),
        ("--phantom water-sphere --subpixels 99", exit::USAGE, "--subpixels"),
        ("--phantom water-sphere --dsd 500", exit::GEOMETRY, "magnification"),
        ("--phantom water-sphere --views 60 --arc 90", exit::GEOMETRY, "--unchecked-geometry"),
    ] {
        let failure = run_line(words, &folder).unwrap_err();
        assert_eq!(failure.code, code, "{words}: {failure:?}");
        assert!(failure.message.contains(needle), "{words}: {failure:?}");
        assert!(!folder.exists(), "{words}: nothing is written on failure");
    }
    let huge = "simulate -o x --detector 8000 --views 20000 --phantom water-sphere";
    let failure = run(&Line::try_parse_from(huge.split(' ')).unwrap().arguments).unwrap_err();
    assert!(failure.code == exit::BUDGET && failure.message.contains("MiB"), "{failure:?}");
    run_line("--phantom water-sphere --views 60 --arc 90 --unchecked-geometry --noise-free", &folder).unwrap();
}

#[test]
fn the_same_line_gives_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let read = |name: &str, words: &str| {
        let folder = place.path().join(name);
        run_line(words, &folder).unwrap();
        let scene = scene::read(&folder).unwrap();
        (scene.scan, scene.raw.unwrap())
    };
    let words = "--phantom thorax --views 7 --non-uniform 3 --raw";
    let ((a, raw_a), (b, raw_b)) = (read("a", words), read("b", words));
    assert_eq!((a.projections, a.geometry, raw_a.counts), (b.projections, b.geometry, raw_b.counts));
    let (c, _) = read("c", "--phantom thorax --views 7 --non-uniform 4 --raw");
    assert_ne!(c.geometry, scene::read_scan(&place.path().join("a")).unwrap().geometry);
}

#[test]
fn an_object_is_either_a_volume_or_a_phantom() {
    let parse = |words: &[&str]| Line::try_parse_from([&["simulate", "-o", "x"], words].concat());
    assert!(parse(&[]).is_err());
    assert!(parse(&["a.nii", "--phantom", "thorax"]).is_err());
    assert!(parse(&["a.nii"]).is_ok() && parse(&["--phantom", "shepp-logan"]).is_ok());
    assert!(parse(&["a.nii", "--offset-u", "-12.5", "--start", "-90"]).is_ok(), "negative numbers are values");
    assert!(parse(&["a.nii", "--angle-law", "jittered"]).is_err(), "needs --non-uniform");
}
