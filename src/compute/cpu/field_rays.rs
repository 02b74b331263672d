//! Samples along rays through a field's box, and the features of single points.
//!
//! Points of a ray share nothing that could be read as registers: each reads eight entries of each feature of each level, by gathers. That makes a sample
//! some four times as dear as a voxel; the network is the same.

// Loads at entries that the levels bound; compiled for each level.
#![allow(unsafe_code)]
// Indices name lanes and rows of registers, in several arrays at once.
#![allow(clippy::needless_range_loop)]

use glam::DVec3;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::ComputeError;
use super::super::field::{FieldLayout, FieldLevel, FieldParameters, FieldRays};
use super::field_network::POINTS;
use super::field_rows::{cell, stream};

/// Most samples of a ray: what the scratch is made for.
pub(super) const MOST_SAMPLES: usize = 4096;

/// The way of a ray through the box.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chord {
    /// Source, from the box's lower corner.
    source_mm: DVec3,
    /// Of length 1.
    direction: DVec3,
    /// Where it enters, from the source.
    enter_mm: f64,
    pub(super) step_mm: f64,
}

/// Positions of a block of samples from the box's lower corner, in mm.
pub(super) type Places = [[f32; POINTS]; 3];

impl Chord {
    /// The ray's way through the box; `None` where it misses it.
    pub(super) fn of(layout: &FieldLayout, rays: &FieldRays<'_>, ray: usize) -> Option<Self> {
        let pixel = rays.pixels[ray];
        let pose = &rays.geometry.views[pixel.view as usize];
        let to = pose.pixel_mm(f64::from(pixel.row), f64::from(pixel.column));
        let (source_mm, direction) = (pose.source_mm - layout.low_mm(), (to - pose.source_mm).normalize());
        let (mut enter, mut leave) = (0.0f64, f64::INFINITY);
        for axis in 0..3 {
            let (s, d, size) = (source_mm[axis], direction[axis], layout.size_mm()[axis]);
            if d == 0.0 {
                if !(0.0..=size).contains(&s) {
                    return None;
                }
                continue;
            }
            let (a, b) = (-s / d, (size - s) / d);
            enter = enter.max(a.min(b));
            leave = leave.min(a.max(b));
        }
        let chord = leave - enter;
        (chord > 0.0 && chord.is_finite()).then(|| Self {
            source_mm,
            direction,
            enter_mm: enter,
            step_mm: chord / rays.samples as f64,
        })
    }

    /// The samples of the ray, to be taken block by block.
    pub(super) fn samples(self, layout: &FieldLayout, rays: &FieldRays<'_>, ray: usize) -> Samples {
        Samples {
            chord: self,
            size_mm: layout.size_mm(),
            count: rays.samples,
            next: 0,
            random: rays.jitter.map(|jitter| stream(jitter, ray as u64)),
            places: [[0.0; POINTS]; 3],
        }
    }
}

/// Samples of one ray. (No closure is handed their places: it would be compiled without the SIMD level's features.)
#[derive(Debug)]
pub(super) struct Samples {
    chord: Chord,
    size_mm: DVec3,
    count: usize,
    next: usize,
    random: Option<ChaCha8Rng>,
    /// Places of the present block; those behind the last sample repeat it.
    pub(super) places: Places,
}

impl Samples {
    /// Brings the next block's places; gives its first sample and their number, or `None` behind the last.
    pub(super) fn next_block(&mut self) -> Option<(usize, usize)> {
        let first = self.next;
        if first >= self.count {
            return None;
        }
        let count = POINTS.min(self.count - first);
        self.next += count;
        let Chord { source_mm, direction, enter_mm, step_mm } = self.chord;
        for p in 0..count {
            let offset = self.random.as_mut().map_or(0.5, |random| random.random::<f32>());
            let way = enter_mm + ((first + p) as f64 + f64::from(offset)) * step_mm;
            for axis in 0..3 {
                let at = source_mm[axis] + way * direction[axis];
                self.places[axis][p] = at.clamp(0.0, self.size_mm[axis]) as f32;
            }
        }
        for axis in &mut self.places {
            let last = axis[count - 1];
            axis[count..].fill(last);
        }
        Some((first, count))
    }
}

/// Refuses rays that are not there and samples without number.
pub(super) fn check_rays(operation: &'static str, rays: &FieldRays<'_>) -> Result<(), ComputeError> {
    if !(1..=MOST_SAMPLES).contains(&rays.samples) {
        return Err(ComputeError::Setting {
            of: operation,
            setting: "samples",
            value: rays.samples as f64,
            requirement: "must be between 1 and 4096",
        });
    }
    let detector = rays.geometry.detector;
    for (index, pixel) in rays.pixels.iter().enumerate() {
        let of = [
            ("pixels.view", pixel.view, rays.geometry.views.len(), "must be below the number of views"),
            ("pixels.row", pixel.row, detector.rows, "must be below the detector's rows"),
            ("pixels.column", pixel.column, detector.columns, "must be below the detector's columns"),
        ];
        for (parameter, value, end, requirement) in of {
            if value as usize >= end {
                return Err(ComputeError::Value { operation, parameter, index, value: value as f32, requirement });
            }
        }
    }
    Ok(())
}

/// The eight nodes about each point of a block: entries and weights.
#[derive(Debug)]
pub(super) struct Corners {
    pub(super) entries: [[u32; POINTS]; 8],
    pub(super) weights: [[f32; POINTS]; 8],
}

impl Corners {
    pub(super) const EMPTY: Self = Self { entries: [[0; POINTS]; 8], weights: [[0.0; POINTS]; 8] };

    /// The nodes about points at `places`, weights times `weight`.
    #[inline(always)]
    pub(super) fn set(&mut self, level: &FieldLevel, weight: f32, places: &Places) {
        let per_mm = (1.0 / level.cell_mm) as f32;
        for p in 0..POINTS {
            let (x, tx) = cell(places[0][p] * per_mm, level.nodes[0]);
            let (y, ty) = cell(places[1][p] * per_mm, level.nodes[1]);
            let (z, tz) = cell(places[2][p] * per_mm, level.nodes[2]);
            for corner in 0..8u32 {
                let (i, j, k) = (corner >> 2, corner >> 1 & 1, corner & 1);
                let share = |upper: u32, t: f32| if upper == 1 { t } else { 1.0 - t };
                self.entries[corner as usize][p] = level.entry(x + i, y + j, z + k);
                self.weights[corner as usize][p] = weight * share(i, tx) * share(j, ty) * share(k, tz);
            }
        }
    }
}

/// Features of a block of points, `[input][POINTS]`; those of levels that are left out stay as they are.
#[inline(always)]
pub(super) fn encode(field: &FieldParameters<'_>, places: &Places, corners: &mut Corners, features: &mut [f32]) {
    let count = field.layout.shape().features;
    for (index, (level, &weight)) in field.layout.levels().iter().zip(field.level_weights).enumerate() {
        if weight == 0.0 {
            continue;
        }
        corners.set(level, weight, places);
        for f in 0..count {
            let plane = &field.tables[level.first + f * level.entries..][..level.entries];
            let to = &mut features[(index * count + f) * POINTS..][..POINTS];
            to.fill(0.0);
            for (entries, weights) in corners.entries.iter().zip(&corners.weights) {
                for ((to, &entry), &weight) in to.iter_mut().zip(entries).zip(weights) {
                    // SAFETY: nodes are held to the level's, so entries are below its number.
                    *to += weight * unsafe { *plane.get_unchecked(entry as usize) };
                }
            }
        }
    }
}
