//! The `outrider` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrider::cli::run()
}
