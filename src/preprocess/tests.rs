#![allow(clippy::unwrap_used)]

use std::ops::{Deref, DerefMut};

use super::*;
use crate::compute::cpu::CpuCompute;
use crate::config::Calibration;

const DETECTOR: Detector = Detector { columns: 20, rows: 10 };

fn settings() -> PreprocessSettings {
    PreprocessSettings {
        i0_counts: None,
        dark: Calibration::Ring,
        flat: Calibration::Ring,
        dead_below: 0.2,
        hot_above: 0.3,
        max_bad_fraction: 0.1,
        min_transmission: 1e-4,
    }
}

/// A preprocessor whose frames the CPU works on.
struct OnCpu {
    preprocessor: Preprocessor,
    compute: CpuCompute,
}

impl OnCpu {
    fn new(settings: &PreprocessSettings, files: [Option<Vec<f32>>; 2]) -> Result<Self, PreprocessError> {
        let mut compute = CpuCompute::new(1).unwrap();
        let on_carrier = CalibrationOnCarrier::take(&mut compute, settings, DETECTOR).unwrap();
        Ok(Self { preprocessor: Preprocessor::new(settings, DETECTOR, files, on_carrier)?, compute })
    }

    fn counts(&mut self, counts: &[u16], exposure: f32, i0: f32, out: &mut [f32]) -> Result<(), PreprocessError> {
        match self.preprocessor.counts(&self.compute, counts, exposure, i0, ValuesMut::Host(out)) {
            Ok(()) => Ok(()),
            Err(CountsError::Refused(why)) => Err(why),
            Err(CountsError::Compute(error)) => panic!("{error}"),
        }
    }
}

impl Deref for OnCpu {
    type Target = Preprocessor;
    fn deref(&self) -> &Preprocessor {
        &self.preprocessor
    }
}

impl DerefMut for OnCpu {
    fn deref_mut(&mut self) -> &mut Preprocessor {
        &mut self.preprocessor
    }
}

fn preprocessor() -> OnCpu {
    OnCpu::new(&settings(), [None, None]).unwrap()
}

/// Dark 100 + column, flat 40000 + 100 row: every pixel has its own offset and gain.
fn dark() -> Vec<u16> {
    (0..200).map(|i| 100 + (i % 20) as u16).collect()
}
fn flat() -> Vec<u16> {
    (0..200).map(|i| 40_000 + 100 * (i / 20) as u16).collect()
}

/// Counts of line integral `p` at exposure `e`, by the definition in double precision.
fn counts(p: f64, e: f64) -> Vec<u16> {
    let expose = |(d, f): (u16, u16)| f64::from(d) + e * f64::from(f - d) * (-p).exp();
    dark().into_iter().zip(flat()).map(|pair| expose(pair).round() as u16).collect()
}

#[test]
fn counts_become_the_line_integral_whatever_dark_gain_and_exposure() {
    let mut preprocessor = preprocessor();
    preprocessor.add_dark(&dark());
    preprocessor.add_flat(&flat(), 1.0).unwrap();
    let report = preprocessor.finish_calibration().unwrap().unwrap();
    assert_eq!((report.dark_frames, report.flat_frames, report.bad_pixels), (1, 1, 0));
    assert!(preprocessor.finish_calibration().unwrap().is_none(), "nothing new to finish");
    let mut out = vec![0.0; 200];
    for (p, exposure) in [(0.0, 1.0), (1.3, 1.0), (3.0, 1.0), (1.3, 0.5), (0.7, 1.2)] {
        preprocessor.counts(&counts(p, exposure), exposure as f32, 0.0, &mut out).unwrap();
        // Rounding to whole counts: half a count of at least exposure * 40000 exp(-p).
        let tolerance = 0.5 / (exposure * 39_000.0 * (-p).exp()) + 1e-5;
        for value in &out {
            assert!((f64::from(*value) - p).abs() <= tolerance, "{p} {exposure}: {value}");
        }
    }
}

#[test]
fn calibration_frames_are_averaged_and_a_new_series_starts_anew() {
    let mut preprocessor = preprocessor();
    for offset in [0u16, 10] {
        let frame: Vec<u16> = dark().iter().map(|d| d + offset).collect();
        preprocessor.add_dark(&frame);
    }
    preprocessor.add_flat(&flat(), 1.0).unwrap();
    preprocessor.finish_calibration().unwrap().unwrap();
    assert_eq!(preprocessor.dark[3], 108.0);
    preprocessor.add_dark(&dark());
    let report = preprocessor.finish_calibration().unwrap().unwrap();
    assert_eq!((preprocessor.dark[3], report.dark_frames, report.flat_frames), (103.0, 1, 1));
    assert_eq!(preprocessor.gain[3], 1.0 / (40_000.0 - 103.0), "the old flat against the new dark");
}

#[test]
fn opaque_pixels_meet_the_clamp_and_are_counted() {
    let mut preprocessor = preprocessor();
    preprocessor.add_dark(&dark());
    preprocessor.add_flat(&flat(), 1.0).unwrap();
    preprocessor.finish_calibration().unwrap();
    let mut frame = counts(1.0, 1.0);
    frame[7] = 0;
    let mut out = vec![0.0; 200];
    preprocessor.counts(&frame, 1.0, 0.0, &mut out).unwrap();
    assert!((out[7] + 1e-4f32.ln()).abs() < 1e-5, "{}", out[7]);
    assert_eq!(preprocessor.counters().clamped_pixels, 1);
}

#[test]
fn without_flats_i0_serves_and_without_i0_the_frame_is_refused() {
    let mut preprocessor = preprocessor();
    let mut out = vec![0.0; 200];
    let refused = preprocessor.counts(&counts(1.0, 1.0), 1.0, 0.0, &mut out).unwrap_err();
    assert_eq!(refused, PreprocessError::NoFlat);
    assert_eq!(preprocessor.counters().refused, 1);
    let frame = vec![(10_000.0f64 * (-1.0f64).exp()).round() as u16; 200];
    preprocessor.counts(&frame, 1.0, 10_000.0, &mut out).unwrap();
    assert!((out[0] - 1.0).abs() < 2e-4, "{}", out[0]);
    for exposure in [0.0, -1.0, f32::NAN] {
        let refused = preprocessor.counts(&frame, exposure, 10_000.0, &mut out).unwrap_err();
        assert!(matches!(refused, PreprocessError::Exposure { .. }), "{refused}");
    }
}

#[test]
fn dead_and_hot_pixels_columns_and_corners_become_the_mean_of_their_neighbours() {
    let mut preprocessor = preprocessor();
    let (mut dark, mut flat) = (dark(), flat());
    flat[0] = dark[0] + 5; // Dead, in the corner.
    dark[105] = 30_000; // Hot.
    for row in 0..10 {
        flat[row * 20 + 13] = dark[row * 20 + 13]; // A dead column.
    }
    preprocessor.add_dark(&dark);
    preprocessor.add_flat(&flat, 1.0).unwrap();
    let report = preprocessor.finish_calibration().unwrap().unwrap();
    assert_eq!(report.bad_pixels, 12);
    let mut frame = counts(0.5, 1.0);
    (frame[0], frame[105], frame[13]) = (65_535, 0, 1);
    let mut out = vec![0.0; 200];
    preprocessor.counts(&frame, 1.0, 0.0, &mut out).unwrap();
    assert_eq!(preprocessor.counters().replaced_pixels, 12);
    for index in [0, 105, 13, 113, 193] {
        assert!((out[index] - 0.5).abs() < 1e-4, "pixel {index}: {}", out[index]);
    }
}

#[test]
fn a_detector_that_is_mostly_dead_is_refused_and_nothing_of_it_stays() {
    let mut preprocessor = preprocessor();
    let mut flat = flat();
    flat[..50].copy_from_slice(&dark()[..50]);
    preprocessor.add_dark(&dark());
    preprocessor.add_flat(&flat, 1.0).unwrap();
    let error = preprocessor.finish_calibration().unwrap_err();
    assert_eq!(error, PreprocessError::TooManyBadPixels { bad: 50, pixels: 200, limit: 20, image: "flat and dark" });
    assert_eq!(preprocessor.sources(), [CalibrationSource::None; 2]);
    let refused = preprocessor.counts(&counts(1.0, 1.0), 1.0, 0.0, &mut vec![0.0; 200]).unwrap_err();
    assert_eq!(refused, PreprocessError::NoFlat);
}

#[test]
fn a_flat_file_is_taken_against_dark_frames_from_the_ring() {
    let file: Vec<f32> = flat().iter().map(|&f| f32::from(f)).collect();
    let mixed = PreprocessSettings { flat: Calibration::File("flat.npy".into()), ..settings() };
    let mut preprocessor = OnCpu::new(&mixed, [None, Some(file)]).unwrap();
    preprocessor.add_dark(&dark());
    let report = preprocessor.finish_calibration().unwrap().unwrap();
    assert_eq!((report.dark, report.flat), (CalibrationSource::Ring, CalibrationSource::File));
    let mut out = vec![0.0; 200];
    preprocessor.counts(&counts(1.0, 1.0), 1.0, 0.0, &mut out).unwrap();
    // Half a count of 14700, and one float32 rounding of the reciprocal taken back and forth.
    assert!(out.iter().all(|v| (v - 1.0).abs() < 5e-5), "{out:?}");
    let short = OnCpu::new(&mixed, [None, Some(vec![1.0; 3])]).err().unwrap();
    assert_eq!(short, PreprocessError::FileShape { image: "flat", given: 3, needed: 200 });
}

#[test]
fn one_line_integral_that_is_not_finite_refuses_the_frame() {
    let mut preprocessor = preprocessor();
    let mut values: Vec<f32> = (0..200).map(|i| i as f32 * 0.01 - 0.1).collect();
    preprocessor.line_integrals(&values).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        values[57] = bad;
        let refused = preprocessor.line_integrals(&values).unwrap_err();
        assert_eq!(refused, PreprocessError::NotFinite { count: 1, first: 57 });
    }
}
