//! Units that die: rebuilt where they were, and if that does not help, done without.
//!
//! *Invariant:* while a unit of the running plan is missing, it is being rebuilt, or a plan without it is on its way, or
//! everybody has been told that there is none.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use actix::prelude::{ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use outrider_plans::swap::{Event, fallbacks};
use outrider_plans::{ModelRole, Proposal, Reason, UnitId};
use tracing::{error, info, warn};

use super::Supervisor;
use super::fleet::{Fleet, UnitKey};
use crate::messages::{Hopeless, Reroute, UnitDown, UnitError, UnitLost, UnitUnfit};

/// Longest wait before a plan that was fallen back from is tried again.
const RECOVER_AFTER_MAX: Duration = Duration::from_secs(600);

impl Supervisor {
    fn is_in_use(&self, key: &UnitKey) -> bool {
        self.swap.running().units.get(&key.unit) == Some(&key.spec)
    }

    fn roles_on(&self, unit: &UnitId) -> Vec<ModelRole> {
        let roles = [ModelRole::Target, ModelRole::Draft].into_iter();
        let runs = |role| self.swap.running().chain(role).iter().any(|p| p.unit == *unit);
        roles.filter(|&role| runs(role)).collect()
    }

    /// A unit is dead: rebuilt if it is in use and has not died too often.
    fn died(&mut self, key: &UnitKey, reason: &str, context: &mut Context<Self>) {
        let policy = self.blueprint.restart;
        self.blueprint.meter.lost(&key.unit, key.spec.kind());
        let deaths = self.deaths.entry(key.clone()).or_default();
        let now = Instant::now();
        deaths.retain(|&death| now.duration_since(death) < policy.window);
        deaths.push(now);
        let deaths = deaths.len();
        let (unit, spec, detail) = (key.unit.clone(), key.spec.clone(), reason.to_owned());
        self.step(Event::Lost { unit, spec, detail }, context);
        if !self.is_in_use(key) {
            return;
        }
        if deaths > policy.restarts_max {
            error!(unit = %key.unit, reason, deaths, "unit given up");
            self.give_up(key.unit.clone(), context);
        } else {
            let wait = policy.backoff * 2u32.saturating_pow(deaths as u32 - 1);
            warn!(unit = %key.unit, reason, deaths, wait_ms = wait.as_millis() as u64, "rebuilding unit");
            self.rebuild(key.clone(), wait, context);
        }
    }

    fn rebuild(&mut self, key: UnitKey, wait: Duration, context: &mut Context<Self>) {
        if !self.rebuilding.insert(key.clone()) {
            return;
        }
        let stages = self.swap.running().installed().into_iter();
        let stages = stages.filter(|stage| stage.unit == key.unit).collect();
        let (blueprint, down) = (self.blueprint.clone(), context.address().recipient());
        let mut fleet = self.fleet.apart();
        let rebuild = async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let built = fleet.build(&blueprint, key.clone(), stages, down).await;
            Rebuilt { key, built: built.map(|()| fleet) }
        };
        context.spawn(rebuild.into_actor(self).map(|rebuilt, _, context| context.notify(rebuilt)));
    }

    /// Rebuilds units of the running plan that died while it took over.
    pub(super) fn rebuild_missing(&mut self, context: &mut Context<Self>) {
        if !self.swap.is_steady() || self.fallbacks.is_some() {
            return;
        }
        let plan = self.swap.running();
        let keys = plan
            .units
            .iter()
            .map(|(unit, spec)| UnitKey { unit: unit.clone(), spec: spec.clone() });
        let missing =
            keys.filter(|key| self.fleet.get(key).is_none() && !self.gone.contains(&key.unit));
        for key in missing.collect::<Vec<_>>() {
            self.rebuild(key, self.blueprint.restart.backoff, context);
        }
    }

    /// A unit is gone for good: plans without it are tried.
    fn give_up(&mut self, unit: UnitId, context: &mut Context<Self>) {
        self.gone.insert(unit.clone());
        let rebuilding = self.rebuilding.iter().map(|key| key.unit.clone());
        let lost: BTreeSet<UnitId> = self.gone.iter().cloned().chain(rebuilding).collect();
        let context_now = self.blueprint.context_of(&self.view.borrow().pair);
        let found = fallbacks(self.swap.running(), &lost, &context_now);
        self.fallbacks = Some((unit, VecDeque::from(found)));
        if self.swap.is_steady() {
            self.fall_back(context);
        }
    }

    /// Another plan runs than the one that fall-backs were made for: they are made anew, if it needs the unit that is gone.
    pub(super) fn reconsider(&mut self, context: &mut Context<Self>) {
        let Some((unit, _)) = self.fallbacks.take() else { return };
        let needed = self.swap.running().installed().into_iter().find(|i| i.unit == unit);
        if needed.is_some_and(|stage| !self.swap.installed().contains(&stage)) {
            self.give_up(unit, context);
        }
    }

    /// Tries the next plan that does without what is gone.
    pub(super) fn fall_back(&mut self, context: &mut Context<Self>) {
        let Some((unit, plans)) = &mut self.fallbacks else { return };
        let unit = unit.clone();
        let Some(plan) = plans.pop_front() else {
            self.fallbacks = None;
            let reason = format!("unit {unit} is gone, and no plan does without it");
            error!(%unit, "no plan does without it");
            self.coordinator.do_send(Hopeless { reason });
            return;
        };
        if self.recovery.is_none()
            && let Some(wait) = self.blueprint.restart.recover_after
        {
            self.recovery = Some((unit.clone(), self.swap.running().clone(), wait));
        }
        let proposal = Proposal { plan, expected: None, reason: Reason::Loss(unit) };
        self.propose(proposal, None, context);
    }

    /// A plan without the lost unit runs.
    pub(super) fn fell_back(&mut self, context: &mut Context<Self>) {
        self.fallbacks = None;
        self.recover_later(context);
    }

    /// Tries the plan before the fall-back again after a while: if its units do not start, that costs nothing.
    pub(super) fn recover_later(&mut self, context: &mut Context<Self>) {
        let Some((_, _, wait)) = &mut self.recovery else { return };
        let now = *wait;
        *wait = (*wait * 2).min(RECOVER_AFTER_MAX);
        let epoch = self.swap.epoch();
        context.run_later(now, move |supervisor, context| {
            if supervisor.swap.epoch() != epoch || !supervisor.swap.is_steady() {
                return;
            }
            let Some((unit, plan, _)) = supervisor.recovery.clone() else { return };
            let proposal = Proposal { plan, expected: Some(epoch), reason: Reason::Recovery(unit) };
            supervisor.propose(proposal, None, context);
        });
    }
}

impl Handler<UnitDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: UnitDown, context: &mut Self::Context) {
        let UnitDown { unit, instance, reason } = message;
        // A unit that fails while it is built is reported by whoever builds it.
        let Some(key) = self.fleet.key_of(instance) else { return };
        self.fleet.retire(&self.blueprint, &key);
        self.coordinator.do_send(UnitLost { unit, instance, reason: reason.clone() });
        self.died(&key, &reason, context);
    }
}

impl Handler<UnitUnfit> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: UnitUnfit, context: &mut Self::Context) {
        let UnitUnfit { unit, instance, reason } = message;
        let Some(key) = self.fleet.key_of(instance) else { return };
        error!(%unit, reason, "unit cannot run what the plan asks of it");
        self.fleet.retire(&self.blueprint, &key);
        self.coordinator.do_send(UnitLost { unit: unit.clone(), instance, reason: reason.clone() });
        let spec = key.spec.clone();
        self.step(Event::Lost { unit: unit.clone(), spec, detail: reason }, context);
        if self.is_in_use(&key) {
            self.give_up(unit, context);
        }
    }
}

/// A unit has been built anew, or not.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct Rebuilt {
    key: UnitKey,
    built: Result<Fleet, UnitError>,
}

impl Handler<Rebuilt> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: Rebuilt, context: &mut Self::Context) {
        if self.swap.is_cutting_over() {
            // The coordinator may run the new plan already, so that the old one's stages are not the ones to tell it of.
            self.rebuilt.push(message);
            return;
        }
        let Rebuilt { key, built } = message;
        self.rebuilding.remove(&key);
        let mut fleet = match built {
            Ok(fleet) => fleet,
            Err(error) => {
                if self.is_in_use(&key) {
                    self.died(&key, &error.to_string(), context);
                }
                return;
            }
        };
        // Another plan may have come meanwhile, with other stages for this unit or none.
        let wanted = self.swap.running().installed();
        let wanted = wanted.iter().filter(|stage| stage.unit == key.unit);
        let whole = fleet.get(&key).is_some_and(|instance| instance.stages.keys().eq(wanted));
        if !self.is_in_use(&key) || !whole || self.fleet.get(&key).is_some() {
            fleet.retire(&self.blueprint, &key);
            self.rebuild_missing(context);
            return;
        }
        info!(unit = %key.unit, "unit rebuilt");
        self.fleet.absorb(fleet);
        self.gone.remove(&key.unit);
        let (unit, spec) = (key.unit.clone(), key.spec.clone());
        self.step(Event::Rebuilt { unit, spec }, context);
        let plan = self.swap.running().clone();
        self.coordinator.do_send(Reroute {
            target: self.hops(&plan, ModelRole::Target),
            draft: self.hops(&plan, ModelRole::Draft),
            rebuilt: self.roles_on(&key.unit),
        });
    }
}
