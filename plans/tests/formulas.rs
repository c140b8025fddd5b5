//! The speed-up formulas against published numbers, against each other, and against simulated coin tosses.

use outrider_plans::Costs;
use outrider_plans::cost::formula::{
    Rhythm, best_lockstep, best_overlap, best_sequential, bus_limit, limit, lockstep,
    outcome_cache, overlap, sequential,
};
use outrider_plans::cost::stop::{Prospect, worth_drafting, worth_waiting};
use proptest::prelude::{prop_assert, prop_assert_eq, prop_assume, proptest};

fn drafting(c: f64) -> Costs {
    Costs { draft_step: c, ..Costs::default() }
}

fn no_bus(_: u32) -> f64 {
    0.0
}

/// Two decimals, as the numbers are published.
fn rounded(speedup: f64) -> f64 {
    (speedup * 100.0).round() / 100.0
}

#[test]
fn the_best_of_each_mode_by_acceptance_and_cost() {
    let table = [
        (0.90, 0.41, [1.55, 1.88, 1.97, 2.13]),
        (0.94, 0.41, [1.69, 2.07, 2.13, 2.25]),
        (0.90, 0.36, [1.68, 2.14, 2.18, 2.36]),
        (0.58, 0.41, [1.12, 1.27, 1.27, 1.52]),
        (0.17, 0.41, [1.00, 1.03, 1.03, 1.11]),
        (0.90, 0.20, [2.37, 3.13, 3.15, 3.57]),
    ];
    for (a, c, expected) in table {
        let found = [
            best_sequential(a, drafting(c)).speedup,
            best_lockstep(a, drafting(c)).speedup,
            best_overlap(a, drafting(c), no_bus).speedup,
            limit(a, c),
        ];
        assert_eq!(found.map(rounded), expected, "a = {a}, c = {c}");
    }
}

/// The paper gives S = 1.68 at acceptance 0.90 with five drafted tokens for its variant 1, whose draft costs c = 0.41 on
/// the GPU. By its own formula that cost gives 1.55 at best, with four.
#[test]
fn the_papers_cost_does_not_give_the_papers_speed() {
    let best = best_sequential(0.90, drafting(0.41));
    assert_eq!((best.draft_tokens, rounded(best.speedup)), (4, 1.55));
    assert_eq!(rounded(sequential(0.90, 5, drafting(0.41))), 1.54);
    assert_eq!(rounded(sequential(0.90, 5, drafting(0.358))), 1.68, "the cost that 1.68 needs");
}

/// The paper measured 1.68 at an acceptance of 0.94, and calls the four points a prediction error of 4 %. At that
/// acceptance its formula with its own cost gives what was measured.
#[test]
fn the_papers_measurement_follows_from_its_cost_at_the_measured_acceptance() {
    assert_eq!(rounded(best_sequential(0.94, drafting(0.41)).speedup), 1.69);
}

#[test]
fn the_papers_median_acceptance_of_an_int8_target_never_pays() {
    for c in [0.41, 0.80, 1.0] {
        let best = best_sequential(0.17, drafting(c));
        assert_eq!((best.draft_tokens, best.speedup), (0, 1.0), "c = {c}");
    }
}

#[test]
fn two_models_on_one_bus_gain_little_from_overlap() {
    let costs = drafting(0.3);
    let free = best_overlap(0.9, costs, no_bus).speedup;
    let shared = best_overlap(0.9, costs, |n| bus_limit(0.3, n, 1.0)).speedup;
    assert!(shared < free);
    assert!(shared < 1.1 * best_sequential(0.9, costs).speedup, "{shared}");
}

/// Sequential rounds, token by token, with a fixed sequence of coin tosses.
#[test]
fn the_sequential_formula_agrees_with_tossed_coins() {
    let (a, g) = (0.8, 4);
    let costs = Costs { draft_step: 0.2, verify_token: 0.05, round: 0.1 };
    let mut coin = Coin(1);
    let (mut tokens, mut time) = (0.0, 0.0);
    for _ in 0..200_000 {
        tokens += 1.0 + (0..g).take_while(|_| coin.is_heads(a)).count() as f64;
        time += f64::from(g) * (costs.draft_step + costs.verify_token) + 1.0 + costs.round;
    }
    assert!((tokens / time - sequential(a, g, costs)).abs() < 0.01);
}

/// Rejection to rejection, pass by pass.
#[test]
fn the_overlap_formula_agrees_with_tossed_coins() {
    let (a, costs) = (0.8, Costs { draft_step: 0.3, verify_token: 0.02, round: 0.0 });
    let rhythm = Rhythm { wait: 1, draft_tokens: 3, bus: 0.0 };
    let tau = f64::max(1.0 + 3.0 * 0.02, 3.0 * 0.3);
    let mut coin = Coin(2);
    let (mut tokens, mut time) = (0.0, 0.0);
    for _ in 0..200_000 {
        let run = std::iter::repeat_with(|| coin.is_heads(a)).take_while(|heads| *heads).count();
        tokens += run as f64 + 1.0;
        time += 0.3 + 1.0 + 0.02;
        let beyond = run.saturating_sub(1);
        time += tau * beyond.div_ceil(3) as f64;
    }
    assert!((tokens / time - overlap(a, rhythm, costs)).abs() < 0.01, "{}", tokens / time);
}

struct Coin(u64);

impl Coin {
    fn is_heads(&mut self, probability: f64) -> bool {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 / (1u64 << 53) as f64) < probability
    }
}

proptest! {
    /// The paper's rule: speculate only if the draft's cost is below the acceptance.
    #[test]
    fn speculation_pays_exactly_if_the_draft_is_cheaper_than_acceptance(
        a in 0.01..0.99f64, c in 0.01..1.2f64,
    ) {
        prop_assume!((a - c).abs() > 1e-6);
        prop_assert_eq!(best_sequential(a, drafting(c)).draft_tokens > 0, c < a);
    }

    #[test]
    fn better_drafts_are_never_slower(
        a in 0.0..0.98f64, more in 0.0..0.01f64, c in 0.01..1.0f64, v in 0.0..0.3f64, g in 1..=15u32,
    ) {
        let costs = Costs { draft_step: c, verify_token: v, round: 0.05 };
        let slack = 1.0 + 1e-12;
        prop_assert!(sequential(a, g, costs) <= sequential(a + more, g, costs) * slack);
        let best = |a| best_overlap(a, costs, no_bus).speedup;
        prop_assert!(best(a) <= best(a + more) * slack);
    }

    #[test]
    fn higher_costs_are_never_faster(
        a in 0.0..0.99f64, c in 0.01..1.0f64, v in 0.0..0.3f64, more in 0.0..0.5f64, g in 1..=15u32,
    ) {
        let cheap = Costs { draft_step: c, verify_token: v, round: 0.0 };
        let rhythm = Rhythm { wait: g / 2, draft_tokens: g, bus: 0.0 };
        let dearer = [
            Costs { draft_step: c + more, ..cheap },
            Costs { verify_token: v + more, ..cheap },
            Costs { round: more, ..cheap },
        ];
        for dear in dearer {
            prop_assert!(sequential(a, g, dear) <= sequential(a, g, cheap));
            prop_assert!(lockstep(a, g, dear) <= lockstep(a, g, cheap));
            prop_assert!(overlap(a, rhythm, dear) <= overlap(a, rhythm, cheap));
        }
        let on_bus = Rhythm { bus: 1.0 + more, ..rhythm };
        prop_assert!(overlap(a, on_bus, cheap) <= overlap(a, rhythm, cheap));
    }

    #[test]
    fn nothing_beats_the_limits(a in 0.0..0.99f64, c in 0.01..1.0f64) {
        let best = best_overlap(a, drafting(c), no_bus).speedup;
        prop_assert!(best <= limit(a, c).max(1.0) * (1.0 + 1e-9));
        prop_assert!(best <= (1.0 / c).max(1.0) * (1.0 + 1e-9));
        prop_assert!(best_sequential(a, drafting(c)).speedup <= best * (1.0 + 1e-9));
    }

    #[test]
    fn a_cache_of_outcomes_that_never_hits_is_plain_overlap_and_hits_help(
        a in 0.0..0.99f64, c in 0.01..1.0f64, wait in 0..4u32, n in 1..=8u32, hit in 0.0..1.0f64,
    ) {
        let rhythm = Rhythm { wait, draft_tokens: n, bus: 0.0 };
        let without = overlap(a, rhythm, drafting(c));
        let with = |hit| outcome_cache(a, rhythm, drafting(c), (hit, wait));
        prop_assert!((with(0.0) - without).abs() <= 1e-9 * without);
        prop_assert!(with(hit) >= without * (1.0 - 1e-9));
    }

    /// Renewal-reward: followed at the best rate, the stop rule drafts as many tokens as is best.
    #[test]
    fn the_stop_rule_finds_the_best_depth(a in 0.05..0.97f64, c in 0.02..1.0f64, v in 0.0..0.2f64) {
        let costs = Costs { draft_step: c, verify_token: v, round: 0.0 };
        let best = best_sequential(a, costs);
        let (mut prefix, mut drafted) = (1.0, 0);
        while drafted < 15
            && worth_drafting(Prospect { prefix, next: a, rate: best.speedup }, costs)
        {
            prefix *= a;
            drafted += 1;
        }
        let by_rule = if drafted == 0 { 1.0 } else { sequential(a, drafted, costs) };
        prop_assert!((by_rule - best.speedup).abs() < 1e-9, "{drafted} of {}", best.draft_tokens);
    }

    /// Waiting for one draft more pays by the rule exactly if the formula gets faster by it.
    #[test]
    fn the_waiting_rule_agrees_with_the_formula(
        a in 0.05..0.97f64, c in 0.02..1.0f64, v in 0.0..0.2f64, wait in 0..6u32, n in 1..=8u32,
    ) {
        let costs = Costs { draft_step: c, verify_token: v, round: 0.0 };
        let rhythm = Rhythm { wait, draft_tokens: n, bus: 0.0 };
        let (now, then) =
            (overlap(a, rhythm, costs), overlap(a, Rhythm { wait: wait + 1, ..rhythm }, costs));
        prop_assume!((now - then).abs() > 1e-9);
        prop_assert_eq!(worth_waiting(a, rhythm, costs), then > now);
    }
}
