//! A team of threads that runs one region at a time: the caller is member 0, the helpers spin, then yield, then park.
//!
//! Helpers that were wanted again soon after their last region expect that of the next one: a unit that takes turns with another one
//! waits for it longer than a unit that works alone, and threads that sleep meanwhile, and are woken one by one, would double what a
//! stage takes.
//!
//! *Invariant:* while no region runs for twice [`TURN_MAX`], no core is busy; a region has left no member behind when
//! [`Team::run`] returns; a team of one runs on the caller alone, without any atomic operation.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper spins for the next region before it lets others have its core.
const IDLE_SPIN: Duration = Duration::from_micros(80);
/// Where it waited less than this for the last one, it stays awake for twice as long as it waited before it parks. (One that only spun kept
/// whoever works between two regions, on a machine of as many cores as the team has, from its core for 0.7 ms: as long as the
/// system lets a busy thread run.)
const TURN_MAX: Duration = Duration::from_millis(1);
/// Spins at a barrier before the member offers its core to others.
const BARRIER_SPINS: u32 = 4000;

type Job = *const (dyn Fn(&Member<'_>) + Sync);

struct Meeting {
    members: usize,
    /// Counts regions; a change is the start signal.
    region: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    /// Members that have not yet finished the region.
    running: AtomicUsize,
    arrived: AtomicUsize,
    /// Counts barriers passed.
    passed: AtomicU32,
    /// A member panicked: barriers panic instead of waiting for it.
    broken: AtomicBool,
    closing: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the caller only while no region runs (`running` is 0), and read by helpers only after the
// release store of `region` that follows the write. The pointee is `Sync` and outlives the region, see `Team::run`.
unsafe impl Sync for Meeting {}
// SAFETY: as above; the pointer is never used by a thread outside a region.
unsafe impl Send for Meeting {}

/// The threads of one unit.
pub(crate) struct Team {
    meeting: Arc<Meeting>,
    helpers: Vec<JoinHandle<()>>,
    inside: Cell<bool>,
}

/// One thread's place in a running region.
pub(crate) struct Member<'a> {
    /// 0 is the caller.
    pub(crate) index: usize,
    /// Threads in the team.
    pub(crate) members: usize,
    meeting: Option<&'a Meeting>,
}

impl Member<'_> {
    /// Waits until every member is here. What any member wrote before is visible to all after.
    pub(crate) fn barrier(&self) {
        if let Some(meeting) = self.meeting {
            meeting.barrier();
        }
    }

    /// This member's contiguous part of `0..count`; the parts of all members cover it once.
    pub(crate) fn share(&self, count: usize) -> Range<usize> {
        count * self.index / self.members..count * (self.index + 1) / self.members
    }
}

impl Meeting {
    fn barrier(&self) {
        let passed = self.passed.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.store(0, Ordering::Relaxed);
            self.passed.store(passed.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.passed.load(Ordering::Acquire) == passed {
            assert!(!self.broken.load(Ordering::Relaxed), "another member of the team panicked");
            pause(&mut spins);
        }
    }

    fn help(&self, index: usize) {
        let (mut seen, mut patience) = (0, IDLE_SPIN);
        loop {
            let begun = Instant::now();
            seen = self.next_region((index, seen), (begun, patience));
            patience = match begun.elapsed() {
                turn if turn < TURN_MAX => IDLE_SPIN.max(2 * turn),
                _ => IDLE_SPIN,
            };
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the acquire load of `region` that returned `seen` follows the caller's write of `job`, and the
            // caller writes it again only after this member left the region (`running`).
            let job = unsafe { *self.job.get() };
            let member = Member { index, members: self.members, meeting: Some(self) };
            if let Some(job) = job {
                // SAFETY: `Team::run` keeps the pointee alive until `running` is 0.
                let work = || unsafe { (*job)(&member) };
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    self.broken.store(true, Ordering::Relaxed);
                }
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a region other than `seen`: awake until `patience` has passed since `begun`, then parked.
    fn next_region(
        &self,
        (index, seen): (usize, u32),
        (begun, patience): (Instant, Duration),
    ) -> u32 {
        loop {
            for _ in 0..64 {
                let region = self.region.load(Ordering::Acquire);
                if region != seen {
                    return region;
                }
                std::hint::spin_loop();
            }
            let waited = begun.elapsed();
            if waited < patience {
                if waited > IDLE_SPIN {
                    std::thread::yield_now();
                }
                continue;
            }
            let parked = &self.parked[index - 1];
            parked.store(true, Ordering::SeqCst);
            // The caller stores `region` and then looks at `parked`, both sequentially consistent: either it sees the
            // flag and unparks, or this load sees the region.
            while self.region.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }
}

fn pause(spins: &mut u32) {
    if *spins < BARRIER_SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

impl Team {
    /// A team of `members` threads, the caller included. Helper i runs on `cores[i]`, where there is one; the caller
    /// pins itself, see [`pin_caller`].
    pub(crate) fn new(members: usize, cores: &[usize]) -> std::io::Result<Self> {
        assert!(members > 0, "a team has at least its caller");
        let meeting = Arc::new(Meeting {
            members,
            region: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            passed: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            parked: (1..members).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut team = Self { meeting, helpers: Vec::new(), inside: Cell::new(false) };
        for index in 1..members {
            let (meeting, core) = (team.meeting.clone(), cores.get(index).copied());
            let (ready, pinned) = std::sync::mpsc::sync_channel(1);
            let body = move || {
                let outcome = core.map_or(Ok(()), pin_caller);
                let start = outcome.is_ok();
                if ready.send(outcome).is_ok() && start {
                    meeting.help(index);
                }
            };
            let name = format!("cpu-helper-{index}");
            team.helpers.push(std::thread::Builder::new().name(name).spawn(body)?);
            pinned.recv().map_err(std::io::Error::other)??;
        }
        Ok(team)
    }

    /// Runs `job` once on every member at the same time and returns when all are done.
    ///
    /// Panics if a member panicked, or if called from inside a region.
    pub(crate) fn run(&self, job: &(dyn Fn(&Member<'_>) + Sync)) {
        assert!(!self.inside.replace(true), "a region was started inside a region");
        let _leave = Leave(&self.inside);
        let meeting = &*self.meeting;
        if meeting.members == 1 {
            return job(&Member { index: 0, members: 1, meeting: None });
        }
        assert!(!meeting.broken.load(Ordering::Relaxed), "a member of the team panicked earlier");
        // SAFETY: only the lifetime is forgotten; this function returns, or unwinds, only after `running` has fallen to
        // 0, when no helper holds the pointer any more. No helper reads `job` before `region` changes below.
        unsafe {
            *meeting.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(&Member<'_>) + Sync + '_), Job>(job));
        }
        meeting.running.store(meeting.members - 1, Ordering::Relaxed);
        meeting.region.fetch_add(1, Ordering::SeqCst);
        self.wake();
        let member = Member { index: 0, members: meeting.members, meeting: Some(meeting) };
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&member)));
        if outcome.is_err() {
            meeting.broken.store(true, Ordering::Relaxed);
        }
        let mut spins = 0;
        while meeting.running.load(Ordering::Acquire) != 0 {
            pause(&mut spins);
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!meeting.broken.load(Ordering::Relaxed), "a member of the team panicked");
    }

    fn wake(&self) {
        for (helper, parked) in self.helpers.iter().zip(&self.meeting.parked) {
            if parked.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
    }
}

/// Marks the region as left, also by a panic.
struct Leave<'a>(&'a Cell<bool>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.meeting.closing.store(true, Ordering::Relaxed);
        self.meeting.region.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

/// Pins the calling thread to `core` (an id of the system's numbering).
#[cfg(target_os = "linux")]
pub(crate) fn pin_caller(core: usize) -> std::io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    // SAFETY: a zeroed cpu_set_t is the empty set, CPU_SET stays inside it by the check above, and the call only reads
    // the set. Thread id 0 is the caller.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Pinning is a Linux matter; elsewhere the scheduler decides.
#[cfg(not(target_os = "linux"))]
pub(crate) fn pin_caller(_core: usize) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_each_region_once_and_barriers_order_their_writes() {
        for members in 1..=3 {
            let team = Team::new(members, &[]).expect("threads for a test");
            let cells: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=200 {
                team.run(&|member| {
                    for step in 0..3 {
                        cells[member.index].fetch_add(1, Ordering::Relaxed);
                        member.barrier();
                        let expected = (round - 1) * 3 + step + 1;
                        assert!(cells.iter().all(|c| c.load(Ordering::Relaxed) == expected));
                        member.barrier();
                    }
                });
            }
        }
    }

    #[test]
    fn parked_helpers_wake_for_the_next_region() {
        let team = Team::new(2, &[]).expect("threads for a test");
        let runs = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(TURN_MAX * 4);
            team.run(&|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(runs.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_caller_and_hangs_nobody() {
        for culprit in 0..2 {
            let team = Team::new(2, &[]).expect("threads for a test");
            let run = || {
                team.run(&|member| {
                    assert_ne!(member.index, culprit, "asked to panic");
                    member.barrier();
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
    }

    #[test]
    fn shares_cover_once() {
        for members in 1..=5 {
            for count in 0..20 {
                let mut next = 0;
                for index in 0..members {
                    let share = Member { index, members, meeting: None }.share(count);
                    assert_eq!(share.start, next);
                    next = share.end;
                }
                assert_eq!(next, count);
            }
        }
    }

    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        assert!(Team::new(2, &[0, 100_000]).is_err());
    }
}
