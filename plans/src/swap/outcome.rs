//! What is proposed and why, what it would lead to, and how it ended.
//!
//! *Invariant:* an error says whether anything was begun: a refusal has cost nothing but the question.

use std::fmt;

use serde::Serialize;

use super::{Caches, SwapMemory};
use crate::diff::PlanDiff;
use crate::plan::{PartitionPlan, PlanEpoch, PlanId};
use crate::role::{StageId, UnitId};
use crate::wording;

/// A plan that somebody wants to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The plan, checked against machine and models.
    pub plan: PartitionPlan,
    /// The epoch that the proposer has seen; another running one refuses the proposal. `None` takes any.
    pub expected: Option<PlanEpoch>,
    /// Who wants it, and why.
    pub reason: Reason,
}

/// Why a plan is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by", content = "words")]
pub enum Reason {
    /// The service was started with it.
    Start,
    /// Somebody asked for it.
    Operator,
    /// The plan file was edited, or its reading was asked for by signal.
    File(String),
    /// An earlier plan was asked for again.
    Rollback,
    /// The planner's forecast, in its own words.
    Planner(String),
    /// A unit is gone for good.
    Loss(UnitId),
    /// A unit that was gone may be there again.
    Recovery(UnitId),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Start => write!(f, "the service started with it"),
            Reason::Operator => write!(f, "an operator asked for it"),
            Reason::File(file) => write!(f, "{file} says so"),
            Reason::Rollback => write!(f, "an operator asked for the plan before"),
            Reason::Planner(words) => write!(f, "the planner: {words}"),
            Reason::Loss(unit) => write!(f, "unit {unit} is gone"),
            Reason::Recovery(unit) => write!(f, "unit {unit} may be back"),
        }
    }
}

/// What a proposal would lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forecasted {
    /// Number of the running plan.
    pub running: PlanEpoch,
    /// What changes.
    pub diff: PlanDiff,
    /// Memory while both plans are there.
    pub memory: SwapMemory,
    /// The target's caches.
    pub target: Caches,
    /// The draft's caches, if the plan has a draft.
    pub draft: Option<Caches>,
}

/// A swap that has ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwapReport {
    /// Number of the plan that runs now.
    pub generation: PlanEpoch,
    /// Its name.
    pub plan: String,
    /// Its content.
    pub id: PlanId,
    /// Why it was proposed.
    pub reason: Reason,
    /// Memory that both plans needed.
    pub memory: SwapMemory,
}

impl SwapReport {
    pub(super) fn new(
        generation: PlanEpoch,
        plan: &PartitionPlan,
        reason: Reason,
        memory: SwapMemory,
    ) -> Self {
        Self { generation, plan: plan.name.clone(), id: plan.fingerprint(), reason, memory }
    }
}

/// Why the running plan runs on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// Somebody else was faster.
    #[error(
        "plan generation {running} is running, not {expected} as expected: look at it and propose again"
    )]
    Conflict {
        /// What the proposer had seen.
        expected: PlanEpoch,
        /// What runs.
        running: PlanEpoch,
    },
    /// One swap at a time.
    #[error("another plan swap is under way: try again when it has ended")]
    Busy,
    /// A unit that both plans use has just died.
    #[error("unit {unit} is being rebuilt: try again, or propose a plan without it")]
    Rebuilding {
        /// The unit.
        unit: UnitId,
    },
    /// Both plans at once would not fit.
    #[error(
        "the plan needs {} of {place} beside the running one, but {} are free: allow fewer or shorter sequences, or \
         restart the service with it",
        wording::bytes(*.extra_bytes), wording::bytes(*.free_bytes)
    )]
    Memory {
        /// Which memory.
        place: String,
        /// Needed beside the running plan.
        extra_bytes: u64,
        /// Free now.
        free_bytes: u64,
    },
    /// There is no plan to go back to.
    #[error("no plan ran before this one: there is nothing to go back to")]
    NoEarlier,
    /// A unit cannot run its stage.
    #[error("{stage} could not be installed on unit {unit}: {detail}")]
    Install {
        /// The unit.
        unit: UnitId,
        /// The stage.
        stage: StageId,
        /// What the unit said.
        detail: String,
    },
    /// The engine with the new target did not start.
    #[error("the new target was not started: {detail}")]
    Successor {
        /// What went wrong.
        detail: String,
    },
    /// The new caches could not be filled.
    #[error("the caches of the new plan could not be filled: {detail}")]
    Warming {
        /// What went wrong.
        detail: String,
    },
    /// A unit died during the swap.
    #[error("unit {unit} was lost during the swap: {detail}")]
    UnitLost {
        /// The unit.
        unit: UnitId,
        /// What was seen.
        detail: String,
    },
    /// The service is ending.
    #[error("the engine has ended")]
    Ended,
}

impl SwapError {
    /// Whether nothing was begun.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Conflict { .. }
            | Self::Busy
            | Self::Rebuilding { .. }
            | Self::Memory { .. }
            | Self::NoEarlier
            | Self::Ended => true,
            Self::Install { .. }
            | Self::Successor { .. }
            | Self::Warming { .. }
            | Self::UnitLost { .. } => false,
        }
    }
}
