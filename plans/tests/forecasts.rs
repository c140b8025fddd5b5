//! Forecasts from measured times: against the closed forms, monotone where they must be, and explained.

#![expect(clippy::unwrap_used, reason = "a test")]

mod board;

use std::collections::BTreeMap;

use outrider_plans::cost::formula::{self, Rhythm};
use outrider_plans::cost::{MemoryDomain, Share};
use outrider_plans::{
    Acceptance, CostModel, Costs, Forecast, LinkProfile, Mode, ModelRole, PartitionPlan, TimeTable,
    UnitId, UnitProfile, Workload, shipped_plan,
};
use proptest::prelude::{prop_assert, proptest};

fn plan(name: &str, mode: Mode) -> PartitionPlan {
    let text = shipped_plan(name).unwrap().text;
    let plan = PartitionPlan::from_toml(text, None, &board::two_cores()).unwrap();
    plan.with_mode(mode).unwrap()
}

/// Times in nanoseconds: a target layer, a draft layer, and each row beyond the first of a target layer.
#[derive(Clone, Copy)]
struct Times {
    target: u64,
    draft: u64,
    row: u64,
}

/// A model that knows every stage of `plan`, with nothing else than these times.
fn model(plan: &PartitionPlan, times: Times) -> CostModel {
    let mut units: BTreeMap<_, UnitProfile> = BTreeMap::new();
    for placement in &plan.stages {
        let layers = placement.stage.layers() as u64;
        let (one, row) = match placement.stage.role {
            ModelRole::Target => (layers * times.target, layers * times.row),
            ModelRole::Draft => (layers * times.draft, 0),
        };
        let table = TimeTable::new(vec![1, 16], vec![0], vec![one, one + 15 * row]).unwrap();
        let profile = units.entry(plan.unit(&placement.unit).clone()).or_insert_with(|| {
            UnitProfile { memory: MemoryDomain::Main, job_ns: 0, stages: BTreeMap::new() }
        });
        profile.stages.insert(placement.stage, table);
    }
    CostModel {
        units,
        links: BTreeMap::new(),
        link_default: LinkProfile::default(),
        round_ns: 0,
        bus_bytes_per_second: 0,
        contention_permille: 1000,
        width: BTreeMap::from([(ModelRole::Target, 256), (ModelRole::Draft, 128)]),
    }
}

fn workload(a: f64) -> Workload {
    Workload {
        context: 100,
        acceptance: Acceptance::constant(a),
        lookup_acceptance: Acceptance::constant(a),
        lookup_hit_permille: 500,
    }
}

fn forecast(plan: &PartitionPlan, times: Times, a: f64) -> Forecast {
    model(plan, times).forecast(plan, &workload(a)).unwrap()
}

fn speedup(forecast: &Forecast) -> f64 {
    forecast.microtokens_per_second as f64 / forecast.plain_microtokens_per_second as f64
}

/// A target pass of 8,000 ns.
const FLAT: Times = Times { target: 1000, draft: 1000, row: 0 };

#[test]
fn plain_decoding_is_one_pass_a_token() {
    let forecast = forecast(&plan("plain-all-cores", Mode::Plain), FLAT, 0.5);
    assert_eq!(forecast.microtokens_per_second, 125_000_000_000);
    assert_eq!(forecast.speedup_permille(), 1000);
    assert_eq!(forecast.utilisation_permille[&UnitId::new("cpu")], 1000);
}

#[test]
fn sequential_agrees_with_the_closed_form() {
    for (g, row) in [(1, 0), (4, 0), (4, 100), (8, 50)] {
        let times = Times { row, ..FLAT };
        let plan = plan("sequential-all-cores", Mode::Sequential { draft_tokens: g });
        let costs = Costs { draft_step: 3.0 / 8.0, verify_token: row as f64 / 1000.0, round: 0.0 };
        let found = speedup(&forecast(&plan, times, 0.85));
        let expected = formula::sequential(0.85, g, costs);
        assert!((found - expected).abs() < 1e-6, "g = {g}: {found}, expected {expected}");
    }
}

#[test]
fn overlap_agrees_with_the_closed_form_where_the_rhythm_is_even() {
    let times = Times { target: 1125, draft: 1000, row: 0 };
    let mode = |wait| Mode::Overlap { draft_tokens: 8, wait };
    for wait in 0..4 {
        let found = speedup(&forecast(&plan("overlap-two-cores", mode(wait)), times, 0.9));
        let rhythm = Rhythm { wait, draft_tokens: 3, bus: 0.0 };
        let costs = Costs { draft_step: 1.0 / 3.0, ..Costs::default() };
        let expected = formula::overlap(0.9, rhythm, costs);
        assert!((found - expected).abs() < 1e-6, "wait = {wait}: {found}, expected {expected}");
    }
}

#[test]
fn overlap_is_as_deep_as_the_plan_allows_and_the_draft_then_rests() {
    let times = Times { target: 1125, draft: 500, row: 0 };
    let plan = plan("overlap-two-cores", Mode::Overlap { draft_tokens: 3, wait: 1 });
    let forecast = forecast(&plan, times, 0.9);
    let rhythm = Rhythm { wait: 1, draft_tokens: 3, bus: 0.0 };
    let costs = Costs { draft_step: 1.0 / 6.0, ..Costs::default() };
    assert!((speedup(&forecast) - formula::overlap(0.9, rhythm, costs)).abs() < 1e-6);
    let busy = &forecast.utilisation_permille;
    assert!(busy[&UnitId::new("cpu0")] > 900 && busy[&UnitId::new("cpu1")] < 600, "{busy:?}");
    assert_eq!(forecast.bottleneck(), Some(&UnitId::new("cpu0")));
}

#[test]
fn a_shared_bus_takes_the_gain_of_overlap_away() {
    let plan = plan("overlap-two-cores", Mode::Overlap { draft_tokens: 4, wait: 1 });
    let mut model = model(&plan, FLAT);
    let free = model.forecast(&plan, &workload(0.9)).unwrap();
    model.bus_bytes_per_second = (12 << 20) * 1_000_000_000 / 8000;
    let shared = model.forecast(&plan, &workload(0.9)).unwrap();
    assert!(shared.microtokens_per_second * 10 < free.microtokens_per_second * 9);
}

#[test]
fn lookup_lies_between_its_hits_and_its_misses() {
    let plan = plan("lookup-all-cores", Mode::Lookup { draft_tokens: 4, ngram: 3 });
    let model = model(&plan, FLAT);
    let at = |permille| {
        let workload = Workload { lookup_hit_permille: permille, ..workload(0.8) };
        speedup(&model.forecast(&plan, &workload).unwrap())
    };
    assert!((at(0) - 1.0).abs() < 1e-9);
    assert!((at(1000) - formula::sequential(0.8, 4, Costs::default())).abs() < 1e-6);
    assert!(at(0) < at(500) && at(500) < at(1000));
}

#[test]
fn a_split_target_pays_for_its_hop() {
    let plan = plan("split-two-cores", Mode::Plain);
    let mut model = model(&plan, FLAT);
    model.link_default = LinkProfile { latency_ns: 1000, bytes_per_second: 1_024_000_000 };
    let forecast = model.forecast(&plan, &workload(0.9)).unwrap();
    assert_eq!(forecast.round_ns, 8000 + 1000 + 1000);
    let to = |what: &str, ns| Share { what: what.to_owned(), unit: None, ns };
    assert!(forecast.shares.contains(&to("to cpu1", 2000)), "{forecast}");
}

#[test]
fn what_was_not_measured_is_named() {
    let plan = plan("overlap-two-cores", Mode::Overlap { draft_tokens: 4, wait: 1 });
    let mut model = model(&plan, FLAT);
    model.units.get_mut(plan.unit(&UnitId::new("cpu1"))).unwrap().stages.clear();
    let words = model.forecast(&plan, &workload(0.9)).unwrap_err().to_string();
    assert_eq!(
        words,
        "draft[0..3] was not measured on unit `cpu1` (cpu, core 1): run `outrider calibrate`"
    );
    model.units.clear();
    let words = model.forecast(&plan, &workload(0.9)).unwrap_err().to_string();
    assert_eq!(words, "unit `cpu0` (cpu, core 0) was not measured: run `outrider calibrate`");
}

#[test]
fn a_forecast_says_where_the_time_goes() {
    let plan = plan("sequential-all-cores", Mode::Sequential { draft_tokens: 2 });
    let mut model = model(&plan, FLAT);
    model.round_ns = 500;
    let words = model.forecast(&plan, &workload(0.5)).unwrap().to_string();
    assert_eq!(
        words,
        "\
120689.655 tokens/s, 1.025 times its target alone
a round: 14.500 us for 1.750 tokens
         0.500 us  round
         6.000 us  draft[0..3] on cpu
         8.000 us  target[0..8] on cpu
  cpu is busy 96.6 %, the bottleneck
"
    );
}

proptest! {
    #[test]
    fn better_drafts_and_faster_units_never_slow_sequential_down(
        target in 1000..5000u64, draft in 100..3000u64, row in 0..300u64, more in 1..500u64,
        a in 0.0..0.95f64, better in 0.001..0.04f64, g in 1..=15u32,
    ) {
        let plan = plan("sequential-all-cores", Mode::Sequential { draft_tokens: g });
        let speed = |times, a| forecast(&plan, times, a).microtokens_per_second as f64;
        let times = Times { target, draft, row };
        prop_assert!(speed(times, a) <= speed(times, a + better));
        let slower_target = Times { target: target + more, ..times };
        prop_assert!(speed(slower_target, a) <= speed(times, a));
        let slower_draft = Times { draft: draft + more, ..times };
        prop_assert!(speed(slower_draft, a) <= speed(times, a));
        let dearer_rows = Times { row: row + more, ..times };
        prop_assert!(speed(dearer_rows, a) <= speed(times, a));
    }

    /// Not in every case, for good reasons. A later pass must be able to take more drafts than the first one waited for:
    /// else it yields less than the first, and longer runs of right drafts mean more of the worse passes. And where rows
    /// cost time, a slower draft makes passes smaller, of which bad drafts waste less.
    #[test]
    fn better_drafts_and_faster_units_never_slow_overlap_down_where_rows_are_free(
        target in 1000..5000u64, draft in 100..1200u64, more in 1..500u64,
        a in 0.0..0.95f64, better in 0.001..0.04f64, g in 2..=8u32, wait in 0..=1u32,
    ) {
        let plan = plan("overlap-two-cores", Mode::Overlap { draft_tokens: g + wait, wait });
        let speed = |times, a| forecast(&plan, times, a).microtokens_per_second as f64;
        let times = Times { target, draft, row: 0 };
        let slack = 1.0 - 1e-9;
        prop_assert!(speed(times, a) * slack <= speed(times, a + better));
        let slower_target = Times { target: target + more, ..times };
        prop_assert!(speed(slower_target, a) * slack <= speed(times, a));
        let slower_draft = Times { draft: draft + more, ..times };
        prop_assert!(speed(slower_draft, a) * slack <= speed(times, a));
    }

    #[test]
    fn no_unit_is_busier_than_always_and_shares_add_up(
        target in 500..5000u64, draft in 100..3000u64, row in 0..500u64, a in 0.0..0.99f64, g in 1..=15u32,
    ) {
        let times = Times { target, draft, row };
        for (name, mode) in [
            ("sequential-all-cores", Mode::Sequential { draft_tokens: g }),
            ("split-two-cores", Mode::Sequential { draft_tokens: g }),
            ("split-two-cores", Mode::Overlap { draft_tokens: g, wait: g / 2 }),
            ("overlap-two-cores", Mode::Overlap { draft_tokens: g, wait: 1 }),
            ("sequential-all-cores", Mode::Overlap { draft_tokens: g, wait: 1 }),
        ] {
            let plan = plan(name, mode);
            let forecast = forecast(&plan, times, a);
            let shares: u64 = forecast.shares.iter().map(|share| share.ns).sum();
            let units = plan.units.len() as u64;
            prop_assert!(shares <= units * forecast.round_ns + 8, "{name}: {forecast}");
            if matches!(mode, Mode::Sequential { .. }) {
                prop_assert!(shares.abs_diff(forecast.round_ns) <= 8, "{name}: {forecast}");
            }
        }
    }
}
