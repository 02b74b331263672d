//! `diffnr evaluate`: volumes against a reference, their lungs against the reference's, or a mask against a mask.

mod inputs;
mod jitter;
mod lungs;
mod nodules;
mod several;

use std::path::{Path, PathBuf};

use ndarray::{Array3, ArrayView3, Zip};
use serde_json::json;

use super::Failure;
use crate::error::exit;
use crate::formats::picture::{Panel, Window, write_contact_sheet};
use crate::measure::{self, MeasureError};
use inputs::{Pair, load, refuse};

/// Arguments of `diffnr evaluate`.
///
/// PSNR (over the whole volume) and SSIM (mean over three axes of slice-wise SSIM, empty slices of the reference left out) take the
/// window's width as the data range; nothing is clipped unless --clip is given. NIfTI volumes are in HU; .npy volumes are in a
/// scene's own values, with the window 0:1. A scene folder as the reference stands for its ground truth.
///
/// --lungs finds the lungs in both volumes by one recipe (air below -400 HU inside the body; airways left out, vessels and nodules filled in) and says how
/// well they agree: reconstructions whose lungs have another shape, whatever their PSNR, show here.
///
/// Several volumes give a table; with --json an object whose "volumes" is an array, in the order given, of what one volume alone gives, each with
/// its "name" and "volume" (the file).
///
/// --nodules counts small structure: which of the planted nodules the volume keeps and which it loses, and how many blobs of their size and contrast it
/// shows in the lungs where the reference has none. --jitter says how much neighbouring slices disagree (docs/evaluation.md has both recipes).
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Volume to judge (.nii, .nii.gz or .npy); several, on one grid, are judged side by side
    #[arg(required = true)]
    out: Vec<PathBuf>,
    /// Reference on the same grid (.nii, .nii.gz, .npy), or a scene folder: its ground truth
    #[arg(long, value_name = "REF")]
    reference: PathBuf,
    /// Judge only voxels where this mask (same grid as OUT) is not zero
    #[arg(long)]
    mask: Option<PathBuf>,
    /// Judge only voxels inside the field of view that this scan (scene folder) covers
    #[arg(long, value_name = "SCAN")]
    fov: Option<PathBuf>,
    /// Window in HU for PSNR, SSIM and the picture
    #[arg(long, value_name = "LO:HI", allow_hyphen_values = true)]
    window_hu: Option<String>,
    /// Clip both volumes to the window before PSNR and SSIM (RMSE stays unclipped)
    #[arg(long)]
    clip: bool,
    /// Resample the reference onto OUT's grid, averaging over each voxel's cell; voxels beyond the reference are left out
    #[arg(long)]
    resample: bool,
    /// Both are masks: give Dice and average surface distance instead
    #[arg(long)]
    dice: bool,
    /// Find the lungs in both volumes too, by threshold, body mask and morphology, and give their Dice and average surface distance
    #[arg(long, conflicts_with = "dice")]
    lungs: bool,
    /// With --lungs: write a picture of both volumes with their lungs' outlines, and of where the lungs differ
    #[arg(long, value_name = "FILE", requires = "lungs")]
    lungs_picture: Option<PathBuf>,
    /// Count nodules kept, lost and invented: a list of spheres in JSON ({"nodules": [{"centre_mm": [x, y, z], "radius_mm": r}, ...]}, in the volumes' world), or
    /// a scan of the thorax phantom, which has one
    #[arg(long, value_name = "FILE", conflicts_with = "dice")]
    nodules: Option<PathBuf>,
    /// Give the mean absolute second difference from slice to slice, of the volume and of the reference
    #[arg(long, conflicts_with = "dice")]
    jitter: bool,
    /// Write a picture: volume, reference, difference (of one volume)
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Write a picture: the reference and every volume side by side, axial and coronal, with name, PSNR and SSIM below each
    #[arg(long, value_name = "FILE", conflicts_with = "dice")]
    picture: Option<PathBuf>,
    /// Names of the volumes, for table, picture and JSON, in their order [default: their files']
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let names = several::names(arguments)?;
    let (text, json) = match arguments.out.as_slice() {
        [path] => {
            let pair = load(arguments, path)?;
            if arguments.dice { overlap(arguments, &pair)? } else { one(arguments, &pair, &names)? }
        }
        _ => several::compare(arguments, &names)?,
    };
    if arguments.json {
        say!("{json}");
    } else {
        say!("{text}");
    }
    Ok(())
}

fn overlap(arguments: &Arguments, pair: &Pair) -> Result<(String, serde_json::Value), Failure> {
    let on = |volume: &Array3<f32>| {
        let mut mask = volume.mapv(|value| value > 0.5);
        if let Some(region) = &pair.region {
            Zip::from(&mut mask).and(region).for_each(|on, &inside| *on &= inside);
        }
        mask
    };
    let (a, b) = (on(&pair.out), on(&pair.reference));
    let dice = measure::dice(a.view(), b.view()).map_err(|error| failed(arguments, pair, &error))?;
    let distance = match pair.spacing_mm {
        None => None,
        Some(spacing) => Some(
            measure::surface_distance_mm(a.view(), b.view(), spacing)
                .map_err(|error| failed(arguments, pair, &error))?,
        ),
    };
    let shown =
        distance.map_or("not known (an .npy has no spacing; give --fov)".to_string(), |mm| format!("{mm:.3} mm"));
    let json = json!({ "dice": dice, "asd_mm": distance, "resampled": pair.resampled });
    Ok((format!("Dice {dice:.4}   ASD {shown}"), json))
}

/// One volume's figures.
struct Figures {
    psnr_db: f64,
    /// Volumes too small for SSIM's window still have the other figures.
    ssim: Result<f64, MeasureError>,
    rmse: f64,
    /// Voxels that counted.
    voxels: usize,
}

impl Figures {
    fn of(arguments: &Arguments, pair: &Pair) -> Result<Self, Failure> {
        let window = pair.window;
        let (low, width) = (window.low, window.high - window.low);
        let normalised = |volume: &Array3<f32>| {
            volume.mapv(|value| {
                let value = (value - low) / width;
                if arguments.clip { value.clamp(0.0, 1.0) } else { value }
            })
        };
        let (a, b) = (normalised(&pair.out), normalised(&pair.reference));
        let region = pair.region.as_ref().map(|region| region.view());
        let fail = |error: MeasureError| failed(arguments, pair, &error);
        Ok(Self {
            psnr_db: measure::psnr_db(a.view(), b.view(), 1.0, region).map_err(fail)?,
            rmse: measure::rmse(pair.out.view(), pair.reference.view(), region).map_err(fail)?,
            ssim: measure::ssim(a.view(), b.view(), 1.0, 0.0, region),
            voxels: region.map_or(pair.out.len(), |region| region.iter().filter(|inside| **inside).count()),
        })
    }

    fn ssim_text(&self) -> String {
        match &self.ssim {
            Ok(value) => format!("SSIM {value:.4}"),
            Err(error) => format!("SSIM not given ({error})"),
        }
    }

    fn json(&self, arguments: &Arguments, pair: &Pair) -> serde_json::Value {
        let window = pair.window;
        json!({
            "psnr_db": self.psnr_db.is_finite().then_some(self.psnr_db),
            "identical": self.psnr_db == f64::INFINITY,
            "ssim": self.ssim.as_ref().ok(),
            "rmse": self.rmse,
            "rmse_hu": (window.unit == "HU").then_some(self.rmse),
            "unit": window.unit,
            "window": [window.low, window.high],
            "clipped": arguments.clip,
            "voxels": self.voxels,
            "shape": pair.out.shape(),
            "field_of_view": pair.covered,
            "resampled": pair.resampled,
        })
    }

    /// What the figures were taken on.
    fn terms(&self, pair: &Pair) -> String {
        let window = pair.window;
        format!(
            "window {}:{} {}; {} of {} voxels{}{}",
            window.low,
            window.high,
            window.unit,
            self.voxels,
            pair.out.len(),
            pair.covered.as_deref().map_or(String::new(), |covered| format!("; {covered}")),
            if pair.resampled { "; reference averaged onto the volume's grid" } else { "" },
        )
    }
}

fn one(arguments: &Arguments, pair: &Pair, names: &[String]) -> Result<(String, serde_json::Value), Failure> {
    let figures = Figures::of(arguments, pair)?;
    let (psnr_db, ssim_text) = (figures.psnr_db, figures.ssim_text());
    let text = format!(
        "PSNR {psnr_db:.2} dB   {ssim_text}   RMSE {:.4} {}\n{}",
        figures.rmse,
        pair.window.unit,
        figures.terms(pair)
    );
    let mut json = figures.json(arguments, pair);
    if let Some(png) = &arguments.png {
        draw(arguments, png, pair, &format!("PSNR {psnr_db:.2} dB  {ssim_text}"))?;
    }
    if let Some(picture) = &arguments.picture {
        several::draw(arguments, picture, pair, &[several::Column::new(&names[0], pair.out.view(), &figures)])?;
    }
    let further = further(arguments, pair, &mut json)?;
    Ok((further.iter().fold(text, |text, line| format!("{text}\n{line}")), json))
}

/// What else was asked for, as lines of text and into the JSON.
fn further(arguments: &Arguments, pair: &Pair, json: &mut serde_json::Value) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let mut add = |name: &str, (line, value): (String, serde_json::Value)| {
        lines.push(line);
        json[name] = value;
    };
    if arguments.lungs {
        add("lungs", lungs::compare(arguments, pair)?);
    }
    if let Some(list) = &arguments.nodules {
        add("nodules", nodules::count(arguments, list, pair)?);
    }
    if arguments.jitter {
        add("jitter", jitter::compare(arguments, pair)?);
    }
    Ok(lines)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn draw(arguments: &Arguments, png: &Path, pair: &Pair, figures: &str) -> Result<(), Failure> {
    let window = pair.window;
    let middle = 0.5 * (window.low + window.high);
    let difference = &pair.out - &pair.reference + middle;
    let panel = |volume, caption: String| {
        let (volume, spacing_mm) = pair.hung(volume);
        Panel { volume, spacing_mm, caption }
    };
    let unit = window.unit;
    let panels = [
        panel(pair.out.view(), format!("{}: {figures}", file_name(&pair.path))),
        panel(pair.reference.view(), format!("reference {}", file_name(&arguments.reference))),
        panel(difference.view(), format!("difference (grey = 0, white = +{} {unit})", window.high - middle)),
    ];
    write_contact_sheet(png, &panels, window).map_err(|error| Failure::new(exit::OUTPUT, &error))
}

fn failed(arguments: &Arguments, pair: &Pair, error: &MeasureError) -> Failure {
    let message = format!("{} against {}: {error}", pair.path.display(), arguments.reference.display());
    Failure { message, code: exit::INPUT }
}

/// Reads `LO:HI`.
fn parse_window(text: &str) -> Result<Window, Failure> {
    let bad = || Failure {
        message: format!("--window-hu {text}: must be LO:HI with LO < HI, e.g. -1000:1000"),
        code: exit::USAGE,
    };
    let (low, high) = text.split_once(':').ok_or_else(bad)?;
    let number = |part: &str| part.trim().parse::<f32>().ok().filter(|value| value.is_finite()).ok_or_else(bad);
    let (low, high) = (number(low)?, number(high)?);
    if low < high { Ok(Window { low, high, unit: "HU" }) } else { Err(bad()) }
}

/// A volume as a picture hangs it.
type Hung<'a> = (ArrayView3<'a, f32>, [f64; 3]);
