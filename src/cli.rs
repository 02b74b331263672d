//! The command line: one file a subcommand.

#![forbid(unsafe_code)]

/// Prints a line; a reader that has gone away (`| head`) is no reason to panic.
macro_rules! say {
    ($($part:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($part)*)));
    }};
}

mod curate;
mod doctor;
mod evaluate;
mod plan;
mod reconstruct;
mod repair;
mod replay;
mod serve;
mod simulate;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::exit;

/// Cone-beam CT reconstruction beside the gantry.
#[derive(Debug, Parser)]
#[command(name = "diffnr", version, about, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a scan from a CT volume or a built-in phantom
    Simulate(Box<simulate::Arguments>),
    /// Reconstruct a scan on disk
    Reconstruct(Box<reconstruct::Arguments>),
    /// Repair a volume with SliceFixer alone
    Repair(Box<repair::Arguments>),
    /// Compare a volume with a reference
    Evaluate(evaluate::Arguments),
    /// Make training pairs for SliceFixer from CT volumes and phantoms
    Curate(Box<curate::Arguments>),
    /// Run the daemon beside the gantry
    Serve(serve::Arguments),
    /// Play a scan into the daemon's ring
    Replay(replay::Arguments),
    /// Read published volumes and status
    Watch(watch::Arguments),
    /// Print schedule and memory budget of a settings file
    Plan(plan::Arguments),
    /// Say what this machine can run, and what to install for more
    Doctor(doctor::Arguments),
}

/// A command's failure: what to tell the user and the exit code to end with (see [`crate::error::exit`]).
#[derive(Debug)]
pub struct Failure {
    /// Message that names field, value and what to change.
    pub message: String,
    /// One of [`crate::error::exit`].
    pub code: u8,
}

impl Failure {
    /// A failure with the given exit code; the message is the error's chain of causes.
    pub fn new(code: u8, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            // Many errors quote their cause already.
            let words = cause.to_string();
            if !message.ends_with(&words) {
                message = format!("{message}: {words}");
            }
            source = cause.source();
        }
        Self { message, code }
    }
}

/// Parses the arguments, runs the subcommand and maps its outcome to an exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome: Result<(), Failure> = match &arguments.command {
        Command::Simulate(arguments) => simulate::run(arguments),
        Command::Reconstruct(arguments) => reconstruct::run(arguments),
        Command::Repair(arguments) => repair::run(arguments),
        Command::Evaluate(arguments) => evaluate::run(arguments),
        Command::Curate(arguments) => curate::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Replay(arguments) => replay::run(arguments),
        Command::Watch(arguments) => watch::run(arguments),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => {
            eprintln!("diffnr: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
