//! What devices the driver has, asked for without a panic on a machine that has none.

#![allow(unsafe_code)] // Calls the driver.

use std::ffi::CStr;
use std::fmt;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};

use super::super::super::ComputeError;

/// CUDA that the driver must carry, as `1000 * major + 10 * minor`: the images are of nvcc 13.0.
const LEAST_DRIVER: i32 = 13_000;

/// Least compute capability: the oldest image is for sm_80, and there is PTX for what no image is for.
const LEAST_CAPABILITY: [i32; 2] = [8, 0];

/// A device, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its place in the driver's list.
    pub index: usize,
    /// What its maker calls it.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: [i32; 2],
    /// Bytes of its memory, those in use included.
    pub memory_bytes: u64,
    /// Newest CUDA that the driver carries, as `1000 * major + 10 * minor`.
    pub driver_version: i32,
}

impl DeviceFacts {
    /// Of the device at `index`; the driver has been started.
    pub(super) fn read(index: usize, driver_version: i32) -> Result<Self, ComputeError> {
        let device = handle(index)?;
        let mut name = [0; 256];
        // SAFETY: writes no more than the length handed over, a zero at the end included.
        checked("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device) })?;
        let name: Vec<u8> = name.iter().take_while(|&&letter| letter != 0).map(|&letter| letter as u8).collect();
        let mut memory_bytes = 0;
        // SAFETY: writes one number where the pointer points.
        checked("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) })?;
        Ok(Self {
            index,
            name: String::from_utf8_lossy(&name).into_owned(),
            capability: [
                attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ],
            memory_bytes: memory_bytes as u64,
            driver_version,
        })
    }

    /// Whether the kernels run on it.
    ///
    /// # Errors
    /// [`ComputeError::Device`] with what the device has and what it would need.
    pub fn supported(&self) -> Result<(), ComputeError> {
        if self.capability >= LEAST_CAPABILITY {
            return Ok(());
        }
        let [major, minor] = self.capability;
        Err(device_error(format!(
            "{} is sm_{major}{minor}; the kernels need sm_80 or newer (A100, RTX 30 and what came after): use another device",
            self.name
        )))
    }
}

impl fmt::Display for DeviceFacts {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([major, minor], gibibytes) = (self.capability, self.memory_bytes as f64 / f64::from(1 << 30));
        write!(
            to,
            "{}, sm_{major}{minor}, {gibibytes:.1} GiB, driver for CUDA {}",
            self.name,
            version(self.driver_version)
        )
    }
}

/// The devices that there are, whether the kernels run on them or not (see [`DeviceFacts::supported`]); at least one. Never panics.
///
/// # Errors
/// [`ComputeError::Device`] where the driver's library or a device is not there or the driver is too old, with what to change.
pub fn present() -> Result<Vec<DeviceFacts>, ComputeError> {
    let (driver_version, devices) = start()?;
    (0..devices).map(|index| DeviceFacts::read(index, driver_version)).collect()
}

/// Starts the driver; its version and how many devices it has.
pub(super) fn start() -> Result<(i32, usize), ComputeError> {
    // SAFETY: loads the driver's library by its name, as everything that uses a GPU does.
    if !unsafe { sys::is_culib_present() } {
        return Err(device_error(
            "libcuda.so.1 is not there: install NVIDIA's driver, 580 or newer (in a container: --gpus all)".into(),
        ));
    }
    let mut found = 0;
    // SAFETY: writes one int where the pointer points, and needs nothing started before.
    checked("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut found) })?;
    if found < LEAST_DRIVER {
        let (found, least) = (version(found), version(LEAST_DRIVER));
        return Err(device_error(format!(
            "the driver carries CUDA {found}, but the kernels need {least}: install driver 580 or newer"
        )));
    }
    // SAFETY: takes no pointer; may be called any number of times.
    let code = unsafe { sys::cuInit(0) };
    let mut devices = 0;
    if code != CUresult::CUDA_ERROR_NO_DEVICE {
        checked("the driver does not start, is it of another version than its library? cuInit", code)?;
        // SAFETY: writes one int where the pointer points.
        checked("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut devices) })?;
    }
    match usize::try_from(devices) {
        Ok(devices) if devices > 0 => Ok((found, devices)),
        _ => Err(device_error(
            "the driver sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES (in a container: --gpus all)".into(),
        )),
    }
}

/// Of the device at `index`.
pub(super) fn handle(index: usize) -> Result<CUdevice, ComputeError> {
    let mut device = 0;
    let ordinal = i32::try_from(index).unwrap_or(i32::MAX);
    // SAFETY: writes one handle where the pointer points.
    checked("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    Ok(device)
}

pub(super) fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<i32, ComputeError> {
    let mut value = 0;
    // SAFETY: writes one int where the pointer points.
    checked("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

/// As people write it.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

pub(super) fn device_error(reason: String) -> ComputeError {
    ComputeError::Device { device: "cuda".into(), reason }
}

/// What a call of the driver returned, with its own words where it failed.
pub(super) fn checked(call: &str, code: CUresult) -> Result<(), ComputeError> {
    code.result().map_err(|error| device_error(format!("{call}: {}", words(error))))
}

fn words(error: DriverError) -> String {
    let (text, name) = (error.error_string(), error.error_name());
    let [text, name] = [text, name].map(|words| words.map_or("unknown error".into(), CStr::to_string_lossy));
    format!("{text} ({name})")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn facts(capability: [i32; 2]) -> DeviceFacts {
        DeviceFacts {
            index: 0,
            name: "NVIDIA H200".into(),
            capability,
            memory_bytes: 150_109_880_320,
            driver_version: 13_020,
        }
    }

    #[test]
    fn a_device_is_described_and_an_old_one_refused_by_what_it_is() {
        assert_eq!(facts([9, 0]).to_string(), "NVIDIA H200, sm_90, 139.8 GiB, driver for CUDA 13.2");
        for capability in [[8, 0], [8, 9], [10, 0], [12, 1]] {
            facts(capability).supported().unwrap();
        }
        let error = facts([7, 5]).supported().unwrap_err().to_string();
        assert!(error.contains("is sm_75") && error.contains("need sm_80"), "{error}");
    }

    /// Whatever this machine has: a list, or one line that says what to change.
    #[test]
    fn asking_never_panics() {
        match present() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(error) => {
                let line = error.to_string();
                assert!(line.starts_with("device cuda: ") && !line.contains('\n'), "{line}");
            }
        }
    }
}
