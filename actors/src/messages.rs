//! Every message that crosses between actors, on one page.
//!
//! ```text
//! gateway ---- Generate, Cancel, Inspect -------> coordinator
//! gateway, planner - ProposePlan, PreviewPlan --> supervisor
//! coordinator - RunStage, RunDraft, Release ----> unit          (RunStage goes on from unit to unit in a split model)
//! unit -------- RoundDone ----------------------> coordinator
//! unit -------- UnitDown -----------------------> supervisor
//! supervisor -- Install, Evict, Retire ---------> unit
//! office ------ Dissolve ------------------------> supervisor
//! supervisor -- UnitLost, Reroute, WarmUp, StopWarmUp, CutOver --> coordinator
//! coordinator - WarmUpDone, CutOverDone --------> supervisor
//! ```
//!
//! *Invariant:* messages are data. Large buffers move or are shared, never copied; every queue that holds messages is
//! bounded by the work that the scheduler has in flight.

use std::sync::Arc;

use actix::prelude::{Message, Recipient};
use outrider_devices::{
    Activations, Batch, DeviceError, DraftBatch, Drafted, MemoryUse, Pick, SequenceId, SlotLimits,
    Subgraph,
};
use outrider_pipeline::DraftPolicy;
use outrider_pipeline::scheduler::{Admission, Ticket, Units};
use outrider_plans::swap::Forecasted;
use outrider_plans::{
    Caches, ModelRole, PlanEpoch, Proposal, StageId, SwapError, SwapReport, UnitId,
};
use tokio::sync::mpsc;

use crate::request::{Refusal, RequestEvent};

/// A request for text. The answer is its name, or why it was not taken; the text follows over `events`, whose
/// capacity must cover every token of the request, so that the coordinator never waits for a slow reader.
#[derive(Debug, Message)]
#[rtype(result = "Result<SequenceId, Refusal>")]
pub struct Generate {
    /// What to write, and how.
    pub admission: Admission,
    /// Where the text goes. Closing the other end cancels the request.
    pub events: mpsc::Sender<RequestEvent>,
}

/// End a request before its text is whole.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct Cancel {
    /// The request.
    pub sequence: SequenceId,
    /// Why.
    pub cause: CancelCause,
}

/// Why a request is ended before its text is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelCause {
    /// Its reader has left, or an operator ended it.
    Asked,
    /// Its time was up.
    Deadline,
}

/// Run another plan. The answer comes when the swap has ended, well or not.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<SwapReport, SwapError>")]
pub struct ProposePlan(pub Proposal);

/// What would a proposal lead to?
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Forecasted, SwapError>")]
pub struct PreviewPlan(pub Proposal);

/// Names one stage as installed once; an installation of the same stage later, or elsewhere, has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstallId(pub u64);

/// Names one unit's actor and worker; the unit that is rebuilt, or given other cores, has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u64);

/// Compile a stage beside those that are installed.
#[derive(Debug, Message)]
#[rtype(result = "Result<MemoryUse, UnitError>")]
pub struct Install {
    /// Name of this installation.
    pub install: InstallId,
    /// Name of the stage.
    pub stage: StageId,
    /// Its ops and weights.
    pub subgraph: Arc<Subgraph>,
    /// Cache slots to keep.
    pub limits: SlotLimits,
}

/// Free an installed stage with its caches. The answer comes when it is gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Evict {
    /// The installation.
    pub install: InstallId,
}

/// End, after the jobs that wait: the unit is not needed any more.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Retire;

/// The way of a batch through the stages of one model.
#[derive(Clone, Debug)]
pub struct Route {
    /// The model.
    pub role: ModelRole,
    /// The plan under which the route began; a reply over an older route is stale.
    pub epoch: PlanEpoch,
    /// Stages in layer order; at least one.
    pub hops: Vec<Hop>,
    /// Who hears of the end.
    pub reply_to: Recipient<RoundDone>,
}

/// One stage of a route.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Where it runs.
    pub unit: UnitId,
    /// The actor there.
    pub instance: InstanceId,
    /// What runs.
    pub stage: StageId,
    /// Its installation there.
    pub install: InstallId,
    /// The unit's mailbox for batches.
    pub batches: Recipient<RunStage>,
    /// The unit's mailbox for drafts.
    pub drafts: Recipient<RunDraft>,
    /// The unit's mailbox for finished sequences.
    pub releases: Recipient<Release>,
}

/// Run a batch through stage `hop` of the route, then pass it on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RunStage {
    /// Names the round.
    pub ticket: Ticket,
    /// All stages of the model.
    pub route: Arc<Route>,
    /// Index of the stage to run now.
    pub hop: usize,
    /// Rows of all sequences in the round.
    pub batch: Arc<Batch>,
    /// The previous stage's output; `None` for the first.
    pub input: Option<Activations>,
}

/// Draft several tokens as one job, on the unit that holds the whole draft.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RunDraft {
    /// Names the round.
    pub ticket: Ticket,
    /// A route of one hop.
    pub route: Arc<Route>,
    /// What to extend.
    pub batch: DraftBatch,
}

/// What came of a round.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RoundDone {
    /// The round.
    pub ticket: Ticket,
    /// The model that ran.
    pub role: ModelRole,
    /// Its route's epoch.
    pub epoch: PlanEpoch,
    /// Picks, or what went wrong.
    pub outcome: Result<RoundOutcome, UnitError>,
}

/// The result of a round that went well.
#[derive(Debug)]
pub enum RoundOutcome {
    /// One pick per wanted row of the batch.
    Picks(Vec<Pick>),
    /// What came of each segment of a draft.
    Drafted(Vec<Drafted>),
}

/// A sequence has ended: free its caches.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Release {
    /// The sequence.
    pub sequence: SequenceId,
}

/// A unit's worker has ended and its caches are gone.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UnitDown {
    /// The unit.
    pub unit: UnitId,
    /// Which of those that had its name.
    pub instance: InstanceId,
    /// What was seen.
    pub reason: String,
}

/// A unit cannot run at present: rounds through it must wait.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UnitLost {
    /// The unit.
    pub unit: UnitId,
    /// Which of those that had its name.
    pub instance: InstanceId,
    /// What was seen.
    pub reason: String,
}

/// A unit runs, but not what the plan asks of it: another plan is needed.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UnitUnfit {
    /// The unit.
    pub unit: UnitId,
    /// Which of those that had its name.
    pub instance: InstanceId,
    /// What it said.
    pub reason: String,
}

/// The engine's requests have ended, and others go elsewhere: free everything.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Dissolve;

/// No plan can run without the units that are lost: what is open cannot be finished.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Hopeless {
    /// Why.
    pub reason: String,
}

/// The running plan's routes, anew: a unit was rebuilt.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Reroute {
    /// The target's stages; empty while one of its units does not run.
    pub target: Vec<Hop>,
    /// The draft's stages; empty without a draft, or while one of its units does not run.
    pub draft: Vec<Hop>,
    /// Models whose caches are empty because one of their units was rebuilt.
    pub rebuilt: Vec<ModelRole>,
}

/// Fill the caches of these stages from the tokens of the live sequences, beside the running plan. Answered by
/// [`WarmUpDone`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct WarmUp {
    /// The plan that they belong to.
    pub epoch: PlanEpoch,
    /// Each model's stages.
    pub routes: Vec<(ModelRole, Vec<Hop>)>,
}

/// Forget the caches that are being filled.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StopWarmUp;

/// The answer to [`WarmUp`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct WarmUpDone {
    /// The plan that the caches are for.
    pub epoch: PlanEpoch,
    /// Why not, if they could not be filled.
    pub outcome: Result<(), String>,
}

/// Run under another plan from the next round on. Answered by [`CutOverDone`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct CutOver {
    /// The plan's number.
    pub epoch: PlanEpoch,
    /// The target's stages.
    pub target: Vec<Hop>,
    /// The target's caches.
    pub target_caches: Caches,
    /// The draft's stages; empty without a draft.
    pub draft: Vec<Hop>,
    /// The draft's caches; `None` without a draft.
    pub draft_caches: Option<Caches>,
    /// The rules for drafting.
    pub policy: DraftPolicy,
    /// Whether the models share units.
    pub units: Units,
}

/// The answer to [`CutOver`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CutOverDone {
    /// The plan that runs now.
    pub epoch: PlanEpoch,
}

/// How are things?
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Snapshot")]
pub struct Inspect;

/// The coordinator's state, for health checks.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Whether requests can be served; if not, why.
    pub ready: Result<(), String>,
    /// Sequences that are being decoded.
    pub running: usize,
    /// Sequences that wait for a place.
    pub waiting: usize,
}

/// Take no more requests; those that are open go on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Why a unit did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UnitError {
    /// The device's own error.
    #[error("unit {unit}: {error}")]
    Device {
        /// The unit.
        unit: UnitId,
        /// What the device said.
        error: DeviceError,
    },
    /// What it was to run cannot be read any more.
    #[error("unit {unit}: its model cannot be read: {detail}")]
    Model {
        /// The unit.
        unit: UnitId,
        /// What was seen.
        detail: String,
    },
    /// The unit's worker is gone: it panicked, or it was stopped.
    #[error("unit {unit}: its worker has ended: {reason}")]
    Gone {
        /// The unit.
        unit: UnitId,
        /// What was seen.
        reason: String,
    },
}

/// What a unit's error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The plan asks for too much of this unit: another plan is needed.
    Replan,
    /// The unit must be rebuilt; its caches come back from the tokens.
    Rebuild,
}

impl UnitError {
    /// The one place that decides what an error leads to.
    pub fn remedy(&self) -> Remedy {
        match self {
            UnitError::Device { error, .. } => match error {
                DeviceError::OutOfMemory { .. }
                | DeviceError::Unsupported { .. }
                | DeviceError::Compile { .. } => Remedy::Replan,
                DeviceError::Lost { .. } => Remedy::Rebuild,
            },
            UnitError::Gone { .. } | UnitError::Model { .. } => Remedy::Rebuild,
        }
    }
}
