//! Carries out plan swaps: the swap's actions become messages to units and to the coordinator, their answers its events.
//!
//! *Invariant:* every proposal is answered, counted, timed, logged and written into the history once, at its end.

use std::time::Instant;

use actix::prelude::{
    ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, WrapFuture,
};
use outrider_devices::MemoryUse;
use outrider_observability::{RunningPlan, SwapResult};
use outrider_plans::swap::{Action, Event, Forecasted};
use outrider_plans::{
    Installed, Machine, PartitionPlan, PlanEpoch, Proposal, Reason, SwapError, SwapReport,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::fleet::{UnitKey, install_on};
use super::{Supervisor, Underway};
use crate::messages::{
    CutOverDone, Dissolve, Evict, InstallId, InstanceId, PreviewPlan, ProposePlan, StopWarmUp,
    UnitError, WarmUp, WarmUpDone,
};
use crate::office::Succession;

impl Supervisor {
    /// The machine with the memory that is free now.
    fn machine_now(&self) -> Machine {
        let memory_bytes = (self.blueprint.memory_free)();
        Machine { memory_bytes, ..self.blueprint.context.machine.clone() }
    }

    /// Takes a proposal up. Its end is told to `reply`.
    pub(super) fn propose(
        &mut self,
        proposal: Proposal,
        reply: Option<oneshot::Sender<Result<SwapReport, SwapError>>>,
        context: &mut Context<Self>,
    ) {
        let Proposal { plan, reason, .. } = proposal.clone();
        let underway = Underway { plan, reason, started: Instant::now(), reply };
        match self.swap.propose(proposal, &self.machine_now()) {
            Ok(actions) => {
                info!(plan = underway.plan.name, reason = %underway.reason, "plan swap begins");
                self.proposal = Some(underway);
                self.perform(actions, context);
            }
            Err(refused) => self.ended(underway, Err(refused), context),
        }
    }

    pub(super) fn step(&mut self, event: Event, context: &mut Context<Self>) {
        let actions = self.swap.step(event);
        self.perform(actions, context);
    }

    pub(super) fn perform(&mut self, actions: Vec<Action>, context: &mut Context<Self>) {
        for action in actions {
            match action {
                Action::Install(stage) => self.install(stage, context),
                Action::Warm(roles) => {
                    let plan = self.proposed();
                    let routes = roles.into_iter().map(|role| (role, self.hops(plan, role)));
                    let (epoch, routes) = (self.swap.epoch().next(), routes.collect());
                    self.coordinator.do_send(WarmUp { epoch, routes });
                }
                Action::StopWarming => self.coordinator.do_send(StopWarmUp),
                Action::CutOver { plan, epoch, target, draft } => {
                    self.cut_over(&plan, epoch, (target, draft));
                }
                Action::HandOver { plan, epoch } => self.hand_over(plan, epoch, context),
                Action::Evict(stage) => self.evict(stage, context),
                Action::End(result) => {
                    let underway = self.proposal.take().expect("a proposal was taken up");
                    self.ended(underway, result, context);
                }
            }
        }
    }

    fn proposed(&self) -> &PartitionPlan {
        &self.proposal.as_ref().expect("a proposal was taken up").plan
    }

    fn install(&mut self, stage: Installed, context: &mut Context<Self>) {
        let key = UnitKey::of(&stage);
        let down = context.address().recipient();
        let install = self.fleet.name_install();
        let message = self.blueprint.install(&stage, install);
        let instance = self.fleet.start(&self.blueprint, &key, down);
        let (address, instance) = (instance.address.clone(), instance.id);
        let sent = async move { install_on(&address, &key.unit, message?).await };
        context.spawn(sent.into_actor(self).map(move |result, _, context| {
            context.notify(InstallDone { stage, instance, install, result });
        }));
    }

    /// Has another engine started for a plan with another target.
    fn hand_over(&mut self, plan: PartitionPlan, epoch: PlanEpoch, context: &mut Context<Self>) {
        let Some(successor) = self.blueprint.successor.clone() else {
            let detail = "nothing but a service can have another target: start anew".to_owned();
            return context.notify(HandOverDone(Err(detail)));
        };
        let Some(Underway { reason, started: proposed, .. }) = &self.proposal else {
            unreachable!("a proposal was taken up")
        };
        let (reason, proposed) = (reason.clone(), *proposed);
        let history = self.view.borrow().history.clone();
        let started = successor(Succession { plan, epoch, reason, proposed, history });
        context.spawn(started.into_actor(self).map(|started, _, context| {
            context.notify(HandOverDone(started));
        }));
    }

    fn evict(&mut self, stage: Installed, context: &mut Context<Self>) {
        let there = self.fleet.get(&UnitKey::of(&stage)).and_then(|instance| {
            let (install, _) = instance.stages.get(&stage)?;
            Some((instance.address.clone(), *install))
        });
        let sent = async move {
            if let Some((address, install)) = there {
                // A unit that has ended holds nothing.
                let _ = address.send(Evict { install }).await;
            }
        };
        context.spawn(sent.into_actor(self).map(move |(), _, context| {
            context.notify(EvictDone { stage });
        }));
    }

    /// The end of a proposal, whether it was taken up or refused.
    fn ended(
        &mut self,
        underway: Underway,
        result: Result<SwapReport, SwapError>,
        context: &mut Context<Self>,
    ) {
        let Underway { plan, reason, started, reply } = underway;
        let took = started.elapsed();
        let meter = &self.blueprint.meter;
        let (name, id) = (&plan.name, plan.fingerprint());
        let word = match &result {
            Ok(report) => {
                info!(plan = name, %id, generation = %report.generation, %reason, took_ms = took.as_millis() as u64, "plan swap committed");
                // Whoever has been superseded runs on unseen: the successor shows its own plan.
                if !self.swap.is_superseded() {
                    meter.plan().running(RunningPlan::new(&plan, report.generation.0));
                }
                SwapResult::Committed
            }
            Err(error) => {
                warn!(plan = name, %id, %error, %reason, took_ms = took.as_millis() as u64, "plan swap ended without effect");
                if error.is_refusal() { SwapResult::Refused } else { SwapResult::Failed }
            }
        };
        if result.is_ok() {
            // A plan that runs says that its units are there.
            let running = self.swap.running();
            self.gone.retain(|unit| !running.units.contains_key(unit));
        }
        let meter = &self.blueprint.meter;
        meter.plan().swaps.increment(word);
        meter.plan().swap_duration.record(took);
        meter.swap(format!("{} {name}", word_of(word)), started);
        let epoch = result.as_ref().map(|report| report.generation).map_err(Clone::clone);
        self.note(&plan, &reason, took, &epoch);
        if let Some(reply) = reply {
            // Whoever asked may have left.
            let _ = reply.send(result.clone());
        }
        self.after_swap(&reason, result, context);
    }

    /// Looks after what has happened during a swap, now that another may begin.
    fn after_swap(
        &mut self,
        reason: &Reason,
        result: Result<SwapReport, SwapError>,
        context: &mut Context<Self>,
    ) {
        if !self.swap.is_steady() {
            return;
        }
        match (reason, &result) {
            (Reason::Loss(_), Ok(_)) => self.fell_back(context),
            (Reason::Recovery(_), Ok(_)) => self.recovery = None,
            (Reason::Recovery(_), Err(_)) => self.recover_later(context),
            (Reason::Loss(_), Err(_)) => {}
            // Somebody has decided otherwise.
            (_, Ok(_)) => {
                self.recovery = None;
                self.reconsider(context);
            }
            (_, Err(_)) => {}
        }
        if self.fallbacks.is_some() {
            self.fall_back(context);
        }
        self.rebuild_missing(context);
    }
}

fn word_of(result: SwapResult) -> &'static str {
    match result {
        SwapResult::Committed => "swap to",
        SwapResult::Refused => "refused:",
        SwapResult::Failed => "failed:",
    }
}

impl Handler<ProposePlan> for Supervisor {
    type Result = ResponseFuture<Result<SwapReport, SwapError>>;

    fn handle(&mut self, message: ProposePlan, context: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.propose(message.0, Some(reply), context);
        Box::pin(async move { answer.await.unwrap_or(Err(SwapError::Ended)) })
    }
}

impl Handler<PreviewPlan> for Supervisor {
    type Result = Result<Forecasted, SwapError>;

    fn handle(&mut self, message: PreviewPlan, _: &mut Self::Context) -> Self::Result {
        self.swap.preview(&message.0, &self.machine_now())
    }
}

/// Another engine takes the new requests, or did not start.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct HandOverDone(Result<(), String>);

impl Handler<HandOverDone> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: HandOverDone, context: &mut Self::Context) {
        let event = match message.0 {
            Ok(()) => Event::HandedOver,
            Err(detail) => Event::HandOverFailed(detail),
        };
        self.step(event, context);
    }
}

impl Handler<Dissolve> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Dissolve, context: &mut Self::Context) {
        self.fleet.retire_all(&self.blueprint);
        context.stop();
    }
}

/// The answer of a unit to an installation.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct InstallDone {
    stage: Installed,
    instance: InstanceId,
    install: InstallId,
    result: Result<MemoryUse, UnitError>,
}

impl Handler<InstallDone> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: InstallDone, context: &mut Self::Context) {
        let InstallDone { stage, instance, install, result } = message;
        let key = UnitKey::of(&stage);
        let event = match result {
            Ok(memory) => {
                let done = (instance, install, memory);
                if self.fleet.installed(&self.blueprint, &stage, done) {
                    Event::Installed(stage)
                } else {
                    Event::InstallFailed(stage, "its unit has died".into())
                }
            }
            Err(error) => {
                // A unit that was started for this stage alone is not needed.
                if self.fleet.get(&key).is_some_and(|i| i.id == instance && i.stages.is_empty()) {
                    self.fleet.retire(&self.blueprint, &key);
                }
                Event::InstallFailed(stage, error.to_string())
            }
        };
        self.step(event, context);
    }
}

/// A stage has been freed.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct EvictDone {
    stage: Installed,
}

impl Handler<EvictDone> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: EvictDone, context: &mut Self::Context) {
        let EvictDone { stage } = message;
        self.fleet.evicted(&self.blueprint, &stage);
        self.step(Event::Evicted(stage), context);
    }
}

impl Handler<WarmUpDone> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: WarmUpDone, context: &mut Self::Context) {
        let WarmUpDone { epoch, outcome } = message;
        if epoch != self.swap.epoch().next() || self.swap.is_steady() {
            return;
        }
        let event = match outcome {
            Ok(()) => Event::Warmed,
            Err(detail) => Event::WarmFailed(detail),
        };
        self.step(event, context);
    }
}

impl Handler<CutOverDone> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: CutOverDone, context: &mut Self::Context) {
        // The first plan's start is no swap.
        if message.epoch == self.swap.epoch().next() {
            self.step(Event::CutOver, context);
            self.rebuilt.drain(..).for_each(|rebuilt| context.notify(rebuilt));
        }
    }
}
