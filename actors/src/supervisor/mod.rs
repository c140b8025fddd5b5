//! The supervisor: starts every unit from a factory, installs its stages, rebuilds it when its worker ends, and carries
//! out plan swaps ([`outrider_plans::swap`] says what is to be done, `swapping` does it).
//!
//! *Invariants:* units are made here and nowhere else. A unit that dies alone leaves the others running; one that dies
//! again and again is given up, and the service goes on with a plan that does without it, or says that there is none.

mod fleet;
mod history;
mod losses;
mod swapping;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::{Actor, Addr, AsyncContext, Context, Handler, Recipient};
use outrider_devices::SlotLimits;
use outrider_pipeline::DraftPolicy;
use outrider_pipeline::scheduler::Units;
use outrider_plans::{
    Caches, ModelRole, PartitionPlan, PlanContext, PlanEpoch, Reason, Swap, SwapError, SwapReport,
    UnitId,
};
use tokio::sync::{oneshot, watch};

use crate::coordinator::{Coordinator, Report, Superior};
use crate::library::Library;
use crate::messages::{CutOver, Hop, UnitDown, UnitError};
use crate::meter::FleetMeter;
use crate::office::Successor;
use crate::pair::Pair;
use crate::unit::{Cores, DeviceFactory, Workplace};
use fleet::{Fleet, UnitKey};
pub use history::{HistoryEntry, PlanView};
use losses::Rebuilt;

/// When a unit is taken for lost, and how often it is rebuilt before it is given up.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Most rebuilds within `window`.
    pub restarts_max: usize,
    /// Over which time they are counted.
    pub window: Duration,
    /// Wait before a rebuild; doubled for each one within the window.
    pub backoff: Duration,
    /// How long one job may take before its unit is taken for hung; an installation may take ten times as long.
    pub hang_after: Duration,
    /// How long after a fall-back the plan before it is tried again; doubled each time. `None` never tries.
    pub recover_after: Option<Duration>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            restarts_max: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(50),
            hang_after: Duration::from_secs(60),
            recover_after: Some(Duration::from_secs(30)),
        }
    }
}

/// Everything that units are made of.
pub struct Blueprint {
    /// What plans are checked against.
    pub context: PlanContext,
    /// Bytes of main memory that are free now.
    pub memory_free: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Makes the devices of these units; those of other units are made as the plan says.
    pub factories: BTreeMap<UnitId, DeviceFactory>,
    /// Where workers work.
    pub workplace: Workplace,
    /// Which cores they work on.
    pub cores: Arc<Cores>,
    /// The models that stages are cut from.
    pub library: Arc<Library>,
    /// Starts the engine of a plan with another target; `None` where there can be none.
    pub successor: Option<Successor>,
    /// Cache slots of each model's stages.
    pub limits: BTreeMap<ModelRole, SlotLimits>,
    /// The rules for drafting under a plan, and whether its models share units.
    pub rules: fn(&PartitionPlan) -> (DraftPolicy, Units),
    /// What units report to.
    pub meter: FleetMeter,
    /// When to give up.
    pub restart: RestartPolicy,
}

impl Blueprint {
    /// What plans for these models are checked against.
    fn context_of(&self, pair: &Pair) -> PlanContext {
        pair.plan_context(&self.context)
    }
}

/// The first plan of an engine, and how it came to be.
pub struct Opening {
    /// The plan.
    pub plan: PartitionPlan,
    /// Its number.
    pub epoch: PlanEpoch,
    /// Why it runs.
    pub reason: Reason,
    /// When it was wanted.
    pub proposed: Instant,
}

/// The actor.
pub struct Supervisor {
    blueprint: Arc<Blueprint>,
    fleet: Fleet,
    swap: Swap,
    /// The proposal that is being carried out.
    proposal: Option<Underway>,
    /// Plans to try, one after the other, because a unit is gone; empty with a unit gone means that none is left.
    fallbacks: Option<(UnitId, VecDeque<PartitionPlan>)>,
    /// The plan that ran before a fall-back, and how long to wait before it is tried again.
    recovery: Option<(UnitId, PartitionPlan, Duration)>,
    deaths: BTreeMap<UnitKey, Vec<Instant>>,
    rebuilding: BTreeSet<UnitKey>,
    /// Units that were rebuilt while a plan cut over, to be looked at when it has.
    rebuilt: Vec<Rebuilt>,
    gone: BTreeSet<UnitId>,
    coordinator: Addr<Coordinator>,
    view: watch::Sender<Arc<PlanView>>,
}

/// A proposal that is being carried out.
struct Underway {
    plan: PartitionPlan,
    reason: Reason,
    started: Instant,
    reply: Option<oneshot::Sender<Result<SwapReport, SwapError>>>,
}

impl Supervisor {
    /// Starts every unit of the plan on the current arbiter, and tells `view` what runs. Fails if a unit cannot run its
    /// stages.
    pub async fn start(
        Opening { plan, epoch, reason, proposed }: Opening,
        blueprint: Blueprint,
        coordinator: Addr<Coordinator>,
        view: watch::Sender<Arc<PlanView>>,
    ) -> Result<Addr<Self>, UnitError> {
        let blueprint = Arc::new(blueprint);
        let supervisor = Self {
            blueprint: Arc::clone(&blueprint),
            fleet: Fleet::default(),
            swap: Swap::taking_over(plan.clone(), epoch),
            proposal: None,
            fallbacks: None,
            recovery: None,
            deaths: BTreeMap::new(),
            rebuilding: BTreeSet::new(),
            rebuilt: Vec::new(),
            gone: BTreeSet::new(),
            coordinator,
            view,
        };
        let address = supervisor.start();
        let mut fleet = Fleet::default();
        for (unit, spec) in &plan.units {
            let key = UnitKey { unit: unit.clone(), spec: spec.clone() };
            let down = address.clone().recipient();
            let stages = plan.installed().into_iter().filter(|i| i.unit == *unit).collect();
            fleet.build(&blueprint, key, stages, down).await?;
        }
        address.do_send(Started(fleet, reason, proposed));
        Ok(address)
    }

    /// The way through one model's stages under a plan; empty if one of them is not there.
    fn hops(&self, plan: &PartitionPlan, role: ModelRole) -> Vec<Hop> {
        let stages = plan.chain(role).into_iter().map(|placement| plan.installed_at(placement));
        let hops = stages.map(|stage| self.fleet.hop(&stage));
        hops.collect::<Option<Vec<Hop>>>().unwrap_or_default()
    }

    fn cut_over(&self, plan: &PartitionPlan, epoch: PlanEpoch, caches: (Caches, Option<Caches>)) {
        let (policy, units) = (self.blueprint.rules)(plan);
        self.coordinator.do_send(CutOver {
            epoch,
            target: self.hops(plan, ModelRole::Target),
            target_caches: caches.0,
            draft: self.hops(plan, ModelRole::Draft),
            draft_caches: caches.1,
            policy,
            units,
        });
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let address = context.address();
        let (warmed, cut_over) = (address.clone().recipient(), address.clone().recipient());
        let unfit = address.recipient();
        self.coordinator.do_send(Report(Superior { warmed, cut_over, unfit }));
    }
}

/// Every unit of the first plan runs.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct Started(Fleet, Reason, Instant);

impl Handler<Started> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Started, _: &mut Self::Context) {
        let Started(fleet, reason, proposed) = message;
        self.fleet = fleet;
        let plan = self.swap.running().clone();
        let draft = plan.has_draft().then_some(Caches::Empty);
        self.cut_over(&plan, self.swap.epoch(), (Caches::Empty, draft));
        self.note(&plan, &reason, proposed.elapsed(), &Ok(self.swap.epoch()));
    }
}

/// Who is told that a unit has died.
type Down = Recipient<UnitDown>;
