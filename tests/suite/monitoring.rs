//! Dashboard, recording rules and alerts: right by themselves, and right about a service that runs.
//!
//! *Invariant:* what they name is in `/metrics`, so that a renamed metric cannot leave a panel or an alert behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Service, agent};

/// Panels of the dashboard that show nothing while all is well, and why.
const EMPTY_WHILE_ALL_IS_WELL: &[(&str, &str)] =
    &[("Bytes between units", "nothing is sent between units unless a model is split")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("observability")
}

/// Whether a program of Prometheus is here. Where the tests must not be skipped, it must be.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    let required = std::env::var_os("OUTRIDER_REQUIRE_PROMETHEUS").is_some();
    assert!(found || !required, "OUTRIDER_REQUIRE_PROMETHEUS is set, but there is no {program}");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(folder()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
    assert!(output.status.success(), "promtool {arguments:?}:\n{}", said.concat());
}

/// Panels with the expressions that they show.
fn panels() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(folder().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        (title, targets.map(|t| t["expr"].as_str().unwrap().to_owned()).collect())
    };
    dashboard["panels"].as_array().unwrap().iter().map(panel).collect()
}

/// The metrics that a text in PromQL, YAML or JSON names; recorded series, whose names have colons, are none.
fn names_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !word(c))
        .filter(|w| w.starts_with("outrider_") && !w.contains(':'))
        .map(str::to_owned)
        .collect()
}

/// The metrics of an exposition, histograms with their three series.
fn exposed(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let ends: &[&str] =
            if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        names.extend(ends.iter().map(|end| format!("{name}{end}")));
    }
    names
}

#[test]
fn the_rules_are_right_and_each_alert_speaks_when_it_should() {
    if installed("promtool") {
        promtool(&["check", "rules", "rules.yml"]);
        promtool(&["test", "rules", "rules_test.yml"]);
        promtool(&["check", "config", "--syntax-only", "prometheus.yml"]);
    }
}

#[test]
fn every_alert_is_tested_both_silent_and_speaking() {
    let read = |name: &str| fs::read_to_string(folder().join(name)).unwrap();
    let (rules, tests) = (read("rules.yml"), read("rules_test.yml"));
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut count = 0;
    for alert in alerts {
        count += 1;
        let silent = format!("alertname: {alert}, eval_time: 40m, exp_alerts: []");
        assert!(tests.contains(&silent), "{alert} is not tested to be silent");
        let speaking = format!("- alertname: {alert}\n");
        assert!(tests.contains(&speaking), "{alert} is not tested to speak");
    }
    assert!(count > 10, "only {count} alerts were found");
}

#[test]
fn a_prometheus_that_scrapes_the_service_fills_every_panel_and_no_alert_fires() {
    if !installed("prometheus") {
        return;
    }
    // Two units, so that there is something to overlap; and drafts also while the machine is too busy for them to pay.
    let service = Service::start(&["--plan", "overlap-two-cores", "--guard=false"]);
    translate(&service);
    let prometheus = Prometheus::scraping(&service);
    prometheus.await_scrapes(3);
    // Rates want some since the first scrapes.
    let (mut tries, before) = (0, drafted(&service));
    while tries < 3 || drafted(&service) == before {
        translate(&service);
        tries += 1;
        assert!(tries < 100, "nothing was drafted");
    }
    let scrapes = prometheus.scrapes();
    prometheus.await_scrapes(scrapes + 3);

    let (_, text) = service.get("/metrics");
    let exposed = exposed(&text);
    // Made when a model that is split hands on its first activations.
    let on_demand = BTreeSet::from(["outrider_device_transfer_bytes_total".to_owned()]);
    for file in ["dashboard.json", "rules.yml"] {
        let named = names_in(&fs::read_to_string(folder().join(file)).unwrap());
        let missing: Vec<_> =
            named.difference(&exposed).filter(|n| !on_demand.contains(*n)).collect();
        assert!(missing.is_empty(), "{file} names what /metrics does not have: {missing:?}");
    }

    let mut queries = 0;
    for (title, expressions) in panels() {
        for expression in expressions {
            let query = expression.replace("$__rate_interval", "1m").replace("$instance", ".+");
            let found = prometheus.query(&query);
            let may_be_empty = EMPTY_WHILE_ALL_IS_WELL.iter().any(|(panel, _)| *panel == title);
            assert!(may_be_empty || !found.is_empty(), "`{title}` shows nothing: {query}");
            queries += 1;
        }
    }
    assert!(queries > 20, "the dashboard has only {queries} queries");

    let number = |series: &Value| series["value"][1].as_str().unwrap().parse::<f64>().unwrap();
    let acceptance = prometheus.query("instance:outrider_spec_decode_acceptance:ratio_rate5m");
    let acceptance = acceptance.first().map(number).unwrap();
    assert!((0.1..=1.0).contains(&acceptance), "acceptance {acceptance}");
    let busy = prometheus.query("instance_device_role:outrider_device_busy:rate1m > 0");
    assert_eq!(busy.len(), 2, "a target and a draft: {busy:?}");

    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
        if rule["type"] == "recording" {
            let name = rule["name"].as_str().unwrap();
            assert!(!prometheus.query(name).is_empty(), "{name} records nothing");
        }
    }
}

fn drafted(service: &Service) -> f64 {
    service.metric("outrider_spec_decode_num_draft_tokens_total")
}

fn translate(service: &Service) {
    let content = "Please restart the computer to finish the installation.";
    let body = json!({"messages": [{"role": "user", "content": content}]});
    assert_eq!(service.post("/v1/chat/completions", &body).0, 200);
}

/// A Prometheus of its own, with this repository's configuration and rules.
struct Prometheus {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(service: &Service) -> Self {
        let own = tempfile::tempdir().unwrap();
        let shipped = fs::read_to_string(folder().join("prometheus.yml")).unwrap();
        let config = shipped
            .replace("127.0.0.1:8080", service.address())
            .replace(": 5s", ": 1s")
            .replace("rules.yml", folder().join("rules.yml").to_str().unwrap());
        let file = own.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", own.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next() else { panic!("prometheus ended:\n{said}") };
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once("msg=\"Listening on\" address=") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
            said.push_str(&line);
            said.push('\n');
        };
        // Whoever does not read a pipe blocks its writer.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url: format!("http://{address}"), _folder: own }
    }

    fn get(&self, path: &str) -> Value {
        let mut response = agent().get(format!("{}{path}", self.url)).call().unwrap();
        let status = response.status();
        // While it starts, it answers with a text.
        let answer: Value = response.body_mut().read_json().unwrap_or_default();
        assert!(status != 400 && status != 422, "{path}: {answer}");
        answer["data"].clone()
    }

    /// The series that an instant query finds.
    fn query(&self, query: &str) -> Vec<Value> {
        let escaped: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        let data = self.get(&format!("/api/v1/query?query={escaped}"));
        data["result"].as_array().cloned().unwrap_or_default()
    }

    fn rules(&self) -> Vec<Value> {
        let groups = self.get("/api/v1/rules")["groups"].as_array().cloned().unwrap();
        let rules: Vec<Value> =
            groups.iter().flat_map(|g| g["rules"].as_array().cloned().unwrap()).collect();
        assert!(!rules.is_empty());
        rules
    }

    /// How often the service was scraped.
    fn scrapes(&self) -> usize {
        let scrapes = self.query("count_over_time(up{job=\"outrider\"}[10m])");
        let scraped = scrapes.first().and_then(|s| s["value"][1].as_str()?.parse().ok());
        scraped.unwrap_or(0)
    }

    /// Waits until the service was scraped so often.
    fn await_scrapes(&self, count: usize) {
        let started = Instant::now();
        while self.scrapes() < count {
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(120), "{} scrapes of {count}", self.scrapes());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
