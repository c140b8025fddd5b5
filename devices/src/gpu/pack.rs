//! Repacks matrices into the layout that the kernels read: tiles of 4 output rows.
//!
//! A 128-bit word of a tile holds one 32-bit word of each of its 4 rows: 4, 8 or 2 columns by format. A row's columns
//! are cut into chunks; the words lie plane by plane, plane s holding the s-th words of all chunks. A lane that takes a
//! chunk therefore reads beside its neighbours in every plane, whatever the number of lanes. Scales lie apart, block
//! by block. *Invariant:* a tile's words are contiguous, so a matrix can be cut into parts anywhere between tiles.

use super::format::{BLOCK, RowReader, StoredFormat, StoredRow};
use crate::graph::{Weight, WeightError};

/// Output rows of a tile.
pub(super) const TILE: usize = 4;

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: StoredFormat,
    /// Tiles of 4 rows.
    pub(super) tiles: usize,
    /// Columns, padded to whole blocks.
    pub(super) columns: usize,
    /// Columns of a chunk.
    pub(super) chunk: usize,
}

impl Layout {
    pub(super) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    pub(super) fn chunks(&self) -> usize {
        self.columns / self.chunk
    }

    /// 128-bit words of a tile.
    pub(super) fn tile_words(&self) -> usize {
        self.columns / self.format.word_columns()
    }

    /// Bytes of a tile's scales.
    pub(super) fn tile_scale_bytes(&self) -> usize {
        self.blocks() * self.format.scale_words() * 4
    }
}

/// A matrix to be packed, gathered from rows of one or more weights.
pub(super) struct Matrix<'a> {
    pub(super) layout: Layout,
    readers: Vec<RowReader<'a>>,
    /// Weight and row of each packed row; `None` is a row of zeros.
    rows: Vec<Option<(usize, usize)>>,
    zeros: StoredRow,
}

impl<'a> Matrix<'a> {
    /// The matrix of `rows`, each a weight's index and a row of it; padded to whole tiles.
    pub(super) fn new(
        weights: &[&'a Weight],
        mut rows: Vec<Option<(usize, usize)>>,
        chunk: usize,
    ) -> Result<Self, WeightError> {
        let format = StoredFormat::common(weights.iter().map(|w| w.format));
        rows.resize(rows.len().next_multiple_of(TILE), None);
        let cols = weights[0].cols;
        assert!(weights.iter().all(|w| w.cols == cols), "projections of one input");
        let readers: Result<Vec<_>, _> =
            weights.iter().map(|w| RowReader::new(w, format)).collect();
        let columns = cols.next_multiple_of(BLOCK);
        let layout = Layout { format, tiles: rows.len() / TILE, columns, chunk };
        Ok(Self { layout, readers: readers?, rows, zeros: StoredRow::zeros(format, cols) })
    }

    /// Appends the words and the scales of `tile`.
    pub(super) fn pack_tile(&self, tile: usize, words: &mut Vec<[u32; 4]>, scales: &mut Vec<u32>) {
        let rows: [StoredRow; TILE] = std::array::from_fn(|i| match self.rows[tile * TILE + i] {
            Some((weight, row)) => self.readers[weight].row(row),
            None => self.zeros.clone(),
        });
        let Layout { format, chunk, .. } = self.layout;
        let per_word = format.word_columns();
        let bits = 32 / per_word;
        for plane in 0..chunk / per_word {
            for part in 0..self.layout.chunks() {
                let first = part * chunk + plane * per_word;
                words.push(std::array::from_fn(|row| {
                    let codes = &rows[row].codes[first..first + per_word];
                    codes.iter().rev().fold(0, |word, code| word << bits | u32::from(*code))
                }));
            }
        }
        let pair = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
        for block in 0..self.layout.blocks() {
            let mut push = |[a, b, c, d]: [u16; TILE]| scales.extend([pair(a, b), pair(c, d)]);
            if !rows[0].scales.is_empty() {
                push(std::array::from_fn(|i| rows[i].scales[block]));
            }
            if !rows[0].offsets.is_empty() {
                push(std::array::from_fn(|i| rows[i].offsets[block]));
            }
        }
    }
}
