//! `outrider plan apply|diff|history|rollback`: the plan of a running service, over its HTTP interface.
//!
//! *Invariant:* the service decides; what is printed here is what it answered.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::select::plan_text;
use super::{CliError, print_json};

/// A swap waits for weights to be packed; a service that does not answer at all is given up sooner by its connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// Which service.
#[derive(Args, Debug)]
pub(super) struct ServiceArguments {
    /// Where the service listens.
    #[arg(long, value_name = "URL", env = "OUTRIDER_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The key of its administrator, if it asks for one.
    #[arg(long, value_name = "KEY", env = "OUTRIDER_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// Print the service's JSON.
    #[arg(long)]
    json: bool,
}

/// A plan, and the service that shall run it.
#[derive(Args, Debug)]
pub(super) struct ApplyArguments {
    /// Plan file, or the name of a shipped plan.
    #[arg(value_name = "PLAN")]
    plan: String,
    /// Refuse unless the service runs this generation.
    #[arg(long, value_name = "N")]
    expected_generation: Option<u64>,
    #[command(flatten)]
    service: ServiceArguments,
}

impl ServiceArguments {
    fn agent(&self) -> Agent {
        let config = Agent::config_builder().http_status_as_error(false);
        config.timeout_global(Some(ANSWER_WITHIN)).build().into()
    }

    fn key(&self) -> String {
        self.admin_key.as_ref().map(|key| format!("Bearer {key}")).unwrap_or_default()
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }

    fn get(&self, path: &str) -> Result<Value, CliError> {
        let request = self.agent().get(self.at(path)).header("authorization", self.key());
        self.read(request.call())
    }

    fn post(&self, path: &str) -> Result<Value, CliError> {
        let request = self.agent().post(self.at(path)).header("authorization", self.key());
        self.read(request.send_empty())
    }

    /// The answer's JSON, or what the service says is wrong.
    fn read(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Value, CliError> {
        let mut answer = answer.map_err(|error| {
            format!("no answer from {}: {error}; is the service running there?", self.url)
        })?;
        let status = answer.status();
        let body: Value = answer
            .body_mut()
            .read_json()
            .map_err(|error| format!("{} answered {status}, and not in JSON: {error}", self.url))?;
        if status.is_success() {
            return Ok(body);
        }
        let message = body["error"]["message"].as_str().unwrap_or("it does not say why");
        Err(format!("the service refused ({status}): {message}").into())
    }
}

impl ApplyArguments {
    fn put(&self, dry_run: &str) -> Result<Value, CliError> {
        let text = plan_text(&self.plan)?;
        let service = &self.service;
        let mut request = service
            .agent()
            .put(service.at("/v1/plan"))
            .header("authorization", service.key())
            .content_type("application/toml")
            .query("dry_run", dry_run);
        if let Some(generation) = self.expected_generation {
            request = request.query("expected_generation", generation.to_string());
        }
        service.read(request.send(&text))
    }
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn apply(arguments: &ApplyArguments) -> Result<(), CliError> {
    let report = arguments.put("false")?;
    if arguments.service.json {
        return print_json(&report);
    }
    println!(
        "plan {} ({}) runs as generation {}",
        word(&report["plan"]),
        word(&report["id"]),
        report["generation"]
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn diff(arguments: &ApplyArguments) -> Result<(), CliError> {
    let report = arguments.put("true")?;
    if arguments.service.json {
        return print_json(&report);
    }
    print!("{}", word(&report["changes"]));
    for extra in report["memory"].as_array().into_iter().flatten() {
        let mib = |key: &str| extra[key].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
        println!(
            "{}: {:.1} MiB more while both plans are there, {:.1} MiB are free, {:.1} MiB are given back",
            word(&extra["place"]),
            mib("extra_bytes"),
            mib("free_bytes"),
            mib("freed_bytes")
        );
    }
    let forecast = &report["forecast"];
    match (forecast["tokens_per_second"].as_f64(), forecast["running_tokens_per_second"].as_f64()) {
        (Some(new), Some(old)) => {
            println!("forecast: {new:.0} tokens/s, the running plan {old:.0} tokens/s");
        }
        _ => println!("no forecast: {}", word(&forecast["unknown"])),
    }
    let caches = &report["caches"];
    println!("caches: target {}, draft {}", word(&caches["target"]), word(&caches["draft"]));
    if caches["target"] == "fresh" {
        println!("new requests go to the new target; those that have begun end on the running one");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn history(arguments: &ServiceArguments) -> Result<(), CliError> {
    let report = arguments.get("/v1/plan/history")?;
    if arguments.json {
        return print_json(&report);
    }
    for entry in report["history"].as_array().into_iter().flatten() {
        let (generation, error) = (&entry["generation"], word(&entry["error"]));
        let number = generation.as_u64().map_or("-".to_owned(), |number| number.to_string());
        println!(
            "{number:>4}  {:<9}  {:<24}  {:>9.1} ms  {}{}{error}",
            word(&entry["result"]),
            word(&entry["name"]),
            entry["took_ms"].as_f64().unwrap_or(0.0),
            word(&entry["because"]),
            if error.is_empty() { "" } else { ": " },
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn rollback(arguments: &ServiceArguments) -> Result<(), CliError> {
    let report = arguments.post("/v1/plan/rollback")?;
    if arguments.json {
        return print_json(&report);
    }
    println!(
        "plan {} ({}) runs again, as generation {}",
        word(&report["plan"]),
        word(&report["id"]),
        report["generation"]
    );
    Ok(())
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
