//! Plans that change while requests run: one test per sentence of the swap protocol. On simulated units, which agree on
//! every text, so that a text that changes is a fault of the swap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider::coordinator::Coordinator;
use outrider::engine::{Engine, EngineLimits, EngineOptions};
use outrider::messages::{Inspect, RoundDone, RoundOutcome};
use outrider::supervisor::RestartPolicy;
use outrider_devices::sim::{Faults, RealDelay, SimDevice, SimOptions};
use outrider_devices::{Device, DeviceError, Executable, SlotLimits, Subgraph};
use outrider_observability::Registry;
use outrider_pipeline::scheduler::{
    Prefixes, RoleLimits, Scheduler, SchedulerConfig, Ticket, Units,
};
use outrider_pipeline::{Detokenize, DraftPolicy};
use outrider_plans::{ModelRole, PlanEpoch, Proposal, Reason, SwapError, SwapReport, UnitId};

use crate::equivalence::{pair, plan, registry};
use crate::supervision::{PLAN, answers, factory, world};

/// Plans that differ in mode, depth, placement and split, by name.
pub(crate) fn plans() -> Vec<String> {
    let units = "[units.t]\nkind = \"sim\"\n[units.d]\nkind = \"sim\"\n";
    let text = |name: &str, mode: &str, units: &str, stages: &[(&str, &str, &str)]| {
        let stage = |(role, unit, layers): &(&str, &str, &str)| {
            format!("[[{role}]]\nunit = \"{unit}\"\nlayers = \"{layers}\"\n")
        };
        let stages: String = stages.iter().map(stage).collect();
        format!("name = \"{name}\"\n{mode}\n{units}{stages}")
    };
    let (target, draft) = (("target", "t", "all"), ("draft", "d", "all"));
    let split = [("target", "t", "0..3"), ("target", "d", "3..8"), draft];
    let swapped = [("target", "d", "all"), ("draft", "t", "all")];
    let one = "[units.t]\nkind = \"sim\"\n";
    vec![
        PLAN.to_owned(),
        text("deep", "mode = \"overlap\"\ndraft_tokens = 7\nwait = 2", units, &[target, draft]),
        text("turns", "mode = \"sequential\"\ndraft_tokens = 3", units, &[target, draft]),
        text("plain", "mode = \"plain\"", one, &[target]),
        text("split", "mode = \"sequential\"\ndraft_tokens = 4", units, &split),
        text("swapped", "mode = \"overlap\"\ndraft_tokens = 4", units, &swapped),
        text("lookup", "mode = \"lookup\"\ndraft_tokens = 5", one, &[target]),
        text(
            "shared",
            "mode = \"sequential\"\ndraft_tokens = 2",
            one,
            &[target, ("draft", "t", "all")],
        ),
    ]
}

fn proposal(text: &str, expected: Option<u64>) -> Proposal {
    let expected = expected.map(PlanEpoch);
    Proposal { plan: plan(text), expected, reason: Reason::Operator }
}

async fn propose(engine: &Engine, text: &str) -> Result<SwapReport, SwapError> {
    engine.propose(proposal(text, None)).await
}

fn stale_replies(registry: &Registry) -> String {
    let name = "outrider_plan_stale_replies_total ";
    let text = registry.render();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
}

#[actix::test]
async fn texts_do_not_change_whatever_plans_they_are_written_under() {
    let world = world(vec![], vec![]).await.unwrap();
    let expected = answers(&world.engine).await;
    let plans = plans();
    for (index, after) in plans.iter().enumerate() {
        for before in &plans[..index] {
            propose(&world.engine, before).await.unwrap();
            let there_and_back = async {
                propose(&world.engine, after).await.unwrap();
                propose(&world.engine, before).await.unwrap();
            };
            let (found, ()) =
                futures_util::future::join(answers(&world.engine), there_and_back).await;
            assert_eq!(found, expected, "between\n{before}\nand\n{after}");
        }
    }
    world.engine.stop();
}

#[actix::test]
async fn a_change_of_mode_or_depth_installs_nothing() {
    let world = world(vec![], vec![]).await.unwrap();
    let deeper = PLAN.replace("draft_tokens = 4", "draft_tokens = 9");
    let foreseen = world.engine.preview(proposal(&deeper, Some(1))).await.unwrap();
    assert!(foreseen.diff.installs.is_empty() && foreseen.diff.evictions.is_empty());
    assert!(foreseen.diff.mode.is_some());
    let report = propose(&world.engine, &deeper).await.unwrap();
    assert_eq!(report.generation, PlanEpoch(2));
    assert_eq!(world.engine.plan().mode.draft_tokens(), 9);
    let same = propose(&world.engine, &deeper).await.unwrap();
    assert_eq!(same.generation, PlanEpoch(2), "the same plan again is no step");
    world.engine.stop();
}

#[actix::test]
async fn failed_install_keeps_the_old_plan() {
    let fault = Faults { out_of_memory_at_prepare: Some(2), ..Faults::default() };
    let world = world(vec![], vec![fault]).await.unwrap();
    let expected = answers(&world.engine).await;
    let swapped = &plans()[5];
    let (texts, failed) =
        futures_util::future::join(answers(&world.engine), propose(&world.engine, swapped)).await;
    assert!(matches!(failed, Err(SwapError::Install { .. })), "{failed:?}");
    assert_eq!(texts, expected);
    assert_eq!((world.engine.plan_view().epoch, &*world.engine.plan().name), (PlanEpoch(1), "sim"));
    assert_eq!(propose(&world.engine, swapped).await.unwrap().generation, PlanEpoch(2));
    assert_eq!(answers(&world.engine).await, expected);
    world.engine.stop();
}

/// A device that cannot compile, fatally.
struct Panicking;

impl Device for Panicking {
    fn descriptor(&self) -> outrider_devices::DeviceDescriptor {
        SimDevice::new(SimOptions::default(), Arc::new(RealDelay)).descriptor()
    }

    fn prepare(&mut self, _: &Subgraph, _: SlotLimits) -> Result<Box<dyn Executable>, DeviceError> {
        panic!("a bug in a compiler")
    }
}

#[actix::test]
async fn a_unit_that_dies_while_it_is_installed_costs_nothing() {
    let (good, _) = factory(vec![]);
    let mut options = EngineOptions::new(pair(), plan(PLAN), EngineLimits::default(), registry());
    options.factories = BTreeMap::from([
        (UnitId::new("t"), good.clone()),
        (UnitId::new("d"), good),
        (UnitId::new("x"), Arc::new(|| Ok(Box::new(Panicking) as Box<dyn Device>)) as _),
    ]);
    let engine = Engine::start(options).await.unwrap();
    let expected = answers(&engine).await;
    let doomed = PLAN.replace("units.d", "units.x").replace("unit = \"d\"", "unit = \"x\"");
    let (texts, failed) =
        futures_util::future::join(answers(&engine), propose(&engine, &doomed)).await;
    let error = failed.unwrap_err();
    assert!(!error.is_refusal() && error.to_string().contains("unit x"), "{error}");
    assert_eq!(texts, expected);
    assert_eq!(engine.plan_view().epoch, PlanEpoch(1));
    assert_eq!(propose(&engine, &plans()[4]).await.unwrap().generation, PlanEpoch(2));
    engine.stop();
}

#[actix::test]
async fn conflicting_puts_one_wins() {
    let world = world(vec![], vec![]).await.unwrap();
    let texts = plans();
    for round in 0..10 {
        let seen = world.engine.plan_view().epoch.0;
        let others = texts.iter().filter(|text| plan(text) != *world.engine.plan());
        let asked = others.map(|text| world.engine.propose(proposal(text, Some(seen))));
        let results = futures_util::future::join_all(asked).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "round {round}");
        for error in results.into_iter().filter_map(Result::err) {
            assert!(matches!(error, SwapError::Conflict { .. } | SwapError::Busy), "{error}");
        }
        assert_eq!(world.engine.plan_view().epoch.0, seen + 1);
    }
    world.engine.stop();
}

#[actix::test]
async fn a_plan_that_does_not_fit_beside_the_running_one_is_refused() {
    let (sim, _) = factory(vec![]);
    let mut options = EngineOptions::new(pair(), plan(PLAN), EngineLimits::default(), registry());
    options.factories = BTreeMap::from([(UnitId::new("t"), sim.clone()), (UnitId::new("d"), sim)]);
    options.memory_free = Arc::new(|| 1 << 20);
    let engine = Engine::start(options).await.unwrap();
    let large = "name = \"large\"\nmode = \"plain\"\n[units.r]\nkind = \"reference\"\n\
        [[target]]\nunit = \"r\"\nlayers = \"all\"\n";
    let refused = propose(&engine, large).await.unwrap_err();
    assert!(matches!(refused, SwapError::Memory { .. }), "{refused}");
    assert!(refused.to_string().contains("1.0 MiB are free"), "{refused}");
    assert_eq!(engine.plan_view().epoch, PlanEpoch(1));
    engine.stop();
}

#[actix::test]
async fn the_plan_before_can_be_had_back_and_history_says_why() {
    let world = world(vec![], vec![]).await.unwrap();
    assert_eq!(world.engine.roll_back().await.unwrap_err(), SwapError::NoEarlier);
    propose(&world.engine, &plans()[3]).await.unwrap();
    assert!(world.engine.propose(proposal(PLAN, Some(1))).await.is_err());
    assert_eq!(world.engine.roll_back().await.unwrap().generation, PlanEpoch(3));
    assert_eq!(world.engine.plan().name, "sim");
    let view = world.engine.plan_view();
    let entries = view.history.iter();
    let told: Vec<_> = entries
        .map(|entry| (entry.plan.name.as_str(), &entry.reason, entry.result.is_ok()))
        .collect();
    assert_eq!(
        told,
        [
            ("sim", &Reason::Start, true),
            ("plain", &Reason::Operator, true),
            ("sim", &Reason::Operator, false),
            ("sim", &Reason::Rollback, true),
        ]
    );
    assert_eq!(stale_replies(&world.registry), "0");
    let metrics = world.registry.render();
    assert!(metrics.contains("outrider_plan_swaps_total{result=\"committed\"} 2"), "{metrics}");
    assert!(metrics.contains("outrider_plan_swaps_total{result=\"refused\"} 1"), "{metrics}");
    world.engine.stop();
}

#[actix::test]
async fn a_unit_that_is_given_up_is_done_without_and_had_back_by_the_same_protocol() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    calm.engine.stop();
    let dies = Faults { lost_at_run: Some(3), ..Faults::default() };
    let (target, _) = factory(vec![dies; 2]);
    let (draft, _) = factory(vec![]);
    let mut options = EngineOptions::new(pair(), plan(PLAN), EngineLimits::default(), registry());
    options.factories = BTreeMap::from([(UnitId::new("t"), target), (UnitId::new("d"), draft)]);
    options.restart = RestartPolicy {
        restarts_max: 1,
        backoff: Duration::from_millis(1),
        recover_after: Some(Duration::from_millis(100)),
        ..RestartPolicy::default()
    };
    let engine = Engine::start(options).await.unwrap();
    assert_eq!(answers(&engine).await, expected);
    let started = Instant::now();
    while engine.plan_view().epoch < PlanEpoch(3) {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", engine.plan_view());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answers(&engine).await, expected);
    let view = engine.plan_view();
    assert!(view.gone.is_empty(), "{:?}", view.gone);
    let unit = || UnitId::new("t");
    let told: Vec<_> =
        view.history.iter().map(|entry| (&*entry.plan.name, &entry.reason)).collect();
    assert_eq!(
        told,
        [
            ("sim", &Reason::Start),
            ("sim-without-t", &Reason::Loss(unit())),
            ("sim", &Reason::Recovery(unit())),
        ]
    );
    engine.stop();
}

/// Text of no interest.
struct Mute;

impl Detokenize for Mute {
    fn push(&mut self, _: u32) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

#[actix::test]
async fn stale_replies_are_dropped() {
    use actix::prelude::Actor;
    let registry = registry();
    let limits = RoleLimits { rows_max: 8, positions_max: 64 };
    let config = SchedulerConfig {
        sequences_max: 1,
        queue_max: 1,
        target: limits,
        draft: limits,
        vocabulary: 16,
        end_of_text: Arc::new([0]),
        policy: DraftPolicy::plain(),
        units: Units::Separate,
        queue_tokens_max: 1 << 20,
        prefixes: Prefixes::Forget,
    };
    let scheduler = Scheduler::new(config, Box::new(|_| Box::new(Mute)));
    let metrics = (registry.speculation.clone(), registry.plan.clone());
    let coordinator = Coordinator::new(scheduler, registry.requests.clone(), metrics).start();
    for (ticket, role) in [(1, ModelRole::Target), (2, ModelRole::Draft)] {
        let (ticket, epoch) = (Ticket(ticket), PlanEpoch(1));
        let outcome = Ok(RoundOutcome::Picks(Vec::new()));
        coordinator.do_send(RoundDone { ticket, role, epoch, outcome });
    }
    assert_eq!(coordinator.send(Inspect).await.unwrap().running, 0);
    assert_eq!(stale_replies(&registry), "2");
}
