//! The product's command line as a program that the tests can start.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrider::cli::run()
}
