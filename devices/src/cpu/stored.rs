//! What the CPU unit keeps of a checkpoint's weights: which format, and single rows read where they lie.
//!
//! *Invariant:* a row of the embedding is never copied whole tables at a time; it is decoded from the checkpoint's
//! bytes when its token comes.

use half::{bf16, f16};

use super::kernels::tile::Packing;
use crate::graph::{Weight, WeightBytes, WeightError, WeightFormat};

/// The format in which this unit computes with weights of `format`: the same, or the one it is converted to at load.
pub(crate) fn stored_format(format: WeightFormat) -> WeightFormat {
    match format {
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_0
        | WeightFormat::Q4_K
        | WeightFormat::Q8_0 => format,
        WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q2_K
        | WeightFormat::Q3_K
        | WeightFormat::Q5_K
        | WeightFormat::Q6_K
        | WeightFormat::Q8_K => WeightFormat::Q8_0,
    }
}

/// The packing of a stored format.
pub(crate) fn packing(stored: WeightFormat) -> Packing {
    match stored {
        WeightFormat::F32 => Packing::F32,
        WeightFormat::F16 => Packing::F16,
        WeightFormat::BF16 => Packing::Bf16,
        WeightFormat::Q4_0 => Packing::Q4,
        WeightFormat::Q4_K => Packing::Q4K,
        _ => Packing::Q8,
    }
}

/// Bytes of row `row`.
pub(crate) fn row_bytes(weight: &Weight, row: usize) -> &[u8] {
    let bytes = weight.bytes().len() / weight.rows;
    &weight.bytes()[row * bytes..][..bytes]
}

fn half_of(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Decodes row `row` into the first `weight.cols` elements of `out`.
pub(crate) fn decode_row(weight: &Weight, row: usize, out: &mut [f32]) -> Result<(), WeightError> {
    let bytes = row_bytes(weight, row);
    let out = &mut out[..weight.cols];
    match weight.format {
        WeightFormat::F32 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*x);
            }
        }
        WeightFormat::F16 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*x).to_f32();
            }
        }
        WeightFormat::BF16 => {
            for (out, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*x).to_f32();
            }
        }
        WeightFormat::Q8_0 => {
            for (out, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.chunks_exact(34)) {
                let scale = half_of(block);
                for (out, &q) in out.iter_mut().zip(&block[2..]) {
                    *out = scale * f32::from(q as i8);
                }
            }
        }
        WeightFormat::Q4_0 => {
            for (out, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.chunks_exact(18)) {
                let scale = half_of(block);
                let (low, high) = out.split_at_mut(16);
                for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
                    *low = scale * (f32::from(q & 15) - 8.0);
                    *high = scale * (f32::from(q >> 4) - 8.0);
                }
            }
        }
        _ => {
            let (name, shape) = (weight.name.clone(), (1, weight.cols));
            let bytes = WeightBytes::Owned(bytes.into());
            out.copy_from_slice(&Weight::new(name, weight.format, shape, bytes)?.to_f32()?);
        }
    }
    Ok(())
}
