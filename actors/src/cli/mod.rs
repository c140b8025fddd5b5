//! The command line: `outrider` and its subcommands.
//!
//! *Invariant:* a subcommand parses, calls and prints; what it prints about comes from the other crates.

mod bench;
mod calibrate;
mod devices;
mod generate;
mod models;
mod plan;
mod plan_file;
mod plan_remote;
mod search;
mod select;
mod serve;

use std::io::IsTerminal;

use clap::{Parser, Subcommand};

use outrider_devices::leave::leave;
use tracing_subscriber::EnvFilter;

pub use select::Selection;
pub(crate) use select::build_info;

/// Makes a language model answer faster on hardware you own: a small draft model rides ahead, the target model
/// verifies, each on the compute unit where it belongs. The text is exactly what the target alone would write.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the OpenAI API over HTTP (what `outrider` without a subcommand does).
    Serve(serve::ServeArguments),
    /// Write the answer to one prompt to stdout, and statistics to stderr.
    Generate(generate::GenerateArguments),
    /// List the compute units of this machine, and why one is unusable.
    Devices(devices::DevicesArguments),
    /// Look into model files.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Look into partition plans.
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Measure this machine with these models, so that plans can be chosen and their speed foreseen.
    Calibrate(calibrate::CalibrateArguments),
    /// Measure plans side by side on the same prompts.
    Bench(bench::BenchArguments),
}

/// Exit code of a run that failed.
const FAILED: u8 = 1;

/// Parses the arguments, runs, and ends the process, saying how it went: 0 done, 1 failed (the reason is on stderr), 2 wrong arguments.
#[expect(clippy::print_stderr, reason = "the command line's own output")]
pub fn run() -> ! {
    let arguments = Arguments::parse();
    let serving = matches!(arguments.command, None | Some(Command::Serve(_)));
    start_log(if serving { "info" } else { "warn" });
    let done = match arguments.command {
        None => serve::run(arguments.serve),
        Some(Command::Serve(arguments)) => serve::run(arguments),
        Some(Command::Generate(arguments)) => generate::run(arguments),
        Some(Command::Devices(arguments)) => devices::run(&arguments),
        Some(Command::Models(command)) => models::run(command),
        Some(Command::Plan(command)) => plan::run(command),
        Some(Command::Calibrate(arguments)) => calibrate::run(arguments),
        Some(Command::Bench(arguments)) => bench::run(arguments),
    };
    // Units' threads may still be in a GPU's driver, which must not be torn down under them.
    match done {
        Ok(()) => leave(0),
        Err(error) => {
            eprintln!("outrider: {error}");
            leave(FAILED)
        }
    }
}

/// Logs to stderr; `OUTRIDER_LOG` holds the filter, such as `debug` or `outrider=debug`.
fn start_log(level: &str) {
    let filter = EnvFilter::try_from_env("OUTRIDER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Runs a future inside an actix system.
fn in_system<T>(
    future: impl Future<Output = Result<T, CliError>> + 'static,
) -> Result<T, CliError> {
    actix::System::new().block_on(future)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    std::io::Write::write_all(&mut out, b"\n")?;
    Ok(())
}

/// Anything that ends a command, already worded for people.
type CliError = Box<dyn std::error::Error>;
