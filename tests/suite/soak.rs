//! The service under everything at once, for long: whole and streamed requests, sampled ones, clients that leave,
//! malformed bodies and plans that are swapped, from eight clients.
//!
//! Ignored by default, because it takes as long as it is told to:
//!
//! ```sh
//! OUTRIDER_SOAK_REQUESTS=20000 cargo test --release -p outrider-tests -- --ignored soak --nocapture
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Service, read_until};

const CHAT: &str = "/v1/chat/completions";
const CLIENTS: usize = 8;
const SENTENCES: [&str; 8] = [
    "I know.",
    "The battery is almost empty. Connect the charger.",
    "Please restart the computer to finish the installation.",
    "Where is the nearest train station?",
    "He did not say when he would come back.",
    "The meeting was moved to Tuesday because the room is taken.",
    "Wash the shirt at thirty degrees.",
    "Two tickets to Hamburg, please.",
];
const PLANS: [&str; 2] = [
    "name = \"soak-plain\"\nmode = \"plain\"\n[units.a]\nkind = \"cpu\"\ncores = [0]\n\
     [[target]]\nunit = \"a\"\nlayers = \"all\"\n",
    "name = \"soak-sequential\"\nmode = \"sequential\"\ndraft_tokens = 3\n\
     [units.a]\nkind = \"cpu\"\ncores = [0]\n\
     [[target]]\nunit = \"a\"\nlayers = \"all\"\n[[draft]]\nunit = \"a\"\nlayers = \"all\"\n",
];

/// One request of some kind, and the text that it has to be answered with.
fn body(kind: usize, sentence: &str) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": sentence}], "max_tokens": 24});
    if kind % 4 == 1 {
        body["temperature"] = json!(0.8);
        body["seed"] = json!(7);
    }
    if kind % 4 == 2 {
        body["speculative"] = json!({"enabled": false});
    }
    body
}

fn text_of(answer: &Value) -> Option<&str> {
    answer["choices"][0]["message"]["content"].as_str()
}

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    wrong: AtomicUsize,
    lost: AtomicUsize,
    left: AtomicUsize,
    refused: AtomicUsize,
    swapped: AtomicUsize,
    not_swapped: AtomicUsize,
}

fn resident_kib(process_id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

fn open_files(process_id: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process_id}/fd")).unwrap().count()
}

/// Slope of a line through points, least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    over / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>().max(f64::MIN_POSITIVE)
}

fn p99(latencies: &mut [f64]) -> f64 {
    latencies.sort_by(f64::total_cmp);
    latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(0.0)
}

#[test]
#[ignore = "takes as long as OUTRIDER_SOAK_REQUESTS says"]
fn twenty_thousand_requests_of_every_kind() {
    let asked = std::env::var("OUTRIDER_SOAK_REQUESTS");
    let requests: usize = asked.map_or(20_000, |text| text.parse().unwrap());
    let service = Service::start(&["--parallel", "8", "--queue", "64", "--log", "warn"]);
    let mut expected = BTreeMap::new();
    for kind in 0..3 {
        for sentence in SENTENCES {
            let (status, answer) = service.post(CHAT, &body(kind, sentence));
            assert_eq!(status, 200, "{answer}");
            expected.insert((kind, sentence), text_of(&answer).unwrap().to_owned());
        }
    }
    let (next, counts) = (AtomicUsize::new(0), Counts::default());
    let latencies = Mutex::new(vec![0.0; requests]);
    let samples = Mutex::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return;
                    }
                    let began = Instant::now();
                    one(&service, number, &expected, &counts);
                    let took = began.elapsed().as_secs_f64();
                    let mut all = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                    all[number] = took;
                }
            });
        }
        scope.spawn(|| {
            while next.load(Ordering::Relaxed) < requests {
                let at = next.load(Ordering::Relaxed) as f64;
                let held =
                    (at, resident_kib(service.process_id()), open_files(service.process_id()));
                samples.lock().unwrap_or_else(PoisonError::into_inner).push(held);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
    });
    report(&service, &counts, requests, started.elapsed());
    let mut latencies = latencies.into_inner().unwrap_or_else(PoisonError::into_inner);
    let tenth = (requests / 10).max(1);
    let first = p99(&mut latencies[..tenth]);
    let last = p99(&mut latencies[requests - tenth..]);
    let samples = samples.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The first fifth is warm-up: caches and buffers grow to what they need.
    let settled = &samples[samples.len() / 5..];
    let memory: Vec<_> = settled.iter().map(|&(at, kib, _)| (at, kib)).collect();
    let files = (settled.first().map(|s| s.2), settled.last().map(|s| s.2));
    let bytes = slope(&memory) * 1024.0;
    println!("resident memory: {bytes:.0} bytes a request; open files {files:?}");
    println!("p99 of the first tenth {:.0} ms, of the last {:.0} ms", first * 1e3, last * 1e3);
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    assert_eq!((count(&counts.wrong), count(&counts.lost)), (0, 0), "wrong and lost");
    service.await_metric("outrider_num_requests_running", 0.0);
    assert_eq!(service.get("/health").0, 200);
}

fn report(service: &Service, counts: &Counts, requests: usize, took: Duration) {
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    println!(
        "{requests} requests in {:.0} s: {} answered, {} left, {} refused as they should be, {} wrong, {} lost",
        took.as_secs_f64(),
        count(&counts.answered),
        count(&counts.left),
        count(&counts.refused),
        count(&counts.wrong),
        count(&counts.lost),
    );
    println!(
        "{} plans swapped, {} swaps refused; {} tokens written",
        count(&counts.swapped),
        count(&counts.not_swapped),
        service.metric("outrider_generation_tokens_total"),
    );
}

/// The request with this number: which kind it is follows from the number.
fn one(
    service: &Service,
    number: usize,
    expected: &BTreeMap<(usize, &str), String>,
    counts: &Counts,
) {
    let add = |of: &AtomicUsize| of.fetch_add(1, Ordering::Relaxed);
    let sentence = SENTENCES[number / 3 % SENTENCES.len()];
    let kind = number % 3;
    if number % 997 == 500 {
        let plan = PLANS[number / 997 % PLANS.len()];
        let headers = [("content-type", "application/toml")];
        let (status, _, _) = service.send("PUT", "/v1/plan", &headers, plan);
        add(if status == 200 { &counts.swapped } else { &counts.not_swapped });
        return;
    }
    match number % 20 {
        7 => {
            let mut asked = body(kind, sentence);
            asked["stream"] = json!(true);
            let mut stream = service.open(CHAT, &asked);
            read_until(&mut stream, "data: ");
            add(&counts.left);
        }
        13 => {
            let malformed = ["{\"messages\": 3}", "{", "[]", "\u{1F980}", "{\"messages\": []}"];
            let headers = [("content-type", "application/json")];
            let (status, _, _) = service.send("POST", CHAT, &headers, malformed[number / 20 % 5]);
            add(if status == 400 { &counts.refused } else { &counts.wrong });
        }
        11 => {
            let mut asked = body(kind, sentence);
            asked["stream"] = json!(true);
            let events = service.stream(CHAT, &asked);
            let parts = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
            let text: String = parts
                .filter_map(|p| p["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
                .collect();
            let right = text == expected[&(kind, sentence)];
            add(if right { &counts.answered } else { &counts.wrong });
        }
        _ => match service.post(CHAT, &body(kind, sentence)) {
            (200, answer) => {
                let right = text_of(&answer) == Some(expected[&(kind, sentence)].as_str());
                if !right {
                    println!("request {number} ({kind}, {sentence}): {answer}");
                }
                add(if right { &counts.answered } else { &counts.wrong });
            }
            (429, _) => {
                add(&counts.refused);
            }
            (status, answer) => {
                println!("request {number}: {status} {answer}");
                add(&counts.lost);
            }
        },
    }
}
