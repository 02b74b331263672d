//! What the optimisation does value by value, on volumes and on views: against plain loops in float64.

use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceSlice, DeviceSum, Launcher};
use diffnr::geometry::Detector;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, assert_sum, dot, download, joined, random, signed, split, unwritten, upload};

/// Of the largest value: up to six float32 roundings of 6e-8.
const VALUES: f32 = 4e-7;

/// Of a sum of products, or of their moduli where signs cancel: products and sums are in float64, and a sum travels as two floats, good to 1e-14.
const SUMS: f64 = 1e-12;

/// Counts about a thread's four, a block's 4096, and anything.
fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..9, 1020usize..1030, 4090usize..4100, 1usize..20_000]
}

fn sum(launcher: &dyn Launcher, values: usize) -> DeviceSum {
    DeviceSum::for_values(launcher, values).unwrap()
}

fn map(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64) -> Vec<f32> {
    a.iter().zip(b).map(|(&a, &b)| f(a.into(), b.into()) as f32).collect()
}

/// Values of which a third is 0.
fn with_zeros(mut values: Vec<f32>, seed: u64) -> Vec<f32> {
    let kept = random(values.len(), seed);
    values.iter_mut().zip(kept).for_each(|(value, kept)| *value *= f32::from(u8::from(kept > 0.33)));
    values
}

/// Runs `work` on uploads of `values` and returns the last of them.
fn last_of<const N: usize>(
    carrier: &Carrier,
    values: [&[f32]; N],
    work: impl Fn(&dyn Launcher, [DeviceSlice<f32>; N]),
) -> Vec<f32> {
    let run = |launcher: &dyn Launcher| {
        let slices = values.map(|values| upload(launcher, values));
        work(launcher, slices);
        vec![download(launcher, slices[N - 1])]
    };
    carrier.run(run).swap_remove(0)
}

fn assert_volumes(carrier: &Carrier, n: usize) {
    let (a, b, c) = (with_zeros(signed(n, 1), 11), with_zeros(signed(n, 2), 12), signed(n, 3));
    let none = vec![f32::NAN; n];
    let given = last_of(carrier, [&a, &b, &none], |l, [a, b, out]| cuda::subtract(l, a, b, out).unwrap());
    assert_close("subtract", VALUES, &given, &map(&a, &b, |a, b| a - b));

    let given = last_of(carrier, [&a, &c], |l, [a, c]| cuda::add_scaled(l, -0.7, a, c).unwrap());
    assert_close("add_scaled", VALUES, &given, &map(&a, &c, |a, c| c - f64::from(0.7f32) * a));

    let given = last_of(carrier, [&c], |l, [c]| cuda::scale(l, -1.7, c).unwrap());
    assert_close("scale", VALUES, &given, &map(&c, &c, |c, _| f64::from(-1.7f32) * c));

    let given = last_of(carrier, [&a, &c], |l, [a, c]| cuda::hold_at_zero(l, a, c).unwrap());
    let expected = map(&a, &c, |a, c| if a <= 0.0 && c > 0.0 { 0.0 } else { c });
    assert_eq!(given, expected, "hold_at_zero, {n}");
    assert!(n < 100 || given.iter().filter(|&&slope| slope == 0.0).count() > n / 5);

    let given = last_of(carrier, [&a, &b, &c], |l, [a, b, c]| cuda::add_modulus_gradient(l, 0.3, a, b, c).unwrap());
    let sign = |d: f64| if d == 0.0 { 0.0 } else { d.signum() };
    let signs = map(&a, &b, |a, b| f64::from(0.3f32) * sign(a - b));
    assert_close("add_modulus_gradient", VALUES, &given, &map(&signs, &c, |sign, c| c + sign));
    // Equal values, of which random ones have some where both are 0, change nothing.
    let equal: Vec<usize> = (0..n).filter(|&i| a[i] == b[i]).collect();
    assert!(n < 100 || equal.len() > n / 20);
    assert!(equal.iter().all(|&i| given[i] == c[i]));
}

fn assert_sums(carrier: &Carrier, n: usize) {
    let (a, b) = (signed(n, 1), random(n, 2));
    let mut spoilt = a.clone();
    for (i, value) in spoilt.iter_mut().enumerate() {
        *value = [f32::NAN, *value, f32::INFINITY, *value, f32::NEG_INFINITY, f32::MAX, -0.0][i % 7];
    }
    let sums = carrier.run(|launcher| {
        let (sum, [a, b, spoilt]) = (sum(launcher, n), [&a, &b, &spoilt].map(|values| upload(launcher, values)));
        let read = || split(sum.read(launcher).unwrap());
        cuda::dot(launcher, b, b, &sum).unwrap();
        let square = read();
        cuda::dot(launcher, a, b, &sum).unwrap();
        let product = read();
        cuda::count_not_finite(launcher, spoilt, &sum).unwrap();
        let bad = read();
        cuda::count_not_finite(launcher, a, &sum).unwrap();
        vec![square, product, bad, read()]
    });
    assert_sum("dot", SUMS, &sums[0], dot(&b, &b));
    // Signs cancel: held against the sum of moduli.
    let moduli: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a * b).abs()).sum();
    assert!((joined(&sums[1]) - dot(&a, &b)).abs() <= SUMS * moduli, "dot, {n}");
    assert_eq!(joined(&sums[2]), spoilt.iter().filter(|value| !value.is_finite()).count() as f64);
    assert_eq!(joined(&sums[3]), 0.0);
}

#[test]
fn volumes_are_as_in_plain_loops() {
    on_each("optimisation, volumes", |carrier| {
        proptest!(settings(10), |(n in counts())| {
            assert_volumes(carrier, n);
            assert_sums(carrier, n);
        });
    });
}

fn assert_weighted(carrier: &Carrier, n: usize) {
    let (weights, values, other) = (with_zeros(random(n, 1), 11), signed(n, 2), signed(n, 3));
    let none = vec![f32::NAN; n];
    let given = last_of(carrier, [&weights, &values, &none], |l, [w, g, out]| cuda::whiten(l, w, g, out).unwrap());
    assert_close("whiten", VALUES, &given, &map(&weights, &values, |w, g| if w > 0.0 { g / w.sqrt() } else { 0.0 }));

    let given = last_of(carrier, [&weights, &values, &none], |l, [w, v, out]| cuda::times_root(l, w, v, out).unwrap());
    let rooted = map(&weights, &values, |w, v| w.sqrt() * v);
    assert_close("times_root", VALUES, &given, &rooted);

    let (share, gain) = (0.3f32, 4.0f32);
    let given = last_of(carrier, [&weights, &values, &other], |l, [w, f, g]| {
        cuda::mix_sharpened(l, share, gain, w, f, g).unwrap();
    });
    let mixed =
        map(&rooted, &other, |rooted, g| (1.0 - f64::from(share)) * g + f64::from(share) * f64::from(gain) * rooted);
    assert_close("mix_sharpened", VALUES, &given, &mixed);

    // Where a weight is above 0 the projections may hold anything.
    let spoilt: Vec<f32> =
        values.iter().zip(&weights).map(|(&value, &w)| if w > 0.9 { f32::NAN } else { value }).collect();
    let held = carrier.run(|launcher| {
        let sum = sum(launcher, n);
        let [p, m, w] = [&spoilt, &other, &weights].map(|values| upload(launcher, values));
        cuda::held_back_squares(launcher, p, m, w, &sum).unwrap();
        vec![split(sum.read(launcher).unwrap())]
    });
    let squares = (0..n).filter(|&i| weights[i] == 0.0).map(|i| f64::from(values[i] - other[i]).powi(2));
    let total: f64 = squares.sum();
    if total > 0.0 {
        assert_sum("held_back_squares", SUMS, &held[0], total);
    } else {
        assert_eq!(held[0], [0.0, 0.0]);
    }
}

#[test]
fn weighted_views_are_as_in_plain_loops() {
    on_each("optimisation, weighted views", |carrier| {
        proptest!(settings(10), |(n in counts())| assert_weighted(carrier, n));
    });
}

/// In float64: what is taken is the difference to each neighbour that there is.
fn less_aperture(detector: Detector, [share_u, share_v]: [f32; 2], views: &[f32]) -> Vec<f32> {
    let Detector { columns, rows } = detector;
    let at = |view: usize, row: usize, column: usize| f64::from(views[(view * rows + row) * columns + column]);
    let mut out = Vec::with_capacity(views.len());
    for view in 0..views.len() / detector.pixels() {
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let here = at(view, row, column);
            let mut value = here;
            for beside in [row.wrapping_sub(1), row + 1].into_iter().filter(|&row| row < rows) {
                value -= f64::from(share_v) * (at(view, beside, column) - here);
            }
            for beside in [column.wrapping_sub(1), column + 1].into_iter().filter(|&column| column < columns) {
                value -= f64::from(share_u) * (at(view, row, beside) - here);
            }
            out.push(value as f32);
        }
    }
    out
}

fn assert_aperture(carrier: &Carrier, [views, rows, columns]: [usize; 3], shares: [f32; 2]) {
    let detector = Detector { columns, rows };
    let n = views * detector.pixels();
    let (values, other) = (signed(n, 1), signed(n, 2));
    let given = carrier.run(|launcher| {
        [&values, &other]
            .map(|values| {
                let out = unwritten(launcher, n);
                cuda::take_aperture(launcher, detector, shares, upload(launcher, values), out).unwrap();
                download(launcher, out)
            })
            .to_vec()
    });
    let what = format!("take_aperture, {views} x {rows} x {columns}");
    assert_close(&what, VALUES, &given[0], &less_aperture(detector, shares, &values));
    // Symmetric: a gradient goes back the same way. Each value is rounded; the products average out.
    let (forth, back) = (dot(&given[0], &other), dot(&values, &given[1]));
    let scale: f64 = given[0].iter().zip(&other).map(|(&a, &b)| f64::from(a * b).abs()).sum();
    assert!((forth - back).abs() <= 4e-7 * scale, "{what}: {forth}, {back}");
}

#[test]
fn the_aperture_is_taken_as_in_plain_loops() {
    on_each("take_aperture", |carrier| {
        // About a thread's four columns, a block's 128 x 8, single rows and columns.
        for size in [[1, 1, 1], [2, 1, 5], [2, 9, 1], [3, 8, 128], [2, 9, 129], [2, 7, 127], [1, 17, 258], [4, 2, 2]] {
            assert_aperture(carrier, size, [0.05, -0.03]);
        }
        proptest!(settings(16), |(
            size in (1usize..4, 1usize..20, 1usize..200), u in -0.1f32..0.1, v in -0.1f32..0.1,
        )| assert_aperture(carrier, size.into(), [u, v]));
    });
}

/// What all pixels see alike stays as it is, to the bit, borders included.
#[test]
fn the_aperture_of_even_views_changes_nothing() {
    on_each("take_aperture, even views", |carrier| {
        let (detector, views) = (Detector { columns: 131, rows: 9 }, vec![2.5; 2 * 131 * 9]);
        let given = last_of(carrier, [&views, &vec![f32::NAN; views.len()]], |launcher, [views, out]| {
            cuda::take_aperture(launcher, detector, [0.08, 0.07], views, out).unwrap();
        });
        assert_eq!(given, views);
    });
}

/// A part of a buffer need not begin at a multiple of 16 bytes; what lies beside it stays.
#[test]
fn parts_of_buffers_at_any_offset() {
    on_each("optimisation, parts of buffers", |carrier| {
        let (values, n) = (signed(3000, 1), 2 * 7 * 150);
        let detector = Detector { columns: 150, rows: 7 };
        for start in 0..5 {
            let given = carrier.run(|launcher| {
                let (whole, other) = (upload(launcher, &values), upload(launcher, &values[..n]));
                let part = whole.part(start..start + n).unwrap();
                cuda::take_aperture(launcher, detector, [0.05, 0.04], other, part).unwrap();
                cuda::add_scaled(launcher, 1.0, other, part).unwrap();
                vec![download(launcher, whole)]
            });
            let taken = less_aperture(detector, [0.05, 0.04], &values[..n]);
            let mut expected = values.clone();
            expected[start..start + n].copy_from_slice(&map(&taken, &values[..n], |a, b| a + b));
            assert_close("parts", VALUES, &given[0], &expected);
        }
    });
}

#[test]
fn not_a_number_stays() {
    on_each("optimisation, not a number", |carrier| {
        let (nan, bad) = (f32::NAN, [1.0, f32::NAN, -3.0]);
        let slopes = last_of(carrier, [&[0.0, nan, 0.0], &[1.0, 2.0, nan]], |l, [volume, gradient]| {
            cuda::hold_at_zero(l, volume, gradient).unwrap();
        });
        assert!(slopes[0] == 0.0 && slopes[1] == 2.0 && slopes[2].is_nan());
        let slopes = last_of(carrier, [&bad, &[0.0; 3], &[0.0; 3]], |l, [volume, reference, gradient]| {
            cuda::add_modulus_gradient(l, 2.0, volume, reference, gradient).unwrap();
        });
        assert!(slopes[0] == 2.0 && slopes[1].is_nan() && slopes[2] == -2.0);
        let white = last_of(carrier, [&[1.0, 1.0, 0.0], &[1.0, nan, nan], &[nan; 3]], |l, [weights, gradient, out]| {
            cuda::whiten(l, weights, gradient, out).unwrap();
        });
        assert!(white[0] == 1.0 && white[1].is_nan() && white[2] == 0.0);
        let sums = carrier.run(|launcher| {
            let (sum, bad) = (sum(launcher, 3), upload(launcher, &bad));
            cuda::dot(launcher, bad, bad, &sum).unwrap();
            vec![split(sum.read(launcher).unwrap())]
        });
        assert!(sums[0][0].is_nan());
    });
}

#[test]
fn nothing_is_nothing() {
    on_each("optimisation, no values", |carrier| {
        let detector = Detector { columns: 4, rows: 3 };
        let sums = carrier.run(|l| {
            let (none, sum) = (upload(l, &[]), sum(l, 0));
            let mut sums = Vec::new();
            cuda::subtract(l, none, none, none).unwrap();
            cuda::add_scaled(l, 1.0, none, none).unwrap();
            cuda::scale(l, 1.0, none).unwrap();
            cuda::hold_at_zero(l, none, none).unwrap();
            cuda::add_modulus_gradient(l, 1.0, none, none, none).unwrap();
            cuda::take_aperture(l, detector, [0.1; 2], none, none).unwrap();
            cuda::take_aperture(l, Detector { columns: 0, rows: 3 }, [0.1; 2], none, none).unwrap();
            cuda::whiten(l, none, none, none).unwrap();
            cuda::mix_sharpened(l, 1.0, 1.0, none, none, none).unwrap();
            cuda::times_root(l, none, none, none).unwrap();
            for launch in [cuda::dot, |l: &dyn Launcher, a, b, sum: &_| cuda::held_back_squares(l, a, b, b, sum)] {
                launch(l, none, none, &sum).unwrap();
                sums.push(split(sum.read(l).unwrap()));
            }
            cuda::count_not_finite(l, none, &sum).unwrap();
            sums.push(split(sum.read(l).unwrap()));
            sums
        });
        assert_eq!(sums, vec![vec![0.0; 2]; 3]);
    });
}
