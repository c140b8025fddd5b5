//! How a unit's actor and its worker wait for each other: asleep, or awake for a moment where a core is to spare.
//!
//! A small model's job takes less than a millisecond, and waking a thread that sleeps takes a good part of that, twice a
//! job. Who waits awake lets others have the core: on a small machine the thread that waits for a text is on the same one, and
//! would be kept from it for as long as the system lets a busy thread run. *Invariant:* nobody stays awake for longer than
//! [`AWAKE_MAX`] without work, nor on a core that a unit computes with.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::Recipient;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use outrider_plans::UnitSpec;

use super::Report;

/// Longest wait without sleep: what a job of a model takes for which the wake-up matters.
pub(super) const AWAKE_MAX: Duration = Duration::from_millis(3);
/// Looks between two readings of the clock.
const LOOKS: usize = 64;

/// The cores of this machine, and how many units that have work compute on each.
#[derive(Debug)]
pub struct Cores {
    taken: Mutex<BTreeMap<usize, usize>>,
    spare: AtomicBool,
    count: usize,
}

impl Cores {
    /// Nobody computes yet.
    pub fn new() -> Arc<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self { taken: Mutex::default(), spare: AtomicBool::new(count > 0), count })
    }

    fn change(&self, cores: &[usize], change: impl Fn(usize) -> usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for core in cores {
            let users = taken.entry(*core).or_default();
            *users = change(*users);
        }
        taken.retain(|_, users| *users > 0);
        self.spare.store(taken.len() < self.count, Ordering::Relaxed);
    }
}

/// A unit's cores: its own for as long as it or its worker is there, but left to others while it has no work.
#[derive(Debug)]
struct Claim {
    cores: Arc<Cores>,
    own: Vec<usize>,
    left: AtomicBool,
}

impl Claim {
    fn leave(&self) {
        if !self.left.swap(true, Ordering::SeqCst) {
            self.cores.change(&self.own, |users| users - 1);
        }
    }

    fn take(&self) {
        if self.left.swap(false, Ordering::SeqCst) {
            self.cores.change(&self.own, |users| users + 1);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How to wait: awake for a moment, if a unit of processor cores leaves some core idle.
#[derive(Clone, Debug)]
pub struct Waiting(Option<Arc<Claim>>);

impl Waiting {
    /// Asleep at once.
    pub fn asleep() -> Self {
        Self(None)
    }

    /// What suits a unit, beside the other units on these cores.
    pub fn of(spec: &UnitSpec, cores: &Arc<Cores>) -> Self {
        let UnitSpec::Cpu { cores: own } = spec else { return Self::asleep() };
        let (cores, own, left) = (Arc::clone(cores), own.clone(), AtomicBool::new(true));
        let claim = Claim { cores, own, left };
        claim.take();
        Self(Some(Arc::new(claim)))
    }

    fn is_awake(&self) -> bool {
        self.0.as_ref().is_some_and(|claim| claim.cores.spare.load(Ordering::Relaxed))
    }

    /// The next of a queue; `None` if nobody is left to send one.
    pub(super) fn receive<T>(&self, queue: &Receiver<T>) -> Option<T> {
        if self.is_awake() {
            let start = Instant::now();
            while start.elapsed() < AWAKE_MAX {
                for _ in 0..LOOKS {
                    match queue.try_recv() {
                        Ok(next) => return Some(next),
                        Err(TryRecvError::Disconnected) => return None,
                        Err(TryRecvError::Empty) => std::hint::spin_loop(),
                    }
                }
                // Whoever else wants this core has work to do.
                std::thread::yield_now();
            }
        } else {
            match queue.recv_timeout(AWAKE_MAX) {
                Ok(next) => return Some(next),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        // A unit without work, such as a draft's that is switched off, leaves its cores to those who wait.
        self.leave_cores();
        let next = queue.recv().ok();
        self.take_cores();
        next
    }

    fn leave_cores(&self) {
        self.0.iter().for_each(|claim| claim.leave());
    }

    fn take_cores(&self) {
        self.0.iter().for_each(|claim| claim.take());
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
    pub(super) fn expect(&mut self, waiting: &Waiting) -> bool {
        self.expected += 1;
        waiting.take_cores();
        if !waiting.is_awake() {
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

    /// A report that comes within a few hundred nanoseconds; after that whoever else wants this core has it.
    pub(super) fn look(&mut self) -> Option<Report> {
        for _ in 0..LOOKS {
            if !self.queue.is_empty() {
                return self.take();
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn units_wait_asleep_once_they_have_taken_every_core() {
        let cores = Cores::new();
        let all = UnitSpec::Cpu { cores: (0..cores.count).collect() };
        let none = UnitSpec::Cpu { cores: Vec::new() };
        let first = Waiting::of(&none, &cores);
        assert!(first.is_awake());
        let second = Waiting::of(&all, &cores);
        let third = Waiting::of(&all, &cores);
        assert!(!first.is_awake() && !second.is_awake());
        drop(second);
        assert!(!first.is_awake());
        third.leave_cores();
        assert!(first.is_awake(), "nobody computes there at present");
        third.take_cores();
        assert!(!first.is_awake());
        third.leave_cores();
        drop(third);
        assert!(first.is_awake());
        assert!(cores.taken.lock().unwrap().is_empty());
        assert!(!Waiting::of(&UnitSpec::Sim, &cores).is_awake());
    }
}
