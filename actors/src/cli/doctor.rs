//! `outrider doctor`: tries everything that a service needs on this machine, and says what to do where it fails.
//!
//! *Invariant:* it changes nothing. What it reports as good it has tried, not assumed.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Args;
use outrider_devices::discovery::Machine;
use outrider_pipeline::scheduler::GenerationParams;
use outrider_pipeline::{Message, Speculation};
use serde::Serialize;

use super::serve::ServeArguments;
use super::settings::Settings;
use super::{CliError, in_system, print_json};
use crate::engine::Engine;
use crate::request::RequestEvent;

/// What is written to see whether the engine works.
const PROBE: &str = "The battery is almost empty. Connect the charger.";

/// What to examine.
#[derive(Args, Debug)]
pub(super) struct DoctorArguments {
    #[command(flatten)]
    serve: ServeArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How one thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    Mind,
    Bad,
}

/// One thing that was tried.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    detail: String,
}

/// Why the examination ends with exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the things that a service needs are not right; each is named above")]
struct Unwell(usize);

pub(super) fn run(arguments: DoctorArguments, settings: &Settings) -> Result<(), CliError> {
    let mut findings = vec![configuration(settings), machine(), door(&arguments.serve)];
    findings.extend(key_files(settings, &arguments.serve));
    let json = arguments.json;
    findings.extend(in_system(async move { Ok(decoding(&arguments.serve).await) })?);
    if json {
        print_json(&findings)?;
    } else {
        print(&findings);
    }
    match findings.iter().filter(|finding| finding.state == State::Bad).count() {
        0 => Ok(()),
        bad => Err(Unwell(bad).into()),
    }
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
fn print(findings: &[Finding]) {
    for Finding { what, state, detail } in findings {
        let mark = match state {
            State::Good => "good",
            State::Mind => "mind",
            State::Bad => "BAD ",
        };
        println!("{mark}  {what:<14} {detail}");
    }
}

fn finding<T, E: std::fmt::Display>(
    what: &'static str,
    tried: &Result<T, E>,
    good: impl FnOnce(&T) -> String,
) -> Finding {
    match tried {
        Ok(found) => Finding { what, state: State::Good, detail: good(found) },
        Err(error) => Finding { what, state: State::Bad, detail: error.to_string() },
    }
}

fn configuration(settings: &Settings) -> Finding {
    let detail = match &settings.file {
        Some(file) => format!("{} is right", file.display()),
        None => "no outrider.toml, so flags, environment and defaults hold".to_owned(),
    };
    Finding { what: "configuration", state: State::Good, detail }
}

fn machine() -> Finding {
    let machine = Machine::here();
    let threads = machine.threads_max();
    let memory = machine
        .memory_free()
        .map_or("unknown memory".into(), |bytes| format!("{} MiB of memory free", bytes >> 20));
    let mut detail = format!("{threads} cores, {memory}");
    for unknown in &machine.unknown {
        detail += &format!("; {unknown}");
    }
    let state = if machine.unknown.is_empty() { State::Good } else { State::Mind };
    Finding { what: "machine", state, detail }
}

/// Tries the door: whether it may be opened, and whether the port is free.
fn door(serve: &ServeArguments) -> Finding {
    let tried = serve.gateway().and_then(|options| {
        let address = (options.host.as_str(), options.port);
        TcpListener::bind(address)
            .map_err(|error| format!("cannot listen on {}:{}: {error}", address.0, address.1))?;
        Ok(options)
    });
    let mut found = finding("door", &tried, |o| format!("{}:{} is free", o.host, o.port));
    if let Ok(options) = &tried
        && !options.keys.guard_inference()
    {
        found.detail += ", no key is needed";
    }
    found
}

/// Keys that others on the machine can read are not secret.
fn key_files(settings: &Settings, serve: &ServeArguments) -> Vec<Finding> {
    let holds_keys = settings.sets("api_key") || settings.sets("admin_key");
    let own = settings.file.as_deref().filter(|_| holds_keys);
    let readable = |file: &Path| {
        let mode = std::fs::metadata(file).ok()?.permissions().mode();
        (mode & 0o044 != 0).then(|| Finding {
            what: "keys",
            state: State::Mind,
            detail: format!("{0} can be read by others: chmod 600 {0}", file.display()),
        })
    };
    own.into_iter().chain(serve.key_files()).filter_map(readable).collect()
}

/// Loads the models, and writes one text with the plan and one without speculation.
async fn decoding(serve: &ServeArguments) -> Vec<Finding> {
    let pair = serve.selection.pair();
    let mut findings = vec![finding("models", &pair, |pair| {
        let draft = pair.draft.as_ref().map_or("no draft", |draft| draft.name());
        format!("{} with {draft}", pair.target.name())
    })];
    let Ok(pair) = pair else { return findings };
    let plan = serve.selection.plan(&pair);
    findings.push(finding("plan", &plan, |plan| format!("{} ({})", plan.name, plan.mode)));
    if plan.is_err() {
        return findings;
    }
    let engine = serve.selection.engine().await;
    findings.push(finding("units", &engine, |_| "every unit runs its stages".into()));
    let Ok(engine) = engine else { return findings };
    let alone = probe(&engine, Speculation::Off).await;
    let planned = probe(&engine, Speculation::Plan).await;
    findings.push(finding("decoding", &planned, |probe| {
        format!("{} tokens at {:.0} tokens/s", probe.tokens.len(), probe.rate)
    }));
    if let (Ok(alone), Ok(planned)) = (alone, planned) {
        findings.push(match alone.tokens == planned.tokens {
            true => Finding {
                what: "losslessness",
                state: State::Good,
                detail: "the text is the target's own, token for token".into(),
            },
            false => Finding {
                what: "losslessness",
                state: State::Bad,
                detail: "speculation changes the text: please report this machine".into(),
            },
        });
    }
    engine.stop();
    findings
}

struct Probe {
    tokens: Vec<u32>,
    rate: f64,
}

async fn probe(engine: &Engine, speculation: Speculation) -> Result<Probe, CliError> {
    let prompt = match engine.chat_prompt(&[Message { role: "user".into(), content: PROBE.into() }])
    {
        Ok(prompt) => prompt,
        // A model without a chat template still completes.
        Err(_) => engine.raw_prompt(PROBE)?,
    };
    let params =
        GenerationParams { max_tokens: Some(32), speculation, ..GenerationParams::default() };
    let (_, mut events) = engine.generate(prompt, params).await?;
    let mut tokens = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            RequestEvent::Text { tokens: new, .. } => {
                tokens.extend(new.iter().map(|token| token.pick.token));
            }
            RequestEvent::Finished { timings, .. } => {
                let seconds = (timings.prompt_ms + timings.predicted_ms) / 1e3;
                let rate = tokens.len() as f64 / seconds.max(1e-9);
                return Ok(Probe { tokens, rate });
            }
        }
    }
    Err("the engine ended before the text was complete".into())
}
