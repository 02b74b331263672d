//! Launches the kernels of `kernels/field_gradients.cu`: what both adjoints of a neural field begin and end with, and the room they work in.

#![allow(unsafe_code)] // Launches kernels.

use super::super::ComputeError;
use super::super::field::{FieldLayout, FieldShape};
use super::field_table::{Batch, THREADS};
use super::{
    Arguments, DeviceField, DeviceFieldGradients, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len, count,
};

/// Entries of a block of `add_table_gradients`, weights of one of `add_network_gradient`.
const ENTRIES: usize = 1024;
const WEIGHTS: usize = 32;

/// Blocks of an adjoint's launch: at most eight for each multiprocessor of an H200, and at least one for each, as far as this many partial sums
/// by the network allow.
const BLOCKS: [usize; 2] = [132, 1056];
const PARTIALS: usize = 1 << 22;

/// What the adjoints of a field work in: sums for each entry of the tables, and for each block one for each weight of the network.
#[derive(Debug, Clone, Copy)]
pub struct FieldGradientRoom {
    sums: DeviceSlice<i64>,
    partials: DeviceSlice<f32>,
    scales: DeviceSlice<f32>,
    spoilt: DeviceSlice<u32>,
    total: DeviceSum,
}

/// Blocks of an adjoint's launch for so many batches.
fn blocks(shape: &FieldShape, batches: usize) -> usize {
    batches.min((PARTIALS / shape.network_len()).clamp(BLOCKS[0], BLOCKS[1]))
}

/// Floats of the partial sums by the network.
fn partials(shape: &FieldShape, voxels: [usize; 3], rays: usize) -> Result<usize, ComputeError> {
    let batch = Batch::new("FieldGradientRoom", shape, true)?;
    let batches = batch.of_voxels(voxels).max(batch.of_rays(rays));
    Ok(blocks(shape, batches) * shape.network_len())
}

impl FieldGradientRoom {
    /// Bytes of the room for a field and gradients by a grid of so many voxels along x, y, z and by so many rays: eight for each number of the
    /// tables; for the network at most 17 MB, or 35 where it is wide.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] for a field that kernels cannot work with.
    pub fn bytes(layout: &FieldLayout, voxels: [usize; 3], rays: usize) -> Result<usize, ComputeError> {
        let shape = layout.shape();
        let floats = partials(shape, voxels, rays)? + 2 * shape.inputs();
        let sum = DeviceSum::bytes(sum_blocks(voxels.iter().product::<usize>().max(rays)));
        Ok(layout.tables_len() * size_of::<i64>() + floats * size_of::<f32>() + sum)
    }

    /// Room for a field and gradients by a grid of so many voxels along x, y, z and by so many rays.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had, [`ComputeError::Setting`] as [`FieldGradientRoom::bytes`].
    pub fn allocate(
        launcher: &dyn Launcher,
        layout: &FieldLayout,
        voxels: [usize; 3],
        rays: usize,
    ) -> Result<Self, ComputeError> {
        let shape = layout.shape();
        Ok(Self {
            sums: DeviceSlice::allocate(launcher, layout.tables_len())?,
            partials: DeviceSlice::allocate(launcher, partials(shape, voxels, rays)?)?,
            scales: DeviceSlice::allocate(launcher, shape.inputs())?,
            spoilt: DeviceSlice::allocate(launcher, shape.inputs())?,
            total: DeviceSum::for_values(launcher, voxels.iter().product::<usize>().max(rays))?,
        })
    }
}

/// Blocks of `absolute_sum`.
fn sum_blocks(values: usize) -> usize {
    super::sart::blocks(values).max(1)
}

/// An adjoint between its begin and its end.
pub(super) struct Adjoint<'a> {
    operation: &'static str,
    launcher: &'a dyn Launcher,
    field: &'a DeviceField<'a>,
    gradients: &'a DeviceFieldGradients,
    room: FieldGradientRoom,
    pub(super) batch: Batch,
    blocks: usize,
}

impl<'a> Adjoint<'a> {
    /// Checks lengths, and settles how the network is worked on.
    pub(super) fn new(
        operation: &'static str,
        launcher: &'a dyn Launcher,
        field: &'a DeviceField<'a>,
        gradients: &'a DeviceFieldGradients,
        room: &FieldGradientRoom,
    ) -> Result<Self, ComputeError> {
        field.check(operation)?;
        check_len(operation, "gradients.tables", gradients.tables.len(), field.tables.len())?;
        check_len(operation, "gradients.network", gradients.network.len(), field.network.len())?;
        check_len(operation, "room.sums", room.sums.len(), field.tables.len())?;
        let shape = field.table.layout().shape();
        check_len(operation, "room.scales", room.scales.len(), shape.inputs())?;
        let batch = Batch::new(operation, shape, true)?;
        Ok(Self { operation, launcher, field, gradients, room: *room, batch, blocks: 0 })
    }

    /// Sets the sums to 0 and settles their units for the gradients `by`, which weigh at most `reach` each; gives the launch for so many batches.
    pub(super) fn begin(
        &mut self,
        by: DeviceSlice<f32>,
        reach: f64,
        batches: usize,
    ) -> Result<LaunchShape, ComputeError> {
        self.blocks = blocks(self.field.table.layout().shape(), batches);
        self.partials()?;
        let (launcher, room) = (self.launcher, &self.room);
        let sum_blocks = sum_blocks(by.len());
        let partials = room.total.partials(self.operation, sum_blocks)?;
        launcher.fill(room.sums.bytes(), 0)?;
        launcher.fill(room.spoilt.bytes(), 0)?;
        let shape = LaunchShape { grid: [sum_blocks as u32, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        let arguments = Arguments::new().read(by).value(by.len() as i64).write(partials);
        // SAFETY: the arguments of the kernel; it reads the values and writes one partial sum a block.
        unsafe { launcher.launch("absolute_sum", shape, &arguments) }?;
        room.total.add_up(launcher, sum_blocks)?;
        let shape = LaunchShape { grid: [1; 3], block: [THREADS as u32, 1, 1], shared_bytes: 0 };
        let arguments = Arguments::new()
            .value(self.field.argument(&self.batch))
            .value(reach)
            .read(room.total.total())
            .read(self.field.network)
            .write(room.scales);
        // SAFETY: the arguments of the kernel; it reads the network, whose length was checked, and writes a scale an input.
        unsafe { launcher.launch("field_scales", shape, &arguments) }?;
        Ok(LaunchShape {
            grid: [self.blocks as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared_bytes: self.batch.shared_bytes as u32,
        })
    }

    /// The last arguments of an adjoint's kernel.
    pub(super) fn room_arguments(&self, arguments: Arguments) -> Result<Arguments, ComputeError> {
        Ok(arguments.read(self.room.scales).write(self.room.sums).write(self.room.spoilt).write(self.partials()?))
    }

    /// Adds what the kernel left to the gradients.
    pub(super) fn finish(&self) -> Result<(), ComputeError> {
        let layout = self.field.table.layout();
        let most = layout.levels().iter().map(|level| level.entries).max().unwrap_or(0);
        let shape =
            LaunchShape::covering(self.operation, [most, layout.shape().inputs(), 1], [ENTRIES, 1, 1], [256, 1, 1])?;
        let arguments = Arguments::new()
            .value(self.field.argument(&self.batch))
            .read(self.field.table.levels())
            .read(self.room.scales)
            .read(self.room.spoilt)
            .read(self.room.sums)
            .write(self.gradients.tables);
        // SAFETY: the arguments of the kernel; it stays within the levels' tables, whose lengths were checked.
        unsafe { self.launcher.launch("add_table_gradients", shape, &arguments) }?;
        let weights = self.field.network.len();
        let shape = LaunchShape::covering(self.operation, [weights, 1, 1], [WEIGHTS, 1, 1], [256, 1, 1])?;
        let arguments = Arguments::new()
            .read(self.partials()?)
            .value(count(self.operation, "blocks", self.blocks)?)
            .value(count(self.operation, "weights", weights)?)
            .write(self.gradients.network);
        // SAFETY: the arguments of the kernel; it reads `blocks` partial sums a weight and writes the weights' gradients.
        unsafe { self.launcher.launch("add_network_gradient", shape, &arguments) }
    }

    fn partials(&self) -> Result<DeviceSlice<f32>, ComputeError> {
        let (given, needed) = (self.room.partials.len(), self.blocks * self.field.network.len());
        self.room.partials.part(0..needed).ok_or(ComputeError::Shape {
            operation: self.operation,
            buffer: "room.partials",
            given,
            needed,
        })
    }
}
