//! `outrider config`: what holds, where each value comes from, and whether all of it is right.
//!
//! *Invariant:* what `show` prints is a file that says the same; keys are never shown.

use clap::parser::ValueSource;
use clap::{ArgMatches, Subcommand};

use super::CliError;
use super::serve::ServeArguments;
use super::settings::{Settings, TABLES};

/// The reference file, every option with its meaning and its default.
const EXAMPLE: &str = include_str!("../../ops/outrider.toml");
/// Values that are not shown.
const SECRET: [&str; 2] = ["api_key", "admin_key"];

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration: the file, its values, the models, the plan and the keys that it names.
    Check(Box<ServeArguments>),
    /// Show what holds as a configuration file, each value with where it comes from.
    Show(Box<ServeArguments>),
    /// Print a file with every option, its meaning and its default.
    Example,
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(
    command: ConfigCommand,
    settings: &Settings,
    matches: &ArgMatches,
) -> Result<(), CliError> {
    match command {
        ConfigCommand::Example => print!("{EXAMPLE}"),
        ConfigCommand::Check(arguments) => {
            arguments.gateway()?;
            arguments.log.filter()?;
            let pair = arguments.selection.pair()?;
            let plan = arguments.selection.plan(&pair)?;
            match &settings.file {
                Some(file) => println!("{} is right", file.display()),
                None => println!("there is no configuration file; what holds without one is right"),
            }
            println!("it would serve with plan {} ({})", plan.name, plan.fingerprint());
        }
        ConfigCommand::Show(_) => {
            if let Some(file) = &settings.file {
                println!("# with {}", file.display());
            }
            print!("{}", shown(settings, matches));
        }
    }
    Ok(())
}

fn shown(settings: &Settings, matches: &ArgMatches) -> String {
    let mut text = String::new();
    for (table, keys) in TABLES {
        text += &format!("[{table}]\n");
        for key in *keys {
            let words: Vec<String> = matches
                .get_raw(key)
                .into_iter()
                .flatten()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            let line = match words.as_slice() {
                [] => format!("# {key} is not set\n"),
                _ if SECRET.contains(key) => {
                    format!("# {key} is set  # {}\n", origin(settings, matches, key))
                }
                [one] => format!("{key} = {}  # {}\n", value(one), origin(settings, matches, key)),
                many => {
                    let many: Vec<_> = many.iter().map(|word| value(word)).collect();
                    let origin = origin(settings, matches, key);
                    format!("{key} = [{}]  # {origin}\n", many.join(", "))
                }
            };
            text += &line;
        }
        text.push('\n');
    }
    text
}

fn origin(settings: &Settings, matches: &ArgMatches, key: &str) -> &'static str {
    match matches.value_source(key) {
        Some(ValueSource::CommandLine) => "flag",
        Some(ValueSource::EnvVariable) => "environment",
        _ if settings.sets(key) => "file",
        _ => "default",
    }
}

fn value(word: &str) -> String {
    match word.parse::<i64>().is_ok() || word.parse::<bool>().is_ok() {
        true => word.to_owned(),
        false => toml::Value::from(word).to_string(),
    }
}
