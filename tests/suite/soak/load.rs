//! The requests of a soak: which kind one is follows from its number, so that a run can be told again.
//!
//! *Invariant:* every text that is awaited is compared with the one that the idle service gave.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrider_tests::frail::FRAIL;
use serde_json::{Value, json};

use crate::process::{Service, read_until};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
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
/// Requests between two swaps.
const SWAP_EVERY: usize = 97;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// With its text.
    Answered,
    /// Its client left, or it was ended.
    Ended,
    /// It was refused as it had to be.
    Refused,
    /// Another plan runs.
    Swapped,
    /// Another plan was refused, because a swap or a rebuilding was under way.
    NotSwapped,
    /// Something else was asked and told.
    Told,
    /// With another text, or a wrong refusal.
    Wrong,
    /// Without its text.
    Lost,
}

const OUTCOMES: [(Outcome, &str); 8] = [
    (Outcome::Answered, "answered"),
    (Outcome::Ended, "left or ended"),
    (Outcome::Refused, "refused as they should be"),
    (Outcome::Swapped, "swaps"),
    (Outcome::NotSwapped, "swaps refused"),
    (Outcome::Told, "other questions"),
    (Outcome::Wrong, "wrong"),
    (Outcome::Lost, "lost"),
];

/// How many ended in which way.
#[derive(Default)]
pub(super) struct Counts([AtomicUsize; OUTCOMES.len()]);

impl Counts {
    pub(super) fn add(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of(&self, outcome: Outcome) -> usize {
        self.0[outcome as usize].load(Ordering::Relaxed)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = OUTCOMES.map(|(outcome, word)| format!("{} {word}", self.of(outcome)));
        f.write_str(&told.join(", "))
    }
}

/// The cores of the frail unit: all but the last, if there are several.
pub(super) fn frail_cores(cores: &[usize]) -> &[usize] {
    if cores.len() > 1 { &cores[..cores.len() - 1] } else { cores }
}

/// Plans that take turns; the target runs on the frail unit in each.
pub(super) fn plans(cores: &[usize]) -> Vec<String> {
    let frail = frail_cores(cores);
    let plan = |name: &str, mode: &str, draft: &str| {
        format!(
            "name = \"soak-{name}\"\n{mode}\n[units.{FRAIL}]\nkind = \"cpu\"\ncores = {frail:?}\n{draft}\
             [[target]]\nunit = \"{FRAIL}\"\nlayers = \"all\"\n"
        )
    };
    let beside = format!("[[draft]]\nunit = \"{FRAIL}\"\nlayers = \"all\"\n");
    let mut plans = vec![
        plan("sequential", "mode = \"sequential\"\ndraft_tokens = 3", &beside),
        plan("plain", "mode = \"plain\"", ""),
        plan("auto", "mode = \"sequential\"\ndraft_tokens = \"auto\"", &beside),
    ];
    if cores.len() > 1 {
        let last = cores[cores.len() - 1];
        let apart = format!(
            "[units.other]\nkind = \"cpu\"\ncores = [{last}]\n[[draft]]\nunit = \"other\"\nlayers = \"all\"\n"
        );
        plans.push(plan("overlap", "mode = \"overlap\"\ndraft_tokens = 4", &apart));
    }
    plans
}

/// One of the texts that are asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    /// 0 greedy, 1 sampled, 2 without speculation, 3 sampled with filters.
    kind: usize,
    sentence: usize,
}

impl Question {
    fn of(number: usize) -> Self {
        Self { kind: number % 4, sentence: number / 4 % SENTENCES.len() }
    }

    fn body(self) -> Value {
        let content = SENTENCES[self.sentence];
        let mut body =
            json!({"messages": [{"role": "user", "content": content}], "max_tokens": 24});
        if self.kind % 2 == 1 {
            body["temperature"] = json!(0.8);
            body["seed"] = json!(7);
        }
        if self.kind == 2 {
            body["speculative"] = json!({"enabled": false});
        }
        if self.kind == 3 {
            body["top_p"] = json!(0.9);
            body["presence_penalty"] = json!(0.2);
        }
        body
    }

    fn streamed(self) -> Value {
        let mut body = self.body();
        body["stream"] = json!(true);
        body
    }
}

/// The texts of all questions.
pub(super) struct Expected(BTreeMap<Question, String>);

impl Expected {
    /// Asks the idle service.
    pub(super) fn ask(service: &Service) -> Self {
        let mut texts = BTreeMap::new();
        for number in 0..4 * SENTENCES.len() {
            let question = Question::of(number);
            let (status, answer) = service.post(CHAT, &question.body());
            assert_eq!(status, 200, "{answer}");
            texts.insert(question, text_of(&answer).unwrap().to_owned());
        }
        Self(texts)
    }

    fn judge(&self, question: Question, text: &str) -> Outcome {
        if self.0[&question] == text {
            return Outcome::Answered;
        }
        println!("kind {} of {:?}: {text}", question.kind, SENTENCES[question.sentence]);
        Outcome::Wrong
    }
}

fn text_of(answer: &Value) -> Option<&str> {
    answer["choices"][0]["message"]["content"].as_str()
}

/// Asks the request with this number, and says how it ended.
pub(super) fn one(
    service: &Service,
    number: usize,
    plans: &[String],
    expected: &Expected,
) -> Outcome {
    let question = Question::of(number / 40 * 7 + number);
    if number % SWAP_EVERY == SWAP_EVERY / 2 {
        return swapped(service, &plans[(number / SWAP_EVERY + 1) % plans.len()]);
    }
    match number % 40 {
        3 | 23 => streamed(service, question, expected),
        7 => left_in_its_stream(service, question),
        27 => left_before_an_answer(service, question),
        11 => ended_by_name(service, number),
        13 | 33 => malformed(service, number),
        17 => two_answers(service, question, expected),
        19 => completed(service),
        37 => looked(service, number),
        _ => whole(service, question, expected),
    }
}

fn swapped(service: &Service, plan: &str) -> Outcome {
    let headers = [("content-type", "application/toml")];
    match service.send("PUT", "/v1/plan", &headers, plan) {
        (200, ..) => Outcome::Swapped,
        (409 | 503, ..) => Outcome::NotSwapped,
        (status, _, answer) => {
            println!("a swap was answered {status}: {answer}");
            Outcome::Wrong
        }
    }
}

fn whole(service: &Service, question: Question, expected: &Expected) -> Outcome {
    match service.post(CHAT, &question.body()) {
        (200, answer) => expected.judge(question, text_of(&answer).unwrap_or("no text")),
        (status, answer) => {
            println!("{status}: {answer}");
            Outcome::Lost
        }
    }
}

fn streamed(service: &Service, question: Question, expected: &Expected) -> Outcome {
    let events = service.stream(CHAT, &question.streamed());
    if events.last().map(String::as_str) != Some("[DONE]") {
        println!("a stream broke off: {events:?}");
        return Outcome::Lost;
    }
    let parts = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let text: String = parts
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    expected.judge(question, &text)
}

fn left_in_its_stream(service: &Service, question: Question) -> Outcome {
    let mut stream = service.open(CHAT, &question.streamed());
    read_until(&mut stream, "data: ");
    Outcome::Ended
}

fn left_before_an_answer(service: &Service, question: Question) -> Outcome {
    drop(service.open(CHAT, &question.body()));
    Outcome::Ended
}

/// Another connection ends a long text by its request's name.
fn ended_by_name(service: &Service, number: usize) -> Outcome {
    let name = format!("soak-{number}");
    let body = json!({"prompt": ">>de<<one two three<sep>", "ignore_eos": true, "max_tokens": 400});
    let asked = std::thread::scope(|scope| {
        let headers = [JSON[0], ("x-request-id", name.as_str())];
        let body = body.to_string();
        let asked = scope.spawn(move || service.send("POST", COMPLETION, &headers, &body));
        let path = format!("/v1/requests/{name}");
        let mut tries = 0;
        while service.send("DELETE", &path, &[], "").0 == 404 && !asked.is_finished() {
            tries += 1;
            assert!(tries < 10_000, "{name} was never listed");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        asked.join().unwrap()
    });
    match asked.0 {
        // It may have been done before its end was asked for.
        200 | 499 => Outcome::Ended,
        status => {
            println!("an ended request was answered {status}: {}", asked.2);
            Outcome::Wrong
        }
    }
}

fn malformed(service: &Service, number: usize) -> Outcome {
    let text = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"n\": 99}";
    let long = "x".repeat(2 << 20);
    let cases = [
        ("POST", CHAT, "application/json", "{\"messages\": 3}", 400),
        ("POST", CHAT, "application/json", "{", 400),
        ("POST", CHAT, "application/json", "\u{1F980}", 400),
        ("POST", CHAT, "application/json", text, 400),
        ("POST", CHAT, "text/plain", text, 415),
        ("POST", COMPLETION, "application/json", long.as_str(), 413),
        ("POST", "/v1/nowhere", "application/json", "{}", 404),
        ("DELETE", CHAT, "application/json", "", 405),
        ("PUT", "/v1/plan", "application/toml", "mode = \"plain\"", 400),
        ("DELETE", "/v1/requests/nobody", "application/json", "", 404),
    ];
    let (method, path, media, body, wanted) = cases[number / 20 % cases.len()];
    let (status, _, answer) = service.send(method, path, &[("content-type", media)], body);
    // A plan is refused in other words while one is being swapped.
    if status == wanted || (path == "/v1/plan" && (400..500).contains(&status)) {
        return Outcome::Refused;
    }
    println!("{method} {path} was answered {status}, not {wanted}: {answer}");
    Outcome::Wrong
}

fn two_answers(service: &Service, question: Question, expected: &Expected) -> Outcome {
    let mut body = question.body();
    body["n"] = json!(2);
    match service.post(CHAT, &body) {
        (200, answer) if answer["choices"].as_array().is_some_and(|all| all.len() == 2) => {
            // The first answer has the request's own seed.
            expected.judge(question, text_of(&answer).unwrap_or("no text"))
        }
        (status, answer) => {
            println!("{status}: {answer}");
            Outcome::Lost
        }
    }
}

fn completed(service: &Service) -> Outcome {
    let body = json!({"prompt": ">>de<<I know.<sep>", "logprobs": 2, "max_tokens": 8});
    match service.post(COMPLETION, &body) {
        (200, answer) if answer["choices"][0]["text"].is_string() => Outcome::Answered,
        (status, answer) => {
            println!("{status}: {answer}");
            Outcome::Lost
        }
    }
}

fn looked(service: &Service, number: usize) -> Outcome {
    let paths = [
        "/metrics",
        "/v1/devices",
        "/v1/requests",
        "/v1/timeline",
        "/v1/plan",
        "/",
        "/v1/plan/history",
    ];
    let path = paths[number / 40 % paths.len()];
    match service.get(path).0 {
        200 => Outcome::Told,
        status => {
            println!("{path} was answered {status}");
            Outcome::Wrong
        }
    }
}
