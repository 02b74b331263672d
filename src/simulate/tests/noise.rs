use ndarray::Array3;

use crate::simulate::acquire::{add_noise, raw_counts};
use crate::simulate::photon_noise::{PhotonNoise, Stream, seek, stream};
use crate::simulate::raw_detector::DARK_COUNTS;

fn noise(photons: f64, electronic_sigma: f64) -> PhotonNoise {
    PhotonNoise { photons, electronic_sigma, seed: 11 }
}

#[test]
fn counts_have_the_mean_and_variance_of_poisson_plus_normal() {
    let draws = 100_000;
    for (mean, sigma) in
        [(0.0, 0.0), (0.02, 0.0), (3.0, 0.0), (11.9, 2.0), (12.1, 0.0), (150.0, 10.0), (1e4, 10.0), (1e8, 3.0)]
    {
        let noise = noise(1.0, sigma);
        let mut rng = stream(11, Stream::View(0));
        let (mut sum, mut squares) = (0.0, 0.0);
        for pixel in 0..draws {
            seek(&mut rng, pixel);
            let d = noise.draw(mean, &mut rng) - mean;
            sum += d;
            squares += d * d;
        }
        let n = draws as f64;
        let variance = mean + sigma * sigma;
        let (got_mean, got_variance) = (sum / n, squares / n);
        // Five standard errors; the variance's own variance is 2 v^2 + mean (fourth cumulant of the Poisson part).
        assert!(got_mean.abs() <= 5.0 * (variance / n).sqrt(), "mean {mean}: off by {got_mean}");
        let error = ((2.0 * variance * variance + mean) / n).sqrt();
        assert!((got_variance - variance).abs() <= 5.0 * error, "mean {mean} sigma {sigma}: {got_variance}");
    }
}

#[test]
fn noise_depends_on_seed_view_and_pixel_alone() {
    let exact = Array3::from_shape_fn((5, 6, 7), |(a, v, u)| 0.1 * (a + v + u) as f32);
    let run = |threads: usize, exact: &Array3<f32>, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = exact.clone();
        pool.install(|| add_noise(&mut out, &PhotonNoise { seed, ..noise(1e4, 10.0) }));
        out
    };
    let one = run(1, &exact, 11);
    assert_eq!(one, run(3, &exact, 11));
    assert_ne!(one, run(1, &exact, 12));
    // Another value in one pixel leaves all others as they were.
    let mut changed = exact.clone();
    changed[[2, 3, 4]] = 5.0;
    let other = run(2, &changed, 11);
    let different: Vec<_> = one.indexed_iter().filter(|(i, v)| other[*i] != **v).map(|(i, _)| i).collect();
    assert_eq!(different, vec![(2, 3, 4)]);
    // Neighbouring pixels and views are not copies of each other.
    let flat = run(1, &Array3::zeros((3, 8, 8)), 11);
    let mut values: Vec<u32> = flat.iter().map(|v| v.to_bits()).collect();
    values.sort_unstable();
    values.dedup();
    assert!(values.len() > 180, "{} distinct values of 192", values.len());
}

#[test]
fn starved_readings_are_clamped_at_one_photon_and_counted() {
    let mut deep = Array3::from_elem((1, 4, 4), 60.0_f32);
    assert_eq!(add_noise(&mut deep, &noise(1e4, 0.0)), 16);
    assert!(deep.iter().all(|&p| p == 1e4_f64.ln() as f32));
}

#[test]
fn raw_counts_give_the_line_integrals_back() {
    let exact = Array3::from_shape_fn((2, 40, 50), |(a, v, u)| 0.05 * (a + v) as f32 + 0.02 * u as f32);
    let raw = raw_counts(&exact, &noise(1e5, 10.0), true);
    let mut dead = 0;
    let mut offset = 0.0;
    for ((view, v, u), &p) in exact.indexed_iter() {
        let (dark, flat) = (f64::from(raw.dark[[v, u]]), f64::from(raw.flat[[v, u]]));
        if flat - dark < 1000.0 {
            dead += 1;
            continue;
        }
        offset += dark / 4000.0;
        let open = flat - dark;
        let got = -((f64::from(raw.counts[[view, v, u]]) - dark) / open).ln();
        // Half a count of rounding over the counts there are.
        let counts = open * (-f64::from(p)).exp();
        assert!((got - f64::from(p)).abs() < 0.51 / counts + 1e-6, "{v} {u}: {got} {p}");
    }
    // Four or five dead pixels in each of two views (places may coincide).
    assert!((4..=10).contains(&dead), "{dead}");
    assert!((offset - DARK_COUNTS).abs() < 2.0, "{offset}");
    // Pixels differ in gain by some 3 %.
    let flats: Vec<f64> = raw.flat.iter().map(|&f| f64::from(f)).filter(|f| (1000.0..65000.0).contains(f)).collect();
    let mean = flats.iter().sum::<f64>() / flats.len() as f64;
    let spread = (flats.iter().map(|f| (f - mean).powi(2)).sum::<f64>() / flats.len() as f64).sqrt() / mean;
    assert!((0.025..0.035).contains(&spread), "{spread}");
}

#[test]
fn raw_counts_and_line_integrals_come_from_the_same_photons() {
    let exact = Array3::from_elem((1, 30, 30), 2.0_f32);
    let noise = noise(1e4, 10.0);
    let raw = raw_counts(&exact, &noise, false);
    let mut measured = exact.clone();
    add_noise(&mut measured, &noise);
    let mut largest = 0.0_f64;
    for ((view, v, u), &p) in measured.indexed_iter() {
        let (dark, flat) = (f64::from(raw.dark[[v, u]]), f64::from(raw.flat[[v, u]]));
        if flat - dark < 1000.0 {
            continue;
        }
        let got = -((f64::from(raw.counts[[view, v, u]]) - dark) / (flat - dark)).ln();
        largest = largest.max((got - f64::from(p)).abs());
    }
    // Photon noise is 0.03 here; what differs is the noise of 64 averaged calibration frames (flat 0.0013; dark, 10 photons / 8
    // over 1353 photons: 0.0009) and rounding: five sigma of these.
    assert!(largest < 0.009, "{largest}");
}
