//! The learned prior that ships with the program (`models/prior`), and its weight.

use std::sync::LazyLock;

use glam::DVec3;
use serde::Deserialize;

use crate::compute::experts::{Expert, Experts, TAPS};
use crate::geometry::{ViewPose, VolumeGrid};

/// The file, as `models/prior/train.py` writes it.
#[derive(Deserialize)]
struct File {
    unit_per_mm: f32,
    tissues: Vec<f32>,
    experts: Vec<FileExpert>,
}

#[derive(Deserialize)]
struct FileExpert {
    taps: Vec<f32>,
    convex: [f32; 2],
    saturating: [f32; 2],
}

/// The experts that ship.
pub(super) fn shipped() -> &'static Experts {
    static SHIPPED: LazyLock<Experts> =
        LazyLock::new(|| match read(include_str!("../../../models/prior/experts.json")) {
            Ok(experts) => experts,
            // The file is part of the program, and a test reads it.
            Err(why) => unreachable!("models/prior/experts.json: {why}"),
        });
    &SHIPPED
}

/// What a view weighs in a voxel, in mm^2: the curvature of its squares by the voxel's value, once the ramp filter has evened out the frequencies.
///
/// A view's rays go through a voxel on about `voxel` mm each, and so do `(voxel / pixel)^2` of them, `pixel` taken at the
/// grid's centre: `voxel^2 (voxel / pixel)^2`. The prior was learnt where the views saw a volume with weight 1, so that [`shipped`]'s unit times the sum of
/// this over the views is the factor of its gradient, in mm.
pub(super) fn views_mm2(pose: &ViewPose, grid: &VolumeGrid) -> f64 {
    let (normal, voxel_mm3) = (pose.normal(), grid.voxel_mm.element_product());
    let along = |point_mm: DVec3| (point_mm - pose.source_mm).dot(normal);
    let shrunk = along(grid.centre_mm) / along(pose.detector_origin_mm);
    let pixel_mm2 = pose.column_step_mm.cross(pose.row_step_mm).length() * shrunk.powi(2);
    // A source at the volume's centre, or beyond it, would make this anything.
    if shrunk > 0.0 && pixel_mm2 > 0.0 { voxel_mm3.powf(4.0 / 3.0) / pixel_mm2 } else { 0.0 }
}

fn read(text: &str) -> Result<Experts, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let experts = file.experts.into_iter().map(|expert| {
        let FileExpert { taps, convex, saturating } = expert;
        let taps: [f32; TAPS] = taps.try_into().map_err(|_| format!("an expert must have {TAPS} taps"))?;
        Ok(Expert { taps, convex, saturating })
    });
    let experts = experts.collect::<Result<Vec<_>, String>>()?;
    Experts::new(experts, file.tissues, file.unit_per_mm).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_experts_are_read_and_what_is_broken_is_refused() {
        assert!(shipped().experts().len() > 1);
        for (text, why) in [
            ("{", "EOF"),
            (
                r#"{"unit_per_mm": 1, "tissues": [1, 1], "experts": [{"taps": [0], "convex": [1, 1], "saturating": [1, 1]}]}"#,
                "27",
            ),
            (r#"{"unit_per_mm": 0, "tissues": [1, 1], "experts": []}"#, "experts"),
        ] {
            let refused = read(text).err();
            assert!(refused.as_ref().is_some_and(|told| told.contains(why)), "{text}: {refused:?}");
        }
    }
}
