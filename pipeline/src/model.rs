//! A model ready to be cut into stages: what the rest of the program sees of a checkpoint.
//!
//! *Invariant:* a [`Model`] is whole and checked. Its weights stay in the file or the binary; the reader's own copies
//! of metadata are gone.

use std::path::PathBuf;
use std::sync::Arc;

use outrider_devices::graph::passes::optimise;
use outrider_devices::graph::{Op, WeightFormat};
use outrider_devices::{Graph, Subgraph};
use outrider_plans::ModelRole;

use crate::checkpoint::{Checkpoint, CheckpointError, ModelConfig};
use crate::shipped;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::Tokenizer;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// One of the pair in the binary.
    Shipped(ModelRole),
    /// A GGUF file, a safetensors file or index, or a directory with one of these.
    File(PathBuf),
}

impl ModelSource {
    /// Opens the checkpoint, without building anything from it.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        match self {
            ModelSource::Shipped(role) => shipped::open(*role),
            ModelSource::File(path) => Checkpoint::open(path),
        }
    }
}

/// A model: hyper-parameters, graph, tokenizer, chat template.
#[derive(Debug)]
pub struct Model {
    name: String,
    config: ModelConfig,
    graph: Graph,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl Model {
    /// Opens a model.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(source: &ModelSource) -> Result<Self, CheckpointError> {
        Self::new(&source.checkpoint()?)
    }

    /// Builds the model of an opened checkpoint.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn new(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let graph = checkpoint.graph()?;
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let config = checkpoint.config().clone();
        let spelt = |id: Option<u32>| id.map_or("", |id| tokenizer.token_text(id));
        let (bos, eos) = (spelt(config.special.bos), spelt(config.special.eos.first().copied()));
        let template = checkpoint
            .template_source()?
            .map(|source| ChatTemplate::new(&source, bos, eos))
            .transpose()
            .map_err(|source| CheckpointError::Template {
                file: checkpoint.name().to_owned(),
                source,
            })?;
        Ok(Self { name: checkpoint.name().to_owned(), config, graph, tokenizer, template })
    }

    /// What the model is called in messages: its file, or `shipped target`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The whole model as plain ops.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The same model with another's tokenizer in place of its own, for a pair whose vocabularies were found equal.
    #[must_use]
    pub fn with_tokenizer_of(self, other: &Self) -> Self {
        Self { tokenizer: Arc::clone(&other.tokenizer), ..self }
    }

    /// The same model with the matrices of its projections rounded to `format`, where they are not narrower already; the
    /// embedding's rows, which cost nothing to read, stay as they are. For drafts: what a draft says is only ever a
    /// proposal, so rounding costs acceptance and never changes a text.
    ///
    /// # Errors
    /// [`CheckpointError::Weight`] for a matrix whose rows are no whole blocks of the format.
    pub fn with_projections_as(mut self, format: WeightFormat) -> Result<Self, CheckpointError> {
        let graph = &mut self.graph;
        let ops = graph.nodes.iter().map(|node| &node.op);
        let read = ops.filter(|op| !matches!(op, Op::Embed { .. })).flat_map(Op::weights);
        for id in read {
            let weight = &mut graph.weights[id.0 as usize];
            let bits = |format: WeightFormat| 8 * format.block_bytes() / format.block_len();
            if weight.rows == 1 || bits(weight.format) <= bits(format) {
                continue;
            }
            let file = self.name.clone();
            *weight = weight
                .rounded_to(format)
                .map_err(|source| CheckpointError::Weight { file, source })?;
        }
        Ok(self)
    }

    /// The chat template, if the checkpoint has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`TemplateError::Missing`], which names the model.
    pub fn needed_template(&self) -> Result<&ChatTemplate, TemplateError> {
        self.template().ok_or_else(|| TemplateError::Missing { model: self.name.clone() })
    }

    /// Blocks `layer_first..layer_end`, fused, under a name such as `target[0..8]`; with the embedding if the first is
    /// 0, and with the head if the end is the number of layers. Weights are shared, not copied.
    ///
    /// # Errors
    /// [`CheckpointError::Stage`] for layers that the model does not have.
    pub fn subgraph(
        &self,
        name: &str,
        layer_first: usize,
        layer_end: usize,
    ) -> Result<Subgraph, CheckpointError> {
        Subgraph::cut(name, &optimise(self.graph.clone()), layer_first, layer_end)
            .map_err(|source| CheckpointError::Stage { file: self.name.clone(), source })
    }
}
