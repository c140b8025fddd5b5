//! What can be wrong with a plan, where in its file, and what to do about it.
//!
//! *Invariant:* every message names the thing and the way out; the place is a line and a column whenever the plan came
//! from text.

use std::fmt;

use crate::context::CacheFormat;
use crate::mode::{DRAFT_TOKENS_MAX, LOOKUP_NGRAM_MAX, ModeKind};
use crate::plan::UnitKind;
use crate::role::{ModelRole, UnitId};
use crate::wording;

/// A place in a plan file, counted from 1; columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Position {
    /// The place of byte `offset` of `text`; an offset beyond the end is taken as the end.
    pub fn of_byte(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        let column = 1 + String::from_utf8_lossy(&before[line_start..]).chars().count();
        Self { line, column }
    }
}

/// A plan that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// The plan's file, if it has one.
    pub file: Option<String>,
    /// The place of the mistake, if the plan came from text.
    pub at: Option<Position>,
    /// The mistake.
    pub problem: PlanProblem,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.at) {
            (Some(file), Some(at)) => write!(f, "{file}:{}:{}: ", at.line, at.column)?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, Some(at)) => write!(f, "line {}, column {}: ", at.line, at.column)?,
            (None, None) => {}
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for PlanError {}

impl From<PlanProblem> for PlanError {
    fn from(problem: PlanProblem) -> Self {
        Self { file: None, at: None, problem }
    }
}

/// What is wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named and explained by the messages above them")]
pub enum PlanProblem {
    #[error("{0}")]
    Syntax(String),
    #[error("{what} `{given}` is no usable name: take 1 to {longest} letters, digits, `-` or `_`")]
    Name { what: &'static str, given: String, longest: usize },
    #[error("the plan has {given} units: at most {most} are allowed")]
    TooManyUnits { given: usize, most: usize },

    #[error("draft_tokens = {given} is out of range: choose 1 to {DRAFT_TOKENS_MAX}")]
    Depth { given: i64 },
    #[error("draft_tokens is {given}: write a number from 1 to {DRAFT_TOKENS_MAX}, or \"auto\"")]
    DepthWord { given: String },
    #[error("draft_tokens = \"auto\" is for sequential and overlap: give mode {mode} a number")]
    AutoDepth { mode: ModeKind },
    #[error("lookup_ngram = {given} is out of range: choose 1 to {LOOKUP_NGRAM_MAX}")]
    Ngram { given: i64 },
    #[error("wait = {given} is out of range: choose 0 to draft_tokens, which is {draft_tokens}")]
    Wait { given: i64, draft_tokens: u32 },
    #[error("`{key}` means nothing in mode {mode}: remove it, or choose another mode")]
    KeyNotForMode { key: &'static str, mode: ModeKind },

    #[error(
        "`layers = {given}` is not a range of layers: write \"0..4\" (first, one past the last) or \"all\""
    )]
    LayersUnreadable { given: String },
    #[error(
        "{role} layers {first}..{end} are none: the end, which is not included, must lie above the start"
    )]
    LayersEmpty { role: ModelRole, first: usize, end: usize },
    #[error(
        "{role} layers {first}..{end} reach beyond the model: its {layers} layers are 0..{layers}"
    )]
    LayersBeyond { role: ModelRole, first: usize, end: usize, layers: usize },
    #[error(
        "{role} layers {first}..{end} overlap {other_first}..{other_end} of line {other_line}: every layer belongs \
         to one stage, so start this one at {other_end} or end that one at {first}"
    )]
    LayersOverlap {
        role: ModelRole,
        first: usize,
        end: usize,
        other_first: usize,
        other_end: usize,
        other_line: usize,
    },
    #[error(
        "{role} layers {first}..{end} run nowhere: add a [[{role}]] entry that gives them to a unit"
    )]
    LayersMissing { role: ModelRole, first: usize, end: usize },
    #[error(
        "mode {mode} needs the {role} model placed: add a [[{role}]] entry with its unit and layers"
    )]
    RoleMissing { role: ModelRole, mode: ModeKind },
    #[error(
        "mode plain runs no draft: remove the [[draft]] entries, or choose sequential, overlap or lookup"
    )]
    DraftInPlain,
    #[error(
        "no draft model is loaded: load one, or remove the [[draft]] entries and choose mode plain or lookup"
    )]
    DraftNotLoaded,
    #[error(
        "the draft has {draft} tokens in its vocabulary and the target {target}: a pair must share one vocabulary, \
         so choose another draft"
    )]
    Vocabulary { draft: usize, target: usize },

    #[error("there is no unit `{unit}` in this plan: its units are {known}")]
    UnitUnknown { unit: UnitId, known: String },
    #[error("unit `{unit}` runs nothing: give it layers, or remove it")]
    UnitUnused { unit: UnitId },
    #[error("`{key}` means nothing for a {kind} unit: remove it from `{unit}`")]
    KeyNotForKind { unit: UnitId, key: &'static str, kind: UnitKind },

    #[error(
        "unit `{unit}` names no cores: add a list such as `cores = [0, 1]`, a number such as `cores = 2`, or \
         `cores = \"all\"`"
    )]
    CoresMissing { unit: UnitId },
    #[error(
        "`cores = {given}` of unit `{unit}` is not a choice of cores: write a list such as [0, 1], a number of cores, \
         \"all\", \"big\" or \"little\""
    )]
    CoresUnreadable { unit: UnitId, given: String },
    #[error(
        "this machine has no little cores for unit `{unit}`: all are of one speed, so write \"all\" or a number"
    )]
    CoresLittle { unit: UnitId },
    #[error("unit `{unit}` names core {core} twice: name it once")]
    CoreTwice { unit: UnitId, core: usize },
    #[error("core {core} of unit `{unit}` cannot be used here: choose among {usable}")]
    CoreUnknown { unit: UnitId, core: usize, usable: String },
    #[error("core {core} belongs to both `{other}` and `{unit}`: give each unit cores of its own")]
    CoreTaken { unit: UnitId, core: usize, other: UnitId },
    #[error(
        "unit `{unit}` asks for {wanted} cores but {free} are left: this machine has {cores}, so ask for fewer here or \
         elsewhere"
    )]
    CoresTooFew { unit: UnitId, wanted: i64, free: usize, cores: usize },

    #[error(
        "`adapter = {given}` of unit `{unit}` is not a choice of adapter: write its number or a part of its name"
    )]
    AdapterUnreadable { unit: UnitId, given: String },
    #[error("unit `{unit}` asks for GPU adapter {wanted}, which is not here: {known}")]
    AdapterUnknown { unit: UnitId, wanted: String, known: String },
    #[error(
        "`adapter = {given}` of unit `{unit}` fits several adapters ({fitting}): use a number or a longer name"
    )]
    AdapterAmbiguous { unit: UnitId, given: String, fitting: String },
    #[error(
        "GPU adapter {adapter} belongs to both `{other}` and `{unit}`: put their stages on one unit"
    )]
    AdapterTaken { unit: UnitId, adapter: usize, other: UnitId },

    #[error(
        "unit `{unit}` is a gpu, which keeps caches as f16 only, not as {format}: give its stages to a cpu unit, or choose \
         f16 caches"
    )]
    CacheOnGpu { unit: UnitId, format: CacheFormat },
    #[error(
        "the plan needs {} of {place} ({} weights, {} caches) but {} are free, and unit `{unit}` has the most of \
         it: allow fewer or shorter sequences, take a smaller model, or move layers to another unit",
        wording::bytes(.weight_bytes + .cache_bytes), wording::bytes(*.weight_bytes),
        wording::bytes(*.cache_bytes), wording::bytes(*.free_bytes)
    )]
    Memory { unit: UnitId, place: String, weight_bytes: u64, cache_bytes: u64, free_bytes: u64 },
}

#[cfg(test)]
mod tests {
    use super::Position;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a = 1\n# ü\n  b";
        let at = |offset| {
            let p = Position::of_byte(text, offset);
            (p.line, p.column)
        };
        assert_eq!(
            [at(0), at(4), at(6), at(10), at(13), at(99)],
            [(1, 1), (1, 5), (2, 1), (2, 4), (3, 3), (3, 4)]
        );
    }
}
