//! Running the service: its configuration, its keys, its limits, its log, its end.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::frailty::Frailty;
use crate::process::{Service, outrider, outrider_fails, outrider_ok, program, read_until};

const CHAT: &str = "/v1/chat/completions";

fn chat() -> String {
    json!({"messages": [{"role": "user", "content": "I know."}]}).to_string()
}

/// Status and answer of a chat with a key.
fn chat_with(service: &Service, key: &str) -> (u16, String) {
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let (status, _, body) = service.send("POST", CHAT, &headers, &chat());
    (status, body)
}

#[test]
fn flag_goes_before_environment_before_file_before_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    fs::write(&file, "[limits]\nparallel = 3\nqueue = 5\ncontext = 99\n").unwrap();
    let output = Command::new(program())
        .args(["config", "show", "--context", "77", "--config"])
        .arg(&file)
        .env("OUTRIDER_QUEUE", "7")
        .env("OUTRIDER_CONTEXT", "88")
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    for line in ["context = 77  # flag", "queue = 7  # environment", "parallel = 3  # file"] {
        assert!(shown.contains(line), "{line} in\n{shown}");
    }
    assert!(shown.contains("port = 8080  # default"), "{shown}");
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    let path = file.to_str().unwrap();
    for (text, wanted) in [
        ("[server]\nport = \"many\"\n", "my.toml:2: invalid value 'many' for 'port"),
        ("\n[server]\nprot = 1\n", "my.toml:3: [server] has no `prot`"),
        ("[limits]\ndeadline_s = 0\n", "my.toml:2: invalid value '0'"),
        ("[models]\ndraft = \"x.gguf\"\n", "a draft needs the target"),
        ("[decoding]\nplan = \"no-such-plan\"\n", "no-such-plan"),
        ("[server]\nhost = \"0.0.0.0\"\n", "there is no key"),
        ("[limits]\nparallel = 0\n", "my.toml:2: invalid value '0' for 'parallel"),
        ("[limits]\ncontext = 1\n", "my.toml:2: invalid value '1' for 'context"),
        ("[limits]\ncontext = 9999\n", "were trained for 512"),
        (
            "[decoding]\nplan = \"plain-all-cores\"\nwatch = true\n",
            "--watch needs --plan with a file",
        ),
        (
            "[server]\ncors_origin = [\"https://a.example/\"]\n",
            "`https://a.example/` is not an origin",
        ),
        ("[log]\nlog = \"inof\"\n", "the log filter `inof` says no level"),
    ] {
        fs::write(&file, text).unwrap();
        let error = outrider_fails(&["config", "check", "--config", path]);
        assert!(error.contains(wanted), "{error}");
    }
    assert!(outrider_fails(&["config", "check", "--config", "/no/such.toml"]).contains("/no/such"));
    fs::write(&file, "[decoding]\nmode = \"plain\"\n[server]\nport = 1234\n").unwrap();
    assert!(outrider_ok(&["config", "check", "--config", path]).contains("is right"));
}

#[test]
fn the_reference_file_has_every_option_of_serve_with_its_default() {
    let example = outrider_ok(&["config", "example"]);
    let shown = outrider_ok(&["config", "show"]);
    let help = outrider_ok(&["serve", "--help"]);
    for line in help.lines().filter_map(|line| line.trim().strip_prefix("--")) {
        let flag = line.split([' ', '[']).next().unwrap().replace('-', "_");
        if !["config", "help", "version"].contains(&flag.as_str()) {
            let named = |text: &str| text.lines().any(|l| l.starts_with(&format!("#: {flag} = ")));
            assert!(named(&example), "{flag} is not in actors/ops/outrider.toml");
        }
    }
    for line in shown.lines().filter(|line| line.ends_with("# default")) {
        let told = line.split("  #").next().unwrap();
        assert!(example.contains(&format!("#: {told}\n")), "{told} is not the reference's");
    }
    // With every mark taken away it is a file that is read.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.toml");
    fs::write(&file, example.replace("#: ", "")).unwrap();
    let shown = outrider_ok(&["config", "show", "--config", file.to_str().unwrap()]);
    assert!(!shown.contains("# default") && shown.matches("# file").count() > 15, "{shown}");
    assert!(!shown.contains("long-random-word"), "a key was shown:\n{shown}");
}

#[test]
fn beyond_loopback_a_key_is_needed() {
    let refused = outrider_fails(&["serve", "--host", "0.0.0.0", "--port", "0"]);
    assert!(refused.contains("--api-key-file") && refused.contains("--open"), "{refused}");
    let open = Service::start(&["--host", "0.0.0.0", "--open"]);
    assert!(open.address().starts_with("0.0.0.0:"));
    let guarded = Service::start(&["--host", "0.0.0.0", "--api-key", "secret"]);
    assert_eq!(guarded.get("/health").0, 200);
}

#[test]
fn keys_open_inference_and_the_admin_key_opens_operations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs::write(&file, "# of the two teams\nkey-one\nkey-two\n").unwrap();
    let service =
        Service::start(&["--api-key-file", file.to_str().unwrap(), "--admin-key", "operator"]);
    for (key, status) in [("key-one", 200), ("key-two", 200), ("operator", 200), ("key-tw", 401)] {
        assert_eq!(chat_with(&service, key).0, status, "{key}");
    }
    let (status, headers, body) =
        service.send("POST", CHAT, &[("content-type", "application/json")], &chat());
    assert_eq!((status, headers["www-authenticate"].as_str()), (401, "Bearer"));
    assert!(body.contains("invalid_api_key"), "{body}");
    let operate = |key: &str| {
        let bearer = format!("Bearer {key}");
        service.send("GET", "/v1/requests", &[("authorization", &bearer)], "").0
    };
    assert_eq!([operate("key-one"), operate("operator"), operate("x")], [403, 200, 401]);
    for path in ["/health", "/ready", "/version", "/openapi.json"] {
        assert_eq!(service.get(path).0, 200, "{path}");
    }
    assert_eq!(service.get("/metrics").0, 401);
}

#[test]
fn pages_of_other_origins_are_refused_unless_they_are_listed() {
    let ask = |service: &Service, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        let (status, headers, _) = service.send("OPTIONS", CHAT, &headers, "");
        (status, headers.get("access-control-allow-origin").cloned())
    };
    let closed = Service::start(&[]);
    assert_eq!(ask(&closed, "https://a.example"), (405, None));
    let open = Service::start(&["--cors-origin", "https://a.example"]);
    assert_eq!(ask(&open, "https://a.example"), (204, Some("https://a.example".to_owned())));
    assert_eq!(ask(&open, "https://b.example"), (405, None));
    let (_, headers, _) = open.send("GET", "/health", &[("origin", "https://a.example")], "");
    assert_eq!(headers["access-control-allow-origin"], "https://a.example");
    // What a page may send without asking is text, which is not taken.
    let (status, _, _) = open.send("POST", CHAT, &[("content-type", "text/plain")], &chat());
    assert_eq!(status, 415);
}

#[test]
fn heads_and_bodies_have_limits() {
    let service = Service::start(&["--head-bytes-max", "2000", "--body-bytes-max", "3000"]);
    let long = "x".repeat(3000);
    let (status, _, body) = service.send("GET", "/health", &[("x-long", &long)], "");
    assert_eq!(status, 431, "{body}");
    let body = json!({"messages": [{"role": "user", "content": long}]}).to_string();
    let (status, _, body) =
        service.send("POST", CHAT, &[("content-type", "application/json")], &body);
    assert_eq!(status, 413, "{body}");
    assert_eq!(service.get("/health").0, 200);
}

#[test]
fn a_deadline_ends_an_answer_with_an_error() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--deadline-s", "1", "--parallel", "1"]);
    let mut body = json!({"prompt": ">>de<<one two three<sep>", "ignore_eos": true, "max_tokens": 480, "n": 8});
    let (status, answer) = service.post("/v1/completions", &body);
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("deadline_passed")), "{answer}");
    body["stream"] = json!(true);
    let events = service.stream("/v1/completions", &body);
    let [.., error, done] = events.as_slice() else { panic!("{events:?}") };
    assert!(error.contains("deadline_passed") && done == "[DONE]", "{error}");
    service.await_metric("outrider_num_requests_running", 0.0);
    let failures = |reason: &str| {
        service.metric(&format!("outrider_request_failures_total{{reason=\"{reason}\"}}"))
    };
    assert!(failures("timeout") > 0.0);
    assert_eq!(failures("cancelled"), 0.0, "a deadline is not its client's doing");
}

#[test]
fn the_queue_is_bounded_by_tokens() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--parallel", "1", "--queue-tokens", "20"]);
    let endless =
        json!({"prompt": ">>de<<one<sep>", "stream": true, "ignore_eos": true, "max_tokens": 480});
    let mut running = service.open("/v1/completions", &endless);
    read_until(&mut running, "data: ");
    let waiting = service.open("/v1/completions", &endless);
    service.await_metric("outrider_num_requests_waiting", 1.0);
    let long = json!({"prompt": format!(">>de<<{}<sep>", "one two three ".repeat(9))}).to_string();
    let (status, headers, body) =
        service.send("POST", "/v1/completions", &[("content-type", "application/json")], &long);
    assert_eq!(status, 429, "{body}");
    assert!(headers["retry-after"].parse::<u32>().unwrap() > 0);
    assert_eq!(service.metric("outrider_admission_rejections_total{reason=\"queue_full\"}"), 1.0);
    drop(waiting);
}

#[test]
fn the_log_is_json_if_asked_and_names_requests_but_not_their_text() {
    let service = Service::start(&["--log-format", "json", "--api-key", "secret-key"]);
    let headers = [
        ("content-type", "application/json"),
        ("authorization", "Bearer secret-key"),
        ("x-request-id", "find-me"),
    ];
    assert_eq!(service.send("POST", CHAT, &headers, &chat()).0, 200);
    service.terminate();
    let log = service.log();
    let named = log.lines().filter(|line| line.contains("find-me"));
    let entries: Vec<Value> = named.map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = entries.iter().find(|entry| entry["fields"]["status"] == 200);
    assert_eq!(answered.unwrap()["fields"]["path"], CHAT, "{log}");
    assert!(!log.contains("secret-key") && !log.contains("I know"), "{log}");
}

#[test]
fn the_doctor_tries_what_a_service_needs() {
    let found: Value =
        serde_json::from_str(&outrider_ok(&["doctor", "--json", "--port", "0"])).unwrap();
    let states = found.as_array().unwrap().iter();
    let states: Vec<_> = states.map(|f| (f["what"].as_str().unwrap(), &f["state"])).collect();
    for what in ["configuration", "door", "models", "plan", "units", "decoding", "losslessness"] {
        assert!(states.contains(&(what, &json!("good"))), "{what} in {states:?}");
    }
    let output = outrider(&["doctor", "--target", "/no/such.gguf", "--port", "0"]);
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out.contains("BAD   models") && out.contains("/no/such.gguf"), "{out}");
}

#[test]
fn systemd_hears_that_the_service_is_ready_alive_and_ending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let service = Service::start_in(&[], &environment);
    let hear = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!([hear(), hear(), hear()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    service.terminate();
    while hear() != "STOPPING=1" {}
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn the_systemd_unit_is_one_that_systemd_takes() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../actors/ops/outrider.service");
    match Command::new("systemd-analyze").args(["verify", "--man=no", unit]).output() {
        Err(_) => eprintln!("skipped: systemd-analyze is not installed"),
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let own = told.lines().filter(|line| !line.contains("is not executable"));
            let own: Vec<_> = own.filter(|line| line.contains("outrider.service")).collect();
            assert!(own.is_empty(), "{told}");
        }
    }
}
