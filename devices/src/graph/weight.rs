//! Weights as they lie in a checkpoint: bytes in a block format, shared or memory-mapped, never copied here.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
use memmap2::Mmap;

/// Storage formats of a weight, named as in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the formats' own")]
#[allow(non_camel_case_types, reason = "the names are the formats' own")]
pub enum WeightFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

impl WeightFormat {
    pub(crate) fn ggml(self) -> GgmlDType {
        match self {
            WeightFormat::F32 => GgmlDType::F32,
            WeightFormat::F16 => GgmlDType::F16,
            WeightFormat::BF16 => GgmlDType::BF16,
            WeightFormat::Q4_0 => GgmlDType::Q4_0,
            WeightFormat::Q4_1 => GgmlDType::Q4_1,
            WeightFormat::Q5_0 => GgmlDType::Q5_0,
            WeightFormat::Q5_1 => GgmlDType::Q5_1,
            WeightFormat::Q8_0 => GgmlDType::Q8_0,
            WeightFormat::Q2_K => GgmlDType::Q2K,
            WeightFormat::Q3_K => GgmlDType::Q3K,
            WeightFormat::Q4_K => GgmlDType::Q4K,
            WeightFormat::Q5_K => GgmlDType::Q5K,
            WeightFormat::Q6_K => GgmlDType::Q6K,
            WeightFormat::Q8_K => GgmlDType::Q8K,
        }
    }

    /// Weights in one block of the format (1 for the plain float formats).
    pub fn block_len(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// Bytes of a row of `cols` weights; `None` if `cols` is not a whole number of blocks or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len())
            .then(|| (cols / self.block_len()).checked_mul(self.block_bytes()))?
    }
}

impl From<GgmlDType> for WeightFormat {
    fn from(value: GgmlDType) -> Self {
        match value {
            GgmlDType::F32 => WeightFormat::F32,
            GgmlDType::F16 => WeightFormat::F16,
            GgmlDType::BF16 => WeightFormat::BF16,
            GgmlDType::Q4_0 => WeightFormat::Q4_0,
            GgmlDType::Q4_1 => WeightFormat::Q4_1,
            GgmlDType::Q5_0 => WeightFormat::Q5_0,
            GgmlDType::Q5_1 => WeightFormat::Q5_1,
            GgmlDType::Q8_0 | GgmlDType::Q8_1 => WeightFormat::Q8_0,
            GgmlDType::Q2K => WeightFormat::Q2_K,
            GgmlDType::Q3K => WeightFormat::Q3_K,
            GgmlDType::Q4K => WeightFormat::Q4_K,
            GgmlDType::Q5K => WeightFormat::Q5_K,
            GgmlDType::Q6K => WeightFormat::Q6_K,
            GgmlDType::Q8K => WeightFormat::Q8_K,
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a weight's bytes lie.
#[derive(Clone)]
pub enum WeightBytes {
    /// In a memory-mapped file.
    Mapped(Arc<Mmap>, Range<usize>),
    /// In the binary's own data.
    Embedded(&'static [u8]),
    /// In memory, made at load.
    Owned(Arc<[u8]>),
}

impl WeightBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            WeightBytes::Mapped(map, range) => &map[range.clone()],
            WeightBytes::Embedded(bytes) => bytes,
            WeightBytes::Owned(bytes) => bytes,
        }
    }
}

impl fmt::Debug for WeightBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            WeightBytes::Mapped(..) => "mapped",
            WeightBytes::Embedded(_) => "embedded",
            WeightBytes::Owned(_) => "owned",
        };
        write!(f, "{kind} {} bytes", self.as_slice().len())
    }
}

/// A matrix of `rows x cols` weights in a block format; blocks run along a row.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Tensor name in the checkpoint.
    pub name: String,
    /// Storage format.
    pub format: WeightFormat,
    /// Outputs of the projection (1 for a norm weight).
    pub rows: usize,
    /// Inputs of the projection.
    pub cols: usize,
    bytes: WeightBytes,
}

/// Why bytes are not a weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The byte count does not follow from shape and format.
    #[error("tensor {name}: {rows} x {cols} in {format} needs {expected} bytes, found {found}")]
    Size {
        /// Tensor.
        name: String,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Format.
        format: WeightFormat,
        /// Bytes that the shape needs.
        expected: String,
        /// Bytes given.
        found: usize,
    },
    /// The bytes could not be read as the format.
    #[error("tensor {name}: {detail}")]
    Unreadable {
        /// Tensor.
        name: String,
        /// What the reader said.
        detail: String,
    },
}

impl Weight {
    /// Checks that `bytes` hold exactly `rows x cols` weights of `format`.
    pub fn new(
        name: impl Into<String>,
        format: WeightFormat,
        shape: (usize, usize),
        bytes: WeightBytes,
    ) -> Result<Self, WeightError> {
        let (name, (rows, cols)) = (name.into(), shape);
        let expected = format.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        let found = bytes.as_slice().len();
        if expected != Some(found) {
            let expected = expected.map_or_else(
                || format!("whole blocks of {} a row", format.block_len()),
                |n| n.to_string(),
            );
            return Err(WeightError::Size { name, rows, cols, format, expected, found });
        }
        Ok(Self { name, format, rows, cols, bytes })
    }

    /// The bytes as they lie in the checkpoint, little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// The same weights rounded to another format by candle's quantisers, in memory of their own.
    ///
    /// # Errors
    /// `Unreadable` if the bytes cannot be read, a row is not a whole number of the format's blocks, or the format has no
    /// quantiser.
    pub fn rounded_to(&self, format: WeightFormat) -> Result<Self, WeightError> {
        let unreadable =
            |detail: String| WeightError::Unreadable { name: self.name.clone(), detail };
        if format.row_bytes(self.cols).is_none() {
            let (cols, block) = (self.cols, format.block_len());
            let detail =
                format!("{cols} columns are no whole blocks of {block}, as {format} needs");
            return Err(unreadable(detail));
        }
        let shape = (self.rows, self.cols);
        let bytes = Tensor::from_vec(self.to_f32()?, shape, &candle_core::Device::Cpu)
            .and_then(|tensor| QTensor::quantize(&tensor, format.ggml()))
            .and_then(|tensor| Ok(tensor.data()?.into_owned()))
            .map_err(|e| unreadable(e.to_string()))?;
        Self::new(self.name.clone(), format, shape, WeightBytes::Owned(bytes.into()))
    }

    /// All weights as `f32`, row-major, through candle's dequantisers.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightError> {
        let unreadable = |e: candle_core::Error| WeightError::Unreadable {
            name: self.name.clone(),
            detail: e.to_string(),
        };
        let cpu = candle_core::Device::Cpu;
        let shape = vec![self.rows, self.cols];
        let tensor: QTensor =
            qtensor_from_ggml(self.format.ggml(), self.bytes(), shape, &cpu).map_err(unreadable)?;
        tensor
            .dequantize(&cpu)
            .and_then(|t| t.flatten_all())
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(unreadable)
    }
}
