//! Every claim that the repository makes, as one test binary.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they measured or skipped"
)]

mod api;
mod boards;
mod browser;
mod calibration;
mod clients;
mod command_line;
mod complaints;
mod conformance;
mod equivalence;
mod frailty;
mod gpu;
mod gpu_faults;
mod gpu_work;
mod monitoring;
mod operations;
mod page;
mod peers;
mod planner;
mod process;
mod resident;
mod service;
mod simulation;
mod simulation_actors;
mod simulation_plans;
mod soak;
mod strangers;
mod supervision;
mod swap;
mod swap_devices;
mod swap_http;
mod swap_models;
mod swap_storm;
mod tidy;
mod worlds;
