//! The service over real connections: what clients send, what they get, and what happens when they leave.

use serde_json::{Value, json};

use crate::frailty::Frailty;
use crate::process::{Service, read_until};

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}]})
}

fn with(mut body: Value, key: &str, value: impl Into<Value>) -> Value {
    body[key] = value.into();
    body
}

const SENTENCE: &str = "The battery is almost empty. Connect the charger.";

#[test]
fn a_chat_is_answered_whole_and_streamed_with_the_same_text() {
    let service = Service::start(&[]);
    let accepted = |a: &Value| a["timings"]["draft_n_accepted"].as_u64().unwrap() > 0;
    let answers = service.answers_until("/v1/chat/completions", &chat(SENTENCE), accepted);
    let whole = answers.last().unwrap();
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.contains("Batterie"), "{text}");
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() > 3);

    let body = with(chat(SENTENCE), "stream", true);
    let body = with(body, "stream_options", json!({"include_usage": true}));
    let mut events = service.stream("/v1/chat/completions", &body);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let events: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let (usage, parts) = events.split_last().unwrap();
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(usage["choices"], json!([]));
    let (last, parts) = parts.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(parts.iter().all(|p| p["choices"][0]["finish_reason"].is_null()));
    let content = |p: &Value| p["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
    assert_eq!(parts.iter().map(content).collect::<String>(), text);
    assert!(parts.len() > 2, "the text came in one piece");
}

#[test]
fn completions_take_text_and_tokens_and_report_log_probabilities() {
    let service = Service::start(&[]);
    let prompt = ">>de<<I know.<sep>";
    let (status, by_text) = service.post("/v1/completions", &json!({"prompt": prompt}));
    assert_eq!(status, 200, "{by_text}");
    assert_eq!(by_text["object"], "text_completion");
    let body = json!({"prompt": prompt, "logprobs": 2, "max_tokens": 2});
    let (_, answer) = service.post("/v1/completions", &body);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 2);
    for (chosen, top) in logprobs["token_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        let chosen = chosen.as_f64().unwrap();
        let best = top.as_object().unwrap().values().map(|v| v.as_f64().unwrap());
        assert!(chosen <= 0.0 && (best.fold(f64::MIN, f64::max) - chosen).abs() < 1e-4);
    }
}

#[test]
fn speculation_can_be_switched_off_for_one_request() {
    let service = Service::start(&[]);
    let drafted = |answer: &Value| answer["timings"]["draft_n"].as_u64().unwrap() > 0;
    let on = service.answers_until("/v1/chat/completions", &chat(SENTENCE), drafted);
    let on = on.last().unwrap();
    let body = with(chat(SENTENCE), "speculative", json!({"enabled": false}));
    let (_, off) = service.post("/v1/chat/completions", &body);
    assert_eq!(off["timings"]["draft_n"], 0);
    assert_eq!(on["choices"][0]["message"], off["choices"][0]["message"]);
}

#[test]
fn wrong_requests_get_openai_errors_that_name_the_field() {
    let service = Service::start(&[]);
    let chat_path = "/v1/chat/completions";
    let cases = [
        (chat_path, json!({"messages": []}), 400, "messages"),
        (chat_path, with(chat("x"), "temperature", -1), 400, "temperature"),
        (chat_path, with(chat("x"), "tools", json!([])), 400, "tools"),
        (chat_path, with(chat("x"), "n", 99), 400, "n"),
        (chat_path, with(chat("x"), "max_tokens", 0), 400, "max_tokens"),
        (chat_path, with(chat("x"), "stop", json!([""])), 400, "stop"),
        (chat_path, with(chat("x"), "model", "gpt-9"), 404, "gpt-9"),
        (chat_path, with(chat("x"), "stream_options", json!({})), 400, "stream_options"),
        ("/v1/completions", json!({"prompt": [9_999_999]}), 400, "9999999"),
        ("/v1/completions", json!({"prompt": "x".repeat(100_000)}), 400, "context"),
        ("/v1/nowhere", json!({}), 404, "/v1/nowhere"),
    ];
    for (path, body, status, word) in cases {
        let (got, answer) = service.post(path, &body);
        assert_eq!(got, status, "{path} {answer}");
        let error = &answer["error"];
        assert!(error["message"].as_str().unwrap().contains(word), "{answer}");
        assert!(error["type"].is_string(), "{answer}");
    }
    let (status, body) = service.get(chat_path);
    assert_eq!(status, 405, "{body}");
}

#[test]
fn a_prompt_over_the_context_limit_says_how_long_it_may_be() {
    let service = Service::start(&["--context", "64"]);
    let (status, answer) = service.post("/v1/chat/completions", &chat(&"house ".repeat(200)));
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["code"], "context_length_exceeded");
    assert!(answer["error"]["message"].as_str().unwrap().contains("64"), "{answer}");
    let (status, _) = service.post("/v1/chat/completions", &chat(SENTENCE));
    assert_eq!(status, 200, "the service goes on");
}

#[test]
fn two_hundred_requests_at_once_are_all_answered() {
    let service = Service::start(&["--parallel", "4", "--queue", "64"]);
    let (_, alone) = service.post("/v1/chat/completions", &chat(SENTENCE));
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let ask = || service.post("/v1/chat/completions", &chat(SENTENCE));
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut served = 0;
    for (status, answer) in &answers {
        match status {
            200 => {
                served += 1;
                assert_eq!(answer["choices"][0]["message"], alone["choices"][0]["message"]);
            }
            429 => assert_eq!(answer["error"]["code"], "queue_full"),
            other => panic!("{other}: {answer}"),
        }
    }
    assert!(served >= 68, "{served} were served, fewer than have a place");
    let (status, health) = service.get("/health");
    assert_eq!(status, 200, "{health}");
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--parallel", "1", "--queue", "4"]);
    let endless = json!({
        "prompt": ">>de<<one two three<sep>", "stream": true, "ignore_eos": true, "max_tokens": 480
    });
    let mut stream = service.open("/v1/completions", &endless);
    read_until(&mut stream, "data: ");
    let waiting = service.open("/v1/completions", &endless);
    service.await_metric("outrider_num_requests_running", 1.0);
    service.await_metric("outrider_num_requests_waiting", 1.0);
    drop(stream);
    drop(waiting);
    service.await_metric("outrider_num_requests_running", 0.0);
    service.await_metric("outrider_num_requests_waiting", 0.0);
    let (status, _) = service.post("/v1/chat/completions", &chat(SENTENCE));
    assert_eq!(status, 200);
}

#[test]
fn metrics_count_what_happened() {
    let service = Service::start(&[]);
    let drafted = |answer: &Value| answer["timings"]["draft_n"].as_u64().unwrap() > 0;
    let answers = service.answers_until("/v1/chat/completions", &chat(SENTENCE), drafted);
    let count = |field: &str| {
        answers.iter().map(|answer| answer["timings"][field].as_f64().unwrap()).sum::<f64>()
    };
    let metric = |name: &str| service.metric(name);
    assert_eq!(metric("outrider_generation_tokens_total"), count("predicted_n"));
    assert_eq!(metric("outrider_prompt_tokens_total"), count("prompt_n"));
    assert_eq!(metric("outrider_spec_decode_num_draft_tokens_total"), count("draft_n"));
    assert_eq!(metric("outrider_spec_decode_num_accepted_tokens_total"), count("draft_n_accepted"));
    let (_, text) = service.get("/metrics");
    let busy = text.lines().filter(|l| l.starts_with("outrider_device_busy_seconds_total{"));
    let busy: Vec<f64> = busy.map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(busy.iter().filter(|&&seconds| seconds > 0.0).count() >= 2, "{text}");
}

#[test]
fn sigterm_finishes_open_requests_and_takes_no_more() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--drain-s", "120"]);
    let body = json!({
        "prompt": ">>de<<one two three<sep>", "stream": true, "ignore_eos": true, "max_tokens": 400
    });
    let mut stream = service.open("/v1/completions", &body);
    read_until(&mut stream, "data: ");
    service.terminate();
    // Whoever comes now is not let in while the open request is being written.
    service.await_closed();
    frailty.release();
    let rest = read_until(&mut stream, "[DONE]");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn it_listens_on_loopback_unless_told_otherwise() {
    let service = Service::start(&[]);
    assert!(service.address().starts_with("127.0.0.1:"), "{}", service.address());
}
