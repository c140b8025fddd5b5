//! The shape of the generated kernels on one adapter: what may differ between adapters without changing a result's
//! meaning (its bits may differ, so a tuning is fixed for the life of a device).

use super::adapter::{AdapterKind, GpuAdapter};

/// What weights, and the activations that they are multiplied with, are read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Storage buffers: best on hardware.
    Buffer,
    /// Storage textures of four 32-bit words a texel: best on a software rasteriser, which gathers texels as vectors
    /// but storage words one by one.
    Texture,
}

/// Parameters of the kernel generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// What weights and activations are read through.
    pub backing: Backing,
    /// Lanes of a subgroup where it is known and fixed; `None` reduces through workgroup memory instead.
    pub subgroup: Option<u32>,
    /// Lanes of a matrix kernel's workgroup: a power of two, a multiple of the subgroup.
    pub lanes: u32,
    /// Tiles of 4 output rows that a workgroup computes, for 1, 2, 4 and 8 batch rows.
    pub tiles: [u32; 4],
    /// Columns that a lane takes at a time: 8, 16 or 32.
    pub chunk: u32,
    /// Units of 4 columns that a loop's iteration takes, for 1, 2, 4 and 8 batch rows: powers of two. Long iterations
    /// keep more loads in flight, and take a software rasteriser very long to compile.
    pub unroll: [u32; 4],
    /// Subgroups that share the positions of one attention head; 1 without subgroups.
    pub attention_subgroups: u32,
    /// Logits that one workgroup looks through for its best: a multiple of 4 lanes.
    pub pick_span: u32,
    /// Most rows of one submission; longer batches are split.
    pub pass_rows: usize,
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
                tiles: [4, 2, 2, 2],
                chunk: 32,
                unroll: [1; 4],
                attention_subgroups: 1,
                pick_span: 4096,
                pass_rows: 64,
                part_tiles: usize::MAX,
            }
        } else {
            let lanes = subgroup.unwrap_or(32).max(16);
            Self {
                backing: Backing::Buffer,
                subgroup,
                lanes,
                tiles: [1, 1, 1, 1],
                chunk: 32,
                unroll: [8; 4],
                attention_subgroups: if subgroup.is_some() { (128 / lanes).clamp(1, 8) } else { 1 },
                pick_span: 1024,
                pass_rows: 64,
                part_tiles: usize::MAX,
            }
        }
    }
}

/// Whether a device has the subgroup operations of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subgroups {
    Offered,
    Missing,
}

impl Tuning {
    /// Whether the generator can follow it; the error says why not.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { lanes, subgroup, chunk, .. } = *self;
        if !(8..=128).contains(&lanes) || !lanes.is_power_of_two() {
            return Err(format!("{lanes} lanes, not a power of two from 8 to 128"));
        }
        if subgroup.is_some_and(|s| s == 0 || !lanes.is_multiple_of(s)) {
            return Err(format!("{lanes} lanes are not whole subgroups of {subgroup:?}"));
        }
        if ![8, 16, 32].contains(&chunk) {
            return Err(format!("chunks of {chunk} columns, not 8, 16 or 32"));
        }
        if !self.unroll.iter().all(|u| u.is_power_of_two()) {
            return Err(format!("{:?} units in an iteration, not powers of two", self.unroll));
        }
        if !self.tiles.iter().all(|tiles| (1..=16).contains(tiles)) {
            return Err(format!("{:?} tiles, not 1 to 16", self.tiles));
        }
        if self.attention_subgroups == 0 || (subgroup.is_none() && self.attention_subgroups != 1) {
            return Err("attention needs one subgroup, or subgroup operations".into());
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
