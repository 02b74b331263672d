//! What carries kernels out: memory and launches, as the driver of a GPU offers them.

#![allow(unsafe_code)] // Declares the launch, whose arguments nothing can check but the kernel's contract.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::ptr::NonNull;

use bytemuck::Pod;

use super::super::{Address, ComputeError};
use super::{DeviceSlice, Tape};

/// Carries out kernels by name on memory of its own. Implementations: [`super::Driver`], [`super::Executor`].
///
/// Launches, copies and fills take effect in the order in which they are asked for. Offsets are those of the launcher's one arena (see
/// [`super::Arena`]).
pub trait Launcher: Send + Sync {
    /// What carries out the kernels, in words.
    fn description(&self) -> String;

    /// Hands out `bytes` of the arena and returns their offset.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where fewer are left.
    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError>;

    /// Where an offset lies, if others can work there; `None`: they cannot.
    fn address_of(&self, _offset: usize) -> Option<Address> {
        None
    }

    /// Copies from the host to the device.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the arena does not hold the bytes or the device refuses.
    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError>;

    /// Copies from the device to the host, after everything launched before has ended.
    ///
    /// # Errors
    /// As [`Launcher::copy_in`].
    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError>;

    /// Begins to copy from the device, after everything asked for before, to memory of the host that the device writes by itself. What is asked for after
    /// it does not wait for it, alone of all that a launcher does, until [`Launcher::end_copy_out`].
    ///
    /// # Errors
    /// As [`Launcher::copy_in`].
    ///
    /// # Safety
    /// Until then the bytes are registered ([`super::Registration`]), no reference covers them, and nothing that is asked for changes the arena's.
    unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError>;

    /// Waits for all that was begun by [`Launcher::begin_copy_out`].
    ///
    /// # Errors
    /// As [`Launcher::synchronize`].
    fn end_copy_out(&self) -> Result<(), ComputeError>;

    /// Copies bytes from one offset to another, on the device.
    ///
    /// # Errors
    /// As [`Launcher::copy_in`], and where the two overlap.
    fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError>;

    /// Fills bytes (a multiple of four) with a pattern of four.
    ///
    /// # Errors
    /// As [`Launcher::copy_in`].
    fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError>;

    /// Launches a kernel; it may not have ended when this returns.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where there is no such kernel, an argument lies outside the arena, an argument that is written overlaps
    /// another, or the device refuses.
    ///
    /// # Safety
    /// The arguments are the kernel's, in its order and of its types, and with this shape and these values it touches nothing beyond its
    /// slices.
    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError>;

    /// Makes one piece of what is on the tape (on a GPU, a CUDA graph), which [`Launcher::replay`] carries out by one call. A launcher need not be able to.
    ///
    /// # Errors
    /// As the launches, copies and fills on it, and where the device makes no such piece of them.
    fn capture(&self, _tape: &Tape) -> Result<Captured, ComputeError> {
        Err(ComputeError::Device { device: self.description(), reason: "makes no one piece of many launches".into() })
    }

    /// Carries out what was captured, in its order and after everything asked for before; it may not have ended when this returns.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where there is no such piece (any more) or the device refuses.
    fn replay(&self, captured: Captured) -> Result<(), ComputeError> {
        Err(ComputeError::Device { device: self.description(), reason: format!("{captured:?} is not there") })
    }

    /// Gives up what was captured, after it has ended. No effect where there is no such piece.
    fn discard(&self, _captured: Captured) {}

    /// Waits for everything launched before.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed since the last call.
    fn synchronize(&self) -> Result<(), ComputeError>;
}

/// What [`Launcher::capture`] made; a number that is the launcher's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured(pub(super) usize);

/// Keeps what a launcher captured, under numbers that are used again.
#[derive(Debug)]
pub(super) struct Captures<T>(Vec<Option<T>>);

impl<T> Default for Captures<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Captures<T> {
    pub(super) fn keep(&mut self, piece: T) -> Captured {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        self.0.resize_with(self.0.len().max(free + 1), || None);
        self.0[free] = Some(piece);
        Captured(free)
    }

    pub(super) fn get(&self, Captured(number): Captured) -> Option<&T> {
        self.0.get(number)?.as_ref()
    }

    pub(super) fn take(&mut self, Captured(number): Captured) -> Option<T> {
        self.0.get_mut(number)?.take()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaunchShape {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl LaunchShape {
    /// As many blocks as cover `items` along each axis, where a block covers `of_block`.
    ///
    /// # Errors
    /// [`ComputeError::Setting`] where a grid cannot have so many blocks.
    pub fn covering(
        operation: &'static str,
        items: [usize; 3],
        of_block: [usize; 3],
        block: [u32; 3],
    ) -> Result<Self, ComputeError> {
        const MOST: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        let mut grid = [0; 3];
        for (axis, blocks) in grid.iter_mut().enumerate() {
            let needed = items[axis].div_ceil(of_block[axis]);
            if needed > MOST[axis] {
                return Err(ComputeError::Setting {
                    of: operation,
                    setting: ["blocks along x", "blocks along y", "blocks along z"][axis],
                    value: needed as f64,
                    requirement: "more than a launch can have; hand over fewer views or voxels a call",
                });
            }
            *blocks = needed as u32;
        }
        Ok(Self { grid, block, shared_bytes: 0 })
    }

    /// Blocks of the whole launch.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.grid.iter().map(|&blocks| blocks as usize).product()
    }
}

/// Most arguments of a kernel, and their bytes, each rounded up to [`ARGUMENT_ALIGNMENT`].
pub(super) const MOST_ARGUMENTS: usize = 12;
const MOST_BYTES: usize = 512;
const ARGUMENT_ALIGNMENT: usize = 16;

/// What a kernel is called with: numbers and structures by value, slices of the arena. Holds everything in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    storage: Storage,
    used: usize,
    entries: [Entry; MOST_ARGUMENTS],
    count: usize,
}

/// Aligned as the widest type that a kernel takes by value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(16))]
struct Storage([u8; MOST_BYTES]);

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Entry {
    start: usize,
    bytes: usize,
    slice: Option<Slice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slice {
    bytes: Range<usize>,
    written: bool,
}

impl Hash for Arguments {
    /// What is unused is the same in all.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.storage.0[..self.used].hash(state);
        self.entries[..self.count].hash(state);
    }
}

impl Default for Arguments {
    fn default() -> Self {
        Self { storage: Storage([0; MOST_BYTES]), used: 0, entries: Default::default(), count: 0 }
    }
}

impl Arguments {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A number or structure, laid out as the kernel's.
    ///
    /// # Panics
    /// If there are more than any kernel of this crate takes.
    #[must_use]
    pub fn value<T: Pod>(mut self, value: T) -> Self {
        self.push(bytemuck::bytes_of(&value), None);
        self
    }

    /// A slice that the kernel only reads.
    #[must_use]
    pub fn read<T: Pod>(mut self, slice: DeviceSlice<T>) -> Self {
        self.push(&[0; size_of::<u64>()], Some(Slice { bytes: slice.bytes(), written: false }));
        self
    }

    /// A slice that the kernel writes; no other argument may overlap it.
    #[must_use]
    pub fn write<T: Pod>(mut self, slice: DeviceSlice<T>) -> Self {
        self.push(&[0; size_of::<u64>()], Some(Slice { bytes: slice.bytes(), written: true }));
        self
    }

    fn push(&mut self, bytes: &[u8], slice: Option<Slice>) {
        self.storage.0[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.entries[self.count] = Entry { start: self.used, bytes: bytes.len(), slice };
        self.used = (self.used + bytes.len()).next_multiple_of(ARGUMENT_ALIGNMENT);
        self.count += 1;
    }

    /// Puts in the addresses of the slices in an arena of `arena_bytes` that begins at `base`, and hands the bytes of each argument to
    /// `each` (its index, its bytes at an aligned address).
    ///
    /// # Errors
    /// Why an argument cannot be: it lies outside the arena, or overlaps one that is written.
    pub fn resolve(
        &mut self,
        base: u64,
        arena_bytes: usize,
        mut each: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), String> {
        for (index, entry) in self.entries[..self.count].iter().enumerate() {
            let Some(slice) = &entry.slice else { continue };
            if slice.bytes.end > arena_bytes {
                return Err(format!("argument {index} ends at {} of an arena of {arena_bytes} bytes", slice.bytes.end));
            }
            for (other, theirs) in self.entries[..self.count].iter().enumerate() {
                let Some(theirs) = theirs.slice.as_ref().filter(|_| other != index && slice.written) else { continue };
                if slice.bytes.start < theirs.bytes.end && theirs.bytes.start < slice.bytes.end {
                    return Err(format!("argument {index}, which is written, overlaps argument {other}"));
                }
            }
            let address = base + slice.bytes.start as u64;
            self.storage.0[entry.start..][..size_of::<u64>()].copy_from_slice(&address.to_ne_bytes());
        }
        for (index, entry) in self.entries[..self.count].iter().enumerate() {
            each(index, &mut self.storage.0[entry.start..][..entry.bytes]);
        }
        Ok(())
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::Arena;
    use super::*;

    #[test]
    fn as_many_blocks_as_cover_and_no_more_than_there_can_be() {
        let shape = LaunchShape::covering("test", [33, 32, 1], [32, 32, 8], [32, 4, 1]).unwrap();
        assert_eq!((shape.grid, shape.blocks()), ([2, 1, 1], 2));
        let error = LaunchShape::covering("test", [1, 1, 70_000], [1; 3], [1; 3]).unwrap_err().to_string();
        assert!(error.contains("blocks along z = 70000"), "{error}");
    }

    #[test]
    fn buffers_are_aligned_with_a_gap_between_and_the_arena_ends() {
        let arena = Arena::new(1024);
        assert_eq!(arena.take("test", 1).unwrap(), 0);
        assert_eq!(arena.take("test", 256).unwrap(), 256);
        assert_eq!((arena.take("test", 0).unwrap(), arena.used()), (768, 1024));
        let error = arena.take("test", 1).unwrap_err().to_string();
        assert!(error.contains("a buffer of 1 bytes") && error.contains("1024 of the 1024"), "{error}");
        assert!(arena.take("test", usize::MAX).is_err());
    }
}
