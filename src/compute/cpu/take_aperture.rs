//! Second differences along the rows and columns of views.
//!
//! **Bytes** are the floor: 4 in and 4 out a pixel; the rows above and below are in the caches.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use crate::geometry::Detector;

/// See [`super::super::elements::ElementCompute::take_aperture`]; lengths were checked.
pub(super) fn take_aperture(detector: Detector, [of_columns, of_rows]: [f32; 2], views: &[f32], out: &mut [f32]) {
    let columns = detector.columns;
    if out.is_empty() {
        return;
    }
    let line_of = |line: usize| &views[line * columns..][..columns];
    out.par_chunks_exact_mut(columns).enumerate().with_min_len(16).for_each(|(line, out)| {
        let (row, here) = (line % detector.rows, line_of(line));
        out.copy_from_slice(here);
        let (above, below) = ((row > 0).then(|| line - 1), (row + 1 < detector.rows).then_some(line + 1));
        for beside in [above, below].into_iter().flatten() {
            less(of_rows, out, here, line_of(beside));
        }
        less(of_columns, &mut out[1..], &here[1..], here);
        less(of_columns, out, here, &here[1..]);
    });
}

/// `line -= share * (beside - here)`, as far as all three go.
fn less(share: f32, line: &mut [f32], here: &[f32], beside: &[f32]) {
    for ((value, here), beside) in line.iter_mut().zip(here).zip(beside) {
        *value -= share * (beside - here);
    }
}
