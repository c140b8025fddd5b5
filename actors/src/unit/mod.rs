//! A compute unit: the actor that owns one device's stages and caches, and speaks for the worker thread they live on.
//!
//! The actor shares its thread with the coordinator, so a message to it costs no thread switch; its worker is a thread
//! of its own, reached over a bounded channel. *Invariant:* the actor never waits for the worker.

mod worker;

use std::sync::Arc;

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
use worker::{Job, Refused, Worker};

/// Makes a unit's device, on the worker thread that the device will live on.
pub type DeviceFactory = Arc<dyn Fn() -> Result<Box<dyn Device>, DeviceError> + Send + Sync>;

/// The actor of one compute unit.
pub struct ComputeUnit {
    id: UnitId,
    worker: Worker,
    supervisor: Recipient<UnitDown>,
    reported_down: bool,
}

impl ComputeUnit {
    /// Starts the unit on the current arbiter, and its worker thread, which makes the device with `factory`.
    pub fn start_with(
        id: UnitId,
        factory: DeviceFactory,
        meter: UnitMeter,
        supervisor: Recipient<UnitDown>,
    ) -> actix::Addr<Self> {
        Self::create(move |context| {
            let worker = Worker::spawn(&id, factory, meter, context.address().recipient());
            Self { id, worker, supervisor, reported_down: false }
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

    fn handle(&mut self, message: RunStage, _: &mut Self::Context) {
        if let Err(Refused { job, reason }) = self.worker.submit(Job::Run(message)) {
            self.refuse(job, &reason);
        }
    }
}

impl Handler<RunDraft> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, message: RunDraft, _: &mut Self::Context) {
        if let Err(Refused { job, reason }) = self.worker.submit(Job::Draft(message)) {
            self.refuse(job, &reason);
        }
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
#[derive(actix::Message)]
#[rtype(result = "()")]
enum Report {
    Ran(RunStage, Result<Output, DeviceError>),
    Drafted(RunDraft, Result<Vec<Vec<Pick>>, DeviceError>),
    /// The worker has ended and leaves these jobs undone.
    Ended {
        reason: String,
        left: Receiver<Job>,
    },
}

impl Handler<Report> for ComputeUnit {
    type Result = ();

    fn handle(&mut self, report: Report, _: &mut Self::Context) {
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
