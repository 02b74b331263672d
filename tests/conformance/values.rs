//! Values to work on, and how near results must be.

use diffnr::compute::cuda::{DeviceSlice, Launcher};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform in [0, 1): inner products are then far from zero, so that their ratio means something.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>()).collect()
}

/// Uniform in [-1, 1).
pub(crate) fn signed(len: usize, seed: u64) -> Vec<f32> {
    random(len, seed).into_iter().map(|value| 2.0 * value - 1.0).collect()
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

pub(crate) fn upload(launcher: &dyn Launcher, values: &[f32]) -> DeviceSlice<f32> {
    DeviceSlice::upload(launcher, values).unwrap()
}

/// A buffer of NaN: every value must be written.
pub(crate) fn unwritten(launcher: &dyn Launcher, len: usize) -> DeviceSlice<f32> {
    upload(launcher, &vec![f32::NAN; len])
}

pub(crate) fn download(launcher: &dyn Launcher, slice: DeviceSlice<f32>) -> Vec<f32> {
    let mut values = vec![0.0; slice.len()];
    slice.copy_to(launcher, &mut values).unwrap();
    values
}

/// Each value within `share` of the largest one expected. Says how near they were (`--nocapture` shows it).
pub(crate) fn assert_close(what: &str, share: f32, given: &[f32], expected: &[f32]) {
    assert_eq!(given.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let mut largest = 0.0_f32;
    for (i, (given, expected)) in given.iter().zip(expected).enumerate() {
        let difference = (given - expected).abs();
        largest = largest.max(difference);
        // Not `>`, which NaN would pass.
        assert!(difference <= share * scale, "{what}: at {i}: {given}, expected {expected}, largest {scale}");
    }
    println!("{what}: within {:.1e} of {share:.0e}", largest / scale.max(f32::MIN_POSITIVE));
}

/// A sum as two floats, so that it travels with the other results and none of its bits is lost.
pub(crate) fn split(sum: f64) -> Vec<f32> {
    let high = sum as f32;
    vec![high, (sum - f64::from(high)) as f32]
}

pub(crate) fn joined(parts: &[f32]) -> f64 {
    f64::from(parts[0]) + f64::from(parts[1])
}

pub(crate) fn assert_sum(what: &str, share: f64, given: &[f32], expected: f64) {
    let given = joined(given);
    println!("{what}: within {:.1e} of {share:.0e}", (given / expected - 1.0).abs());
    assert!((given - expected).abs() <= share * expected.abs(), "{what}: {given}, expected {expected}");
}

#[test]
fn comparisons_can_fail() {
    let fails = |given: &[f32], expected: &[f32]| {
        let (given, expected) = (given.to_vec(), expected.to_vec());
        std::panic::catch_unwind(move || assert_close("test", 1e-3, &given, &expected)).is_err()
    };
    assert!(!fails(&[1.0, 0.0005], &[1.0, 0.0]));
    assert!(fails(&[1.0, 0.002], &[1.0, 0.0]));
    assert!(fails(&[f32::NAN], &[1.0]));
    assert!(fails(&[1.0], &[f32::NAN]));
    assert!(fails(&[1.0], &[1.0, 1.0]));
    assert!(std::panic::catch_unwind(|| assert_sum("test", 1e-6, &split(1.0 + 2e-6), 1.0)).is_err());
    assert_eq!(joined(&split(0.1)) as f32, 0.1);
}
