//! `outrider bench --check-devices`: whether a target on a GPU writes what it writes on the processor, and if not, why.
//!
//! The processor writes each answer; the GPU then reads it, and both give the logits of every position. Where the likeliest
//! tokens differ first, the two texts part. *Definition:* that is a near tie if, on each device, its own token leads the
//! other's by no more than twice the bound: the largest difference that any logit has between the devices over all rows that
//! agree. Each of the two logits then lies within its bound of a value at which the tie would have gone the other way.

use std::fmt;
use std::sync::Arc;

use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::gpu::GpuSelector;
use outrider_devices::{
    Batch, CacheFormat, Device, Executable, Output, Sampling, Segment, SequenceId, SlotLimits, Want,
};
use outrider_pipeline::Speculation;
use outrider_plans::{ModeKind, ModelRole, StageId, default_plan_in};
use serde::Serialize;

use super::{BenchArguments, PROMPTS, Writer, prompts};
use crate::cli::{CliError, print_json};
use crate::gpu_tuning;

/// Where two texts part.
#[derive(Clone, Debug, Serialize)]
struct Parting {
    prompt: String,
    /// Tokens that both wrote before.
    after_tokens: usize,
    /// What each device writes next, and by how much its logit leads the other's there.
    cpu: (u32, f32),
    gpu: (u32, f32),
    near_tie: bool,
}

/// All texts.
#[derive(Clone, Debug, Serialize)]
struct Report {
    gpu: String,
    texts: usize,
    tokens: usize,
    identical: usize,
    near_ties: usize,
    /// Texts that part where no near tie is.
    different: usize,
    /// The largest difference of a logit between the devices over rows that agree, and their largest logit.
    bound: f32,
    largest_logit: f32,
    partings: Vec<Parting>,
}

/// One position, as both devices see it.
struct Row<'a> {
    cpu: &'a [f32],
    gpu: &'a [f32],
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) async fn run(arguments: &BenchArguments) -> Result<(), CliError> {
    let report = compare(arguments).await?;
    if arguments.json {
        print_json(&report)?;
    } else {
        print!("{report}");
    }
    match report.different {
        0 => Ok(()),
        n => Err(format!("{n} texts part where no near tie is: the devices disagree").into()),
    }
}

async fn compare(arguments: &BenchArguments) -> Result<Report, CliError> {
    let prompts = prompts(arguments, PROMPTS)?;
    let pair = arguments.selection.pair()?;
    let limits = arguments.selection.limits();
    let plan = default_plan_in(ModeKind::Plain, &limits.plan_context(&pair))?;
    let writer = Writer::start(arguments, &pair, &plan).await?;

    let layers = pair.target.config().shape.layers;
    let whole =
        pair.subgraph(StageId { role: ModelRole::Target, layer_first: 0, layer_end: layers });
    let positions_max = pair.context_length();
    let slots =
        SlotLimits { sequences_max: 1, positions_max, rows_max: 64, cache: CacheFormat::F16 };
    let mut gpu_device = gpu_tuning::open(&GpuSelector::Best)?;
    let mut gpu = gpu_device.prepare(&whole, slots)?;
    let mut cpu = CpuDevice::new(CpuOptions::default())?.prepare(&whole, slots)?;

    let mut report = Report {
        gpu: gpu_device.adapter().name.clone(),
        texts: prompts.len(),
        tokens: 0,
        identical: 0,
        near_ties: 0,
        different: 0,
        bound: 0.0,
        largest_logit: 0.0,
        partings: Vec::new(),
    };
    for text in prompts {
        let message = outrider_pipeline::Message { role: "user".into(), content: text.clone() };
        let prompt = writer.engine.chat_prompt(&[message])?;
        let (answer, _, _) = writer.generate(arguments, &text, Speculation::Plan).await?;
        report.tokens += answer.len();
        let mut tokens = prompt.clone();
        tokens.extend(&answer);
        let judged = answer.len() + 1;
        let logits = [&mut cpu, &mut gpu].map(|device| read(&mut **device, &tokens, judged));
        let [cpu_logits, gpu_logits] = logits;
        report.add(text, (&answer, &cpu_logits?, &gpu_logits?));
    }
    writer.engine.stop();
    report.judge();
    Ok(report)
}

/// The logits of the last `judged` rows of `tokens`.
fn read(
    executable: &mut dyn Executable,
    tokens: &[u32],
    judged: usize,
) -> Result<Vec<f32>, CliError> {
    let sequence = SequenceId(1);
    let mut logits = Vec::new();
    let first_judged = tokens.len() - judged;
    for (index, part) in tokens.chunks(64).enumerate() {
        let base = index * 64;
        let wanted = (base + part.len()).saturating_sub(first_judged.max(base)) as u32;
        let segment = Segment {
            sequence,
            base: base as u32,
            tokens: part.to_vec(),
            want: if wanted == 0 { Want::Nothing } else { Want::Logits(wanted) },
            sampling: Arc::new(Sampling::default()),
        };
        match executable.run(&Batch { segments: vec![segment] }, None)? {
            Output::Picked(picked) => logits.extend(picked.logits),
            Output::Activations(_) => return Err("a whole model gave activations".into()),
        }
    }
    executable.release(sequence);
    Ok(logits)
}

/// The likeliest token: the lowest of the best.
fn best(row: &[f32]) -> usize {
    let better = |best: usize, (index, logit): (usize, &f32)| {
        if *logit > row[best] { index } else { best }
    };
    row.iter().enumerate().fold(0, better)
}

impl Report {
    fn add(&mut self, prompt: String, (answer, cpu, gpu): (&[u32], &[f32], &[f32])) {
        let vocabulary = cpu.len() / (answer.len() + 1);
        let rows = cpu.chunks_exact(vocabulary).zip(gpu.chunks_exact(vocabulary));
        for (index, (cpu, gpu)) in rows.enumerate() {
            let row = Row { cpu, gpu };
            if let Some(parting) = row.parting(prompt.clone(), index) {
                self.partings.push(parting);
                return;
            }
            let differences = cpu.iter().zip(gpu).map(|(a, b)| (a - b).abs());
            self.bound = differences.fold(self.bound, f32::max);
            self.largest_logit = cpu.iter().fold(self.largest_logit, |most, x| most.max(x.abs()));
        }
        self.identical += 1;
    }

    /// Says of each parting what it is, once the bound is known.
    fn judge(&mut self) {
        for parting in &mut self.partings {
            parting.near_tie = parting.cpu.1.max(parting.gpu.1) <= 2.0 * self.bound;
        }
        self.near_ties = self.partings.iter().filter(|parting| parting.near_tie).count();
        self.different = self.partings.len() - self.near_ties;
    }
}

impl Row<'_> {
    fn parting(&self, prompt: String, after_tokens: usize) -> Option<Parting> {
        let (a, b) = (best(self.cpu), best(self.gpu));
        (a != b).then(|| Parting {
            prompt,
            after_tokens,
            cpu: (a as u32, self.cpu[a] - self.cpu[b]),
            gpu: (b as u32, self.gpu[b] - self.gpu[a]),
            near_tie: false,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu, texts, tokens, identical, near_ties, different, .. } = self;
        writeln!(f, "the processor and {gpu}: {texts} texts, {tokens} tokens")?;
        writeln!(
            f,
            "{identical} identical, {near_ties} part at a near tie, {different} part elsewhere; logits of up to {:.1} differ by at most {:.4}",
            self.largest_logit, self.bound
        )?;
        for parting in &self.partings {
            let Parting { prompt, after_tokens, cpu, gpu, near_tie } = parting;
            let kind = if *near_tie { "near tie" } else { "DIFFERENT" };
            writeln!(
                f,
                "{kind} after {after_tokens} tokens: processor {} leads by {:.5}, GPU {} by {:.5}: {prompt}",
                cpu.0, cpu.1, gpu.0, gpu.1
            )?;
        }
        Ok(())
    }
}
