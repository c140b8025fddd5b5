//! One open device: submissions with a time-out, errors as values, and faults on demand for tests.
//!
//! *Invariant:* nothing wgpu reports becomes a panic. Once lost, a context answers every call with the same
//! [`DeviceError::Lost`].

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::compiled::Compiled;
use super::tuning::Tuning;
use crate::DeviceError;

/// A first run of a kernel may take a software rasteriser's compiler many seconds.
const COMPILER_TIMEOUT: Duration = Duration::from_secs(120);

/// A fault to inject, for tests of what happens above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuFault {
    /// The device is destroyed just before this submission, counted from 0 over the device's life.
    LoseAtSubmission(u64),
    /// This submission is reported as not finished in time.
    TimeOutAtSubmission(u64),
    /// The allocation of this number fails, counted from 0 over the device's life.
    OutOfMemoryAtAllocation(u64),
    /// Every shader compiled after this many is broken before it reaches the compiler.
    BreakShadersAfter(u64),
}

pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) name: String,
    pub(super) limits: wgpu::Limits,
    pub(super) tuning: Tuning,
    /// What its driver has compiled, if that is kept.
    pub(super) compiled: Option<Compiled>,
    /// Most bytes that this device's executables may hold together.
    pub(super) memory_budget: Option<u64>,
    allocated: AtomicU64,
    submission_timeout: Duration,
    lost: Arc<Mutex<Option<String>>>,
    faults: Vec<GpuFault>,
    submissions: AtomicU64,
    allocations: AtomicU64,
    shaders: AtomicU64,
}

/// What a context is made of.
pub(super) struct ContextParts {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) name: String,
    pub(super) tuning: Tuning,
    pub(super) compiled: Option<Compiled>,
    pub(super) memory_budget: Option<u64>,
    pub(super) submission_timeout: Duration,
    pub(super) faults: Vec<GpuFault>,
}

impl Context {
    pub(super) fn new(parts: ContextParts) -> Self {
        let ContextParts {
            device,
            queue,
            name,
            tuning,
            compiled,
            memory_budget,
            submission_timeout,
            faults,
        } = parts;
        let lost = Arc::new(Mutex::new(None));
        let note = |lost: &Arc<Mutex<Option<String>>>| {
            let lost = Arc::clone(lost);
            move |what: String| {
                lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
            }
        };
        let on_lost = note(&lost);
        device.set_device_lost_callback(move |reason, message| {
            on_lost(format!("{reason:?}: {message}"));
        });
        let on_error = note(&lost);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            on_error(format!("unexpected error: {error}"));
        }));
        Self {
            limits: device.limits(),
            device,
            queue,
            name,
            tuning,
            compiled,
            memory_budget,
            allocated: AtomicU64::new(0),
            submission_timeout,
            lost,
            faults,
            submissions: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            shaders: AtomicU64::new(0),
        }
    }

    pub(super) fn lost(&self, detail: impl Into<String>) -> DeviceError {
        DeviceError::Lost { device: self.name.clone(), detail: detail.into() }
    }

    pub(super) fn unsupported(&self, detail: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported { device: self.name.clone(), detail: detail.into() }
    }

    pub(super) fn out_of_memory(&self, detail: impl Into<String>) -> DeviceError {
        DeviceError::OutOfMemory { device: self.name.clone(), detail: detail.into() }
    }

    /// Fails if the device was lost at some time.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(detail) => Err(self.lost(detail.clone())),
            None => Ok(()),
        }
    }

    fn mark_lost(&self, detail: &str) -> DeviceError {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = lost.get_or_insert_with(|| detail.to_owned()).clone();
        self.lost(detail)
    }

    /// Runs `make` and returns what wgpu has to say against it as an error.
    pub(super) fn scoped<T>(
        &self,
        doing: Doing<'_>,
        make: impl FnOnce() -> T,
    ) -> Result<T, DeviceError> {
        self.check()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        let invalid = pollster::block_on(validation.pop());
        let broken = pollster::block_on(internal.pop());
        let full = pollster::block_on(memory.pop());
        self.check()?;
        if full.is_some() {
            return Err(self.out_of_memory(format!("the driver has no room for {doing}")));
        }
        match invalid.or(broken) {
            None => Ok(made),
            Some(error) => Err(match doing {
                Doing::Allocating(_) => self.out_of_memory(format!("{doing}: {error}")),
                Doing::Submitting => self.mark_lost(&format!("{doing}: {error}")),
                Doing::Compiling(stage) => DeviceError::Compile {
                    device: self.name.clone(),
                    subgraph: stage.to_owned(),
                    detail: error.to_string(),
                },
            }),
        }
    }

    /// Counts `bytes` against the budget. `what` names them.
    pub(super) fn reserve(&self, bytes: u64, what: &str) -> Result<Reservation<'_>, DeviceError> {
        let number = self.allocations.fetch_add(1, Ordering::Relaxed);
        if self.faults.contains(&GpuFault::OutOfMemoryAtAllocation(number)) {
            return Err(self.out_of_memory(format!("{bytes} bytes for {what} (injected fault)")));
        }
        let before = self.allocated.fetch_add(bytes, Ordering::Relaxed);
        if let Some(budget) = self.memory_budget.filter(|budget| before + bytes > *budget) {
            self.allocated.fetch_sub(bytes, Ordering::Relaxed);
            return Err(self.out_of_memory(format!(
                "{bytes} bytes for {what} do not fit: {before} of {budget} bytes are taken"
            )));
        }
        Ok(Reservation { context: self, bytes })
    }

    /// Returns `bytes` to the budget.
    pub(super) fn give_back(&self, bytes: u64) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The source to compile: the generated one, unless a fault asks for a broken one.
    pub(super) fn shader_source(&self, source: String) -> String {
        let number = self.shaders.fetch_add(1, Ordering::Relaxed);
        let broken = |f: &GpuFault| matches!(f, GpuFault::BreakShadersAfter(n) if *n <= number);
        if self.faults.iter().any(broken) { source + "\ninjected fault;" } else { source }
    }

    /// Ends a recording.
    pub(super) fn finish(
        &self,
        encoder: wgpu::CommandEncoder,
    ) -> Result<wgpu::CommandBuffer, DeviceError> {
        self.scoped(Doing::Submitting, || encoder.finish())
    }

    /// Submits recordings, without waiting for them.
    pub(super) fn submit(
        &self,
        recorded: Vec<wgpu::CommandBuffer>,
    ) -> Result<wgpu::SubmissionIndex, DeviceError> {
        self.check()?;
        let number = self.submissions.fetch_add(1, Ordering::Relaxed);
        if self.faults.contains(&GpuFault::LoseAtSubmission(number)) {
            self.device.destroy();
            return Err(self.mark_lost("destroyed by an injected fault"));
        }
        let index = self.scoped(Doing::Submitting, || self.queue.submit(recorded))?;
        if self.faults.contains(&GpuFault::TimeOutAtSubmission(number)) {
            return Err(self.timed_out());
        }
        Ok(index)
    }

    /// Whether all that was submitted has finished.
    pub(super) fn is_idle(&self) -> Result<bool, DeviceError> {
        match self.device.poll(wgpu::PollType::Poll) {
            Ok(status) => self.check().map(|()| status == wgpu::PollStatus::QueueEmpty),
            Err(error) => Err(self.mark_lost(&error.to_string())),
        }
    }

    /// Waits until `submission` has finished.
    pub(super) fn wait(&self, submission: wgpu::SubmissionIndex) -> Result<(), DeviceError> {
        self.wait_up_to(self.submission_timeout, submission)
    }

    /// As [`Self::wait`], for a submission during which the driver may compile.
    pub(super) fn wait_for_compiler(
        &self,
        submission: wgpu::SubmissionIndex,
    ) -> Result<(), DeviceError> {
        self.wait_up_to(self.submission_timeout.max(COMPILER_TIMEOUT), submission)
    }

    fn wait_up_to(
        &self,
        timeout: Duration,
        submission: wgpu::SubmissionIndex,
    ) -> Result<(), DeviceError> {
        let spun = Instant::now();
        while spun.elapsed() < self.tuning.spin {
            if self.is_idle()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let wait =
            wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(timeout) };
        match self.device.poll(wait) {
            Ok(_) => self.check(),
            Err(wgpu::PollError::Timeout) => Err(self.timed_out()),
            Err(error) => Err(self.mark_lost(&error.to_string())),
        }
    }

    /// Marks the device as hung. Its queue is leaked on purpose: dropping it would wait for the hung submission.
    fn timed_out(&self) -> DeviceError {
        std::mem::forget(self.queue.clone());
        let limit = self.submission_timeout;
        self.mark_lost(&format!("a submission did not finish within {limit:?}"))
    }
}

/// What is being done when an error comes up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing<'a> {
    /// Making a buffer or texture of this name.
    Allocating(&'a str),
    /// Compiling or binding kernels of the stage of this name.
    Compiling(&'a str),
    Submitting,
}

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::Allocating(name) | Doing::Compiling(name) => f.write_str(name),
            Doing::Submitting => f.write_str("a submission"),
        }
    }
}

/// Bytes counted against the budget until dropped or kept.
pub(super) struct Reservation<'a> {
    context: &'a Context,
    bytes: u64,
}

impl Reservation<'_> {
    /// Keeps the bytes counted; the owner gives them back with [`Context::give_back`].
    pub(super) fn keep(self) -> u64 {
        let bytes = self.bytes;
        std::mem::forget(self);
        bytes
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.context.give_back(self.bytes);
    }
}
