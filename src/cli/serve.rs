//! `diffnr serve`.

use super::Failure;

/// Arguments of `diffnr serve`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the subcommand.
///
/// # Errors
/// See [`crate::error::exit`].
pub fn run(_arguments: &Arguments) -> Result<(), Failure> {
    Ok(())
}
