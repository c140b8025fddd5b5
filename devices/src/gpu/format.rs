//! The formats that weights have on the device, and the conversion of every checkpoint format to one of them.
//!
//! *Invariant:* Q8_0, Q4_0, Q4_1, Q5_0 and F16 convert without loss; Q4_K only rounds the products of its two-level
//! scales to half precision; the rest is rounded to 8 bits a weight, which errs less than those formats did themselves.

use half::f16;

use crate::graph::{Weight, WeightError, WeightFormat};

/// Weights that share a scale on the device.
pub(super) const BLOCK: usize = 32;

/// How a weight is stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredFormat {
    /// 8-bit integers, a half-precision scale for each 32.
    Q8,
    /// 4-bit integers less 8, a half-precision scale for each 32.
    Q4,
    /// 4-bit integers, a half-precision scale and offset for each 32.
    Q4Offset,
    /// Half precision.
    F16,
}

impl StoredFormat {
    /// What `format` is stored as.
    pub fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Q8_0 => StoredFormat::Q8,
            WeightFormat::Q4_0 => StoredFormat::Q4,
            WeightFormat::Q4_1 | WeightFormat::Q4_K => StoredFormat::Q4Offset,
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => StoredFormat::F16,
            WeightFormat::Q5_0
            | WeightFormat::Q5_1
            | WeightFormat::Q2_K
            | WeightFormat::Q3_K
            | WeightFormat::Q5_K
            | WeightFormat::Q6_K
            | WeightFormat::Q8_K => StoredFormat::Q8,
        }
    }

    /// One format for projections that a kernel fuses: their common one, else the smallest that holds all.
    pub(super) fn common(formats: impl Iterator<Item = WeightFormat>) -> Self {
        let mut all = formats.map(Self::of);
        let first = all.next().expect("a matrix has at least one weight");
        all.fold(first, |a, b| match (a, b) {
            (a, b) if a == b => a,
            (StoredFormat::F16, _) | (_, StoredFormat::F16) => StoredFormat::F16,
            _ => StoredFormat::Q8,
        })
    }

    /// Columns of one row in a 32-bit word.
    pub(super) fn word_columns(self) -> usize {
        match self {
            StoredFormat::Q8 => 4,
            StoredFormat::Q4 | StoredFormat::Q4Offset => 8,
            StoredFormat::F16 => 2,
        }
    }

    /// 32-bit words of scales for a tile's block: 4 rows by 32 columns.
    pub(super) fn scale_words(self) -> usize {
        match self {
            StoredFormat::Q8 | StoredFormat::Q4 => 2,
            StoredFormat::Q4Offset => 4,
            StoredFormat::F16 => 0,
        }
    }
}

/// One row of a weight in a stored format, its columns padded to whole blocks with zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredRow {
    /// Bits of each column: 8 for Q8, 4 for Q4 and Q4Offset, 16 for F16.
    pub(super) codes: Vec<u16>,
    /// Half-precision bits for each block; empty for F16.
    pub(super) scales: Vec<u16>,
    /// Half-precision bits for each block; only for Q4Offset.
    pub(super) offsets: Vec<u16>,
}

impl StoredRow {
    /// A row of zeros.
    pub(super) fn zeros(format: StoredFormat, columns: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        let code = if format == StoredFormat::Q4 { 8 } else { 0 };
        let per = |there: bool| vec![0; if there { blocks } else { 0 }];
        Self {
            codes: vec![code; blocks * BLOCK],
            scales: per(format != StoredFormat::F16),
            offsets: per(format == StoredFormat::Q4Offset),
        }
    }
}

/// Reads rows of one weight in a stored format.
pub(super) struct RowReader<'a> {
    weight: &'a Weight,
    format: StoredFormat,
    /// All values, where the checkpoint's bits do not translate directly.
    values: Option<Vec<f32>>,
}

impl<'a> RowReader<'a> {
    pub(super) fn new(weight: &'a Weight, format: StoredFormat) -> Result<Self, WeightError> {
        let direct = matches!(
            (weight.format, format),
            (WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q5_0, StoredFormat::Q8)
                | (WeightFormat::Q4_0, StoredFormat::Q4)
                | (WeightFormat::Q4_1 | WeightFormat::Q4_K, StoredFormat::Q4Offset)
                | (WeightFormat::F16, StoredFormat::F16)
        );
        let values = if direct { None } else { Some(weight.to_f32()?) };
        Ok(Self { weight, format, values })
    }

    /// Row `row` of the weight.
    pub(super) fn row(&self, row: usize) -> StoredRow {
        let columns = self.weight.cols;
        let mut stored = StoredRow::zeros(self.format, columns);
        if let Some(values) = &self.values {
            let values = &values[row * columns..][..columns];
            match self.format {
                StoredFormat::F16 => {
                    for (code, value) in stored.codes.iter_mut().zip(values) {
                        *code = f16::from_f32(*value).to_bits();
                    }
                }
                StoredFormat::Q8 => quantise_q8(values, &mut stored),
                StoredFormat::Q4 | StoredFormat::Q4Offset => {
                    unreachable!("no format is rounded to 4 bits")
                }
            }
            return stored;
        }
        let row_bytes = self.weight.bytes().len() / self.weight.rows;
        let bytes = &self.weight.bytes()[row * row_bytes..][..row_bytes];
        match self.weight.format {
            WeightFormat::F16 => {
                for (code, pair) in stored.codes.iter_mut().zip(bytes.chunks_exact(2)) {
                    *code = half_at(pair, 0);
                }
            }
            WeightFormat::Q8_0 => read_q8_0(bytes, &mut stored),
            WeightFormat::Q4_0 if self.format == StoredFormat::Q8 => {
                read_q4_0_as_q8(bytes, &mut stored)
            }
            WeightFormat::Q4_0 => read_q4(bytes, 2, &mut stored),
            WeightFormat::Q4_1 => read_q4(bytes, 4, &mut stored),
            WeightFormat::Q5_0 => read_q5_0(bytes, &mut stored),
            WeightFormat::Q4_K => read_q4_k(bytes, &mut stored),
            other => unreachable!("{other} is read through its values"),
        }
        stored
    }
}

fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn byte_code(value: i32) -> u16 {
    u16::from(value as i8 as u8)
}

/// Rounds to 8 bits: the scale is the largest magnitude of a block over 127.
fn quantise_q8(values: &[f32], stored: &mut StoredRow) {
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let scale = f16::from_f32(largest / 127.0);
        stored.scales[block] = scale.to_bits();
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        for (i, value) in values.iter().enumerate() {
            let code = (value * inverse).round().clamp(-127.0, 127.0) as i32;
            stored.codes[block * BLOCK + i] = byte_code(code);
        }
    }
}

/// Blocks of a half-precision scale and 32 signed bytes.
fn read_q8_0(bytes: &[u8], stored: &mut StoredRow) {
    for (block, bytes) in bytes.chunks_exact(34).enumerate() {
        stored.scales[block] = half_at(bytes, 0);
        for (i, byte) in bytes[2..].iter().enumerate() {
            stored.codes[block * BLOCK + i] = u16::from(*byte);
        }
    }
}

/// Blocks of `head` bytes (a scale, and an offset if 4) and 16 bytes: element i in the low, i + 16 in the high nibble.
fn read_q4(bytes: &[u8], head: usize, stored: &mut StoredRow) {
    for (block, bytes) in bytes.chunks_exact(head + 16).enumerate() {
        stored.scales[block] = half_at(bytes, 0);
        if head == 4 {
            stored.offsets[block] = half_at(bytes, 2);
        }
        for (i, byte) in bytes[head..].iter().enumerate() {
            stored.codes[block * BLOCK + i] = u16::from(byte & 15);
            stored.codes[block * BLOCK + 16 + i] = u16::from(byte >> 4);
        }
    }
}

fn read_q4_0_as_q8(bytes: &[u8], stored: &mut StoredRow) {
    read_q4(bytes, 2, stored);
    for code in &mut stored.codes {
        *code = byte_code(i32::from(*code) - 8);
    }
}

/// Blocks of a scale, 32 fifth bits and 16 bytes as in Q4_0; a weight is its 5 bits less 16.
fn read_q5_0(bytes: &[u8], stored: &mut StoredRow) {
    for (block, bytes) in bytes.chunks_exact(22).enumerate() {
        stored.scales[block] = half_at(bytes, 0);
        let fifth = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
        for (i, byte) in bytes[6..].iter().enumerate() {
            let low = i32::from(byte & 15) | ((fifth >> i & 1) << 4) as i32;
            let high = i32::from(byte >> 4) | ((fifth >> (i + 16) & 1) << 4) as i32;
            stored.codes[block * BLOCK + i] = byte_code(low - 16);
            stored.codes[block * BLOCK + 16 + i] = byte_code(high - 16);
        }
    }
}

/// Blocks of 256: two half-precision factors, 8 pairs of 6-bit scales and offsets in 12 bytes, and 128 bytes of
/// nibbles, each 32 of them holding two runs of 32 columns.
fn read_q4_k(bytes: &[u8], stored: &mut StoredRow) {
    for (block, bytes) in bytes.chunks_exact(144).enumerate() {
        let factor = f16::from_bits(half_at(bytes, 0)).to_f32();
        let offset_factor = f16::from_bits(half_at(bytes, 2)).to_f32();
        let packed = &bytes[4..16];
        for run in 0..8 {
            let (scale, offset) = if run < 4 {
                (packed[run] & 63, packed[run + 4] & 63)
            } else {
                (
                    (packed[run + 4] & 15) | (packed[run - 4] >> 6 << 4),
                    (packed[run + 4] >> 4) | (packed[run] >> 6 << 4),
                )
            };
            let at = block * 8 + run;
            stored.scales[at] = f16::from_f32(factor * f32::from(scale)).to_bits();
            stored.offsets[at] = f16::from_f32(-offset_factor * f32::from(offset)).to_bits();
            let nibbles = &bytes[16 + run / 2 * 32..][..32];
            for (i, byte) in nibbles.iter().enumerate() {
                let code = if run % 2 == 0 { byte & 15 } else { byte >> 4 };
                stored.codes[at * BLOCK + i] = u16::from(code);
            }
        }
    }
}
