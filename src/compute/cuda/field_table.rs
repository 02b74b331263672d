//! What the kernels of a neural field need of its layout, and how their blocks share the work: `kernels/field.cuh`.

#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::field::{FieldLayout, FieldShape};
use super::{DeviceSlice, Launcher, check_len};

/// Levels that a launch carries the weights of.
const MOST_LEVELS: usize = 32;

/// Threads of a block.
pub(super) const THREADS: usize = 128;

/// Floats of a network that a block holds in shared memory, and of one that it holds the gradient of as well, a copy a warp.
const STAGED: usize = 8192;
const SUMS_STAGED: usize = 1024;

/// Bytes that a batch's activations take at the most, unless 32 points need more.
const BATCH_BYTES: usize = 32 << 10;

/// Shared memory of a block on the smallest device that images are built for, and what the kernels have of fixed size.
const SHARED_BYTES: usize = 99 << 10;
const FIXED_BYTES: usize = 8 << 10;

/// A field's levels on one launcher.
#[derive(Debug, Clone)]
pub struct FieldTable {
    layout: FieldLayout,
    levels: DeviceSlice<LevelRecord>,
}

/// `field::LevelRecord` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct LevelRecord {
    cell_mm: f64,
    first: i64,
    nodes: [i32; 3],
    entries: u32,
    hashed: i32,
    unused: i32,
}

/// `field::Field` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct FieldArgument {
    levels: i32,
    features: i32,
    width: i32,
    hidden: i32,
    points: i32,
    staged: i32,
    sums_staged: i32,
    leak: f32,
    unit: f32,
    weights: [f32; MOST_LEVELS],
}

/// A field on the device, as [`crate::compute::field::FieldParameters`] on the host. Values cannot be looked at here: one that is not finite
/// makes results so.
#[derive(Debug, Clone, Copy)]
pub struct DeviceField<'a> {
    /// Where everything lies.
    pub table: &'a FieldTable,
    /// `[level][feature][entry]`.
    pub tables: DeviceSlice<f32>,
    /// Weights and biases: see [`crate::compute::field::FieldLayer`].
    pub network: DeviceSlice<f32>,
    /// Factor of each level's features; a level of weight 0 is neither read nor given gradients.
    pub level_weights: &'a [f32],
}

/// Gradients on the device, as [`crate::compute::field::FieldGradients`]. The operations **add** to them.
#[derive(Debug, Clone, Copy)]
pub struct DeviceFieldGradients {
    /// By the tables.
    pub tables: DeviceSlice<f32>,
    /// By the network.
    pub network: DeviceSlice<f32>,
}

/// How a block works on a field's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// Points of a batch.
    pub(super) points: usize,
    staged: bool,
    pub(super) sums_staged: bool,
    /// Bytes of dynamic shared memory.
    pub(super) shared_bytes: usize,
}

impl Batch {
    /// Where only values are wanted (two hidden layers then take turns), or gradients as well.
    pub(super) fn new(operation: &'static str, shape: &FieldShape, gradients: bool) -> Result<Self, ComputeError> {
        shape.check()?;
        let kept = if gradients { shape.hidden_layers } else { shape.hidden_layers.min(2) };
        let rows = shape.inputs() + kept * shape.width;
        let bytes = |points: usize| rows * (points + 4) * size_of::<f32>();
        let points = [128, 64].into_iter().find(|&points| bytes(points) <= BATCH_BYTES).unwrap_or(32);
        let network = shape.network_len();
        let floats = |count: usize| count.next_multiple_of(4) * size_of::<f32>();
        let sums_staged = gradients && network <= SUMS_STAGED;
        let (batch, sums) = (bytes(points), if sums_staged { floats(THREADS / 32 * network) } else { 0 });
        let left = SHARED_BYTES.saturating_sub(FIXED_BYTES + batch + sums);
        let staged = network <= STAGED && floats(network) <= left;
        if FIXED_BYTES + batch + sums > SHARED_BYTES {
            return Err(ComputeError::Setting {
                of: operation,
                setting: "levels * features + hidden_layers * width",
                value: rows as f64,
                requirement: "more units than a block's shared memory holds; take a narrower network",
            });
        }
        Ok(Self { points, staged, sums_staged, shared_bytes: batch + sums + if staged { floats(network) } else { 0 } })
    }

    /// Batches of a grid of so many voxels along x, y, z: 32 of a row in each warp.
    pub(super) fn of_voxels(&self, [x, y, z]: [usize; 3]) -> usize {
        (x * y * z.div_ceil(32)).div_ceil(self.points / 32)
    }

    /// Batches of so many rays: one in each warp.
    pub(super) fn of_rays(&self, rays: usize) -> usize {
        rays.div_ceil(self.points / 32)
    }
}

impl FieldTable {
    /// Uploads the levels.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn upload(launcher: &dyn Launcher, layout: &FieldLayout) -> Result<Self, ComputeError> {
        let record = |level: &crate::compute::field::FieldLevel| LevelRecord {
            cell_mm: level.cell_mm,
            first: level.first as i64,
            // At most 65,536 cells; entries at most 2^24: `FieldShape::check`.
            nodes: level.nodes.map(|nodes| nodes as i32),
            entries: level.entries as u32,
            hashed: i32::from(level.hashed),
            unused: 0,
        };
        let records: Vec<LevelRecord> = layout.levels().iter().map(record).collect();
        Ok(Self { layout: layout.clone(), levels: DeviceSlice::upload(launcher, &records)? })
    }

    /// The layout that it was made of.
    #[must_use]
    pub fn layout(&self) -> &FieldLayout {
        &self.layout
    }

    pub(super) fn levels(&self) -> DeviceSlice<LevelRecord> {
        self.levels
    }
}

impl DeviceField<'_> {
    /// Refuses arrays that do not fit the layout, and weights of levels that are not finite.
    pub(super) fn check(&self, operation: &'static str) -> Result<(), ComputeError> {
        let layout = self.table.layout();
        check_len(operation, "tables", self.tables.len(), layout.tables_len())?;
        check_len(operation, "network", self.network.len(), layout.network_len())?;
        check_len(operation, "level_weights", self.level_weights.len(), layout.levels().len())?;
        match self.level_weights.iter().position(|weight| !weight.is_finite()) {
            None => Ok(()),
            Some(index) => Err(ComputeError::Value {
                operation,
                parameter: "level_weights",
                index,
                value: self.level_weights[index],
                requirement: "must be finite",
            }),
        }
    }

    pub(super) fn argument(&self, batch: &Batch) -> FieldArgument {
        let shape = self.table.layout().shape();
        let mut weights = [0.0; MOST_LEVELS];
        weights[..self.level_weights.len()].copy_from_slice(self.level_weights);
        FieldArgument {
            levels: shape.levels as i32,
            features: shape.features as i32,
            width: shape.width as i32,
            hidden: shape.hidden_layers as i32,
            points: batch.points as i32,
            staged: i32::from(batch.staged),
            sums_staged: i32::from(batch.sums_staged),
            leak: shape.leak,
            unit: shape.density_unit_per_mm,
            weights,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_shape_that_a_field_may_have_fits_a_block() {
        for (levels, features) in [(1, 2), (3, 2), (16, 2), (16, 8), (32, 4)] {
            for width in (16..=128).step_by(16) {
                for hidden_layers in 1..=4 {
                    let shape = FieldShape {
                        levels,
                        features,
                        coarsest_cells: 8,
                        growth: 1.2,
                        log2_table: 14,
                        width,
                        hidden_layers,
                        leak: 0.0,
                        density_unit_per_mm: 0.02,
                    };
                    for gradients in [false, true] {
                        let batch = Batch::new("test", &shape, gradients).unwrap();
                        assert!(batch.shared_bytes + FIXED_BYTES <= SHARED_BYTES, "{shape:?}: {batch:?}");
                        assert!(batch.points == 128 || levels * features + hidden_layers * width > 60, "{shape:?}");
                    }
                }
            }
        }
    }
}
