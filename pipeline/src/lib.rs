//! Decoding as pure logic: checkpoints become stages, and draft, verify and accept become events in, actions out.
//!
//! *Invariant:* no clock, no mailbox, no metric and no await in this crate.
