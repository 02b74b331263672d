//! `--jitter`: how much neighbouring slices disagree, in the volume and in the reference.

use ndarray::Array3;
use serde_json::{Value, json};

use super::{Arguments, Pair, failed};
use crate::cli::Failure;
use crate::formats::nifti;
use crate::measure::jitter::second_difference;

const AXES: [&str; 3] = ["sagittal", "coronal", "axial"];

/// Mean absolute second differences from axial slice to axial slice, and along the other axes, as text and JSON.
pub(super) fn compare(arguments: &Arguments, pair: &Pair) -> Result<(String, Value), Failure> {
    let region = pair.region.as_ref().map(|region| match &pair.voxel_to_world_mm {
        Some(affine) => nifti::canonical(region.view(), affine).0,
        None => region.view(),
    });
    let along = |volume: &Array3<f32>, axis| {
        second_difference(pair.hung(volume.view()).0, region, axis).map_err(|error| failed(arguments, pair, &error))
    };
    let mut json = json!({ "unit": pair.window.unit });
    let mut parts = Vec::new();
    for axis in [2, 1, 0] {
        let (own, reference) = (along(&pair.out, axis)?, along(&pair.reference, axis)?);
        json[AXES[axis]] = json!({ "volume": own, "reference": reference });
        let places = if pair.window.unit == "HU" { 1 } else { 5 };
        parts.push(format!("{} {own:.places$} (reference {reference:.places$})", AXES[axis]));
    }
    let unit = if pair.window.unit.is_empty() { "" } else { " HU" };
    Ok((format!("mean second difference across slices: {}{unit}", parts.join(", ")), json))
}
