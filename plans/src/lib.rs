//! What runs where, and why: partition plans, their validation and explanation, and the cost model.
//!
//! *Invariant:* pure data and arithmetic. Nothing here knows a device, an actor or a clock.

pub mod role;

pub use role::{ModelRole, StageId, UnitId};
