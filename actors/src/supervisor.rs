//! The supervisor: starts every unit from a factory, installs its stages, and rebuilds it when its worker ends.
//!
//! *Invariant:* units are made here and nowhere else. A unit that dies alone leaves the others running; one that dies
//! again and again is given up, and said so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Recipient, WrapFuture,
};
use outrider_devices::{MemoryUse, SlotLimits, Subgraph};
use outrider_plans::{ModelRole, PartitionPlan, StageId, UnitId};
use tracing::{error, info, warn};

use crate::messages::{Hop, Install, RoutesReady, UnitDown, UnitError, UnitLost};
use crate::meter::FleetMeter;
use crate::unit::{ComputeUnit, DeviceFactory, Waiting};

/// Makes the subgraph of a stage.
pub type StageSource = Arc<dyn Fn(StageId) -> Arc<Subgraph> + Send + Sync>;

/// How often a unit is rebuilt before it is given up.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Most rebuilds within `window`.
    pub restarts_max: usize,
    /// Over which time they are counted.
    pub window: Duration,
    /// Wait before a rebuild; doubled for each one within the window.
    pub backoff: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            restarts_max: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(50),
        }
    }
}

/// Everything that units are made of.
pub struct Blueprint {
    /// What runs where.
    pub plan: PartitionPlan,
    /// Makes each unit's device.
    pub factories: BTreeMap<UnitId, DeviceFactory>,
    /// Makes each stage.
    pub stages: StageSource,
    /// Cache slots of each model's stages.
    pub limits: BTreeMap<ModelRole, SlotLimits>,
    /// What units report to.
    pub meter: FleetMeter,
    /// When to give up.
    pub restart: RestartPolicy,
}

struct Running {
    address: Addr<ComputeUnit>,
    deaths: Vec<Instant>,
}

/// The actor.
pub struct Supervisor {
    blueprint: Arc<Blueprint>,
    units: BTreeMap<UnitId, Running>,
    losses: Recipient<UnitLost>,
    routes: Recipient<RoutesReady>,
}

/// Starts a unit with all its stages, on the current arbiter.
async fn build(
    blueprint: &Blueprint,
    unit: &UnitId,
    down: Recipient<UnitDown>,
) -> Result<Addr<ComputeUnit>, UnitError> {
    let factory = Arc::clone(&blueprint.factories[unit]);
    let (meter, waiting) = (blueprint.meter.unit(unit), Waiting::of(&blueprint.plan));
    let address = ComputeUnit::start_with(unit.clone(), factory, meter, (waiting, down));
    let mut held = MemoryUse::default();
    for placement in blueprint.plan.stages.iter().filter(|p| p.unit == *unit) {
        let stage = placement.stage;
        let install = Install {
            stage,
            subgraph: (blueprint.stages)(stage),
            limits: blueprint.limits[&stage.role],
        };
        let gone = |reason: &str| UnitError::Gone { unit: unit.clone(), reason: reason.into() };
        let memory = address.send(install).await.map_err(|_| gone("its actor has ended"))??;
        info!(%unit, %stage, weights = memory.weights, caches = memory.caches, "stage installed");
        held.weights += memory.weights;
        held.caches += memory.caches;
        held.scratch += memory.scratch;
    }
    blueprint.meter.memory(unit, held);
    Ok(address)
}

impl Supervisor {
    /// Starts every unit of the plan on the current arbiter. Fails if one cannot run its stages.
    pub async fn start(
        blueprint: Blueprint,
        losses: Recipient<UnitLost>,
        routes: Recipient<RoutesReady>,
    ) -> Result<Addr<Self>, UnitError> {
        let supervisor =
            Self { blueprint: Arc::new(blueprint), units: BTreeMap::new(), losses, routes };
        let blueprint = Arc::clone(&supervisor.blueprint);
        let address = supervisor.start();
        let mut built = BTreeMap::new();
        for unit in blueprint.plan.units.keys() {
            built.insert(unit.clone(), build(&blueprint, unit, address.clone().recipient()).await?);
        }
        address.do_send(Built { units: built, rebuilt: false });
        Ok(address)
    }

    /// Tells the coordinator where to send rounds, once every unit of the target runs.
    fn publish(&self, rebuilt: Vec<ModelRole>) {
        let chain = |role| -> Vec<Hop> {
            let stages = self.blueprint.plan.chain(role);
            let hop = |placement: &&outrider_plans::Placement| {
                let address = &self.units.get(&placement.unit)?.address;
                Some(Hop {
                    unit: placement.unit.clone(),
                    stage: placement.stage,
                    batches: address.clone().recipient(),
                    drafts: address.clone().recipient(),
                    releases: address.clone().recipient(),
                })
            };
            stages.iter().filter_map(hop).collect()
        };
        let whole = |role, chain: &Vec<Hop>| chain.len() == self.blueprint.plan.chain(role).len();
        let (target, mut draft) = (chain(ModelRole::Target), chain(ModelRole::Draft));
        // Without one of its units a model cannot run; without the draft, decoding goes on.
        if !whole(ModelRole::Draft, &draft) {
            draft.clear();
        }
        if whole(ModelRole::Target, &target) {
            self.routes.do_send(RoutesReady { target, draft, rebuilt });
        }
    }

    fn roles_on(&self, unit: &UnitId) -> Vec<ModelRole> {
        [ModelRole::Target, ModelRole::Draft]
            .into_iter()
            .filter(|&role| self.blueprint.plan.chain(role).iter().any(|p| p.unit == *unit))
            .collect()
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

/// Units that run with all their stages.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct Built {
    units: BTreeMap<UnitId, Addr<ComputeUnit>>,
    rebuilt: bool,
}

impl Handler<Built> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Built, _: &mut Self::Context) {
        let mut roles = Vec::new();
        for (unit, address) in message.units {
            roles.extend(self.roles_on(&unit));
            let deaths = self.units.remove(&unit).map_or_else(Vec::new, |old| old.deaths);
            self.units.insert(unit, Running { address, deaths });
        }
        roles.sort();
        roles.dedup();
        self.publish(if message.rebuilt { roles } else { Vec::new() });
    }
}

impl Handler<UnitDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: UnitDown, context: &mut Self::Context) {
        let UnitDown { unit, reason } = message;
        let policy = self.blueprint.restart;
        // A unit that fails while the service starts is reported by `start` itself.
        let Some(running) = self.units.get_mut(&unit) else { return };
        let now = Instant::now();
        running.deaths.retain(|&death| now.duration_since(death) < policy.window);
        running.deaths.push(now);
        let deaths = running.deaths.len();
        let rebuilding = deaths <= policy.restarts_max;
        self.blueprint.meter.lost(&unit);
        self.losses.do_send(UnitLost { unit: unit.clone(), reason: reason.clone(), rebuilding });
        if !rebuilding {
            self.units.remove(&unit);
            error!(%unit, reason, deaths, "unit given up");
            return;
        }
        let wait = policy.backoff * 2u32.saturating_pow(deaths as u32 - 1);
        warn!(%unit, reason, deaths, wait_ms = wait.as_millis() as u64, "rebuilding unit");
        let blueprint = Arc::clone(&self.blueprint);
        let down = context.address().recipient();
        let rebuild = async move {
            tokio::time::sleep(wait).await;
            let built = build(&blueprint, &unit, down).await;
            (unit, built)
        };
        context.spawn(rebuild.into_actor(self).map(|(unit, built), _, context| match built {
            Ok(address) => {
                info!(%unit, "unit rebuilt");
                context.notify(Built { units: [(unit, address)].into(), rebuilt: true });
            }
            Err(error) => {
                context.notify(UnitDown { unit, reason: error.to_string() });
            }
        }));
    }
}
