//! Who runs the stages, and when: actors, their messages, HTTP and the command line.
//!
//! ```text
//! gateway ─▶ coordinator ─▶ compute units ─▶ worker threads (one per unit, with the device)
//!                 ▲               │
//!                 └── supervisor ◀┘
//! ```
//!
//! *Invariant:* nothing here computes a logit or decides what is accepted.

mod cache_folder;
pub mod calibrate;
pub mod cli;
pub mod coordinator;
pub mod engine;
pub mod fleet;
pub mod foresight;
mod frame;
pub mod gateway;
mod gpu_tuning;
mod ledger;
pub mod library;
pub mod messages;
pub mod meter;
mod notify;
pub mod office;
mod pace_meter;
pub mod pair;
pub mod planner;
pub mod request;
pub mod supervisor;
pub mod unit;
