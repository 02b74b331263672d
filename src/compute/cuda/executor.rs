//! Kernels on the CPU, for tests: a shared library of the kernels' sources compiled as C++ (`kernels/host`).
//!
//! It shows whether kernels are right, not how fast they are.

#![allow(unsafe_code)] // Calls a library, and hands it memory of its own.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CString, c_char, c_void};
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::{Address, ComputeError};
use super::launcher::Captures;
use super::{Arena, Arguments, Captured, LaunchShape, Launcher, Tape};

/// Version of the library's functions (`kernels/host/library.cpp`).
const VERSION: u32 = 2;

/// What memory holds that nobody has written.
const UNTOUCHED: u8 = 0xff;

type VersionFunction = unsafe extern "C" fn() -> u32;
type MemoryFunction = unsafe extern "C" fn(*mut c_void, usize);
type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    u32,
    *mut *mut c_void,
    *const usize,
    usize,
    u32,
    u32,
    *mut c_char,
    usize,
) -> i32;

/// In which order the threads of a block take turns between barriers; results must not hang on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turns {
    /// From the first to the last.
    Ascending,
    /// From the last to the first.
    Descending,
}

/// Runs kernels on the CPU, each launch to its end.
#[derive(Debug)]
pub struct Executor {
    workers: u32,
    turns: Turns,
    arena: Arena,
    memory: NonNull<u8>,
    launch: LaunchFunction,
    allow: MemoryFunction,
    /// What was handed out; held by whoever touches the memory, but for those who were told an address and work there between operations
    /// ([`super::super::Memory::address`]).
    buffers: Mutex<Vec<Range<usize>>>,
    captures: Mutex<Captures<Tape>>,
    /// The functions above live as long as it does.
    _library: libloading::Library,
}

// SAFETY: the memory is the executor's own, and touched only while `buffers` is held; the library's functions may be called from any thread.
unsafe impl Send for Executor {}
// SAFETY: as above.
unsafe impl Sync for Executor {}

fn device_error(reason: String) -> ComputeError {
    ComputeError::Device { device: "kernel executor".into(), reason }
}

impl Executor {
    /// Loads the library at `path`, which `kernels/README.md` tells how to build, with an arena of `arena_bytes`. Launches run on
    /// `workers` threads.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the library cannot be loaded or is another version's, or the memory is not to be had.
    pub fn load(path: &Path, arena_bytes: usize, workers: u32, turns: Turns) -> Result<Self, ComputeError> {
        let failed = |error: libloading::Error| device_error(format!("cannot load {}: {error}", path.display()));
        // SAFETY: the library's only code that runs at loading registers its kernels.
        let library = unsafe { libloading::Library::new(path) }.map_err(failed)?;
        // SAFETY: the types are those that `kernels/host/library.cpp` declares, which the version stands for.
        let (launch, forbid, allow) = unsafe {
            let version = library.get::<VersionFunction>(b"diffnr_executor_version").map_err(failed)?();
            if version != VERSION {
                let reason = format!("{} has version {version}, not {VERSION}: build it anew", path.display());
                return Err(device_error(reason));
            }
            (
                *library.get::<LaunchFunction>(b"diffnr_executor_launch").map_err(failed)?,
                *library.get::<MemoryFunction>(b"diffnr_executor_forbid").map_err(failed)?,
                *library.get::<MemoryFunction>(b"diffnr_executor_allow").map_err(failed)?,
            )
        };
        let layout = layout(arena_bytes).ok_or_else(|| device_error(format!("{arena_bytes} bytes are too many")))?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc(layout) })
            .ok_or_else(|| device_error(format!("{arena_bytes} bytes are not to be had")))?;
        // SAFETY: these are the bytes just allocated. As floats they are NaN, which shows where it is read.
        unsafe {
            memory.as_ptr().write_bytes(UNTOUCHED, arena_bytes);
            forbid(memory.as_ptr().cast(), arena_bytes);
        }
        let arena = Arena::new(arena_bytes);
        let (buffers, captures) = (Mutex::default(), Mutex::default());
        Ok(Self { workers, turns, arena, memory, launch, allow, buffers, captures, _library: library })
    }

    /// Address of `bytes`, where the arena holds them.
    fn address(&self, bytes: Range<usize>) -> Result<*mut u8, ComputeError> {
        if bytes.start > bytes.end || bytes.end > self.arena.used() {
            return Err(device_error(format!("bytes {bytes:?} were never handed out")));
        }
        // SAFETY: within the allocation, of which no more than all is handed out.
        Ok(unsafe { self.memory.as_ptr().add(bytes.start) })
    }

    fn captures(&self) -> MutexGuard<'_, Captures<Tape>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` while nobody else touches the memory.
    fn alone<R>(&self, work: impl FnOnce(&mut Vec<Range<usize>>) -> R) -> R {
        work(&mut self.buffers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Of an arena; never empty.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), 4096).ok()
}

impl Drop for Executor {
    fn drop(&mut self) {
        let Some(layout) = layout(self.arena.bytes()) else { return };
        // SAFETY: allocated with this layout in `load`; nobody holds the executor any more.
        unsafe {
            (self.allow)(self.memory.as_ptr().cast(), layout.size());
            dealloc(self.memory.as_ptr(), layout);
        }
    }
}

impl Launcher for Executor {
    fn description(&self) -> String {
        format!("kernel executor on the CPU (for tests), {} threads", self.workers)
    }

    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
        let offset = self.arena.take("kernel executor", bytes)?;
        self.alone(|buffers| {
            buffers.push(offset..offset + bytes);
            // SAFETY: within the allocation, as the arena says.
            unsafe { (self.allow)(self.memory.as_ptr().add(offset).cast(), bytes) };
        });
        Ok(offset)
    }

    fn address_of(&self, offset: usize) -> Option<Address> {
        Some(Address::Host(self.address(offset..offset).ok()?.expose_provenance()))
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError> {
        let to = self.address(offset..offset.saturating_add(from.len()))?;
        // SAFETY: within the arena, which no reference points into; nobody else touches it.
        self.alone(|_| unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) });
        Ok(())
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        let from = self.address(offset..offset.saturating_add(to.len()))?;
        // SAFETY: as in `copy_in`; all bytes were written when the arena was made.
        self.alone(|_| unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, to.len()) });
        Ok(())
    }

    unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError> {
        let from = self.address(offset..offset.saturating_add(bytes))?;
        // SAFETY: as in `copy_out`; the memory of the host is the caller's.
        self.alone(|_| unsafe { to.as_ptr().copy_from_nonoverlapping(from, bytes) });
        Ok(())
    }

    /// Copies have ended when they begin.
    fn end_copy_out(&self) -> Result<(), ComputeError> {
        Ok(())
    }

    fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
        if from.abs_diff(to) < bytes {
            return Err(device_error(format!("{bytes} bytes at {from} and at {to} overlap")));
        }
        let (from, to) = (self.address(from..from.saturating_add(bytes))?, self.address(to..to.saturating_add(bytes))?);
        // SAFETY: both within the arena, apart from each other; nobody else touches it.
        self.alone(|_| unsafe { to.copy_from_nonoverlapping(from, bytes) });
        Ok(())
    }

    fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
        let words = bytes.len() / size_of::<u32>();
        let to = self.address(bytes)?.cast::<u32>();
        self.alone(|_| {
            for word in 0..words {
                // SAFETY: within the bytes asked for, which lie in the arena; nobody else touches it.
                unsafe { to.add(word).write_unaligned(pattern) };
            }
        });
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        let refused = |reason: &str| device_error(format!("kernel {kernel}: {reason}"));
        let name = CString::new(kernel).map_err(|_| refused("its name contains a zero"))?;
        let mut arguments = arguments.clone();
        let count = arguments.count();
        let (mut pointers, mut sizes) = (vec![std::ptr::null_mut(); count], vec![0; count]);
        arguments
            .resolve(self.memory.as_ptr() as u64, self.arena.used(), |index, bytes| {
                pointers[index] = bytes.as_mut_ptr().cast();
                sizes[index] = bytes.len();
            })
            .map_err(|reason| refused(&reason))?;
        let mut reason = [0_u8; 256];
        // SAFETY: name, shape, arguments and sizes live through the call, which writes no more than `reason` holds; the kernel's own
        // accesses are the caller's promise.
        let code = self.alone(|_| unsafe {
            (self.launch)(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared_bytes,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                count,
                self.workers,
                u32::from(self.turns == Turns::Descending),
                reason.as_mut_ptr().cast(),
                reason.len(),
            )
        });
        if code == 0 {
            return Ok(());
        }
        let end = reason.iter().position(|&byte| byte == 0).unwrap_or(reason.len());
        Err(refused(&String::from_utf8_lossy(&reason[..end])))
    }

    fn capture(&self, tape: &Tape) -> Result<Captured, ComputeError> {
        Ok(self.captures().keep(tape.clone()))
    }

    fn replay(&self, captured: Captured) -> Result<(), ComputeError> {
        let tape = self.captures().get(captured).cloned();
        tape.ok_or_else(|| device_error(format!("{captured:?} is not there")))?.play(self)
    }

    fn discard(&self, captured: Captured) {
        self.captures().take(captured);
    }

    /// Launches have ended when they return; this looks whether one wrote where no buffer is.
    fn synchronize(&self) -> Result<(), ComputeError> {
        self.alone(|buffers| {
            buffers.sort_unstable_by_key(|buffer| buffer.start);
            let ends = buffers.iter().map(|buffer| buffer.end);
            let starts = buffers.iter().skip(1).map(|buffer| buffer.start).chain([self.arena.used()]);
            for offset in ends.zip(starts).flat_map(|(end, start)| end..start) {
                // SAFETY: within the allocation; all bytes were written when the arena was made.
                if unsafe { self.memory.as_ptr().add(offset).read() } != UNTOUCHED {
                    return Err(device_error(format!("a kernel wrote at offset {offset}, beyond a buffer's end")));
                }
            }
            Ok(())
        })
    }
}
