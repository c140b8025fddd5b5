//! Models with random weights, for conformance tests, benches and planning: right in shape and cost, without meaning.
//!
//! *Invariant:* the weights are a pure function of (shape, format, seed), equal on every machine.

use std::io::{Read, Seek, Write};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Tensor as CandleTensor};

use crate::graph::{
    Graph, LlamaShape, LlamaTensor, Rope, RopeStyle, Weight, WeightBytes, WeightFormat,
};

/// A shape small enough for the plain-loop oracle: width 64, 4 heads in 2 groups, vocabulary 96.
pub fn tiny(layers: usize) -> LlamaShape {
    shape([layers, 64, 4, 2, 96, 96])
}

/// The shape `[layers, width, heads, kv_heads, ffn, vocabulary]` with the usual rotation (base 10,000, adjacent pairs).
pub fn shape([layers, width, heads, kv_heads, ffn, vocabulary]: [usize; 6]) -> LlamaShape {
    let head_dim = width / heads;
    let inverse_frequencies = inverse_frequencies(head_dim, 10_000.0);
    let rope = Rope { style: RopeStyle::Adjacent, head_dim, inverse_frequencies };
    LlamaShape { layers, width, heads, kv_heads, ffn, vocabulary, norm_epsilon: 1e-5, rope }
}

/// `base^(-2i / head_dim)` for each pair i, computed in `f64`.
pub fn inverse_frequencies(head_dim: usize, base: f64) -> Arc<[f32]> {
    (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect()
}

/// A llama model of plain ops with weights of `format` (norms in `F32`). Embedding and head are tied.
///
/// Panics if `format` has no quantiser, or a width is not a whole number of its blocks.
pub fn llama(shape: &LlamaShape, format: WeightFormat, seed: u64) -> Graph {
    let mut noise = Noise(seed ^ 0x9e37_79b9_7f4a_7c15);
    let mut embedding: Option<Weight> = None;
    let built: Result<Graph, std::convert::Infallible> = shape.graph(|tensor| {
        if let (LlamaTensor::Output, Some(tied)) = (tensor, &embedding) {
            return Ok(tied.clone());
        }
        let (rows, cols) = shape.of(tensor);
        let name = format!("{tensor:?}");
        let weight = if rows == 1 {
            let values: Vec<f32> = (0..cols).map(|_| 1.0 + 0.2 * noise.uniform()).collect();
            quantised(name, WeightFormat::F32, (rows, cols), &values)
        } else {
            let scale = (3.0 / cols as f32).sqrt();
            let values: Vec<f32> = (0..rows * cols).map(|_| scale * noise.uniform()).collect();
            quantised(name, format, (rows, cols), &values)
        };
        if tensor == LlamaTensor::Embedding {
            embedding = Some(weight.clone());
        }
        Ok(weight)
    });
    built.unwrap_or_else(|never| match never {})
}

/// A weight holding `values` rounded to `format` by candle's quantisers.
///
/// Panics if `format` has none, or `shape` does not fit it.
pub fn quantised(
    name: String,
    format: WeightFormat,
    shape: (usize, usize),
    values: &[f32],
) -> Weight {
    let tensor =
        CandleTensor::from_slice(values, shape, &Device::Cpu).expect("a matrix of this shape");
    let tensor = QTensor::quantize(&tensor, format.ggml()).expect("a format with a quantiser");
    let bytes = tensor.data().expect("a tensor in memory").into_owned();
    Weight::new(name, format, shape, WeightBytes::Owned(bytes.into())).expect("a fitting size")
}

/// Writes a synthetic llama as a GGUF file without a tokenizer, so that other engines can be timed on the same weights.
///
/// # Errors
/// What the writer says.
pub fn write_gguf(
    shape: &LlamaShape,
    format: WeightFormat,
    seed: u64,
    out: &mut (impl Write + Seek),
) -> std::io::Result<()> {
    let graph = llama(shape, format, seed);
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    for weight in &graph.weights {
        let name = gguf_name(&weight.name);
        // The tied output is the embedding once more.
        if tensors.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let dimensions =
            if weight.rows == 1 { vec![weight.cols] } else { vec![weight.rows, weight.cols] };
        let tensor =
            qtensor_from_ggml(weight.format.ggml(), weight.bytes(), dimensions, &Device::Cpu)
                .map_err(std::io::Error::other)?;
        tensors.push((name, tensor));
    }
    let number = |x: usize| Value::U32(x as u32);
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", number(shape.layers)),
        ("llama.context_length", number(2048)),
        ("llama.embedding_length", number(shape.width)),
        ("llama.feed_forward_length", number(shape.ffn)),
        ("llama.attention.head_count", number(shape.heads)),
        ("llama.attention.head_count_kv", number(shape.kv_heads)),
        ("llama.rope.dimension_count", number(shape.rope.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(shape.norm_epsilon)),
        ("llama.vocab_size", number(shape.vocabulary)),
        ("tokenizer.ggml.model", Value::String("none".into())),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(out, &metadata, &tensors).map_err(std::io::Error::other)
}

/// Copies a GGUF file with random weights in the place of its matrices: same shape, formats and tokenizer, no meaning.
///
/// # Errors
/// What reader and writer say, and formats that have no quantiser.
pub fn randomised_gguf(
    source: &mut (impl Read + Seek),
    seed: u64,
    out: &mut (impl Write + Seek),
) -> std::io::Result<()> {
    let content = gguf_file::Content::read(source).map_err(std::io::Error::other)?;
    let mut names: Vec<_> = content.tensor_infos.keys().collect();
    names.sort();
    let mut noise = Noise(seed ^ 0x9e37_79b9_7f4a_7c15);
    let mut tensors = Vec::new();
    for name in names {
        let tensor = content.tensor(source, name, &Device::Cpu).map_err(std::io::Error::other)?;
        let random = match tensor.shape().dims() {
            &[rows, cols] => {
                let scale = (3.0 / cols as f32).sqrt();
                let values: Vec<f32> = (0..rows * cols).map(|_| scale * noise.uniform()).collect();
                CandleTensor::from_vec(values, (rows, cols), &Device::Cpu)
                    .and_then(|values| QTensor::quantize(&values, tensor.dtype()))
                    .map_err(std::io::Error::other)?
            }
            _ => tensor,
        };
        tensors.push((name.as_str(), random));
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata: Vec<_> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(out, &metadata, &tensors).map_err(std::io::Error::other)
}

/// The name in a GGUF file of a tensor of [`llama`], such as `Query(3)`.
fn gguf_name(name: &str) -> String {
    let (kind, layer) = name.trim_end_matches(')').split_once('(').unwrap_or((name, ""));
    let part = match kind {
        "Embedding" => return "token_embd.weight".into(),
        "Output" => return "output.weight".into(),
        "OutputNorm" => return "output_norm.weight".into(),
        "AttentionNorm" => "attn_norm",
        "Query" => "attn_q",
        "Key" => "attn_k",
        "Value" => "attn_v",
        "AttentionOutput" => "attn_output",
        "FfnNorm" => "ffn_norm",
        "Gate" => "ffn_gate",
        "Up" => "ffn_up",
        "Down" => "ffn_down",
        other => unreachable!("{other} is no tensor of a llama"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// SplitMix64, enough to fill weights.
struct Noise(u64);

impl Noise {
    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
