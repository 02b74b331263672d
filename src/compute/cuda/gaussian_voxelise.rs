//! Launches the kernels of `kernels/gaussian_voxelise.cu`.

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::gaussian_room::ListKernels;
use super::gaussian_set::SetArgument;
use super::{Arguments, DeviceGaussians, DeviceSlice, GaussianRoom, LaunchShape, Launcher, check_len, count};
use crate::geometry::VolumeGrid;

const OPERATION: &str = "gaussian_voxelise";

/// Voxels of a tile along x, y, z (`gaussians::TILE_X` and so on of the kernels).
const TILE: [usize; 3] = [8, 8, 16];

/// Floats of a record.
const RECORD: usize = 16;

const KERNELS: ListKernels =
    ListKernels { entries: "count_voxel_entries", tiles: "count_voxel_tiles", fill: "fill_voxel_tiles" };

/// Tiles of a grid.
pub(super) fn voxel_tiles(voxels: [usize; 3]) -> usize {
    (0..3).map(|axis| voxels[axis].div_ceil(TILE[axis])).fold(1, usize::saturating_mul)
}

/// `gaussians::Grid` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GridArgument {
    voxels: [i32; 3],
    padding: i32,
    origin_mm: [f64; 3],
    voxel_mm: [f64; 3],
    per_mm: [f64; 3],
}

impl GridArgument {
    pub(super) fn new(operation: &'static str, grid: &VolumeGrid) -> Result<Self, ComputeError> {
        let [x, y, z] = grid.voxels;
        Ok(Self {
            voxels: [count(operation, "voxels", x)?, count(operation, "voxels", y)?, count(operation, "voxels", z)?],
            padding: 0,
            origin_mm: grid.origin_mm().to_array(),
            voxel_mm: grid.voxel_mm.to_array(),
            per_mm: grid.voxel_mm.recip().to_array(),
        })
    }
}

/// Puts the Gaussians on the grid, a record each.
pub(super) fn place_gaussians(
    launcher: &dyn Launcher,
    operation: &'static str,
    (set, grid): (SetArgument, GridArgument),
    gaussians: &DeviceGaussians,
    room: &GaussianRoom,
) -> Result<DeviceSlice<f32>, ComputeError> {
    let (records, unsound) = room.records(operation, gaussians.len, RECORD)?;
    room.clear(launcher)?;
    let shape = LaunchShape::covering(operation, [gaussians.len, 1, 1], [128, 1, 1], [128, 1, 1])?;
    let arguments = Arguments::new()
        .value(set)
        .value(grid)
        .read(gaussians.parameters)
        .read(gaussians.density_per_mm)
        .write(records)
        .write(unsound);
    // SAFETY: the arguments of the kernel; it reads the first `len` of each channel and writes a record each, and one word.
    unsafe { launcher.launch("place_gaussians", shape, &arguments) }?;
    Ok(records)
}

/// See [`crate::compute::gaussians::GaussianCompute::gaussian_voxelise`]. A Gaussian with parameters that no result can come from is left out;
/// [`GaussianRoom::unsound`] names the first.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer or `room` does not fit, [`ComputeError::Value`] for a low pass that is refused,
/// [`ComputeError::Device`] where the device refuses.
pub fn gaussian_voxelise(
    launcher: &dyn Launcher,
    grid: &VolumeGrid,
    gaussians: &DeviceGaussians,
    volume: DeviceSlice<f32>,
    room: &GaussianRoom,
) -> Result<(), ComputeError> {
    check_len(OPERATION, "volume", volume.len(), grid.len())?;
    let set = gaussians.check(OPERATION)?;
    room.records(OPERATION, gaussians.len, RECORD)?;
    if volume.is_empty() || gaussians.len == 0 {
        room.clear(launcher)?;
        return volume.fill(launcher, 0.0);
    }
    let frame = GridArgument::new(OPERATION, grid)?;
    let records = place_gaussians(launcher, OPERATION, (set, frame), gaussians, room)?;
    let tiles = voxel_tiles(grid.voxels);
    let shape = LaunchShape::covering(OPERATION, [tiles, 1, 1], [1; 3], [256, 1, 1])?;
    let number = count(OPERATION, "Gaussians", gaussians.len)?;
    room.passes(launcher, OPERATION, (frame, tiles), (gaussians.len, records), KERNELS, |pass| {
        let arguments = Arguments::new()
            .value(frame)
            .value(number)
            .value(pass.index)
            .read(records)
            .read(pass.bounds)
            .read(pass.ends)
            .read(pass.list)
            .write(volume);
        // SAFETY: the arguments of the kernel; it reads records and entries of Gaussians there are, and stays within the grid.
        unsafe { launcher.launch(OPERATION, shape, &arguments) }
    })
}
