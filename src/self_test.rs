//! Whether a device computes as the CPU does: a small scan, reconstructed on both by every method, before the device is given a real one.
//!
//! A GPU whose driver, memory or kernels are not sound makes volumes that look like volumes. So a GPU is taken only once it has shown here that
//! it agrees with the CPU's operations, which share no code with the kernels, and with itself: all of it is done twice, and the second time has
//! to give the same bits. It takes a moment at the start, and nothing of it stays.

#![forbid(unsafe_code)]

mod cases;

use std::fmt;
use std::time::Instant;

use crate::compute::cpu::CpuCompute;
use crate::compute::device::{Device, DeviceChoice};
use crate::compute::{Compute as _, ComputeError, Operations};
use cases::CASES;

/// Device memory of the test; it also passes with an eighth (tests/conformance).
const ARENA_BYTES: usize = 64 << 20;

/// How far a device came from the CPU in one case.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// What was computed.
    pub case: &'static str,
    /// Root of the sum of squared differences over that of the CPU's values.
    pub apart: f64,
    /// The most that rounding in another order explains.
    pub limit: f64,
}

/// What a device showed.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SelfTest {
    /// One of each case.
    pub agreements: Vec<Agreement>,
    /// How long it took, the CPU's part included.
    pub seconds: f64,
}

impl fmt::Display for SelfTest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let farthest = self.agreements.iter().map(|agreement| agreement.apart).fold(0.0, f64::max);
        write!(
            to,
            "{} small reconstructions within {farthest:.0e} of the CPU's, twice the same bits, {:.1} s",
            self.agreements.len(),
            self.seconds
        )
    }
}

/// Holds a carrier against the CPU.
///
/// # Errors
/// [`ComputeError::Device`] naming the first case that fails and how.
pub fn compare(compute: &mut dyn Operations) -> Result<SelfTest, ComputeError> {
    let began = Instant::now();
    let mut cpu = CpuCompute::new(1)?;
    let mut agreements = Vec::with_capacity(CASES.len());
    for case in CASES {
        let failed = |device: String, why: String| ComputeError::Device {
            device,
            reason: format!("failed its self-test, {}: {why}", case.name),
        };
        let mut on_device = || case.run(compute).map_err(|error| failed(compute.provider(), error.to_string()));
        let (given, again) = (on_device()?, on_device()?);
        let expected = case.run(&mut cpu).map_err(|error| failed(cpu.provider(), error.to_string()))?;
        let agreement = Agreement { case: case.name, apart: apart(&given, &expected), limit: case.limit };
        // A result that is no number is not within anything.
        let agrees = agreement.apart <= agreement.limit;
        if !agrees {
            let Agreement { apart, limit, .. } = agreement;
            let why = format!("differs from the CPU's result by {apart:.1e} of its norm (at most {limit:.0e})");
            return Err(failed(compute.provider(), why));
        }
        if given.iter().map(|value| value.to_bits()).ne(again.iter().map(|value| value.to_bits())) {
            return Err(failed(compute.provider(), "the same twice gives different bits".into()));
        }
        agreements.push(agreement);
    }
    Ok(SelfTest { agreements, seconds: began.elapsed().as_secs_f64() })
}

/// Root of the sum of squared differences over that of `expected`.
fn apart(given: &[f32], expected: &[f32]) -> f64 {
    if given.len() != expected.len() {
        return f64::INFINITY;
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut given.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / squares(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}

/// Tests a device; on the CPU there is nothing that it shows.
///
/// # Errors
/// As [`compare`], and [`ComputeError::Device`] where the device cannot be started.
pub fn test(device: &Device) -> Result<SelfTest, ComputeError> {
    compare(&mut *device.carrier(ARENA_BYTES)?)
}

/// The device asked for, with a line that says what was taken and how its test went, where there is something to say. `tests`: whether a GPU is
/// tested.
///
/// # Errors
/// [`ComputeError::Device`] where a GPU was asked for by name and is not there, or the kernels do not run on it or fail the test.
pub fn choose(choice: DeviceChoice, threads: usize, tests: bool) -> Result<(Device, Option<String>), ComputeError> {
    let cpu = Device::Cpu { threads };
    match choice {
        DeviceChoice::Cpu => Ok((cpu, None)),
        DeviceChoice::Cuda(index) => gpu(Some(index), tests).map(|(device, told)| (device, Some(told))),
        DeviceChoice::Auto => Ok(match gpu(None, tests) {
            Ok((device, told)) => (device, Some(format!("device auto: {told}"))),
            Err(why) => (cpu, Some(format!("device auto: running on the CPU ({why})"))),
        }),
    }
}

/// The GPU with this index or, where there is none, the first that will do; else why the first of them will not.
fn gpu(index: Option<usize>, tests: bool) -> Result<(Device, String), ComputeError> {
    let mut refused = None;
    for facts in Device::gpus(index)? {
        let outcome = facts.supported().and_then(|()| {
            let named = format!("cuda:{}, {}", facts.index, facts.name);
            let device = Device::Cuda(facts);
            let told = match tests {
                true => format!("{named}: passed its self-test ({})", test(&device)?),
                false => format!("{named}: not tested"),
            };
            Ok((device, told))
        });
        match outcome {
            Ok(taken) => return Ok(taken),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| ComputeError::Device { device: "cuda".into(), reason: "there is no GPU".into() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::compute::cuda::present;

    /// Any number of threads gives the same bits, so nothing is apart.
    #[test]
    fn the_cpu_agrees_with_itself() {
        let passed = compare(&mut CpuCompute::new(2).unwrap()).unwrap();
        assert_eq!(passed.agreements.len(), CASES.len());
        assert!(passed.agreements.iter().all(|agreement| agreement.apart == 0.0), "{passed:?}");
        println!("three rounds on the CPU: {:.3} s", passed.seconds);
    }

    #[test]
    fn what_is_no_number_or_too_short_is_apart() {
        assert_eq!(apart(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((apart(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-12);
        assert!(apart(&[f32::NAN, 4.0], &[3.0, 4.0]).is_nan());
        assert_eq!(apart(&[3.0], &[3.0, 4.0]), f64::INFINITY);
    }

    /// A GPU is nothing that a test may count on, nor its absence; what is said agrees with what is there.
    #[test]
    fn what_was_taken_is_told() {
        let (device, told) = choose(DeviceChoice::Auto, 1, true).unwrap();
        let told = told.unwrap();
        match (present(), device) {
            (Err(why), Device::Cpu { threads: 1 }) => assert!(told.contains(&format!("on the CPU ({why})")), "{told}"),
            (Ok(_), Device::Cpu { .. }) => assert!(told.contains("self-test") || told.contains("sm_"), "{told}"),
            (Ok(_), Device::Cuda(_)) => assert!(told.contains("passed its self-test"), "{told}"),
            (Err(why), device) => panic!("{device:?}: {why}"),
        }
        assert!(matches!(choose(DeviceChoice::Cpu, 3, true).unwrap(), (Device::Cpu { threads: 3 }, None)));
        // No machine has so many.
        assert!(choose(DeviceChoice::Cuda(1000), 1, true).is_err());
    }
}
