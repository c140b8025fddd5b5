//! How simulated time passes: a unit says how long a run takes, its [`Delay`] makes that true.
//!
//! *Invariant:* the simulated device reads no clock; whoever constructs it decides whether time is real.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Lets time pass.
pub trait Delay: Send + Sync {
    /// A run takes this long.
    fn pass(&self, time: Duration);

    /// A run never ends. If this returns, the run answers `Lost`.
    fn hang(&self);
}

/// The thread really sleeps; a hang blocks it for good.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDelay;

impl Delay for RealDelay {
    fn pass(&self, time: Duration) {
        if !time.is_zero() {
            std::thread::sleep(time);
        }
    }

    fn hang(&self) {
        loop {
            std::thread::park();
        }
    }
}

/// Nobody waits: times add up until somebody takes them, to wait for them on a clock of their own.
#[derive(Debug, Default)]
pub struct RecordedDelay {
    passed_ns: AtomicU64,
    hung: AtomicBool,
}

impl RecordedDelay {
    /// Time that passed since the last call.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.passed_ns.swap(0, Ordering::Relaxed))
    }

    /// Whether a run was to hang.
    pub fn hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }
}

impl Delay for RecordedDelay {
    fn pass(&self, time: Duration) {
        self.passed_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn hang(&self) {
        self.hung.store(true, Ordering::Relaxed);
    }
}
