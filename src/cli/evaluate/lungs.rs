//! `--lungs`: the lungs of both volumes, found by one recipe and compared.

use std::path::Path;

use ndarray::{Array3, ArrayView3, Zip};
use serde_json::{Value, json};

use super::{Arguments, Pair, failed, file_name, refuse};
use crate::cli::Failure;
use crate::error::exit;
use crate::formats::nifti;
use crate::formats::picture::{Panel, Window, write_contact_sheet};
use crate::measure::lungs::Lungs;
use crate::measure::{self, MeasureError};

/// Lungs of both volumes, as a picture hangs them, and what they have in common.
struct Compared {
    own: Lungs,
    reference: Lungs,
    dice: f64,
    asd_mm: f64,
}

/// Dice and average surface distance of the lungs, as text and JSON; where one of the two has none, the reason.
pub(super) fn compare(arguments: &Arguments, pair: &Pair) -> Result<(String, Value), Failure> {
    if pair.window.unit != "HU" {
        return Err(refuse(format!(
            "--lungs: {} is not in HU, and the recipe is one of HU; give the volume as NIfTI (in HU)",
            pair.path.display()
        )));
    }
    let found = match find(arguments, pair) {
        Ok(found) => found,
        // There is a question, but no answer; other figures are still good.
        Err((whose, error @ (MeasureError::NoLungs { .. } | MeasureError::Empty(_)))) => {
            let reason = format!("{whose}: {error}");
            if let Some(picture) = &arguments.lungs_picture {
                let message = format!("{}: no picture written: {reason}", picture.display());
                return Err(Failure { message, code: exit::INPUT });
            }
            let json = json!({ "dice": null, "asd_mm": null, "volume_ml": null, "reference_volume_ml": null, "reason": reason });
            return Ok((format!("lungs not compared ({reason})"), json));
        }
        Err((_, error)) => return Err(failed(arguments, pair, &error)),
    };
    let Compared { own, reference, dice, asd_mm } = &found;
    let text = format!(
        "lungs: Dice {dice:.4}   ASD {asd_mm:.2} mm   {:.0} ml, reference {:.0} ml",
        own.volume_ml, reference.volume_ml
    );
    if let Some(picture) = &arguments.lungs_picture {
        draw(arguments, picture, pair, &found, &text)?;
    }
    let json = json!({
        "dice": dice,
        "asd_mm": asd_mm,
        "volume_ml": own.volume_ml,
        "reference_volume_ml": reference.volume_ml,
        "reason": null,
    });
    Ok((text, json))
}

fn find(arguments: &Arguments, pair: &Pair) -> Result<Compared, (String, MeasureError)> {
    let hang = |mask: &Option<Array3<bool>>| mask.as_ref().map(|mask| hung(pair, mask.view()));
    let (seen, region) = (hang(&pair.seen), hang(&pair.region));
    let lungs_of = |volume: &Array3<f32>, path: &Path| {
        let fail = |error| (path.display().to_string(), error);
        let (volume, spacing_mm) = pair.hung(volume.view());
        let mut lungs =
            measure::lungs::lungs(volume, spacing_mm, seen.as_ref().map(|seen| seen.view())).map_err(fail)?;
        if let Some(region) = &region {
            Zip::from(&mut lungs.mask).and(region).for_each(|on, &inside| *on &= inside);
            let voxels = lungs.mask.iter().filter(|&&on| on).count();
            lungs.volume_ml = 1e-3 * spacing_mm.iter().product::<f64>() * voxels as f64;
        }
        Ok((lungs, spacing_mm))
    };
    let (reference, spacing_mm) = lungs_of(&pair.reference, &arguments.reference)?;
    let (own, _) = lungs_of(&pair.out, &pair.path)?;
    let fail = |error| ("inside the region that counts".to_string(), error);
    let dice = measure::dice(own.mask.view(), reference.mask.view()).map_err(fail)?;
    let asd_mm = measure::surface_distance_mm(own.mask.view(), reference.mask.view(), spacing_mm).map_err(fail)?;
    Ok(Compared { own, reference, dice, asd_mm })
}

/// A mask along the patient's axes.
fn hung(pair: &Pair, mask: ArrayView3<'_, bool>) -> Array3<bool> {
    match &pair.voxel_to_world_mm {
        Some(affine) => nifti::canonical(mask, affine).0.to_owned(),
        None => mask.to_owned(),
    }
}

/// Both volumes with their lungs' outlines, and where the lungs differ.
fn draw(arguments: &Arguments, picture: &Path, pair: &Pair, found: &Compared, text: &str) -> Result<(), Failure> {
    let window = Window::LUNG;
    let outlined = |volume: &Array3<f32>, lungs: &Lungs| {
        let (values, spacing_mm) = pair.hung(volume.view());
        let mut values = values.to_owned();
        let outline = measure::overlap::surface(lungs.mask.view());
        Zip::from(&mut values).and(&outline).for_each(|value, &on| *value = if on { window.high } else { *value });
        (values, spacing_mm)
    };
    let (own, spacing_mm) = outlined(&pair.out, &found.own);
    let (reference, _) = outlined(&pair.reference, &found.reference);
    // Dark grey where they agree, white for what the volume has too much, light grey for what it lacks.
    let shade = |share: f32| window.low + share * (window.high - window.low);
    let both = Zip::from(&found.own.mask).and(&found.reference.mask).map_collect(|own, reference| {
        shade(match (own, reference) {
            (true, true) => 0.25,
            (true, false) => 1.0,
            (false, true) => 0.6,
            (false, false) => 0.0,
        })
    });
    let panel = |volume, caption| Panel { volume, spacing_mm, caption };
    let panels = [
        panel(own.view(), format!("{} (outline: its lungs): {text}", file_name(&pair.path))),
        panel(reference.view(), format!("reference {} (outline: its lungs)", file_name(&arguments.reference))),
        panel(
            both.view(),
            "dark: lungs in both, white: not in the reference, light grey: in the reference alone".into(),
        ),
    ];
    write_contact_sheet(picture, &panels, window).map_err(|error| Failure::new(exit::OUTPUT, &error))
}
