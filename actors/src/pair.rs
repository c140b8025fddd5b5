//! A target and its draft, loaded and checked against each other; shared by every engine that runs them.

use std::fmt;
use std::sync::Arc;

use outrider_devices::Subgraph;
use outrider_devices::graph::WeightFormat;
use outrider_pipeline::{CheckpointError, Model, ModelSource, PairError, check_pair};
use outrider_plans::{HeadWeights, ModelRole, ModelShape, PlanContext, StageId};

/// Why a pair was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// One of the files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The two together.
    #[error(transparent)]
    Pair(Box<PairError>),
}

impl From<PairError> for LoadError {
    fn from(error: PairError) -> Self {
        Self::Pair(Box::new(error))
    }
}

/// Loaded models. Weights stay in the mapped files; a clone is cheap.
#[derive(Clone)]
pub struct Pair {
    /// The model whose text is served.
    pub target: Arc<Model>,
    /// The model that rides ahead.
    pub draft: Option<Arc<Model>>,
}

impl fmt::Debug for Pair {
    /// Names: the models themselves fill pages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let draft = self.draft.as_ref().map(|draft| draft.name());
        f.debug_struct("Pair").field("target", &self.target.name()).field("draft", &draft).finish()
    }
}

impl Pair {
    /// Opens both files and checks that they speak the same vocabulary.
    pub fn open(target: &ModelSource, draft: Option<&ModelSource>) -> Result<Self, LoadError> {
        Self::open_with(target, draft, None)
    }

    /// The same with the draft's projections rounded to a narrower format, if one is given.
    pub fn open_with(
        target: &ModelSource,
        draft: Option<&ModelSource>,
        draft_format: Option<WeightFormat>,
    ) -> Result<Self, LoadError> {
        let target = Arc::new(Model::open(target)?);
        let draft = draft.map(Model::open).transpose()?;
        if let Some(draft) = &draft {
            check_pair(&target, draft)?;
        }
        // One tokenizer is enough: a draft's text is never spelt by its own.
        let draft = draft.map(|draft| draft.with_tokenizer_of(&target));
        let draft = match (draft, draft_format) {
            (Some(draft), Some(format)) => Some(draft.with_projections_as(format)?),
            (draft, _) => draft,
        };
        Ok(Self { target, draft: draft.map(Arc::new) })
    }

    /// The model in a role.
    pub fn model(&self, role: ModelRole) -> Option<&Arc<Model>> {
        match role {
            ModelRole::Target => Some(&self.target),
            ModelRole::Draft => self.draft.as_ref(),
        }
    }

    /// Positions that every model of the pair was trained for.
    pub fn context_length(&self) -> usize {
        let length = |model: &Arc<Model>| model.config().context;
        self.draft.iter().map(length).fold(length(&self.target), usize::min)
    }

    /// The stage as a subgraph.
    ///
    /// Panics if the stage is not a part of a loaded model; plans are checked against these models.
    pub fn subgraph(&self, stage: StageId) -> Arc<Subgraph> {
        cut(self.model(stage.role).expect("the plan was checked against this pair"), stage)
    }

    /// What plans for this pair are checked against, where plans for another one are checked against `other`.
    pub fn plan_context(&self, other: &PlanContext) -> PlanContext {
        PlanContext {
            target: shape_of(&self.target),
            draft: self.shape(ModelRole::Draft),
            ..other.clone()
        }
    }

    /// The sizes that plans are checked against.
    pub fn shape(&self, role: ModelRole) -> Option<ModelShape> {
        self.model(role).map(|model| shape_of(model))
    }
}

/// A stage of a model as a subgraph.
///
/// Panics if the stage is not a part of the model.
pub(crate) fn cut(model: &Model, stage: StageId) -> Arc<Subgraph> {
    let cut = model.subgraph(&stage.to_string(), stage.layer_first, stage.layer_end);
    Arc::new(cut.expect("the plan was checked against this model"))
}

fn shape_of(model: &Model) -> ModelShape {
    let graph = model.graph();
    let shape = &model.config().shape;
    let mut layer_bytes = vec![0; shape.layers];
    let (mut embedding_bytes, mut head_bytes) = (0, 0);
    let (mut embedding, mut head) = (None, None);
    for node in &graph.nodes {
        for id in node.op.weights() {
            let weight = &graph.weights[id.0 as usize];
            let bytes = weight.bytes().len() as u64;
            match (node.layer, &node.op) {
                (Some(layer), _) => layer_bytes[layer] += bytes,
                (None, outrider_devices::graph::Op::Embed { .. }) => {
                    embedding = Some(weight.bytes().as_ptr());
                    embedding_bytes += bytes;
                }
                (None, _) => {
                    if weight.rows > 1 {
                        head = Some(weight.bytes().as_ptr());
                    }
                    head_bytes += bytes;
                }
            }
        }
    }
    // Keys and values as 16-bit floats.
    let cache_bytes = 2 * 2 * (shape.kv_heads * shape.rope.head_dim) as u64;
    ModelShape {
        layer_bytes,
        embedding_bytes,
        head_bytes,
        head: if embedding == head { HeadWeights::Tied } else { HeadWeights::Own },
        cache_bytes,
        width: shape.width,
        vocabulary: shape.vocabulary,
    }
}
