//! The stop rule: which tokens are worth a draft's step, and which a row of the pass.
//!
//! Of the depths that a draft could have, the best one's rate is `S`, for each sequence by how right its own drafts are: one whose
//! drafts are worse has worse rounds to come, too, and little to lose by a draft. From it follow two floors for each place in a
//! draft: a token is worth drafting if the probability that it and all before it are right exceeds `S (c + v)`, and, once it is
//! drafted, worth a row if that exceeds `S v`. *Invariant:* floors never fall from a place to the next, so the first token
//! below its floor ends the draft.

use outrider_plans::mode::DRAFT_TOKENS_MAX;

use super::Rhythm;
use super::calibration::{Calibration, Noise, Trust};
use super::times::{DraftTime, PassTimes};

const PLACES: usize = DRAFT_TOKENS_MAX as usize;

/// How far one sequence's draft may go from here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Most tokens that the draft should add now.
    pub steps: u32,
    /// Most tokens of the tail that are worth a row of the next pass.
    pub offer: u32,
    /// Drafts that the target waits for after a pass that left none.
    pub wait: u32,
    /// The draft stops before a token that it holds less likely than this.
    pub probability_min: f32,
    /// Most rows of text that the draft has missed and reads at once.
    pub reading: u32,
}

impl Reach {
    /// As far as the policy goes.
    pub const UNLIMITED: Reach = Reach {
        steps: u32::MAX,
        offer: u32::MAX,
        wait: u32::MAX,
        probability_min: 0.0,
        reading: u32::MAX,
    };
    /// No drafts.
    pub const NONE: Reach = Reach { steps: 0, offer: 0, wait: 0, ..Reach::UNLIMITED };
}

/// What is known of one sequence when its reach is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail<'a> {
    /// The draft's confidence in each token of the tail.
    pub(crate) confidences: &'a [f32],
    /// Right tokens before the tail since the text was last the target's own alone.
    pub(crate) place: u32,
    pub(crate) trust: Trust,
    pub(crate) noise: Noise,
}

/// What the floors are made of.
pub(super) struct Rates<'a> {
    pub(super) passes: &'a PassTimes,
    pub(super) draft: Option<DraftTime>,
    /// Most tokens of a draft that is not.
    pub(super) steps_unknown: u32,
    /// Whether no more steps are asked for than are worth it: the draft runs them all, and there is nothing to learn from more.
    pub(super) to_the_point: bool,
    pub(super) turn_ns: f64,
    /// What the target loses to a draft's job, as a share of that job's time: all of it where they take turns.
    pub(super) holds_up: f64,
    pub(super) rhythm: Rhythm,
    pub(super) calibration: &'a Calibration,
}

/// What the next drafts may lose.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtStake {
    /// All of them together, in tokens.
    pub(super) tokens_max: f64,
    /// Most sequences that may draft.
    pub(super) drafters_max: u32,
    /// Time of reading a row of text that a draft has missed; and what may be spent on that, in tokens: where a draft reads
    /// all of it, and where it reads a piece.
    pub(super) row_missed_ns: f64,
    pub(super) reading_max: (f64, f64),
}

/// Who may draft how much, so that no more is lost than may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Sequences that may draft.
    pub(crate) drafters: u32,
    /// Tokens that each of them may draft.
    pub(crate) steps: u32,
    /// Rows of missed text that all of them together may read first: to the end, and in pieces.
    pub(crate) reading: (u32, u32),
}

/// What rounds take whose drafts are 0, 1, and so on tokens long, and how often the token at each place is right.
#[derive(Clone, Debug, PartialEq)]
struct Rounds {
    company: f64,
    times_ns: Vec<f64>,
    right: Vec<f64>,
}

impl Rounds {
    /// The rate of the best depth, in tokens of all sequences, if the tokens of one of them are right `trust` times as often as usual.
    fn best(&self, trust: f64) -> f64 {
        let (mut best, mut others, mut own) = (0.0, 0.0, 0.0);
        let (mut right, mut own_right) = (1.0, 1.0);
        for (depth, time_ns) in self.times_ns.iter().enumerate() {
            if depth > 0 {
                right *= self.right[depth - 1];
                own_right *= (self.right[depth - 1] * trust).min(0.999);
            }
            others += right;
            own += own_right;
            best = f64::max(best, ((self.company - 1.0) * others + own) / time_ns);
        }
        best
    }
}

/// What drafts are worth at present.
#[derive(Clone, Debug, PartialEq)]
pub struct Prospects {
    rounds: Rounds,
    /// What each place adds to a pass, for each sequence; what a step of the draft takes of its time, and starting a job.
    row_ns: [f64; PLACES],
    step_ns: f64,
    start_ns: f64,
    /// Further tokens are asked for as long as they are worth this share of what makes one worth its step.
    room: f64,
    allowance: Allowance,
    /// What the first pass after a rejection waits for.
    wait: u32,
}

impl Prospects {
    /// Without a measured draft, a step is taken for this share of a pass, and few are asked for.
    const STEP_SHARE: f64 = 0.1;
    /// What a draft that stops by itself is asked for beyond what it is expected to do.
    const ROOM: f64 = 0.5;

    pub(super) fn new(rates: &Rates<'_>, company: u32, rows_max: u32, at_stake: AtStake) -> Self {
        let nothing = Self {
            rounds: Rounds { company: f64::from(company), times_ns: Vec::new(), right: Vec::new() },
            row_ns: [f64::INFINITY; PLACES],
            step_ns: 0.0,
            start_ns: 0.0,
            room: if rates.to_the_point { 1.0 } else { Self::ROOM },
            allowance: Allowance::default(),
            wait: 0,
        };
        let Some(pass_ns) = rates.passes.at(company) else { return nothing };
        let many = f64::from(company);
        let guess = DraftTime { start_ns: 0.0, step_ns: Self::STEP_SHARE * pass_ns };
        let draft = rates.draft.unwrap_or(guess);
        // Time of a pass with each sequence's first `g` drafted tokens, and the least convex curve below it.
        let deepest = (rows_max / company).saturating_sub(1).min(DRAFT_TOKENS_MAX) as usize;
        // While drafts are made to learn what they are worth, a wide pass that was held up does not count: it would be the last.
        let pass_of = |rows: u32| {
            let known_ns = rates.passes.at(rows).unwrap_or(pass_ns);
            match rates.draft {
                Some(_) => known_ns,
                None => known_ns.min(PassTimes::guess((company, pass_ns), rows)),
            }
        };
        let width = |g: usize| pass_of(company * (g as u32 + 1));
        let passes: Vec<f64> = (0..=deepest).map(width).collect();
        let hull = convex_below(&passes);
        let time = |(depth, hull_ns): (usize, &f64)| {
            let drafts_ns = if depth == 0 { 0.0 } else { draft.of(depth as f64) };
            rates.turn_ns
                + match rates.rhythm {
                    Rhythm::Alternating => hull_ns + drafts_ns,
                    Rhythm::Overlapping => hull_ns.max(drafts_ns),
                }
        };
        let mut prospects = nothing;
        prospects.rounds.times_ns = hull.iter().enumerate().map(time).collect();
        for g in 0..deepest {
            prospects.rounds.right.push(rates.calibration.of_place(g as u32));
            prospects.row_ns[g] = (hull[g + 1] - hull[g]) / many;
        }
        let own = rates.holds_up / many;
        (prospects.step_ns, prospects.start_ns) = (own * draft.step_ns, own * draft.start_ns);
        prospects.wait = worth_waiting(rates.calibration, (pass_ns, draft), &hull);
        let delay = match rates.rhythm {
            Rhythm::Alternating => u32::MAX,
            Rhythm::Overlapping => prospects.wait,
        };
        let loss = |drafters: u32, steps: u32| {
            let rows_ns = pass_of(company + drafters * steps) - pass_ns;
            let delay_ns = if delay == 0 { 0.0 } else { draft.of(f64::from(steps.min(delay))) };
            many * (rows_ns + delay_ns) / (pass_ns + rates.turn_ns)
        };
        let (drafters, mut steps) =
            allowance(at_stake, rates.calibration.of_place(0), rows_max, loss);
        if rates.draft.is_none() {
            steps = steps.min(rates.steps_unknown);
        }
        let row = many * at_stake.row_missed_ns / (pass_ns + rates.turn_ns);
        // Conversion saturates: a row that costs nothing is read without limit.
        let (all, piece) = at_stake.reading_max;
        let reading = ((all / row) as u32, (piece / row) as u32);
        prospects.allowance = Allowance { drafters, steps, reading };
        prospects
    }

    /// Who may draft how much.
    pub(crate) fn allowance(&self) -> Allowance {
        self.allowance
    }

    /// How far a sequence's draft may go from here.
    pub(crate) fn reach(&self, calibration: &Calibration, tail: Tail<'_>) -> Reach {
        if self.rounds.times_ns.is_empty() {
            return Reach::NONE;
        }
        let trust = tail.trust.factor();
        let best = self.rounds.best(trust);
        let right = |confidence: &f32| {
            (calibration.of_confidence(tail.noise, *confidence) * trust).min(0.999)
        };
        let (mut survival, mut offer) = (1.0, 0);
        for (confidence, row_ns) in tail.confidences.iter().zip(&self.row_ns) {
            survival *= right(confidence);
            if survival >= best * row_ns && offer < PLACES as u32 {
                offer += 1;
            } else {
                break;
            }
        }
        // A token that is not offered leaves nothing to hope for behind it.
        let all: f64 = tail.confidences.iter().map(right).product();
        let steps = self.steps(calibration, (&tail, trust), (all, best));
        let first = tail.confidences.len().min(PLACES - 1);
        let needed = self.draft_floor(first, best) / (all * trust).max(1e-9);
        let probability_min = calibration.confidence_for(tail.noise, needed.min(1.0)).min(1.0);
        Reach { steps, offer, wait: self.wait, probability_min, ..Reach::UNLIMITED }
    }

    /// How likely a token at this place must be right to be worth drafting.
    fn draft_floor(&self, place: usize, best: f64) -> f64 {
        best * (self.row_ns[place] + self.step_ns)
    }

    /// Tokens that are worth asking for at once: those that are expected to be worth it, and where the draft stops by itself
    /// some room for one that turns out surer than usual.
    fn steps(
        &self,
        calibration: &Calibration,
        (tail, trust): (&Tail<'_>, f64),
        (all, best): (f64, f64),
    ) -> u32 {
        let drafted = tail.confidences.len();
        let (mut survival, mut steps, mut gain) = (all, 0u32, 0.0);
        for place in drafted..PLACES {
            let next = calibration.of_place(tail.place + place as u32) * trust;
            survival *= next.min(0.999);
            let floor = self.draft_floor(place, best);
            let enough = if steps == 0 { floor } else { self.room * floor };
            if survival <= enough {
                break;
            }
            steps += 1;
            gain += (survival - floor).max(0.0);
        }
        let allowed = self.allowance.steps.saturating_sub(drafted as u32);
        if gain > best * self.start_ns { steps.min(allowed) } else { 0 }
    }
}

/// The most sequences that may draft, and then the most tokens of each, that lose no more than may be at stake if drafts are right half as
/// often as they were; one token of one sequence always, since nothing is learnt without.
fn allowance(
    at_stake: AtStake,
    right: f64,
    rows_max: u32,
    loss: impl Fn(u32, u32) -> f64,
) -> (u32, u32) {
    let mut drafters = at_stake.drafters_max;
    while drafters > 0 {
        let most = (rows_max / drafters).min(DRAFT_TOKENS_MAX);
        let saved = 0.5 * right * f64::from(drafters);
        let lost = |steps: &u32| loss(drafters, *steps) - saved;
        let steps = (1..=most).take_while(|steps| lost(steps) <= at_stake.tokens_max).last();
        if let Some(steps) = steps {
            return (drafters, steps);
        }
        drafters /= 2;
    }
    (1, 1)
}

/// Drafts that the first pass after a rejection should wait for: each one more if what it brings, a later pass's share,
/// exceeds the time of waiting.
fn worth_waiting(
    calibration: &Calibration,
    (pass_ns, draft): (f64, DraftTime),
    passes: &[f64],
) -> u32 {
    let (mut survival, mut wait) = (1.0, 0);
    for (place, rows) in (0..4).zip(passes.windows(2)) {
        let a = calibration.of_place(place).min(0.999);
        survival *= a;
        // tau a^(g0+1) (1 - a) / (1 - a^n) with passes that take what is drafted beside them.
        let each =
            (pass_ns / draft.step_ns.max(1.0)).clamp(1.0, f64::from(DRAFT_TOKENS_MAX)) as u32;
        let rounds = (1.0 - a) / (1.0 - outrider_plans::cost::formula::power(a, each));
        let brings_ns = pass_ns * survival * rounds;
        let waits_ns = draft.step_ns + rows[1] - rows[0];
        if brings_ns <= waits_ns {
            break;
        }
        wait += 1;
    }
    wait
}

/// The largest convex curve that is nowhere above `values`: what a marginal rule may be applied to.
fn convex_below(values: &[f64]) -> Vec<f64> {
    let mut corners: Vec<usize> = Vec::with_capacity(values.len());
    let slope = |from: usize, to: usize| (values[to] - values[from]) / (to - from) as f64;
    for next in 0..values.len() {
        while let [.., before, last] = corners[..]
            && slope(before, last) >= slope(last, next)
        {
            corners.pop();
        }
        corners.push(next);
    }
    let mut curve = values.to_vec();
    for pair in corners.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        for (steps, value) in curve[from..to].iter_mut().enumerate().skip(1) {
            *value = values[from] + slope(from, to) * steps as f64;
        }
    }
    curve
}

#[cfg(test)]
mod tests {
    use super::super::calibration::{Calibration, Noise, Outcome, Trust};
    use super::super::times::{DraftTime, PassTimes};
    use super::{Allowance, AtStake, Prospects, Rates, Reach, Rhythm, Tail, convex_below};

    /// A calibration to which drafts are right with this probability, whatever their confidence.
    fn calibration(right_percent: u32) -> Calibration {
        let mut calibration = Calibration::default();
        for i in 0..4000u32 {
            let accepted = i / 15 * 37 % 100 < right_percent;
            calibration.note(Noise::Greedy, Outcome { place: i % 15, confidence: 0.95, accepted });
        }
        calibration
    }

    fn plenty(company: u32) -> AtStake {
        AtStake {
            tokens_max: 1e3,
            drafters_max: company,
            row_missed_ns: 10.0,
            reading_max: (2.0, 2.0),
        }
    }

    fn rates<'a>(
        (passes, draft): (&'a PassTimes, DraftTime),
        calibration: &'a Calibration,
        rhythm: Rhythm,
    ) -> Rates<'a> {
        Rates {
            passes,
            draft: Some(draft),
            steps_unknown: 1,
            to_the_point: false,
            turn_ns: 0.0,
            holds_up: if rhythm == Rhythm::Alternating { 1.0 } else { 0.0 },
            rhythm,
            calibration,
        }
    }

    fn reach(calibration: &Calibration, times: (&[(u32, u64)], f64), company: u32) -> Reach {
        let passes = PassTimes::of(times.0);
        let draft = DraftTime { start_ns: 10.0, step_ns: times.1 };
        let rates = rates((&passes, draft), calibration, Rhythm::Alternating);
        let (trust, noise) = (Trust::default(), Noise::Greedy);
        let tail = Tail { confidences: &[], place: 0, trust, noise };
        Prospects::new(&rates, company, 128, plenty(company)).reach(calibration, tail)
    }

    const FLAT: &[(u32, u64)] = &[(1, 1000), (2, 1050), (4, 1150), (8, 1350), (16, 1800)];
    const STEEP: &[(u32, u64)] = &[(1, 1000), (2, 1900), (4, 3700), (8, 7300), (16, 14600)];

    #[test]
    fn a_good_cheap_draft_goes_far_and_a_bad_one_nowhere() {
        let good = reach(&calibration(90), (FLAT, 80.0), 1);
        assert!(good.steps >= 6, "{good:?}");
        let poor = reach(&calibration(40), (FLAT, 80.0), 1);
        assert!((1..4).contains(&poor.steps), "{poor:?}");
        assert_eq!(reach(&calibration(3), (FLAT, 80.0), 1).steps, 0);
    }

    #[test]
    fn a_slow_draft_and_a_steep_pass_are_not_worth_it() {
        assert_eq!(reach(&calibration(90), (FLAT, 1200.0), 1).steps, 0);
        assert_eq!(reach(&calibration(90), (STEEP, 80.0), 1).steps, 0);
    }

    /// Where a pass of many rows computes instead of waiting for memory, company makes drafts worthless.
    #[test]
    fn speculation_fades_as_company_grows() {
        let bound = [(1, 1000), (4, 1100), (8, 1300), (16, 2500), (32, 5000), (64, 10_000)];
        let steps = |company| reach(&calibration(75), (&bound, 80.0), company).steps;
        assert!(steps(1) >= 3 && steps(1) >= steps(4), "{} {}", steps(1), steps(4));
        assert_eq!(steps(32), 0);
    }

    /// A seldom right draft costs nothing on a unit of its own, but for what it takes of a memory that both read.
    #[test]
    fn a_draft_that_holds_up_the_target_beside_it_must_be_worth_that() {
        let (calibration, passes) = (calibration(12), PassTimes::of(FLAT));
        let draft = DraftTime { start_ns: 0.0, step_ns: 500.0 };
        let steps = |holds_up| {
            let beside = rates((&passes, draft), &calibration, Rhythm::Overlapping);
            let prospects = Prospects::new(&Rates { holds_up, ..beside }, 1, 128, plenty(1));
            let (trust, noise) = (Trust::default(), Noise::Greedy);
            prospects.reach(&calibration, Tail { confidences: &[], place: 0, trust, noise }).steps
        };
        assert!(steps(0.0) >= 1 && steps(0.3) == 0, "{} {}", steps(0.0), steps(0.3));
    }

    #[test]
    fn doubt_ends_what_is_offered() {
        let calibration = Calibration::default();
        let passes = PassTimes::of(FLAT);
        let draft = DraftTime { start_ns: 0.0, step_ns: 80.0 };
        let rates = rates((&passes, draft), &calibration, Rhythm::Overlapping);
        let prospects = Prospects::new(&rates, 1, 128, plenty(1));
        let offered = |confidences: &[f32]| {
            let (trust, noise) = (Trust::default(), Noise::Greedy);
            prospects.reach(&calibration, Tail { confidences, place: 0, trust, noise }).offer
        };
        assert_eq!(offered(&[0.99, 0.97, 0.99]), 3);
        assert_eq!(offered(&[0.99, 0.01, 0.99]), 1);
        assert_eq!(offered(&[0.01, 0.99]), 0);
    }

    /// The less may be lost, the fewer draft, and the fewer tokens each.
    #[test]
    fn what_may_be_lost_bounds_who_drafts_and_how_far() {
        let (calibration, passes) = (calibration(80), PassTimes::of(FLAT));
        let draft = DraftTime { start_ns: 10.0, step_ns: 80.0 };
        let rates = rates((&passes, draft), &calibration, Rhythm::Alternating);
        let allowance = |tokens_max, drafters_max| {
            let at_stake = AtStake { tokens_max, drafters_max, ..plenty(8) };
            let Allowance { drafters, steps, reading } =
                Prospects::new(&rates, 8, 128, at_stake).allowance();
            assert!((30..40).contains(&reading.0), "2 tokens of eight in 1,350, at 10 a row");
            (drafters, steps)
        };
        let (much, some) = (allowance(1e3, 8), allowance(6.0, 8));
        assert_eq!(much, (8, 15));
        assert!(some.0 == 8 && (1..5).contains(&some.1), "{some:?}");
        assert!((1..8).contains(&allowance(0.0, 8).0), "{:?}", allowance(0.0, 8));
        assert_eq!(allowance(0.0, 1), (1, 1));
        assert_eq!(allowance(1e3, 1).0, 1);
    }

    #[test]
    fn a_curve_is_made_convex_from_below() {
        assert_eq!(convex_below(&[1.0, 4.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(convex_below(&[1.0, 2.0, 4.0]), [1.0, 2.0, 4.0]);
        assert_eq!(convex_below(&[5.0]), [5.0]);
    }
}
