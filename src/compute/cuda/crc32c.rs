//! Launches `kernels/crc32c.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use super::super::ComputeError;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len};

const OPERATION: &str = "crc32c";

/// Values of a block.
const OF_BLOCK: usize = 32 * 1024;

/// Most blocks: the kernel counts those after its own in 16 bits.
const MOST_BLOCKS: usize = 1 << 16;

/// The CRC32C of the values' bytes, left in `crc` (one number); 0 of no values.
///
/// # Errors
/// [`ComputeError::Shape`] where `crc` is no single number, [`ComputeError::Setting`] above 2^31 values, [`ComputeError::Device`] where the device
/// refuses.
pub fn crc32c(launcher: &dyn Launcher, values: DeviceSlice<f32>, crc: DeviceSlice<u32>) -> Result<(), ComputeError> {
    check_len(OPERATION, "crc", crc.len(), 1)?;
    launcher.fill(crc.bytes(), 0)?;
    let blocks = values.len().div_ceil(OF_BLOCK);
    if blocks == 0 {
        return Ok(());
    }
    if blocks > MOST_BLOCKS {
        return Err(ComputeError::Setting {
            of: OPERATION,
            setting: "values",
            value: values.len() as f64,
            requirement: "must be 2^31 at most",
        });
    }
    let shape = LaunchShape { grid: [blocks as u32, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
    let arguments = Arguments::new().read(values).value(values.len() as i64).write(crc);
    // SAFETY: the arguments of the kernel; it reads the values and changes the one number.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
