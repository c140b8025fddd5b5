//! How far drafts run ahead, decided while decoding: the stop rule fed by measured times and outcomes, and the guard.
//!
//! One more token is drafted if it is worth its time: if the probability that it will be accepted exceeds `S (c + v)`, `S`
//! being tokens per time now, `c` the time of a draft's step and `v` what one more row adds to a pass of the present
//! width. With many sequences at once a row costs arithmetic instead of waiting for memory, `S v` rises towards 1, and
//! speculation fades by itself.
//!
//! ```text
//!   jobs that end  ──▶ times: passes by rows, drafts by company ──┐
//!                                                                 ├─▶ worth: floors by depth ──▶ Reach of each sequence
//!   tokens judged  ──▶ calibration: by confidence, place, request ┘                                      ▲
//!   cycles         ──▶ guard: what drafts brought, in tokens ──────────── nothing, or one request only ──┘
//! ```
//!
//! *Invariant:* no clock: times come with the events. What is decided here changes when a token is computed, never which.

mod calibration;
mod guard;
mod times;
mod worth;

pub use calibration::{BinCounts, Calibration, Noise, Outcome, Trust};
pub use guard::GuardState;
pub(crate) use worth::Tail;
pub use worth::{Prospects, Reach};

use guard::{Cycle, Guard};
use outrider_plans::CONFIDENCE_BINS;
use outrider_plans::mode::DRAFT_TOKENS_MAX;
use times::{DraftTimes, PassTimes};
use worth::Rates;

/// Times that were measured before, so that the first requests are not decoded by guesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownTimes {
    /// Rows and nanoseconds of passes of the target.
    pub passes: Vec<(u32, u64)>,
    /// Nanoseconds of a draft's step.
    pub draft_step_ns: Option<u64>,
}

/// Whether the models have units of their own, as the pacer sees it: a draft beside the target costs it no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rhythm {
    /// A draft keeps the target waiting.
    Alternating,
    /// The draft works beside the target.
    Overlapping,
}

/// A pass of the target that starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetJob {
    /// Rows of all sequences.
    pub(crate) rows: u32,
    /// Sequences that are being decoded, in this pass or not.
    pub(crate) company: u32,
    /// Drafted tokens among the rows.
    pub(crate) offered: u32,
    /// Whether all rows are decoding.
    pub(crate) kind: PassKind,
}

/// What a pass of the target is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Only decoding: its time says what decoding takes.
    Decode,
    /// With pieces of prompts.
    Prefill,
}

/// A job of the draft that starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DraftJob {
    /// Sequences in it.
    pub(crate) sequences: u32,
    /// Rows of text that it reads beyond two for each sequence.
    pub(crate) missed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Under<J> {
    job: J,
    since_ns: u64,
}

/// The time since the target's last answer.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// `None` if it cannot be counted: nothing was decoded, or something else was done as well.
    since_ns: Option<u64>,
    drafted: bool,
    /// Time that went into reading missed text.
    missed_ns: f64,
}

/// What can be seen of the pacer from outside.
#[derive(Clone, Debug, Default)]
pub struct PacingView {
    /// Whether drafts are made.
    pub guard: GuardState,
    /// Times that the guard switched drafting off.
    pub switched_off: u64,
    /// Times that the guard switched drafting on again.
    pub switched_on: u64,
    /// Passes by the number of drafted tokens that they checked for a sequence, from 0.
    pub depths: [u64; DRAFT_TOKENS_MAX as usize + 1],
    /// Tokens judged, by bin of confidence.
    pub bins: [BinCounts; CONFIDENCE_BINS],
}

/// Decides for all sequences of a service how far drafts run.
#[derive(Clone, Debug)]
pub struct Pacer {
    now_ns: u64,
    /// What drafts turned out to be.
    pub calibration: Calibration,
    /// Passes while the draft rested, and while it worked on a unit of its own.
    quiet: PassTimes,
    busy: PassTimes,
    drafts: DraftTimes,
    guard: Guard,
    target: Option<Under<TargetJob>>,
    draft: Option<Under<DraftJob>>,
    span: Span,
    /// Between a pass and the next if nothing is drafted.
    turn_ns: f64,
    /// The pass under way had no draft beside it.
    undisturbed: bool,
    /// Passes without drafts still to be measured, and tokens since the last one.
    probes: u32,
    since_probe: u32,
    depths: [u64; DRAFT_TOKENS_MAX as usize + 1],
}

impl Pacer {
    /// Passes without drafts in a row, to know what the target alone takes.
    const PROBES: u32 = 2;
    /// Tokens after which they are measured anew.
    const PROBE_EVERY: u32 = 512;

    /// A pacer that has seen nothing but these times.
    pub fn new(known: &KnownTimes) -> Self {
        let quiet = PassTimes::new(&known.passes);
        Self {
            now_ns: 0,
            calibration: Calibration::default(),
            probes: if quiet.at(1).is_some() { 0 } else { Self::PROBES },
            quiet,
            busy: PassTimes::new(&[]),
            drafts: DraftTimes::new(known.draft_step_ns),
            guard: Guard::default(),
            target: None,
            draft: None,
            span: Span::default(),
            turn_ns: 0.0,
            undisturbed: false,
            since_probe: 0,
            depths: [0; DRAFT_TOKENS_MAX as usize + 1],
        }
    }

    /// Time has passed. Times that run backwards count as the latest seen.
    pub(crate) fn at(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// A pass of the target starts.
    pub(crate) fn target_starts(&mut self, job: TargetJob) {
        self.span.since_ns.get_or_insert(self.now_ns);
        self.span.drafted |= job.offered > 0;
        self.undisturbed = self.draft.is_none();
        self.target = Some(Under { job, since_ns: self.now_ns });
    }

    /// A job of the draft starts.
    pub(crate) fn draft_starts(&mut self, job: DraftJob) {
        self.span.since_ns.get_or_insert(self.now_ns);
        self.span.drafted = true;
        self.undisturbed = false;
        self.draft = Some(Under { job, since_ns: self.now_ns });
    }

    /// The draft answers after `steps` passes of its own.
    pub(crate) fn draft_ends(&mut self, steps: u32) {
        let Some(Under { job, since_ns }) = self.draft.take() else { return };
        let took_ns = self.now_ns - since_ns;
        let DraftJob { sequences, missed } = job;
        if missed == 0 {
            self.drafts.note(sequences, steps, took_ns);
        } else {
            // A few rows say nothing beside the steps of the same job.
            if missed >= 16 {
                self.drafts.note_missed(missed, (sequences, steps), took_ns);
            }
            self.span.missed_ns += self.drafts.missed(missed).min(took_ns as f64);
        }
    }

    /// The target answers; `tokens` of text came of it. `catch_up` rows would have to be read by the draft of a sequence
    /// that tried again.
    pub(crate) fn target_ends(&mut self, tokens: u32, catch_up: u32) {
        let Some(Under { job, since_ns }) = self.target.take() else { return };
        let took_ns = self.now_ns - since_ns;
        let span = self.next_span();
        if job.kind == PassKind::Prefill {
            return;
        }
        if self.undisturbed {
            self.quiet.note(job.rows, took_ns);
        } else {
            self.busy.note(job.rows, took_ns);
        }
        let plain_pass = self.undisturbed && job.offered == 0;
        self.count_probe(plain_pass, tokens);
        let (Some(start_ns), Some(pass_ns)) = (span.since_ns, self.quiet.at(job.company)) else {
            return;
        };
        let cycle_ns = (self.now_ns - start_ns) as f64;
        let token_ns = (pass_ns + self.turn_ns) / f64::from(job.company.max(1));
        if span.drafted {
            // What a try spends on reading missed text is bounded by how long it has waited.
            let reading =
                if self.guard.state() == GuardState::Trial { span.missed_ns } else { 0.0 };
            // A cycle that took twice what its parts take was held up by something else.
            let usual = 2.0 * self.usual_ns(&job) + span.missed_ns;
            let counted_ns = cycle_ns.min(usual.max(pass_ns)) - reading;
            self.guard.drafted(Cycle { tokens, plain: counted_ns.max(0.0) / token_ns });
        } else {
            if plain_pass {
                let turn = (cycle_ns - took_ns as f64).clamp(0.0, pass_ns / 4.0);
                self.turn_ns += (turn - self.turn_ns) / 16.0;
            }
            self.calibration.fade(tokens);
            self.guard.alone(tokens, self.drafts.missed(catch_up) / token_ns);
        }
    }

    /// What a cycle with this pass takes if nothing holds it up.
    fn usual_ns(&self, job: &TargetJob) -> f64 {
        let pass = self.quiet.at(job.rows).unwrap_or(0.0);
        let steps = f64::from(job.offered.div_ceil(job.company.max(1)).max(2)) + 1.0;
        let draft = self.drafts.at(job.company).map_or(pass, |time| time.of(steps));
        pass + self.turn_ns + draft
    }

    fn count_probe(&mut self, plain_pass: bool, tokens: u32) {
        if plain_pass {
            self.probes = self.probes.saturating_sub(1);
            self.since_probe = 0;
            return;
        }
        self.since_probe += tokens;
        if self.since_probe >= Self::PROBE_EVERY {
            (self.probes, self.since_probe) = (Self::PROBES, 0);
        }
    }

    fn next_span(&mut self) -> Span {
        let next =
            Span { since_ns: Some(self.now_ns), drafted: self.draft.is_some(), missed_ns: 0.0 };
        std::mem::replace(&mut self.span, next)
    }

    /// Jobs were lost, or there is nothing to decode: the time until the next job is nobody's.
    pub(crate) fn interrupted(&mut self) {
        self.span = Span::default();
    }

    /// The models run elsewhere from here on: what jobs took says nothing any more. What drafts are like stays.
    pub(crate) fn moved(&mut self) {
        let (calibration, depths) = (self.calibration.clone(), self.depths);
        let (target, draft, now_ns) = (self.target, self.draft, self.now_ns);
        let fresh = Self::new(&KnownTimes::default());
        *self = Self { calibration, depths, target, draft, now_ns, ..fresh };
    }

    /// A job of the target was lost.
    pub(crate) fn target_lost(&mut self) {
        self.target = None;
        self.interrupted();
    }

    /// A job of the draft was lost.
    pub(crate) fn draft_lost(&mut self) {
        self.draft = None;
        self.interrupted();
    }

    /// A sequence's pass checked so many drafted tokens.
    pub(crate) fn checked(&mut self, tokens: u32) {
        self.depths[tokens.min(DRAFT_TOKENS_MAX) as usize] += 1;
    }

    /// Whether anyone may draft now.
    pub(crate) fn state(&self) -> GuardState {
        if self.probes > 0 { GuardState::Off } else { self.guard.state() }
    }

    /// What drafts are worth while `company` sequences are decoded in passes of at most `rows_max` rows.
    pub(crate) fn prospects(&self, company: u32, rows_max: u32, rhythm: Rhythm) -> Prospects {
        let passes = match rhythm {
            Rhythm::Overlapping if self.busy.at(1).is_some() => &self.busy,
            _ => &self.quiet,
        };
        let rates = Rates {
            passes,
            draft: self.drafts.at(company),
            turn_ns: self.turn_ns,
            rhythm,
            calibration: &self.calibration,
        };
        let credit = match self.guard.state() {
            GuardState::Trial => Some(self.guard.credit()),
            _ => None,
        };
        Prospects::new(&rates, company.max(1), rows_max, credit)
    }

    /// What can be seen from outside.
    pub fn view(&self) -> PacingView {
        let (switched_off, switched_on) = self.guard.switches();
        PacingView {
            guard: self.guard.state(),
            switched_off,
            switched_on,
            depths: self.depths,
            bins: *self.calibration.counts(),
        }
    }
}
