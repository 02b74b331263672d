//! The adjoint of [`super::field_project`]: from a gradient by line integrals to one by tables and network.
//!
//! In chunks of rays, two passes each, as [`super::field_voxelise_backward`]: first the rays, which leave the gradient by each sample's features; then the
//! tables, one task for each feature of each level, which adds all samples in the rays' order to the eight nodes about each.
//!
//! **Work a sample.** `4 m / 16` register operations for the network; the forward's gathers; for the tables `8 features` loads, multiply-adds and stores a
//! level, one number each. **Bytes.** A sample's features and place are written once and read once, in a chunk of 4 MB.

// Generic SIMD.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::field::{FieldParameters, FieldRays, FieldShape, HostFieldGradients};
use super::check_len;
use super::field_lanes::FieldLanes;
use super::field_network::{Block, POINTS, Sizes, transposed};
use super::field_project::GROUP;
use super::field_rays::{Chord, Corners, MOST_SAMPLES, Places, check_rays, encode};
use super::field_tables::each_feature;
use super::field_voxelise::{check_field, check_finite};
use super::gaussian_lanes::at_each_level;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;

const OPERATION: &str = "field_project_backward";

/// Most groups of a chunk, and floats that its samples may take (if one group's do not need more).
const GROUPS: usize = 64;
const SAMPLES: usize = 1 << 20;

/// Numbers of a sample that the second pass reads: gradients by its features, then its place.
fn channels(sizes: &Sizes) -> usize {
    sizes.wide + 3
}

/// Sizes of the parts of the shared scratch: turned weights, groups' network gradients, one flag a ray, samples.
fn parts(shape: &FieldShape) -> [usize; 4] {
    let sizes = Sizes::of(shape);
    let samples = SAMPLES.max(GROUP * MOST_SAMPLES * channels(&sizes));
    [sizes.transposed_floats(), GROUPS * shape.network_len(), GROUPS * GROUP, samples]
        .map(|floats| floats.next_multiple_of(16))
}

/// Scratch of this operation.
pub(super) fn need(shape: &FieldShape) -> Need {
    Need { shared: parts(shape).iter().sum(), per_thread: super::field_project::need(shape).per_thread }
}

/// See [`super::super::field::FieldCompute::field_project_backward`].
pub(super) fn field_project_backward(
    simd: SimdLevel,
    scratch: &Scratch,
    rays: &FieldRays<'_>,
    field: &FieldParameters<'_>,
    by_integrals: &[f32],
    gradients: &mut HostFieldGradients<'_>,
) -> Result<(), ComputeError> {
    check_field(OPERATION, field)?;
    check_rays(OPERATION, rays)?;
    check_len(OPERATION, "gradients.tables", gradients.tables.len(), field.tables.len())?;
    check_len(OPERATION, "gradients.network", gradients.network.len(), field.network.len())?;
    check_finite(OPERATION, "by_integrals", by_integrals)?;
    let shape = field.layout.shape();
    let mut whole = scratch.take(OPERATION, need(shape))?;
    let sizes = Sizes::of(shape);
    let [turned, by_network, hits, samples] = parts(shape);
    let (turned, rest) = whole.floats().split_at_mut(turned);
    let (by_network, rest) = rest.split_at_mut(by_network);
    let (hits, rest) = rest.split_at_mut(hits);
    let samples = &mut rest[..samples];
    transposed(&sizes, field.network, turned);
    let turned = &*turned;

    let of_ray = channels(&sizes) * rays.samples.next_multiple_of(POINTS);
    let groups = (samples.len() / (GROUP * of_ray)).clamp(1, GROUPS);
    let network = shape.network_len();
    for (chunk, by_integrals) in by_integrals.chunks(groups * GROUP).enumerate() {
        let first = chunk * groups * GROUP;
        let tasks = by_integrals
            .par_chunks(GROUP)
            .zip(by_network.par_chunks_mut(network))
            .zip(hits.par_chunks_mut(GROUP).zip(samples.par_chunks_mut(GROUP * of_ray)));
        tasks.enumerate().with_max_len(1).for_each(|(group, ((by, by_network), (hits, samples)))| {
            let mut buffer = scratch.of_this_thread();
            let out = GroupOut { by_network, hits, samples };
            backward_group(simd, &sizes, rays, field, turned, first + group * GROUP, buffer.floats(), by, out);
        });
        for of_group in by_network.chunks_exact(network).take(by_integrals.len().div_ceil(GROUP)) {
            gradients.network.iter_mut().zip(of_group).for_each(|(sum, by)| *sum += by);
        }
        let (hits, samples) = (&hits[..by_integrals.len()], &*samples);
        each_feature(field.layout, gradients.tables, &|level, feature, table| {
            add_feature(simd, &sizes, field, [level, feature], hits, samples, of_ray, table);
        });
    }
    Ok(())
}

/// What a group of rays leaves.
struct GroupOut<'a> {
    by_network: &'a mut [f32],
    /// 1 for rays that add something.
    hits: &'a mut [f32],
    /// `[ray][channel][sample]`
    samples: &'a mut [f32],
}

/// The first pass for some rays from ray `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn backward_group_body<W: FieldLanes>(
    sizes: &Sizes,
    rays: &FieldRays<'_>,
    field: &FieldParameters<'_>,
    turned: &[f32],
    first: usize,
    floats: &mut [f32],
    by_integrals: &[f32],
    out: GroupOut<'_>,
) {
    let (mut block, _) = Block::cut(sizes, floats);
    let mut corners = Corners::EMPTY;
    out.by_network.fill(0.0);
    let stride = rays.samples.next_multiple_of(POINTS);
    let of_rays = out.hits.iter_mut().zip(out.samples.chunks_exact_mut(channels(sizes) * stride));
    for ((ray, &by), (hit, samples)) in (first..).zip(by_integrals).zip(of_rays) {
        *hit = 0.0;
        let chord = if by == 0.0 { None } else { Chord::of(field.layout, rays, ray) };
        let Some(chord) = chord else { continue };
        *hit = 1.0;
        let by_value = by * chord.step_mm as f32;
        let mut taken = chord.samples(field.layout, rays, ray);
        while let Some((start, count)) = taken.next_block() {
            encode(field, &taken.places, &mut corners, block.features);
            block.by_values[..count].fill(by_value);
            block.by_values[count..].fill(0.0);
            // SAFETY: the caller's; the field's lengths have been checked; `wide` and `POINTS` are multiples of N.
            unsafe {
                block.gather_inputs::<W>(sizes);
                block.forward::<W>(sizes, field.network);
                block.backward::<W>(sizes, field.network, turned, out.by_network);
                for input in (0..sizes.wide).step_by(W::N) {
                    for p in (0..POINTS).step_by(W::N) {
                        let to = samples.as_mut_ptr().add(input * stride + start + p);
                        <W as FieldLanes>::transpose(
                            block.gradient.as_ptr().add(p * sizes.wide + input),
                            sizes.wide,
                            to,
                            stride,
                        );
                    }
                }
            }
            for (axis, places) in taken.places.iter().enumerate() {
                samples[(sizes.wide + axis) * stride + start..][..POINTS].copy_from_slice(places);
            }
        }
    }
}
at_each_level!(
    /// See [`backward_group_body`].
    backward_group => backward_group_body(
        sizes: &Sizes,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        turned: &[f32],
        first: usize,
        floats: &mut [f32],
        by_integrals: &[f32],
        out: GroupOut<'_>,
    )
);

/// The second pass for one feature of one level.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_feature_body<W: FieldLanes>(
    sizes: &Sizes,
    field: &FieldParameters<'_>,
    [level, feature]: [usize; 2],
    hits: &[f32],
    samples: &[f32],
    of_ray: usize,
    table: &mut [f32],
) {
    let weight = field.level_weights[level];
    if weight == 0.0 {
        return;
    }
    let input = level * field.layout.shape().features + feature;
    let level = &field.layout.levels()[level];
    let stride = of_ray / channels(sizes);
    let mut corners = Corners::EMPTY;
    let mut places: Places = [[0.0; POINTS]; 3];
    for (_, samples) in hits.iter().zip(samples.chunks_exact(of_ray)).filter(|(hit, _)| **hit > 0.0) {
        for start in (0..stride).step_by(POINTS) {
            for (axis, places) in places.iter_mut().enumerate() {
                places.copy_from_slice(&samples[(sizes.wide + axis) * stride + start..][..POINTS]);
            }
            corners.set(level, weight, &places);
            for (p, &by) in samples[input * stride + start..][..POINTS].iter().enumerate() {
                for (entries, weights) in corners.entries.iter().zip(&corners.weights) {
                    table[entries[p] as usize] += weights[p] * by;
                }
            }
        }
    }
}
at_each_level!(
    /// See [`add_feature_body`].
    add_feature => add_feature_body(
        sizes: &Sizes,
        field: &FieldParameters<'_>,
        which: [usize; 2],
        hits: &[f32],
        samples: &[f32],
        of_ray: usize,
        table: &mut [f32],
    )
);
