//! Repacking: from a checkpoint's rows of blocks to tiles of 16 outputs, once at load.
//!
//! *Invariant:* repacking changes no weight whose format the unit keeps; outputs and inputs that a [`Layout`] adds are
//! zero, so results in their place are zero too.

use std::ops::Range;

use half::{bf16, f16};

use super::kernels::tile::{BLOCK, Packing, Run, SUPER, TILE, q4_place, q8_place};
use super::stored::{decode_row, packing, row_bytes, stored_format};
use crate::graph::{Weight, WeightError};

/// Which output and input of the weight each packed output and input is; `None` is a zero that fills up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    outputs: Vec<Option<u32>>,
    /// `None` keeps the inputs as they are, filled up at the end.
    inputs: Option<Vec<Option<u32>>>,
}

impl Layout {
    /// All rows in order.
    pub(crate) fn plain(weight: &Weight) -> Self {
        Self::outputs((0..weight.rows as u32).map(Some).collect())
    }

    /// The outputs in the given order.
    pub(crate) fn outputs(outputs: Vec<Option<u32>>) -> Self {
        Self { outputs, inputs: None }
    }

    /// The same, with the inputs in the given order unless that is their own.
    pub(crate) fn with_inputs(self, inputs: Vec<Option<u32>>) -> Self {
        let plain = inputs.iter().enumerate().all(|(i, &from)| from == Some(i as u32));
        Self { inputs: (!plain).then_some(inputs), ..self }
    }
}

/// A weight as tiles, somewhere in the store of all packed weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Projection {
    /// Encoding of the tiles.
    pub(crate) packing: Packing,
    /// Width of a row of the operand, a multiple of 32.
    pub(crate) cols: usize,
    /// Tiles of 16 outputs.
    pub(crate) tiles: usize,
    /// Where the first tile begins.
    pub(crate) offset: usize,
    /// From the beginning of a tile to that of the next.
    pub(crate) stride: usize,
}

impl Projection {
    /// Plans the tiles of `weight` at `offset` of the store.
    pub(crate) fn plan(weight: &Weight, layout: &Layout, offset: usize) -> Self {
        let inputs = layout.inputs.as_ref().map_or(weight.cols, Vec::len);
        let whole = layout.inputs.is_none() && weight.cols.is_multiple_of(BLOCK);
        let own = packing(stored_format(weight.format));
        let packing = if own.is_quantised() && !whole { Packing::F16 } else { own };
        let cols = inputs.next_multiple_of(BLOCK);
        let stride = packing.tile_bytes(cols);
        Self { packing, cols, tiles: layout.outputs.len().div_ceil(TILE), offset, stride }
    }

    /// Plans two projections whose tiles lie in turns: who computes a tile of each, then the next of each, follows one stream.
    pub(crate) fn in_turns(of: [(&Weight, &Layout); 2], offset: usize) -> [Self; 2] {
        let [first, second] = of.map(|(weight, layout)| Self::plan(weight, layout, offset));
        assert_eq!(first.tiles, second.tiles, "tiles in turns are as many");
        let stride = first.stride + second.stride;
        let second = Self { offset: offset + first.stride, stride, ..second };
        [Self { stride, ..first }, second]
    }

    /// Bytes of its tiles, a multiple of a cache line.
    pub(crate) fn bytes(&self) -> usize {
        self.tiles * self.packing.tile_bytes(self.cols)
    }

    /// Some of its tiles.
    pub(crate) fn run<'a>(&self, store: &'a [u8], tiles: Range<usize>) -> Run<'a> {
        debug_assert!(tiles.start < tiles.end && tiles.end <= self.tiles, "no such tiles");
        let bytes = &store[self.offset + tiles.start * self.stride..];
        Run { bytes, stride: self.stride, tiles: tiles.len() }
    }

    /// Some of the tiles of two projections that lie in turns, in the order in which they lie: a tile of each, then the next
    /// of each. `None` if they do not, or differ in their packing.
    pub(crate) fn run_in_turns<'a>(
        of: [&Self; 2],
        store: &'a [u8],
        tiles: Range<usize>,
    ) -> Option<Run<'a>> {
        let [first, second] = of;
        let bytes = first.packing.tile_bytes(first.cols);
        let alike = (first.packing, first.cols) == (second.packing, second.cols);
        let in_turns = first.stride == 2 * bytes && second.offset == first.offset + bytes;
        (alike && in_turns).then(|| {
            let run = first.run(store, tiles);
            Run { stride: bytes, tiles: 2 * run.tiles, ..run }
        })
    }

    /// Packs `weight` into its planned place.
    pub(crate) fn pack(
        &self,
        weight: &Weight,
        layout: &Layout,
        store: &mut [u8],
    ) -> Result<(), WeightError> {
        let bytes = self.packing.tile_bytes(self.cols);
        let mut row = vec![0.0; weight.cols];
        let mut moved = vec![0.0; self.cols];
        for index in 0..self.tiles {
            let tile = &mut store[self.offset + index * self.stride..][..bytes];
            let outputs = layout.outputs.iter().skip(index * TILE).take(TILE);
            for (output, from) in outputs.enumerate() {
                let Some(from) = from.map(|from| from as usize) else { continue };
                if self.copy_row(weight, from, tile, output) {
                    continue;
                }
                decode_row(weight, from, &mut row)?;
                match &layout.inputs {
                    None => moved[..row.len()].copy_from_slice(&row),
                    Some(inputs) => {
                        for (to, from) in moved.iter_mut().zip(inputs) {
                            *to = from.map_or(0.0, |from| row[from as usize]);
                        }
                    }
                }
                self.encode_row(&moved, tile, output);
            }
        }
        Ok(())
    }

    /// Copies a row whose format the tile keeps; `false` if it has another.
    fn copy_row(&self, weight: &Weight, from: usize, tile: &mut [u8], output: usize) -> bool {
        let own =
            packing(weight.format) == self.packing && stored_format(weight.format) == weight.format;
        if !own || !self.packing.is_quantised() {
            return false;
        }
        let bytes = row_bytes(weight, from);
        match self.packing {
            Packing::Q8 => copy_q8(bytes, tile, output),
            Packing::Q4 => copy_q4(bytes, tile, output),
            Packing::Q4K => copy_q4k(bytes, tile, output),
            Packing::F16 | Packing::Bf16 | Packing::F32 => return false,
        }
        true
    }

    /// Writes a row of floats.
    fn encode_row(&self, row: &[f32], tile: &mut [u8], output: usize) {
        for (input, &x) in row.iter().enumerate() {
            let place = input * TILE + output;
            match self.packing {
                Packing::F16 => {
                    tile[2 * place..][..2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
                }
                Packing::Bf16 => {
                    tile[2 * place..][..2].copy_from_slice(&bf16::from_f32(x).to_le_bytes());
                }
                Packing::F32 => tile[4 * place..][..4].copy_from_slice(&x.to_le_bytes()),
                Packing::Q8 | Packing::Q4 | Packing::Q4K => break,
            }
        }
        if self.packing == Packing::Q8 {
            quantise_row(row, tile, output);
        }
        assert!(
            !matches!(self.packing, Packing::Q4 | Packing::Q4K),
            "nibbles are only ever copied"
        );
    }
}

fn put_scale(scales: &mut [u8], index: usize, scale: [u8; 2]) {
    scales[2 * index..][..2].copy_from_slice(&scale);
}

fn copy_q8(row: &[u8], tile: &mut [u8], output: usize) {
    for (block, bytes) in row.chunks_exact(34).enumerate() {
        let place = Packing::Q8.place(block);
        put_scale(&mut tile[place.scales..], output, [bytes[0], bytes[1]]);
        for (input, &q) in bytes[2..].iter().enumerate() {
            tile[place.weights + q8_place(input, output)] = q;
        }
    }
}

fn copy_q4(row: &[u8], tile: &mut [u8], output: usize) {
    for (block, bytes) in row.chunks_exact(18).enumerate() {
        let place = Packing::Q4.place(block);
        put_scale(&mut tile[place.scales..], output, [bytes[0], bytes[1]]);
        for (input, &both) in bytes[2..].iter().enumerate() {
            tile[place.weights + q4_place(input, output).0] = both;
        }
    }
}

fn copy_q4k(row: &[u8], tile: &mut [u8], output: usize) {
    for (index, bytes) in row.chunks_exact(144).enumerate() {
        let supers = Packing::Q4K.place(index * (SUPER / BLOCK)).supers;
        put_scale(&mut tile[supers..], output, [bytes[0], bytes[1]]);
        put_scale(&mut tile[supers..], TILE + output, [bytes[2], bytes[3]]);
        let (six_bits, nibbles) = (&bytes[4..16], &bytes[16..]);
        for part in 0..SUPER / BLOCK {
            let place = Packing::Q4K.place(index * (SUPER / BLOCK) + part);
            let (factor, min) = six_bit_factors(six_bits, part);
            tile[place.scales + output] = factor;
            tile[place.scales + TILE + output] = min;
            for input in 0..BLOCK {
                let both = nibbles[part / 2 * BLOCK + input];
                let nibble = if part % 2 == 0 { both & 15 } else { both >> 4 };
                let (byte, upper) = q4_place(input, output);
                tile[place.weights + byte] |= if upper { nibble << 4 } else { nibble };
            }
        }
    }
}

/// Factor and minimum of block `part` of a Q4_K super-block: the first four lie in the low six bits of bytes 0..4 and
/// 4..8; the others' low four bits share bytes 8..12, and their high two bits are on top of the first eight bytes.
fn six_bit_factors(bytes: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let low = bytes[part + 4];
        (low & 15 | bytes[part - 4] >> 6 << 4, low >> 4 | bytes[part] >> 6 << 4)
    }
}

/// Rounds a row to bytes with a scale per 32.
fn quantise_row(row: &[f32], tile: &mut [u8], output: usize) {
    for (block, x) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
        let greatest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = f16::from_f32(greatest / 127.0);
        let step = scale.to_f32();
        let place = Packing::Q8.place(block);
        put_scale(&mut tile[place.scales..], output, scale.to_le_bytes());
        for (input, &x) in x.iter().enumerate() {
            let q =
                if step > 0.0 { (x / step).round_ties_even().clamp(-127.0, 127.0) } else { 0.0 };
            tile[place.weights + q8_place(input, output)] = q as i8 as u8;
        }
    }
}
