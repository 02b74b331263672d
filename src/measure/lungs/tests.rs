#![allow(clippy::unwrap_used)]
use glam::DVec3;

use super::*;
use crate::measure::{dice, surface_distance_mm};
use crate::simulate::thorax::{LUNG_HU, thorax};

const VOXEL_MM: f64 = 3.0;
const SPACING_MM: [f64; 3] = [VOXEL_MM; 3];

fn volume(shape: [usize; 3], value: impl Fn(DVec3) -> f32) -> Array3<f32> {
    let [nx, ny, nz] = shape;
    let middle = 0.5 * (DVec3::new(nx as f64, ny as f64, nz as f64) - 1.0);
    Array3::from_shape_fn((nx, ny, nz), |(x, y, z)| {
        value(VOXEL_MM * (DVec3::new(x as f64, y as f64, z as f64) - middle))
    })
}

fn within(at: DVec3, centre: [f64; 3], semi_axes: [f64; 3]) -> bool {
    ((at - DVec3::from_array(centre)) / DVec3::from_array(semi_axes)).length() <= 1.0
}

const SHAPE: [usize; 3] = [110, 80, 90];
const LUNG_SEMI_MM: [f64; 3] = [48.0, 66.0, 95.0];

fn in_lung(at: DVec3) -> bool {
    [-62.0, 62.0].iter().any(|&x| within(at, [x, 0.0, 0.0], LUNG_SEMI_MM))
}

fn in_trachea(at: DVec3) -> bool {
    at.z > 60.0 && (at.x * at.x + (at.y + 20.0).powi(2)).sqrt() < 9.0
}

fn in_bubble(at: DVec3) -> bool {
    within(at, [0.0, 30.0, -98.0], [31.0; 3])
}

/// A body with two ellipsoids of lung, vessels and a nodule in them, a trachea and a bubble of gas, on a couch; open at both ends.
fn body(at: DVec3) -> f32 {
    if within(at, [62.0, 20.0, 10.0], [9.0; 3])
        || (in_lung(at) && (at.z - 20.0).abs() < 3.0 && (at.y + 10.0).abs() < 3.0)
    {
        return 40.0;
    }
    if in_lung(at) {
        return -850.0;
    }
    if in_trachea(at) || in_bubble(at) {
        return -1000.0;
    }
    if (at.x / 150.0).hypot(at.y / 100.0) < 1.0 || (at.y < -108.0 && at.x.abs() < 140.0) { 30.0 } else { -1000.0 }
}

#[test]
fn ellipsoids_are_found_with_what_lies_in_them_and_nothing_else() {
    let truth = volume(SHAPE, |at| f32::from(u8::from(in_lung(at)))).mapv(|on| on > 0.5);
    let found = lungs(volume(SHAPE, body).view(), SPACING_MM, None).unwrap();
    // A threshold half-way keeps a flat wall where it is; on a curved one the smoothing moves it by some tenths of a millimetre.
    assert!(dice(found.mask.view(), truth.view()).unwrap() > 0.985);
    assert!(surface_distance_mm(found.mask.view(), truth.view(), SPACING_MM).unwrap() < 0.5 * VOXEL_MM);
    let exact_ml = 2.0 * 4.0 / 3.0 * std::f64::consts::PI * LUNG_SEMI_MM.iter().product::<f64>() * 1e-3;
    assert!((found.volume_ml / exact_ml - 1.0).abs() < 0.03, "{} of {exact_ml} ml", found.volume_ml);
    // Vessels and the nodule are in; trachea and gas are not.
    for at in [[62.0, 20.0, 10.0], [-60.0, -10.0, 20.0]] {
        let voxel = [0, 1, 2].map(|axis| (at[axis] / VOXEL_MM + 0.5 * (SHAPE[axis] as f64 - 1.0)).round() as usize);
        assert!(found.mask[voxel], "{at:?}");
    }
    let stray = volume(SHAPE, |at| f32::from(u8::from(in_trachea(at) || in_bubble(at))));
    assert_eq!(stray.iter().zip(&found.mask).filter(|(stray, on)| **stray > 0.5 && **on).count(), 0);
}

#[test]
fn what_was_not_seen_is_outside() {
    // Nonsense all around the body, and above it.
    let seen = volume(SHAPE, |at| f32::from(u8::from((at.x / 156.0).hypot(at.y / 106.0) < 1.0 && at.z < 125.0)));
    let seen = seen.mapv(|on| on > 0.5);
    let plain = lungs(volume(SHAPE, body).view(), SPACING_MM, Some(seen.view())).unwrap();
    let mut noisy = volume(SHAPE, body);
    Zip::indexed(&mut noisy).and(&seen).for_each(|(x, y, z), value, &seen| {
        *value = if seen { *value } else { ((7 * x + 5 * y + 3 * z) % 11) as f32 * 150.0 - 1000.0 };
    });
    assert!(lungs(noisy.view(), SPACING_MM, Some(seen.view())).unwrap() == plain);
}

#[test]
fn noise_and_a_thin_wall_do_not_open_the_chest() {
    // 200 HU of noise, as few photons leave it, and a wall of 9 mm.
    let noise =
        |at: DVec3| ((at.x * 12.9898 + at.y * 78.233 + at.z * 37.719).sin() * 43_758.547).fract() as f32 * 346.0;
    let thin = |at: DVec3| {
        let around = |side: f64| ((at.x - side) / 57.0).hypot(at.y / 75.0) < 1.0;
        let inside = around(-62.0) || around(62.0) || (at.x.abs() < 62.0 && at.y.abs() < 70.0);
        if inside { body(at) } else { -1000.0 }
    };
    let clean = lungs(volume(SHAPE, thin).view(), SPACING_MM, None).unwrap();
    let found = lungs(volume(SHAPE, |at| thin(at) + noise(at)).view(), SPACING_MM, None).unwrap();
    let agreement = dice(found.mask.view(), clean.mask.view()).unwrap();
    // Noise moves the wall by a fraction of a voxel here and there.
    assert!(agreement > 0.97, "{agreement}");
}

#[test]
fn the_thorax_phantoms_lungs_are_found() {
    let chest = thorax(3, 0.0193);
    let hu = |at: DVec3| 1000.0 * (chest.phantom.value_at(at) / 0.0193 - 1.0);
    // Coarse, and only where there is a body (the first six layers): the phantom has hundreds of layers.
    const COARSE: f64 = 5.0 / VOXEL_MM;
    let (skin, _) = chest.phantom.layers.split_at(6);
    let volume = volume([72, 52, 84], |at| {
        let at = COARSE * at;
        if skin.iter().any(|part| part.contains(at)) { hu(at) as f32 } else { -1000.0 }
    });
    let truth = volume.mapv(|value| (f64::from(value) - LUNG_HU).abs() < 1.0);
    let found = lungs(volume.view(), [COARSE * VOXEL_MM; 3], None).unwrap();
    let agreement = dice(found.mask.view(), truth.view()).unwrap();
    // The truth has neither vessels nor nodules (some 3 % of the lung), and airways next to the lungs stay.
    assert!(agreement > 0.95, "{agreement}");
}

#[test]
fn no_lungs_are_an_error_that_says_so() {
    let air = |_: DVec3| -> f32 { -1000.0 };
    let water = |at: DVec3| -> f32 { if at.length() < 100.0 { 0.0 } else { -1000.0 } };
    let gas = |at: DVec3| -> f32 { if at.length() < 60.0 { -1000.0 } else { water(at) } };
    for value in [&air as &dyn Fn(DVec3) -> f32, &|_| 0.0, &water, &gas] {
        let error = lungs(volume([80; 3], value).view(), SPACING_MM, None).unwrap_err();
        assert_eq!(error, MeasureError::NoLungs { found_ml: 0, least_ml: 100 });
    }
    assert!(matches!(lungs(Array3::zeros((0, 4, 4)).view(), SPACING_MM, None), Err(MeasureError::NoLungs { .. })));
}

#[test]
fn bad_input_is_refused() {
    let mut water = Array3::<f32>::zeros((4, 5, 6));
    for edge in [0.0, -1.0, f64::NAN, 6.0] {
        let error = lungs(water.view(), [1.0, edge, 1.0], None).unwrap_err().to_string();
        assert!(error.contains("at most 5 mm"), "{error}");
    }
    let seen = Array3::from_elem((4, 5, 5), true);
    assert!(matches!(lungs(water.view(), SPACING_MM, Some(seen.view())), Err(MeasureError::Shapes { .. })));
    // An edge far too short asks for no more taps than the volume is long.
    assert!(matches!(lungs(water.view(), [1e-300; 3], None), Err(MeasureError::NoLungs { .. })));
    water[[1, 2, 3]] = f32::NAN;
    assert!(lungs(water.view(), SPACING_MM, None).unwrap_err().to_string().contains("(1, 2, 3) = NaN"));
}

#[test]
fn the_mask_is_the_same_for_any_number_of_threads() {
    let volume = volume([60, 50, 40], |at| body(2.0 * at));
    let found = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| lungs(volume.view(), SPACING_MM, None).unwrap())
    };
    assert!(found(1) == found(3));
}
