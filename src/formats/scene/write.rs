//! Writing a scene folder.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ndarray::{ArrayView3, Axis};
use serde_json::{Map, Value, json};

use super::super::{FormatError, SceneScale, npy, write_whole};
use super::{META_FILE, Scene, orbit};
use crate::geometry::{ScanGeometry, ViewPose};

/// Writes a scene folder, creating it where it is missing. The description is written last: a folder without it is unfinished.
///
/// Poses that no circular orbit expresses are written under `"diffnr"`; `scanner` and `angle` then describe the orbit nearest to the
/// first view.
///
/// # Errors
/// [`FormatError`] where the parts do not fit each other (view counts, shapes), the geometry fails its own check, or the
/// folder cannot be written.
pub fn write(folder: &Path, scene: &Scene) -> Result<(), FormatError> {
    let scan = &scene.scan;
    let path = folder.join(META_FILE);
    check(&path, scene)?;

    create(folder)?;
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(FormatError::io(&path, "replace", source));
        }
        _ => {}
    }
    let factor = scan.scale.line_integral_per_stored();
    let (orbit, angles, circular) = orbit::fit(&scan.geometry);
    let unit = scan.scale.unit_mm;
    let train = write_stack(folder, "proj_train", scan.projections.view(), factor, &angles)?;
    let mut own = own_keys(scene);
    if !circular {
        own.insert("poses_train".into(), poses(&scan.geometry.views));
    }
    let mut test = Value::Array(Vec::new());
    if let Some(views) = &scene.test {
        let (other, angles, fits) = orbit::fit(&views.geometry);
        test = write_stack(folder, "proj_test", views.projections.view(), factor, &angles)?;
        let same_orbit = fits && orbit_agrees(&orbit.at_angles(&angles), &views.geometry);
        if !same_orbit || other.detector != orbit.detector {
            own.insert("poses_test".into(), poses(&views.geometry.views));
        }
    }
    if let Some(raw) = &scene.raw {
        let folder_raw = folder.join("proj_raw");
        create(&folder_raw)?;
        let mut names = Vec::new();
        for (view, image) in raw.counts.axis_iter(Axis(0)).enumerate() {
            let name = format!("proj_raw/proj_train_{view:04}.npy");
            npy::write_counts(&folder.join(&name), image)?;
            names.push(name);
        }
        npy::write_image(&folder_raw.join("dark.npy"), raw.dark.view())?;
        npy::write_image(&folder_raw.join("flat.npy"), raw.flat.view())?;
        own.insert(
            "raw".into(),
            json!({"proj_train": names, "dark": "proj_raw/dark.npy", "flat": "proj_raw/flat.npy", "gain": raw.gain}),
        );
    }

    let grid = &scan.grid;
    let size = grid.size_mm() / unit;
    let centre = grid.centre_mm / unit;
    let detector = scan.geometry.detector;
    let (start, total) = arc_deg(&angles);
    let mut root = json!({
        "scanner": {
            "mode": "cone",
            "DSD": orbit.source_to_detector_mm / unit,
            "DSO": orbit.source_to_isocenter_mm / unit,
            "nDetector": [detector.rows, detector.columns],
            "sDetector": [orbit.pitch_v_mm * detector.rows as f64 / unit, orbit.pitch_u_mm * detector.columns as f64 / unit],
            "nVoxel": grid.voxels,
            "sVoxel": size.to_array(),
            "offOrigin": centre.to_array(),
            "offDetector": [orbit.offset_u_mm / unit, orbit.offset_v_mm / unit],
            "totalAngle": total,
            "startAngle": start,
            "accuracy": 0.5,
            "noise": scene.acquisition.photons.is_some(),
            "filter": null,
        },
        "bbox": [(centre - 0.5 * size).to_array(), (centre + 0.5 * size).to_array()],
        "proj_train": train,
        "proj_test": test,
        "diffnr": own,
    });
    if let Some(volume) = &scene.ground_truth_per_mm {
        npy::write_volume(&folder.join("vol_gt.npy"), scan.scale.volume_values(volume.view()).view())?;
        root["vol"] = json!("vol_gt.npy");
    }
    write_whole(&path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, &root)?;
        writer.write_all(b"\n")
    })
}

/// Refuses scenes whose parts do not fit each other.
fn check(path: &Path, scene: &Scene) -> Result<(), FormatError> {
    let scan = &scene.scan;
    let geometry_error = |reason| FormatError::Geometry { path: path.to_path_buf(), reason };
    scan.geometry.check().map_err(geometry_error)?;
    scan.grid.check().map_err(geometry_error)?;
    let detector = scan.geometry.detector;
    let fit = |what: &str, found: &[usize], expected: &[usize]| {
        if found == expected {
            return Ok(());
        }
        Err(FormatError::field(path, what, format!("{found:?}"), format!("must be {expected:?}")))
    };
    let stack = [scan.geometry.views.len(), detector.rows, detector.columns];
    fit("projections' shape", scan.projections.shape(), &stack)?;
    if let Some(test) = &scene.test {
        test.geometry.check().map_err(geometry_error)?;
        let stack = [test.geometry.views.len(), detector.rows, detector.columns];
        fit("test projections' shape", test.projections.shape(), &stack)?;
    }
    if let Some(volume) = &scene.ground_truth_per_mm {
        fit("ground truth's shape", volume.shape(), &scan.grid.voxels)?;
    }
    if let Some(raw) = &scene.raw {
        fit("raw counts' shape", raw.counts.shape(), &stack)?;
        fit("dark image's shape", raw.dark.shape(), &stack[1..])?;
        fit("flat image's shape", raw.flat.shape(), &stack[1..])?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<(), FormatError> {
    fs::create_dir_all(folder).map_err(|source| FormatError::io(folder, "create the folder", source))
}

fn write_stack(
    folder: &Path,
    list: &str,
    stack: ArrayView3<'_, f32>,
    factor: f64,
    angles: &[f64],
) -> Result<Value, FormatError> {
    create(&folder.join(list))?;
    let mut entries = Vec::new();
    for (view, (image, angle)) in stack.axis_iter(Axis(0)).zip(angles).enumerate() {
        let name = format!("{list}/{list}_{view:04}.npy");
        let stored = image.mapv(|value| (f64::from(value) / factor) as f32);
        npy::write_image(&folder.join(&name), stored.view())?;
        entries.push(json!({"file_path": name, "angle": angle}));
    }
    Ok(Value::Array(entries))
}

fn own_keys(scene: &Scene) -> Map<String, Value> {
    let (scan, acquisition) = (&scene.scan, &scene.acquisition);
    let mut own = Map::new();
    own.insert("version".into(), json!(1));
    // A scene that stated one of the two keeps that one, and does not become absolute by being written.
    let unstated = SceneScale::unstated();
    for (key, value, default) in [
        ("unit_mm", scan.scale.unit_mm, unstated.unit_mm),
        ("mu_per_value_per_mm", scan.scale.mu_per_value_per_mm, unstated.mu_per_value_per_mm),
        ("mu_water_per_mm", scan.scale.mu_water_per_mm, unstated.mu_water_per_mm),
    ] {
        if scan.scale.is_absolute || value != default {
            own.insert(key.into(), json!(value));
        }
    }
    own.insert("patient_offset_mm".into(), json!(scan.patient_offset_mm.to_array()));
    let known = [("photons", acquisition.photons), ("electronic_noise_sigma", acquisition.electronic_noise_sigma)];
    for (key, value) in known {
        if let Some(value) = value {
            own.insert(key.into(), json!(value));
        }
    }
    if let Some(seed) = acquisition.seed {
        own.insert("seed".into(), json!(seed));
    }
    own
}

fn poses(views: &[ViewPose]) -> Value {
    let pose = |view: &ViewPose| {
        json!({
            "source_mm": view.source_mm.to_array(),
            "detector_origin_mm": view.detector_origin_mm.to_array(),
            "column_step_mm": view.column_step_mm.to_array(),
            "row_step_mm": view.row_step_mm.to_array(),
        })
    };
    Value::Array(views.iter().map(pose).collect())
}

fn orbit_agrees(a: &ScanGeometry, b: &ScanGeometry) -> bool {
    a.views.iter().zip(&b.views).all(|(a, b)| {
        let near = |x: glam::DVec3, y: glam::DVec3| (x - y).abs().max_element() <= 1e-6;
        near(a.source_mm, b.source_mm)
            && near(a.detector_origin_mm, b.detector_origin_mm)
            && near(a.column_step_mm, b.column_step_mm)
            && near(a.row_step_mm, b.row_step_mm)
    })
}

/// Start and length of the arc that the angles cover, in degrees: the turn less its largest gap; a full turn where no gap
/// stands out. Informative only: every view has its own angle.
fn arc_deg(angles: &[f64]) -> (f64, f64) {
    let mut sorted: Vec<f64> = angles.iter().map(|angle| angle.to_degrees()).collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(&first), Some(&last)) = (sorted.first(), sorted.last()) else { return (0.0, 0.0) };
    let wrap = (first + 360.0 - last, first);
    let gaps = sorted.windows(2).map(|pair| (pair[1] - pair[0], pair[1]));
    let (gap, start) = gaps.fold(wrap, |best, next| if next.0 > best.0 { next } else { best });
    let mean = 360.0 / sorted.len() as f64;
    if gap <= 3.0 * mean { (angles[0].to_degrees(), 360.0) } else { (start, 360.0 - gap) }
}
