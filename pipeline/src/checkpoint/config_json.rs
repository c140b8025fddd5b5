//! Hyper-parameters from the `config.json` (and `generation_config.json`) of a Hugging Face checkpoint.

use std::collections::BTreeSet;

use outrider_devices::graph::RopeStyle;

use super::CheckpointError;
use super::config::{Names, Raw, SpecialIds, Tied};
use super::json_file::Fields;
use super::rope::RopeScaling;

const NAMES: Names = Names {
    layers: "num_hidden_layers",
    width: "hidden_size",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    ffn: "intermediate_size",
    vocabulary: "vocab_size",
    context: "max_position_embeddings",
    norm_epsilon: "rms_norm_eps",
    rope_theta: "rope_theta",
    special: "bos_token_id, eos_token_id or pad_token_id",
};

/// Reads what a llama model needs; the shapes of tensors are checked later, against this.
///
/// # Errors
/// Another architecture, fields that are missing or cannot be, variants that are not supported.
pub(crate) fn read<'a>(
    config: Fields<'a>,
    generation: Option<Fields<'a>>,
) -> Result<Raw<'a>, CheckpointError> {
    let model_type = config.text("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    if model_type != "llama" {
        return Err(CheckpointError::UnsupportedArchitecture {
            file: config.file.to_owned(),
            architecture: super::error::shortened(model_type),
        });
    }
    variants(config)?;
    let need = |field| config.size(field)?.ok_or_else(|| config.missing(field));
    let heads = need(NAMES.heads)?;
    let rope = match (config.object("rope_parameters")?, config.object("rope_scaling")?) {
        (Some(map), _) => Some(Fields { prefix: "rope_parameters.", map, ..config }),
        (None, Some(map)) => Some(Fields { prefix: "rope_scaling.", map, ..config }),
        (None, None) => None,
    };
    // Newer files keep the base beside the scaling.
    let nested = rope.map(|rope| rope.number(NAMES.rope_theta)).transpose()?.flatten();
    let mut eos: BTreeSet<u32> = config.tokens("eos_token_id")?.into_iter().collect();
    if let Some(generation) = generation {
        eos.extend(generation.tokens("eos_token_id")?);
    }
    Ok(Raw {
        file: config.file,
        names: &NAMES,
        layers: need(NAMES.layers)?,
        width: need(NAMES.width)?,
        heads,
        kv_heads: config.size(NAMES.kv_heads)?.unwrap_or(heads),
        head_dim: config.size(NAMES.head_dim)?,
        ffn: need(NAMES.ffn)?,
        vocabulary: need(NAMES.vocabulary)?,
        context: need(NAMES.context)?,
        norm_epsilon: config
            .number(NAMES.norm_epsilon)?
            .ok_or_else(|| config.missing(NAMES.norm_epsilon))?,
        rope_style: RopeStyle::Halves,
        rope_theta: nested.or(config.number(NAMES.rope_theta)?).unwrap_or(10_000.0),
        rope_scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling)?,
        tied: match config.flag("tie_word_embeddings")? {
            Some(true) => Tied::Yes,
            _ => Tied::No,
        },
        special: SpecialIds {
            bos: config.tokens("bos_token_id")?.first().copied(),
            eos,
            pad: config.tokens("pad_token_id")?.first().copied(),
        },
    })
}

/// Refuses variants of the architecture that compute something else.
fn variants(config: Fields<'_>) -> Result<(), CheckpointError> {
    for field in ["attention_bias", "mlp_bias"] {
        if config.flag(field)? == Some(true) {
            return Err(config.bad(field, "false (biases are not supported)"));
        }
    }
    if config.text("hidden_act")?.is_some_and(|name| name != "silu") {
        return Err(config.bad("hidden_act", "\"silu\""));
    }
    if config.number("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
        return Err(config.bad("partial_rotary_factor", "1"));
    }
    Ok(())
}

fn rope_scaling(rope: Fields<'_>) -> Result<RopeScaling, CheckpointError> {
    let positive = |field| match rope.number(field)? {
        Some(x) if x.is_finite() && x > 0.0 => Ok(x),
        Some(_) => Err(rope.bad(field, "a number above 0")),
        None => Err(rope.missing(field)),
    };
    // Older files say `type`.
    let field = if rope.map.contains_key("rope_type") { "rope_type" } else { "type" };
    match rope.text(field)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: positive("factor")? }),
        Some("llama3") => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            if high <= low {
                return Err(rope.bad("high_freq_factor", "more than low_freq_factor"));
            }
            Ok(RopeScaling::Llama3 {
                factor: positive("factor")?,
                low,
                high,
                original_context: positive("original_max_position_embeddings")?,
            })
        }
        Some(_) => Err(rope.bad(field, "\"default\", \"linear\" or \"llama3\"")),
    }
}
