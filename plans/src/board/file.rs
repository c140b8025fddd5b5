//! The words of a board file.
//!
//! *Invariant:* a number is a table of a value and its source; neither can be left out.

use serde::Deserialize;

use crate::machine::AdapterKind;
use crate::role::ModelRole;

/// Why a text is not a board.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoardError {
    /// It cannot be read.
    #[error("not a board file: {0}")]
    Syntax(String),
    /// A number makes no sense.
    #[error("{what} is {given}, but must be {must}")]
    Number {
        /// The number.
        what: String,
        /// What it is.
        given: u64,
        /// What it has to be.
        must: &'static str,
    },
    /// A source is empty.
    #[error("a number has an empty source: say where it comes from")]
    Source,
    /// A measured time names what is not there.
    #[error("a measured time is for `{0}`, which the board does not have")]
    Unit(String),
}

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sourced<T> {
    /// The number.
    pub value: T,
    /// Where it comes from.
    pub source: String,
}

/// A board file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardFile {
    pub(super) name: String,
    pub(super) memory_bytes: Sourced<u64>,
    pub(super) bus_bytes_per_second: Sourced<u64>,
    /// Between the end of a job and the begin of the next.
    pub(super) hop_ns: Sourced<u64>,
    pub(super) clusters: Vec<ClusterEntry>,
    #[serde(default)]
    pub(super) adapters: Vec<AdapterEntry>,
    pub(super) target: ModelEntry,
    pub(super) draft: ModelEntry,
    pub(super) text: TextEntry,
    #[serde(default)]
    pub(super) measured: Vec<MeasuredEntry>,
}

/// Cores that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterEntry {
    pub(super) name: String,
    pub(super) cores: Sourced<u64>,
    pub(super) capacity: Sourced<u64>,
    /// What one core can read.
    pub(super) bytes_per_second: Sourced<u64>,
    /// Products of weights and activations that one core computes.
    pub(super) products_per_second: Sourced<u64>,
    pub(super) power_mw: Sourced<u64>,
}

/// A GPU.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterEntry {
    pub(super) name: String,
    pub(super) kind: KindWord,
    pub(super) memory_bytes: Option<Sourced<u64>>,
    pub(super) bytes_per_second: Sourced<u64>,
    pub(super) products_per_second: Sourced<u64>,
    /// Submission and read-back of a job.
    pub(super) job_ns: Sourced<u64>,
    /// What each layer's dispatches cost besides.
    pub(super) layer_ns: Sourced<u64>,
    pub(super) power_mw: Sourced<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KindWord {
    Discrete,
    Integrated,
    Software,
}

impl From<KindWord> for AdapterKind {
    fn from(word: KindWord) -> Self {
        match word {
            KindWord::Discrete => AdapterKind::Discrete,
            KindWord::Integrated => AdapterKind::Integrated,
            KindWord::Software => AdapterKind::Software,
        }
    }
}

/// A model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelEntry {
    pub(super) layers: Sourced<u64>,
    pub(super) width: Sourced<u64>,
    pub(super) vocabulary: Sourced<u64>,
    pub(super) layer_parameters: Sourced<u64>,
    pub(super) head_parameters: Sourced<u64>,
    pub(super) bits_per_parameter: Sourced<u64>,
    /// Of one layer.
    pub(super) cache_bytes_per_position: Sourced<u64>,
}

/// What is decoded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TextEntry {
    pub(super) prompt_tokens: Sourced<u64>,
    pub(super) output_tokens: Sourced<u64>,
    /// By position after a correction; the last holds for all after it.
    pub(super) acceptance_permille: Sourced<Vec<u16>>,
}

/// A time that overrules the roofline: a pass of one row, as a share of the target's on one core of the first cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeasuredEntry {
    pub(super) model: ModelRole,
    /// `cpu:0x1`, or `gpu:0` for the first adapter.
    pub(super) unit: String,
    pub(super) permille_of_target_on_one_core: Sourced<u64>,
}

impl BoardFile {
    pub(super) fn parse(text: &str) -> Result<Self, BoardError> {
        let in_a_line =
            |error: toml::de::Error| BoardError::Syntax(error.to_string().replace('\n', "; "));
        let file: Self = toml::from_str(text).map_err(in_a_line)?;
        if file.sources().iter().any(|source| source.trim().is_empty()) {
            return Err(BoardError::Source);
        }
        for (what, given) in file.positive() {
            if given == 0 {
                return Err(BoardError::Number { what, given, must: "at least 1" });
            }
        }
        let cores: u64 = file.clusters.iter().map(|cluster| cluster.cores.value).sum();
        if cores == 0 || cores > 256 {
            let what = "the number of cores".to_owned();
            return Err(BoardError::Number { what, given: cores, must: "1 to 256" });
        }
        let permille = &file.text.acceptance_permille.value;
        if permille.is_empty() || permille.iter().any(|p| *p > 1000) {
            let what = "the largest acceptance, in thousandths,".to_owned();
            let given = permille.iter().copied().max().unwrap_or(0).into();
            return Err(BoardError::Number { what, given, must: "given, and at most 1000" });
        }
        for entry in &file.measured {
            let gpu = entry.unit.strip_prefix("gpu:").and_then(|index| index.parse::<usize>().ok());
            let known = entry.unit == "cpu:0x1" || gpu.is_some_and(|i| i < file.adapters.len());
            if !known {
                return Err(BoardError::Unit(entry.unit.clone()));
            }
        }
        Ok(file)
    }

    /// Numbers that may not be 0.
    fn positive(&self) -> Vec<(String, u64)> {
        let mut found = vec![
            ("memory_bytes".to_owned(), self.memory_bytes.value),
            ("text.prompt_tokens".to_owned(), self.text.prompt_tokens.value),
            ("text.output_tokens".to_owned(), self.text.output_tokens.value),
        ];
        for cluster in &self.clusters {
            let of = |what: &str| format!("{what} of {}", cluster.name);
            found.push((of("bytes_per_second"), cluster.bytes_per_second.value));
            found.push((of("products_per_second"), cluster.products_per_second.value));
            found.push((of("capacity"), cluster.capacity.value));
        }
        for adapter in &self.adapters {
            let of = |what: &str| format!("{what} of {}", adapter.name);
            found.push((of("bytes_per_second"), adapter.bytes_per_second.value));
            found.push((of("products_per_second"), adapter.products_per_second.value));
        }
        for (model, role) in [(&self.target, "target"), (&self.draft, "draft")] {
            let of = |what: &str| format!("{what} of the {role}");
            found.push((of("layers"), model.layers.value));
            found.push((of("vocabulary"), model.vocabulary.value));
            found.push((of("layer_parameters"), model.layer_parameters.value));
            found.push((of("bits_per_parameter"), model.bits_per_parameter.value));
        }
        found
    }

    /// The sources of all numbers.
    pub(super) fn sources(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut add = |number: &Sourced<u64>| found.push(number.source.clone());
        for number in [&self.memory_bytes, &self.bus_bytes_per_second, &self.hop_ns] {
            add(number);
        }
        for c in &self.clusters {
            let numbers =
                [&c.cores, &c.capacity, &c.bytes_per_second, &c.products_per_second, &c.power_mw];
            numbers.into_iter().for_each(&mut add);
        }
        for a in &self.adapters {
            let numbers =
                [&a.bytes_per_second, &a.products_per_second, &a.job_ns, &a.layer_ns, &a.power_mw];
            numbers.into_iter().chain(&a.memory_bytes).for_each(&mut add);
        }
        for m in [&self.target, &self.draft] {
            let sizes = [&m.layers, &m.width, &m.vocabulary, &m.layer_parameters];
            let bits = [&m.head_parameters, &m.bits_per_parameter, &m.cache_bytes_per_position];
            sizes.into_iter().chain(bits).for_each(&mut add);
        }
        [&self.text.prompt_tokens, &self.text.output_tokens].into_iter().for_each(&mut add);
        self.measured.iter().for_each(|m| add(&m.permille_of_target_on_one_core));
        found.push(self.text.acceptance_permille.source.clone());
        found
    }
}
