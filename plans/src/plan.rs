//! A checked plan: what runs where, and how.
//!
//! *Invariant:* a [`PartitionPlan`] covers the target, and the draft if it is there, each layer exactly once; every unit
//! named exists and runs something; no two units share a core or an adapter. Only [`crate::check`] builds one from text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::context::{CacheFormat, StageMemory};
use crate::error::{PlanError, PlanProblem};
use crate::mode::{DraftTokens, Mode};
use crate::models::Models;
use crate::role::{ModelRole, StageId, UnitId};

/// The kinds of compute unit, as plans and labels name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// Cores of the processor.
    Cpu,
    /// A GPU adapter.
    Gpu,
    /// Plain loops on one thread: the oracle.
    Reference,
    /// A toy model with made-up latencies.
    Sim,
}

impl UnitKind {
    /// The word in plans and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            UnitKind::Cpu => "cpu",
            UnitKind::Gpu => "gpu",
            UnitKind::Reference => "reference",
            UnitKind::Sim => "sim",
        }
    }
}

impl fmt::Display for UnitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The hardware of a unit, resolved on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum UnitSpec {
    /// Cores of the processor.
    Cpu {
        /// Ids of the cores, ascending; never empty.
        cores: Vec<usize>,
    },
    /// A GPU adapter.
    Gpu {
        /// Index among the machine's adapters.
        adapter: usize,
        /// The adapter's name.
        name: String,
    },
    /// The oracle.
    Reference,
    /// The simulated unit.
    Sim,
}

impl UnitSpec {
    /// The kind of unit.
    pub fn kind(&self) -> UnitKind {
        match self {
            UnitSpec::Cpu { .. } => UnitKind::Cpu,
            UnitSpec::Gpu { .. } => UnitKind::Gpu,
            UnitSpec::Reference => UnitKind::Reference,
            UnitSpec::Sim => UnitKind::Sim,
        }
    }
}

/// A stage on its unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Placement {
    /// The stage.
    pub stage: StageId,
    /// The unit that runs it.
    pub unit: UnitId,
}

/// Number of a running plan among those that ran in this process. Replies of an older epoch are dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PlanEpoch(pub u64);

impl PlanEpoch {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for PlanEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names a plan by its content: plans that do the same have the same id, whatever they are called, on every machine
/// and in every version that keeps the plan format. Written as 8 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanId(pub u32);

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl Serialize for PlanId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A checked plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionPlan {
    /// What people call it.
    pub name: String,
    /// How tokens are decoded, with the depth.
    pub mode: Mode,
    /// The checkpoints that its stages are cut from.
    #[serde(skip_serializing_if = "Models::are_the_first")]
    pub models: Models,
    /// The units that run something.
    pub units: BTreeMap<UnitId, UnitSpec>,
    /// Every stage: the target's in layer order, then the draft's in layer order.
    pub stages: Vec<Placement>,
    #[serde(skip)]
    pub(crate) caches: CacheFormat,
    #[serde(skip)]
    pub(crate) memory: BTreeMap<StageId, StageMemory>,
}

impl PartitionPlan {
    /// The stages of one model in layer order; empty for the draft of a plan that has none.
    pub fn chain(&self, role: ModelRole) -> Vec<&Placement> {
        self.stages.iter().filter(|placement| placement.stage.role == role).collect()
    }

    /// Whether the plan places a draft model.
    pub fn has_draft(&self) -> bool {
        self.stages.iter().any(|placement| placement.stage.role == ModelRole::Draft)
    }

    /// How its units keep caches, as it was when the plan was checked.
    pub fn caches(&self) -> CacheFormat {
        self.caches
    }

    /// The hardware of a unit of this plan.
    ///
    /// Panics if the plan has no such unit.
    pub fn unit(&self, unit: &UnitId) -> &UnitSpec {
        &self.units[unit]
    }

    /// Weights and caches of a stage of this plan, as they were when it was checked.
    ///
    /// Panics if the plan has no such stage.
    pub fn stage_memory(&self, stage: StageId) -> StageMemory {
        self.memory[&stage]
    }

    /// Weights and caches of all stages on `unit`.
    pub fn unit_memory(&self, unit: &UnitId) -> StageMemory {
        self.stages
            .iter()
            .filter(|placement| placement.unit == *unit)
            .map(|placement| self.stage_memory(placement.stage))
            .fold(StageMemory::default(), |sum, memory| sum + memory)
    }

    /// The same placement in another mode. For [`Mode::Plain`] the draft is dropped, and the units that ran nothing else.
    ///
    /// Fails if `mode` needs a draft and this plan places none.
    pub fn with_mode(&self, mode: Mode) -> Result<Self, PlanError> {
        if mode.kind().needs_draft() && !self.has_draft() {
            let (role, mode) = (ModelRole::Draft, mode.kind());
            return Err(PlanProblem::RoleMissing { role, mode }.into());
        }
        let mut plan = Self { mode, ..self.clone() };
        if mode == Mode::Plain {
            plan.stages.retain(|placement| placement.stage.role == ModelRole::Target);
            plan.memory.retain(|stage, _| stage.role == ModelRole::Target);
            plan.units.retain(|unit, _| plan.stages.iter().any(|p| p.unit == *unit));
        }
        Ok(plan)
    }

    /// The plan's identity by content: mode, models, units and stages, but not its name.
    pub fn fingerprint(&self) -> PlanId {
        let mut content = String::new();
        self.write_content(&mut content);
        let hash = fnv1a_64(content.as_bytes());
        PlanId((hash >> 32) as u32 ^ hash as u32)
    }

    /// The plan as a plan file, which on the same machine is read back as an equal plan.
    pub fn to_toml(&self) -> String {
        let mut text = format!("name = \"{}\"\n", self.name);
        self.write_content(&mut text);
        text
    }

    /// Everything but the name. The format is what ids are made of: a change here changes every plan's id.
    fn write_content(&self, text: &mut String) {
        let mut line = |words: fmt::Arguments<'_>| {
            text.write_fmt(words).expect("a String takes any text");
            text.push('\n');
        };
        line(format_args!("mode = \"{}\"", self.mode.kind()));
        match self.mode {
            Mode::Plain => {}
            Mode::Sequential { draft_tokens } => {
                line(format_args!("draft_tokens = {}", depth_word(draft_tokens)))
            }
            Mode::Overlap { draft_tokens, wait } => {
                let depth = depth_word(draft_tokens);
                line(format_args!("draft_tokens = {depth}\nwait = {wait}"));
            }
            Mode::Lookup { draft_tokens, ngram } => {
                line(format_args!("draft_tokens = {draft_tokens}\nlookup_ngram = {ngram}"));
            }
        }
        if !self.models.are_the_first() {
            line(format_args!("\n[models]"));
        }
        for role in [ModelRole::Target, ModelRole::Draft] {
            if let Some(name) = self.models.of(role) {
                line(format_args!("{role} = {}", toml::Value::from(name)));
            }
        }
        for (unit, spec) in &self.units {
            line(format_args!("\n[units.{unit}]\nkind = \"{}\"", spec.kind()));
            match spec {
                UnitSpec::Cpu { cores } => line(format_args!("cores = {cores:?}")),
                UnitSpec::Gpu { adapter, .. } => line(format_args!("adapter = {adapter}")),
                UnitSpec::Reference | UnitSpec::Sim => {}
            }
        }
        for Placement { stage, unit } in &self.stages {
            let StageId { role, layer_first, layer_end } = stage;
            line(format_args!("\n[[{role}]]\nunit = \"{unit}\""));
            line(format_args!("layers = \"{layer_first}..{layer_end}\""));
        }
    }
}

/// A depth as a value of a plan file.
fn depth_word(depth: DraftTokens) -> String {
    match depth {
        DraftTokens::Fixed(tokens) => tokens.to_string(),
        DraftTokens::Auto => "\"auto\"".to_owned(),
    }
}

/// The Fowler-Noll-Vo hash, variant 1a, of 64 bits: short, and the same for ever, unlike the standard library's.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(super::fnv1a_64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(super::fnv1a_64(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(super::fnv1a_64(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
