//! The command line: `outrider` and its subcommands.
//!
//! *Invariant:* a subcommand parses, calls and prints; what it prints about comes from the other crates.

mod bench;
mod calibrate;
mod config;
mod devices;
mod doctor;
mod generate;
mod logging;
mod models;
mod plan;
mod plan_file;
mod plan_remote;
mod search;
mod select;
mod serve;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use outrider_devices::leave::leave;
use outrider_plans::UnitId;

pub use calibrate::CalibrationPlace;
pub use select::Selection;
pub(crate) use select::build_info;
use settings::Settings;
pub use settings::SettingsError;

use crate::unit::DeviceFactory;

/// Makes a language model answer faster on hardware you own: a small draft model rides ahead, the target model
/// verifies, each on the compute unit where it belongs. The text is exactly what the target alone would write.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file. Default: ./outrider.toml, else /etc/outrider/outrider.toml, if there is one.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_CONFIG", global = true)]
    config: Option<PathBuf>,
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
    /// Check the configuration, or show what holds and why.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Try everything that a service needs on this machine, and say what to do where it fails.
    Doctor(Box<doctor::DoctorArguments>),
    /// Measure this machine with these models, so that plans can be chosen and their speed foreseen.
    Calibrate(calibrate::CalibrateArguments),
    /// Measure plans side by side on the same prompts.
    Bench(bench::BenchArguments),
}

/// Exit code of a run that failed.
const FAILED: u8 = 1;

/// Devices of one's own, by the name of the unit that they are in plans.
pub type OwnUnits = BTreeMap<UnitId, DeviceFactory>;

/// Parses the arguments, runs, and ends the process, saying how it went: 0 done, 1 failed (the reason is on stderr), 2 wrong arguments.
pub fn run() -> ! {
    run_with(OwnUnits::new())
}

/// The same, where `serve` makes units of these names with these factories, whatever a plan says of them.
#[expect(clippy::print_stderr, reason = "the command line's own output")]
pub fn run_with(units: OwnUnits) -> ! {
    outrider_devices::gpu::do_without_desktop();
    let done = configured().and_then(|(arguments, settings, matches)| {
        dispatch(arguments, &settings, (&matches, units))
    });
    // Units' threads may still be in a GPU's driver, which must not be torn down under them.
    match done {
        Ok(()) => leave(0),
        Err(error) => {
            eprintln!("outrider: {error}");
            leave(FAILED)
        }
    }
}

/// Checks what a configuration file says: its tables, its keys, and each value as its flag would be.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn check_configuration(text: &str) -> Result<(), SettingsError> {
    Settings::parse(PathBuf::from("outrider.toml"), text)?.check(&Arguments::command())
}

/// The arguments, over what the configuration file says. Wrong arguments end the program.
fn configured() -> Result<(Arguments, Settings, ArgMatches), CliError> {
    let settings = Settings::find(named_config().as_deref())?;
    settings.check(&Arguments::command())?;
    let matches = settings.under(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok((arguments, settings, matches))
}

/// The configuration file that the arguments or the environment name: it is read before they are parsed.
fn named_config() -> Option<PathBuf> {
    let mut words = std::env::args_os().skip(1).take_while(|word| word != "--");
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(file) = word.to_str().and_then(|word| word.strip_prefix("--config=")) {
            return Some(PathBuf::from(file));
        }
    }
    std::env::var_os("OUTRIDER_CONFIG").map(PathBuf::from)
}

fn dispatch(
    arguments: Arguments,
    settings: &Settings,
    (matches, units): (&ArgMatches, OwnUnits),
) -> Result<(), CliError> {
    match &arguments.command {
        None => arguments.serve.log.start()?,
        Some(Command::Serve(serve)) => serve.log.start()?,
        Some(_) => logging::start_quietly(),
    }
    match arguments.command {
        None => serve::run(arguments.serve, units),
        Some(Command::Serve(arguments)) => serve::run(arguments, units),
        Some(Command::Generate(arguments)) => generate::run(arguments),
        Some(Command::Devices(arguments)) => devices::run(&arguments),
        Some(Command::Models(command)) => models::run(command),
        Some(Command::Plan(command)) => plan::run(command),
        Some(Command::Config(command)) => {
            // The values are those of the innermost subcommand.
            let named = matches.subcommand().and_then(|(_, matches)| matches.subcommand());
            config::run(command, settings, named.map_or(matches, |(_, matches)| matches))
        }
        Some(Command::Doctor(arguments)) => doctor::run(*arguments, settings),
        Some(Command::Calibrate(arguments)) => calibrate::run(arguments),
        Some(Command::Bench(arguments)) => bench::run(arguments),
    }
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
