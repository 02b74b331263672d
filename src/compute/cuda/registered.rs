//! Copies straight into shared memory, beside which the device goes on.

#![allow(unsafe_code)] // Hands an address to the device.

use firmware_bridge::memory::ClaimedBytes;

use super::super::ComputeError;
use super::{DeviceSlice, Launcher, check_len};

/// Bytes of shared memory that a device may write by itself: claimed by this side, and registered ([`super::Registration::of`]).
#[derive(Debug)]
pub struct Registered<'a>(ClaimedBytes<'a>);

impl<'a> Registered<'a> {
    pub(super) fn new(bytes: ClaimedBytes<'a>) -> Self {
        Self(bytes)
    }

    /// Begins to copy values to the bytes.
    pub(super) fn begin(self, launcher: &'a dyn Launcher, from: DeviceSlice<f32>) -> Result<Pending<'a>, ComputeError> {
        check_len("begin_read", "bytes", self.0.len(), from.bytes().len())?;
        // SAFETY: the bytes are registered and claimed, and no reference covers shared memory; both, and the values, are borrowed by what is returned,
        // which waits for the copy.
        unsafe { launcher.begin_copy_out(from.bytes().start, self.0.start(), self.0.len()) }?;
        Ok(Pending { launcher, bytes: Some(self.0) })
    }
}

/// A copy under way.
#[must_use = "the copy is waited for when this is dropped"]
pub struct Pending<'a> {
    launcher: &'a dyn Launcher,
    /// `None`: waited for.
    bytes: Option<ClaimedBytes<'a>>,
}

impl std::fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pending").field(&self.bytes).finish()
    }
}

impl Pending<'_> {
    /// Waits until the values are there.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where something failed.
    pub fn wait(mut self) -> Result<(), ComputeError> {
        self.bytes = None;
        self.launcher.end_copy_out()
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.bytes.is_some() {
            // Where the values are not wanted any more, nor is it of interest what became of them.
            let _ = self.launcher.end_copy_out();
        }
    }
}
