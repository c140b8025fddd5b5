//! The real actors on simulated units, all on one thread, from one seed: delays of every reply, losses, installations that
//! fail, clients that leave, plans that change. Time is counted in turns of the thread's tasks and no clock is read, so a
//! seed happens again as it happened.
//!
//! *Invariant:* no request is lost, no token is wrong, and no device outlives the plan that needed it. A failing seed is run
//! again by itself with
//! `OUTRIDER_SEED=<seed> cargo test --release -p outrider-tests --test suite simulation_actors::one_world -- --ignored --nocapture`

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use outrider::engine::{Engine, EngineLimits, EngineOptions, Home, Standing};
use outrider::request::RequestEvent;
use outrider::supervisor::RestartPolicy;
use outrider::unit::{DeviceFactory, Workplace};
use outrider_devices::sim::{Faults, RecordedDelay, SimDevice};
use outrider_devices::{Batch, CacheFormat, Device, Output, Segment, SequenceId, SlotLimits, Want};
use outrider_pipeline::scheduler::{FinishReason, GenerationParams};
use outrider_plans::{
    ModelRole, PartitionPlan, PlanContext, PlanEpoch, Proposal, Reason, StageId, UnitId,
};

use crate::equivalence::{pair, registry};
use crate::supervision::unit;
use crate::swap::plans;
use crate::swap_storm::Counted;
use crate::worlds::{Random, play_all};

const TOKENS: usize = 16;
const PROMPTS: u64 = 6;

/// What all worlds share, because it takes long to make.
struct Scenery {
    context: PlanContext,
    plans: Vec<PartitionPlan>,
    texts: Vec<Vec<u32>>,
}

fn prompt(number: u64) -> Vec<u32> {
    let first = 100 + 50 * number as u32;
    (first..first + 3 + 20 * number as u32).collect()
}

fn scenery() -> &'static Scenery {
    static SCENERY: OnceLock<Scenery> = OnceLock::new();
    SCENERY.get_or_init(|| {
        let context = EngineLimits::default().plan_context(&pair());
        let checked = |text: &String| PartitionPlan::from_toml(text, None, &context).unwrap();
        let plans = plans().iter().map(checked).collect();
        Scenery { context, plans, texts: (0..PROMPTS).map(plain).collect() }
    })
}

/// The text that the target alone writes, straight from the simulated device.
fn plain(number: u64) -> Vec<u32> {
    let mut device = SimDevice::new(unit(Faults::default()), Arc::new(RecordedDelay::default()));
    let layers = pair().target.config().shape.layers;
    let stage = StageId { role: ModelRole::Target, layer_first: 0, layer_end: layers };
    let limits =
        SlotLimits { sequences_max: 1, positions_max: 512, rows_max: 512, cache: CacheFormat::F16 };
    let mut whole = device.prepare(&pair().subgraph(stage), limits).unwrap();
    let (mut base, mut tokens, mut text) = (0, prompt(number), Vec::new());
    while text.len() < TOKENS {
        let segment = Segment {
            sequence: SequenceId(1),
            base,
            tokens: tokens.clone(),
            want: Want::Picks(1),
            sampling: Arc::default(),
        };
        let Output::Picked(picked) = whole.run(&Batch { segments: vec![segment] }, None).unwrap()
        else {
            panic!("a whole model picks")
        };
        base += tokens.len() as u32;
        tokens = vec![picked.picks[0].token];
        text.extend(&tokens);
    }
    text
}

fn frail(seed: u64, alive: &Arc<AtomicU64>) -> DeviceFactory {
    let (made, alive) = (AtomicU64::new(0), Arc::clone(alive));
    Arc::new(move || {
        let number = made.fetch_add(1, Ordering::SeqCst);
        let mut random = Random(seed ^ (number << 32));
        let faults = match random.below(5) {
            0 => Faults { lost_at_run: Some(3 + random.below(60)), ..Faults::default() },
            1 if number > 0 => {
                Faults { out_of_memory_at_prepare: Some(2 + random.below(3)), ..Faults::default() }
            }
            _ => Faults::default(),
        };
        let device = SimDevice::new(unit(faults), Arc::new(RecordedDelay::default()));
        Ok(Box::new(Counted::new(device, &alive)) as Box<dyn Device>)
    })
}

async fn turns(count: u64) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

async fn client(engine: &Engine, seed: u64) {
    let mut random = Random(seed);
    turns(random.below(300)).await;
    let number = random.below(PROMPTS);
    let count = 1 + random.below(TOKENS as u64) as usize;
    let leaves_after = (random.below(6) == 0).then(|| random.below(6));
    let params = GenerationParams {
        max_tokens: Some(count as u32),
        ignore_eos: true,
        ..GenerationParams::default()
    };
    let (_, mut events) = engine.generate(prompt(number), params).await.unwrap();
    let expected = &scenery().texts[number as usize][..count];
    let (mut written, mut heard) = (Vec::new(), 0);
    while let Some(event) = events.recv().await {
        heard += 1;
        match event {
            RequestEvent::Text { tokens, .. } => {
                written.extend(tokens.iter().map(|token| token.pick.token));
                assert_eq!(written, expected[..written.len()], "a wrong token");
            }
            RequestEvent::Finished { reason, .. } => {
                assert_eq!((reason, written.len()), (FinishReason::Length, count));
                return;
            }
        }
        if leaves_after.is_some_and(|most| heard > most) {
            return;
        }
    }
    panic!("a request was lost")
}

async fn operator(engine: &Engine, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut committed = 0;
    for _ in 0..random.below(7) {
        turns(random.below(200)).await;
        let plan = scenery().plans[random.below(scenery().plans.len() as u64) as usize].clone();
        let seen = engine.plan_view().epoch;
        let expected = match random.below(3) {
            0 => None,
            1 => Some(seen),
            _ => Some(PlanEpoch(seen.0 - u64::from(random.below(2) == 0))),
        };
        let late = expected.is_some_and(|expected| expected < seen);
        let result = engine.propose(Proposal { plan, expected, reason: Reason::Operator }).await;
        assert!(!late || result.is_err(), "a late proposal was taken up");
        committed += u64::from(result.is_ok());
    }
    committed
}

async fn world(seed: u64) -> u64 {
    let mut random = Random(seed);
    let Scenery { context, plans, .. } = scenery();
    let alive = Arc::new(AtomicU64::new(0));
    let factory = |salt: u64| frail(seed.wrapping_mul(31) + salt, &alive);
    let delays = Mutex::new(Random(random.next()));
    let slowness = 1 + random.below(24);
    let options = EngineOptions {
        pair: pair(),
        plan: plans[random.below(plans.len() as u64) as usize].clone(),
        limits: EngineLimits::default(),
        registry: registry(),
        factories: BTreeMap::from([(UnitId::new("t"), factory(1)), (UnitId::new("d"), factory(2))]),
        context: context.clone(),
        memory_free: Arc::new(|| 1 << 40),
        workplace: Workplace::Inline(Arc::new(move |_| {
            Some(delays.lock().unwrap().below(slowness) as u32)
        })),
        home: Home::Current,
        restart: RestartPolicy {
            restarts_max: usize::MAX,
            window: Duration::from_secs(3600),
            backoff: Duration::ZERO,
            recover_after: None,
            ..RestartPolicy::default()
        },
        guarding: outrider_pipeline::Guarding::Off,
        timings: None,
        standing: Standing::default(),
    };
    let engine = Engine::start(options).await.unwrap();
    let clients = (0..2 + random.below(4)).map(|_| random.next()).collect::<Vec<_>>();
    let clients = clients.into_iter().map(|seed| client(&engine, seed));
    let asked = futures_util::future::join_all(clients);
    let (_, committed) = futures_util::future::join(asked, operator(&engine, random.next())).await;
    let mut waited = 0;
    while alive.load(Ordering::SeqCst) != engine.plan().units.len() as u64
        || engine.health().await.is_err()
    {
        turns(10).await;
        waited += 1;
        assert!(waited < 10_000, "{} devices are left", alive.load(Ordering::SeqCst));
    }
    committed
}

fn play(seed: u64) -> u64 {
    actix::System::new().block_on(world(seed))
}

/// Worlds to try: 200, or as `OUTRIDER_WORLDS` says.
fn worlds() -> u64 {
    std::env::var("OUTRIDER_WORLDS").map_or(10_000, |n| n.parse().unwrap())
}

#[test]
fn ten_thousand_worlds_of_real_actors_lose_nothing() {
    let swaps: u64 = play_all(("simulation_actors", worlds()), play).into_iter().sum();
    eprintln!("{} worlds, {swaps} swaps", worlds());
    assert!(swaps > worlds(), "hardly a swap happened");
}

#[test]
#[ignore = "replays one seed"]
fn one_world() {
    play(std::env::var("OUTRIDER_SEED").map_or(0, |n| n.parse().unwrap()));
}
