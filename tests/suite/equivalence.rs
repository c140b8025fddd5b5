//! The promise: speculative text is plain text, token for token, whatever the mode, the depth and the placement.

use std::sync::{Arc, OnceLock};

use outrider::engine::{Engine, EngineLimits, EngineOptions};
use outrider::pair::Pair;
use outrider::request::RequestEvent;
use outrider_devices::Sampling;
use outrider_observability::{BuildInfo, Registry};
use outrider_pipeline::scheduler::{FinishReason, GenerationParams};
use outrider_pipeline::{Message, ModelSource};
use outrider_plans::{ModelRole, PartitionPlan};

/// Sentences of the kinds that the pair was trained for, and some that it was not.
const SENTENCES: &[&str] = &[
    "Please restart the computer to finish the installation.",
    "I have never seen such a beautiful garden.",
    ">>en<<Die Datei konnte nicht geöffnet werden, weil sie von einem anderen Programm verwendet wird.",
    "To add a printer, open the settings, select Devices, and then choose the model of your printer from the list.",
    "Ω ≈ 3.14159; naïve façade — 日本語 🚀",
    "Close. Close. Close. Close. Close. Close.",
    "x",
];

pub(crate) fn registry() -> Arc<Registry> {
    let build = BuildInfo { version: "test".into(), target: "test".into() };
    Arc::new(Registry::new(build))
}

/// The shipped pair, loaded once for all tests.
pub(crate) fn pair() -> Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    let open = || {
        let draft = ModelSource::Shipped(ModelRole::Draft);
        Pair::open(&ModelSource::Shipped(ModelRole::Target), Some(&draft)).unwrap()
    };
    PAIR.get_or_init(open).clone()
}

/// A plan from text, for this machine and the shipped pair.
pub(crate) fn plan(text: &str) -> PartitionPlan {
    let context = EngineLimits::default().plan_context(&pair());
    PartitionPlan::from_toml(text, None, &context).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

pub(crate) fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 0.8, seed, ..Sampling::default() }
}

/// The tokens of one answer.
pub(crate) async fn tokens(engine: &Engine, text: &str, sampling: &Sampling) -> Vec<u32> {
    let prompt = engine.chat_prompt(&[Message { role: "user".into(), content: text.into() }]);
    let params = GenerationParams {
        sampling: sampling.clone(),
        max_tokens: Some(120),
        ..GenerationParams::default()
    };
    let (_, mut events) = engine.generate(prompt.unwrap(), params).await.unwrap();
    let mut ids = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            RequestEvent::Text { tokens, .. } => ids.extend(tokens.iter().map(|t| t.pick.token)),
            RequestEvent::Finished { reason, .. } => {
                assert!(matches!(reason, FinishReason::Stop | FinishReason::Length), "{reason:?}");
                return ids;
            }
        }
    }
    panic!("no end")
}

/// Every text of a plan: greedy, and sampled with two seeds; all at once, so that they share batches.
async fn texts(plan: PartitionPlan) -> Vec<Vec<u32>> {
    let options = EngineOptions::new(pair(), plan, EngineLimits::default(), registry());
    let engine = Engine::start(options).await.unwrap();
    let kinds = [Sampling::default(), sampled(1), sampled(2)];
    let asked = kinds
        .iter()
        .flat_map(|sampling| SENTENCES.iter().map(|sentence| tokens(&engine, sentence, sampling)));
    let texts = futures_util::future::join_all(asked).await;
    engine.stop();
    texts
}

/// A plan with everything on the first core, or with the target's and the draft's stages as told.
fn on_units(mode: &str, units: &[(&str, &str)], stages: &[(&str, &str, &str)]) -> PartitionPlan {
    let mut text = format!("name = \"test\"\n{mode}\n");
    for (unit, words) in units {
        text.push_str(&format!("[units.{unit}]\n{words}\n"));
    }
    for (role, unit, layers) in stages {
        text.push_str(&format!("[[{role}]]\nunit = \"{unit}\"\nlayers = \"{layers}\"\n"));
    }
    plan(&text)
}

const ONE: &[(&str, &str)] = &[("a", "kind = \"cpu\"\ncores = 1")];

fn whole(mode: &str) -> PartitionPlan {
    let draft = [("target", "a", "all"), ("draft", "a", "all")];
    let plain = mode.contains("plain");
    on_units(mode, ONE, if plain { &draft[..1] } else { &draft })
}

async fn same_as_plain(plans: Vec<PartitionPlan>) {
    same_as(whole("mode = \"plain\""), plans).await;
}

/// Every plan writes what `plain` writes.
async fn same_as(plain: PartitionPlan, plans: Vec<PartitionPlan>) {
    let expected = texts(plain).await;
    assert!(expected.iter().all(|text| !text.is_empty()));
    for plan in plans {
        let words = plan.to_toml();
        let found = texts(plan).await;
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "text {index} under\n{words}");
        }
    }
}

#[actix::test]
async fn sequential_text_is_plain_text_for_every_depth() {
    let mode = |g| whole(&format!("mode = \"sequential\"\ndraft_tokens = {g}"));
    same_as_plain((1..=8).map(mode).collect()).await;
}

#[actix::test]
async fn lookup_text_is_plain_text() {
    let alone = on_units("mode = \"lookup\"", ONE, &[("target", "a", "all")]);
    same_as_plain(vec![alone, whole("mode = \"lookup\"\ndraft_tokens = 6")]).await;
}

#[actix::test]
async fn overlapped_text_is_plain_text_whatever_is_awaited() {
    let units = [("a", "kind = \"cpu\"\ncores = 1"), ("b", "kind = \"reference\"")];
    let stages = [("target", "a", "all"), ("draft", "b", "all")];
    let mode = |(depth, wait)| {
        let words = format!("mode = \"overlap\"\ndraft_tokens = {depth}\nwait = {wait}");
        on_units(&words, &units, &stages)
    };
    same_as_plain([(1, 0), (3, 1), (4, 4), (8, 2)].map(mode).into()).await;
}

#[actix::test]
async fn text_of_a_split_target_is_the_text_of_the_whole() {
    if outrider::fleet::machine().cores.len() < 2 {
        eprintln!("skipped: a split over CPU units needs two cores");
        return;
    }
    let units = [("a", "kind = \"cpu\"\ncores = [0]"), ("b", "kind = \"cpu\"\ncores = [1]")];
    let split = |cut: usize| {
        let (first, rest) = (format!("0..{cut}"), format!("{cut}..8"));
        let target = [("target", "a", first.as_str()), ("target", "b", rest.as_str())];
        let with_draft = [target[0], target[1], ("draft", "b", "all")];
        vec![
            on_units("mode = \"plain\"", &units, &target),
            on_units("mode = \"sequential\"\ndraft_tokens = 3", &units, &with_draft),
            on_units("mode = \"overlap\"\ndraft_tokens = 4", &units, &with_draft),
        ]
    };
    same_as_plain([1, 4, 7].into_iter().flat_map(split).collect()).await;
}

#[actix::test]
async fn text_does_not_depend_on_the_number_of_cores() {
    let all = [("a", "kind = \"cpu\"\ncores = \"all\"")];
    let stages = [("target", "a", "all"), ("draft", "a", "all")];
    same_as_plain(vec![
        on_units("mode = \"plain\"", &all, &stages[..1]),
        on_units("mode = \"sequential\"\ndraft_tokens = 4", &all, &stages),
    ])
    .await;
}

/// A processor unit `a` and a GPU unit `g`.
const CPU_AND_GPU: &[(&str, &str)] = &[ONE[0], ("g", "kind = \"gpu\"\nadapter = 0")];

/// The modes with the target's stages and the draft where told, and plain decoding on the same target.
fn on_gpu(target: &[(&str, &str, &str)], draft: &str) -> (PartitionPlan, Vec<PartitionPlan>) {
    let used = |stages: &[(&str, &str, &str)]| {
        let used = |unit: &str| stages.iter().any(|stage| stage.1 == unit);
        CPU_AND_GPU.iter().copied().filter(|(unit, _)| used(unit)).collect::<Vec<_>>()
    };
    let stages: Vec<_> = target.iter().copied().chain([("draft", draft, "all")]).collect();
    let modes = [
        "mode = \"sequential\"\ndraft_tokens = 3",
        "mode = \"overlap\"\ndraft_tokens = 4\nwait = 1",
        "mode = \"lookup\"\ndraft_tokens = 6",
    ];
    let plain = on_units("mode = \"plain\"", &used(target), target);
    (plain, modes.map(|mode| on_units(mode, &used(&stages), &stages)).into())
}

#[actix::test]
async fn text_of_a_target_on_the_cpu_does_not_depend_on_a_draft_on_the_gpu() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let (plain, plans) = on_gpu(&[("target", "a", "all")], "g");
    same_as(plain, plans).await;
}

#[actix::test]
async fn text_of_a_target_on_the_gpu_does_not_depend_on_mode_or_draft() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let target = [("target", "g", "all")];
    let (plain, mut plans) = on_gpu(&target, "a");
    plans.extend(on_gpu(&target, "g").1);
    same_as(plain, plans).await;
}

#[actix::test]
async fn text_of_a_target_split_over_cpu_and_gpu_does_not_depend_on_mode_or_draft() {
    if crate::gpu::unit().is_none() {
        return;
    }
    for (first, rest) in [("a", "g"), ("g", "a")] {
        let target = [("target", first, "0..3"), ("target", rest, "3..8")];
        let (plain, mut plans) = on_gpu(&target, first);
        plans.extend(on_gpu(&target, rest).1.drain(..1));
        same_as(plain, plans).await;
    }
}
