//! One speculator between two simulated units with random latencies.

use outrider_devices::{Pick, Sampling};
use outrider_pipeline::pacing::Reach;
use outrider_pipeline::speculator::{DraftCounts, End, Task};
use outrider_pipeline::{DraftPolicy, Speculator};
use outrider_plans::ModelRole;

use crate::toy::{END_OF_TEXT, Fault, Pair, Random, Toy, any_sampling, plain_text};

/// How the world between speculator and models can misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    None,
    /// The target's unit does not cut its cache.
    TargetNotCut,
    /// The draft's unit does not cut its cache.
    DraftNotCut,
    /// New work of the draft is answered with what it said before the text took another turn.
    StaleAnswer,
    /// An answer from before the turn is stamped as if it were from after it.
    EpochIgnored,
    /// A unit loses its caches and nobody is told.
    SilentLoss,
    /// The target's picks come in the wrong order.
    PicksReversed,
}

/// One run, all of it from `seed`.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) policy: DraftPolicy,
    /// Time that a row takes on the target and a step on the draft.
    pub(crate) pace: (u64, u64),
    /// Policies change, units fail and lose their caches on the way.
    pub(crate) disturbed: bool,
    pub(crate) mischief: Mischief,
}

/// An answer under way.
struct Answer {
    at: u64,
    epoch: u64,
    base: u32,
    picks: Vec<Pick>,
}

struct World {
    case: Case,
    random: Random,
    speculator: Speculator,
    sampling: Sampling,
    target: Toy,
    draft: Toy,
    now: u64,
    verifying: Option<Answer>,
    drafting: Option<Answer>,
    output: Vec<u32>,
    end: Option<End>,
    drafted: u32,
    turned: bool,
    stale: Vec<Pick>,
}

/// Runs a case and compares its text with the plain one. Panics if anything is wrong.
pub(crate) fn run(case: &Case) -> (DraftCounts, u64) {
    let mut random = Random(case.seed);
    let salt = random.next();
    let memory = random.choose(&[1, 3, 1000, 1000]);
    let pair = Pair { salt, agreement: random.choose(&[0, 50, 85, 100]), memory };
    let prompt_len = random.choose(&[1, 2, 7, 30]);
    let prompt = random.tokens(prompt_len);
    let length_max = prompt.len() + 1 + random.below(40) as usize;
    let sampling = any_sampling(&mut random, prompt.len());
    let stop_tokens: Vec<u32> = random.choose(&[&[END_OF_TEXT][..], &[], &[END_OF_TEXT, 3]]).into();
    let expected = plain_text(pair, &prompt, length_max, (&sampling, &stop_tokens));
    let task = Task {
        prompt,
        length_max: length_max as u32,
        draft_length_max: random.choose(&[25, 1000, 1000]),
        stop_tokens: stop_tokens.into(),
    };
    let mut world = World {
        speculator: Speculator::new(task, case.policy),
        case: case.clone(),
        random,
        sampling,
        target: Toy::target(pair),
        draft: Toy::draft(pair),
        now: 0,
        verifying: None,
        drafting: None,
        output: Vec::new(),
        end: None,
        drafted: 0,
        turned: false,
        stale: Vec::new(),
    };
    match case.mischief {
        Mischief::TargetNotCut => world.target.fault = Fault::NoTruncate,
        Mischief::DraftNotCut => world.draft.fault = Fault::NoTruncate,
        _ => {}
    }
    world.run();
    assert_eq!(world.output, expected, "the text differs from the plain one");
    assert!(world.end.is_some() && world.speculator.is_finished(), "no end");
    (world.speculator.counts(), world.now)
}

impl World {
    fn run(&mut self) {
        for _ in 0..10_000 {
            self.pull();
            let times = [&self.verifying, &self.drafting].map(|a| a.as_ref().map(|a| a.at));
            let Some(next) = times.into_iter().flatten().min() else {
                assert!(self.speculator.is_finished(), "stuck: nothing under way, nothing to do");
                return self.account();
            };
            self.now = next;
            if times[0] == Some(next) {
                self.deliver_verified();
            } else {
                self.deliver_drafted();
            }
            if self.case.disturbed && self.random.chance(8) {
                self.disturb();
            }
        }
        panic!("no end in sight");
    }

    /// Gives each idle unit its next work, in either order, and now and then another reach.
    fn pull(&mut self) {
        if self.case.disturbed && self.random.chance(20) {
            let reach = any_reach(&mut self.random);
            self.speculator.aim(reach);
        }
        if self.random.chance(50) {
            self.pull_verify();
            self.pull_draft();
        } else {
            self.pull_draft();
            self.pull_verify();
        }
    }

    fn pull_verify(&mut self) {
        let rows = self.random.choose(&[1, 2, 3, 8, 100]);
        if self.verifying.is_some() {
            return;
        }
        let Some(work) = self.speculator.take_verify(rows) else { return };
        assert!(work.tokens.len() <= rows as usize, "more rows than allowed");
        let wanted = work.picks_wanted as usize;
        let mut picks = self.target.run((0, work.base), &work.tokens, wanted, &self.sampling);
        self.compare(ModelRole::Target, (work.base, work.tokens.len()));
        if self.case.mischief == Mischief::PicksReversed {
            picks.reverse();
        }
        let at = self.now + 1 + self.random.below(self.case.pace.0 * 2);
        self.verifying = Some(Answer { at, epoch: 0, base: work.base, picks });
    }

    fn pull_draft(&mut self) {
        let rows = self.random.choose(&[1, 5, 100]);
        if self.drafting.is_some() {
            return;
        }
        let Some(work) = self.speculator.take_draft(rows) else { return };
        assert!(work.tokens.len() <= rows as usize, "more rows than allowed");
        let complete = work.base as usize + work.tokens.len() == self.speculator.text().len();
        let mut picks = self.draft.extend((0, work.base), &work.tokens, work.steps, &self.sampling);
        self.compare(ModelRole::Draft, (work.base, work.tokens.len()));
        if complete {
            self.drafted += picks.len() as u32;
        }
        if self.case.mischief == Mischief::StaleAnswer && !self.stale.is_empty() && complete {
            picks = std::mem::take(&mut self.stale);
            picks.truncate(work.steps as usize);
        }
        let steps = picks.len() as u64;
        let at = self.now + 1 + steps * self.random.below(self.case.pace.1 * 2);
        self.turned = false;
        self.drafting = Some(Answer { at, epoch: work.epoch, base: work.base, picks });
    }

    /// What a unit has in its cache after its rows must be the text.
    fn compare(&self, role: ModelRole, (base, rows): (u32, usize)) {
        let toy = if role == ModelRole::Target { &self.target } else { &self.draft };
        let end = base as usize + rows;
        assert_eq!(toy.caches[&0][..end], self.speculator.text()[..end], "the {role}'s cache");
    }

    fn deliver_verified(&mut self) {
        let answer = self.verifying.take().unwrap();
        if self.fails() {
            return self.speculator.failed(ModelRole::Target);
        }
        let verdict = self.speculator.verified(answer.picks);
        assert!(self.end.is_none() || verdict.tokens.is_empty(), "tokens after the end");
        assert!(verdict.accepted <= verdict.offered);
        self.turned |= verdict.accepted < verdict.offered;
        self.output.extend(verdict.tokens.iter().map(|c| c.pick.token));
        self.end = self.end.or(verdict.end);
    }

    fn deliver_drafted(&mut self) {
        let answer = self.drafting.take().unwrap();
        if self.turned {
            self.stale = answer.picks.clone();
        }
        if self.fails() {
            return self.speculator.failed(ModelRole::Draft);
        }
        let ignored = self.case.mischief == Mischief::EpochIgnored && self.turned;
        let epoch = answer.epoch + u64::from(ignored);
        self.speculator.drafted(epoch, answer.base, &answer.picks);
    }

    fn fails(&mut self) -> bool {
        self.case.disturbed && self.random.chance(3)
    }

    fn disturb(&mut self) {
        match self.random.below(3) {
            0 => {
                let policy = any_policy(&mut self.random);
                self.speculator.set_policy(policy);
            }
            1 => self.lose(ModelRole::Target),
            _ => self.lose(ModelRole::Draft),
        }
    }

    fn lose(&mut self, role: ModelRole) {
        let toy = if role == ModelRole::Target { &mut self.target } else { &mut self.draft };
        toy.caches.clear();
        if self.case.mischief != Mischief::SilentLoss {
            self.speculator.cache_lost(role);
        }
    }

    /// Every drafted token has been judged or discarded.
    fn account(&self) {
        let counts = self.speculator.counts();
        assert!(counts.accepted <= counts.offered);
        assert!(counts.accepted as usize <= self.output.len());
        let by_model = self.case.policy.lookup.is_none() && !self.case.disturbed;
        if by_model && self.case.mischief == Mischief::None {
            assert_eq!(
                counts.offered + counts.discarded.total(),
                self.drafted,
                "drafts unaccounted for"
            );
        }
    }
}

/// Any limits within a policy.
fn any_reach(random: &mut Random) -> Reach {
    let mut most = || random.choose(&[0, 0, 1, 2, 5, u32::MAX]);
    let (steps, offer, wait) = (most(), most(), most());
    Reach { steps, offer, wait, ..Reach::UNLIMITED }
}

/// A policy of any mode.
pub(crate) fn any_policy(random: &mut Random) -> DraftPolicy {
    let depth = 1 + random.below(8) as u32;
    let ngrams = outrider_pipeline::lookup::Ngrams { min: 1, max: 3 };
    let policy = match random.below(4) {
        0 => DraftPolicy::plain(),
        1 => DraftPolicy::sequential(depth),
        2 => DraftPolicy::lookup(depth, ngrams),
        _ => DraftPolicy::overlap(depth, 1 + random.below(4) as u32, random.below(5) as u32),
    };
    let policy =
        if policy.uses_draft() && random.chance(30) { policy.with_lookup(ngrams) } else { policy };
    match random.below(4) {
        0 => policy.by_worth(),
        1 => policy.guarded(),
        _ => policy,
    }
}
