//! What runs where, and why: partition plans, their validation and explanation, and the cost model.
//!
//! A plan file is read into a [`PlanSpec`], which knows where each of its words stands, and checked against a
//! [`PlanContext`] (the machine and the models) into a [`PartitionPlan`], which is right by construction.
//!
//! *Invariant:* pure data and arithmetic. Nothing here knows a device, an actor or a clock.

pub mod board;
pub mod check;
mod confidence;
pub mod context;
pub mod cost;
pub mod defaults;
pub mod diff;
pub mod error;
pub mod explain;
pub mod machine;
pub mod mode;
pub mod models;
pub mod plan;
pub mod role;
pub mod search;
pub mod shipped;
pub mod spec;
pub mod swap;
mod wording;

pub use board::{Board, BoardError, shipped_boards};
pub use confidence::{CONFIDENCE_BINS, CONFIDENCE_ENDS, confidence_bin};
pub use context::{CacheFormat, CacheLimits, HeadWeights, ModelShape, PlanContext, StageMemory};
pub use cost::{
    Acceptance, CostModel, Costs, Forecast, ForecastError, LinkProfile, TimeTable, UnitClass,
    UnitProfile, Workload,
};
pub use defaults::{default_plan, default_plan_in};
pub use diff::{Installed, PlanDiff};
pub use error::{PlanError, PlanProblem, Position};
pub use machine::{Adapter, AdapterKind, Core, Machine};
pub use mode::{DraftTokens, Mode, ModeKind};
pub use models::Models;
pub use plan::{PartitionPlan, Placement, PlanEpoch, PlanId, UnitKind, UnitSpec};
pub use role::{ModelRole, StageId, UnitId};
pub use search::{Candidate, Composition, Objective};
pub use shipped::{ShippedPlan, shipped, shipped_plan};
pub use spec::PlanSpec;
pub use swap::{Caches, Proposal, Reason, Swap, SwapError, SwapReport};
