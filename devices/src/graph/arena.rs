//! Plans where a graph's values lie in one buffer: values that are never alive together share room.
//!
//! *Invariant:* two values that are alive at the same node never overlap. A value is alive from the node that writes it
//! to the last one that reads it, ends included, so a node never writes over what it reads; the stage's input is alive
//! from the start, its output to the end.

use super::{StageInput, StageOutput, Subgraph, ValueId};

/// Places of a stage's values in one buffer, in columns: since each value has a row for each row of the batch, place
/// and size scale with the rows. Value v of a batch of `rows` rows lies at `offset * rows`, contiguously.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaPlan {
    /// By [`ValueId`]; `None` for logits (they have rows of their own) and for values that no node names.
    pub offsets: Vec<Option<usize>>,
    /// Columns of the whole buffer.
    pub cols: usize,
}

/// First and last node at which a value is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lifetime {
    first: usize,
    last: usize,
}

impl Lifetime {
    fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl ArenaPlan {
    /// Places every value at a multiple of `alignment` columns: the largest first, each at the lowest offset that is
    /// free for its whole life.
    ///
    /// Panics if `alignment` is 0.
    pub fn of(subgraph: &Subgraph, alignment: usize) -> Self {
        assert!(alignment > 0, "values cannot be aligned to nothing");
        let values = &subgraph.graph.values;
        let lifetimes = lifetimes(subgraph);
        let size = |index: usize| values[index].cols.next_multiple_of(alignment);
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(size(index)), index));
        let mut plan = Self { offsets: vec![None; values.len()], cols: 0 };
        for index in order {
            let Some(life) = lifetimes[index] else { continue };
            let mut busy: Vec<(usize, usize)> = plan
                .offsets
                .iter()
                .enumerate()
                .filter(|&(other, _)| lifetimes[other].is_some_and(|l| l.meets(life)))
                .filter_map(|(other, offset)| Some(((*offset)?, (*offset)? + size(other))))
                .collect();
            busy.sort_unstable();
            let offset = lowest_gap(&busy, size(index));
            plan.offsets[index] = Some(offset);
            plan.cols = plan.cols.max(offset + size(index));
        }
        plan
    }

    /// Place of a value, in columns.
    ///
    /// Panics if it has none.
    pub fn offset(&self, value: ValueId) -> usize {
        self.offsets[value.0 as usize].expect("the value has a place")
    }
}

/// The lowest offset at which `size` columns are free, `busy` being sorted.
fn lowest_gap(busy: &[(usize, usize)], size: usize) -> usize {
    let mut offset = 0;
    for &(start, end) in busy {
        if offset + size <= start {
            break;
        }
        offset = offset.max(end);
    }
    offset
}

fn lifetimes(subgraph: &Subgraph) -> Vec<Option<Lifetime>> {
    let graph = &subgraph.graph;
    let mut lifetimes: Vec<Option<Lifetime>> = vec![None; graph.values.len()];
    let mut alive_at = |value: ValueId, node: usize| {
        let life = lifetimes[value.0 as usize].get_or_insert(Lifetime { first: node, last: node });
        life.first = life.first.min(node);
        life.last = life.last.max(node);
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        for &value in node.inputs.iter().chain(&node.outputs) {
            alive_at(value, index);
        }
    }
    if let StageInput::Activations(input) = subgraph.input {
        alive_at(input, 0);
    }
    match subgraph.output {
        StageOutput::Activations(output) => alive_at(output, graph.nodes.len()),
        StageOutput::Logits(logits) => lifetimes[logits.0 as usize] = None,
    }
    lifetimes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use proptest::{collection, prop_assert};

    use super::*;
    use crate::graph::{Graph, Op, WeightFormat, passes};
    use crate::synthetic;

    /// Whether the nodes, run one after the other, ever find a value overwritten that is read later.
    fn nothing_is_overwritten(subgraph: &Subgraph, plan: &ArenaPlan) -> bool {
        let mut owner: Vec<Option<ValueId>> = vec![None; plan.cols];
        let place = |value: ValueId| {
            let offset = plan.offsets[value.0 as usize]?;
            Some(offset..offset + subgraph.graph.values[value.0 as usize].cols)
        };
        let intact = |owner: &[Option<ValueId>], value: ValueId| {
            place(value).is_none_or(|place| owner[place].iter().all(|&o| o == Some(value)))
        };
        if let StageInput::Activations(input) = subgraph.input {
            owner[place(input).expect("the input has a place")].fill(Some(input));
        }
        for node in &subgraph.graph.nodes {
            for &output in &node.outputs {
                if let Some(place) = place(output) {
                    owner[place].fill(Some(output));
                }
            }
            if !node.inputs.iter().chain(&node.outputs).all(|&v| intact(&owner, v)) {
                return false;
            }
        }
        match subgraph.output {
            StageOutput::Activations(output) => intact(&owner, output),
            StageOutput::Logits(_) => true,
        }
    }

    /// A graph of adds: each step reads two earlier values and writes one of the given width.
    fn random(steps: &[(u8, u8, usize)]) -> Subgraph {
        let mut graph = Graph::default();
        let input = graph.value(7);
        for &(a, b, cols) in steps {
            let count = graph.values.len();
            let [a, b] = [a, b].map(|v| ValueId((usize::from(v) % count) as u32));
            graph.push(Op::Add, Some(0), &[a, b], &[cols]);
        }
        let output = StageOutput::Activations(ValueId(graph.values.len() as u32 - 1));
        Subgraph { name: "random".into(), graph, input: StageInput::Activations(input), output }
    }

    proptest! {
        #[test]
        fn no_value_is_overwritten_while_alive(
            steps in collection::vec((any::<u8>(), any::<u8>(), 1usize..40), 1..30),
            alignment in 1usize..20,
        ) {
            let subgraph = random(&steps);
            let plan = ArenaPlan::of(&subgraph, alignment);
            let all = subgraph.graph.values.iter().map(|v| v.cols.next_multiple_of(alignment));
            prop_assert!(plan.cols <= all.sum());
            prop_assert!(plan.offsets.iter().flatten().all(|o| o % alignment == 0));
            prop_assert!(nothing_is_overwritten(&subgraph, &plan));
        }
    }

    #[test]
    fn a_model_of_many_layers_needs_no_more_room_than_one_of_two() {
        let room = |layers: usize| {
            let model = synthetic::llama(&synthetic::tiny(layers), WeightFormat::F32, 1);
            let model = passes::optimise(model);
            let whole = Subgraph::cut("model", &model, 0, layers).expect("a whole model");
            let plan = ArenaPlan::of(&whole, 16);
            assert!(nothing_is_overwritten(&whole, &plan));
            plan.cols
        };
        assert_eq!(room(9), room(2));
    }
}
