//! The operations of a neural field: what the representation asks of a processor, beside [`super::Compute`].
//!
//! **The object.** Within a box the attenuation at a point `x` is `unit * softplus(network(features(x)))`, in 1/mm and never negative;
//! outside it (the faces belong to the box) it is zero. The features come from a grid of several resolutions (Müller et al. 2022, "Instant neural
//! graphics primitives"): each level has cubic cells, a few numbers at each node, and gives the trilinear interpolation of these. Where a
//! level's nodes fit into its table each has its own entry, else a hash shares entries. The network is a small perceptron with
//! ReLU or leaky ReLU between its layers ([`FieldShape`], [`FieldLayout`]).
//!
//! **Along z.** Neighbours along z, the fastest axis of a volume, are neighbours in the tables, hashed or not: the hash is
//! `(x p1 ^ y p2 ^ z) mod 2^k`. A row of voxels along z thus reads four rows of a table, whole cache lines, instead of eight
//! entries a voxel.

use glam::DVec3;

use super::{ComputeError, Values, ValuesMut};
use crate::geometry::{ScanGeometry, VolumeGrid};

/// Factors of the hash for x and y (Teschner et al. 2003); z has 1.
pub const HASH_FACTORS: [u32; 2] = [2_654_435_761, 805_459_861];

/// Sizes of a field: what is fixed for a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldShape {
    /// Resolutions, 1 to 32.
    pub levels: usize,
    /// Numbers at each node of a level: 2, 4 or 8; `levels * features` is at most 128.
    pub features: usize,
    /// Cells of the coarsest level along the box's longest side.
    pub coarsest_cells: usize,
    /// Cells of a level over those of the one before (rounded down to whole cells), 1 to 4.
    pub growth: f64,
    /// A level has at most two to this power entries a feature; 4 to 24.
    pub log2_table: u32,
    /// Units of a hidden layer: a multiple of 16, at most 128.
    pub width: usize,
    /// Hidden layers, 1 to 4.
    pub hidden_layers: usize,
    /// Slope of the activation below zero: 0 for ReLU, below 1 for leaky ReLU.
    pub leak: f32,
    /// Attenuation that softplus is scaled by: where it goes over from exponential to linear; about that of water.
    pub density_unit_per_mm: f32,
}

impl FieldShape {
    /// Numbers that the network reads.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.levels * self.features
    }

    /// Floats of the network: see [`FieldLayout::layer`].
    #[must_use]
    pub fn network_len(&self) -> usize {
        let first = (self.inputs() + 1) * self.width;
        first + (self.hidden_layers - 1) * (self.width + 1) * self.width + self.width + 1
    }

    /// Cells of a level along the box's longest side.
    #[must_use]
    pub fn cells(&self, level: usize) -> usize {
        // A hair more than rounding can take: a growth worked out from a wish for the finest level reaches it.
        (self.coarsest_cells as f64 * self.growth.powi(level as i32) + 1e-6).floor() as usize
    }

    /// The growth with which the finest of `levels` has `finest` cells.
    #[must_use]
    pub fn growth_to(coarsest: usize, finest: usize, levels: usize) -> f64 {
        if levels < 2 { 1.0 } else { (finest as f64 / coarsest as f64).powf(1.0 / (levels - 1) as f64) }
    }

    /// Refuses sizes that cannot work.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] naming the field.
    pub fn check(&self) -> Result<(), ComputeError> {
        let refuse =
            |setting, value: f64, requirement| Err(ComputeError::Setting { of: "field", setting, value, requirement });
        if !(1..=32).contains(&self.levels) {
            return refuse("levels", self.levels as f64, "must be between 1 and 32");
        }
        if ![2, 4, 8].contains(&self.features) {
            return refuse("features", self.features as f64, "must be 2, 4 or 8");
        }
        if self.inputs() > 128 {
            return refuse("levels * features", self.inputs() as f64, "must be at most 128");
        }
        if !(1..=65536).contains(&self.coarsest_cells) {
            return refuse("coarsest_cells", self.coarsest_cells as f64, "must be between 1 and 65536");
        }
        if !(1.0..=4.0).contains(&self.growth) {
            return refuse("growth", self.growth, "must be between 1 and 4");
        }
        let finest = self.coarsest_cells as f64 * self.growth.powi(self.levels as i32 - 1);
        if finest > 65536.5 {
            return refuse("coarsest_cells * growth^(levels - 1)", finest, "must be at most 65536");
        }
        if !(4..=24).contains(&self.log2_table) {
            return refuse("log2_table", f64::from(self.log2_table), "must be between 4 and 24");
        }
        if self.width == 0 || !self.width.is_multiple_of(16) || self.width > 128 {
            return refuse("width", self.width as f64, "must be a multiple of 16, at most 128");
        }
        if !(1..=4).contains(&self.hidden_layers) {
            return refuse("hidden_layers", self.hidden_layers as f64, "must be between 1 and 4");
        }
        if !(0.0..1.0).contains(&self.leak) {
            return refuse("leak", f64::from(self.leak), "must be 0 (ReLU) or above and below 1");
        }
        let unit = self.density_unit_per_mm;
        if !(unit > 1e-9 && unit < 1e9) {
            return refuse("density_unit_per_mm", f64::from(unit), "must be finite and > 0 (1e-9 to 1e9)");
        }
        Ok(())
    }
}

/// One level of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldLevel {
    /// Edge of its cells.
    pub cell_mm: f64,
    /// Nodes along x, y, z: one more than cells; the first ones lie on the box's lower faces.
    pub nodes: [usize; 3],
    /// Where its numbers start in the tables: `[feature][entry]`.
    pub first: usize,
    /// Entries of each feature.
    pub entries: usize,
    /// Whether entries are shared by hash; else node (x, y, z) has entry `(x ny + y) nz + z`.
    pub hashed: bool,
}

impl FieldLevel {
    /// Entry of node (x, y, 0); that of (x, y, z) is this plus z, or exclusive-or z where [`FieldLevel::hashed`] (then to be
    /// taken modulo `entries`).
    #[inline(always)]
    #[must_use]
    pub fn column(&self, x: u32, y: u32) -> u32 {
        if self.hashed {
            (x.wrapping_mul(HASH_FACTORS[0]) ^ y.wrapping_mul(HASH_FACTORS[1])) & (self.entries as u32 - 1)
        } else {
            (x * self.nodes[1] as u32 + y) * self.nodes[2] as u32
        }
    }

    /// Entry of a node.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, x: u32, y: u32, z: u32) -> u32 {
        if self.hashed { (self.column(x, y) ^ z) & (self.entries as u32 - 1) } else { self.column(x, y) + z }
    }
}

/// Weights of one layer in the network's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldLayer {
    /// Numbers it reads.
    pub inputs: usize,
    /// Numbers it gives.
    pub outputs: usize,
    /// Where its weights start, `[input][output]`; its biases, `[output]`, follow.
    pub first: usize,
}

impl FieldLayer {
    /// Where its biases start.
    #[must_use]
    pub fn biases(&self) -> usize {
        self.first + self.inputs * self.outputs
    }
}

/// A field's sizes worked out for a box: where each level's numbers and each layer's weights lie.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldLayout {
    shape: FieldShape,
    low_mm: DVec3,
    size_mm: DVec3,
    levels: Vec<FieldLevel>,
}

impl FieldLayout {
    /// The layout over the box of `grid`.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] where shape or box cannot work.
    pub fn new(shape: &FieldShape, grid: &VolumeGrid) -> Result<Self, ComputeError> {
        shape.check()?;
        let (size_mm, low_mm) = (grid.size_mm(), grid.centre_mm - 0.5 * grid.size_mm());
        for axis in 0..3 {
            let (size, low) = (size_mm[axis], low_mm[axis]);
            if !(size > 1e-6 && size < 1e9 && low.abs() < 1e9) {
                return Err(ComputeError::Setting {
                    of: "field",
                    setting: ["box along x (mm)", "box along y (mm)", "box along z (mm)"][axis],
                    value: size,
                    requirement: "must be finite and > 0; check the volume grid",
                });
            }
        }
        let longest = size_mm.max_element();
        let mut first = 0;
        let levels = (0..shape.levels)
            .map(|level| {
                let cell_mm = longest / shape.cells(level) as f64;
                // Rounding must not add a cell to a side that the cells divide.
                let nodes = size_mm.to_array().map(|size| (size / cell_mm - 1e-6).ceil().max(1.0) as usize + 1);
                let dense = nodes.iter().map(|&count| count as u64).product::<u64>();
                let most = 1u64 << shape.log2_table;
                let entries = dense.min(most) as usize;
                let at = first;
                first += shape.features * entries;
                FieldLevel { cell_mm, nodes, first: at, entries, hashed: dense > most }
            })
            .collect();
        Ok(Self { shape: *shape, low_mm, size_mm, levels })
    }

    /// The sizes given.
    #[must_use]
    pub fn shape(&self) -> &FieldShape {
        &self.shape
    }

    /// Corner of the box with the lowest coordinates.
    #[must_use]
    pub fn low_mm(&self) -> DVec3 {
        self.low_mm
    }

    /// Sides of the box.
    #[must_use]
    pub fn size_mm(&self) -> DVec3 {
        self.size_mm
    }

    /// The levels, coarsest first.
    #[must_use]
    pub fn levels(&self) -> &[FieldLevel] {
        &self.levels
    }

    /// Floats of all tables: `[level][feature][entry]`.
    #[must_use]
    pub fn tables_len(&self) -> usize {
        self.levels.iter().map(|level| self.shape.features * level.entries).sum()
    }

    /// Floats of the network.
    #[must_use]
    pub fn network_len(&self) -> usize {
        self.shape.network_len()
    }

    /// Layer 0 to `hidden_layers`; the last gives the one number that softplus takes. Layers follow each other in memory.
    #[must_use]
    pub fn layer(&self, index: usize) -> FieldLayer {
        let (width, inputs) = (self.shape.width, self.shape.inputs());
        let outputs = if index == self.shape.hidden_layers { 1 } else { width };
        if index == 0 {
            return FieldLayer { inputs, outputs, first: 0 };
        }
        FieldLayer { inputs: width, outputs, first: (inputs + 1) * width + (index - 1) * (width + 1) * width }
    }
}

/// A field as the operations read it; `V` as in [`super::gaussians::GaussianSet`].
#[derive(Debug, Clone, Copy)]
pub struct FieldParameters<'a, V = &'a [f32]> {
    /// Where everything lies.
    pub layout: &'a FieldLayout,
    /// `[level][feature][entry]`: see [`FieldLevel`].
    pub tables: V,
    /// Weights and biases: see [`FieldLayer`].
    pub network: V,
    /// Factor of each level's features; a level of weight 0 is neither read nor given gradients (coarse to fine).
    pub level_weights: &'a [f32],
}

/// Gradients of a loss by each parameter, in the same order. The operations **add** to them.
#[derive(Debug)]
pub struct FieldGradients<V> {
    /// By the tables.
    pub tables: V,
    /// By the network.
    pub network: V,
}

/// Gradients on the host.
pub type HostFieldGradients<'a> = FieldGradients<&'a mut [f32]>;

/// Random places of samples, the same for the same numbers (ChaCha8, a stream for each row or ray).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldJitter {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the draw: a new one gives new places.
    pub iteration: u64,
}

/// A pixel of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RayPixel {
    /// View.
    pub view: u32,
    /// Detector row v.
    pub row: u32,
    /// Detector column u.
    pub column: u32,
}

/// Rays to integrate along, and where.
#[derive(Debug, Clone, Copy)]
pub struct FieldRays<'a> {
    /// Poses of the views.
    pub geometry: &'a ScanGeometry,
    /// One ray each, from the source through the pixel's centre.
    pub pixels: &'a [RayPixel],
    /// Samples on each ray: its way through the box is cut into this many equal steps, one sample in each.
    pub samples: usize,
    /// Where in its step each sample lies; the middle without.
    pub jitter: Option<FieldJitter>,
}

/// Largest problem that a carrier must be ready for; see [`super::Workload`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldWorkload {
    /// The field.
    pub shape: FieldShape,
    /// Voxels along x, y, z of the largest grid ([1; 3] without voxels).
    pub voxels: [usize; 3],
    /// Sides of the field's box along x, y, z in mm.
    pub box_mm: [f64; 3],
    /// Rays of a call at most; 0 without rays.
    pub rays: usize,
}

/// The operations of a neural field. Implementations: [`super::cpu::CpuCompute`], [`super::cuda::CudaCompute`].
///
/// As with [`super::Compute`]: nothing is allocated after [`FieldCompute::prepare_field`], and every result is bit-identical for
/// any number of threads.
pub trait FieldCompute: Send + Sync {
    /// Bytes of scratch that `workload` needs; `plan` lists them.
    fn field_scratch_bytes(&self, workload: &FieldWorkload) -> usize;

    /// Allocates the scratch of `workload`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had, [`ComputeError::Setting`] for a shape that cannot work.
    fn prepare_field(&mut self, workload: &FieldWorkload) -> Result<(), ComputeError>;

    /// Values (1/mm) of the field, one a voxel of `grid`, `[x][y][z]`. Overwrites `volume`. The grid need not be that of the field's box: a
    /// part ([`VolumeGrid::part`]), coarser, or beyond it.
    ///
    /// Without `jitter` at the voxels' centres; with it at one random point in each voxel, evenly distributed in it (the voxels of a
    /// row along z share the offsets in x and y; those in z are each voxel's own): over iterations a voxel stands for the mean
    /// over its cell, which is what a projector takes it for.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] and [`ComputeError::Scratch`] where a buffer does not fit, [`ComputeError::Value`] where a
    /// parameter is not finite.
    fn field_voxelise(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_, Values<'_>>,
        jitter: Option<FieldJitter>,
        volume: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Adds to `gradients` what the gradient `by_volume` of a loss (`[x][y][z]`) means for each parameter, at the points that
    /// [`FieldCompute::field_voxelise`] takes with the same `jitter`.
    ///
    /// # Errors
    /// As [`FieldCompute::field_voxelise`]; also where `by_volume` is not finite.
    fn field_voxelise_backward(
        &self,
        grid: &VolumeGrid,
        field: &FieldParameters<'_, Values<'_>>,
        jitter: Option<FieldJitter>,
        by_volume: Values<'_>,
        gradients: FieldGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError>;

    /// Line integrals (dimensionless) along `rays`, one each: the sum of the samples times their step, from where the ray enters the box (or the
    /// source, if that is inside) to where it leaves it; 0 for a ray that misses it. Overwrites `integrals`.
    ///
    /// # Errors
    /// As [`FieldCompute::field_voxelise`]; [`ComputeError::Value`] also for a pixel outside the geometry.
    fn field_project(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        integrals: ValuesMut<'_>,
    ) -> Result<(), ComputeError>;

    /// Adds to `gradients` what the gradient `by_integrals` of a loss, one number a ray, means for each parameter: exactly that of the sums
    /// that [`FieldCompute::field_project`] gives.
    ///
    /// # Errors
    /// As [`FieldCompute::field_project`]; also where `by_integrals` is not finite.
    fn field_project_backward(
        &self,
        rays: &FieldRays<'_>,
        field: &FieldParameters<'_, Values<'_>>,
        by_integrals: Values<'_>,
        gradients: FieldGradients<ValuesMut<'_>>,
    ) -> Result<(), ComputeError>;
}
