//! `--experiment NAME=VALUE`: what docs/methods.md varies, one thing at a time. No promise that a name stays.

use super::super::Failure;
use crate::compute::field::FieldShape;
use crate::error::exit;
use crate::geometry::VolumeGrid;
use crate::reconstruct::optimise::{Method, OptimiseSettings};

/// All that can be varied.
pub(super) struct Varied<'a> {
    pub(super) settings: &'a mut OptimiseSettings,
    pub(super) method: &'a mut Method,
    pub(super) grid: &'a VolumeGrid,
}

/// Names of the loop's.
const LOOP: [&str; 11] = [
    "aperture",
    "tv_epsilon_per_mm",
    "model_error",
    "squares",
    "modulus",
    "dissimilarity",
    "approach_iterations",
    "fit_iterations",
    "views_per_iteration",
    "sharpness",
    "patience",
];

/// Names of the Gaussians'; lengths in voxels.
const GAUSSIANS: [&str; 15] = [
    "beta1",
    "beta2",
    "capacity",
    "low_pass",
    "smallest_scale",
    "density_factor",
    "scale_factor",
    "rate_density",
    "rate_position",
    "rate_scale",
    "rate_rotation",
    "decay",
    "adapt_every",
    "adapt_share",
    "prune_below",
];

/// Names of the field's.
const FIELD: [&str; 14] = [
    "levels",
    "features",
    "coarsest_cells",
    "finest_cells",
    "log2_table",
    "width",
    "hidden_layers",
    "rate_tables",
    "rate_network",
    "beta1",
    "beta2",
    "density_unit_per_mm",
    "decay",
    "jitter",
];

impl Varied<'_> {
    /// Applies `NAME=VALUE`.
    pub(super) fn apply(&mut self, text: &str) -> Result<(), Failure> {
        let refuse = |why: String| Failure { message: format!("--experiment {text}: {why}"), code: exit::USAGE };
        let (name, value) = text.split_once('=').ok_or_else(|| refuse("must be NAME=VALUE".into()))?;
        let value: f64 = value.parse().map_err(|_| refuse(format!("`{value}` is no number")))?;
        if self.of_loop(name, value) || self.of_method(name, value) {
            return Ok(());
        }
        let own: &[&str] = match self.method {
            Method::Gaussians(_) => &GAUSSIANS,
            Method::Field(_) => &FIELD,
        };
        let names: Vec<&str> = LOOP.iter().chain(own).copied().collect();
        Err(refuse(format!("there is no `{name}`; there are {}", names.join(", "))))
    }

    fn of_loop(&mut self, name: &str, value: f64) -> bool {
        let (settings, single, whole) = (&mut *self.settings, value as f32, value.max(0.0) as usize);
        match name {
            "tv_epsilon_per_mm" => settings.tv_epsilon_per_mm = single,
            "model_error" => settings.data.model_error = value,
            "squares" => settings.data.squares = single,
            "modulus" => settings.data.modulus = single,
            "dissimilarity" => settings.data.dissimilarity = single,
            "approach_iterations" => settings.approach_iterations = whole,
            "fit_iterations" => settings.fit_iterations = whole,
            "views_per_iteration" => settings.views_per_iteration = whole,
            "aperture" => settings.aperture = single,
            "sharpness" => settings.sharpness = single,
            "patience" => settings.patience = value,
            _ => return false,
        }
        true
    }

    fn of_method(&mut self, name: &str, value: f64) -> bool {
        let (single, whole) = (value as f32, value.max(0.0) as usize);
        match self.method {
            Method::Gaussians(plan) => {
                let voxel_mm = self.grid.voxel_mm.min_element() as f32;
                let (limits, schedule) = (&mut plan.limits, &mut plan.schedule);
                match name {
                    // Times the number that a run begins with.
                    "capacity" => limits.capacity = (limits.capacity as f64 * value.max(0.0)) as usize,
                    "low_pass" => limits.low_pass_mm = single * voxel_mm,
                    "smallest_scale" => limits.smallest_scale_mm = single * voxel_mm,
                    "density_factor" => schedule.initialisation.density_factor = single,
                    "scale_factor" => schedule.initialisation.scale_factor = single,
                    "rate_density" => schedule.rates.density = single,
                    "rate_position" => schedule.rates.position_mm = single,
                    "rate_scale" => schedule.rates.log_scale = single,
                    "beta1" => schedule.rates.beta1 = single,
                    "beta2" => schedule.rates.beta2 = single,
                    "rate_rotation" => schedule.rates.rotation = single,
                    "decay" => schedule.decay = single,
                    "adapt_every" => schedule.adapt_every = whole as u32,
                    "adapt_share" => schedule.adapt_share = single,
                    "prune_below" => schedule.prune_below = single,
                    _ => return false,
                }
            }
            Method::Field(plan) => {
                let shape = &mut plan.shape;
                let finest = shape.cells(shape.levels - 1);
                match name {
                    "levels" if whole > 0 => {
                        shape.levels = whole;
                        shape.growth = FieldShape::growth_to(shape.coarsest_cells, finest, whole);
                    }
                    "coarsest_cells" => {
                        shape.coarsest_cells = whole;
                        shape.growth = FieldShape::growth_to(whole, finest, shape.levels);
                    }
                    "finest_cells" => shape.growth = FieldShape::growth_to(shape.coarsest_cells, whole, shape.levels),
                    "features" => shape.features = whole,
                    "log2_table" => shape.log2_table = whole as u32,
                    "width" => shape.width = whole,
                    "hidden_layers" => shape.hidden_layers = whole,
                    "rate_tables" => plan.rates.tables = single,
                    "rate_network" => plan.rates.network = single,
                    "beta1" => plan.rates.beta1 = single,
                    "beta2" => plan.rates.beta2 = single,
                    "density_unit_per_mm" => plan.shape.density_unit_per_mm = single,
                    "decay" => plan.decay = single,
                    "jitter" => plan.jitter = value != 0.0,
                    _ => return false,
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use glam::DVec3;

    use super::*;
    use crate::represent::field::FieldPlan;
    use crate::represent::gaussians::GaussianPlan;

    #[test]
    fn every_name_that_is_listed_is_taken_and_no_other() {
        let grid = VolumeGrid::over_box([16; 3], DVec3::splat(160.0), DVec3::ZERO);
        let gaussians = Method::Gaussians(GaussianPlan::for_grid(&grid, None, 0));
        let field = Method::Field(FieldPlan::for_grid(&grid, 0));
        for (usual, own) in [(gaussians, &GAUSSIANS[..]), (field, &FIELD[..])] {
            for name in LOOP.iter().chain(own) {
                let (mut settings, mut method) = (OptimiseSettings::default(), usual);
                let mut varied = Varied { settings: &mut settings, method: &mut method, grid: &grid };
                varied.apply(&format!("{name}=7.5")).unwrap();
                let changed = settings != OptimiseSettings::default() || method != usual;
                assert!(changed, "{name}");
            }
            let (mut settings, mut method) = (OptimiseSettings::default(), usual);
            let mut varied = Varied { settings: &mut settings, method: &mut method, grid: &grid };
            for bad in ["nothing=1", "sharpness", "sharpness=x"] {
                assert!(varied.apply(bad).unwrap_err().message.contains(bad), "{bad}");
            }
        }
    }
}
