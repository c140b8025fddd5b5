//! The names that everything else is keyed by: units, roles and stages.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Name of a compute unit, such as `cpu0` or `gpu0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitId(Arc<str>);

impl UnitId {
    /// Names a unit.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of the two models of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelRole {
    /// The small model that rides ahead.
    Draft,
    /// The model whose text is served.
    Target,
}

impl ModelRole {
    /// `draft` or `target`, as in plans, labels and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelRole::Draft => "draft",
            ModelRole::Target => "target",
        }
    }
}

impl fmt::Display for ModelRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stage named by its content: blocks `layer_first..layer_end` of a model. A stage that a new plan keeps on its unit
/// has the same name there and is not installed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId {
    /// The model.
    pub role: ModelRole,
    /// First block; with the embedding if 0.
    pub layer_first: usize,
    /// One past the last block; with the output head if it is the model's number of layers.
    pub layer_end: usize,
}

impl StageId {
    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.layer_end - self.layer_first
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}..{}]", self.role, self.layer_first, self.layer_end)
    }
}
