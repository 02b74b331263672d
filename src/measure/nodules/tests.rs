#![allow(clippy::unwrap_used)]

use super::*;

const EDGE_MM: f64 = 2.5;
const SHAPE: [usize; 3] = [40, 44, 36];

fn place() -> DAffine3 {
    DAffine3::from_scale_rotation_translation(
        DVec3::splat(EDGE_MM),
        glam::DQuat::IDENTITY,
        DVec3::new(-50.0, -55.0, -45.0),
    )
}

fn at_mm(index: (usize, usize, usize)) -> DVec3 {
    place().transform_point3(DVec3::new(index.0 as f64, index.1 as f64, index.2 as f64))
}

/// A lung with a vessel along z and a wall, at -840 HU.
fn lung() -> Array3<f32> {
    Array3::from_shape_fn(SHAPE, |at| {
        let p = at_mm(at);
        let vessel = (p.x - 20.0).hypot(p.y + 20.0) < 4.0;
        if vessel || p.x < -40.0 { 40.0 } else { -840.0 }
    })
}

/// Adds a sphere of this contrast, averaged over voxels.
fn add(volume: &mut Array3<f32>, sphere: &Sphere, contrast_hu: f64) {
    let centre = place().inverse().transform_point3(sphere.centre_mm);
    Zip::indexed(volume).for_each(|(x, y, z), value| {
        let offset = DVec3::new(x as f64, y as f64, z as f64) - centre;
        *value += (contrast_hu * occupancy(offset, &place(), sphere.radius_mm, 4)) as f32;
    });
}

/// Six nodules of both signs, off the voxels' centres.
fn planted() -> Vec<(Sphere, f64)> {
    let sphere = |x: f64, y: f64, z: f64, radius_mm: f64| Sphere { centre_mm: DVec3::new(x, y, z), radius_mm };
    vec![
        (sphere(-10.3, 20.1, 10.7, 8.0), 875.0),
        (sphere(20.4, 24.9, -12.2, 6.0), 390.0),
        (sphere(-12.0, -21.0, -14.0, 5.0), 875.0),
        (sphere(22.1, 6.3, 16.4, 4.0), 390.0),
        (sphere(2.2, -6.1, 0.9, 3.0), 875.0),
        (sphere(-15.5, 3.4, -20.8, 5.5), -160.0),
    ]
}

fn scene(planted: &[(Sphere, f64)]) -> Array3<f32> {
    let mut volume = lung();
    planted.iter().for_each(|(sphere, contrast_hu)| add(&mut volume, sphere, *contrast_hu));
    volume
}

fn spheres() -> Vec<Sphere> {
    planted().iter().map(|(sphere, _)| *sphere).collect()
}

fn counted(result: &Array3<f32>, reference: &Array3<f32>, seen: Option<&Array3<bool>>) -> Count {
    let lungs = Array3::from_shape_fn(SHAPE, |at| at_mm(at).x >= -40.0);
    let volumes = Volumes {
        result: result.view(),
        reference: reference.view(),
        lungs: lungs.view(),
        seen: seen.map(|seen| seen.view()),
        voxel_to_world_mm: place(),
    };
    count(&volumes, &spheres()).unwrap()
}

/// (kept, lost, unseen, invented)
fn figures(count: &Count) -> (usize, usize, usize, usize) {
    (count.of(Verdict::Kept), count.of(Verdict::Lost), count.of(Verdict::Unseen), count.invented.len())
}

#[test]
fn the_truth_keeps_all_and_invents_nothing() {
    let truth = scene(&planted());
    let count = counted(&truth, &truth, None);
    assert_eq!(figures(&count), (6, 0, 0, 0), "{count:#?}");
    for (judged, (_, contrast_hu)) in count.nodules.iter().zip(planted()) {
        assert_eq!((judged.contrast_hu, judged.noise_hu), (judged.reference_contrast_hu, Some(0.0)));
        // The voxels' blur takes up to half from the smallest; the signs stay.
        assert!((0.5..1.01).contains(&(judged.contrast_hu / contrast_hu)), "{judged:?}");
    }
}

#[test]
fn each_nodule_left_out_is_lost_and_no_other() {
    let truth = scene(&planted());
    for gone in 0..6 {
        let mut without = planted();
        without.remove(gone);
        let count = counted(&scene(&without), &truth, None);
        assert_eq!(figures(&count), (5, 1, 0, 0), "{gone}: {count:#?}");
        assert_eq!(count.nodules[gone].verdict, Verdict::Lost);
    }
}

#[test]
fn half_the_contrast_decides() {
    let truth = scene(&planted());
    let dimmed = |share: f64| scene(&planted().iter().map(|(s, hu)| (*s, share * hu)).collect::<Vec<_>>());
    assert_eq!(figures(&counted(&dimmed(0.55), &truth, None)), (6, 0, 0, 0));
    assert_eq!(figures(&counted(&dimmed(0.45), &truth, None)), (0, 6, 0, 0));
    // The wrong way round is lost, and twice is there.
    assert_eq!(figures(&counted(&dimmed(-1.0), &truth, None)).1, 6);
    assert_eq!(figures(&counted(&dimmed(2.0), &truth, None)), (6, 0, 0, 0));
}

#[test]
fn a_blob_that_the_truth_does_not_have_is_one_invention_where_it_is() {
    let truth = scene(&planted());
    for (radius_mm, contrast_hu) in [(3.5, 600.0), (5.0, 400.0), (8.0, 400.0), (6.0, -400.0)] {
        let blob = Sphere { centre_mm: DVec3::new(25.6, -2.0, -14.0), radius_mm };
        let mut result = truth.clone();
        add(&mut result, &blob, contrast_hu);
        let count = counted(&result, &truth, None);
        assert_eq!(figures(&count), (6, 0, 0, 1), "{radius_mm} {contrast_hu}: {count:#?}");
        let found = count.invented[0];
        // To a voxel's diagonal; the contrast to what radii between those looked for leave.
        assert!((found.centre_mm - blob.centre_mm).length() < 1.8 * EDGE_MM, "{found:?}");
        assert!((0.6..1.4).contains(&(found.contrast_hu / contrast_hu)), "{found:?} of {contrast_hu}");
    }
    // Too faint: the median contrast is that of a sub-solid or a solid nodule, half of it more than this.
    let mut faint = truth.clone();
    add(&mut faint, &Sphere { centre_mm: DVec3::new(25.6, -2.0, -14.0), radius_mm: 6.0 }, 60.0);
    assert_eq!(figures(&counted(&faint, &truth, None)), (6, 0, 0, 0));
}

#[test]
fn structure_of_the_truth_is_no_invention_when_it_is_smeared() {
    let truth = scene(&planted());
    let mut smeared = truth.clone();
    smooth(&mut smeared, 2.0, [EDGE_MM; 3]);
    let count = counted(&smeared, &truth, None);
    assert_eq!(count.invented, [], "vessel and wall stay explained");
    assert!(count.of(Verdict::Kept) >= 3 && count.nodules[4].contrast_hu < 0.5 * 875.0, "{count:#?}");
}

#[test]
fn what_does_not_stand_out_of_the_noise_is_lost() {
    // Noise of a voxel's size: a checkerboard would average out, so each voxel draws its own sign.
    let truth = scene(&planted());
    let sign = |x: usize, y: usize, z: usize| {
        let mut state = (x * 7919 + y * 104_729 + z * 1_299_709) as u64;
        state = (state ^ (state >> 13)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if (state >> 40) & 1 == 0 { 1.0 } else { -1.0 }
    };
    let noisy = Array3::from_shape_fn(SHAPE, |(x, y, z)| truth[[x, y, z]] + 300.0 * sign(x, y, z));
    let count = counted(&noisy, &truth, None);
    let cyst = count.nodules[5];
    assert!(cyst.noise_hu.unwrap() > 160.0 / 3.0 && cyst.verdict == Verdict::Lost, "{cyst:?}");
    assert_eq!(count.nodules[0].verdict, Verdict::Kept, "{:?}", count.nodules[0]);
}

#[test]
fn what_is_not_in_view_or_not_in_the_reference_is_not_judged() {
    let truth = scene(&planted());
    let seen = Array3::from_shape_fn(SHAPE, |at| at_mm(at).z < 8.0);
    let count = counted(&truth, &truth, Some(&seen));
    assert_eq!(figures(&count), (4, 0, 2, 0), "{count:#?}");
    let mut without = planted();
    without.remove(1);
    let missing = scene(&without);
    let count = counted(&missing, &missing, None);
    assert_eq!(count.nodules[1].verdict, Verdict::Unseen);
    // A blob beyond the view is nobody's.
    let mut result = truth.clone();
    add(&mut result, &Sphere { centre_mm: DVec3::new(0.0, -30.0, 30.0), radius_mm: 6.0 }, 600.0);
    assert_eq!(figures(&counted(&result, &truth, Some(&seen))).3, 0);
    assert_eq!(figures(&counted(&result, &truth, None)).3, 1);
}

#[test]
fn bad_lists_and_volumes_are_refused_by_name() {
    let truth = scene(&planted());
    let lungs = Array3::from_elem(SHAPE, true);
    let volumes = Volumes {
        result: truth.view(),
        reference: truth.view(),
        lungs: lungs.view(),
        seen: None,
        voxel_to_world_mm: place(),
    };
    let refused = |volumes: &Volumes<'_>, spheres: &[Sphere]| count(volumes, spheres).unwrap_err().to_string();
    let sphere = Sphere { centre_mm: DVec3::ZERO, radius_mm: 4.0 };
    assert!(refused(&volumes, &[]).contains("0 nodules"));
    assert!(refused(&volumes, &vec![sphere; 257]).contains("257 nodules"));
    for radius_mm in [0.0, -1.0, f64::NAN, 61.0] {
        let error = refused(&volumes, &[sphere, Sphere { radius_mm, ..sphere }]);
        assert!(error.contains("nodules[1].radius_mm"), "{error}");
    }
    let nowhere = Sphere { centre_mm: DVec3::new(0.0, f64::INFINITY, 0.0), ..sphere };
    assert!(refused(&volumes, &[nowhere]).contains("nodules[0].centre_mm"));
    let far = Sphere { centre_mm: DVec3::splat(1e300), ..sphere };
    assert!(refused(&volumes, &[far]).contains("no nodule of the list"));
    let mut broken = truth.clone();
    broken[[1, 2, 3]] = f32::NAN;
    assert!(refused(&Volumes { result: broken.view(), ..volumes }, &[sphere]).contains("(1, 2, 3) = NaN"));
    let small = lungs.view().split_at(ndarray::Axis(0), 3).0;
    assert!(refused(&Volumes { lungs: small, ..volumes }, &[sphere]).contains("differ in shape"));
    let flat = DAffine3::from_scale(DVec3::new(1.0, 1.0, 0.0));
    assert!(refused(&Volumes { voxel_to_world_mm: flat, ..volumes }, &[sphere]).contains("edges"));
}
