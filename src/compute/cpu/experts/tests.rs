#![allow(clippy::unwrap_used)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::compute::experts::Expert;

/// So many experts of random taps that sum up to zero.
fn some_experts(count: usize, seed: u64) -> Experts {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let experts = (0..count)
        .map(|_| {
            let mut taps: [f32; TAPS] = std::array::from_fn(|_| random.random_range(-0.5..0.5));
            let mean = taps.iter().sum::<f32>() / TAPS as f32;
            taps.iter_mut().for_each(|tap| *tap -= mean);
            let mut pair = || [random.random_range(0.1..1.0), random.random_range(0.05..0.5)];
            Expert { taps, convex: pair(), saturating: pair() }
        })
        .collect();
    Experts::new(experts, vec![0.5, 2.0, 1.0, 0.25], 0.04).unwrap()
}

fn some_volume(voxels: [usize; 3], seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Means within and beyond the tissue weights' range.
    (0..voxels.iter().product()).map(|_| random.random_range(-0.01..0.06)).collect()
}

/// Calls `each` with the index of every neighbourhood's 27 voxels, `[dx][dy][dz]`.
fn for_each_neighbourhood([nx, ny, nz]: [usize; 3], mut each: impl FnMut([usize; TAPS])) {
    for x in 1..nx.saturating_sub(1) {
        for y in 1..ny.saturating_sub(1) {
            for z in 1..nz.saturating_sub(1) {
                each(std::array::from_fn(|o| ((x + o / 9 - 1) * ny + y + o / 3 % 3 - 1) * nz + z + o % 3 - 1));
            }
        }
    }
}

fn response(experts: &Experts, expert: &Expert, volume: &[f64], at: &[usize; TAPS]) -> f64 {
    at.iter().zip(&expert.taps).map(|(&i, &tap)| f64::from(tap) * volume[i]).sum::<f64>()
        / f64::from(experts.unit_per_mm())
}

fn tissue(experts: &Experts, volume: &[f64], at: &[usize; TAPS]) -> f64 {
    let mean = at.iter().map(|&i| volume[i]).sum::<f64>() / TAPS as f64;
    experts.tissue_weight(mean / f64::from(experts.unit_per_mm()))
}

/// `R` of `volume` with the tissue weights of `held`, in float64.
fn prior(experts: &Experts, voxels: [usize; 3], volume: &[f64], held: &[f64]) -> f64 {
    let mut value = 0.0;
    for_each_neighbourhood(voxels, |at| {
        let potentials = experts.experts().iter().map(|e| e.potential(response(experts, e, volume, &at)));
        value += tissue(experts, held, &at) * potentials.sum::<f64>();
    });
    value
}

/// The operation's gradient for weight 1, in float64.
fn reference(experts: &Experts, voxels: [usize; 3], volume: &[f64]) -> Vec<f64> {
    let mut gradient = vec![0.0; volume.len()];
    for_each_neighbourhood(voxels, |at| {
        let weight = tissue(experts, volume, &at);
        for expert in experts.experts() {
            let influence = weight * expert.influence(response(experts, expert, volume, &at));
            for (&i, &tap) in at.iter().zip(&expert.taps) {
                gradient[i] += influence * f64::from(tap);
            }
        }
    });
    gradient
}

fn gradient_of(compute: &mut CpuCompute, experts: &Experts, voxels: [usize; 3], volume: &[f32]) -> Vec<f32> {
    compute.prepare_experts(voxels).unwrap();
    let mut gradient = vec![0.0; volume.len()];
    compute.add_experts_gradient(experts, voxels, 1.0, volume, &mut gradient).unwrap();
    gradient
}

#[test]
fn the_gradient_is_the_sum_over_neighbourhoods_at_every_simd_level_and_odd_size() {
    // One to five registers a row, chunks of planes begun and whole, experts that fill their groups and that do not.
    for (voxels, count) in [([3, 3, 3], 1), ([5, 4, 17], 5), ([9, 3, 34], 8), ([17, 6, 19], 16), ([8, 5, 70], 32)] {
        let experts = some_experts(count, 7);
        let volume = some_volume(voxels, 3);
        let exact = reference(&experts, voxels, &volume.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        let largest = exact.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for simd in SimdLevel::available() {
            let mut compute = CpuCompute::with_simd(2, simd).unwrap();
            let gradient = gradient_of(&mut compute, &experts, voxels, &volume);
            for (index, (value, exact)) in gradient.iter().zip(&exact).enumerate() {
                // Sums of some hundred float32 products: 1e-5 of the largest is a hundred roundings.
                assert!(
                    (f64::from(*value) - exact).abs() < 1e-5 * largest,
                    "{voxels:?} {simd} at {index}: {value}, {exact}"
                );
            }
        }
    }
}

#[test]
fn the_gradient_is_the_priors_derivative_with_tissue_weights_held() {
    let (voxels, experts) = ([4, 5, 6], some_experts(3, 1));
    let volume: Vec<f64> = some_volume(voxels, 5).into_iter().map(f64::from).collect();
    let gradient = reference(&experts, voxels, &volume);
    let step = 1e-6;
    for index in 0..volume.len() {
        let at = |shift: f64| {
            let mut moved = volume.clone();
            moved[index] += shift;
            prior(&experts, voxels, &moved, &volume)
        };
        let difference = (at(step) - at(-step)) / (2.0 * step) * f64::from(experts.unit_per_mm());
        // Central differences in float64: the third derivative times step^2, with values of size 1.
        assert!((difference - gradient[index]).abs() < 1e-5, "{index}: {difference}, {}", gradient[index]);
    }
}

#[test]
fn bits_are_the_same_for_any_number_of_threads_and_it_adds_with_its_weight() {
    let (voxels, experts) = ([21, 7, 33], some_experts(16, 2));
    let volume = some_volume(voxels, 9);
    let one = gradient_of(&mut CpuCompute::new(1).unwrap(), &experts, voxels, &volume);
    for threads in [2, 3] {
        let mut compute = CpuCompute::new(threads).unwrap();
        let many = gradient_of(&mut compute, &experts, voxels, &volume);
        assert!(one.iter().zip(&many).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads");
        let mut added = vec![3.0; volume.len()];
        compute.add_experts_gradient(&experts, voxels, 0.5, &volume, &mut added).unwrap();
        assert!(added.iter().zip(&one).all(|(sum, once)| (sum - (3.0 + 0.5 * once)).abs() < 1e-5));
    }
}

#[test]
fn a_flat_volume_costs_nothing_and_a_thin_one_has_no_neighbourhoods() {
    let experts = some_experts(4, 3);
    let mut compute = CpuCompute::new(2).unwrap();
    for value in gradient_of(&mut compute, &experts, [6, 6, 6], &[0.02; 216]) {
        // Taps sum up to zero but for rounding.
        assert!(value.abs() < 1e-4, "{value}");
    }
    for voxels in [[2, 9, 9], [9, 2, 9], [9, 9, 2], [0, 9, 9]] {
        let volume = some_volume(voxels, 1);
        assert!(gradient_of(&mut compute, &experts, voxels, &volume).iter().all(|&value| value == 0.0), "{voxels:?}");
    }
}

#[test]
fn buffers_that_do_not_fit_and_scratch_that_is_missing_are_refused_by_name() {
    let (experts, compute) = (some_experts(1, 0), CpuCompute::new(1).unwrap());
    let refuse = |volume: &[f32], gradient: &mut [f32]| {
        compute.add_experts_gradient(&experts, [4, 4, 4], 1.0, volume, gradient).unwrap_err().to_string()
    };
    assert!(refuse(&[0.0; 63], &mut [0.0; 64]).contains("volume"));
    assert!(refuse(&[0.0; 64], &mut [0.0; 65]).contains("gradient"));
    assert!(matches!(
        compute.add_experts_gradient(&experts, [4, 4, 4], 1.0, &[0.0; 64], &mut [0.0; 64]),
        Err(ComputeError::Scratch { .. })
    ));
}

#[test]
fn experts_that_cannot_work_are_refused_by_name_and_value() {
    let good = some_experts(1, 0).experts()[0];
    let refuse = |expert: Expert, tissues: &[f32], unit: f32| {
        Experts::new(vec![expert], tissues.to_vec(), unit).unwrap_err().to_string()
    };
    let mut lopsided = good;
    lopsided.taps[0] += 1.0;
    assert!(refuse(lopsided, &[1.0, 1.0], 0.04).contains("taps"));
    assert!(refuse(Expert { convex: [1.0, 0.0], ..good }, &[1.0, 1.0], 0.04).contains("width"));
    assert!(refuse(Expert { saturating: [f32::NAN, 1.0], ..good }, &[1.0, 1.0], 0.04).contains("amplitude"));
    assert!(refuse(good, &[1.0], 0.04).contains("tissue"));
    assert!(refuse(good, &[1.0, -1.0], 0.04).contains("-1"));
    assert!(refuse(good, &[1.0, 1.0], f32::INFINITY).contains("unit_per_mm"));
    assert!(Experts::new(Vec::new(), vec![1.0; 2], 0.04).is_err());
    assert!(Experts::new(vec![good; MOST_EXPERTS + 1], vec![1.0; 2], 0.04).is_err());
}
