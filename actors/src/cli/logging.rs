//! The log: to stderr, as text for people or as JSON for programs.
//!
//! *Invariant:* a request's lines carry its `request_id`; no prompt, answer or key is logged.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub(super) struct LogArguments {
    /// What is logged: a level such as `debug`, or a filter such as `outrider=debug,actix=warn`.
    #[arg(long, value_name = "FILTER", env = "OUTRIDER_LOG", default_value = "info")]
    log: String,
    /// Form of the log.
    #[arg(long, value_name = "FORM", env = "OUTRIDER_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogArguments {
    /// Starts the log of a service.
    pub(super) fn start(&self) -> Result<(), super::CliError> {
        let filter = self.filter()?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.log_format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }

    /// What is logged.
    ///
    /// # Errors
    /// A word that is no level: taken for the name of a program's part it would silence everything else.
    pub(super) fn filter(&self) -> Result<EnvFilter, super::CliError> {
        let wrong = self.log.split(',').map(str::trim).find(|part| {
            let level = part.rsplit('=').next().unwrap_or_default();
            !part.ends_with(']') && level.parse::<LevelFilter>().is_err()
        });
        if let Some(wrong) = wrong {
            let told = "a level is off, error, warn, info, debug or trace";
            return Err(format!("the log filter `{wrong}` says no level: {told}").into());
        }
        let filter = EnvFilter::try_new(&self.log);
        Ok(filter.map_err(|error| format!("the log filter `{}`: {error}", self.log))?)
    }
}

/// Starts the log of a command that ends by itself: warnings, or what `OUTRIDER_LOG` asks for.
pub(super) fn start_quietly() {
    let filter = EnvFilter::try_from_env("OUTRIDER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
