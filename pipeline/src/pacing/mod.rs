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
//!   cycles         ──▶ guard: what drafts brought, in tokens ──────────────── so much may be at stake ──┘
//! ```
//!
//! The guard counts what cycles brought, and what the jobs in them usually take: a machine that holds up a job now and then
//! holds it up with and without drafts, so that a single slow round says nothing about either.
//!
//! *Invariant:* no clock: times come with the events. What is decided here changes when a token is computed, never which.

mod calibration;
mod guard;
mod guards;
mod times;
mod worth;

pub use calibration::{BinCounts, Calibration, Noise, Outcome, Trust};
pub use guard::GuardState;
pub(crate) use worth::{Allowance, Tail};
pub use worth::{Prospects, Reach};

use guard::Cycle;
use guards::Guards;
use outrider_plans::CONFIDENCE_BINS;
use outrider_plans::mode::DRAFT_TOKENS_MAX;
use times::{DraftTimes, PassTimes, Recent};
use worth::{AtStake, Rates};

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
    /// Whether the pacer has a say in any of those sequences. Text whose requests forbid drafts is not the guard's business.
    pub(crate) paced: bool,
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
    /// What the draft's jobs that ended in it took, what they usually take, and how much of that is reading missed text.
    took_ns: f64,
    usual_ns: f64,
    reading_ns: f64,
}

/// What can be seen of the pacer from outside.
#[derive(Clone, Debug, Default)]
pub struct PacingView {
    /// Whether drafts are made in the company that was met last.
    pub guard: GuardState,
    /// Times that the guard switched drafting off.
    pub switched_off: u64,
    /// Times that the guard switched drafting on again.
    pub switched_on: u64,
    /// Passes by the number of drafted tokens that they checked for a sequence, from 0.
    pub depths: [u64; DRAFT_TOKENS_MAX as usize + 1],
    /// Tokens judged, by bin of confidence.
    pub bins: [BinCounts; CONFIDENCE_BINS],
    /// What drafts may lose there before the guard switches them off, in tokens.
    pub balance: f64,
    /// Tokens that came of cycles with drafts, and those that the target alone would have given in that time.
    pub brought: (f64, f64),
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
    /// Whether the draft runs all steps that it is asked for, as a device does that is given them at once. Until it was seen to
    /// stop, it is not expected to.
    runs_on: bool,
    guards: Guards,
    target: Option<Under<TargetJob>>,
    draft: Option<Under<DraftJob>>,
    span: Span,
    /// Between a pass and the next if nothing is drafted, and if something is, the time of drafts that are waited for apart.
    turns: (Recent<15>, Recent<15>),
    /// Tokens that came of cycles with drafts, and those that the target alone would have given in that time.
    brought: (f64, f64),
    /// The pass under way had no draft beside it.
    undisturbed: bool,
    /// Passes without drafts still to be measured, and tokens since the last one.
    probes: u32,
    since_probe: u32,
    /// The last measurement was unlike those before.
    doubtful: bool,
    /// Tokens since a draft was made.
    idle: u32,
    /// Drafts that are still to be made whatever is known of them, so that something is.
    tries: u32,
    /// Whether the next of them is two tokens long: jobs of one length do not tell what starting one takes. (It changes with the
    /// passes: a second token asked for after the first would be a job of one step again.)
    two_steps: bool,
    depths: [u64; DRAFT_TOKENS_MAX as usize + 1],
}

impl Default for Pacer {
    /// One that has seen nothing.
    fn default() -> Self {
        Self {
            now_ns: 0,
            calibration: Calibration::default(),
            probes: Self::PROBES,
            quiet: PassTimes::default(),
            busy: PassTimes::default(),
            drafts: DraftTimes::default(),
            runs_on: true,
            guards: Guards::default(),
            target: None,
            draft: None,
            span: Span::default(),
            turns: Default::default(),
            brought: (0.0, 0.0),
            undisturbed: false,
            since_probe: 0,
            doubtful: false,
            idle: 0,
            tries: Self::TRIES.0,
            two_steps: false,
            depths: [0; DRAFT_TOKENS_MAX as usize + 1],
        }
    }
}

impl Pacer {
    /// Passes without drafts in a row, to know what the target alone takes; and of those in doubt.
    const PROBES: u32 = 5;
    const PROBES_SURE: u32 = 15;
    /// Jobs of a draft after which its time is believed.
    const JOBS_SURE: usize = 3;
    /// Drafts that are made to learn what they are worth: at first, and after so many tokens without one. (Two tokens of three that
    /// were right say little of a draft that is right nine times of ten, and whoever stops there learns no more.)
    const TRIES: (u32, u32) = (12, 4);
    const IDLE_MAX: u32 = 384;
    /// Rows of missed text that tell what a row takes: once steps are known, and before.
    const ROWS: (u32, u32) = (4, 16);
    /// Judged tokens after which a draft is known, and what a cycle may lose before, in tokens.
    const JUDGED_SURE: u64 = 32;
    const UNSURE: f64 = 1.5;
    /// What the account keeps when drafts read text that they have missed, in tokens.
    const KEPT: f64 = 3.0;
    /// Tokens after which they are measured anew, and after which they are if the machine's speed has changed.
    const PROBE_EVERY: u32 = 512;
    const PROBE_AGAIN: u32 = 48;

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
        self.idle = 0;
        self.undisturbed = false;
        self.draft = Some(Under { job, since_ns: self.now_ns });
    }

    /// The draft answers after `steps` passes of its own; `stops` tells whether it stopped where it could have, if it could.
    pub(crate) fn draft_ends(&mut self, steps: u32, stops: Option<bool>) {
        let Some(Under { job, since_ns }) = self.draft.take() else { return };
        self.runs_on = stops.map_or(self.runs_on, |stops| !stops);
        self.tries = self.tries.saturating_sub(1);
        let took_ns = (self.now_ns - since_ns) as f64;
        let DraftJob { sequences, missed } = job;
        let seen = self.drafts.seen();
        // A few rows say little of what a row takes while steps are hardly known, but must not pass for steps.
        let telling = if seen < Self::JOBS_SURE { Self::ROWS.1 } else { Self::ROWS.0 };
        if seen == 0 || missed < telling {
            let rows_ns = match seen {
                // By a guess: whoever takes all of it for rows, or all of it for steps, drafts no more.
                0 => took_ns * few_rows(missed, steps),
                _ => self.drafts.missed(missed).min(0.5 * took_ns),
            };
            self.drafts.note(sequences, steps, (took_ns - rows_ns) as u64);
        }
        if missed >= telling {
            self.drafts.note_missed(missed, (sequences, steps), took_ns as u64);
        }
        let mut reading_ns = self.drafts.missed(missed).min(took_ns);
        let steps = f64::from(steps);
        let mut drafting_ns = self.drafts.at(sequences).expect("a job was noted").of(steps);
        if let Some(pass_ns) = self.quiet.at(1).filter(|_| self.drafts.seen() < 2) {
            // The first job may have been held up, and there is nothing to compare it with: a step takes no pass.
            drafting_ns = drafting_ns.min(pass_ns * steps);
            reading_ns = reading_ns.min(pass_ns * f64::from(missed) / 8.0);
        }
        self.span.took_ns += took_ns;
        self.span.usual_ns += drafting_ns + reading_ns;
        self.span.reading_ns += reading_ns;
    }

    /// The target answers; `tokens` of text came of it. `catch_up` rows would have to be read by the draft of a sequence
    /// that tried again.
    pub(crate) fn target_ends(&mut self, tokens: u32, catch_up: u32) {
        let Some(Under { job, since_ns }) = self.target.take() else { return };
        let took_ns = self.now_ns - since_ns;
        let span = self.next_span();
        self.two_steps ^= job.offered > 0;
        if job.kind == PassKind::Prefill {
            return;
        }
        if self.undisturbed {
            self.quiet.note(job.rows, took_ns);
        } else {
            self.busy.note(job.rows, took_ns);
        }
        self.idle = self.idle.saturating_add(if job.paced { tokens } else { 0 });
        if self.idle >= Self::IDLE_MAX {
            self.tries = self.tries.max(Self::TRIES.1);
        }
        let plain_pass = self.undisturbed && job.offered == 0;
        self.count_probe(plain_pass, tokens, (job.rows, job.company));
        let (Some(start_ns), Some(pass_ns)) = (span.since_ns, self.quiet.at(job.company)) else {
            return;
        };
        let gap_ns = since_ns.saturating_sub(start_ns) as f64;
        // What the target waited for the draft, and what lies between jobs.
        let waited_ns = gap_ns.min(span.took_ns);
        let drafted = span.drafted || span.took_ns > 0.0;
        let turns = if drafted { &mut self.turns.1 } else { &mut self.turns.0 };
        turns.push(gap_ns - waited_ns);
        let turn_ns = turns.median().unwrap_or(0.0);
        let token_ns = (pass_ns + self.turn_ns()) / f64::from(job.company.max(1));
        if span.drafted {
            let passes = if self.undisturbed { &self.quiet } else { &self.busy };
            // A pass of many rows never takes longer than a pass for each.
            let one_ns = passes.at(1).unwrap_or(pass_ns);
            let usual_ns = passes.at(job.rows).unwrap_or(pass_ns).min(one_ns * f64::from(job.rows));
            let usual = if waited_ns > 0.0 { (span.usual_ns / span.took_ns).min(4.0) } else { 1.0 };
            let plain = (usual_ns + waited_ns * usual + turn_ns) / token_ns;
            let reading = span.reading_ns.min(waited_ns * usual) / token_ns;
            self.brought.0 += f64::from(tokens);
            self.brought.1 += plain;
            self.guards.meet(job.company).drafted(Cycle { tokens, plain, reading });
        } else if job.paced {
            self.calibration.fade(tokens);
            let catch_up = self.drafts.missed(catch_up) / token_ns;
            self.guards.meet(job.company).alone(tokens, catch_up);
        }
    }

    /// Between a pass and the next if nothing is drafted.
    fn turn_ns(&self) -> f64 {
        self.turns.0.median().unwrap_or(0.0)
    }

    fn count_probe(&mut self, plain_pass: bool, tokens: u32, (rows, company): (u32, u32)) {
        if plain_pass {
            let probing = self.probes > 0;
            self.probes = self.probes.saturating_sub(1);
            if probing && self.probes == 0 {
                self.probed(rows);
            }
            return;
        }
        self.since_probe += tokens;
        let again = self.since_probe >= Self::PROBE_AGAIN && self.quiet.has_drifted(rows, company);
        if again || self.since_probe >= Self::PROBE_EVERY {
            (self.probes, self.since_probe) = (Self::PROBES, 0);
        }
    }

    /// The target's plain passes have been measured. If they were unlike those before, a few more tell whether the machine
    /// has changed, or was held up.
    fn probed(&mut self, rows: u32) {
        let (few, many) = (Self::PROBES as usize, Self::PROBES_SURE as usize);
        if !self.doubtful && self.quiet.have_changed(rows, few) {
            (self.probes, self.doubtful) = (Self::PROBES_SURE - Self::PROBES, true);
            return;
        }
        if self.doubtful && self.quiet.have_changed(rows, many) {
            self.quiet.forget_before(many);
            self.busy.forget_before(many);
        }
        (self.since_probe, self.doubtful) = (0, false);
        self.quiet.mark();
    }

    fn next_span(&mut self) -> Span {
        let next =
            Span { since_ns: Some(self.now_ns), drafted: self.draft.is_some(), ..Span::default() };
        std::mem::replace(&mut self.span, next)
    }

    /// Jobs were lost, or there is nothing to decode: the time until the next job is nobody's.
    pub(crate) fn interrupted(&mut self) {
        self.span = Span::default();
    }

    /// The models run elsewhere from here on: what jobs took says nothing any more. What drafts are like stays.
    pub(crate) fn moved(&mut self) {
        let (calibration, depths, brought) = (self.calibration.clone(), self.depths, self.brought);
        let (target, draft, now_ns) = (self.target, self.draft, self.now_ns);
        let fresh = Self::default();
        *self = Self { calibration, depths, brought, target, draft, now_ns, ..fresh };
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

    /// Rows of missed text that the draft of a sequence may read now although nothing is drafted, if it has missed so many.
    pub(crate) fn reading_ahead(&self, missed: u32, company: u32) -> u32 {
        let Some(pass_ns) = self.quiet.at(company.max(1)) else { return 0 };
        let token_ns = (pass_ns + self.turn_ns()) / f64::from(company.max(1));
        let row = self.drafts.missed(1) / token_ns;
        let piece = self.guards.of(company).reading_ahead(row * f64::from(missed));
        let now = self.probes == 0 && row > 0.0 && self.span.reading_ns == 0.0;
        if now { (piece / row) as u32 } else { 0 }
    }

    /// What reading missed text has cost in this cycle, which the guard has yet to hear of, in tokens.
    fn read(&self, company: u32) -> f64 {
        let pass_ns = self.quiet.at(company.max(1)).map_or(f64::INFINITY, |ns| ns + self.turn_ns());
        self.span.reading_ns * f64::from(company.max(1)) / pass_ns
    }

    /// What the guard of so many sequences says.
    pub(crate) fn guard(&self, company: u32) -> GuardState {
        self.guards.of(company).state()
    }

    /// Whether any of so many sequences may draft now.
    pub(crate) fn state(&self, company: u32) -> GuardState {
        if self.probes > 0 { GuardState::Off } else { self.guard(company) }
    }

    /// What drafts are worth while `company` sequences are decoded in passes of at most `rows_max` rows.
    pub(crate) fn prospects(&self, company: u32, rows_max: u32, rhythm: Rhythm) -> Prospects {
        let passes = match rhythm {
            Rhythm::Overlapping if self.busy.at(1).is_some() => &self.busy,
            _ => &self.quiet,
        };
        // The first jobs of a draft may have been held up, and what was measured long ago may be true no longer: as if
        // nothing were known, it is tried again.
        let doubtful = self.drafts.seen() < Self::JOBS_SURE || self.tries > 0;
        let rates = Rates {
            passes,
            draft: self.drafts.at(company).filter(|_| !doubtful),
            steps_unknown: 1 + u32::from(self.two_steps),
            to_the_point: self.runs_on && self.drafts.tells_apart(company),
            turn_ns: self.turn_ns(),
            holds_up: self.holds_up(company, rhythm),
            rhythm,
            calibration: &self.calibration,
        };
        let guard = self.guards.of(company);
        let trial = guard.state() == GuardState::Trial;
        let at_stake_max = guard.at_stake_max(self.runs_on);
        let at_stake = AtStake {
            // As long as little is known of a draft, its own word for itself is not worth much.
            tokens_max: match self.calibration.judged() < Self::JUDGED_SURE {
                true => at_stake_max.min(Self::UNSURE),
                false => at_stake_max,
            },
            // A try is made by one sequence, so that it costs little; and so is the first draft of all.
            drafters_max: if trial || rates.draft.is_none() { 1 } else { company.max(1) },
            row_missed_ns: self.drafts.missed(1),
            // A try has waited until it could pay for what it has to read.
            reading_max: match trial {
                true => (f64::INFINITY, f64::INFINITY),
                // Whoever has not drafted for long has to read before anything can be learnt anew.
                false if self.idle >= Self::IDLE_MAX => (guard.balance(), 0.0),
                false => {
                    let left = guard.balance() - self.read(company);
                    (left.clamp(0.0, 1.0).max(left - Self::KEPT), (left - Self::KEPT).max(0.0))
                }
            },
        };
        Prospects::new(&rates, company.max(1), rows_max, at_stake)
    }

    /// The share of its time by which a draft's job holds up the target.
    fn holds_up(&self, company: u32, rhythm: Rhythm) -> f64 {
        if rhythm == Rhythm::Alternating {
            return 1.0;
        }
        let passes = (self.quiet.at(company.max(1)), self.busy.at(company.max(1)));
        let (Some(quiet_ns), Some(busy_ns)) = passes else { return 0.0 };
        (1.0 - quiet_ns / busy_ns).max(0.0)
    }

    /// What can be seen from outside.
    pub fn view(&self) -> PacingView {
        let (switched_off, switched_on) = self.guards.switches();
        let (guard, balance) = self.guards.last();
        PacingView {
            guard,
            switched_off,
            switched_on,
            depths: self.depths,
            bins: *self.calibration.counts(),
            balance,
            brought: self.brought,
        }
    }
}

/// The share of a job's time that a few rows take beside its steps, as long as nothing better is known.
fn few_rows(rows: u32, steps: u32) -> f64 {
    let rows = f64::from(rows) / 8.0;
    rows / (rows + f64::from(steps.max(1)))
}
