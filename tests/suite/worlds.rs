//! Simulated worlds, each of them a function of its seed: the seeds' numbers, and many worlds played on all cores.
//!
//! *Invariant:* the first world that fails is named with the command that plays it again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers from a seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Spreads a number over all bits.
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Plays the worlds `0..count` on all cores and collects what each gives. Panics with the first failure of any thread and
/// the command that plays that world again: the test `one_world` of `module`.
pub(crate) fn play_all<T: Send>(
    (module, count): (&str, u64),
    play: impl Fn(u64) -> T + Sync,
) -> Vec<T> {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        let mut played = Vec::new();
        while failed.load(Ordering::SeqCst) == u64::MAX {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= count {
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| play(seed))) {
                Ok(found) => played.push(found),
                Err(_) => drop(failed.fetch_min(seed, Ordering::SeqCst)),
            }
        }
        played
    };
    let played = std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    match failed.into_inner() {
        u64::MAX => played,
        seed => panic!(
            "world {seed} failed; replay: OUTRIDER_SEED={seed} cargo test --release -p outrider-tests --test suite \
             {module}::one_world -- --ignored --nocapture"
        ),
    }
}
