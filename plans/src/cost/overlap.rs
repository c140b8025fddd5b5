//! The forecast of `overlap`: what happens from one rejection to the next while neither unit waits for the other.
//!
//! After a rejection the draft makes `g0` tokens and the first pass verifies them with the target's own. Each later pass
//! takes the `n` tokens that were drafted during the one before: its last row has already checked the first of them, so
//! it has `n` rows. *Invariant:* a pass is never shorter than the work of any unit for it, nor than the memory bus allows.

use super::acceptance::Acceptance;
use super::chain::{Chain, Part};
use super::forecast::CostModel;
use super::round::Round;
use crate::plan::PartitionPlan;

/// Who takes part.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) model: &'a CostModel,
    pub(super) plan: &'a PartitionPlan,
    pub(super) draft: &'a Chain<'a>,
    pub(super) target: &'a Chain<'a>,
}

/// One later pass in the steady state.
#[derive(Clone, Copy, Debug)]
struct Pass {
    /// Tokens that it takes.
    drafts: u32,
    /// Time from its start to the next one's.
    ns: f64,
}

/// The round from one rejection to the next. A pass costs the overhead of a round each time.
pub(super) fn round(
    setting: Setting<'_>,
    (draft_tokens, wait): (u32, u32),
    acceptance: &Acceptance,
) -> Round {
    let Setting { model, draft, target, .. } = setting;
    let overhead = model.round_ns as f64;
    let slowed = slowdown(model);
    let waiting = f64::from(wait) * draft.pass_ns(1.0);
    let first_rows = f64::from(wait) + 1.0;
    let first_ns = target.pass_ns(first_rows) * slowed + overhead;
    let mut times = Times::default();
    times.add(draft.parts(1.0), f64::from(wait));
    times.add(target.parts(first_rows), slowed);
    times.add(draft.parts(1.0), slowed * fitting(setting, first_rows, first_ns, draft_tokens));

    let mut passes_ns = 0.0;
    let mut passes = 1.0;
    for (pass, weight) in steady_passes(setting, draft_tokens) {
        let count = weight * acceptance.later_passes(wait, pass.drafts);
        passes += count;
        passes_ns += count * pass.ns;
        let rows = f64::from(pass.drafts);
        times.add(target.parts(rows), slowed * count);
        let beside = fitting(setting, rows, pass.ns, draft_tokens);
        times.add(draft.parts(1.0), slowed * count * beside);
    }
    times.add(vec![Part { what: "rounds".to_owned(), unit: None, ns: overhead }], passes);
    let ns = waiting + first_ns + passes_ns;
    Round { tokens: acceptance.run_length(), ns, parts: times.parts }
}

/// The passes between which the steady state alternates, with their shares: the draft makes `x` tokens in the time of a
/// pass that takes `x`, and for a broken `x` some passes take the whole number below it and some the one above.
fn steady_passes(setting: Setting<'_>, draft_tokens: u32) -> Vec<(Pass, f64)> {
    let keeps_up = |n: &u32| drafting_ns(setting, *n) <= target_ns(setting, *n);
    let below = (1..=draft_tokens).take_while(keeps_up).last();
    let pass = |drafts: u32, ns: f64| Pass { drafts, ns };
    match below {
        None => vec![(pass(1, pass_ns(setting, 1)), 1.0)],
        Some(n) if n == draft_tokens => vec![(pass(n, pass_ns(setting, n)), 1.0)],
        Some(n) => {
            let spare = target_ns(setting, n) - drafting_ns(setting, n);
            let short = drafting_ns(setting, n + 1) - target_ns(setting, n + 1);
            let above = spare / (spare + short);
            let ns = target_ns(setting, n) * (1.0 - above) + target_ns(setting, n + 1) * above;
            vec![(pass(n, ns), 1.0 - above), (pass(n + 1, ns), above)]
        }
    }
}

fn pass_ns(setting: Setting<'_>, n: u32) -> f64 {
    target_ns(setting, n).max(drafting_ns(setting, n))
}

/// Time of a pass of `n` drafts if the draft is fast enough: the target's own, at most slowed by the draft beside it.
fn target_ns(setting: Setting<'_>, n: u32) -> f64 {
    let Setting { model, plan, target, .. } = setting;
    let slowed = target.pass_ns(f64::from(n)) * slowdown(model) + model.round_ns as f64;
    slowed.max(model.bus_ns(plan, f64::from(n)))
}

/// Time for making `n` drafts beside a pass: the draft's own, or that of the busiest unit that both models share.
fn drafting_ns(setting: Setting<'_>, n: u32) -> f64 {
    let Setting { model, plan, draft, target } = setting;
    let n = f64::from(n);
    let own = n * draft.pass_ns(1.0);
    let shared = plan.units.keys().map(|unit| {
        let (drafting, verifying) = (draft.busy_ns(unit, 1.0), target.busy_ns(unit, n));
        if drafting > 0.0 && verifying > 0.0 { n * drafting + verifying } else { 0.0 }
    });
    shared.fold(own, f64::max) * slowdown(model)
}

fn slowdown(model: &CostModel) -> f64 {
    f64::from(model.contention_permille.max(1000)) / 1000.0
}

/// Draft steps that fit beside a pass of `rows` rows that takes `ns`, at most `most`: the draft stops when it is that far
/// ahead.
fn fitting(setting: Setting<'_>, rows: f64, ns: f64, most: u32) -> f64 {
    let Setting { model, plan, draft, target } = setting;
    let ns = ns / slowdown(model);
    let own = ns / draft.pass_ns(1.0).max(1.0);
    let shared = plan.units.keys().map(|unit| {
        let drafting = draft.busy_ns(unit, 1.0);
        let free = (ns - target.busy_ns(unit, rows)).max(0.0);
        if drafting > 0.0 { free / drafting } else { f64::INFINITY }
    });
    shared.fold(own, f64::min).min(f64::from(most))
}

/// Adds up time by what it is for.
#[derive(Default)]
struct Times {
    parts: Vec<Part>,
}

impl Times {
    fn add(&mut self, parts: Vec<Part>, times: f64) {
        for part in parts {
            let ns = part.ns * times;
            let known = self.parts.iter_mut().find(|p| p.what == part.what && p.unit == part.unit);
            match known {
                Some(known) => known.ns += ns,
                None if ns > 0.0 => self.parts.push(Part { ns, ..part }),
                None => {}
            }
        }
    }
}
