//! One scan of a subject, and the subject's reference, as files.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, Array3, Axis};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::body::{Body, BodyGeometry, difference_hu, slices_hu};
use super::draw::{AngleLaw, DegradedBy, ELECTRONIC_SIGMA, ScanDraw};
use super::{CurateError, FORMAT, Options, Subject, hex};
use crate::formats::picture::Window;
use crate::formats::safetensors::{self, Tensor, Values};
use crate::geometry::{FieldOfView, VolumeGrid, biplanar_pair};
use crate::measure;
use crate::reconstruct::optimise::USUAL_ITERATIONS;

/// Metadata of a file.
pub(super) type Strings = BTreeMap<String, String>;

/// Name of a subject's reference in its folder.
pub(super) const REFERENCE_FILE: &str = "reference.safetensors";

/// Name of a scan's shard in its subject's folder.
pub(super) fn file_name(index: usize) -> String {
    format!("{index:03}.safetensors")
}

/// SHA-256 of all that decides a shard (`index`) or the reference (`None`).
pub(super) fn parameters_sha256(options: &Options, subject: &Subject, index: Option<usize>) -> String {
    let all = json!({
        "format": FORMAT,
        "version": env!("CARGO_PKG_VERSION"),
        "options": options,
        "name": subject.name,
        "anatomy": subject.anatomy,
        "licence": subject.licence,
        "split": subject.split,
        "sha256": subject.sha256,
        "index": index,
    });
    hex(&Sha256::digest(all.to_string()))
}

/// Metadata of a whole file that was made with these parameters; `None` where it has to be made.
pub(super) fn made_already(path: &Path, parameters_sha256: &str) -> Option<Strings> {
    let contents = safetensors::read(path).ok()?;
    (contents.metadata.get("parameters_sha256")? == parameters_sha256).then_some(contents.metadata)
}

fn strings<const N: usize>(pairs: [(&str, String); N]) -> Strings {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What all files of a subject say.
fn of_subject(options: &Options, subject: &Subject, body: &Body, parameters_sha256: &str) -> Strings {
    strings([
        ("format", FORMAT.into()),
        ("subject", subject.name.clone()),
        ("anatomy", subject.anatomy.clone()),
        ("split", subject.split.name().into()),
        ("voxel_mm", json!(body.grid.voxel_mm.x).to_string()),
        ("mu_water_per_mm", json!(options.mu_water_per_mm).to_string()),
        ("source", subject.source_name()),
        ("licence", subject.licence.clone().unwrap_or_default()),
        ("parameters_sha256", parameters_sha256.into()),
    ])
}

/// Writes the reference.
pub(super) fn write_reference(
    path: &Path,
    options: &Options,
    subject: &Subject,
    body: &Body,
    parameters_sha256: &str,
) -> Result<(), CurateError> {
    let reference = &body.reference_hu;
    let tensors = [Tensor {
        name: "reference_hu",
        shape: reference.shape().to_vec(),
        values: Values::I16(reference.as_slice().unwrap_or(&[])),
    }];
    Ok(safetensors::write(path, &tensors, &of_subject(options, subject, body, parameters_sha256))?)
}

/// Slices that are measured in each column of voxels, first and one past the last, `[2][y][x]`; 0, 0 where none is.
fn measured_slices(field_of_view: &FieldOfView, grid: &VolumeGrid) -> Array3<i16> {
    let [nx, ny, nz] = grid.voxels;
    let mut ends = Array3::zeros((2, ny, nx));
    for y in 0..ny {
        for x in 0..nx {
            let inside = |z: &usize| field_of_view.contains(grid.voxel_centre_mm(x, y, *z));
            // The region has no holes along z.
            if let (Some(first), Some(last)) = ((0..nz).find(inside), (0..nz).rev().find(inside)) {
                (ends[[0, y, x]], ends[[1, y, x]]) = (first as i16, last as i16 + 1);
            }
        }
    }
    ends
}

/// PSNR of rounded HU over the window's 2000 HU within what is measured, as `diffnr evaluate --fov` has it.
fn psnr_db(
    degraded: &Array3<i16>,
    reference: &Array3<i16>,
    measured: &Array3<i16>,
) -> Result<f64, measure::MeasureError> {
    let mask = Array3::from_shape_fn(degraded.dim(), |(z, y, x)| {
        (measured[[0, y, x]]..measured[[1, y, x]]).contains(&(z as i16))
    });
    let window = Window::WIDE;
    let (a, b) = (degraded.mapv(f32::from), reference.mapv(f32::from));
    measure::psnr_db(a.view(), b.view(), f64::from(window.high - window.low), Some(mask.view()))
}

/// Writes a scan's shard; returns its metadata.
pub(super) fn write(
    path: &Path,
    (options, subject, body): (&Options, &Subject, &Body),
    (draw, geometry): (&ScanDraw, &BodyGeometry),
    (projections, volume, unexplained): (&Array3<f32>, &Array3<f32>, &Array3<f32>),
    parameters_sha256: &str,
) -> Result<Strings, CurateError> {
    let scan = format!("{}, scan {}", subject.name, draw.index);
    let degraded = slices_hu(volume.view(), options.mu_water_per_mm);
    // A difference: water's attenuation as 1000 HU, no offset.
    let unexplained = difference_hu(unexplained.view(), options.mu_water_per_mm);
    let angles: Vec<f64> = draw.views.iter().map(|&view| geometry.angle_rad(view)).collect();
    // Options ask for at least two views.
    let pair = biplanar_pair(&angles).unwrap_or([0, 0]);
    let biplanar = projections.select(Axis(0), &pair);
    let measured = measured_slices(&geometry.field_of_view, &geometry.grid);
    let inside: Array2<u8> = measured.index_axis(Axis(0), 1).mapv(|end| u8::from(end > 0));
    let psnr_db = psnr_db(&degraded, &body.reference_hu, &measured)
        .map_err(|reason| CurateError::Measure { scan: scan.clone(), reason })?;

    let views_rad: Vec<f32> = angles.iter().map(|&angle| angle as f32).collect();
    let tensors = [
        Tensor {
            name: "degraded_hu",
            shape: degraded.shape().to_vec(),
            values: Values::I16(degraded.as_slice().unwrap_or(&[])),
        },
        Tensor {
            name: "unexplained_hu",
            shape: unexplained.shape().to_vec(),
            values: Values::I16(unexplained.as_slice().unwrap_or(&[])),
        },
        Tensor {
            name: "projections",
            shape: biplanar.shape().to_vec(),
            values: Values::F32(biplanar.as_slice().unwrap_or(&[])),
        },
        Tensor { name: "views_rad", shape: vec![views_rad.len()], values: Values::F32(&views_rad) },
        Tensor { name: "inside", shape: inside.shape().to_vec(), values: Values::U8(inside.as_slice().unwrap_or(&[])) },
        Tensor {
            name: "inside_z",
            shape: measured.shape().to_vec(),
            values: Values::I16(measured.as_slice().unwrap_or(&[])),
        },
    ];
    let mut metadata = of_subject(options, subject, body, parameters_sha256);
    metadata.extend(of_scan(draw, geometry, options));
    metadata.insert("biplanar_views".into(), json!(pair).to_string());
    metadata.insert("biplanar_rad".into(), json!(pair.map(|view| angles[view])).to_string());
    metadata.insert("psnr_db".into(), format!("{psnr_db:.3}"));
    safetensors::write(path, &tensors, &metadata)?;
    Ok(metadata)
}

fn of_scan(draw: &ScanDraw, geometry: &BodyGeometry, options: &Options) -> Strings {
    let orbit = &geometry.orbit;
    let place = json!({
        "detector_place": geometry.place,
        "source_to_isocenter_mm": orbit.source_to_isocenter_mm,
        "source_to_detector_mm": orbit.source_to_detector_mm,
        "detector_rows_columns": [orbit.detector.rows, orbit.detector.columns],
        "pitch_u_v_mm": [orbit.pitch_u_mm, orbit.pitch_v_mm],
        "offset_u_v_mm": [orbit.offset_u_mm, orbit.offset_v_mm],
        "grid_centre_mm": geometry.grid.centre_mm.to_array(),
        "views_dense": options.views_dense,
        "number": draw.geometry,
    });
    let share = match draw.by {
        DegradedBy::Gaussians(n) | DegradedBy::Field(n) => json!(n as f64 / USUAL_ITERATIONS as f64).to_string(),
        DegradedBy::Fdk(_) | DegradedBy::OsSart(_) => String::new(),
    };
    let mut all = strings([
        ("method", draw.by.name().into()),
        ("iterations", draw.by.iterations().to_string()),
        ("share_of_iterations", share),
        ("views", draw.views.len().to_string()),
        ("angles", draw.law.name().into()),
        ("photons", draw.photons.map_or("none".into(), |n| format!("{n:.0}"))),
        ("electronic_noise", if draw.photons.is_some() { json!(ELECTRONIC_SIGMA).to_string() } else { "0".into() }),
        ("geometry", place.to_string()),
        ("seed", draw.seed.to_string()),
        ("scan", draw.index.to_string()),
        ("fov_radius_mm", json!(geometry.field_of_view.radius_mm).to_string()),
    ]);
    if let DegradedBy::Fdk(window) = draw.by {
        all.insert("window".into(), window.name().into());
    }
    if let AngleLaw::Arc { missing_from_rad, missing_rad } = draw.law {
        all.insert("missing_arc_rad".into(), json!([missing_from_rad, missing_rad]).to_string());
    }
    all
}
