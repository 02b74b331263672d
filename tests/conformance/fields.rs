//! Fields to work on: shapes, parameters, and both sides of a comparison.

use diffnr::compute::cpu::CpuCompute;
use diffnr::compute::cuda::{DeviceField, FieldTable, Launcher};
use diffnr::compute::field::{FieldCompute as _, FieldJitter, FieldLayout, FieldParameters, FieldShape, FieldWorkload};
use diffnr::geometry::VolumeGrid;
use glam::DVec3;
use proptest::prelude::*;

use crate::values::{assert_close, signed, upload};

pub(crate) const JITTER: Option<FieldJitter> =
    Some(FieldJitter { seed: 0x1234_5678_9abc_def0, iteration: 0x0fed_cba9_8765_4321 });

/// A field with its parameters, random throughout: features up to 1, so that every unit of the network works.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) layout: FieldLayout,
    pub(crate) tables: Vec<f32>,
    pub(crate) network: Vec<f32>,
    pub(crate) weights: Vec<f32>,
}

impl Owned {
    pub(crate) fn new(shape: &FieldShape, grid: &VolumeGrid, seed: u64) -> Self {
        let layout = FieldLayout::new(shape, grid).unwrap();
        let tables = signed(layout.tables_len(), seed);
        let mut network = signed(layout.network_len(), seed + 1);
        for index in 0..=shape.hidden_layers {
            let layer = layout.layer(index);
            let size = (3.0 / layer.inputs as f32).sqrt();
            network[layer.first..layer.biases() + layer.outputs].iter_mut().for_each(|weight| *weight *= size);
        }
        let weights = (0..shape.levels).map(|level| 1.0 - 0.02 * level as f32).collect();
        Self { layout, tables, network, weights }
    }

    pub(crate) fn parameters(&self) -> FieldParameters<'_> {
        FieldParameters {
            layout: &self.layout,
            tables: &self.tables,
            network: &self.network,
            level_weights: &self.weights,
        }
    }

    pub(crate) fn table(&self, launcher: &dyn Launcher) -> FieldTable {
        FieldTable::upload(launcher, &self.layout).unwrap()
    }

    pub(crate) fn upload<'a>(&'a self, launcher: &dyn Launcher, table: &'a FieldTable) -> DeviceField<'a> {
        DeviceField {
            table,
            tables: upload(launcher, &self.tables),
            network: upload(launcher, &self.network),
            level_weights: &self.weights,
        }
    }

    /// The CPU, ready for this field and so many voxels.
    pub(crate) fn cpu(&self, voxels: [usize; 3]) -> CpuCompute {
        let mut cpu = CpuCompute::new(1).unwrap();
        cpu.prepare_field(&FieldWorkload { shape: *self.layout.shape(), voxels, box_mm: [1.0; 3], rays: 0 }).unwrap();
        cpu
    }
}

/// Dense and hashed levels, leaky units.
pub(crate) fn small() -> FieldShape {
    FieldShape {
        levels: 5,
        features: 2,
        coarsest_cells: 3,
        growth: 1.7,
        log2_table: 9,
        width: 16,
        hidden_layers: 2,
        leak: 0.1,
        density_unit_per_mm: 0.02,
    }
}

/// What the loop drives: three levels, the finest of a cell a voxel, and a small network.
pub(crate) fn driven(finest: usize) -> FieldShape {
    FieldShape {
        levels: 3,
        coarsest_cells: finest.div_ceil(4),
        growth: FieldShape::growth_to(finest.div_ceil(4), finest, 3),
        log2_table: 24,
        hidden_layers: 1,
        leak: 0.01,
        density_unit_per_mm: 0.004,
        ..small()
    }
}

/// An oblong grid of odd sizes, off the isocenter.
pub(crate) fn odd(voxels: [usize; 3]) -> VolumeGrid {
    VolumeGrid { voxels, voxel_mm: DVec3::new(2.0, 2.3, 1.1), centre_mm: DVec3::new(3.0, -2.0, 5.0) }
}

/// Shapes that have their own ways through the kernels, by name.
pub(crate) fn shapes() -> Vec<(&'static str, FieldShape)> {
    vec![
        ("small", small()),
        ("driven", driven(37)),
        ("one level, three tiles", FieldShape { levels: 1, hidden_layers: 1, width: 48, ..small() }),
        // 64 points a batch.
        (
            "three hidden layers",
            FieldShape { levels: 4, features: 4, width: 32, hidden_layers: 3, leak: 0.0, ..small() },
        ),
        // 32 points a batch; all levels hashed, into sixteen entries.
        ("eight features", FieldShape { levels: 9, features: 8, width: 64, log2_table: 4, ..small() }),
        // 8 to 4000 cells: the last levels hold two nodes a point.
        (
            "nodes far closer than voxels",
            FieldShape { levels: 6, coarsest_cells: 8, growth: 3.47, log2_table: 12, ..small() },
        ),
        // The network is not staged.
        ("two wide layers", FieldShape { levels: 3, features: 2, width: 96, hidden_layers: 2, ..small() }),
        (
            "thirty-two levels",
            FieldShape {
                levels: 32,
                features: 4,
                coarsest_cells: 2,
                growth: 1.05,
                log2_table: 6,
                hidden_layers: 1,
                ..small()
            },
        ),
        ("one cell", FieldShape { levels: 1, coarsest_cells: 1, hidden_layers: 1, ..small() }),
    ]
}

/// The largest network.
pub(crate) fn largest() -> FieldShape {
    FieldShape { levels: 16, features: 8, growth: 1.2, log2_table: 6, width: 128, hidden_layers: 4, ..small() }
}

/// Any small field.
pub(crate) fn any_shape() -> impl Strategy<Value = FieldShape> {
    (
        (1usize..6, prop::sample::select(vec![2usize, 4, 8]), 1usize..12, 1.0..2.5f64, 4u32..12),
        (1usize..4, 1usize..4, prop::sample::select(vec![0.0f32, 0.01, 0.5])),
    )
        .prop_map(|((levels, features, coarsest_cells, growth, log2_table), (width, hidden_layers, leak))| {
            FieldShape {
                levels,
                features,
                coarsest_cells,
                growth,
                log2_table,
                width: 16 * width,
                hidden_layers,
                leak,
                density_unit_per_mm: 0.02,
            }
        })
}

/// Of the largest gradient by the tables or the network. Sums over up to some ten thousand points of either sign, in another order, and units that
/// rounding puts on the other side of their kink. Found: 4e-6.
const GRADIENTS: f32 = 2e-5;

/// Gradients by tables and network, added to what stood there, are the expected ones. Level by level: they differ in size.
pub(crate) fn assert_gradients(
    what: &str,
    owned: &Owned,
    start: &[Vec<f32>; 2],
    given: &[Vec<f32>],
    expected: &[Vec<f32>; 2],
) {
    let features = owned.layout.shape().features;
    for (index, level) in owned.layout.levels().iter().enumerate() {
        let part = level.first..level.first + features * level.entries;
        if owned.weights[index] == 0.0 {
            assert_eq!(given[0][part.clone()], start[0][part], "{what}: level {index} is left out");
        } else {
            assert_close(&format!("{what}, level {index}"), GRADIENTS, &given[0][part.clone()], &expected[0][part]);
        }
    }
    for index in 0..=owned.layout.shape().hidden_layers {
        let layer = owned.layout.layer(index);
        let part = layer.first..layer.biases() + layer.outputs;
        assert_close(&format!("{what}, layer {index}"), GRADIENTS, &given[1][part.clone()], &expected[1][part]);
    }
}

/// What gradients are added to: small, so that it does not hide them.
pub(crate) fn start(owned: &Owned) -> [Vec<f32>; 2] {
    [(owned.tables.len(), 8), (owned.network.len(), 9)]
        .map(|(len, seed)| signed(len, seed).into_iter().map(|value| 1e-3 * value).collect())
}
