//! Structural similarity of volumes.

use super::super::super::ComputeError;
use super::super::super::losses::{LossCompute, LossWorkload, VolumeSsimLoss, VolumeSsimValue};
use super::super::{CpuCompute, SimdLevel};
use super::{differences, dissimilarity, double, values, worst};

const L: f32 = 0.05;
const SETTINGS: VolumeSsimLoss = VolumeSsimLoss { weight: 1.0, data_range: L, empty_at: 0.0, axes: [1.0; 3] };

fn carrier(threads: usize, simd: SimdLevel, voxels: [usize; 3]) -> CpuCompute {
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    cpu.prepare_losses(&LossWorkload { voxels, ..LossWorkload::default() }).unwrap();
    cpu
}

fn loss(cpu: &CpuCompute, voxels: [usize; 3], a: &[f32], b: &[f32]) -> (VolumeSsimValue, Vec<f32>) {
    let mut gradient = vec![0.0; a.len()];
    let value = cpu.volume_ssim_loss(voxels, &SETTINGS, a, b, &mut gradient).unwrap();
    (value, gradient)
}

/// A volume and its reference, whose first plane across x and last one across z are empty where there is more than one.
fn pair(voxels @ [x, y, z]: [usize; 3]) -> [Vec<f32>; 2] {
    let n = voxels.iter().product();
    let (a, mut b) = (values(n, 0.02, 1), values(n, 0.02, 2));
    for (k, value) in b.iter_mut().enumerate() {
        if (x > 1 && k / (y * z) == 0) || (z > 1 && k % z == z - 1) {
            *value = 0.0;
        }
    }
    [a, b]
}

/// `1 - SSIM3D` in float64, slice by slice.
fn reference(a: &[f64], b: &[f64], voxels: [usize; 3]) -> f64 {
    weighted_reference(a, b, voxels, [1.0; 3])
}

/// The same with weights of the axes.
fn weighted_reference(a: &[f64], b: &[f64], voxels: [usize; 3], weights: [f32; 3]) -> f64 {
    let strides = [voxels[1] * voxels[2], voxels[2], 1];
    let mut axes = Vec::new();
    for axis in 0..3 {
        let [r, c] = [[1, 2], [0, 2], [0, 1]][axis];
        let mut used = Vec::new();
        for slice in 0..voxels[axis] {
            let take = |from: &[f64]| -> Vec<f64> {
                let at = |i: usize, j: usize| from[slice * strides[axis] + i * strides[r] + j * strides[c]];
                (0..voxels[r]).flat_map(|i| (0..voxels[c]).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
            };
            let (a, b) = (take(a), take(b));
            if b.iter().any(|&value| value > 0.0) {
                let sum = dissimilarity(&a, &b, [voxels[r], voxels[c]], f64::from(L));
                used.push(sum / a.len() as f64);
            }
        }
        if !used.is_empty() {
            axes.push([f64::from(weights[axis]), used.iter().sum::<f64>() / used.len() as f64]);
        }
    }
    axes.iter().map(|[weight, value]| weight * value).sum::<f64>() / axes.iter().map(|[weight, _]| weight).sum::<f64>()
}

#[test]
fn value_is_that_of_the_definition_for_odd_sizes_and_slices_smaller_than_the_window() {
    for voxels in [[17, 33, 40], [21, 9, 13], [3, 5, 2], [1, 18, 1], [1, 1, 1]] {
        let [a, b] = pair(voxels);
        let expected = reference(&double(&a), &double(&b), voxels);
        for simd in SimdLevel::available() {
            let (value, _) = loss(&carrier(2, simd, voxels), voxels, &a, &b);
            // float32 with sums of 121 values: some 1e-7 of values of order 1, times the formula's factors.
            let error = (value.dissimilarity - expected).abs();
            assert!(error < 2e-6, "{voxels:?} {simd}: {} against {expected}: {error:.1e}", value.dissimilarity);
            let empty = voxels.map(|n| usize::from(n > 1));
            assert_eq!(value.slices, [voxels[0] - empty[0], voxels[1], voxels[2] - empty[2]]);
        }
    }
}

#[test]
fn gradient_is_that_of_differences() {
    for voxels in [[6, 13, 3], [12, 2, 7], [2, 3, 4]] {
        let [a, b] = pair(voxels);
        let b64 = double(&b);
        let expected = differences(&a, 1e-6, |a| reference(a, &b64, voxels));
        for simd in SimdLevel::available() {
            let (_, gradient) = loss(&carrier(2, simd, voxels), voxels, &a, &b);
            let worst = worst(&gradient, &expected);
            // Central differences: (step / L)^2, 4e-10, and float32's rounding in windows of products.
            assert!(worst < 2e-5, "{voxels:?} {simd}: {worst:.1e}");
        }
    }
}

#[test]
fn axes_weigh_what_they_are_told() {
    let voxels = [6, 13, 5];
    let [a, mut b] = pair(voxels);
    let cpu = carrier(2, SimdLevel::detect(), voxels);
    let weighted = |axes: [f32; 3], b: &[f32]| {
        let mut gradient = vec![0.0; a.len()];
        let value = cpu.volume_ssim_loss(voxels, &VolumeSsimLoss { axes, ..SETTINGS }, &a, b, &mut gradient).unwrap();
        (value, gradient)
    };
    let (all, _) = weighted([1.0; 3], &b);
    for axes in [[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [0.0, 3.0, 1.0]] {
        let (value, gradient) = weighted(axes, &b);
        let b64 = double(&b);
        let loss = |a: &[f64]| weighted_reference(a, &b64, voxels, axes);
        // As in the tests above.
        assert!((value.dissimilarity - loss(&double(&a))).abs() < 2e-6, "{axes:?}");
        assert!(worst(&gradient, &differences(&a, 1e-6, loss)) < 2e-5, "{axes:?}");
        for axis in 0..3 {
            let off = axes[axis] == 0.0;
            assert_eq!(value.by_axis[axis], if off { 0.0 } else { all.by_axis[axis] }, "{axes:?}");
            assert_eq!(value.slices[axis], if off { 0 } else { all.slices[axis] }, "{axes:?}");
        }
    }
    // Nothing but axes of weight 0 has slices: there is nothing to compare, and no division by 0.
    b.fill(0.0);
    assert_eq!(weighted([0.0, 0.0, 1.0], &b).0, VolumeSsimValue::default());
}

#[test]
fn agrees_with_the_metric_where_the_border_is_empty() {
    // The metric leaves out windows around the outer 5 voxels, which see nothing but zeros here (the object keeps 10 away).
    const N: usize = 37;
    let inside = |k: usize| [k / (N * N), k / N % N, k % N].iter().all(|c| (10..N - 10).contains(c));
    let cut = |mut v: Vec<f32>| {
        v.iter_mut().enumerate().filter(|(k, _)| !inside(*k)).for_each(|(_, value)| *value = 0.0);
        v
    };
    let (a, b) = (cut(values(N * N * N, 0.02, 1)), cut(values(N * N * N, 0.02, 2)));
    let view = |v: &[f32]| ndarray::Array3::from_shape_vec((N, N, N), v.to_vec()).unwrap();
    let metric = crate::measure::ssim::ssim(view(&a).view(), view(&b).view(), f64::from(L), 0.0, None).unwrap();
    let (value, _) = loss(&carrier(2, SimdLevel::detect(), [N; 3]), [N; 3], &a, &b);
    assert_eq!(value.slices, [N - 20; 3]);
    let ours = value.dissimilarity * (N * N) as f64 / ((N - 10) * (N - 10)) as f64;
    // The metric works in float64.
    assert!((ours - (1.0 - metric)).abs() < 1e-6, "{ours} against {}", 1.0 - metric);
}

#[test]
fn equal_volumes_have_no_loss_and_no_gradient_and_the_gradient_is_added() {
    let voxels = [20, 17, 33];
    let a = values(20 * 17 * 33, 0.02, 1);
    for simd in SimdLevel::available() {
        let cpu = carrier(2, simd, voxels);
        let (value, gradient) = loss(&cpu, voxels, &a, &a);
        assert_eq!(value.dissimilarity, 0.0);
        assert!(gradient.iter().all(|&g| g == 0.0), "{simd}");
        // On top of what is there, times the weight.
        let b = values(a.len(), 0.02, 2);
        let (_, once) = loss(&cpu, voxels, &a, &b);
        let largest = once.iter().fold(0.0f32, |largest, g| largest.max(g.abs()));
        let mut twice = vec![1.0f32; a.len()];
        cpu.volume_ssim_loss(voxels, &VolumeSsimLoss { weight: 1000.0, ..SETTINGS }, &a, &b, &mut twice).unwrap();
        for (one, two) in once.iter().zip(&twice) {
            // Rounding, of parts a few times their sum.
            assert!((two - 1.0 - 1000.0 * one).abs() < 1e-6 * 1000.0 * largest, "{one} {two}");
        }
    }
}

#[test]
fn thin_contrast_on_a_bright_ground_keeps_its_digits() {
    // Differences of 1e-4 of the values: 1 - SSIM worked out as a difference from 1 in float32 would be noise.
    let voxels = [16, 16, 16];
    let b = values(4096, 0.02, 1);
    let a: Vec<f32> = b.iter().zip(values(4096, 1e-6, 2)).map(|(b, e)| b + e).collect();
    let expected = reference(&double(&a), &double(&b), voxels);
    let (value, _) = loss(&carrier(1, SimdLevel::detect(), voxels), voxels, &a, &b);
    assert!(expected < 1e-5 && (value.dissimilarity / expected - 1.0).abs() < 1e-3, "{value:?} against {expected}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let voxels = [67, 35, 70];
    let [a, b] = pair(voxels);
    for simd in SimdLevel::available() {
        let [one, two, three] = [1, 2, 3].map(|threads| loss(&carrier(threads, simd, voxels), voxels, &a, &b));
        assert!(one == two && one == three, "{simd}");
    }
}

#[test]
fn empty_reference_leaves_nothing_to_compare() {
    let voxels = [4, 5, 6];
    let (value, gradient) = loss(&carrier(1, SimdLevel::detect(), voxels), voxels, &values(120, 0.02, 1), &[0.0; 120]);
    assert_eq!(value, VolumeSsimValue::default());
    assert!(gradient.iter().all(|&g| g == 0.0));
}

#[test]
fn bad_input_is_refused_and_the_gradient_left_alone() {
    let voxels = [4, 5, 6];
    let cpu = carrier(1, SimdLevel::detect(), voxels);
    let good = values(120, 0.02, 1);
    let mut gradient = vec![7.0; 120];
    let mut refused = |settings: &VolumeSsimLoss, a: &[f32], b: &[f32]| {
        let error = cpu.volume_ssim_loss(voxels, settings, a, b, &mut gradient).unwrap_err().to_string();
        assert!(gradient.iter().all(|&g| g == 7.0));
        error
    };
    for bad in [f32::NAN, f32::INFINITY, -1e30] {
        let mut volume = good.clone();
        volume[77] = bad;
        let error = refused(&SETTINGS, &volume, &good);
        assert!(error.contains("`volume` of element 77"), "{error}");
        let error = refused(&SETTINGS, &good, &volume);
        assert!(error.contains("`reference` of element 77"), "{error}");
    }
    assert!(refused(&SETTINGS, &good[1..], &good).contains("`volume` holds 119 values"));
    assert!(refused(&VolumeSsimLoss { data_range: 0.0, ..SETTINGS }, &good, &good).contains("data_range"));
    assert!(refused(&VolumeSsimLoss { weight: -1.0, ..SETTINGS }, &good, &good).contains("weight"));
    assert!(refused(&VolumeSsimLoss { axes: [0.0; 3], ..SETTINGS }, &good, &good).contains("one axis at least"));
    assert!(
        refused(&VolumeSsimLoss { axes: [1.0, -1.0, 1.0], ..SETTINGS }, &good, &good).contains("`axes` of element 1")
    );
    assert!(refused(&VolumeSsimLoss { empty_at: f32::NAN, ..SETTINGS }, &good, &good).contains("empty_at"));
    let larger = values(4 * 5 * 600, 0.02, 1);
    let error = cpu.volume_ssim_loss([4, 5, 600], &SETTINGS, &larger, &larger, &mut larger.clone());
    assert!(matches!(error, Err(ComputeError::Scratch { .. })), "{error:?}");
}
