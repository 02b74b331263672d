//! Nodules kept, lost and invented: what a method does to small structure in the lungs, which PSNR hardly notices.
//!
//! The reference is the truth, and planted spheres are known. With `v` the edge of a voxel (cube root of its volume):
//!
//! * **Contrast** of a sphere of radius r: the mean inside it minus the median of the shell between `max(1.25 r, r + v/2)` and `max(1.75 r, r + 3v/2)` about it (the
//!   median, for vessels pass through the shell); voxels count by the share of them that lies inside. Its *share* is that contrast in the result over that in the reference, so that the grid's own blur does
//!   not count against a method.
//! * **Noise** for that sphere: the same measure at places in the lungs about 10 mm apart, free of nodules; root mean square of result minus reference.
//! * **Kept**: a share of at least [`KEPT_SHARE`], and a contrast of at least [`KEPT_OVER_NOISE`] times the noise (what does not stand out, nobody sees). **Lost**: any
//!   other. **Unseen**: not wholly in view, or the reference itself has less than [`LEAST_REFERENCE_HU`] of contrast there; these count as neither.
//! * **Invented**: blobs of the nodules' size and contrast. A difference of Gaussians (sigma r/2 and 0.8 r; scaled so that a sphere of radius r on this
//!   grid gives its contrast) goes over the result for the smallest, the (geometric) middle and the largest radius planted, not below v. Its extrema
//!   of either sign, in the lungs less a rim of r, count where they reach [`INVENTED_SHARE`] of the median contrast of the nodules seen, unless the reference has
//!   at least half as strong a response of that sign within r + v (a vessel, a wall), or a planted nodule lies within both radii + v. Of extrema within both
//!   their radii + v of each other, and of one sign, the strongest counts.
//!
//! What changes size but not place (a nodule smeared out) shows in its share, not as an invention; a streak as thick as a nodule may count as one.

use glam::{DAffine3, DVec3};
use ndarray::{Array3, ArrayView3, Zip};

use super::morphology::eroded;
use super::smooth::smooth;
use super::{MeasureError, same_shape};

mod sphere;

use sphere::{Probe, occupancy};

/// Share of the reference's contrast that a nodule needs to be kept.
pub const KEPT_SHARE: f64 = 0.5;
/// What its contrast needs to be of the noise: below 3 to 5 (Rose) it is not seen.
pub const KEPT_OVER_NOISE: f64 = 3.0;
/// Share of the nodules' median contrast from which a blob is an invention.
pub const INVENTED_SHARE: f64 = 0.5;
/// A nodule with less contrast than this in the reference cannot be judged.
pub const LEAST_REFERENCE_HU: f64 = 30.0;
/// Distance between places where noise is measured.
const NOISE_STEP_MM: f64 = 10.0;
/// Fewer places tell no noise.
const LEAST_PLACES: usize = 8;
/// Most nodules of a list.
pub const MOST_NODULES: usize = 256;
/// Largest radius, in voxels.
const MOST_VOXELS: f64 = 24.0;

/// A planted nodule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sphere {
    /// Centre in the volumes' world.
    pub centre_mm: DVec3,
    /// Radius.
    pub radius_mm: f64,
}

/// What is looked at: all on one grid, in HU.
#[derive(Debug, Clone, Copy)]
pub struct Volumes<'a> {
    /// The volume to judge.
    pub result: ArrayView3<'a, f32>,
    /// The truth, nodules and all.
    pub reference: ArrayView3<'a, f32>,
    /// Where to look for inventions: the truth's lungs.
    pub lungs: ArrayView3<'a, bool>,
    /// Voxels with values to be relied on (all where there is none).
    pub seen: Option<ArrayView3<'a, bool>>,
    /// Place of voxel centres.
    pub voxel_to_world_mm: DAffine3,
}

/// What became of a nodule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Kept,
    /// It is not.
    Lost,
    /// It cannot be judged.
    Unseen,
}

/// A planted nodule and what became of it. Contrasts are 0 where it is not wholly in view.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// What was planted.
    pub sphere: Sphere,
    /// What became of it.
    pub verdict: Verdict,
    /// Contrast in the result.
    pub contrast_hu: f64,
    /// Contrast in the reference.
    pub reference_contrast_hu: f64,
    /// Error of such contrasts elsewhere in the lungs; `None` where there is too little room to tell, and the share alone decides.
    pub noise_hu: Option<f64>,
}

/// A blob that the reference does not have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Invention {
    /// Voxel with the strongest response, in the volumes' world.
    pub centre_mm: DVec3,
    /// Radius of the sphere that was looked for.
    pub radius_mm: f64,
    /// Contrast that such a sphere would have.
    pub contrast_hu: f64,
}

/// The count.
#[derive(Debug, Clone, PartialEq)]
pub struct Count {
    /// Every planted nodule, in the list's order.
    pub nodules: Vec<Judged>,
    /// Blobs that were not there, strongest first.
    pub invented: Vec<Invention>,
    /// Contrast from which a blob counts.
    pub invented_from_hu: f64,
}

impl Count {
    /// Nodules with this verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> usize {
        self.nodules.iter().filter(|nodule| nodule.verdict == verdict).count()
    }
}

/// Counts the planted nodules that a result keeps and loses, and the blobs that it invents; the [module's text](self) is the recipe.
///
/// # Errors
/// [`MeasureError::Shapes`]; [`MeasureError::Input`] for an empty or too long list, radii and centres that are not finite, negative or beyond 24 voxels, and
/// values that are not finite; [`MeasureError::Empty`] where no nodule of the list can be judged.
pub fn count(volumes: &Volumes<'_>, planted: &[Sphere]) -> Result<Count, MeasureError> {
    check(volumes, planted)?;
    let nodules: Vec<Judged> = planted.iter().map(|sphere| judge(volumes, planted, sphere)).collect();
    let seen = nodules.iter().filter(|nodule| nodule.verdict != Verdict::Unseen);
    let mut contrasts: Vec<f64> = seen.map(|nodule| nodule.reference_contrast_hu.abs()).collect();
    contrasts.sort_by(f64::total_cmp);
    let Some(median_hu) = contrasts.get(contrasts.len() / 2) else {
        return Err(MeasureError::Empty("no nodule of the list lies in view and has contrast in the reference"));
    };
    let invented_from_hu = INVENTED_SHARE * median_hu;
    let invented = inventions(volumes, planted, invented_from_hu);
    Ok(Count { nodules, invented, invented_from_hu })
}

fn check(volumes: &Volumes<'_>, planted: &[Sphere]) -> Result<(), MeasureError> {
    same_shape(volumes.result.shape(), volumes.reference.shape())?;
    same_shape(volumes.result.shape(), volumes.lungs.shape())?;
    if let Some(seen) = &volumes.seen {
        same_shape(volumes.result.shape(), seen.shape())?;
    }
    if planted.is_empty() || planted.len() > MOST_NODULES {
        let message = format!("{} nodules: the list must hold between 1 and {MOST_NODULES}", planted.len());
        return Err(MeasureError::Input(message));
    }
    let edges = edges_mm(volumes);
    let smallest = edges.into_iter().fold(f64::INFINITY, f64::min);
    if !(smallest > 0.0 && edges.iter().all(|edge| edge.is_finite() && *edge < 20.0 * smallest)) {
        return Err(MeasureError::Input(format!("voxels of {edges:?} mm: edges must be above 0 and of like size")));
    }
    for (index, Sphere { centre_mm, radius_mm }) in planted.iter().enumerate() {
        if !centre_mm.is_finite() {
            return Err(MeasureError::Input(format!("nodules[{index}].centre_mm = {centre_mm}: must be finite")));
        }
        if !(*radius_mm > 0.0 && *radius_mm <= MOST_VOXELS * smallest) {
            return Err(MeasureError::Input(format!(
                "nodules[{index}].radius_mm = {radius_mm}: must be above 0 and at most {MOST_VOXELS} voxels ({:.1} mm)",
                MOST_VOXELS * smallest
            )));
        }
    }
    for volume in [&volumes.result, &volumes.reference] {
        if let Some((at, value)) = volume.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(MeasureError::Input(format!("voxel {at:?} = {value}: must be finite")));
        }
    }
    Ok(())
}

fn edges_mm(volumes: &Volumes<'_>) -> [f64; 3] {
    let matrix = volumes.voxel_to_world_mm.matrix3;
    [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(DVec3::length)
}

/// Cube root of a voxel's volume.
fn voxel_mm(volumes: &Volumes<'_>) -> f64 {
    edges_mm(volumes).iter().product::<f64>().cbrt()
}

fn judge(volumes: &Volumes<'_>, planted: &[Sphere], sphere: &Sphere) -> Judged {
    let probe = Probe::new(sphere, &volumes.voxel_to_world_mm, voxel_mm(volumes));
    let unseen = Judged {
        sphere: *sphere,
        verdict: Verdict::Unseen,
        contrast_hu: 0.0,
        reference_contrast_hu: 0.0,
        noise_hu: None,
    };
    if !probe.fits(volumes, probe.home) {
        return unseen;
    }
    let (contrast_hu, reference_contrast_hu) =
        (probe.contrast(volumes.result, probe.home), probe.contrast(volumes.reference, probe.home));
    let noise_hu = noise(volumes, planted, &probe);
    let verdict = if reference_contrast_hu.abs() < LEAST_REFERENCE_HU {
        Verdict::Unseen
    } else if contrast_hu / reference_contrast_hu >= KEPT_SHARE
        && contrast_hu.abs() >= KEPT_OVER_NOISE * noise_hu.unwrap_or(0.0)
    {
        Verdict::Kept
    } else {
        Verdict::Lost
    };
    Judged { verdict, contrast_hu, reference_contrast_hu, noise_hu, ..unseen }
}

/// Root mean square of what the result's contrast differs from the reference's, where no nodule is.
fn noise(volumes: &Volumes<'_>, planted: &[Sphere], probe: &Probe) -> Option<f64> {
    let steps = edges_mm(volumes).map(|edge| ((NOISE_STEP_MM / edge).round() as usize).max(1));
    let (mut sum, mut places) = (0.0, 0);
    for ((x, y, z), &lung) in volumes.lungs.indexed_iter() {
        let at = [x, y, z];
        if !lung || (0..3).any(|axis| at[axis] % steps[axis] != 0) {
            continue;
        }
        let place_mm = volumes.voxel_to_world_mm.transform_point3(DVec3::new(x as f64, y as f64, z as f64));
        let at = at.map(|index| index as i64);
        let free = planted.iter().all(|n| (n.centre_mm - place_mm).length() > n.radius_mm + probe.reach_mm);
        if free && probe.fits(volumes, at) && probe.ball_lies_in(volumes.lungs, at) {
            sum += (probe.contrast(volumes.result, at) - probe.contrast(volumes.reference, at)).powi(2);
            places += 1;
        }
    }
    (places >= LEAST_PLACES).then(|| (sum / places as f64).sqrt())
}

fn inventions(volumes: &Volumes<'_>, planted: &[Sphere], from_hu: f64) -> Vec<Invention> {
    let voxel_mm = voxel_mm(volumes);
    let smallest = planted.iter().map(|n| n.radius_mm).fold(f64::INFINITY, f64::min).max(voxel_mm);
    let largest = planted.iter().map(|n| n.radius_mm).fold(0.0, f64::max).max(voxel_mm);
    let mut radii = vec![smallest, (smallest * largest).sqrt(), largest];
    radii.dedup();
    let mut found: Vec<Invention> = radii.iter().flat_map(|&r| blobs(volumes, planted, r, from_hu)).collect();
    found.sort_by(|a, b| b.contrast_hu.abs().total_cmp(&a.contrast_hu.abs()));
    let mut kept: Vec<Invention> = Vec::new();
    for blob in found {
        let apart = |other: &Invention| {
            let away = (other.centre_mm - blob.centre_mm).length();
            away > other.radius_mm + blob.radius_mm + voxel_mm || other.contrast_hu * blob.contrast_hu < 0.0
        };
        if kept.iter().all(apart) {
            kept.push(blob);
        }
    }
    kept
}

/// Extrema of one scale that neither a planted nodule nor other structure of the reference explains.
fn blobs(volumes: &Volumes<'_>, planted: &[Sphere], radius_mm: f64, from_hu: f64) -> Vec<Invention> {
    let (edges, voxel_mm) = (edges_mm(volumes), voxel_mm(volumes));
    let gain = 1.0 / response_of_a_ball(radius_mm, edges);
    let (own, reference) = (response(volumes.result, radius_mm, edges), response(volumes.reference, radius_mm, edges));
    let mut room = volumes.lungs.to_owned();
    if let Some(seen) = &volumes.seen {
        Zip::from(&mut room).and(seen).for_each(|on, &seen| *on &= seen);
    }
    let room = eroded(&room, radius_mm, edges);
    let mut found = Vec::new();
    for (at, _) in room.indexed_iter().filter(|(_, on)| **on) {
        let contrast_hu = f64::from(own[at]) * gain;
        if contrast_hu.abs() < from_hu || !is_extremum(&own, at) {
            continue;
        }
        let centre_mm = volumes.voxel_to_world_mm.transform_point3(DVec3::new(at.0 as f64, at.1 as f64, at.2 as f64));
        let by_a_nodule =
            planted.iter().any(|n| (n.centre_mm - centre_mm).length() <= n.radius_mm + radius_mm + voxel_mm);
        if by_a_nodule || is_explained(&reference, own[at], at, radius_mm + voxel_mm, edges) {
            continue;
        }
        found.push(Invention { centre_mm, radius_mm, contrast_hu });
    }
    found
}

/// Difference of Gaussians, to a factor the contrast of a ball of this radius.
fn response(volume: ArrayView3<'_, f32>, radius_mm: f64, edges_mm: [f64; 3]) -> Array3<f32> {
    let mut narrow = volume.as_standard_layout().into_owned();
    let mut wide = narrow.clone();
    smooth(&mut narrow, 0.5 * radius_mm, edges_mm);
    smooth(&mut wide, 0.8 * radius_mm, edges_mm);
    narrow - wide
}

/// What [`response`] is at the middle of a ball of contrast 1, on this grid.
fn response_of_a_ball(radius_mm: f64, edges_mm: [f64; 3]) -> f64 {
    // The Gaussians end at three sigma.
    let half = edges_mm.map(|edge| ((2.4 * radius_mm).max(radius_mm) / edge).ceil() as usize + 1);
    let middle = DVec3::from_array(half.map(|half| half as f64));
    let place = DAffine3::from_scale(DVec3::from_array(edges_mm));
    let ball = Array3::from_shape_fn(half.map(|half| 2 * half + 1), |(x, y, z)| {
        let at = DVec3::new(x as f64, y as f64, z as f64);
        occupancy(at - middle, &place, radius_mm, 5) as f32
    });
    f64::from(response(ball.view(), radius_mm, edges_mm)[half])
}

/// Strictly beyond the neighbours before it in memory, and not below those after it: of equal ones the first.
fn is_extremum(values: &Array3<f32>, at: (usize, usize, usize)) -> bool {
    let own = values[at];
    let beyond = |value: f32| if own > 0.0 { value - own } else { own - value };
    let steps = [usize::MAX, 0, 1];
    steps.iter().all(|&dx| {
        steps.iter().all(|&dy| {
            steps.iter().all(|&dz| {
                let next = [at.0.wrapping_add(dx), at.1.wrapping_add(dy), at.2.wrapping_add(dz)];
                let before = next < [at.0, at.1, at.2];
                match values.get(next) {
                    Some(&value) if before => beyond(value) < 0.0,
                    Some(&value) => beyond(value) <= 0.0,
                    None => true,
                }
            })
        })
    })
}

/// The reference has at least half of this response, of the same sign, within `reach_mm`.
fn is_explained(
    reference: &Array3<f32>,
    own: f32,
    at: (usize, usize, usize),
    reach_mm: f64,
    edges_mm: [f64; 3],
) -> bool {
    let at = [at.0, at.1, at.2];
    let reach = edges_mm.map(|edge| (reach_mm / edge).floor() as usize);
    let range = |axis: usize| {
        let last = reference.shape()[axis] - 1;
        at[axis].saturating_sub(reach[axis])..=(at[axis] + reach[axis]).min(last)
    };
    range(0).any(|x| {
        range(1).any(|y| {
            range(2).any(|z| {
                let next = [x, y, z];
                let square: f64 =
                    (0..3).map(|axis| (edges_mm[axis] * (next[axis] as f64 - at[axis] as f64)).powi(2)).sum();
                square <= reach_mm * reach_mm && reference[next] * own.signum() >= 0.5 * own.abs()
            })
        })
    })
}

#[cfg(test)]
mod tests;
