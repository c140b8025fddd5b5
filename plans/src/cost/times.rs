//! The times of one plan's jobs, piece by piece: what the process is walked through with, and what explains a forecast.
//!
//! *Invariant:* the pieces of a job are in the order in which it meets them, and add up to the job.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::profile::{AroundJobs, LinkProfile, RoleProfile, TimeTable};
use crate::role::{ModelRole, StageId, UnitId};

/// What a piece of time is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A prompt is read into a cache.
    Prompt(ModelRole),
    /// The row of the target that decoding needs anyway, or the first step of a draft job.
    Row(ModelRole),
    /// Further rows of a verification pass, or of a job that several sequences share.
    FurtherRows(ModelRole),
    /// Further steps of a draft job.
    FurtherSteps,
    /// Weights that the other model has driven out of the caches come back.
    Switching(ModelRole),
    /// Slower because another unit is at work.
    Contention(ModelRole),
    /// Messages between coordinator and unit, the scheduler's step, wake-ups.
    Hop,
    /// Activations on their way from one unit to another.
    Transfer,
    /// Between a request's arrival and its first job, and after its last.
    Request,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::Prompt(role) => write!(f, "{role}: prompts"),
            Purpose::Row(ModelRole::Target) => write!(f, "target: one row a pass"),
            Purpose::Row(ModelRole::Draft) => write!(f, "draft: first step of each job"),
            Purpose::FurtherRows(role) => write!(f, "{role}: further rows"),
            Purpose::FurtherSteps => write!(f, "draft: further steps"),
            Purpose::Switching(role) => write!(f, "{role}: weights back into the caches"),
            Purpose::Contention(role) => write!(f, "{role}: slowed by the other unit"),
            Purpose::Hop => write!(f, "hops: messages, scheduler, wake-ups"),
            Purpose::Transfer => write!(f, "transfers between units"),
            Purpose::Request => write!(f, "requests: arrival and end"),
        }
    }
}

/// A piece of a job's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What for.
    pub purpose: Purpose,
    /// The unit that computes; `None` for what lies between units.
    pub unit: Option<UnitId>,
    /// How long.
    pub ns: u64,
}

/// A pass of a model over some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassShape {
    /// Rows of the batch.
    pub rows: u32,
    /// Rows that run through the head.
    pub head_rows: u32,
    /// Mean number of positions cached before.
    pub context: u32,
    /// What ran on the first unit before.
    pub before: Before,
}

/// Rows of text that a draft reads before a job at most, for each sequence, unless it reads a prompt or what it has missed.
pub const DRAFT_ROWS_MAX: u32 = 2;

/// What ran before a job on its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The same model, or nothing.
    Same,
    /// The other model.
    Other,
}

/// A draft job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftShape {
    /// The first step.
    pub first: PassShape,
    /// Sequences that take part in each further step.
    pub further: Vec<u32>,
}

/// A stage with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageTimes {
    /// Where it runs.
    pub unit: UnitId,
    /// What runs.
    pub stage: StageId,
    pub(super) times: RoleProfile,
    pub(super) around: AroundJobs,
    /// From the stage before; `None` for the first.
    pub(super) link: Option<LinkProfile>,
    pub(super) row_bytes: u64,
    /// Whether its unit is given all steps of a draft at once, and runs them wherever the text ends.
    pub(super) drafts_at_once: bool,
}

/// The times of a plan's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanTimes {
    /// The target's stages.
    pub target: Vec<StageTimes>,
    /// The draft's; empty without one.
    pub draft: Vec<StageTimes>,
    /// How much longer jobs of target and draft take while the other model is at work elsewhere, in thousandths.
    pub slowed: (u32, u32),
    /// Power of each unit at work.
    pub power_mw: BTreeMap<UnitId, u64>,
}

impl PlanTimes {
    /// A pass of the target, through all of its stages.
    pub fn target_pass(&self, shape: PassShape) -> Vec<Piece> {
        self.target.iter().flat_map(|stage| stage.pass(shape)).collect()
    }

    /// A draft job. The draft is on one unit.
    pub fn draft_job(&self, shape: &DraftShape) -> Vec<Piece> {
        let stage = self.draft.first().expect("the plan places a draft");
        let mut pieces = stage.pass(shape.first);
        let ns = stage.further_steps_ns(shape);
        let unit = Some(stage.unit.clone());
        if ns > 0 {
            pieces.push(Piece { purpose: Purpose::FurtherSteps, unit, ns });
        }
        pieces
    }

    /// Whether a draft job runs all the steps that it is asked for, as it does on a GPU.
    pub fn drafts_at_once(&self) -> bool {
        self.draft.first().is_some_and(|stage| stage.drafts_at_once)
    }

    /// What lies between the end of a job of `role` and the next one that waits for it.
    pub fn hop_ns(&self, role: ModelRole) -> u64 {
        match role {
            ModelRole::Target => self.target.last().map_or(0, |s| s.around.target_hop_ns),
            ModelRole::Draft => self.draft.last().map_or(0, |s| s.around.draft_hop_ns),
        }
    }

    /// What a request takes before its first and after its last job.
    pub fn request_ns(&self) -> u64 {
        self.target.first().map_or(0, |stage| stage.around.request_ns)
    }
}

impl StageTimes {
    /// Time of a draft job's steps after the first.
    pub fn further_steps_ns(&self, shape: &DraftShape) -> u64 {
        let step = |(i, sequences): (usize, &u32)| {
            let alone = self.times.draft_step.at_ns(*sequences, shape.first.context + i as u32 + 1);
            alone.saturating_add_signed(self.around.draft_step_ns)
        };
        shape.further.iter().enumerate().map(step).sum()
    }

    /// A pass of this stage.
    pub fn pass(&self, shape: PassShape) -> Vec<Piece> {
        let role = self.stage.role;
        let mut pieces = Vec::with_capacity(4);
        let mut add = |purpose, ns: u64| {
            if ns > 0 {
                let on = !matches!(purpose, Purpose::Transfer | Purpose::Hop);
                pieces.push(Piece { purpose, unit: on.then(|| self.unit.clone()), ns });
            }
        };
        if let Some(link) = self.link {
            add(Purpose::Transfer, link.transfer_ns(u64::from(shape.rows) * self.row_bytes));
        }
        let PassShape { rows, head_rows, context, before } = shape;
        let around = &self.around;
        let (own, switching) = match (role, before) {
            (ModelRole::Target, _) if head_rows <= 1 && rows > 1 => (around.target_prompt_ns, 0),
            (ModelRole::Draft, _) if rows > DRAFT_ROWS_MAX * head_rows.max(1) => {
                (around.draft_prompt_ns, 0)
            }
            (ModelRole::Target, Before::Other) => (around.target_ns, around.target_after_draft_ns),
            (ModelRole::Target, Before::Same) => (around.target_ns, 0),
            (ModelRole::Draft, Before::Other) => (around.draft_ns, around.draft_after_target_ns),
            (ModelRole::Draft, Before::Same) => (around.draft_ns, 0),
        };
        let row_ns = if role == ModelRole::Target { around.target_row_ns } else { 0 };
        let rows_ns = i64::from(head_rows.saturating_sub(1)) * row_ns;
        // What was measured around jobs of the whole model; a job that is quicker after the other model's is so by itself.
        let part = |ns: i64| ns * self.stage.layers() as i64 / i64::from(self.times.layers.max(1));
        let (own, switching) = (part(own + switching.min(0)), part(switching.max(0)));
        let whole =
            self.compute_ns(rows, head_rows, context).saturating_add_signed(own + part(rows_ns));
        if head_rows <= 1 && rows > 16 {
            add(Purpose::Prompt(role), whole);
        } else {
            let one = self.compute_ns(1, 1, context).saturating_add_signed(own).min(whole);
            add(Purpose::Row(role), one);
            add(Purpose::FurtherRows(role), whole - one);
        }
        add(Purpose::Switching(role), switching as u64);
        pieces
    }

    /// Time of a pass in a loop of nothing else.
    pub fn compute_ns(&self, rows: u32, head_rows: u32, context: u32) -> u64 {
        let times = &self.times;
        let layers = self.stage.layers() as u64;
        let all = u64::from(times.layers);
        if layers == all {
            return whole_ns(times, rows, head_rows, context);
        }
        let Some(parts) = &times.parts else { return 0 };
        let ends = self.stage.layer_end as u64 == all;
        // Blocks take longer in a whole model, whose weights crowd the caches, than in a half of it.
        let small = parts.layer.at_ns(rows, context);
        let head = |rows| parts.head.at_ns(rows, 0);
        let rest =
            whole_ns(times, rows, 1, context).saturating_sub(parts.base.at_ns(rows, 0) + head(1));
        let crowded = rest / all.max(1);
        let half = (all / 2).max(1);
        let over = layers.saturating_sub(half);
        let layer = match crowded.checked_sub(small) {
            Some(more) => small + more * over / (all - half).max(1),
            None => small,
        };
        parts.base.at_ns(rows, 0) + layers * layer + if ends { head(head_rows) } else { 0 }
    }
}

/// Between a pass with one row through the head and one with all of them.
fn whole_ns(times: &RoleProfile, rows: u32, head_rows: u32, context: u32) -> u64 {
    let RoleProfile { verify, fill, .. } = times;
    let known = verify.rows_max();
    if rows <= 1 {
        return verify.at_ns(1, context);
    }
    let one = fill.at_ns(rows, context);
    if head_rows <= 1 {
        return one;
    }
    let at = |table: &TimeTable, rows| table.at_ns(rows, context);
    if head_rows == rows && rows <= known {
        return at(verify, rows);
    }
    // The head's rows cost the same whatever rows are beside them.
    let more = |heads: u32| at(verify, heads).saturating_sub(at(fill, heads));
    let heads = if head_rows <= known {
        more(head_rows)
    } else {
        more(known) * u64::from(head_rows) / u64::from(known)
    };
    one + heads
}
