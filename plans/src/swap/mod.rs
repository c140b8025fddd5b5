//! How one plan takes over from another while requests run: the whole protocol, as a state machine without a clock, a
//! mailbox or a device. [`Swap::propose`] and [`Swap::step`] say what happened, the [`Action`]s say what is to be done.
//!
//! ```text
//!             propose            last stage            caches are           a round has
//!   Steady ───────────▶ Installing ────────▶ Warming ──────────▶ CuttingOver ──────────▶ Evicting ──▶ Steady
//!      ▲   by content;      │ beside the        │ filled from the   │ ended: the epoch       ▲ the old
//!      │   refused if it    │ running plan      │ tokens, beside    │ steps                  │ plan's rest
//!      │   does not fit     ▼                   ▼                   │                        │
//!      └───────────────── Evicting: what was installed beside ◀─────┘ (a loss here is dealt   │
//!                         a failure, or a unit lost                    with after the cut) ───┘
//! ```
//!
//! Another **draft** is a plan whose draft's stages have another content, and takes that way. Another **target** writes other
//! text, so requests that have begun end on the one they began on: its plan is not installed here but by a successor, which
//! takes all new requests from the hand-over on:
//!
//! ```text
//!             propose            the successor runs
//!   Steady ───────────▶ HandingOver ────────▶ Steady, superseded: takes no proposals but those that a loss needs
//!      ▲                    │
//!      └────────────────────┘ it does not start
//! ```
//!
//! *Invariants*, asserted after every event:
//! 1. Until the cut-over, every stage of the running plan that was installed stays installed: a swap that fails costs
//!    nothing.
//! 2. The epoch steps by one at a cut-over and at no other time, so a reply says by its epoch which plan it belongs to.
//! 3. At rest, what is installed is the running plan, less what lost units have taken with them.
//! 4. Stages are named by content ([`Installed`]): one that both plans have is neither installed nor evicted.
//! 5. One swap at a time: a second proposal is refused, and so is one that expects another epoch than the running one.
//! 6. Every proposal that was taken ends in exactly one [`Action::End`].
//! 7. The target never changes here: whoever has been superseded keeps the plan and the epoch that its requests began under.
//!
//! A unit that is gone for good is the same protocol with a plan that does without it ([`fallback`]): nothing is told
//! apart but the caches, which then have nobody to decode from meanwhile and are filled after the cut-over.

mod fallback;
mod memory;
mod outcome;

use std::collections::{BTreeSet, VecDeque};

use crate::diff::{Installed, PlanDiff};
use crate::machine::Machine;
use crate::plan::{PartitionPlan, PlanEpoch, UnitSpec};
use crate::role::{ModelRole, UnitId};

pub use fallback::fallbacks;
pub use memory::SwapMemory;
pub use outcome::{Forecasted, Proposal, Reason, SwapError, SwapReport};

/// What a model finds in its caches after a cut-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Caches {
    /// The model stays where it is, with its caches.
    Kept,
    /// They are filled beside the running plan, before the cut-over.
    Warmed,
    /// They are filled after the cut-over: some stage of the model serves both plans and holds one cache of a
    /// sequence only, or nothing decodes meanwhile because a unit is lost.
    Empty,
    /// Requests that have begun stay on the model that they began on; these are for new ones.
    Fresh,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer to an [`Action::Install`]: it is there.
    Installed(Installed),
    /// The answer to an [`Action::Install`]: it is not, for this reason.
    InstallFailed(Installed, String),
    /// The answer to [`Action::Warm`]: the new caches hold what the live ones hold, but for a few rows.
    Warmed,
    /// The answer to [`Action::Warm`]: they will not, for this reason.
    WarmFailed(String),
    /// The answer to [`Action::CutOver`]: from here on every round runs under the new plan.
    CutOver,
    /// The answer to an [`Action::HandOver`]: new requests go to the successor.
    HandedOver,
    /// The answer to an [`Action::HandOver`]: it did not start, for this reason.
    HandOverFailed(String),
    /// The answer to an [`Action::Evict`].
    Evicted(Installed),
    /// A unit has died with everything on it.
    Lost {
        /// Its name.
        unit: UnitId,
        /// Its hardware; with the name, the one of two units that may share a name during a swap.
        spec: UnitSpec,
        /// What was seen.
        detail: String,
    },
    /// A unit of the running plan is there again with its stages. Not told while [`Swap::is_cutting_over`].
    Rebuilt {
        /// Its name.
        unit: UnitId,
        /// Its hardware.
        spec: UnitSpec,
    },
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Install this beside what runs, starting its unit if need be.
    Install(Installed),
    /// Fill these models' new caches from the tokens of the live sequences.
    Warm(Vec<ModelRole>),
    /// Forget the caches that are being filled.
    StopWarming,
    /// At the end of the running round, send all further ones to the new plan's units.
    CutOver {
        /// The plan that takes over.
        plan: PartitionPlan,
        /// Its number.
        epoch: PlanEpoch,
        /// The target's caches.
        target: Caches,
        /// The draft's caches; `None` if the plan has no draft.
        draft: Option<Caches>,
    },
    /// Start everything of this plan apart from what runs here, then give it all new requests.
    HandOver {
        /// The successor's plan.
        plan: PartitionPlan,
        /// Its number.
        epoch: PlanEpoch,
    },
    /// Free this; end its unit if it was the last stage there.
    Evict(Installed),
    /// The proposal has come to its end.
    End(Result<SwapReport, SwapError>),
}

/// The running plan, and the way to the next one.
#[derive(Clone, Debug)]
pub struct Swap {
    running: PartitionPlan,
    epoch: PlanEpoch,
    installed: BTreeSet<Installed>,
    phase: Phase,
    /// A successor takes the new requests.
    superseded: bool,
}

#[derive(Clone, Debug)]
enum Phase {
    Steady,
    /// The first of `left` is being installed.
    Installing {
        to: Next,
        left: VecDeque<Installed>,
    },
    Warming(Next),
    CuttingOver(Next),
    /// A successor is being started.
    HandingOver(SwapReport),
    Evicting {
        left: BTreeSet<Installed>,
        /// An installation that was under way when the swap failed: evicted as soon as it is there.
        late: Option<Installed>,
        result: Result<SwapReport, SwapError>,
    },
}

/// The plan that is on its way.
#[derive(Clone, Debug)]
struct Next {
    plan: PartitionPlan,
    target: Caches,
    draft: Option<Caches>,
    report: SwapReport,
}

impl Swap {
    /// A plan that runs, with everything installed, as the first of its process.
    pub fn new(running: PartitionPlan) -> Self {
        Self::taking_over(running, PlanEpoch(1))
    }

    /// A plan that runs, with everything installed, as the one with this number.
    pub fn taking_over(running: PartitionPlan, epoch: PlanEpoch) -> Self {
        let (installed, superseded) = (running.installed(), false);
        Self { running, epoch, installed, phase: Phase::Steady, superseded }
    }

    /// The running plan.
    pub fn running(&self) -> &PartitionPlan {
        &self.running
    }

    /// The running plan's number.
    pub fn epoch(&self) -> PlanEpoch {
        self.epoch
    }

    /// Whether the old plan's last round is being waited for: whoever decodes may already run the new plan. A unit that is
    /// rebuilt meanwhile is told of after the cut-over, since only then it is known what it has to run.
    pub fn is_cutting_over(&self) -> bool {
        matches!(self.phase, Phase::CuttingOver(_))
    }

    /// Whether a successor takes the new requests.
    pub fn is_superseded(&self) -> bool {
        self.superseded
    }

    /// What is installed now.
    pub fn installed(&self) -> &BTreeSet<Installed> {
        &self.installed
    }

    /// Whether a proposal would be looked at.
    pub fn is_steady(&self) -> bool {
        matches!(self.phase, Phase::Steady)
    }

    /// What a proposal would lead to, without doing it. `now` says how much memory is free.
    ///
    /// Fails as [`Swap::propose`] does.
    pub fn preview(&self, proposal: &Proposal, now: &Machine) -> Result<Forecasted, SwapError> {
        if let Some(expected) = proposal.expected
            && expected != self.epoch
        {
            return Err(SwapError::Conflict { expected, running: self.epoch });
        }
        let needed = matches!(proposal.reason, Reason::Loss(_));
        if !self.is_steady() || self.superseded && !needed {
            return Err(SwapError::Busy);
        }
        let plan = &proposal.plan;
        let (running, diff) = (self.epoch, PlanDiff::between(&self.running, plan));
        if self.hands_over_to(plan) {
            let memory = SwapMemory::apart(&self.running, &self.installed, plan, now);
            memory.check()?;
            let draft = plan.has_draft().then_some(Caches::Fresh);
            return Ok(Forecasted { running, diff, memory, target: Caches::Fresh, draft });
        }
        let missing = |i: &&Installed| !self.installed.contains(i);
        if let Some(lost) = self.running.installed().intersection(&plan.installed()).find(missing) {
            return Err(SwapError::Rebuilding { unit: lost.unit.clone() });
        }
        let memory = SwapMemory::between(&self.running, &self.installed, plan, now);
        memory.check()?;
        let caches = |role| self.caches(plan, role);
        let target = caches(ModelRole::Target).expect("every plan has a target");
        Ok(Forecasted { running, diff, memory, target, draft: caches(ModelRole::Draft) })
    }

    /// Whether a plan is for another target than the running one.
    fn hands_over_to(&self, plan: &PartitionPlan) -> bool {
        plan.models.target != self.running.models.target
    }

    /// Takes a proposal up. A plan that says the same as the running one, name and all, ends at once, with no step of
    /// the epoch.
    ///
    /// Fails, and changes nothing, if a swap is under way, if the proposal was made for another epoch, if a unit that it
    /// keeps is being rebuilt, or if the new plan does not fit beside the running one.
    pub fn propose(&mut self, proposal: Proposal, now: &Machine) -> Result<Vec<Action>, SwapError> {
        let Forecasted { diff, memory, target, draft, .. } = self.preview(&proposal, now)?;
        let Proposal { plan, reason, .. } = proposal;
        let report = SwapReport::new(self.epoch, &plan, reason, memory);
        if self.hands_over_to(&plan) {
            self.phase = Phase::HandingOver(report);
            return Ok(vec![Action::HandOver { plan, epoch: self.epoch.next() }]);
        }
        let same = plan.name == self.running.name && plan.models == self.running.models;
        if diff.is_empty() && same && plan.installed() == self.installed {
            return Ok(vec![Action::End(Ok(report))]);
        }
        let left = plan.installed().difference(&self.installed).cloned().collect();
        let to = Next { plan, target, draft, report };
        self.phase = Phase::Installing { to, left };
        Ok(self.proceed())
    }

    /// Takes note of what happened.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = match event {
            Event::Installed(stage) => self.arrived(stage),
            Event::InstallFailed(stage, detail) => self.not_arrived(&stage, detail),
            Event::Warmed => self.warmed(),
            Event::WarmFailed(detail) => match self.phase {
                Phase::Warming(_) => self.fail(SwapError::Warming { detail }),
                _ => Vec::new(),
            },
            Event::CutOver => self.cut_over(),
            Event::HandedOver => self.handed_over(Ok(())),
            Event::HandOverFailed(detail) => self.handed_over(Err(detail)),
            Event::Evicted(stage) => self.evicted(&stage),
            Event::Lost { unit, spec, detail } => self.lost(&unit, &spec, detail),
            Event::Rebuilt { unit, spec } => {
                let back = self.running.installed();
                self.installed
                    .extend(back.into_iter().filter(|i| i.unit == unit && i.spec == spec));
                Vec::new()
            }
        };
        self.check();
        actions
    }

    /// What a model would find in its caches under `plan`; `None` if `plan` does not have it.
    fn caches(&self, plan: &PartitionPlan, role: ModelRole) -> Option<Caches> {
        let (old, new) = (self.running.installed_of(role), plan.installed_of(role));
        let runs = old.is_subset(&self.installed);
        if new.is_empty() {
            None
        } else if new == old && runs {
            Some(Caches::Kept)
        } else if new.is_disjoint(&self.installed) && runs {
            Some(Caches::Warmed)
        } else {
            Some(Caches::Empty)
        }
    }

    /// The next thing that the swap under way needs.
    fn proceed(&mut self) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Steady) {
            Phase::Installing { to, left } => match left.front().cloned() {
                Some(next) => {
                    self.phase = Phase::Installing { to, left };
                    vec![Action::Install(next)]
                }
                None => {
                    let warm = to.roles_to_warm();
                    self.phase = Phase::Warming(to);
                    if warm.is_empty() { self.warmed() } else { vec![Action::Warm(warm)] }
                }
            },
            Phase::Evicting { left, late, result } if left.is_empty() && late.is_none() => {
                vec![Action::End(result)]
            }
            other => {
                self.phase = other;
                Vec::new()
            }
        }
    }

    fn arrived(&mut self, stage: Installed) -> Vec<Action> {
        match &mut self.phase {
            Phase::Installing { left, .. } if left.front() == Some(&stage) => {
                left.pop_front();
                self.installed.insert(stage);
                self.proceed()
            }
            Phase::Evicting { late, left, .. } if late.as_ref() == Some(&stage) => {
                *late = None;
                left.insert(stage.clone());
                self.installed.insert(stage.clone());
                vec![Action::Evict(stage)]
            }
            _ => panic!("{} on {} was installed unasked", stage.stage, stage.unit),
        }
    }

    fn not_arrived(&mut self, stage: &Installed, detail: String) -> Vec<Action> {
        match &mut self.phase {
            Phase::Installing { left, .. } if left.front() == Some(stage) => {
                left.clear();
                let (unit, stage) = (stage.unit.clone(), stage.stage);
                self.fail(SwapError::Install { unit, stage, detail })
            }
            Phase::Evicting { late, .. } if late.as_ref() == Some(stage) => {
                *late = None;
                self.proceed()
            }
            _ => panic!("{} on {} was not installed, unasked", stage.stage, stage.unit),
        }
    }

    fn warmed(&mut self) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Steady) {
            Phase::Warming(to) => {
                let (plan, target, draft) = (to.plan.clone(), to.target, to.draft);
                self.phase = Phase::CuttingOver(to);
                vec![Action::CutOver { plan, epoch: self.epoch.next(), target, draft }]
            }
            // The swap failed while the news was on its way.
            other => {
                self.phase = other;
                Vec::new()
            }
        }
    }

    fn cut_over(&mut self) -> Vec<Action> {
        let Phase::CuttingOver(to) = std::mem::replace(&mut self.phase, Phase::Steady) else {
            panic!("a cut-over that nobody asked for")
        };
        self.epoch = self.epoch.next();
        self.running = to.plan;
        let result = Ok(SwapReport { generation: self.epoch, ..to.report });
        self.evict(&self.running.installed(), None, result)
    }

    fn handed_over(&mut self, outcome: Result<(), String>) -> Vec<Action> {
        let Phase::HandingOver(report) = std::mem::replace(&mut self.phase, Phase::Steady) else {
            panic!("a hand-over that nobody asked for")
        };
        self.superseded = outcome.is_ok();
        let result = match outcome {
            Ok(()) => Ok(SwapReport { generation: self.epoch.next(), ..report }),
            Err(detail) => Err(SwapError::Successor { detail }),
        };
        vec![Action::End(result)]
    }

    /// Gives the swap up. The running plan has not noticed it.
    fn fail(&mut self, error: SwapError) -> Vec<Action> {
        let (late, warming) = match &self.phase {
            Phase::Installing { left, .. } => (left.front().cloned(), false),
            Phase::Warming(_) => (None, true),
            _ => unreachable!("only what has not cut over fails"),
        };
        let mut actions = self.evict(&self.running.installed(), late, Err(error));
        if warming {
            actions.insert(0, Action::StopWarming);
        }
        actions
    }

    /// Frees everything but `kept`, then ends.
    fn evict(
        &mut self,
        kept: &BTreeSet<Installed>,
        late: Option<Installed>,
        result: Result<SwapReport, SwapError>,
    ) -> Vec<Action> {
        let left: BTreeSet<Installed> = self.installed.difference(kept).cloned().collect();
        let mut actions: Vec<Action> = left.iter().cloned().map(Action::Evict).collect();
        self.phase = Phase::Evicting { left, late, result };
        actions.extend(self.proceed());
        actions
    }

    fn evicted(&mut self, stage: &Installed) -> Vec<Action> {
        if let Phase::Evicting { left, .. } = &mut self.phase
            && left.remove(stage)
        {
            self.installed.remove(stage);
        }
        self.proceed_if_evicting()
    }

    fn proceed_if_evicting(&mut self) -> Vec<Action> {
        if matches!(self.phase, Phase::Evicting { .. }) { self.proceed() } else { Vec::new() }
    }

    fn lost(&mut self, unit: &UnitId, spec: &UnitSpec, detail: String) -> Vec<Action> {
        let on_it = |i: &Installed| i.unit == *unit && i.spec == *spec;
        self.installed.retain(|i| !on_it(i));
        match &mut self.phase {
            // The round boundary is certain to come: the loss belongs to whichever plan runs then.
            // The successor has units of its own, and whoever is superseded still needs all of his.
            Phase::Steady | Phase::CuttingOver(_) | Phase::HandingOver(_) => Vec::new(),
            Phase::Evicting { left, .. } => {
                left.retain(|i| !on_it(i));
                self.proceed()
            }
            Phase::Installing { .. } | Phase::Warming(_) => {
                self.fail(SwapError::UnitLost { unit: unit.clone(), detail })
            }
        }
    }

    fn check(&self) {
        let running = self.running.installed();
        let beside = self.installed.difference(&running);
        match &self.phase {
            Phase::Steady | Phase::HandingOver(_) => {
                assert_eq!(beside.count(), 0, "a stage of no plan is installed");
            }
            Phase::Installing { to, left } => {
                let new = to.plan.installed();
                assert!(beside.into_iter().all(|i| new.contains(i)), "a stage of no plan");
                assert!(left.iter().all(|i| !self.installed.contains(i)), "installed twice");
            }
            Phase::Warming(to) => {
                assert!(to.plan.installed().is_subset(&self.installed), "warmed before installed");
            }
            Phase::CuttingOver(_) => {}
            Phase::Evicting { left, .. } => {
                assert!(left.is_disjoint(&running), "a stage of the running plan is evicted");
                assert!(left.is_subset(&self.installed), "evicted what is not there");
            }
        }
    }
}

impl Next {
    fn roles_to_warm(&self) -> Vec<ModelRole> {
        let caches = [(ModelRole::Target, Some(self.target)), (ModelRole::Draft, self.draft)];
        caches
            .into_iter()
            .filter(|(_, c)| *c == Some(Caches::Warmed))
            .map(|(role, _)| role)
            .collect()
    }
}
