//! Repacks matrices into the layout that the kernels read: tiles of 4 output rows.
//!
//! A 128-bit word of a tile holds one 32-bit word of each of its 4 rows: 4, 8 or 2 columns by format. [`Order`] says how
//! the words follow each other. *Invariant:* whole pieces are contiguous, so that a matrix can be cut into parts anywhere
//! between them.

use half::f16;

use super::format::{BLOCK, RowReader, StoredFormat, StoredRow};
use crate::graph::{Weight, WeightError};

/// Output rows of a tile.
pub(super) const TILE: usize = 4;

/// How the words of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Tile by tile, for lanes that share a tile's columns. A row's columns are cut into chunks of this many; the words
    /// lie plane by plane, plane s holding the s-th words of all chunks, so that a lane that takes a chunk reads beside its
    /// neighbours in every plane, whatever the number of lanes. Scales lie apart, block by block.
    Planes { chunk: usize },
    /// Groups of tiles, for lanes that have a tile each: block by block, and in a block plane by plane, the words of all
    /// tiles of the group side by side. A block ends with its scales, then its offsets, as floats. What a workgroup reads
    /// is one stream.
    Streams {
        /// Tiles of a group.
        lanes: usize,
        /// Blocks in one row of the texture.
        row_blocks: usize,
    },
}

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: StoredFormat,
    /// Tiles of 4 rows.
    pub(super) tiles: usize,
    /// Columns, padded to whole blocks.
    pub(super) columns: usize,
    pub(super) order: Order,
}

impl Layout {
    pub(super) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// 128-bit words of a tile, without its scales.
    pub(super) fn tile_words(&self) -> usize {
        self.columns / self.format.word_columns()
    }

    /// Bytes of a tile's scales, where they lie apart.
    pub(super) fn tile_scale_bytes(&self) -> usize {
        match self.order {
            Order::Planes { .. } => self.blocks() * self.format.scale_words() * 4,
            Order::Streams { .. } => 0,
        }
    }

    /// Planes of words of a block of a stream, those of scales and offsets left out.
    pub(super) fn word_planes(&self) -> usize {
        BLOCK / self.format.word_columns()
    }

    /// All planes of a block of a stream.
    pub(super) fn planes(&self) -> usize {
        self.word_planes() + stream_scales(self.format)
    }

    /// Tiles that are packed together: one, or a group of a stream.
    pub(super) fn piece_tiles(&self) -> usize {
        match self.order {
            Order::Planes { .. } => 1,
            Order::Streams { lanes, .. } => lanes,
        }
    }

    /// Columns that a lane takes at a time, for the input's sake.
    pub(super) fn chunk(&self) -> usize {
        match self.order {
            Order::Planes { chunk } => chunk,
            Order::Streams { .. } => 4,
        }
    }

    /// Rows that a group of a stream takes in its texture.
    pub(super) fn group_rows(&self) -> usize {
        match self.order {
            Order::Planes { .. } => 0,
            Order::Streams { row_blocks, .. } => self.blocks().div_ceil(row_blocks),
        }
    }

    /// Texels in a row of a stream's texture: copies to it want rows of whole 256 bytes.
    pub(super) fn row_texels(&self) -> usize {
        match self.order {
            Order::Planes { .. } => 0,
            Order::Streams { lanes, row_blocks } => {
                (row_blocks.min(self.blocks()) * self.planes() * lanes).next_multiple_of(16)
            }
        }
    }

    /// 128-bit words of a piece.
    pub(super) fn piece_words(&self) -> usize {
        match self.order {
            Order::Planes { .. } => self.tile_words(),
            Order::Streams { .. } => self.group_rows() * self.row_texels(),
        }
    }

    /// Pieces of the matrix.
    pub(super) fn pieces(&self) -> usize {
        self.tiles.div_ceil(self.piece_tiles())
    }
}

/// Planes of scales and offsets of a block of a stream.
fn stream_scales(format: StoredFormat) -> usize {
    match format {
        StoredFormat::Q8 | StoredFormat::Q4 => 1,
        StoredFormat::Q4Offset => 2,
        StoredFormat::F16 => 0,
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
        order: Order,
    ) -> Result<Self, WeightError> {
        let format = StoredFormat::common(weights.iter().map(|w| w.format));
        rows.resize(rows.len().next_multiple_of(TILE), None);
        let cols = weights[0].cols;
        assert!(weights.iter().all(|w| w.cols == cols), "projections of one input");
        let readers: Result<Vec<_>, _> =
            weights.iter().map(|w| RowReader::new(w, format)).collect();
        let columns = cols.next_multiple_of(BLOCK);
        let layout = Layout { format, tiles: rows.len() / TILE, columns, order };
        Ok(Self { layout, readers: readers?, rows, zeros: StoredRow::zeros(format, cols) })
    }

    /// Appends the words and the scales of the piece that begins with `tile`.
    pub(super) fn pack(&self, tile: usize, words: &mut Vec<[u32; 4]>, scales: &mut Vec<u32>) {
        match self.layout.order {
            Order::Planes { chunk } => self.pack_planes(tile, chunk, (words, scales)),
            Order::Streams { lanes, row_blocks } => {
                self.pack_stream(tile, (lanes, row_blocks), words);
            }
        }
    }

    /// The rows of a tile; those beyond the matrix are zeros.
    fn tile_rows(&self, tile: usize) -> [StoredRow; TILE] {
        std::array::from_fn(|i| match self.rows.get(tile * TILE + i).copied().flatten() {
            Some((weight, row)) => self.readers[weight].row(row),
            None => self.zeros.clone(),
        })
    }

    /// The word whose first column is `first`.
    fn word(&self, rows: &[StoredRow; TILE], first: usize) -> [u32; 4] {
        let per_word = self.layout.format.word_columns();
        let bits = 32 / per_word;
        std::array::from_fn(|row| {
            let codes = &rows[row].codes[first..first + per_word];
            codes.iter().rev().fold(0, |word, code| word << bits | u32::from(*code))
        })
    }

    fn pack_planes(
        &self,
        tile: usize,
        chunk: usize,
        (words, scales): (&mut Vec<[u32; 4]>, &mut Vec<u32>),
    ) {
        let rows = self.tile_rows(tile);
        let per_word = self.layout.format.word_columns();
        for plane in 0..chunk / per_word {
            for part in 0..self.layout.columns / chunk {
                words.push(self.word(&rows, part * chunk + plane * per_word));
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

    fn pack_stream(
        &self,
        tile: usize,
        (lanes, row_blocks): (usize, usize),
        words: &mut Vec<[u32; 4]>,
    ) {
        let tiles: Vec<_> = (tile..tile + lanes).map(|tile| self.tile_rows(tile)).collect();
        let per_word = self.layout.format.word_columns();
        let (begin, width) = (words.len(), self.layout.row_texels());
        for block in 0..self.layout.blocks() {
            for plane in 0..self.layout.word_planes() {
                let first = block * BLOCK + plane * per_word;
                words.extend(tiles.iter().map(|rows| self.word(rows, first)));
            }
            let float = |half: u16| f16::from_bits(half).to_f32().to_bits();
            if !tiles[0][0].scales.is_empty() {
                let scales = |rows: &[StoredRow; TILE]| {
                    std::array::from_fn(|i| float(rows[i].scales[block]))
                };
                words.extend(tiles.iter().map(scales));
            }
            if !tiles[0][0].offsets.is_empty() {
                let offsets = |rows: &[StoredRow; TILE]| {
                    std::array::from_fn(|i| float(rows[i].offsets[block]))
                };
                words.extend(tiles.iter().map(offsets));
            }
            let ended = block + 1;
            if ended % row_blocks == 0 || ended == self.layout.blocks() {
                words.resize(begin + ended.div_ceil(row_blocks) * width, [0; 4]);
            }
        }
    }
}
