//! Decoding as pure logic: checkpoints become stages, and draft, verify and accept become events in, actions out.
//!
//! *Invariant:* no clock, no mailbox, no metric and no await in this crate.

pub mod checkpoint;
pub mod draft_policy;
pub mod lookup;
pub mod model;
pub mod pacing;
pub mod pair;
pub mod rehearsal;
pub mod scheduler;
pub mod shipped;
pub mod speculator;
pub mod template;
pub mod text;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, CheckpointError, ModelConfig};
pub use draft_policy::{DecodingMode, DraftPolicy, Guarding, Pace, Speculation};
pub use model::{Model, ModelSource};
pub use pair::{PairError, check_pair};
pub use scheduler::{Action, Admission, Event, GenerationParams, Scheduler, SchedulerConfig};
pub use speculator::Speculator;
pub use template::{ChatTemplate, Conversation, GenerationPrompt, Message, TemplateError};
pub use text::{Detokenize, TextStart, TextStream};
pub use tokenizer::{Detokenizer, SpecialTokens, Tokenizer, TokenizerError};
