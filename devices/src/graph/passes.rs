//! The optimiser: a readable list of passes from the ops of a checkpoint to the fused ops that devices run.

use super::Graph;

/// One rewrite of a graph; each keeps its meaning.
pub type Pass = fn(Graph) -> Graph;

/// The passes in the order that they run.
pub const PASSES: &[(&str, Pass)] = &[];

/// Runs every pass.
pub fn optimise(graph: Graph) -> Graph {
    PASSES.iter().fold(graph, |graph, (_, pass)| pass(graph))
}
