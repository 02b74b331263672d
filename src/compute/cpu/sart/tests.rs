#![allow(clippy::unwrap_used)]

use super::*;

fn noise(seed: u32, values: usize) -> Vec<f32> {
    let mut state = seed;
    (0..values)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.3
        })
        .collect()
}

/// Empty, below a lane, around a task, several tasks with a rest.
const LENGTHS: [usize; 6] = [0, 5, TASK - 1, TASK, TASK + 1, 7 * TASK + 19];

#[test]
fn each_is_what_it_says() {
    let cpu = CpuCompute::new(2).unwrap();
    for n in LENGTHS {
        let (measured, mut weights, old) = (noise(1, n), noise(2, n), noise(3, n));
        weights.iter_mut().step_by(3).for_each(|w| *w = 0.0);
        let mut residual = old.clone();
        let sum = cpu.weigh_residual(&measured, &weights, &mut residual).unwrap();
        let mut expected = 0.0;
        for i in 0..n {
            let difference = measured[i] - old[i];
            assert_eq!(residual[i], weights[i] * difference);
            expected += if weights[i] == 0.0 { 0.0 } else { f64::from(difference).powi(2) };
        }
        // Lanes of 256 floats.
        assert!((sum - expected).abs() <= 1e-5 * expected, "{n}: {sum} {expected}");

        let step = CorrectionStep { relaxation: 0.7, least_sum: 0.1, least: 0.05 };
        let mut volume = old.clone();
        let changed = cpu.apply_correction(&step, &measured, &weights, &mut volume).unwrap();
        let mut expected = 0.0;
        for i in 0..n {
            let change = if weights[i] > 0.1 { 0.7 * measured[i] / weights[i] } else { 0.0 };
            assert_eq!(volume[i], (old[i] + change).max(0.05));
            expected += f64::from(volume[i] - old[i]).powi(2);
        }
        assert!((changed - expected).abs() <= 1e-5 * expected, "{n}: {changed} {expected}");

        let mut volume = old.clone();
        cpu.descend(0.5, &measured, f32::NEG_INFINITY, &mut volume).unwrap();
        assert!((0..n).all(|i| volume[i] == old[i] - 0.5 * measured[i]));
        let expected: f64 = old.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((cpu.squared_norm(&old) - expected).abs() <= 1e-5 * expected);
        let expected: f64 = (0..n).map(|i| f64::from(old[i] - measured[i]).powi(2)).sum();
        assert!((cpu.squared_distance(&old, &measured).unwrap() - expected).abs() <= 1e-5 * expected);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let n = LENGTHS[5];
    let (a, b) = (noise(1, n), noise(2, n));
    let run = |threads: usize| {
        let cpu = CpuCompute::new(threads).unwrap();
        let (mut c, mut d) = (noise(3, n), noise(4, n));
        let step = CorrectionStep { relaxation: 0.7, least_sum: 0.1, least: 0.0 };
        let sums = [
            cpu.weigh_residual(&a, &b, &mut c).unwrap(),
            cpu.apply_correction(&step, &c, &b, &mut d).unwrap(),
            cpu.squared_norm(&d),
            cpu.squared_distance(&c, &d).unwrap(),
        ];
        (sums.map(f64::to_bits), c, d)
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}

#[test]
fn nan_shows_and_wrong_lengths_are_refused() {
    let cpu = CpuCompute::new(1).unwrap();
    let step = CorrectionStep { relaxation: 1.0, least_sum: 0.0, least: 0.0 };
    let mut volume = [1.0, 2.0];
    assert!(cpu.apply_correction(&step, &[f32::NAN, 1.0], &[1.0; 2], &mut volume).unwrap().is_nan());
    assert!(volume[0].is_nan() && volume[1] == 3.0);
    let errors = [
        cpu.weigh_residual(&[0.0; 3], &[0.0; 2], &mut [0.0; 2]).unwrap_err(),
        cpu.weigh_residual(&[0.0; 2], &[0.0; 3], &mut [0.0; 2]).unwrap_err(),
        cpu.apply_correction(&step, &[0.0; 3], &[0.0; 2], &mut [0.0; 2]).unwrap_err(),
        cpu.apply_correction(&step, &[0.0; 2], &[0.0; 3], &mut [0.0; 2]).unwrap_err(),
        cpu.descend(1.0, &[0.0; 3], 0.0, &mut [0.0; 2]).unwrap_err(),
        cpu.squared_distance(&[0.0; 2], &[0.0; 3]).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("holds 3 values, but the geometry needs 2"), "{error}");
    }
}
