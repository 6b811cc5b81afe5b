//! Floor 7: what a person types; the only floor that prints.

pub mod demo;

use std::process::ExitCode;

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
