//! What carries kernels out on this machine.
#![allow(unsafe_code)] // Hands launches on.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use diffnr::compute::cuda::{Arguments, Captured, CudaCompute, Driver, Executor, LaunchShape, Launcher, Tape, Turns};
use diffnr::compute::{ComputeError, Memory as _};

use crate::stand_in;

/// Device memory of a test.
const ARENA_BYTES: usize = 8 << 20;

type Make = Box<dyn Fn() -> Box<dyn Launcher> + Send + Sync>;

/// One carrier in all its variants.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    variants: Vec<Make>,
}

impl Carrier {
    /// What `work` returns on every variant, which must be the same bits.
    pub(crate) fn run(&self, work: impl Fn(&dyn Launcher) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        self.same_bits(self.variants.iter().map(|make| {
            let launcher = make();
            let result = work(launcher.as_ref());
            launcher.synchronize().unwrap();
            result
        }))
    }

    /// The same of the whole carrier of the runtime.
    pub(crate) fn run_whole(&self, work: impl Fn(&mut CudaCompute) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        self.same_bits(self.variants.iter().map(|make| {
            let mut compute = CudaCompute::new(make());
            let result = work(&mut compute);
            compute.finish().unwrap();
            result
        }))
    }

    fn same_bits(&self, mut results: impl Iterator<Item = Vec<Vec<f32>>>) -> Vec<Vec<f32>> {
        let first = results.next().unwrap();
        let bits = |buffers: &[Vec<f32>]| -> Vec<Vec<u32>> {
            buffers.iter().map(|buffer| buffer.iter().map(|value| value.to_bits()).collect()).collect()
        };
        for other in results {
            assert!(bits(&other) == bits(&first), "{}: variants differ in bits", self.name);
        }
        first
    }

    /// A launcher for a test that compares nothing.
    pub(crate) fn launcher(&self) -> Box<dyn Launcher> {
        self.variants[0]()
    }
}

/// Runs `test` on every carrier of this machine.
pub(crate) fn on_each(test: &str, work: impl Fn(&Carrier)) {
    match carriers() {
        Ok(carriers) => carriers.iter().for_each(work),
        Err(reason) => skipped(test, reason),
    }
}

pub(crate) fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test} on the kernel executor: {reason}\n");
    // Not by eprintln, of which the test harness shows nothing where tests pass.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn carriers() -> &'static Result<Vec<Carrier>, String> {
    static CARRIERS: OnceLock<Result<Vec<Carrier>, String>> = OnceLock::new();
    CARRIERS.get_or_init(|| {
        // On a GPU that alone: its machine need have no compiler, and the executor has had its turn where the tests were built.
        if std::env::var_os("DIFFNR_DEVICE").is_some() {
            return Ok(vec![driver()]);
        }
        let library = library()?;
        let variant = |workers, turns| -> Make {
            let library = library.clone();
            Box::new(move || Box::new(Executor::load(&library, ARENA_BYTES, workers, turns).unwrap()))
        };
        let variants = vec![variant(1, Turns::Ascending), variant(3, Turns::Ascending), variant(2, Turns::Descending)];
        Ok(vec![Carrier { name: "kernel executor", variants }, driver()])
    })
}

/// The driver: on the GPU that `DIFFNR_DEVICE` names by its index, else on the stand-in, whose first device does everything as late as it may.
fn driver() -> Carrier {
    if let Some(index) = std::env::var_os("DIFFNR_DEVICE") {
        let index: usize = index.to_str().unwrap().parse().unwrap();
        let variant = || -> Make { Box::new(move || Box::new(Lent::of(index))) };
        // Twice the same, so that what hangs on the order of threads may show.
        return Carrier { name: "driver", variants: vec![variant(), variant()] };
    }
    let make = || -> Box<dyn Launcher> { Box::new(stand_in::driver(0, ARENA_BYTES).unwrap()) };
    Carrier { name: "driver on its stand-in", variants: vec![Box::new(make)] }
}

/// A driver that is lent to a test and stays for the next one: to make it takes longer than most tests.
struct Lent {
    of: Arc<Driver>,
}

impl Lent {
    fn of(index: usize) -> Self {
        static DRIVERS: Mutex<Vec<Arc<Driver>>> = Mutex::new(Vec::new());
        let mut drivers = DRIVERS.lock().unwrap_or_else(PoisonError::into_inner);
        for driver in &mut *drivers {
            if let Some(free) = Arc::get_mut(driver) {
                free.empty().unwrap();
                return Self { of: driver.clone() };
            }
        }
        let mut driver = Driver::new(index, ARENA_BYTES).unwrap();
        driver.empty().unwrap();
        drivers.push(Arc::new(driver));
        Self { of: drivers[drivers.len() - 1].clone() }
    }
}

/// Hands on to `of` what every launcher does, but for launches and copies to the host.
macro_rules! hands_on {
    () => {
        fn description(&self) -> String {
            self.of.description()
        }
        fn allocate(&self, bytes: usize) -> Result<usize, ComputeError> {
            self.of.allocate(bytes)
        }
        fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), ComputeError> {
            self.of.copy_in(offset, from)
        }
        unsafe fn begin_copy_out(&self, offset: usize, to: NonNull<u8>, bytes: usize) -> Result<(), ComputeError> {
            // SAFETY: the caller's promise.
            unsafe { self.of.begin_copy_out(offset, to, bytes) }
        }
        fn end_copy_out(&self) -> Result<(), ComputeError> {
            self.of.end_copy_out()
        }
        fn copy(&self, from: usize, to: usize, bytes: usize) -> Result<(), ComputeError> {
            self.of.copy(from, to, bytes)
        }
        fn fill(&self, bytes: Range<usize>, pattern: u32) -> Result<(), ComputeError> {
            self.of.fill(bytes, pattern)
        }
        fn synchronize(&self) -> Result<(), ComputeError> {
            self.of.synchronize()
        }
    };
}

impl Launcher for Lent {
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
        // SAFETY: the caller's promise.
        unsafe { self.of.launch(kernel, shape, arguments) }
    }
    fn capture(&self, tape: &Tape) -> Result<Captured, ComputeError> {
        self.of.capture(tape)
    }
    fn replay(&self, captured: Captured) -> Result<(), ComputeError> {
        self.of.replay(captured)
    }
    fn discard(&self, captured: Captured) {
        self.of.discard(captured);
    }
}

/// The executor's library: that of `DIFFNR_KERNEL_EXECUTOR`, or built now by the C++ compiler (`CXX`, else `c++`).
pub(crate) fn library() -> Result<PathBuf, String> {
    static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    LIBRARY.get_or_init(built_library).clone()
}

fn built_library() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("DIFFNR_KERNEL_EXECUTOR") {
        return Ok(path.into());
    }
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{}.so", std::process::id()));
    build("library.cpp", &library, &[])?;
    Ok(library)
}

/// Compiles a file of `kernels/host` as a shared library.
pub(crate) fn build(source: &str, library: &Path, more: &[&str]) -> Result<(), String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host").join(source);
    // The same flags as in the Makefile.
    let output = Command::new(&compiler)
        .args("-std=c++17 -O2 -g1 -fPIC -shared -pthread -ffp-contract=off -Wno-unknown-pragmas -o".split(' '))
        .args([library, &source])
        .args(more)
        .output()
        .map_err(|error| format!("no C++ compiler ({compiler}: {error}); install one or set CXX"))?;
    // Sources that do not compile are a fault of theirs, not a lack of the machine's.
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
