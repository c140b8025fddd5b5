//! Expected speed-up over plain decoding, in closed form. One plain pass of the target takes time 1.
//!
//! A drafted token is the target's with probability `a`, each independently of the others. Sources: sequential without
//! `v` and `o` is the paper's (Ruiz y Mesa et al., arXiv 2602.08060, after Leviathan et al. 2023); lockstep is PEARL's
//! round; the asynchronous form is a renewal argument: between two rejections lie `1 / (1 - a)` tokens on average, and
//! the time between them is what the denominator adds up.

use crate::mode::DRAFT_TOKENS_MAX;

/// Costs in units of one plain target pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// `c`: one draft step.
    pub draft_step: f64,
    /// `v`: each verified token beyond the first, within one pass.
    pub verify_token: f64,
    /// `o`: a round, for everything that is neither model.
    pub round: f64,
}

/// A depth and the speed-up that it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Drafted tokens of a pass; 0 for plain decoding.
    pub draft_tokens: u32,
    /// Drafts that the first pass after a rejection waits for; 0 except for [`best_overlap`].
    pub wait: u32,
    /// Tokens per time over plain decoding's.
    pub speedup: f64,
}

/// Plain decoding: what every mode is compared with.
const PLAIN: Choice = Choice { draft_tokens: 0, wait: 0, speedup: 1.0 };

/// `base` to the power of `exponent` by repeated multiplication: the same bits on every machine.
pub fn power(base: f64, exponent: u32) -> f64 {
    (0..exponent).fold(1.0, |product, _| product * base)
}

/// `1 + a + .. + a^(terms - 1)`, which is `(1 - a^terms) / (1 - a)` without its pole at 1.
fn geometric_sum(a: f64, terms: u32) -> f64 {
    (0..terms).fold(0.0, |sum, _| sum * a + 1.0)
}

/// Draft `g`, then verify them in one pass of `g + 1` rows:
/// `S = (1 - a^(g+1)) / ((1 - a) (1 + g (c + v) + o))`.
pub fn sequential(a: f64, g: u32, costs: Costs) -> f64 {
    let Costs { draft_step: c, verify_token: v, round: o } = costs;
    geometric_sum(a, g + 1) / (1.0 + f64::from(g) * (c + v) + o)
}

/// Draft the next `g` while the last `g` are verified, and wait for both:
/// `S = (1 - a^g) / ((1 - a) (1 + a - a^g)) / (max(1 + g v, g c) + o)`. For `g` of at least 1.
pub fn lockstep(a: f64, g: u32, costs: Costs) -> f64 {
    assert!(g > 0, "lockstep drafts at least one token");
    let Costs { draft_step: c, verify_token: v, round: o } = costs;
    let g_real = f64::from(g);
    geometric_sum(a, g) / (1.0 + a - power(a, g)) / ((1.0 + g_real * v).max(g_real * c) + o)
}

/// The rhythm of asynchronous overlap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rhythm {
    /// `g0`: drafts that the first pass after a rejection waits for.
    pub wait: u32,
    /// `n`: drafts that each later pass takes; at least 1.
    pub draft_tokens: u32,
    /// `D`: least time of a later pass that a shared memory bus allows; 0 if the models share none.
    pub bus: f64,
}

/// Least time of a pass beside which `n` drafts are made, if both models' weights come over one bus:
/// `D = (W_target + n W_draft) / B`, in units of one plain pass that moves `W_target` in time 1 at a bandwidth of
/// `bandwidth` times that. Two bandwidth-bound models on one bus gain nothing from overlap beyond this.
pub fn bus_limit(draft_weight: f64, draft_tokens: u32, bandwidth: f64) -> f64 {
    (1.0 + f64::from(draft_tokens) * draft_weight) / bandwidth
}

/// Draft and target never wait for each other, except for `g0` drafts after a rejection:
/// `S = [1/(1 - a)] / [g0 c + 1 + v g0 + tau a^(g0+1) / (1 - a^n)]`, `tau = max(1 + v n, n c, D)`.
/// For `a` below 1.
pub fn overlap(a: f64, rhythm: Rhythm, costs: Costs) -> f64 {
    let between = first_pass(rhythm.wait, costs) + later_passes(a, rhythm.wait, rhythm, costs);
    1.0 / (1.0 - a) / between
}

/// As [`overlap`], if the continuation after a rejection is found in a cache of prepared outcomes with probability
/// `hit`, `cached` tokens long, so that its first pass waits for nothing:
/// `S = [1/(1 - a)] / [h (1 + tau a^(K+1)/(1 - a^n)) + (1 - h)(g0 c + 1 + v g0 + tau a^(g0+1)/(1 - a^n))]`.
pub fn outcome_cache(a: f64, rhythm: Rhythm, costs: Costs, (hit, cached): (f64, u32)) -> f64 {
    let on_hit = 1.0 + later_passes(a, cached, rhythm, costs);
    let on_miss = first_pass(rhythm.wait, costs) + later_passes(a, rhythm.wait, rhythm, costs);
    1.0 / (1.0 - a) / (hit * on_hit + (1.0 - hit) * on_miss)
}

fn first_pass(wait: u32, costs: Costs) -> f64 {
    let Costs { draft_step: c, verify_token: v, .. } = costs;
    f64::from(wait) * c + 1.0 + v * f64::from(wait)
}

/// Expected time of the passes after the first, which verified `first` drafts.
fn later_passes(a: f64, first: u32, rhythm: Rhythm, costs: Costs) -> f64 {
    assert!((0.0..1.0).contains(&a), "acceptance {a} is not within 0..1");
    assert!(rhythm.draft_tokens > 0, "a pass takes at least one draft");
    let n = f64::from(rhythm.draft_tokens);
    let Costs { draft_step: c, verify_token: v, .. } = costs;
    let tau = (1.0 + v * n).max(n * c).max(rhythm.bus);
    tau * power(a, first + 1) / (1.0 - power(a, rhythm.draft_tokens))
}

/// No way of drafting from one draft model beats this without verification cost: `1 / (1 - a + a c)`.
pub fn limit(a: f64, c: f64) -> f64 {
    1.0 / (1.0 - a + a * c)
}

/// The best depth for [`sequential`]; plain if none gains.
pub fn best_sequential(a: f64, costs: Costs) -> Choice {
    let choice = |g| Choice { draft_tokens: g, wait: 0, speedup: sequential(a, g, costs) };
    best((1..=DRAFT_TOKENS_MAX).map(choice))
}

/// The best depth for [`lockstep`]; plain if none gains.
pub fn best_lockstep(a: f64, costs: Costs) -> Choice {
    let choice = |g| Choice { draft_tokens: g, wait: 0, speedup: lockstep(a, g, costs) };
    best((1..=DRAFT_TOKENS_MAX).map(choice))
}

/// The best rhythm for [`overlap`]; plain if none gains. `bus_limit(n)` is `D` for passes of `n` drafts.
pub fn best_overlap(a: f64, costs: Costs, bus_limit: impl Fn(u32) -> f64) -> Choice {
    let rhythms = (1..=DRAFT_TOKENS_MAX).flat_map(|n| (0..=n).map(move |wait| (n, wait)));
    best(rhythms.map(|(draft_tokens, wait)| {
        let rhythm = Rhythm { wait, draft_tokens, bus: bus_limit(draft_tokens) };
        Choice { draft_tokens, wait, speedup: overlap(a, rhythm, costs) }
    }))
}

/// The first of the fastest: of equals the one that drafts less.
fn best(choices: impl Iterator<Item = Choice>) -> Choice {
    choices.fold(PLAIN, |best, choice| if choice.speedup > best.speedup { choice } else { best })
}
