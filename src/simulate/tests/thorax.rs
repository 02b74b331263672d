use glam::DVec3;

use crate::simulate::thorax::{LUNG_HU, NODULES_FILE, nodules_json, thorax};

const MU_WATER: f64 = 0.0193;

fn hu(mu: f64) -> f64 {
    1000.0 * (mu / MU_WATER - 1.0)
}

#[test]
fn a_seed_makes_one_body_and_another_seed_another() {
    assert_eq!(thorax(5, MU_WATER), thorax(5, MU_WATER));
    let (a, b) = (thorax(5, MU_WATER), thorax(6, MU_WATER));
    assert_ne!(a.phantom, b.phantom);
    assert_ne!(a.nodules[0].centre_mm, b.nodules[0].centre_mm);
}

#[test]
fn nodules_are_what_the_list_says_and_lie_in_aerated_lung() {
    for seed in 0..4 {
        let chest = thorax(seed, MU_WATER);
        assert!(chest.nodules.len() >= 11, "seed {seed}: {} nodules found a place", chest.nodules.len());
        for n in &chest.nodules {
            let value = |offset: DVec3| hu(chest.phantom.value_at(n.centre_mm + offset));
            for direction in [DVec3::X, DVec3::Y, DVec3::Z, DVec3::NEG_X, DVec3::NEG_Y, DVec3::NEG_Z] {
                assert!((value(0.99 * n.radius_mm * direction) - n.hu).abs() < 1e-6, "{n:?}");
                assert!((value((n.radius_mm + 0.5) * direction) - LUNG_HU).abs() < 1e-6, "{n:?}");
            }
        }
        let list = nodules_json(seed, &chest.nodules);
        assert_eq!(list["nodules"].as_array().unwrap().len(), chest.nodules.len());
        assert_eq!(list["nodules"][0]["radius_mm"], chest.nodules[0].radius_mm);
    }
    assert_eq!(NODULES_FILE, "phantom.json");
}

#[test]
fn nothing_sticks_out_of_the_body() {
    for seed in 0..12 {
        let chest = thorax(seed, MU_WATER);
        // The first six layers are the skin.
        let (skin, inner) = chest.phantom.layers.split_at(6);
        for (index, layer) in inner.iter().enumerate() {
            let half = layer.semi_axes_mm;
            for sign in [-1.0, 1.0] {
                for axis in [DVec3::X, DVec3::Y, DVec3::Z] {
                    let tip = layer.centre_mm + layer.rotation * (sign * half * axis);
                    assert!(skin.iter().any(|s| s.contains(tip)), "seed {seed}, layer {index}: {tip} of {layer:?}");
                }
            }
        }
    }
}

#[test]
fn the_heart_lies_to_the_left_and_the_body_stands_upright_about_the_isocenter() {
    let chest = thorax(1, MU_WATER);
    let (low, high) = chest.phantom.bounds_mm().unwrap();
    assert!((low + high).length() < 1e-9);
    // Soft tissue (rather than lung) reaches farther to the patient's left (-x) than to the right below the hilum.
    let tissue = |side: f64| {
        (0..120).filter(|&x| hu(chest.phantom.value_at(DVec3::new(side * f64::from(x), 20.0, -40.0))) > -100.0).count()
    };
    assert!(tissue(-1.0) > tissue(1.0) + 10, "{} {}", tissue(-1.0), tissue(1.0));
    // The spine is behind (-y), the trachea above the heart.
    let bone = (-120..120).filter(|&y| hu(chest.phantom.value_at(DVec3::new(0.0, f64::from(y), 0.0))) > 150.0);
    assert!(bone.into_iter().any(|y| y < -40));
    let air = (-200..200).filter(|&z| {
        (-40..40).any(|y| (hu(chest.phantom.value_at(DVec3::new(2.0, f64::from(y), f64::from(z)))) + 995.0).abs() < 1.0)
    });
    assert!(air.into_iter().all(|z| z > 0));
}
