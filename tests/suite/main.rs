//! Every claim that the repository makes, as one test binary.

#![expect(clippy::unwrap_used, reason = "tests")]

mod clients;
mod command_line;
mod equivalence;
mod process;
mod service;
mod supervision;
mod tidy;
