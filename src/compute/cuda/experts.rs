//! Launches `kernels/experts.cu`.

#![allow(unsafe_code)] // Launches a kernel.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::experts::{Experts, MOST_TISSUES, TAPS};
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, check_len, count};

const OPERATION: &str = "add_experts_gradient";

/// Floats of an expert (`experts::RECORD` of the kernel): its taps, a zero, its potential.
const RECORD: usize = 32;

/// Voxels that a block adds to, along z, y, x, and its threads.
const OF_BLOCK: [usize; 3] = [30, 14, 16];
const BLOCK: [u32; 3] = [8, 16, 1];

/// `experts::Definition` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Definition {
    voxels: [i32; 3],
    experts: i32,
    slopes: i32,
    units_per_value: f32,
    lowest: f32,
    knot: f32,
    weight: f32,
}

/// Experts on the device, uploaded once.
#[derive(Debug, Clone, Copy)]
pub struct ExpertsTable {
    /// `[expert][RECORD]`, then the slopes of the tissue weights.
    values: DeviceSlice<f32>,
    experts: i32,
    slopes: i32,
    unit_per_mm: f32,
    lowest: f32,
}

impl ExpertsTable {
    /// Bytes of so many experts.
    #[must_use]
    pub fn bytes(experts: usize) -> usize {
        (experts.saturating_mul(RECORD)).saturating_add(MOST_TISSUES).saturating_mul(size_of::<f32>())
    }

    /// Uploads the experts.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn upload(launcher: &dyn Launcher, experts: &Experts) -> Result<Self, ComputeError> {
        let mut values = Vec::with_capacity(Self::bytes(experts.experts().len()) / size_of::<f32>());
        for (expert, potential) in experts.experts().iter().zip(&experts.potentials) {
            values.extend(expert.taps);
            values.resize(values.len().next_multiple_of(RECORD) - potential.len(), 0.0);
            values.extend(potential);
        }
        let slopes = values.len();
        values.extend(&experts.slopes);
        values.resize(slopes + MOST_TISSUES, 0.0);
        Ok(Self {
            values: DeviceSlice::upload(launcher, &values)?,
            experts: count(OPERATION, "experts", experts.experts().len())?,
            slopes: count(OPERATION, "tissue weights", experts.slopes.len())?,
            unit_per_mm: experts.unit_per_mm(),
            lowest: experts.tissues()[0],
        })
    }
}

// A record has room for the taps and four numbers of the potential.
const _: () = assert!(TAPS + 4 < RECORD);

/// See [`crate::compute::experts::ExpertsCompute::add_experts_gradient`]; volume and gradient are `[x][y][z]`, the volume in 1/mm.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Setting`] where a launch cannot have so many blocks,
/// [`ComputeError::Device`] where the device refuses.
pub fn add_experts_gradient(
    launcher: &dyn Launcher,
    experts: &ExpertsTable,
    voxels: [usize; 3],
    weight: f32,
    volume: DeviceSlice<f32>,
    gradient: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    let [x, y, z] = voxels;
    let n = x.saturating_mul(y).saturating_mul(z);
    check_len(OPERATION, "volume", volume.len(), n)?;
    check_len(OPERATION, "gradient", gradient.len(), n)?;
    if x < 3 || y < 3 || z < 3 {
        return Ok(());
    }
    let definition = Definition {
        voxels: [count(OPERATION, "voxels", x)?, count(OPERATION, "voxels", y)?, count(OPERATION, "voxels", z)?],
        experts: experts.experts,
        slopes: experts.slopes,
        units_per_value: 1.0 / experts.unit_per_mm,
        lowest: experts.lowest,
        knot: 1.0 / experts.slopes as f32,
        weight,
    };
    let shape = LaunchShape::covering(OPERATION, [z, y, x], OF_BLOCK, BLOCK)?;
    let arguments = Arguments::new().value(definition).read(experts.values).read(volume).write(gradient);
    // SAFETY: the arguments of the kernel; it reads the table's records and slopes and stays within the voxels of both volumes.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }
}
