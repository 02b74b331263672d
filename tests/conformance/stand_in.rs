//! The stand-in for libcuda.so (`kernels/host/driver.cpp`), as the driver's library of this process.
#![allow(unsafe_code)] // Loads libraries.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use diffnr::compute::ComputeError;
use diffnr::compute::cuda::{Driver, Image};
use libloading::Library;

use crate::carriers::{build, library};

type Begin = unsafe extern "C" fn(*const (), *const ());
type Spoil = unsafe extern "C" fn(i32, i32);
type Alive = unsafe extern "C" fn(i32) -> i32;

/// Stays loaded, as the executor's library.
struct StandIn {
    folder: PathBuf,
    driver: Library,
    _executor: Library,
}

fn stand_in() -> &'static StandIn {
    static STAND_IN: OnceLock<StandIn> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("libcuda.so");
        build("driver.cpp", &path, &["-Wl,-soname,libcuda.so"]).unwrap();
        // SAFETY: the libraries do nothing at loading but register kernels. Whoever asks for "libcuda.so" from now on is given this one, which
        // the system's loader knows by that name.
        let (driver, executor) = unsafe { (Library::new(&path).unwrap(), Library::new(library().unwrap()).unwrap()) };
        // SAFETY: the functions are handed on by address, as the stand-in declares them.
        unsafe {
            let [launch, bytes] = [&b"diffnr_executor_launch"[..], b"diffnr_executor_argument_bytes"]
                .map(|name| *executor.get::<*const ()>(name).unwrap());
            driver.get::<Begin>(b"diffnr_stand_in_begin").unwrap()(launch, bytes);
        }
        StandIn { folder, driver, _executor: executor }
    })
}

/// The folder of the stand-in, for another process.
pub(crate) fn folder() -> &'static Path {
    &stand_in().folder
}

/// What of a device was not given back.
pub(crate) fn alive(device: i32) -> i32 {
    // SAFETY: as `kernels/host/driver.cpp` declares it.
    unsafe { stand_in().driver.get::<Alive>(b"diffnr_stand_in_alive").unwrap()(device) }
}

/// What is wrong with the graphs of a device from now on: 0: nothing, 1: they take memory, 2: none can be made.
pub(crate) fn spoil_graphs(device: i32, how: i32) {
    // SAFETY: as `kernels/host/driver.cpp` declares it.
    unsafe { stand_in().driver.get::<Spoil>(b"diffnr_stand_in_spoil_graphs").unwrap()(device, how) }
}

/// One image, which the stand-in looks at no further, with all kernels of the sources.
pub(crate) fn image() -> Image {
    static KERNELS: OnceLock<Vec<&'static str>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        let sources = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
        let paths = sources.map(|source| source.unwrap().path());
        let mut kernels = Vec::new();
        for path in paths.filter(|path| path.extension().is_some_and(|ending| ending == "cu")) {
            let text = std::fs::read_to_string(path).unwrap();
            let lines = text.lines().filter_map(|line| line.strip_prefix("REGISTER_KERNEL(")?.strip_suffix(')'));
            kernels.extend(lines.map(|name| &*name.to_string().leak()));
        }
        kernels
    });
    // What a fat binary begins with.
    Image { name: "all", bytes: &[0x50, 0xed, 0x55, 0xba], kernels }
}

/// The driver on a device of the stand-in.
pub(crate) fn driver(device: usize, arena_bytes: usize) -> Result<Driver, ComputeError> {
    stand_in();
    Driver::with_images(device, arena_bytes, &[image()])
}
