//! What must hold for one sequence, whatever the timing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use outrider_pipeline::DraftPolicy;
use outrider_pipeline::lookup::Ngrams;

use crate::one::{Case, Mischief, any_policy, run};
use crate::toy::Random;

/// Runs a case; a failure names it.
pub(crate) fn check(case: &Case) -> (outrider_pipeline::speculator::DraftCounts, u64) {
    catch_unwind(AssertUnwindSafe(|| run(case)))
        .unwrap_or_else(|_| panic!("the case that failed: {case:?}"))
}

fn calm(seed: u64, policy: DraftPolicy, pace: (u64, u64)) -> Case {
    Case { seed, policy, pace, disturbed: false, mischief: Mischief::None }
}

const PACES: [(u64, u64); 5] = [(10, 1), (10, 4), (10, 10), (3, 10), (1, 30)];

#[test]
fn plain_decoding_is_the_definition() {
    for seed in 0..500 {
        let (counts, _) = check(&calm(seed, DraftPolicy::plain(), (5, 5)));
        assert_eq!((counts.offered, counts.discarded), (0, 0));
    }
}

#[test]
fn sequential_text_is_plain_text() {
    for depth in 1..=8 {
        for seed in 0..400 {
            check(&calm(seed, DraftPolicy::sequential(depth), PACES[seed as usize % 5]));
        }
    }
}

#[test]
fn overlapped_text_is_plain_text() {
    for depth in 1..=8 {
        for wait in 0..=4 {
            for seed in 0..250 {
                let chunk = 1 + seed as u32 % 4;
                let policy = DraftPolicy::overlap(depth, chunk, wait);
                check(&calm(seed, policy, PACES[(seed / 4) as usize % 5]));
            }
        }
    }
}

#[test]
fn looked_up_text_is_plain_text() {
    let ngrams = Ngrams { min: 1, max: 3 };
    let mut accepted = 0;
    for depth in 1..=8 {
        for seed in 0..200 {
            for policy in [
                DraftPolicy::lookup(depth, ngrams),
                DraftPolicy::sequential(depth).with_lookup(ngrams),
                DraftPolicy::overlap(depth, 2, 1).with_lookup(ngrams),
            ] {
                accepted += check(&calm(seed, policy, PACES[seed as usize % 5])).0.accepted;
            }
        }
    }
    assert!(accepted > 1000, "lookup must hit for this to test anything: {accepted}");
}

/// Policies that change on the way, failed jobs, lost caches: still the same text.
#[test]
fn disturbed_text_is_plain_text() {
    for seed in 0..8000 {
        let mut random = Random(seed ^ 0xD157);
        let policy = any_policy(&mut random);
        let pace = random.choose(&PACES);
        check(&Case { disturbed: true, ..calm(seed, policy, pace) });
    }
}

/// The reason for all this: with a good and fast draft, speculation needs less (simulated) time.
#[test]
fn a_good_draft_saves_time_and_overlap_saves_more() {
    let time =
        |policy| -> u64 { (0..1500).map(|seed| check(&calm(seed, policy, (20, 4))).1).sum() };
    let plain = time(DraftPolicy::plain());
    let sequential = time(DraftPolicy::sequential(4));
    let overlap = time(DraftPolicy::overlap(4, 1, 1));
    assert!(sequential < plain, "sequential {sequential}, plain {plain}");
    assert!(overlap < sequential, "overlap {overlap}, sequential {sequential}");
}
