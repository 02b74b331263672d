//! The test that a device passes before it is given a scan: that it passes where all is well, and that it notices what is not.
#![allow(unsafe_code)] // Hands launches on.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use diffnr::compute::ComputeError;
use diffnr::compute::cuda::{Arguments, CudaCompute, LaunchShape, Launcher};
use diffnr::self_test;

use crate::carriers::on_each;

#[test]
fn a_sound_device_passes() {
    on_each("the self-test", |carrier| {
        carrier.run_whole(|compute| {
            let passed = self_test::compare(compute).unwrap();
            for agreement in &passed.agreements {
                println!(
                    "{}, self-test, {}: within {:.1e} of {:.0e}",
                    carrier.name, agreement.case, agreement.apart, agreement.limit
                );
            }
            println!("{}: {passed}", carrier.name);
            passed.agreements.iter().map(|agreement| vec![agreement.apart as f32]).collect()
        });
    });
}

/// A device that leaves one kernel's launches out.
struct LeavesOut {
    of: Box<dyn Launcher>,
    kernel: &'static str,
}

impl Launcher for LeavesOut {
    hands_on!();

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        self.of.copy_out(offset, to)
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        if kernel == self.kernel {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.of.launch(kernel, shape, arguments) }
    }
}

/// A device of which every second large read differs in the last bit of one value.
struct FlipsABit {
    of: Box<dyn Launcher>,
    reads: AtomicUsize,
}

impl Launcher for FlipsABit {
    hands_on!();

    fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), ComputeError> {
        self.of.copy_out(offset, to)?;
        if to.len() > 4096 && self.reads.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            to[(to.len() / 2) & !3] ^= 1;
        }
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: LaunchShape,
        arguments: &Arguments,
    ) -> Result<(), ComputeError> {
        // SAFETY: the caller's promise.
        unsafe { self.of.launch(kernel, shape, arguments) }
    }
}

/// Kernels of each of the cases. All that the test launches were tried once, one at a time: docs/gpu.md names those that are not noticed.
#[test]
fn a_kernel_that_does_nothing_is_noticed() {
    on_each("the self-test on a device that is not sound", |carrier| {
        for (kernel, case) in [
            ("weight_projections", "FDK"),
            ("add_total_variation_gradient", "ASD-POCS"),
            ("crc32c", "values as they are"),
            ("line_integrals", "values as they are"),
            ("replace_bad_pixels", "values as they are"),
            ("add_slices_across_z", "Gaussians"),
            ("add_network_gradient", "field"),
        ] {
            let mut compute = CudaCompute::new(Box::new(LeavesOut { of: carrier.launcher(), kernel }));
            let failed = self_test::compare(&mut compute).unwrap_err().to_string();
            assert!(failed.contains(&format!("failed its self-test, {case}: differs")), "{kernel}: {failed}");
        }
    });
}

/// What is not the same twice is noticed, however near it is.
#[test]
fn bits_that_change_are_noticed() {
    on_each("the self-test on a device that is not the same twice", |carrier| {
        let flips = FlipsABit { of: carrier.launcher(), reads: AtomicUsize::new(0) };
        let failed = self_test::compare(&mut CudaCompute::new(Box::new(flips))).unwrap_err().to_string();
        assert!(failed.contains("failed its self-test, FDK: the same twice gives different bits"), "{failed}");
    });
}
