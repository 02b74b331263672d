//! A handful of pairs side by side, to see at a glance what was made.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array3;

use super::CurateError;
use crate::formats::picture::{Panel, Window, write_rows};
use crate::formats::{FormatError, safetensors};

/// Name of the picture.
pub const PICTURE_FILE: &str = "curation.png";

/// Pairs shown.
const ROWS: usize = 8;

/// Draws some of `shards` (path below `folder`, method, path of the reference below `folder`): every method, spread over the subjects.
pub(super) fn write(folder: &Path, path: &Path, shards: &[(String, String, String)]) -> Result<(), CurateError> {
    let mut rows = Vec::new();
    for (shard, _, reference) in chosen(shards) {
        let (degraded, strings) = volume(&folder.join(shard), "degraded_hu")?;
        let (reference, _) = volume(&folder.join(reference), "reference_hu")?;
        let text = |key: &str| strings.get(key).map_or("", String::as_str);
        let spacing: f64 = text("voxel_mm").parse().unwrap_or(1.0);
        let method = match text("method") {
            "fdk" => format!("fdk {}", text("window")),
            method => format!("{method} {} iterations", text("iterations")),
        };
        let caption = format!(
            "{}/{}  {method}, {} views {}, photons {}: {} dB",
            text("subject"),
            text("scan"),
            text("views"),
            text("angles"),
            text("photons"),
            text("psnr_db"),
        );
        rows.push((caption, degraded, reference, spacing));
    }
    let rows: Vec<(&str, [Panel<'_>; 2])> = rows
        .iter()
        .map(|(caption, degraded, reference, spacing)| {
            let panels = [panel(degraded, *spacing, "degraded"), panel(reference, *spacing, "reference")];
            (caption.as_str(), panels)
        })
        .collect();
    Ok(write_rows(path, &rows, Window::WIDE)?)
}

/// A volume `[z][y][x]`, as it is on disk.
fn panel<'a>(volume: &'a Array3<f32>, spacing_mm: f64, caption: &str) -> Panel<'a> {
    Panel { volume: volume.view().reversed_axes(), spacing_mm: [spacing_mm; 3], caption: caption.into() }
}

type Pair = (String, String, String);

/// In turn one of each method, evenly from all there are.
fn chosen(shards: &[Pair]) -> Vec<&Pair> {
    let methods = ["gaussians", "field", "fdk", "os-sart"];
    let share = ROWS / methods.len();
    let of = |method: &str| shards.iter().filter(|(_, m, _)| m == method).collect::<Vec<_>>();
    let mut rows: Vec<&Pair> = Vec::new();
    for of_method in methods.map(of) {
        let count = of_method.len().min(share);
        rows.extend((0..count).map(|i| of_method[(2 * i + 1) * of_method.len() / (2 * count)]));
    }
    rows
}

fn volume(path: &Path, name: &str) -> Result<(Array3<f32>, BTreeMap<String, String>), CurateError> {
    let contents = safetensors::read(path)?;
    let (shape, values) = contents.i16(path, name)?;
    let values = values.into_iter().map(f32::from).collect();
    let wrong = || FormatError::field(path, name, format!("{shape:?}"), "must have three axes");
    let &[z, y, x] = shape.as_slice() else { return Err(wrong().into()) };
    let volume = Array3::from_shape_vec((z, y, x), values).map_err(|_| wrong())?;
    Ok((volume, contents.metadata))
}
