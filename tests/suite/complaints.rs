//! What users of such services complain about, and the tests that hold this one against each complaint.
//!
//! *Invariant:* the table names tests that exist; those that were nobody else's are here.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::frailty::Frailty;
use crate::process::{Service, outrider_fails, read_until};

const CHAT: &str = "/v1/chat/completions";
const ENDLESS: &str = ">>de<<one two three<sep>";

/// Each complaint with the files and tests that answer it.
const COMPLAINTS: [(&str, &[(&str, &str)]); 16] = [
    (
        "speculation makes it slower, and nobody notices",
        &[
            ("tests/suite/complaints.rs", "drafts_that_are_rejected_are_seen"),
            (
                "tests/suite/monitoring.rs",
                "a_prometheus_that_scrapes_the_service_fills_every_panel_and_no_alert_fires",
            ),
        ],
    ),
    (
        "the draft cannot run on another unit, or not at the same time",
        &[("tests/suite/complaints.rs", "draft_and_target_run_on_two_units_at_once")],
    ),
    (
        "the draft's length must be tuned by hand",
        &[("tests/suite/complaints.rs", "a_depth_of_auto_needs_no_number_and_changes_no_text")],
    ),
    (
        "no switch for one request",
        &[("tests/suite/service.rs", "speculation_can_be_switched_off_for_one_request")],
    ),
    (
        "vocabularies that differ fail cryptically, or silently",
        &[("pipeline/src/checkpoint/tests.rs", "a_pair_needs_one_vocabulary")],
    ),
    (
        "options are ignored in silence",
        &[
            ("tests/suite/service.rs", "wrong_requests_get_openai_errors_that_name_the_field"),
            ("tests/suite/operations.rs", "a_wrong_configuration_is_refused_with_its_line"),
        ],
    ),
    (
        "is it really lossless?",
        &[
            ("tests/suite/equivalence.rs", "sequential_text_is_plain_text_for_every_depth"),
            ("tests/suite/equivalence.rs", "overlapped_text_is_plain_text_whatever_is_awaited"),
            ("tests/suite/operations.rs", "the_doctor_tries_what_a_service_needs"),
        ],
    ),
    (
        "acceptance is not in the metrics",
        &[("tests/suite/service.rs", "metrics_count_what_happened")],
    ),
    (
        "no metrics for each device",
        &[("tests/suite/complaints.rs", "draft_and_target_run_on_two_units_at_once")],
    ),
    (
        "a client that leaves does not stop the work, holds a place for hours, or ends another's request",
        &[
            ("tests/suite/complaints.rs", "a_client_that_leaves_frees_its_place_at_every_stage"),
            ("tests/suite/api.rs", "open_requests_are_listed_and_can_be_ended"),
        ],
    ),
    (
        "queues without bounds",
        &[
            ("tests/suite/service.rs", "two_hundred_requests_at_once_are_all_answered"),
            ("tests/suite/operations.rs", "the_queue_is_bounded_by_tokens"),
        ],
    ),
    (
        "another placement needs a restart",
        &[("tests/suite/complaints.rs", "the_plan_changes_while_requests_run")],
    ),
    (
        "the memory check forgets the draft",
        &[(
            "plans/tests/shipped.rs",
            "the_default_leaves_the_draft_out_where_only_the_target_fits",
        )],
    ),
    (
        "it leaks, and slows down over days",
        &[
            ("tests/suite/complaints.rs", "memory_and_files_stay_flat_over_hundreds_of_requests"),
            ("tests/suite/soak/mod.rs", "a_short_soak_with_a_lost_unit_loses_nothing"),
            ("tests/suite/soak/mod.rs", "twenty_thousand_requests_of_every_kind"),
        ],
    ),
    (
        "a lost or hung GPU takes the service down",
        &[
            ("tests/suite/gpu_faults.rs", "a_lost_or_hung_gpu_is_rebuilt_and_no_text_changes"),
            ("tests/suite/supervision.rs", "without_its_draft_unit_decoding_goes_on"),
        ],
    ),
    (
        "it listens on 0.0.0.0 without a key",
        &[
            ("tests/suite/operations.rs", "beyond_loopback_a_key_is_needed"),
            ("tests/suite/service.rs", "it_listens_on_loopback_unless_told_otherwise"),
        ],
    ),
];

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}]})
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn every_complaint_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (complaint, tests) in COMPLAINTS {
        for (file, test) in tests {
            let text = fs::read_to_string(root.join(file)).unwrap();
            assert!(text.contains(&format!("fn {test}()")), "{complaint}: no {test} in {file}");
        }
    }
}

#[test]
fn drafts_that_are_rejected_are_seen() {
    let service = Service::start(&["--mode", "sequential"]);
    let body = chat("The battery is almost empty. Connect the charger, please.");
    let count = |answer: &Value, field: &str| answer["timings"][field].as_f64().unwrap();
    let answers = service.answers_until(CHAT, &body, |answer| {
        let accepted = count(answer, "draft_n_accepted");
        accepted > 0.0 && count(answer, "draft_n") > accepted
    });
    let drafted = service.metric("outrider_spec_decode_num_draft_tokens_total");
    let accepted = service.metric("outrider_spec_decode_num_accepted_tokens_total");
    assert!(drafted > accepted && accepted > 0.0, "{drafted} drafted, {accepted} accepted");
    let told = |field| answers.iter().map(|answer| count(answer, field)).sum::<f64>();
    assert_eq!((told("draft_n"), told("draft_n_accepted")), (drafted, accepted));
}

#[test]
fn draft_and_target_run_on_two_units_at_once() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("skipped: two units at once need two cores");
        return;
    }
    let service = Service::start(&["--mode", "overlap"]);
    let body = chat("The battery is almost empty. Connect the charger, please.");
    service.answers_until(CHAT, &body, |_| {
        service.metric("outrider_device_overlap_seconds_total") > 0.0
    });
    let (_, text) = service.get("/metrics");
    let busy = |role: &str| {
        let of_role = |line: &&str| {
            line.starts_with("outrider_device_busy_seconds_total{")
                && line.contains(&format!("role=\"{role}\""))
                && !line.ends_with(" 0")
        };
        let line = text.lines().find(of_role).unwrap_or_else(|| panic!("no {role} in\n{text}"));
        line.split("device=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    assert_ne!(busy("target"), busy("draft"));
}

#[test]
fn a_depth_of_auto_needs_no_number_and_changes_no_text() {
    let sentence = "Where is the nearest train station?";
    let plain = Service::start(&["--mode", "plain"]);
    let auto = Service::start(&["--mode", "sequential", "--draft-tokens", "auto"]);
    let (_, expected) = plain.post(CHAT, &chat(sentence));
    let drafted = |answer: &Value| answer["timings"]["draft_n"].as_u64().unwrap() > 0;
    for answer in auto.answers_until(CHAT, &chat(sentence), drafted) {
        assert_eq!(content(&answer), content(&expected));
    }
}

#[test]
fn the_plan_changes_while_requests_run() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&[]);
    frailty.release();
    let body = json!({"prompt": ENDLESS, "stream": true, "ignore_eos": true, "max_tokens": 300});
    let alone = service.stream("/v1/completions", &body);
    frailty.slow_down();
    let mut stream = service.open("/v1/completions", &body);
    let mut seen = read_until(&mut stream, "data: ");
    let plan = "name = \"one-core\"\nmode = \"plain\"\n[units.a]\nkind = \"cpu\"\ncores = [0]\n\
                [[target]]\nunit = \"a\"\nlayers = \"all\"\n";
    let (status, _, answer) =
        service.send("PUT", "/v1/plan", &[("content-type", "application/toml")], plan);
    assert_eq!(status, 200, "{answer}");
    let (_, running) = service.get("/v1/plan");
    assert!(running.contains("one-core"), "{running}");
    assert!(!seen.contains("[DONE]"), "it was written before the plan changed: {seen}");
    seen += &read_until(&mut stream, "[DONE]");
    let text = |events: &str| -> String {
        let parts = events.lines().filter_map(|line| line.strip_prefix("data: {"));
        let parts =
            parts.filter_map(|part| serde_json::from_str::<Value>(&format!("{{{part}")).ok());
        parts.filter_map(|p| p["choices"][0]["text"].as_str().map(str::to_owned)).collect()
    };
    let alone: Vec<String> = alone.iter().map(|event| format!("data: {event}")).collect();
    assert_eq!(text(&seen), text(&alone.join("\n")), "a swap changed the text");
}

/// A connection is left at each stage of its request; its place must be free soon after, and the other goes on.
#[test]
fn a_client_that_leaves_frees_its_place_at_every_stage() {
    let frailty = Frailty::new();
    let service = frailty.serve_slowly(&["--parallel", "2", "--context", "512"]);
    let other = json!({"prompt": ENDLESS, "stream": true, "ignore_eos": true, "max_tokens": 480});
    let left = |(running, waiting): (f64, f64)| {
        service.await_metric("outrider_num_requests_running", running);
        service.await_metric("outrider_num_requests_waiting", waiting);
    };
    let long = format!(">>de<<{}<sep>", "one two three ".repeat(100));
    for streamed in [true, false] {
        let mut witness = service.open("/v1/completions", &other);
        read_until(&mut witness, "data: ");
        // While it decodes: draft and verification are under way.
        let body =
            json!({"prompt": ENDLESS, "stream": streamed, "ignore_eos": true, "max_tokens": 480});
        let decoding = service.open("/v1/completions", &body);
        service.await_metric("outrider_num_requests_running", 2.0);
        // While it waits for a place.
        let queued = service.open("/v1/completions", &body);
        service.await_metric("outrider_num_requests_waiting", 1.0);
        drop(queued);
        left((2.0, 0.0));
        drop(decoding);
        left((1.0, 0.0));
        // While its prompt is read.
        let body =
            json!({"prompt": long, "stream": streamed, "ignore_eos": true, "max_tokens": 150});
        let prefilling = service.open("/v1/completions", &body);
        service.await_metric("outrider_num_requests_running", 2.0);
        drop(prefilling);
        left((1.0, 0.0));
        frailty.release();
        let rest = read_until(&mut witness, "[DONE]");
        frailty.slow_down();
        assert!(rest.contains("\"finish_reason\":\"length\""), "another's was ended: {rest}");
    }
}

/// Resident memory in KiB and open files of a process.
fn held(process_id: u32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib = line.trim().split(' ').next().unwrap().parse().unwrap();
    (kib, fs::read_dir(format!("/proc/{process_id}/fd")).unwrap().count())
}

#[test]
fn memory_and_files_stay_flat_over_hundreds_of_requests() {
    let service = Service::start(&[]);
    let ask = |count: usize| {
        for index in 0..count {
            let mut body = chat("I know.");
            body["max_tokens"] = json!(2 + index % 3);
            assert_eq!(service.post(CHAT, &body).0, 200);
        }
    };
    ask(100);
    let (before_kib, before_files) = held(service.process_id());
    ask(300);
    let (after_kib, mut after_files) = held(service.process_id());
    let grown = after_kib.saturating_sub(before_kib);
    assert!(grown < 3000, "{grown} KiB over 300 requests");
    // The service may be a moment behind its clients in closing connections.
    for _ in 0..600 {
        if after_files <= before_files + 2 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        after_files = held(service.process_id()).1;
    }
    panic!("{before_files} files became {after_files}");
}

#[test]
fn without_a_key_nobody_beyond_loopback_is_served() {
    for host in ["0.0.0.0", "::", "192.0.2.1"] {
        let refused = outrider_fails(&["serve", "--host", host, "--port", "0"]);
        assert!(refused.contains("there is no key"), "{refused}");
    }
}
