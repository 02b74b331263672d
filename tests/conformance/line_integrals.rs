//! Counts to line integrals: the CPU's bits, whatever the counts, and its number of clamped pixels.

use diffnr::compute::counts::{BadPixel, Correction, CountsCompute as _, MOST_NEIGHBOURS};
use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda::{self, CountsRoom, DeviceCorrection, DeviceSlice, Launcher};
use diffnr::compute::{ComputeError, Left, Memory as _, Operations, Values, ValuesMut};
use diffnr::config::{Calibration, PreprocessSettings};
use diffnr::daemon::ScanStore;
use diffnr::geometry::{CircularOrbit, Detector};
use diffnr::preprocess::{CalibrationOnCarrier, Preprocessor};
use proptest::prelude::*;

use crate::carriers::{Carrier, on_each};
use crate::scans::settings;
use crate::values::{download, random, unwritten, upload};

/// A frame and what corrects it.
#[derive(Clone)]
struct Frame {
    counts: Vec<u16>,
    dark: Vec<f32>,
    gain: Vec<f32>,
    scale: f32,
    min_transmission: f32,
    bad_pixels: Vec<BadPixel>,
}

impl Frame {
    /// Every pixel with its own offset and gain; dark stands above the counts here and there, and some pixels are dead.
    fn random(pixels: usize, seed: u64) -> Self {
        let counts = random(pixels, seed).into_iter().map(|share| (65_535.9 * share * share) as u16).collect();
        let dark = random(pixels, seed + 1).into_iter().map(|share| 80.0 + 40.0 * share).collect();
        let gain = random(pixels, seed + 2).into_iter();
        let gain = gain.map(|share| if share < 0.02 { 0.0 } else { (40_000.0 + 9000.0 * share).recip() }).collect();
        Self { counts, dark, gain, scale: 1.25, min_transmission: 1e-4, bad_pixels: Vec::new() }
    }

    /// All pixels alike, but for their counts.
    fn even(counts: Vec<u16>, scale: f32) -> Self {
        let pixels = counts.len();
        let (dark, gain) = (vec![0.0; pixels], vec![1.0; pixels]);
        Self { counts, dark, gain, scale, min_transmission: 1e-4, bad_pixels: Vec::new() }
    }

    /// Every `step`-th pixel is bad, replaced by one to eight of those about it.
    fn with_bad_pixels(mut self, step: usize) -> Self {
        let pixels = self.counts.len();
        let good = |pixel: &usize| !pixel.is_multiple_of(step);
        for index in (0..pixels).step_by(step) {
            let beside = (index.saturating_sub(40)..(index + 40).min(pixels)).filter(good);
            let mut pixel = BadPixel { index: index as u32, ..BadPixel::default() };
            for neighbour in beside.take(1 + index / step % MOST_NEIGHBOURS) {
                pixel.neighbours[pixel.count as usize] = neighbour as u32;
                pixel.count += 1;
            }
            if pixel.count > 0 {
                self.bad_pixels.push(pixel);
            }
        }
        self
    }

    fn correction(&self) -> Correction<'_> {
        Correction {
            dark: (&self.dark).into(),
            gain: (&self.gain).into(),
            scale: self.scale,
            min_transmission: self.min_transmission,
            bad_pixels: Values::Host(BadPixel::floats(&self.bad_pixels)),
        }
    }

    /// Line integrals by the CPU, and how many met the clamp.
    fn expected(&self) -> [Vec<f32>; 2] {
        let mut out = vec![f32::NAN; self.counts.len()];
        let cpu = CpuCompute::new(1).unwrap();
        match cpu.line_integrals(&self.correction(), &self.counts, ValuesMut::Host(&mut out)).unwrap() {
            Left::AtHand(clamped) => [out, vec![clamped as f32]],
            Left::WithCarrier => panic!("the CPU has it at once"),
        }
    }

    fn on_device(&self, launcher: &dyn Launcher) -> DeviceCorrection {
        DeviceCorrection {
            dark: upload(launcher, &self.dark),
            gain: upload(launcher, &self.gain),
            bad_pixels: upload(launcher, BadPixel::floats(&self.bad_pixels)),
            scale: self.scale,
            min_transmission: self.min_transmission,
        }
    }

    /// Line integrals on a device, and how many met the clamp.
    fn made(&self, launcher: &dyn Launcher, room: &CountsRoom) -> [Vec<f32>; 2] {
        let out = unwritten(launcher, self.counts.len());
        cuda::line_integrals(launcher, &self.on_device(launcher), &self.counts, out, room).unwrap();
        let clamped = room.clamped(launcher).unwrap();
        [download(launcher, out), vec![clamped as f32]]
    }
}

#[track_caller]
fn assert_same(given: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(given.len(), expected.len());
    for (given, expected) in given.iter().zip(expected) {
        assert_eq!(given.len(), expected.len());
        let differs = given.iter().zip(expected).position(|(given, expected)| given.to_bits() != expected.to_bits());
        let at = differs.unwrap_or(0);
        assert!(differs.is_none(), "at {at} of {}: {:?}, expected {:?}", given.len(), given.get(at), expected.get(at));
    }
}

fn assert_as_on_the_cpu(carrier: &Carrier, frame: &Frame) {
    let given = carrier.run(|launcher| {
        let room = CountsRoom::allocate(launcher, frame.counts.len()).unwrap();
        frame.made(launcher, &room).to_vec()
    });
    assert_same(&given, &frame.expected());
}

#[test]
fn counts_become_line_integrals_with_the_cpus_bits() {
    // About a thread's four, a block's 1024, and anything.
    let sizes = prop_oneof![0usize..9, 1020usize..1030, 1usize..20_000];
    on_each("line integrals", |carrier| {
        proptest!(settings(16), |(n in sizes.clone(), seed in 0u64..1000, step in 2usize..40)| {
            let frame = Frame::random(n, seed);
            assert_as_on_the_cpu(carrier, &frame);
            assert_as_on_the_cpu(carrier, &frame.with_bad_pixels(step));
        });
    });
}

/// All 65536 counts, at transmissions from far below the clamp to far above 1: the logarithm over its range.
#[test]
fn every_count_at_every_scale() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    on_each("line integrals, every count", |carrier| {
        for scale in [1e-9, 3.7e-5, 1.0 / 65_535.0, 0.1] {
            for min_transmission in [1e-9, 1e-4, 1.0] {
                assert_as_on_the_cpu(carrier, &Frame { min_transmission, ..Frame::even(all.clone(), scale) });
            }
        }
    });
}

/// The logarithm parts a number at the root of 1/2: just there, and at other mantissas, for all exponents.
#[test]
fn transmissions_about_the_breaks_of_the_logarithm() {
    let around = |bits: u32| (bits - 2..bits + 3).map(f32::from_bits);
    let mantissas = [0x35_04f3, 0x10, 0x7f_fff0, 0x40_0000, 0x12_3456];
    // Of these a last bit changes where a product and a sum of the series are joined.
    let series = [0x3ab6_f4ca, 0x3e35_64f8, 0x3eb7_19d1, 0x3532_1d96, 0x3532_a9d3, 0x35bc_96cf].map(f32::from_bits);
    let mut gain: Vec<f32> =
        (1..255u32).flat_map(|exponent| mantissas.map(|mantissa| exponent << 23 | mantissa)).flat_map(around).collect();
    gain.extend(series);
    on_each("line integrals, breaks of the logarithm", |carrier| {
        let even = Frame::even(vec![1; gain.len()], 1.0);
        assert_as_on_the_cpu(carrier, &Frame { gain: gain.clone(), min_transmission: 1e-44, ..even });
    });
}

#[test]
fn what_no_detector_should_send() {
    on_each("line integrals, extremes", |carrier| {
        let counts = vec![0, 1, 100, 101, 32_768, 65_534, 65_535];
        let n = counts.len();
        let frame = Frame { dark: vec![100.0; n], ..Frame::even(counts, 1.0 / 40_000.0) };
        // Infinite and tiny exposures, and no number: 0 * infinity.
        for scale in [f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 0.0, f32::NAN] {
            assert_as_on_the_cpu(carrier, &Frame { scale, ..frame.clone() });
        }
        for image in [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -3.0, 1e-40] {
            assert_as_on_the_cpu(carrier, &Frame { gain: vec![image; n], ..frame.clone() });
            assert_as_on_the_cpu(carrier, &Frame { dark: vec![image; n], ..frame.clone() });
        }
        assert_as_on_the_cpu(carrier, &Frame { min_transmission: 1e-45, ..frame.clone() });
        // All of more than a block.
        let clamped = Frame { dark: vec![65_536.0; 3000], ..Frame::even(vec![65_535; 3000], 1.0) };
        assert_eq!(clamped.expected()[1], [3000.0]);
        assert_as_on_the_cpu(carrier, &clamped);
        // Just at the clamp is not below it.
        let at = Frame { min_transmission: 0.5, ..Frame::even(vec![1, 2, 3], 0.25) };
        assert_eq!(at.expected()[1], [1.0]);
        assert_as_on_the_cpu(carrier, &at);
    });
}

/// A transmission of just 1 is -0, and so is the mean of such pixels.
#[test]
fn bad_pixels_at_corners_in_a_full_list_and_of_negative_zeros() {
    on_each("line integrals, bad pixels", |carrier| {
        // Every other pixel; 600 are more than nine blocks of them.
        let full = Frame::random(1200, 7).with_bad_pixels(2);
        assert_eq!(full.bad_pixels.len(), 600);
        assert_as_on_the_cpu(carrier, &full);

        let mut frame = Frame::random(12, 8);
        let bad = |index, neighbours: &[u32]| {
            // What stands beyond the count is nobody's.
            let count = neighbours.len() as u32;
            let mut pixel = BadPixel { index, count, neighbours: [u32::MAX; MOST_NEIGHBOURS] };
            pixel.neighbours[..neighbours.len()].copy_from_slice(neighbours);
            pixel
        };
        frame.bad_pixels =
            vec![bad(0, &[1, 4, 5]), bad(11, &[10, 7, 6]), bad(3, &[2]), bad(8, &[1, 2, 4, 5, 6, 7, 9, 10])];
        assert_as_on_the_cpu(carrier, &frame);
        // The order of a sum matters.
        frame.counts = vec![1, 60_000, 3, 7, 65_535, 2, 900, 40_000, 5, 12, 33_333, 0];
        (frame.dark, frame.gain) = (vec![0.0; 12], vec![1.0; 12]);
        for scale in [1e-5, 1e-3, 10.0] {
            assert_as_on_the_cpu(carrier, &Frame { scale, ..frame.clone() });
        }
        let zeros = Frame { bad_pixels: frame.bad_pixels.clone(), ..Frame::even(vec![4; 12], 0.25) };
        assert!(zeros.expected()[0].iter().all(|p| p.to_bits() == (-0.0f32).to_bits()));
        assert_as_on_the_cpu(carrier, &zeros);

        // Beyond the frame: left alone, and the others are replaced.
        let given = carrier.run(|launcher| {
            let room = CountsRoom::allocate(launcher, 12).unwrap();
            let beyond = vec![bad(12, &[1]), bad(u32::MAX, &[1]), bad(0, &[12, 1]), bad(5, &[u32::MAX]), bad(3, &[2])];
            let many = BadPixel { count: 9, ..bad(6, &[1]) };
            let frame = Frame { bad_pixels: [beyond, vec![many]].concat(), ..frame.clone() };
            frame.made(launcher, &room).to_vec()
        });
        assert_same(&given, &Frame { bad_pixels: vec![bad(3, &[2])], ..frame }.expected());
    });
}

/// Frames of several sizes, one after the other, in one room: nothing of one shows in the next.
#[test]
fn one_room_serves_frame_after_frame() {
    on_each("line integrals, frame after frame", |carrier| {
        let frames = [(2000, 1), (5, 2), (0, 3), (1999, 4), (2000, 5)].map(|(n, seed)| Frame::random(n, seed));
        let given = carrier.run(|launcher| {
            let room = CountsRoom::allocate(launcher, 2000).unwrap();
            assert_eq!((room.clamped(launcher).unwrap(), room.pixels()), (0, 2000));
            frames.iter().flat_map(|frame| frame.made(launcher, &room)).collect()
        });
        let expected: Vec<Vec<f32>> = frames.iter().flat_map(Frame::expected).collect();
        assert!(expected[1][0] > 0.0 && expected[5][0] == 0.0);
        assert_same(&given, &expected);
    });
}

/// Parts of buffers need not begin at a multiple of 16 bytes, and nothing is written beside them.
#[test]
fn images_at_any_offset() {
    on_each("line integrals, parts of buffers", |carrier| {
        for start in 0..5 {
            let frame = Frame::random(1500 - start, 20).with_bad_pixels(11);
            let n = frame.counts.len();
            let given = carrier.run(|launcher| {
                let part = |values: &[f32]| {
                    let whole = upload(launcher, &[&vec![f32::NAN; start], values].concat());
                    whole.part(start..start + n).unwrap()
                };
                let correction = frame.on_device(launcher);
                let correction = DeviceCorrection { dark: part(&frame.dark), gain: part(&frame.gain), ..correction };
                let whole = upload(launcher, &vec![-7.0; n + 9]);
                let room = CountsRoom::allocate(launcher, n).unwrap();
                let out = whole.part(start..start + n).unwrap();
                cuda::line_integrals(launcher, &correction, &frame.counts, out, &room).unwrap();
                vec![download(launcher, whole)]
            });
            let [made, _] = frame.expected();
            assert_same(&given, &[[vec![-7.0; start], made, vec![-7.0; 9 - start]].concat()]);
        }
    });
}

/// The whole carrier: buffers of its own, the number left with it until it is asked for.
#[test]
fn the_carrier_keeps_the_number_of_clamped_pixels() {
    on_each("line integrals, the whole carrier", |carrier| {
        let frame = Frame::random(3000, 30).with_bad_pixels(17);
        let given = carrier.run_whole(|compute| {
            let mut out = compute.buffer("line integrals", 3000).unwrap();
            let [dark, gain, bad_pixels] = [&frame.dark[..], &frame.gain, BadPixel::floats(&frame.bad_pixels)]
                .map(|values| compute.filled("calibration", values).unwrap());
            let calibration = Correction {
                dark: dark.values(),
                gain: gain.values(),
                bad_pixels: bad_pixels.values(),
                ..frame.correction()
            };
            let too_early = compute.line_integrals(&calibration, &frame.counts, out.values_mut()).unwrap_err();
            assert!(matches!(too_early, ComputeError::Scratch { prepared: 0, .. }), "{too_early}");
            assert!(compute.clamped_left().is_err());
            compute.prepare_counts(2999).unwrap();
            let too_many = compute.line_integrals(&calibration, &frame.counts, out.values_mut()).unwrap_err();
            assert!(matches!(too_many, ComputeError::Scratch { .. }), "{too_many}");
            compute.prepare_counts(3000).unwrap();
            assert_eq!(compute.counts_scratch_bytes(3000), 2 * 3000 + 4);
            let elsewhere = compute.line_integrals(&frame.correction(), &frame.counts, out.values_mut()).unwrap_err();
            assert!(elsewhere.to_string().contains("another carrier"), "{elsewhere}");
            let left = compute.line_integrals(&calibration, &frame.counts, out.values_mut()).unwrap();
            assert_eq!(left, Left::WithCarrier);
            let clamped = compute.clamped_left().unwrap();
            assert_eq!(compute.clamped_left().unwrap(), clamped);
            vec![compute.take(out).unwrap(), vec![clamped as f32]]
        });
        assert_same(&given, &frame.expected());
    });
}

/// Frames of a preprocessor whose calibration changes between them, and its counters; a refused one leaves the buffer as it is.
fn preprocessed(compute: &mut dyn Operations) -> Vec<Vec<f32>> {
    let detector = Detector { columns: 20, rows: 10 };
    let settings = PreprocessSettings {
        i0_counts: None,
        dark: Calibration::Ring,
        flat: Calibration::Ring,
        dead_below: 0.2,
        hot_above: 0.3,
        max_bad_fraction: 0.1,
        min_transmission: 1e-3,
    };
    let on_carrier = CalibrationOnCarrier::take(compute, &settings, detector).unwrap();
    let mut preprocessor = Preprocessor::new(&settings, detector, [None, None], on_carrier).unwrap();
    let mut out = compute.filled("line integrals", &vec![-7.0; detector.pixels()]).unwrap();
    let mut made = Vec::new();
    let frame: Vec<u16> = (0..200).map(|i| (150 * i * i % 30_011) as u16).collect();
    // Refused without flat images, then three calibrations of other bad pixels, or none, then one that is refused and leaves none.
    for (calibration, bad) in [&[][..], &[3, 4, 25, 199], &[], &[0], &[3; 25]].into_iter().enumerate() {
        if calibration > 0 {
            let dark: Vec<u16> = (0..200).map(|i| (100 * calibration + i % 7) as u16).collect();
            let mut flat: Vec<u16> = dark.iter().map(|dark| dark + 20_000).collect();
            bad.iter().enumerate().for_each(|(i, &at)| flat[if bad.len() > 20 { i } else { at }] = 0);
            preprocessor.add_dark(&dark);
            preprocessor.add_flat(&flat, 1.0).unwrap();
            assert_eq!(preprocessor.finish_calibration().is_err(), bad.len() > 20);
        }
        for (exposure, i0) in [(0.0, 20_000.0), (1.0, 0.0), (0.8, 0.0), (1.0, 15_000.0)] {
            let refused = preprocessor.counts(compute, &frame, exposure, i0, out.values_mut()).is_err();
            assert_eq!(refused, exposure == 0.0 || i0 == 0.0 && (calibration == 0 || bad.len() > 20));
            preprocessor.finish_frame(compute).unwrap();
            let mut values = vec![0.0; detector.pixels()];
            compute.read(out.values(), &mut values).unwrap();
            let counters = preprocessor.counters();
            let counts = [counters.frames, counters.refused, counters.clamped_pixels, counters.replaced_pixels];
            made.extend([values, counts.map(|count| count as f32).to_vec()]);
        }
    }
    made
}

#[test]
fn a_preprocessor_brings_each_calibration_to_the_carrier() {
    on_each("line integrals of a preprocessor", |carrier| {
        let expected = preprocessed(&mut CpuCompute::new(1).unwrap());
        assert_eq!(expected[0], vec![-7.0; 200], "nothing was asked of the carrier");
        let [.., last] = &expected[..] else { panic!() };
        // Refused: four of each calibration's that have no exposure, three that have no flat; clamped: some; replaced: two frames of four, and of one.
        assert_eq!((last[0], last[1], last[3]), (11.0, 9.0, 3.0 * 4.0 + 3.0));
        assert!(last[2] > 10.0, "{last:?}");
        assert_same(&carrier.run_whole(|compute| preprocessed(compute)), &expected);
    });
}

/// What the optimisation gets of a frame whose line integrals lie on the device.
#[test]
fn a_scan_is_kept_on_the_host() {
    let detector = Detector { columns: 7, rows: 5 };
    let orbit = CircularOrbit { detector, ..CircularOrbit::default() };
    let geometry = orbit.over_arc(3, 0.0, std::f64::consts::TAU);
    let view = random(detector.pixels(), 40);
    on_each("views of a scan", |carrier| {
        let given = carrier.run_whole(|compute| {
            let mut scan = ScanStore::new(&geometry);
            let on_device = compute.filled("view", &view).unwrap();
            scan.add(compute, 1, &geometry.views[1], on_device.values()).unwrap();
            scan.add(compute, 2, &geometry.views[2], (&view[..]).into()).unwrap();
            assert_eq!(scan.views().present, Some(&[false, true, true][..]));
            vec![scan.views().line_integrals.to_vec()]
        });
        assert_same(&given, &[[&vec![0.0; 35][..], &view, &view].concat()]);
    });
}

#[test]
fn lengths_that_do_not_go_together_are_refused_by_name() {
    let refused = |result: Result<(), ComputeError>, the_buffer: &str| match result {
        Err(ComputeError::Shape { operation: "line_integrals", buffer, .. }) => assert_eq!(buffer, the_buffer),
        other => panic!("{the_buffer}: {other:?}"),
    };
    let (counts, short) = ([7u16; 20], vec![0.5; 19]);
    let frame = Frame::even(counts.to_vec(), 0.1);
    let cpu = CpuCompute::new(1).unwrap();
    let by_cpu = |correction: Correction<'_>, counts: &[u16]| {
        let mut out = vec![0.0; 20];
        cpu.line_integrals(&correction, counts, ValuesMut::Host(&mut out)).map(drop)
    };
    by_cpu(frame.correction(), &counts).unwrap();
    refused(by_cpu(frame.correction(), &counts[1..]), "counts");
    refused(by_cpu(Correction { dark: (&short).into(), ..frame.correction() }, &counts), "dark");
    refused(by_cpu(Correction { gain: (&short).into(), ..frame.correction() }, &counts), "gain");
    refused(by_cpu(Correction { bad_pixels: (&short).into(), ..frame.correction() }, &counts), "bad_pixels");
    on_each("refusals of line integrals", |carrier| {
        let launcher = carrier.launcher();
        let l = launcher.as_ref();
        let (correction, short) = (frame.on_device(l), upload(l, &short));
        let room = CountsRoom::allocate(l, 20).unwrap();
        let out: DeviceSlice<f32> = DeviceSlice::allocate(l, 20).unwrap();
        let made = |correction, counts: &[u16]| cuda::line_integrals(l, &correction, counts, out, &room);
        made(correction, &counts).unwrap();
        refused(made(correction, &counts[1..]), "counts");
        refused(made(DeviceCorrection { dark: short, ..correction }, &counts), "dark");
        refused(made(DeviceCorrection { gain: short, ..correction }, &counts), "gain");
        refused(made(DeviceCorrection { bad_pixels: short, ..correction }, &counts), "bad_pixels");
        let in_place = made(DeviceCorrection { dark: out, ..correction }, &counts).unwrap_err().to_string();
        assert!(in_place.contains("overlaps"), "{in_place}");
    });
}
