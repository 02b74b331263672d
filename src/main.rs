//! The `diffnr` binary: arguments in, exit code out.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    diffnr::cli::main()
}
