//! What cannot be used is refused by name.

use super::*;

fn refusal(options: &Options, request: &Request, folder: &Path) -> String {
    run(options, request, folder, 1).unwrap_err().to_string()
}

#[test]
fn another_set_of_options_is_refused_naming_what_differs() {
    let work = tempfile::tempdir().unwrap();
    let request = Request { phantoms: 1, ..Request::default() };
    let one = Options { scans: 1, ..options() };
    let folder = work.path().join("pairs");
    run(&one, &request, &folder, 1).unwrap();
    let before = files(&folder);
    let other = Options { seed: 8, stopped_at: [0.1, 0.2], ..one.clone() };
    let message = refusal(&other, &request, &folder);
    assert!(message.contains("seed: there 7, now 8"), "{message}");
    assert!(message.contains("stopped_at: there [0.02,0.05], now [0.1,0.2]"), "{message}");
    assert!(!message.contains("scans"), "{message}");
    same(&before, &files(&folder));

    // Another phantom under the same name.
    let message = refusal(&one, &Request { seed: 1, ..request.clone() }, &folder);
    assert!(message.contains("another subject phantom_thorax0000") && message.contains("sha256"), "{message}");
    // The same one on the other side.
    let message = refusal(&one, &Request { validation: vec!["thorax0000".into()], ..request.clone() }, &folder);
    assert!(message.contains("split: there \"train\", now \"validation\""), "{message}");

    let foreign = work.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter.txt"), "dear").unwrap();
    assert!(refusal(&one, &request, &foreign).contains("holds files but no curation.json"));
    fs::write(folder.join(CATALOGUE_FILE), "{").unwrap();
    assert!(refusal(&one, &request, &folder).contains(CATALOGUE_FILE));
}

#[test]
fn options_that_cannot_be_meant_are_refused_by_name() {
    let check = |change: &dyn Fn(&mut Options)| {
        let mut options = Options::default();
        change(&mut options);
        options.check().unwrap_err().to_string()
    };
    assert!(check(&|o| o.scans = 0).contains("--scans = 0"));
    assert!(check(&|o| o.size = 8).contains("--size = 8"));
    assert!(check(&|o| o.detector[1] = 1 << 30).contains("--detector (columns)"));
    assert!(check(&|o| o.views = [20, 10]).contains("--views = 20,10"));
    assert!(check(&|o| o.views_dense = 100).contains("half of --views-dense 100"));
    assert!(check(&|o| o.stopped_at = [0.5, 0.25]).contains("--stopped-at = 0.5,0.25"));
    assert!(check(&|o| o.stopped_at = [f64::NAN, 0.5]).contains("--stopped-at"));
    assert!(check(&|o| o.stopped_at = [0.5, 25.0]).contains("--stopped-at"));
    assert!(check(&|o| o.mu_water_per_mm = 19.3).contains("--mu-water"));
    assert!(check(&|o| o.oversample = f64::INFINITY).contains("--oversample"));
}

#[test]
fn names_that_are_no_subjects_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let ct = work.path().join("chest_a.nii");
    write_ct(&ct);
    let copy = work.path().join("chest_b.nii");
    fs::copy(&ct, &copy).unwrap();
    let message = |request: &Request| gather(request).unwrap_err().to_string();
    let one = || request(std::slice::from_ref(&ct), 0);
    assert!(message(&Request::default()).contains("--phantoms"));
    assert!(message(&Request { validation: vec!["chest_x".into()], ..one() }).contains("there are chest_a"));
    assert!(message(&Request { licences: vec!["chest_x=CC0".into()], ..one() }).contains("--licence = chest_x"));
    assert!(message(&request(&[ct.clone(), ct.clone()], 0)).contains("two volumes have this name"));
    assert!(message(&request(&[ct.clone(), copy], 0)).contains("the same bytes as chest_a"));
    assert!(message(&request(&[work.path().join("picture.png")], 0)).contains("not a NIfTI volume by its name"));
    assert!(message(&request(&[work.path().join("..nii")], 0)).contains("letters"));
    assert!(message(&request(&[work.path().join("nothing.nii")], 0)).contains("cannot read"));

    // An anatomy given beside the file, and one licence above that of all.
    let given = Request {
        volumes: vec![format!("thorax={}", ct.display())],
        licences: vec!["chest_a=mine".into(), "ours".into()],
        ..Request::default()
    };
    let subject = gather(&given).unwrap().subjects.remove(0);
    assert_eq!((subject.anatomy.as_str(), subject.licence.as_deref()), ("thorax", Some("mine")));
    // Masks and stacks of slices are left out with a line, not in silence.
    let names = ["chest_a_labels.nii.gz", "chest_a_lungs.nii", "headslices_x.nii.gz"];
    let mut volumes: Vec<PathBuf> = names.iter().map(|name| work.path().join(name)).collect();
    volumes.push(ct);
    let gathered = gather(&request(&volumes, 0)).unwrap();
    assert_eq!((gathered.subjects.len(), gathered.left_out.len()), (1, 3));
    assert!(gathered.left_out[2].contains("headslices_x.nii.gz: a stack"));
}

#[test]
fn volumes_that_are_no_ct_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("chest_a.nii");
    let out = work.path().join("out");
    let small = Options { scans: 1, ..options() };
    let refused = || refusal(&small, &request(std::slice::from_ref(&path), 0), &out);
    let store = |hu: Array3<f32>| {
        nifti::write(&path, hu.view(), &DAffine3::from_scale(DVec3::splat(5.0)), Storage::Float32).unwrap();
    };
    store(Array3::from_elem((20, 20, 20), -1000.0));
    assert!(refused().contains("all air"));
    store(Array3::from_shape_fn((20, 20, 20), |(i, _, _)| (i / 10) as f32));
    assert!(refused().contains("look like a mask"));
    store(Array3::from_elem((20, 20, 20), 60_000.0));
    assert!(refused().contains("not Hounsfield units"));
    store(Array3::from_shape_fn((20, 20, 6), |(i, _, _)| 100.0 * i as f32 - 1000.0));
    assert!(refused().contains("20 x 20 x 6 voxels are too few"));
    write_ct(&path);
    let whole = fs::read(&path).unwrap();
    let mut broken = whole.clone();
    broken[352 + 4000..352 + 4004].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &broken).unwrap();
    let message = refused();
    assert!(message.contains("chest_a.nii") && message.contains("voxel"), "{message}");
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    assert!(refused().contains("truncated"));
    // In metres.
    let mut metres = whole.clone();
    metres[123] = 1;
    fs::write(&path, &metres).unwrap();
    assert!(refused().contains("xyzt_units"));
    // Nothing of all that entered the folder's list; the mended volume goes on.
    write_ct(&path);
    assert_eq!(run(&small, &request(&[path], 0), &out, 1).unwrap().made, 1);
}
