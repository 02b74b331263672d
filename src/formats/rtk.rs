//! RTK's `ThreeDCircularProjectionGeometry` (XML, version 3) with its projection stack (MetaImage).
//!
//! **Axes.** RTK's rotation axis is y and its source stands on +z at gantry angle 0; ours are z and +x:
//! (our x, y, z) = (RTK's z, x, y). RTK's volume index (i, j, k) runs along its x, y, z.
//!
//! **Pose.** In a frame that turns with the gantry, the source is at (SourceOffsetX, SourceOffsetY, SourceToIsocenterDistance), and the
//! detector's point with stack coordinates (px, py) (its `Offset` + index x `ElementSpacing`) at (px + ProjectionOffsetX,
//! py + ProjectionOffsetY, SourceToIsocenterDistance - SourceToDetectorDistance). The frame is turned into the fixed one by
//! `Ry(GantryAngle) Rx(OutOfPlaneAngle) Rz(InPlaneAngle)`, angles in degrees (RTK's ZXY Euler angles).
//!
//! **Rows.** RTK's rows run towards +y, that is our +z; ours run towards -z. Rows are turned over on reading and writing, so
//! that an ideal orbit reads as one.
//!
//! Each `<Projection>`'s `<Matrix>`, where there is one, is compared with the pose made from the parameters: a file whose two
//! statements differ is refused.

mod xml;

use std::f64::consts::PI;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use glam::{DMat3, DVec3};
use ndarray::{Array3, ArrayView3, Axis};

use super::metaimage::{self, Element, MetaImage};
use super::{FormatError, Scan, SceneScale, write_whole};
use crate::geometry::{Detector, ScanGeometry, ViewPose, VolumeGrid};
use xml::{Projection, parse};

/// A position or direction in our frame from one in RTK's.
fn ours(rtk: DVec3) -> DVec3 {
    DVec3::new(rtk.z, rtk.x, rtk.y)
}

/// A position or direction in RTK's frame from one in ours.
fn theirs(ours: DVec3) -> DVec3 {
    DVec3::new(ours.y, ours.z, ours.x)
}

/// Reads a geometry and its stack of projections.
///
/// Values are line integrals where elements are floats. A stack of unsigned short holds counts, which need the unattenuated count
/// `counts_without_object` to become line integrals, `ln(I0 / max(N, 1))`. The grid is [`default_grid`]'s; lengths are taken as mm, and the
/// scale as not absolute: RTK's files say neither.
///
/// # Errors
/// [`FormatError`] naming the field; also where the numbers of views differ.
pub fn read(geometry: &Path, stack: &Path, counts_without_object: Option<f64>) -> Result<Scan, FormatError> {
    let projections = read_geometry_xml(geometry)?;
    let image = metaimage::read(stack)?;
    let (views, rows, columns) = image.values.dim();
    if views != projections.len() {
        return Err(FormatError::field(
            stack,
            "DimSize[2]",
            views,
            format!("must be the number of <Projection> in {}: {}", geometry.display(), projections.len()),
        ));
    }
    let values = line_integrals(stack, &image, counts_without_object)?;
    let detector = Detector { columns, rows };
    let poses = projections.iter().map(|projection| pose(projection, &image, rows)).collect();
    let scan_geometry = ScanGeometry { detector, views: poses };
    scan_geometry.check().map_err(|reason| FormatError::Geometry { path: geometry.to_path_buf(), reason })?;
    for (view, projection) in projections.iter().enumerate() {
        check_matrix(geometry, view, projection)?;
    }
    Ok(Scan {
        grid: default_grid(&scan_geometry),
        geometry: scan_geometry,
        projections: values,
        scale: SceneScale::unstated(),
        patient_offset_mm: DVec3::ZERO,
    })
}

fn read_geometry_xml(path: &Path) -> Result<Vec<Projection>, FormatError> {
    let text = super::read_text(path, 64 << 20)?;
    parse(path, &text)
}

/// Turns rows over, and counts into line integrals.
fn line_integrals(path: &Path, image: &MetaImage, counts: Option<f64>) -> Result<Array3<f32>, FormatError> {
    let mut values = image.values.clone();
    values.invert_axis(Axis(1));
    let mut values = values.as_standard_layout().into_owned();
    match (image.element, counts) {
        (Element::F32 | Element::F64, None) => {}
        (Element::U16, Some(open)) if open.is_finite() && open >= 1.0 => {
            // A pixel without a single count is taken as one count: the largest line integral the stack can tell.
            values.mapv_inplace(|count| (open / f64::from(count).max(1.0)).ln() as f32);
        }
        (Element::U16, Some(open)) => {
            return Err(FormatError::field(path, "counts without object", open, "must be finite and at least 1"));
        }
        (Element::U16, None) => {
            return Err(FormatError::field(
                path,
                "ElementType",
                "MET_USHORT",
                "these are counts; state the count without an object, or convert the stack to line integrals",
            ));
        }
        (element, _) => {
            return Err(FormatError::field(
                path,
                "ElementType",
                format!("{element:?}"),
                "a stack holds line integrals as MET_FLOAT, or counts as MET_USHORT with their count without an object",
            ));
        }
    }
    Ok(values)
}

/// Rotation from the gantry's frame to the fixed one, in RTK's axes.
fn rotation(projection: &Projection) -> DMat3 {
    let rad = |degrees: f64| degrees * PI / 180.0;
    DMat3::from_rotation_y(rad(projection.gantry_deg))
        * DMat3::from_rotation_x(rad(projection.out_of_plane_deg))
        * DMat3::from_rotation_z(rad(projection.in_plane_deg))
}

fn pose(projection: &Projection, image: &MetaImage, rows: usize) -> ViewPose {
    let turn = rotation(projection);
    let (step_x, step_y) = (image.spacing_mm.x, image.spacing_mm.y);
    let top = image.offset_mm.y + (rows as f64 - 1.0) * step_y;
    let origin = DVec3::new(
        image.offset_mm.x + projection.projection_offset_x,
        top + projection.projection_offset_y,
        projection.source_to_isocenter - projection.source_to_detector,
    );
    let source = DVec3::new(projection.source_offset_x, projection.source_offset_y, projection.source_to_isocenter);
    ViewPose {
        source_mm: ours(turn * source),
        detector_origin_mm: ours(turn * origin),
        column_step_mm: ours(turn * DVec3::new(step_x, 0.0, 0.0)),
        row_step_mm: ours(turn * DVec3::new(0.0, -step_y, 0.0)),
    }
}

/// Compares the file's matrix (RTK point to stack coordinates, homogeneous) with the parameters at a few points.
fn check_matrix(path: &Path, view: usize, projection: &Projection) -> Result<(), FormatError> {
    let Some(matrix) = &projection.matrix else { return Ok(()) };
    let turn = rotation(projection).transpose();
    let source = DVec3::new(projection.source_offset_x, projection.source_offset_y, projection.source_to_isocenter);
    let reach = 0.1 * projection.source_to_isocenter;
    for point in [DVec3::ZERO, DVec3::X, DVec3::Y, DVec3::Z, DVec3::ONE].map(|p| p * reach) {
        let row = |r: usize| {
            matrix[4 * r] * point.x + matrix[4 * r + 1] * point.y + matrix[4 * r + 2] * point.z + matrix[4 * r + 3]
        };
        let stated = (row(0) / row(2), row(1) / row(2));
        // The ray from the source through the point meets the detector's plane, in the gantry's frame.
        let turned = turn * point;
        let stretch = projection.source_to_detector / (source.z - turned.z);
        let met = source + stretch * (turned - source);
        let expected = (met.x - projection.projection_offset_x, met.y - projection.projection_offset_y);
        let away = (stated.0 - expected.0).abs().max((stated.1 - expected.1).abs());
        // RTK prints 15 digits; a thousandth of a detector's distance is a different geometry, not rounding.
        if away.is_nan() || away > 1e-5 * projection.source_to_detector {
            return Err(FormatError::field(
                path,
                format!("Projection[{view}].Matrix"),
                format!("sends RTK point {point} to ({:.3}, {:.3})", stated.0, stated.1),
                format!(
                    "the parameters send it to ({:.3}, {:.3}): write the geometry again with RTK",
                    expected.0, expected.1
                ),
            ));
        }
    }
    Ok(())
}

/// A grid that covers what the detector sees, at the pixel's size at the isocenter: RTK's geometry names none.
///
/// Across the axis it reaches as far as the farther edge of the detector (so a half-fan scan gets its whole disc); along the axis
/// it covers the rows at the isocenter.
#[must_use]
pub fn default_grid(geometry: &ScanGeometry) -> VolumeGrid {
    let Some(view) = geometry.views.first() else {
        return VolumeGrid::over_box([1; 3], DVec3::ONE, DVec3::ZERO);
    };
    let depth = view.source_mm.length() / view.source_to_plane_mm();
    let (rows, columns) = (geometry.detector.rows as f64, geometry.detector.columns as f64);
    // Foot of the perpendicular from the isocenter, in pixels.
    let (u, v) = view.project(DVec3::ZERO).map_or((0.5 * columns, 0.5 * rows), |(u, v, _)| (u, v));
    let (pitch_u, pitch_v) = (view.column_step_mm.length() * depth, view.row_step_mm.length() * depth);
    let reach = (u + 0.5).abs().max((columns - 0.5 - u).abs());
    let across = ((2.0 * reach).round().max(1.0) as usize).min(8192);
    let up = if view.row_step_mm.z > 0.0 { 1.0 } else { -1.0 };
    let centre_z = up * (0.5 * (rows - 1.0) - v) * pitch_v;
    let along = geometry.detector.rows.min(8192);
    VolumeGrid {
        voxels: [across, across, along],
        voxel_mm: DVec3::new(pitch_u, pitch_u, pitch_v),
        centre_mm: DVec3::new(0.0, 0.0, centre_z),
    }
}

/// Writes a scan as RTK reads it, e.g. to run RTK beside ours on the same data: geometry XML and stack (`.mha`, float32).
///
/// # Errors
/// [`FormatError`] where a pose is not RTK's (axes of the detector not orthogonal, pitch changing from view to view) or a file cannot be
/// written.
pub fn write(geometry: &Path, stack: &Path, scan: &Scan) -> Result<(), FormatError> {
    let detector = scan.geometry.detector;
    let refuse = |view: usize, what: &str| {
        Err(FormatError::field(geometry, format!("views[{view}]"), what, "RTK's geometry cannot express this"))
    };
    let Some(first) = scan.geometry.views.first() else {
        return refuse(0, "no views");
    };
    let (pitch_u, pitch_v) = (first.column_step_mm.length(), first.row_step_mm.length());
    let half = |count: usize| 0.5 * (count as f64 - 1.0);
    let mut text =
        String::from("<?xml version=\"1.0\"?>\n<!DOCTYPE RTKGEOMETRY>\n<RTKThreeDCircularGeometry version=\"3\">\n");
    for (view, pose) in scan.geometry.views.iter().enumerate() {
        let (x, y) = (theirs(pose.column_step_mm), theirs(-pose.row_step_mm));
        if (x.length() - pitch_u).abs() > 1e-9 * pitch_u || (y.length() - pitch_v).abs() > 1e-9 * pitch_v {
            return refuse(view, "the pixel pitch changes");
        }
        let (x, y) = (x / pitch_u, y / pitch_v);
        if x.dot(y).abs() > 1e-9 {
            return refuse(view, "the detector's axes are not orthogonal");
        }
        let z = x.cross(y);
        let turn = DMat3::from_cols(x, y, z);
        let source = turn.transpose() * theirs(pose.source_mm);
        let centre = turn.transpose() * theirs(pose.pixel_mm(half(detector.rows), half(detector.columns)));
        if source.z <= 0.0 || source.z - centre.z <= 0.0 {
            return refuse(view, "the source is not in front of detector and isocenter");
        }
        // Third column of Ry Rx Rz: (sin g cos o, -sin o, cos g cos o); second row: (cos o sin i, cos o cos i, -sin o).
        let degrees = 180.0 / PI;
        let gantry = z.x.atan2(z.z) * degrees;
        let out_of_plane = (-z.y).clamp(-1.0, 1.0).asin() * degrees;
        let in_plane = x.y.atan2(y.y) * degrees;
        text.push_str("  <Projection>\n");
        for (key, value) in [
            ("SourceToIsocenterDistance", source.z),
            ("SourceToDetectorDistance", source.z - centre.z),
            ("GantryAngle", gantry.rem_euclid(360.0)),
            ("OutOfPlaneAngle", out_of_plane),
            ("InPlaneAngle", in_plane),
            ("SourceOffsetX", source.x),
            ("SourceOffsetY", source.y),
            ("ProjectionOffsetX", centre.x),
            ("ProjectionOffsetY", centre.y),
        ] {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "    <{key}>{value}</{key}>");
        }
        // RTK's reader wants the matrix that follows from the parameters, too.
        let matrix = stack_matrix(turn, source, centre);
        let _ = writeln!(text, "    <Matrix>");
        for row in matrix {
            let _ = writeln!(text, "      {} {} {} {}", row[0], row[1], row[2], row[3]);
        }
        text.push_str("    </Matrix>\n  </Projection>\n");
    }
    text.push_str("</RTKThreeDCircularGeometry>\n");
    let mut values = scan.projections.view();
    values.invert_axis(Axis(1));
    let offset = DVec3::new(-half(detector.columns) * pitch_u, -half(detector.rows) * pitch_v, 0.0);
    metaimage::write(stack, values, offset, DVec3::new(pitch_u, pitch_v, 1.0))?;
    write_whole(geometry, |writer| writer.write_all(text.as_bytes()))
}

/// RTK's 3 x 4 matrix from fixed coordinates to stack coordinates, scaled as RTK does: the third row is the negative depth.
fn stack_matrix(turn: DMat3, source: DVec3, centre: DVec3) -> [[f64; 4]; 3] {
    let sdd = source.z - centre.z;
    let back = turn.transpose();
    // In the gantry's frame: u = s_x + sdd (p_x - s_x) / (s_z - p_z) - centre_x; times (p_z - s_z).
    let row = |axis: DVec3, s: f64, c: f64| {
        let gantry = axis * -sdd + DVec3::Z * (s - c);
        let constant = sdd * s - (s - c) * source.z;
        let fixed = back.transpose() * gantry;
        [fixed.x, fixed.y, fixed.z, constant]
    };
    let depth = back.transpose() * DVec3::Z;
    [row(DVec3::X, source.x, centre.x), row(DVec3::Y, source.y, centre.y), [depth.x, depth.y, depth.z, -source.z]]
}

/// A volume of RTK as ours: values `[x][y][z]` and their grid.
#[must_use]
pub fn volume_from_rtk(image: &MetaImage) -> (Array3<f32>, VolumeGrid) {
    let (nk, nj, ni) = image.values.dim();
    // Ours [x][y][z] is RTK's [k][i][j].
    let values = image.values.view().permuted_axes([0, 2, 1]).as_standard_layout().into_owned();
    let counts = DVec3::new(nk as f64, ni as f64, nj as f64);
    let voxel_mm = ours(image.spacing_mm);
    let centre_mm = ours(image.offset_mm) + 0.5 * (counts - 1.0) * voxel_mm;
    (values, VolumeGrid { voxels: [nk, ni, nj], voxel_mm, centre_mm })
}

/// Writes a volume `[x][y][z]` of ours as RTK's.
///
/// # Errors
/// See [`metaimage::write`].
pub fn write_volume(path: &Path, values: ArrayView3<'_, f32>, grid: &VolumeGrid) -> Result<(), FormatError> {
    metaimage::write(path, values.permuted_axes([0, 2, 1]), theirs(grid.origin_mm()), theirs(grid.voxel_mm))
}

#[cfg(test)]
mod tests;
