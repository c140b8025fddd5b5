//! `outrider bench kernels`: how fast the CPU unit runs a model by rows of a pass, and how much of the memory's speed that is.
//!
//! *Invariant:* the figures are those of whole forwards; passes are timed in turns, so that noise meets all alike.

use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use outrider_devices::cpu::measure::{Bench, HeadRows, Pass, PassTime, read_bandwidth};
use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::gpu::GpuSelector;
use outrider_devices::graph::{LlamaShape, WeightFormat};
use outrider_devices::synthetic;
use outrider_devices::{CacheFormat, Subgraph};
use outrider_pipeline::ModelSource;
use outrider_plans::ModelRole;
use serde::Serialize;

use super::gpu_kernels;
use crate::cli::{CliError, print_json};

/// Times that the array is read to find the bandwidth.
const STREAM_REPEATS: usize = 12;
/// Rounds of small passes for one of the prompt.
const ROUNDS_PER_PROMPT: usize = 4;

/// What to time, and on which cores.
#[derive(Args, Debug)]
pub(super) struct KernelsArguments {
    /// Models: GGUF files, safetensors files, or directories with one. Default: the shipped pair.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Time a model of random weights instead.
    #[arg(long, value_name = "SIZE", conflicts_with = "files")]
    synthetic: Vec<Size>,
    /// Format of the random weights.
    #[arg(long, value_name = "FORMAT", default_value = "q8_0", requires = "synthetic")]
    format: Vec<Format>,
    /// Write the model of random weights to this GGUF file and time nothing: other engines can then run the same.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// With --write: random weights in the place of this GGUF file's, its shape, formats and tokenizer as they are. Such a
    /// file is a draft that is never right: `outrider bench --guard --draft` shows what it costs.
    #[arg(long, value_name = "FILE", requires = "write", conflicts_with_all = ["files", "synthetic"])]
    like: Option<PathBuf>,
    /// Cores to compute on, one thread pinned to each. Default: one thread, wherever the system puts it.
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Rows of a pass that are all judged, as when drafts are verified.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 3, 4, 6, 8, 12, 16])]
    rows: Vec<usize>,
    /// Positions cached before these rows.
    #[arg(long, value_name = "N", default_value_t = 64)]
    context: usize,
    /// How keys and values are cached: f16 or q8.
    #[arg(long, value_name = "FORMAT", default_value = "f16")]
    cache: CacheWord,
    /// Rows of a prompt; 0 times none.
    #[arg(long, value_name = "N", default_value_t = 256)]
    prompt: usize,
    /// Passes of each kind; figures are medians over them.
    #[arg(long, value_name = "N", default_value_t = 15)]
    runs: usize,
    /// Time a GPU instead: its number, a part of its name, or `best`.
    #[arg(long, value_name = "ADAPTER", conflicts_with_all = ["cores", "rows"])]
    gpu: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Sizes of models of random weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Size {
    /// 6 million parameters.
    #[value(name = "6m")]
    M6,
    /// 60 million parameters.
    #[value(name = "60m")]
    M60,
    /// 350 million parameters.
    #[value(name = "350m")]
    M350,
}

impl Size {
    fn name(self) -> &'static str {
        match self {
            Size::M6 => "6m",
            Size::M60 => "60m",
            Size::M350 => "350m",
        }
    }

    fn shape(self) -> LlamaShape {
        synthetic::shape(match self {
            Size::M6 => [4, 256, 4, 2, 768, 8192],
            Size::M60 => [8, 768, 12, 4, 2304, 8192],
            Size::M350 => [24, 1024, 16, 8, 3328, 32000],
        })
    }
}

/// Formats that random weights can have.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "f16")]
    F16,
    #[value(name = "bf16")]
    Bf16,
    #[value(name = "f32")]
    F32,
}

impl Format {
    fn of_weights(self) -> WeightFormat {
        match self {
            Format::Q8 => WeightFormat::Q8_0,
            Format::Q4 => WeightFormat::Q4_0,
            Format::Q4K => WeightFormat::Q4_K,
            Format::F16 => WeightFormat::F16,
            Format::Bf16 => WeightFormat::BF16,
            Format::F32 => WeightFormat::F32,
        }
    }
}

/// Formats of caches.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CacheWord {
    #[value(name = "f16")]
    F16,
    #[value(name = "q8", alias = "q8_0")]
    Q8,
}

impl CacheWord {
    fn format(self) -> CacheFormat {
        match self {
            CacheWord::F16 => CacheFormat::F16,
            CacheWord::Q8 => CacheFormat::Q8,
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(arguments: &KernelsArguments) -> Result<(), CliError> {
    if let Some(file) = &arguments.write {
        return write(arguments, file);
    }
    if arguments.runs == 0 || arguments.rows.contains(&0) {
        return Err("--runs and --rows must be at least 1".into());
    }
    if let Some(adapter) = &arguments.gpu {
        let selector = match (adapter.as_str(), adapter.parse()) {
            ("best", _) => GpuSelector::Best,
            (_, Ok(index)) => GpuSelector::Index(index),
            (part, Err(_)) => GpuSelector::NameContains(part.to_owned()),
        };
        let bench = gpu_kernels::Bench::open(&selector, arguments.runs as u32)?;
        let sizes = (arguments.context, arguments.prompt);
        let report = bench.report(subgraphs(arguments)?, sizes)?;
        if arguments.json {
            return print_json(&report);
        }
        print!("{report}");
        return Ok(());
    }
    let mut device =
        CpuDevice::new(CpuOptions { cores: arguments.cores.clone(), ..CpuOptions::default() })?;
    let mut models = Vec::new();
    for (name, model) in subgraphs(arguments)? {
        models.push(measure(&mut device, (name, &model?), arguments)?);
    }
    let threads = arguments.cores.len().max(1);
    let report =
        Report { isa: device.isa().to_string(), cores: arguments.cores.clone(), threads, models };
    if arguments.json {
        return print_json(&report);
    }
    print!("{report}");
    Ok(())
}

fn write(arguments: &KernelsArguments, file: &PathBuf) -> Result<(), CliError> {
    if let Some(like) = &arguments.like {
        let mut source =
            File::open(like).map_err(|error| format!("cannot read {}: {error}", like.display()))?;
        let mut out = BufWriter::new(File::create(file)?);
        return synthetic::randomised_gguf(&mut source, 1, &mut out)
            .and_then(|()| std::io::Write::flush(&mut out))
            .map_err(|error| {
                let (like, file) = (like.display(), file.display());
                format!("cannot write {file} with random weights for those of {like}: {error}")
                    .into()
            });
    }
    let ([size], [format]) = (arguments.synthetic.as_slice(), arguments.format.as_slice()) else {
        return Err("--write takes --like FILE, or one --synthetic size and one --format".into());
    };
    let failed = |error| format!("cannot write {}: {error}", file.display());
    let mut out = BufWriter::new(File::create(file).map_err(failed)?);
    synthetic::write_gguf(&size.shape(), format.of_weights(), 1, &mut out).map_err(failed)?;
    std::io::Write::flush(&mut out).map_err(failed)?;
    Ok(())
}

/// A model by name, or why it cannot be had.
type NamedModel = (String, Result<Subgraph, CliError>);

/// The models by name; one is made only when its turn has come.
fn subgraphs(
    arguments: &KernelsArguments,
) -> Result<Box<dyn Iterator<Item = NamedModel> + '_>, CliError> {
    if arguments.synthetic.is_empty() {
        let sources: Vec<_> = match arguments.files.as_slice() {
            [] if cfg!(feature = "embedded-models") => {
                [ModelRole::Target, ModelRole::Draft].map(ModelSource::Shipped).into()
            }
            [] => return Err("this build has no shipped models: name a file".into()),
            files => files.iter().cloned().map(ModelSource::File).collect(),
        };
        return Ok(Box::new(sources.into_iter().map(|source| {
            let checkpoint = match source.checkpoint() {
                Ok(checkpoint) => checkpoint,
                Err(error) => return (String::new(), Err(error.into())),
            };
            let layers = checkpoint.config().shape.layers;
            let whole = checkpoint
                .graph()
                .map_err(CliError::from)
                .and_then(|graph| Ok(Subgraph::cut("bench", &graph, 0, layers)?));
            (checkpoint.name().to_owned(), whole)
        })));
    }
    let sizes = arguments
        .synthetic
        .iter()
        .flat_map(|size| arguments.format.iter().map(move |format| (*size, format.of_weights())));
    Ok(Box::new(sizes.map(|(size, format)| {
        let shape = size.shape();
        let graph = synthetic::llama(&shape, format, 1);
        let whole = Subgraph::cut("bench", &graph, 0, shape.layers).map_err(CliError::from);
        (format!("random {} {format}", size.name()), whole)
    })))
}

fn measure(
    device: &mut CpuDevice,
    (name, model): (String, &Subgraph),
    arguments: &KernelsArguments,
) -> Result<ModelReport, CliError> {
    let context = arguments.context;
    let rows: Vec<_> =
        arguments.rows.iter().map(|&rows| Pass { rows, head: HeadRows::All, context }).collect();
    let prompt = Pass { rows: arguments.prompt, head: HeadRows::Last, context: 0 };
    let prompt: Vec<_> = (prompt.rows > 0).then_some(prompt).into_iter().collect();
    let passes = [rows.as_slice(), &prompt].concat();
    let mut bench = Bench::new(device, model, (&passes, arguments.cache.format()))?;
    let mut times = bench.times(&rows, arguments.runs)?;
    times.extend(bench.times(&prompt, arguments.runs.div_ceil(ROUNDS_PER_PROMPT))?);
    let memory = bench.memory();
    let stream = read_bandwidth(device, memory.weights as usize, STREAM_REPEATS)?;
    let one = times.iter().find(|t| t.pass.rows == 1).map(|t| t.median.as_secs_f64());
    let passes = times.iter().map(|time| PassReport::of(time, (memory.weights, stream), one));
    Ok(ModelReport {
        model: name,
        weight_bytes: memory.weights,
        cache_bytes: memory.caches,
        scratch_bytes: memory.scratch,
        stream_gb_per_s: stream / 1e9,
        passes: passes.collect(),
    })
}

/// All figures.
#[derive(Debug, Serialize)]
struct Report {
    isa: String,
    cores: Vec<usize>,
    threads: usize,
    models: Vec<ModelReport>,
}

/// One model's figures.
#[derive(Debug, Serialize)]
struct ModelReport {
    model: String,
    /// Packed weights, which a forward reads at least once.
    weight_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    /// Speed at which the same threads read an array as large as the weights.
    stream_gb_per_s: f64,
    passes: Vec<PassReport>,
}

/// One pass.
#[derive(Debug, Serialize)]
struct PassReport {
    rows: usize,
    context: usize,
    head_rows: usize,
    median_us: f64,
    best_us: f64,
    /// Weights over the median time.
    gb_per_s: f64,
    /// The same over the stream's speed.
    share_of_stream: f64,
    /// Over the time of one row, where that was measured.
    over_one_row: Option<f64>,
    tokens_per_s: f64,
}

impl PassReport {
    fn of(time: &PassTime, (bytes, stream): (u64, f64), one: Option<f64>) -> Self {
        let PassTime { pass, best, median } = time;
        let median_s = median.as_secs_f64().max(1e-9);
        let rate = bytes as f64 / median_s;
        let head_rows = match pass.head {
            HeadRows::All => pass.rows,
            HeadRows::Last => 1,
        };
        Self {
            rows: pass.rows,
            context: pass.context,
            head_rows,
            median_us: median_s * 1e6,
            best_us: best.as_secs_f64() * 1e6,
            gb_per_s: rate / 1e9,
            share_of_stream: rate / stream,
            over_one_row: one.map(|one| median_s / one),
            tokens_per_s: pass.rows as f64 / median_s,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: Vec<_> = self.cores.iter().map(usize::to_string).collect();
        let pinned = match cores.as_slice() {
            [] => "not pinned".to_owned(),
            cores => format!("on cores {}", cores.join(",")),
        };
        writeln!(f, "{}, threads {}, {pinned}", self.isa, self.threads)?;
        for model in &self.models {
            writeln!(
                f,
                "\n{}: {:.1} MB of packed weights; an array as large is read at {:.1} GB/s",
                model.model,
                model.weight_bytes as f64 / 1e6,
                model.stream_gb_per_s
            )?;
            writeln!(
                f,
                "{:>6} {:>8} {:>11} {:>11} {:>7} {:>10} {:>10} {:>9}",
                "rows",
                "context",
                "median us",
                "best us",
                "GB/s",
                "of stream",
                "over 1 row",
                "tokens/s"
            )?;
            for pass in &model.passes {
                let over = pass.over_one_row.map_or("-".to_owned(), |over| format!("{over:.2}"));
                writeln!(
                    f,
                    "{:>6} {:>8} {:>11.1} {:>11.1} {:>7.1} {:>9.0}% {:>10} {:>9.0}",
                    pass.rows,
                    pass.context,
                    pass.median_us,
                    pass.best_us,
                    pass.gb_per_s,
                    pass.share_of_stream * 100.0,
                    over,
                    pass.tokens_per_s
                )?;
            }
        }
        Ok(())
    }
}
