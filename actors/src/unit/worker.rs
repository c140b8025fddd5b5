//! The thread on which a unit's device lives: takes jobs from a bounded channel, one at a time, and reports back.
//!
//! *Invariant:* every job that was accepted is reported exactly once, also if the device panics: then the job it broke
//! on is reported lost, the worker ends, and hands the jobs behind it back to its actor.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use actix::prelude::Recipient;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use outrider_devices::{Device, DeviceError, Executable, MemoryUse, SequenceId};
use outrider_plans::{StageId, UnitId};
use tokio::sync::oneshot;

use super::{DeviceFactory, Report};
use crate::messages::{Install, RunDraft, RunStage};
use crate::meter::{UnitMeter, Work};

/// Most jobs that wait for one worker. The scheduler has one target and one draft round in flight; releases of every
/// sequence may come on top.
const JOBS_MAX: usize = 1024;

/// What a worker is asked to do.
pub(super) enum Job {
    Install(Install, oneshot::Sender<Result<MemoryUse, DeviceError>>),
    Run(RunStage),
    Draft(RunDraft),
    Release(SequenceId),
}

/// A job that was not taken.
pub(super) struct Refused {
    pub(super) job: Job,
    pub(super) reason: String,
}

/// The sending end of a worker. Dropping it ends the thread after the jobs it has.
pub(super) struct Worker {
    jobs: Sender<Job>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn spawn(
        unit: &UnitId,
        factory: DeviceFactory,
        meter: UnitMeter,
        reports: Recipient<Report>,
    ) -> Self {
        let (jobs, inbox) = bounded(JOBS_MAX);
        let name = format!("unit-{unit}");
        let body = move || {
            let ended = Desk { meter, reports: reports.clone() }.work(&factory, &inbox);
            if let Err(reason) = ended {
                reports.do_send(Report::Ended { reason, left: inbox });
            }
        };
        // A thread that cannot be started drops `inbox`, so that every job is refused.
        if let Err(error) = thread::Builder::new().name(name).spawn(body) {
            tracing::error!(%error, "cannot start a worker thread");
        }
        Self { jobs }
    }

    /// Queues a job, without waiting.
    pub(super) fn submit(&self, job: Job) -> Result<(), Refused> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) => {
                Refused { job, reason: format!("{JOBS_MAX} jobs wait for it already") }
            }
            TrySendError::Disconnected(job) => Refused { job, reason: "it has ended".into() },
        })
    }
}

/// The worker's side: where it measures and reports.
struct Desk {
    meter: UnitMeter,
    reports: Recipient<Report>,
}

impl Desk {
    /// Works until the actor is gone (`Ok`) or the device is lost (`Err`, with what was seen).
    fn work(&mut self, factory: &DeviceFactory, inbox: &Receiver<Job>) -> Result<(), String> {
        let made = catch_unwind(AssertUnwindSafe(|| factory()));
        let mut device = match made {
            Ok(Ok(device)) => device,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(panic) => return Err(format!("panicked while opening: {}", panic_text(&*panic))),
        };
        let mut stages = BTreeMap::new();
        for job in inbox {
            // With the job at hand, so that a unit that hangs is seen to have one.
            self.meter.queued(inbox.len() + 1);
            self.perform(job, device.as_mut(), &mut stages)?;
            self.meter.queued(inbox.len());
        }
        Ok(())
    }

    fn perform(
        &mut self,
        job: Job,
        device: &mut dyn Device,
        stages: &mut BTreeMap<StageId, Box<dyn Executable>>,
    ) -> Result<(), String> {
        match job {
            Job::Install(install, reply) => {
                let compiled = guard(|| device.prepare(&install.subgraph, install.limits));
                let broken = compiled.as_ref().err().and_then(lost);
                let installed = compiled.map(|executable| {
                    let memory = executable.memory();
                    stages.insert(install.stage, executable);
                    memory
                });
                // Who asked may have given up; the stage stays installed all the same.
                let _ = reply.send(installed);
                broken.map_or(Ok(()), Err)
            }
            Job::Run(mut job) => {
                let stage = job.route.hops[job.hop].stage;
                let input = job.input.take();
                let run = || match stages.get_mut(&stage) {
                    Some(executable) => executable.run(&job.batch, input),
                    None => Err(not_installed(stage)),
                };
                let result = self.meter.time(stage, Work::of_batch(&job.batch), || guard(run));
                let broken = result.as_ref().err().and_then(lost);
                self.reports.do_send(Report::Ran(job, result));
                broken.map_or(Ok(()), Err)
            }
            Job::Draft(job) => {
                let stage = job.route.hops[0].stage;
                let draft = || match stages.get_mut(&stage) {
                    Some(executable) => executable.draft(&job.batch),
                    None => Err(not_installed(stage)),
                };
                let result = self.meter.time(stage, Work::of_draft(&job.batch), || guard(draft));
                let broken = result.as_ref().err().and_then(lost);
                self.reports.do_send(Report::Drafted(job, result));
                broken.map_or(Ok(()), Err)
            }
            Job::Release(sequence) => {
                stages.values_mut().for_each(|executable| executable.release(sequence));
                Ok(())
            }
        }
    }
}

/// Turns a panic of the device into the loss of the device.
fn guard<T>(call: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let detail = format!("panicked: {}", panic_text(&*panic));
        Err(DeviceError::Lost { device: "device".into(), detail })
    })
}

fn lost(error: &DeviceError) -> Option<String> {
    matches!(error, DeviceError::Lost { .. }).then(|| error.to_string())
}

fn not_installed(stage: StageId) -> DeviceError {
    DeviceError::Unsupported {
        device: "unit".into(),
        detail: format!("stage {stage} is not installed here"),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}
