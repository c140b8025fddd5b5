//! How a compute unit computes: a graph of ops, its compilation for one unit, and its execution there.
//!
//! *Invariant:* nothing here knows a plan, a role (draft or target), a request or an actor. A device is given a
//! [`Subgraph`] and ragged batches of rows, and answers with activations or picked tokens.

pub mod batch;
pub mod conformance;
pub mod cpu;
pub mod device;
pub mod discovery;
pub mod gpu;
pub mod graph;
pub mod leave;
pub mod mapped;
pub mod reclaim;
pub mod reference;
pub mod sampling;
pub mod sim;
pub mod slots;
pub mod synthetic;
pub mod whole_file;

pub use batch::{
    Activations, Batch, DraftBatch, DraftSegment, Drafted, Output, Pick, Picked, Segment,
    SequenceId, Want,
};
pub use device::{
    CacheFormat, Device, DeviceDescriptor, DeviceError, DeviceKind, Executable, MemoryUse, Purpose,
    SlotLimits,
};
pub use graph::{Graph, Subgraph};
pub use sampling::Sampling;
