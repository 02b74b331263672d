#![allow(clippy::unwrap_used)]
use ndarray::Array3;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::latency::{LONGEST_NS, LatencyHistogram};
use super::*;

fn noise(shape: (usize, usize, usize), seed: u64) -> Array3<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_simple_fn(shape, || random.random::<f32>())
}

#[test]
fn a_constant_error_gives_the_formulas_value() {
    let reference = noise((4, 5, 6), 1);
    let volume = reference.mapv(|value| value + 0.125);
    // float32 sums of numbers below 2.
    assert!((rmse(volume.view(), reference.view(), None).unwrap() - 0.125).abs() < 1e-7);
    let psnr = psnr_db(volume.view(), reference.view(), 1.0, None).unwrap();
    assert!((psnr - 20.0 * 8.0_f64.log10()).abs() < 1e-5, "{psnr}");
    assert_eq!(psnr_db(reference.view(), reference.view(), 1.0, None).unwrap(), f64::INFINITY);
}

#[test]
fn masks_choose_the_voxels() {
    let reference = Array3::<f32>::zeros((12, 13, 14));
    let mut volume = reference.clone();
    let mut mask = Array3::from_elem((12, 13, 14), false);
    volume[[1, 2, 3]] = 4.0;
    volume[[3, 2, 1]] = 100.0;
    mask[[1, 2, 3]] = true;
    mask[[1, 2, 4]] = true;
    assert!((mean_squared_error(volume.view(), reference.view(), Some(mask.view())).unwrap() - 8.0).abs() < 1e-12);
    mask.fill(false);
    assert!(matches!(rmse(volume.view(), reference.view(), Some(mask.view())), Err(MeasureError::Empty(_))));
    assert!(matches!(rmse(volume.view(), reference.t(), None), Err(MeasureError::Shapes { .. })));
}

/// SSIM after the definition, window position by window position.
fn plain_ssim(volume: &Array3<f32>, reference: &Array3<f32>, mask: Option<&Array3<bool>>) -> f64 {
    let weight = |i: usize, j: usize| (-((i as f64 - 5.0).powi(2) + (j as f64 - 5.0).powi(2)) / 4.5).exp();
    let total: f64 = (0..121).map(|n| weight(n / 11, n % 11)).sum();
    let mut axes = Vec::new();
    for axis in 0..3 {
        let mut slices = Vec::new();
        for (index, (a, b)) in volume.axis_iter(Axis(axis)).zip(reference.axis_iter(Axis(axis))).enumerate() {
            let mask = mask.map(|mask| mask.index_axis(Axis(axis), index));
            let seen = |y: usize, x: usize| mask.is_none_or(|mask| mask[[y, x]]);
            if !b.indexed_iter().any(|((y, x), &value)| value > 0.0 && seen(y, x)) {
                continue;
            }
            let mut values = Vec::new();
            for y in 0..=a.nrows() - 11 {
                for x in 0..=a.ncols() - 11 {
                    if !seen(y + 5, x + 5) {
                        continue;
                    }
                    let mean = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                        let term = |n: usize| {
                            let at = [y + n / 11, x + n % 11];
                            weight(n / 11, n % 11) / total * f(f64::from(a[at]), f64::from(b[at]))
                        };
                        (0..121).map(term).sum()
                    };
                    let (ma, mb) = (mean(&|a, _| a), mean(&|_, b| b));
                    let va = mean(&|a, _| (a - ma).powi(2));
                    let vb = mean(&|_, b| (b - mb).powi(2));
                    let cov = mean(&|a, b| (a - ma) * (b - mb));
                    let (c1, c2) = (1e-4, 9e-4);
                    values.push((2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2)));
                }
            }
            if !values.is_empty() {
                slices.push(values.iter().sum::<f64>() / values.len() as f64);
            }
        }
        axes.push(slices.iter().sum::<f64>() / slices.len() as f64);
    }
    axes.iter().sum::<f64>() / axes.len() as f64
}

#[test]
fn ssim_is_the_definitions_value_also_with_masks_and_empty_slices() {
    let mut reference = noise((13, 12, 15), 2);
    reference.index_axis_mut(Axis(2), 4).fill(0.0);
    reference.index_axis_mut(Axis(0), 12).fill(0.0);
    let volume = &reference * 0.7 + &noise((13, 12, 15), 3) * 0.3;
    let value = ssim(volume.view(), reference.view(), 1.0, 0.0, None).unwrap();
    // Both in double precision; only the order of sums differs.
    assert!((value - plain_ssim(&volume, &reference, None)).abs() < 1e-12);
    let mask = Array3::from_shape_fn((13, 12, 15), |(x, y, z)| (x + 2 * y + 3 * z) % 4 != 0 && x < 9);
    let masked = ssim(volume.view(), reference.view(), 1.0, 0.0, Some(mask.view())).unwrap();
    assert!((masked - plain_ssim(&volume, &reference, Some(&mask))).abs() < 1e-12);
    assert!((masked - value).abs() > 1e-4, "the mask has a say");
}

#[test]
fn ssim_is_one_for_equal_volumes_scales_with_the_range_and_knows_its_limits() {
    let reference = noise((11, 12, 13), 4);
    assert!((ssim(reference.view(), reference.view(), 1.0, 0.0, None).unwrap() - 1.0).abs() < 1e-12);
    let volume = noise((11, 12, 13), 5);
    let value = ssim(volume.view(), reference.view(), 1.0, 0.0, None).unwrap();
    let (volume_big, reference_big) = (volume.mapv(|v| 2000.0 * v), reference.mapv(|v| 2000.0 * v));
    let big = ssim(volume_big.view(), reference_big.view(), 2000.0, 0.0, None).unwrap();
    // Scaling by 2000 rounds each float32 voxel once more.
    assert!((value - big).abs() < 1e-6);
    assert!(matches!(ssim(volume.view(), (&reference * 0.0).view(), 1.0, 0.0, None), Err(MeasureError::Empty(_))));
    let small = noise((10, 12, 13), 6);
    assert!(matches!(ssim(small.view(), small.view(), 1.0, 0.0, None), Err(MeasureError::TooSmall(_))));
}

#[test]
fn figures_are_the_same_for_any_number_of_threads() {
    let (volume, reference) = (noise((20, 18, 16), 7), noise((20, 18, 16), 8));
    let figures = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let psnr = psnr_db(volume.view(), reference.view(), 1.0, None).unwrap();
            (psnr.to_bits(), ssim(volume.view(), reference.view(), 1.0, 0.0, None).unwrap().to_bits())
        })
    };
    assert_eq!(figures(1), figures(3));
}

#[test]
fn dice_and_surface_distance_of_boxes_are_known() {
    let within = |x0: usize| {
        Array3::from_shape_fn((30, 20, 20), move |(x, y, z)| {
            (x0..x0 + 10).contains(&x) && (5..15).contains(&y) && (5..15).contains(&z)
        })
    };
    let (a, b) = (within(5), within(7));
    assert!((dice(a.view(), b.view()).unwrap() - 0.8).abs() < 1e-12);
    assert_eq!(dice(a.view(), a.view()).unwrap(), 1.0);
    assert_eq!(surface_distance_mm(a.view(), a.view(), [1.0; 3]).unwrap(), 0.0);
    // Two plates, each one voxel thick, 3 apart along z: every distance is 3 x the spacing.
    let plate = |at: usize| Array3::from_shape_fn((6, 7, 12), move |(_, _, z)| z == at);
    let distance = surface_distance_mm(plate(2).view(), plate(5).view(), [1.0, 1.0, 2.5]).unwrap();
    assert!((distance - 7.5).abs() < 1e-6, "{distance}");
    let none = Array3::from_elem((30, 20, 20), false);
    assert!(matches!(dice(none.view(), none.view()), Err(MeasureError::Empty(_))));
    assert!(matches!(surface_distance_mm(a.view(), none.view(), [1.0; 3]), Err(MeasureError::Empty(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn distances_are_those_of_the_search_over_all_pairs(
        shape in (1_usize..7, 1_usize..7, 1_usize..7),
        spacing in (0.3_f64..3.0, 0.3_f64..3.0, 0.3_f64..3.0),
        seed in any::<u64>(),
        density in 0.02_f32..0.9,
    ) {
        let set = noise(shape, seed).mapv(|value| value < density);
        let spacing = [spacing.0, spacing.1, spacing.2];
        let points: Vec<_> = set.indexed_iter().filter(|(_, on)| **on).map(|(at, _)| at).collect();
        let Some(found) = overlap::squared_distance_mm2(&set, spacing) else {
            prop_assert!(points.is_empty());
            return Ok(());
        };
        for ((x, y, z), &value) in found.indexed_iter() {
            let distance = |p: &(usize, usize, usize)| {
                let d = |a: usize, b: usize, s: f64| ((a as f64 - b as f64) * s).powi(2);
                d(x, p.0, spacing[0]) + d(y, p.1, spacing[1]) + d(z, p.2, spacing[2])
            };
            let nearest = points.iter().map(distance).fold(f64::INFINITY, f64::min);
            // Kept as float32 between the axes.
            prop_assert!((f64::from(value) - nearest).abs() <= 4e-7 * nearest, "{value} {nearest}");
        }
    }

    #[test]
    fn latency_percentiles_are_within_a_thousandth(latencies in prop::collection::vec(1_000_u64..10_000_000_000, 1..300)) {
        let mut histogram = LatencyHistogram::new();
        for (id, latency) in latencies.iter().enumerate() {
            histogram.record(*latency, id as u64);
        }
        let mut sorted = latencies.clone();
        sorted.sort_unstable();
        let summary = histogram.summary();
        prop_assert_eq!(summary.max_ms, *sorted.last().unwrap() as f64 / 1e6);
        prop_assert_eq!(latencies[summary.worst_id.unwrap() as usize], *sorted.last().unwrap());
        let at = |fraction: f64| sorted[((fraction * sorted.len() as f64).ceil() as usize).max(1) - 1] as f64;
        prop_assert!((1e6 * summary.p50_ms / at(0.5) - 1.0).abs() < 2e-3);
        prop_assert!((1e6 * summary.p99_ms / at(0.99) - 1.0).abs() < 2e-3);
    }
}

#[test]
fn latencies_beyond_the_bounds_are_counted_and_do_not_grow_the_histogram() {
    let mut histogram = LatencyHistogram::new();
    histogram.record(0, 1);
    histogram.record(u64::MAX, 2);
    let summary = histogram.summary();
    assert_eq!(
        (summary.count, summary.beyond, summary.max_ms, summary.worst_id),
        (2, 1, u64::MAX as f64 / 1e6, Some(2))
    );
    assert!(summary.p99_ms >= LONGEST_NS as f64 / 1e6);
    histogram.clear();
    assert_eq!(histogram.summary().count, 0);
    assert_eq!(histogram.worst(), None);
}
