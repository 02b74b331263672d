//! A field as the loop drives it: rates over a run, a random point in each voxel.

#![forbid(unsafe_code)]

use super::{Field, FieldError, FieldRates};
use crate::compute::field::{FieldJitter, FieldLayout, FieldShape, FieldWorkload};
use crate::compute::{ComputeError, Operations, Values, ValuesMut};
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
    /// centre. The total variation takes the randomness for noise and smooths edges away with it, so centres serve better.
    pub jitter: bool,
    /// Seed of the first values and of the random points.
    pub seed: u64,
}

impl FieldPlan {
    /// The plan for `grid`, as docs/methods.md found it best: three levels of which the finest has a cell a voxel and an entry of its own for
    /// each node, and a small network.
    #[must_use]
    pub fn for_grid(grid: &VolumeGrid, seed: u64) -> Self {
        let finest = grid.voxels.into_iter().max().unwrap_or(1).max(8);
        let coarsest = finest.div_ceil(1 << (LEVELS - 1));
        let mut shape = FieldShape {
            levels: LEVELS,
            features: 2,
            coarsest_cells: coarsest,
            growth: FieldShape::growth_to(coarsest, finest, LEVELS),
            log2_table: LARGEST_LOG2_TABLE,
            width: 16,
            hidden_layers: 1,
            leak: 0.01,
            density_unit_per_mm: 0.004,
        };
        // No larger than the finest level can use. A grid that no layout is for is refused when the field is made.
        let entries = FieldLayout::new(&shape, grid)
            .map_or(1, |layout| layout.levels().iter().map(|level| level.entries).max().unwrap_or(1));
        shape.log2_table = entries.next_power_of_two().trailing_zeros().clamp(4, LARGEST_LOG2_TABLE);
        Self { shape, rates: FieldRates::default(), decay: 0.3, jitter: false, seed }
    }

    /// What the carrier must be ready for.
    #[must_use]
    pub fn workload(&self, grid: &VolumeGrid) -> FieldWorkload {
        FieldWorkload { shape: self.shape, voxels: grid.voxels, box_mm: grid.size_mm().to_array(), rays: 0 }
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
    pub fn build(&self, compute: &dyn Operations, grid: &VolumeGrid) -> Result<FieldRepresentation, FieldError> {
        Ok(FieldRepresentation { field: Field::new(compute, &self.shape, grid)?, plan: *self, steps: 0 })
    }
}

/// Levels: more, coarser ones pull whole regions along with every edge and slow the edges down (docs/methods.md).
const LEVELS: usize = 3;

/// Up to 254 cells along a cube's side every node has its own entry; beyond that, some share one.
const LARGEST_LOG2_TABLE: u32 = 24;

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

    fn begin(&mut self, compute: &dyn Operations, _grid: &VolumeGrid, start: &[f32]) -> Result<(), RepresentError> {
        // Its mean, so that the first steps need not move everything one way.
        let mean = start.iter().map(|&value| f64::from(value)).sum::<f64>() / start.len().max(1) as f64;
        let unit = f64::from(self.plan.shape.density_unit_per_mm);
        self.field.reset(compute, self.plan.seed, mean.clamp(1e-3 * unit, 1e3 * unit) as f32)?;
        self.field.begin_step(compute)?;
        self.steps = 0;
        Ok(())
    }

    fn voxelise(
        &self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError> {
        compute.field_voxelise(grid, &self.field.parameters(), self.jitter(draw), volume)
    }

    fn voxelise_backward(
        &mut self,
        compute: &dyn Operations,
        grid: &VolumeGrid,
        draw: Option<u64>,
        by_volume: Values<'_>,
    ) -> Result<(), ComputeError> {
        let jitter = self.jitter(draw);
        let (parameters, gradients) = self.field.parameters_and_gradients();
        compute.field_voxelise_backward(grid, &parameters, jitter, by_volume, gradients)
    }

    fn step(&mut self, compute: &dyn Operations, _grid: &VolumeGrid, stage: Stage) -> Result<(), ComputeError> {
        let decay = self.plan.decay.powf(stage.share);
        let FieldRates { tables, network, .. } = self.plan.rates;
        let rates = FieldRates { tables: tables * decay, network: network * decay, ..self.plan.rates };
        self.steps += 1;
        self.field.step(compute, &rates, self.steps)?;
        self.field.begin_step(compute)
    }
}
