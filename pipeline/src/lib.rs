//! Decoding as pure logic: checkpoints become stages, and draft, verify and accept become events in, actions out.
//!
//! *Invariant:* no clock, no mailbox, no metric and no await in this crate.

pub mod draft_policy;
pub mod lookup;
pub mod scheduler;
pub mod speculator;
pub mod text;

pub use draft_policy::{DecodingMode, DraftPolicy, Speculation};
pub use scheduler::{Action, Admission, Event, GenerationParams, Scheduler, SchedulerConfig};
pub use speculator::Speculator;
pub use text::{Detokenize, TextStream};
