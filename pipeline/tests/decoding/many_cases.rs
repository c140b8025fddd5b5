//! What must hold for a service of many sequences.

use std::panic::{AssertUnwindSafe, catch_unwind};

use outrider_devices::{Sampling, SequenceId};
use outrider_pipeline::scheduler::{FinishReason, RejectReason, RoleLimits, Units};
use outrider_pipeline::{Admission, DraftPolicy, Event, GenerationParams};
use outrider_plans::ModelRole;

use crate::many::{World, any_request, config};
use crate::one::any_policy;
use crate::toy::Random;

/// A text of exactly `tokens` tokens.
fn request(id: u64, prompt: usize, tokens: u32) -> Admission {
    let params =
        GenerationParams { max_tokens: Some(tokens), ignore_eos: true, ..Default::default() };
    let prompt = (0..prompt).map(|i| 1 + (i as u32 + id as u32) % 18).collect();
    Admission { sequence: SequenceId(id), prompt, params }
}

fn policies() -> [DraftPolicy; 4] {
    let ngrams = outrider_pipeline::lookup::Ngrams { min: 1, max: 3 };
    let overlap = DraftPolicy::overlap(4, 2, 1);
    [DraftPolicy::plain(), DraftPolicy::sequential(4), overlap, overlap.with_lookup(ngrams)]
}

/// Random requests, clients that leave, plans that change, units that fail: one seed, one world.
fn any_world(seed: u64) {
    let mut random = Random(seed ^ 0x3A9D);
    let limits = |random: &mut Random| RoleLimits {
        rows_max: random.choose(&[2, 5, 32]),
        positions_max: random.choose(&[64, 80]),
    };
    let mut config = config(any_policy(&mut random));
    config.sequences_max = 1 + random.below(6) as usize;
    config.queue_max = random.below(12) as usize;
    (config.target, config.draft) = (limits(&mut random), limits(&mut random));
    config.units = random.choose(&[Units::Separate, Units::Shared]);
    let mut world = World::new(seed, config);
    world.pace = random.choose(&[(10, 3), (3, 10), (10, 1)]);
    world.failures = random.choose(&[0, 0, 3]);
    let mut next = 0;
    for _ in 0..120 {
        match random.below(40) {
            0..10 if next < 14 => {
                world.admit(any_request(&mut random, next));
                next += 1;
            }
            10 if next > 0 => world.step(Event::Cancel(SequenceId(random.below(next)))),
            11 if next > 0 => {
                let sequence = SequenceId(random.below(next));
                world.step(Event::Abort { sequence, reason: "test".into() });
            }
            12 => world.step(Event::Configure(any_policy(&mut random))),
            13 => world.step(Event::Pause { role: ModelRole::Draft }),
            14 => world.step(Event::Resume { role: ModelRole::Draft }),
            15 => world.step(Event::Pause { role: ModelRole::Target }),
            16 => world.step(Event::Resume { role: ModelRole::Target }),
            _ => {
                world.advance();
            }
        }
    }
    world.step(Event::Resume { role: ModelRole::Target });
    world.finish();
}

#[test]
fn every_text_is_plain_text_and_everybody_is_answered() {
    for seed in 0..3000 {
        catch_unwind(AssertUnwindSafe(|| any_world(seed)))
            .unwrap_or_else(|_| panic!("the seed that failed: {seed}"));
    }
}

#[test]
fn two_hundred_requests_at_once_fill_the_slots_and_the_queue_and_no_more() {
    for policy in policies() {
        let mut world = World::new(1, super::many::config(policy));
        world.config.queue_max = 50;
        world = World::new(1, world.config);
        (0..200).for_each(|id| world.admit(request(id, 5, 12)));
        world.finish();
        let full =
            |reason: &RejectReason| matches!(reason, RejectReason::QueueFull { waiting: 50, .. });
        let rejected =
            world.seen.values().filter(|s| s.rejected.as_ref().is_some_and(full)).count();
        assert_eq!(rejected, 200 - 4 - 50);
        assert!(world.seen.range(..54).all(|(_, s)| s.tokens.len() == 12));
    }
}

#[test]
fn sequences_advance_together() {
    for policy in policies() {
        let mut frame = config(policy);
        frame.sequences_max = 8;
        frame.target.rows_max = 8;
        let mut world = World::new(3, frame);
        (0..8).for_each(|id| world.admit(request(id, 1, 48)));
        let mut passes = 0;
        while world.seen.values().all(|s| s.finish.is_none()) {
            assert!(world.advance());
            passes += 1;
        }
        let least = world.seen.values().map(|s| s.tokens.len()).min().unwrap();
        assert!(least >= 12, "after {passes} answers one has only {least} of 48, {policy:?}");
        world.finish();
    }
}

#[test]
fn decoding_does_not_starve_a_long_prompt() {
    let mut frame = config(DraftPolicy::lookup(4, Default::default()));
    frame.sequences_max = 9;
    frame.target.rows_max = 8;
    let mut world = World::new(3, frame);
    (0..8).for_each(|id| world.admit(request(id, 4, 60)));
    (0..12).for_each(|_| assert!(world.advance()));
    world.admit(request(8, 60, 1));
    while world.seen[&8].finish.is_none() {
        assert!(world.advance());
    }
    assert!(world.seen.range(..8).all(|(_, s)| s.finish.is_none()), "it came first");
    world.finish();
}

/// A prompt is read in pieces of a pass each, and who was served last stands behind all others: a short request has its
/// first token with the third pass, and then one with every pass.
#[test]
fn a_short_request_waits_three_passes_beside_a_long_prompt() {
    let mut frame = config(DraftPolicy::plain());
    let limits = RoleLimits { rows_max: 128, positions_max: 512 };
    (frame.target, frame.draft) = (limits, limits);
    let mut world = World::new(3, frame);
    world.admit(request(0, 400, 8));
    world.admit(request(1, 10, 30));
    let mut passes = 0;
    while world.seen[&1].tokens.is_empty() {
        assert!(world.advance());
        passes += 1;
    }
    assert_eq!(passes, 3);
    while world.seen[&0].tokens.is_empty() {
        let before = world.seen[&1].tokens.len();
        assert!(world.advance());
        assert_eq!(world.seen[&1].tokens.len(), before + 1);
        passes += 1;
    }
    assert!(passes <= 5, "the long prompt took {passes} passes");
    world.finish();
}

#[test]
fn a_cancel_at_any_point_ends_one_sequence_and_no_other() {
    for policy in policies() {
        for units in [Units::Separate, Units::Shared] {
            for point in 0.. {
                let mut frame = config(policy);
                (frame.units, frame.sequences_max) = (units, 2);
                let mut world = World::new(9, frame);
                (0..4).for_each(|id| world.admit(request(id, 6, 10)));
                let reached = (0..point).all(|_| world.advance());
                let id = point as u64 % 4;
                world.step(Event::Cancel(SequenceId(id)));
                world.step(Event::Cancel(SequenceId(id)));
                world.finish();
                for (other, seen) in &world.seen {
                    let (reason, _) = seen.finish.as_ref().unwrap();
                    assert!(*other == id || *reason == FinishReason::Length, "{other}: {reason:?}");
                }
                if !reached {
                    break;
                }
            }
        }
    }
}

#[test]
fn without_its_draft_decoding_goes_on() {
    for policy in [DraftPolicy::sequential(4), DraftPolicy::overlap(4, 2, 4)] {
        let mut world = World::new(4, config(policy));
        (0..4).for_each(|id| world.admit(request(id, 6, 20)));
        (0..9).for_each(|_| assert!(world.advance()));
        world.step(Event::Pause { role: ModelRole::Draft });
        world.finish();
        world.admit(request(7, 6, 20));
        world.finish();
        assert_eq!(world.seen[&7].finish.as_ref().unwrap().1.draft_n, 0);
        world.step(Event::Resume { role: ModelRole::Draft });
        world.admit(request(8, 6, 20));
        world.finish();
        assert!(world.seen[&8].finish.as_ref().unwrap().1.draft_n > 0);
    }
}

#[test]
fn a_failed_target_waits_for_the_remedy() {
    let mut world = World::new(5, config(DraftPolicy::sequential(4)));
    world.failures = 100;
    world.admit(request(0, 6, 20));
    world.step(Event::Pause { role: ModelRole::Target });
    world.failures = 0;
    while world.advance() {}
    assert!(world.seen[&0].finish.is_none());
    world.step(Event::Abort { sequence: SequenceId(0), reason: "no target".into() });
    let reason = FinishReason::Failed { reason: "no target".into() };
    assert_eq!(world.seen[&0].finish.as_ref().unwrap().0, reason);
    world.finish();
}

#[test]
fn what_cannot_be_served_is_refused_with_its_numbers() {
    let good = request(0, 4, 4);
    let with = |change: fn(&mut Admission)| {
        let mut admission = good.clone();
        change(&mut admission);
        let mut world = World::new(1, config(DraftPolicy::plain()));
        world.admit(admission);
        let reason = world.seen[&0].rejected.clone().unwrap();
        world.finish();
        reason.to_string()
    };
    assert_eq!(
        with(|a| a.params.max_tokens = Some(61)),
        "a prompt of 4 tokens with 61 more does not fit into the context of 64; \
         shorten the prompt or ask for fewer tokens"
    );
    assert!(with(|a| a.prompt = vec![1; 64]).starts_with("a prompt of 64 tokens with 4 more"));
    assert_eq!(with(|a| a.prompt.clear()), "the prompt has no tokens");
    assert_eq!(with(|a| a.params.max_tokens = Some(0)), "max_tokens is 0, but must be at least 1");
    assert_eq!(with(|a| a.params.stop = vec!["".into()]), "a stop string is empty");
    assert_eq!(with(|a| a.prompt[1] = 99), "prompt names token 99, but the vocabulary ends at 19");
    assert_eq!(
        with(|a| a.params.sampling = Sampling { top_p: 2.0, ..Sampling::default() }),
        "top_p is 2, but must lie in 0 to 1 (1 keeps all)"
    );
}

/// Short prompts, so that passes have room for drafts: batching must not lose the gain of drafting.
#[test]
fn drafts_are_used_in_company() {
    for policy in [DraftPolicy::sequential(3), DraftPolicy::overlap(3, 1, 1)] {
        let mut world = World::new(6, config(policy));
        (0..4).for_each(|id| world.admit(request(id, 3, 40)));
        world.finish();
        for seen in world.seen.values() {
            let statistics = seen.finish.as_ref().unwrap().1;
            assert!(statistics.rounds < statistics.predicted_n * 3 / 4, "{statistics:?}");
        }
    }
}
