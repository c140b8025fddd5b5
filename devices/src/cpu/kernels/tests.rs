//! Conformance: every instruction set that this machine has computes the bits of the portable kernels.

use super::lanes::{LANES, Line};
use super::tile::{BLOCK, Packing, RUN, Run, SUPER, TILE};
use super::{ByteHead, HalfHead, Kernels, Operand, QUERIES, Queries, ROWS};
use crate::cpu::Isa;

/// SplitMix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform() * 3.0).collect()
    }

    fn halves(&mut self, len: usize) -> Vec<u16> {
        (0..len).map(|_| half::f16::from_f32(self.uniform()).to_bits()).collect()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn tables() -> (&'static Kernels, Vec<&'static Kernels>) {
    let others = Isa::available().into_iter().filter(|&isa| isa != Isa::Portable);
    let portable = Kernels::of(Isa::Portable).expect("every machine has it");
    (portable, others.map(|isa| Kernels::of(isa).expect("it is available")).collect())
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

struct Rows {
    cols: usize,
    floats: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Rows {
    fn new(noise: &mut Noise, rows: usize, cols: usize, kernels: &Kernels) -> Self {
        let floats = noise.floats(rows * cols);
        let (mut q, mut scales) = (vec![0; rows * cols], vec![0.0; rows * cols / BLOCK]);
        let mut sums = vec![0; rows * cols / BLOCK];
        kernels.quantise(&floats, &mut q, &mut scales, &mut sums);
        Self { cols, floats, q, scales, sums }
    }

    fn operand(&self) -> Operand<'_> {
        Operand {
            cols: self.cols,
            floats: &self.floats,
            q: &self.q,
            scales: &self.scales,
            sums: &self.sums,
        }
    }
}

/// A tile of random weights; its bytes are any, so -128 occurs, but its scales are finite.
fn tile(noise: &mut Noise, packing: Packing, cols: usize) -> Vec<u64> {
    let bytes = packing.tile_bytes(cols);
    let mut tile = vec![0u64; bytes / 8];
    let all: &mut [u8] = bytemuck::cast_slice_mut(&mut tile);
    let bytes = noise.bytes(all.len());
    match packing {
        Packing::Q8 | Packing::Q4 | Packing::Q4K => all.copy_from_slice(&bytes),
        Packing::F16 => all.copy_from_slice(bytemuck::cast_slice(&noise.halves(bytes.len() / 2))),
        Packing::Bf16 => {
            for chunk in all.as_chunks_mut::<2>().0 {
                *chunk = half::bf16::from_f32(noise.uniform()).to_le_bytes();
            }
        }
        Packing::F32 => all.copy_from_slice(bytemuck::cast_slice(&noise.floats(bytes.len() / 4))),
    }
    for place in (0..cols / BLOCK).map(|block| packing.place(block)) {
        let (halves, at) = match packing {
            Packing::Q8 | Packing::Q4 => (TILE, place.scales),
            Packing::Q4K => (2 * TILE, place.supers),
            Packing::F16 | Packing::Bf16 | Packing::F32 => break,
        };
        all[at..][..2 * halves].copy_from_slice(bytemuck::cast_slice(&noise.halves(halves)));
        if packing == Packing::Q4K {
            all[place.scales..][..2 * TILE].iter_mut().for_each(|factor| *factor &= 63);
        }
    }
    tile
}

const PACKINGS: [Packing; 6] =
    [Packing::Q8, Packing::Q4, Packing::Q4K, Packing::F16, Packing::Bf16, Packing::F32];

#[test]
fn dots_have_the_portable_bits_for_any_rows_and_width() {
    let (portable, others) = tables();
    let mut noise = Noise(1);
    for packing in PACKINGS {
        for cols in [32, 64, 96, 224, 256, 768] {
            if packing == Packing::Q4K && cols % SUPER != 0 {
                continue;
            }
            let weights: Vec<_> = (0..RUN).flat_map(|_| tile(&mut noise, packing, cols)).collect();
            let weights: &[u8] = bytemuck::cast_slice(&weights);
            let bytes = weights.len() / RUN;
            let tiles: Vec<&[u8]> = weights.chunks_exact(bytes).collect();
            let rows = Rows::new(&mut noise, ROWS + 3, cols, portable);
            for count in 1..=ROWS {
                for first in [0, 3] {
                    let mut expected = [[[0.0; LANES]; ROWS]; RUN];
                    for (expected, tile) in expected.iter_mut().zip(&tiles) {
                        let (run, expected) = (Run::of_one(tile), std::slice::from_mut(expected));
                        portable.dot(packing, run, &rows.operand(), (first, count), expected);
                    }
                    for kernels in &others {
                        for tiles in 1..=RUN {
                            let mut found = [[[0.0; LANES]; ROWS]; RUN];
                            let run = Run { bytes: weights, stride: bytes, tiles };
                            let results = &mut found[..tiles];
                            kernels.dot(packing, run, &rows.operand(), (first, count), results);
                            let case = (kernels.isa(), packing, cols, count, first, tiles);
                            for (found, expected) in results.iter().zip(&expected) {
                                let (found, expected) =
                                    (found.as_flattened(), expected.as_flattened());
                                assert_eq!(bits(found), bits(expected), "{case:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_rows_are_beside_it() {
    let mut noise = Noise(2);
    for kernels in Isa::available().into_iter().filter_map(Kernels::of) {
        for packing in PACKINGS {
            let weights = tile(&mut noise, packing, 256);
            let weights: &[u8] = bytemuck::cast_slice(&weights);
            let rows = Rows::new(&mut noise, ROWS, 256, kernels);
            let run = Run::of_one(weights);
            let mut together = [[[0.0; LANES]; ROWS]];
            kernels.dot(packing, run, &rows.operand(), (0, ROWS), &mut together);
            for (row, together) in together[0].iter().enumerate() {
                let mut alone = [[[0.0; LANES]; ROWS]];
                kernels.dot(packing, run, &rows.operand(), (row, 1), &mut alone);
                assert_eq!(bits(&alone[0][0]), bits(together), "{} {packing:?}", kernels.isa());
            }
        }
    }
}

#[test]
fn extremes_of_bytes_are_exact() {
    let cols = 64;
    let mut tile = vec![0u64; Packing::Q8.tile_bytes(cols) / 8];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut tile);
    bytes.fill(0x80);
    for place in [0, 1].map(|block| Packing::Q8.place(block)) {
        let scales = &mut bytes[place.scales..][..2 * TILE];
        scales.as_chunks_mut::<2>().0.fill(half::f16::ONE.to_le_bytes());
    }
    for x in [127, -127] {
        let rows = Rows {
            cols,
            floats: Vec::new(),
            q: vec![x; cols],
            scales: vec![1.0; 2],
            sums: vec![i32::from(x) * 32; 2],
        };
        for kernels in Isa::available().into_iter().filter_map(Kernels::of) {
            let mut out = [[[0.0; LANES]; ROWS]];
            let run = Run::of_one(bytemuck::cast_slice(&tile));
            kernels.dot(Packing::Q8, run, &rows.operand(), (0, 1), &mut out);
            assert_eq!(out[0][0], [-128.0 * f32::from(x) * 64.0; LANES], "{}", kernels.isa());
        }
    }
}

#[test]
fn norm_quantise_swiglu_and_narrow_have_the_portable_bits() {
    let (portable, others) = tables();
    let mut noise = Noise(3);
    for kernels in others {
        for cols in [32, 64, 96, 512, 704] {
            let (mut x, weight) = (noise.floats(cols), noise.floats(cols));
            if cols > 64 {
                x[32..64].fill(0.0);
                x[64..96].fill(1e-38);
            }
            let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
            portable.norm(&x, (&weight, 1e-5), cols - 3, &mut a);
            kernels.norm(&x, (&weight, 1e-5), cols - 3, &mut b);
            assert_eq!(bits(&a), bits(&b), "norm, {}", kernels.isa());
            let quantised = |kernels: &Kernels| {
                let blocks = cols / BLOCK;
                let (mut q, mut scales) = (vec![0; cols], vec![0.0; blocks]);
                let mut sums = vec![0; blocks];
                kernels.quantise(&x, &mut q, &mut scales, &mut sums);
                (q, bits(&scales), sums)
            };
            assert_eq!(quantised(portable), quantised(kernels), "quantise, {}", kernels.isa());
        }
        for _ in 0..200 {
            let mut line = || -> Line { std::array::from_fn(|_| noise.uniform() * 40.0) };
            let (gate, up) = (line(), line());
            let (mut a, mut b) = ([up, gate], [up, gate]);
            portable.swiglu(&[gate, up], &mut a);
            kernels.swiglu(&[gate, up], &mut b);
            let (a, b) = (a.as_flattened(), b.as_flattened());
            assert_eq!(bits(a), bits(b), "swiglu, {}", kernels.isa());
            let (mut a, mut b) = ([0; LANES], [0; LANES]);
            portable.narrow(&gate, &mut a);
            kernels.narrow(&gate, &mut b);
            assert_eq!(a, b, "narrow, {}", kernels.isa());
        }
    }
}

#[test]
fn swiglu_is_near_the_exact_function() {
    let kernels = Kernels::of(Isa::Portable).expect("every machine has it");
    for i in -2000..2000 {
        let gate = i as f32 * 0.05;
        let mut out = [1.0; LANES];
        kernels.swiglu(&[[gate; LANES]], std::slice::from_mut(&mut out));
        let exact = f64::from(gate) / (1.0 + (-f64::from(gate)).exp());
        let error = (f64::from(out[0]) - exact).abs();
        assert!(error <= 1e-6 * exact.abs() + 1e-30, "{gate}: {} against {exact}", out[0]);
    }
}

/// A head's cache in some format, and the numbers that it stands for.
struct Cached {
    dim: usize,
    /// `positions x dim`.
    keys: Vec<f32>,
    values: Vec<f32>,
    attend: Box<Attend>,
}

type Attend = dyn Fn(&Kernels, &Queries<'_>, &mut [f32], &mut [f32]);

/// The place of an element of a position's key.
fn key_place(dim: usize, (position, element): (usize, usize)) -> usize {
    (position / LANES * dim + element) * LANES + position % LANES
}

fn of_halves(noise: &mut Noise, positions: usize, dim: usize) -> Cached {
    let (keys, values) = (noise.halves(positions * dim), noise.halves(positions * dim));
    let float = |bits: u16| half::f16::from_bits(bits).to_f32();
    let places = (0..positions).flat_map(|p| (0..dim).map(move |d| key_place(dim, (p, d))));
    Cached {
        dim,
        keys: places.map(|place| float(keys[place])).collect(),
        values: values.iter().map(|&v| float(v)).collect(),
        attend: Box::new(move |kernels, queries, scores, out| {
            let head = HalfHead { keys: &keys, values: &values, dim };
            kernels.attend_halves(&head, queries, scores, out);
        }),
    }
}

fn of_bytes(noise: &mut Noise, positions: usize, dim: usize) -> Cached {
    let mut bytes = || -> Vec<i8> {
        noise.bytes(positions * dim).into_iter().map(|b| (b as i8).max(-127)).collect()
    };
    let (keys, values) = (bytes(), bytes());
    let mut scales = || -> Vec<u16> {
        let scales = (0..positions * dim / LANES).map(|_| noise.uniform() / 127.0);
        scales.map(|s| half::f16::from_f32(s.abs()).to_bits()).collect()
    };
    let (key_scales, value_scales) = (scales(), scales());
    let places = (0..positions).flat_map(|p| (0..dim).map(move |d| (p, d)));
    let scale = |scales: &[u16], (p, d): (usize, usize)| {
        half::f16::from_bits(scales[d / LANES * positions + p]).to_f32()
    };
    let key = |at| f32::from(keys[key_place(dim, at)]) * scale(&key_scales, at);
    let value =
        |at: (usize, usize)| f32::from(values[at.0 * dim + at.1]) * scale(&value_scales, at);
    Cached {
        dim,
        keys: places.clone().map(key).collect(),
        values: places.map(value).collect(),
        attend: Box::new(move |kernels, queries, scores, out| {
            let (key_scales, value_scales) = (&key_scales, &value_scales);
            let head = ByteHead { keys: &keys, key_scales, values: &values, value_scales, dim };
            kernels.attend_bytes(&head, queries, scores, out);
        }),
    }
}

fn plain_attention(cache: &Cached, query: &[f32], length: usize, scale: f32) -> Vec<f64> {
    let dim = cache.dim;
    let dot = |key: &[f32]| -> f64 {
        key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum()
    };
    let scores: Vec<f64> =
        cache.keys.chunks(dim).take(length).map(|k| dot(k) * f64::from(scale)).collect();
    let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let rows = || cache.values.chunks(dim).zip(&weights);
    (0..dim).map(|d| rows().map(|(v, w)| w * f64::from(v[d])).sum::<f64>() / sum).collect()
}

#[test]
fn attention_has_the_portable_bits_for_any_company_and_is_near_the_plain_formula() {
    let mut noise = Noise(4);
    let (dim, positions) = (32, 64);
    let caches = [of_halves(&mut noise, positions, dim), of_bytes(&mut noise, positions, dim)];
    let queries = noise.floats(QUERIES * dim);
    let scale = 0.3;
    let portable = Kernels::of(Isa::Portable).expect("every machine has it");
    for (cache, kernels) in caches
        .iter()
        .flat_map(|cache| Isa::available().into_iter().map(move |isa| (cache, Kernels::of(isa))))
    {
        let kernels = kernels.expect("it is available");
        for (length, count) in [1, 2, 15, 16, 17, 40, 61]
            .into_iter()
            .flat_map(|length| (1..=QUERIES).map(move |count| (length, count)))
        {
            let mut ask = Queries { vectors: [&[]; QUERIES], lengths: [0; QUERIES], count, scale };
            for i in 0..count {
                ask.vectors[i] = &queries[i * dim..][..dim];
                ask.lengths[i] = length + i;
            }
            let (mut scores, mut out) = (vec![0.0; QUERIES * 64], vec![0.0; QUERIES * dim]);
            (cache.attend)(kernels, &ask, &mut scores, &mut out);
            for i in 0..count {
                let alone = Queries {
                    vectors: [ask.vectors[i]; QUERIES],
                    lengths: [length + i; QUERIES],
                    count: 1,
                    scale,
                };
                let mut expected = vec![0.0; QUERIES * dim];
                (cache.attend)(portable, &alone, &mut scores, &mut expected);
                let found = &out[i * dim..][..dim];
                assert_eq!(bits(found), bits(&expected[..dim]), "{} {length}", kernels.isa());
                let exact = plain_attention(cache, ask.vectors[i], length + i, scale);
                for (x, exact) in found.iter().zip(exact) {
                    assert!((f64::from(*x) - exact).abs() < 1e-5, "{x} against {exact}");
                }
            }
        }
    }
}

#[test]
fn bytes_of_the_cache_have_the_portable_bits_and_stand_for_their_numbers() {
    let mut noise = Noise(5);
    let portable = Kernels::of(Isa::Portable).expect("every machine has it");
    let greatest = [0.0, 1e-38, 1e-7, 3e-6, 1e-4, 1.0, 300.0, 1e7, 1e30];
    for (kernels, greatest) in Isa::available()
        .into_iter()
        .filter_map(Kernels::of)
        .flat_map(|kernels| greatest.map(|greatest| (kernels, greatest)))
    {
        let x: Line = std::array::from_fn(|_| noise.uniform() * greatest);
        let narrow = |kernels: &Kernels| {
            let mut bytes = [0; LANES];
            (kernels.narrow_to_bytes(&x, &mut bytes), bytes)
        };
        let (scale, bytes) = narrow(kernels);
        assert_eq!((scale, bytes), narrow(portable), "{} {greatest}", kernels.isa());
        let step = half::f16::from_bits(scale).to_f32();
        assert!(step.is_finite(), "the scale of {x:?}");
        if (1e-3..1e6).contains(&greatest) {
            for (x, byte) in x.iter().zip(bytes) {
                let error = (x - f32::from(byte) * step).abs();
                assert!(error <= 0.51 * step, "{x} became {byte} steps of {step}");
            }
        }
    }
}
