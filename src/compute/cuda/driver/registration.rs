//! Shared memory that the device reads and writes itself.

#![allow(unsafe_code)] // Calls the driver.

use cudarc::driver::sys;
use firmware_bridge::memory::{ClaimedBytes, SharedMemory};

use super::super::super::ComputeError;
use super::super::Registered;
use super::facts::{checked, handle};
use super::owned::Context;

/// Shared memory that is known to the driver, for all of this process's [`super::Driver`]s, until this is dropped.
pub struct Registration {
    memory: Box<dyn SharedMemory + Send + Sync>,
    context: Context,
}

// SAFETY: the context's handle may be used from any thread; the memory is sent and shared as it may be.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration").field("bytes", &self.memory.len()).finish_non_exhaustive()
    }
}

impl Registration {
    /// Registers `memory` with the device at `index` of [`super::present`]; its pages stay where they are from now on.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the driver refuses: locked memory has limits.
    pub fn new(index: usize, memory: impl SharedMemory + Send + Sync + 'static) -> Result<Self, ComputeError> {
        let context = Context::retain(handle(index)?)?;
        context.set_current()?;
        let call = format!("{} bytes of shared memory (ulimit -l?): cuMemHostRegister", memory.len());
        let (start, portable) = (memory.base().as_ptr().cast(), sys::CU_MEMHOSTREGISTER_PORTABLE);
        // SAFETY: the memory stays at this address for as long as it is owned here, which is longer than it is registered.
        checked(&call, unsafe { sys::cuMemHostRegister_v2(start, memory.len(), portable) })?;
        Ok(Self { memory: Box::new(memory), context })
    }

    /// The same bytes, as those that the device may write; `None` where they lie elsewhere.
    #[must_use]
    pub fn of<'a>(&'a self, bytes: ClaimedBytes<'a>) -> Option<Registered<'a>> {
        let (base, from) = (self.memory.base().as_ptr().addr(), bytes.start().as_ptr().addr());
        let offset = from.checked_sub(base)?;
        (offset <= self.memory.len() && bytes.len() <= self.memory.len() - offset).then(|| Registered::new(bytes))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Nobody is left to hear of errors. Whoever copied has waited: what is registered is borrowed until then.
        let _ = self.context.set_current();
        // SAFETY: registered by this value.
        let _ = unsafe { sys::cuMemHostUnregister(self.memory.base().as_ptr().cast()) };
    }
}
