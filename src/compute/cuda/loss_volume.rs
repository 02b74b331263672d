//! Launches the kernels of `kernels/loss_volume.cu`. Sums and counts stay on the device, in [`VolumeSsimRoom`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::losses::{VolumeSsimLoss, VolumeSsimValue};
use super::loss_window::{Orientation, Tile};
use super::{Arguments, DeviceSlice, DeviceSum, LaunchShape, Launcher, check_len, count};

const OPERATION: &str = "volume_ssim_loss";

/// Voxels of a block of `find_slices` along z, y, x.
const FOUND: [usize; 3] = [32, 8, 8];

/// Kernel and block of each axis (`volume_loss::WIDTH`, `Z_LANES`, `Z_WIDTH` of the kernels).
const ACROSS: (&str, Tile) = ("add_similarity_across", Tile { lanes: 1, width: 160 });
const KERNELS: [(&str, Tile); 3] = [ACROSS, ACROSS, ("add_similarity_across_z", Tile { lanes: 8, width: 64 })];

/// `volume_loss::Shares` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shares {
    voxels: [i32; 3],
    axes: [f32; 3],
}

/// Slices across `axis`. Of the two other axes, the faster one runs along rows.
fn across(axis: usize, [x, y, z]: [usize; 3]) -> Orientation {
    let all = [[x, y * z], [y, z], [z, 1]];
    let [rows, columns] = [[1, 2], [0, 2], [0, 1]][axis].map(|other: usize| all[other]);
    Orientation { slices: all[axis], rows, columns }
}

/// Blocks of the launch of each axis.
fn blocks(voxels: [usize; 3]) -> [usize; 3] {
    [0, 1, 2].map(|axis| across(axis, voxels).blocks(KERNELS[axis].1).max(1))
}

/// What [`volume_ssim_loss`] of a volume of one size works in and leaves its value in: some kilobytes, never a volume.
#[derive(Debug, Clone, Copy)]
pub struct VolumeSsimRoom {
    voxels: [usize; 3],
    /// Of the slices across x, then y, then z: 1 where the reference has something.
    used: DeviceSlice<u32>,
    counts: DeviceSlice<u32>,
    shares: DeviceSlice<f32>,
    sums: [DeviceSum; 3],
}

impl VolumeSsimRoom {
    /// Bytes of the room for so many voxels along x, y, z.
    #[must_use]
    pub fn bytes(voxels: [usize; 3]) -> usize {
        let sums: usize = blocks(voxels).map(DeviceSum::bytes).iter().sum();
        sums + (voxels.iter().sum::<usize>() + 6) * size_of::<u32>()
    }

    /// Room for so many voxels along x, y, z.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn allocate(launcher: &dyn Launcher, voxels: [usize; 3]) -> Result<Self, ComputeError> {
        let [x, y, z] = blocks(voxels);
        Ok(Self {
            voxels,
            used: DeviceSlice::allocate(launcher, voxels.iter().sum())?,
            counts: DeviceSlice::allocate(launcher, 3)?,
            shares: DeviceSlice::allocate(launcher, 3)?,
            sums: [
                DeviceSum::for_blocks(launcher, x)?,
                DeviceSum::for_blocks(launcher, y)?,
                DeviceSum::for_blocks(launcher, z)?,
            ],
        })
    }

    /// The value that the last [`volume_ssim_loss`], which had these settings, left.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn read(&self, launcher: &dyn Launcher, settings: &VolumeSsimLoss) -> Result<VolumeSsimValue, ComputeError> {
        if self.voxels.contains(&0) {
            return Ok(VolumeSsimValue::default());
        }
        let mut counts = [0; 3];
        self.counts.copy_to(launcher, &mut counts)?;
        let slices = counts.map(|count| count as usize);
        let mut value = VolumeSsimValue { slices, ..VolumeSsimValue::default() };
        for (axis, part) in settings.parts(slices).into_iter().enumerate() {
            if slices[axis] > 0 {
                let Orientation { rows, columns, .. } = across(axis, self.voxels);
                let mean = 1.0 / (slices[axis] * rows[0] * columns[0]) as f64;
                value.by_axis[axis] = mean * self.sums[axis].read(launcher)?;
                value.dissimilarity += part * value.by_axis[axis];
            }
        }
        Ok(value)
    }
}

/// See [`crate::compute::losses::LossCompute::volume_ssim_loss`]; the value is left in `room`. Values are not looked at: what is not a number
/// shows in the value where its slices take part.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer or `room` does not fit, [`ComputeError::Value`] for a setting that is refused,
/// [`ComputeError::Device`] where the device refuses.
pub fn volume_ssim_loss(
    launcher: &dyn Launcher,
    voxels: [usize; 3],
    settings: &VolumeSsimLoss,
    volume: DeviceSlice<f32>,
    reference: DeviceSlice<f32>,
    by_volume: DeviceSlice<f32>,
    room: &VolumeSsimRoom,
) -> Result<(), ComputeError> {
    let [x, y, z] = voxels;
    let n = x.saturating_mul(y).saturating_mul(z);
    check_len(OPERATION, "volume", volume.len(), n)?;
    check_len(OPERATION, "reference", reference.len(), n)?;
    check_len(OPERATION, "by_volume", by_volume.len(), n)?;
    settings.check(OPERATION)?;
    for (given, needed) in room.voxels.into_iter().zip(voxels) {
        check_len(OPERATION, "room", given, needed)?;
    }
    if n == 0 {
        return Ok(());
    }
    let counted = [count(OPERATION, "voxels", x)?, count(OPERATION, "voxels", y)?, count(OPERATION, "voxels", z)?];
    launcher.fill(room.used.bytes(), 0)?;
    let shape = LaunchShape::covering(OPERATION, [z, y, x], FOUND, [32, 8, 1])?;
    let [voxels_x, voxels_y, voxels_z] = counted;
    let arguments = Arguments::new()
        .value(voxels_x)
        .value(voxels_y)
        .value(voxels_z)
        .value(settings.empty_at)
        .read(reference)
        .write(room.used);
    // SAFETY: the arguments of the kernel; it stays within the volume, and within a place a slice.
    unsafe { launcher.launch("find_slices", shape, &arguments) }?;
    let shape = LaunchShape { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0 };
    let arguments = Arguments::new()
        .value(Shares { voxels: counted, axes: settings.axes })
        .read(room.used)
        .write(room.counts)
        .write(room.shares);
    // SAFETY: the arguments of the kernel; it reads a place a slice and writes three counts and shares.
    unsafe { launcher.launch("share_slices", shape, &arguments) }?;

    let weight = (f64::from(settings.weight) / f64::from(settings.data_range)) as f32;
    let (mut first, blocks) = (0, blocks(voxels));
    for (axis, (kernel, tile)) in KERNELS.into_iter().enumerate() {
        let slices = first..first + voxels[axis];
        first = slices.end;
        if settings.axes[axis] == 0.0 {
            continue;
        }
        let (shape, planes) = across(axis, voxels).launch(OPERATION, tile, 1.0 / settings.data_range, weight)?;
        let partials = room.sums[axis].partials(OPERATION, blocks[axis])?;
        let (given, needed) = (room.used.len(), slices.end);
        let lacks = ComputeError::Shape { operation: OPERATION, buffer: "room", given, needed };
        let (Some(used), Some(share)) = (room.used.part(slices), room.shares.part(axis..axis + 1)) else {
            return Err(lacks);
        };
        let arguments = Arguments::new()
            .value(planes)
            .read(used)
            .read(share)
            .read(volume)
            .read(reference)
            .write(by_volume)
            .write(partials);
        // SAFETY: the arguments of the kernel; it stays within the slices, which are the volume, and a partial sum a block.
        unsafe { launcher.launch(kernel, shape, &arguments) }?;
        room.sums[axis].add_up(launcher, blocks[axis])?;
    }
    Ok(())
}
