//! Plans of a running service, as operators change them: over HTTP, from the command line, by editing a file.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Service, outrider_fails, outrider_ok};

const PLAIN: &str = "name = \"by-hand\"\nmode = \"plain\"\n\n[units.cpu]\nkind = \"cpu\"\ncores = 1\n\n\
    [[target]]\nunit = \"cpu\"\nlayers = \"all\"\n";

const SENTENCE: &str = "The battery is almost empty. Connect the charger.";

/// Status and body of a PUT.
pub(crate) fn put(service: &Service, kind: &str, path: &str, body: &str) -> (u16, Value) {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent.put(service.url(path)).content_type(kind).send(body).unwrap();
    (answer.status().as_u16(), answer.body_mut().read_json().unwrap())
}

fn plan(service: &Service) -> Value {
    serde_json::from_str(&service.get("/v1/plan").1).unwrap()
}

fn text(service: &Service) -> Value {
    let body = json!({"messages": [{"role": "user", "content": SENTENCE}]});
    let (status, answer) = service.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].clone()
}

#[test]
fn a_plan_is_looked_at_changed_and_changed_back_over_http() {
    let service = Service::start(&["--mode", "sequential"]);
    let expected = text(&service);
    let before = plan(&service);
    assert_eq!((&before["generation"], &before["mode"]), (&json!(1), &json!("sequential")));

    let (status, foreseen) = put(&service, "application/toml", "/v1/plan?dry_run=true", PLAIN);
    assert_eq!(status, 200, "{foreseen}");
    assert!(foreseen["diff"]["mode"].is_array() && foreseen["changes"].is_string(), "{foreseen}");
    assert_eq!(plan(&service), before, "a dry run changes nothing");

    let toml = "application/toml";
    let (status, report) = put(&service, toml, "/v1/plan?expected_generation=1", PLAIN);
    assert_eq!((status, &report["generation"]), (200, &json!(2)), "{report}");
    assert_eq!(text(&service), expected);

    let (status, error) = put(&service, toml, "/v1/plan?expected_generation=1", PLAIN);
    assert_eq!((status, &error["error"]["code"]), (409, &json!("plan_conflict")));
    let (status, error) = put(&service, toml, "/v1/plan", &PLAIN.replace("plain", "fast"));
    assert_eq!(status, 400);
    assert!(error["error"]["message"].as_str().unwrap().contains("line 2"), "{error}");

    let mut again = before["plan"].clone();
    again["expected_generation"] = json!(2);
    let (status, report) = put(&service, "application/json", "/v1/plan", &again.to_string());
    assert_eq!((status, &report["id"]), (200, &before["id"]), "{report}");
    assert_eq!(text(&service), expected);

    let (status, report) = service.post("/v1/plan/rollback", &json!({}));
    assert_eq!((status, &report["plan"]), (200, &json!("by-hand")), "{report}");
    let history: Value = serde_json::from_str(&service.get("/v1/plan/history").1).unwrap();
    let results: Vec<_> =
        history["history"].as_array().unwrap().iter().map(|e| &e["result"]).collect();
    assert_eq!(results, ["committed", "committed", "refused", "committed", "committed"]);
    let (status, trace) = service.get("/v1/timeline");
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let named = |name: &str| {
        trace["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == name)
    };
    assert!(status == 200 && named("target[0..8]") && named("swap to by-hand"), "{trace}");
}

#[test]
fn a_plan_is_changed_from_the_command_line() {
    let service = Service::start(&["--mode", "sequential"]);
    let url = service.url("");
    let changes = outrider_ok(&["plan", "diff", "lookup-all-cores", "--url", &url]);
    assert!(changes.contains("+ lookup"), "{changes}");
    let applied = outrider_ok(&["plan", "apply", "lookup-all-cores", "--url", &url]);
    assert!(applied.contains("generation 2"), "{applied}");
    let refused = outrider_fails(&[
        "plan",
        "apply",
        "plain-all-cores",
        "--expected-generation",
        "1",
        "--url",
        &url,
    ]);
    assert!(refused.contains("generation 2 is running, not 1"), "{refused}");
    let back = outrider_ok(&["plan", "rollback", "--url", &url]);
    assert!(back.contains("generation 3"), "{back}");
    let history = outrider_ok(&["plan", "history", "--url", &url]);
    assert_eq!(history.lines().count(), 4, "{history}");
    let nobody = outrider_fails(&["plan", "history", "--url", "http://127.0.0.1:9"]);
    assert!(nobody.contains("is the service running there?"), "{nobody}");
}

fn await_generation(service: &Service, generation: u64) {
    let started = Instant::now();
    while plan(service)["generation"] != json!(generation) {
        assert!(started.elapsed() < Duration::from_secs(60), "{}", plan(service));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_edited_plan_file_is_applied_and_a_bad_edit_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    std::fs::write(&file, PLAIN).unwrap();
    let service = Service::start(&["--plan", file.to_str().unwrap(), "--watch"]);
    let expected = text(&service);
    let lookup = PLAIN.replace("\"plain\"", "\"lookup\"");
    std::fs::write(&file, &lookup).unwrap();
    await_generation(&service, 2);
    std::fs::write(&file, lookup.replace("cpu", "abacus")).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(plan(&service)["generation"], json!(2));
    assert_eq!(text(&service), expected);
    std::fs::write(&file, lookup.replace("by-hand", "by-hand-again")).unwrap();
    await_generation(&service, 3);
    assert_eq!(plan(&service)["name"], json!("by-hand-again"));
}

#[test]
fn a_hang_up_reads_the_plan_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    std::fs::write(&file, PLAIN).unwrap();
    let service = Service::start(&["--plan", file.to_str().unwrap()]);
    std::fs::write(&file, PLAIN.replace("\"plain\"", "\"lookup\"")).unwrap();
    assert_eq!(plan(&service)["generation"], json!(1));
    service.hang_up();
    await_generation(&service, 2);
    assert_eq!(plan(&service)["mode"], json!("lookup"));
}
