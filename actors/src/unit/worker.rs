//! The thread on which a unit's device lives: takes jobs from a bounded channel, one at a time, and reports back.
//!
//! *Invariant:* every job that was accepted is reported exactly once, also if the device panics: then the job it broke
//! on is reported lost, the worker ends, and hands the jobs behind it back to its actor.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use outrider_devices::{Device, DeviceError, Executable, MemoryUse, Output, SequenceId, reclaim};
use outrider_plans::{StageId, UnitId};
use tokio::sync::oneshot;

use super::waiting::{Reports, Waiting};
use super::{DeviceFactory, Report, purpose_of};
use crate::messages::{Install, InstallId, RunDraft, RunStage};
use crate::meter::{UnitMeter, Work};

/// Most jobs that wait for one worker. The scheduler has one target, one draft and one warming round in flight; releases
/// of every sequence may come on top.
const JOBS_MAX: usize = 1024;
/// A stage that was freed from this size on, in bytes, is worth looking through the allocator for what it left.
const RECLAIMED_MIN: u64 = 1 << 20;

/// How many turns the other tasks have before a unit's job is reported; `None` is for ever.
type Turns = dyn Fn(&UnitId) -> Option<u32> + Send + Sync;

/// Where the workers of a fleet work.
#[derive(Clone)]
pub enum Workplace {
    /// Each on a thread of its own.
    Threads,
    /// All on the actors' thread, for a simulation: a job is done at once, and reported when the other tasks of the thread
    /// have had as many turns as the closure says; never, if it says none. So what happens depends on no clock.
    Inline(Arc<Turns>),
}

/// What a worker is asked to do.
pub(super) enum Job {
    Install(Install, oneshot::Sender<Result<MemoryUse, DeviceError>>),
    Evict(InstallId, oneshot::Sender<()>),
    Run(RunStage),
    Draft(RunDraft),
    Release(SequenceId),
}

/// A job that was not taken.
pub(super) struct Refused {
    pub(super) job: Job,
    pub(super) reason: String,
}

/// How far a worker has come, for whoever watches it.
#[derive(Default)]
pub(super) struct Progress {
    /// Steps at the begin and at the end of each job: odd while one is under way.
    steps: AtomicU64,
    /// The same for installations, which may take long.
    installs: AtomicU64,
}

impl Progress {
    /// Steps so far, of the job under way: `None` if the worker waits for one.
    pub(super) fn at_work(&self) -> Option<(u64, bool)> {
        let steps = self.steps.load(Ordering::Acquire);
        let installing = self.installs.load(Ordering::Acquire) % 2 == 1;
        (steps % 2 == 1).then_some((steps, installing))
    }
}

/// The sending end of a worker. Dropping it ends the worker after the jobs it has.
pub(super) struct Worker {
    jobs: Sender<Job>,
    pub(super) progress: Arc<Progress>,
}

impl Worker {
    /// Starts the worker.
    pub(super) fn spawn(
        unit: &UnitId,
        factory: DeviceFactory,
        (workplace, waiting, meter): (&Workplace, Waiting, UnitMeter),
        reports: Reports,
    ) -> Self {
        let (jobs, inbox) = bounded(JOBS_MAX);
        let progress = Arc::new(Progress::default());
        let watched = Arc::clone(&progress);
        // Executables are made on the worker's thread and never leave it.
        let desk = move || Desk { meter, progress: watched, stages: BTreeMap::new() };
        match workplace {
            Workplace::Threads => {
                let body = move || {
                    let report = |report| reports.send(report);
                    let jobs = std::iter::from_fn(|| waiting.receive(&inbox));
                    if let Err(reason) = desk().work(&factory, (jobs, &inbox), report) {
                        reports.send(Report::Ended { reason, left: inbox });
                    }
                    // What the device held lies in this thread's part of the allocator, where no other thread looks.
                    reclaim::free_lists();
                };
                let name = format!("unit-{unit}");
                // A thread that cannot be started drops `inbox`, so that every job is refused.
                if let Err(error) = thread::Builder::new().name(name).spawn(body) {
                    tracing::error!(%error, "cannot start a worker thread");
                }
            }
            Workplace::Inline(pace) => {
                let (pace, unit) = (Arc::clone(pace), unit.clone());
                actix::spawn(async move {
                    let pause = || pace(&unit);
                    if let Err(reason) = desk().work_inline(&factory, &inbox, &reports, pause).await
                    {
                        reports.send(Report::Ended { reason, left: inbox });
                    }
                });
            }
        }
        Self { jobs, progress }
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

/// The worker's side: what is installed, and where it measures.
struct Desk {
    meter: UnitMeter,
    progress: Arc<Progress>,
    stages: BTreeMap<InstallId, Box<dyn Executable>>,
}

/// What came of a job, and why the device is lost if it is.
struct Done {
    report: Option<Report>,
    broken: Option<String>,
}

impl Desk {
    /// Works until the actor is gone (`Ok`) or the device is lost (`Err`, with what was seen).
    fn work(
        mut self,
        factory: &DeviceFactory,
        (jobs, inbox): (impl Iterator<Item = Job>, &Receiver<Job>),
        report: impl Fn(Report),
    ) -> Result<(), String> {
        let mut device = open(factory)?;
        for job in jobs {
            // With the job at hand, so that a unit that hangs is seen to have one.
            self.meter.queued(inbox.len() + 1);
            let Done { report: done, broken } = self.perform(job, device.as_mut());
            self.meter.queued(inbox.len());
            done.into_iter().for_each(&report);
            broken.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// As [`Desk::work`], beside other tasks of one thread. `pause` says how many turns the job that was just done took.
    async fn work_inline(
        mut self,
        factory: &DeviceFactory,
        inbox: &Receiver<Job>,
        reports: &Reports,
        pause: impl Fn() -> Option<u32>,
    ) -> Result<(), String> {
        let mut device = open(factory)?;
        loop {
            let job = match inbox.try_recv() {
                Ok(job) => job,
                Err(crossbeam_channel::TryRecvError::Disconnected) => return Ok(()),
                // Nobody is woken by a channel that knows no tasks.
                Err(crossbeam_channel::TryRecvError::Empty) => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Done { report, broken } = self.perform(job, device.as_mut());
            let Some(turns) = pause() else {
                // At work for ever, as whoever watches it sees.
                self.progress.steps.fetch_add(1, Ordering::AcqRel);
                return std::future::pending().await;
            };
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            report.into_iter().for_each(|report| reports.send(report));
            broken.map_or(Ok(()), Err)?;
        }
    }

    fn perform(&mut self, job: Job, device: &mut dyn Device) -> Done {
        let installing = matches!(job, Job::Install(..));
        let installs = u64::from(installing);
        self.progress.installs.fetch_add(installs, Ordering::AcqRel);
        self.progress.steps.fetch_add(1, Ordering::AcqRel);
        let done = self.do_job(job, device);
        self.progress.steps.fetch_add(1, Ordering::AcqRel);
        self.progress.installs.fetch_add(installs, Ordering::AcqRel);
        done
    }

    fn do_job(&mut self, job: Job, device: &mut dyn Device) -> Done {
        let Self { meter, stages, .. } = self;
        match job {
            Job::Install(install, reply) => {
                let compiled = guard(|| {
                    let mut executable = device.prepare(&install.subgraph, install.limits)?;
                    executable.rehearse(purpose_of(install.stage))?;
                    Ok(executable)
                });
                let broken = compiled.as_ref().err().and_then(lost);
                let installed = compiled.map(|executable| {
                    let memory = executable.memory();
                    stages.insert(install.install, executable);
                    memory
                });
                Done { report: Some(Report::Installed(reply, installed)), broken }
            }
            Job::Evict(install, reply) => {
                // Freeing may go wrong, too: then the device is lost like in any other job.
                let freed = guard(|| {
                    let stage = stages.remove(&install);
                    let bytes = stage.as_ref().map_or(0, |stage| stage.memory().total());
                    drop(stage);
                    if bytes >= RECLAIMED_MIN {
                        reclaim::free_lists_aside();
                    }
                    Ok(())
                });
                let broken = freed.as_ref().err().and_then(lost);
                Done { report: Some(Report::Evicted(reply)), broken }
            }
            Job::Run(mut job) => {
                let (stage, install) =
                    (job.route.hops[job.hop].stage, job.route.hops[job.hop].install);
                let input = job.input.take();
                let run = || match stages.get_mut(&install) {
                    Some(executable) => executable.run(&job.batch, input),
                    None => Err(not_installed(stage)),
                };
                let result = meter.time(stage, |_| Work::of_batch(&job.batch), || guard(run));
                if let (Ok(Output::Activations(activations)), Some(next)) =
                    (&result, job.route.hops.get(job.hop + 1))
                {
                    meter.sent(&next.unit, activations, &job.batch);
                }
                let broken = result.as_ref().err().and_then(lost);
                Done { report: Some(Report::Ran(job, result)), broken }
            }
            Job::Draft(job) => {
                let (stage, install) = (job.route.hops[0].stage, job.route.hops[0].install);
                let draft = || match stages.get_mut(&install) {
                    Some(executable) => executable.draft(&job.batch),
                    None => Err(not_installed(stage)),
                };
                let work =
                    |drafted: &Result<_, _>| Work::of_draft(&job.batch, drafted.as_deref().ok());
                let result = meter.time(stage, work, || guard(draft));
                let broken = result.as_ref().err().and_then(lost);
                Done { report: Some(Report::Drafted(job, result)), broken }
            }
            Job::Release(sequence) => {
                stages.values_mut().for_each(|executable| executable.release(sequence));
                Done { report: None, broken: None }
            }
        }
    }
}

fn open(factory: &DeviceFactory) -> Result<Box<dyn Device>, String> {
    match catch_unwind(AssertUnwindSafe(|| factory())) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("panicked while opening: {}", panic_text(&*panic))),
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
