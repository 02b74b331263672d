//! How errors are classed and which exit code each class of failure ends with.

#![forbid(unsafe_code)]

/// What the runtime does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Passing: try the same again.
    Retry,
    /// Go on with less (a rung of the degrade ladder), and count it.
    Degrade,
    /// Nothing sensible can be done: stop and say what to change.
    Stop,
}

/// An error of a stage that knows its class.
pub trait Classed: std::error::Error {
    /// The class of this error.
    fn class(&self) -> ErrorClass;
}

/// Documented exit codes of the `diffnr` binary.
pub mod exit {
    /// All done.
    pub const OK: u8 = 0;
    /// A failure that no other code names.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong (clap's own code).
    pub const USAGE: u8 = 2;
    /// The settings file is wrong.
    pub const CONFIG: u8 = 3;
    /// Input data (scan, volume, mask) is missing, damaged or does not fit.
    pub const INPUT: u8 = 4;
    /// The geometry cannot be reconstructed.
    pub const GEOMETRY: u8 = 5;
    /// The plan does not fit the memory limit.
    pub const BUDGET: u8 = 6;
    /// Shared memory: not there, of another version, taken, or too small.
    pub const SHARED_MEMORY: u8 = 7;
    /// The device asked for is not there.
    pub const DEVICE: u8 = 8;
    /// A result could not be written.
    pub const OUTPUT: u8 = 9;
}
