//! A field as the loop drives it: rates over a run, a random point in each voxel.

#![forbid(unsafe_code)]

use super::{Field, FieldError, FieldRates};
use crate::compute::field::{FieldJitter, FieldLayout, FieldShape, FieldWorkload};
use crate::compute::{ComputeError, Operations};
use crate::geometry::VolumeGrid;
use crate::represent::{RepresentError, Representation, Stage};

/// Sizes and schedule of the field of a run: one place for the command line, the daemon and the benches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldPlan {
    /// Levels, tables, network.
    pub shape: FieldShape,
    /// Learning rates at the start.
    pub rates: FieldRates,
    /// Rates at the end over those at the start; log-linear between.
    pub decay: f32,
    /// Whether a voxel stands for a random point in it while it learns, so that the field learns means over voxels; else for its
    /// centre.
    pub jitter: bool,
    /// Seed of the first values and of the random points.
    pub seed: u64,
}

impl FieldPlan {
    /// The plan for `grid`: levels from 8 cells along its longest side to one a voxel.
    #[must_use]
    pub fn for_grid(grid: &VolumeGrid, seed: u64) -> Self {
        let finest = grid.voxels.into_iter().max().unwrap_or(1).max(COARSEST);
        Self {
            shape: FieldShape {
                levels: LEVELS,
                features: 2,
                coarsest_cells: COARSEST,
                growth: FieldShape::growth_to(COARSEST, finest, LEVELS),
                log2_table: 19,
                width: 32,
                hidden_layers: 2,
                leak: 0.01,
                density_unit_per_mm: 0.004,
            },
            rates: FieldRates { tables: 1e-2, network: 3e-3, epsilon: 1e-15 },
            decay: 0.1,
            jitter: true,
            seed,
        }
    }

    /// What the carrier must be ready for.
    #[must_use]
    pub fn workload(&self, grid: &VolumeGrid) -> FieldWorkload {
        FieldWorkload { shape: self.shape, voxels: grid.voxels }
    }

    /// Every buffer of the representation and its bytes.
    #[must_use]
    pub fn buffers(&self, grid: &VolumeGrid) -> Vec<(&'static str, usize)> {
        // A shape that cannot work is refused when the field is made.
        vec![("field", Field::bytes(&self.shape, grid).unwrap_or(0))]
    }

    /// Entries of all tables.
    #[must_use]
    pub fn elements(&self, grid: &VolumeGrid) -> usize {
        FieldLayout::new(&self.shape, grid).map_or(0, |layout| layout.tables_len() / self.shape.features)
    }

    /// The representation itself.
    ///
    /// # Errors
    /// As [`Field::new`].
    pub fn build(&self, grid: &VolumeGrid) -> Result<FieldRepresentation, FieldError> {
        Ok(FieldRepresentation { field: Field::new(&self.shape, grid)?, plan: *self, steps: 0 })
    }
}

const LEVELS: usize = 8;
const COARSEST: usize = 8;

/// A field with its schedule.
#[derive(Debug)]
pub struct FieldRepresentation {
    field: Field,
    plan: FieldPlan,
    steps: u32,
}

impl FieldRepresentation {
    /// The field.
    #[must_use]
    pub fn field(&self) -> &Field {
        &self.field
    }

    fn jitter(&self, draw: Option<u64>) -> Option<FieldJitter> {
        draw.filter(|_| self.plan.jitter).map(|iteration| FieldJitter { seed: self.plan.seed, iteration })
    }
}

impl Representation for FieldRepresentation {
    fn name(&self) -> &'static str {
        "field"
    }

    fn elements(&self) -> usize {
        self.field.layout().tables_len() / self.plan.shape.features
    }

    fn unit(&self) -> &'static str {
        "table entries"
    }

    fn begin(&mut self, _compute: &dyn Operations, _grid: &VolumeGrid, start: &[f32]) -> Result<(), RepresentError> {
        // Its mean, so that the first steps need not move everything one way.
        let mean = start.iter().map(|&value| f64::from(value)).sum::<f64>() / start.len().max(1) as f64;
        let unit = f64::from(self.plan.shape.density_unit_per_mm);
        self.field.reset(self.plan.seed, mean.clamp(1e-3 * unit, 1e3 * unit) as f32)?;
        self.field.begin_step();
        self.steps = 0;
        Ok(())
    }

    fn voxelise(
        &self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        volume: &mut [f32],
    ) -> Result<(), ComputeError> {
        compute.field_voxelise(grid, &self.field.parameters(), self.jitter(draw), volume)
    }

    fn voxelise_backward(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        by_volume: &[f32],
    ) -> Result<(), ComputeError> {
        let jitter = self.jitter(draw);
        let (parameters, mut gradients) = self.field.parameters_and_gradients();
        compute.field_voxelise_backward(grid, &parameters, jitter, by_volume, &mut gradients)
    }

    fn step(&mut self, compute: &dyn Operations, _grid: &VolumeGrid, stage: Stage) -> Result<(), ComputeError> {
        let decay = self.plan.decay.powf(stage.share);
        let FieldRates { tables, network, epsilon } = self.plan.rates;
        self.steps += 1;
        self.field.step(
            compute,
            &FieldRates { tables: tables * decay, network: network * decay, epsilon },
            self.steps,
        )?;
        self.field.begin_step();
        Ok(())
    }
}
