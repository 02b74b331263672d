//! Pixel-wise weights of the projections, and the zero columns that a half-fan needs before it is filtered.
//!
//! Floor: bytes. Each pixel is read once and written once (8 bytes); the weights come from the cache where views share them.

#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::super::{ComputeError, ProjectionWeights};
use super::check_len;

/// Rows of one task.
const ROWS: usize = 32;

/// See [`crate::compute::Compute::weight_projections`].
pub(super) fn weight_projections(
    weights: &ProjectionWeights<'_>,
    projections: &[f32],
    weighted: &mut [f32],
) -> Result<(), ComputeError> {
    const OPERATION: &str = "weight_projections";
    let ProjectionWeights { detector, pad, image, columns } = *weights;
    if detector.pixels() == 0 {
        return check_len(OPERATION, "projections", projections.len(), 0);
    }
    let (pixels, wide) = (detector.pixels(), weights.wide_columns());
    let views = projections.len() / pixels;
    check_len(OPERATION, "projections", projections.len(), views * pixels)?;
    check_len(OPERATION, "weighted", weighted.len(), views * detector.rows * wide)?;
    check_len(OPERATION, "columns", columns.len(), views * detector.columns)?;
    if image.len() != pixels {
        check_len(OPERATION, "image", image.len(), views * pixels)?;
    }
    let views = weighted.par_chunks_mut(detector.rows * wide).zip(projections.par_chunks(pixels)).enumerate();
    views.for_each(|(view, (weighted, projection))| {
        let image = if image.len() == pixels { image } else { &image[view * pixels..][..pixels] };
        let columns = &columns[view * detector.columns..][..detector.columns];
        let bands = weighted
            .par_chunks_mut(ROWS * wide)
            .zip(projection.par_chunks(ROWS * detector.columns))
            .zip(image.par_chunks(ROWS * detector.columns));
        bands.for_each(|((weighted, projection), image)| {
            let rows = weighted
                .chunks_exact_mut(wide)
                .zip(projection.chunks_exact(detector.columns))
                .zip(image.chunks_exact(detector.columns));
            for ((out, row), image) in rows {
                out[..pad[0]].fill(0.0);
                out[pad[0] + detector.columns..].fill(0.0);
                let out = &mut out[pad[0]..pad[0] + detector.columns];
                for (((out, value), image), column) in out.iter_mut().zip(row).zip(image).zip(columns) {
                    *out = value * image * column;
                }
            }
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::geometry::Detector;

    #[test]
    fn multiplies_both_factors_and_pads_with_zeros() {
        let detector = Detector { columns: 3, rows: 2 };
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let columns = [1.0, 10.0, 100.0, 0.5, 0.0, -1.0];
        let weights = ProjectionWeights { detector, pad: [2, 1], image: &image[..], columns: &columns };
        let projections: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let mut weighted = vec![f32::NAN; 2 * 2 * 6];
        assert!(weight_projections(&weights, &projections, &mut weighted).is_ok());
        let expected = [
            [0.0, 0.0, 1.0, 40.0, 900.0, 0.0],
            [0.0, 0.0, 16.0, 250.0, 3600.0, 0.0],
            [0.0, 0.0, 3.5, 0.0, -27.0, 0.0],
            [0.0, 0.0, 20.0, 0.0, -72.0, 0.0],
        ];
        assert_eq!(weighted, expected.concat());
        let two = ProjectionWeights { image: &[1.0; 12][..], ..weights };
        assert!(weight_projections(&two, &projections, &mut weighted).is_ok());
        let wrong = weight_projections(&weights, &projections[..11], &mut weighted).unwrap_err();
        assert!(wrong.to_string().contains("`projections` holds 11 values"), "{wrong}");
    }
}
