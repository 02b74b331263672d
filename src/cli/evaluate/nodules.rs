//! `--nodules`: planted nodules that the volume keeps and loses, and blobs that it invents.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use glam::DVec3;
use ndarray::Array3;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Arguments, Pair, failed, refuse};
use crate::cli::Failure;
use crate::formats::nifti;
use crate::measure::nodules::{self, Count, Sphere, Verdict, Volumes};
use crate::measure::{self, MeasureError};
use crate::simulate::thorax::NODULES_FILE;

/// Far above what [`nodules::MOST_NODULES`] need.
const MOST_BYTES: u64 = 1 << 20;

/// The list on disk; further keys (a phantom's seed, a nodule's HU) are for the reader.
#[derive(Deserialize)]
struct List {
    nodules: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    centre_mm: [f64; 3],
    radius_mm: f64,
}

/// Counts, as text and JSON.
pub(super) fn count(arguments: &Arguments, list: &Path, pair: &Pair) -> Result<(String, Value), Failure> {
    let planted = read(list)?;
    let Some(voxel_to_world_mm) = pair.voxel_to_world_mm.filter(|_| pair.window.unit == "HU") else {
        return Err(refuse(format!(
            "--nodules: {} is not in HU or has no place in the world; give the volume as NIfTI (in HU)",
            pair.path.display()
        )));
    };
    let lungs = lungs(pair).map_err(|error| {
        refuse(format!("--nodules: {}: {error} (nodules are looked for in lungs)", arguments.reference.display()))
    })?;
    let volumes = Volumes {
        result: pair.out.view(),
        reference: pair.reference.view(),
        lungs: lungs.view(),
        seen: pair.region.as_ref().map(|region| region.view()),
        voxel_to_world_mm,
    };
    let count = nodules::count(&volumes, &planted).map_err(|error| match error {
        MeasureError::Empty(_) | MeasureError::Input(_) => refuse(format!("{}: {error}", list.display())),
        error => failed(arguments, pair, &error),
    })?;
    Ok(told(&count))
}

fn read(list: &Path) -> Result<Vec<Sphere>, Failure> {
    let path: PathBuf = if list.is_dir() { list.join(NODULES_FILE) } else { list.into() };
    let bad = |reason: String| refuse(format!("--nodules {}: {reason}", path.display()));
    let file = File::open(&path).map_err(|error| bad(format!("cannot read: {error}")))?;
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|error| bad(format!("cannot read: {error}")))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(bad(format!("more than {MOST_BYTES} bytes: not a list of nodules")));
    }
    let list: List = serde_json::from_str(&text).map_err(|error| {
        bad(format!("{error}; must be {{\"nodules\": [{{\"centre_mm\": [x, y, z], \"radius_mm\": r}}, ...]}}"))
    })?;
    let sphere = |entry: Entry| Sphere { centre_mm: DVec3::from_array(entry.centre_mm), radius_mm: entry.radius_mm };
    Ok(list.nodules.into_iter().map(sphere).collect())
}

/// The reference's lungs, on the axes that the volumes are stored in.
fn lungs(pair: &Pair) -> Result<Array3<bool>, MeasureError> {
    let hang = |mask: &Array3<bool>| match &pair.voxel_to_world_mm {
        Some(affine) => nifti::canonical(mask.view(), affine).0.to_owned(),
        None => mask.clone(),
    };
    let seen = pair.seen.as_ref().map(hang);
    let (hung, spacing_mm) = pair.hung(pair.reference.view());
    let found = measure::lungs::lungs(hung, spacing_mm, seen.as_ref().map(|seen| seen.view()))?.mask;
    let Some(affine) = &pair.voxel_to_world_mm else { return Ok(found) };
    // Where each stored voxel went when it was hung.
    let mut next = 0_usize;
    let numbers = Array3::from_shape_simple_fn(pair.reference.raw_dim(), || {
        next += 1;
        next - 1
    });
    let mut stored = vec![false; found.len()];
    for (&number, &on) in nifti::canonical(numbers.view(), affine).0.iter().zip(&found) {
        stored[number] = on;
    }
    Array3::from_shape_vec(pair.reference.raw_dim(), stored)
        .map_err(|error| MeasureError::Input(format!("the lungs' mask: {error}")))
}

fn told(count: &Count) -> (String, Value) {
    let [kept, lost, unseen] = [Verdict::Kept, Verdict::Lost, Verdict::Unseen].map(|verdict| count.of(verdict));
    let list: Vec<Value> = count
        .nodules
        .iter()
        .map(|nodule| {
            let judged = nodule.verdict != Verdict::Unseen;
            json!({
                "centre_mm": nodule.sphere.centre_mm.to_array(),
                "radius_mm": nodule.sphere.radius_mm,
                "verdict": match nodule.verdict {
                    Verdict::Kept => "kept",
                    Verdict::Lost => "lost",
                    Verdict::Unseen => "unseen",
                },
                "contrast_hu": nodule.contrast_hu,
                "reference_contrast_hu": nodule.reference_contrast_hu,
                "share": judged.then(|| nodule.contrast_hu / nodule.reference_contrast_hu),
                "noise_hu": nodule.noise_hu,
            })
        })
        .collect();
    let blobs: Vec<Value> = count
        .invented
        .iter()
        .map(|blob| {
            json!({
                "centre_mm": blob.centre_mm.to_array(),
                "radius_mm": blob.radius_mm,
                "contrast_hu": blob.contrast_hu,
            })
        })
        .collect();
    let bright = count.invented.iter().filter(|blob| blob.contrast_hu > 0.0).count();
    let json = json!({
        "planted": count.nodules.len(),
        "kept": kept,
        "lost": lost,
        "unseen": unseen,
        "invented": count.invented.len(),
        "invented_bright": bright,
        "invented_from_hu": count.invented_from_hu,
        "list": list,
        "inventions": blobs,
    });
    let not_judged = if unseen > 0 { format!(", {unseen} not to be judged") } else { String::new() };
    let text = format!(
        "nodules: {kept} kept, {lost} lost of {}{not_judged}; {} invented ({bright} bright, {} dark; from {:.0} HU)",
        count.nodules.len(),
        count.invented.len(),
        count.invented.len() - bright,
        count.invented_from_hu,
    );
    (text, json)
}
