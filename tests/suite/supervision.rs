//! Units that fail: one test per sentence that the architecture says about losses. On simulated units, with the shipped
//! pair's shapes; their texts mean nothing, but must not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outrider::engine::{Engine, EngineError, EngineLimits, EngineOptions};
use outrider::request::{Refusal, RequestEvent};
use outrider::supervisor::RestartPolicy;
use outrider::unit::DeviceFactory;
use outrider_devices::sim::{Faults, Follower, Latency, RealDelay, SimDevice, SimOptions};
use outrider_devices::{Device, DeviceError, Executable, SlotLimits, Subgraph};
use outrider_observability::Registry;
use outrider_pipeline::scheduler::{FinishReason, GenerationParams};
use outrider_plans::UnitId;

use crate::equivalence::{pair, plan, registry};

pub(crate) const PLAN: &str = "name = \"sim\"\nmode = \"overlap\"\ndraft_tokens = 4\n\
    [units.t]\nkind = \"sim\"\n[units.d]\nkind = \"sim\"\n\
    [[target]]\nunit = \"t\"\nlayers = \"all\"\n[[draft]]\nunit = \"d\"\nlayers = \"all\"\n";

/// A unit that takes its time, so that a fault hits in the middle of things.
pub(crate) fn unit(faults: Faults) -> SimOptions {
    let latency = Latency { subgraph: String::new(), run_ns: 200_000, layer_ns: Vec::new() };
    let follower = Follower { subgraph: "draft".into(), agreement: 0.8, seed: 5 };
    SimOptions {
        latencies: vec![latency],
        followers: vec![follower],
        faults,
        ..SimOptions::default()
    }
}

/// A factory whose n-th device has the n-th faults, and those after the last none.
pub(crate) fn factory(faults: Vec<Faults>) -> (DeviceFactory, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let factory: DeviceFactory = Arc::new(move || {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let options = unit(faults.get(number).copied().unwrap_or_default());
        Ok(Box::new(SimDevice::new(options, Arc::new(RealDelay))) as Box<dyn Device>)
    });
    (factory, made)
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) registry: Arc<Registry>,
    targets_made: Arc<AtomicUsize>,
    drafts_made: Arc<AtomicUsize>,
}

pub(crate) async fn world(target: Vec<Faults>, draft: Vec<Faults>) -> Result<World, EngineError> {
    world_of(PLAN, target, draft).await
}

/// As [`world`], under another plan of the same units.
async fn world_of(
    text: &str,
    target: Vec<Faults>,
    draft: Vec<Faults>,
) -> Result<World, EngineError> {
    let registry = registry();
    let (target, targets_made) = factory(target);
    let (draft, drafts_made) = factory(draft);
    let limits = EngineLimits::default();
    let mut options = EngineOptions::new(pair(), plan(text), limits, Arc::clone(&registry));
    options.factories = BTreeMap::from([(UnitId::new("t"), target), (UnitId::new("d"), draft)]);
    options.restart = RestartPolicy {
        restarts_max: 3,
        window: Duration::from_secs(60),
        backoff: Duration::from_millis(1),
        hang_after: Duration::from_secs(4),
        recover_after: None,
    };
    let engine = Engine::start(options).await?;
    Ok(World { engine, registry, targets_made, drafts_made })
}

pub(crate) async fn answer(
    engine: &Engine,
    first: u32,
) -> Result<(Vec<u32>, FinishReason), Refusal> {
    let prompt = (first..first + 9).collect();
    let params =
        GenerationParams { max_tokens: Some(60), ignore_eos: true, ..GenerationParams::default() };
    let (_, mut events) = engine.generate(prompt, params).await?;
    let mut ids = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            RequestEvent::Text { tokens, .. } => ids.extend(tokens.iter().map(|t| t.pick.token)),
            RequestEvent::Finished { reason, .. } => return Ok((ids, reason)),
        }
    }
    panic!("a request was lost")
}

pub(crate) async fn answers(engine: &Engine) -> Vec<Vec<u32>> {
    let asked = (0..4).map(|i| answer(engine, 100 + 50 * i));
    let answers = futures_util::future::join_all(asked).await;
    answers
        .into_iter()
        .map(|answer| {
            let (ids, reason) = answer.unwrap();
            assert_eq!((ids.len(), reason), (60, FinishReason::Length));
            ids
        })
        .collect()
}

fn lost_at(run: u64) -> Faults {
    Faults { lost_at_run: Some(run), ..Faults::default() }
}

fn lost_count(registry: &Registry, unit: &str) -> String {
    let text = registry.render();
    let name = format!("outrider_device_lost_total{{device=\"{unit}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0").to_owned()
}

#[actix::test]
async fn a_lost_target_unit_is_rebuilt_and_no_text_changes() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    for run in [1, 2, 7, 20] {
        let world = world(vec![lost_at(run)], vec![]).await.unwrap();
        assert_eq!(answers(&world.engine).await, expected, "lost at run {run}");
        assert_eq!(world.targets_made.load(Ordering::SeqCst), 2);
        assert_eq!(world.drafts_made.load(Ordering::SeqCst), 1);
        assert_eq!(lost_count(&world.registry, "t"), "1");
        assert_eq!(world.engine.health().await, Ok(()));
        world.engine.stop();
    }
    calm.engine.stop();
}

#[actix::test]
async fn a_lost_draft_unit_is_rebuilt_and_no_text_changes() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    for run in [1, 9, 30] {
        let world = world(vec![], vec![lost_at(run), lost_at(run)]).await.unwrap();
        assert_eq!(answers(&world.engine).await, expected, "lost at run {run}");
        assert!(world.drafts_made.load(Ordering::SeqCst) >= 2);
        assert_eq!(world.targets_made.load(Ordering::SeqCst), 1);
        world.engine.stop();
    }
    calm.engine.stop();
}

#[actix::test]
async fn a_target_unit_that_keeps_dying_is_done_without_and_no_request_is_lost() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    let world = world(vec![lost_at(3); 20], vec![]).await.unwrap();
    assert_eq!(answers(&world.engine).await, expected);
    assert_eq!(world.targets_made.load(Ordering::SeqCst), 4, "the first and three rebuilds");
    let view = world.engine.plan_view();
    assert_eq!(view.plan.name, "sim-without-t");
    assert_eq!(view.gone, [UnitId::new("t")]);
    assert_eq!(world.engine.health().await, Ok(()));
    world.engine.stop();
    calm.engine.stop();
}

#[actix::test]
async fn where_no_plan_does_without_a_unit_requests_are_told() {
    let alone = PLAN.replace("unit = \"d\"", "unit = \"t\"").replace("overlap", "sequential");
    let alone = alone.replace("[units.d]\nkind = \"sim\"\n", "");
    let world = world_of(&alone, vec![lost_at(3); 20], vec![]).await.unwrap();
    let (_, reason) = answer(&world.engine, 1).await.unwrap();
    let FinishReason::Failed { reason } = reason else { panic!("{reason:?}") };
    assert!(reason.contains("unit t"), "{reason}");
    assert!(world.engine.health().await.unwrap_err().contains("unit t"));
    let refusal = answer(&world.engine, 1).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal}");
    world.engine.stop();
}

#[actix::test]
async fn a_unit_that_hangs_is_taken_for_lost_and_no_text_changes() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    let hangs = Faults { hang_at_run: Some(7), ..Faults::default() };
    let world = world(vec![hangs], vec![hangs]).await.unwrap();
    assert_eq!(answers(&world.engine).await, expected);
    assert!(world.targets_made.load(Ordering::SeqCst) >= 2);
    assert_ne!(lost_count(&world.registry, "t"), "0");
    world.engine.stop();
    calm.engine.stop();
}

#[actix::test]
async fn without_its_draft_unit_decoding_goes_on() {
    let calm = world(vec![], vec![]).await.unwrap();
    let expected = answers(&calm.engine).await;
    let world = world(vec![], vec![lost_at(2); 20]).await.unwrap();
    assert_eq!(answers(&world.engine).await, expected);
    assert_eq!(answers(&world.engine).await, expected, "and later requests, too");
    assert_eq!(world.engine.health().await, Ok(()));
    world.engine.stop();
    calm.engine.stop();
}

#[actix::test]
async fn a_stage_that_does_not_fit_is_said_at_start() {
    let fault = Faults { out_of_memory_at_prepare: Some(1), ..Faults::default() };
    let error = world(vec![fault], vec![]).await.err().unwrap().to_string();
    assert!(error.contains("unit t") && error.contains("memory"), "{error}");
}

/// A device whose first run panics, as a bug in a kernel would.
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
async fn a_panic_in_a_device_is_the_loss_of_the_device_and_nothing_more() {
    let (draft, _) = factory(vec![]);
    let target: DeviceFactory = Arc::new(|| Ok(Box::new(Panicking) as Box<dyn Device>));
    let limits = EngineLimits::default();
    let mut options = EngineOptions::new(pair(), plan(PLAN), limits, registry());
    options.factories = BTreeMap::from([(UnitId::new("t"), target), (UnitId::new("d"), draft)]);
    let error = Engine::start(options).await.err().unwrap().to_string();
    assert!(error.contains("unit t") && error.contains("a bug in a compiler"), "{error}");
}
