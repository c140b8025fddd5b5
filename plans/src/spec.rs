//! A plan file as it was written: its words with their places, not yet checked against machine and models.
//!
//! *Invariant:* holds whatever the grammar allows; whether it makes sense is asked by [`PlanSpec::check`].

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Value};

use crate::error::{PlanError, PlanProblem, Position};
use crate::mode::ModeKind;
use crate::models::Models;
use crate::plan::UnitKind;
use crate::role::ModelRole;

/// A value and the place where it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: Position,
}

/// A plan file, read but not checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanSpec {
    pub(crate) file: Option<String>,
    pub(crate) name: At<String>,
    pub(crate) mode: At<ModeKind>,
    pub(crate) draft_tokens: Option<At<Value>>,
    pub(crate) wait: Option<At<i64>>,
    pub(crate) lookup_ngram: Option<At<i64>>,
    pub(crate) models: Models,
    pub(crate) units: BTreeMap<String, At<UnitEntry>>,
    pub(crate) stages: Vec<At<StageEntry>>,
}

/// A `[units.NAME]` table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnitEntry {
    pub(crate) kind: UnitKind,
    pub(crate) cores: Option<At<Value>>,
    pub(crate) adapter: Option<At<Value>>,
}

/// A `[[target]]` or `[[draft]]` entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StageEntry {
    pub(crate) role: ModelRole,
    pub(crate) unit: At<String>,
    pub(crate) layers: At<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanTable {
    name: Spanned<String>,
    mode: Spanned<ModeKind>,
    draft_tokens: Option<Spanned<Value>>,
    wait: Option<Spanned<i64>>,
    lookup_ngram: Option<Spanned<i64>>,
    #[serde(default)]
    models: ModelsTable,
    #[serde(default)]
    units: BTreeMap<Spanned<String>, UnitTable>,
    #[serde(default)]
    target: Vec<Spanned<StageTable>>,
    #[serde(default)]
    draft: Vec<Spanned<StageTable>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsTable {
    target: Option<String>,
    draft: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitTable {
    kind: UnitKind,
    cores: Option<Spanned<Value>>,
    adapter: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageTable {
    unit: Spanned<String>,
    layers: Spanned<Value>,
}

impl PlanSpec {
    /// Reads a plan. `file` is named in errors.
    ///
    /// Fails on text that is not TOML, on unknown keys, on missing ones and on values of the wrong type.
    pub fn parse(text: &str, file: Option<&str>) -> Result<Self, PlanError> {
        let file = file.map(str::to_owned);
        let table: PlanTable = toml::from_str(text).map_err(|error| PlanError {
            file: file.clone(),
            at: error.span().map(|span| Position::of_byte(text, span.start)),
            problem: PlanProblem::Syntax(in_words_of_plans(error.message())),
        })?;
        let source = Source { text };
        let stages = |role, tables: Vec<Spanned<StageTable>>| {
            tables.into_iter().map(move |table| source.stage(role, table))
        };
        Ok(Self {
            file,
            name: source.at(table.name),
            mode: source.at(table.mode),
            draft_tokens: table.draft_tokens.map(|v| source.at(v)),
            wait: table.wait.map(|v| source.at(v)),
            lookup_ngram: table.lookup_ngram.map(|v| source.at(v)),
            models: Models { target: table.models.target, draft: table.models.draft },
            units: table.units.into_iter().map(|(name, unit)| source.unit(name, unit)).collect(),
            stages: stages(ModelRole::Target, table.target)
                .chain(stages(ModelRole::Draft, table.draft))
                .collect(),
        })
    }

    /// The plan's name.
    pub fn name(&self) -> &str {
        &self.name.value
    }

    /// The models that the plan names.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// The same plan for these models.
    pub fn with_models(self, models: Models) -> Self {
        Self { models, ..self }
    }

    /// The plan's mode.
    pub fn mode(&self) -> ModeKind {
        self.mode.value
    }
}

/// Turns byte spans of one text into places.
#[derive(Clone, Copy)]
struct Source<'a> {
    text: &'a str,
}

impl Source<'_> {
    fn at<T>(self, spanned: Spanned<T>) -> At<T> {
        let at = Position::of_byte(self.text, spanned.span().start);
        At { value: spanned.into_inner(), at }
    }

    fn unit(self, name: Spanned<String>, table: UnitTable) -> (String, At<UnitEntry>) {
        let At { value: name, at } = self.at(name);
        let entry = UnitEntry {
            kind: table.kind,
            cores: table.cores.map(|v| self.at(v)),
            adapter: table.adapter.map(|v| self.at(v)),
        };
        (name, At { value: entry, at })
    }

    fn stage(self, role: ModelRole, table: Spanned<StageTable>) -> At<StageEntry> {
        let At { value, at } = self.at(table);
        let (unit, layers) = (self.at(value.unit), self.at(value.layers));
        At { value: StageEntry { role, unit, layers }, at }
    }
}

/// The reader's message, in one line and with this format's word for a field.
fn in_words_of_plans(message: &str) -> String {
    let message = message.replace('\n', "; ").replace("unknown field", "unknown key");
    match message.strip_prefix("missing field ") {
        Some(key) => format!("key {key} is missing: add it"),
        None => message,
    }
}
