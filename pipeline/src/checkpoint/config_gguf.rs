//! Hyper-parameters from the metadata of a GGUF file.

use outrider_devices::graph::RopeStyle;

use super::CheckpointError;
use super::config::{Names, Raw, SpecialIds, Tied};
use super::gguf::Metadata;
use super::rope::RopeScaling;
use super::tensors::Tensors;

/// Tensor of divisors of the rotation's angles.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

const NAMES: Names = Names {
    layers: "llama.block_count",
    width: "llama.embedding_length",
    heads: "llama.attention.head_count",
    kv_heads: "llama.attention.head_count_kv",
    head_dim: "llama.attention.key_length",
    ffn: "llama.feed_forward_length",
    vocabulary: "llama.vocab_size",
    context: "llama.context_length",
    norm_epsilon: "llama.attention.layer_norm_rms_epsilon",
    rope_theta: "llama.rope.freq_base",
    special: "tokenizer.ggml.*_token_id",
};

/// Reads what a llama model needs; the shapes of tensors are checked later, against this.
///
/// # Errors
/// Another architecture, fields that are missing or cannot be, variants that are not supported.
pub(crate) fn read<'a>(
    metadata: &'a Metadata,
    tensors: &Tensors,
) -> Result<Raw<'a>, CheckpointError> {
    let architecture = metadata
        .text("general.architecture")?
        .ok_or_else(|| metadata.missing("general.architecture"))?;
    if architecture != "llama" {
        return Err(CheckpointError::UnsupportedArchitecture {
            file: metadata.file.clone(),
            architecture: super::error::shortened(architecture),
        });
    }
    let need = |key| metadata.size(key)?.ok_or_else(|| metadata.missing(key));
    let heads =
        metadata.size_or_uniform(NAMES.heads)?.ok_or_else(|| metadata.missing(NAMES.heads))?;
    let raw = Raw {
        file: &metadata.file,
        names: &NAMES,
        layers: need(NAMES.layers)?,
        width: need(NAMES.width)?,
        heads,
        kv_heads: metadata.size_or_uniform(NAMES.kv_heads)?.unwrap_or(heads),
        head_dim: metadata.size(NAMES.head_dim)?,
        ffn: metadata.size_or_uniform(NAMES.ffn)?.ok_or_else(|| metadata.missing(NAMES.ffn))?,
        vocabulary: vocabulary(metadata, tensors)?,
        context: need(NAMES.context)?,
        norm_epsilon: metadata
            .number(NAMES.norm_epsilon)?
            .ok_or_else(|| metadata.missing(NAMES.norm_epsilon))?,
        rope_style: RopeStyle::Adjacent,
        rope_theta: metadata.number(NAMES.rope_theta)?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(metadata, tensors)?,
        tied: match tensors.entries.contains_key("output.weight") {
            true => Tied::No,
            false => Tied::Yes,
        },
        special: special(metadata)?,
    };
    variants(metadata, &raw)?;
    Ok(raw)
}

/// The embedding's rows, which converters may have padded beyond the token list.
fn vocabulary(metadata: &Metadata, tensors: &Tensors) -> Result<usize, CheckpointError> {
    if let Some(entry) = tensors.entries.get("token_embd.weight") {
        return Ok(entry.dimensions[0]);
    }
    metadata.size(NAMES.vocabulary)?.ok_or_else(|| CheckpointError::MissingTensor {
        file: metadata.file.clone(),
        tensor: "token_embd.weight".to_owned(),
    })
}

/// Refuses variants of the architecture that compute something else.
fn variants(metadata: &Metadata, raw: &Raw<'_>) -> Result<(), CheckpointError> {
    let head_dim = raw.head_dim.or_else(|| raw.width.checked_div(raw.heads));
    for (key, expected) in [
        ("llama.rope.dimension_count", head_dim),
        ("llama.attention.value_length", head_dim),
        ("llama.expert_count", Some(0)),
    ] {
        match (metadata.size(key)?, expected) {
            (Some(found), Some(expected)) if found != expected => {
                let file = &metadata.file;
                let expected = format!("{expected} (other variants are not supported)");
                return Err(CheckpointError::bad_field(file, key, expected, found));
            }
            _ => {}
        }
    }
    Ok(())
}

fn rope_scaling(metadata: &Metadata, tensors: &Tensors) -> Result<RopeScaling, CheckpointError> {
    let kind = metadata.text("llama.rope.scaling.type")?.unwrap_or("none");
    let key = "llama.rope.scaling.factor";
    let scaling = match kind {
        "none" => match metadata.number("llama.rope.scale_linear")? {
            Some(factor) => RopeScaling::Linear { factor },
            None => RopeScaling::None,
        },
        "linear" => {
            let factor = metadata.number(key)?.ok_or_else(|| metadata.missing(key))?;
            RopeScaling::Linear { factor }
        }
        other => {
            let (key, expected) = ("llama.rope.scaling.type", "\"none\" or \"linear\"");
            return Err(CheckpointError::bad_field(&metadata.file, key, expected, other));
        }
    };
    if let RopeScaling::Linear { factor } = scaling
        && !(factor.is_finite() && factor > 0.0)
    {
        return Err(CheckpointError::bad_field(&metadata.file, key, "a number above 0", factor));
    }
    let factors = tensors.entries.contains_key(ROPE_FACTORS);
    match scaling {
        RopeScaling::None if factors => Ok(RopeScaling::Factors),
        RopeScaling::Linear { .. } if factors => {
            let expected = "absent, since the file has divisors in rope_freqs.weight";
            Err(CheckpointError::bad_field(&metadata.file, key, expected, "linear scaling"))
        }
        other => Ok(other),
    }
}

fn special(metadata: &Metadata) -> Result<SpecialIds, CheckpointError> {
    let id = |name: &str| metadata.token(&format!("tokenizer.ggml.{name}_token_id"));
    Ok(SpecialIds {
        bos: id("bos")?,
        // End of text, of turn, of message: generation stops at each.
        eos: [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect(),
        pad: id("padding")?,
    })
}
