//! What must hold for one sequence, whatever the timing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use outrider_devices::Pick;
use outrider_pipeline::lookup::Ngrams;
use outrider_pipeline::speculator::{DraftCounts, End, Need, Task};
use outrider_pipeline::{DraftPolicy, Speculator};

use crate::one::{Case, Mischief, any_policy, run};
use crate::toy::Random;

/// Runs a case; a failure names it.
pub(crate) fn check(case: &Case) -> (DraftCounts, u64) {
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
        assert_eq!((counts.offered, counts.discarded.total()), (0, 0));
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

fn pick(token: u32) -> Pick {
    Pick { token, probability: 0.5, top: Vec::new() }
}

fn speculator(policy: DraftPolicy) -> Speculator {
    let stop_tokens = [9].into();
    let task = Task { prompt: vec![1], length_max: 50, draft_length_max: 50, stop_tokens };
    Speculator::new(task, policy)
}

/// A draft that stops early, for want of confidence, has nothing more to wait for.
#[test]
fn the_target_does_not_wait_for_a_draft_that_stopped_early() {
    for policy in [DraftPolicy::sequential(4), DraftPolicy::overlap(4, 4, 4)] {
        let mut one = speculator(policy);
        let work = one.take_draft(9).unwrap();
        assert_eq!((one.need(), work.steps), (Need::Nothing, 4));
        one.drafted(work.epoch, work.base, &[pick(2), pick(3)]);
        assert_eq!(one.need(), Need::Decode, "{policy:?}");
        assert_eq!(one.take_verify(9).unwrap().tokens, [1, 2, 3]);
    }
}

/// The diagram of the module, step by step.
#[test]
fn an_overlapped_round_goes_as_drawn() {
    let mut one = speculator(DraftPolicy::overlap(3, 3, 3));
    let work = one.take_draft(9).unwrap();
    one.drafted(work.epoch, work.base, &[10, 11, 12].map(pick));
    let pass = one.take_verify(9).unwrap();
    assert_eq!((pass.base, &pass.tokens[..], pass.picks_wanted), (0, &[1, 10, 11, 12][..], 4));
    // The draft goes on while the target works; the fourth pick checks 13 for free, 14 stays.
    let work = one.take_draft(9).unwrap();
    assert_eq!((work.base, &work.tokens[..]), (3, &[12][..]));
    one.drafted(work.epoch, work.base, &[13, 14].map(pick));
    let verdict = one.verified([10, 11, 12, 13].map(pick).to_vec());
    assert_eq!((verdict.offered, verdict.accepted, one.tail()), (4, 4, &[14][..]));
    // A wrong draft: the epoch steps, and what the draft was doing meanwhile is dropped.
    let pass = one.take_verify(9).unwrap();
    assert_eq!((pass.base, &pass.tokens[..]), (4, &[13, 14][..]));
    let work = one.take_draft(9).unwrap();
    let verdict = one.verified([20, 30].map(pick).to_vec());
    assert_eq!((verdict.tokens.len(), verdict.accepted), (1, 0));
    one.drafted(work.epoch, work.base, &[15, 16, 17].map(pick));
    assert_eq!((one.confirmed(), one.tail()), (&[1, 10, 11, 12, 13, 20][..], &[][..]));
    assert_eq!(one.counts().discarded.stale, 3);
    // Either model goes on from where its cache is the text: up to 13.
    let work = one.take_draft(9).unwrap();
    assert_eq!((work.base, &work.tokens[..]), (5, &[20][..]));
}

/// A stop token at the end of the tail is checked for free, and nothing is drafted after it.
#[test]
fn a_drafted_stop_token_costs_no_row() {
    let mut one = speculator(DraftPolicy::overlap(4, 4, 1));
    let work = one.take_draft(9).unwrap();
    one.drafted(work.epoch, work.base, &[2, 9, 3].map(pick));
    assert_eq!((one.tail(), one.counts().discarded.finished), (&[2, 9][..], 1));
    assert!(one.take_draft(9).is_none());
    assert_eq!(one.take_verify(9).unwrap().tokens, [1, 2]);
    let verdict = one.verified([2, 9].map(pick).to_vec());
    assert_eq!((verdict.accepted, verdict.end), (2, Some(End::Stop)));
    assert!(one.is_finished() && one.take_verify(9).is_none() && one.take_draft(9).is_none());
}
