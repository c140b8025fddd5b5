//! From a checkpoint's tensors to the graph of plain ops.
//!
//! *Invariant:* every tensor of the checkpoint is used, or is known to change nothing. One that is neither means that
//! the file holds a variant of the architecture, which must not be computed as if it were the plain one.

use std::collections::HashSet;

use outrider_devices::Graph;
use outrider_devices::graph::{LlamaShape, LlamaTensor as Tensor};
use outrider_devices::graph::{Rope, Weight};

use super::CheckpointError;
use super::config::{ModelConfig, Tied};
use super::config_gguf::ROPE_FACTORS;
use super::rope::{self, RopeScaling};
use super::tensors::Tensors;

/// How a format names the tensors of the architecture.
pub(crate) type Naming = fn(Tensor) -> String;

/// GGUF files.
pub(crate) fn gguf_name(tensor: Tensor) -> String {
    let (layer, part) = match tensor {
        Tensor::Embedding => return "token_embd.weight".to_owned(),
        Tensor::OutputNorm => return "output_norm.weight".to_owned(),
        Tensor::Output => return "output.weight".to_owned(),
        Tensor::AttentionNorm(layer) => (layer, "attn_norm"),
        Tensor::Query(layer) => (layer, "attn_q"),
        Tensor::Key(layer) => (layer, "attn_k"),
        Tensor::Value(layer) => (layer, "attn_v"),
        Tensor::AttentionOutput(layer) => (layer, "attn_output"),
        Tensor::FfnNorm(layer) => (layer, "ffn_norm"),
        Tensor::Gate(layer) => (layer, "ffn_gate"),
        Tensor::Up(layer) => (layer, "ffn_up"),
        Tensor::Down(layer) => (layer, "ffn_down"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// Hugging Face checkpoints.
pub(crate) fn hugging_face_name(tensor: Tensor) -> String {
    let (layer, part) = match tensor {
        Tensor::Embedding => return "model.embed_tokens.weight".to_owned(),
        Tensor::OutputNorm => return "model.norm.weight".to_owned(),
        Tensor::Output => return "lm_head.weight".to_owned(),
        Tensor::AttentionNorm(layer) => (layer, "input_layernorm"),
        Tensor::Query(layer) => (layer, "self_attn.q_proj"),
        Tensor::Key(layer) => (layer, "self_attn.k_proj"),
        Tensor::Value(layer) => (layer, "self_attn.v_proj"),
        Tensor::AttentionOutput(layer) => (layer, "self_attn.o_proj"),
        Tensor::FfnNorm(layer) => (layer, "post_attention_layernorm"),
        Tensor::Gate(layer) => (layer, "mlp.gate_proj"),
        Tensor::Up(layer) => (layer, "mlp.up_proj"),
        Tensor::Down(layer) => (layer, "mlp.down_proj"),
    };
    format!("model.layers.{layer}.{part}.weight")
}

/// Builds the graph of the whole model; its weights stay where they lie.
///
/// # Errors
/// Tensors that are missing, of another shape, or not a part of the architecture.
pub(crate) fn graph(
    tensors: &Tensors,
    naming: Naming,
    config: &ModelConfig,
) -> Result<Graph, CheckpointError> {
    let mut used = HashSet::new();
    let shape = &config.shape;
    let graph = shape.graph(|tensor| -> Result<Weight, CheckpointError> {
        let name = match (tensor, config.tied) {
            (Tensor::Output, Tied::Yes) => naming(Tensor::Embedding),
            _ => naming(tensor),
        };
        let weight = tensors.weight(&name, shape.of(tensor))?;
        used.insert(name);
        Ok(weight)
    })?;
    let unknown =
        tensors.entries.keys().find(|name| !used.contains(*name) && !ignored(name, config));
    match unknown {
        Some(name) => Err(CheckpointError::UnknownTensor {
            file: tensors.origin.clone(),
            tensor: super::error::shortened(name),
        }),
        None => Ok(graph),
    }
}

/// Tensors that change nothing: angles that are computed here anyway, divisors that are in the shape already, a copy
/// of the embedding.
fn ignored(name: &str, config: &ModelConfig) -> bool {
    name == ROPE_FACTORS
        || name.ends_with("rotary_emb.inv_freq")
        || (config.tied == Tied::Yes && name == "lm_head.weight")
}

/// The configuration with the angles' divisors applied, if the checkpoint has any.
///
/// # Errors
/// A tensor of divisors of the wrong shape, or with divisors that are not above 0.
pub(crate) fn apply_rope_factors(
    config: ModelConfig,
    tensors: &Tensors,
) -> Result<ModelConfig, CheckpointError> {
    if config.rope_scaling != RopeScaling::Factors {
        return Ok(config);
    }
    let rope = &config.shape.rope;
    let factors = tensors
        .weight(ROPE_FACTORS, (1, rope.head_dim / 2))?
        .to_f32()
        .map_err(|source| CheckpointError::Weight { file: tensors.origin.clone(), source })?;
    let frequencies = rope::divide(&rope.inverse_frequencies, &factors);
    if !factors.iter().all(|f| *f > 0.0) || !frequencies.iter().all(|f| f.is_finite()) {
        let detail = format!("tensor {ROPE_FACTORS} has a divisor that is not a number above 0");
        return Err(CheckpointError::malformed(&tensors.origin, detail));
    }
    let rope = Rope { inverse_frequencies: frequencies.into(), ..rope.clone() };
    Ok(ModelConfig { shape: LlamaShape { rope, ..config.shape }, ..config })
}
