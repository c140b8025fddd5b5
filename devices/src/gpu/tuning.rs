//! The shape of the generated kernels on one adapter: what may differ between adapters without changing a result's
//! meaning (its bits may differ, so a tuning is fixed for the life of a device).

use std::time::Duration;

use super::adapter::{AdapterKind, GpuAdapter};
use super::kernels::Lanes;
use super::pack::Order;

/// Most texels in a row of a texture: what every adapter has.
const TEXTURE_SIDE: usize = 8192;

/// What weights, and the activations that they are multiplied with, are read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// Storage buffers, the lanes of a workgroup sharing the columns of a tile: best on hardware.
    Buffer,
    /// Storage textures of four 32-bit words a texel, a tile for each lane: best on a software rasteriser, which gathers
    /// texels as vectors but storage words one by one, and adds up over lanes one by one.
    Texture,
}

/// How the lanes of a subgroup add up what each has, for many values at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sums {
    /// By the subgroup's own operation, value by value.
    Whole,
    /// By halves: lanes that are apart by half the subgroup exchange halves of the values, then a quarter, and so on. Takes
    /// a fifth of the exchanges for many values.
    Halves,
}

/// Parameters of the kernel generator.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// What weights and activations are read through.
    pub backing: Backing,
    /// Lanes of a subgroup where it is known and fixed; `None` reduces through workgroup memory instead.
    pub subgroup: Option<u32>,
    /// Fewest lanes of a matrix kernel's workgroup: whole subgroups; without subgroup operations a power of two.
    pub lanes: u32,
    /// Most lanes of a matrix kernel's workgroup: wide matrices take as many as they have chunks, up to this.
    pub lanes_max: u32,
    /// Tiles of 4 output rows that a workgroup computes, for 1, 2, 4 and 8 batch rows.
    pub tiles: [u32; 4],
    /// Most columns that a lane takes at a time: 8, 16 or 32. Narrow matrices take fewer, so that more lanes work.
    pub chunk: u32,
    /// How the lanes of a subgroup add up.
    pub sums: Sums,
    /// Units of 4 columns that a loop's iteration takes, for 1, 2, 4 and 8 batch rows: powers of two. Long iterations
    /// keep more loads in flight, and take a software rasteriser very long to compile.
    pub unroll: [u32; 4],
    /// Subgroups that share the positions of one attention head; 1 without subgroups.
    pub attention_subgroups: u32,
    /// Positions of one workgroup of attention: rows with more are shared between several.
    pub attention_span: u32,
    /// Logits that one workgroup looks through for its best: a multiple of 4 lanes.
    pub pick_span: u32,
    /// Most rows of one submission; longer batches are split.
    pub pass_rows: usize,
    /// Dispatches after which what is recorded is submitted, so that the device works while the rest is recorded.
    pub submit_dispatches: usize,
    /// How long a wait for the device asks again and again before it sleeps.
    pub spin: Duration,
    /// Most tiles of a matrix in one binding, besides what the adapter's limits allow; at least 2.
    pub part_tiles: usize,
}

impl Tuning {
    /// What to begin with on `adapter`, whose device can use subgroup operations if `subgroups`.
    pub(super) fn for_adapter(adapter: &GpuAdapter, subgroups: Subgroups) -> Self {
        let (least, most) = adapter.limits.subgroup;
        // Where the compiler chooses the subgroup size by kernel, sums of the row-count variants could differ.
        let subgroup = (subgroups == Subgroups::Offered && least == most).then_some(least);
        if adapter.kind == AdapterKind::Software {
            let lanes = subgroup.unwrap_or(8);
            Self {
                backing: Backing::Texture,
                subgroup,
                lanes,
                lanes_max: lanes,
                tiles: [2, 1, 1, 1],
                chunk: 32,
                sums: Sums::Whole,
                unroll: [1; 4],
                attention_subgroups: 1,
                attention_span: 1024,
                pick_span: 4096,
                pass_rows: 64,
                submit_dispatches: usize::MAX,
                spin: Duration::ZERO,
                part_tiles: usize::MAX,
            }
        } else {
            let lanes = subgroup.unwrap_or(32).max(16);
            Self {
                backing: Backing::Buffer,
                subgroup,
                lanes,
                lanes_max: lanes.max(128),
                tiles: [1, 1, 1, 1],
                chunk: 8,
                sums: if subgroup.is_some() { Sums::Halves } else { Sums::Whole },
                unroll: [8; 4],
                attention_subgroups: if subgroup.is_some() { (128 / lanes).clamp(1, 8) } else { 1 },
                attention_span: 512,
                pick_span: 1024,
                pass_rows: 64,
                submit_dispatches: 24,
                spin: if adapter.kind == AdapterKind::Discrete { SPIN } else { Duration::ZERO },
                part_tiles: usize::MAX,
            }
        }
    }

    /// Columns of a chunk of a matrix of `columns`, whole blocks: the longest allowed that leaves no lane without one, else
    /// the shortest.
    pub(super) fn chunk_of(&self, columns: usize) -> usize {
        let mut sizes = [32, 16, 8].into_iter().filter(|size| *size <= self.chunk as usize);
        let busy = |size: &usize| columns / size >= self.lanes as usize;
        sizes.clone().find(busy).or(sizes.next_back()).expect("8 columns are always allowed")
    }

    /// How a matrix of `columns` lies: whole blocks.
    pub(super) fn order_of(&self, columns: usize) -> Order {
        match self.backing {
            Backing::Buffer => Order::Planes { chunk: self.chunk_of(columns) },
            Backing::Texture => {
                let (lanes, blocks) = (self.lanes as usize, columns / 32);
                // No format has more planes than half precision.
                let rows = blocks.div_ceil(TEXTURE_SIDE / (16 * lanes));
                Order::Streams { lanes, row_blocks: blocks.div_ceil(rows) }
            }
        }
    }

    /// Lanes of a kernel of a matrix of `columns`: one for each chunk, within the bounds.
    pub(super) fn lanes_of(&self, columns: usize) -> Lanes {
        if self.backing == Backing::Texture {
            return Lanes { count: self.lanes, subgroup: self.subgroup, sums: self.sums };
        }
        let chunks = (columns / self.chunk_of(columns)) as u32;
        let whole = match self.subgroup {
            Some(size) => chunks.next_multiple_of(size),
            None => chunks.next_power_of_two(),
        };
        let count = whole.clamp(self.lanes, self.lanes_max);
        Lanes { count, subgroup: self.subgroup, sums: self.sums }
    }
}

/// Spinning costs a processor core for that long; cards are fast enough to answer meanwhile.
const SPIN: Duration = Duration::from_micros(300);

/// Whether a device has the subgroup operations of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subgroups {
    Offered,
    Missing,
}

impl Tuning {
    /// Whether the generator can follow it; the error says why not.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { lanes, lanes_max, subgroup, chunk, .. } = *self;
        if !(8..=128).contains(&lanes) || !(lanes..=128).contains(&lanes_max) {
            return Err(format!("{lanes} to {lanes_max} lanes, not within 8 to 128"));
        }
        for lanes in [lanes, lanes_max] {
            let fits = match subgroup {
                Some(size) => size.is_power_of_two() && lanes.is_multiple_of(size),
                None => lanes.is_power_of_two(),
            };
            if !fits {
                return Err(format!("{lanes} lanes do not go with subgroups of {subgroup:?}"));
            }
        }
        if self.sums == Sums::Halves && subgroup.is_none() {
            return Err("sums by halves need subgroup operations".into());
        }
        if self.submit_dispatches == 0 {
            return Err("a submission must hold a dispatch".into());
        }
        if ![8, 16, 32].contains(&chunk) {
            return Err(format!("chunks of {chunk} columns, not 8, 16 or 32"));
        }
        if !self.unroll.iter().all(|u| u.is_power_of_two()) {
            return Err(format!("{:?} units in an iteration, not powers of two", self.unroll));
        }
        for (rows, tiles) in [1, 2, 4, 8].into_iter().zip(self.tiles) {
            // By halves, each lane of a subgroup finishes one row of one tile at most; gate and up go in pairs.
            let most = match (self.sums, subgroup) {
                (Sums::Halves, Some(size)) => (size / rows).min(16),
                _ => 16,
            };
            if !(1..=most).contains(&tiles) {
                return Err(format!("{tiles} tiles for {rows} rows, not 1 to {most}"));
            }
        }
        if self.attention_subgroups == 0 || (subgroup.is_none() && self.attention_subgroups != 1) {
            return Err("attention needs one subgroup, or subgroup operations".into());
        }
        if self.attention_span == 0 {
            return Err("attention needs a position at a time".into());
        }
        if self.pick_span == 0 || !self.pick_span.is_multiple_of(4) || self.pass_rows == 0 {
            return Err("a span must be a multiple of 4, a pass at least a row".into());
        }
        if self.part_tiles < 2 {
            return Err("a part must hold two tiles".into());
        }
        Ok(())
    }
}
