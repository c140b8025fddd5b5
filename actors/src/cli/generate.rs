//! `outrider generate`: one prompt, its text to stdout as it comes, statistics to stderr.

use std::io::{self, Write as _};

use clap::Args;
use outrider_devices::Sampling;
use outrider_pipeline::Message;
use outrider_pipeline::scheduler::{FinishReason, GenerationParams, Statistics};
use outrider_plans::ModeKind;
use serde::Serialize;

use super::{CliError, Selection, in_system};
use crate::engine::Engine;
use crate::gateway::{WireTimings, wire_timings};
use crate::request::{RequestEvent, Timings};

/// What to write, and how.
#[derive(Args, Debug)]
pub(super) struct GenerateArguments {
    #[command(flatten)]
    selection: Selection,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Divides the logits of tokens that were there before; 1 changes nothing.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    #[arg(long, value_name = "A", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, once per occurrence.
    #[arg(long, value_name = "A", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the noise; the same seed writes the same text.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Most tokens to write.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// End before this text. May be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    /// Print one JSON object when done, instead of text.
    #[arg(long)]
    json: bool,
    /// The prompt.
    #[arg(value_name = "TEXT")]
    text: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    text: String,
    tokens: Vec<u32>,
    finish_reason: &'static str,
    plan: PlanName,
    timings: WireTimings,
}

#[derive(Serialize)]
struct PlanName {
    name: String,
    id: String,
    mode: ModeKind,
}

pub(super) fn run(arguments: GenerateArguments) -> Result<(), CliError> {
    in_system(async move {
        let engine = arguments.selection.engine().await?;
        let done = generate(&engine, &arguments).await;
        engine.stop();
        done
    })
}

async fn generate(engine: &Engine, arguments: &GenerateArguments) -> Result<(), CliError> {
    let prompt = if arguments.raw {
        engine.raw_prompt(&arguments.text)?
    } else {
        engine.chat_prompt(&[Message { role: "user".into(), content: arguments.text.clone() }])?
    };
    let mut params = arguments.params();
    if arguments.raw {
        params.begins = engine.tokenizer().begins_after(&prompt);
    }
    let (_, mut events) = engine.generate(prompt, params).await?;
    let (mut written, mut ids) = (String::new(), Vec::new());
    let mut out = io::stdout().lock();
    while let Some(event) = events.recv().await {
        match event {
            RequestEvent::Text { text, tokens } => {
                if !arguments.json {
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                }
                written.push_str(&text);
                ids.extend(tokens.iter().map(|token| token.pick.token));
            }
            RequestEvent::Finished { reason, statistics, timings } => {
                let finish_reason = match &reason {
                    FinishReason::Stop | FinishReason::StopString => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Cancelled => return Err("the request was cancelled".into()),
                    FinishReason::Failed { reason } => return Err(reason.clone().into()),
                };
                let plan = engine.plan();
                if arguments.json {
                    let plan = PlanName {
                        name: plan.name.clone(),
                        id: plan.fingerprint().to_string(),
                        mode: plan.mode.kind(),
                    };
                    let timings = wire_timings(&statistics, &timings);
                    let report =
                        Report { text: written, tokens: ids, finish_reason, plan, timings };
                    serde_json::to_writer(&mut out, &report)?;
                }
                writeln!(out)?;
                out.flush()?;
                drop(out);
                if !arguments.json {
                    print_statistics(&plan.name, &statistics, &timings);
                }
                return Ok(());
            }
        }
    }
    Err("the engine ended before the answer was complete".into())
}

impl GenerateArguments {
    fn params(&self) -> GenerationParams {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..Sampling::default()
        };
        GenerationParams {
            sampling,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ..GenerationParams::default()
        }
    }
}

#[expect(clippy::print_stderr, reason = "the command's own output")]
fn print_statistics(plan: &str, statistics: &Statistics, timings: &Timings) {
    let Statistics { prompt_n, predicted_n, draft_n, draft_n_accepted, .. } = statistics;
    // The first token belongs to the prompt's time.
    let rate = f64::from(predicted_n.saturating_sub(1)) / (timings.predicted_ms / 1e3).max(1e-9);
    let drafted = if *draft_n > 0 {
        let share = 100.0 * f64::from(*draft_n_accepted) / f64::from(*draft_n);
        format!("; {draft_n_accepted} of {draft_n} drafted tokens accepted ({share:.0} %)")
    } else {
        String::new()
    };
    eprintln!(
        "plan {plan}: {prompt_n} prompt tokens in {:.1} ms, {predicted_n} tokens in {:.1} ms ({rate:.0} tokens/s){drafted}",
        timings.prompt_ms, timings.predicted_ms,
    );
}
