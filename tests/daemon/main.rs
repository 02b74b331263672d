//! The daemon as its users meet it: real processes (C gantry, daemon, reader), judged by exit codes, JSON and saved volumes.
#![allow(clippy::unwrap_used)]

mod command_line;
mod device;
mod end_to_end;
mod faults;
mod optimised;
mod repaired;
mod restarts;
mod support;
