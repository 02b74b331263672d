//! Total variation and its gradient.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::DeviceSum;
use diffnr::compute::total_variation::TotalVariation;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, assert_sum, download, random, signed, split, upload};

/// Of the largest gradient: some ten float32 operations a term, terms up to a few times their sum.
const GRADIENT: f32 = 2e-6;

/// Of the value: roots good to 2e-7 (the device's inverse root), sums of up to 8 of them in float32.
const VALUE: f64 = 1e-6;

fn assert_variation(carrier: &Carrier, voxels: [usize; 3], scale: [f32; 3], epsilon: f32) {
    let variation = TotalVariation { voxels, scale, epsilon };
    let (volume, gradient) = (random(variation.len(), 1), signed(variation.len(), 2));
    let cpu = CpuCompute::new(1).unwrap();
    let mut expected = gradient.clone();
    let total = cpu.add_total_variation_gradient(&variation, 0.7, &volume, &mut expected).unwrap();
    let given = carrier.run(|launcher| {
        let (volume, gradient) = (upload(launcher, &volume), upload(launcher, &gradient));
        let sum = DeviceSum::for_volume(launcher, voxels).unwrap();
        cuda::total_variation(launcher, &variation, volume, &sum).unwrap();
        let value = split(sum.read(launcher).unwrap());
        cuda::add_total_variation_gradient(launcher, &variation, 0.7, volume, gradient, &sum).unwrap();
        vec![download(launcher, gradient), value, split(sum.read(launcher).unwrap())]
    });
    let what = format!("{}, {voxels:?}", carrier.name);
    assert_close(&what, GRADIENT, &given[0], &expected);
    assert_sum(&what, VALUE, &given[1], total);
    assert_sum(&what, VALUE, &given[2], total);
}

#[test]
fn value_and_gradient_are_as_on_the_cpu() {
    on_each("total_variation", |carrier| {
        for voxels in [[1, 1, 1], [1, 1, 40], [1, 40, 1], [40, 1, 1], [8, 8, 32], [9, 9, 33], [7, 7, 31], [17, 16, 65]]
        {
            assert_variation(carrier, voxels, [1.0; 3], 0.01);
        }
        proptest!(settings(16), |(
            voxels in (1usize..20, 1usize..20, 1usize..70),
            scale in prop::array::uniform3(0.1f32..1.0), epsilon in 0.001f32..0.5,
        )| assert_variation(carrier, voxels.into(), scale, epsilon));
    });
}

#[test]
fn not_a_number_stays_about_its_voxel() {
    on_each("total_variation, not a number", |carrier| {
        let variation = TotalVariation { voxels: [9; 3], scale: [1.0; 3], epsilon: 0.01 };
        let mut volume = random(variation.len(), 1);
        volume[(4 * 9 + 4) * 9 + 4] = f32::NAN;
        let given = carrier.run(|launcher| {
            let (volume, gradient) = (upload(launcher, &volume), upload(launcher, &vec![0.0; variation.len()]));
            let sum = DeviceSum::for_volume(launcher, variation.voxels).unwrap();
            cuda::add_total_variation_gradient(launcher, &variation, 1.0, volume, gradient, &sum).unwrap();
            vec![download(launcher, gradient), split(sum.read(launcher).unwrap())]
        });
        let mut expected = vec![0.0; variation.len()];
        let cpu = CpuCompute::new(1).unwrap();
        cpu.add_total_variation_gradient(&variation, 1.0, &volume, &mut expected).unwrap();
        assert!(given[1][0].is_nan());
        for (i, (given, expected)) in given[0].iter().zip(&expected).enumerate() {
            assert_eq!(given.is_nan(), expected.is_nan(), "at {i}");
        }
    });
}
