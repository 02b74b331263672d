//! The losses: values and gradients of views and of volumes.

use diffnr::compute::ComputeError;
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda;
use diffnr::compute::cuda::{DeviceSlice, ImageLossSums, Launcher, VolumeSsimRoom};
use diffnr::compute::losses::{
    ImageLoss, ImageLossValue, LossCompute as _, LossWorkload, VolumeSsimLoss, VolumeSsimValue,
};
use diffnr::geometry::Detector;
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{assert_close, assert_sum, download, joined, random, signed, split, unwritten, upload};

/// Of the largest gradient. Variances are differences of means of squares: with values about 1, windows round at 1e-7, which the
/// variances of these values (0.01 to 0.1) feel as 1e-6 to 1e-5.
const GRADIENT: f32 = 1e-5;

/// Of the value: the same roundings, of which most cancel in the sum.
const VALUE: f64 = 1e-6;

/// The same, times so much, where planes have a pixel or few: their variances are little but roundings, 1e-7 next to C2 (9e-4).
const FEW_PIXELS: f32 = 40.0;

fn of_size(pixels: usize) -> f32 {
    if pixels < 12 { FEW_PIXELS } else { 1.0 }
}

/// Of a mean of moduli or squares: up to 16 of them are added in float32, a row of them on the CPU.
const POINTS: f64 = 2e-6;

/// Of the largest gradient of the pointwise parts: a handful of operations.
const POINT_GRADIENT: f32 = 1e-6;

/// Values about `level` with a pattern of their own, near enough to each other to look alike.
fn alike(len: usize, level: f32, seed: u64) -> Vec<f32> {
    random(len, seed).iter().enumerate().map(|(k, v)| level * (0.4 + 0.3 * (k as f32 * 0.37).sin() + 0.3 * v)).collect()
}

fn cpu(workload: LossWorkload) -> CpuCompute {
    let mut cpu = CpuCompute::new(1).unwrap();
    cpu.prepare_losses(&workload).unwrap();
    cpu
}

/// A view's loss on a carrier: gradient, then the three parts and the total.
fn image_on(
    carrier: &Carrier,
    detector: Detector,
    settings: &ImageLoss,
    [projections, measured]: [&[f32]; 2],
    weights: Option<&[f32]>,
) -> Vec<Vec<f32>> {
    let n = projections.len();
    carrier.run(|launcher| {
        let [p, m] = [projections, measured].map(|values| upload(launcher, values));
        let (w, by) = (weights.map(|weights| upload(launcher, weights)), unwritten(launcher, n));
        let sums = ImageLossSums::allocate(launcher, detector, n / detector.pixels()).unwrap();
        cuda::image_loss(launcher, detector, settings, p, m, w, by, &sums).unwrap();
        let ImageLossValue { total, l1, squares, dissimilarity } = sums.read(launcher, settings, n).unwrap();
        vec![download(launcher, by), split(l1), split(squares), split(dissimilarity), split(total)]
    })
}

fn assert_image(carrier: &Carrier, detector: Detector, views: usize, settings: &ImageLoss, weighted: bool) {
    let n = views * detector.pixels();
    let (projections, measured) = (alike(n, 2.0, 1), alike(n, 2.0, 2));
    let weights = weighted.then(|| random(n, 3));
    let weights = weights.as_deref();
    let Detector { columns, rows } = detector;
    let cpu = cpu(LossWorkload { columns, rows, views_per_call: views, voxels: [0; 3] });
    let mut expected = vec![f32::NAN; n];
    let value = cpu.image_loss(detector, settings, &projections, &measured, weights, &mut expected).unwrap();
    let given = image_on(carrier, detector, settings, [&projections, &measured], weights);
    let what = format!("{detector:?}, {views} views, {settings:?}");
    let similar = settings.dissimilarity > 0.0;
    let few = of_size(detector.pixels());
    assert_close(&what, if similar { GRADIENT * few } else { POINT_GRADIENT }, &given[0], &expected);
    let share = VALUE * f64::from(few);
    for (k, (expected, share)) in
        [(value.l1, POINTS), (value.squares, POINTS), (value.dissimilarity, share), (value.total, share)]
            .into_iter()
            .enumerate()
    {
        assert_sum_or_none(&what, share, &given[k + 1], expected);
    }
}

/// As [`assert_sum`]; a value that is exactly 0 is to be 0.
fn assert_sum_or_none(what: &str, share: f64, given: &[f32], expected: f64) {
    if expected == 0.0 {
        assert_eq!(joined(given), 0.0, "{what}");
    } else {
        assert_sum(what, share, given, expected);
    }
}

const SIMILARITY: ImageLoss = ImageLoss { l1: 0.0, huber: 0.0, squares: 0.0, dissimilarity: 1.0, data_range: 2.0 };

#[test]
fn images_are_as_on_the_cpu() {
    on_each("image_loss", |carrier| {
        // One pixel, smaller than the window, its size, a block's columns and one more, a third block, several bands.
        for (columns, rows) in
            [(1, 1), (1, 9), (9, 1), (5, 4), (11, 11), (160, 3), (161, 12), (170, 2), (301, 7), (3, 65), (16, 131)]
        {
            assert_image(carrier, Detector { columns, rows }, 1, &SIMILARITY, false);
        }
        let every = (0.1f32..2.0, prop_oneof![Just(0.0f32), 0.05f32..0.5], 0.1f32..2.0, 0.1f32..2.0, 1.0f32..3.0);
        proptest!(settings(16), |(
            (columns, rows) in (1usize..60, 1usize..50), views in 1usize..4, weighted: bool, parts in 1u8..8,
            (l1, huber, squares, dissimilarity, data_range) in every,
        )| {
            let taken = |part: u8, weight: f32| if parts >> part & 1 == 1 { weight } else { 0.0 };
            let settings = ImageLoss {
                l1: taken(0, l1), huber, squares: taken(1, squares), dissimilarity: taken(2, dissimilarity), data_range,
            };
            assert_image(carrier, Detector { columns, rows }, views, &settings, weighted);
        });
    });
}

/// Pixels about a block's 4096, and views of which rows do not begin at multiples of 16 bytes.
#[test]
fn pointwise_parts_of_many_pixels_are_as_on_the_cpu() {
    on_each("image_loss, pointwise", |carrier| {
        let settings = ImageLoss { l1: 1.0, huber: 0.1, squares: 0.5, dissimilarity: 0.0, data_range: 0.0 };
        for (columns, rows, views) in [(64, 64, 1), (241, 17, 1), (4097, 1, 1), (37, 29, 9)] {
            assert_image(carrier, Detector { columns, rows }, views, &settings, true);
            assert_image(carrier, Detector { columns, rows }, views, &settings, false);
        }
    });
}

/// What a volume's loss gives on a carrier: gradient, then the value's parts.
fn volume_on(
    carrier: &Carrier,
    voxels: [usize; 3],
    settings: &VolumeSsimLoss,
    [volume, reference, gradient]: [&[f32]; 3],
) -> (Vec<f32>, VolumeSsimValue) {
    let given = carrier.run(|launcher| {
        let [volume, reference, by] = [volume, reference, gradient].map(|values| upload(launcher, values));
        let room = VolumeSsimRoom::allocate(launcher, voxels).unwrap();
        // Twice into one room: nothing of the first may stay in it.
        let other = upload(launcher, &vec![0.0; volume.len()]);
        let all = VolumeSsimLoss { empty_at: -1e30, axes: [1.0; 3], ..*settings };
        cuda::volume_ssim_loss(launcher, voxels, &all, reference, volume, other, &room).unwrap();
        cuda::volume_ssim_loss(launcher, voxels, settings, volume, reference, by, &room).unwrap();
        let VolumeSsimValue { dissimilarity, by_axis: [x, y, z], slices } = room.read(launcher, settings).unwrap();
        let mut results = vec![download(launcher, by)];
        results.extend([dissimilarity, x, y, z].map(split));
        results.push(slices.map(|count| count as f32).to_vec());
        results
    });
    let value = VolumeSsimValue {
        dissimilarity: joined(&given[1]),
        by_axis: [joined(&given[2]), joined(&given[3]), joined(&given[4])],
        slices: [0, 1, 2].map(|axis| given[5][axis] as usize),
    };
    (given[0].clone(), value)
}

fn assert_volume(
    carrier: &Carrier,
    voxels: [usize; 3],
    settings: &VolumeSsimLoss,
    volume: &[f32],
    reference: &[f32],
) -> VolumeSsimValue {
    let cpu = cpu(LossWorkload { voxels, ..LossWorkload::default() });
    let n = volume.len();
    // Beside the gradient of 1e-3 and less of a mean, what is added to must be of that size, or it would hide all.
    let before: Vec<f32> = signed(n, 4).iter().map(|v| v * 0.1 / n as f32).collect();
    let mut expected = before.clone();
    let value = cpu.volume_ssim_loss(voxels, settings, volume, reference, &mut expected).unwrap();
    let (gradient, given) = volume_on(carrier, voxels, settings, [volume, reference, &before]);
    let what = format!("{voxels:?}, {settings:?}");
    let [x, y, z] = voxels;
    let few = of_size((x * y).min(y * z).min(x * z));
    let share = VALUE * f64::from(few);
    assert_close(&what, GRADIENT * few, &gradient, &expected);
    assert_eq!(given.slices, value.slices, "{what}");
    assert_sum_or_none(&what, share, &split(given.dissimilarity), value.dissimilarity);
    for axis in 0..3 {
        assert_sum_or_none(&what, share, &split(given.by_axis[axis]), value.by_axis[axis]);
    }
    given
}

const PLAIN: VolumeSsimLoss = VolumeSsimLoss { weight: 1.0, data_range: 1.0, empty_at: 0.0, axes: [1.0; 3] };

#[test]
fn volumes_are_as_on_the_cpu() {
    on_each("volume_ssim_loss", |carrier| {
        let both = |voxels: [usize; 3]| [1, 2].map(|seed| alike(voxels.iter().product(), 1.0, seed));
        // One voxel, lines, planes; smaller than the window; about the blocks of eight slices, 64 and 160 columns; bands.
        for voxels in [
            [1, 1, 1],
            [1, 1, 20],
            [1, 20, 1],
            [20, 1, 1],
            [11, 11, 11],
            [5, 6, 7],
            [12, 13, 8],
            [13, 12, 17],
            [3, 64, 9],
            [2, 65, 2],
            [4, 110, 3],
            [2, 3, 161],
            [2, 2, 330],
            [66, 2, 3],
            [3, 67, 30],
        ] {
            let [volume, reference] = both(voxels);
            assert_volume(carrier, voxels, &PLAIN, &volume, &reference);
        }
        for axis in 0..3 {
            let (voxels, mut axes) = ([13, 12, 17], [0.0; 3]);
            axes[axis] = 2.0;
            let [volume, reference] = both(voxels);
            assert_volume(carrier, voxels, &VolumeSsimLoss { axes, ..PLAIN }, &volume, &reference);
        }
        proptest!(settings(6), |(
            voxels in (1usize..22, 1usize..22, 1usize..22), weight in 0.1f32..3.0, data_range in 0.5f32..2.0,
            axes in prop::array::uniform3(prop_oneof![Just(0.0f32), 0.1f32..3.0]),
        )| {
            if axes != [0.0; 3] {
                let [volume, reference] = both(voxels.into());
                let settings = VolumeSsimLoss { weight, data_range, axes, ..PLAIN };
                assert_volume(carrier, voxels.into(), &settings, &volume, &reference);
            }
        });
    });
}

/// More columns than three blocks have, and more slices than a launch needs bands for.
#[test]
fn wide_slices_are_as_on_the_cpu() {
    on_each("volume_ssim_loss, wide", |carrier| {
        for voxels in [[2, 3, 450], [3, 160, 9], [70, 66, 2]] {
            let [volume, reference] = [1, 2].map(|seed| alike(voxels.iter().product(), 1.0, seed));
            assert_volume(carrier, voxels, &PLAIN, &volume, &reference);
        }
    });
}

type IsThere<'a> = &'a dyn Fn(usize, usize, usize) -> bool;

#[test]
fn empty_slices_are_left_out() {
    on_each("volume_ssim_loss, empty slices", |carrier| {
        let voxels = [14, 12, 19];
        let volume = alike(voxels.iter().product(), 1.0, 1);
        // A box within; then a single voxel, in a corner; then nothing at all.
        let within = |x: usize, y: usize, z: usize| (3..9).contains(&x) && (1..12).contains(&y) && z % 5 == 2;
        let corner = |x: usize, y: usize, z: usize| [x, y, z] == [13, 11, 18];
        let nothing = |_: usize, _: usize, _: usize| false;
        let taken: [(IsThere<'_>, [usize; 3]); 3] = [(&within, [6, 11, 4]), (&corner, [1; 3]), (&nothing, [0; 3])];
        for (is_there, slices) in taken {
            let mut reference = vec![0.5; volume.len()];
            for (i, value) in reference.iter_mut().enumerate() {
                if is_there(i / (12 * 19), i / 19 % 12, i % 19) {
                    *value = 0.9 + 0.1 * (i as f32).sin();
                }
            }
            let settings = VolumeSsimLoss { empty_at: 0.5, axes: [1.0, 2.0, 0.5], ..PLAIN };
            let value = assert_volume(carrier, voxels, &settings, &volume, &reference);
            assert_eq!(value.slices, slices);
        }
        // One axis has nothing to say: no slice of it is asked for.
        let reference = alike(volume.len(), 1.0, 2);
        let value =
            assert_volume(carrier, voxels, &VolumeSsimLoss { axes: [0.0, 1.0, 1.0], ..PLAIN }, &volume, &reference);
        assert_eq!(value.slices, [0, 12, 19]);
    });
}

#[test]
fn equal_planes_cost_nothing_and_pull_nowhere() {
    on_each("losses of equal planes", |carrier| {
        let (voxels, detector) = ([9, 10, 11], Detector { columns: 33, rows: 30 });
        let volume = alike(990, 1.0, 1);
        let (gradient, value) = volume_on(carrier, voxels, &PLAIN, [&volume, &volume, &vec![0.0; 990]]);
        assert_eq!((value.dissimilarity, gradient), (0.0, vec![0.0; 990]));
        let settings = ImageLoss { l1: 1.0, squares: 1.0, ..SIMILARITY };
        let given = image_on(carrier, detector, &settings, [&volume, &volume], None);
        assert!(given.iter().flatten().all(|&value| value == 0.0));
    });
}

/// The gradient is that of the value which the kernels themselves give.
#[test]
fn gradients_are_differences_of_the_value() {
    on_each("losses, differences", |carrier| {
        let voxels = [5, 7, 6];
        let n = 210;
        let (volume, reference) = (alike(n, 1.0, 1), alike(n, 1.0, 2));
        let settings = VolumeSsimLoss { weight: 0.7, axes: [1.0, 2.0, 3.0], ..PLAIN };
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let [a, b, by] = [&volume, &reference, &vec![0.0; n]].map(|values| upload(l, values));
        let room = VolumeSsimRoom::allocate(l, voxels).unwrap();
        let value = |volume: &[f32]| {
            a.copy_from(l, volume).unwrap();
            by.fill(l, 0.0).unwrap();
            cuda::volume_ssim_loss(l, voxels, &settings, a, b, by, &room).unwrap();
            room.read(l, &settings).unwrap().dissimilarity
        };
        value(&volume);
        assert_differences(&download(l, by), &volume, 0.7, value);

        let detector = Detector { columns: 14, rows: 15 };
        let settings = ImageLoss { l1: 0.3, huber: 10.0, squares: 0.4, dissimilarity: 0.8, data_range: 1.0 };
        let sums = ImageLossSums::allocate(l, detector, 1).unwrap();
        let value = |projections: &[f32]| {
            a.copy_from(l, projections).unwrap();
            cuda::image_loss(l, detector, &settings, a, b, None, by, &sums).unwrap();
            sums.read(l, &settings, n).unwrap().total
        };
        value(&volume);
        assert_differences(&download(l, by), &volume, 1.0, value);
    });
}

/// Central differences with steps of 1e-2: their own error is some 1e-4 of the largest, and float32 values leave as much.
fn assert_differences(gradient: &[f32], at: &[f32], weight: f64, value: impl Fn(&[f32]) -> f64) {
    let places: Vec<usize> = (0..at.len()).step_by(11).chain([0, 1, at.len() - 1]).collect();
    let differences: Vec<f32> = places
        .iter()
        .map(|&place| {
            let [above, below] = [1e-2, -1e-2].map(|step| {
                let mut moved = at.to_vec();
                moved[place] += step;
                value(&moved)
            });
            (weight * (above - below) / 2e-2) as f32
        })
        .collect();
    let gradient: Vec<f32> = places.iter().map(|&place| gradient[place]).collect();
    assert_close("differences", 2e-3, &gradient, &differences);
}

#[test]
fn not_a_number_shows_in_the_value() {
    on_each("losses, not a number", |carrier| {
        let mut volume = alike(8 * 9 * 10, 1.0, 1);
        let reference = alike(volume.len(), 1.0, 2);
        volume[333] = f32::NAN;
        let zeros = vec![0.0; volume.len()];
        let (_, value) = volume_on(carrier, [8, 9, 10], &PLAIN, [&volume, &reference, &zeros]);
        assert!(value.dissimilarity.is_nan());
        let given = image_on(carrier, Detector { columns: 24, rows: 30 }, &SIMILARITY, [&volume, &reference], None);
        assert!(given[3][0].is_nan());
    });
}

#[test]
fn losses_of_nothing() {
    on_each("losses of nothing", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let none = upload(l, &[]);
        let room = VolumeSsimRoom::allocate(l, [3, 0, 4]).unwrap();
        cuda::volume_ssim_loss(l, [3, 0, 4], &PLAIN, none, none, none, &room).unwrap();
        assert_eq!(room.read(l, &PLAIN).unwrap(), VolumeSsimValue::default());
        let detector = Detector { columns: 3, rows: 4 };
        let sums = ImageLossSums::allocate(l, detector, 0).unwrap();
        cuda::image_loss(l, detector, &SIMILARITY, none, none, None, none, &sums).unwrap();
        assert_eq!(sums.read(l, &SIMILARITY, 0).unwrap(), ImageLossValue::default());
        assert!(VolumeSsimRoom::bytes([256; 3]) < 1 << 16 && ImageLossSums::bytes(detector, 1) < 100);
    });
}

fn new(launcher: &dyn Launcher, len: usize) -> DeviceSlice<f32> {
    upload(launcher, &vec![0.0; len])
}

#[track_caller]
fn refused(result: Result<(), ComputeError>, expected: &str) {
    match result {
        Err(ComputeError::Shape { buffer: name, .. } | ComputeError::Value { parameter: name, .. }) => {
            assert_eq!(name, expected);
        }
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn wrong_lengths_and_settings_are_refused() {
    on_each("refusals of the losses", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let [a, b, c] = [60; 3].map(|len| new(l, len));
        let short = new(l, 59);
        let room = VolumeSsimRoom::allocate(l, [3, 4, 5]).unwrap();
        let volume = |settings: VolumeSsimLoss, a, b, c, room: &VolumeSsimRoom| {
            cuda::volume_ssim_loss(l, [3, 4, 5], &settings, a, b, c, room)
        };
        volume(PLAIN, a, b, c, &room).unwrap();
        refused(volume(PLAIN, short, b, c, &room), "volume");
        refused(volume(PLAIN, a, short, c, &room), "reference");
        refused(volume(PLAIN, a, b, short, &room), "by_volume");
        refused(volume(PLAIN, a, b, c, &VolumeSsimRoom::allocate(l, [4, 3, 5]).unwrap()), "room");
        refused(volume(VolumeSsimLoss { weight: -1.0, ..PLAIN }, a, b, c, &room), "weight");
        refused(volume(VolumeSsimLoss { data_range: 0.0, ..PLAIN }, a, b, c, &room), "data_range");
        refused(volume(VolumeSsimLoss { data_range: f32::NAN, ..PLAIN }, a, b, c, &room), "data_range");
        refused(volume(VolumeSsimLoss { empty_at: f32::NAN, ..PLAIN }, a, b, c, &room), "empty_at");
        refused(volume(VolumeSsimLoss { axes: [0.0; 3], ..PLAIN }, a, b, c, &room), "axes");
        refused(volume(VolumeSsimLoss { axes: [1.0, -1.0, 1.0], ..PLAIN }, a, b, c, &room), "axes");
        assert!(volume(PLAIN, a, b, b, &room).is_err(), "overlapping buffers");

        let detector = Detector { columns: 5, rows: 4 };
        let sums = ImageLossSums::allocate(l, detector, 3).unwrap();
        let image = |settings: ImageLoss, a, b, w, c, sums: &ImageLossSums| {
            cuda::image_loss(l, detector, &settings, a, b, w, c, sums)
        };
        image(SIMILARITY, a, b, Some(b), c, &sums).unwrap();
        refused(image(SIMILARITY, short, b, None, c, &sums), "projections");
        refused(image(SIMILARITY, a, short, None, c, &sums), "measured");
        refused(image(SIMILARITY, a, b, Some(short), c, &sums), "weights");
        refused(image(SIMILARITY, a, b, None, short, &sums), "by_projections");
        refused(image(SIMILARITY, a, b, None, c, &ImageLossSums::allocate(l, detector, 1).unwrap()), "sum");
        refused(image(ImageLoss { l1: -1.0, ..SIMILARITY }, a, b, None, c, &sums), "l1");
        refused(image(ImageLoss { huber: f32::INFINITY, ..SIMILARITY }, a, b, None, c, &sums), "huber");
        refused(image(ImageLoss { squares: f32::NAN, ..SIMILARITY }, a, b, None, c, &sums), "squares");
        refused(image(ImageLoss { dissimilarity: -0.1, ..SIMILARITY }, a, b, None, c, &sums), "dissimilarity");
        refused(image(ImageLoss { data_range: 0.0, ..SIMILARITY }, a, b, None, c, &sums), "data_range");
    });
}
