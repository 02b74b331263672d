//! The element-wise operations: algebraic reconstruction, Adam.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::DeviceSum;
use diffnr::compute::gaussians::AdamStep;
use diffnr::compute::sart::CorrectionStep;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, assert_sum, download, random, signed, split, upload};

/// Of the largest value: a handful of float32 operations, which a device may contract to fewer roundings.
const VALUES: f32 = 5e-7;

/// Of a sum of squares: up to 256 of them are added in float32, on either carrier.
const SUMS: f64 = 2e-6;

/// Counts about a thread's four, a block's 4096, and anything.
fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..9, 1020usize..1030, 4090usize..4100, 1usize..20_000]
}

fn sum(launcher: &dyn cuda::Launcher, values: usize) -> DeviceSum {
    DeviceSum::for_values(launcher, values).unwrap()
}

fn assert_residual(carrier: &Carrier, n: usize) {
    let (measured, projections) = (random(n, 1), random(n, 2));
    let weights: Vec<f32> = random(n, 3).into_iter().map(|weight| if weight < 0.2 { 0.0 } else { weight }).collect();
    let mut expected = projections.clone();
    let total = CpuCompute::new(1).unwrap().weigh_residual(&measured, &weights, &mut expected).unwrap();
    let given = carrier.run(|launcher| {
        let (target, sum) = (upload(launcher, &projections), sum(launcher, n));
        let (measured, weights) = (upload(launcher, &measured), upload(launcher, &weights));
        cuda::weigh_residual(launcher, measured, weights, target, &sum).unwrap();
        vec![download(launcher, target), split(sum.read(launcher).unwrap())]
    });
    assert_close("weigh_residual", VALUES, &given[0], &expected);
    assert_sum("weigh_residual", SUMS, &given[1], total);
}

fn assert_correction(carrier: &Carrier, n: usize, least: f32) {
    let (volume, correction, column_sums) = (random(n, 1), signed(n, 2), random(n, 3));
    let step = CorrectionStep { relaxation: 0.7, least_sum: 0.2, least };
    let mut expected = volume.clone();
    let total = CpuCompute::new(1).unwrap().apply_correction(&step, &correction, &column_sums, &mut expected).unwrap();
    let given = carrier.run(|launcher| {
        let (target, sum) = (upload(launcher, &volume), sum(launcher, n));
        let (correction, column_sums) = (upload(launcher, &correction), upload(launcher, &column_sums));
        cuda::apply_correction(launcher, &step, correction, column_sums, target, &sum).unwrap();
        vec![download(launcher, target), split(sum.read(launcher).unwrap())]
    });
    assert_close("apply_correction", VALUES, &given[0], &expected);
    assert_sum("apply_correction", SUMS, &given[1], total);
}

fn assert_descent_and_norms(carrier: &Carrier, n: usize) {
    let (volume, gradient) = (random(n, 1), signed(n, 2));
    let cpu = CpuCompute::new(1).unwrap();
    let mut expected = volume.clone();
    cpu.descend(0.3, &gradient, 0.1, &mut expected).unwrap();
    let given = carrier.run(|launcher| {
        let (target, sum) = (upload(launcher, &volume), sum(launcher, n));
        let gradient = upload(launcher, &gradient);
        cuda::squared_norm(launcher, gradient, &sum).unwrap();
        let norm = split(sum.read(launcher).unwrap());
        cuda::squared_distance(launcher, target, gradient, &sum).unwrap();
        let distance = split(sum.read(launcher).unwrap());
        cuda::descend(launcher, 0.3, gradient, 0.1, target).unwrap();
        vec![download(launcher, target), norm, distance]
    });
    assert_close("descend", VALUES, &given[0], &expected);
    assert_sum("squared_norm", SUMS, &given[1], cpu.squared_norm(&gradient));
    assert_sum("squared_distance", SUMS, &given[2], cpu.squared_distance(&volume, &gradient).unwrap());
}

#[test]
fn algebraic_operations_are_as_on_the_cpu() {
    on_each("sart", |carrier| {
        proptest!(settings(12), |(n in counts())| {
            assert_residual(carrier, n);
            assert_correction(carrier, n, 0.0);
            assert_correction(carrier, n, f32::NEG_INFINITY);
            // What stands beyond the last value counts for nothing, whatever the bound.
            assert_correction(carrier, n, 0.5);
            assert_descent_and_norms(carrier, n);
        });
    });
}

/// A part of a buffer need not begin at a multiple of 16 bytes.
#[test]
fn parts_of_buffers_at_any_offset() {
    on_each("sart, parts of buffers", |carrier| {
        let (values, n) = (signed(5000, 1), 4500);
        for start in 0..5 {
            let given = carrier.run(|launcher| {
                let (whole, other) = (upload(launcher, &values), upload(launcher, &values[..n]));
                let part = whole.part(start..start + n).unwrap();
                let sum = sum(launcher, n);
                cuda::squared_distance(launcher, part, other, &sum).unwrap();
                let distance = split(sum.read(launcher).unwrap());
                cuda::descend(launcher, 1.0, other, f32::NEG_INFINITY, part).unwrap();
                vec![download(launcher, whole), distance]
            });
            let expected: Vec<f32> = (0..values.len())
                .map(|i| if (start..start + n).contains(&i) { values[i] - values[i - start] } else { values[i] })
                .collect();
            assert_close("descend", VALUES, &given[0], &expected);
            let total: f64 = expected[start..start + n].iter().map(|&v| f64::from(v).powi(2)).sum();
            assert!(start == 0 || (crate::values::joined(&given[1]) / total - 1.0).abs() < SUMS);
        }
    });
}

/// More blocks than the last sum has threads.
#[test]
fn sums_of_many_blocks() {
    on_each("sart, many blocks", |carrier| {
        let values = signed(300 * 4096 + 5, 1);
        let given = carrier.run(|launcher| {
            let sum = sum(launcher, values.len());
            cuda::squared_norm(launcher, upload(launcher, &values), &sum).unwrap();
            vec![split(sum.read(launcher).unwrap())]
        });
        let total = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        assert_sum("squared_norm", SUMS, &given[0], total);
    });
}

#[test]
fn not_a_number_stays() {
    on_each("sart, not a number", |carrier| {
        let given = carrier.run(|launcher| {
            let volume = upload(launcher, &[1.0, f32::NAN, -3.0]);
            let zeros = upload(launcher, &[0.0; 3]);
            cuda::descend(launcher, 1.0, zeros, 0.0, volume).unwrap();
            let sum = sum(launcher, 3);
            cuda::squared_norm(launcher, volume, &sum).unwrap();
            vec![download(launcher, volume), split(sum.read(launcher).unwrap())]
        });
        assert!(given[0][0] == 1.0 && given[0][1].is_nan() && given[0][2] == 0.0 && given[1][0].is_nan());
    });
}

#[test]
fn nothing_sums_to_zero() {
    on_each("sart, no values", |carrier| {
        let given = carrier.run(|launcher| {
            let (none, sum) = (upload(launcher, &[]), sum(launcher, 0));
            cuda::squared_norm(launcher, none, &sum).unwrap();
            vec![split(sum.read(launcher).unwrap())]
        });
        assert_eq!(given[0], [0.0, 0.0]);
    });
}

#[test]
fn adam_steps_as_on_the_cpu() {
    on_each("adam_step", |carrier| {
        proptest!(settings(12), |(n in counts(), step in 1u32..500)| {
            let (parameters, gradients) = (signed(n, 1), signed(n, 2));
            let (first, second) = (signed(n, 3), random(n, 4));
            let settings = AdamStep::new(0.01, step);
            let mut expected = [parameters.clone(), first.clone(), second.clone()];
            let [p, m, v] = &mut expected;
            CpuCompute::new(1).unwrap().adam_step(&settings, p, &gradients, m, v).unwrap();
            let given = carrier.run(|launcher| {
                let [p, g, m, v] = [&parameters, &gradients, &first, &second].map(|values| upload(launcher, values));
                let changing = upload(launcher, &cuda::changing(&settings));
                cuda::adam_step(launcher, &settings, changing, p, g, m, v).unwrap();
                [p, m, v].map(|slice| download(launcher, slice)).to_vec()
            });
            for (given, expected) in given.iter().zip(&expected) {
                assert_close("adam_step", VALUES, given, expected);
            }
        });
    });
}
