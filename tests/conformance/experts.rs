//! The learned prior's gradient: against the CPU's, and against the definition in float64.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceSlice, ExpertsTable, Launcher};
use diffnr::compute::experts::{Expert, Experts, ExpertsCompute as _, TAPS};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, download, random, signed, upload};

const UNIT_PER_MM: f32 = 0.04;

/// Of the largest gradient: sums of some hundred float32 products on either carrier, random in sign; a hundred roundings are 6e-6.
const GRADIENT: f32 = 5e-6;

/// So many experts of random taps that sum up to zero, with knots of tissues in their number.
fn some_experts(count: usize, knots: usize, seed: u64) -> Experts {
    let numbers = random(count * (TAPS + 4), seed);
    let experts = numbers.chunks_exact(TAPS + 4).map(|numbers| {
        let mean = numbers[..TAPS].iter().sum::<f32>() / TAPS as f32;
        let pair = |at: usize| [0.1 + numbers[at], 0.05 + 0.5 * numbers[at + 1]];
        Expert { taps: std::array::from_fn(|tap| numbers[tap] - mean), convex: pair(TAPS), saturating: pair(TAPS + 2) }
    });
    let tissues = random(knots, seed + 1).into_iter().map(|weight| 0.2 + 2.0 * weight).collect();
    Experts::new(experts.collect(), tissues, UNIT_PER_MM).unwrap()
}

/// Means within and beyond the tissue weights' range: smooth over 0 to 1.2 units, and rough.
fn some_volume([x, y, z]: [usize; 3], seed: u64) -> Vec<f32> {
    let noise = signed(x * y * z, seed);
    let wave = |i: usize| (0.1 * i as f32 + 0.4 * (i / z) as f32).sin();
    noise.iter().enumerate().map(|(i, noise)| UNIT_PER_MM * (0.5 + 0.6 * wave(i) + 0.3 * noise)).collect()
}

fn on_cpu(experts: &Experts, voxels: [usize; 3], weight: f32, volume: &[f32], gradient: &[f32]) -> Vec<f32> {
    let mut cpu = CpuCompute::new(1).unwrap();
    cpu.prepare_experts(voxels).unwrap();
    let mut expected = gradient.to_vec();
    cpu.add_experts_gradient(experts, voxels, weight, volume, &mut expected).unwrap();
    expected
}

fn on(
    carrier: &Carrier,
    experts: &Experts,
    voxels: [usize; 3],
    weight: f32,
    volume: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let run = |launcher: &dyn Launcher| {
        let table = ExpertsTable::upload(launcher, experts).unwrap();
        let (volume, gradient) = (upload(launcher, volume), upload(launcher, gradient));
        cuda::add_experts_gradient(launcher, &table, voxels, weight, volume, gradient).unwrap();
        vec![download(launcher, gradient)]
    };
    carrier.run(run).swap_remove(0)
}

fn assert_gradient(carrier: &Carrier, voxels: [usize; 3], experts: &Experts) {
    let volume = some_volume(voxels, 3);
    let gradient = signed(volume.len(), 4);
    let given = on(carrier, experts, voxels, 0.7, &volume, &gradient);
    let expected = on_cpu(experts, voxels, 0.7, &volume, &gradient);
    let what = format!("{}, {voxels:?}, {} experts", carrier.name, experts.experts().len());
    assert_close(&what, GRADIENT, &given, &expected);
}

#[test]
fn the_gradient_is_as_on_the_cpu() {
    on_each("add_experts_gradient", |carrier| {
        // About a block's 16 planes, 14 rows and 30 heights, and the least that there can be.
        for (voxels, count, knots) in [
            ([3, 3, 3], 1, 2),
            ([3, 4, 30], 2, 3),
            ([4, 14, 31], 3, 16),
            ([16, 3, 29], 2, 8),
            ([17, 15, 32], 1, 8),
            ([15, 16, 33], 1, 4),
            ([33, 29, 61], 2, 8),
            ([5, 6, 7], 32, 8),
        ] {
            assert_gradient(carrier, voxels, &some_experts(count, knots, 7));
        }
        proptest!(settings(10), |(
            voxels in (1usize..36, 1usize..32, 1usize..64), count in 1usize..4, knots in 2usize..17,
        )| assert_gradient(carrier, voxels.into(), &some_experts(count, knots, 5)));
    });
}

/// `R` in float64, tissue weights those of `held`.
fn prior(experts: &Experts, [nx, ny, nz]: [usize; 3], volume: &[f64], held: &[f64]) -> f64 {
    let unit = f64::from(UNIT_PER_MM);
    let mut value = 0.0;
    for (x, y, z) in (1..nx - 1).flat_map(|x| (1..ny - 1).flat_map(move |y| (1..nz - 1).map(move |z| (x, y, z)))) {
        let at: [usize; TAPS] =
            std::array::from_fn(|o| ((x + o / 9 - 1) * ny + y + o / 3 % 3 - 1) * nz + z + o % 3 - 1);
        let mean = at.iter().map(|&i| held[i]).sum::<f64>() / TAPS as f64;
        let potential = |expert: &Expert| {
            expert
                .potential(at.iter().zip(&expert.taps).map(|(&i, &tap)| f64::from(tap) * volume[i]).sum::<f64>() / unit)
        };
        value += experts.tissue_weight(mean / unit) * experts.experts().iter().map(potential).sum::<f64>();
    }
    value
}

#[test]
fn the_gradient_is_the_priors_derivative() {
    on_each("add_experts_gradient, differences", |carrier| {
        let (voxels, experts) = ([5, 4, 6], some_experts(3, 8, 1));
        let values = some_volume(voxels, 5);
        let given = on(carrier, &experts, voxels, 1.0, &values, &vec![0.0; values.len()]);
        let volume: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        let step = 1e-6;
        let expected: Vec<f32> = (0..volume.len())
            .map(|index| {
                let at = |shift: f64| {
                    let mut moved = volume.clone();
                    moved[index] += shift;
                    prior(&experts, voxels, &moved, &volume)
                };
                ((at(step) - at(-step)) / (2.0 * step) * f64::from(UNIT_PER_MM)) as f32
            })
            .collect();
        // Central differences in float64 are good to 1e-7 here.
        assert_close(carrier.name, GRADIENT, &given, &expected);
    });
}

#[test]
fn not_a_number_stays_within_two_voxels() {
    on_each("add_experts_gradient, not a number", |carrier| {
        let (voxels, experts) = ([20, 18, 36], some_experts(2, 8, 1));
        let [_, ny, nz] = voxels;
        // Within a block, on the edge between blocks, at the grid's corner.
        for at in [[8, 7, 15], [16, 14, 30], [0, 0, 0], [19, 17, 35]] {
            let mut volume = some_volume(voxels, 3);
            volume[(at[0] * ny + at[1]) * nz + at[2]] = f32::NAN;
            let gradient = vec![0.0; volume.len()];
            let given = on(carrier, &experts, voxels, 1.0, &volume, &gradient);
            let expected = on_cpu(&experts, voxels, 1.0, &volume, &gradient);
            assert!(expected.iter().any(|value| value.is_nan()));
            for (i, (given, expected)) in given.iter().zip(&expected).enumerate() {
                assert_eq!(given.is_nan(), expected.is_nan(), "{at:?}: at {i}");
            }
        }
    });
}

/// Grids without a neighbourhood, and parts of buffers that begin anywhere.
#[test]
fn thin_grids_and_any_offset() {
    on_each("add_experts_gradient, thin grids", |carrier| {
        let experts = some_experts(2, 4, 1);
        for voxels in [[2, 9, 9], [9, 2, 9], [9, 9, 2], [0, 9, 9], [1, 1, 1]] {
            let volume = vec![0.01; voxels.iter().product()];
            let gradient = signed(volume.len(), 2);
            assert_eq!(on(carrier, &experts, voxels, 1.0, &volume, &gradient), gradient);
        }
        let (voxels, n) = ([4, 5, 6], 120);
        let (volume, gradient) = (some_volume([4, 5, 7], 1), signed(140, 2));
        for start in 0..4 {
            let given = carrier.run(|launcher| {
                let table = ExpertsTable::upload(launcher, &experts).unwrap();
                let part = |slice: DeviceSlice<f32>| slice.part(start..start + n).unwrap();
                let (whole, volume) = (upload(launcher, &gradient), part(upload(launcher, &volume)));
                cuda::add_experts_gradient(launcher, &table, voxels, 1.0, volume, part(whole)).unwrap();
                vec![download(launcher, whole)]
            });
            let part = start..start + n;
            let mut expected = gradient.clone();
            expected[part.clone()].copy_from_slice(&on_cpu(
                &experts,
                voxels,
                1.0,
                &volume[part.clone()],
                &gradient[part],
            ));
            assert_close(carrier.name, GRADIENT, &given[0], &expected);
        }
    });
}
