//! Which checkpoints a plan's stages are cut from.
//!
//! *Invariant:* a model without a name is the one that the service was started with, so that a plan which names none says
//! the same on every machine.

use serde::Serialize;

use crate::role::ModelRole;

/// Checkpoints by name, as far as they are not those that the service was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Models {
    /// The model whose text is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The model that rides ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
}

impl Models {
    /// The name of a role's model.
    pub fn of(&self, role: ModelRole) -> Option<&str> {
        match role {
            ModelRole::Target => self.target.as_deref(),
            ModelRole::Draft => self.draft.as_deref(),
        }
    }

    /// Whether these are the models that the service was started with.
    pub fn are_the_first(&self) -> bool {
        *self == Self::default()
    }

    /// These, and those of `other` where these have no name.
    pub fn or(self, other: &Models) -> Self {
        Self {
            target: self.target.or_else(|| other.target.clone()),
            draft: self.draft.or_else(|| other.draft.clone()),
        }
    }
}
