//! Models with random weights, for conformance tests, benches and planning: right in shape and cost, without meaning.
//!
//! *Invariant:* the weights are a pure function of (shape, format, seed), equal on every machine.

use std::sync::Arc;

use candle_core::quantized::QTensor;
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
