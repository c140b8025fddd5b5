//! What a checkpoint contains, for people and for scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use outrider_devices::cpu::CpuDevice;
use serde::Serialize;

use super::{Checkpoint, CheckpointError, CheckpointKind, RopeScaling, Tied};

/// Tensors of one class in one storage format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FormatUse {
    /// `embedding`, `attention`, `feed-forward`, `norm`, `output` or `other`.
    pub class: &'static str,
    /// Storage format, such as `Q8_0`.
    pub format: String,
    /// How many.
    pub tensors: usize,
    /// Weights in all of them.
    pub parameters: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// The format in which the CPU unit computes with them: the same, or the one that they are converted to at load.
    pub cpu_format: String,
}

/// What a checkpoint contains.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// File or directory.
    pub file: String,
    /// File format.
    pub kind: CheckpointKind,
    /// Model family.
    pub architecture: &'static str,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Base of the rotation's frequencies.
    pub rope_theta: f64,
    /// How positions were stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output projection is the embedding.
    pub tied_embeddings: bool,
    /// Weights in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Storage formats by class of tensors.
    pub formats: Vec<FormatUse>,
    /// Kind of tokenizer.
    pub tokenizer: String,
    /// Tokens that it knows.
    pub tokens: usize,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub eos: BTreeSet<u32>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

impl Checkpoint {
    /// What the checkpoint contains.
    ///
    /// # Errors
    /// A tokenizer or a template that cannot be read.
    pub fn summary(&self) -> Result<Summary, CheckpointError> {
        let tokenizer = self.tokenizer()?;
        let formats = self.formats();
        let shape = &self.config.shape;
        Ok(Summary {
            file: self.name().to_owned(),
            kind: self.kind(),
            architecture: "llama",
            layers: shape.layers,
            width: shape.width,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.rope.head_dim,
            ffn: shape.ffn,
            vocabulary: shape.vocabulary,
            context: self.config.context,
            rope_theta: self.config.rope_theta,
            rope_scaling: self.config.rope_scaling,
            tied_embeddings: self.config.tied == Tied::Yes,
            parameters: formats.iter().map(|f| f.parameters).sum(),
            bytes: formats.iter().map(|f| f.bytes).sum(),
            formats,
            tokenizer: tokenizer.kind().to_string(),
            tokens: tokenizer.vocabulary().len(),
            bos: tokenizer.bos(),
            eos: tokenizer.eos_ids().clone(),
            chat_template: self.template_source()?.is_some(),
        })
    }

    fn formats(&self) -> Vec<FormatUse> {
        let mut uses = BTreeMap::<_, FormatUse>::new();
        for (name, entry) in &self.tensors.entries {
            let (class, format) = (class(name), entry.format.to_string());
            let cpu_format = CpuDevice::stored_format(entry.format).to_string();
            let entry_use = uses.entry((class, format.clone())).or_insert(FormatUse {
                class,
                format,
                tensors: 0,
                parameters: 0,
                bytes: 0,
                cpu_format,
            });
            entry_use.tensors += 1;
            entry_use.parameters += entry.dimensions.iter().product::<usize>() as u64;
            entry_use.bytes += entry.range.len() as u64;
        }
        uses.into_values().collect()
    }
}

impl FormatUse {
    /// What happens to them at load, for people: nothing to say of norms, which are few and always computed in `F32`.
    fn on_the_cpu(&self) -> String {
        match self.class {
            "norm" => String::new(),
            _ if self.cpu_format == self.format => "; repacked at load as they are".to_owned(),
            _ => format!("; converted at load to {}", self.cpu_format),
        }
    }
}

/// The class of a tensor by its name in either format.
fn class(name: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["norm"]) {
        "norm"
    } else if has(&["token_embd", "embed_tokens"]) {
        "embedding"
    } else if has(&["attn_", "self_attn"]) {
        "attention"
    } else if has(&["ffn_", "mlp"]) {
        "feed-forward"
    } else if has(&["output", "lm_head"]) {
        "output"
    } else {
        "other"
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let million = |count: u64| count as f64 / 1e6;
        writeln!(f, "{}", self.file)?;
        writeln!(f, "  architecture  {} ({:?})", self.architecture, self.kind)?;
        writeln!(
            f,
            "  parameters    {:.1} M in {:.1} MiB",
            million(self.parameters),
            mib(self.bytes)
        )?;
        writeln!(
            f,
            "  shape         {} layers, width {}, {} heads of {} ({} for keys and values), feed-forward {}",
            self.layers, self.width, self.heads, self.head_dim, self.kv_heads, self.ffn
        )?;
        let tied = if self.tied_embeddings { ", tied to the output" } else { "" };
        writeln!(f, "  vocabulary    {}{tied}", self.vocabulary)?;
        writeln!(
            f,
            "  positions     {} (rope theta {}, scaling {:?})",
            self.context, self.rope_theta, self.rope_scaling
        )?;
        for used in &self.formats {
            writeln!(
                f,
                "  {:<13} {} tensors in {}, {:.1} M parameters, {:.1} MiB{}",
                used.class,
                used.tensors,
                used.format,
                million(used.parameters),
                mib(used.bytes),
                used.on_the_cpu()
            )?;
        }
        let bos = self.bos.map_or("none".to_owned(), |id| id.to_string());
        let eos: Vec<_> = self.eos.iter().map(u32::to_string).collect();
        writeln!(
            f,
            "  tokenizer     {}, {} tokens, begins with {bos}, ends with {}",
            self.tokenizer,
            self.tokens,
            eos.join(" or ")
        )?;
        let template = if self.chat_template { "present" } else { "none" };
        write!(f, "  chat template {template}")
    }
}
