//! The driver as a launcher, on the stand-in for its library: order of work, copies in pieces, what is refused, what is given back.
#![allow(unsafe_code)] // Launches what must fail.

use std::process::Command;

use diffnr::compute::cuda;
use diffnr::compute::cuda::{Arguments, DeviceSlice, DeviceSum, Driver, Image, LaunchShape, Launcher, STAGING_BYTES};

use crate::carriers::{library, skipped};
use crate::stand_in;
use crate::values::{download, random, unwritten, upload};

/// Devices of the stand-in: all as late as may be, launches at once, copies at once. Whatever is not ordered comes in the wrong order on
/// one of them.
pub(crate) const GOOD: [usize; 3] = [0, 1, 2];
const OLD: usize = 3;
pub(crate) const SMALL: usize = 4;

/// Runs `work` where the executor can be built.
pub(crate) fn on_the_stand_in(test: &str, work: impl Fn()) {
    // Nothing is built on a GPU's machine, which need not have the sources.
    if std::env::var_os("DIFFNR_DEVICE").is_some() {
        return skipped(test, "a GPU's driver is loaded (DIFFNR_DEVICE)");
    }
    match library() {
        Ok(_) => work(),
        Err(reason) => skipped(test, &reason),
    }
}

fn each_good(test: &str, arena_bytes: usize, work: impl Fn(&dyn Launcher)) {
    on_the_stand_in(test, || {
        for device in GOOD {
            let driver = stand_in::driver(device, arena_bytes).unwrap();
            work(&driver);
            driver.synchronize().unwrap();
        }
    });
}

#[test]
fn an_emptied_driver_is_as_a_new_one() {
    on_the_stand_in("an emptied driver", || {
        let mut driver = stand_in::driver(0, 4096).unwrap();
        for value in [1.0, 2.0] {
            let buffer = DeviceSlice::allocate(&driver, 900).unwrap();
            assert_eq!(buffer.bytes().start, 0);
            assert!(download(&driver, buffer).iter().all(|value| value.is_nan()));
            // Under way still when the arena is taken back.
            buffer.fill(&driver, value).unwrap();
            driver.empty().unwrap();
        }
        assert!(driver.copy_out(0, &mut [0]).is_err());
    });
}

#[test]
fn work_takes_effect_in_the_order_in_which_it_is_asked_for() {
    each_good("the driver's order", 8 << 20, |launcher| {
        let n = 5000;
        // Whole numbers, of which every sum and product is exact.
        let [first, second] = [1, 2].map(|seed| random(n, seed).iter().map(|v| (64.0 * v).round()).collect::<Vec<_>>());
        let (a, b, c) = (upload(launcher, &first), unwritten(launcher, n), unwritten(launcher, n));
        b.fill(launcher, 0.0).unwrap();
        cuda::add_scaled(launcher, 1.0, a, b).unwrap();
        // Overwrites what the launch before still reads.
        a.copy_from(launcher, &second).unwrap();
        cuda::add_scaled(launcher, 10.0, a, b).unwrap();
        b.copy_to_slice(launcher, c).unwrap();
        b.fill(launcher, 7.0).unwrap();
        cuda::scale(launcher, 2.0, c).unwrap();
        let expected: Vec<f32> = first.iter().zip(&second).map(|(a, b)| 2.0 * (a + 10.0 * b)).collect();
        assert_eq!(download(launcher, c), expected);
        // What is asked for after a copy out does not show in it.
        let mut values = vec![0.0; n];
        b.copy_to(launcher, &mut values).unwrap();
        b.fill(launcher, 8.0).unwrap();
        assert_eq!((values, download(launcher, b)), (vec![7.0; n], vec![8.0; n]));
    });
}

/// More small copies than the staging has halves, none of them waited for.
#[test]
fn copies_do_not_overwrite_each_other_on_their_way() {
    each_good("the driver's staging", 8 << 20, |launcher| {
        let values: Vec<Vec<f32>> = (0..9).map(|seed| random(100, seed)).collect();
        let slices: Vec<DeviceSlice<f32>> = values.iter().map(|values| upload(launcher, values)).collect();
        let sum = DeviceSum::for_values(launcher, 100).unwrap();
        for (slice, values) in slices.iter().zip(&values) {
            assert_eq!(&download(launcher, *slice), values);
            cuda::count_not_finite(launcher, *slice, &sum).unwrap();
            assert_eq!(sum.read(launcher).unwrap(), 0.0);
        }
    });
}

#[test]
fn copies_larger_than_the_staging_go_in_pieces() {
    each_good("the driver's large copies", 4 * STAGING_BYTES, |launcher| {
        // A whole number of pieces, and a little more than four.
        for n in [STAGING_BYTES / 4, STAGING_BYTES / 2 + 5] {
            let mut values: Vec<f32> = (0..n).map(|i| (i % 65_521) as f32).collect();
            let slice = upload(launcher, &values);
            assert!(download(launcher, slice) == values);
            slice.part(n - 7..n).unwrap().fill(launcher, -1.0).unwrap();
            values[n - 7..].fill(-1.0);
            assert!(download(launcher, slice) == values);
        }
    });
}

#[test]
fn any_thread_may_use_it() {
    each_good("the driver on several threads", 8 << 20, |launcher| {
        let slices: Vec<DeviceSlice<f32>> = (0..4).map(|seed| upload(launcher, &random(3000, seed))).collect();
        std::thread::scope(|scope| {
            for slice in &slices {
                scope.spawn(|| (0..5).for_each(|_| cuda::scale(launcher, 2.0, *slice).unwrap()));
            }
        });
        for (seed, slice) in slices.iter().enumerate() {
            let expected: Vec<f32> = random(3000, seed as u64).into_iter().map(|value| 32.0 * value).collect();
            assert_eq!(download(launcher, *slice), expected);
        }
    });
}

/// Of dynamic shared memory a launch may ask for more than the 48 KiB that need no permission.
#[test]
fn shared_memory_is_permitted_up_to_the_devices_limit() {
    each_good("the driver's shared memory", 8 << 20, |launcher| {
        let (partials, total) = (DeviceSlice::upload(launcher, &[1.5_f64, 2.0]).unwrap(), upload(launcher, &[0.0; 2]));
        let arguments = Arguments::new().read(partials).value(2).write(total);
        let launch = |shared_bytes| {
            let shape = LaunchShape { grid: [1; 3], block: [256, 1, 1], shared_bytes };
            // SAFETY: the arguments of sum.cu, and room for one float64.
            unsafe { launcher.launch("sum_partials", shape, &arguments) }
        };
        launch(90 << 10).unwrap();
        let bits = download(launcher, total).iter().rev().fold(0, |bits, half| bits << 32 | u64::from(half.to_bits()));
        assert_eq!(f64::from_bits(bits), 3.5);
        let error = launch(200 << 10).unwrap_err().to_string();
        assert!(error.contains("kernel sum_partials") && error.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
    });
}

#[test]
fn what_fails_on_the_device_shows_when_it_is_waited_for() {
    each_good("the driver's failures", 8 << 20, |launcher| {
        // The driver's drop must not panic either; this one is spoilt.
        let driver = stand_in::driver(0, 4096).unwrap();
        let (partials, total) = (DeviceSlice::upload(&driver, &[1.0_f64]).unwrap(), upload(&driver, &[0.0; 2]));
        let arguments = Arguments::new().read(partials).value(1).write(total);
        let shape = LaunchShape { grid: [1; 3], block: [2000, 1, 1], shared_bytes: 0 };
        // SAFETY: the arguments of sum.cu; such a block is refused.
        let launched = unsafe { driver.launch("sum_partials", shape, &arguments) };
        let error = launched.and_then(|()| driver.synchronize()).unwrap_err().to_string();
        assert!(error.contains("unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)"), "{error}");
        launcher.synchronize().unwrap();
    });
}

fn refusal(driver: Result<Driver, diffnr::compute::ComputeError>) -> String {
    driver.unwrap_err().to_string()
}

#[test]
fn devices_images_and_arenas_that_cannot_be_are_refused() {
    on_the_stand_in("the driver's refusals", || {
        let contains = |error: String, parts: &[&str]| {
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        };
        contains(refusal(stand_in::driver(9, 4096)), &["no device 9", "there are 5"]);
        contains(refusal(stand_in::driver(OLD, 4096)), &["stand-in, old is sm_75", "sm_80"]);
        contains(refusal(stand_in::driver(0, 2 << 30)), &["2147483648 bytes are more than is free", "stand-in, lazy"]);
        contains(refusal(stand_in::driver(0, usize::MAX)), &["more than is free"]);
        let of = |image| refusal(Driver::with_images(0, 4096, &[stand_in::image(), image]));
        let image = Image { name: "odd", bytes: b"text", kernels: &[] };
        contains(of(image), &["image odd", "CUDA_ERROR_INVALID_IMAGE"]);
        let image = Image { name: "odd", kernels: &["no_such_kernel"], ..stand_in::image() };
        contains(of(image), &["kernel no_such_kernel", "CUDA_ERROR_NOT_FOUND"]);

        let driver = stand_in::driver(0, 4096).unwrap();
        let shape = LaunchShape { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
        // SAFETY: there is no such kernel.
        let error = unsafe { driver.launch("nothing", shape, &Arguments::new()) }.unwrap_err().to_string();
        contains(error, &["kernel nothing"]);
        assert_eq!(driver.description(), "stand-in, lazy, sm_90, 1.0 GiB, driver for CUDA 13.0");
    });
}

#[test]
fn everything_is_given_back() {
    on_the_stand_in("what the driver gives back", || {
        let driver = stand_in::driver(SMALL, 1 << 19).unwrap();
        assert!(stand_in::alive(SMALL as i32) > 0);
        upload(&driver, &random(1000, 1)).fill(&driver, 1.0).unwrap();
        // A second one finds what is left of the memory.
        let error = refusal(stand_in::driver(SMALL, 1 << 19));
        assert!(error.contains("524288 bytes are more than is free") && error.contains("of 1048576"), "{error}");
        drop(driver);
        assert_eq!(stand_in::alive(SMALL as i32), 0);
        stand_in::driver(SMALL, 1 << 19).unwrap();
        assert_eq!(stand_in::alive(SMALL as i32), 0);
    });
}

/// In a process of its own, whose driver says other things.
#[test]
fn doctor_says_what_is_there() {
    on_the_stand_in("doctor with the driver's stand-in", || {
        let found = |variables: &[(&str, &str)]| -> serde_json::Value {
            let output = Command::new(env!("CARGO_BIN_EXE_diffnr"))
                .args(["doctor", "--json"])
                .env("LD_LIBRARY_PATH", stand_in::folder())
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            report["checks"]["cuda_kernels"].clone()
        };
        // This stand-in has no kernels of its own, so that none of its devices passes; tests/daemon has one with them.
        let all = found(&[]);
        let text = all["found"].as_str().unwrap();
        assert!(all["state"] == "missing" && text.contains("stand-in, old is sm_75"), "{text}");
        let devices = all["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 5);
        assert!(devices[0]["self_test"]["failed"].is_string(), "{}", devices[0]);
        let old = found(&[("DIFFNR_STAND_IN_VERSION", "12080")]);
        let text = old["found"].as_str().unwrap();
        assert!(old["state"] == "missing" && text.contains("12.8") && text.contains("driver 580 or newer"), "{text}");
        let none = found(&[("DIFFNR_STAND_IN_DEVICES", "0")]);
        let text = none["found"].as_str().unwrap();
        assert!(
            none["state"] == "missing" && text.contains("no GPU") && text.contains("CUDA_VISIBLE_DEVICES"),
            "{text}"
        );
    });
}
