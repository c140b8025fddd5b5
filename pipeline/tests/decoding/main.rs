//! Speculative text equals plain text: toy models on two simulated units, in every mode, order and disturbance.
//!
//! Every run derives from one seed, which a failure prints.

#![expect(clippy::unwrap_used, reason = "tests")]

mod exhaustive;
mod faults;
mod many;
mod many_cases;
mod one;
mod one_cases;
mod pace_cases;
mod toy;
