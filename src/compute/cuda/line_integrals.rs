//! Launches the kernels of `kernels/line_integrals.cu`.

#![allow(unsafe_code)] // Launches kernels.

use super::super::counts::{Correction, CountsCompute, check};
use super::super::losses::none_left;
use super::super::{ComputeError, Left, ValuesMut};
use super::{Arguments, CudaCompute, DeviceSlice, LaunchShape, Launcher, count};

const OPERATION: &str = "line_integrals";

/// Pixels and threads of a block, and bad pixels of one (`counts::THREADS` of the kernels).
const OF_BLOCK: usize = 1024;
const THREADS: u32 = 256;
const BAD_OF_BLOCK: usize = 64;

/// As [`crate::compute::counts::Correction`], on the device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceCorrection {
    /// Counts without radiation, `[row v][column u]`.
    pub dark: DeviceSlice<f32>,
    /// What the difference to that is multiplied by, of the same shape.
    pub gain: DeviceSlice<f32>,
    /// As [`crate::compute::counts::BadPixel::floats`] gives them.
    pub bad_pixels: DeviceSlice<f32>,
    /// What the whole frame is multiplied by.
    pub scale: f32,
    /// What stands below it is raised to it.
    pub min_transmission: f32,
}

/// Where a frame's counts lie, and how many of its pixels met the clamp.
#[derive(Debug, Clone, Copy)]
pub struct CountsRoom {
    counts: DeviceSlice<u16>,
    clamped: DeviceSlice<u32>,
}

impl CountsRoom {
    /// Its bytes for frames of up to so many pixels.
    #[must_use]
    pub const fn bytes(pixels: usize) -> usize {
        pixels * size_of::<u16>() + size_of::<u32>()
    }

    /// Takes them.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the memory is not to be had.
    pub fn allocate(launcher: &dyn Launcher, pixels: usize) -> Result<Self, ComputeError> {
        let clamped = DeviceSlice::allocate(launcher, 1)?;
        launcher.fill(clamped.bytes(), 0)?;
        Ok(Self { counts: DeviceSlice::allocate(launcher, pixels)?, clamped })
    }

    /// Pixels that there is room for.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.counts.len()
    }

    /// How many pixels of the last frame met the clamp, after [`line_integrals`] has ended.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn clamped(&self, launcher: &dyn Launcher) -> Result<u64, ComputeError> {
        let mut clamped = [0];
        self.clamped.copy_to(launcher, &mut clamped)?;
        Ok(clamped[0].into())
    }
}

/// See [`crate::compute::counts::CountsCompute::line_integrals`]; the number stays in `room`.
///
/// # Errors
/// [`ComputeError::Shape`] where a buffer does not fit, [`ComputeError::Scratch`] where the room is too small, [`ComputeError::Device`] where the device
/// refuses.
pub fn line_integrals(
    launcher: &dyn Launcher,
    correction: &DeviceCorrection,
    counts: &[u16],
    out: DeviceSlice<f32>,
    room: &CountsRoom,
) -> Result<(), ComputeError> {
    let DeviceCorrection { dark, gain, bad_pixels, scale, min_transmission } = *correction;
    let pixels = out.len();
    let bad = check(OPERATION, [counts.len(), dark.len(), gain.len(), bad_pixels.len()], pixels)?;
    let needed = CountsRoom::bytes(pixels);
    let raw = room.counts.part(0..pixels).ok_or(ComputeError::Scratch {
        operation: OPERATION,
        needed,
        prepared: CountsRoom::bytes(room.pixels()),
    })?;
    launcher.fill(room.clamped.bytes(), 0)?;
    if pixels == 0 {
        return Ok(());
    }
    raw.copy_from(launcher, counts)?;
    let shape = LaunchShape::covering(OPERATION, [pixels, 1, 1], [OF_BLOCK, 1, 1], [THREADS, 1, 1])?;
    let arguments = Arguments::new().value(scale).value(min_transmission).read(raw).read(dark).read(gain);
    let arguments = arguments.value(pixels as i64).write(out).write(room.clamped);
    // SAFETY: the arguments of the kernel; it stays within `pixels` values of each and changes the one number.
    unsafe { launcher.launch(OPERATION, shape, &arguments) }?;
    if bad == 0 {
        return Ok(());
    }
    let shape = LaunchShape::covering(OPERATION, [bad, 1, 1], [BAD_OF_BLOCK, 1, 1], [BAD_OF_BLOCK as u32, 1, 1])?;
    let counts = [count(OPERATION, "bad pixels", bad)?, count(OPERATION, "pixels", pixels)?];
    let arguments = Arguments::new().read(bad_pixels).value(counts[0]).value(counts[1]).write(out);
    // SAFETY: the arguments of the kernel; it stays within the list, and looks at no pixel beyond `pixels`.
    unsafe { launcher.launch("replace_bad_pixels", shape, &arguments) }
}

impl CountsCompute for CudaCompute {
    fn counts_scratch_bytes(&self, pixels: usize) -> usize {
        CountsRoom::bytes(pixels)
    }

    fn prepare_counts(&mut self, pixels: usize) -> Result<(), ComputeError> {
        let mut state = self.state();
        if state.counts.is_none_or(|room| room.pixels() < pixels) {
            state.counts = Some(CountsRoom::allocate(self.launcher(), pixels)?);
        }
        Ok(())
    }

    fn line_integrals(
        &self,
        correction: &Correction<'_>,
        counts: &[u16],
        out: ValuesMut<'_>,
    ) -> Result<Left<u64>, ComputeError> {
        let (needed, room) = (CountsRoom::bytes(counts.len()), self.state().counts);
        let room = room.ok_or(ComputeError::Scratch { operation: OPERATION, needed, prepared: 0 })?;
        let correction = DeviceCorrection {
            dark: correction.dark.device(OPERATION)?,
            gain: correction.gain.device(OPERATION)?,
            bad_pixels: correction.bad_pixels.device(OPERATION)?,
            scale: correction.scale,
            min_transmission: correction.min_transmission,
        };
        line_integrals(self.launcher(), &correction, counts, out.device(OPERATION)?, &room)?;
        Ok(Left::WithCarrier)
    }

    fn clamped_left(&self) -> Result<u64, ComputeError> {
        let room = self.state().counts.ok_or_else(|| none_left(OPERATION))?;
        room.clamped(self.launcher())
    }
}
