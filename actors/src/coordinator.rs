//! The coordinator: turns the scheduler's actions into messages, and replies into the scheduler's events.
//!
//! *Invariant:* it decides nothing about decoding. Every message is answered by one synchronous
//! [`Scheduler::step`] and the messages that come of it; nothing here waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::{Actor, AsyncContext, Context, Handler, MessageResult, WrapFuture};
use outrider_devices::SequenceId;
use outrider_observability::{RequestMetrics, SpeculationMetrics};
use outrider_pipeline::scheduler::{Action, Event, Scheduler, Ticket};
use outrider_plans::{ModelRole, UnitId};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::ledger::Ledger;
use crate::messages::{
    Cancel, Drain, Generate, Hop, Inspect, Release, Remedy, RoundDone, RoundOutcome, Route,
    RoutesReady, RunDraft, RunStage, Snapshot, UnitLost,
};
use crate::pace_meter::PaceMeter;
use crate::request::Refusal;

/// The actor.
pub struct Coordinator {
    scheduler: Scheduler,
    ledger: Ledger,
    pace: PaceMeter,
    target: Option<Arc<Route>>,
    draft: Option<Arc<Route>>,
    in_flight: BTreeMap<Ticket, ModelRole>,
    lost: BTreeMap<UnitId, Loss>,
    sequences: u64,
    draining: bool,
}

impl Coordinator {
    /// A coordinator that waits for its first routes.
    pub fn new(
        mut scheduler: Scheduler,
        requests: RequestMetrics,
        speculation: SpeculationMetrics,
    ) -> Self {
        for role in [ModelRole::Target, ModelRole::Draft] {
            let actions = scheduler.step(0, Event::Pause { role });
            assert!(actions.is_empty(), "a scheduler without sequences has nothing to do");
        }
        Self {
            scheduler,
            ledger: Ledger::new(requests),
            pace: PaceMeter::new(speculation),
            target: None,
            draft: None,
            in_flight: BTreeMap::new(),
            lost: BTreeMap::new(),
            sequences: 0,
            draining: false,
        }
    }

    /// One step of the scheduler, and the messages that come of it. Returns why a new sequence was rejected, if it was.
    fn step(&mut self, event: Event) -> Option<Refusal> {
        let mut refusal = None;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.scheduler.step(self.pace.now_ns(), event) {
                match self.apply(action) {
                    Applied::Done => {}
                    Applied::ReaderLeft(sequence) => events.push(Event::Cancel(sequence)),
                    Applied::Refused(why) => refusal = Some(why),
                }
            }
        }
        self.ledger.load(self.scheduler.running(), self.scheduler.waiting());
        self.pace.show(self.scheduler.pacing());
        self.ledger.cache_usage(self.scheduler.cache_usage());
        refusal
    }

    fn apply(&mut self, action: Action) -> Applied {
        let now = Instant::now();
        match action {
            Action::RunTarget { ticket, batch } => {
                self.ledger.started(batch.segments.iter().map(|s| s.sequence), now);
                let route = self.target.as_ref().expect("the scheduler was resumed for the target");
                let route = Arc::clone(route);
                self.in_flight.insert(ticket, ModelRole::Target);
                let batches = route.hops[0].batches.clone();
                let batch = Arc::new(batch);
                batches.do_send(RunStage { ticket, route, hop: 0, batch, input: None });
            }
            Action::RunDraft { ticket, batch } => {
                let route = self.draft.as_ref().expect("the scheduler was resumed for the draft");
                let route = Arc::clone(route);
                self.in_flight.insert(ticket, ModelRole::Draft);
                let drafts = route.hops[0].drafts.clone();
                drafts.do_send(RunDraft { ticket, route, batch });
            }
            Action::Emit { sequence, tokens, text, offered, accepted } => {
                self.pace.round(offered, accepted);
                if !self.ledger.text(sequence, text, tokens, now) {
                    return Applied::ReaderLeft(sequence);
                }
            }
            Action::Finish { sequence, reason, statistics } => {
                debug!(sequence = sequence.0, ?reason, ?statistics, "finished");
                self.pace.finished(&statistics);
                self.ledger.close(sequence, reason, statistics, now);
            }
            Action::Release { sequence } => {
                for route in self.target.iter().chain(&self.draft) {
                    route.hops.iter().for_each(|hop| hop.releases.do_send(Release { sequence }));
                }
            }
            Action::Reject { sequence, reason } => {
                self.ledger.forget(sequence);
                return Applied::Refused(reason.into());
            }
        }
        Applied::Done
    }

    fn route(
        &self,
        role: ModelRole,
        hops: Vec<Hop>,
        context: &Context<Self>,
    ) -> Option<Arc<Route>> {
        let reply_to = context.address().recipient();
        (!hops.is_empty()).then(|| Arc::new(Route { role, hops, reply_to }))
    }

    /// Whether requests can be served: `Err` says why not.
    fn ready(&self) -> Result<(), String> {
        match self.lost.iter().next() {
            Some((unit, loss)) => Err(format!("unit {unit} is down: {}", loss.reason)),
            None if self.target.is_none() => Err("the units are still starting".into()),
            None => Ok(()),
        }
    }
}

/// A unit of the target that does not run.
struct Loss {
    reason: String,
    rebuilding: bool,
}

enum Applied {
    Done,
    ReaderLeft(SequenceId),
    Refused(Refusal),
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // Work in flight is bounded by the scheduler; the mailbox must hold all of its messages and the admissions.
        context.set_mailbox_capacity(4096);
    }
}

impl Handler<Generate> for Coordinator {
    type Result = Result<SequenceId, Refusal>;

    fn handle(&mut self, message: Generate, context: &mut Self::Context) -> Self::Result {
        if self.draining {
            return Err(Refusal::Draining);
        }
        if let Some((unit, loss)) = self.lost.iter().find(|(_, loss)| !loss.rebuilding) {
            let reason = format!("unit {unit} is gone: {}", loss.reason);
            return Err(Refusal::Unavailable { reason });
        }
        let Generate { mut admission, events } = message;
        self.sequences += 1;
        let sequence = SequenceId(self.sequences);
        admission.sequence = sequence;
        let reader = events.clone();
        let (open, closed) = oneshot::channel();
        self.ledger.open(sequence, events, open, Instant::now());
        if let Some(refusal) = self.step(Event::Admit(admission)) {
            return Err(refusal);
        }
        // A reader that leaves is noticed at once, wherever its request is.
        let address = context.address();
        context.spawn(
            async move {
                tokio::select! {
                    () = reader.closed() => {
                        // A coordinator that has ended has nothing to cancel.
                        let _ = address.send(Cancel { sequence }).await;
                    }
                    _ = closed => {}
                }
            }
            .into_actor(self),
        );
        Ok(sequence)
    }
}

impl Handler<Cancel> for Coordinator {
    type Result = bool;

    fn handle(&mut self, message: Cancel, _: &mut Self::Context) -> bool {
        let open = self.ledger.is_open(message.sequence);
        if open {
            self.step(Event::Cancel(message.sequence));
        }
        open
    }
}

impl Handler<RoundDone> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: RoundDone, _: &mut Self::Context) {
        let RoundDone { ticket, role, outcome } = message;
        if self.in_flight.remove(&ticket).is_none() {
            debug!(?ticket, "a late reply of a round that was given up");
            return;
        }
        let event = match outcome {
            Ok(RoundOutcome::Picks(picks)) => Event::TargetDone { ticket, picks },
            Ok(RoundOutcome::Drafted(drafted)) => Event::DraftDone { ticket, drafted },
            Err(error) => {
                warn!(%error, %role, "a round failed");
                self.step(Event::Failed { role, ticket });
                if error.remedy() == Remedy::Replan && role == ModelRole::Target {
                    self.give_up(&error.to_string());
                    self.step(Event::Resume { role });
                }
                return;
            }
        };
        self.step(event);
    }
}

impl Handler<UnitLost> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: UnitLost, _: &mut Self::Context) {
        let UnitLost { unit, reason, rebuilding } = message;
        let runs_on = |route: &Option<Arc<Route>>| {
            route.iter().any(|r| r.hops.iter().any(|hop| hop.unit == unit))
        };
        let target = runs_on(&self.target);
        let draft = runs_on(&self.draft);
        let roles = [(ModelRole::Target, target), (ModelRole::Draft, draft)];
        for (role, _) in roles.into_iter().filter(|(_, runs)| *runs) {
            self.suspend(role);
        }
        if target {
            self.lost.insert(unit.clone(), Loss { reason: reason.clone(), rebuilding });
        }
        if target && !rebuilding {
            self.give_up(&format!("unit {unit} is gone: {reason}"));
        }
    }
}

impl Coordinator {
    /// No rounds of this model until its routes are ready again; those in flight will not come back.
    fn suspend(&mut self, role: ModelRole) {
        self.step(Event::Pause { role });
        let of_role = |(_, r): &(&Ticket, &ModelRole)| **r == role;
        let given_up: Vec<Ticket> =
            self.in_flight.iter().filter(of_role).map(|(t, _)| *t).collect();
        for ticket in given_up {
            self.in_flight.remove(&ticket);
            self.step(Event::Failed { role, ticket });
        }
    }

    /// The target cannot finish what is open. (Without its draft, decoding goes on.)
    fn give_up(&mut self, reason: &str) {
        for sequence in self.ledger.open_sequences() {
            self.step(Event::Abort { sequence, reason: reason.to_owned() });
        }
    }
}

impl Handler<RoutesReady> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: RoutesReady, context: &mut Self::Context) {
        let RoutesReady { target, draft, rebuilt } = message;
        self.target = self.route(ModelRole::Target, target, context);
        self.draft = self.route(ModelRole::Draft, draft, context);
        self.lost.clear();
        for role in rebuilt {
            info!(%role, "rebuilding its caches from tokens");
            self.step(Event::CachesLost { role });
        }
        self.step(Event::Resume { role: ModelRole::Target });
        if self.draft.is_some() {
            self.step(Event::Resume { role: ModelRole::Draft });
        }
    }
}

impl Handler<Inspect> for Coordinator {
    type Result = MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        MessageResult(Snapshot {
            ready: self.ready(),
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
        })
    }
}

impl Handler<Drain> for Coordinator {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.draining = true;
    }
}
