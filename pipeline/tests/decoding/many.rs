//! A scheduler with its clients and two simulated units: checks each action against the rules, and each text against
//! the plain one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_devices::{Drafted, Sampling, SequenceId};
use outrider_pipeline::scheduler::{
    FinishReason, Prefixes, RejectReason, RoleLimits, Statistics, Ticket, Units,
};
use outrider_pipeline::{
    Action, Admission, Detokenize, DraftPolicy, Event, GenerationParams, Scheduler,
    SchedulerConfig, Speculation, TextStart, TextStream,
};
use outrider_plans::ModelRole;

use crate::toy::{END_OF_TEXT, Pair, Random, Toy, VOCABULARY, any_sampling, plain_text};

/// One or two letters a token, few enough for stop strings to be hit.
struct Letters(TextStart);

impl Detokenize for Letters {
    fn push(&mut self, token: u32) -> String {
        ["a", "b", "ab", "c", "ba", "ü"][token as usize % 6].into()
    }
    fn finish(&mut self) -> String {
        // Only to see which of the two was asked for.
        if self.0 == TextStart::Anew { "!" } else { "?" }.into()
    }
}

/// What a client has seen of its request.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finish: Option<(FinishReason, Statistics)>,
    pub(crate) rejected: Option<RejectReason>,
    pub(crate) released: bool,
}

/// A batch under way: who is in it, and its answer.
struct Answer {
    at: u64,
    ticket: Ticket,
    members: BTreeSet<u64>,
    event: Event,
}

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) config: SchedulerConfig,
    pub(crate) random: Random,
    pair: Pair,
    target: Toy,
    draft: Toy,
    now: u64,
    under_way: [Option<Answer>; 2],
    pub(crate) admitted: BTreeMap<u64, Admission>,
    pub(crate) seen: BTreeMap<u64, Seen>,
    /// Time of a row on the target, of a step on the draft.
    pub(crate) pace: (u64, u64),
    /// Batches that fail, in percent.
    pub(crate) failures: u64,
}

pub(crate) fn config(policy: DraftPolicy) -> SchedulerConfig {
    SchedulerConfig {
        sequences_max: 4,
        queue_max: 1000,
        queue_tokens_max: 1 << 20,
        prefixes: Prefixes::Forget,
        target: RoleLimits { rows_max: 32, positions_max: 64 },
        draft: RoleLimits { rows_max: 32, positions_max: 64 },
        vocabulary: VOCABULARY,
        end_of_text: Arc::new([END_OF_TEXT]),
        policy,
        units: Units::Separate,
    }
}

/// A request of any kind that fits the context.
pub(crate) fn any_request(random: &mut Random, id: u64) -> Admission {
    let prompt_len = random.choose(&[1, 4, 20, 40]);
    let prompt = random.tokens(prompt_len);
    let stops = [&[][..], &[], &["abab"], &["ba", "cü"], &["bb", "abc"]];
    let stop = random.choose(&stops).iter().map(|s| s.to_string()).collect();
    let params = GenerationParams {
        sampling: any_sampling(random, 0),
        max_tokens: random.choose(&[None, Some(1), Some(9), Some(24)]),
        stop,
        stop_tokens: random.choose(&[&[][..], &[5]]).into(),
        ignore_eos: random.chance(30),
        speculation: random.choose(&[
            Speculation::Plan,
            Speculation::Plan,
            Speculation::Off,
            Speculation::Depth(2),
        ]),
        begins: random.choose(&[TextStart::Anew, TextStart::Continues]),
    };
    Admission { sequence: SequenceId(id), prompt, params }
}

impl World {
    pub(crate) fn new(seed: u64, config: SchedulerConfig) -> Self {
        let mut random = Random(seed);
        let pair = Pair { salt: random.next(), agreement: 80, memory: 1000 };
        Self {
            scheduler: Scheduler::new(config.clone(), Box::new(|begins| Box::new(Letters(begins)))),
            config,
            random,
            pair,
            target: Toy::target(pair),
            draft: Toy::draft(pair),
            now: 0,
            under_way: [None, None],
            admitted: BTreeMap::new(),
            seen: BTreeMap::new(),
            pace: (10, 3),
            failures: 0,
        }
    }

    pub(crate) fn admit(&mut self, admission: Admission) {
        let id = admission.sequence.0;
        self.admitted.insert(id, admission.clone());
        self.seen.insert(id, Seen::default());
        self.step(Event::Admit(admission));
    }

    /// Feeds an event and carries out the actions.
    pub(crate) fn step(&mut self, event: Event) {
        for action in self.scheduler.step(self.now, event) {
            self.act(action);
        }
        let config = &self.config;
        assert!(self.scheduler.running() <= config.sequences_max, "slots");
        assert!(self.scheduler.waiting() <= config.queue_max, "queue");
        assert!(self.target.caches.len() <= config.sequences_max, "caches of the target");
        assert!(self.draft.caches.len() <= config.sequences_max, "caches of the draft");
    }

    /// Lets the next answer arrive; false if none is under way.
    pub(crate) fn advance(&mut self) -> bool {
        let due = (0..2).filter(|&i| self.under_way[i].is_some());
        let Some(unit) = due.min_by_key(|&i| self.under_way[i].as_ref().map(|a| a.at)) else {
            return false;
        };
        let answer = self.under_way[unit].take().unwrap();
        self.now = answer.at;
        let role = [ModelRole::Target, ModelRole::Draft][unit];
        if self.random.chance(self.failures) {
            self.step(Event::Failed { role, ticket: answer.ticket });
            let toy = if unit == 0 { &mut self.target } else { &mut self.draft };
            toy.caches.clear();
            self.step(Event::CachesLost { role });
            self.step(Event::Resume { role });
            // What comes from a unit that was given up on is ignored.
            self.step(answer.event);
        } else {
            self.step(answer.event);
        }
        true
    }

    /// Runs until nothing is under way, then checks that everybody was answered.
    pub(crate) fn finish(&mut self) {
        let mut steps = 0;
        while self.advance() {
            steps += 1;
            assert!(steps < 200_000, "no end in sight");
        }
        assert_eq!((self.scheduler.running(), self.scheduler.waiting()), (0, 0), "lost sequences");
        for (id, seen) in &self.seen {
            assert!(seen.finish.is_some() != seen.rejected.is_some(), "{id}: one answer");
            assert_eq!(seen.finish.is_some(), seen.released, "{id}: one release");
            if seen.finish.is_some() {
                self.compare(&self.admitted[id], seen);
            }
        }
        assert!(self.target.caches.is_empty() && self.draft.caches.is_empty(), "caches are left");
    }

    /// Compares a finished text with the plain one; one that was cut short must be the beginning of it.
    fn compare(&self, admission: &Admission, seen: &Seen) {
        let (tokens, text, reason) = self.plain(admission);
        let (finish, statistics) = seen.finish.as_ref().unwrap();
        let id = admission.sequence;
        if matches!(finish, FinishReason::Cancelled | FinishReason::Failed { .. }) {
            assert!(tokens.starts_with(&seen.tokens), "{id}: not the plain tokens");
            assert!(text.starts_with(&seen.text), "{id}: not the plain text");
        } else {
            assert_eq!((&seen.tokens, &seen.text, finish), (&tokens, &text, &reason), "{id}");
        }
        assert_eq!(statistics.predicted_n as usize, seen.tokens.len(), "{id}");
        assert_eq!(statistics.prompt_n as usize, admission.prompt.len(), "{id}");
        assert!(statistics.draft_n_accepted <= statistics.draft_n, "{id}");
    }

    /// What the target alone would answer.
    fn plain(&self, admission: &Admission) -> (Vec<u32>, String, FinishReason) {
        let Admission { prompt, params, .. } = admission;
        let context = self.config.target.positions_max as usize;
        let length_max = params.max_tokens.map_or(context, |n| prompt.len() + n as usize);
        let own_end: &[u32] = if params.ignore_eos { &[] } else { &self.config.end_of_text };
        let stops: Vec<u32> = own_end.iter().chain(&params.stop_tokens).copied().collect();
        let sampling = Sampling { prompt_len: prompt.len() as u32, ..params.sampling.clone() };
        let mut tokens = plain_text(self.pair, prompt, length_max, (&sampling, &stops));
        let mut stream = TextStream::new(Box::new(Letters(params.begins)), params.stop.clone());
        let (mut text, mut reason) = (String::new(), FinishReason::Length);
        for i in 0..tokens.len() {
            if stops.contains(&tokens[i]) {
                reason = FinishReason::Stop;
                break;
            }
            let piece = stream.push(tokens[i]);
            text += &piece.shown;
            if piece.stopped {
                reason = FinishReason::StopString;
                tokens.truncate(i + 1);
                break;
            }
        }
        (tokens, text + &stream.finish(), reason)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::RunWarm { .. } | Action::Warmed { .. } => panic!("no plan takes over here"),
            Action::RunTarget { ticket, batch } => {
                let (rows, mut picks) = (batch.rows(), Vec::new());
                assert!(rows <= self.config.target.rows_max as usize, "rows of the target");
                let members = self.members(batch.segments.iter().map(|s| s.sequence));
                for s in &batch.segments {
                    let place = (s.sequence.0, s.base);
                    picks.extend(self.target.run(place, &s.tokens, s.want.rows(), &s.sampling));
                }
                let at = self.now + 1 + self.random.below(self.pace.0 * 2);
                let event = Event::TargetDone { ticket, picks };
                self.depart(0, Answer { at, ticket, members, event });
            }
            Action::RunDraft { ticket, batch } => {
                let segments = &batch.segments;
                let rows: usize = segments.iter().map(|s| s.segment.tokens.len()).sum();
                assert!(rows <= self.config.draft.rows_max as usize, "rows of the draft");
                let members = self.members(segments.iter().map(|s| s.segment.sequence));
                let mut drafted = Vec::new();
                for DraftShare { place, tokens, steps, sampling } in segments.iter().map(share) {
                    let picks = self.draft.extend(place, tokens, steps, sampling);
                    drafted.push(Drafted { steps: picks.len() as u32, picks });
                }
                let steps = segments.iter().map(|s| u64::from(s.steps)).max().unwrap();
                let at = self.now + 1 + steps * self.random.below(self.pace.1 * 2);
                let event = Event::DraftDone { ticket, drafted };
                self.depart(1, Answer { at, ticket, members, event });
            }
            Action::Emit { sequence, tokens, text, offered, accepted } => {
                let seen = self.seen.get_mut(&sequence.0).unwrap();
                assert!(seen.finish.is_none() && seen.rejected.is_none(), "{sequence} is over");
                assert!(accepted <= offered);
                seen.tokens.extend(tokens.iter().map(|t| t.pick.token));
                seen.text += &text;
            }
            Action::Finish { sequence, reason, statistics } => {
                let seen = self.seen.get_mut(&sequence.0).unwrap();
                assert!(seen.finish.is_none() && seen.rejected.is_none(), "{sequence} ends twice");
                seen.finish = Some((reason, statistics));
            }
            Action::Release { sequence } => self.release(sequence),
            Action::Reject { sequence, reason } => {
                let seen = self.seen.get_mut(&sequence.0).unwrap();
                assert!(seen.finish.is_none() && seen.rejected.is_none(), "{sequence} ends twice");
                seen.rejected = Some(reason);
            }
        }
    }

    fn members(&self, sequences: impl ExactSizeIterator<Item = SequenceId>) -> BTreeSet<u64> {
        let count = sequences.len();
        let members: BTreeSet<u64> = sequences.map(|s| s.0).collect();
        assert!(count > 0 && members.len() == count, "a sequence appears twice in a batch");
        members
    }

    fn depart(&mut self, unit: usize, answer: Answer) {
        assert!(self.under_way[unit].is_none(), "two batches on one unit");
        let alone = self.config.units == Units::Separate || self.under_way[1 - unit].is_none();
        assert!(alone, "both models at once on shared units");
        self.under_way[unit] = Some(answer);
    }

    fn release(&mut self, sequence: SequenceId) {
        let seen = self.seen.get_mut(&sequence.0).unwrap();
        assert!(
            seen.finish.is_some() && !seen.released,
            "{sequence} is released in its time, once"
        );
        seen.released = true;
        let in_use = self.under_way.iter().flatten().any(|a| a.members.contains(&sequence.0));
        assert!(!in_use, "{sequence} is released while a unit works on it");
        self.target.caches.remove(&sequence.0);
        self.draft.caches.remove(&sequence.0);
    }
}

struct DraftShare<'a> {
    place: (u64, u32),
    tokens: &'a [u32],
    steps: u32,
    sampling: &'a Sampling,
}

fn share(draft: &outrider_devices::DraftSegment) -> DraftShare<'_> {
    let s = &draft.segment;
    let place = (s.sequence.0, s.base);
    DraftShare { place, tokens: &s.tokens, steps: draft.steps, sampling: &s.sampling }
}
