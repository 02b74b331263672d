//! Device memory: one arena, of which buffers are handed out and never given back (the plan knows them all before the start).

#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;

use super::super::ComputeError;
use super::Launcher;
use super::check_len;

/// Buffers begin at multiples of this: vector loads, and whole lines of any cache.
const ALIGNMENT: usize = 256;

/// Hands out the bytes of one block of device memory.
#[derive(Debug)]
pub struct Arena {
    bytes: usize,
    used: AtomicUsize,
}

impl Arena {
    /// An arena over a block of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes, used: AtomicUsize::new(0) }
    }

    /// Bytes of the block.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes handed out, rounding included.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Offset of `bytes` that are handed out now, with a gap after them that nobody owns.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where fewer are left.
    pub fn take(&self, device: &str, bytes: usize) -> Result<usize, ComputeError> {
        let next = |used: usize| {
            // At least one byte of gap: an access beyond a buffer's end never meets another buffer.
            let end = used.checked_add(bytes)?.checked_add(1)?.checked_next_multiple_of(ALIGNMENT)?;
            (end <= self.bytes).then_some(end)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_err(|used| ComputeError::Device {
            device: device.into(),
            reason: format!(
                "a buffer of {bytes} bytes does not fit: {used} of the {} bytes set aside are used; set aside more",
                self.bytes
            ),
        })
    }
}

/// A buffer on the device: where it lies in the launcher's arena, and how many values it holds. Copying it copies no values.
#[derive(Debug)]
pub struct DeviceSlice<T> {
    offset: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T> Clone for DeviceSlice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<T> {}

impl<T: Pod> DeviceSlice<T> {
    /// A buffer of nothing.
    #[must_use]
    pub(in crate::compute) const fn empty() -> Self {
        Self { offset: 0, len: 0, values: PhantomData }
    }

    /// A new buffer of `len` values, which are what the memory held before.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the arena is used up.
    pub fn allocate(launcher: &dyn Launcher, len: usize) -> Result<Self, ComputeError> {
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(Self { offset: launcher.allocate(bytes)?, len, values: PhantomData })
    }

    /// A new buffer with these values.
    ///
    /// # Errors
    /// As [`DeviceSlice::allocate`] and [`DeviceSlice::copy_from`].
    pub fn upload(launcher: &dyn Launcher, values: &[T]) -> Result<Self, ComputeError> {
        let slice = Self::allocate(launcher, values.len())?;
        slice.copy_from(launcher, values)?;
        Ok(slice)
    }

    /// Values that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes in the arena.
    #[must_use]
    pub fn bytes(&self) -> Range<usize> {
        self.offset..self.offset + self.len * size_of::<T>()
    }

    /// Some of its values, as a slice of their own; `None` where it does not hold them.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= self.len).then(|| Self {
            offset: self.offset + range.start * size_of::<T>(),
            len: range.len(),
            values: PhantomData,
        })
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the device refuses.
    pub fn copy_from(&self, launcher: &dyn Launcher, values: &[T]) -> Result<(), ComputeError> {
        check_len("copy_from", "values", values.len(), self.len)?;
        launcher.copy_in(self.offset, bytemuck::cast_slice(values))
    }

    /// Copies to the host, after everything launched before has ended.
    ///
    /// # Errors
    /// As [`DeviceSlice::copy_from`].
    pub fn copy_to(&self, launcher: &dyn Launcher, values: &mut [T]) -> Result<(), ComputeError> {
        check_len("copy_to", "values", values.len(), self.len)?;
        launcher.copy_out(self.offset, bytemuck::cast_slice_mut(values))
    }

    /// Copies to another buffer, on the device.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where the lengths differ, [`ComputeError::Device`] where the buffers overlap or the device refuses.
    pub fn copy_to_slice(&self, launcher: &dyn Launcher, to: Self) -> Result<(), ComputeError> {
        check_len("copy_to_slice", "to", to.len, self.len)?;
        launcher.copy(self.offset, to.offset, self.len * size_of::<T>())
    }
}

impl DeviceSlice<u32> {
    /// The same words, read as floats.
    pub(super) fn floats(self) -> DeviceSlice<f32> {
        DeviceSlice { offset: self.offset, len: self.len, values: PhantomData }
    }
}

impl DeviceSlice<f32> {
    /// Sets every value.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the device refuses.
    pub fn fill(&self, launcher: &dyn Launcher, value: f32) -> Result<(), ComputeError> {
        launcher.fill(self.bytes(), value.to_bits())
    }
}
