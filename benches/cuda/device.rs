//! What the driver tells of a device that floors need.
#![allow(unsafe_code)] // Calls the driver.

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

/// Multiprocessors, and their clock in Hz; nothing where the driver does not tell. The driver has been started.
pub(crate) fn multiprocessors_and_clock(index: usize) -> Option<(f64, f64)> {
    let told = |attribute| {
        let (mut device, mut value) = (0, 0);
        // SAFETY: writes one handle, then one int, where the pointers point.
        let codes = unsafe {
            let code = sys::cuDeviceGet(&mut device, index as i32);
            (code, sys::cuDeviceGetAttribute(&mut value, attribute, device))
        };
        (codes == (CUresult::CUDA_SUCCESS, CUresult::CUDA_SUCCESS) && value > 0).then_some(f64::from(value))
    };
    let multiprocessors = told(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let clock_khz = told(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    Some((multiprocessors, 1e3 * clock_khz))
}
