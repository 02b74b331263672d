//! Buffers that stay where operations work on them: on the host for the CPU, in a device's arena for a GPU.
//!
//! A carrier gives out a [`Buffer`] ([`super::Memory::buffer`]) and its operations take [`Values`] and [`ValuesMut`], which borrow all
//! or a part of one. Values on the host are slices like any other; those on a device are reached through
//! [`super::Memory::read`] and [`super::Memory::write`] alone. An operation refuses values that lie elsewhere than it works.

#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use super::cuda::DeviceSlice;
use super::{ComputeError, Memory};

/// Floats in the memory of a carrier.
#[derive(Debug)]
pub struct Buffer(Place);

#[derive(Debug)]
enum Place {
    Host(Vec<f32>),
    Device(DeviceSlice<f32>),
}

impl Default for Buffer {
    /// None at all.
    fn default() -> Self {
        Self(Place::Host(Vec::new()))
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Self(Place::Host(values))
    }
}

impl From<DeviceSlice<f32>> for Buffer {
    fn from(slice: DeviceSlice<f32>) -> Self {
        Self(Place::Device(slice))
    }
}

impl Buffer {
    /// How many values it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values().len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values, to be read.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        match &self.0 {
            Place::Host(values) => Values::Host(values),
            Place::Device(slice) => Values::Device(*slice, PhantomData),
        }
    }

    /// All values, to be written.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.0 {
            Place::Host(values) => ValuesMut::Host(values),
            Place::Device(slice) => ValuesMut::Device(*slice, PhantomData),
        }
    }

    /// Lends the values out on the host: a buffer there hands over its own and takes `copy` in their place, a device's is read into `copy`, which must be as long.
    /// [`Buffer::take_back`] ends it.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn lend(&mut self, memory: &dyn Memory, copy: &mut Vec<f32>) -> Result<(), ComputeError> {
        match &mut self.0 {
            Place::Host(values) => std::mem::swap(values, copy),
            Place::Device(_) => memory.read(self.values(), copy)?,
        }
        Ok(())
    }

    /// Takes back what [`Buffer::lend`] gave.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn take_back(&mut self, memory: &dyn Memory, copy: &mut Vec<f32>) -> Result<(), ComputeError> {
        match &mut self.0 {
            Place::Host(values) => std::mem::swap(values, copy),
            Place::Device(_) => memory.write(copy, self.values_mut())?,
        }
        Ok(())
    }

    /// The values of a buffer on the host.
    ///
    /// # Errors
    /// The buffer itself where it lies on a device.
    pub fn into_host(self) -> Result<Vec<f32>, Self> {
        match self.0 {
            Place::Host(values) => Ok(values),
            Place::Device(_) => Err(self),
        }
    }
}

/// Where values lie, for others than the carrier's operations who can work on them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// In the host's memory.
    Host(usize),
    /// In the memory of a GPU.
    Cuda {
        /// Its index, as the driver counts.
        device: usize,
        /// Where in the memory of the device's primary context.
        pointer: u64,
    },
}

/// Values that an operation reads.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// On the host.
    Host(&'a [f32]),
    /// On a device, as long as nobody writes to them.
    Device(DeviceSlice<f32>, PhantomData<&'a [f32]>),
}

/// Values that an operation writes.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// On the host.
    Host(&'a mut [f32]),
    /// On a device, as long as nobody else looks at them.
    Device(DeviceSlice<f32>, PhantomData<&'a mut [f32]>),
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for Values<'a> {
    fn from(values: &'a T) -> Self {
        Self::Host(values.as_ref())
    }
}

impl<'a> From<&'a Buffer> for Values<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        buffer.values()
    }
}

impl<'a, T: AsMut<[f32]> + ?Sized> From<&'a mut T> for ValuesMut<'a> {
    fn from(values: &'a mut T) -> Self {
        Self::Host(values.as_mut())
    }
}

impl<'a> From<&'a mut Buffer> for ValuesMut<'a> {
    fn from(buffer: &'a mut Buffer) -> Self {
        buffer.values_mut()
    }
}

impl<'a> Values<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(slice, _) => slice.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// Where there are fewer, as a slice does.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(values) => Self::Host(&values[range]),
            Self::Device(slice, life) => Self::Device(within(slice, range), life),
        }
    }

    /// The values of a host's buffer.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where they lie on a device.
    pub fn host(self, operation: &'static str) -> Result<&'a [f32], ComputeError> {
        match self {
            Self::Host(values) => Ok(values),
            Self::Device(..) => Err(elsewhere("cpu", operation)),
        }
    }

    /// The values of a device's buffer.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where they lie on the host.
    pub fn device(self, operation: &'static str) -> Result<DeviceSlice<f32>, ComputeError> {
        match self {
            Self::Device(slice, _) => Ok(slice),
            Self::Host([]) => Ok(DeviceSlice::empty()),
            Self::Host(_) => Err(elsewhere("cuda", operation)),
        }
    }
}

impl<'a> ValuesMut<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_values().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, to be read.
    #[must_use]
    pub fn as_values(&self) -> Values<'_> {
        match self {
            Self::Host(values) => Values::Host(values),
            Self::Device(slice, _) => Values::Device(*slice, PhantomData),
        }
    }

    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> ValuesMut<'_> {
        match self {
            Self::Host(values) => ValuesMut::Host(values),
            Self::Device(slice, _) => ValuesMut::Device(*slice, PhantomData),
        }
    }

    /// Some of them.
    ///
    /// # Panics
    /// Where there are fewer, as a slice does.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(values) => Self::Host(&mut values[range]),
            Self::Device(slice, life) => Self::Device(within(slice, range), life),
        }
    }

    /// The first `at` of them, and the others.
    ///
    /// # Panics
    /// Where there are fewer.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            Self::Host(values) => {
                let (low, high) = values.split_at_mut(at);
                (Self::Host(low), Self::Host(high))
            }
            Self::Device(slice, life) => {
                (Self::Device(within(slice, 0..at), life), Self::Device(within(slice, at..slice.len()), life))
            }
        }
    }

    /// Has `make` fill the values on the host: where they lie, or in `copy` ([`Memory::copy_len`] floats or more), which is then written.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn make(
        self,
        memory: &dyn Memory,
        copy: &mut [f32],
        make: impl FnOnce(&mut [f32]),
    ) -> Result<(), ComputeError> {
        match self {
            Self::Host(values) => make(values),
            Self::Device(..) => {
                let copy = enough("make", copy, self.len())?;
                make(copy);
                memory.write(copy, self)?;
            }
        }
        Ok(())
    }

    /// The values of a host's buffer.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where they lie on a device.
    pub fn host(self, operation: &'static str) -> Result<&'a mut [f32], ComputeError> {
        match self {
            Self::Host(values) => Ok(values),
            Self::Device(..) => Err(elsewhere("cpu", operation)),
        }
    }

    /// The values of a device's buffer.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where they lie on the host.
    pub fn device(self, operation: &'static str) -> Result<DeviceSlice<f32>, ComputeError> {
        self.as_values().device(operation)
    }
}

/// The first `needed` floats of a copy on the host.
pub(super) fn enough<'a>(
    operation: &'static str,
    copy: &'a mut [f32],
    needed: usize,
) -> Result<&'a mut [f32], ComputeError> {
    let given = copy.len();
    copy.get_mut(..needed).ok_or(ComputeError::Shape { operation, buffer: "copy on the host", given, needed })
}

fn within(slice: DeviceSlice<f32>, range: Range<usize>) -> DeviceSlice<f32> {
    let (len, asked) = (slice.len(), range.clone());
    slice.part(range).unwrap_or_else(|| panic!("{asked:?} of a buffer of {len} values"))
}

fn elsewhere(device: &str, operation: &'static str) -> ComputeError {
    ComputeError::Device {
        device: device.into(),
        reason: format!(
            "{operation}: a buffer lies in another carrier's memory; take buffers from the carrier that works on them"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_host_values() {
        let mut buffer = Buffer::from(vec![1.0, 2.0, 3.0]);
        assert_eq!((buffer.len(), buffer.is_empty(), Buffer::default().is_empty()), (3, false, true));
        let (mut low, high) = buffer.values_mut().split_at(1);
        assert_eq!((low.len(), high.len()), (1, 2));
        low.reborrow().host("test").map(|values| values[0] = 5.0).ok();
        assert_eq!(high.as_values().part(1..2).host("test").ok(), Some(&[3.0][..]));
        assert_eq!(buffer.into_host().ok(), Some(vec![5.0, 2.0, 3.0]));
    }

    #[test]
    fn values_that_lie_elsewhere_are_refused_by_name() {
        let on_device = Buffer::from(DeviceSlice::empty());
        let refused = on_device.values().host("forward_project").err().map(|error| error.to_string());
        assert!(refused.is_some_and(|told| told.contains("forward_project") && told.contains("another carrier")));
        assert!(on_device.values().device("test").is_ok() && on_device.into_host().is_err());
        let host = [0.0];
        assert!(Values::from(&host).device("test").is_err());
    }
}
