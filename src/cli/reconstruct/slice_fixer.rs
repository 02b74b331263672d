//! `--slice-fixer`: repair and augment in `--method gaussians` and `--method field`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Failure, Job};
use crate::cli::repair::{failure, plane};
use crate::compute::Operations;
use crate::error::exit;
use crate::reconstruct::optimise::{AugmentSettings, Repairs, SliceFixing};
use crate::repair::{
    Conditioning, Demand, Manifest, Options as RepairOptions, Plane, SliceBuffers, SliceFixer, shipped,
};

/// Options of the repairs.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "SliceFixer (gaussians, field)")]
pub(super) struct Options {
    /// Repair the volume on the way and hold the optimisation to the repaired slices: shipped, none, or a model's folder [default: none]
    #[arg(long, value_name = "MODEL")]
    slice_fixer: Option<PathBuf>,
    /// Part of the body (chest, head, ...), which the model is told
    #[arg(long, value_name = "NAME")]
    anatomy: Option<String>,
    /// How often the volume is repaired [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repairs: Option<u32>,
    /// Share of the iterations before the first repair [default: 0.9]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    repair_from: Option<f64>,
    /// Weight of the similarity to the repaired volume (lambda) [default: 4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repair_weight: Option<f64>,
    /// The similarity counts in every so-manieth iteration (tau) [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repair_every: Option<u32>,
    /// Hold the volume to the repaired one by the modulus of their difference, not by similarity (for comparison)
    #[arg(long)]
    repair_modulus: bool,
    /// Planes to repair along; several are averaged [default: all that the model knows]
    #[arg(long, value_name = "PLANE,...", value_delimiter = ',', value_parser = plane)]
    repair_planes: Vec<Plane>,
    /// Execution provider: any, tensorrt, tensorrt-rtx, cuda or cpu; one that is named runs, or nothing does [default: any]
    #[arg(long)]
    provider: Option<Demand>,
    /// ONNX Runtime: the library or its folder
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
}

impl Options {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let beside = self.given_beside();
        self.slice_fixer.is_some().then_some("--slice-fixer").or(beside)
    }

    /// An option that has a meaning only with a model.
    fn given_beside(&self) -> Option<&'static str> {
        [
            ("--anatomy", self.anatomy.is_some()),
            ("--repairs", self.repairs.is_some()),
            ("--repair-from", self.repair_from.is_some()),
            ("--repair-weight", self.repair_weight.is_some()),
            ("--repair-every", self.repair_every.is_some()),
            ("--repair-modulus", self.repair_modulus),
            ("--repair-planes", !self.repair_planes.is_empty()),
            ("--provider", self.provider.is_some()),
            ("--onnxruntime", self.onnxruntime.is_some()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    /// Folder of the model; `None`: no repairs.
    fn model(&self) -> Result<Option<PathBuf>, Failure> {
        match self.slice_fixer.as_deref().map(|path| (path, path.to_str())) {
            None | Some((_, Some("none"))) => match self.given_beside() {
                Some(option) => Err(Failure {
                    message: format!("{option} needs --slice-fixer shipped or MODEL"),
                    code: exit::USAGE,
                }),
                None => Ok(None),
            },
            Some((_, Some("shipped"))) => shipped().map(Some).map_err(failure),
            Some((path, _)) => Ok(Some(path.to_path_buf())),
        }
    }

    /// What the loop is to do; `None`: no repairs.
    pub(super) fn settings(&self) -> Result<Option<AugmentSettings>, Failure> {
        if self.model()?.is_none() {
            return Ok(None);
        }
        let usual = AugmentSettings::default();
        Ok(Some(AugmentSettings {
            first: self.repair_from.unwrap_or(usual.first),
            repairs: self.repairs.map_or(usual.repairs, |n| n as usize),
            weight: self.repair_weight.map_or(usual.weight, |weight| weight as f32),
            every: self.repair_every.map_or(usual.every, |n| n as usize),
            modulus: self.repair_modulus,
            ..usual
        }))
    }

    /// The model's manifest, and how it is to be run.
    pub(super) fn asked(&self, job: &Job<'_>) -> Result<Option<(Manifest, RepairOptions)>, Failure> {
        let Some(model) = self.model()? else { return Ok(None) };
        if !job.scan.scale.is_absolute {
            return Err(Failure {
                message: "--slice-fixer: the scan states no absolute scale (mu_water_per_mm), and SliceFixer sees slices in HU".into(),
                code: exit::INPUT,
            });
        }
        let mut options = RepairOptions::new(job.grid.voxels);
        (options.threads, options.onnxruntime) = (job.threads(), self.onnxruntime.clone());
        options.demand = self.provider.unwrap_or(options.demand);
        if !self.repair_planes.is_empty() {
            options.planes.clone_from(&self.repair_planes);
        }
        Ok(Some((Manifest::read(&model).map_err(failure)?, options)))
    }

    /// The model, told of the scan and warm; with what the result says of it.
    pub(super) fn load(
        &self,
        job: &Job<'_>,
        (manifest, options): (Manifest, RepairOptions),
        compute: &dyn Operations,
        buffers: SliceBuffers,
    ) -> Result<(SliceFixing, Value), Failure> {
        let scan = job.scan;
        let mut fixer = SliceFixer::load(manifest, &options, compute, buffers).map_err(failure)?;
        let anatomy = self.anatomy.as_deref().unwrap_or("other");
        let conditioning = Conditioning::of_scan(&scan.geometry, scan.projections.view(), anatomy).map_err(failure)?;
        fixer.condition(&conditioning).map_err(failure)?;
        fixer.warm_up(compute).map_err(failure)?;
        let (manifest, providers) = (fixer.manifest(), fixer.providers());
        let facts = json!({
            "model": manifest.name,
            "anatomy": manifest.anatomies[manifest.anatomy_index(anatomy)],
            "planes": fixer.planes().map(Plane::name).collect::<Vec<_>>(),
            "slices": fixer.slices(),
            "provider": providers.header_text(),
            "onnxruntime": fixer.onnxruntime().version,
            "in_place": fixer.in_place(),
        });
        let fixing = SliceFixing::new(fixer, scan.scale.mu_water_per_mm).map_err(failure)?;
        Ok((fixing, facts))
    }
}

/// What the repairs came to, for the result; and a warning where one failed.
pub(super) fn outcome(mut facts: Value, settings: &AugmentSettings, repairs: &Repairs) -> (Value, Option<String>) {
    facts["repairs"] = repairs.done.into();
    facts["repairs_failed"] = repairs.failed.into();
    facts["repair_s"] = repairs.seconds.into();
    facts["dissimilarity"] = repairs.dissimilarity.into();
    (facts["weight"], facts["every"]) = (settings.weight.into(), settings.every.into());
    facts["modulus"] = settings.modulus.into();
    let warning = repairs.why.map(|why| {
        format!(
            "SliceFixer: {} of {} repairs failed: {why}; the optimisation went on without",
            repairs.failed, settings.repairs
        )
    });
    (facts, warning)
}
