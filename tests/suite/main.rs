//! Every claim that the repository makes, as one test binary.

#![expect(clippy::unwrap_used, reason = "tests")]

mod clients;
mod command_line;
mod conformance;
mod equivalence;
mod gpu;
mod gpu_faults;
mod monitoring;
mod peers;
mod process;
mod service;
mod supervision;
mod swap;
mod swap_http;
mod tidy;
