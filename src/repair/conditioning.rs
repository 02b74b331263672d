//! What a model is told of a scan: two views at right angles, and the part of the body.

#![forbid(unsafe_code)]

use ndarray::{ArrayView2, ArrayView3, Axis};

use super::RepairError;
use crate::geometry::{ScanGeometry, biplanar_pair};

/// Two of the scan's views, as they were measured, and the part of the body.
#[derive(Debug, Clone, Copy)]
pub struct Conditioning<'a> {
    /// Line integrals `[row v][column u]`, dimensionless, row 0 the highest: the view near 0 and the one near 90 degrees.
    pub views: [ArrayView2<'a, f32>; 2],
    /// `chest`, `head`, ...; one that the model does not know counts as "other".
    pub anatomy: &'a str,
}

impl<'a> Conditioning<'a> {
    /// The biplanar pair of a scan (see [`biplanar_pair`]); `projections` are line integrals `[view][v][u]`.
    ///
    /// # Errors
    /// [`RepairError::Input`] where there are fewer than two views, or geometry and projections do not belong together.
    pub fn of_scan(
        geometry: &ScanGeometry,
        projections: ArrayView3<'a, f32>,
        anatomy: &'a str,
    ) -> Result<Self, RepairError> {
        let shape = [geometry.views.len(), geometry.detector.rows, geometry.detector.columns];
        if projections.shape() != shape {
            let found = format!("{:?}", projections.shape());
            return Err(RepairError::input("projections' shape", found, format!("must be the geometry's, {shape:?}")));
        }
        let angles: Vec<f64> = geometry.views.iter().map(|view| view.source_angle_rad()).collect();
        let pair = biplanar(&angles)?;
        Ok(Self { views: pair.map(|view| projections.index_axis_move(Axis(0), view)), anatomy })
    }
}

/// Which of the views at these angles condition the model.
///
/// # Errors
/// [`RepairError::Input`] where there are fewer than two.
pub(crate) fn biplanar(angles_rad: &[f64]) -> Result<[usize; 2], RepairError> {
    let refuse = || RepairError::input("views", angles_rad.len(), "two at least are needed to condition SliceFixer");
    biplanar_pair(angles_rad).ok_or_else(refuse)
}

/// A view averaged to `rows x columns`: each cell is the plain mean of the pixels from `floor(i n / rows)` to `ceil((i + 1) n / rows)`, as
/// `interpolate(mode="area")` of the training has it (pixels at a border count in both cells).
///
/// # Errors
/// [`RepairError::Input`] for a view that is empty or holds values that are no numbers.
pub(super) fn average_onto(
    view: ArrayView2<'_, f32>,
    [rows, columns]: [usize; 2],
    out: &mut [f32],
) -> Result<(), RepairError> {
    let (height, width) = view.dim();
    if height == 0 || width == 0 {
        return Err(RepairError::input("a view", format!("{height} x {width} pixels"), "must hold pixels"));
    }
    if let Some(((v, u), value)) = view.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(RepairError::input(format!("a view's pixel [{v}, {u}]"), value, "must be finite"));
    }
    let cell = |index: usize, from: usize, to: usize| index * from / to..((index + 1) * from).div_ceil(to);
    for (row, line) in out.chunks_exact_mut(columns).enumerate().take(rows) {
        let rows_of = cell(row, height, rows);
        for (column, value) in line.iter_mut().enumerate() {
            let columns_of = cell(column, width, columns);
            let pixels = rows_of.clone().flat_map(|v| columns_of.clone().map(move |u| f64::from(view[[v, u]])));
            *value = (pixels.sum::<f64>() / (rows_of.len() * columns_of.len()) as f64) as f32;
        }
    }
    Ok(())
}
