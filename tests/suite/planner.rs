//! The planner by itself: fed with job times as a fast, a hot and a broken machine would give them, under no clock at all.

use std::collections::BTreeSet;

use outrider::engine::EngineLimits;
use outrider::foresight::Foresight;
use outrider::meter::{StageTiming, Work};
use outrider::planner::Planner;
use outrider_observability::{BuildInfo, PlanMetrics, Registry};
use outrider_plans::cost::{Before, DraftShape, PassShape};
use outrider_plans::{
    Acceptance, Board, Mode, ModelRole, Objective, PartitionPlan, UnitKind, UnitSpec, Workload,
    shipped_boards,
};

/// Jobs of one look: more than it takes to believe a ratio.
const JOBS: usize = 100;

/// A small PC whose GPU is much faster than its cores, and few short texts: searches are quick.
fn foresight() -> Foresight {
    let shipped = shipped_boards().iter().find(|board| board.name == "x86-integrated-gpu").unwrap();
    let text = shipped
        .text
        .replace("{ value = 22000000000,", "{ value = 100000000000,")
        .replace("{ value = 150000000000,", "{ value = 2000000000000,");
    assert_ne!(text, shipped.text);
    let board = Board::parse(&text).unwrap();
    let context = board.context();
    let limits =
        EngineLimits { context: Some(context.caches.positions_max), ..EngineLimits::default() };
    let tokens = (board.vocabulary(), [board.vocabulary() - 1].into());
    let workload = Workload::made_up(&Acceptance::constant(0.7), (16, 48), 6);
    Foresight::new(board.model(), context, workload, tokens, limits)
}

fn metrics() -> Registry {
    Registry::new(BuildInfo { version: "test".into(), target: "test".into() })
}

fn best(foresight: &Foresight) -> PartitionPlan {
    foresight.search(Objective::Throughput, None).ranked[0].plan.clone()
}

/// Jobs of both models under `plan`, each as long as `foreseen` says, times `permille` of its model.
fn jobs(
    foreseen: &Foresight,
    plan: &PartitionPlan,
    (target, draft): (u64, u64),
) -> Vec<StageTiming> {
    let times = foreseen.model.times(plan, &foreseen.context).unwrap();
    let shared = plan.units.len() == 1 && plan.has_draft();
    let before = if shared { Before::Other } else { Before::Same };
    let (slow_target, slow_draft) = match plan.mode {
        Mode::Overlap { .. } => times.slowed,
        _ => (1000, 1000),
    };
    let first = PassShape { rows: 5, head_rows: 5, context: 64, before };
    let mut found = Vec::new();
    for _ in 0..JOBS {
        for stage in &times.target {
            let ns: u64 = stage.pass(first).iter().map(|piece| piece.ns).sum();
            let work = Work { rows: 5, head_rows: 5, steps: 0, context: 64 };
            found.push((stage, work, ns * u64::from(slow_target) / 1000 * target / 1000));
        }
        if let Some(stage) = times.draft.first() {
            let first = PassShape { rows: 2, head_rows: 1, ..first };
            let further = DraftShape { first, further: vec![1; 3] };
            let pass: u64 = stage.pass(first).iter().map(|piece| piece.ns).sum();
            let work = Work { rows: 2, head_rows: 1, steps: 4, context: 64 };
            let ns = pass + stage.further_steps_ns(&further);
            found.push((stage, work, ns * u64::from(slow_draft) / 1000 * draft / 1000));
        }
    }
    let timing = |(stage, work, ns): (&outrider_plans::cost::StageTimes, Work, u64)| StageTiming {
        unit: stage.unit.clone(),
        stage: stage.stage,
        work,
        at_ns: 0..ns,
    };
    found.into_iter().map(timing).collect()
}

/// One look of the planner at jobs that last so many thousandths of what `foresight` says.
fn look(
    planner: &mut Planner,
    foresight: &Foresight,
    permille: (u64, u64),
    metrics: &PlanMetrics,
) -> Option<PartitionPlan> {
    for timing in jobs(foresight, &planner.running().clone(), permille) {
        planner.note(&timing);
    }
    planner.look(metrics);
    planner.advise().map(|advice| advice.plan)
}

fn gauge(registry: &Registry, name: &str) -> f64 {
    let text = registry.render();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn it_says_nothing_while_jobs_take_what_was_foreseen() {
    let (foresight, registry) = (foresight(), metrics());
    let mut planner = Planner::new(foresight.clone(), best(&foresight));
    for permille in [1000, 1030, 970, 1000, 1060, 1000] {
        let advice = look(&mut planner, &foresight, (permille, permille), &registry.plan);
        assert_eq!(advice, None);
    }
    assert!(gauge(&registry, "outrider_cost_model_error_ratio ").abs() < 0.01);
    let rate = foresight.forecast(planner.running()).unwrap().microtokens_per_second as f64 / 1e6;
    let shown = gauge(&registry, "outrider_cost_model_predicted_tokens_per_second ");
    assert!((shown / rate - 1.0).abs() < 0.001, "noise within the band changes no forecast");
}

/// A draft that takes ten times as long is not worth its time any more; the planner says so, but not at the first look.
#[test]
fn it_proposes_another_plan_once_one_unit_has_been_slow_for_long_enough() {
    let (foresight, registry) = (foresight(), metrics());
    let running = best(&foresight);
    assert!(running.has_draft(), "the board speculates: {}", running.name);
    let mut planner = Planner::new(foresight.clone(), running.clone());
    let slow = (1000, 10_000);
    let advice: Vec<_> =
        (0..4).map(|_| look(&mut planner, &foresight, slow, &registry.plan)).collect();
    assert_eq!(advice[..2], [None, None], "a plan must be better at several looks in a row");
    let proposed = advice.into_iter().flatten().next().expect("a better plan");
    assert_ne!(proposed.fingerprint(), running.fingerprint());
    // Once the planner's plan runs and its jobs take what the corrected model says, there is nothing to say.
    planner.runs(proposed);
    for _ in 0..4 {
        assert_eq!(look(&mut planner, &foresight, (1000, 10_000), &registry.plan), None);
    }
}

/// A neighbour that comes and goes must not make plans flap.
#[test]
fn a_disturbance_shorter_than_the_looks_it_takes_changes_no_plan() {
    let (foresight, registry) = (foresight(), metrics());
    let mut planner = Planner::new(foresight.clone(), best(&foresight));
    for _ in 0..3 {
        for permille in [(1000, 10_000), (1000, 1000)] {
            assert_eq!(look(&mut planner, &foresight, permille, &registry.plan), None);
        }
    }
}

/// A machine that is slower throughout ranks its plans as before.
#[test]
fn a_machine_that_is_slower_throughout_keeps_its_plan() {
    let (foresight, registry) = (foresight(), metrics());
    let running = best(&foresight);
    let mut planner = Planner::new(foresight.clone(), running.clone());
    for _ in 0..5 {
        let advice = look(&mut planner, &foresight, (1500, 1500), &registry.plan);
        assert_eq!(advice, None);
    }
    let before = foresight.forecast(&running).unwrap().microtokens_per_second as f64 / 1e6;
    let shown = gauge(&registry, "outrider_cost_model_predicted_tokens_per_second ");
    assert!((shown * 1.5 / before - 1.0).abs() < 0.05, "{shown} after {before}");
    // The first look saw the whole error; since the correction there is none.
    assert!(gauge(&registry, "outrider_cost_model_error_ratio ").abs() < 0.01);
}

/// Plans that need a unit that was given up are not proposed; when it is back they are again.
#[test]
fn a_lost_unit_is_planned_without_until_it_returns() {
    let (foresight, registry) = (foresight(), metrics());
    let uses_gpu =
        |plan: &PartitionPlan| plan.units.values().any(|spec| spec.kind() == UnitKind::Gpu);
    let with = best(&foresight);
    assert!(uses_gpu(&with), "the board's best plan uses its GPU: {}", with.name);
    let gpu: UnitSpec =
        with.units.values().find(|spec| spec.kind() == UnitKind::Gpu).unwrap().clone();
    // What a service falls back to.
    let running = with.chain(ModelRole::Target)[0].unit.clone();
    let cores = UnitSpec::Cpu { cores: foresight.context.machine.big_cores() };
    let parts =
        outrider_plans::search::Composition::plain(cores, foresight.context.target.layers());
    let plain = parts.plan("fallback", &foresight.context).unwrap();
    assert!(with.units.contains_key(&running));
    let mut planner = Planner::new(foresight.clone(), plain.clone());
    planner.without(BTreeSet::from([gpu]));
    let mut proposed = Vec::new();
    for _ in 0..6 {
        proposed.extend(look(&mut planner, &foresight, (1000, 1000), &registry.plan));
    }
    assert!(!proposed.is_empty(), "drafting on cores beats plain decoding here");
    assert!(!proposed.iter().any(uses_gpu));
    planner.runs(plain);
    planner.without(BTreeSet::new());
    let mut proposed = Vec::new();
    for _ in 0..6 {
        proposed.extend(look(&mut planner, &foresight, (1000, 1000), &registry.plan));
    }
    assert_eq!(proposed.first().map(PartitionPlan::fingerprint), Some(with.fingerprint()));
}
