//! What the operations of Gaussians work in: a record a Gaussian, and lists of which Gaussians touch which tile (`kernels/gaussian_lists.cuh`).

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::Pod;

use super::super::ComputeError;
use super::super::gaussians::GaussianWorkload;
use super::gaussian_project::{RECORD, pixel_tiles};
use super::gaussian_voxelise::voxel_tiles;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, count};

/// `gaussian_lists::PASSES`, `CHUNK` and `THREADS` of the kernels.
const PASSES: usize = 3;
const CHUNK: usize = 32;
const THREADS: u32 = 256;

/// Entries that a pass has room for: a Gaussian of which the deviation is a voxel touches about five tiles. And the least, a tile.
const ENTRIES: usize = 8;
const ENTRIES_OF_A_TILE: usize = 64;

/// Blocks that count and fill: as many as run at once on a large device.
const BLOCKS: usize = 132 * 8;

/// Memory that the operations of Gaussians share: 112 bytes a Gaussian (or 80, and 260 a tile, if
/// that is more), and four a pixel of a view.
#[derive(Debug, Clone, Copy)]
pub struct GaussianRoom {
    capacity: usize,
    records: DeviceSlice<f32>,
    /// The lowest Gaussian that could not be worked with.
    unsound: DeviceSlice<u32>,
    entries: DeviceSlice<u32>,
    bounds: DeviceSlice<u32>,
    ends: DeviceSlice<u32>,
    list: DeviceSlice<u32>,
    /// A view's gradient times the pixels' lengths.
    pixels: DeviceSlice<f32>,
}

/// The kernels that count and fill in what they know the shape of.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListKernels {
    pub(super) entries: &'static str,
    pub(super) tiles: &'static str,
    pub(super) fill: &'static str,
}

/// A pass as the kernels that add read it: its number, the bounds of all passes, where each tile's entries end, the entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    pub(super) index: i32,
    pub(super) bounds: DeviceSlice<u32>,
    pub(super) ends: DeviceSlice<u32>,
    pub(super) list: DeviceSlice<u32>,
}

/// Words of records, chunks, tiles, list and pixels.
fn words(workload: &GaussianWorkload) -> [usize; 5] {
    let (n, columns, rows) = (workload.gaussians, workload.columns, workload.rows);
    let tiles = voxel_tiles(workload.voxels).max(pixel_tiles(columns, rows));
    let list = ENTRIES.saturating_mul(n).max(ENTRIES_OF_A_TILE.saturating_mul(tiles)).min(u32::MAX as usize);
    [RECORD.saturating_mul(n), n.div_ceil(CHUNK), tiles, list, columns.saturating_mul(rows)]
}

impl GaussianRoom {
    /// Bytes of the room for problems up to this size.
    #[must_use]
    pub fn bytes(workload: &GaussianWorkload) -> usize {
        let words = words(workload).iter().fold(PASSES + 2, |sum, &words| sum.saturating_add(words));
        words.saturating_mul(size_of::<u32>())
    }

    /// Room for problems up to this size.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn allocate(launcher: &dyn Launcher, workload: &GaussianWorkload) -> Result<Self, ComputeError> {
        let [records, chunks, tiles, list, pixels] = words(workload);
        let room = Self {
            capacity: workload.gaussians,
            records: DeviceSlice::allocate(launcher, records)?,
            unsound: DeviceSlice::allocate(launcher, 1)?,
            entries: DeviceSlice::allocate(launcher, chunks)?,
            bounds: DeviceSlice::allocate(launcher, PASSES + 1)?,
            ends: DeviceSlice::allocate(launcher, tiles)?,
            list: DeviceSlice::allocate(launcher, list)?,
            pixels: DeviceSlice::allocate(launcher, pixels)?,
        };
        room.clear(launcher)?;
        Ok(room)
    }

    /// Forgets which Gaussian was not sound.
    pub(super) fn clear(&self, launcher: &dyn Launcher) -> Result<(), ComputeError> {
        launcher.fill(self.unsound.bytes(), u32::MAX)
    }

    /// The lowest Gaussian that the last operation left out because its parameters are not finite or beyond what can be worked with.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn unsound(&self, launcher: &dyn Launcher) -> Result<Option<usize>, ComputeError> {
        let mut index = [0];
        self.unsound.copy_to(launcher, &mut index)?;
        Ok((index[0] != u32::MAX).then_some(index[0] as usize))
    }

    /// Records of `floats` floats for so many Gaussians, and the word for what is not sound.
    pub(super) fn records(
        &self,
        operation: &'static str,
        gaussians: usize,
        floats: usize,
    ) -> Result<(DeviceSlice<f32>, DeviceSlice<u32>), ComputeError> {
        let lacks =
            ComputeError::Shape { operation, buffer: "room (Gaussians)", given: self.capacity, needed: gaussians };
        let records = self.records.part(0..floats * gaussians).filter(|_| gaussians <= self.capacity).ok_or(lacks)?;
        Ok((records, self.unsound))
    }

    /// Room for a view's pixels.
    pub(super) fn pixels(&self, operation: &'static str, pixels: usize) -> Result<DeviceSlice<f32>, ComputeError> {
        let (given, needed) = (self.pixels.len(), pixels);
        self.pixels.part(0..pixels).ok_or(ComputeError::Shape { operation, buffer: "room (pixels)", given, needed })
    }

    /// Lists which Gaussians touch which tile and calls `add` for each pass; `frame` is what the kernels know the tiles by.
    pub(super) fn passes<T: Pod>(
        &self,
        launcher: &dyn Launcher,
        operation: &'static str,
        (frame, tiles): (T, usize),
        (gaussians, records): (usize, DeviceSlice<f32>),
        kernels: ListKernels,
        add: impl Fn(&Pass) -> Result<(), ComputeError>,
    ) -> Result<(), ComputeError> {
        let chunks = gaussians.div_ceil(CHUNK);
        let lacks = ComputeError::Shape { operation, buffer: "room (tiles)", given: self.ends.len(), needed: tiles };
        let (Some(ends), Some(entries)) = (self.ends.part(0..tiles), self.entries.part(0..chunks)) else {
            return Err(lacks);
        };
        let number = count(operation, "Gaussians", gaussians)?;
        let of_chunks = |blocks: usize| LaunchShape::covering(operation, [blocks, 1, 1], [1; 3], [THREADS, 1, 1]);
        let one = LaunchShape { grid: [1; 3], block: [1024, 1, 1], shared_bytes: 0 };
        let arguments = Arguments::new().value(frame).value(number).read(records).write(entries);
        // SAFETY: the arguments of the kernel; it reads a record a Gaussian and writes a word a chunk.
        unsafe { launcher.launch(kernels.entries, of_chunks(chunks)?, &arguments) }?;
        let arguments = Arguments::new()
            .value(count(operation, "Gaussians", chunks)?)
            .value(self.list.len() as u32)
            .read(entries)
            .write(self.bounds);
        // SAFETY: the arguments of the kernel; it reads a word a chunk and writes `PASSES + 1`.
        unsafe { launcher.launch("plan_passes", one, &arguments) }?;
        for index in 0..PASSES {
            let Some(bounds) = self.bounds.part(index..index + 2) else { return Err(lacks) };
            launcher.fill(ends.bytes(), 0)?;
            let shape = of_chunks(chunks.min(BLOCKS))?;
            let arguments = Arguments::new().value(frame).value(number).read(records).read(bounds).write(ends);
            // SAFETY: the arguments of the kernel; it reads a record a Gaussian and writes a word a tile.
            unsafe { launcher.launch(kernels.tiles, shape, &arguments) }?;
            let arguments = Arguments::new().value(count(operation, "tiles", tiles)?).write(ends);
            // SAFETY: the arguments of the kernel; it stays within a word a tile.
            unsafe { launcher.launch("scan_tiles", one, &arguments) }?;
            let arguments =
                Arguments::new().value(frame).value(number).read(records).read(bounds).write(ends).write(self.list);
            // SAFETY: the arguments of the kernel; the entries of a pass are no more than the list holds.
            unsafe { launcher.launch(kernels.fill, shape, &arguments) }?;
            let shape = LaunchShape::covering(operation, [tiles, 1, 1], [1; 3], [128, 1, 1])?;
            let arguments = Arguments::new().read(ends).write(self.list);
            // SAFETY: the arguments of the kernel; it stays within the tiles' entries.
            unsafe { launcher.launch("sort_tiles", shape, &arguments) }?;
            add(&Pass { index: index as i32, bounds: self.bounds, ends, list: self.list })?;
        }
        Ok(())
    }
}
