//! What the driver hands out, given back when it is dropped. The context must be the thread's current one.

#![allow(unsafe_code)] // Calls the driver.

use std::ffi::{CString, c_void};
use std::ptr::{NonNull, null_mut};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUevent_flags, CUfunction, CUmodule, CUstream, CUstream_flags,
};

use super::super::super::ComputeError;
use super::facts::{checked, device_error};

/// The device's primary context.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    handle: CUcontext,
}

impl Context {
    pub(super) fn retain(device: CUdevice) -> Result<Self, ComputeError> {
        let mut handle = null_mut();
        // SAFETY: writes one handle where the pointer points.
        checked("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) })?;
        Ok(Self { device, handle })
    }

    /// Makes it this thread's.
    pub(super) fn set_current(&self) -> Result<(), ComputeError> {
        // SAFETY: the handle is retained.
        checked("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by this value; what belongs to it has been given back.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of work.
#[derive(Debug)]
pub(super) struct Stream(CUstream);

impl Stream {
    pub(super) fn new() -> Result<Self, ComputeError> {
        let (mut handle, flags) = (null_mut(), CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
        // SAFETY: writes one handle where the pointer points.
        checked("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut handle, flags) })?;
        Ok(Self(handle))
    }

    pub(super) fn handle(&self) -> CUstream {
        self.0
    }

    /// What is put in from now on begins after what `event` marks.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), ComputeError> {
        // SAFETY: both handles are alive.
        checked("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) })
    }

    pub(super) fn synchronize(&self) -> Result<(), ComputeError> {
        // SAFETY: the handle is alive.
        checked("something launched before failed: cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by this value; the driver ends what is in it first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(super) struct Event(CUevent);

impl Event {
    pub(super) fn new() -> Result<Self, ComputeError> {
        let (mut handle, flags) = (null_mut(), CUevent_flags::CU_EVENT_DISABLE_TIMING as u32);
        // SAFETY: writes one handle where the pointer points.
        checked("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, flags) })?;
        Ok(Self(handle))
    }

    /// Marks all that is in the stream by now.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), ComputeError> {
        // SAFETY: both handles are alive.
        checked("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    /// Waits for what it marks; at once where it marks nothing.
    pub(super) fn synchronize(&self) -> Result<(), ComputeError> {
        // SAFETY: the handle is alive.
        checked("something launched before failed: cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by this value.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// An image, loaded.
#[derive(Debug)]
pub(super) struct Module(CUmodule);

impl Module {
    /// Loads an image of the crate's own.
    pub(super) fn load(name: &str, image: &[u8]) -> Result<Self, ComputeError> {
        let mut handle = null_mut();
        // SAFETY: a whole image, which says itself how long it is.
        checked(&format!("image {name}: cuModuleLoadData"), unsafe {
            sys::cuModuleLoadData(&mut handle, image.as_ptr().cast())
        })?;
        Ok(Self(handle))
    }

    /// A kernel of it, which lives as long as it does.
    pub(super) fn function(&self, kernel: &str) -> Result<CUfunction, ComputeError> {
        let name =
            CString::new(kernel).map_err(|_| device_error(format!("kernel {kernel}: its name contains a zero")))?;
        let mut handle = null_mut();
        // SAFETY: writes one handle where the pointer points; the name ends with a zero.
        checked(&format!("kernel {kernel}: cuModuleGetFunction"), unsafe {
            sys::cuModuleGetFunction(&mut handle, self.0, name.as_ptr())
        })?;
        Ok(handle)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by this value; its kernels have ended.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(super) struct DeviceMemory(CUdeviceptr);

impl DeviceMemory {
    pub(super) fn allocate(bytes: usize) -> Result<Self, ComputeError> {
        let mut address = 0;
        // SAFETY: writes one address where the pointer points.
        checked(&format!("{bytes} bytes of device memory: cuMemAlloc"), unsafe {
            sys::cuMemAlloc_v2(&mut address, bytes)
        })?;
        Ok(Self(address))
    }

    pub(super) fn address(&self) -> CUdeviceptr {
        self.0
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by this value; nothing works on it any more.
        let _ = unsafe { sys::cuMemFree_v2(self.0) };
    }
}

/// Memory of the host that the device reads and writes itself; not write-combined, so that it is quick to read.
#[derive(Debug)]
pub(super) struct PinnedMemory(NonNull<u8>);

impl PinnedMemory {
    pub(super) fn allocate(bytes: usize) -> Result<Self, ComputeError> {
        let mut pointer: *mut c_void = null_mut();
        let call = format!("{bytes} bytes of pinned memory (ulimit -l?): cuMemHostAlloc");
        // SAFETY: writes one address where the pointer points.
        checked(&call, unsafe { sys::cuMemHostAlloc(&mut pointer, bytes, 0) })?;
        NonNull::new(pointer.cast()).map(Self).ok_or_else(|| device_error(call))
    }

    pub(super) fn pointer(&self) -> NonNull<u8> {
        self.0
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by this value; no copy to or from it is under way.
        let _ = unsafe { sys::cuMemFreeHost(self.0.as_ptr().cast()) };
    }
}
