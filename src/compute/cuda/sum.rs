//! Sums over a launch, without atomics: each block leaves one partial sum, and a second launch adds these up in a fixed order.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len, count};

const OPERATION: &str = "sum_partials";

/// Room for the sum of an operation; the sum stays on the device until it is read.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSum {
    partials: DeviceSlice<f64>,
    total: DeviceSlice<f64>,
}

impl DeviceSum {
    /// For operations on up to so many values (or voxels).
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn for_values(launcher: &dyn Launcher, values: usize) -> Result<Self, ComputeError> {
        let blocks = super::sart::blocks(values).max(1);
        Self::for_blocks(launcher, blocks)
    }

    /// For the total variation of a volume of so many voxels along x, y, z.
    ///
    /// # Errors
    /// As [`DeviceSum::for_values`].
    pub fn for_volume(launcher: &dyn Launcher, voxels: [usize; 3]) -> Result<Self, ComputeError> {
        Self::for_blocks(launcher, super::total_variation::blocks(voxels).max(1))
    }

    /// Bytes of the sum of a launch of so many blocks.
    pub(super) fn bytes(blocks: usize) -> usize {
        (blocks + 1).saturating_mul(size_of::<f64>())
    }

    /// For a launch of so many blocks.
    pub(super) fn for_blocks(launcher: &dyn Launcher, blocks: usize) -> Result<Self, ComputeError> {
        Ok(Self { partials: DeviceSlice::allocate(launcher, blocks)?, total: DeviceSlice::allocate(launcher, 1)? })
    }

    /// For a launch of so many blocks, the sum left at `total`.
    pub(super) fn left_at(
        launcher: &dyn Launcher,
        blocks: usize,
        total: DeviceSlice<f64>,
    ) -> Result<Self, ComputeError> {
        Ok(Self { partials: DeviceSlice::allocate(launcher, blocks)?, total })
    }

    /// The partial sums of a launch of so many blocks.
    pub(super) fn partials(&self, operation: &'static str, blocks: usize) -> Result<DeviceSlice<f64>, ComputeError> {
        self.partials.part(0..blocks).ok_or(ComputeError::Shape {
            operation,
            buffer: "sum",
            given: self.partials.len(),
            needed: blocks,
        })
    }

    /// Adds up the partial sums of a launch of so many blocks.
    pub(super) fn add_up(&self, launcher: &dyn Launcher, blocks: usize) -> Result<(), ComputeError> {
        let partials = self.partials(OPERATION, blocks)?;
        check_len(OPERATION, "total", self.total.len(), 1)?;
        let shape = LaunchShape { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0 };
        let arguments = Arguments::new().read(partials).value(count(OPERATION, "blocks", blocks)?).write(self.total);
        // SAFETY: the arguments of sum.cu; it reads `blocks` partials and writes one total.
        unsafe { launcher.launch("sum_partials", shape, &arguments) }
    }

    /// Where the sum is left, for kernels that go on with it.
    pub(super) fn total(&self) -> DeviceSlice<f64> {
        self.total
    }

    /// The sum that the last operation left, after it has ended.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn read(&self, launcher: &dyn Launcher) -> Result<f64, ComputeError> {
        let mut total = [0.0];
        self.total.copy_to(launcher, &mut total)?;
        Ok(total[0])
    }
}
