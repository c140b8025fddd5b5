//! What strangers can send or write, as bytes: for each kind of input what must be true of any, for the fuzzers in
//! `tests/fuzz` and for the tests that run with every change.
//!
//! *Invariant:* a check panics where what must hold does not, and for no other reason.

pub mod config;
pub mod gguf;
pub mod http;
pub mod plan;

/// What must be true of any bytes.
pub type Check = fn(&[u8]);

/// Each kind of input by the name of its fuzzer, with its check.
pub const KINDS: [(&str, Check); 4] = [
    ("config", config::check),
    ("gguf", gguf::check),
    ("http", http::check),
    ("plan", plan::check),
];
