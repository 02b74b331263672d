//! Launches `kernels/field_voxelise.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::field::{FieldJitter, FieldLayout};
use super::field_table::{Batch, THREADS};
use super::{Arguments, DeviceField, DeviceSlice, LaunchShape, Launcher, check_len, count};
use crate::geometry::VolumeGrid;

const OPERATION: &str = "field_voxelise";

/// Most blocks of a launch: eight for each multiprocessor of an H200, each of which stages the network once.
const MOST_BLOCKS: usize = 1056;

/// `field::Grid` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GridArgument {
    voxel_mm: [f64; 3],
    /// The box's lower corner from the grid's, and its size.
    low_mm: [f64; 3],
    size_mm: [f64; 3],
    voxels: [i32; 3],
    jitter: i32,
}

/// Seed and iteration as the kernels' random numbers take them, zeros without.
#[must_use]
pub fn jitter_key(jitter: Option<FieldJitter>) -> [u32; 4] {
    let FieldJitter { seed, iteration } = jitter.unwrap_or(FieldJitter { seed: 0, iteration: 0 });
    [seed as u32, (seed >> 32) as u32, iteration as u32, (iteration >> 32) as u32]
}

impl GridArgument {
    pub(super) fn new(
        operation: &'static str,
        grid: &VolumeGrid,
        layout: &FieldLayout,
        jitter: Option<DeviceSlice<u32>>,
    ) -> Result<Self, ComputeError> {
        let [x, y, z] = grid.voxels;
        check_len(operation, "jitter", jitter.map_or(4, |key| key.len()), 4)?;
        // Kernels count rows of 32 voxels, those of the last batch's excess included.
        let segments = x.saturating_mul(y).saturating_mul(z.div_ceil(32));
        count(operation, "rows of 32 voxels", segments.saturating_add(MOST_BLOCKS * THREADS))?;
        let corner_mm = grid.centre_mm - 0.5 * grid.size_mm();
        Ok(Self {
            voxel_mm: grid.voxel_mm.to_array(),
            low_mm: (layout.low_mm() - corner_mm).to_array(),
            size_mm: layout.size_mm().to_array(),
            voxels: [
                count(operation, "voxels along x", x)?,
                count(operation, "voxels along y", y)?,
                count(operation, "voxels along z", z)?,
            ],
            jitter: i32::from(jitter.is_some()),
        })
    }
}

/// See [`crate::compute::field::FieldCompute::field_voxelise`]; `jitter` holds what [`jitter_key`] gives.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Value`] where a level's weight is not finite,
/// [`ComputeError::Setting`] for sizes that kernels cannot work with, [`ComputeError::Device`] where the device refuses.
pub fn field_voxelise(
    launcher: &dyn Launcher,
    grid: &VolumeGrid,
    field: &DeviceField<'_>,
    jitter: Option<DeviceSlice<u32>>,
    volume: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "volume", volume.len(), grid.len())?;
    field.check(OPERATION)?;
    if volume.is_empty() {
        return Ok(());
    }
    let layout = field.table.layout();
    let batch = Batch::new(OPERATION, layout.shape(), false)?;
    let shape = LaunchShape {
        grid: [batch.of_voxels(grid.voxels).min(MOST_BLOCKS) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared_bytes: batch.shared_bytes as u32,
    };
    let arguments = Arguments::new()
        .value(field.argument(&batch))
        .value(GridArgument::new(OPERATION, grid, layout, jitter)?)
        .read(field.table.levels())
        .read(jitter.unwrap_or(DeviceSlice::empty()))
        .read(field.tables)
        .read(field.network)
        .write(volume);
    // SAFETY: the arguments of the kernel; it reads a key where there is one, holds entries to the levels' tables and stays within the volume, whose lengths were checked.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
