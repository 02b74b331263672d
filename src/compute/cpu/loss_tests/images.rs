//! Loss of views.

use super::super::super::ComputeError;
use super::super::super::losses::{ImageLoss, ImageLossValue, LossCompute, LossWorkload, poisson_weights};
use super::super::{CpuCompute, SimdLevel};
use super::{differences, dissimilarity, double, values, worst};
use crate::geometry::Detector;

const ALL: ImageLoss = ImageLoss { l1: 0.7, huber: 0.3, squares: 0.4, dissimilarity: 0.25, data_range: 4.0 };

fn carrier(threads: usize, simd: SimdLevel, detector: Detector, views: usize) -> CpuCompute {
    let mut cpu = CpuCompute::with_simd(threads, simd).unwrap();
    let Detector { columns, rows } = detector;
    cpu.prepare_losses(&LossWorkload { columns, rows, views_per_call: views, voxels: [0; 3] }).unwrap();
    cpu
}

/// The loss by its definition, in float64.
fn reference(settings: &ImageLoss, detector: Detector, p: &[f64], m: &[f64], w: &[f64]) -> ImageLossValue {
    let (n, h) = (p.len() as f64, f64::from(settings.huber));
    let mut value = ImageLossValue::default();
    for ((p, m), w) in p.iter().zip(m).zip(w) {
        let r = (p - m).abs();
        value.l1 += w * if r < h { r * r / (2.0 * h) } else { r - h / 2.0 } / n;
        value.squares += w * r * r / n;
    }
    for (p, m) in p.chunks(detector.pixels()).zip(m.chunks(detector.pixels())) {
        if settings.dissimilarity == 0.0 {
            continue;
        }
        value.dissimilarity +=
            dissimilarity(p, m, [detector.rows, detector.columns], f64::from(settings.data_range)) / n;
    }
    value.total = f64::from(settings.l1) * value.l1
        + f64::from(settings.squares) * value.squares
        + f64::from(settings.dissimilarity) * value.dissimilarity;
    value
}

#[test]
fn value_and_gradient_are_those_of_the_definition() {
    for (columns, rows, views) in [(19, 13, 2), (7, 3, 1), (1, 1, 3), (33, 2, 1)] {
        let detector = Detector { columns, rows };
        let n = views * detector.pixels();
        let (p, m, w) = (values(n, 2.0, 1), values(n, 2.0, 2), values(n, 1.0, 3));
        let (m64, w64, ones) = (double(&m), double(&w), vec![1.0; n]);
        let one = ImageLoss { l1: 1.0, huber: 0.0, squares: 0.0, dissimilarity: 0.0, data_range: 0.0 };
        let similar = ImageLoss { l1: 0.0, dissimilarity: 1.0, data_range: 4.0, ..one };
        let squares = ImageLoss { l1: 0.0, squares: 1.0, ..one };
        for (settings, weights) in [(ALL, Some(&w)), (ALL, None), (one, Some(&w)), (similar, None), (squares, Some(&w))]
        {
            let weights64 = if weights.is_some() { &w64 } else { &ones };
            let expected = reference(&settings, detector, &double(&p), &m64, weights64);
            let slopes = differences(&p, 1e-5, |p| reference(&settings, detector, p, &m64, weights64).total);
            for simd in SimdLevel::available() {
                let cpu = carrier(2, simd, detector, views);
                // Whatever stood there is overwritten.
                let mut by = vec![f32::NAN; n];
                let weights = weights.map(Vec::as_slice);
                let value = cpu.image_loss(detector, &settings, &p, &m, weights, &mut by).unwrap();
                // float32 sums along a row.
                assert!((value.total - expected.total).abs() < 2e-6 * (1.0 + expected.total), "{value:?} {expected:?}");
                let parts = [
                    (settings.l1, value.l1, expected.l1),
                    (settings.squares, value.squares, expected.squares),
                    (settings.dissimilarity, value.dissimilarity, expected.dissimilarity),
                ];
                for (weight, given, expected) in parts {
                    let expected = if weight > 0.0 { expected } else { 0.0 };
                    assert!((given - expected).abs() < 2e-6 * (1.0 + expected), "{given} against {expected}");
                }
                let worst = worst(&by, &slopes);
                // As for volumes; no residual here lies within the step of a kink. A single pixel has no variance: what
                // rounding leaves of d^2 - d^2, 1e-7, is divided by C2, 9e-4.
                let tolerance = if detector.pixels() == 1 { 5e-4 } else { 2e-5 };
                assert!(worst < tolerance, "{columns} x {rows} x {views} {simd} {settings:?}: {worst:.1e}");
            }
        }
    }
}

#[test]
fn equal_images_have_no_loss_and_no_gradient() {
    let detector = Detector { columns: 45, rows: 37 };
    let p = values(2 * detector.pixels(), 2.0, 1);
    for settings in [ALL, ImageLoss { huber: 0.0, ..ALL }] {
        for simd in SimdLevel::available() {
            let mut by = vec![1.0; p.len()];
            let value = carrier(2, simd, detector, 2).image_loss(detector, &settings, &p, &p, None, &mut by).unwrap();
            assert_eq!(value, ImageLossValue::default());
            assert!(by.iter().all(|&g| g == 0.0), "{simd}");
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let detector = Detector { columns: 45, rows: 137 };
    let n = detector.pixels();
    let (p, m) = (values(n, 2.0, 1), values(n, 2.0, 2));
    for simd in SimdLevel::available() {
        let [one, two, three] = [1, 2, 3].map(|threads| {
            let mut by = vec![0.0; n];
            let cpu = carrier(threads, simd, detector, 1);
            (cpu.image_loss(detector, &ALL, &p, &m, Some(&m), &mut by).unwrap(), by)
        });
        assert!(one == two && one == three, "{simd}");
    }
}

#[test]
fn bad_input_is_refused() {
    let detector = Detector { columns: 9, rows: 8 };
    let cpu = carrier(1, SimdLevel::detect(), detector, 2);
    let good = values(144, 2.0, 1);
    let refused = |settings: &ImageLoss, p: &[f32], m: &[f32], w: Option<&[f32]>| {
        cpu.image_loss(detector, settings, p, m, w, &mut vec![0.0; p.len()]).unwrap_err().to_string()
    };
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        let mut one = good.clone();
        one[100] = bad;
        assert!(refused(&ALL, &one, &good, None).contains("`projections` of element 100"));
        assert!(refused(&ALL, &good, &one, None).contains("`measured` of element 100"));
        assert!(refused(&ALL, &good, &good, Some(&one)).contains("`weights` of element 100"));
    }
    assert!(refused(&ALL, &good, &good, Some(&vec![-1.0; 144])).contains("not negative"));
    assert!(refused(&ALL, &good[1..], &good, None).contains("`projections` holds 143"));
    assert!(refused(&ALL, &good, &good[72..], None).contains("`measured` holds 72"));
    assert!(refused(&ImageLoss { l1: f32::NAN, ..ALL }, &good, &good, None).contains("`l1`"));
    assert!(refused(&ImageLoss { huber: -1.0, ..ALL }, &good, &good, None).contains("`huber`"));
    assert!(refused(&ImageLoss { data_range: 0.0, ..ALL }, &good, &good, None).contains("data_range"));
    let more = values(216, 2.0, 1);
    let error = cpu.image_loss(detector, &ALL, &more, &more, None, &mut more.clone());
    assert!(matches!(error, Err(ComputeError::Scratch { .. })), "{error:?}");
    // No views are no error.
    assert_eq!(cpu.image_loss(detector, &ALL, &[], &[], None, &mut []).unwrap(), ImageLossValue::default());
}

#[test]
fn poisson_weights_are_the_inverse_variance_with_mean_1() {
    let p = [0.0f32, 1.0, 3.0, 6.0, 2.0];
    let mut w = [0.0f32; 5];
    let (photons, noise) = (1e4, 10.0);
    poisson_weights(photons, noise, &p, &mut w).unwrap();
    // Mean 1 to float32's rounding.
    assert!((w.iter().sum::<f32>() / 5.0 - 1.0).abs() < 1e-6);
    let inverse_variance = |p: f32| {
        let counts = photons * f64::from(-p).exp();
        counts * counts / (counts + noise * noise)
    };
    for (&p, &weight) in p.iter().zip(&w) {
        let expected = inverse_variance(p) / inverse_variance(0.0);
        assert!((f64::from(weight / w[0]) / expected - 1.0).abs() < 1e-6, "{p}: {weight}");
    }
    assert!(poisson_weights(1e4, 0.0, &[f32::NAN], &mut [0.0]).is_err());
    assert!(poisson_weights(0.0, 0.0, &[1.0], &mut [0.0]).is_err());
    assert!(poisson_weights(1e4, -1.0, &[1.0], &mut [0.0]).is_err());
    assert!(poisson_weights(1e4, 0.0, &[1.0], &mut []).is_err());
}
