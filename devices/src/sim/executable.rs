//! A stage of the toy model. Between stages it passes labels in place of activations: each row says which text of which
//! model it belongs to and how many layers it has been through, and the next stage checks that.

use std::sync::Arc;

use super::Shared;
use super::language::{Language, hash_name, hash_tokens};
use super::options::{Latency, SimOptions};
use crate::batch::{Activations, Batch, Output, Picked, Segment, SequenceId, Want};
use crate::device::{DeviceError, Executable, MemoryUse, SlotLimits};
use crate::graph::{StageInput, StageOutput, Subgraph, ValueId};
use crate::sampling::{Scratch, pick};
use crate::slots::Slots;

/// Elements of a row of activations that carry its label: hash of the text, hash of the model, layers.
const LABEL: usize = 3;

/// What the toy model needs to know of a subgraph.
pub(super) struct Stage {
    name: String,
    model: u64,
    layers: u32,
    /// First layer, if the name tells it (`target[2..4]`).
    first: Option<u32>,
    /// Width of the input, if it is activations.
    input_cols: Option<usize>,
    end: End,
    latency: Option<Latency>,
}

enum End {
    /// Width of a row.
    Activations(usize),
    Logits(Language),
}

/// A stage of the toy model with the tokens of its sequences.
pub(super) struct SimExecutable {
    shared: Arc<Shared>,
    stage: Stage,
    slots: Slots<()>,
}

impl Stage {
    pub(super) fn of(subgraph: &Subgraph, options: &SimOptions) -> Result<Self, DeviceError> {
        let name = subgraph.name.clone();
        let cols = |id: ValueId| match subgraph.graph.values[id.0 as usize].cols {
            cols if cols >= LABEL => Ok(cols),
            cols => Err(DeviceError::Unsupported {
                device: options.name.clone(),
                detail: format!("{name}: rows of {cols} values cannot hold a label of {LABEL}"),
            }),
        };
        let input_cols = match subgraph.input {
            StageInput::Tokens => None,
            StageInput::Activations(id) => Some(cols(id)?),
        };
        let end = match subgraph.output {
            StageOutput::Activations(id) => End::Activations(cols(id)?),
            StageOutput::Logits(id) => End::Logits(Language {
                seed: options.language_seed,
                vocabulary: subgraph.graph.values[id.0 as usize].cols,
                follower: options.followers.iter().find(|f| name.starts_with(&f.subgraph)).cloned(),
            }),
        };
        let latency = options.latencies.iter().find(|l| name.starts_with(&l.subgraph)).cloned();
        let (model, range) = name.split_once('[').unwrap_or((&name, ""));
        let first = range.split_once("..").and_then(|(first, _)| first.parse().ok());
        let (model, layers) = (hash_name(model), subgraph.layers() as u32);
        Ok(Self { name, model, layers, first, input_cols, end, latency })
    }

    /// The label of a row after `layers` layers. Each part is exact in `f32`.
    fn label(&self, seen: &[u32], layers: u32) -> [f32; LABEL] {
        let exact = |hash: u64| (hash >> 40) as f32;
        [exact(hash_tokens(0, seen)), exact(self.model), layers as f32]
    }
}

impl SimExecutable {
    pub(super) fn new(shared: Arc<Shared>, stage: Stage, limits: SlotLimits) -> Self {
        Self { shared, stage, slots: Slots::new(limits) }
    }

    /// Calls `visit` with each row's index, the text up to it, and the segment that wants it.
    fn each_row(&mut self, batch: &Batch, mut visit: impl FnMut(&Stage, usize, &[u32], Asked<'_>)) {
        let mut index = 0;
        for segment in &batch.segments {
            let tokens = &self.slots.of(segment.sequence).tokens;
            let unwanted = segment.tokens.len() - segment.want.rows();
            for row in 0..segment.tokens.len() {
                let seen = &tokens[..segment.base as usize + row + 1];
                let wanted = (row >= unwanted).then_some(segment);
                visit(&self.stage, index, seen, Asked { sequence: segment.sequence, wanted });
                index += 1;
            }
        }
    }

    /// Checks that the activations are of these rows, and returns the layers that they have been through.
    fn check(&mut self, batch: &Batch, input: Option<Activations>) -> u32 {
        let (cols, input) = match (self.stage.input_cols, input) {
            (None, None) => return 0,
            (Some(cols), Some(input)) => (cols, input),
            (None, Some(_)) => panic!("{}: got activations, expected tokens", self.stage.name),
            (Some(_), None) => panic!("{}: got no activations", self.stage.name),
        };
        assert_eq!(input.cols, cols, "{}: width of the activations", self.stage.name);
        assert_eq!(input.data.len(), cols * batch.rows(), "{}: rows", self.stage.name);
        let layers =
            self.stage.first.unwrap_or_else(|| input.data.get(LABEL - 1).map_or(0, |&l| l as u32));
        self.each_row(batch, |stage, index, seen, asked| {
            let found = &input.data[index * cols..][..LABEL];
            let expected = stage.label(seen, layers);
            let (name, sequence) = (&stage.name, asked.sequence);
            assert_eq!(found[2], expected[2], "{name}: {sequence}: comes from another layer");
            assert_eq!(found[1], expected[1], "{name}: {sequence}: comes from another model");
            assert_eq!(found[0], expected[0], "{name}: {sequence}: comes from another text");
        });
        layers
    }

    fn activations(&mut self, batch: &Batch, cols: usize, layers: u32) -> Activations {
        let mut data = vec![0.0; batch.rows() * cols];
        self.each_row(batch, |stage, index, seen, _| {
            data[index * cols..][..LABEL].copy_from_slice(&stage.label(seen, layers));
        });
        Activations { cols, data }
    }

    fn picked(&mut self, batch: &Batch) -> Picked {
        let mut picked = Picked::default();
        let mut scratch = Scratch::default();
        self.each_row(batch, |stage, _, seen, asked| {
            let (End::Logits(language), Some(segment)) = (&stage.end, asked.wanted) else { return };
            let logits = language.logits(seen);
            let position = seen.len() as u32;
            let sampling = &segment.sampling;
            picked.picks.push(pick(&logits, position, seen, sampling, &mut scratch));
            if matches!(segment.want, Want::Logits(_)) {
                picked.logits.extend(logits);
            }
        });
        picked
    }
}

/// Whose row it is, and the segment if it wants a result of this row.
struct Asked<'a> {
    sequence: SequenceId,
    wanted: Option<&'a Segment>,
}

impl Executable for SimExecutable {
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError> {
        self.slots.admit(batch, &self.shared.options.name)?;
        let came_through = self.check(batch, input);
        let Stage { latency, layers, .. } = &self.stage;
        let layers = *layers;
        let time = latency.as_ref().map_or(0, |l| l.of_run(batch.rows() as u32, layers));
        self.shared.run(time)?;
        Ok(match self.stage.end {
            End::Activations(cols) => {
                Output::Activations(self.activations(batch, cols, came_through + layers))
            }
            End::Logits(_) => Output::Picked(self.picked(batch)),
        })
    }

    fn cached(&self, sequence: SequenceId) -> u32 {
        self.slots.cached(sequence)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.slots.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let tokens: usize = self.slots.iter().map(|(_, slot)| slot.tokens.len()).sum();
        MemoryUse { weights: 0, caches: (tokens * size_of::<u32>()) as u64, scratch: 0 }
    }
}
