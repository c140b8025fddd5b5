//! How a unit's actor and its worker wait for each other: asleep, or awake for a moment where a core is to spare.
//!
//! A small model's job takes less than a millisecond, and waking a thread that sleeps takes a good part of that, twice a
//! job. *Invariant:* nobody stays awake for longer than [`AWAKE_MAX`] without work, nor on a core that a unit computes with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use actix::prelude::Recipient;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use outrider_plans::{PartitionPlan, UnitSpec};

use super::Report;

/// Longest wait without sleep: what a job of a model takes for which the wake-up matters.
pub(super) const AWAKE_MAX: Duration = Duration::from_millis(3);
/// Looks between two readings of the clock.
const LOOKS: usize = 64;

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Asleep at once: the cores are all at work.
    Asleep,
    /// Awake for a moment first.
    Awake,
}

impl Waiting {
    /// What suits a plan here: awake if it runs on processor cores and leaves some idle.
    pub fn of(plan: &PartitionPlan) -> Self {
        let mut taken = BTreeSet::<usize>::new();
        for unit in plan.units.values() {
            let UnitSpec::Cpu { cores } = unit else { return Waiting::Asleep };
            taken.extend(cores);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores > taken.len() { Waiting::Awake } else { Waiting::Asleep }
    }

    /// The next of a queue; `None` if nobody is left to send one.
    pub(super) fn receive<T>(self, queue: &Receiver<T>) -> Option<T> {
        if self == Waiting::Awake {
            let start = Instant::now();
            while start.elapsed() < AWAKE_MAX {
                for _ in 0..LOOKS {
                    match queue.try_recv() {
                        Ok(next) => return Some(next),
                        Err(TryRecvError::Disconnected) => return None,
                        Err(TryRecvError::Empty) => std::hint::spin_loop(),
                    }
                }
            }
        }
        queue.recv().ok()
    }
}

/// Tells a sleeping actor to look at its reports.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct Knock;

/// The worker's end of its reports.
#[derive(Clone)]
pub(super) struct Reports {
    queue: Sender<Report>,
    looking: Arc<AtomicBool>,
    knock: Recipient<Knock>,
}

impl Reports {
    /// Hands a report over; wakes the actor unless it is looking.
    pub(super) fn send(&self, report: Report) {
        // An actor that is gone needs no report.
        let _ = self.queue.send(report);
        // With the fence in `Lookout::stop_looking`: either this sees that nobody looks, or that one's last look sees the report.
        fence(Ordering::SeqCst);
        if !self.looking.load(Ordering::SeqCst) {
            self.knock.do_send(Knock);
        }
    }
}

/// The actor's end. The queue is as long as the jobs under way, which the worker's inbox bounds.
pub(super) struct Lookout {
    queue: Receiver<Report>,
    looking: Arc<AtomicBool>,
    expected: usize,
    until: Option<Instant>,
}

impl Lookout {
    /// Both ends.
    pub(super) fn new(knock: Recipient<Knock>) -> (Self, Reports) {
        let (sender, queue) = unbounded();
        let looking = Arc::new(AtomicBool::new(false));
        let reports = Reports { queue: sender, looking: Arc::clone(&looking), knock };
        (Self { queue, looking, expected: 0, until: None }, reports)
    }

    /// A report will come. True if the actor is to begin to look for it, and is not looking yet.
    pub(super) fn expect(&mut self, waiting: Waiting) -> bool {
        self.expected += 1;
        if waiting == Waiting::Asleep {
            return false;
        }
        self.until = Some(Instant::now() + AWAKE_MAX);
        !self.looking.swap(true, Ordering::SeqCst)
    }

    /// A report that has come.
    pub(super) fn take(&mut self) -> Option<Report> {
        let report = self.queue.try_recv().ok()?;
        self.expected = self.expected.saturating_sub(1);
        Some(report)
    }

    /// A report that comes within a few hundred nanoseconds.
    pub(super) fn look(&mut self) -> Option<Report> {
        for _ in 0..LOOKS {
            if !self.queue.is_empty() {
                return self.take();
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Whether to give up looking: nothing is expected soon. Reports that came meanwhile are there to take.
    pub(super) fn stop_looking(&mut self) -> bool {
        let over = self.expected == 0 || self.until.is_none_or(|until| Instant::now() >= until);
        if over {
            self.looking.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        over
    }
}
