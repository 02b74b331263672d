//! Several volumes against one reference: a table, and a picture of all side by side.

use std::path::Path;

use ndarray::ArrayView3;
use serde_json::{Value, json};

use super::{Arguments, Figures, Pair, file_name, load, refuse};
use crate::cli::Failure;
use crate::error::exit;
use crate::formats::picture::{Panel, write_columns};

/// The volumes' names: those given, or their files', or where two of these are alike their paths.
pub(super) fn names(arguments: &Arguments) -> Result<Vec<String>, Failure> {
    let usage = |message| Failure { message, code: exit::USAGE };
    let (names, volumes) = (&arguments.names, &arguments.out);
    if names.is_empty() {
        let stem = |path: &Path| {
            let name = file_name(path);
            [".nii.gz", ".nii", ".npy"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_string()
        };
        let mut stems: Vec<String> = volumes.iter().map(|path| stem(path)).collect();
        let alike = stems.iter().enumerate().any(|(n, name)| stems[..n].contains(name));
        if alike {
            stems = volumes.iter().map(|path| path.display().to_string()).collect();
        }
        return Ok(stems);
    }
    let shown = names.join(",");
    if names.len() != volumes.len() {
        return Err(usage(format!(
            "--names {shown}: {} names for {} volumes; give one for each",
            names.len(),
            volumes.len()
        )));
    }
    if let Some(empty) = names.iter().position(|name| name.trim().is_empty()) {
        return Err(usage(format!("--names {shown}: the name of {} is empty", volumes[empty].display())));
    }
    Ok(names.iter().map(|name| name.trim().to_string()).collect())
}

/// A volume of the picture.
pub(super) struct Column<'a> {
    volume: ArrayView3<'a, f32>,
    caption: String,
}

impl<'a> Column<'a> {
    pub(super) fn new(name: &str, volume: ArrayView3<'a, f32>, figures: &Figures) -> Self {
        let psnr = if figures.psnr_db.is_finite() { format!("{:.2} dB", figures.psnr_db) } else { "identical".into() };
        let ssim = figures.ssim.as_ref().map_or("not given".to_string(), |ssim| format!("{ssim:.3}"));
        Self { volume, caption: format!("{name}\nPSNR {psnr}\nSSIM {ssim}") }
    }
}

/// Figures of all volumes, as a table and as JSON.
pub(super) fn compare(arguments: &Arguments, names: &[String]) -> Result<(String, Value), Failure> {
    let of_one = [
        ("--dice", arguments.dice, "compare one mask at a time"),
        ("--png", arguments.png.is_some(), "--picture shows several"),
        ("--lungs-picture", arguments.lungs_picture.is_some(), "ask for one volume's at a time"),
    ];
    if let Some((option, _, instead)) = of_one.iter().find(|(_, given, _)| *given) {
        let message = format!("{option} takes one volume, {} are given; {instead}", arguments.out.len());
        return Err(Failure { message, code: exit::USAGE });
    }
    let mut judged: Vec<(Pair, Figures)> = Vec::new();
    let (mut further, mut of_volumes) = (Vec::new(), Vec::new());
    for (path, name) in arguments.out.iter().zip(names) {
        let mut pair = load(arguments, path)?;
        if let Some((first, _)) = judged.first()
            && let Some(why) = pair.differs_from(first)
        {
            return Err(refuse(format!("{} and {}: {why}", path.display(), first.path.display())));
        }
        let figures = Figures::of(arguments, &pair)?;
        let mut json = figures.json(arguments, &pair);
        json["name"] = name.as_str().into();
        json["volume"] = path.display().to_string().into();
        further.extend(super::further(arguments, &pair, &mut json)?.into_iter().map(|line| format!("{name}: {line}")));
        of_volumes.push(json);
        // All stand against one reference on one grid: the first one's is enough for the picture.
        if !judged.is_empty() {
            (pair.reference, pair.region, pair.seen) = (ndarray::Array3::zeros((0, 0, 0)), None, None);
        }
        judged.push((pair, figures));
    }
    let json = json!({ "reference": arguments.reference, "volumes": of_volumes });
    // There is a first volume: clap asks for one.
    let (first, figures) = &judged[0];
    let text = format!("{}\n{}", table(names, &judged), figures.terms(first));
    if let Some(picture) = &arguments.picture {
        let columns: Vec<Column<'_>> = judged
            .iter()
            .zip(names)
            .map(|((pair, figures), name)| Column::new(name, pair.out.view(), figures))
            .collect();
        draw(arguments, picture, first, &columns)?;
    }
    Ok((further.iter().fold(text, |text, line| format!("{text}\n{line}")), json))
}

/// A row a volume.
fn table(names: &[String], judged: &[(Pair, Figures)]) -> String {
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("volume".len());
    let unit = judged.first().map_or("", |(pair, _)| pair.window.unit);
    let head =
        format!("{:widest$}  {:>8}  {:>7}  {:>10}", "volume", "PSNR dB", "SSIM", format!("RMSE {unit}").trim_end());
    names.iter().zip(judged).fold(head, |text, (name, (_, figures))| {
        let ssim = figures.ssim.as_ref().map_or("-".to_string(), |ssim| format!("{ssim:.4}"));
        format!("{text}\n{name:widest$}  {:>8.2}  {ssim:>7}  {:>10.4}", figures.psnr_db, figures.rmse)
    })
}

/// The reference of `pair` and all `columns` on its grid, side by side.
pub(super) fn draw(arguments: &Arguments, picture: &Path, pair: &Pair, columns: &[Column<'_>]) -> Result<(), Failure> {
    let panel = |volume, caption: &str| {
        let (volume, spacing_mm) = pair.hung(volume);
        Panel { volume, spacing_mm, caption: caption.into() }
    };
    // A scene folder stands for its ground truth.
    let reference = if arguments.reference.is_dir() { "truth" } else { "reference" };
    let mut panels = vec![panel(pair.reference.view(), reference)];
    panels.extend(columns.iter().map(|column| panel(column.volume, &column.caption)));
    write_columns(picture, &panels, pair.window).map_err(|error| Failure::new(exit::OUTPUT, &error))
}
