//! A compute unit: the actor that owns one device's stages and caches, and speaks for the worker thread they live on.
//!
//! The actor shares its thread with the coordinator, so a message to it costs no thread switch; its worker is a thread
//! of its own, reached over a bounded channel. *Invariant:* the actor never waits for the worker.

mod waiting;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::task;

use actix::fut::ActorFuture;
use actix::prelude::{Actor, AsyncContext, Context, Handler, Recipient, ResponseFuture};
use crossbeam_channel::Receiver;
use outrider_devices::{Device, DeviceError, MemoryUse, Output, Pick};
use outrider_pipeline::scheduler::Ticket;
use outrider_plans::UnitId;
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::messages::{
    Install, Release, RoundDone, RoundOutcome, Route, RunDraft, RunStage, UnitDown, UnitError,
};
use crate::meter::UnitMeter;
pub use waiting::Waiting;
use waiting::{Knock, Lookout};
use worker::{Job, Refused, Worker};

/// Makes a unit's device, on the worker thread that the device will live on.
pub type DeviceFactory = Arc<dyn Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync>;

/// The actor of one compute unit.
pub struct ComputeUnit {
    id: UnitId,
    worker: Worker,
    lookout: Lookout,
    waiting: Waiting,
    supervisor: Recipient<UnitDown>,
    reported_down: bool,
}

impl ComputeUnit {
    /// Starts the unit on the current arbiter, and its worker thread, which makes the device with `factory`.
    pub fn start_with(
        id: UnitId,
        factory: DeviceFactory,
        meter: UnitMeter,
        (waiting, supervisor): (Waiting, Recipient<UnitDown>),
    ) -> actix::Addr<Self> {
        Self::create(move |context| {
            let (lookout, reports) = Lookout::new(context.address().recipient());
            let worker = Worker::spawn(&id, (factory, waiting), meter, reports);
            Self { id, worker, lookout, waiting, supervisor, reported_down: false }
        })
    }

    /// Tells the supervisor once. The actor stays, so that late messages are answered, until its address is dropped.
    fn down(&mut self, reason: &str) {
        if !self.reported_down {
            self.reported_down = true;
            error!(unit = %self.id, reason, "unit down");
            self.supervisor.do_send(UnitDown { unit: self.id.clone(), reason: reason.to_owned() });
        }
    }

    /// Answers a job that nobody will do.
    fn refuse(&self, job: Job, reason: &str) {
        let gone = || UnitError::Gone { unit: self.id.clone(), reason: reason.to_owned() };
        match job {
            Job::Run(job) => answer(&job.route, job.ticket, Err(gone())),
            Job::Draft(job) => answer(&job.route, job.ticket, Err(gone())),
            // Dropping the reply tells the one who asked; a worker that is gone holds no caches.
            Job::Install(..) | Job::Release(_) => {}
        }
    }
}

impl Actor for ComputeUnit {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        info!(unit = %self.id, "unit stopped");
    }
}

impl Handler<Install> for ComputeUnit {
    type Result = ResponseFuture<Result<MemoryUse, UnitError>>;

    fn handle(&mut self, message: Install, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        let submitted = self.worker.submit(Job::Install(message, reply));
        let unit = self.id.clone();
        Box::pin(async move {
            let gone = |reason: &str| UnitError::Gone { unit: unit.clone(), reason: reason.into() };
            submitted.map_err(|refused| gone(&refused.reason))?;
            match answer.await {
                Ok(result) => result.map_err(|error| UnitError::Device { unit, error }),
                Err(_) => Err(gone("it ended while compiling")),
            }
        })
    }
}

impl Handler<RunStage> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: RunStage, context: &mut Self::Context) {
        self.submit(Job::Run(message), context);
    }
}

impl Handler<RunDraft> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: RunDraft, context: &mut Self::Context) {
        self.submit(Job::Draft(message), context);
    }
}

impl Handler<Release> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: Release, _: &mut Self::Context) {
        // A worker that has ended holds no cache to free.
        let _ = self.worker.submit(Job::Release(message.sequence));
    }
}

/// What the worker tells its actor.
enum Report {
    Ran(RunStage, Result<Output, DeviceError>),
    Drafted(RunDraft, Result<Vec<Vec<Pick>>, DeviceError>),
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
    /// Hands a job to the worker, and looks out for its report where that is quicker than to be woken.
    fn submit(&mut self, job: Job, context: &mut Context<Self>) {
        if let Err(Refused { job, reason }) = self.worker.submit(job) {
            return self.refuse(job, &reason);
        }
        if self.lookout.expect(self.waiting) {
            context.spawn(Look);
        }
    }

    fn reported(&mut self, report: Report) {
        match report {
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
            Report::Drafted(job, Ok(picks)) => {
                answer(&job.route, job.ticket, Ok(RoundOutcome::Drafted(picks)));
            }
            Report::Drafted(job, Err(error)) => {
                self.failed(&job.route, job.ticket, error);
            }
            Report::Ended { reason, left } => {
                left.try_iter().for_each(|job| self.refuse(job, &reason));
                self.down(&reason);
            }
        }
    }
}

impl ComputeUnit {
    fn failed(&mut self, route: &Route, ticket: Ticket, error: DeviceError) {
        let lost = matches!(error, DeviceError::Lost { .. }).then(|| error.to_string());
        answer(route, ticket, Err(UnitError::Device { unit: self.id.clone(), error }));
        if let Some(reason) = lost {
            self.down(&reason);
        }
    }
}

fn answer(route: &Route, ticket: Ticket, outcome: Result<RoundOutcome, UnitError>) {
    route.reply_to.do_send(RoundDone { ticket, role: route.role, outcome });
}
