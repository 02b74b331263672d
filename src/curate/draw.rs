//! What is left to chance, drawn from the seed, the subject's name and a number.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Options;
use super::deform::Deformation;
use crate::compute::cpu::ramp_filter::Window;
use crate::reconstruct::optimise::USUAL_ITERATIONS;

/// View counts that half of the scans have, where the options allow them: those that methods are compared at.
const COMMON_VIEWS: [usize; 3] = [12, 24, 36];
/// Photons per pixel without an object; `None` is noise-free.
const PHOTONS: [Option<f64>; 4] = [None, Some(1e5), Some(3e4), Some(1e4)];
/// Scans in which each method has its share: one FDK, one OS-SART, three of each representation.
const BLOCK: usize = 8;
/// Electronic noise of noisy scans, in photons, as of a simulated scan.
pub(super) const ELECTRONIC_SIGMA: f64 = 10.0;

/// What degrades the volume.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DegradedBy {
    /// Gaussians, stopped after so many of the usual iterations.
    Gaussians(usize),
    /// A neural field, stopped likewise.
    Field(usize),
    /// FDK with this window.
    Fdk(Window),
    /// OS-SART of so many sweeps.
    OsSart(usize),
}

impl DegradedBy {
    /// As the command line has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gaussians(_) => "gaussians",
            Self::Field(_) => "field",
            Self::Fdk(_) => "fdk",
            Self::OsSart(_) => "os-sart",
        }
    }

    /// Iterations; none of FDK.
    #[must_use]
    pub fn iterations(self) -> usize {
        match self {
            Self::Gaussians(n) | Self::Field(n) | Self::OsSart(n) => n,
            Self::Fdk(_) => 0,
        }
    }
}

/// How a subset lies among the dense views.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AngleLaw {
    /// As even as the dense views allow.
    Uniform,
    /// One at a random place of each equal step.
    Jittered,
    /// Even over what a missing arc leaves.
    Arc {
        /// Where the missing arc begins.
        missing_from_rad: f64,
        /// Its length.
        missing_rad: f64,
    },
}

impl AngleLaw {
    /// `uniform`, `jittered` or `arc`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Jittered => "jittered",
            Self::Arc { .. } => "arc",
        }
    }
}

/// One scan of a subject.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanDraw {
    /// Its number.
    pub index: usize,
    /// Which of the subject's geometries it has.
    pub geometry: usize,
    /// The method.
    pub by: DegradedBy,
    /// How the views lie.
    pub law: AngleLaw,
    /// Which of the dense views it has, ascending.
    pub views: Vec<usize>,
    /// Photons per pixel without an object; `None` without noise.
    pub photons: Option<f64>,
    /// Seed of noise and method.
    pub seed: u64,
}

/// Where the detector stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectorPlace {
    /// In the middle.
    Centred,
    /// Beside the middle, but seeing the whole object.
    Offset,
    /// Seeing one half of the object, the other from the other side.
    HalfFan,
}

/// One geometry of a subject, in shares of what the object's size makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeometryDraw {
    /// Source-to-isocenter distance, before it is raised for large objects.
    pub source_to_isocenter_mm: f64,
    /// Source-to-detector over source-to-isocenter distance.
    pub magnification: f64,
    /// Where the detector stands.
    pub place: DetectorPlace,
    /// Shift along u and v over half the object's shadow, where `place` is [`DetectorPlace::Offset`].
    pub offset: [f64; 2],
    /// Where the volume's centre (and the object with it) stands, over the volume's size.
    pub shift: [f64; 3],
}

/// The generator of one purpose.
fn generator(seed: u64, subject: &str, purpose: &str, number: usize) -> ChaCha8Rng {
    let key = Sha256::digest(format!("{seed}/{subject}/{purpose}/{number}"));
    ChaCha8Rng::from_seed(key.into())
}

/// What makes another body of a subject's volume.
pub(super) fn deformation(options: &Options, subject: &str) -> Deformation {
    Deformation::drawn(&mut generator(options.seed, subject, "deformation", 0))
}

/// Geometry `number` of a subject: 0 is that of `diffnr simulate`, the others vary.
#[must_use]
pub(super) fn geometry(options: &Options, subject: &str, number: usize) -> GeometryDraw {
    let usual = GeometryDraw {
        source_to_isocenter_mm: 1000.0,
        magnification: 1.5,
        place: DetectorPlace::Centred,
        offset: [0.0; 2],
        shift: [0.0; 3],
    };
    if number == 0 {
        return usual;
    }
    let mut rng = generator(options.seed, subject, "geometry", number);
    let place = match rng.random_range(0..4) {
        0 | 1 => DetectorPlace::Centred,
        2 => DetectorPlace::Offset,
        _ => DetectorPlace::HalfFan,
    };
    let mut within = |limit: f64| rng.random_range(-limit..limit);
    let offset = if place == DetectorPlace::Offset { [within(0.15), within(0.1)] } else { [0.0; 2] };
    let shift = [within(0.02), within(0.02), within(0.02)];
    GeometryDraw {
        source_to_isocenter_mm: 950.0 + within(250.0),
        magnification: 1.5 + within(0.25),
        place,
        offset,
        shift,
    }
}

/// Scan `index` of a subject.
#[must_use]
pub fn scan(options: &Options, subject: &str, index: usize) -> ScanDraw {
    let mut rng = generator(options.seed, subject, "scan", index);
    let by = degraded_by(options, subject, index, &mut rng);
    let [fewest, most] = options.views;
    let common: Vec<usize> = COMMON_VIEWS.into_iter().filter(|n| (fewest..=most).contains(n)).collect();
    // Both are drawn always, so that what follows does not depend on the choice.
    let (usual, share) = (rng.random_range(0.0..2.0), rng.random_range(0.0..1.0));
    let count = if usual < 1.0 && !common.is_empty() {
        common[(usual * common.len() as f64) as usize]
    } else {
        // Log-uniform over whole numbers.
        let (low, high) = ((fewest as f64).ln(), (most as f64 + 1.0).ln());
        ((low + share * (high - low)).exp() as usize).clamp(fewest, most)
    };
    let law = match rng.random_range(0..10) {
        // FDK refuses what it would reconstruct wrongly.
        _ if matches!(by, DegradedBy::Fdk(_)) => AngleLaw::Uniform,
        0..5 => AngleLaw::Uniform,
        5..8 => AngleLaw::Jittered,
        _ => AngleLaw::Arc {
            missing_from_rad: rng.random_range(0.0..TAU),
            missing_rad: rng.random_range(40.0_f64..140.0).to_radians(),
        },
    };
    let photons = PHOTONS[rng.random_range(0..PHOTONS.len())];
    let views = subset(options.views_dense, count, law, &mut rng);
    ScanDraw { index, geometry: rng.random_range(0..options.geometries), by, law, views, photons, seed: rng.random() }
}

fn degraded_by(options: &Options, subject: &str, index: usize, rng: &mut ChaCha8Rng) -> DegradedBy {
    // Which places of the block the two classical methods take; the representations take turns in the others.
    let mut of_block = generator(options.seed, subject, "block", index / BLOCK);
    let fdk = of_block.random_range(0..BLOCK);
    let sart = (fdk + of_block.random_range(1..BLOCK)) % BLOCK;
    let first = of_block.random_range(0..2);
    let [low, high] = options.stopped_at;
    let share = low + rng.random_range(0.0..1.0) * (high - low);
    let sweeps = rng.random_range(2..=8);
    let window = [Window::RamLak, Window::SheppLogan, Window::Hann][rng.random_range(0..3)];
    let place = index % BLOCK;
    let iterations = ((share * USUAL_ITERATIONS as f64).round() as usize).clamp(1, USUAL_ITERATIONS);
    if place == fdk {
        return DegradedBy::Fdk(window);
    }
    if place == sart {
        return DegradedBy::OsSart(sweeps);
    }
    let turn = place - usize::from(fdk < place) - usize::from(sart < place);
    if (turn + first).is_multiple_of(2) { DegradedBy::Gaussians(iterations) } else { DegradedBy::Field(iterations) }
}

/// Indices of `count` of `dense` views over the turn, ascending, none twice; from a random beginning.
fn subset(dense: usize, count: usize, law: AngleLaw, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let start = rng.random_range(0..dense);
    let (start, steps) = match law {
        AngleLaw::Arc { missing_from_rad, missing_rad } => {
            let step = TAU / dense as f64;
            let left = (((TAU - missing_rad) / step) as usize).max(count);
            (((missing_from_rad + missing_rad) / step).ceil() as usize % dense, left.min(dense))
        }
        _ => (start, dense),
    };
    // Steps are at least one dense view long, so that no view comes twice.
    let begin = |i: usize| i * steps / count;
    let place = |i: usize| match law {
        AngleLaw::Jittered => rng.random_range(begin(i)..begin(i + 1)),
        _ => begin(i),
    };
    let mut views: Vec<usize> = (0..count).map(place).map(|step| (start + step) % dense).collect();
    views.sort_unstable();
    views
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn methods_have_their_shares_and_the_common_view_counts_are_there() {
        let options = Options::default();
        let draws: Vec<ScanDraw> = (0..100)
            .flat_map(|s| (0..8).map(move |i| (s, i)))
            .map(|(s, i)| scan(&options, &format!("s{s}"), i))
            .collect();
        let count = |name| draws.iter().filter(|d| d.by.name() == name).count();
        assert_eq!(["gaussians", "field", "fdk", "os-sart"].map(count), [300, 300, 100, 100]);
        for n in COMMON_VIEWS {
            let share = draws.iter().filter(|d| d.views.len() == n).count();
            // A sixth of 800, and what the log-uniform draw adds; six standard deviations are 63.
            assert!((70..230).contains(&share), "{n}: {share}");
        }
        assert!(draws.iter().all(|d| (10..=60).contains(&d.views.len())));
        for law in ["uniform", "jittered", "arc"] {
            assert!(draws.iter().filter(|d| d.law.name() == law).count() > 50, "{law}");
        }
        for draw in &draws {
            if let DegradedBy::Gaussians(n) | DegradedBy::Field(n) = draw.by {
                assert!((25..=50).contains(&n));
            }
            assert!(draw.views.windows(2).all(|pair| pair[0] < pair[1]) && *draw.views.last().unwrap() < 360);
        }
    }

    #[test]
    fn a_missing_arc_is_missing_and_uniform_steps_are_even() {
        let options = Options::default();
        let (mut arcs, mut uniform) = (0, 0);
        for number in 0..200 {
            let draw = scan(&options, "someone", number);
            let n = draw.views.len();
            let gaps = (0..n).map(|i| (draw.views[(i + 1) % n] + 360 - draw.views[i]) % 360);
            let (least, largest) = gaps.fold((360, 0), |(l, h), gap| (l.min(gap), h.max(gap)));
            match draw.law {
                AngleLaw::Uniform => {
                    uniform += 1;
                    assert!(largest - least <= 1, "{least} {largest}");
                }
                AngleLaw::Arc { missing_rad, .. } => {
                    arcs += 1;
                    // Steps of the dense views are a degree.
                    assert!(largest as f64 >= missing_rad.to_degrees() - 1.0, "{largest} {missing_rad}");
                }
                AngleLaw::Jittered => {}
            }
        }
        assert!(arcs > 10 && uniform > 50);
    }

    #[test]
    fn draws_depend_on_seed_subject_and_number_alone() {
        let options = Options::default();
        assert_eq!(scan(&options, "a", 3), scan(&Options { scans: 99, ..options.clone() }, "a", 3));
        assert_ne!(scan(&options, "a", 3).seed, scan(&options, "b", 3).seed);
        assert_ne!(scan(&options, "a", 3).seed, scan(&Options { seed: 1, ..options.clone() }, "a", 3).seed);
        assert_eq!(geometry(&options, "a", 0), geometry(&options, "b", 0));
        assert_ne!(geometry(&options, "a", 1), geometry(&options, "b", 1));
    }
}
