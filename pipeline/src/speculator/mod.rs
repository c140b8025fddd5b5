//! Speculative decoding of one sequence, as a state machine without a clock.
//!
//! The text is a list of tokens: confirmed ones, picked by the target, then a *tail* of drafted ones that the target
//! has yet to see. Work is pulled ([`Speculator::take_verify`], [`Speculator::take_draft`]), so that it is decided as
//! late as possible and batched with that of other sequences; answers are pushed ([`Speculator::verified`],
//! [`Speculator::drafted`]). One round:
//!
//! ```text
//!                      confirmed            tail
//!   text          ... t  t  t  t │ d0 d1 d2 │ d3 d4        d3, d4 arrive while the pass runs (overlap)
//!                             │    │  │  │
//!   target's rows             t    d0 d1 d2                one pass: the last confirmed token and k = 3 drafts
//!                             │    │  │  │
//!   target's picks            p0   p1 p2 p3                k + 1 tokens; p3 judges d3 for free
//!
//!   all agree:   p0=d0 p1=d1 p2=d2       confirm p0..p3
//!                     p3=d3              the tail goes on with d4
//!                     no d3 yet          the draft's answer is compared with p3 when it comes
//!                     p3≠d3              as below
//!   p1≠d1:       confirm p0 p1; the tail and everything drafted after it is wrong:
//!                the epoch steps, an answer of an older epoch is dropped,
//!                and the next work of either model starts where its cache still is the text.
//! ```
//!
//! There is no rollback message: each job says at which position it begins, and the cache is cut to that.
//!
//! ```text
//!   sequential   draft ▇▇▇▇        ▇▇▇▇        ▇▇▇▇         overlap   draft ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
//!                target    ▇▇▇▇▇▇      ▇▇▇▇▇▇      ▇▇▇▇▇▇              target ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
//! ```
//!
//! *Invariants*, asserted after every event:
//! - The confirmed text is what the target alone would have picked; drafts decide only when, never what.
//! - The target's cache holds confirmed text only, and lacks at least the last token (whose row picks the next one).
//! - Either model has at most one job at a time, and a cache never claims more positions than the text has.
//! - Only the last token of the tail may be a stop token, and the tail leaves room for the target's own next token.

mod cache;
mod judgement;
mod pace;
mod work;

use std::sync::Arc;

use outrider_devices::Pick;
use outrider_plans::ModelRole;

use crate::draft_policy::DraftPolicy;
use crate::lookup;
use crate::pacing::{Outcome, Reach};
use cache::Cache;
pub use work::{Confirmed, Discarded, DraftCounts, DraftWork, End, Need, Verdict, VerifyWork};

/// What a sequence is to become.
#[derive(Clone, Debug)]
pub struct Task {
    /// Where it starts; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens of prompt and output together; more than the prompt has.
    pub length_max: u32,
    /// Most tokens that the draft model can hold.
    pub draft_length_max: u32,
    /// Tokens that end the text.
    pub stop_tokens: Arc<[u32]>,
}

/// One sequence's speculative decoding.
#[derive(Clone, Debug)]
pub struct Speculator {
    text: Vec<u32>,
    confirmed: usize,
    length_max: u32,
    draft_length_max: u32,
    stop_tokens: Arc<[u32]>,
    policy: DraftPolicy,
    /// How far the draft may go at present.
    reach: Reach,
    /// The draft's probability of each token of the tail; 1 for one that was looked up.
    confidences: Vec<f32>,
    /// Right drafted tokens since the text was last the target's own alone.
    streak: u32,
    target: Cache,
    draft: Cache,
    /// Steps whenever drafts already asked for turn out to continue a wrong text.
    epoch: u64,
    /// The last pass of the target left no tail.
    dry: bool,
    /// The draft of this round is as long as it will get: the target does not wait for more.
    closed: bool,
    finished: bool,
    counts: DraftCounts,
}

impl Speculator {
    /// A sequence of which no model has seen anything. Panics if the task leaves no room for a token.
    pub fn new(task: Task, policy: DraftPolicy) -> Self {
        assert!(!task.prompt.is_empty(), "an empty prompt");
        assert!(task.prompt.len() < task.length_max as usize, "no room for a token");
        let mut speculator = Self {
            confirmed: task.prompt.len(),
            text: task.prompt,
            length_max: task.length_max,
            draft_length_max: task.draft_length_max,
            stop_tokens: task.stop_tokens,
            policy,
            reach: Reach::UNLIMITED,
            confidences: Vec::new(),
            streak: 0,
            target: Cache::default(),
            draft: Cache::default(),
            epoch: 0,
            dry: true,
            closed: false,
            finished: false,
            counts: DraftCounts::default(),
        };
        speculator.look_up();
        speculator.check();
        speculator
    }

    /// What the target could do next.
    pub fn need(&self) -> Need {
        let missing = self.confirmed as u32 - self.target.len();
        if self.finished || self.target.job().is_some() {
            Need::Nothing
        } else if missing > 1 {
            Need::Prefill
        } else if self.waits_for_draft() {
            Need::Nothing
        } else {
            Need::Decode
        }
    }

    /// The target's next work, of at most `rows_max` rows, if there is any.
    pub fn take_verify(&mut self, rows_max: u32) -> Option<VerifyWork> {
        assert!(rows_max > 0, "work of no rows");
        if self.need() == Need::Nothing {
            return None;
        }
        let base = self.target.len();
        let missing = self.confirmed as u32 - base;
        let (end, picks_wanted) = if missing > rows_max {
            (base + rows_max, 0)
        } else {
            let offered = self.tail_to_offer((rows_max - missing) as usize);
            ((self.confirmed + offered) as u32, offered as u32 + 1)
        };
        self.target.start(base, end, (picks_wanted, self.epoch));
        self.check();
        Some(VerifyWork { base, tokens: self.rows(base, end), picks_wanted })
    }

    /// The draft's next work, with at most `rows_max` rows before its first drafted token, if there is any.
    pub fn take_draft(&mut self, rows_max: u32) -> Option<DraftWork> {
        assert!(rows_max > 0, "work of no rows");
        let wanted = self.drafts_wanted();
        if wanted == 0 || self.draft.job().is_some() {
            return None;
        }
        let len = self.text.len() as u32;
        // The last row is run again if it has to be: only a row that runs can pick.
        let base = self.draft.len().min(len - 1);
        let end = len.min(base.saturating_add(rows_max));
        let wanted = if end < len { 0 } else { wanted };
        self.draft.start(base, end, (wanted, self.epoch));
        self.check();
        let tokens = self.rows(base, end);
        Some(DraftWork { epoch: self.epoch, base, tokens, steps: wanted.max(1) })
    }

    /// The target answers. Panics unless it gave as many picks as were wanted.
    pub fn verified(&mut self, picks: Vec<Pick>) -> Verdict {
        let job = self.target.done();
        assert_eq!(picks.len(), job.wanted as usize, "picks of the target");
        if self.finished || picks.is_empty() {
            return Verdict::default();
        }
        let verdict = self.judge(picks);
        self.counts.rounds += 1;
        self.counts.plain_rounds += u32::from(job.wanted == 1);
        self.counts.offered += verdict.offered;
        self.counts.accepted += verdict.accepted;
        if verdict.end.is_some() {
            self.finish();
        } else {
            self.dry = self.tail().is_empty();
            self.closed = false;
            self.look_up();
        }
        self.check();
        verdict
    }

    /// The draft answers the work of `epoch` that began at `base`. Tokens that the target has meanwhile picked itself
    /// are compared and passed over; the rest becomes part of the tail, or is dropped. Returns how those compared fared.
    pub fn drafted(&mut self, epoch: u64, base: u32, picks: &[Pick]) -> Vec<Outcome> {
        let job = self.draft.done();
        assert_eq!((job.epoch, job.base), (epoch, base), "the draft answers other work");
        assert!((1..=job.wanted.max(1)).contains(&(picks.len() as u32)), "drafts of the draft");
        if job.wanted == 0 || epoch != self.epoch {
            let stale = if job.wanted == 0 { 0 } else { picks.len() };
            self.counts.discarded.stale += stale as u32;
            self.check();
            return Vec::new();
        }
        let known = &self.text[job.end as usize..];
        let late = known.len().min(picks.len());
        let agreed = known.iter().zip(picks).take_while(|(t, p)| **t == p.token).count();
        assert!(late == 0 || self.tail().is_empty(), "only the target adds to the text meanwhile");
        self.counts.accepted += agreed as u32;
        let outcome = |(i, pick): (usize, &Pick)| Outcome {
            place: i as u32,
            confidence: pick.probability,
            accepted: i < agreed,
        };
        let compared = late.min(agreed + 1);
        let outcomes = picks[..compared].iter().enumerate().map(outcome).collect();
        if agreed < late {
            self.counts.offered += agreed as u32 + 1;
            self.counts.discarded.diverged += (picks.len() - agreed - 1) as u32;
            self.draft.extend(job, job.end + agreed as u32);
        } else {
            self.counts.offered += late as u32;
            self.draft.extend(job, job.end + picks.len() as u32 - 1);
            self.append(&picks[late..]);
            self.closed |= picks.len() < job.wanted as usize;
            self.streak = if late > 0 { late as u32 } else { self.streak };
        }
        self.check();
        outcomes
    }

    /// The job of `role` has failed. Its work can be taken again.
    pub fn failed(&mut self, role: ModelRole) {
        self.cache_mut(role).failed();
        self.check();
    }

    /// The unit of `role` has lost this sequence's cache; it is rebuilt from the text by the next work.
    pub fn cache_lost(&mut self, role: ModelRole) {
        self.cache_mut(role).lose();
        self.check();
    }

    /// `role` runs elsewhere from now on, where its cache holds the first `len` tokens of the confirmed text.
    pub fn cache_moved(&mut self, role: ModelRole, len: u32) {
        assert!((len as usize) < self.confirmed, "a cache beyond the confirmed text");
        self.cache_mut(role).moved(len);
        self.check();
    }

    /// Positions of the target's cache that hold confirmed text.
    pub fn target_cached(&self) -> u32 {
        self.target.len()
    }

    /// Positions of the draft's cache that hold the text.
    pub fn draft_cached(&self) -> u32 {
        self.draft.len()
    }

    /// Changes the rules from here on. Drafts that no pass is checking are dropped.
    pub fn set_policy(&mut self, policy: DraftPolicy) {
        if policy == self.policy {
            return;
        }
        self.policy = policy;
        let checking = self.checking().unwrap_or(0) as usize;
        let dropped = self.discard_tail_after(checking.min(self.tail().len()));
        self.counts.discarded.policy += dropped;
        self.dry = self.tail().is_empty();
        self.closed = false;
        self.check();
    }

    /// Says how far the draft may go from here, within the policy.
    pub fn aim(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// Ends the sequence: there is no more work, and answers still to come are ignored.
    pub fn finish(&mut self) {
        let dropped = self.discard_tail_after(0);
        self.counts.discarded.finished += dropped;
        self.target.cut(self.confirmed as u32 - 1);
        self.finished = true;
        self.check();
    }

    /// Whether a job of `role` is under way.
    pub fn is_busy(&self, role: ModelRole) -> bool {
        match role {
            ModelRole::Target => self.target.job().is_some(),
            ModelRole::Draft => self.draft.job().is_some(),
        }
    }

    /// Whether the text has ended.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Prompt, output and tail.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Prompt and output.
    pub fn confirmed(&self) -> &[u32] {
        &self.text[..self.confirmed]
    }

    /// Drafted tokens that the target has yet to judge.
    pub fn tail(&self) -> &[u32] {
        &self.text[self.confirmed..]
    }

    /// The draft's probability of each token of the tail.
    pub fn confidences(&self) -> &[f32] {
        &self.confidences
    }

    /// Right drafted tokens before the tail since the text was last the target's own alone.
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// The rules for drafting.
    pub fn policy(&self) -> DraftPolicy {
        self.policy
    }

    /// Most rows that the draft should read at once.
    pub fn reading_max(&self) -> u32 {
        self.reach.reading
    }

    /// What the device is to stop its draft at.
    pub fn probability_min(&self) -> f32 {
        self.policy.probability_min.max(self.reach.probability_min)
    }

    /// Whether the target has seen all of the text but its last token.
    pub fn is_decoding(&self) -> bool {
        !self.finished && self.confirmed as u32 - self.target.len() <= 1
    }

    /// Tokens of the text that the draft has not seen.
    pub fn missed_by_draft(&self) -> u32 {
        self.text.len() as u32 - self.draft.len()
    }

    /// How the drafts have fared so far.
    pub fn counts(&self) -> DraftCounts {
        self.counts
    }

    /// Drafts the continuation that earlier text suggests, unless the draft model is at work on one.
    fn look_up(&mut self) {
        let drafting = self.draft.job().is_some_and(|job| job.epoch == self.epoch);
        let Some(ngrams) = self.policy.lookup else { return };
        if drafting || !self.tail().is_empty() {
            return;
        }
        let count = self.policy.depth.min(self.room()) as usize;
        let found = lookup::continuation(&self.text, ngrams, count);
        self.closed |= !found.is_empty();
        self.append_tokens(found.into_iter().map(|token| (token, 1.0)));
    }

    fn append(&mut self, picks: &[Pick]) {
        self.append_tokens(picks.iter().map(|p| (p.token, p.probability)));
    }

    /// Adds to the tail, up to the first stop token.
    fn append_tokens(&mut self, tokens: impl ExactSizeIterator<Item = (u32, f32)>) {
        let mut left = tokens.len() as u32;
        for (token, confidence) in tokens {
            if self.tail_is_complete() {
                self.counts.discarded.finished += left;
                break;
            }
            self.text.push(token);
            self.confidences.push(confidence);
            left -= 1;
        }
        self.draft.cut(self.text.len() as u32);
    }

    /// Returns how many tokens that were.
    fn discard_tail_after(&mut self, kept: usize) -> u32 {
        let dropped = (self.tail().len() - kept) as u32;
        self.text.truncate(self.confirmed + kept);
        self.confidences.truncate(kept);
        self.draft.cut(self.text.len() as u32);
        self.epoch += 1;
        dropped
    }

    fn rows(&self, base: u32, end: u32) -> Vec<u32> {
        self.text[base as usize..end as usize].to_vec()
    }

    fn cache_mut(&mut self, role: ModelRole) -> &mut Cache {
        match role {
            ModelRole::Target => &mut self.target,
            ModelRole::Draft => &mut self.draft,
        }
    }

    fn check(&self) {
        let len = self.text.len();
        assert!(self.confirmed <= len && len <= self.length_max as usize, "length of the text");
        assert!((self.target.len() as usize) < self.confirmed, "the target's cache lacks a row");
        assert_eq!(
            self.confidences.len(),
            self.tail().len(),
            "a confidence for each drafted token"
        );
        assert!(self.draft.len() as usize <= len, "the draft's cache holds text only");
        let inner = self.tail().split_last().map_or(&[][..], |(_, inner)| inner);
        assert!(!inner.iter().any(|t| self.stop_tokens.contains(t)), "text after a stop token");
        assert!(
            self.tail().is_empty() || len < self.length_max as usize,
            "the tail leaves no room for the target's own token"
        );
        let checking = self.checking().unwrap_or(0) as usize;
        assert!(self.finished || checking <= self.tail().len(), "the pass checks the tail");
    }
}
