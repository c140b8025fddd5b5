//! Rehearsals against the closed forms, against each other, and step by step.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use outrider_pipeline::DraftPolicy;
use outrider_pipeline::rehearsal::{Course, Rehearsal};
use outrider_pipeline::scheduler::{RoleLimits, SchedulerConfig, Units};
use outrider_plans::cost::formula;
use outrider_plans::cost::{
    AroundJobs, Contention, CostModel, Guess, Link, LinkProfile, MemoryDomain, PartsProfile,
    RoleProfile, SampleText, TimeTable, UnitClass, UnitProfile,
};
use outrider_plans::search::{Composition, Forecaster, Objective, Space, Wanted, search};
use outrider_plans::{
    Acceptance, Adapter, AdapterKind, CacheFormat, CacheLimits, Costs, DraftTokens, Forecast,
    ForecastError, HeadWeights, Machine, Mode, ModelRole, ModelShape, PartitionPlan, PlanContext,
    UnitSpec, Workload,
};
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

/// Nanoseconds of a pass of one row, of each row more, and of a draft's step, on one core.
#[derive(Clone, Copy, Debug)]
struct Times {
    target: u64,
    row: u64,
    draft: u64,
}

const LAYERS: usize = 4;

fn shape(layers: usize) -> ModelShape {
    ModelShape {
        layer_bytes: vec![1 << 20; layers],
        embedding_bytes: 1 << 20,
        head_bytes: 1 << 20,
        head: HeadWeights::Tied,
        cache_bytes: 512,
        width: 64,
        vocabulary: 4096,
    }
}

fn context(cores: usize) -> PlanContext {
    PlanContext {
        machine: Machine::uniform(cores, 1 << 30),
        target: shape(LAYERS),
        draft: Some(shape(2)),
        caches: CacheLimits { sequences_max: 8, positions_max: 4096, format: CacheFormat::F16 },
    }
}

fn table(times: impl Fn(u32) -> u64) -> TimeTable {
    let points: Vec<_> = [1, 2, 4, 8, 16, 128].map(|rows| (rows, times(rows))).into();
    TimeTable::by_rows(&points).unwrap()
}

fn profile(times: Times) -> UnitProfile {
    let Times { target, row, draft } = times;
    let pass = |rows: u32| target + u64::from(rows - 1) * row;
    let of = |layers: u32, pass: &dyn Fn(u32) -> u64, step: u64| RoleProfile {
        layers,
        verify: table(pass),
        fill: table(pass),
        draft_step: table(|_| step),
        parts: Some(PartsProfile {
            base: table(|_| 0),
            layer: table(|rows| pass(rows) / u64::from(layers)),
            head: table(|_| 0),
        }),
        scratch_bytes: 0,
    };
    let roles = BTreeMap::from([
        (ModelRole::Target, of(LAYERS as u32, &pass, target)),
        (ModelRole::Draft, of(2, &|_| draft, draft)),
    ]);
    let around = AroundJobs::default();
    UnitProfile { memory: MemoryDomain::Main, roles, around, power_mw: 1000 }
}

/// Cores that do not help each other: every class takes the same time.
fn model(times: Times, cores: u32) -> CostModel {
    let units = (1..=cores).map(|n| (UnitClass::cores(0, n), profile(times)));
    CostModel { units: units.collect(), ..CostModel::default() }
}

fn policy(plan: &PartitionPlan) -> DraftPolicy {
    match plan.mode {
        Mode::Plain | Mode::Lookup { .. } => DraftPolicy::plain(),
        Mode::Sequential { draft_tokens } => DraftPolicy::sequential(draft_tokens.most()),
        Mode::Overlap { draft_tokens, wait } => DraftPolicy::overlap(draft_tokens.most(), 1, wait),
    }
}

fn rules(plan: &PartitionPlan) -> SchedulerConfig {
    let role = RoleLimits { rows_max: 128, positions_max: 4096 };
    let target = &plan.chain(ModelRole::Target)[0].unit;
    let apart = plan.chain(ModelRole::Draft).first().is_some_and(|draft| draft.unit != *target);
    SchedulerConfig {
        queue_tokens_max: 1 << 20,
        prefixes: outrider_pipeline::scheduler::Prefixes::Forget,
        sequences_max: 8,
        queue_max: 64,
        target: role,
        draft: role,
        vocabulary: 4096,
        end_of_text: Arc::from([4095]),
        policy: policy(plan),
        units: if apart { Units::Separate } else { Units::Shared },
    }
}

fn on_one(mode: Mode) -> PartitionPlan {
    let unit = UnitSpec::Cpu { cores: vec![0] };
    let parts = Composition { mode, draft: Some(0), ..Composition::plain(unit, LAYERS) };
    parts.plan("test", &context(2)).unwrap()
}

fn on_two(mode: Mode) -> PartitionPlan {
    let units = vec![UnitSpec::Cpu { cores: vec![0] }, UnitSpec::Cpu { cores: vec![1] }];
    let parts = Composition { mode, units, target: vec![(0, LAYERS)], draft: Some(1) };
    parts.plan("test", &context(2)).unwrap()
}

/// Two cores that do nothing to each other.
fn beside() -> Contention {
    let one = || UnitClass::cores(0, 1);
    Contention {
        target: one(),
        draft: one(),
        target_permille: 1000,
        draft_permille: 1000,
        target_apart_ns: 0,
        draft_apart_ns: 0,
        target_hop_ns: 0,
    }
}

fn sequential(depth: u32) -> Mode {
    Mode::Sequential { draft_tokens: DraftTokens::Fixed(depth) }
}

fn overlap(depth: u32, wait: u32) -> Mode {
    Mode::Overlap { draft_tokens: DraftTokens::Fixed(depth), wait }
}

/// Long texts after one token, so that neither prompts nor ends count.
fn texts(a: f64) -> Workload {
    Workload::made_up(&Acceptance::constant(a), (1, 2000), 4)
}

fn forecast(model: &CostModel, plan: &PartitionPlan, workload: &Workload) -> Forecast {
    let context = context(2);
    Rehearsal { model, context: &context, workload, rules: &rules }.forecast(plan).unwrap()
}

fn course(model: &CostModel, plan: &PartitionPlan, workload: &Workload) -> Course {
    let context = context(2);
    Rehearsal { model, context: &context, workload, rules: &rules }.course(plan).unwrap()
}

fn speedup(forecast: &Forecast) -> f64 {
    forecast.microtokens_per_second as f64 / forecast.plain_microtokens_per_second as f64
}

#[test]
fn sequential_agrees_with_the_closed_form() {
    for (a, g, row) in [(0.9, 1, 0), (0.9, 4, 0), (0.58, 2, 0), (0.8, 4, 10_000), (0.94, 8, 5_000)]
    {
        let times = Times { target: 1_000_000, row, draft: 200_000 };
        let found = speedup(&forecast(&model(times, 2), &on_one(sequential(g)), &texts(a)));
        let costs = Costs { draft_step: 0.2, verify_token: row as f64 / 1e6, round: 0.0 };
        let expected = formula::sequential(a, g, costs);
        assert!((found / expected - 1.0).abs() < 0.02, "a = {a}, g = {g}: {found}, not {expected}");
    }
}

/// The paper's own parameters give 1.55 at acceptance 0.90 and c = 0.41, not the 1.68 that its text says; at 0.94, where it
/// measured 1.68, they give 1.69.
#[test]
fn the_papers_variant_1_rehearsed_gives_what_its_formula_gives() {
    let times = Times { target: 1_000_000, row: 0, draft: 410_000 };
    for (a, depth, expected) in [(0.90, 4, 1.55), (0.94, 6, 1.69), (0.17, 1, 0.83)] {
        let found = speedup(&forecast(&model(times, 2), &on_two(sequential(depth)), &texts(a)));
        assert!((found - expected).abs() < 0.03, "a = {a}: {found}, not {expected}");
    }
}

/// Who asks does not know where the text will end: its last draft runs as deep as any. Where a length was asked for, none runs
/// beyond it.
#[test]
fn a_draft_does_not_know_where_a_text_will_end() {
    let times = Times { target: 1_000_000, row: 0, draft: 200_000 };
    let guess = |token| Guess { token, probability_permille: 900 };
    let drafted = |last| {
        let guesses = [2, 3, 4, 9].map(guess).into();
        let text = SampleText { prompt: vec![1], output: vec![2, 3, 4, last], guesses };
        course(&model(times, 1), &on_one(sequential(8)), &Workload::single(vec![text]))
    };
    let (ended, cut) = (drafted(4095), drafted(5));
    assert_eq!((ended.tokens, ended.jobs), (4, (1, 1)));
    assert_eq!((cut.tokens, cut.jobs), (4, (1, 1)));
    // Three, the wrong one, and then the end; of four tokens that are left the pass gives the last one itself.
    assert_eq!((ended.jobs_ns.1, cut.jobs_ns.1), (5 * times.draft, 3 * times.draft));
}

/// A GPU is given all steps of a draft at once: it saves nothing where the text ends before.
#[test]
fn a_gpu_runs_every_step_that_it_is_asked_for() {
    let times = Times { target: 1_000_000, row: 0, draft: 200_000 };
    let guess = |token| Guess { token, probability_permille: 900 };
    let (output, guesses) = (vec![2, 3, 4, 4095], [2, 3, 4, 4095].map(guess).into());
    let workload = Workload::single(vec![SampleText { prompt: vec![1], output, guesses }]);
    let mut context = context(1);
    let name = "a GPU".to_owned();
    let adapter = Adapter { name: name.clone(), kind: AdapterKind::Discrete, memory_bytes: None };
    context.machine.adapters.push(adapter);
    let unit = UnitSpec::Gpu { adapter: 0, name };
    let class = UnitClass::of(&unit, &context.machine);
    let mut model = model(times, 1);
    model.units.insert(class, profile(times));
    let drafting_ns = |unit: UnitSpec| {
        let mode = sequential(8);
        let parts = Composition { mode, draft: Some(0), ..Composition::plain(unit, LAYERS) };
        let plan = parts.plan("test", &context).unwrap();
        let rehearsal =
            Rehearsal { model: &model, context: &context, workload: &workload, rules: &rules };
        rehearsal.course(&plan).unwrap().jobs_ns.1
    };
    assert_eq!(drafting_ns(UnitSpec::Cpu { cores: vec![0] }), 4 * times.draft);
    assert_eq!(drafting_ns(unit), 8 * times.draft);
}

#[test]
fn overlap_lies_between_sequential_and_the_limit() {
    for (a, c) in [(0.9, 0.41), (0.9, 0.2), (0.58, 0.41)] {
        let times = Times { target: 1_000_000, row: 0, draft: (c * 1e6) as u64 };
        let of = |plan: &PartitionPlan| speedup(&forecast(&model(times, 2), plan, &texts(a)));
        let best = (1..=6).map(|g| of(&on_two(sequential(g)))).fold(0.0, f64::max);
        let found = (1..=6).map(|g| of(&on_two(overlap(g, 1)))).fold(0.0, f64::max);
        let limit = formula::limit(a, c) * 1.02;
        assert!(best < found && found < limit, "a = {a}, c = {c}: {best}, {found}, {limit}");
    }
}

#[test]
fn units_that_slow_each_other_gain_less_from_overlap() {
    let times = Times { target: 1_000_000, row: 0, draft: 200_000 };
    let mut model = model(times, 2);
    let plan = on_two(overlap(4, 1));
    let free = forecast(&model, &plan, &texts(0.9));
    let slower = Contention { target_permille: 1500, draft_permille: 1500, ..beside() };
    model.contention.push(slower);
    let slowed = forecast(&model, &plan, &texts(0.9));
    let ratio = free.microtokens_per_second as f64 / slowed.microtokens_per_second as f64;
    assert!((1.3..1.51).contains(&ratio), "{ratio}");
}

#[test]
fn a_split_target_pays_for_its_hop_on_every_pass() {
    let times = Times { target: 1_000_000, row: 0, draft: 1 };
    let mut model = model(times, 2);
    model.link_default = LinkProfile { latency_ns: 100_000, bytes_per_second: 0 };
    let units = vec![UnitSpec::Cpu { cores: vec![0] }, UnitSpec::Cpu { cores: vec![1] }];
    let parts = Composition { mode: Mode::Plain, units, target: vec![(0, 2), (1, 2)], draft: None };
    let plan = parts.plan("split", &context(2)).unwrap();
    let found = forecast(&model, &plan, &texts(0.0));
    assert!((1_099_000..=1_101_000).contains(&found.round_ns), "{found}");
}

/// A way that was measured holds back and forth, and for other core counts of the same clusters; others have the default.
#[test]
fn a_split_target_pays_for_the_way_that_was_measured_nearest() {
    let times = Times { target: 1_000_000, row: 0, draft: 1 };
    let mut model = model(times, 2);
    let units = vec![UnitSpec::Cpu { cores: vec![0] }, UnitSpec::Cpu { cores: vec![1] }];
    let parts = Composition { mode: Mode::Plain, units, target: vec![(0, 2), (1, 2)], draft: None };
    let plan = parts.plan("split", &context(2)).unwrap();
    let mut measured = |from, to, latency_ns| {
        let profile = LinkProfile { latency_ns, bytes_per_second: 0 };
        model.links.push(Link { from, to, profile });
        forecast(&model, &plan, &texts(0.0)).round_ns
    };
    let elsewhere = measured(UnitClass::cores(1, 1), UnitClass::cores(0, 1), 700_000);
    assert!((999_000..=1_001_000).contains(&elsewhere), "{elsewhere}");
    let two_and_one = measured(UnitClass::cores(0, 2), UnitClass::cores(0, 1), 200_000);
    assert!((1_199_000..=1_201_000).contains(&two_and_one), "{two_and_one}");
    let exact = measured(UnitClass::cores(0, 1), UnitClass::cores(0, 1), 100_000);
    assert!((1_099_000..=1_101_000).contains(&exact), "{exact}");
}

#[test]
fn what_units_cost_that_take_turns_is_not_added_to_a_split_target() {
    let times = Times { target: 1_000_000, row: 0, draft: 100_000 };
    let mut model = model(times, 2);
    let units = vec![UnitSpec::Cpu { cores: vec![0] }, UnitSpec::Cpu { cores: vec![1] }];
    let (mode, target) = (sequential(2), vec![(0, 2), (1, 2)]);
    let split = Composition { mode, units, target, draft: Some(1) };
    let split = split.plan("split", &context(2)).unwrap();
    let of = |model: &CostModel, plan: &PartitionPlan| forecast(model, plan, &texts(0.5));
    let before = (of(&model, &split), of(&model, &on_two(mode)));
    let apart = Contention { target_apart_ns: 300_000, draft_apart_ns: 50_000, ..beside() };
    model.contention.push(apart);
    // The link of a split target was fitted to all that its passes take longer.
    assert_eq!(of(&model, &split).round_ns, before.0.round_ns);
    assert!(of(&model, &on_two(mode)).round_ns >= before.1.round_ns + 300_000);
}

#[test]
fn several_requests_share_passes() {
    let times = Times { target: 1_000_000, row: 10_000, draft: 1 };
    let model = model(times, 2);
    let plan = on_one(Mode::Plain);
    let workload = Workload::made_up(&Acceptance::constant(0.0), (8, 64), 32);
    let one = forecast(&model, &plan, &workload);
    let four = forecast(&model, &plan, &workload.with_concurrency(4));
    let ratio = four.microtokens_per_second as f64 / one.microtokens_per_second as f64;
    assert!((3.4..4.0).contains(&ratio), "{ratio}");
}

#[test]
fn every_token_of_every_text_is_decoded_and_time_adds_up() {
    let times = Times { target: 900_000, row: 20_000, draft: 150_000 };
    let workload = Workload::made_up(&Acceptance::constant(0.8), (20, 30), 10);
    for plan in [on_one(Mode::Plain), on_one(sequential(3)), on_two(overlap(3, 1))] {
        let found = course(&model(times, 2), &plan, &workload);
        assert_eq!((found.texts, found.tokens), (10, 300), "{}", plan.name);
        let spent: u64 = found.spent.values().sum();
        assert!(spent >= found.total_ns, "{}: units and gaps cover the time", plan.name);
        if !matches!(plan.mode, Mode::Overlap { .. }) {
            assert_eq!(spent, found.total_ns, "{}", plan.name);
        }
    }
}

struct Oracle {
    model: CostModel,
    context: PlanContext,
    workload: Workload,
}

impl Forecaster for Oracle {
    fn quick(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        let Self { model, context, workload } = self;
        Rehearsal { model, context, workload, rules: &rules }.forecast(plan)
    }

    fn full(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        self.quick(plan)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// More time for anything never makes a plan faster where units take turns.
    #[test]
    fn slower_units_never_speed_a_turn_taking_plan_up(
        target in 500_000..2_000_000u64, row in 0..50_000u64, draft in 50_000..900_000u64,
        more in 1_000..100_000u64, a in 0.0..0.95f64, g in 1..=8u32,
    ) {
        let times = Times { target, row, draft };
        let workload = Workload::made_up(&Acceptance::constant(a), (8, 60), 4);
        let speed = |times: Times| {
            forecast(&model(times, 2), &on_one(sequential(g)), &workload).microtokens_per_second
        };
        let now = speed(times);
        let slower = Times { target: target + more, ..times };
        prop_assert!(speed(slower) <= now);
        let slower = Times { row: row + more, ..times };
        prop_assert!(speed(slower) <= now);
        let slower = Times { draft: draft + more, ..times };
        prop_assert!(speed(slower) <= now);
    }

    /// Any machine, any times: the search answers, with plans that hold, ranked, and the same each time.
    #[test]
    fn the_search_answers_with_valid_plans_and_always_the_same(
        target in 200_000..2_000_000u64, row in 0..200_000u64, draft in 20_000..2_000_000u64,
        a in 0.0..0.99f64, cores in 1..=4usize,
    ) {
        let oracle = Oracle {
            model: model(Times { target, row, draft }, cores as u32),
            context: context(cores),
            workload: Workload::made_up(&Acceptance::constant(a), (8, 40), 3),
        };
        let wanted = Wanted {
            objective: Objective::Throughput,
            memory_bytes_max: None,
            concurrent: 1,
        };
        let space = Space::new(&oracle.context, &oracle.model);
        let found = search(&oracle.context, &space, wanted, &oracle);
        prop_assert!(!found.ranked.is_empty());
        for candidate in &found.ranked {
            let text = candidate.plan.to_toml();
            let again = PartitionPlan::from_toml(&text, None, &oracle.context).unwrap();
            prop_assert_eq!(&again, &candidate.plan);
        }
        let rates = found.ranked.iter().map(|c| c.forecast.microtokens_per_second);
        prop_assert!(rates.is_sorted_by(|a, b| a >= b));
        // Nothing is gained by any plan over the best plain one if drafts are never right.
        let plain = found.plain.clone().unwrap();
        prop_assert!(found.ranked[0].forecast.microtokens_per_second >= plain.forecast.microtokens_per_second);
        prop_assert_eq!(search(&oracle.context, &space, wanted, &oracle), found);
    }
}

/// A draft that is never right, or as slow as the target, is not used.
#[test]
fn the_search_may_answer_not_to_speculate() {
    for (draft, a) in [(300_000, 0.02), (1_200_000, 0.9)] {
        let oracle = Oracle {
            model: model(Times { target: 1_000_000, row: 300_000, draft }, 1),
            context: context(1),
            workload: Workload::made_up(&Acceptance::constant(a), (8, 40), 3),
        };
        let wanted =
            Wanted { objective: Objective::Throughput, memory_bytes_max: None, concurrent: 1 };
        let space = Space::new(&oracle.context, &oracle.model);
        let found = search(&oracle.context, &space, wanted, &oracle);
        assert_eq!(found.ranked[0].plan.mode, Mode::Plain, "{:?}", found.ranked[0].plan.name);
    }
}
