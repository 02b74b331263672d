//! The repairs of a run: which model, where, when, and what they take.

use super::{Buffer, Place, PlanError, Step};
use crate::compute::device::Device;
use crate::config::{OptimisedSettings, RunBudget, Settings};
use crate::reconstruct::optimise::AugmentSettings;
use crate::repair::{Manifest, Options, Plane, RepairError, SliceBuffers};

/// What repairs volumes, known from the model's manifest before it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct RepairPlan {
    /// What the model takes and gives.
    pub manifest: Manifest,
    /// How it is to be loaded.
    pub options: Options,
    /// What it is told of the body.
    pub anatomy: String,
    /// When it repairs, and what that weighs.
    pub augment: AugmentSettings,
}

impl RepairPlan {
    /// The repairs that the settings ask for; `None`: none.
    ///
    /// # Errors
    /// [`PlanError::Repair`] for a model that is not there, does not keep its contract, or does not know a plane.
    pub fn of(settings: &Settings) -> Result<Option<Self>, PlanError> {
        let Some(optimised) = &settings.optimised else { return Ok(None) };
        let (Some(fixer), Some(augment)) = (&optimised.slice_fixer, optimised.optimise.augment) else {
            return Ok(None);
        };
        let manifest = Manifest::read(&fixer.model()?)?;
        let options = fixer.options(settings.grid.voxels, settings.compute.threads);
        options.check()?;
        let options = options.of_model(&manifest)?;
        Ok(Some(Self { manifest, options, anatomy: fixer.anatomy.clone(), augment }))
    }

    /// What the model is told of the body, in its own word.
    #[must_use]
    pub fn anatomy(&self) -> &str {
        &self.manifest.anatomies[self.manifest.anatomy_index(&self.anatomy)]
    }

    /// Every buffer but those in the arena of a GPU's carrier. What ONNX Runtime takes for the values between its nodes comes on top: it alone knows.
    pub(super) fn buffers(&self, views: usize, device: &Device) -> Result<Vec<Buffer>, RepairError> {
        let host = |name: &str, bytes: usize| Buffer::new(format!("repair: {name}"), bytes as u64, Place::Host);
        let model = self.manifest.condition.file_bytes()? + self.manifest.repair.file_bytes()?;
        let slices = match device {
            Device::Cpu { .. } => "slices in and out",
            // Which provider runs is known when the model is loaded.
            Device::Cuda(_) => "slices in and out on the host, unless ONNX Runtime runs on the same GPU",
        };
        Ok(vec![
            Buffer::new("repair: model, as ONNX Runtime keeps it at least", model, Place::Host),
            host(slices, SliceBuffers::bytes(&self.manifest, &self.options)?),
            host("projections, context, places of slices", self.options.told_bytes(&self.manifest)),
            host("angles of the views", Self::angle_bytes(views)),
        ])
    }

    /// Bytes for the angles that the two views of a scan are chosen by.
    #[must_use]
    pub fn angle_bytes(views: usize) -> usize {
        views * (size_of::<f64>() + size_of::<usize>())
    }

    /// What is repaired when.
    pub(super) fn steps(&self, optimised: &OptimisedSettings, deadline_ms: Option<u64>) -> Vec<Step> {
        let step = |when: String, what: String, deadline: String| Step { when, what, deadline };
        let planes: Vec<&str> = self.options.planes.iter().copied().map(Plane::name).collect();
        let deadline = match deadline_ms {
            Some(ms) => format!("{} s each, or the run goes on without", ms as f64 / 1e3),
            None => "four times what the rehearsal takes, or the run goes on without".into(),
        };
        let augment = &self.augment;
        let (term, every) = (if augment.modulus { "modulus" } else { "1 - SSIM" }, augment.every);
        vec![
            step(
                when(augment, optimised.budget),
                format!(
                    "repair {} slices ({}) with {} into the pseudo-reference, told \"{}\" and two views (--rehearse times it)",
                    self.options.slices(),
                    planes.join(", "),
                    self.manifest.name,
                    self.anatomy()
                ),
                deadline,
            ),
            step(
                if every == 1 {
                    "each iteration from then on".into()
                } else {
                    format!("every {every} iterations from then on")
                },
                format!("hold the volume to the pseudo-reference: {term}, weight {}", augment.weight),
                String::new(),
            ),
        ]
    }
}

/// After which iterations.
fn when(augment: &AugmentSettings, budget: RunBudget) -> String {
    let (numbers, of) = match budget {
        RunBudget::Iterations(iterations) => {
            let numbers = (0..augment.planned(0, iterations)).map(|number| augment.iteration_of(number, iterations));
            (numbers.map(|number| number.to_string()).collect::<Vec<_>>(), format!(" of {iterations}"))
        }
        RunBudget::DeadlineS(_) => {
            // Shares, as their number is not known yet.
            let share = |number| augment.iteration_of(number, 1000) as f64 / 10.0;
            ((0..augment.repairs).map(|number| format!("{} %", share(number))).collect(), " of the iterations".into())
        }
    };
    let list = match numbers.len() {
        0..=6 => numbers.join(", "),
        count => format!("{}, {}, ... {} ({count} repairs)", numbers[0], numbers[1], numbers[count - 1]),
    };
    let is_count = matches!(budget, RunBudget::Iterations(_));
    format!("after {}{list}{of}", if is_count { "iteration " } else { "" })
}
