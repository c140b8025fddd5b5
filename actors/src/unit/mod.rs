//! A compute unit: the actor that owns one device's stages and caches, and speaks for the worker thread they live on.
//!
//! The actor shares its thread with the coordinator, so a message to it costs no thread switch; its worker is a thread
//! of its own, reached over a bounded channel. *Invariants:* the actor never waits for the worker. A worker whose job
//! takes too long is given up: it is reported lost, and whatever it says later is not heard.

mod waiting;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::task;
use std::time::Duration;

use actix::fut::ActorFuture;
use actix::prelude::{
    Actor, ActorContext, AsyncContext, Context, Handler, Recipient, ResponseFuture,
};
use crossbeam_channel::Receiver;
use outrider_devices::{Device, DeviceError, Drafted, MemoryUse, Output, Purpose};
use outrider_pipeline::scheduler::Ticket;
use outrider_plans::{ModelRole, StageId, UnitId};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use crate::messages::{
    Evict, Install, InstanceId, Release, Retire, RoundDone, RoundOutcome, Route, RunDraft,
    RunStage, UnitDown, UnitError,
};
use crate::meter::UnitMeter;
use waiting::{Knock, Lookout};
use worker::{Job, Refused, Worker};

pub use waiting::{Cores, Waiting};
pub use worker::Workplace;

/// How often a worker is looked at within the time that a job may take.
const LOOKS: u32 = 4;
/// How many times longer an installation may take than a run.
const INSTALL_FACTOR: u32 = 10;

/// Makes a unit's device, on the worker thread that the device will live on.
pub type DeviceFactory = Arc<dyn Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync>;

/// What a stage is for.
pub(crate) fn purpose_of(stage: StageId) -> Purpose {
    match stage.role {
        ModelRole::Target => Purpose::Passes,
        ModelRole::Draft => Purpose::Drafts,
    }
}

/// What a unit is started with.
pub struct UnitOptions {
    /// Its name.
    pub id: UnitId,
    /// Which of those that have had the name.
    pub instance: InstanceId,
    /// Makes its device.
    pub factory: DeviceFactory,
    /// Where its worker works.
    pub workplace: Workplace,
    /// How the unit and its worker wait for each other.
    pub waiting: Waiting,
    /// What it reports its work to.
    pub meter: UnitMeter,
    /// Who is told of its end.
    pub supervisor: Recipient<UnitDown>,
    /// How long one job may take; installations may take ten times as long.
    pub hang_after: Duration,
}

/// The actor of one compute unit.
pub struct ComputeUnit {
    id: UnitId,
    instance: InstanceId,
    worker: Worker,
    lookout: Lookout,
    waiting: Waiting,
    supervisor: Recipient<UnitDown>,
    hang_after: Duration,
    /// True once the unit is down, for those who wait for an answer of the worker.
    down: watch::Sender<bool>,
    /// The job that was under way when the worker was looked at last, and how often it has been seen.
    seen: (u64, u32),
}

impl ComputeUnit {
    /// Starts the unit on the current arbiter, and its worker, which makes the device.
    pub fn start_with(options: UnitOptions) -> actix::Addr<Self> {
        Self::create(move |context| {
            let UnitOptions { id, instance, waiting, supervisor, hang_after, .. } = options;
            let (lookout, reports) = Lookout::new(context.address().recipient());
            let place = (&options.workplace, waiting.clone(), options.meter);
            let worker = Worker::spawn(&id, options.factory, place, reports);
            let (down, seen) = (watch::Sender::new(false), (0, 0));
            Self { id, instance, worker, lookout, waiting, supervisor, hang_after, down, seen }
        })
    }

    fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    /// Tells the supervisor once. The actor stays, so that late messages are answered, until it is retired.
    fn go_down(&mut self, reason: &str) {
        if !self.down.send_replace(true) {
            error!(unit = %self.id, reason, "unit down");
            let (unit, instance) = (self.id.clone(), self.instance);
            self.supervisor.do_send(UnitDown { unit, instance, reason: reason.to_owned() });
        }
    }

    /// Gives the worker up if it has been at one job for too long.
    fn look_at_worker(&mut self) {
        let Some((step, installing)) = self.worker.progress.at_work() else {
            self.seen = (0, 0);
            return;
        };
        self.seen = if self.seen.0 == step { (step, self.seen.1 + 1) } else { (step, 0) };
        let factor = if installing { INSTALL_FACTOR } else { 1 };
        if self.seen.1 >= LOOKS * factor {
            let limit_s = (self.hang_after * factor).as_secs_f64();
            self.go_down(&format!("it hangs: one job has taken more than {limit_s} s"));
        }
    }

    fn submit(&self, job: Job) -> Result<(), Refused> {
        if self.is_down() {
            return Err(Refused { job, reason: "it is down".into() });
        }
        self.worker.submit(job)
    }

    /// Hands over a job whose report somebody waits for, and looks out for it where that is quicker than to be woken.
    fn compute(&mut self, job: Job, context: &mut Context<Self>) {
        match self.submit(job) {
            Ok(()) if self.lookout.expect(&self.waiting) => drop(context.spawn(Look)),
            Ok(()) => {}
            Err(Refused { job, reason }) => self.refuse(job, &reason),
        }
    }

    /// Answers a job that nobody will do.
    fn refuse(&self, job: Job, reason: &str) {
        let gone = || UnitError::Gone { unit: self.id.clone(), reason: reason.to_owned() };
        match job {
            Job::Run(job) => answer(&job.route, job.ticket, Err(gone())),
            Job::Draft(job) => answer(&job.route, job.ticket, Err(gone())),
            // Dropping the reply tells the one who asked; a worker that is gone holds no caches.
            Job::Install(..) | Job::Evict(..) | Job::Release(_) => {}
        }
    }
}

impl Actor for ComputeUnit {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(self.hang_after / LOOKS, |unit, _| unit.look_at_worker());
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        info!(unit = %self.id, "unit stopped");
    }
}

impl Handler<Install> for ComputeUnit {
    type Result = ResponseFuture<Result<MemoryUse, UnitError>>;

    fn handle(&mut self, message: Install, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        let submitted = self.submit(Job::Install(message, reply));
        let unit = self.id.clone();
        let mut down = self.down.subscribe();
        Box::pin(async move {
            let gone = |reason: &str| UnitError::Gone { unit: unit.clone(), reason: reason.into() };
            submitted.map_err(|refused| gone(&refused.reason))?;
            let answered = tokio::select! {
                biased;
                answered = answer => answered.ok(),
                _ = down.wait_for(|down| *down) => None,
            };
            match answered {
                Some(result) => result.map_err(|error| UnitError::Device { unit, error }),
                None => Err(gone("it ended while compiling")),
            }
        })
    }
}

impl Handler<Evict> for ComputeUnit {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: Evict, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        // What a unit that is down held is gone already.
        let submitted = self.submit(Job::Evict(message.install, reply)).is_ok();
        let mut down = self.down.subscribe();
        Box::pin(async move {
            if submitted {
                tokio::select! {
                    _ = answer => {}
                    _ = down.wait_for(|down| *down) => {}
                }
            }
        })
    }
}

impl Handler<Retire> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, _: Retire, context: &mut Self::Context) {
        context.stop();
    }
}

impl Handler<RunStage> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: RunStage, context: &mut Self::Context) {
        self.compute(Job::Run(message), context);
    }
}

impl Handler<RunDraft> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: RunDraft, context: &mut Self::Context) {
        self.compute(Job::Draft(message), context);
    }
}

impl Handler<Release> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: Release, _: &mut Self::Context) {
        // A worker that has ended holds no cache to free.
        let _ = self.submit(Job::Release(message.sequence));
    }
}

/// What the worker tells its actor.
enum Report {
    Installed(oneshot::Sender<Result<MemoryUse, DeviceError>>, Result<MemoryUse, DeviceError>),
    Evicted(oneshot::Sender<()>),
    Ran(RunStage, Result<Output, DeviceError>),
    Drafted(RunDraft, Result<Vec<Drafted>, DeviceError>),
    /// The worker has ended and leaves these jobs undone.
    Ended {
        reason: String,
        left: Receiver<Job>,
    },
}

impl Handler<Knock> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, _: Knock, _: &mut Self::Context) {
        while let Some(report) = self.lookout.take() {
            self.reported(report);
        }
    }
}

/// Looks for reports until none is expected soon.
struct Look;

impl ActorFuture<ComputeUnit> for Look {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        unit: &mut ComputeUnit,
        _: &mut Context<ComputeUnit>,
        task: &mut task::Context<'_>,
    ) -> task::Poll<()> {
        if let Some(report) = unit.lookout.look() {
            unit.reported(report);
        }
        if !unit.lookout.stop_looking() {
            // The other actors of this thread go on between two looks.
            task.waker().wake_by_ref();
            return task::Poll::Pending;
        }
        while let Some(report) = unit.lookout.take() {
            unit.reported(report);
        }
        task::Poll::Ready(())
    }
}

impl ComputeUnit {
    fn reported(&mut self, report: Report) {
        if self.is_down() && !matches!(report, Report::Ended { .. }) {
            // Its rounds were given up when it was; a route through it may be no more.
            return;
        }
        match report {
            // Who asked may have given up; the stage stays installed all the same.
            Report::Installed(reply, result) => drop(reply.send(result)),
            Report::Evicted(reply) => drop(reply.send(())),
            Report::Ran(job, Ok(Output::Activations(activations))) => {
                let hop = job.hop + 1;
                let next = job.route.hops[hop].batches.clone();
                next.do_send(RunStage { hop, input: Some(activations), ..job });
            }
            Report::Ran(job, Ok(Output::Picked(picked))) => {
                answer(&job.route, job.ticket, Ok(RoundOutcome::Picks(picked.picks)));
            }
            Report::Ran(job, Err(error)) => {
                self.failed(&job.route, job.ticket, error);
            }
            Report::Drafted(job, Ok(drafted)) => {
                answer(&job.route, job.ticket, Ok(RoundOutcome::Drafted(drafted)));
            }
            Report::Drafted(job, Err(error)) => {
                self.failed(&job.route, job.ticket, error);
            }
            Report::Ended { reason, left } => {
                left.try_iter().for_each(|job| self.refuse(job, &reason));
                self.go_down(&reason);
            }
        }
    }
}

impl ComputeUnit {
    fn failed(&mut self, route: &Route, ticket: Ticket, error: DeviceError) {
        let lost = matches!(error, DeviceError::Lost { .. }).then(|| error.to_string());
        answer(route, ticket, Err(UnitError::Device { unit: self.id.clone(), error }));
        if let Some(reason) = lost {
            self.go_down(&reason);
        }
    }
}

fn answer(route: &Route, ticket: Ticket, outcome: Result<RoundOutcome, UnitError>) {
    let Route { role, epoch, reply_to, .. } = route;
    reply_to.do_send(RoundDone { ticket, role: *role, epoch: *epoch, outcome });
}
