//! Launches the kernels of `kernels/slices.cu`. What is searched for is left in a [`SliceRoom`].

#![allow(unsafe_code)] // Launches kernels.

use bytemuck::{Pod, Zeroable};

use super::super::ComputeError;
use super::super::slices::{SliceBatch, SliceLayout, WindowUnits, check, check_added};
use super::sart::shape;
use super::{Arguments, DeviceSlice, LaunchShape, Launcher, count};

/// Rows and columns of a tile of slices across x or y, and the block's rows (`slices::SIDE`, `LINES` of the kernels).
const SIDE: usize = 32;
const LINES: u32 = 8;

/// Slices and rows of a block of slices across z (`slices::GROUP`, `ROWS` of the kernels).
const GROUP: usize = 8;
const ROWS: usize = 4;

/// `slices::Layout` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Layout {
    slices: i32,
    rows: i32,
    columns: i32,
    padded: [i32; 2],
    first: i32,
    strides: [i64; 3],
}

impl Layout {
    fn of(operation: &'static str, layout: &SliceLayout, first: usize) -> Result<Self, ComputeError> {
        let ([rows, columns], [padded_rows, padded_columns]) = (layout.size(), layout.padded());
        let count = |what, value| count(operation, what, value);
        Ok(Self {
            slices: count("slices", layout.slices())?,
            rows: count("rows", rows)?,
            columns: count("columns", columns)?,
            padded: [count("padded rows", padded_rows)?, count("padded columns", padded_columns)?],
            first: count("the first slice", first)?,
            strides: layout.strides().map(|stride| stride as i64),
        })
    }
}

/// `slices::Images` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Images {
    batch: i32,
    neighbours: i32,
    channels: i32,
    channel: i32,
}

/// Whether slices stand across z, and the launch over so many of them of `rows` x `columns`.
fn tiles(
    operation: &'static str,
    layout: &SliceLayout,
    [slices, rows, columns]: [usize; 3],
) -> Result<(bool, LaunchShape), ComputeError> {
    let across_z = layout.axes()[0] == 2;
    let launch = if across_z {
        LaunchShape::covering(operation, [columns, rows, slices], [SIDE, ROWS, GROUP], [(GROUP * SIDE) as u32, 1, 1])
    } else {
        LaunchShape::covering(operation, [columns, rows, slices], [SIDE, SIDE, 1], [SIDE as u32, LINES, 1])
    };
    Ok((across_z, launch?))
}

/// Where [`farthest`] and [`first_beyond`] leave what they found.
#[derive(Debug, Clone, Copy)]
pub struct SliceRoom(DeviceSlice<u32>);

impl SliceRoom {
    /// Its bytes.
    #[must_use]
    pub const fn bytes() -> usize {
        size_of::<u32>()
    }

    /// Takes them.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn allocate(launcher: &dyn Launcher) -> Result<Self, ComputeError> {
        DeviceSlice::allocate(launcher, 1).map(Self)
    }

    /// What is left in it by `search`, which begins with `from`.
    fn found(
        &self,
        launcher: &dyn Launcher,
        from: u32,
        search: impl FnOnce() -> Result<(), ComputeError>,
    ) -> Result<u32, ComputeError> {
        launcher.fill(self.0.bytes(), from)?;
        search()?;
        let mut found = [0];
        self.0.copy_to(launcher, &mut found)?;
        Ok(found[0])
    }
}

/// See [`crate::compute::slices::SliceCompute::farthest`]; waits for what was asked for before.
///
/// # Errors
/// [`ComputeError::Device`] where the device refuses.
pub fn farthest(
    launcher: &dyn Launcher,
    units: WindowUnits,
    values: DeviceSlice<f32>,
    room: &SliceRoom,
) -> Result<f32, ComputeError> {
    const OPERATION: &str = "find_farthest";
    let n = values.len();
    if n == 0 {
        return Ok(0.0);
    }
    let arguments = Arguments::new().value(units.scale).value(units.offset).read(values).value(n as i64).write(room.0);
    // SAFETY: the arguments of the kernel; it stays within `n` values and writes one number.
    let search = || unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) };
    room.found(launcher, 0, search).map(f32::from_bits)
}

/// See [`crate::compute::slices::SliceCompute::first_beyond`]; waits for what was asked for before.
///
/// # Errors
/// [`ComputeError::Setting`] for more values than 31 bits count, [`ComputeError::Device`] where the device refuses.
pub fn first_beyond(
    launcher: &dyn Launcher,
    limit: f32,
    values: DeviceSlice<f32>,
    room: &SliceRoom,
) -> Result<Option<usize>, ComputeError> {
    const OPERATION: &str = "find_first_beyond";
    let n = count(OPERATION, "values", values.len())?;
    if n == 0 {
        return Ok(None);
    }
    let arguments = Arguments::new().value(limit).read(values).value(i64::from(n)).write(room.0);
    // SAFETY: as in `farthest`.
    let search = || unsafe { launcher.launch(OPERATION, shape(OPERATION, values.len())?, &arguments) };
    let found = room.found(launcher, u32::MAX, search)?;
    Ok((found != u32::MAX).then_some(found as usize))
}

/// See [`crate::compute::slices::SliceCompute::gather_slices`].
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Device`] where the device refuses.
pub fn gather_slices(
    launcher: &dyn Launcher,
    layout: &SliceLayout,
    batch: &SliceBatch,
    units: WindowUnits,
    volume: DeviceSlice<f32>,
    out: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "gather_slices";
    let slices = check(OPERATION, layout, batch.channels(), volume.len(), out.len())?;
    if volume.is_empty() || slices == 0 {
        return Ok(());
    }
    let [rows, columns] = layout.padded();
    let around = 2 * batch.neighbours + 1;
    let (across_z, shape) = tiles(OPERATION, layout, [slices + around - 1, rows, columns])?;
    let images = Images {
        batch: count(OPERATION, "slices", slices)?,
        neighbours: count(OPERATION, "neighbours", batch.neighbours)?,
        channels: count(OPERATION, "channels", batch.channels())?,
        channel: count(OPERATION, "channel", batch.volume * around)?,
    };
    let arguments = Arguments::new()
        .value(Layout::of(OPERATION, layout, batch.first)?)
        .value(images)
        .value(units.scale)
        .value(units.offset)
        .read(volume)
        .write(out);
    let kernel = if across_z { "gather_slices_across_z" } else { OPERATION };
    // SAFETY: the arguments of the kernel; it clamps what it reads to the volume and writes whole images of the batch.
    unsafe { launcher.launch(kernel, shape, &arguments) }
}

/// See [`crate::compute::slices::SliceCompute::add_slices`].
///
/// # Errors
/// As [`gather_slices`].
pub fn add_slices(
    launcher: &dyn Launcher,
    layout: &SliceLayout,
    first: usize,
    planes: usize,
    slices: DeviceSlice<f32>,
    mean: DeviceSlice<f32>,
    squares: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "add_slices";
    let given = check_added(OPERATION, layout, first, slices.len(), [mean.len(), squares.len()])?;
    if mean.is_empty() || given == 0 {
        return Ok(());
    }
    let [rows, columns] = layout.size();
    let (across_z, shape) = tiles(OPERATION, layout, [given, rows, columns])?;
    let mut arguments = Arguments::new().value(Layout::of(OPERATION, layout, first)?);
    if across_z {
        arguments = arguments.value(count(OPERATION, "slices", given)?);
    }
    let arguments = arguments
        .value(count(OPERATION, "planes", planes)?)
        .read(slices)
        .write(mean)
        .value(i32::from(!squares.is_empty()))
        .write(squares);
    let kernel = if across_z { "add_slices_across_z" } else { OPERATION };
    // SAFETY: the arguments of the kernel; it stays within the slices given, which lie in the volume; squares are touched where there are any.
    unsafe { launcher.launch(kernel, shape, &arguments) }
}

/// See [`crate::compute::slices::SliceCompute::leave_window`].
///
/// # Errors
/// [`ComputeError::Device`] where the device refuses.
pub fn leave_window(launcher: &dyn Launcher, units: WindowUnits, values: DeviceSlice<f32>) -> Result<(), ComputeError> {
    const OPERATION: &str = "leave_window";
    let n = values.len();
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(units.scale).value(units.offset).write(values).value(n as i64);
    // SAFETY: the arguments of the kernel; it stays within `n` values.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}

/// See [`crate::compute::slices::SliceCompute::deviations`].
///
/// # Errors
/// [`ComputeError::Device`] where the device refuses.
pub fn deviations(
    launcher: &dyn Launcher,
    factor: f64,
    planes: usize,
    squares: DeviceSlice<f32>,
) -> Result<(), ComputeError> {
    const OPERATION: &str = "deviations";
    let n = squares.len();
    if n == 0 {
        return Ok(());
    }
    let arguments = Arguments::new().value(factor).value(planes as f64).write(squares).value(n as i64);
    // SAFETY: as in `leave_window`.
    unsafe { launcher.launch(OPERATION, shape(OPERATION, n)?, &arguments) }
}
