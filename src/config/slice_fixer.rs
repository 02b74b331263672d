//! `[slice_fixer]`: with which model the volume is repaired on its way, and how the optimisation is held to it.

use std::path::{Path, PathBuf};

use super::raw::RawSliceFixer;
use super::resolve::{count, in_range};
use super::{ConfigError, OptimisedSettings, RunBudget};
use crate::reconstruct::optimise::AugmentSettings;
use crate::repair::{Demand, Options, Plane, RepairError, shipped};

/// What repairs volumes; how often and how firmly stands in [`crate::reconstruct::optimise::OptimiseSettings::augment`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFixerSettings {
    /// The model.
    pub model: ModelChoice,
    /// Part of the body that the model is told; one that it does not know counts as "other".
    pub anatomy: String,
    /// Planes to repair along; none: all that the model knows.
    pub planes: Vec<Plane>,
    /// Who may run it.
    pub demand: Demand,
    /// ONNX Runtime's library or its folder; `None`: where [`crate::repair::library::load`] looks by itself.
    pub onnxruntime: Option<PathBuf>,
    /// TensorRT's engines are kept here.
    pub engines: Option<PathBuf>,
    /// Longest time of a repair, ms; `None`: worked out before ready.
    pub deadline_ms: Option<u64>,
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelChoice {
    /// The one that the distribution brings.
    Shipped,
    /// A folder with `manifest.toml`, that file, or the graph beside it.
    At(PathBuf),
}

impl SliceFixerSettings {
    /// Where the model lies.
    ///
    /// # Errors
    /// [`RepairError::ModelMissing`] where none is shipped.
    pub fn model(&self) -> Result<PathBuf, RepairError> {
        match &self.model {
            ModelChoice::Shipped => shipped(),
            ModelChoice::At(path) => Ok(path.clone()),
        }
    }

    /// How the model is loaded for volumes of so many voxels.
    #[must_use]
    pub fn options(&self, voxels: [usize; 3], threads: usize) -> Options {
        Options {
            planes: self.planes.clone(),
            threads,
            demand: self.demand,
            cache_folder: self.engines.clone(),
            onnxruntime: self.onnxruntime.clone(),
            ..Options::new(voxels)
        }
    }
}

/// A number as it is written, not as its nearest float32.
fn written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Puts the repairs into `optimised`; relative paths count from `folder`. The numbers are checked whatever the model, so that naming one
/// brings no surprise. `is_absolute`: the scan's values are HU.
pub(super) fn slice_fixer(
    raw: &RawSliceFixer,
    optimised: &mut Option<OptimisedSettings>,
    is_absolute: bool,
    folder: &Path,
) -> Result<(), ConfigError> {
    let usual = AugmentSettings::default();
    let augment = AugmentSettings {
        first: in_range("slice_fixer.repair_from", raw.repair_from, usual.first, 0.0, 0.99)?,
        repairs: count("slice_fixer.repairs", raw.repairs, usual.repairs as i64, 1, 1000)?,
        weight: in_range("slice_fixer.weight", raw.weight, written(usual.weight), 1e-6, 1e3)? as f32,
        every: count("slice_fixer.every", raw.every, usual.every as i64, 1, 1_000_000)?,
        modulus: raw.modulus.unwrap_or(usual.modulus),
        ..usual
    };
    let deadline_s = raw.deadline_s.map(|s| in_range("slice_fixer.deadline_s", Some(s), 20.0, 0.01, 86_400.0));
    let settings = SliceFixerSettings {
        model: match raw.model.as_deref() {
            Some("shipped") => ModelChoice::Shipped,
            model => ModelChoice::At(folder.join(model.unwrap_or_default())),
        },
        anatomy: anatomy(raw.anatomy.as_deref().unwrap_or("other"))?,
        planes: planes(raw.planes.as_deref())?,
        demand: demand(raw.provider.as_deref().unwrap_or("any"))?,
        onnxruntime: onnxruntime(raw.onnxruntime.as_deref(), folder)?,
        engines: raw.engines.as_ref().map(|engines| folder.join(engines)),
        deadline_ms: deadline_s.transpose()?.map(|seconds| (1e3 * seconds) as u64),
    };
    let model = match raw.model.as_deref().unwrap_or("none") {
        "none" => return Ok(()),
        model => model,
    };
    let field = "slice_fixer.model";
    let refuse = |requirement: String| Err(ConfigError::value(field, format!("\"{model}\""), requirement));
    if let ModelChoice::At(path) = &settings.model
        && (model.is_empty() || !path.exists())
    {
        return refuse("must be \"none\", \"shipped\", or a model's folder, which holds its manifest.toml".into());
    }
    let Some(optimised) = optimised else {
        return refuse(
            "repairs are part of an optimisation: set reconstruct.method = \"gaussians\" or \"field\", or model = \"none\""
                .into(),
        );
    };
    if !is_absolute {
        return refuse(
            "the scan of geometry.scan states no absolute scale, and SliceFixer sees slices in HU: set volume.mu_water_per_mm if its lengths \
             are mm, or model = \"none\""
                .into(),
        );
    }
    if let RunBudget::Iterations(iterations) = optimised.budget
        && augment.planned(0, iterations) == 0
    {
        let requirement = format!(
            "leaves none of reconstruct.iterations = {iterations} to a repair; lower it or raise the iterations"
        );
        return Err(ConfigError::value("slice_fixer.repair_from", augment.first, requirement));
    }
    optimised.optimise.augment = Some(augment);
    optimised.slice_fixer = Some(settings);
    Ok(())
}

fn anatomy(name: &str) -> Result<String, ConfigError> {
    if name.is_empty() || name.len() > 64 {
        let requirement = "must be a part of the body in 1 to 64 bytes: \"chest\", \"head\", or \"other\"";
        return Err(ConfigError::value("slice_fixer.anatomy", format!("\"{name}\""), requirement));
    }
    Ok(name.into())
}

fn planes(names: Option<&[String]>) -> Result<Vec<Plane>, ConfigError> {
    let Some(names) = names else { return Ok(Vec::new()) };
    let plane = |name: &String| Plane::ALL.into_iter().find(|plane| plane.name().eq_ignore_ascii_case(name));
    let found: Option<Vec<Plane>> = names.iter().map(plane).collect();
    let planes = found.filter(|planes| {
        let is_new = |place: usize| !planes[..place].contains(&planes[place]);
        (1..planes.len()).all(is_new)
    });
    let requirement = "must be a list of \"axial\", \"coronal\", \"sagittal\", each at most once";
    planes.ok_or_else(|| ConfigError::value("slice_fixer.planes", format!("{names:?}"), requirement))
}

fn demand(name: &str) -> Result<Demand, ConfigError> {
    let requirement = "must be one of \"any\", \"tensorrt\", \"tensorrt-rtx\", \"cuda\", \"cpu\"";
    name.parse().map_err(|_| ConfigError::value("slice_fixer.provider", format!("\"{name}\""), requirement))
}

fn onnxruntime(path: Option<&Path>, folder: &Path) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = path.map(|path| folder.join(path)) else { return Ok(None) };
    let requirement = "is not there: name ONNX Runtime's library or its folder";
    if path.exists() {
        Ok(Some(path))
    } else {
        Err(ConfigError::value("slice_fixer.onnxruntime", path.display(), requirement))
    }
}
