//! `outrider devices`: the compute units of this machine.

use clap::Args;
use outrider_devices::discovery::Machine;

use super::{CliError, print_json};

/// How to list.
#[derive(Args, Debug)]
pub(super) struct DevicesArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(arguments: &DevicesArguments) -> Result<(), CliError> {
    let machine = Machine::here();
    if arguments.json {
        return print_json(&machine);
    }
    print!("{machine}");
    Ok(())
}
