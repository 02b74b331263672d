//! Line integrals through a field, ray by ray: samples in equal steps between entry and exit of the box.
//!
//! **Work a sample.** The network's `m / 16` register operations as in [`super::field_voxelise`]; the encoding reads `8 features` numbers a
//! level by gathers, 256 for 16 levels of 2, at two loads a period 128 periods.

// Generic SIMD.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::super::ComputeError;
use super::super::field::{FieldParameters, FieldRays, FieldShape};
use super::field_lanes::FieldLanes;
use super::field_network::{Block, Sizes};
use super::field_rays::{Chord, Corners, check_rays, encode};
use super::field_voxelise::check_field;
use super::gaussian_lanes::at_each_level;
use super::scratch::{Need, Scratch};
use super::simd::SimdLevel;

const OPERATION: &str = "field_project";

/// Rays of a task.
pub(super) const GROUP: usize = 8;

/// Scratch of this operation.
pub(super) fn need(shape: &FieldShape) -> Need {
    Need { shared: 0, per_thread: Sizes::of(shape).block_floats() }
}

/// See [`super::super::field::FieldCompute::field_project`].
pub(super) fn field_project(
    simd: SimdLevel,
    scratch: &Scratch,
    rays: &FieldRays<'_>,
    field: &FieldParameters<'_>,
    integrals: &mut [f32],
) -> Result<(), ComputeError> {
    check_field(OPERATION, field)?;
    check_rays(OPERATION, rays)?;
    let shape = field.layout.shape();
    let _taken = scratch.take(OPERATION, need(shape))?;
    let sizes = Sizes::of(shape);
    integrals.par_chunks_mut(GROUP).enumerate().with_max_len(1).for_each(|(group, integrals)| {
        let mut buffer = scratch.of_this_thread();
        project_group(simd, &sizes, rays, field, group * GROUP, buffer.floats(), integrals);
    });
    Ok(())
}

/// Some rays from ray `first` on.
#[inline(always)]
unsafe fn project_group_body<W: FieldLanes>(
    sizes: &Sizes,
    rays: &FieldRays<'_>,
    field: &FieldParameters<'_>,
    first: usize,
    floats: &mut [f32],
    integrals: &mut [f32],
) {
    let (mut block, _) = Block::cut(sizes, floats);
    let mut corners = Corners::EMPTY;
    for (ray, integral) in (first..).zip(integrals) {
        *integral = 0.0;
        let Some(chord) = Chord::of(field.layout, rays, ray) else { continue };
        let mut sum = 0.0;
        let mut samples = chord.samples(field.layout, rays, ray);
        while let Some((_, count)) = samples.next_block() {
            encode(field, &samples.places, &mut corners, block.features);
            // SAFETY: the caller's; the field's lengths have been checked.
            unsafe {
                block.gather_inputs::<W>(sizes);
                block.forward::<W>(sizes, field.network);
            }
            for &value in &block.values[..count] {
                sum += value;
            }
        }
        *integral = sum * chord.step_mm as f32;
    }
}
at_each_level!(
    /// See [`project_group_body`].
    project_group => project_group_body(
        sizes: &Sizes,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_>,
        first: usize,
        floats: &mut [f32],
        integrals: &mut [f32],
    )
);
