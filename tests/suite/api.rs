//! The HTTP API in detail: several answers, marked tokens, text tools, request names, open requests, its description.

use serde_json::{Value, json};

use crate::frailty::Frailty;
use crate::process::{Service, read_until};

const CHAT: &str = "/v1/chat/completions";
const ENDLESS: &str = ">>de<<one two three<sep>";

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}]})
}

fn parts(service: &Service, path: &str, body: &Value) -> Vec<Value> {
    let mut events = service.stream(path, body);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn n_answers_come_from_n_seeds() {
    let service = Service::start(&[]);
    let mut body = chat("Where is the nearest train station?");
    body["temperature"] = json!(1.0);
    body["seed"] = json!(5);
    body["n"] = json!(3);
    let (status, answer) = service.post(CHAT, &body);
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    let mut tokens = 0;
    for (index, choice) in choices.iter().enumerate() {
        let mut alone = body.clone();
        alone["n"] = json!(1);
        alone["seed"] = json!(5 + index);
        let (_, alone) = service.post(CHAT, &alone);
        assert_eq!(alone["choices"][0]["message"], choice["message"], "answer {index}");
        tokens += alone["usage"]["completion_tokens"].as_u64().unwrap();
    }
    assert_eq!(answer["usage"]["completion_tokens"], tokens);

    body["stream"] = json!(true);
    let mut streamed = vec![String::new(); 3];
    let mut ends = 0;
    for part in parts(&service, CHAT, &body) {
        let choice = &part["choices"][0];
        let text = choice["delta"]["content"].as_str().unwrap_or("");
        streamed[choice["index"].as_u64().unwrap() as usize] += text;
        ends += usize::from(choice["finish_reason"].is_string());
    }
    assert_eq!(ends, 3);
    let whole = choices.iter().map(|c| c["message"]["content"].as_str().unwrap());
    assert_eq!(streamed, whole.collect::<Vec<_>>());
}

#[test]
fn tokens_are_marked_as_drafted_or_the_targets_own() {
    let service = Service::start(&[]);
    let mut body = chat("The battery is almost empty. Connect the charger.");
    body["speculative"] = json!({"mark_tokens": true});
    let accepted = |a: &Value| a["timings"]["draft_n_accepted"].as_u64().unwrap() > 0;
    let answers = service.answers_until(CHAT, &body, accepted);
    let answer = answers.last().unwrap();
    let tokens = answer["choices"][0]["tokens"].as_array().unwrap();
    let drafted = tokens.iter().filter(|token| token["drafted"] == true).count() as u64;
    assert!(drafted > 0 && drafted < tokens.len() as u64, "{answer}");
    assert!(drafted <= answer["timings"]["draft_n_accepted"].as_u64().unwrap());
    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(text, answer["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());

    body["stream"] = json!(true);
    let parts = parts(&service, CHAT, &body);
    let lists = parts.iter().filter_map(|part| part["choices"][0]["tokens"].as_array());
    assert_eq!(lists.flatten().count(), tokens.len());
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let service = Service::start(&[]);
    let text = "Grüße, straße!";
    let (status, answer) = service.post("/tokenize", &json!({"content": text}));
    assert_eq!(status, 200, "{answer}");
    let (_, back) = service.post("/detokenize", &answer);
    assert_eq!(back["content"], text);
    let (_, pieces) = service.post("/tokenize", &json!({"content": text, "with_pieces": true}));
    let ids = pieces["tokens"].as_array().unwrap().iter().map(|piece| piece["id"].clone());
    assert_eq!(Value::from_iter(ids), answer["tokens"]);
    let (status, error) = service.post("/detokenize", &json!({"tokens": [9_999_999]}));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("tokens")), "{error}");
}

#[test]
fn the_template_is_applied_as_chat_applies_it() {
    let service = Service::start(&[]);
    let (status, answer) = service.post("/apply-template", &chat("I know."));
    assert_eq!(status, 200, "{answer}");
    let (_, raw) = service.post("/v1/completions", &json!({"prompt": answer["prompt"]}));
    let (_, spoken) = service.post(CHAT, &chat("I know."));
    assert_eq!(raw["choices"][0]["text"], spoken["choices"][0]["message"]["content"]);
    assert_eq!(service.post("/apply-template", &json!({"messages": []})).0, 400);
}

#[test]
fn a_request_keeps_the_name_that_its_client_gave_it() {
    let service = Service::start(&[]);
    let name = |given: &[(&str, &str)]| {
        let (status, headers, _) = service.send("GET", "/health", given, "");
        assert_eq!(status, 200);
        headers["x-request-id"].clone()
    };
    assert_eq!(name(&[("x-request-id", "trace-7")]), "trace-7");
    let (one, other) = (name(&[]), name(&[]));
    assert!(one.starts_with("req-") && one != other, "{one} {other}");
    assert!(name(&[("x-request-id", &"x".repeat(500))]).starts_with("req-"));
    let (status, headers, _) = service.send("GET", "/nowhere", &[("x-request-id", "lost")], "");
    assert_eq!((status, headers["x-request-id"].as_str()), (404, "lost"));
}

#[test]
fn open_requests_are_listed_and_can_be_ended() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--parallel", "2"]);
    let body = json!({"prompt": ENDLESS, "stream": true, "ignore_eos": true, "max_tokens": 480});
    let mut one = service.open("/v1/completions", &body);
    let mut other = service.open("/v1/completions", &body);
    read_until(&mut one, "data: ");
    let first = read_until(&mut other, "data: ");
    let listed = || -> Vec<Value> {
        let answer: Value = serde_json::from_str(&service.get("/v1/requests").1).unwrap();
        answer["requests"].as_array().unwrap().clone()
    };
    let open = listed();
    assert_eq!(open.len(), 2, "{open:?}");
    let id = open.iter().map(|entry| entry["id"].as_str().unwrap());
    let id = id.into_iter().find(|id| first.contains(id)).unwrap().to_owned();
    let (status, _, answer) = service.send("DELETE", &format!("/v1/requests/{id}"), &[], "");
    assert_eq!(status, 200, "{answer}");
    let rest = read_until(&mut other, "[DONE]");
    assert!(rest.contains("\"code\":\"cancelled\""), "{rest}");
    frailty.release();
    let rest = read_until(&mut one, "[DONE]");
    assert!(rest.contains("\"finish_reason\":\"length\""), "another's request was ended: {rest}");
    let (status, _, _) = service.send("DELETE", &format!("/v1/requests/{id}"), &[], "");
    assert_eq!(status, 404);
    assert!(listed().is_empty());
}

#[test]
fn operators_see_what_runs() {
    let service = Service::start(&[]);
    let get = |path: &str| -> Value {
        let (status, text) = service.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(get("/ready")["status"], "ok");
    assert_eq!(get("/version")["name"], "outrider");
    let devices = get("/v1/devices");
    assert!(devices["machine"]["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty()));
    let stages = devices["units"].as_array().unwrap().iter().flat_map(|u| u["stages"].as_array());
    assert!(stages.flatten().any(|stage| stage.as_str().unwrap().starts_with("target")));
    let model = get("/v1/models")["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&format!("/v1/models/{model}"))["id"], model.as_str());
    assert_eq!(service.get("/v1/models/gpt-9").0, 404);
    assert_eq!(get("/openapi.json")["openapi"], "3.1.0");
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let service = Service::start(&[]);
    let (status, headers, _) = service.send("DELETE", CHAT, &[], "");
    assert_eq!((status, headers["allow"].as_str()), (405, "POST"));
    let (status, _, answer) = service.send("POST", CHAT, &[], "{}");
    assert_eq!(status, 415, "{answer}");
}

#[test]
fn a_prompt_that_begins_as_an_earlier_one_is_read_from_there_on_and_answered_alike() {
    let texts: Vec<String> =
        (0..3).map(|n| format!("{} {n}.", "The train is late.".repeat(4))).collect();
    let ask = |service: &Service, text: &str| {
        let prompt = format!(">>de<<{text}<sep>");
        let body = json!({"prompt": prompt, "max_tokens": 40, "repetition_penalty": 1.1});
        let (status, answer) = service.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let found = answer["timings"]["cache_n"].as_u64().unwrap();
        (answer["choices"][0]["text"].as_str().unwrap().to_owned(), found)
    };
    for mode in ["sequential", "overlap", "plain"] {
        let forgets = Service::start(&["--mode", mode, "--prefix-cache", "false"]);
        let reuses = Service::start(&["--mode", mode, "--parallel", "2"]);
        for (index, text) in texts.iter().chain(&texts).enumerate() {
            let (expected, none) = ask(&forgets, text);
            let (answer, found) = ask(&reuses, text);
            assert_eq!(answer, expected, "{mode}, {text}");
            assert_eq!(none, 0);
            assert_eq!(found > 0, index > 0, "{mode}: {found} of request {index}");
        }
    }
}
