//! Kernels on a GPU, through NVIDIA's driver. The driver's library is loaded where there is one; nothing is linked.
//!
//! ```text
//! start   context ▶ images ▶ kernels by name ▶ one arena, pinned staging
//! then    launches, fills, copies on the device ──▶ compute stream, one by one or as a graph of all that an iteration asks for
//!         copies in and out, in pieces          ──▶ copy stream; either waits for what was asked of the other before
//!         copies to registered memory           ──▶ read stream; waits for the compute stream, and only the host for it
//! ```
//!
//! After [`Driver::new`] nothing is looked up and nothing is allocated on the heap, but for a graph when it is captured. It has run on the stand-in for the driver only
//! (`kernels/host/driver.cpp`), on no GPU yet.

#![allow(unsafe_code)] // Calls the driver.

mod facts;
mod graph;
mod images;
mod owned;
mod registration;

pub use facts::{DeviceFacts, present};
pub use images::{IMAGES, Image};
pub use registration::Registration;

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute, CUdeviceptr, CUfunction, CUfunction_attribute};

use super::super::{Address, ComputeError};
use super::launcher::{Captures, MOST_ARGUMENTS};
use super::{Arena, Arguments, Captured, LaunchShape, Launcher, Tape};
use facts::{attribute, checked, device_error, handle, start};
use graph::Graph;
use owned::{Context, DeviceMemory, Event, Module, PinnedMemory, Stream};

/// Pinned memory of the host through which copies go; larger ones go in pieces of half of it, one being filled while the other is copied.
pub const STAGING_BYTES: usize = 16 << 20;
const PIECE: usize = STAGING_BYTES / 2;

/// Memory of its own beside the arena, on which everything is tried once at the start.
const TRIAL_BYTES: usize = 256;

/// A GPU that carries out the kernels of [`IMAGES`].
#[derive(Debug)]
pub struct Driver {
    facts: DeviceFacts,
    arena: Arena,
    /// Sorted by name.
    functions: Vec<Function>,
    /// Held from the first call of an operation to its last: this is the order in which they take effect.
    order: Mutex<Order>,
    compute: Stream,
    copies: Stream,
    reads: Stream,
    memory: DeviceMemory,
    _modules: Vec<Module>,
    /// The last: what is above belongs to it.
    context: Context,
}

#[derive(Debug)]
struct Function {
    name: &'static str,
    handle: CUfunction,
}

/// What copies need.
#[derive(Debug)]
struct Order {
    staging: PinnedMemory,
    /// The last copy to or from each half of the staging.
    taken: [Event; 2],
    /// Which half is next.
    half: usize,
    /// The last of the compute stream that copies wait for, and the other way about.
    launched: Event,
    copied: Event,
    graphs: Captures<Graph>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context its own, which every operation does; the staging is
// used by who holds `order`.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// The device at `index` of [`present`], with an arena of `arena_bytes`; beside that it takes [`STAGING_BYTES`] of pinned memory.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where there is no such device, the kernels do not run on it, or the memory is not free.
    pub fn new(index: usize, arena_bytes: usize) -> Result<Self, ComputeError> {
        Self::with_images(index, arena_bytes, IMAGES)
    }

    /// The same with other images, of which one must hold `sum_partials`.
    ///
    /// # Errors
    /// As [`Driver::new`].
    pub fn with_images(index: usize, arena_bytes: usize, images: &[Image]) -> Result<Self, ComputeError> {
        let (driver_version, devices) = start()?;
        if index >= devices {
            return Err(device_error(format!("there is no device {index}: there are {devices}, counted from 0")));
        }
        let facts = DeviceFacts::read(index, driver_version)?;
        facts.supported()?;
        let device = handle(index)?;
        let context = Context::retain(device)?;
        context.set_current()?;
        let most_shared = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let (mut modules, mut functions) = (Vec::with_capacity(images.len()), Vec::new());
        for image in images {
            let module = Module::load(image.name, image.bytes)?;
            for &name in image.kernels {
                let handle = module.function(name)?;
                make_ready(name, handle, most_shared)?;
                functions.push(Function { name, handle });
            }
            modules.push(module);
        }
        functions.sort_unstable_by_key(|function| function.name);
        let (compute, copies, reads) = (Stream::new()?, Stream::new()?, Stream::new()?);
        let order = Order {
            staging: PinnedMemory::allocate(STAGING_BYTES)?,
            taken: [Event::new()?, Event::new()?],
            half: 0,
            launched: Event::new()?,
            copied: Event::new()?,
            graphs: Captures::default(),
        };
        let driver = Self {
            arena: Arena::new(arena_bytes),
            memory: arena_memory(&facts, arena_bytes)?,
            facts,
            functions,
            order: Mutex::new(order),
            compute,
            copies,
            reads,
            _modules: modules,
            context,
        };
        driver.try_everything()?;
        Ok(driver)
    }

    /// What it is.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Takes back everything that was handed out or captured, for whoever is next; context and kernels stay. The arena holds nothing from now on: as floats, NaN.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed before.
    pub fn empty(&mut self) -> Result<(), ComputeError> {
        self.synchronize()?;
        self.arena = Arena::new(self.arena.bytes());
        let mut order = self.begin()?;
        // They work on what was handed out.
        order.graphs.clear();
        self.fill_at(&mut order, self.memory.address(), u32::MAX, self.arena.bytes() / size_of::<u32>())
    }

    /// Every call once, on memory beside the arena: what cannot work shows now, and what the driver sets up when it is first asked is there.
    fn try_everything(&self) -> Result<(), ComputeError> {
        let trial = self.memory.address() + self.arena.bytes().next_multiple_of(TRIAL_BYTES) as CUdeviceptr;
        let mut order = self.begin()?;
        self.fill_at(&mut order, trial, 0x3f80_0000, TRIAL_BYTES / 8)?;
        self.copy_at(&mut order, trial, trial + TRIAL_BYTES as CUdeviceptr / 2, TRIAL_BYTES / 2)?;
        let (mut partials, mut count, mut total) = (trial, 0_i32, trial);
        let mut pointers = [(&raw mut partials).cast(), (&raw mut count).cast(), (&raw mut total).cast()];
        let shape = LaunchShape { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0 };
        let sum = self.function("sum_partials")?;
        // SAFETY: the arguments of sum.cu; it reads nothing and writes one float64.
        unsafe { self.launch_with(&mut order, "sum_partials", sum, shape, &mut pointers) }?;
        let mut bytes = [0; TRIAL_BYTES];
        self.copy_out_at(&mut order, trial, &mut bytes)?;
        self.copy_in_at(&mut order, trial, &bytes)?;
        drop(order);
        self.synchronize()?;
        let floats = |bytes: &[u8]| bytes.chunks_exact(4).all(|float| float == 1.0_f32.to_ne_bytes());
        let (sum, rest) = bytes.split_at(8);
        if sum == [0; 8] && floats(rest) {
            return Ok(());
        }
        Err(device_error(format!("{} computes wrongly: a sum of nothing, fills and copies differ", self.facts)))
    }

    fn function(&self, name: &str) -> Result<CUfunction, ComputeError> {
        match self.functions.binary_search_by(|function| function.name.cmp(name)) {
            Ok(place) => Ok(self.functions[place].handle),
            Err(_) => Err(device_error(format!("kernel {name}: no image has it"))),
        }
    }

    /// Waits for the operations before; makes the context this thread's.
    fn begin(&self) -> Result<MutexGuard<'_, Order>, ComputeError> {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.set_current()?;
        Ok(order)
    }

    /// Address of `bytes`, where the arena holds them.
    fn address(&self, bytes: Range<usize>) -> Result<CUdeviceptr, ComputeError> {
        if bytes.start > bytes.end || bytes.end > self.arena.used() {
            return Err(device_error(format!("bytes {bytes:?} were never handed out")));
        }
        Ok(self.memory.address() + bytes.start as CUdeviceptr)
    }

    /// Launches with pointers to the arguments.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    unsafe fn launch_with(
        &self,
        _order: &mut Order,
        name: &str,
        function: CUfunction,
        shape: LaunchShape,
        pointers: &mut [*mut c_void],
    ) -> Result<(), ComputeError> {
        let ([x, y, z], [of_x, of_y, of_z]) = (shape.grid, shape.block);
        // SAFETY: handle and stream are alive, the driver reads the arguments before it returns; the rest is the caller's promise.
        let code = unsafe {
            let (stream, pointers) = (self.compute.handle(), pointers.as_mut_ptr());
            sys::cuLaunchKernel(function, x, y, z, of_x, of_y, of_z, shape.shared_bytes, stream, pointers, null_mut())
        };
        match checked("cuLaunchKernel", code) {
            Err(ComputeError::Device { device, reason }) => {
                Err(ComputeError::Device { device, reason: format!("kernel {name}, {shape:?}: {reason}") })
            }
            other => other,
        }
    }

    /// See [`Launcher::launch`].
    ///
    /// # Safety
    /// As there.
    unsafe fn launch_within(
        &self,
        order: &mut Order,
        kernel: &str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        let function = self.function(kernel)?;
        let (mut arguments, mut pointers) = (arguments.clone(), [null_mut(); MOST_ARGUMENTS]);
        arguments
            .resolve(self.memory.address(), self.arena.used(), |index, bytes| {
                pointers[index] = bytes.as_mut_ptr().cast();
            })
            .map_err(|reason| device_error(format!("kernel {kernel}: {reason}")))?;
        // SAFETY: the caller's promise; the pointers are to `arguments`, which outlives the call.
        unsafe { self.launch_with(order, kernel, function, shape, &mut pointers) }
    }

    /// See [`Launcher::copy`].
    fn copy_within(&self, order: &mut Order, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
        if from.abs_diff(to) < bytes {
            return Err(device_error(format!("{bytes} bytes at {from} and at {to} overlap")));
        }
        let (from, to) = (self.address(from..from.saturating_add(bytes))?, self.address(to..to.saturating_add(bytes))?);
        if bytes == 0 { Ok(()) } else { self.copy_at(order, from, to, bytes) }
    }

    /// See [`Launcher::fill`].
    fn fill_within(&self, order: &mut Order, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
        let words = bytes.len() / size_of::<u32>();
        let to = self.address(bytes)?;
        if words == 0 { Ok(()) } else { self.fill_at(order, to, pattern, words) }
    }

    fn copy_in_at(&self, order: &mut Order, to: CUdeviceptr, from: &[u8]) -> Result<(), ComputeError> {
        order.launched.record(&self.compute)?;
        self.copies.wait_for(&order.launched)?;
        for (piece, from) in from.chunks(PIECE).enumerate() {
            let (half, staged) = order.next_half();
            order.taken[half].synchronize()?;
            // SAFETY: a piece fits half of the staging, from which the last copy has ended; the memory of the device is the caller's.
            let code = unsafe {
                staged.copy_from_nonoverlapping(from.as_ptr(), from.len());
                let to = to + (piece * PIECE) as CUdeviceptr;
                sys::cuMemcpyHtoDAsync_v2(to, staged.cast(), from.len(), self.copies.handle())
            };
            checked("cuMemcpyHtoDAsync", code)?;
            order.taken[half].record(&self.copies)?;
        }
        order.copied.record(&self.copies)?;
        self.compute.wait_for(&order.copied)
    }

    fn copy_out_at(&self, order: &mut Order, from: CUdeviceptr, to: &mut [u8]) -> Result<(), ComputeError> {
        order.launched.record(&self.compute)?;
        self.copies.wait_for(&order.launched)?;
        // While a piece is copied to one half, the piece before it is taken out of the other.
        let mut before: Option<(usize, *mut u8, &mut [u8])> = None;
        let take = |order: &Order, piece: Option<(usize, *mut u8, &mut [u8])>| -> Result<(), ComputeError> {
            let Some((half, staged, to)) = piece else { return Ok(()) };
            order.taken[half].synchronize()?;
            // SAFETY: the copy to this half has ended, and it holds as many bytes.
            unsafe { to.as_mut_ptr().copy_from_nonoverlapping(staged, to.len()) };
            Ok(())
        };
        for (piece, to) in to.chunks_mut(PIECE).enumerate() {
            let (half, staged) = order.next_half();
            let from = from + (piece * PIECE) as CUdeviceptr;
            // SAFETY: a piece fits half of the staging, which was emptied; earlier copies from it come before in the stream.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(staged.cast(), from, to.len(), self.copies.handle()) };
            checked("cuMemcpyDtoHAsync", code)?;
            order.taken[half].record(&self.copies)?;
            take(order, before.replace((half, staged, to)))?;
        }
        take(order, before)
    }

    fn copy_at(
        &self,
        _order: &mut Order,
        from: CUdeviceptr,
        to: CUdeviceptr,
        bytes: usize,
    ) -> Result<(), ComputeError> {
        // SAFETY: both are memory of the device that the caller owns, apart from each other.
        checked("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.compute.handle()) })
    }

    fn fill_at(&self, _order: &mut Order, to: CUdeviceptr, pattern: u32, words: usize) -> Result<(), ComputeError> {
        // SAFETY: memory of the device that the caller owns.
        checked("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(to, pattern, words, self.compute.handle()) })
    }
}

impl Order {
    /// The next half of the staging, and where it begins.
    fn next_half(&mut self) -> (usize, *mut u8) {
        let half = self.half;
        self.half = 1 - half;
        // SAFETY: within the staging.
        (half, unsafe { self.staging.pointer().as_ptr().add(half * PIECE) })
    }
}

/// Loads a kernel onto the device now, not when it is first launched, and lets its launches have all the shared memory that the device gives to a
/// block that asks for it.
fn make_ready(name: &str, function: CUfunction, most_shared: i32) -> Result<(), ComputeError> {
    // SAFETY: the handle is alive.
    checked(&format!("kernel {name}: cuFuncLoad"), unsafe { sys::cuFuncLoad(function) })?;
    let mut own = 0;
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: writes one int where the pointer points.
    checked("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut own, attribute, function) })?;
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the handle is alive.
    checked(&format!("kernel {name}: cuFuncSetAttribute"), unsafe {
        sys::cuFuncSetAttribute(function, attribute, (most_shared - own).max(0))
    })
}

/// The arena's memory, and some to try things on.
fn arena_memory(facts: &DeviceFacts, arena_bytes: usize) -> Result<DeviceMemory, ComputeError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two numbers where the pointers point.
    checked("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
    let needed = arena_bytes.checked_next_multiple_of(TRIAL_BYTES).and_then(|bytes| bytes.checked_add(TRIAL_BYTES));
    match needed.filter(|&needed| needed <= free) {
        Some(needed) => DeviceMemory::allocate(needed),
        None => Err(device_error(format!(
            "{arena_bytes} bytes are more than is free on {}: {free} of {total}; end what else runs on it, or make the volume smaller",
            facts.name
        ))),
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What is still under way ends before its memory goes. Nobody is left to hear of errors.
        let _ = self.synchronize();
        // While the context is this thread's.
        if let Ok(mut order) = self.begin() {
            order.graphs.clear();
        }
    }
}

impl Launcher for Driver {
    fn description(&self) -> String {
        self.facts.to_string()
    }

    fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
        self.arena.take("cuda", bytes)
    }

    fn address_of(&self, offset: usize) -> Option<Address> {
        Some(Address::Cuda { device: self.facts.index, pointer: self.address(offset..offset).ok()? })
    }

    fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError> {
        let to = self.address(offset..offset.saturating_add(from.len()))?;
        if from.is_empty() { Ok(()) } else { self.copy_in_at(&mut *self.begin()?, to, from) }
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        let from = self.address(offset..offset.saturating_add(to.len()))?;
        if to.is_empty() { Ok(()) } else { self.copy_out_at(&mut *self.begin()?, from, to) }
    }

    unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError> {
        let from = self.address(offset..offset.saturating_add(bytes))?;
        if bytes == 0 {
            return Ok(());
        }
        let order = self.begin()?;
        order.launched.record(&self.compute)?;
        self.reads.wait_for(&order.launched)?;
        // SAFETY: the memory of the device is the caller's; that of the host is registered and stays, as it promises.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_ptr().cast(), from, bytes, self.reads.handle()) };
        checked("cuMemcpyDtoHAsync", code)
    }

    fn end_copy_out(&self) -> Result<(), ComputeError> {
        // Not in the order: whoever works on the device meanwhile goes on.
        self.context.set_current()?;
        self.reads.synchronize()
    }

    fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
        self.copy_within(&mut *self.begin()?, from, to, bytes)
    }

    fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
        self.fill_within(&mut *self.begin()?, bytes, pattern)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_within(&mut *self.begin()?, kernel, shape, arguments) }
    }

    fn capture(&self, tape: &Tape) -> Result<Captured, ComputeError> {
        let mut order = self.begin()?;
        let graph = self.graph_of(&mut order, tape)?;
        Ok(order.graphs.keep(graph))
    }

    fn replay(&self, captured: Captured) -> Result<(), ComputeError> {
        let order = self.begin()?;
        let graph = order.graphs.get(captured);
        graph.ok_or_else(|| device_error(format!("{captured:?} is not there")))?.launch(&self.compute)
    }

    fn discard(&self, captured: Captured) {
        // Nobody is left to hear of errors.
        if let Ok(mut order) = self.begin() {
            let _ = self.compute.synchronize();
            order.graphs.take(captured);
        }
    }

    fn synchronize(&self) -> Result<(), ComputeError> {
        let _order = self.begin()?;
        self.compute.synchronize()?;
        self.copies.synchronize()?;
        self.reads.synchronize()
    }
}
