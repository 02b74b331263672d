//! The lungs in a CT volume, by a classical recipe: threshold, body mask, morphology, connected parts. No learned part, no seed point.
//!
//! It follows the usual order (Hu, Hoffman, Reinhardt 2001, IEEE Trans. Med. Imaging 20, 490) with Euclidean balls in place of voxel masks:
//!
//! 1. Smooth by a Gaussian of sigma 2 mm; below -400 HU is air, the rest tissue (half-way between aerated lung and soft tissue, so that a flat wall
//!    stays where it is). What was not seen (beyond the field of view) is air at -1000 HU.
//! 2. The body is the largest connected part of tissue, grown by 10 mm to close its wall where streaks open it; in each axial slice, what cannot
//!    be reached from the slice's edge lies inside it, and the growth is taken off again.
//! 3. Air inside the body, eroded by 8 mm, is left without airways, bowel and recesses. Of its connected parts the largest two are the lungs (one,
//!    where the two meet, or where the second has less than a tenth of the first). Parts below -930 HU on average are gas (stomach,
//!    bowel), not lung.
//! 4. They are grown back by 8 mm, and on by paths of 12 mm through the air of step 3; closed by a ball of 5 mm and their holes filled, for vessels and
//!    nodules belong to the lung.
//!
//! **Of the airways** trachea and main bronchi are left out but for their last 12 mm before the lungs, and for where lung lies against a wall too
//! thin for the smoothing; **of the hilum**, large vessels are left out, those thinner than 10 mm are in.
//!
//! **Limits.** Consolidated or collapsed lung and large effusions are tissue to a threshold. A lung that touches the side of the field of view is joined
//! with the outside and lost. The volume's ends above and below may cut the lungs. Radii and thresholds are round numbers settled on two chest CTs, where
//! neighbouring values (threshold -320 to -500 HU, radii by a third) change Dice by 0.016 at most; both volumes of a comparison get the same.

use ndarray::{Array3, ArrayView3, Zip};

use super::morphology::{dilated, eroded, filled, grown_within, joined_to_faces, keep_within, parts};
use super::smooth::smooth;
use super::{MeasureError, same_shape};

const SIGMA_MM: f64 = 2.0;
const AIR_BELOW_HU: f32 = -400.0;
const WALL_MM: f64 = 10.0;
const CORE_MM: f64 = 8.0;
const REGROWN_MM: f64 = 12.0;
const CLOSED_MM: f64 = 5.0;
/// What a part needs of the largest one's size to be the second lung.
const SECOND_SHARE: f64 = 0.1;
/// Mean below which air is gas: lungs are at -860, severe emphysema at -920, gas at -1000, or -950 where bowel folds into it.
const GAS_BELOW_HU: f64 = -930.0;
/// Least volume that is called lungs: an adult's hold 2000 ml and more.
const LEAST_ML: f64 = 100.0;
/// Voxels beyond that have nothing left of the shapes' radii.
const COARSEST_MM: f64 = 5.0;

/// Lungs found.
#[derive(Debug, Clone, PartialEq)]
pub struct Lungs {
    /// Both lungs, `[x][y][z]` as the volume.
    pub mask: Array3<bool>,
    /// Their volume.
    pub volume_ml: f64,
}

/// Finds the lungs in a volume in HU, `[x][y][z]` with z along the body; see the [module's text](self) for the recipe. `seen` marks
/// voxels with a value to be relied on (all where there is none).
///
/// # Errors
/// [`MeasureError::NoLungs`] where there is not enough air inside a body; [`MeasureError::Shapes`]; [`MeasureError::Input`] for values or spacings that
/// are not finite and for voxels above 5 mm.
pub fn lungs(
    hu: ArrayView3<'_, f32>,
    spacing_mm: [f64; 3],
    seen: Option<ArrayView3<'_, bool>>,
) -> Result<Lungs, MeasureError> {
    if !spacing_mm.iter().all(|&edge| edge > 0.0 && edge <= COARSEST_MM) {
        let requirement = "finding the lungs needs edges above 0 and at most 5 mm; resample the volume";
        return Err(MeasureError::Input(format!("voxels of {spacing_mm:?} mm: {requirement}")));
    }
    if let Some((at, value)) = hu.indexed_iter().find(|(_, value)| !value.is_finite()) {
        return Err(MeasureError::Input(format!("voxel {at:?} = {value}: must be finite")));
    }
    // Metal and noise's tails must not outweigh their neighbours.
    let mut values = hu.mapv(|value| value.clamp(-1024.0, 1000.0)).as_standard_layout().into_owned();
    if let Some(seen) = &seen {
        same_shape(hu.shape(), seen.shape())?;
        Zip::from(&mut values).and(seen).for_each(|value, &seen| *value = if seen { *value } else { -1000.0 });
    }
    smooth(&mut values, SIGMA_MM, spacing_mm);
    let air = values.mapv(|value| value < AIR_BELOW_HU);

    let (labels, sizes) = parts(&air.mapv(|air| !air));
    let body = largest(&sizes, |_| true);
    let walled = dilated(&labels.mapv(|label| body.is_some() && Some(label) == body), WALL_MM, spacing_mm);
    let inside = eroded(&joined_to_faces(&walled.mapv(|on| !on), 2).mapv(|outside| !outside), WALL_MM, spacing_mm);
    let mut inner_air = air;
    keep_within(&mut inner_air, &inside);

    let (labels, sizes) = parts(&eroded(&inner_air, CORE_MM, spacing_mm));
    let means = means(&labels, &values, sizes.len());
    let is_lung = |label: usize| means[label] >= GAS_BELOW_HU;
    let first = largest(&sizes, is_lung);
    let large =
        |label: usize| first.is_some_and(|first| sizes[label] as f64 > SECOND_SHARE * sizes[first as usize] as f64);
    let second = largest(&sizes, |label| is_lung(label) && Some(label as u32) != first && large(label));
    let cores = labels.mapv(|label| label != 0 && (Some(label) == first || Some(label) == second));
    let opened = dilated(&cores, CORE_MM, spacing_mm);
    let mut mask = grown_within(&opened, &inner_air, REGROWN_MM, spacing_mm);
    mask = eroded(&dilated(&mask, CLOSED_MM, spacing_mm), CLOSED_MM, spacing_mm);
    keep_within(&mut mask, &inside);
    mask = filled(&mask);

    let volume_ml = 1e-3 * spacing_mm.iter().product::<f64>() * mask.iter().filter(|&&on| on).count() as f64;
    if volume_ml < LEAST_ML {
        return Err(MeasureError::NoLungs { found_ml: volume_ml as u64, least_ml: LEAST_ML as u64 });
    }
    Ok(Lungs { mask, volume_ml })
}

/// The label with most voxels among those wanted; of equal ones the first.
fn largest(sizes: &[usize], wanted: impl Fn(usize) -> bool) -> Option<u32> {
    let labels = (1..sizes.len()).filter(|&label| wanted(label));
    labels.max_by_key(|&label| (sizes[label], usize::MAX - label)).map(|label| label as u32)
}

/// Mean value of each label.
fn means(labels: &Array3<u32>, values: &Array3<f32>, count: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); count];
    for (&label, &value) in labels.iter().zip(values) {
        let (sum, voxels) = &mut sums[label as usize];
        *sum += f64::from(value);
        *voxels += 1.0;
    }
    sums.into_iter().map(|(sum, voxels)| sum / f64::max(voxels, 1.0)).collect()
}

#[cfg(test)]
mod tests;
