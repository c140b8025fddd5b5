//! The coordinator: turns the scheduler's actions into messages, and replies into the scheduler's events.
//!
//! *Invariants:* it decides nothing about decoding. Every message is answered by one synchronous
//! [`Scheduler::step`] and the messages that come of it; nothing here waits. A reply counts only if its round is under
//! way and its route is the one in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::{Actor, AsyncContext, Context, Handler, MessageResult, Recipient, WrapFuture};
use outrider_devices::SequenceId;
use outrider_observability::{PlanMetrics, RequestMetrics, SpeculationMetrics};
use outrider_pipeline::scheduler::{Action, Event, Scheduler, Takeover, Ticket};
use outrider_plans::{Caches, ModelRole, PlanEpoch, UnitId};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::ledger::Ledger;
use crate::messages::{
    Cancel, CancelCause, CutOver, CutOverDone, Drain, Generate, Hop, Hopeless, Inspect, InstanceId,
    Release, Remedy, Reroute, RoundDone, RoundOutcome, Route, RunDraft, RunStage, Snapshot,
    StopWarmUp, UnitError, UnitLost, UnitUnfit, WarmUp, WarmUpDone,
};
use crate::pace_meter::PaceMeter;
use crate::request::Refusal;

/// The actor.
pub struct Coordinator {
    scheduler: Scheduler,
    ledger: Ledger,
    pace: PaceMeter,
    plans: PlanMetrics,
    epoch: PlanEpoch,
    target: Option<Arc<Route>>,
    draft: Option<Arc<Route>>,
    in_flight: BTreeMap<Ticket, ModelRole>,
    /// The routes of a plan that is on its way, while their caches are being filled.
    warming: BTreeMap<ModelRole, Warming>,
    /// The plan that waits for the end of the running rounds.
    next: Option<CutOver>,
    lost: BTreeMap<InstanceId, Loss>,
    /// Units that died: messages to them are answered by nobody.
    dead: BTreeSet<InstanceId>,
    /// Who hears of warming and of the cut-over; nobody before the first plan runs.
    supervisor: Option<Superior>,
    sequences: u64,
    draining: bool,
}

impl Coordinator {
    /// A coordinator that waits for its first routes.
    pub fn new(
        mut scheduler: Scheduler,
        requests: RequestMetrics,
        (speculation, plans): (SpeculationMetrics, PlanMetrics),
    ) -> Self {
        for role in [ModelRole::Target, ModelRole::Draft] {
            let actions = scheduler.step(0, Event::Pause { role });
            assert!(actions.is_empty(), "a scheduler without sequences has nothing to do");
        }
        Self {
            scheduler,
            ledger: Ledger::new(requests),
            pace: PaceMeter::new(speculation),
            plans,
            epoch: PlanEpoch(1),
            target: None,
            draft: None,
            in_flight: BTreeMap::new(),
            warming: BTreeMap::new(),
            next: None,
            lost: BTreeMap::new(),
            dead: BTreeSet::new(),
            supervisor: None,
            sequences: 0,
            draining: false,
        }
    }

    /// The same, with names of sequences above those of a coordinator before it.
    pub fn numbering_from(self, sequences: u64) -> Self {
        Self { sequences, ..self }
    }

    /// One step of the scheduler, and the messages that come of it. Returns why a new sequence was rejected, if it was.
    fn step(&mut self, event: Event) -> Option<Refusal> {
        let mut refusal = None;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            // Units first: they compute while readers are told.
            let mut actions = self.scheduler.step(self.pace.now_ns(), event);
            let for_units = |action: &Action| {
                use Action::{Release, RunDraft, RunTarget, RunWarm};
                matches!(
                    action,
                    RunTarget { .. } | RunDraft { .. } | RunWarm { .. } | Release { .. }
                )
            };
            actions.sort_by_key(|action| !for_units(action));
            for action in actions {
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
                let slots = batch.segments.iter().map(|segment| segment.sequence);
                self.ledger.started(slots.filter_map(|slot| self.scheduler.holder(slot)), now);
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
            Action::RunWarm { role, ticket, batch } => {
                // While warming stops, role by role, the scheduler may still have asked for more.
                let Some(warming) = self.warming.get_mut(&role) else { return Applied::Done };
                warming.ticket = Some(ticket);
                let route = Arc::clone(&warming.route);
                let batches = route.hops[0].batches.clone();
                let batch = Arc::new(batch);
                batches.do_send(RunStage { ticket, route, hop: 0, batch, input: None });
            }
            Action::Warmed { role } => {
                let Some(warming) = self.warming.get_mut(&role) else { return Applied::Done };
                warming.done = true;
                if self.warming.values().all(|warming| warming.done) {
                    let epoch = warming_epoch(&self.warming);
                    self.tell(WarmUpDone { epoch, outcome: Ok(()) });
                }
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
                let warming = self.warming.values().map(|warming| &warming.route);
                for route in self.target.iter().chain(&self.draft).chain(warming) {
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

    fn new_route(
        &self,
        (role, epoch): (ModelRole, PlanEpoch),
        hops: Vec<Hop>,
        context: &Context<Self>,
    ) -> Option<Arc<Route>> {
        let reply_to = context.address().recipient();
        (!hops.is_empty()).then(|| Arc::new(Route { role, epoch, hops, reply_to }))
    }

    fn route(&self, role: ModelRole) -> Option<&Arc<Route>> {
        match role {
            ModelRole::Target => self.target.as_ref(),
            ModelRole::Draft => self.draft.as_ref(),
        }
    }

    fn tell(&self, done: WarmUpDone) {
        self.supervisor.iter().for_each(|superior| superior.warmed.do_send(done.clone()));
    }

    /// Whether requests can be served: `Err` says why not.
    fn ready(&self) -> Result<(), String> {
        match self.lost.iter().next() {
            Some((_, loss)) => Err(format!("unit {} is down: {}", loss.unit, loss.reason)),
            None if self.target.is_none() => Err("the units are still starting".into()),
            None => Ok(()),
        }
    }
}

/// A unit of the target that does not run.
struct Loss {
    unit: UnitId,
    reason: String,
    /// No plan does without it.
    hopeless: bool,
}

/// A model's next route, while its caches are being filled.
struct Warming {
    route: Arc<Route>,
    ticket: Option<Ticket>,
    done: bool,
}

fn warming_epoch(warming: &BTreeMap<ModelRole, Warming>) -> PlanEpoch {
    warming.values().next().map_or_else(PlanEpoch::default, |warming| warming.route.epoch)
}

/// Who is told how swaps go.
pub struct Superior {
    /// Of caches that are filled.
    pub warmed: Recipient<WarmUpDone>,
    /// Of plans that run.
    pub cut_over: Recipient<CutOverDone>,
    /// Of units that are not up to the plan.
    pub unfit: Recipient<UnitUnfit>,
}

/// Names the supervisor.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub struct Report(pub Superior);

impl Handler<Report> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Report, _: &mut Self::Context) {
        self.supervisor = Some(message.0);
    }
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
        if let Some(loss) = self.lost.values().find(|loss| loss.hopeless) {
            let reason = format!("unit {} is gone: {}", loss.unit, loss.reason);
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
                        let _ = address.send(Cancel { sequence, cause: CancelCause::Asked }).await;
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
            if message.cause == CancelCause::Deadline {
                self.ledger.expire(message.sequence);
            }
            self.step(Event::Cancel(message.sequence));
        }
        open
    }
}

impl Handler<RoundDone> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: RoundDone, context: &mut Self::Context) {
        self.round_done(message);
        self.cut_over_if_due(context);
    }
}

impl Coordinator {
    fn round_done(&mut self, message: RoundDone) {
        let RoundDone { ticket, role, epoch, outcome } = message;
        if let Some(warming) = self.warming.get_mut(&role)
            && warming.route.epoch == epoch
            && warming.ticket == Some(ticket)
        {
            warming.ticket = None;
            match outcome {
                Ok(_) => {
                    self.step(Event::WarmDone { role, ticket });
                }
                Err(error) => self.stop_warming(Some(error.to_string())),
            }
            return;
        }
        let current = self.route(role).is_some_and(|route| route.epoch == epoch);
        if !current || self.in_flight.remove(&ticket).is_none() {
            self.plans.stale_replies.increment(1);
            debug!(?ticket, %epoch, "a late reply of a round that was given up");
            return;
        }
        let event = match outcome {
            Ok(RoundOutcome::Picks(picks)) => Event::TargetDone { ticket, picks },
            Ok(RoundOutcome::Drafted(drafted)) => Event::DraftDone { ticket, drafted },
            Err(error) => {
                warn!(%error, %role, "a round failed");
                self.step(Event::Failed { role, ticket });
                if error.remedy() == Remedy::Replan {
                    self.replan(role, &error);
                }
                return;
            }
        };
        self.step(event);
    }

    /// Asks for a plan that does without the unit that refused.
    fn replan(&self, role: ModelRole, error: &UnitError) {
        let (UnitError::Device { unit, .. }
        | UnitError::Gone { unit, .. }
        | UnitError::Model { unit, .. }) = error;
        let hops = self.route(role).into_iter().flat_map(|route| &route.hops);
        let instance = hops.filter(|hop| hop.unit == *unit).map(|hop| hop.instance).next();
        if let (Some(superior), Some(instance)) = (&self.supervisor, instance) {
            let (unit, reason) = (unit.clone(), error.to_string());
            superior.unfit.do_send(UnitUnfit { unit, instance, reason });
        }
    }

    /// Forgets the caches that are being filled, and says why if it was not asked for.
    fn stop_warming(&mut self, because: Option<String>) {
        let epoch = warming_epoch(&self.warming);
        for role in std::mem::take(&mut self.warming).into_keys() {
            self.step(Event::StopWarming { role });
        }
        if let Some(detail) = because {
            self.tell(WarmUpDone { epoch, outcome: Err(detail) });
        }
    }

    /// Goes over to the next plan if no round of a model that moves is under way.
    fn cut_over_if_due(&mut self, context: &mut Context<Self>) {
        let due = self.next.take_if(|next| {
            let moves = |role, caches: Option<Caches>| {
                caches != Some(Caches::Kept) && self.scheduler.is_busy(role)
            };
            !moves(ModelRole::Target, Some(next.target_caches))
                && !moves(ModelRole::Draft, next.draft_caches)
        });
        let Some(next) = due else { return };
        let CutOver { epoch, target, target_caches, draft, draft_caches, policy, units } = next;
        self.warming.clear();
        self.epoch = epoch;
        if target_caches != Caches::Kept {
            self.target = self.new_route((ModelRole::Target, epoch), target, context);
        }
        if draft_caches != Some(Caches::Kept) {
            self.draft = self.new_route((ModelRole::Draft, epoch), draft, context);
        }
        let in_use = |instance: &InstanceId| {
            let hops = self.target.iter().chain(&self.draft).flat_map(|route| &route.hops);
            hops.into_iter().any(|hop| hop.instance == *instance)
        };
        let lost = std::mem::take(&mut self.lost);
        self.lost = lost.into_iter().filter(|(instance, _)| in_use(instance)).collect();
        info!(%epoch, target = ?target_caches, draft = ?draft_caches, "cut over");
        let takeover = Takeover { policy, units, target: target_caches, draft: draft_caches };
        self.step(Event::CutOver(takeover));
        self.suspend_dead();
        if let Some(superior) = &self.supervisor {
            superior.cut_over.do_send(CutOverDone { epoch });
        }
    }
}

impl Handler<WarmUp> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: WarmUp, context: &mut Self::Context) {
        let WarmUp { epoch, routes } = message;
        for (role, hops) in routes {
            let route = self.new_route((role, epoch), hops, context).expect("a route has stages");
            self.warming.insert(role, Warming { route, ticket: None, done: false });
        }
        for role in self.warming.keys().copied().collect::<Vec<_>>() {
            self.step(Event::Warm { role });
        }
    }
}

impl Handler<StopWarmUp> for Coordinator {
    type Result = ();

    fn handle(&mut self, _: StopWarmUp, _: &mut Self::Context) {
        self.stop_warming(None);
    }
}

impl Handler<CutOver> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: CutOver, context: &mut Self::Context) {
        let draft = message.draft_caches != Some(Caches::Kept);
        let moves =
            [(ModelRole::Target, message.target_caches != Caches::Kept), (ModelRole::Draft, draft)];
        for (role, _) in moves.into_iter().filter(|(_, moves)| *moves) {
            self.step(Event::Hold { role });
        }
        self.next = Some(message);
        self.cut_over_if_due(context);
    }
}

impl Handler<UnitLost> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: UnitLost, context: &mut Self::Context) {
        let UnitLost { unit, instance, reason } = message;
        self.dead.insert(instance);
        let runs_on = |route: &Arc<Route>| route.hops.iter().any(|hop| hop.instance == instance);
        if self.warming.values().any(|warming| runs_on(&warming.route)) {
            self.stop_warming(Some(format!("unit {unit} was lost: {reason}")));
        }
        let roles = [ModelRole::Target, ModelRole::Draft];
        let lost = roles.into_iter().filter(|role| self.route(*role).is_some_and(runs_on));
        for role in lost.collect::<Vec<_>>() {
            self.suspend(role);
            if role == ModelRole::Target {
                let (unit, reason) = (unit.clone(), reason.clone());
                self.lost.insert(instance, Loss { unit, reason, hopeless: false });
            }
        }
        self.cut_over_if_due(context);
    }
}

impl Handler<Hopeless> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Hopeless, _: &mut Self::Context) {
        self.lost.values_mut().for_each(|loss| loss.hopeless = true);
        if !self.lost.is_empty() {
            self.give_up(&message.reason);
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

    /// A unit may have died while a plan with it took over: its rounds wait until it is rebuilt.
    fn suspend_dead(&mut self) {
        for role in [ModelRole::Target, ModelRole::Draft] {
            let hops = self.route(role).into_iter().flat_map(|route| &route.hops);
            let dead = hops.filter(|hop| self.dead.contains(&hop.instance));
            let dead: Vec<_> = dead.map(|hop| (hop.instance, hop.unit.clone())).collect();
            if !dead.is_empty() {
                self.suspend(role);
            }
            for (instance, unit) in dead.into_iter().filter(|_| role == ModelRole::Target) {
                let reason = "it died while the plan took over".to_owned();
                self.lost.entry(instance).or_insert(Loss { unit, reason, hopeless: false });
            }
        }
        let routes = self.target.iter().chain(&self.draft);
        let next = self.next.iter().flat_map(|next| next.target.iter().chain(&next.draft));
        let hops = routes.flat_map(|route| &route.hops).chain(next);
        let in_use: BTreeSet<_> = hops.map(|hop| hop.instance).collect();
        self.dead.retain(|instance| in_use.contains(instance));
    }

    /// The target cannot finish what is open. (Without its draft, decoding goes on.)
    fn give_up(&mut self, reason: &str) {
        for sequence in self.ledger.open_sequences() {
            self.step(Event::Abort { sequence, reason: reason.to_owned() });
        }
    }
}

impl Handler<Reroute> for Coordinator {
    type Result = ();

    fn handle(&mut self, message: Reroute, context: &mut Self::Context) {
        let Reroute { target, draft, rebuilt } = message;
        // A route that nothing was lost on keeps its number: a round that is under way is answered with it.
        let epoch = |role| self.route(role).map_or(self.epoch, |route| route.epoch);
        let epochs = (epoch(ModelRole::Target), epoch(ModelRole::Draft));
        self.target = self.new_route((ModelRole::Target, epochs.0), target, context);
        self.draft = self.new_route((ModelRole::Draft, epochs.1), draft, context);
        for role in rebuilt {
            info!(%role, "rebuilding its caches from tokens");
            self.suspend(role);
            self.step(Event::CachesLost { role });
        }
        if self.target.is_some() {
            self.lost.clear();
            self.step(Event::Resume { role: ModelRole::Target });
        }
        if self.draft.is_some() {
            self.step(Event::Resume { role: ModelRole::Draft });
        }
        self.suspend_dead();
        self.cut_over_if_due(context);
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
