//! `outrider devices`: the compute units of this machine, and why one is unusable.

use clap::Args;
use outrider_devices::discovery::Machine;
use outrider_devices::gpu::{self, Discovery};

use super::{CliError, print_json};
use crate::gpu_tuning;

/// How to list.
#[derive(Args, Debug)]
pub(super) struct DevicesArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Measure how to shape the kernels of GPUs that were never used, and keep it, before they are listed. Whatever uses a GPU
    /// for the first time does so by itself.
    #[arg(long)]
    tune: bool,
}

/// All units: the processor's fields, and the GPUs beside them.
#[derive(serde::Serialize)]
struct Units {
    #[serde(flatten)]
    machine: Machine,
    gpus: Discovery,
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(arguments: &DevicesArguments) -> Result<(), CliError> {
    if arguments.tune {
        gpu_tuning::tune_all()?;
    }
    let units = Units { machine: Machine::here(), gpus: gpu::discover() };
    if arguments.json {
        return print_json(&units);
    }
    print!("{}{}", units.machine, units.gpus);
    Ok(())
}
