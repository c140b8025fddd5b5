//! Models that change while requests run: another draft changes no text, another target writes those of new requests only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outrider::engine::{EngineLimits, EngineOptions};
use outrider::office::Office;
use outrider_pipeline::scheduler::FinishReason;
use outrider_plans::{PlanEpoch, Proposal, Reason, SwapError};
use serde_json::{Value, json};

use crate::equivalence::{pair, plan, registry};
use crate::process::{Service, outrider_ok};
use crate::supervision::answer;
use crate::swap_http::put;

const SENTENCE: &str = "To add a printer, open the settings, select Devices, and then choose the model of your printer.";

/// The file of one of the shipped models: as another model, since it is not the one that the service was started with.
pub(crate) fn file(role: &str) -> String {
    let format = if role == "draft" { "q4_0" } else { "q8_0" };
    format!("{}/../pipeline/models/en-de/{role}-{format}.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// A plan on one core, with models as told.
fn on_one_core(name: &str, mode: &str, models: &str) -> String {
    let draft = if mode == "plain" { "" } else { "[[draft]]\nunit = \"cpu\"\nlayers = \"all\"\n" };
    format!(
        "name = \"{name}\"\nmode = \"{mode}\"\n[models]\n{models}\n[units.cpu]\nkind = \"cpu\"\ncores = 1\n\
         [[target]]\nunit = \"cpu\"\nlayers = \"all\"\n{draft}"
    )
}

fn apply(service: &Service, plan: &str) -> Value {
    let (status, report) = put(service, "application/toml", "/v1/plan", plan);
    assert_eq!(status, 200, "{report}");
    report
}

fn model(service: &Service) -> Value {
    let listed: Value = serde_json::from_str(&service.get("/v1/models").1).unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    listed["data"][0].clone()
}

fn ask(service: &Service) -> Value {
    let body = json!({"messages": [{"role": "user", "content": SENTENCE}]});
    let (status, answer) = service.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].clone()
}

#[test]
fn another_draft_changes_no_text_of_requests_that_run_on() {
    let service = Service::start(&["--mode", "sequential", "--draft-tokens", "4"]);
    let body = json!({"messages": [{"role": "user", "content": SENTENCE}]});
    let count = |answer: &Value, field: &str| answer["timings"][field].as_u64().unwrap();
    // The shipped draft is not always right, by which it is told from its twin.
    let wrong = |a: &Value| count(a, "draft_n_accepted") < count(a, "draft_n");
    let answers = service.answers_until("/v1/chat/completions", &body, wrong);
    let expected = answers[0]["choices"][0]["message"]["content"].clone();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(ask(&service), expected);
                }
            });
        }
        for round in 0..4 {
            let name = format!("twin-{round}");
            // The target's own file, so that every draft is right, and the first draft again.
            let twin = format!("draft = \"{}\"", file("target"));
            apply(&service, &on_one_core(&name, "sequential", &twin));
            assert_eq!(model(&service)["draft"], "target-q8_0");
            apply(&service, &on_one_core("again", "sequential", "draft = \"shipped\""));
            assert_eq!(model(&service)["draft"], "outrider-en-de-draft");
        }
        over.store(true, Ordering::SeqCst);
    });
    let twin = format!("draft = \"{}\"", file("target"));
    apply(&service, &on_one_core("twin", "sequential", &twin));
    // The twin is as slow as its target: for the most part the guard lets it rest.
    let drafted = |answer: &Value| count(answer, "draft_n") > 0;
    for answer in service.answers_until("/v1/chat/completions", &body, drafted) {
        assert_eq!(answer["choices"][0]["message"]["content"], expected);
        assert_eq!(count(&answer, "draft_n"), count(&answer, "draft_n_accepted"), "{answer}");
    }
    // A plan that names no models keeps those that run, also one without a draft.
    apply(&service, &on_one_core("alone", "plain", ""));
    apply(&service, &on_one_core("with", "sequential", ""));
    assert_eq!(model(&service)["draft"], "target-q8_0");
    let (status, back) = service.post("/v1/plan/rollback", &json!({}));
    assert_eq!((status, &back["plan"]), (200, &json!("alone")));
}

/// The text of a chat as it comes, told to `begun` after its first words.
fn stream(service: &Service, begun: impl FnOnce()) -> (String, String) {
    use std::io::{BufRead, BufReader};
    let body = json!({
        "messages": [{"role": "user", "content": SENTENCE}],
        "stream": true, "max_tokens": 300, "ignore_eos": true,
    });
    let answer = ureq::post(service.url("/v1/chat/completions")).send_json(&body).unwrap();
    let mut begun = Some(begun);
    let (mut text, mut model) = (String::new(), String::new());
    for line in BufReader::new(answer.into_body().into_reader()).lines() {
        let line = line.unwrap();
        let Some(event) = line.strip_prefix("data: ").filter(|event| *event != "[DONE]") else {
            continue;
        };
        let event: Value = serde_json::from_str(event).unwrap();
        model = event["model"].as_str().unwrap().to_owned();
        text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if let Some(begun) = begun.take_if(|_| text.len() > 20) {
            begun();
        }
    }
    (text, model)
}

#[test]
fn another_target_writes_new_requests_and_those_that_run_end_on_their_own() {
    let draft = file("draft");
    let other = Service::start(&["--target", &draft, "--mode", "plain"]);
    let theirs = ask(&other);
    drop(other);
    let service = Service::start(&["--mode", "sequential"]);
    let ours = ask(&service);
    assert_ne!(ours, theirs, "the models are too alike for this test");
    let (long, _) = stream(&service, || {});

    let named = on_one_core("small", "plain", &format!("target = \"{draft}\""));
    let (found, name) = stream(&service, || {
        let foreseen = put(&service, "application/toml", "/v1/plan?dry_run=true", &named).1;
        assert_eq!(foreseen["caches"]["target"], "fresh", "{foreseen}");
        assert!(foreseen["changes"].as_str().unwrap().contains("draft-q4_0.gguf"), "{foreseen}");
        assert_eq!(apply(&service, &named)["generation"], 2);
        assert_eq!(ask(&service), theirs, "a new request asks the new target");
    });
    assert_eq!(found, long, "what had begun was not finished as it began");
    assert_eq!(name, "outrider-en-de");
    assert_eq!(model(&service)["id"], "draft-q4_0");

    let (status, report) = service.post("/v1/plan/rollback", &json!({}));
    assert_eq!((status, &report["generation"]), (200, &json!(3)), "{report}");
    assert_eq!(ask(&service), ours);
    let history = outrider_ok(&["plan", "history", "--url", &service.url("")]);
    assert_eq!(history.lines().count(), 3, "{history}");
    let metrics = service.get("/metrics").1;
    assert!(metrics.contains("outrider_plan_swaps_total{result=\"committed\"} 2"), "{metrics}");
    let trace = service.get("/v1/timeline").1;
    assert!(trace.contains("swap to small"), "{trace}");
}

#[test]
fn models_that_are_no_pair_or_no_models_are_refused_by_name() {
    let service = Service::start(&["--mode", "sequential"]);
    let expected = ask(&service);
    let folder = tempfile::tempdir().unwrap();
    // One token is spelt otherwise: its length and its letters stand one after the other.
    let mut bytes = std::fs::read(file("draft")).unwrap();
    let token = b"\x06\0\0\0\0\0\0\0>>de<<";
    let at = bytes.windows(token.len()).position(|window| window == token).unwrap();
    bytes[at..at + token.len()].copy_from_slice(b"\x06\0\0\0\0\0\0\0>>fr<<");
    let strange = folder.path().join("strange.gguf");
    std::fs::write(&strange, bytes).unwrap();
    let refused = |models: &str, said: &str| {
        let plan = on_one_core("wrong", "sequential", models);
        let (status, error) = put(&service, "application/toml", "/v1/plan", &plan);
        let words = error["error"]["message"].as_str().unwrap();
        assert!(status == 400 && words.contains(said), "{status} {words}");
    };
    refused(&format!("draft = \"{}\"", strange.display()), "a pair needs one vocabulary");
    refused("draft = \"/no/such.gguf\"", "/no/such.gguf");
    refused("target = \"/no/such.gguf\"", "/no/such.gguf");
    refused("targte = \"x\"", "unknown key `targte`");
    assert_eq!(ask(&service), expected);
    let running: Value = serde_json::from_str(&service.get("/v1/plan").1).unwrap();
    assert_eq!(running["generation"], 1);
}

#[actix::test]
async fn another_target_that_does_not_fit_beside_the_running_one_is_refused() {
    let first = on_one_core("first", "plain", "");
    let mut options = EngineOptions::new(pair(), plan(&first), EngineLimits::default(), registry());
    let free = Arc::new(std::sync::atomic::AtomicU64::new(1 << 40));
    let told = Arc::clone(&free);
    options.memory_free = Arc::new(move || told.load(Ordering::SeqCst));
    let office = Office::open(options).await.unwrap();
    let engine = office.engine();
    let named = on_one_core("small", "plain", &format!("target = \"{}\"", file("draft")));
    let proposal = Proposal {
        plan: engine.read_plan(&named, None).await.unwrap(),
        expected: Some(PlanEpoch(1)),
        reason: Reason::Operator,
    };
    free.store(1 << 20, Ordering::SeqCst);
    let refused = engine.propose(proposal.clone()).await.unwrap_err();
    assert!(matches!(refused, SwapError::Memory { .. }), "{refused}");
    free.store(1 << 40, Ordering::SeqCst);
    assert_eq!(engine.propose(proposal).await.unwrap().generation, PlanEpoch(2));
    assert!(!office.engine().plan().models.are_the_first());
    // Whoever still holds the one before is served by it, and told so if it wants to change its plan.
    let (ids, reason) = answer(&engine, 100).await.unwrap();
    assert_eq!((ids.len(), reason), (60, FinishReason::Length));
    let late = Proposal { plan: plan(&first), expected: None, reason: Reason::Operator };
    assert_eq!(engine.propose(late).await.unwrap_err(), SwapError::Busy);
    office.stop();
}
