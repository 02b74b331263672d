//! What a step of the Gaussians needs beside Adam.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::DeviceGaussians;
use diffnr::compute::{Operations, Values};
use diffnr::represent::gaussians::initialise::Initialisation;
use diffnr::represent::gaussians::{GaussianLimits, GaussianRates, Gaussians};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::{grid, settings};
use crate::values::{assert_close, download, random, signed, upload};

/// Of the largest value: some float32 operations, and exponential, logarithm and root to two roundings each.
const VALUES: f32 = 1e-6;

const UNIT: f32 = 0.02;
const SCALES_MM: [f32; 2] = [0.3, 4.0];

/// Parameters with quaternions that have vanished, scales beyond their limits, raw densities up to ±30.
fn parameters(n: usize, capacity: usize) -> Vec<f32> {
    let mut all = signed(11 * capacity, 1);
    for i in 0..n {
        all[i] *= if i % 3 == 0 { 30.0 } else { 3.0 };
        (4..7).for_each(|channel| all[channel * capacity + i] *= 3.0);
        if i % 5 == 2 {
            (7..11).for_each(|channel| all[channel * capacity + i] *= [0.0, 1e-7][i % 2]);
        }
    }
    all
}

fn assert_step(carrier: &Carrier, n: usize, spare: usize) {
    let capacity = n + spare;
    let (values, slopes) = (parameters(n, capacity), signed(12 * capacity, 2));
    let densities = random(capacity, 3);
    let given = carrier.run(|launcher| {
        let gaussians = DeviceGaussians {
            parameters: upload(launcher, &values),
            density_per_mm: upload(launcher, &densities),
            len: n,
            low_pass_mm: 0.0,
        };
        let gradients = upload(launcher, &slopes);
        cuda::weigh_density_gradient(launcher, &gaussians, UNIT, gradients).unwrap();
        cuda::add_position_norms(launcher, &gaussians, gradients).unwrap();
        cuda::settle_gaussians(launcher, &gaussians, UNIT, SCALES_MM).unwrap();
        [gradients, gaussians.parameters, gaussians.density_per_mm].map(|slice| download(launcher, slice)).to_vec()
    });
    let (mut gradients, mut settled, mut density) = (slopes.clone(), values.clone(), densities.clone());
    for i in 0..n {
        let at = |channel: usize| channel * capacity + i;
        let of = |all: &[f32], channel: usize| f64::from(all[at(channel)]);
        let raw = of(&values, 0);
        gradients[i] = (of(&slopes, 0) * f64::from(UNIT) / (1.0 + (-raw).exp())) as f32;
        let square: f64 = (1..4).map(|channel| of(&slopes, channel).powi(2)).sum();
        gradients[at(11)] = (of(&slopes, 11) + square.sqrt()) as f32;
        for channel in 4..7 {
            settled[at(channel)] = values[at(channel)].clamp(SCALES_MM[0].ln(), SCALES_MM[1].ln());
        }
        let square: f64 = (7..11).map(|channel| of(&values, channel).powi(2)).sum();
        for channel in 7..11 {
            let vanished = if channel == 7 { 1.0 } else { 0.0 };
            settled[at(channel)] =
                if square > 1e-12 { (of(&values, channel) / square.sqrt()) as f32 } else { vanished };
        }
        density[i] = (f64::from(UNIT) * raw.exp().ln_1p()) as f32;
    }
    for (what, channels, expected) in [("gradients", 12, &gradients), ("parameters", 11, &settled)] {
        let given = &given[usize::from(channels == 11)];
        for channel in 0..channels {
            let part = channel * capacity..(channel + 1) * capacity;
            assert_close(&format!("{what} {channel}"), VALUES, &given[part.clone()], &expected[part]);
        }
    }
    assert_close("densities", VALUES, &given[2], &density);
    // Small densities are as good as large ones.
    let (small, expected): (Vec<f32>, Vec<f32>) =
        given[2].iter().zip(&density).take(n).filter(|(_, expected)| **expected < 1e-4 * UNIT).unzip();
    assert_close("small densities", 1e-6, &small, &expected);
}

#[test]
fn steps_settle_as_they_are_defined() {
    on_each("gaussian_step", |carrier| {
        // Counts about a thread's four and a block's 1024; capacities that are and are not a multiple of four.
        for (n, spare) in [(1, 0), (3, 1), (4, 0), (5, 2), (1023, 1), (1024, 0), (1025, 3), (2049, 7)] {
            assert_step(carrier, n, spare);
        }
        proptest!(settings(8), |(n in 1usize..3000, spare in 0usize..9)| assert_step(carrier, n, spare));
    });
}

/// Two whole steps, Adam included, as [`Gaussians::step`] takes them.
#[test]
fn whole_steps_are_those_of_the_representation() {
    on_each("gaussian_step, whole steps", |carrier| {
        let (grid, capacity) = (grid([9, 8, 7], 40.0), 150);
        let scales_mm = [3.0f32, 8.0];
        let limits = GaussianLimits {
            capacity,
            density_unit_per_mm: UNIT,
            smallest_scale_mm: scales_mm[0],
            largest_scale_mm: scales_mm[1],
            low_pass_mm: 0.1,
        };
        // Large enough that scales come to their limits and densities change by much.
        let rates =
            GaussianRates { density: 0.3, position_mm: 0.5, log_scale: 0.8, rotation: 0.4, beta1: 0.8, beta2: 0.99 };
        let volume: Vec<f32> = random(grid.len(), 4).iter().map(|value| 0.01 + 0.2 * value).collect();
        let slopes = [5, 6].map(|seed| signed(11 * capacity, seed));
        let n = 130;
        let steps = |compute: &dyn Operations| {
            let mut gaussians = Gaussians::new(compute, &limits).unwrap();
            let settings = Initialisation { gaussians: n, ..Initialisation::default() };
            assert_eq!(gaussians.initialise_from_volume(compute, &grid, &volume, &settings).unwrap(), n);
            for (step, slopes) in (1..).zip(&slopes) {
                gaussians.begin_step(compute, 1).unwrap();
                let (_, gradients) = gaussians.arrays_and_gradients();
                compute.write(slopes, gradients.part(0..11 * capacity)).unwrap();
                gaussians.add_position_norms(compute).unwrap();
                gaussians.step(compute, &rates, step).unwrap();
            }
            let read = |values: Values<'_>| {
                let mut read = vec![0.0; values.len()];
                compute.read(values, &mut read).unwrap();
                read
            };
            let (arrays, gradients) = gaussians.arrays_and_gradients();
            vec![read(arrays.parameters), read(arrays.density_per_mm), read(gradients.as_values())]
        };
        let given = carrier.run_whole(|compute| steps(compute));
        let expected = steps(&CpuCompute::new(1).unwrap());
        for channel in 0..11 {
            // Twice Adam's few roundings.
            let [given, expected] = [&given[0], &expected[0]].map(|all| &all[channel * capacity..][..n]);
            assert_close(&format!("channel {channel} after two steps"), 2.0 * VALUES, given, expected);
        }
        assert_close("densities after two steps", 2.0 * VALUES, &given[1][..n], &expected[1][..n]);
        let [norms, cpu] = [&given[2], &expected[2]].map(|all| &all[11 * capacity..][..n]);
        assert_close("norms after two steps", VALUES, norms, cpu);
        let scales = &expected[0][4 * capacity..7 * capacity];
        assert!(scales_mm.into_iter().all(|limit| scales.contains(&limit.ln())), "the limits are not tried");
    });
}

#[test]
fn steps_of_nothing_and_of_what_is_not_a_number() {
    on_each("gaussian_step, edges", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let of = |parameters: &[f32], len| DeviceGaussians {
            parameters: upload(l, parameters),
            density_per_mm: upload(l, &vec![0.0; parameters.len() / 11]),
            len,
            low_pass_mm: 0.0,
        };
        let gradients = upload(l, &[1.0; 24]);
        let none = of(&[2.0; 22], 0);
        cuda::weigh_density_gradient(l, &none, UNIT, gradients).unwrap();
        cuda::add_position_norms(l, &none, gradients).unwrap();
        cuda::settle_gaussians(l, &none, UNIT, SCALES_MM).unwrap();
        assert_eq!((download(l, gradients), download(l, none.parameters)), (vec![1.0; 24], vec![2.0; 22]));
        let spoilt = of(&[f32::NAN; 22], 1);
        cuda::weigh_density_gradient(l, &spoilt, UNIT, gradients).unwrap();
        cuda::settle_gaussians(l, &spoilt, UNIT, SCALES_MM).unwrap();
        assert!(download(l, spoilt.parameters).iter().all(|value| value.is_nan()));
        let (density, gradients) = (download(l, spoilt.density_per_mm), download(l, gradients));
        assert!(density[0].is_nan() && density[1] == 0.0 && gradients[0].is_nan() && gradients[1] == 1.0);
        let short = upload(l, &[0.0; 23]);
        assert!(cuda::weigh_density_gradient(l, &spoilt, UNIT, short).is_err());
        assert!(cuda::add_position_norms(l, &spoilt, short).is_err());
        assert!(cuda::settle_gaussians(l, &DeviceGaussians { len: 3, ..spoilt }, UNIT, SCALES_MM).is_err());
    });
}
