//! Ramp-filtering of the rows, each zero-padded to at least twice its length.
//!
//! Floor: a row of `n` pixels takes two real transforms of 2n points, about 2 * 2.5 * 2n log2(2n) operations (n = 256: 23 thousand,
//! 0.3 us at 32 operations a cycle and 2.6 GHz), and 8 bytes a pixel to and from memory. Ratio: `benches/fdk.rs`.

#![allow(unsafe_code)] // Views scratch floats as complex numbers.

use rayon::prelude::*;
use realfft::RealFftPlanner;
use rustfft::num_complex::Complex;

use super::super::{ComputeError, Workload};
use super::check_len;
use super::ramp_filter::{RampFilter, transform_len};
use super::scratch::{Need, Scratch};

const OPERATION: &str = "filter_rows";

/// Rows of one task.
const ROWS: usize = 16;

/// Scratch a thread: padded row, spectrum, working memory of the transforms.
fn need_for(length: usize, transforms: usize) -> Need {
    // The spectrum's length is rounded up to whole cache lines.
    Need { shared: 0, per_thread: length + (length + 2).next_multiple_of(16) + 2 * transforms }
}

/// Scratch of this operation.
pub(super) fn need(workload: &Workload) -> Need {
    if workload.columns == 0 {
        return Need::default();
    }
    let length = transform_len(workload.columns);
    let mut planner = RealFftPlanner::<f32>::new();
    let transforms =
        planner.plan_fft_forward(length).get_scratch_len().max(planner.plan_fft_inverse(length).get_scratch_len());
    need_for(length, transforms)
}

/// See [`crate::compute::Compute::filter_rows`].
pub(super) fn filter_rows(scratch: &Scratch, filter: &RampFilter, projections: &mut [f32]) -> Result<(), ComputeError> {
    let columns = filter.columns();
    if columns == 0 || projections.is_empty() {
        return Ok(());
    }
    let rows = projections.len() / columns;
    check_len(OPERATION, "projections", projections.len(), rows * columns)?;
    let length = filter.transform_len();
    let need = need_for(length, filter.forward.get_scratch_len().max(filter.inverse.get_scratch_len()));
    let _in_use = scratch.take(OPERATION, need)?;
    projections.par_chunks_mut(columns * ROWS).for_each(|rows| {
        let mut guard = scratch.of_this_thread();
        let (padded, rest) = guard.floats().split_at_mut(length);
        let (spectrum, transforms) = rest.split_at_mut((length + 2).next_multiple_of(16));
        let spectrum = complex(&mut spectrum[..length + 2]);
        let transforms = complex(transforms);
        for row in rows.chunks_exact_mut(columns) {
            padded[..columns].copy_from_slice(row);
            padded[columns..].fill(0.0);
            // The lengths are those that the filter was planned for, and the spectrum's ends are made real below.
            let forward = filter.forward.process_with_scratch(
                padded,
                spectrum,
                &mut transforms[..filter.forward.get_scratch_len()],
            );
            for (value, factor) in spectrum.iter_mut().zip(filter.response()) {
                *value *= *factor;
            }
            spectrum[0].im = 0.0;
            spectrum[length / 2].im = 0.0;
            let inverse = filter.inverse.process_with_scratch(
                spectrum,
                padded,
                &mut transforms[..filter.inverse.get_scratch_len()],
            );
            debug_assert!(forward.is_ok() && inverse.is_ok());
            row.copy_from_slice(&padded[..columns]);
        }
    });
    Ok(())
}

/// Pairs of floats as complex numbers.
fn complex(floats: &mut [f32]) -> &mut [Complex<f32>] {
    let pairs = floats.len() / 2;
    // SAFETY: `Complex<f32>` is two floats in order (repr(C)), of the same alignment; the length is halved.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), pairs) }
}
