//! Which device carries the operations out: chosen by name, sized by trial, then made.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use firmware_bridge::memory::SharedMemory;

use super::cpu::CpuCompute;
use super::cuda::{CudaCompute, DeviceFacts, Driver, Registration, Tally, present};
use super::{ComputeError, Operations};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that passes the self-test ([`crate::self_test`]); where none does, the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index, as the driver counts them; else nothing.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => to.write_str("auto"),
            Self::Cpu => to.write_str("cpu"),
            Self::Cuda(0) => to.write_str("cuda"),
            Self::Cuda(index) => write!(to, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(Self::Cuda(index)),
                _ => Err(format!("\"{text}\" is no device; use auto, cpu, cuda or cuda:N (the GPU with index N)")),
            },
        }
    }
}

/// A device that is there.
#[derive(Debug, Clone)]
pub enum Device {
    /// This machine's processor.
    Cpu {
        /// Threads; 0: one for each processor this process may use.
        threads: usize,
    },
    /// A GPU.
    Cuda(DeviceFacts),
}

/// On a device, what is uploaded at its first use instead of being allocated before: filters, the learned prior, a field's levels.
const UPLOADED_LATER: usize = 4 << 20;

impl Device {
    /// The GPUs that there are, or the one with this index, whether the kernels run on them or not; at least one.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where there is none.
    pub fn gpus(index: Option<usize>) -> Result<Vec<DeviceFacts>, ComputeError> {
        let mut present = present()?;
        let count = present.len();
        present.retain(|facts| index.is_none_or(|index| index == facts.index));
        match index {
            Some(index) if present.is_empty() => Err(ComputeError::Device {
                device: "cuda".into(),
                reason: format!("there is no device {index}: there are {count}, counted from 0"),
            }),
            _ => Ok(present),
        }
    }

    /// `cpu` or `cuda`, as status and headers have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// A carrier to plan with: it knows what operations take. On the CPU it is as good as any other; on a GPU it only counts what is
    /// allocated, and [`Device::ready`] makes one that works.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where threads cannot be started.
    pub fn planner(&self) -> Result<Box<dyn Operations>, ComputeError> {
        Ok(match self {
            Self::Cpu { threads } => Box::new(CpuCompute::new(*threads)?),
            Self::Cuda(facts) => Box::new(CudaCompute::new(Box::new(Tally::new(facts.to_string())))),
        })
    }

    /// Bytes of device memory that `take` takes, by trial; 0 on the CPU, where it is not called.
    ///
    /// # Errors
    /// As `take`.
    pub fn arena_bytes<E>(&self, take: impl FnOnce(&mut dyn Operations) -> Result<(), E>) -> Result<usize, E> {
        let Self::Cuda(facts) = self else { return Ok(0) };
        let tally = Tally::new(facts.to_string());
        take(&mut CudaCompute::new(Box::new(tally.clone())))?;
        Ok(tally.bytes() + UPLOADED_LATER)
    }

    /// A carrier with so many bytes of device memory (of no account on the CPU).
    ///
    /// # Errors
    /// [`ComputeError::Device`] where threads cannot be started or the memory is not free.
    pub fn carrier(&self, arena_bytes: usize) -> Result<Box<dyn Operations>, ComputeError> {
        Ok(match self {
            Self::Cpu { threads } => Box::new(CpuCompute::new(*threads)?),
            Self::Cuda(facts) => Box::new(CudaCompute::new(Box::new(Driver::new(facts.index, arena_bytes)?))),
        })
    }

    /// Lets the device write shared memory by itself; `None` where it is the CPU. The driver has been started.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the driver refuses.
    pub fn register(
        &self,
        memory: impl SharedMemory + Send + Sync + 'static,
    ) -> Result<Option<Registration>, ComputeError> {
        match self {
            Self::Cpu { .. } => Ok(None),
            Self::Cuda(facts) => Registration::new(facts.index, memory).map(Some),
        }
    }

    /// A carrier, and what `take` makes with it. On a GPU `take` is called twice: first to see how much memory it takes.
    ///
    /// # Errors
    /// As [`Device::carrier`] and `take`.
    pub fn ready<T, E: From<ComputeError>>(
        &self,
        mut take: impl FnMut(&mut dyn Operations) -> Result<T, E>,
    ) -> Result<(Box<dyn Operations>, T), E> {
        let bytes = self.arena_bytes(|compute| take(compute).map(drop))?;
        let mut compute = self.carrier(bytes)?;
        let taken = take(&mut *compute)?;
        Ok((compute, taken))
    }
}

impl dyn Operations + '_ {
    /// Runs `work` where operations begin soonest (see [`super::Compute::within`]) and returns what it returns.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let (mut work, mut result) = (Some(work), None);
        self.within(&mut || result = work.take().map(|work| work()));
        match result {
            Some(result) => result,
            None => unreachable!("`within` runs its work"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!((text.parse(), choice.to_string()), (Ok(choice), text.to_string()));
        }
        for text in ["", "CUDA", "cuda:", "cuda:x", "cuda:-1", "gpu"] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("use auto, cpu, cuda or cuda:N"), "{text}");
        }
    }

    #[test]
    fn memory_is_counted_by_trial() {
        let facts = DeviceFacts {
            index: 0,
            name: "a GPU".into(),
            capability: [9, 0],
            memory_bytes: 1 << 30,
            driver_version: 13_000,
        };
        let take = |compute: &mut dyn Operations| -> Result<(), ComputeError> {
            let (one, two) = (compute.buffer("one", 1000)?, compute.buffer("two", 500)?);
            compute.copy(one.values().part(0..500), { two }.values_mut())
        };
        let bytes = Device::Cuda(facts).arena_bytes(take).unwrap();
        // Each buffer begins at a multiple of 256 bytes and ends with a gap of one at least.
        assert_eq!(bytes - UPLOADED_LATER, 4096 + 2048);
        assert_eq!(Device::Cpu { threads: 1 }.arena_bytes(take).unwrap(), 0);
    }

    #[test]
    fn work_is_done_within_the_carriers_threads() {
        let (compute, buffer) = Device::Cpu { threads: 2 }.ready(|compute| compute.buffer("three", 3)).unwrap();
        assert_eq!(compute.install(rayon::current_num_threads), 2);
        assert_eq!(buffer.len(), 3);
    }
}
